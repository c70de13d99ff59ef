"""The rate of the integer entropy model in PyTorch, which refinement differentiates.

It is no second model: it runs the integers of the model file in floating point, where every sum that occurs is
exact, with the shifts and clamps of `submission.integer`. Only the gradient pretends that nothing is rounded down.
Nothing here decides a probability: the stream is written by `submission.codec`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from submission.config import ModelConfig
from submission.entropy_coding import TAPS, EntropyCoder, Estimator
from submission.entropy_model import mixture_likelihood
from submission.integer import RELU_OFFSET, SIGNED_PEAK, Linear, Weight
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


def kernel1x1(weight: Weight) -> Tensor:
    """[inputs, outputs] -> [outputs, inputs, 1, 1]."""
    return torch.from_numpy(weight.T.astype(np.float32))[:, :, None, None]


def kernel3x3(weight: Weight) -> Tensor:
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
