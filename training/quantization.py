"""Quantisation in training. `y` is the unquantised latent, any shape; results have its shape."""

import torch
from torch import Tensor


def additive_uniform_noise(y: Tensor, generator: torch.Generator) -> Tensor:
    """AUN: y + u with u uniform in [-1/2, 1/2), independent per element; the gradient is that of y."""
    return y + torch.rand(y.shape, generator=generator, device=y.device, dtype=y.dtype) - 0.5


def hard_rounding(y: Tensor) -> Tensor:
    """The quantiser of the deployed codec: nearest integer. No gradient passes."""
    return torch.round(y.detach())
