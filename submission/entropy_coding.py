"""The entropy models `mixture` and `context` as they are deployed: integer context and parameter estimation, decoded
wavefront by wavefront.

With a 5x5 causal window a position depends on others of smaller `column + 3 * row` only, so all positions of equal
`column + 3 * row` are coded together: channel group 1, then group 2, which sees group 1 at the same position.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from submission.config import ModelConfig
from submission.integer import SIGNED_PEAK, Int8, Int32, Linear, Weight, clamp, one_thread, product
from submission.latent_coding import PARAMETER_PEAK, LatentCoder, Latents, Reader, Tensors
from submission.mixture import PEAK, Positions
from submission.symbols import Settled, SymbolCoder, SymbolDecoder, SymbolEncoder, settle

#: An encoder settles as many wavefronts together as have about this many positions, but no more than so many: in the
#: worst case, values that are all given otherwise, each of them takes a round of its own.
TOGETHER, MOST_FRONTS = 1024, 64

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
    centre: Weight
    first: Linear
    #: Weights of the first layer for the hyper features.
    hyper: Weight
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

    def _code_y(self, coder: SymbolCoder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
        field = Field(self, size, z_hat)
        if isinstance(coder, SymbolDecoder):
            with one_thread():
                self._decode_y(coder, field)
        else:
            assert y is not None
            self._encode_y(coder, field, np.clip(y, -PEAK, PEAK).astype(np.int32))
        return field.latents()

    def _decode_y(self, coder: SymbolDecoder, field: "Field") -> None:
        for rows, columns in wavefronts(*field.size):
            for g, parts in field.visit(rows, columns):
                found = coder.code(parts)
                field.put(g, found)
                if self.watch:
                    self.watch(rows, columns, parts, found)

    def _encode_y(self, coder: SymbolEncoder, field: "Field", y: Latents) -> None:
        """Many wavefronts at once. The decoder finds the encoder's values, but for some that are all but certain and
        given otherwise. So the encoder takes its own for the decoder's, and settles those places again whose context
        has turned out otherwise, until there are none: then each wavefront is what the ones before it make of it."""
        height, width = field.size
        mean = height * width / (width + 3 * (height - 1))
        fronts = int(min(max(TOGETHER / mean, 1), MOST_FRONTS))
        group_of = np.arange(self.config.M) // field.chunk
        coming = wavefronts(height, width)
        while block := list(itertools.islice(coming, fronts)):
            rows, columns = (np.concatenate(of) for of in zip(*block, strict=True))
            front_of = np.repeat(np.arange(len(block)), [len(rows) for rows, _ in block])
            places = field.places(rows, columns)
            given = y[rows, columns]
            settled = Settled.empty(*given.shape)
            field.y_hat[places] = given
            todo = np.arange(len(places))
            while len(todo):
                before = field.y_hat[places[todo]]
                for g, parts in field.visit(rows[todo], columns[todo]):
                    here = field.channels(g)
                    part = settle(self.tables, parts, given[todo, here].ravel())
                    field.put(g, part.values)
                    settled.put((todo, here), part)
                moved = places[todo[(field.y_hat[places[todo]] != before).any(1)]]
                todo = np.flatnonzero(np.isin(places[:, None] + field.taps, moved).any(1))
            steps = front_of[:, None] * self.config.groups + group_of
            coder.write(settled.flat(), steps.astype(np.uint16).ravel())


class Field:
    """The y_hat of one picture while it is coded, and the mixtures that follow from what is known of it."""

    def __init__(self, coder: EntropyCoder, size: tuple[int, int], z_hat: Latents) -> None:
        self.coder, self.size = coder, size
        m, (height, width) = coder.config.M, size
        self.chunk = m // coder.config.groups
        hyper = coder.hyper_features(z_hat).reshape(height * width, -1)
        self.hyper_sums = [product(hyper, e.hyper) for e in coder.estimators]
        # with a border of zeros that the causal window reaches into: 2 rows above, 2 columns at both sides
        self.stride = width + 4
        self.y_hat = np.zeros(((height + 2) * self.stride, m), np.int8)
        self.taps = np.array([i * self.stride + j for i, j in TAPS])
        self.visited = np.zeros(0, np.intp)

    def places(self, rows: Positions, columns: Positions) -> Positions:
        """Where these positions are in `y_hat`."""
        return (rows + 2) * self.stride + columns + 2

    def channels(self, group: int) -> slice:
        """The channels of a group."""
        return slice(group * self.chunk, (group + 1) * self.chunk)

    def visit(self, rows: Positions, columns: Positions) -> Iterator[tuple[int, Int32]]:
        """For each channel group its number and the mixtures [K, 3, n * C] at n positions; `put` has its symbols before
        the next group is asked for."""
        m = self.coder.config.M
        at = self.visited = self.places(rows, columns)
        sums = product(self.y_hat[at[:, None] + self.taps].reshape(len(at), -1), self.coder.causal)
        for g, estimator in enumerate(self.coder.estimators):
            hyper_sums = self.hyper_sums[g][rows * self.size[1] + columns]
            p = estimator(sums[:, g * 2 * m : (g + 1) * 2 * m], hyper_sums, self.y_hat[at, : g * self.chunk])
            yield g, self.coder.parts(p)

    def put(self, group: int, symbols: Int32) -> None:
        """Symbols [n * C] of a group at the positions visited."""
        self.y_hat[self.visited, self.channels(group)] = symbols.reshape(-1, self.chunk)

    def latents(self) -> Latents:
        """All of it, [h, w, M]."""
        height, width = self.size
        whole = self.y_hat.reshape(height + 2, self.stride, -1)
        return whole[2:, 2 : 2 + width].astype(np.int32)


def _split(layer: Linear, at: int) -> tuple[Linear, Weight]:
    """A layer that takes the inputs before `at`, and the weights of the others, whose sums are added to its own."""
    rest = np.ascontiguousarray(layer.weight[at:])
    return dataclasses.replace(layer, weight=np.ascontiguousarray(layer.weight[:at])), rest
