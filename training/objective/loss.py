"""R + lambda D and the padding strategy (2020 paper, Algorithm 1)."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: MS-SSIM of Wang, Simoncelli and Bovik (2003): exponents of the scales, and the window's sigma and taps.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_SIGMA, WINDOW_TAPS = 1.5, 11
C1, C2 = 0.01**2, 0.03**2

#: Negative factors are raised to this: at 0 the powers' slope is infinite, and one picture would spoil the step.
SMALLEST_FACTOR = 1e-6


def rate(likelihood: Tensor, pixels: int) -> Tensor:
    """Bits per true pixel of symbols with these likelihoods."""
    return -torch.log2(likelihood).sum() / pixels


def distortion(x: Tensor, x_hat: Tensor) -> Tensor:
    """1 - MS-SSIM, of pictures [B, 3, H, W] in [0, 1] with sides over 160; negative factors count as almost 0.

    Factors are per picture and channel. The windows are applied as products with banded matrices: no transfer to a GPU
    and no TF32, in which the variances would drown, and twice as fast as depthwise convolutions on a CPU.
    """
    product = torch.ones((), device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            x, x_hat = _halve(x), _halve(x_hat)
        mean, square = _blur(torch.stack([x, x * x]))  # apart: no gradient goes there
        mean_hat, square_hat, cross = _blur(torch.stack([x_hat, x_hat * x_hat, x * x_hat]))
        covariance = cross - mean * mean_hat
        variances = square - mean * mean + square_hat - mean_hat * mean_hat
        factor = (2 * covariance + C2) / (variances + C2)
        if scale == len(SCALE_WEIGHTS) - 1:
            factor = factor * (2 * mean * mean_hat + C1) / (mean * mean + mean_hat * mean_hat + C1)
        product = product * factor.mean((2, 3)).clamp(min=SMALLEST_FACTOR) ** weight
    return 1 - product.mean()


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of pictures in [0, 1], in the scale of 0..255 in which lambda is usually given."""
    return 255**2 * torch.mean((x - x_hat) ** 2)


def _halve(x: Tensor) -> Tensor:
    """2x2 box; an odd size repeats its last row or column, as the score does."""
    return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"), 2)


def _blur(v: Tensor) -> Tensor:
    """Gaussian window at every valid position of [..., H, W]."""
    return _window(v.shape[-2], v.device) @ (v @ _window(v.shape[-1], v.device).T)


@functools.lru_cache(maxsize=256)
def _window(size: int, device: torch.device) -> Tensor:
    """[size - 10, size]: the window at each position."""
    taps = [math.exp(-((k - WINDOW_TAPS // 2) ** 2) / (2 * WINDOW_SIGMA**2)) for k in range(WINDOW_TAPS)]
    matrix = torch.zeros(size - WINDOW_TAPS + 1, size)
    for k, tap in enumerate(taps):
        matrix.diagonal(k).fill_(tap / sum(taps))
    return matrix.to(device)


@dataclass(frozen=True)
class Padded:
    """A batch as the network sees it and the size of its true area, top left."""

    x: Tensor
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.x.shape[0] * self.height * self.width

    def valid(self, picture: Tensor) -> Tensor:
        """The true area of `picture` [B, 3, H, W]."""
        return picture[:, :, : self.height, : self.width]


def simulate_padding(x: Tensor, largest: int, seed: int, step: int) -> Padded:
    """Algorithm 1: half of the batches become pictures that were zero-padded at the right and bottom.

    x [B, C, H, W] is padded by h and w drawn from 0..largest, then its first h rows and w columns are cut off: the
    size stays a multiple of 64, the last rows and columns are zero, and only (H-h) x (W-w) pixels count.
    """
    rng = np.random.default_rng((seed, step, 1))
    h, w = 0, 0
    if largest and rng.integers(2):
        h, w = (int(v) for v in rng.integers(0, largest + 1, 2))
        x = F.pad(x, (0, w, 0, h))[:, :, h:, w:].contiguous(memory_format=torch.channels_last)
    return Padded(x, x.shape[2] - h, x.shape[3] - w)
