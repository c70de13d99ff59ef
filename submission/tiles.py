"""Transforms in tiles: bounded memory for any picture, and faster, since a tile stays in the cache.

A transform is cut where its resolution changes. Each stage is computed in tiles with as much of their surroundings as
can influence them, so samples are those of the untiled transform up to the last bits of a float. Only the post-filter's
global pooling sees the whole picture: it is collected over all tiles before any tile is finished.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from submission.grdn import GRDN

#: Side of a tile, in samples of what a stage makes: small enough for the cache, large beside its surroundings.
TILE = 256

#: Side of the blocks in which all stages are computed, in pixels: what is between stages takes memory for one block.
BLOCK = 2048

#: Bytes of the post-filter's features at full size that are kept rather than computed twice.
KEPT_BYTES = 2**30


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


@dataclass(frozen=True)
class Grid:
    """Cells of `before` x `before` input samples, which become `after` x `after` output samples."""

    before: int
    after: int

    def map(self, f: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int) -> Tensor:
        """f(x) of x [1, C, H, W] in tiles of `tile` cells, each computed with `halo` cells around it."""
        height, width = (side // self.before for side in x.shape[2:])
        out = None
        for rows, columns in tiles(height, width, tile, halo):
            part = f(x[:, :, rows.times(self.before).outer, columns.times(self.before).outer])
            if out is None:
                size = 1, part.shape[1], self.after * height, self.after * width
                out = torch.empty(size, dtype=part.dtype, memory_format=torch.channels_last)
            at_rows, at_columns = rows.times(self.after), columns.times(self.after)
            out[:, :, at_rows.kept, at_columns.kept] = part[:, :, at_rows.inner, at_columns.inner]
        assert out is not None
        return out


@dataclass(frozen=True)
class Stage:
    """Layers of a transform: the first changes the resolution, the others keep it."""

    layers: nn.Sequential
    grid: Grid
    halo: int  #: cells around a cell that influence it

    def __call__(self, x: Tensor, tile: int) -> Tensor:
        return self.grid.map(self.layers, x, max(1, tile // self.grid.after), self.halo)


class Tiled:
    """A transform that only shrinks or only enlarges, in tiles.

    All its stages are computed in one block after the other, so that what lies between stages takes memory for a block.
    """

    def __init__(self, transform: nn.Sequential, channels: int, cell: int, peak: int = 1) -> None:
        """The input has `channels`, divided by `peak`; samples of the lowest resolution are `cell` pixels wide."""
        self.stages = stages(transform, channels)
        self.cell, self.peak = cell, peak
        before, after, reach = 1, 1, Fraction(0)
        for stage in self.stages:
            reach += Fraction(stage.halo * before * stage.grid.before, after)  # in input samples
            before, after = before * stage.grid.before, after * stage.grid.after
        self.grid, self.halo = Grid(before, after), math.ceil(reach / before)

    def __call__(self, x: Tensor, tile: int = TILE, block: int = BLOCK) -> Tensor:
        """x [1, C, H, W] -> output in float32. Sides of tiles in samples that a stage makes, of blocks in pixels."""
        return self.grid.map(lambda part: self._through(part, tile), x, max(1, block // self.cell), self.halo)

    def _through(self, x: Tensor, tile: int) -> Tensor:
        x = x.float() / self.peak
        for stage in self.stages:
            x = stage(x, tile)
        return x


def stages(transform: nn.Sequential, channels: int) -> list[Stage]:
    """`transform`, of `channels` input channels, cut before each layer that changes the resolution."""
    found: list[Stage] = []
    layers, grid, inputs = nn.Sequential(), Grid(1, 1), channels
    with torch.inference_mode():
        for layer in transform:
            made = layer(torch.zeros(1, channels, 2, 2))
            if made.shape[2] != 2:
                if len(layers):
                    found.append(Stage(layers, grid, _halo(layers, grid, inputs)))
                layers, inputs = nn.Sequential(), channels
                grid = Grid(max(1, 2 // made.shape[2]), max(1, made.shape[2] // 2))
            layers.append(layer)
            channels = made.shape[1]
        found.append(Stage(layers, grid, _halo(layers, grid, inputs)))
    return found


def _halo(layers: nn.Sequential, grid: Grid, channels: int) -> int:
    """Cells around a cell that influence it, by trial: one cell that is not a number spoils all that depend on it."""
    for cells in (25, 101):
        x = torch.zeros(1, channels, grid.before, grid.before * cells)
        x[:, :, :, grid.before * (cells // 2) : grid.before * (cells // 2 + 1)] = torch.nan
        spoilt = layers(x).isnan().any(0).any(0).any(0).view(cells, grid.after).any(1).nonzero()
        halo = int((spoilt - cells // 2).abs().max())
        if halo < cells // 2:
            break
    return halo


def post_filter(grdn: GRDN, x: Tensor, tile: int = TILE) -> Tensor:
    """GRDN in tiles: picture [1, 3, H, W], sides even, in float32 -> filtered picture, written over x.

    The correction is computed in the type of the weights.
    """
    kind = grdn.tail.weight.dtype
    height, width = x.shape[2:]
    # Cells of 2 pixels. Around one matter: a cell for each 3x3 convolution of the body, and one for what comes before.
    layers = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in grdn.body.modules())
    front = nn.Sequential(grdn.head, grdn.down, grdn.body)
    half = Grid(2, 1).map(lambda part: front(part.to(kind)), x, tile, layers + 1)

    # Behind the body: a cell for `up`, 3 pixels for the gate's 7x7, one for the last layer.
    areas = list(tiles(height // 2, width // 2, max(1, tile // 2), 3))

    def enlarged() -> Iterator[tuple[Span, Span, Tensor]]:
        for rows, columns in areas:
            yield rows.times(2), columns.times(2), grdn.up(half[:, :, rows.outer, columns.outer])

    few = half.shape[1] * half.element_size() * height * width <= KEPT_BYTES
    kept = list(enlarged()) if few else None
    total = torch.zeros(half.shape[1], dtype=torch.float64)
    highest = torch.full_like(total, -torch.inf)
    for rows, columns, part in kept or enlarged():
        inner = part[0, :, rows.inner, columns.inner].permute(1, 2, 0)
        # rows first: a reduction of long rows is many times as fast as one of a few channels
        total += inner.sum(0, dtype=torch.float32).sum(0, dtype=torch.float64)
        highest = torch.maximum(highest, inner.amax(0).amax(0))
    mean = total / (height * width)
    gate = grdn.gate.channel_gate(*(pooled.to(kind).view(1, -1, 1, 1) for pooled in (mean, highest)))
    for rows, columns, part in kept or enlarged():
        part = grdn.tail(grdn.gate.spatial_gate(part * gate))
        x[:, :, rows.kept, columns.kept] += part[:, :, rows.inner, columns.inner]
    return x
