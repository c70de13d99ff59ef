"""How far apart pictures look, to set what counts as a copy (`training.data.similar`): the nearest pair below FOLDER,
and the nearest of them to any picture below --others in any orientation. Bits of 64 that differ.
"""

import argparse
from pathlib import Path

import numpy as np

from submission.console import progress, run
from submission.errors import UserError
from submission.files import read_image
from training.data.similar import LARGEST_DISTANCE, distances, fingerprints, look, pictures_below


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.similar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.similar photos --others kodak valid",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--others", type=Path, nargs="+", default=[], metavar="FOLDER")
    options = parser.parse_args()
    paths, beside = ([p for folder in f for p in pictures_below(folder)] for f in (options.folders, options.others))
    if len(paths) < 2:
        raise UserError("give folders with two pictures or more")
    looks = [look(read_image(path)) for path in progress(paths, "reading")]
    apart = distances(looks, looks)[np.triu_indices(len(looks), 1)]
    few = np.bincount(apart, minlength=65)[: 2 * LARGEST_DISTANCE + 1]
    print(f"{len(paths):,} pictures, {len(apart):,} pairs: the nearest {apart.min()} bits apart")
    counted = " ".join(f"{k}:{n}" for k, n in enumerate(few) if n)
    print(f"pairs by bits: {counted}; up to {LARGEST_DISTANCE} count as copies")
    if beside:
        others = [found.look for _, found in fingerprints(beside)]
        print(f"nearest to {len(others) // 8} others in eight orientations: {distances(looks, others).min()}")
    return 0


if __name__ == "__main__":
    run(main)
