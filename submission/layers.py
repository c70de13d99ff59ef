"""Building blocks of the transforms: GDN, residual blocks, attention (Cheng et al. 2020, section 3; 2021 paper, 1)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attention = Literal["plain", "group"]


class _LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient still passes where it would move x back above the bound."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) with a gradient that can lift x back over the bound."""
    result: Tensor = _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]
    return result


class GDN(nn.Module):
    """Generalised divisive normalisation: x_i / sqrt(beta_i + sum_j gamma_ij x_j^2), or times the root if `inverse`.

    beta and gamma are stored as square roots, which keeps them positive (Balle et al. 2016).
    """

    PEDESTAL = 2.0**-36

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        # Filled with roots: taking them of tensors on the meta device, where decoders build this, loads a compiler.
        self.beta = nn.Parameter(torch.full((channels,), (1 + self.PEDESTAL) ** 0.5))
        gamma = torch.full((channels, channels), self.PEDESTAL**0.5)
        self.gamma = nn.Parameter(gamma.fill_diagonal_((0.1 + self.PEDESTAL) ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (1e-6 + self.PEDESTAL) ** 0.5) ** 2 - self.PEDESTAL
        gamma = lower_bound(self.gamma, self.PEDESTAL**0.5) ** 2 - self.PEDESTAL
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


def conv3x3(i: int, o: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, stride, 1, groups=groups)


def conv1x1(i: int, o: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, 1, groups=groups)


class Subpel(nn.Sequential):
    """3x3 (or 1x1) convolution and pixel shuffle: i channels to o at twice the size."""

    def __init__(self, i: int, o: int, kernel: int = 3) -> None:
        super().__init__(nn.Conv2d(i, 4 * o, kernel, padding=kernel // 2), nn.PixelShuffle(2))


class ResidualDown(nn.Module):
    """Residual downsampling by 2 with GDN."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.gdn = conv3x3(i, o, 2), conv3x3(o, o), GDN(o)
        self.skip = conv1x1(i, o)

    def forward(self, x: Tensor) -> Tensor:
        # The skip picks every second sample before a stride-1 convolution: the same function as a 1x1 convolution of
        # stride 2, whose channels_last backward pass is broken for few channels (oneDNN issue 6035). Pooling picks as
        # slices do, but its gradient keeps the layout: in another one all layers before it would be slow.
        result: Tensor = self.gdn(self.conv2(F.leaky_relu(self.conv1(x)))) + self.skip(F.avg_pool2d(x, 1, 2))
        return result


class ResidualUp(nn.Module):
    """Residual upsampling by 2 with inverse GDN."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.up, self.conv, self.igdn = Subpel(i, o), conv3x3(o, o), GDN(o, inverse=True)
        self.skip = Subpel(i, o, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.igdn(self.conv(F.leaky_relu(self.up(x)))) + self.skip(x)
        return result


class Residual(nn.Module):
    """Residual enhancement: two 3x3 convolutions around the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3x3(channels, channels), conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))))


class AttentionUnit(nn.Module):
    """Bottleneck residual unit of the attention branches, its convolutions in `groups` channel groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            conv1x1(channels, half, groups),
            nn.ReLU(),
            conv3x3(half, half, 1, groups),
            nn.ReLU(),
            conv1x1(half, channels, groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class AttentionBlock(nn.Module):
    """x + trunk(x) * sigmoid(mask(x)).

    `plain` is the simplified attention of Cheng et al. `group` works on two channel groups separately, as the 2021
    paper's group-separate attention does by group convolution; only the mask's last layer mixes them.
    """

    def __init__(self, channels: int, attention: Attention) -> None:
        super().__init__()
        groups = 2 if attention == "group" else 1
        self.trunk = nn.Sequential(*(AttentionUnit(channels, groups) for _ in range(3)))
        self.mask = nn.Sequential(*(AttentionUnit(channels, groups) for _ in range(3)), conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.trunk(x) * torch.sigmoid(self.mask(x))
        return result
