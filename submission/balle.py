"""The transforms `balle`: strided 5x5 convolutions with GDN between them (Balle et al. 2018; Minnen et al. 2018).

Their h_a and h_s serve `elic` as well. All halve or double the size at each stride-2 layer.
"""

from torch import nn

from submission.config import ModelConfig
from submission.layers import GDN, conv3x3


def down(i: int, o: int) -> nn.Conv2d:
    """5x5 convolution to half the size."""
    return nn.Conv2d(i, o, 5, 2, 2)


def up(i: int, o: int, groups: int = 1) -> nn.ConvTranspose2d:
    """5x5 transposed convolution to twice the size."""
    return nn.ConvTranspose2d(i, o, 5, 2, 2, 1, groups=groups)


def analysis(config: ModelConfig) -> nn.Sequential:
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16]."""
    a, b, c = config.analysis
    return nn.Sequential(down(3, a), GDN(a), down(a, b), GDN(b), down(b, c), GDN(c), down(c, config.M))


def synthesis(config: ModelConfig) -> nn.Sequential:
    """g_s: y_hat [B, M, H/16, W/16] -> picture [B, 3, H, W], not clamped."""
    a, b, c = config.synthesis
    return nn.Sequential(
        *(up(config.M, a), GDN(a, inverse=True)),
        *(up(a, b), GDN(b, inverse=True)),
        *(up(b, c), GDN(c, inverse=True)),
        up(c, 3),
    )


def hyper_analysis(config: ModelConfig) -> nn.Sequential:
    """h_a: y [B, M, H/16, W/16] -> z [B, N, H/64, W/64]. The widths for `channel` are Minnen and Singh's (2020)."""
    m, n = config.M, config.N
    a, b = (m, 4 * m // 5) if config.entropy == "channel" else (n, n)
    return nn.Sequential(conv3x3(m, a), nn.LeakyReLU(), down(a, b), nn.LeakyReLU(), down(b, n))


def hyper_synthesis(config: ModelConfig) -> nn.Sequential:
    """h_s: z_hat [B, N, H/64, W/64] -> features [B, 2M or (elic) 2N, H/16, W/16].

    For `channel` they are two networks, for means and scales, side by side as groups of channels. ReLU throughout,
    because its integer form has 0..255.
    """
    m, n = config.M, config.N
    if config.entropy == "channel":
        widths, groups = (2 * n, 2 * (4 * m // 5), 2 * m), 2
    else:
        features = n if config.entropy == "elic" else m
        widths, groups = (features, 3 * features // 2, 2 * features), 1
    a, b, c = widths
    return nn.Sequential(up(n, a), nn.ReLU(), up(a, b, groups), nn.ReLU(), conv3x3(b, c, 1, groups))
