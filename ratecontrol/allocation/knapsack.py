"""The optimiser: one candidate for each image, the most quality that fits under one byte cap, and the proof.

This is the multiple-choice knapsack problem. `allocate` solves it in three steps:

1. dominated candidates (another one is no larger and no worse) are dropped;
2. the Lagrangian puts a price on a byte: at a given price every image chooses for itself. Bisection finds the price at
   which the set just fits, a greedy pass spends what is left, and the price itself proves an upper bound;
3. that proof also excludes most candidates: one that loses more than the remaining gap, against its image's best at
   that price, is in no better allocation. What survives is small, and `scipy.optimize.milp` solves it to optimality.

Step 3 is left out above `EXACT_CANDIDATES`: there the gap of step 2 is far below what the metric can show.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Up to this many candidates in all, the allocation is solved exactly.
EXACT_CANDIDATES = 20_000

#: "Exact" means up to this difference in the objective (a set's MS-SSIM, of order 1).
RESOLUTION = 1e-10

#: The work after which the branch and bound gives up and reports the gap it reached: a count, not a time, so that the
#: same table gives the same choice on every machine.
MAX_NODES = 20_000


@dataclass(frozen=True)
class Candidates:
    """The candidates of all images as flat arrays of one length; every image 0..n-1 has at least one."""

    image: Integers  #: which image a candidate belongs to
    size: Integers  #: bytes
    value: Floats  #: what choosing it adds to the objective


@dataclass(frozen=True)
class Allocation:
    """One candidate an image, and how good any allocation could be at all."""

    chosen: Integers  #: for image 0..n-1 the index of its candidate
    size: int  #: bytes of the chosen ones, never over the cap
    value: float  #: their objective
    bound: float  #: no allocation under the cap has a larger objective

    @property
    def gap(self) -> float:
        """What an unknown better allocation could still gain."""
        return self.bound - self.value


class DoesNotFit(Exception):
    """Even the smallest candidate of every image together is over the cap."""


def allocate(candidates: Candidates, cap: int, exact_up_to: int = EXACT_CANDIDATES) -> Allocation:
    """The allocation of largest total value whose total size is at most `cap` bytes.

    The same input gives the same choice: of an image's candidates of equal value the smallest is taken, of equal ones
    the first. Raises DoesNotFit.
    """
    kept = undominated(candidates)
    table = Table.of(candidates, kept)
    if table.total_size(table.start) > cap:
        raise DoesNotFit
    relaxed = lagrangian(table, cap)
    chosen = fill(table, relaxed.chosen, cap)
    bound = max(relaxed.bound, table.total_value(chosen))
    if len(candidates.image) <= exact_up_to:
        chosen, bound = branch_and_bound(table, cap, relaxed.price, chosen, bound)
    return Allocation(kept[chosen], table.total_size(chosen), table.total_value(chosen), bound)


def undominated(candidates: Candidates) -> Integers:
    """Indexes of the candidates that some cap can want, sorted by image and then by size: both columns rise."""
    order = np.lexsort((-candidates.value, candidates.size, candidates.image))  # stable: equals keep their order
    # The running maximum of the value within each image. Values become ranks, so that one integer holds image and
    # rank, and a single running maximum starts afresh at each image.
    _, rank = np.unique(candidates.value[order], return_inverse=True)
    level = candidates.image[order] * (len(order) + 1) + rank
    before = np.concatenate([[-1], np.maximum.accumulate(level)[:-1]])
    return order[level > before]


@dataclass(frozen=True)
class Table:
    """Undominated candidates, sorted by image and size."""

    image: Integers
    size: Integers
    value: Floats
    start: Integers  #: where each image's candidates begin; the smallest of an image stands there

    @staticmethod
    def of(candidates: Candidates, kept: Integers) -> "Table":
        image = candidates.image[kept]
        start = np.flatnonzero(np.diff(image, prepend=-1))
        return Table(image, candidates.size[kept], candidates.value[kept], start)

    def total_size(self, chosen: Integers) -> int:
        return int(self.size[chosen].sum())

    def total_value(self, chosen: Integers) -> float:
        return float(self.value[chosen].sum())

    def loss(self, price: float) -> Floats:
        """How much worse each candidate is than its image's best when a byte costs `price`: 0 for the best."""
        worth = self.value - price * self.size
        return np.maximum.reduceat(worth, self.start)[self.image] - worth

    def best(self, price: float) -> Integers:
        """The index of every image's best candidate when a byte costs `price`; the smaller one of equals."""
        best = np.flatnonzero(self.loss(price) == 0)
        return best[np.flatnonzero(np.diff(self.image[best], prepend=-1))]


@dataclass(frozen=True)
class Relaxed:
    """The Lagrangian's answer: what every image chooses at a price at which the set fits."""

    chosen: Integers
    price: float  #: value a byte, at which the bound is lowest
    bound: float


def lagrangian(table: Table, cap: int) -> Relaxed:
    """Bisect the price of a byte until the images' own choices just fit.

    Each price proves a bound: no allocation is worth more than what the images choose at that price plus the price of
    the bytes that they leave.
    """

    def bound_at(price: float, chosen: Integers) -> float:
        return table.total_value(chosen) + price * (cap - table.total_size(chosen))

    everything = table.best(0.0)
    if table.total_size(everything) <= cap:
        return Relaxed(everything, 0.0, table.total_value(everything))
    smallest = table.start[table.image]
    rise = table.value - table.value[smallest]
    run = np.maximum(table.size - table.size[smallest], 1)
    low, high = 0.0, 2 * float((rise / run).max())  # at `high` every image chooses its smallest
    fitting, price, bound = table.start, high, bound_at(high, table.start)
    for _ in range(60):  # then the price is known to the last bits of a float
        middle = (low + high) / 2
        chosen = table.best(middle)
        if (proven := bound_at(middle, chosen)) < bound:
            price, bound = middle, proven
        if table.total_size(chosen) <= cap:
            high, fitting = middle, chosen
        else:
            low = middle
    return Relaxed(fitting, price, bound)


def fill(table: Table, chosen: Integers, cap: int) -> Integers:
    """Spend the bytes that are left: round by round the upgrades with the most value a byte, while they fit."""
    chosen = chosen.copy()
    left = cap - table.total_size(chosen)
    while True:
        more = table.size - table.size[chosen][table.image]
        fits = np.flatnonzero((more > 0) & (more <= left))  # undominated, so larger is better
        if len(fits) == 0:
            return chosen
        gain = table.value[fits] - table.value[chosen][table.image[fits]]
        upgrades = fits[np.argsort(-gain / more[fits], kind="stable")]
        # one upgrade an image in a round: a second one would start from another candidate than `more` says
        _, first = np.unique(table.image[upgrades], return_index=True)
        upgrades = upgrades[np.sort(first)]
        for index, size in zip(upgrades.tolist(), more[upgrades].tolist(), strict=True):
            if size <= left:
                chosen[table.image[index]] = index
                left -= size


def branch_and_bound(table: Table, cap: int, price: float, chosen: Integers, bound: float) -> tuple[Integers, float]:
    """The best allocation and its bound, given a price of a byte, the allocation found so far and its bound."""
    gap = bound - table.total_value(chosen)
    if gap <= RESOLUTION:
        return chosen, bound
    kept = np.flatnonzero(table.loss(price) < gap)
    # Values and sizes relative to what each image chooses at that price: small numbers, which the solver likes.
    reference = table.best(price)
    image = table.image[kept]
    deficit = table.value[reference][image] - table.value[kept]
    more = table.size[kept] - table.size[reference][image]
    room = cap - table.total_size(reference)
    one_each = csr_array((np.ones(len(kept)), (image, np.arange(len(kept)))))
    unit = 1e-6 / RESOLUTION  # the solver stops at an absolute difference of 1e-6
    with silent_library():
        answer = milp(
            deficit * unit,
            integrality=np.ones(len(kept), np.int64),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(more[None], -np.inf, room)],
            options={"mip_rel_gap": 0, "node_limit": MAX_NODES},
        )
    if answer.x is not None:
        better = kept[np.flatnonzero(answer.x > 0.5)]
        if table.total_size(better) <= cap and table.total_value(better) > table.total_value(chosen):
            chosen = better
    if answer.mip_dual_bound is not None:
        bound = min(bound, table.total_value(reference) - answer.mip_dual_bound / unit + RESOLUTION)
    return chosen, max(bound, table.total_value(chosen))


@contextlib.contextmanager
def silent_library() -> Iterator[None]:
    """Drop what compiled code prints: HiGHS 1.12 has a debugging line that no option of it turns off."""
    flush = ctypes.CDLL(None).fflush  # of C's own buffers, which outlive the redirection otherwise
    flush(None)
    stdout = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
