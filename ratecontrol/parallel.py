"""Independent work on many processes or machines, with `dask.distributed`."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from submission.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

#: Seconds in which a scheduler must answer and have a worker.
PATIENCE = 30


@dataclass(frozen=True)
class Workers:
    """Who does the work: `jobs` processes of this machine, or those that a Dask scheduler has.

    The workers of a scheduler need this package and must see pictures and weights under the same paths.
    """

    jobs: int = 1
    scheduler: str | None = None

    @property
    def alone(self) -> bool:
        """Whether this process does all by itself, and need not wait for others to start."""
        return self.jobs == 1 and self.scheduler is None


def compute(work: Callable[[T], R], items: list[T], workers: Workers) -> Iterator[R]:
    """work(item) of all items, as they are done. The first exception of `work` ends it.

    Raises UserError where there is no scheduler, none of its workers answers, or a worker is killed.
    """
    if not items:
        return
    try:
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ModuleNotFoundError:
        raise UserError("--jobs and --scheduler need Dask: pip install distributed, or leave them out") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = None
    if workers.scheduler is None:
        threads = max(torch.get_num_threads() // workers.jobs, 1)
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=min(workers.jobs, len(items)),
            threads_per_worker=1,
            memory_limit=0,  # a large picture may take what there is
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            env={"OMP_NUM_THREADS": str(threads)},
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
