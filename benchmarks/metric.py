"""How fast MS-SSIM is beside its definition written out: seconds, memory and the largest difference.

The definition is the slow computation of tests/test_eval_metrics.py: 2-D float64 FFT convolutions of the whole picture.
Each of the two runs in a process of its own, in turn, and the best of several runs counts; threads are as the
environment has them (OMP_NUM_THREADS=1 for one).
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from metrics.clic import ms_ssim
from submission import console
from submission.files import Picture, read_image
from tests.conftest import noise_picture
from tests.test_eval_metrics import slow_ms_ssim

#: As large as the photos of CLIC, which stop at 2048 a side: 2.8 million pixels.
HEIGHT, WIDTH = 1365, 2048

METRICS: dict[str, Callable[[Picture, Picture], float]] = {"metrics.clic": ms_ssim, "definition": slow_ms_ssim}


def measure(name: str, original: Picture, decoded: Picture, runs: int) -> tuple[float, float, int]:
    """The value, the best seconds of `runs`, and the largest memory of this process so far in bytes."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        value = METRICS[name](original, decoded)
        best = min(best, time.perf_counter() - start)
    return value, best, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metric",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: OMP_NUM_THREADS=1 python -m benchmarks.metric",
    )
    parser.add_argument("photo", type=Path, nargs="?", help=f"default: made-up structure of {WIDTH}x{HEIGHT}")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()

    original = read_image(options.photo) if options.photo else noise_picture(HEIGHT, WIDTH)
    small = Image.fromarray(original).resize((original.shape[1] // 2, original.shape[0] // 2))
    decoded = np.array(small.resize((original.shape[1], original.shape[0])))
    print(f"{original.shape[1]}x{original.shape[0]}, {original.shape[0] * original.shape[1] / 1e6:.1f} million pixels")
    results = {}
    for name in METRICS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = value, seconds, peak = pool.apply(measure, (name, original, decoded, options.runs))
        print(f"{name:13} {value:.12f}  {seconds:.3f} s  {peak / 1e6:,.0f} MB at most, the interpreter included")
    (fast, fast_seconds, _), (slow, slow_seconds, _) = results.values()
    print(f"{slow_seconds / fast_seconds:.1f} times as fast, {abs(fast - slow):.1e} apart")
    return 0


if __name__ == "__main__":
    console.run(main)
