"""The mean of a stage's weights over about the last tenth of its steps.

While the learning rate is high weights wander around better ones, and their mean is close to those: what a stage whose
rate is flat is validated with, and what others start from before it has come to its end. Once the rate has fallen the
weights themselves are as good.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Share of the steps so far that the mean reaches back, about.
SHARE = 0.1

#: Steps between weights that are counted.
EVERY = 10


class Average:
    """The mean of the parameters that learn; `saved` continues an earlier one."""

    def __init__(self, network: nn.Module, saved: Mapping[str, Tensor] | None = None) -> None:
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, value in (saved or {}).items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Count the weights after `step` steps."""
        if step % EVERY == 0:
            weight = 1 / (1 + SHARE * step / EVERY)
            torch._foreach_lerp_(list(self.values.values()), [p.data for p in self.parameters.values()], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the mean for its weights."""
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.values[name]
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self.values.items()}
