"""What refinement differentiates: the rate of the integer entropy model, and the organisers' MS-SSIM, both in PyTorch.

The rate is no second model: it runs the integers of the model file in floating point, where every sum that occurs is
exact, with the shifts and clamps of `submission.integer`. Only the gradient pretends that nothing is rounded down.
Nothing here decides a probability: the stream is written by `submission.codec`.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.clic import C1, C2, SCALE_WEIGHTS, WINDOW_SIGMA, WINDOW_TAPS
from submission.config import ModelConfig
from submission.entropy_coding import TAPS, EntropyCoder, Estimator
from submission.entropy_model import mixture_likelihood
from submission.integer import RELU_OFFSET, SIGNED_PEAK, Linear
from submission.mixture import CODER_BITS, LOGIT_UNIT, MEAN_UNIT, PEAK, SCALE_RANGE, SCALE_UNIT


def floor(x: Tensor) -> Tensor:
    """The floor of x, with the gradient of x."""
    return torch.floor(x).detach() + (x - x.detach())  # the second term is exactly 0


class IntegerLayer(nn.Module):
    """`submission.integer.Linear` as a convolution of [B, inputs, h, w], activations as stored there."""

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, layer: Linear, kernel: Tensor) -> None:
        super().__init__()
        left = 0 if layer.left is None else layer.left
        self.register_buffer("weight", kernel)
        self.register_buffer("bias", torch.from_numpy(layer.bias.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(np.exp2(left - layer.right).astype(np.float32))[:, None, None])
        self.lowest, self.highest = layer.lowest, layer.highest

    def forward(self, a: Tensor, more: Tensor | None = None) -> Tensor:
        """a, already padded, and sums to add -> activations."""
        sums = F.conv2d(a, self.weight, self.bias)
        if more is not None:
            sums = sums + more
        return floor(sums * self.scale).clamp(self.lowest, self.highest)


def kernel1x1(weight: NDArray[np.int8]) -> Tensor:
    """[inputs, outputs] -> [outputs, inputs, 1, 1]."""
    return torch.from_numpy(weight.T.astype(np.float32))[:, :, None, None]


def kernel3x3(weight: NDArray[np.int8]) -> Tensor:
    """[9 * inputs, outputs], position by position -> [outputs, inputs, 3, 3]."""
    return torch.from_numpy(weight.astype(np.float32).reshape(3, 3, -1, weight.shape[1])).permute(3, 2, 0, 1)


def pointwise(layer: Linear) -> IntegerLayer:
    return IntegerLayer(layer, kernel1x1(layer.weight))


class GroupRate(nn.Module):
    """Context and parameter estimation of one channel group."""

    hyper: Tensor
    branch_step: Tensor

    def __init__(self, estimator: Estimator, m: int) -> None:
        super().__init__()
        taps = torch.from_numpy(estimator.context.weight.astype(np.float32)).reshape(len(TAPS), m, -1)
        kernel = torch.zeros(taps.shape[2], m, 3, 5)  # two rows above and the current one
        for tap, (i, j) in zip(taps, TAPS, strict=True):
            kernel[:, :, i + 2, j + 2] = tap.T
        known = len(estimator.centre)
        kernel[:, :known, 2, 2] = torch.from_numpy(estimator.centre.T.astype(np.float32))
        self.context = IntegerLayer(estimator.context, kernel)
        self.first, self.second, self.third = map(pointwise, (estimator.first, estimator.second, estimator.third))
        self.register_buffer("hyper", kernel1x1(estimator.hyper))
        self.branch = nn.Sequential(*map(pointwise, estimator.branch))
        shift = np.zeros(1) if estimator.branch_shift is None else estimator.branch_shift
        self.register_buffer("branch_step", torch.from_numpy(np.exp2(-shift).astype(np.float32))[:, None, None])

    def forward(self, y_hat: Tensor, hyper_features: Tensor) -> Tensor:
        """y_hat [1, M, h, w], features [1, 2M, h, w] -> mixture parameters in their integer units."""
        a = self.context(F.pad(y_hat, (2, 2, 2, 0)))
        a = self.first(a, F.conv2d(hyper_features, self.hyper))
        p: Tensor = self.third(self.second(a))
        if len(self.branch):
            p = p + self.branch(floor(p * self.branch_step).clamp(-SIGNED_PEAK, SIGNED_PEAK))
        return p


class Rate(nn.Module):
    """Bits that a picture's latents take, as a differentiable function of them."""

    prior_cost: Tensor

    def __init__(self, config: ModelConfig, coder: EntropyCoder) -> None:
        super().__init__()
        self.config, self.z_peak = config, coder.z_peak
        cost = CODER_BITS - np.log2(coder.prior + 1)
        self.register_buffer("prior_cost", torch.from_numpy(cost.astype(np.float32)))
        self.h_s = nn.ModuleList(IntegerLayer(layer, kernel3x3(layer.weight)) for layer in coder.h_s)
        self.groups = nn.ModuleList(GroupRate(estimator, config.M) for estimator in coder.estimators)

    def hyper_features(self, z_hat: Tensor) -> Tensor:
        """z_hat [1, N, h, w] -> features [1, 2M, 4h, 4w]."""
        a = z_hat
        for k, layer in enumerate(self.h_s):
            a = layer(F.pad(a, (1, 1, 1, 1), value=-RELU_OFFSET if k else 0))
            if k in (1, 3):
                a = F.pixel_shuffle(a, 2)
        return a

    def mixtures(self, y_hat: Tensor, hyper_features: Tensor) -> list[Tensor]:
        """Mixture parameters of each channel group, as `submission.entropy_model` takes them."""
        return [self._scaled(group(y_hat, hyper_features)) for group in self.groups]

    def _scaled(self, p: Tensor) -> Tensor:
        logits, means, scales = p.view(1, self.config.mixtures, 3, -1, *p.shape[2:]).unbind(2)
        means = means.clamp(-PEAK * MEAN_UNIT, PEAK * MEAN_UNIT) / MEAN_UNIT
        scales = scales.clamp(-SCALE_RANGE, SCALE_RANGE) / SCALE_UNIT
        return torch.stack([logits / LOGIT_UNIT, means, scales], 2).flatten(1, 3)

    def y_cost(self, y_hat: Tensor, parameters: list[Tensor]) -> Tensor:
        """Bits of each element of y_hat [1, M, h, w], given the mixtures of all."""
        parts = y_hat.chunk(len(parameters), 1)
        k, narrowest = self.config.mixtures, 2.0 ** (-SCALE_RANGE / SCALE_UNIT)
        likelihood = [mixture_likelihood(y, p, k, narrowest) for y, p in zip(parts, parameters, strict=True)]
        return -torch.log2(torch.cat(likelihood, 1))

    def z_cost(self, z_hat: Tensor) -> Tensor:
        """Bits of each element of the integers z_hat [1, N, h, w]."""
        at = (z_hat[0].flatten(1).clamp(-self.z_peak, self.z_peak) + self.z_peak).long()
        return self.prior_cost.gather(1, at).view(z_hat.shape)


class MSSSIM(nn.Module):
    """The organisers' MS-SSIM (`metrics.clic`) against one picture x [1, 3, H, W] in [0, 1].

    What depends on x alone is computed once. Negative factors, for which there is no score, count as almost 0.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.scales: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for scale in range(len(SCALE_WEIGHTS)):
            x = halved(x) if scale else x
            window = gaussian(min(WINDOW_TAPS, *x.shape[2:])).to(x)
            mean = blurred(x, window)
            self.scales.append((x, window, mean, blurred(x * x, window) - mean * mean))

    def forward(self, y: Tensor) -> Tensor:
        value = y.new_ones(())
        for k, ((x, window, mean_x, variance_x), weight) in enumerate(zip(self.scales, SCALE_WEIGHTS, strict=True)):
            y = halved(y) if k else y
            mean_y, mean_yy, mean_xy = blurred(torch.cat([y, y * y, x * y], 1), window).chunk(3, 1)
            means = mean_x * mean_y
            cs = (2 * (mean_xy - means) + C2 / 255**2) / (variance_x + mean_yy - mean_y * mean_y + C2 / 255**2)
            if k == len(self.scales) - 1:
                cs = cs * (2 * means + C1 / 255**2) / (mean_x * mean_x + mean_y * mean_y + C1 / 255**2)
            value = value * cs.mean().clamp(min=1e-3) ** weight
        return value


def gaussian(taps: int) -> Tensor:
    at = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.exp(-((at * WINDOW_TAPS / (WINDOW_SIGMA * taps)) ** 2) / 2)
    return window / window.sum()


def blurred(planes: Tensor, window: Tensor) -> Tensor:
    """Planes [1, C, H, W] under the separable window, at its valid positions."""
    count = planes.shape[1]
    planes = planes.contiguous(memory_format=torch.channels_last)  # ten times as fast as single planes
    down, across = (window.view(1, 1, *shape).expand(count, -1, -1, -1) for shape in ((-1, 1), (1, -1)))
    return F.conv2d(F.conv2d(planes, down, groups=count), across, groups=count)


def halved(planes: Tensor) -> Tensor:
    """The mean of each 2x2 block; an odd last row or column is mirrored."""
    _, _, height, width = planes.shape
    return F.avg_pool2d(F.pad(planes, (0, width % 2, 0, height % 2), mode="replicate"), 2)
