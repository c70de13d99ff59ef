"""Independent work on many processes or machines, with `dask.distributed`."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from submission.cores import given_cores
from submission.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

#: Pixels to encode from which a cluster of this machine's cores is worth the seconds that it takes to start.
WORTH_A_CLUSTER = 20_000_000

#: Seconds in which a scheduler must answer and have a worker.
PATIENCE = 30


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
        large = pixels >= WORTH_A_CLUSTER and importlib.util.find_spec("distributed") is not None
        return replace(self, jobs=given_cores() if large else 1)


def compute(work: Callable[[T], R], items: list[T], workers: Workers) -> Iterator[R]:
    """work(item) of all items, as they are done. The first exception of `work` ends it.

    Raises UserError where there is no scheduler, none of its workers answers, or a worker is killed.
    """
    if not items:
        return
    try:
        import dask
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ModuleNotFoundError:
        raise UserError("--jobs and --scheduler need Dask: pip install distributed, or leave them out") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = None
    if workers.scheduler is None:
        jobs = workers.jobs or 1
        # instead of Dask's own, which has workers give every freed page back, where networks free arrays all the time
        environment = {"OMP_NUM_THREADS": max(torch.get_num_threads() // jobs, 1)}
        with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}):
            cluster = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=min(jobs, len(items)),
                threads_per_worker=1,
                memory_limit=0,  # a large picture may take what there is
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
    client = None
    try:
        try:
            client = Client(cluster or workers.scheduler, timeout=PATIENCE)  # type: ignore[no-untyped-call]
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, ValueError) as error:  # TimeoutError is one
            what = f"--scheduler {workers.scheduler}" if workers.scheduler else "the local workers"
            raise UserError(f"{what}: no Dask scheduler with workers answers ({error})") from None
        futures = client.map(work, items, pure=False)
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            yield future.result()
    except KilledWorker:
        raise UserError("a worker was killed, perhaps for lack of memory; run again with fewer --jobs") from None
    finally:
        for resource in (client, cluster):
            if resource is not None:
                resource.close()
