"""The whole network of one model."""

import math

import torch
from torch import Tensor, nn

from submission.config import ModelConfig
from submission.entropy_model import MAX_LOG2_STEP, step_synthesis
from submission.grdn import GRDN
from submission.layers import lower_bound
from submission.parts import analysis, entropy_model, hyper_analysis, synthesis


class Network(nn.Module):
    """g_a, h_a (encoder), the entropy model, g_s and the post-filter (decoder)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = analysis(config)
        self.h_a = hyper_analysis(config)
        self.entropy_model = entropy_model(config)
        self.g_s = synthesis(config)
        self.post_filter = GRDN(config.grdn) if config.grdn is not None else nn.Identity()
        for module in (*self.h_a.modules(), *self.entropy_model.h_s.modules()):
            if isinstance(module, nn.Conv2d):
                # PyTorch's default makes z so small that noise hides it, and the model learns to ignore it for good
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
            if isinstance(module, nn.ConvTranspose2d):  # each output sees a quarter of the 5x5 taps
                nn.init.normal_(module.weight, std=math.sqrt(2 * 4 / 25 / (module.in_channels // module.groups)))

        self.h_sq = step_synthesis(config) if config.learned_step else None

    def step_size(self, z_hat: Tensor) -> Tensor | float:
        """Quantisation steps [B, M, h, w] of y: the entropy model sees symbols, y / step; g_s sees symbols * step."""
        if self.h_sq is None:
            return 1.0
        lifted = lower_bound(self.h_sq(z_hat), -MAX_LOG2_STEP)
        return torch.exp2(-lower_bound(-lifted, -MAX_LOG2_STEP))
