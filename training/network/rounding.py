"""Layers to integers, one after the other, such that their outputs stay as they are rather than their weights.

Rounding every weight to the nearest integer leaves errors that add up over a layer's hundreds of inputs. But inputs
depend on each other, so the weights that are still to be rounded can make up for what the ones before have spoilt
(Frantar et al., "GPTQ", 2022, arXiv 2210.17323). What the inputs are like, calibrating latents tell, as the integer
layers before make them.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dtrtri

from submission.errors import UserError
from submission.integer import RELU_OFFSET, SIGNED_PEAK, WEIGHT_PEAK, Int8, Int32, Linear
from submission.latent_coding import Tensors

Floats = NDArray[np.float64]

#: Sums of a layer stay below this many of its weight units, so that 32-bit biases hold them.
SUM_PEAK = 2.0**21

#: What is added to the variance of each input, in mean variances: how far to trust that calibration shows all there is.
DAMPING = 0.01

#: Inputs whose weights make up for each other; layers with more have several such blocks, to bound the time.
BLOCK = 2048

#: Weights that are rounded before their errors are passed on to all others, for speed alone.
PANEL = 32


def round_weights(scaled: Floats, inputs: NDArray[np.number]) -> Floats:
    """Integers [inputs, outputs] within the range of weights for `scaled` ones, which are to change as little as can be
    what sums of inputs like [n, inputs] are above their mean."""
    whole = np.empty_like(scaled)
    for block in np.array_split(np.arange(len(scaled)), -(-len(scaled) // BLOCK)):
        x = inputs[:, block].astype(np.float64)
        x -= x.mean(0)
        covariance = x.T @ x / len(x)
        variance = covariance.diagonal().copy()
        covariance[np.diag_indices_from(covariance)] += DAMPING * variance.mean() + 1e-12
        # the inputs that matter most come first, while there are many others to make up for them
        order = np.argsort(-variance, kind="stable")
        # The upper u of inverse(covariance) = u.T @ u. Its rows, over their first number: how much those behind should
        # move when a weight is off by one.
        backwards = covariance[np.ix_(order[::-1], order[::-1])]
        u, _ = dtrtri(cholesky(backwards, lower=True)[::-1, ::-1])
        u /= u.diagonal().copy()[:, None]
        left = scaled[block[order]]
        for start in range(0, len(order), PANEL):
            panel = np.arange(start, min(start + PANEL, len(order)))
            for k in panel:
                whole[block[order[k]]] = np.rint(left[k]).clip(-WEIGHT_PEAK, WEIGHT_PEAK)
                left[k] -= whole[block[order[k]]]  # from here on what it is off by
                rest = panel[k + 1 - start :]
                left[rest] -= np.outer(u[k, rest], left[k])
            left[panel[-1] + 1 :] -= u[start : panel[-1] + 1, panel[-1] + 1 :].T @ left[panel]
    return whole


class IntegerLayers:
    """The tensors of the layers added so far."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def add(
        self,
        name: str,
        inputs: Int8,
        weight: Floats,
        bias: Floats,
        unit: Floats,
        relu_in: bool = False,
        relu: bool = False,
        highest: int = SIGNED_PEAK,
    ) -> Int32:
        """Add a layer, and return what it makes of the calibrating `inputs` [..., inputs], as `submission.integer` has
        them: [..., outputs].

        `weight` [inputs, outputs] has a step of each input multiplied in; outputs are to be multiples of `unit`. An
        output is (weight_int @ a + bias_int) >> shift, so weights are multiples of unit / 2^shift, with the largest
        shift that keeps them in their range. UserError if there is none.
        """
        largest = np.maximum(np.abs(weight).max(0), np.maximum(np.abs(bias), 1e-12) / SUM_PEAK * WEIGHT_PEAK)
        shift = np.clip(np.floor(np.log2(WEIGHT_PEAK * unit / largest) + 1e-9), -8, 22)
        step = unit * np.exp2(-shift)
        if np.abs(np.rint(weight / step)).max() > WEIGHT_PEAK:
            raise UserError(f"layer {name}: weights too large for its outputs' unit; train longer or clip the weights")
        given = inputs.reshape(-1, len(weight))
        mean = given.mean(0, dtype=np.float64) + (RELU_OFFSET if relu_in else 0)
        integers = round_weights(weight / step, given)
        half = np.where(shift > 0, np.exp2(shift - 1), 0)
        # the bias makes up for the mean of what is left
        offset = np.rint(bias / step + mean @ (weight / step - integers)) + half
        stored = integers.astype(np.int8), offset.astype(np.int32), shift.astype(np.int8)
        self.tensors |= dict(zip((f"{name}.weight", f"{name}.bias", f"{name}.shift"), stored, strict=True))
        layer = Linear.build(name, stored[0], stored[1], stored[2], relu_in, highest, relu)
        return layer(np.ascontiguousarray(given)).reshape(*inputs.shape[:-1], -1)


def free_unit(weight: Floats, bias: Floats, reach: Floats, peak: int) -> Floats:
    """The finest unit [outputs] with which full-range weights and an output up to `reach` fit, at most `peak` of it."""
    step = np.maximum.reduce([np.abs(weight).max(0) / WEIGHT_PEAK, np.abs(bias) / SUM_PEAK, reach / SUM_PEAK])
    step = np.maximum(step, 1e-12)
    shift = np.maximum(0, np.ceil(np.log2(np.maximum(reach, 1e-12) / (step * peak))))
    unit: Floats = step * np.exp2(shift)
    return unit


def gather(a: Int8, taps: list[tuple[int, int]], outside: int = 0) -> Int8:
    """Patches of a [B, h, w, C] at offsets (row, column): [B, h, w, taps * C], `outside` beyond the edges."""
    edge = max(abs(offset) for tap in taps for offset in tap)
    h, w = a.shape[1:3]
    padded = np.pad(a, ((0, 0), (edge, edge), (edge, edge), (0, 0)), constant_values=outside)
    return np.concatenate([padded[:, edge + i : edge + i + h, edge + j : edge + j + w] for i, j in taps], axis=3)
