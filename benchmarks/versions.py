"""Encoding and decoding of one photo by this code and by another checkout of it, in turns: times and their ratio.

Each turn is a process of its own, with all cores, that times `compress` and `decompress` in memory, after a warm-up.
The models are those that ship here.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.arguments import count
from submission.console import progress, run
from submission.errors import UserError
from submission.ladder import DEFAULT_WEIGHTS

ROOT = Path(__file__).parent.parent

#: Runs with the packages of either checkout, so it asks for what both have.
SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from submission.files import read_image
from submission.ladder import Ladder
photo, weights, quality, times = sys.argv[1:]
codec, image = Ladder.load(Path(weights)).codec(int(quality)), np.array(read_image(Path(photo)))
codec.decompress(codec.compress(np.ascontiguousarray(image[:256, :256])))
for _ in range(int(times)):
    start = time.perf_counter()
    stream = codec.compress(image)
    middle = time.perf_counter()
    codec.decompress(stream)
    print(middle - start, time.perf_counter() - middle)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: git worktree add ../before 372d66b; python -m benchmarks.versions ../before photo.png",
    )
    parser.add_argument("before", type=Path, metavar="CHECKOUT")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--quality", type=int, default=3)
    parser.add_argument("--turns", type=count, default=3, help="of each checkout (default 3)")
    parser.add_argument("--times", type=int, default=2, help="measured in each turn (default 2)")
    options = parser.parse_args()
    if not (options.before / "submission").is_dir():
        raise UserError(f"{options.before}: no checkout of this project")
    arguments = [options.photo.resolve(), DEFAULT_WEIGHTS, options.quality, options.times]
    seconds: dict[Path, list[list[float]]] = {options.before.resolve(): [], ROOT: []}
    for root in progress([*seconds] * options.turns, "turns"):
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root, capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"{root}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        seconds[root] += [[float(value) for value in line.split()] for line in done.stdout.splitlines()]
    print(f"{'':8} {'before':>8} {'now':>8} {'ratio':>7}   median seconds of {options.turns * options.times}")
    for what, (before, now) in zip(("encode", "decode"), _medians(seconds), strict=True):
        print(f"{what:8} {before:8.2f} {now:8.2f} {before / now:7.2f}")
    return 0


def _medians(seconds: dict[Path, list[list[float]]]) -> list[tuple[float, float]]:
    """Of encoding and of decoding: (before, now)."""
    before, now = ([statistics.median(times) for times in zip(*measured, strict=True)] for measured in seconds.values())
    return list(zip(before, now, strict=True))


if __name__ == "__main__":
    run(main)
