"""From the trained entropy model to the integers of `submission.entropy_coding`.

Each layer gets weights of at most 64 in magnitude and a shift. What a channel's integer stands for ("unit") is free
inside the network, since the next layer's weights absorb it, so every output channel uses the whole range of its
weights; the last layers give mixture parameters in the units that `submission.mixture` fixes.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn

from submission.entropy_coding import STEP_BITS, STEP_PEAK, STEP_UNIT, TAPS, Tensors
from submission.entropy_model import Context, EntropyModel, Estimator
from submission.errors import UserError
from submission.integer import RELU_PEAK, SIGNED_PEAK, WEIGHT_PEAK
from submission.mixture import (
    CDF_BITS,
    EXP_BITS,
    GRID,
    GRID_PEAK,
    INVERSE_BITS,
    LOGIT_UNIT,
    MEAN_UNIT,
    ONE,
    PEAK,
    REACH,
    SCALE_RANGE,
    SCALE_UNIT,
    weights_row,
)

Floats = NDArray[np.float64]

#: Sums of a layer stay below this many of its weight units, so that 32-bit biases hold them.
_SUM_PEAK = 2.0**21

#: Taps of a 3x3 convolution in the order of gathered patches.
EVERY_TAP = [(i, j) for i in range(3) for j in range(3)]


def tables() -> Tensors:
    """The constants of the format (units in `submission.mixture`)."""
    scales = np.exp2(np.arange(-SCALE_RANGE, SCALE_RANGE + 1) / SCALE_UNIT)
    grid = np.arange(-GRID_PEAK, GRID_PEAK + 1) / GRID
    steps = GRID / MEAN_UNIT
    return {
        "tables.exp": np.rint(2**EXP_BITS * np.exp(-np.arange(256) / LOGIT_UNIT)).astype(np.int32),
        "tables.inverse_scale": np.rint(2**INVERSE_BITS * steps / scales).astype(np.int32),
        "tables.cdf": np.rint(2**CDF_BITS * ndtr(grid)).astype(np.int32),
        "tables.reach": np.ceil(REACH * MEAN_UNIT * scales).astype(np.int32),
    }


@dataclass
class Quantized:
    """A layer's integers and what one step of each output channel is worth."""

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: NDArray[np.int8]
    unit: Floats

    def store(self, name: str) -> Tensors:
        return {f"{name}.weight": self.weight, f"{name}.bias": self.bias, f"{name}.shift": self.shift}


def free_unit(weight: Floats, bias: Floats, reach: Floats, peak: int) -> Floats:
    """The finest unit [outputs] with which full-range weights and an output up to `reach` fit: see `quantize`."""
    step = np.maximum.reduce([np.abs(weight).max(0) / WEIGHT_PEAK, np.abs(bias) / _SUM_PEAK, reach / _SUM_PEAK])
    step = np.maximum(step, 1e-12)
    shift = np.maximum(0, np.ceil(np.log2(np.maximum(reach, 1e-12) / (step * peak))))
    return cast(Floats, step * np.exp2(shift))


def quantize(name: str, weight: Floats, bias: Floats, unit: Floats) -> Quantized:
    """`weight` [inputs, outputs], a step of each input already multiplied in; outputs are to be multiples of `unit`.

    An output is (weight_int @ a + bias_int) >> shift, so weights are multiples of unit / 2^shift, with the largest
    shift that keeps them within 64.
    """
    largest = np.maximum(np.abs(weight).max(0), np.maximum(np.abs(bias), 1e-12) / _SUM_PEAK * WEIGHT_PEAK)
    shift = np.clip(np.floor(np.log2(WEIGHT_PEAK * unit / largest) + 1e-9), -8, 22)
    step = unit * np.exp2(-shift)
    integers = np.rint(weight / step)
    if np.abs(integers).max() > WEIGHT_PEAK:
        raise UserError(f"layer {name}: weights too large for its outputs' unit; train longer or clip the weights")
    half = np.where(shift > 0, np.exp2(shift - 1), 0)
    return Quantized(
        integers.astype(np.int8), (np.rint(bias / step) + half).astype(np.int32), shift.astype(np.int8), unit
    )


def _numpy(tensor: Tensor | None) -> Floats:
    assert tensor is not None
    return tensor.detach().double().cpu().numpy()


def _reach(activation: Tensor) -> Floats:
    """Largest magnitude of each channel of [B, C, h, w]."""
    return _numpy(activation.abs().amax((0, 2, 3)))


class _Recorder:
    """Outputs of layers in a forward pass, by layer."""

    def __init__(self, module: nn.Module) -> None:
        self.reach: dict[nn.Module, Floats] = {}
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | Context | Estimator):
                layer.register_forward_hook(self._record)

    def _record(self, layer: nn.Module, _: object, output: Tensor) -> None:
        self.reach[layer] = np.maximum(self.reach.get(layer, np.zeros(1)), _reach(output))


def _shuffled(unit: Floats) -> Floats:
    """The four channels that a pixel shuffle makes one must share a unit."""
    return np.repeat(unit.reshape(-1, 4).max(1), 4)


def _patches(weight: Tensor, taps: list[tuple[int, int]], unit: Floats) -> Floats:
    """Convolution weight [out, in, k, k] -> [taps * in, out] for gathered patches, input units multiplied in."""
    parts = [_numpy(weight)[:, : len(unit), i, j].T * unit[:, None] for i, j in taps]
    return np.concatenate(parts)


def quantize_entropy_model(model: EntropyModel, y_hat: Tensor, z_hat: Tensor) -> Tensors:
    """Integer tensors of `model`, the ranges of its activations taken from latents y_hat and z_hat (rounded)."""
    recorder = _Recorder(model)
    with torch.no_grad():
        model.parameters_of(y_hat, z_hat)
    reach = recorder.reach
    out: Tensors = {**tables(), "prior": prior_rows(model, float(z_hat.abs().max()))}

    unit = np.ones(model.config.N)
    convolutions = [layer for layer in model.h_s.modules() if isinstance(layer, nn.Conv2d)]
    for k, conv in enumerate(convolutions):
        weight, bias = _patches(conv.weight, EVERY_TAP, unit), _numpy(conv.bias)
        finest = free_unit(weight, bias, reach[conv], SIGNED_PEAK if k == 4 else RELU_PEAK)
        if k in (1, 3):
            finest = _shuffled(finest)
        layer = quantize(f"h_s.{k}", weight, bias, finest)
        out |= layer.store(f"h_s.{k}")
        unit = finest[::4] if k in (1, 3) else finest

    for g, (context, estimator) in enumerate(zip(model.contexts, model.estimators, strict=True)):
        assert isinstance(context, Context) and isinstance(estimator, Estimator)
        out |= _quantize_group(f"groups.{g}", g, context, estimator, unit, reach, model.config.M)
    return out


def quantize_steps(h_sq: nn.Sequential, z_hat: Tensor) -> Tensors:
    """Integer tensors of the branch that gives learned quantisation steps; z_hat tells the range of its activations."""
    recorder = _Recorder(h_sq)
    with torch.no_grad():
        h_sq(z_hat)
    first, last = (layer for layer in h_sq.modules() if isinstance(layer, nn.Conv2d))
    weight, bias = _patches(first.weight, EVERY_TAP, np.ones(first.in_channels)), _numpy(first.bias)
    finest = _shuffled(free_unit(weight, bias, recorder.reach[first], RELU_PEAK))
    out = quantize("h_sq.0", weight, bias, finest).store("h_sq.0")
    weight, bias = _patches(last.weight, EVERY_TAP, finest[::4]), _numpy(last.bias)
    out |= quantize("h_sq.1", weight, bias, np.full(last.out_channels, 1 / STEP_UNIT)).store("h_sq.1")
    steps = np.exp2(np.arange(-STEP_PEAK, STEP_PEAK + 1) / STEP_UNIT)
    return {**out, "tables.step": np.rint(2**STEP_BITS * steps).astype(np.int32)}


def _quantize_group(
    name: str,
    group: int,
    context: Context,
    estimator: Estimator,
    hyper_unit: Floats,
    reach: dict[nn.Module, Floats],
    m: int,
) -> Tensors:
    out: Tensors = {}
    taps = [(i + 2, j + 2) for i, j in TAPS]
    known = m // 2 if group else 0
    weight = np.concatenate(
        [_patches(context.conv.weight, taps, np.ones(m)), _patches(context.conv.weight, [(2, 2)], np.ones(known))]
    )
    bias = _numpy(context.conv.bias)
    layer = quantize(name, weight, bias, free_unit(weight, bias, reach[context], SIGNED_PEAK))
    out |= layer.store(f"{name}.context")

    fixed = parameter_units(estimator)
    head = [c for c in estimator.head if isinstance(c, nn.Conv2d)]
    inputs = np.concatenate([layer.unit, hyper_unit])
    out |= _quantize_stack(f"{name}.", head, inputs, np.zeros(len(inputs)), fixed, reach)
    if estimator.residual is not None:
        steps = reach[head[-1]] / fixed
        shift = np.maximum(0, np.ceil(np.log2(np.maximum(steps, 1) / SIGNED_PEAK)))
        out[f"{name}.branch.shift"] = shift.astype(np.int8)
        branch = [c for c in estimator.residual if isinstance(c, nn.Conv2d)]
        # shifting rounds down, so an integer a stands for a + 1/2 steps
        offset = np.where(shift > 0, 0.5, 0.0)
        out |= _quantize_stack(f"{name}.branch.", branch, fixed * np.exp2(shift), offset, fixed, reach)
    return out


def _quantize_stack(
    prefix: str,
    convolutions: list[nn.Conv2d],
    unit: Floats,
    offset: Floats,
    last_unit: Floats,
    reach: dict[nn.Module, Floats],
) -> Tensors:
    """Three 1x1 layers; inputs are integers plus `offset`, times `unit`."""
    out: Tensors = {}
    for label, conv in zip(("first", "second", "third"), convolutions, strict=True):
        weight = _patches(conv.weight, [(0, 0)], unit)
        bias = _numpy(conv.bias) + offset @ weight
        fixed = label == "third"
        layer = quantize(
            prefix + label, weight, bias, last_unit if fixed else free_unit(weight, bias, reach[conv], RELU_PEAK)
        )
        out |= layer.store(prefix + label)
        unit, offset = layer.unit, np.zeros(len(layer.unit))
    return out


def parameter_units(estimator: Estimator) -> Floats:
    """Units of (w, mu, s) of each Gaussian, in the order of the network's outputs."""
    last = estimator.head[-1]
    assert isinstance(last, nn.Conv2d)
    size = last.out_channels // (3 * estimator.mixtures)
    units = np.repeat([1 / LOGIT_UNIT, 1 / MEAN_UNIT, 1 / SCALE_UNIT], size)
    return np.tile(units, estimator.mixtures)


@torch.no_grad()
def prior_rows(model: EntropyModel, largest: float) -> NDArray[np.int32]:
    """[N, 2 * peak + 1] integer weights of z's values, the tails in the outermost ones."""
    peak = int(min(PEAK, max(8, np.ceil(largest) + 4)))
    edges = torch.arange(-peak, peak) + 0.5  # between neighbouring values
    values = edges.expand(model.config.N, 1, -1).to(next(model.parameters()))
    cumulative = np.rint(torch.sigmoid(model.prior.logits(values).double()).cpu().numpy()[:, 0] * ONE)
    closed = np.pad(cumulative, ((0, 0), (1, 1)), constant_values=((0, 0), (0, ONE)))
    return weights_row(np.maximum.accumulate(closed, axis=1).astype(np.int32).T).astype(np.int32)
