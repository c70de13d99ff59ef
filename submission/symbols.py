"""How symbols are coded with the mixtures of `submission.mixture` (`docs/bitstream.md`): which of them, among which
values, and in what order.

A decoder needs all probabilities of a symbol, an encoder the two sums at the sides of the one that it has. So an
encoder settles any number of symbols at once, as long as it knows their mixtures.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from submission.integer import Int32, clamp
from submission.mixture import (
    CODER_BITS,
    MEAN_UNIT,
    ONE,
    PEAK,
    Positions,
    Rows,
    Tables,
    boundaries,
    centre_and_reach,
    cumulative,
    weights_row,
)

#: A symbol whose mixture reaches less than half a step from the centre is certain, and not coded: the encoder takes
#: the centre. Others are coded among the centre +-3 or +-15 with an escape at each side, where the mixture reaches no
#: further, or among all 255 values. In the order in which symbols of one step are coded.
WINDOWS = (3, 15, None)

#: The kind of a symbol is its place in WINDOWS, or this.
CERTAIN = len(WINDOWS)

#: Coding a value outside a window: all 255 alike, to the nearest integer weight.
UNIFORM = weights_row((np.arange(2 * PEAK + 2) * ONE // (2 * PEAK + 1)).astype(np.int32)[:, None])[0]


class Source(Protocol):
    """A range decoder."""

    def decode(self, rows: Rows) -> Int32:
        """One symbol per row of integer weights (each row sums to 2^24 less its length)."""
        ...

    def decode_alike(self, row: Rows, count: int) -> Int32:
        """`count` symbols with the same row."""
        ...


class Sink(Protocol):
    """A range encoder."""

    def encode(self, starts: Int32, widths: Int32) -> None:
        """Code symbols that take these parts of the interval, in 1/2^24: [n] each, of alphabets of 3 or more."""
        ...


def row_boundaries(row: Rows) -> Int32:
    """A row of s integer weights -> s + 1 boundaries of the symbols' intervals, from 0 to 2^24."""
    return np.concatenate([[0], np.cumsum(row + 1)]).astype(np.int32)


_UNIFORM_BOUNDARIES = row_boundaries(UNIFORM)


def by_kind(tables: Tables, parts: Int32) -> tuple[Int32, list[Positions]]:
    """Mixtures [K, 3, n] -> their centres, and for each of WINDOWS which of the n symbols are coded in it.

    Symbols in none of the lists are certain.
    """
    centre, furthest = centre_and_reach(tables, parts)
    kinds: list[Positions] = []
    floor = MEAN_UNIT // 2
    for window in WINDOWS:
        within = furthest > floor
        if window is not None:
            floor = window * MEAN_UNIT + MEAN_UNIT // 2
            within &= furthest <= floor
        kinds.append(np.flatnonzero(within))
    return centre, kinds


@dataclass(frozen=True)
class Settled:
    """Symbols as an encoder codes them, in arrays of one shape."""

    #: As the decoder sees them: other than given only where a value was all but certain and another was given.
    values: Int32
    kinds: NDArray[np.uint8]
    #: The parts of the coder's interval that they take, in 1/2^24; escapes are followed by the plain value.
    starts: Int32
    widths: Int32
    escaped: NDArray[np.bool_]

    @classmethod
    def empty(cls, *shape: int) -> "Settled":
        """Certain zeros."""
        numbers = np.zeros((3, *shape), np.int32)
        return cls(numbers[0], np.full(shape, CERTAIN, np.uint8), numbers[1], numbers[2], np.zeros(shape, np.bool_))

    def put(self, where: tuple[Positions | slice, ...], others: "Settled") -> None:
        """Replace those at `where`."""
        for name, array in vars(self).items():
            array[where] = getattr(others, name).reshape(array[where].shape)

    def flat(self) -> "Settled":
        """The same in one dimension."""
        return Settled(*(array.ravel() for array in vars(self).values()))

    def bits(self) -> NDArray[np.float64]:
        """What each symbol takes, escapes with the value behind them."""
        plain = np.diff(_UNIFORM_BOUNDARIES)[self.values + PEAK]
        spent = np.where(self.kinds == CERTAIN, 0, CODER_BITS - np.log2(np.maximum(self.widths, 1)))
        return spent + np.where(self.escaped, CODER_BITS - np.log2(plain), 0)


def settle(tables: Tables, parts: Int32, symbols: Int32) -> Settled:
    """How n symbols in -127..127 are coded with their mixtures `parts` [K, (logit, mean, log scale), n], whose means it
    clamps."""
    _clamp_means(parts)
    centre, kinds = by_kind(tables, parts)
    settled = Settled.empty(len(symbols))
    settled.values[:] = centre
    for kind, (window, which) in enumerate(zip(WINDOWS, kinds, strict=True)):
        given = symbols[which]
        lowest = np.int32(-PEAK) if window is None else centre[which] - np.int32(window + 1)
        size = 2 * PEAK + 1 if window is None else 2 * window + 3
        index = (given - lowest).clip(np.int32(0), np.int32(size - 1))
        _, below, above, _ = cumulative(tables, parts.take(which, 2), lowest + index, 2)
        below[index == 0] = 0
        start, end = boundaries(below, index, size), boundaries(above, index + 1, size)
        settled.values[which] = given
        settled.kinds[which] = kind
        settled.starts[which] = start
        settled.widths[which] = end - start
        if window is not None:
            settled.escaped[which] = (index == 0) | (index == size - 1)
    return settled


class SymbolEncoder:
    """Codes symbols that it is given."""

    def __init__(self, tables: Tables, sink: Sink) -> None:
        self.tables, self.sink = tables, sink

    def code(self, parts: Int32, symbols: Int32 | None) -> Int32:
        """Code n symbols in -127..127 in one step, with mixtures [K, 3, n] whose means it clamps.

        Returns them as the decoder sees them.
        """
        assert symbols is not None
        settled = settle(self.tables, parts, symbols)
        self.write(settled, np.zeros(len(symbols), np.uint16))
        return settled.values

    def write(self, settled: Settled, steps: NDArray[np.uint16]) -> None:
        """Code settled symbols [n] step by step. There may be thousands of steps."""
        coded, escaped = np.flatnonzero(settled.kinds != CERTAIN), np.flatnonzero(settled.escaped)
        # in a step kind by kind, those of one kind as they come, then the values of its escapes
        turns = 2 * (steps * np.uint16(len(WINDOWS)) + settled.kinds)
        order = np.concatenate([turns[coded], turns[escaped] + 1]).argsort(kind="stable")
        plain = settled.values[escaped] + PEAK
        starts, ends = _UNIFORM_BOUNDARIES[plain], _UNIFORM_BOUNDARIES[plain + 1]
        self.sink.encode(
            np.concatenate([settled.starts[coded], starts])[order],
            np.concatenate([settled.widths[coded], ends - starts])[order],
        )

    def code_alike(self, row: Rows, count: int, symbols: Int32 | None) -> Int32:
        """Code `count` symbols with the same row."""
        assert symbols is not None and len(symbols) == count
        ends = row_boundaries(row)
        starts = ends[symbols]
        self.sink.encode(starts, ends[symbols + 1] - starts)
        return symbols


class SymbolDecoder:
    """Finds symbols."""

    def __init__(self, tables: Tables, source: Source) -> None:
        self.tables, self.source = tables, source

    def code(self, parts: Int32, symbols: Int32 | None = None) -> Int32:
        """Find n symbols in -127..127 with their mixtures [K, 3, n], whose means it clamps."""
        _clamp_means(parts)
        out, kinds = by_kind(self.tables, parts)
        for window, which in zip(WINDOWS, kinds, strict=True):
            if len(which):
                of = parts.take(which, 2)
                out[which] = self._any(of) if window is None else self._in_window(of, out[which], window)
        return out

    def _any(self, parts: Int32) -> Int32:
        """Symbols among the whole alphabet."""
        lowest = np.full(parts.shape[2], -PEAK, np.int32)
        # without a boundary below -127, whose symbol gets all that lies below it
        sums = np.delete(cumulative(self.tables, parts, lowest, 2 * PEAK + 1), 1, axis=0)
        return self.source.decode(weights_row(sums)) - PEAK

    def _in_window(self, parts: Int32, centre: Int32, window: int) -> Int32:
        """Symbols among centre - window .. centre + window, or escaped and coded plainly."""
        lowest = centre - window
        count = 2 * window + 1
        index = self.source.decode(weights_row(cumulative(self.tables, parts, lowest, count + 1)))
        values: Int32 = lowest + index - 1
        escaped = (index == 0) | (index == count + 1)
        if escaped.any():
            values[escaped] = self.source.decode_alike(UNIFORM, int(escaped.sum())) - PEAK
        return values

    def code_alike(self, row: Rows, count: int, symbols: Int32 | None = None) -> Int32:
        """Find `count` symbols with the same row."""
        return self.source.decode_alike(row, count)


#: One traversal, two directions.
SymbolCoder = SymbolEncoder | SymbolDecoder


def _clamp_means(parts: Int32) -> None:
    clamp(parts[:, 1], -PEAK * MEAN_UNIT, PEAK * MEAN_UNIT)
