"""The entropy models `hyper`, `channel` and `elic` as they are trained, in floating point.

All have one Gaussian for each latent and code y slice by slice: `hyper` everything at once, from z alone (Minnen et al.
2018); `channel` slices of channels, each predicted from z and those before it (Minnen and Singh 2020, without latent
residual prediction); `elic` uneven slices, each in two passes of a checkerboard (He et al. 2022, 3.2). Unlike the
serial context of `submission.entropy_model` this lets a slice be rounded around its means before the next one is
predicted.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from submission.config import ModelConfig
from submission.entropy_model import FactorizedPrior, gaussian_likelihood

#: Slices before it that a slice of `channel` sees: the first ones.
SUPPORT = 5

#: From a slice's channels and its means [B, C, h, w]: the slice as a decoder will have it.
Value = Callable[[slice, Tensor], Tensor]


def spans(config: ModelConfig) -> list[slice]:
    """The channels of each slice."""
    sizes = config.slices or (config.M,)
    return [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]


def anchors(like: Tensor) -> Tensor:
    """[h, w] mask of the first pass's positions, where row + column is even."""
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape[-2:])
    return (rows[:, None] + columns) % 2 == 0


def predictor(inputs: int, widths: tuple[int, int], outputs: int, last: int) -> nn.Sequential:
    """Two 5x5 layers and one of `last` x `last` that predict a slice from others."""
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(inputs, first, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(second, outputs, last, padding=last // 2),
    )


class HyperSlice(nn.Module):
    """All of y: the hyper features are its means and log2 scales."""

    def forward(self, hyper: Tensor, known: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Hyper features, slices so far, and what makes this slice of its means -> (parameters [B, 2C, h, w],
        slice)."""
        return hyper, value(hyper.chunk(2, 1)[0])


class ChannelSlice(nn.Module):
    """A slice of `channel`: one network for the means, one for the scales; each sees its half of the hyper features."""

    def __init__(self, hyper: int, known: int, channels: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.known = known
        self.mean = predictor(hyper // 2 + known, widths, channels, 3)
        self.scale = predictor(hyper // 2 + known, widths, channels, 3)

    def forward(self, hyper: Tensor, known: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        for_mean, for_scale = hyper.chunk(2, 1)
        known = known[:, : self.known]
        mean = self.mean(torch.cat([for_mean, known], 1))
        scale = self.scale(torch.cat([for_scale, known], 1))
        return torch.cat([mean, scale], 1), value(mean)


class SpaceChannelSlice(nn.Module):
    """A slice of `elic`: the slices before it give it features (`channel`), and in the second pass its own neighbours
    of the first one do (`spatial`); three 1x1 layers make parameters of them."""

    def __init__(self, hyper: int, known: int, channels: int, widths: tuple[int, int], least: int) -> None:
        super().__init__()
        self.channels = channels
        self.channel = predictor(known, widths, 2 * channels, 5) if known else None
        self.spatial = nn.Conv2d(channels, 2 * channels, 5, padding=2)
        inputs, outputs = hyper + (4 if known else 2) * channels, 2 * channels
        # evenly from inputs to outputs, but not below `least`
        a, b = (max(least, inputs + k * (outputs - inputs) // 3) for k in (1, 2))
        self.aggregate = nn.Sequential(
            nn.Conv2d(inputs, a, 1), nn.ReLU(), nn.Conv2d(a, b, 1), nn.ReLU(), nn.Conv2d(b, outputs, 1)
        )

    def forward(self, hyper: Tensor, known: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        others = hyper if self.channel is None else torch.cat([self.channel(known), hyper], 1)
        first = anchors(hyper)
        nothing = hyper.new_zeros(hyper.shape[0], 2 * self.channels, *hyper.shape[2:])
        p_first = self.aggregate(torch.cat([nothing, others], 1))
        y_first = torch.where(first, value(p_first.chunk(2, 1)[0]), 0.0)
        # at the positions where it counts, every second tap meets the zeros of the other pass
        p_second = self.aggregate(torch.cat([self.spatial(y_first), others], 1))
        y_hat = torch.where(first, y_first, value(p_second.chunk(2, 1)[0]))
        return torch.where(first, p_first, p_second), y_hat


class SlicedModel(nn.Module):
    """Hyper-decoder, the prior of z, and the networks of the slices."""

    def __init__(self, config: ModelConfig, prior: FactorizedPrior, h_s: nn.Sequential) -> None:
        super().__init__()
        self.config = config
        self.prior, self.h_s = prior, h_s
        last = h_s[-1]
        assert isinstance(last, nn.Conv2d)
        self.spans = spans(config)
        self.slices = nn.ModuleList(self._slice(config, last.out_channels, k) for k in range(len(self.spans)))

    def _slice(self, config: ModelConfig, hyper: int, k: int) -> nn.Module:
        channels, known = self.spans[k].stop - self.spans[k].start, self.spans[k].start
        if config.entropy == "hyper":
            return HyperSlice()
        if config.entropy == "channel":
            return ChannelSlice(hyper, self.spans[min(k, SUPPORT)].start, channels, config.predictor)
        return SpaceChannelSlice(hyper, known, channels, config.predictor, config.estimator)

    def walk(self, z_hat: Tensor, value: Value) -> list[Tensor]:
        """Parameters [B, 2C, h, w] (means, log2 scales) of each slice; `value` gives each slice once its means are
        known, and those after it see that."""
        hyper = self.h_s(z_hat)
        known = hyper[:, :0]
        found = []
        for channels, part in zip(self.spans, self.slices, strict=True):
            parameters, y_hat = part(hyper, known, lambda means, here=channels: value(here, means))
            known = torch.cat([known, y_hat], 1)
            found.append(parameters)
        return found

    def parameters_of(self, y_hat: Tensor, z_hat: Tensor) -> list[Tensor]:
        """The same with y_hat [B, M, h, w] known from the start."""
        return self.walk(z_hat, lambda channels, _: y_hat[:, channels])

    @staticmethod
    def gaussians(parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Means and log2 scales [B, M, h, w] from the parameters of all slices."""
        pairs = [p.chunk(2, 1) for p in parameters]
        return torch.cat([mean for mean, _ in pairs], 1), torch.cat([scale for _, scale in pairs], 1)

    def y_likelihood(self, y_hat: Tensor, parameters: list[Tensor], scale_bound: float) -> Tensor:
        """Likelihoods of y_hat [B, M, h, w] under these parameters."""
        means, log2_scales = self.gaussians(parameters)
        return gaussian_likelihood(y_hat - means, log2_scales, scale_bound)

    def forward(self, y_hat: Tensor, z_hat: Tensor, scale_bound: float) -> tuple[Tensor, Tensor]:
        """Likelihoods of y_hat [B, M, h, w] and z_hat [B, N, h/4, w/4]."""
        parameters = self.parameters_of(y_hat, z_hat)
        return self.y_likelihood(y_hat, parameters, scale_bound), self.prior.likelihood(z_hat)
