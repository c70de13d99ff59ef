"""How fast MS-SSIM is: the score beside its definition written out (seconds, memory, difference), and the one that is
differentiated beside the library's (forward and backward, and the gradient's distance to that in float64).

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
import torch
from PIL import Image
from pytorch_msssim import ms_ssim as library
from torch import Tensor

from benchmarks.arguments import count
from metrics.clic import ms_ssim
from metrics.msssim import MSSSIM
from submission import console
from submission.files import Picture, read_image
from tests.conftest import noise_picture
from tests.test_eval_metrics import slow_ms_ssim

#: What a step of training compares: crops a batch, and their side.
CROPS, SIDE = 8, 256

DIFFERENTIABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "metrics.msssim": lambda x, y: MSSSIM(x, joint_channels=False)(y),
    "pytorch_msssim": lambda x, y: library(x, y, data_range=1.0),
}

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


def gradient(name: str, x: Tensor, y: Tensor) -> Tensor:
    y = y.clone().requires_grad_()
    return torch.autograd.grad(DIFFERENTIABLE[name](x, y), y)[0]


def compare_gradients(runs: int) -> None:
    """Prints the best milliseconds of `runs`, in turn, and the relative error of each gradient."""
    x = torch.stack([torch.from_numpy(noise_picture(SIDE, SIDE, k)) for k in range(CROPS)]).permute(0, 3, 1, 2) / 255
    y = (x + 0.03 * torch.randn_like(x)).clamp(0, 1)
    exact = gradient("metrics.msssim", x.double(), y.double())
    best = dict.fromkeys(DIFFERENTIABLE, float("inf"))
    for _ in range(runs):
        for name in best:
            start = time.perf_counter()
            gradient(name, x, y)
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"forward and backward, {CROPS} crops of {SIDE}x{SIDE}")
    for name, seconds in best.items():
        error = (gradient(name, x, y) - exact).norm() / exact.norm()
        print(f"{name:14} {1e3 * seconds:.1f} ms, gradient {error.item():.1e} off")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metric",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: OMP_NUM_THREADS=1 python -m benchmarks.metric",
    )
    parser.add_argument("photo", type=Path, nargs="?", help=f"default: made-up structure of {WIDTH}x{HEIGHT}")
    parser.add_argument("--runs", type=count, default=5, help="default: %(default)s")
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
    compare_gradients(options.runs)
    return 0


if __name__ == "__main__":
    console.run(main)
