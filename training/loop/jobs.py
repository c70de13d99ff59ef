"""Tasks side by side in processes of their own: any of them, or this one, may be killed or stopped at any second."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from submission import console
from submission.errors import UserError
from submission.workers import LAST_SECONDS, Call, Job, Pool
from training.loop.plan import Key, Task, ready

#: Seconds in which tasks may save after Ctrl-C or SIGTERM, before `console` cuts everything off.
GRACE = 0.9


@dataclass(frozen=True)
class Launched:
    """What a process runs, which must be importable, and where its output goes."""

    target: Callable[..., object]
    arguments: tuple[object, ...]
    log: Path


#: From a task and all keys of what is not done yet.
Launch = Callable[[Task, set[Key]], Launched]
Tick = Callable[[list[Task], set[Key]], None]


def run_side_by_side(pending: list[Task], jobs: int, launch: Launch, tick: Tick) -> None:
    """Run `pending` in order of their needs, `jobs` at a time; `tick` is called about once a second.

    A task whose process is killed or stopped is launched again (`submission.workers`). Ctrl-C and SIGTERM give every
    task GRACE to save. UserError when a task fails; the others save and stop then.
    """
    waiting, missing = list(pending), {task.key for task in pending}
    running: dict[Job, Task] = {}
    # on a GPU a process takes with it the memory that a task's graphs would keep from its neighbours
    pool = Pool(jobs, max(1, torch.get_num_threads() // jobs), fresh=torch.cuda.is_available())

    def job_of(task: Task) -> Job:
        def prepare() -> Call:
            launched = launch(task, missing)
            return _run_logged, (str(task), launched.log, launched.target, launched.arguments)

        return Job(str(task), prepare)

    seconds = LAST_SECONDS
    try:
        while waiting or running:
            for task in ready(waiting, missing, pool.free):
                waiting.remove(task)
                job = job_of(task)
                running[job] = task
                pool.start(job)
            for job, _ in pool.poll():
                missing.discard(running.pop(job).key)
            tick(list(running.values()), missing)
    except KeyboardInterrupt:
        seconds = GRACE
        raise
    finally:
        pool.terminate()
        asked = time.monotonic()
        while pool.alive and time.monotonic() - asked < seconds:
            time.sleep(0.02)
        pool.close()


def _run_logged(name: str, log: Path, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """In the new process: `target` with its output in `log`; UserError that names the task if it fails."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    try:
        target(*arguments)
    except UserError as error:
        console.fail(str(error))
        raise UserError(f"{name}: {error}") from None
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"{name}: ended with {type(error).__name__}; see {log}") from None
