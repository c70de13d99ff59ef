"""Independent work on the workers of a Dask scheduler, which may go away at any time, with or without a word."""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from submission import processes
from submission.errors import UserError
from submission.processes import TICK, Silence

T = TypeVar("T")
R = TypeVar("R")

#: Seconds in which a scheduler must answer at first, and have a worker.
START_PATIENCE = 30

#: Seconds to take leave in.
CLOSING = 1.0


def compute_there(work: Callable[[T], R], items: list[T], scheduler: str) -> Iterator[R]:
    """work(item) of all `items` as they are done, on the workers of the scheduler at the address `scheduler`.

    The first exception of `work` ends it. Raises UserError where there is no scheduler with workers, where it goes
    away, where for `processes.PATIENCE` neither it nor any of its workers gives a sign of life, and where an item has
    killed several workers.
    """
    try:
        from distributed import Client, KilledWorker
    except ModuleNotFoundError:
        raise UserError("--scheduler needs Dask: pip install distributed, or leave it out") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    client = None
    try:
        try:
            client = Client(scheduler, timeout=START_PATIENCE)
            client.wait_for_workers(1, timeout=START_PATIENCE)
        except (OSError, ValueError) as error:  # TimeoutError is one
            raise UserError(f"--scheduler {scheduler}: no Dask scheduler with workers answers ({error})") from None
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = set(client.map(work, items, pure=False))
        for future in left:
            future.add_done_callback(done.put)
        life = _Life(client)
        while left:
            if life.silence() >= processes.PATIENCE:
                raise _gone(scheduler, f"no sign of life from it or its workers for {processes.PATIENCE:g} s")
            try:
                future = done.get(timeout=TICK)
            except queue.Empty:
                continue
            result = future.result(timeout=processes.PATIENCE)
            left.remove(future)  # and its result is kept there no longer
            yield result
    except KilledWorker as error:
        raise _gone(scheduler, f"{error.allowed_failures + 1} of its workers were lost with the same picture") from None
    except concurrent.futures.CancelledError:
        raise _gone(scheduler, "it went away") from None
    except TimeoutError:
        raise _gone(scheduler, f"a worker keeps a result back for {processes.PATIENCE:g} s") from None
    finally:
        if client is not None:
            with contextlib.suppress(OSError):  # it may be gone
                client.close(timeout=CLOSING)


def _gone(scheduler: str, why: str) -> UserError:
    return UserError(f"--scheduler {scheduler}: {why}; what is measured is kept: run the command again to go on")


class _Life:
    """Whether a scheduler answers and any of its workers reports to it, asked without waiting for the answer."""

    def __init__(self, client: Any) -> None:
        self._client, self._silence = client, Silence()
        self._seen: dict[str, float] = {}  #: when each worker last reported, by the clock over there
        self._question: Any = None

    def silence(self) -> float:
        """Seconds in which there was no news of any worker."""
        if self._question is not None and self._question.done():
            with contextlib.suppress(Exception):  # whatever it is, it is no sign of life
                workers = self._question.result()["workers"]
                seen = {name: worker["last_seen"] for name, worker in workers.items()}
                if any(self._seen.get(name) != at for name, at in seen.items()):
                    self._silence.broken()
                self._seen = seen
            self._question = None
        if self._question is None and self._client.scheduler is not None:
            ask = self._client.scheduler.identity()
            self._question = asyncio.run_coroutine_threadsafe(ask, self._client.loop.asyncio_loop)
        return self._silence.look()
