"""From the trained entropy models `hyper`, `channel` and `elic` to the integers of `submission.sliced_coding`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from submission.integer import RELU_PEAK, SIGNED_PEAK
from submission.latent_coding import Tensors
from submission.mixture import MEAN_UNIT
from submission.sliced_coding import SPATIAL_TAPS
from submission.sliced_model import ChannelSlice, SlicedModel, SpaceChannelSlice
from training.network.integer import (
    Floats,
    Recorder,
    every_tap,
    free_unit,
    gaussian_units,
    patches_of,
    prior_rows,
    quantize,
    quantize_h_s,
    tables,
    to_numpy,
)

#: Contexts see values up to this many times what the calibrating pictures have.
HEADROOM = 1.25


def quantize_sliced(model: SlicedModel, y_hat: Tensor, z_hat: Tensor) -> Tensors:
    """Integer tensors of `model`, the ranges of its activations taken from latents y_hat and z_hat as a decoder finds
    them."""
    recorder = Recorder(model)
    with torch.no_grad():
        model.parameters_of(y_hat, z_hat)
    reach = recorder.reach
    fixed = gaussian_units(model.config.M) if model.config.entropy == "hyper" else None
    out, hyper_unit = quantize_h_s(model.h_s, reach, fixed)
    shift = seen_shift(model, y_hat)
    seen_unit = np.exp2(shift) / MEAN_UNIT
    out |= {**tables(), "prior": prior_rows(model.prior, float(z_hat.abs().max())), "seen.shift": shift}
    for k, (span, part) in enumerate(zip(model.spans, model.slices, strict=True)):
        name = f"slices.{k}"
        if isinstance(part, ChannelSlice):
            halves = np.split(hyper_unit, 2)
            units = np.split(gaussian_units(span.stop - span.start), 2)
            for label, net, half, fixed in zip(("mean", "scale"), (part.mean, part.scale), halves, units, strict=True):
                inputs = np.concatenate([half, seen_unit[: part.known]])
                out |= _quantize_stack(f"{name}.{label}", net, inputs, reach, fixed)[0]
        if isinstance(part, SpaceChannelSlice):
            out |= _quantize_space_channel(name, part, hyper_unit, seen_unit[: span.stop], reach)
    return out


def seen_shift(model: SlicedModel, y_hat: Tensor) -> NDArray[np.int8]:
    """[M] shifts that bring y_hat, in 1/64, to what contexts see: whole symbols, or around means as fine as 8 bits
    allow."""
    if not model.config.zero_centre:
        return np.full(model.config.M, 6, np.int8)
    largest = HEADROOM * MEAN_UNIT * to_numpy(y_hat.abs().amax((0, 2, 3)))
    shift: NDArray[np.int8] = np.clip(np.ceil(np.log2(np.maximum(largest, 1) / SIGNED_PEAK)), 0, 6).astype(np.int8)
    return shift


def _quantize_space_channel(
    name: str, part: SpaceChannelSlice, hyper_unit: Floats, seen_unit: Floats, reach: dict[nn.Module, Floats]
) -> Tensors:
    out: Tensors = {}
    known, own = seen_unit[: -part.channels], seen_unit[-part.channels :]
    units = []
    if part.channel is not None:
        tensors, unit = _quantize_stack(f"{name}.channel", part.channel, known, reach, None)
        out |= tensors
        units.append(unit)
    taps = [(i + 2, j + 2) for i, j in SPATIAL_TAPS]
    weight, bias = patches_of(part.spatial.weight, taps, own), to_numpy(part.spatial.bias)
    spatial = quantize(f"{name}.spatial", weight, bias, free_unit(weight, bias, reach[part.spatial], SIGNED_PEAK))
    out |= spatial.store(f"{name}.spatial")
    inputs = np.concatenate([spatial.unit, *units, hyper_unit])
    tensors, _ = _quantize_stack(f"{name}.aggregate", part.aggregate, inputs, reach, gaussian_units(part.channels))
    return out | tensors


def _quantize_stack(
    name: str, stack: nn.Sequential, unit: Floats, reach: dict[nn.Module, Floats], fixed: Floats | None
) -> tuple[Tensors, Floats]:
    """Three layers with ReLU between them: their tensors, and the unit of the outputs (`fixed`, or a free one)."""
    out: Tensors = {}
    layers = [layer for layer in stack if isinstance(layer, nn.Conv2d)]
    for k, layer in enumerate(layers):
        last = k == len(layers) - 1
        weight = patches_of(layer.weight, every_tap(layer.kernel_size[0]), unit)
        bias = to_numpy(layer.bias)
        finest = free_unit(weight, bias, reach[layer], SIGNED_PEAK if last else RELU_PEAK)
        made = quantize(f"{name}.{k}", weight, bias, fixed if last and fixed is not None else finest)
        out |= made.store(f"{name}.{k}")
        unit = made.unit
    return out, unit
