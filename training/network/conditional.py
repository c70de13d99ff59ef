"""One network for a whole range of lambda: every convolution's output has a scale and a shift that depend on it.

Both fold into the convolution's weights and bias, so that the trunk at any lambda is an ordinary `Network`: nothing
of this is ever exported or decoded, and a step of training costs no more than one of that network.
"""

import copy
import math

import torch
from torch import Tensor, nn

from submission.config import ModelConfig
from submission.network import Network

#: Tables hold values at lambdas at most this factor apart; in between they are interpolated in log lambda.
ANCHOR_RATIO = 2.0


class Tables(nn.Module):
    """Scale and shift of `channels` outputs at lambdas from `low` to `high`: the identity at first."""

    def __init__(self, channels: int, low: float, high: float) -> None:
        super().__init__()
        count = 1 + max(1, math.ceil(math.log(high / low) / math.log(ANCHOR_RATIO)))
        self.low, self.span, self.last = math.log(low), math.log(high / low), count - 1
        self.scales = nn.Parameter(torch.ones(count, channels))
        self.shifts = nn.Parameter(torch.zeros(count, channels))

    def at(self, lmbda: float) -> tuple[Tensor, Tensor]:
        """[channels] scales and shifts; beyond the ends those of the ends."""
        place = min(1.0, max(0.0, (math.log(lmbda) - self.low) / self.span)) * self.last
        below = min(int(place), self.last - 1)
        scale, shift = (
            torch.lerp(table[below], table[below + 1], place - below) for table in (self.scales, self.shifts)
        )
        return scale, shift


class Trunk(nn.Module):
    """A `Network` without post-filter training and the tables of its convolutions."""

    def __init__(self, config: ModelConfig, low: float, high: float) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config)
        self.convolutions = [
            (name, module.out_channels)
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Conv2d) and not name.startswith("post_filter.")
        ]
        self.tables = Tables(sum(channels for _, channels in self.convolutions), low, high)

    def folded(self, lmbda: float) -> dict[str, Tensor]:
        """Weights and biases of the network's convolutions at `lmbda`, by name; gradients go through."""
        scales, shifts = (values.split([c for _, c in self.convolutions]) for values in self.tables.at(lmbda))
        made = {}
        for (name, _), scale, shift in zip(self.convolutions, scales, shifts, strict=True):
            module = self.network.get_submodule(name)
            assert isinstance(module, nn.Conv2d) and module.bias is not None
            made[f"{name}.weight"] = module.weight * scale.view(-1, 1, 1, 1)
            made[f"{name}.bias"] = module.bias * scale + shift
        return made

    @torch.no_grad()
    def at(self, lmbda: float) -> Network:
        """The network for `lmbda`, apart from this one."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(network.state_dict() | self.folded(lmbda))
        return network
