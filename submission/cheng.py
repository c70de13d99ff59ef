"""The transforms `cheng`: residual blocks, GDN and attention (Cheng et al. 2020, with the changes of the 2020 paper,
2.1)."""

from torch import nn

from submission.config import ModelConfig
from submission.layers import AttentionBlock, Residual, ResidualDown, ResidualUp, Subpel, conv3x3


def analysis(config: ModelConfig) -> nn.Sequential:
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16]. Cheng et al. have two attentions, behind the second
    block's downsampling and at the end; `extra_attention` adds those of the other two blocks."""
    a, b, c = config.analysis
    blocks: list[nn.Module] = []
    for k, (i, o) in enumerate(((3, a), (a, b), (b, c))):
        blocks += [ResidualDown(i, o)]
        blocks += attention(o, config) if k == 1 or config.extra_attention else []
        blocks += [Residual(o)]
    return nn.Sequential(*blocks, conv3x3(c, config.M, 2), *attention(config.M, config))


def synthesis(config: ModelConfig) -> nn.Sequential:
    """g_s: y_hat [B, M, H/16, W/16] -> picture [B, 3, H, W], not clamped."""
    a, b, c = config.synthesis
    return nn.Sequential(
        *attention(config.M, config),
        Residual(config.M),
        ResidualUp(config.M, a),
        Residual(a),
        ResidualUp(a, b),
        *attention(b, config),
        Residual(b),
        ResidualUp(b, c),
        Residual(c),
        Subpel(c, 3),
    )


def hyper_analysis(config: ModelConfig) -> nn.Sequential:
    """h_a: y [B, M, H/16, W/16] -> z [B, N, H/64, W/64]; `extra_attention` is the 2020 paper's."""
    n = config.N
    return nn.Sequential(
        conv3x3(config.M, n),
        nn.LeakyReLU(),
        conv3x3(n, n),
        nn.LeakyReLU(),
        conv3x3(n, n, 2),
        nn.LeakyReLU(),
        *(attention(n, config) if config.extra_attention else ()),
        conv3x3(n, n),
        nn.LeakyReLU(),
        conv3x3(n, n, 2),
    )


def hyper_synthesis(config: ModelConfig) -> nn.Sequential:
    """h_s: z_hat [B, N, H/64, W/64] -> features [B, 2M, H/16, W/16]. ReLU, because its integer form has 0..255."""
    n, wide = config.N, config.N * 3 // 2
    return nn.Sequential(
        conv3x3(n, n),
        nn.ReLU(),
        Subpel(n, n),
        nn.ReLU(),
        conv3x3(n, wide),
        nn.ReLU(),
        Subpel(wide, wide),
        nn.ReLU(),
        conv3x3(wide, 2 * config.M),
    )


def attention(channels: int, config: ModelConfig) -> list[nn.Module]:
    """An attention block, or nothing for `none`."""
    return [] if config.attention == "none" else [AttentionBlock(channels, config.attention)]
