"""Tasks side by side, each in a process of its own: any of them, or this one, may be killed at any second."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from submission import console
from submission.errors import UserError
from training.loop import stop_gracefully
from training.plan import Key, Task, ready

#: A task whose process is killed is started again, so often.
RETRIES = 2

# processes fork from a server that has imported torch once and has never touched a GPU
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training.stage"])


@dataclass
class _Running:
    task: Task
    process: ForkServerProcess
    log: Path


@dataclass(frozen=True)
class Launched:
    """What a process runs, which must be importable, and where its output goes."""

    target: Callable[..., int]
    arguments: tuple[object, ...]
    log: Path


#: From a task and all keys of what is not done yet.
Launch = Callable[[Task, set[Key]], Launched]
Tick = Callable[[list[Task], set[Key]], None]


def run_side_by_side(pending: list[Task], jobs: int, launch: Launch, tick: Tick) -> None:
    """Run `pending` in order of their needs, `jobs` at a time; `tick` is called about once a second.

    Ctrl-C and SIGTERM let every task save. UserError when a task fails; the others save and stop then.
    """
    waiting, missing = list(pending), {task.key for task in pending}
    running: list[_Running] = []
    killed: dict[Key, int] = {}
    with stop_gracefully() as stopping:
        try:
            while (waiting or running) and not stopping.requested:
                for task in ready(waiting, missing, jobs - len(running)):
                    waiting.remove(task)
                    running.append(_start(task, jobs, launch(task, missing)))
                wait([r.process.sentinel for r in running], timeout=1.0)
                for ended in [r for r in running if not r.process.is_alive()]:
                    running.remove(ended)
                    code = ended.process.exitcode
                    if code == 0:
                        missing.discard(ended.task.key)
                    elif code is not None and code < 0 and killed.get(ended.task.key, 0) < RETRIES:
                        killed[ended.task.key] = killed.get(ended.task.key, 0) + 1
                        waiting.insert(0, ended.task)
                    elif not stopping.requested:
                        raise UserError(f"{ended.task}: {_last_error(ended.log, code)}")
                tick([r.task for r in running], missing)
        finally:
            for r in running:
                r.process.terminate()  # each finishes its step and saves
            for r in running:
                r.process.join()
        if stopping.requested:
            raise KeyboardInterrupt


def _start(task: Task, jobs: int, launched: Launched) -> _Running:
    threads = max(1, torch.get_num_threads() // jobs)
    arguments = (launched.target, launched.arguments, launched.log, threads)
    process = _context.Process(target=_child, args=arguments, name=str(task))
    process.start()
    return _Running(task, process, launched.log)


def _child(target: Callable[..., int], arguments: tuple[object, ...], log: Path, threads: int) -> None:
    """In the new process: write to the log, stop with the parent, end with the task's exit code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    console.run(lambda: target(*arguments))


def _follow_parent() -> None:
    """A killed parent cannot stop its children: they notice, save and stop."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)


def _last_error(log: Path, code: int | None) -> str:
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if code == 2 and errors else f"ended with exit code {code}; see {log}"
