"""The entropy model as it is deployed: integer h_s, context and parameter estimation, decoded wavefront by wavefront.

With a 5x5 causal window a position depends on others of smaller `column + 3 * row` only, so all positions of equal
`column + 3 * row` are coded together: channel group 1, then group 2, which sees group 1 at the same position.
Encoder and decoder walk the same code (`_code`) and differ in the coder that they hand in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from submission.coder import Decoder, Encoder
from submission.config import ModelConfig
from submission.errors import WeightsError
from submission.integer import RELU_PEAK, SIGNED_PEAK, Ints, Linear, conv3x3, pixel_shuffle
from submission.mixture import CODER_BITS, PEAK, Coder, Mixture, Tables, code_symbols

Latents = NDArray[np.int32]  #: [h, w, channels]
Tensors = dict[str, NDArray[np.generic]]

#: Causal taps of the 5x5 window as (row, column) offsets, in the order of the context weights.
TAPS = [(i, j) for i in (-2, -1) for j in range(-2, 3)] + [(0, -2), (0, -1)]

#: Parameters of mixtures leave the network as integers in this range, twice that after the residual branch.
PARAMETER_PEAK = 2**14 - 1


@dataclass(frozen=True)
class Estimator:
    """Parameter estimation of one channel group: f1 from context sums, three layers, and the residual branch."""

    context: Linear
    centre: Linear | None
    hyper: Linear
    layers: tuple[Linear, Linear, Linear]
    #: The branch's input is the parameters divided by 2^shift, in -127..127.
    branch_scale: Ints | None
    branch: tuple[Linear, Linear, Linear] | None

    def __call__(self, context_sums: Ints, hyper_sums: Ints, known: Ints | None) -> Ints:
        """Sums [n, 2M] of the context, [n, width] of the hyper features, and group 1 at the same positions ->
        parameters [n, outputs]."""
        if self.centre is not None and known is not None:
            context_sums = context_sums + self.centre.accumulate(known)
        a = self.context.finish(context_sums)
        first, second, third = self.layers
        a = first.finish(first.accumulate(a) + hyper_sums)
        p = third(second(a))
        if self.branch is not None and self.branch_scale is not None:
            a = np.clip(np.floor(p * self.branch_scale), -SIGNED_PEAK, SIGNED_PEAK)
            for layer in self.branch:
                a = layer(a)
            p = p + a
        return p


class EntropyCoder:
    """Codes the latents of one picture with the integer entropy model of one model file."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        """`tensors` as `training.export` stores them; WeightsError when they are incomplete or could overflow."""
        self.config = config
        try:
            self._read(config, _Reader(tensors))
        except KeyError as error:
            raise WeightsError(f"model file lacks {error}") from None

    def _read(self, config: ModelConfig, read: "_Reader") -> None:
        m = config.M
        self.tables = Tables(read.ints("tables.exp"), read.ints("tables.inverse_scale"), read.ints("tables.cdf"))
        self.prior = read.ints("prior").astype(np.float64)
        if (self.prior.sum(1) != (1 << CODER_BITS) - self.prior.shape[1]).any() or (self.prior < 0).any():
            raise WeightsError("prior of z: rows do not sum to the coder's total")
        self.z_peak = self.prior.shape[1] // 2

        peaks = [SIGNED_PEAK] + 4 * [RELU_PEAK]
        self.h_s = [
            read.linear(f"h_s.{k}", peak, -SIGNED_PEAK if k == 4 else 0, SIGNED_PEAK if k == 4 else RELU_PEAK)
            for k, peak in enumerate(peaks)
        ]
        self.estimators = []
        for g in range(config.groups):
            relu = (RELU_PEAK, 0, RELU_PEAK)
            last = (RELU_PEAK, -PARAMETER_PEAK, PARAMETER_PEAK)
            name = f"groups.{g}"
            whole = read.linear(f"{name}.first", SIGNED_PEAK, 0, RELU_PEAK)
            first, hyper = _split(whole, 2 * m)
            context = read.linear(f"{name}.context", SIGNED_PEAK, -SIGNED_PEAK, SIGNED_PEAK)
            causal, centre = _split(context, len(TAPS) * m)
            layers = (first, read.linear(f"{name}.second", *relu), read.linear(f"{name}.third", *last))
            branch = None
            if config.rpe:
                branch = (
                    read.linear(f"{name}.branch.first", SIGNED_PEAK, 0, RELU_PEAK),
                    read.linear(f"{name}.branch.second", *relu),
                    read.linear(f"{name}.branch.third", *last),
                )
            scale = np.exp2(-read.ints(f"{name}.branch.shift").astype(np.float32)) if config.rpe else None
            self.estimators.append(Estimator(causal, centre if g else None, hyper, layers, scale, branch))
        # One product for the context of all groups, in the wider of their types.
        self.context_weight = np.concatenate([e.context.weight for e in self.estimators], 1)

    def hyper_features(self, z_hat: Latents) -> Ints:
        """h_s: z_hat [h, w, N] -> features [4h, 4w, 2M] in -127..127."""
        a: Ints = z_hat.astype(np.float32)
        a = conv3x3(self.h_s[0], a)
        a = pixel_shuffle(conv3x3(self.h_s[1], a))
        a = conv3x3(self.h_s[2], a)
        a = pixel_shuffle(conv3x3(self.h_s[3], a))
        return conv3x3(self.h_s[4], a)

    def mixture(self, p: Ints) -> Mixture:
        """Parameters [n, 3*K*C] -> mixtures of n*C symbols."""
        parts = p.astype(np.int64).reshape(len(p), self.config.mixtures, 3, -1)
        logits, means, scales = (parts[:, :, k].transpose(0, 2, 1).reshape(-1, self.config.mixtures) for k in range(3))
        return Mixture(self.tables, logits, means, scales)

    def encode(self, y: Latents, z: Latents) -> tuple[bytes, Latents, Latents]:
        """Rounded latents y [h, w, M] and z [h/4, w/4, N] -> coded bytes, and the latents as a decoder finds them.

        Those differ where a value lies outside the alphabet or another one was all but certain.
        """
        coder = Encoder()
        y_hat, z_hat = self._code(coder, (y.shape[0], y.shape[1]), y, z)
        return coder.bytes(), y_hat, z_hat

    def decode(self, data: bytes, size: tuple[int, int]) -> tuple[Latents, Latents]:
        """Coded bytes and the size (h, w) of y -> (y_hat [h, w, M], z_hat [h/4, w/4, N])."""
        return self._code(Decoder(data), size, None, None)

    def _code(
        self, coder: Coder, size: tuple[int, int], y: Latents | None, z: Latents | None
    ) -> tuple[Latents, Latents]:
        z_hat = self._code_z(coder, (size[0] // 4, size[1] // 4), z)
        return self._code_y(coder, size, z_hat, y), z_hat

    def _code_z(self, coder: Coder, size: tuple[int, int], z: Latents | None) -> Latents:
        z_hat = np.empty((*size, self.config.N), np.int32)
        count = size[0] * size[1]
        for channel in range(self.config.N):
            given = None
            if z is not None:
                given = np.clip(z[:, :, channel].ravel(), -self.z_peak, self.z_peak).astype(np.int32) + self.z_peak
            found = coder.code_alike(self.prior[channel], count, given) - self.z_peak
            z_hat[:, :, channel] = found.reshape(size)
        return z_hat

    def _code_y(self, coder: Coder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
        (height, width), m = size, self.config.M
        hyper = self.hyper_features(z_hat).reshape(height * width, -1)
        hyper_sums = [e.hyper.accumulate(hyper) for e in self.estimators]
        # y_hat with a border of zeros that the causal window reaches into: 2 rows above, 2 columns at both sides
        stride = width + 4
        padded = np.zeros(((height + 2) * stride, m), np.float32)
        offsets = np.array([i * stride + j for i, j in TAPS])
        chunk = m // self.config.groups
        given = np.clip(y, -PEAK, PEAK).astype(np.int32) if y is not None else None
        for step in range(width + 3 * (height - 1)):
            rows = np.arange(max(0, -((width - 1 - step) // 3)), min(height - 1, step // 3) + 1)
            columns = step - 3 * rows
            at = (rows + 2) * stride + columns + 2
            sums = padded[at[:, None] + offsets].reshape(len(at), -1) @ self.context_weight
            for g, estimator in enumerate(self.estimators):
                known = padded[at, : g * chunk] if g else None
                inside = hyper_sums[g][rows * width + columns]
                p = estimator(sums[:, g * 2 * m : (g + 1) * 2 * m], inside, known)
                here = given[rows, columns, g * chunk : (g + 1) * chunk].ravel() if given is not None else None
                found = code_symbols(coder, self.mixture(p), here)
                padded[at, g * chunk : (g + 1) * chunk] = found.reshape(len(at), chunk)
        return padded.reshape(height + 2, stride, m)[2:, 2 : 2 + width].astype(np.int32)


def _split(layer: Linear, at: int) -> tuple[Linear, Linear]:
    """One layer as two that take a part of its inputs each; their sums are added before `finish`."""
    return (
        Linear(layer.weight[:at], layer.bias, layer.scale, layer.lo, layer.hi),
        Linear(layer.weight[at:], layer.bias, layer.scale, layer.lo, layer.hi),
    )


class _Reader:
    """Named integer arrays of a model file."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def ints(self, name: str) -> NDArray[np.int64]:
        return self.tensors[name].astype(np.int64)

    def linear(self, name: str, peak: int, lo: int, hi: int) -> Linear:
        weight = self.tensors[f"{name}.weight"].astype(np.int8)
        bias, shift = self.ints(f"{name}.bias").astype(np.int32), self.ints(f"{name}.shift").astype(np.int8)
        return Linear.build(name, weight, bias, shift, peak, lo, hi)
