"""Noise that is the same for one process and for several that share its batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """This process's share of the noise for a whole batch, drawn from `generator`."""

    generator: torch.Generator
    rank: int = 0
    world: int = 1

    def like(self, y: Tensor) -> Tensor:
        """Independent samples, uniform in [-1/2, 1/2), of the shape and type of y [B, ...]."""
        shape = (self.world * y.shape[0], *y.shape[1:])
        whole = torch.rand(shape, generator=self.generator, device=y.device, dtype=y.dtype)
        return whole.chunk(self.world)[self.rank] - 0.5
