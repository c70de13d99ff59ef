"""Choose one candidate for each image: the best set score whose files fit under the byte cap of the set.

The objective is what the organisers compute, MS-SSIM weighted by pixels; the cap is theirs too, ceil(bpp * pixels / 8)
over all images together. `knapsack` solves it and proves how far from optimal the answer can be at most.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ratecontrol.allocation.budget import byte_cap, parse_bpp, smallest_bpp
from ratecontrol.allocation.knapsack import Allocation, Candidates, allocate
from ratecontrol.allocation.table import CANDIDATE_COLUMNS, numbers, read_table, whole_numbers, write_table
from submission import console
from submission.errors import UserError
from submission.files import MAX_SIDE

EXAMPLE = """example:
  python -m ratecontrol.measure photos -o table.csv
  python -m ratecontrol.allocate table.csv --bpp 0.15 -o choice.csv

Any codec's table will do, as long as it has the columns image, width, height, candidate, quality, bytes and msssim;
others pass through to the choice.
"""


@dataclass(frozen=True)
class Problem:
    """A table as the optimiser sees it."""

    table: pd.DataFrame  #: sorted by image, quality and candidate, so that the order of the file decides nothing
    images: list[str]
    pixels: int  #: of all images
    area: NDArray[np.int64]  #: pixels of each row's image
    candidates: Candidates

    @property
    def smallest(self) -> int:
        """Bytes of the smallest candidates of all images."""
        least = np.full(len(self.images), np.iinfo(np.int64).max)
        np.minimum.at(least, self.candidates.image, self.candidates.size)
        return int(least.sum())


def read_problem(path: Path) -> Problem:
    """Read and check a table of candidates. Raises UserError with the line of the first fault."""
    table = read_table(path, CANDIDATE_COLUMNS)
    width, height = (whole_numbers(path, table, side, 1, MAX_SIDE) for side in ("width", "height"))
    quality = numbers(path, table, "quality", -1e9, 1e9)
    size = whole_numbers(path, table, "bytes", 1, 2**40)
    msssim = numbers(path, table, "msssim", -1, 1)

    order = np.lexsort((table["candidate"].to_numpy(object), quality, table["image"].to_numpy(object)))
    table, size, msssim = table.iloc[order], size[order], msssim[order]
    area = (width * height)[order]
    image, images = pd.factorize(table["image"])  # numbered in the order of the sorted names
    first = np.flatnonzero(np.diff(image, prepend=-1))
    if (other := area != area[first][image]).any():
        name = table["image"].iloc[int(np.argmax(other))]
        raise UserError(f"{path}: {name} has rows of different sizes")
    pixels = int(area[first].sum())
    candidates = Candidates(image.astype(np.int64), size, msssim * area / pixels)
    return Problem(table, list(images), pixels, area, candidates)


def feasible(problem: Problem, bpp: str, cap: int) -> None:
    """UserError, naming the smallest rate that would do, unless the smallest candidates fit under `cap`."""
    if (least := problem.smallest) > cap:
        raise UserError(
            f"--bpp {bpp} allows {cap:,} bytes, but the smallest candidates have {least:,};"
            f" the smallest feasible rate is --bpp {smallest_bpp(least, problem.pixels)}"
        )


def portable(table: pd.DataFrame, source: Path, target: Path) -> pd.DataFrame:
    """The rows with the paths of their streams, if they have any, made relative to the folder of `target`."""
    if "stream" not in table.columns:
        return table
    there, here = source.resolve().parent, target.resolve().parent
    return table.assign(stream=[os.path.relpath(there / stream, here) for stream in table["stream"]])


def report(problem: Problem, chosen: pd.DataFrame, allocation: Allocation, cap: int, seconds: float) -> str:
    """What was chosen, and the certificate: how much better any other choice could be."""
    decibels = -10 * np.log10(max(1 - allocation.value, 1e-12))
    used = Counter(chosen.sort_values("quality", key=pd.to_numeric, kind="stable")["candidate"])
    counts = " · ".join(f"{candidate} {count}" for candidate, count in used.items())
    return "\n".join(
        [
            f"images      {len(problem.images):,} of {problem.pixels:,} pixels, {len(problem.table):,} candidates",
            f"bytes       {allocation.size:,} of {cap:,} ({100 * allocation.size / cap:.3f} %)",
            f"MS-SSIM     {allocation.value:.8f} ({decibels:.3f} dB)",
            f"certificate at most {allocation.bound:.8f} is possible; gap {allocation.gap:.1e}, {seconds:.2f} s",
            f"chosen      {counts}",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.allocate",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, metavar="table.csv", help="what ratecontrol.measure wrote")
    parser.add_argument("--bpp", required=True, metavar="RATE", help="bits per pixel of the whole set, such as 0.15")
    parser.add_argument(
        "-o", dest="choice", type=Path, required=True, metavar="choice.csv", help="the chosen rows, one an image"
    )
    arguments = parser.parse_args(words)

    bpp = parse_bpp(arguments.bpp)
    if arguments.choice.resolve() == arguments.table.resolve():
        raise UserError(f"{arguments.choice}: -o would overwrite the table")
    problem = read_problem(arguments.table)
    cap = byte_cap(bpp, problem.pixels)
    start = time.monotonic()
    feasible(problem, arguments.bpp, cap)
    allocation = allocate(problem.candidates, cap)
    seconds = time.monotonic() - start
    chosen = problem.table.iloc[allocation.chosen]
    write_table(arguments.choice, portable(chosen, arguments.table, arguments.choice))
    print(report(problem, chosen, allocation, cap, seconds))
    return 0


if __name__ == "__main__":
    console.run(main)
