"""From the trained entropy models `hyper`, `channel` and `elic` to the integers of `submission.sliced_coding`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from submission.integer import RELU_OFFSET, RELU_PEAK, SIGNED_PEAK, Int8, Int32
from submission.latent_coding import PARAMETER_PEAK, Tensors
from submission.mixture import MEAN_UNIT
from submission.sliced_coding import SPATIAL_TAPS, as_seen
from submission.sliced_model import ChannelSlice, SlicedModel, SpaceChannelSlice
from training.network.integer import (
    Recorder,
    around,
    every_tap,
    gaussian_units,
    patches_of,
    prior_rows,
    quantize_h_s,
    tables,
    to_numpy,
)
from training.network.rounding import Floats, IntegerLayers, free_unit, gather


def quantize_sliced(model: SlicedModel, y_hat: Tensor, z_hat: Tensor) -> Tensors:
    """Integer tensors of `model`. Latents y_hat and z_hat, as a decoder finds them, tell the ranges of its activations,
    and how they depend on each other."""
    recorder = Recorder(model)
    with torch.no_grad():
        model.parameters_of(y_hat, z_hat)
    reach, layers = recorder.reach, IntegerLayers()
    fixed = gaussian_units(model.config.M) if model.config.entropy == "hyper" else None
    hyper, hyper_unit = quantize_h_s(layers, model.h_s, reach, z_hat, fixed)
    shift = seen_shift(model, y_hat)
    in_64ths = np.rint(to_numpy(y_hat) * MEAN_UNIT).astype(np.int32).transpose(0, 2, 3, 1)
    seen, seen_unit = as_seen(in_64ths, shift.astype(np.int32)), np.exp2(shift) / MEAN_UNIT
    offset = seen_offset(model, shift)
    for k, (span, part) in enumerate(zip(model.spans, model.slices, strict=True)):
        name = f"slices.{k}"
        if isinstance(part, ChannelSlice):
            halves = zip(np.split(hyper, 2, axis=3), np.split(hyper_unit, 2), strict=True)
            units = np.split(gaussian_units(span.stop - span.start), 2)
            nets = zip(("mean", "scale"), (part.mean, part.scale), halves, units, strict=True)
            for label, net, (half, unit), fixed in nets:
                inputs = np.concatenate([half, seen[:, :, :, : part.known]], 3)
                worth = np.concatenate([unit, seen_unit[: part.known]])
                off = np.concatenate([np.zeros(len(unit)), offset[: part.known]])
                _quantize_stack(layers, f"{name}.{label}", net, inputs, worth, off, reach, fixed)
        if isinstance(part, SpaceChannelSlice):
            visible = seen[:, :, :, : span.stop], seen_unit[: span.stop], offset[: span.stop]
            _quantize_space_channel(layers, name, part, hyper, hyper_unit, *visible, reach)
    prior = prior_rows(model.prior, float(z_hat.abs().max()))
    return {**layers.tensors, **tables(), "prior": prior, "seen.shift": shift}


def seen_shift(model: SlicedModel, y_hat: Tensor) -> NDArray[np.int8]:
    """[M] shifts that bring y_hat, in 1/64, to what contexts see: whole symbols, or around means as fine as 8 bits
    allow for the largest."""
    if not model.config.zero_centre:
        return np.full(model.config.M, 6, np.int8)
    largest = MEAN_UNIT * to_numpy(y_hat.abs().amax((0, 2, 3)))
    shift: NDArray[np.int8] = np.clip(np.ceil(np.log2(np.maximum(largest, 1) / SIGNED_PEAK)), 0, 6).astype(np.int8)
    return shift


def seen_offset(model: SlicedModel, shift: NDArray[np.int8]) -> Floats:
    """[M] what is to be added to the integers that contexts see: halves are rounded up, so on average they stand for
    half of 1/64 less than they say. Layers add up hundreds of them, and there that is not little."""
    return np.where((shift > 0) & model.config.zero_centre, -0.5 / np.exp2(shift), 0.0)


def _quantize_space_channel(
    layers: IntegerLayers,
    name: str,
    part: SpaceChannelSlice,
    hyper: Int8,
    hyper_unit: Floats,
    seen: Int8,
    seen_unit: Floats,
    offset: Floats,
    reach: dict[nn.Module, Floats],
) -> None:
    known = seen.shape[3] - part.channels
    taps = [(i + 2, j + 2) for i, j in SPATIAL_TAPS]
    weight = patches_of(part.spatial.weight, taps, seen_unit[known:])
    bias = to_numpy(part.spatial.bias) + np.tile(offset[known:], len(taps)) @ weight
    spatial_unit = free_unit(weight, bias, reach[part.spatial], SIGNED_PEAK)
    neighbours = gather(seen[:, :, :, known:], SPATIAL_TAPS)
    spatial = layers.add(f"{name}.spatial", neighbours, weight, bias, spatial_unit).astype(np.int8)
    spatial[:, np.add.outer(np.arange(seen.shape[1]), np.arange(seen.shape[2])) % 2 == 0] = 0  # the first pass has none
    inputs, units = [spatial], [spatial_unit]
    if part.channel is not None:
        before = seen[:, :, :, :known], seen_unit[:known], offset[:known]
        made, unit = _quantize_stack(layers, f"{name}.channel", part.channel, *before, reach, None)
        inputs, units = [*inputs, made.astype(np.int8)], [*units, unit]
    a, worth = np.concatenate([*inputs, hyper], 3), np.concatenate([*units, hyper_unit])
    exact, fixed = np.zeros(len(worth)), gaussian_units(part.channels)
    _quantize_stack(layers, f"{name}.aggregate", part.aggregate, a, worth, exact, reach, fixed)


def _quantize_stack(
    layers: IntegerLayers,
    name: str,
    stack: nn.Sequential,
    a: Int8,
    unit: Floats,
    offset: Floats,
    reach: dict[nn.Module, Floats],
    fixed: Floats | None,
) -> tuple[Int32, Floats]:
    """Add three layers with ReLU between them; inputs are integers plus `offset`, times `unit`. Returns the calibrating
    outputs and their unit (`fixed`, or a free one)."""
    convolutions = [layer for layer in stack if isinstance(layer, nn.Conv2d)]
    for k, layer in enumerate(convolutions):
        last = k == len(convolutions) - 1
        kernel = layer.kernel_size[0]
        weight = patches_of(layer.weight, every_tap(kernel), unit)
        bias = to_numpy(layer.bias) + np.tile(offset, kernel**2) @ weight
        finest = free_unit(weight, bias, reach[layer], SIGNED_PEAK if last else RELU_PEAK)
        unit = fixed if last and fixed is not None else finest
        patches = gather(a, around(kernel), -RELU_OFFSET if k else 0)
        highest = SIGNED_PEAK if fixed is None else PARAMETER_PEAK
        made = layers.add(f"{name}.{k}", patches, weight, bias, unit, k > 0, not last, highest)
        a, offset = made.astype(np.int8), np.zeros(len(unit))
    return made, unit
