"""The decoder's transforms in tiles: bounded memory for any picture, and faster, since a tile stays in the cache.

Each tile is computed with as much of its surroundings as can influence it, so its samples are those of the untiled
picture up to the last bits of a float. Only the post-filter's global pooling sees the whole picture: it is collected
over all tiles before any tile is finished.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from submission.grdn import GRDN

#: Side of a tile, in latents for g_s and in 16 pixels for the post-filter.
TILE = 32


@dataclass(frozen=True)
class Span:
    """A tile along one axis: what is kept, [start, stop), and what is computed, [low, high)."""

    start: int
    stop: int
    low: int
    high: int

    def times(self, factor: int) -> "Span":
        return Span(*(factor * v for v in dataclasses.astuple(self)))

    @property
    def inner(self) -> slice:
        """What is kept, within what is computed."""
        return slice(self.start - self.low, self.stop - self.low)

    @property
    def outer(self) -> slice:
        return slice(self.low, self.high)

    @property
    def kept(self) -> slice:
        return slice(self.start, self.stop)


def spans(size: int, tile: int, halo: int) -> Iterator[Span]:
    """Tiles of nearly equal size along an axis."""
    count = -(-size // tile)
    edges = [size * k // count for k in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        yield Span(start, stop, max(0, start - halo), min(size, stop + halo))


def tiles(height: int, width: int, tile: int, halo: int) -> Iterator[tuple[Span, Span]]:
    for rows in spans(height, tile, halo):
        for columns in spans(width, tile, halo):
            yield rows, columns


def synthesize(g_s: nn.Module, y_hat: Tensor, halo: int, tile: int = TILE) -> Tensor:
    """g_s in tiles: y_hat [1, M, h, w] -> [1, 3, 16h, 16w]. g_s at a latent sees `halo` latents around it."""
    h, w = y_hat.shape[2:]
    out = torch.empty(1, 3, 16 * h, 16 * w)
    for rows, columns in tiles(h, w, tile, halo):
        part = g_s(y_hat[:, :, rows.outer, columns.outer])
        _keep(out, part, rows.times(16), columns.times(16))
    return out


def post_filter(grdn: GRDN, x: Tensor, tile: int = TILE) -> Tensor:
    """GRDN in tiles: picture [1, 3, H, W], sides multiples of 16 -> filtered picture."""
    height, width = x.shape[2:]
    blocks = (height // 16, width // 16)
    # What lies around a tile and matters: 3x3 convolutions at half size in the body, and a few pixels before and after.
    layers = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in grdn.body.modules())
    body_halo = -(-(2 * layers + 6) // 16)
    half = torch.empty(1, grdn.down.out_channels, height // 2, width // 2)
    for rows, columns in tiles(*blocks, tile, body_halo):
        part = grdn.body(grdn.down(grdn.head(x[:, :, rows.times(16).outer, columns.times(16).outer])))
        _keep(half, part, rows.times(8), columns.times(8))

    # Behind the body little is needed around a tile: 1 pixel for `up`, 3 for the gate's 7x7, 1 for the last layer.
    total = torch.zeros(1, half.shape[1], 1, 1, dtype=torch.float64)
    highest = torch.full((1, half.shape[1], 1, 1), -torch.inf)
    for rows, columns in tiles(*blocks, tile, 1):
        part = _inner(grdn.up(half[:, :, rows.times(8).outer, columns.times(8).outer]), rows, columns)
        total += part.sum((2, 3), keepdim=True, dtype=torch.float64)
        highest = torch.maximum(highest, part.amax((2, 3), keepdim=True))
    gate = grdn.gate.channel_gate((total / (height * width)).float(), highest)

    out = torch.empty_like(x)
    for rows, columns in tiles(*blocks, tile, 1):
        part = grdn.up(half[:, :, rows.times(8).outer, columns.times(8).outer])
        part = grdn.tail(grdn.gate.spatial_gate(part * gate))
        _keep(out, x[:, :, rows.times(16).outer, columns.times(16).outer] + part, rows.times(16), columns.times(16))
    return out


def _inner(part: Tensor, rows: Span, columns: Span) -> Tensor:
    return part[:, :, rows.times(16).inner, columns.times(16).inner]


def _keep(out: Tensor, part: Tensor, rows: Span, columns: Span) -> None:
    out[:, :, rows.kept, columns.kept] = part[:, :, rows.inner, columns.inner]
