"""The whole network of one model."""

from torch import Tensor, nn

from submission.config import ModelConfig
from submission.entropy_model import EntropyModel
from submission.grdn import GRDN
from submission.transforms import analysis, hyper_analysis, synthesis


class Network(nn.Module):
    """g_a, h_a (encoder), the entropy model, g_s and the post-filter (decoder)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = analysis(config)
        self.h_a = hyper_analysis(config)
        self.entropy_model = EntropyModel(config)
        self.g_s = synthesis(config)
        self.post_filter = GRDN(config.grdn) if config.grdn is not None else nn.Identity()
        for module in (*self.h_a.modules(), *self.entropy_model.h_s.modules()):
            if isinstance(module, nn.Conv2d):
                # PyTorch's default makes z so small that noise hides it, and the model learns to ignore it for good
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")

    def reconstruct(self, y_hat: Tensor) -> Tensor:
        """y_hat [B, M, h, w] -> picture [B, 3, 16h, 16w], post-filtered, not clamped."""
        x_hat: Tensor = self.post_filter(self.g_s(y_hat))
        return x_hat
