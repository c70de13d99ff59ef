"""The entropy models `mixture` and `context` as they are deployed: integer context and parameter estimation, decoded
wavefront by wavefront.

With a 5x5 causal window a position depends on others of smaller `column + 3 * row` only, so all positions of equal
`column + 3 * row` are coded together: channel group 1, then group 2, which sees group 1 at the same position.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from submission.config import ModelConfig
from submission.integer import SIGNED_PEAK, Int8, Int32, Linear, clamp, product
from submission.latent_coding import PARAMETER_PEAK, LatentCoder, Latents, Reader, Tensors, one_thread
from submission.mixture import PEAK, Coder, Positions, code_symbols

#: Causal taps of the 5x5 window as (row, column) offsets, in the order of the context weights.
TAPS = [(i, j) for i in (-2, -1) for j in range(-2, 3)] + [(0, -2), (0, -1)]


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


class EntropyCoder(LatentCoder):
    """Codes latents with Gaussian mixtures (or one Gaussian) that depend on their causal neighbours."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        super().__init__(config, tensors)
        self.estimators = [self._estimator(self.read, g) for g in range(config.groups)]
        #: One product for the contexts of all groups.
        self.causal = np.concatenate([e.context.weight for e in self.estimators], 1)

    def _estimator(self, read: Reader, group: int) -> Estimator:
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

    def parts(self, p: Int32) -> Int32:
        """Parameters [n, 3*K*C], or [n, 2*C] without weights, -> mixtures [K, 3, n*C]."""
        k = self.config.mixtures
        if self.config.entropy == "context":
            p = np.pad(p, ((0, 0), (p.shape[1] // 2, 0)))
        return np.ascontiguousarray(p.reshape(len(p), k, 3, -1).transpose(1, 2, 0, 3)).reshape(k, 3, -1)

    def _code_y(self, coder: Coder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
        with one_thread():
            return self._code_wavefronts(coder, size, z_hat, y)

    def _code_wavefronts(self, coder: Coder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
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
                parts = self.parts(p)
                found = code_symbols(coder, self.tables, parts, known)
                if self.watch:
                    self.watch(rows, columns, parts, found)
                padded[at, here] = found.reshape(len(at), chunk)
        return padded.reshape(height + 2, stride, m)[2:, 2 : 2 + width].astype(np.int32)


def _split(layer: Linear, at: int) -> tuple[Linear, Int8]:
    """A layer that takes the inputs before `at`, and the weights of the others, whose sums are added to its own."""
    rest = np.ascontiguousarray(layer.weight[at:])
    return dataclasses.replace(layer, weight=np.ascontiguousarray(layer.weight[:at])), rest
