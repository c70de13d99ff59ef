"""GRDN, the post-filter after g_s (Kim et al. 2019; recommended for compression by Lee et al. 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from submission.config import GRDNConfig
from submission.layers import conv1x1, conv3x3


class RDB(nn.Module):
    """Residual dense block: every convolution sees all features before it."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + k * growth, growth, 3, padding=1, bias=False) for k in range(layers)
        )
        self.fuse = nn.Conv2d(channels + layers * growth, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.convs:
            features = torch.cat([features, F.relu(conv(features))], 1)
        result: Tensor = x + self.fuse(features)
        return result


class GRDB(nn.Module):
    """Grouped residual dense block: RDBs in series, all their outputs fused."""

    def __init__(self, config: GRDNConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RDB(config.channels, config.growth, config.layers) for _ in range(config.blocks))
        self.fuse = conv1x1(config.blocks * config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs, current = [], x
        for block in self.blocks:
            current = block(current)
            outputs.append(current)
        result: Tensor = x + self.fuse(torch.cat(outputs, 1))
        return result


class CBAM(nn.Module):
    """Channel gate from globally pooled features, then a spatial gate (Woo et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            conv1x1(channels, max(channels // 16, 4)), nn.ReLU(), conv1x1(max(channels // 16, 4), channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def channel_gate(self, mean: Tensor, highest: Tensor) -> Tensor:
        """From the mean and maximum over all positions, [B, C, 1, 1] each."""
        return torch.sigmoid(self.mlp(mean) + self.mlp(highest))

    def spatial_gate(self, x: Tensor) -> Tensor:
        """x times its gate, which sees 3 positions around each."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(pooled))

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial_gate(x * self.channel_gate(x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)))


class GRDN(nn.Module):
    """Picture [B, 3, H, W], H and W even -> filtered picture. Starts as the identity: its last layer is zero."""

    def __init__(self, config: GRDNConfig) -> None:
        super().__init__()
        c = config.channels
        self.head = conv3x3(3, c)
        self.down = nn.Conv2d(c, c, 4, 2, 1)
        self.body = nn.Sequential(*(GRDB(config) for _ in range(config.groups)))
        self.up = nn.ConvTranspose2d(c, c, 4, 2, 1)
        self.gate = CBAM(c)
        self.tail = conv3x3(c, 3)
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.tail(self.gate(self.up(self.body(self.down(self.head(x))))))
        return result
