"""From integer mixture parameters to integer probabilities, and the coding of symbols with them.

All quantities are integers. The three tables are fixed at export and stored with the weights, so that no exp or erf
runs on a decoder's machine.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Symbols = NDArray[np.int32]

#: Latents lie in -127..127.
PEAK = 127

#: Units of the network's outputs: weight logits in 1/32, means in 1/64, log2 of scales in 1/32, from 2^-6 to 2^6.
LOGIT_UNIT, MEAN_UNIT, SCALE_UNIT = 32, 64, 32
SCALE_RANGE = 6 * SCALE_UNIT

#: Tables: exp(-u / 32) for u = 0..255 in 1/2^16; 16 / sigma in 1/2^16; the normal CDF at multiples of 1/1024 from -6 to
#: 6, in 1/2^24.
EXP_BITS, INVERSE_BITS, CDF_BITS = 16, 16, 24
GRID, GRID_PEAK = 1024, 6 * 1024

#: Mixture weights sum to 2^15, so cumulative sums are in 1/2^39.
WEIGHT_BITS = 15
ONE = 1 << (WEIGHT_BITS + CDF_BITS)

#: A symbol whose most likely value has probability 1 - 2^-12 or more is not coded: the encoder takes that value.
CERTAIN = ONE - (ONE >> 12)

#: Other symbols are coded in a window of 16 values with an escape at each side; where the escapes together exceed
#: 2^-8, among all 255 values instead.
WINDOW, BELOW = 16, 8
WIDE = ONE >> 8

#: The coder's probabilities are in 1/2^24.
CODER_BITS = 24


class Coder(Protocol):
    """One traversal, two directions: an encoder returns the symbols it is given, a decoder those it finds."""

    def code(self, rows: NDArray[np.float64], symbols: Symbols | None) -> Symbols:
        """Code one symbol per row of integer weights (each row sums to 2^24 less its length)."""
        ...

    def code_alike(self, row: NDArray[np.float64], count: int, symbols: Symbols | None) -> Symbols:
        """Code `count` symbols with the same row."""
        ...


@dataclass(frozen=True)
class Tables:
    """The integer tables named above."""

    exp: Int
    inverse_scale: Int
    cdf: Int


def weights_row(cumulative: Int) -> NDArray[np.float64]:
    """[n, s + 1] cumulative sums from 0 to ONE -> [n, s] weights as the coder takes them.

    The coder adds one to each weight, so that none is impossible; a row sums to 2^24 - s.
    """
    total = (1 << CODER_BITS) - (cumulative.shape[1] - 1)
    scaled = ((cumulative >> (WEIGHT_BITS + CDF_BITS - CODER_BITS)) * total) >> CODER_BITS
    rows: NDArray[np.float64] = np.diff(scaled, axis=1).astype(np.float64)
    return rows


#: Coding a value outside the window: all 255 alike, to the nearest integer weight.
UNIFORM = weights_row((np.arange(2 * PEAK + 2, dtype=np.int64) * ONE // (2 * PEAK + 1))[None])[0]


class Mixture:
    """Mixtures of n symbols: integer arrays `weights`, `means`, `inverse` (of scales), each [n, K]."""

    def __init__(self, tables: Tables, logits: Int, means: Int, log_scales: Int) -> None:
        """Network outputs [n, K] in the units named above."""
        self.tables = tables
        weights = tables.exp[np.minimum(logits.max(1, keepdims=True) - logits, len(tables.exp) - 1)]
        self.weights = (weights << WEIGHT_BITS) // weights.sum(1, keepdims=True)
        self.weights[:, 0] += (1 << WEIGHT_BITS) - self.weights.sum(1)
        self.means = means
        self.inverse = tables.inverse_scale[np.clip(log_scales, -SCALE_RANGE, SCALE_RANGE) + SCALE_RANGE]

    def take(self, which: NDArray[np.bool_]) -> "Mixture":
        """The mixtures of some of the symbols."""
        part = object.__new__(Mixture)
        part.tables = self.tables
        part.weights, part.means, part.inverse = self.weights[which], self.means[which], self.inverse[which]
        return part

    def centre(self) -> Int:
        """[n] the means of the mixtures, rounded, so that the window around lies in -127..127."""
        unit = MEAN_UNIT << WEIGHT_BITS
        mean = ((self.weights * self.means).sum(1) + unit // 2) // unit
        centre: Int = np.clip(mean, BELOW - PEAK, PEAK + BELOW - WINDOW + 1)
        return centre

    def cumulative(self, values: Int) -> Int:
        """[n, s] values v -> ONE * P(symbol <= v)."""
        distance = (2 * values[:, :, None] + 1) * (MEAN_UNIT // 2) - self.means[:, None]
        at = (distance * self.inverse[:, None] + (1 << (INVERSE_BITS - 1))) >> INVERSE_BITS
        np.clip(at, -GRID_PEAK, GRID_PEAK, out=at)
        at += GRID_PEAK
        sums: Int = (self.tables.cdf[at] * self.weights[:, None]).sum(2)
        return sums


def _closed(cumulative: Int) -> Int:
    """Cumulative sums of a row, with 0 before and ONE after."""
    return np.pad(cumulative, ((0, 0), (1, 1)), constant_values=((0, 0), (0, ONE)))


def code_symbols(coder: Coder, mixture: Mixture, symbols: Symbols | None) -> Symbols:
    """Code n symbols in -127..127, each with its mixture; returns them as the decoder sees them.

    That differs from `symbols` (None when decoding) only where a value was all but certain and another was given.
    """
    centre = mixture.centre()
    either_side = mixture.cumulative(np.stack([centre - 1, centre], 1))
    open_ = either_side[:, 1] - either_side[:, 0] < CERTAIN
    out = centre.astype(np.int32)
    if not open_.any():
        return out
    mixture, centre = mixture.take(open_), centre[open_]
    given = symbols[open_] if symbols is not None else None
    lowest = centre - BELOW
    inside = mixture.cumulative(lowest[:, None] - 1 + np.arange(WINDOW + 1))
    wide = inside[:, 0] + (ONE - inside[:, -1]) > WIDE
    out[open_] = _merge(
        wide,
        _code_window(coder, inside[~wide], lowest[~wide], given[~wide] if given is not None else None),
        _code_wide(coder, mixture, wide, given[wide] if given is not None else None),
    )
    return out


def _merge(wide: NDArray[np.bool_], narrow_values: Symbols, wide_values: Symbols) -> Symbols:
    out = np.empty(len(wide), np.int32)
    out[~wide], out[wide] = narrow_values, wide_values
    return out


def _code_window(coder: Coder, inside: Int, lowest: Int, given: Symbols | None) -> Symbols:
    """Symbols in a window of WINDOW values from `lowest`, or escaped and coded plainly."""
    if len(lowest) == 0:
        return np.empty(0, np.int32)
    index = None
    if given is not None:
        index = np.clip(given - lowest + 1, 0, WINDOW + 1).astype(np.int32)
    index = coder.code(weights_row(_closed(inside)), index)
    values = (lowest + index - 1).astype(np.int32)
    escaped = (index == 0) | (index == WINDOW + 1)
    count = int(escaped.sum())
    if count:
        plain = given[escaped] + PEAK if given is not None else None
        values[escaped] = coder.code_alike(UNIFORM, count, plain) - PEAK
    return values


def _code_wide(coder: Coder, mixture: Mixture, wide: NDArray[np.bool_], given: Symbols | None) -> Symbols:
    """Symbols that need the whole alphabet."""
    if not wide.any():
        return np.empty(0, np.int32)
    mixture = mixture.take(wide)
    inner = np.broadcast_to(np.arange(-PEAK, PEAK), (len(mixture.means), 2 * PEAK))
    rows = weights_row(_closed(mixture.cumulative(inner)))
    return coder.code(rows, given + PEAK if given is not None else None) - PEAK
