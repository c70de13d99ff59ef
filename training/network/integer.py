"""From the trained entropy model to integers: what all models share, and `submission.entropy_coding`'s own part.

Each layer gets weights of at most 64 in magnitude and a shift (`training.network.rounding`). What a channel's integer
stands for ("unit") is free inside the network, since the next layer's weights absorb it, so every output channel uses
the whole range of its weights; the last layers give mixture parameters in the units that `submission.mixture` fixes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn

from submission.entropy_coding import TAPS
from submission.entropy_model import Context, EntropyModel, Estimator, FactorizedPrior
from submission.integer import RELU_OFFSET, RELU_PEAK, SIGNED_PEAK, Int8, Int32, clamp, pixel_shuffle
from submission.latent_coding import PARAMETER_PEAK, STEP_BITS, STEP_PEAK, STEP_UNIT, Tensors
from submission.layers import Subpel
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
from training.network.rounding import Floats, IntegerLayers, free_unit, gather


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


def to_numpy(tensor: Tensor | None) -> Floats:
    """As 64-bit floats."""
    assert tensor is not None
    return tensor.detach().double().cpu().numpy()


def _reach(activation: Tensor) -> Floats:
    """Largest magnitude of each channel of [B, C, h, w]."""
    return to_numpy(activation.abs().amax((0, 2, 3)))


class Recorder:
    """Outputs of layers in a forward pass, by layer."""

    def __init__(self, module: nn.Module) -> None:
        self.reach: dict[nn.Module, Floats] = {}
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | Context | Estimator):
                layer.register_forward_hook(self._record)

    def _record(self, layer: nn.Module, _: object, output: Tensor) -> None:
        self.reach[layer] = np.maximum(self.reach.get(layer, np.zeros(1)), _reach(output))


def _shuffled(unit: Floats) -> Floats:
    """The four channels that a pixel shuffle makes one must share a unit."""
    return np.repeat(unit.reshape(-1, 4).max(1), 4)


def patches_of(weight: Tensor, taps: list[tuple[int, int]], unit: Floats) -> Floats:
    """Convolution weight [out, in, k, k] -> [taps * in, out] for gathered patches, input units multiplied in."""
    whole = to_numpy(weight)
    return np.concatenate([whole[:, : len(unit), i, j].T * unit[:, None] for i, j in taps])


def every_tap(kernel: int) -> list[tuple[int, int]]:
    """Taps of a convolution in the order of gathered patches."""
    return [(i, j) for i in range(kernel) for j in range(kernel)]


def around(kernel: int) -> list[tuple[int, int]]:
    """The same as offsets from the middle, for `gather`."""
    return [(i - kernel // 2, j - kernel // 2) for i, j in every_tap(kernel)]


def ungrouped(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's weight as [out, in, k, k], with zeros where groups of channels do not meet."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    weight, i, o = layer.weight.detach(), layer.in_channels // layer.groups, layer.out_channels // layer.groups
    whole = weight.new_zeros(layer.out_channels, layer.in_channels, *weight.shape[2:])
    for g in range(layer.groups):
        part = weight[g * i : (g + 1) * i].transpose(0, 1) if transposed else weight[g * o : (g + 1) * o]
        whole[g * o : (g + 1) * o, g * i : (g + 1) * i] = part
    return whole


def subpixel(layer: nn.ConvTranspose2d) -> Tensor:
    """A 5x5 transposed convolution to twice the size as a 3x3 one in front of a pixel shuffle: [4 * out, in, 3, 3].

    Output 2q + r gets input i by the tap k with 2q + r = 2i - 2 + k, so i - q = 1 + (r - k) / 2 where that is whole.
    """
    whole = ungrouped(layer)
    out = whole.new_zeros(layer.out_channels, 2, 2, layer.in_channels, 3, 3)
    for down, right in np.ndindex(2, 2):
        for ky, kx in every_tap(5):
            if (down - ky) % 2 == 0 and (right - kx) % 2 == 0:
                out[:, down, right, :, 2 + (down - ky) // 2, 2 + (right - kx) // 2] = whole[:, :, ky, kx]
    return out.flatten(0, 2)


def integers_of(latents: Tensor) -> Int8:
    """Whole latents [B, C, h, w] -> [B, h, w, C] as contexts see them."""
    return latents.clamp(-PEAK, PEAK).permute(0, 2, 3, 1).contiguous().cpu().numpy().astype(np.int8)


def shuffled(a: Int8) -> Int8:
    """`pixel_shuffle` of [B, h, w, 4C]."""
    return np.stack([pixel_shuffle(one) for one in a])


def quantize_h_s(
    layers: IntegerLayers,
    h_s: nn.Sequential,
    reach: dict[nn.Module, Floats],
    z_hat: Tensor,
    last_unit: Floats | None,
) -> tuple[Int8, Floats]:
    """Add the hyper-decoder. Returns the calibrating pictures' features [B, 4h, 4w, F] and what they are worth; with a
    `last_unit` they are parameters, which nothing is made of."""
    convolutions = [layer for layer in h_s.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    before_shuffle = {part[0] for part in h_s if isinstance(part, Subpel)}
    a, unit = integers_of(z_hat), np.ones(convolutions[0].in_channels)
    for k, layer in enumerate(convolutions):
        transposed = isinstance(layer, nn.ConvTranspose2d)
        kernel = subpixel(layer) if isinstance(layer, nn.ConvTranspose2d) else ungrouped(layer)
        weight = patches_of(kernel, every_tap(3), unit)
        repeats = 4 if transposed else 1
        bias, largest = np.repeat(to_numpy(layer.bias), repeats), np.repeat(reach[layer], repeats)
        last = k == len(convolutions) - 1
        finest = free_unit(weight, bias, largest, SIGNED_PEAK if last else RELU_PEAK)
        if last and last_unit is not None:
            finest = last_unit
        enlarges = transposed or layer in before_shuffle
        if enlarges:
            finest = _shuffled(finest)
        patches = gather(a, around(3), -RELU_OFFSET if k else 0)
        highest = SIGNED_PEAK if last_unit is None else PARAMETER_PEAK
        made = layers.add(f"h_s.{k}", patches, weight, bias, finest, k > 0, not last, highest)
        if not last or last_unit is None:
            a = made.astype(np.int8)
        a = shuffled(a) if enlarges else a
        unit = finest[::4] if enlarges else finest
    return a, unit


def quantize_mixture(model: EntropyModel, y_hat: Tensor, z_hat: Tensor) -> Tensors:
    """Integer tensors of `model`. Latents y_hat and z_hat (rounded) tell the ranges of its activations, and how."""
    recorder = Recorder(model)
    with torch.no_grad():
        model.parameters_of(y_hat, z_hat)
    reach, layers = recorder.reach, IntegerLayers()
    hyper, unit = quantize_h_s(layers, model.h_s, reach, z_hat, None)
    y = integers_of(y_hat)
    for g, (context, estimator) in enumerate(zip(model.contexts, model.estimators, strict=True)):
        assert isinstance(context, Context) and isinstance(estimator, Estimator)
        _quantize_group(layers, g, context, estimator, y, hyper, unit, reach)
    return {**layers.tensors, **tables(), "prior": prior_rows(model.prior, float(z_hat.abs().max()))}


def quantize_steps(h_sq: nn.Sequential, z_hat: Tensor) -> Tensors:
    """Integer tensors of the branch that gives learned quantisation steps; z_hat tells the range of its activations."""
    recorder = Recorder(h_sq)
    with torch.no_grad():
        h_sq(z_hat)
    layers = IntegerLayers()
    first, last = (layer for layer in h_sq.modules() if isinstance(layer, nn.Conv2d))
    weight, bias = patches_of(first.weight, every_tap(3), np.ones(first.in_channels)), to_numpy(first.bias)
    finest = _shuffled(free_unit(weight, bias, recorder.reach[first], RELU_PEAK))
    a = layers.add("h_sq.0", gather(integers_of(z_hat), around(3)), weight, bias, finest, relu=True)
    weight, bias = patches_of(last.weight, every_tap(3), finest[::4]), to_numpy(last.bias)
    patches = gather(shuffled(a.astype(np.int8)), around(3), -RELU_OFFSET)
    unit = np.full(last.out_channels, 1 / STEP_UNIT)
    layers.add("h_sq.1", patches, weight, bias, unit, relu_in=True, highest=STEP_PEAK)
    steps = np.exp2(np.arange(-STEP_PEAK, STEP_PEAK + 1) / STEP_UNIT)
    return {**layers.tensors, "tables.step": np.rint(2**STEP_BITS * steps).astype(np.int32)}


def _quantize_group(
    layers: IntegerLayers,
    group: int,
    context: Context,
    estimator: Estimator,
    y: Int8,
    hyper: Int8,
    hyper_unit: Floats,
    reach: dict[nn.Module, Floats],
) -> None:
    name, m = f"groups.{group}", y.shape[3]
    taps = [(i + 2, j + 2) for i, j in TAPS]
    known = m // 2 if group else 0
    weight = np.concatenate(
        [patches_of(context.conv.weight, taps, np.ones(m)), patches_of(context.conv.weight, [(2, 2)], np.ones(known))]
    )
    bias = to_numpy(context.conv.bias)
    context_unit = free_unit(weight, bias, reach[context], SIGNED_PEAK)
    seen = np.concatenate([gather(y, TAPS), y[:, :, :, :known]], 3)
    a = layers.add(f"{name}.context", seen, weight, bias, context_unit).astype(np.int8)

    fixed = parameter_units(estimator)
    head = [c for c in estimator.head if isinstance(c, nn.Conv2d)]
    unit = np.concatenate([context_unit, hyper_unit])
    p = _quantize_stack(
        layers, f"{name}.", head, np.concatenate([a, hyper], 3), unit, np.zeros(len(unit)), fixed, reach
    )
    if estimator.residual is not None:
        steps = reach[head[-1]] / fixed
        shift = np.maximum(0, np.ceil(np.log2(np.maximum(steps, 1) / SIGNED_PEAK))).astype(np.int32)
        layers.tensors[f"{name}.branch.shift"] = shift.astype(np.int8)
        branch = [c for c in estimator.residual if isinstance(c, nn.Conv2d)]
        a = clamp(p >> shift, -SIGNED_PEAK, SIGNED_PEAK).astype(np.int8)
        # shifting rounds down, so an integer a stands for a + 1/2 steps
        offset = np.where(shift > 0, 0.5, 0.0)
        _quantize_stack(layers, f"{name}.branch.", branch, a, fixed * np.exp2(shift), offset, fixed, reach)


def _quantize_stack(
    layers: IntegerLayers,
    prefix: str,
    convolutions: list[nn.Conv2d],
    a: Int8,
    unit: Floats,
    offset: Floats,
    last_unit: Floats,
    reach: dict[nn.Module, Floats],
) -> Int32:
    """Add three 1x1 layers; inputs are integers plus `offset`, times `unit`."""
    first, second, third = convolutions
    for label, conv in (("first", first), ("second", second)):
        weight = patches_of(conv.weight, [(0, 0)], unit)
        bias = to_numpy(conv.bias) + offset @ weight
        unit = free_unit(weight, bias, reach[conv], RELU_PEAK)
        a = layers.add(prefix + label, a, weight, bias, unit, conv is second, relu=True).astype(np.int8)
        offset = np.zeros(len(unit))
    weight = patches_of(third.weight, [(0, 0)], unit)
    return layers.add(
        prefix + "third", a, weight, to_numpy(third.bias), last_unit, relu_in=True, highest=PARAMETER_PEAK
    )


def parameter_units(estimator: Estimator) -> Floats:
    """Units of (w, mu, s) of each Gaussian, or of (mu, s) of the one of `context`, in the order of the network's
    outputs."""
    last = estimator.head[-1]
    assert isinstance(last, nn.Conv2d)
    if estimator.single:
        return gaussian_units(last.out_channels // 2)
    size = last.out_channels // (3 * estimator.mixtures)
    units = np.repeat([1 / LOGIT_UNIT, 1 / MEAN_UNIT, 1 / SCALE_UNIT], size)
    return np.tile(units, estimator.mixtures)


def gaussian_units(channels: int) -> Floats:
    """Units of the means and the log2 scales of this many latents."""
    return np.repeat([1 / MEAN_UNIT, 1 / SCALE_UNIT], channels)


@torch.no_grad()
def prior_rows(prior: FactorizedPrior, largest: float) -> NDArray[np.int32]:
    """[N, 2 * peak + 1] integer weights of z's values, the tails in the outermost ones."""
    peak = int(min(PEAK, max(8, np.ceil(largest) + 4)))
    edges = torch.arange(-peak, peak) + 0.5  # between neighbouring values
    values = edges.expand(len(prior.biases[0]), 1, -1).to(prior.biases[0])
    cumulative = np.rint(torch.sigmoid(prior.logits(values).double()).cpu().numpy()[:, 0] * ONE)
    closed = np.pad(cumulative, ((0, 0), (1, 1)), constant_values=((0, 0), (0, ONE)))
    return weights_row(np.maximum.accumulate(closed, axis=1).astype(np.int32).T).astype(np.int32)
