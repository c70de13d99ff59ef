"""constriction's range coder, driven in one direction or the other."""

from collections.abc import Callable

import constriction
import numpy as np

from submission.errors import BitstreamError
from submission.integer import Int32
from submission.mixture import Rows

_Categorical = constriction.stream.model.Categorical


class Encoder:
    """Codes the symbols it is given."""

    def __init__(self) -> None:
        self._range = constriction.stream.queue.RangeEncoder()

    def code(self, rows: Rows, symbols: Int32 | None) -> Int32:
        assert symbols is not None
        self._range.encode(symbols, _Categorical(perfect=False), rows)
        return symbols

    def code_alike(self, row: Rows, count: int, symbols: Int32 | None) -> Int32:
        assert symbols is not None and len(symbols) == count
        self._range.encode(symbols, _Categorical(row, perfect=False))
        return symbols

    def bytes(self) -> bytes:
        """The coded symbols; trailing zero bytes are left out, as the decoder puts them back."""
        return bytes(self._range.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class Decoder:
    """Finds the symbols again. BitstreamError where the bytes cannot have come from an encoder."""

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._range = constriction.stream.queue.RangeDecoder(words)

    def code(self, rows: Rows, symbols: Int32 | None) -> Int32:
        return self._decoded(lambda: self._range.decode(_Categorical(perfect=False), rows))

    def code_alike(self, row: Rows, count: int, symbols: Int32 | None) -> Int32:
        return self._decoded(lambda: self._range.decode(_Categorical(row, perfect=False), count))

    @staticmethod
    def _decoded(decode: Callable[[], Int32]) -> Int32:
        try:
            return decode()
        except KeyboardInterrupt:
            raise
        except BaseException:  # constriction's panics do not derive from Exception
            raise BitstreamError("entropy-coded data is damaged") from None
