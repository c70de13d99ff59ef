"""Figures that others published, for the same set of pictures or not at all.

`published.tsv` holds leaderboards of the challenge and curves of papers and libraries, each with its source. Figures
of different sets do not compare (the same codec differs by 0.5 to 0.8 dB between the sets of two years), so a set is
recognised by its pixels, never by the name of its folder.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ratecontrol.allocation.table import picture_hash
from submission.files import Picture

TABLE = Path(__file__).parent / "published.tsv"

#: The sets whose pictures are known, by the hash of all their pixels.
SETS = {"e70059c744678ad0adbf92c24e04c6e6b4e5411cd292fe11bf12833471694e0c": "kodak"}


@dataclass(frozen=True)
class Curve:
    """What one codec is published to reach on a set: (bits per pixel, MS-SSIM) in ascending order, and the source.

    MS-SSIM is the mean over pictures, at rates between which the source was interpolated (dB linear in log bpp).
    """

    codec: str
    points: tuple[tuple[float, float], ...]
    source: str


def set_name(pictures: Iterable[Picture]) -> str | None:
    """The name of the set that consists of exactly these pictures, in any order; None if it is not a known one."""
    hashes = sorted(picture_hash(picture) for picture in pictures)
    return SETS.get(hashlib.sha256("\n".join(hashes).encode()).hexdigest())


def curves(name: str) -> list[Curve]:
    """All that is published for the set called `name`, the best at the highest rate first."""
    table = pd.read_csv(TABLE, sep="\t")
    found = []
    for (codec, source), rows in table[table["set"] == name].groupby(["codec", "source"], sort=False):
        points = sorted(zip(rows["bpp"].astype(float), rows["msssim"].astype(float), strict=True))
        found.append(Curve(str(codec), tuple(points), str(source)))
    return sorted(found, key=lambda curve: -curve.points[-1][1])
