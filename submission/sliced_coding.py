"""The entropy models `hyper`, `channel` and `elic` as they are deployed: integers, decoded slice by slice.

All positions of a slice (for `elic` those of each of its two checkerboard passes) depend on earlier slices and on z
only, so their parameters are computed together. They are coded in bands of rows, which bounds the memory.

Everything about y is in steps of 1/64, the unit of means: symbols are 64 times as much, and with zero-centre
quantisation y_hat = 64 * symbol + mean, an integer that every machine finds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from submission.config import ModelConfig
from submission.errors import WeightsError
from submission.integer import SIGNED_PEAK, Int8, Int32, Linear, clamp, conv, conv8
from submission.latent_coding import PARAMETER_PEAK, LatentCoder, Latents, Reader, Tensors
from submission.mixture import MEAN_UNIT, PEAK, Positions
from submission.sliced_model import SUPPORT, spans
from submission.symbols import SymbolCoder

#: Taps of the 5x5 window that reach from a position of the checkerboard's second pass to those of the first, in the
#: order of the weights.
SPATIAL_TAPS = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if (i + j) % 2]

#: A band has as many rows as make up this many latents of the slice, but at least one.
BAND = 2**15

#: Some positions (rows, columns) of a slice and their parameters [n, 2C]: means in 1/64, log2 scales in 1/32.
Step = tuple[Positions, Positions, Int32]


def bands(height: int, width: int, channels: int) -> Iterator[range]:
    """The rows that are coded together."""
    count = max(1, BAND // (width * channels))
    for top in range(0, height, count):
        yield range(top, min(top + count, height))


def positions(rows: range, width: int) -> tuple[Positions, Positions]:
    """All positions of these rows, in raster order."""
    at = np.indices((len(rows), width)).reshape(2, -1)
    return at[0] + rows.start, at[1]


def as_seen(latents: Int32, shift: Int32) -> Int8:
    """Latents [..., C] in 1/64 as contexts see them: shifted right by [C], rounded, in -127..127."""
    half = (1 << shift) >> 1
    return clamp((latents + half) >> shift, -SIGNED_PEAK, SIGNED_PEAK).astype(np.int8)


@dataclass(frozen=True)
class HyperSlice:
    """All of y, from z alone."""

    last: Linear  #: of h_s

    def steps(self, hidden: Int8, seen: Int8) -> Iterator[Step]:
        """Hyper features [h, w, F] (here those before h_s's last layer) and slices so far, as contexts see them, [h, w,
        M] -> the positions that can be coded, step by step; `seen` has each step's latents before the next is asked
        for."""
        height, width, channels = seen.shape
        for rows in bands(height, width, channels):
            p = conv(self.last, hidden, relu_in=True, rows=rows)
            yield *positions(rows, width), p.reshape(-1, 2 * channels)


@dataclass(frozen=True)
class ChannelSlice:
    """A slice of `channel`: three layers for the means, three for the scales."""

    channels: int
    known: int
    mean: tuple[Linear, ...]
    scale: tuple[Linear, ...]

    def steps(self, hyper: Int8, seen: Int8) -> Iterator[Step]:
        height, width, features = hyper.shape
        hidden = []
        for half, layers in enumerate((self.mean, self.scale)):
            inside = hyper[:, :, half * (features // 2) : (half + 1) * (features // 2)]
            a = conv8(layers[0], np.concatenate([inside, seen[:, :, : self.known]], 2), relu_in=False)
            hidden.append(conv8(layers[1], a, relu_in=True))
        for rows in bands(height, width, self.channels):
            parts = [
                conv(layers[2], a, relu_in=True, rows=rows)
                for layers, a in zip((self.mean, self.scale), hidden, strict=True)
            ]
            yield *positions(rows, width), np.concatenate(parts, 2).reshape(-1, 2 * self.channels)


@dataclass(frozen=True)
class SpaceChannelSlice:
    """A slice of `elic`: features from the slices before it and from its own first pass, and three 1x1 layers."""

    channels: int
    known: int
    channel: tuple[Linear, ...]
    spatial: Linear
    aggregate: tuple[Linear, ...]

    def steps(self, hyper: Int8, seen: Int8) -> Iterator[Step]:
        height, width, _ = hyper.shape
        others = hyper
        if self.channel:
            a = conv8(self.channel[0], seen[:, :, : self.known], relu_in=False)
            for layer in self.channel[1:]:
                a = conv8(layer, a, relu_in=True)
            others = np.concatenate([a, hyper], 2)
        first, second, third = self.aggregate
        for phase in (0, 1):
            own = seen[:, :, self.known : self.known + self.channels]
            padded = np.pad(own, ((2, 2), (2, 2), (0, 0)))  # in the second phase with the latents of the first
            for rows in bands(height, width, self.channels):
                r, c = positions(rows, width)
                which = (r + c) % 2 == phase
                r, c = r[which], c[which]
                if not len(r):
                    continue
                if phase:
                    patches = np.concatenate([padded[r + 2 + i, c + 2 + j] for i, j in SPATIAL_TAPS], 1)
                    neighbours = self.spatial(patches).astype(np.int8)
                else:
                    neighbours = np.zeros((len(r), 2 * self.channels), np.int8)
                a = first(np.concatenate([neighbours, others[r, c]], 1)).astype(np.int8)
                yield r, c, third(second(a).astype(np.int8))


class SlicedCoder(LatentCoder):
    """Codes latents slice by slice, each with one Gaussian."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        super().__init__(config, tensors)
        self.unit = MEAN_UNIT if config.zero_centre else 1
        #: Contexts see y_hat shifted right by this, rounded, in -127..127.
        self.seen_shift = self.read.int32("seen.shift")
        if self.seen_shift.shape != (config.M,) or self.seen_shift.min() < 0 or self.seen_shift.max() > 6:
            raise WeightsError("seen.shift: not a shift of 0..6 for each channel")
        self.spans = spans(config)
        self.slices = [self._slice(k) for k in range(len(self.spans))]

    def _slice(self, k: int) -> HyperSlice | ChannelSlice | SpaceChannelSlice:
        channels, known = self.spans[k].stop - self.spans[k].start, self.spans[k].start
        read, name = self.read, f"slices.{k}"
        if self.config.entropy == "hyper":
            return HyperSlice(self.h_s[-1])
        if self.config.entropy == "channel":
            mean, scale = (_stack(read, f"{name}.{part}", PARAMETER_PEAK) for part in ("mean", "scale"))
            return ChannelSlice(channels, self.spans[min(k, SUPPORT)].start, mean, scale)
        channel = _stack(read, f"{name}.channel", SIGNED_PEAK) if k else ()
        spatial = read.linear(f"{name}.spatial")
        return SpaceChannelSlice(channels, known, channel, spatial, _stack(read, f"{name}.aggregate", PARAMETER_PEAK))

    def _code_y(self, coder: SymbolCoder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
        shape = (*size, self.config.M)
        hyper = self.hyper_hidden(z_hat) if self.config.entropy == "hyper" else self.hyper_features(z_hat)
        seen, y_hat = np.zeros(shape, np.int8), np.zeros(shape, np.int32)
        y = np.clip(y, -(2**20), 2**20).astype(np.int32) if y is not None else None  # 64 times that fits
        for channels, part in zip(self.spans, self.slices, strict=True):
            for rows, columns, p in part.steps(hyper, seen):
                given = y[rows, columns, channels] * (MEAN_UNIT // self.unit) if y is not None else None
                found = self._code_step(coder, p, given, (rows, columns))
                y_hat[rows, columns, channels] = found
                seen[rows, columns, channels] = as_seen(found, self.seen_shift[channels])
        return y_hat // (MEAN_UNIT // self.unit)

    def _code_step(self, coder: SymbolCoder, p: Int32, given: Int32 | None, at: tuple[Positions, Positions]) -> Int32:
        """Code latents `at` n places with their parameters [n, 2C]; given and returned in steps of 1/64, [n, C]."""
        means, scales = p[:, : p.shape[1] // 2], p[:, p.shape[1] // 2 :]
        means = clamp(np.ascontiguousarray(means), -PEAK * MEAN_UNIT, PEAK * MEAN_UNIT)
        parts = np.zeros((1, 3, means.size), np.int32)
        parts[0, 2] = scales.ravel()
        offset = means if self.config.zero_centre else np.int32(0)
        if not self.config.zero_centre:
            parts[0, 1] = means.ravel()
        symbols = None
        if given is not None:
            symbols = clamp((given - offset + MEAN_UNIT // 2) // MEAN_UNIT, -PEAK, PEAK).ravel()
        coded = coder.code(parts, symbols)
        if self.watch and given is None:
            self.watch(*at, parts, coded)
        found: Int32 = coded.reshape(means.shape) * MEAN_UNIT + offset
        return found


def _stack(read: Reader, name: str, highest: int) -> tuple[Linear, ...]:
    """Two layers with ReLU and one without."""
    return (
        read.linear(f"{name}.0", relu=True),
        read.linear(f"{name}.1", relu_in=True, relu=True),
        read.linear(f"{name}.2", relu_in=True, highest=highest),
    )
