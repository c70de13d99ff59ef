"""The same range coder in NumPy and Python, for machines and Pythons that constriction is not published for.

A 64-bit interval, 32-bit words, probabilities in 1/2^24. Python's integers do the arithmetic, one symbol at a time;
everything that can be done for all symbols of a call at once is done in NumPy before.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import repeat

import numpy as np

from submission.errors import BitstreamError
from submission.integer import Int32
from submission.mixture import CODER_BITS, Rows

WORD_BITS, STATE_BITS = 32, 64
WORD = (1 << WORD_BITS) - 1
#: An interval narrower than this is widened by one word.
NARROW = 1 << (STATE_BITS - WORD_BITS)


def _cumulative(rows: Rows) -> Int32:
    """Integer weights [n, s], to which the coder adds one each -> their sums [n, s + 1], from 0 to 2^24."""
    sums = np.zeros((len(rows), rows.shape[1] + 1), np.int32)
    np.cumsum(rows.astype(np.int32) + np.int32(1), axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums


class Encoder:
    """Codes the symbols it is given."""

    def __init__(self) -> None:
        #: The coded words. A sum that overflows makes the next word larger than a word; `bytes` carries.
        self._words: list[int] = []
        self._low, self._range = 0, (1 << STATE_BITS) - 1

    def encode(self, starts: Int32, widths: Int32) -> None:
        """Code symbols that take these parts of the interval, in 1/2^24: [n] each."""
        low, width = self._low, self._range
        for start, probability in zip(starts.tolist(), widths.tolist(), strict=True):
            scale = width >> CODER_BITS
            low += scale * start
            width = scale * probability
            if width < NARROW:
                self._words.append(low >> WORD_BITS)
                low = (low & WORD) << WORD_BITS
                width <<= WORD_BITS
        self._low, self._range = low, width

    def bytes(self) -> bytes:
        """The coded symbols; trailing zero bytes are left out, as the decoder puts them back."""
        # the last word is the first that no smaller one can follow inside the interval
        words = [*self._words, (self._low + NARROW - 1) >> WORD_BITS]
        carry = 0
        for k in reversed(range(len(words))):
            total = words[k] + carry
            words[k], carry = total & WORD, total >> WORD_BITS
        return np.array(words, "<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Finds the symbols again. BitstreamError where the bytes cannot have come from an encoder."""

    def __init__(self, data: bytes) -> None:
        self._words = iter(np.frombuffer(data + bytes(-len(data) % 4), "<u4").tolist())
        #: Where the data points to, from the interval's lower end.
        self._offset = next(self._words, 0) << WORD_BITS | next(self._words, 0)
        self._range = (1 << STATE_BITS) - 1

    def decode(self, rows: Rows) -> Int32:
        """One symbol per row of integer weights (each row sums to 2^24 less its length)."""
        sums = _cumulative(rows)
        return self._decode(sums, range(0, sums.size, sums.shape[1]))

    def decode_alike(self, row: Rows, count: int) -> Int32:
        """`count` symbols with the same row."""
        return self._decode(_cumulative(row[None]), repeat(0, count))

    def _decode(self, sums: Int32, starts: Iterable[int]) -> Int32:
        """One symbol with each of the rows of `sums` that start there, counted in elements."""
        length = sums.shape[1]
        flat = sums.ravel().data  # of a row only a few elements are looked at: cheaper than a list of all
        offset, width, words = self._offset, self._range, self._words
        found = []
        for start in starts:
            scale = width >> CODER_BITS
            quantile = offset // scale
            if quantile >> CODER_BITS:
                raise BitstreamError("entropy-coded data is damaged")
            at = bisect_right(flat, quantile, start, start + length) - 1
            below = flat[at]
            offset -= scale * below
            width = scale * (flat[at + 1] - below)
            if width < NARROW:
                offset = offset << WORD_BITS | next(words, 0)
                width <<= WORD_BITS
            found.append(at - start)
        self._offset, self._range = offset, width
        return np.array(found, np.int32)
