"""From the integers of a model file back to an entropy model that can be trained: `network.integer` in reverse.

What a step of a hidden channel is worth is not stored, and need not be: ReLU and linear layers pass any factor on to
the next layer's weights, so it is chosen such that the weights have the size of freshly initialised ones. What is lost
is what was rounded or clamped. The prior of z is stored as a table of probabilities, to which its layers are fitted.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from submission.entropy_coding import TAPS
from submission.entropy_model import Context, EntropyModel, Estimator, FactorizedPrior
from submission.errors import UserError
from submission.integer import one_thread
from submission.latent_coding import Tensors
from submission.mixture import CODER_BITS
from training.network.integer import parameter_units

Floats = NDArray[np.float64]

#: Steps of Adam that fit the prior of z, and their rate.
FIT_STEPS, FIT_RATE = 500, 0.05

#: Taps of a 3x3 convolution in the order of its gathered patches.
_EVERY_TAP = [(i, j) for i in range(3) for j in range(3)]


class _Layer:
    """weight [inputs, outputs], bias: outputs are (a @ weight + bias) / 2^shift in steps of the inputs and outputs."""

    def __init__(self, tensors: Mapping[str, NDArray[np.generic]], name: str) -> None:
        shift = tensors[f"{name}.shift"].astype(np.float64)
        half = np.where(shift > 0, np.exp2(shift - 1), 0)  # the integers round by adding one half before they shift
        self.weight: Floats = tensors[f"{name}.weight"].astype(np.float64) / np.exp2(shift)
        self.bias: Floats = (tensors[f"{name}.bias"].astype(np.float64) - half) / np.exp2(shift)

    def usual_unit(self, unit: Floats) -> Floats:
        """What to take a step of each output for, if one of each input (rows of the weight) is worth `unit`."""
        size = np.sqrt(np.mean((self.weight / unit[:, None]) ** 2, 0) * len(unit))
        return 1 / np.where(size > 0, size, 1)

    def real(self, unit: Floats, out_unit: Floats) -> tuple[Floats, Floats]:
        return self.weight / unit[:, None] * out_unit, self.bias * out_unit


def dequantize_entropy_model(model: EntropyModel, tensors: Tensors) -> None:
    """Set the parameters of `model` from the tensors of a model file, named without `entropy.`."""
    with torch.no_grad():
        unit = np.ones(model.config.N)
        convolutions = [layer for layer in model.h_s.modules() if isinstance(layer, nn.Conv2d)]
        for k, conv in enumerate(convolutions):
            layer = _Layer(tensors, f"h_s.{k}")
            rows = np.tile(unit, 9)
            unit = layer.usual_unit(rows)
            if k in (1, 3):  # the four channels that a pixel shuffle makes one share a unit
                unit = np.repeat(np.exp(np.log(unit).reshape(-1, 4).mean(1)), 4)
            _set(conv, *layer.real(rows, unit), _EVERY_TAP)
            unit = unit[::4] if k in (1, 3) else unit
        for g, (context, estimator) in enumerate(zip(model.contexts, model.estimators, strict=True)):
            assert isinstance(context, Context) and isinstance(estimator, Estimator)
            _set_group(tensors, f"groups.{g}", context, estimator, unit, model.config.M)
    with one_thread():
        _fit_prior(model.prior, tensors["prior"].astype(np.float64))


def _set(conv: nn.Conv2d, weight: Floats, bias: Floats, taps: list[tuple[int, int]]) -> None:
    """Weight [taps * inputs, outputs] of gathered patches -> [outputs, inputs, k, k]; other taps become 0."""
    out = np.zeros(tuple(conv.weight.shape))
    parts = weight.reshape(len(taps), -1, weight.shape[1])
    for (i, j), part in zip(taps, parts, strict=True):
        out[:, : part.shape[0], i, j] = part.T
    assert conv.bias is not None
    conv.weight.copy_(torch.from_numpy(out))
    conv.bias.copy_(torch.from_numpy(bias))


def _set_group(tensors: Tensors, name: str, context: Context, estimator: Estimator, hyper_unit: Floats, m: int) -> None:
    layer = _Layer(tensors, f"{name}.context")
    ones = np.ones(len(layer.weight))
    unit = layer.usual_unit(ones)
    weight, bias = layer.real(ones, unit)
    causal = len(TAPS) * m
    _set(context.conv, weight[:causal], bias, [(i + 2, j + 2) for i, j in TAPS])
    centre = torch.from_numpy(weight[causal:].T)  # group 1 at the same position, in group 2
    context.conv.weight[:, : centre.shape[1], 2, 2] = centre.to(context.conv.weight)

    fixed = parameter_units(estimator)
    unit = np.concatenate([unit, hyper_unit])
    _set_stack(tensors, f"{name}.", estimator.head, unit, np.zeros(len(unit)), fixed)
    if estimator.residual is not None:
        shift = tensors[f"{name}.branch.shift"].astype(np.float64)
        offset = np.where(shift > 0, 0.5, 0.0)  # shifting rounds down
        _set_stack(tensors, f"{name}.branch.", estimator.residual, fixed * np.exp2(shift), offset, fixed)


def _set_stack(
    tensors: Tensors, prefix: str, stack: nn.Sequential, unit: Floats, offset: Floats, last_unit: Floats
) -> None:
    convolutions = [layer for layer in stack if isinstance(layer, nn.Conv2d)]
    for label, conv in zip(("first", "second", "third"), convolutions, strict=True):
        layer = _Layer(tensors, prefix + label)
        layer.bias = layer.bias - offset @ layer.weight
        out_unit = last_unit if label == "third" else layer.usual_unit(unit)
        _set(conv, *layer.real(unit, out_unit), [(0, 0)])
        unit, offset = out_unit, np.zeros(len(out_unit))


def _fit_prior(prior: FactorizedPrior, table: Floats) -> None:
    """Least expected code length under the stored probabilities [N, 2 * peak + 1]."""
    probability = torch.from_numpy((table + 1) / 2**CODER_BITS).float()
    peak = table.shape[1] // 2
    values = torch.arange(-peak, peak + 1).float().expand(len(table), -1).T[:, :, None, None]  # [values, N, 1, 1]
    optimizer = torch.optim.Adam(prior.parameters(), FIT_RATE)
    for step in range(FIT_STEPS):
        optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
        bits = -torch.log2(prior.likelihood(values))[:, :, 0, 0].T
        loss = (probability * bits).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not torch.isfinite(loss):
        raise UserError("the prior of z in these weights cannot be fitted; start from a run folder instead")


def state_of(network_state: dict[str, Tensor], tensors: Tensors) -> dict[str, Tensor]:
    """`network_state` with the transforms of a model file, which are stored as they are, in half precision."""
    stored = {
        name: torch.from_numpy(np.array(value)).float() for name, value in tensors.items() if "entropy." not in name
    }
    return {**network_state, **stored}
