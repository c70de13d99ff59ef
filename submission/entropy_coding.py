"""The entropy model as it is deployed: integer h_s, context and parameter estimation, decoded wavefront by wavefront.

With a 5x5 causal window a position depends on others of smaller `column + 3 * row` only, so all positions of equal
`column + 3 * row` are coded together: channel group 1, then group 2, which sees group 1 at the same position.
Encoder and decoder walk the same code (`_code`) and differ in the coder that they hand in.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from submission.coder import Decoder, Encoder
from submission.config import ModelConfig
from submission.errors import WeightsError
from submission.integer import SIGNED_PEAK, Int8, Int32, Linear, clamp, conv3x3, pixel_shuffle, product
from submission.mixture import CODER_BITS, PEAK, Coder, Tables, code_symbols

Positions = NDArray[np.intp]
Latents = NDArray[np.int32]  #: [h, w, channels]
YHat = NDArray[np.float32]  #: [h, w, M]
Tensors = dict[str, NDArray[np.generic]]

#: Causal taps of the 5x5 window as (row, column) offsets, in the order of the context weights.
TAPS = [(i, j) for i in (-2, -1) for j in range(-2, 3)] + [(0, -2), (0, -1)]

#: Parameters of mixtures leave the network as integers in this range, twice that after the residual branch.
PARAMETER_PEAK = 2**14 - 1

#: Learned quantisation steps: log2 in 1/32 from -2 to 2 (the network's output), and the steps themselves in 1/2^14, so
#: that a symbol of 7 bits times a step of 17 is exact in float32.
STEP_UNIT = 32
STEP_PEAK = 2 * STEP_UNIT
STEP_BITS = 14


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one thread: a wavefront's products take microseconds, less than threads take to meet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wavefronts(height: int, width: int) -> Iterator[tuple[Positions, Positions]]:
    """(rows, columns) of the positions that are coded together: equal column + 3 * row, in order of rising row."""
    for step in range(width + 3 * (height - 1)):
        rows = np.arange(max(0, -((width - 1 - step) // 3)), min(height - 1, step // 3) + 1)
        yield rows, step - 3 * rows


@dataclass(frozen=True)
class Estimator:
    """Parameter estimation of one channel group: f1 from context sums, three layers, and the residual branch."""

    context: Linear
    #: Weights for group 1 at the same position, in group 2's context.
    centre: Int8
    first: Linear
    #: Weights of the first layer for the hyper features.
    hyper: Int8
    second: Linear
    third: Linear
    #: The branch's input is the parameters shifted right by this, in -127..127.
    branch_shift: Int32 | None
    branch: tuple[Linear, ...]

    def __call__(self, context_sums: Int32, hyper_sums: Int32, known: Int8) -> Int32:
        """Sums [n, 2M] of the context (overwritten), [n, width] of the hyper features, and the group before at the same
        positions (or no channels) -> parameters [n, outputs]."""
        if known.shape[1]:
            context_sums += product(known, self.centre)
        a = self.context.finish(context_sums).astype(np.int8)
        a = self.first.finish(product(a, self.first.weight) + hyper_sums).astype(np.int8)
        p = self.third(self.second(a).astype(np.int8))
        if self.branch_shift is not None:
            a = clamp(p >> self.branch_shift, -SIGNED_PEAK, SIGNED_PEAK).astype(np.int8)
            first, second, third = self.branch
            p += third(second(first(a).astype(np.int8)).astype(np.int8))
        return p


class EntropyCoder:
    """Codes the latents of one picture with the integer entropy model of one model file."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        """`tensors` as `training.export` stores them; WeightsError when they are incomplete or could overflow."""
        self.config = config
        read = _Reader(tensors)
        self.tables = Tables(*(read.int32(f"tables.{name}") for name in ("exp", "inverse_scale", "cdf", "reach")))
        self.prior = read.int32("prior").astype(np.float64)
        if (self.prior.sum(1) != (1 << CODER_BITS) - self.prior.shape[1]).any() or (self.prior < 0).any():
            raise WeightsError("prior of z: rows do not sum to the coder's total")
        self.z_peak = self.prior.shape[1] // 2
        self.h_s = [read.linear(f"h_s.{k}", relu_in=k > 0, relu=k < 4) for k in range(5)]
        self.h_sq: list[Linear] = []
        if config.learned_step:
            self.h_sq = [read.linear("h_sq.0", relu=True), read.linear("h_sq.1", relu_in=True, highest=STEP_PEAK)]
            self.step_table = read.int32("tables.step")
            fits = (self.step_table > 0) & (self.step_table <= 2**24)  # times a symbol, within 32 bits
            if self.step_table.shape != (2 * STEP_PEAK + 1,) or not fits.all():
                raise WeightsError("tables.step: not a table of quantisation steps")
        self.estimators = [self._estimator(read, g) for g in range(config.groups)]
        #: One product for the contexts of all groups.
        self.causal = np.concatenate([e.context.weight for e in self.estimators], 1)

    def _estimator(self, read: "_Reader", group: int) -> Estimator:
        name, m = f"groups.{group}", self.config.M
        context, centre = _split(read.linear(f"{name}.context"), len(TAPS) * m)
        first, hyper = _split(read.linear(f"{name}.first", relu=True), 2 * m)
        branch: tuple[Linear, ...] = ()
        if self.config.rpe:
            branch = (
                read.linear(f"{name}.branch.first", relu=True),
                read.linear(f"{name}.branch.second", relu_in=True, relu=True),
                read.linear(f"{name}.branch.third", relu_in=True, highest=PARAMETER_PEAK),
            )
        return Estimator(
            context,
            centre,
            first,
            hyper,
            read.linear(f"{name}.second", relu_in=True, relu=True),
            read.linear(f"{name}.third", relu_in=True, highest=PARAMETER_PEAK),
            read.int32(f"{name}.branch.shift") if branch else None,
            branch,
        )

    def hyper_features(self, z_hat: Latents) -> Int8:
        """h_s: z_hat [h, w, N] -> features [4h, 4w, 2M] in -127..127."""
        a = conv3x3(self.h_s[0], z_hat.astype(np.int8), relu_in=False)
        a = pixel_shuffle(conv3x3(self.h_s[1], a, relu_in=True))
        a = conv3x3(self.h_s[2], a, relu_in=True)
        a = pixel_shuffle(conv3x3(self.h_s[3], a, relu_in=True))
        return conv3x3(self.h_s[4], a, relu_in=True)

    def step_sizes(self, z_hat: Latents) -> Int32:
        """h_sq: z_hat [h, w, N] -> quantisation steps of y [4h, 4w, M] in 1/2^14; [1, 1, 1] if all are 1."""
        if not self.h_sq:
            return np.full((1, 1, 1), 1 << STEP_BITS, np.int32)
        a = pixel_shuffle(conv3x3(self.h_sq[0], z_hat.astype(np.int8), relu_in=False))
        a = pixel_shuffle(conv3x3(self.h_sq[1], a, relu_in=True))
        return self.step_table[a.astype(np.intp) + STEP_PEAK]

    def dequantize(self, symbols: Latents, z_hat: Latents) -> YHat:
        """Symbols [4h, 4w, M] -> y_hat, the same bits on every machine."""
        y_hat = (symbols * self.step_sizes(z_hat)).astype(np.float32)
        return y_hat * np.float32(2.0**-STEP_BITS)

    def parts(self, p: Int32) -> Int32:
        """Parameters [n, 3*K*C] -> mixtures [K, 3, n*C]."""
        k = self.config.mixtures
        return np.ascontiguousarray(p.reshape(len(p), k, 3, -1).transpose(1, 2, 0, 3)).reshape(k, 3, -1)

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
        with one_thread():
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
        hyper_sums = [product(hyper, e.hyper) for e in self.estimators]
        # y_hat with a border of zeros that the causal window reaches into: 2 rows above, 2 columns at both sides
        stride = width + 4
        padded = np.zeros(((height + 2) * stride, m), np.int8)
        offsets = np.array([i * stride + j for i, j in TAPS])
        chunk = m // self.config.groups
        given = np.clip(y, -PEAK, PEAK).astype(np.int32) if y is not None else None
        for rows, columns in wavefronts(height, width):
            at = (rows + 2) * stride + columns + 2
            sums = product(padded[at[:, None] + offsets].reshape(len(at), -1), self.causal)
            for g, estimator in enumerate(self.estimators):
                here = slice(g * chunk, (g + 1) * chunk)
                inside = hyper_sums[g][rows * width + columns]
                p = estimator(sums[:, g * 2 * m : (g + 1) * 2 * m], inside, padded[at, : g * chunk])
                known = given[rows, columns, here].ravel() if given is not None else None
                found = code_symbols(coder, self.tables, self.parts(p), known)
                padded[at, here] = found.reshape(len(at), chunk)
        return padded.reshape(height + 2, stride, m)[2:, 2 : 2 + width].astype(np.int32)


def _split(layer: Linear, at: int) -> tuple[Linear, Int8]:
    """A layer that takes the inputs before `at`, and the weights of the others, whose sums are added to its own."""
    rest = np.ascontiguousarray(layer.weight[at:])
    return dataclasses.replace(layer, weight=np.ascontiguousarray(layer.weight[:at])), rest


class _Reader:
    """Named integer arrays of a model file; WeightsError when one is missing."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def int32(self, name: str) -> Int32:
        if name not in self.tensors:
            raise WeightsError(f"model file lacks {name}")
        return self.tensors[name].astype(np.int32)

    def linear(self, name: str, relu_in: bool = False, relu: bool = False, highest: int = SIGNED_PEAK) -> Linear:
        weight, shift = (self.int32(f"{name}.{part}").astype(np.int8) for part in ("weight", "shift"))
        return Linear.build(name, weight, self.int32(f"{name}.bias"), shift, relu_in, highest, relu)
