"""The transforms: g_a and g_s between picture and latent, h_a from latent to hyper-latent (2020 paper, 2.1).

h_s belongs to the entropy model: it decides probabilities, so its deployed form is integer (`submission.integer`).
"""

from torch import nn

from submission.config import ModelConfig
from submission.layers import AttentionBlock, Residual, ResidualDown, ResidualUp, Subpel, conv3x3


def analysis(config: ModelConfig) -> nn.Sequential:
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16]; three attentions more than Cheng et al. have."""
    a, b, c = config.analysis
    blocks: list[nn.Module] = []
    for i, o in ((3, a), (a, b), (b, c)):
        blocks += [ResidualDown(i, o), AttentionBlock(o, config.attention), Residual(o)]
    return nn.Sequential(*blocks, conv3x3(c, config.M, 2), AttentionBlock(config.M, config.attention))


def synthesis(config: ModelConfig) -> nn.Sequential:
    """g_s: y_hat [B, M, H/16, W/16] -> picture [B, 3, H, W], not clamped."""
    a, b, c = config.synthesis
    return nn.Sequential(
        AttentionBlock(config.M, config.attention),
        Residual(config.M),
        ResidualUp(config.M, a),
        Residual(a),
        ResidualUp(a, b),
        AttentionBlock(b, config.attention),
        Residual(b),
        ResidualUp(b, c),
        Residual(c),
        Subpel(c, 3),
    )


def hyper_analysis(config: ModelConfig) -> nn.Sequential:
    """h_a: y [B, M, H/16, W/16] -> z [B, N, H/64, W/64], with the 2020 paper's extra attention."""
    n = config.N
    return nn.Sequential(
        conv3x3(config.M, n),
        nn.LeakyReLU(),
        conv3x3(n, n),
        nn.LeakyReLU(),
        conv3x3(n, n, 2),
        nn.LeakyReLU(),
        AttentionBlock(n, config.attention),
        conv3x3(n, n),
        nn.LeakyReLU(),
        conv3x3(n, n, 2),
    )
