"""Rate-distortion curves of whole sets, and what they say in one number: the BD-rate of one codec against another.

A point of a curve is the allocator's choice under the cap of one rate. It maximises MS-SSIM, so the PSNR of a curve is
that of the same files, not the best that the codec could reach.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eval.rate_distortion.bdrate import RatePoint, bd_rate
from metrics.clic import ms_ssim_db, psnr
from ratecontrol.allocate import read_problem
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import DoesNotFit, allocate

#: Rates in bits per pixel at which curves are drawn, around those of the challenge.
RATES = ("0.05", "0.06", "0.075", "0.1", "0.12", "0.15", "0.2", "0.25", "0.3", "0.4", "0.5")


@dataclass(frozen=True)
class CurvePoint:
    """A set under one cap: the bits per pixel that its files have, its MS-SSIM and its pooled PSNR in dB."""

    bpp: float
    msssim: float
    psnr: float

    @property
    def msssim_db(self) -> float:
        return ms_ssim_db(self.msssim)


Curves = Mapping[str, Sequence[CurvePoint]]  #: of several codecs, by name


def curve(table: Path) -> list[CurvePoint]:
    """The curve of a table of candidates with the column `sse`, by ascending rate, where the table reaches."""
    problem = read_problem(table)
    sse = problem.table["sse"].to_numpy(np.float64)
    largest = int(pd.Series(problem.candidates.size).groupby(problem.candidates.image).max().sum())
    found = []
    for rate in RATES:
        cap = byte_cap(parse_bpp(rate), problem.pixels)
        if cap > largest:
            break  # the cap no longer decides anything
        try:
            allocation = allocate(problem.candidates, cap)
        except DoesNotFit:
            continue
        bpp = 8 * allocation.size / problem.pixels
        quality = psnr(math.fsum(sse[allocation.chosen]), 3 * problem.pixels)
        found.append(CurvePoint(bpp, allocation.value, quality))
    return found


@dataclass(frozen=True)
class BDRate:
    """The rate that a codec needs beyond `anchor`, relative (-0.2 is 20 % less): at equal MS-SSIM in dB and equal PSNR.

    Over the qualities that both curves reach; NaN where they share none.
    """

    anchor: str
    at_msssim: float
    at_psnr: float


def bd_rates(curves: Curves, codec: str) -> list[BDRate]:
    """`codec` against each other codec."""

    def points(name: str) -> tuple[list[RatePoint], list[RatePoint]]:
        return [(p.bpp, p.msssim_db) for p in curves[name]], [(p.bpp, p.psnr) for p in curves[name]]

    anchors = [name for name in curves if name != codec] if codec in curves else []
    return [BDRate(anchor, *map(bd_rate, points(anchor), points(codec))) for anchor in anchors]


def as_table(curves: Curves) -> pd.DataFrame:
    """One row a codec and point."""
    rows = [[codec, p.bpp, p.msssim, p.msssim_db, p.psnr] for codec, points in curves.items() for p in points]
    return pd.DataFrame(rows, columns=["codec", "bpp", "msssim", "msssim_db", "psnr"])
