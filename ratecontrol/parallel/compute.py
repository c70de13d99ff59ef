"""Independent work on many processes of this machine, or on those of a Dask scheduler."""

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from ratecontrol.parallel.cluster import compute_there
from submission.cores import given_cores
from submission.workers import Job, Pool

T = TypeVar("T")
R = TypeVar("R")

#: Pixels to encode from which processes on all of this machine's cores are worth the seconds that they take to start.
WORTH_A_POOL = 20_000_000


@dataclass(frozen=True)
class Workers:
    """Who does the work: `jobs` processes of this machine, or those that a Dask scheduler has.

    Without either it is one process a core where there is much to do, and this one alone where there is little.
    The workers of a scheduler need this package and must see pictures and weights under the same paths.
    """

    jobs: int | None = None
    scheduler: str | None = None

    @property
    def alone(self) -> bool:
        """Whether this process does all by itself, and need not wait for others to start."""
        return self.jobs == 1 and self.scheduler is None

    def enough_for(self, pixels: int) -> "Workers":
        """With the number of processes decided."""
        if self.jobs is not None or self.scheduler is not None:
            return self
        return replace(self, jobs=given_cores() if pixels >= WORTH_A_POOL else 1)


def compute(work: Callable[[T], R], items: list[T], workers: Workers) -> Iterator[R]:
    """work(item) of all items, as they are done; the first exception of `work` ends it. `str(item)` is for messages.

    Raises UserError where what works for us is lost for good: here more than RETRIES times with the same item
    (`submission.workers`), elsewhere as `ratecontrol.parallel.cluster` says.
    """
    if not items:
        return
    if workers.scheduler is not None:
        yield from compute_there(work, items, workers.scheduler)
        return
    jobs = workers.jobs or 1
    waiting = collections.deque(items)
    pool = Pool(min(jobs, len(items)), max(torch.get_num_threads() // jobs, 1))
    try:
        while waiting or pool.busy:
            while waiting and pool.free:
                pool.start(_job(work, waiting.popleft()))
            for _, result in pool.poll():
                yield result
    finally:
        pool.close()


def _job(work: Callable[[T], R], item: T) -> Job:
    return Job(str(item), lambda: (work, (item,)))
