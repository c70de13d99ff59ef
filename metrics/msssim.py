"""MS-SSIM to differentiate: what training and refinement maximise, on any device, in the pictures' precision.

The definition is that of `metrics.clic`, which alone gives scores: valid windows, a 2x2 box before each halving, and a
window cut to pictures that are smaller. It differs in two things. A negative factor, for which there is no score,
counts as almost 0; and the channels may have a product each, as papers train with and print, instead of one product of
their common means.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics import clic

#: Of pictures in [0, 1].
C1, C2 = clic.C1 / 255**2, clic.C2 / 255**2

#: Factors below are raised to this: at 0 the powers' slope is infinite, and one picture would spoil the step.
SMALLEST_FACTOR = 1e-6


class MSSSIM:
    """MS-SSIM of pictures [B, 3, H, W] in [0, 1] against the pictures x, of the same size.

    What depends on x alone is computed once, without a gradient.
    """

    def __init__(self, x: Tensor, joint_channels: bool) -> None:
        """`joint_channels`: one product a picture, of the means over all channels; else one a picture and channel."""
        self.mean_over = (1, 2, 3) if joint_channels else (2, 3)
        #: At each scale the pictures, their means and their variances under the window.
        self.scales: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            #: Statistics are of the distance to this, each channel's mean: the squares of small numbers cancel less.
            self.centre = x.mean((2, 3), keepdim=True)
            x = x - self.centre
            for scale in range(len(clic.SCALE_WEIGHTS)):
                x = _halved(x) if scale else x
                mean, square = _blurred(x, x * x)
                self.scales.append((x, mean, square - mean * mean))

    def __call__(self, y: Tensor) -> Tensor:
        """The mean over pictures, and over channels where each has a product of its own."""
        y, product = y - self.centre, y.new_ones(())
        for k, ((x, mean, variance), weight) in enumerate(zip(self.scales, clic.SCALE_WEIGHTS, strict=True)):
            y = _halved(y) if k else y
            mean_y, square_y, cross = _blurred(y, y * y, x * y)
            means = mean * mean_y
            factor = (2 * (cross - means) + C2) / (variance + square_y - mean_y * mean_y + C2)
            if k == len(self.scales) - 1:
                mean, mean_y = mean + self.centre, mean_y + self.centre
                factor = factor * (2 * mean * mean_y + C1) / (mean * mean + mean_y * mean_y + C1)
            if factor.requires_grad:
                factor.register_hook(_laid_out)  # the mean's comes in another layout, in which all before would be slow
            product = product * factor.mean(self.mean_over).clamp(min=SMALLEST_FACTOR) ** weight
        return product.mean()


def _laid_out(planes: Tensor) -> Tensor:
    """Channels last are several times as fast on a CPU. On a GPU cuDNN would convolve them, in TF32, in which the
    variances would drown; PyTorch's own kernels are exact."""
    return planes.contiguous(memory_format=torch.contiguous_format if planes.is_cuda else torch.channels_last)


def _blurred(*planes: Tensor) -> tuple[Tensor, ...]:
    """Tensors [B, C, H, W] under the separable window, at its valid positions."""
    together = _laid_out(torch.cat(planes, 1))
    count, taps = together.shape[1], min(clic.WINDOW_TAPS, *together.shape[2:])
    window = _window(taps, together.device, together.dtype)
    down, across = (window.view(1, 1, *shape).expand(count, 1, *shape) for shape in ((taps, 1), (1, taps)))
    return F.conv2d(F.conv2d(together, down, groups=count), across, groups=count).chunk(len(planes), 1)


@functools.cache  # kept on the device: no transfer in a step
def _window(taps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The Gaussian, of sum 1, whose sigma shrinks with its taps."""
    at = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.exp(-((at * clic.WINDOW_TAPS / (clic.WINDOW_SIGMA * taps)) ** 2) / 2)
    return (window / window.sum()).to(device, dtype)


def _halved(planes: Tensor) -> Tensor:
    """The mean of each 2x2 block; an odd last row or column is mirrored."""
    odd_height, odd_width = (size % 2 for size in planes.shape[2:])
    if odd_height or odd_width:
        planes = F.pad(planes, (0, odd_width, 0, odd_height), mode="replicate")
    return F.avg_pool2d(planes, 2)
