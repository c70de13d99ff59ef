"""constriction's range coder, driven in one direction or the other."""

from collections.abc import Callable

import constriction
import numpy as np

from submission.errors import BitstreamError
from submission.integer import Int32
from submission.mixture import CODER_BITS, Rows

_Categorical = constriction.stream.model.Categorical

TOTAL = np.int32(1 << CODER_BITS)


class Encoder:
    """Codes the symbols it is given."""

    def __init__(self) -> None:
        self._range = constriction.stream.queue.RangeEncoder()

    def encode(self, starts: Int32, widths: Int32) -> None:
        """Code symbols that take these parts of the interval, in 1/2^24: [n] each, of alphabets of 3 or more."""
        # of three symbols: what lies below, the part itself, what lies above. At an end of the interval there is no
        # such part, and the rest counts as two.
        below, above = starts, TOTAL - starts - widths
        symbols = np.where(below == 0, 0, np.where(above == 0, 2, 1)).astype(np.int32)
        rows = np.stack([below, widths, above], 1).astype(np.float64)
        rows[symbols == 0] = np.stack([widths, np.ones_like(widths), above - 1], 1)[symbols == 0]
        rows[symbols == 2] = np.stack([below - 1, np.ones_like(widths), widths], 1)[symbols == 2]
        rows -= 1  # the coder adds one to each weight
        self._range.encode(symbols, _Categorical(perfect=False), rows)

    def bytes(self) -> bytes:
        """The coded symbols; trailing zero bytes are left out, as the decoder puts them back."""
        return bytes(self._range.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class Decoder:
    """Finds the symbols again. BitstreamError where the bytes cannot have come from an encoder."""

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._range = constriction.stream.queue.RangeDecoder(words)

    def decode(self, rows: Rows) -> Int32:
        """One symbol per row of integer weights (each row sums to 2^24 less its length)."""
        return self._decoded(lambda: self._range.decode(_Categorical(perfect=False), rows))

    def decode_alike(self, row: Rows, count: int) -> Int32:
        """`count` symbols with the same row."""
        return self._decoded(lambda: self._range.decode(_Categorical(row, perfect=False), count))

    @staticmethod
    def _decoded(decode: Callable[[], Int32]) -> Int32:
        try:
            return decode()
        except KeyboardInterrupt:
            raise
        except BaseException:  # constriction's panics do not derive from Exception
            raise BitstreamError("entropy-coded data is damaged") from None
