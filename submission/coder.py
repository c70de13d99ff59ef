"""The entropy coder: one range coder (`docs/bitstream.md`), written twice.

constriction's, compiled, where it can be imported, else our own in Python, some ten times slower. Both write the same
bytes and find the same symbols, and the same damage.
"""

try:
    from submission.coder_constriction import Decoder, Encoder
except ImportError:
    from submission.coder_python import Decoder, Encoder  # type: ignore[assignment]

__all__ = ["Decoder", "Encoder"]
