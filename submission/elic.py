"""The transforms `elic`: residual bottlenecks between strided 5x5 convolutions, and attention (He et al. 2022, 3.3).

`elic-sm` is the 4th paper's simplified one: no attention, and (our reading of "fewer") one bottleneck where there are
three.
"""

from torch import Tensor, nn

from submission.balle import down, up
from submission.config import ModelConfig
from submission.layers import AttentionBlock, conv1x1, conv3x3


class Bottleneck(nn.Module):
    """x + three convolutions, 1x1 to half the channels, 3x3, 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            conv1x1(channels, half), nn.ReLU(), conv3x3(half, half), nn.ReLU(), conv1x1(half, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def analysis(config: ModelConfig) -> nn.Sequential:
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16]."""
    a, b, c = config.analysis
    return nn.Sequential(
        *(down(3, a), *_bottlenecks(a, config)),
        *(down(a, b), *_bottlenecks(b, config), *_attention(b, config)),
        *(down(b, c), *_bottlenecks(c, config)),
        *(down(c, config.M), *_attention(config.M, config)),
    )


def synthesis(config: ModelConfig) -> nn.Sequential:
    """g_s: y_hat [B, M, H/16, W/16] -> picture [B, 3, H, W], not clamped."""
    a, b, c = config.synthesis
    return nn.Sequential(
        *(*_attention(config.M, config), up(config.M, a), *_bottlenecks(a, config)),
        *(up(a, b), *_attention(b, config), *_bottlenecks(b, config)),
        *(up(b, c), *_bottlenecks(c, config)),
        up(c, 3),
    )


def _bottlenecks(channels: int, config: ModelConfig) -> list[nn.Module]:
    return [Bottleneck(channels) for _ in range(3 if config.transforms == "elic" else 1)]


def _attention(channels: int, config: ModelConfig) -> list[nn.Module]:
    return [AttentionBlock(channels, "plain")] if config.transforms == "elic" else []
