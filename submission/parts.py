"""Where a model is put together: from the names in its configuration to its transforms and its entropy model.

Training and the codec build from here; only the codec has the integer entropy model, only training the other one.
"""

from collections.abc import Callable

from torch import nn

from submission import balle, cheng, elic
from submission.config import ModelConfig
from submission.entropy_coding import EntropyCoder
from submission.entropy_model import EntropyModel, FactorizedPrior
from submission.latent_coding import LatentCoder, Tensors
from submission.sliced_coding import SlicedCoder
from submission.sliced_model import SlicedModel

Builder = Callable[[ModelConfig], nn.Sequential]

_ANALYSES: dict[str, Builder] = {
    "cheng": cheng.analysis,
    "balle": balle.analysis,
    "elic": elic.analysis,
    "elic-sm": elic.analysis,
}
_SYNTHESES: dict[str, Builder] = {
    "cheng": cheng.synthesis,
    "balle": balle.synthesis,
    "elic": elic.synthesis,
    "elic-sm": elic.synthesis,
}


def analysis(config: ModelConfig) -> nn.Sequential:
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16]."""
    return _ANALYSES[config.transforms](config)


def synthesis(config: ModelConfig) -> nn.Sequential:
    """g_s: y_hat [B, M, H/16, W/16] -> picture [B, 3, H, W], not clamped."""
    return _SYNTHESES[config.transforms](config)


def hyper_analysis(config: ModelConfig) -> nn.Sequential:
    """h_a: y [B, M, H/16, W/16] -> z [B, N, H/64, W/64]."""
    return cheng.hyper_analysis(config) if config.transforms == "cheng" else balle.hyper_analysis(config)


def hyper_synthesis(config: ModelConfig) -> nn.Sequential:
    """h_s: z_hat [B, N, H/64, W/64] -> features [B, F, H/16, W/16], F = 2M or (strided h_s for elic) 2N."""
    return cheng.hyper_synthesis(config) if config.transforms == "cheng" else balle.hyper_synthesis(config)


def entropy_model(config: ModelConfig) -> EntropyModel | SlicedModel:
    """The entropy model as it is trained."""
    if config.entropy in ("mixture", "context"):
        return EntropyModel(config, FactorizedPrior(config.N), hyper_synthesis(config))
    return SlicedModel(config, FactorizedPrior(config.N), hyper_synthesis(config))


def entropy_coder(config: ModelConfig, tensors: Tensors) -> LatentCoder:
    """The entropy model as it is deployed."""
    return (EntropyCoder if config.entropy in ("mixture", "context") else SlicedCoder)(config, tensors)
