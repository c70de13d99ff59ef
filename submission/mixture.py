"""From integer mixture parameters to integer probabilities.

All quantities are integers in 32 bits. The tables are fixed at export and stored with the weights, so that no exp or
erf runs on a decoder's machine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from submission.integer import Int32

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

#: The coder's probabilities are in 1/2^24.
CODER_BITS = 24

Rows = NDArray[np.float64]
Positions = NDArray[np.intp]


@dataclass(frozen=True)
class Tables:
    """The integer tables named above; `reach` [log-scale] is in 1/64 of a symbol."""

    exp: Int32
    inverse_scale: Int32
    cdf: Int32
    reach: Int32


def _coder_units(sums: Int32, size: int) -> Int32:
    """Cumulative sums of `size` symbols in 1/2^30 -> in 1/2^24, with room for one more to each symbol."""
    c = sums >> (WEIGHT_BITS + CDF_BITS - CODER_BITS)
    c -= c >> (CODER_BITS - (size - 1).bit_length())
    return c


def weights_row(sums: Int32) -> Rows:
    """[s + 1, n] cumulative sums from 0 to ONE -> [n, s] weights as the coder takes them.

    The coder adds one to each weight, so that none is impossible; a row must sum to 2^24 - s. Taking off x / 2^k
    leaves a little more than that, and the last weight gives up, or gets, the difference.
    """
    size = len(sums) - 1
    c = _coder_units(sums, size)
    c[-1] = (1 << CODER_BITS) - size
    return np.ascontiguousarray((c[1:] - c[:-1]).T, dtype=np.float64)


def boundaries(sums: Int32, index: Int32, size: int) -> Int32:
    """Where the coder's interval for symbol `index` of `size` starts, in 1/2^24, from the sum before it; what
    `weights_row` and the coder make of a whole row, for single symbols."""
    return np.where(index < size, _coder_units(sums, size) + index, np.int32(1 << CODER_BITS))


def cumulative(tables: Tables, parts: Int32, lowest: Int32, count: int) -> Int32:
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


def centre_and_reach(tables: Tables, parts: Int32) -> tuple[Int32, Int32]:
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
