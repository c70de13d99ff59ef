"""R + lambda D and the padding strategy (2020 paper, Algorithm 1)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.msssim import MSSSIM


def rate(likelihood: Tensor, pixels: int) -> Tensor:
    """Bits per true pixel of symbols with these likelihoods."""
    return -torch.log2(likelihood).sum() / pixels


def distortion(x: Tensor, x_hat: Tensor) -> Tensor:
    """1 - MS-SSIM, of pictures [B, 3, H, W] in [0, 1] with sides over 160; the mean over pictures and channels."""
    return 1 - MSSSIM(x, joint_channels=False)(x_hat)


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of pictures in [0, 1], in the scale of 0..255 in which lambda is usually given."""
    return 255**2 * torch.mean((x - x_hat) ** 2)


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
