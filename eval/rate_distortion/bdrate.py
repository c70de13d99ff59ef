"""Bjontegaard's delta rate: how many more bytes one codec needs than another for the same quality, on average.

After VCEG-M33 with the piecewise-cubic interpolation (PCHIP) of the JCT-VC common test conditions, JCTVC-L1100: the
logarithm of the rate as a function of the quality in dB, integrated over the qualities that both curves reach.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

RatePoint = tuple[float, float]  #: rate in any unit, quality in dB


def bd_rate(anchor: Sequence[RatePoint], test: Sequence[RatePoint]) -> float:
    """The relative rate that `test` needs beyond `anchor`: -0.2 is 20 % less. In any order of points.

    NaN where there is no answer: under two points, a curve on which more bytes are not better, or no common quality.
    """
    curves = [sorted(set(curve)) for curve in (anchor, test)]
    if any(len(curve) < 2 or not _increases(curve) for curve in curves):
        return math.nan
    low = max(curve[0][1] for curve in curves)
    high = min(curve[-1][1] for curve in curves)
    if low >= high:
        return math.nan
    integrals = [
        PchipInterpolator([q for _, q in curve], np.log([r for r, _ in curve])).integrate(low, high) for curve in curves
    ]
    return math.expm1((float(integrals[1]) - float(integrals[0])) / (high - low))


def _increases(curve: Sequence[RatePoint]) -> bool:
    """Whether both rate and quality strictly increase, all finite and the rates positive."""
    finite = all(math.isfinite(rate) and math.isfinite(quality) and rate > 0 for rate, quality in curve)
    return finite and all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(curve))
