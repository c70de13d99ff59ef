"""From integer mixture parameters to integer probabilities, and the coding of symbols with them.

All quantities are integers in 32 bits. The tables are fixed at export and stored with the weights, so that no exp or
erf runs on a decoder's machine.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from submission.integer import Int32, clamp

#: Latents lie in -127..127.
PEAK = 127

#: Units of the network's outputs: weight logits in 1/32, means in 1/64, log2 of scales in 1/32, from 2^-6 to 2^6.
LOGIT_UNIT, MEAN_UNIT, SCALE_UNIT = 32, 64, 32
SCALE_RANGE = 6 * SCALE_UNIT

#: exp(-u / 32), u = 0..255, in 1/2^16.
EXP_BITS = 16
#: 16 / sigma in 1/2^6, which turns 1/64 of a symbol into steps of the CDF's grid.
INVERSE_BITS = 6
#: The normal CDF at multiples of 1/1024 from -6 to 6, in 1/2^16.
CDF_BITS = 16
GRID, GRID_PEAK = 1024, 6 * 1024
#: Mixture weights sum to 2^14, so cumulative sums of a mixture are in 1/2^30.
WEIGHT_BITS = 14
ONE = 1 << (WEIGHT_BITS + CDF_BITS)

#: A Gaussian reaches this many sigma: beyond lies 2^-10 of it. Mixture parts whose logit is this far below the
#: largest (a weight under 2^-11) do not count.
REACH = 3.3
NEGLIGIBLE = 244

#: A symbol whose mixture reaches less than half a step from the centre is certain, and not coded: the encoder takes
#: the centre. Others are coded among the centre +-3 or +-15 with an escape at each side, where the mixture reaches no
#: further, or among all 255 values.
WINDOWS = (3, 15)

#: The coder's probabilities are in 1/2^24.
CODER_BITS = 24

Rows = NDArray[np.float64]
Positions = NDArray[np.intp]


class Coder(Protocol):
    """One traversal, two directions: an encoder returns the symbols it is given, a decoder those it finds."""

    def code(self, rows: Rows, symbols: Int32 | None) -> Int32:
        """Code one symbol per row of integer weights (each row sums to 2^24 less its length)."""
        ...

    def code_alike(self, row: Rows, count: int, symbols: Int32 | None) -> Int32:
        """Code `count` symbols with the same row."""
        ...


@dataclass(frozen=True)
class Tables:
    """The integer tables named above; `reach` [log-scale] is in 1/64 of a symbol."""

    exp: Int32
    inverse_scale: Int32
    cdf: Int32
    reach: Int32


def weights_row(cumulative: Int32) -> Rows:
    """[s + 1, n] cumulative sums from 0 to ONE -> [n, s] weights as the coder takes them.

    The coder adds one to each weight, so that none is impossible; a row must sum to 2^24 - s. Taking off x / 2^k
    leaves a little more than that, and the last weight gives up, or gets, the difference.
    """
    size = len(cumulative) - 1
    c = cumulative >> (WEIGHT_BITS + CDF_BITS - CODER_BITS)
    c -= c >> (CODER_BITS - (size - 1).bit_length())
    c[-1] = (1 << CODER_BITS) - size
    return np.ascontiguousarray((c[1:] - c[:-1]).T, dtype=np.float64)


#: Coding a value outside a window: all 255 alike, to the nearest integer weight.
UNIFORM = weights_row((np.arange(2 * PEAK + 2) * ONE // (2 * PEAK + 1)).astype(np.int32)[:, None])[0]


def _cumulative(tables: Tables, parts: Int32, lowest: Int32, count: int) -> Int32:
    """Mixtures `parts` [K, 3, n] -> [count + 2, n]: 0, ONE * P(symbol < v) for `count` values v from `lowest`, ONE."""
    logits, means, scales = parts[:, 0], parts[:, 1], parts[:, 2]
    exp = tables.exp.take(logits.max(0) - logits, mode="clip")
    weights = (exp << WEIGHT_BITS) // exp.sum(0, dtype=np.int32)
    weights[0] += (1 << WEIGHT_BITS) - weights.sum(0, dtype=np.int32)
    inverse = tables.inverse_scale.take(scales + SCALE_RANGE, mode="clip")
    first = (lowest * MEAN_UNIT - MEAN_UNIT // 2 - means) * inverse + (GRID_PEAK << INVERSE_BITS)
    inverse *= MEAN_UNIT
    steps = np.arange(count, dtype=np.int32)[:, None]
    out = np.zeros((count + 2, len(lowest)), np.int32)
    out[-1] = ONE
    for k in range(len(parts)):  # one Gaussian at a time stays in the cache
        at = inverse[k] * steps
        at += first[k]
        at >>= INVERSE_BITS
        cdf = tables.cdf.take(at, mode="clip")
        cdf *= weights[k]
        out[1:-1] += cdf
    return out


def _centre_and_reach(tables: Tables, parts: Int32) -> tuple[Int32, Int32]:
    """Mixtures [K, 3, n] -> the rounded mean of the likeliest Gaussian, and how far from it the mixture reaches, in
    1/64 of a symbol."""
    best, mean = parts[0, 0], parts[0, 1]
    for logits, means, _ in parts[1:]:
        mean = np.where(logits > best, means, mean)
        best = np.maximum(best, logits)
    centre = (mean + MEAN_UNIT // 2) // MEAN_UNIT
    middle = centre * MEAN_UNIT
    least = best - NEGLIGIBLE
    furthest = np.zeros_like(best)
    for logits, means, scales in parts:
        reach = np.abs(means - middle)
        reach += tables.reach.take(scales + SCALE_RANGE, mode="clip")
        reach *= logits >= least
        np.maximum(furthest, reach, out=furthest)
    return centre, furthest


def by_kind(tables: Tables, parts: Int32) -> tuple[Int32, list[tuple[int | None, Positions]]]:
    """Mixtures [K, 3, n] -> their centres, and for each window which of the n symbols are coded in it.

    None stands for the whole alphabet. Symbols in none of the lists are certain.
    """
    centre, furthest = _centre_and_reach(tables, parts)
    kinds: list[tuple[int | None, Positions]] = []
    floor = MEAN_UNIT // 2
    for window in WINDOWS:
        ceiling = window * MEAN_UNIT + MEAN_UNIT // 2
        kinds.append((window, np.flatnonzero((furthest > floor) & (furthest <= ceiling))))
        floor = ceiling
    kinds.append((None, np.flatnonzero(furthest > floor)))
    return centre, kinds


def code_symbols(coder: Coder, tables: Tables, parts: Int32, symbols: Int32 | None) -> Int32:
    """Code n symbols in -127..127 with their mixtures `parts` [K, (logit, mean, log scale), n], whose means it clamps.

    Returns them as the decoder sees them, which differs from `symbols` (None when decoding) only where a value was all
    but certain and another was given.
    """
    clamp(parts[:, 1], -PEAK * MEAN_UNIT, PEAK * MEAN_UNIT)
    centre, kinds = by_kind(tables, parts)
    out = centre
    for window, which in kinds:
        if len(which):
            given = symbols[which] if symbols is not None else None
            if window is None:
                out[which] = _code_any(coder, tables, parts.take(which, 2), given)
            else:
                out[which] = _code_window(coder, tables, parts.take(which, 2), centre[which], window, given)
    return out


def _code_any(coder: Coder, tables: Tables, parts: Int32, given: Int32 | None) -> Int32:
    """Symbols among the whole alphabet."""
    lowest = np.full(parts.shape[2], -PEAK, np.int32)
    # without a boundary below -127, whose symbol gets all that lies below it
    cumulative = np.delete(_cumulative(tables, parts, lowest, 2 * PEAK + 1), 1, axis=0)
    values: Int32 = coder.code(weights_row(cumulative), given + PEAK if given is not None else None) - PEAK
    return values


def _code_window(coder: Coder, tables: Tables, parts: Int32, centre: Int32, window: int, given: Int32 | None) -> Int32:
    """Symbols among centre - window .. centre + window, or escaped and coded plainly."""
    lowest = centre - window
    count = 2 * window + 1
    index = np.clip(given - lowest + 1, 0, count + 1) if given is not None else None
    index = coder.code(weights_row(_cumulative(tables, parts, lowest, count + 1)), index)
    values: Int32 = lowest + index - 1
    escaped = (index == 0) | (index == count + 1)
    if escaped.any():
        plain = given[escaped] + PEAK if given is not None else None
        values[escaped] = coder.code_alike(UNIFORM, int(escaped.sum()), plain) - PEAK
    return values
