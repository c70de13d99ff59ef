"""How long allocation takes, what memory it needs and how good it is: exactly at competition sizes, with the Lagrangian
up to a million pictures. The tables are drawn at random, shaped like those of real ladders."""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ratecontrol.allocation.knapsack import Candidates, allocate
from ratecontrol.allocation.table import write_table
from submission import console

#: Pictures, candidates of each, bits per pixel.
CASES = [
    (428, 40, 0.075),
    (428, 40, 0.15),
    (428, 40, 0.30),
    (10_000, 12, 0.15),
    (100_000, 12, 0.15),
    (1_000_000, 12, 0.15),
]

#: A picture of the CLIC sets.
PIXELS = 2_800_000


def random_candidates(images: int, each: int, seed: int) -> Candidates:
    """Pictures that differ in difficulty, candidates along a rate-distortion curve that wobbles a little."""
    rng = np.random.default_rng(seed)
    bpp = np.geomspace(0.03, 0.6, each) * np.exp(rng.normal(0, 0.5, (images, 1)) + rng.normal(0, 0.03, (images, each)))
    decibels = 22 + 3 * np.log2(bpp) + rng.normal(0, 1, (images, 1)) + rng.normal(0, 0.05, (images, each))
    value = (1 - 10 ** (-decibels / 10)) / images
    size = np.ceil(bpp * PIXELS / 8).astype(np.int64)
    return Candidates(np.repeat(np.arange(images), each), size.ravel(), value.ravel())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.allocate",
        description=__doc__,
        epilog="example: python -m benchmarks.allocate -o allocate.csv",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="allocate.csv", help="write the table there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    print("  images  each    bpp  seconds    CPU s     MS-SSIM      gap  of cap  peak MiB")
    for images, each, bpp in CASES:
        candidates = random_candidates(images, each, options.seed)
        cap = int(np.ceil(bpp * PIXELS * images / 8))
        start, cpu = time.monotonic(), time.process_time()
        found = allocate(candidates, cap)
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # of the process so far
        print(
            f"{images:8,} {each:5} {bpp:6} {seconds:8.2f} {cpu:8.2f} {found.value:11.8f} {found.gap:8.1e}"
            f" {100 * found.size / cap:6.2f}% {peak:9,.0f}",
            flush=True,
        )
        rows.append([images, each, bpp, seconds, cpu, found.value, found.gap, found.size / cap, peak])
    if options.output:
        columns = ["images", "candidates", "bpp", "seconds", "cpu_seconds", "msssim", "gap", "of_cap", "peak_mib"]
        write_table(options.output, pd.DataFrame(rows, columns=columns))
    return 0


if __name__ == "__main__":
    console.run(main)
