"""Processes that work side by side for this one, any of which may be killed or stopped at any time.

A worker sends signs of life all the time, from a thread of its own, and its answer in the end, through a pipe that no
one else writes to. One that ends before it has answered, or is silent for longer than `processes.PATIENCE`, is killed,
and its job goes to a new one, a bounded number of times. So a call of `Pool.poll` returns within a tick, and a job is
answered, or named in an error, after a bounded number of silences: nothing waits for another process without an end.
"""

import contextlib
import os
import pickle
import selectors
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from submission import processes
from submission.console import note
from submission.errors import UserError
from submission.processes import TICK, Child, Silence

#: Seconds between signs of life, far below the patience of who listens.
BEAT = 0.5

#: A job that loses its worker is given to another, so often.
RETRIES = 2

#: A worker whose parent is gone has so many seconds to save what it has.
LAST_SECONDS = 60.0

#: Before each message: its length. A sign of life is a message of none.
_LENGTH = struct.Struct("<Q")

Call = tuple[Callable[..., Any], tuple[Any, ...]]  #: an importable function and its arguments


@dataclass(eq=False)
class Job:
    """Something for a worker to call; `prepare` says what, anew each time that a worker is lost."""

    name: str
    prepare: Callable[[], Call]
    lost: int = 0  #: workers


@dataclass(eq=False)
class _Worker:
    job: Job
    process: Child
    #: What of its call the pipe has not taken yet, and what has come of its answer.
    unsent: bytes = b""
    buffer: bytearray = field(default_factory=bytearray)
    failure: BaseException | None = None  # what its job raised, until that has been said
    silence: Silence = field(default_factory=Silence)

    def send(self) -> None:
        """Write of its call what the pipe takes now."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a broken one is found when it is read
            while self.unsent:
                self.unsent = self.unsent[os.write(self.process.stdin, self.unsent) :]

    def receive(self) -> bool:
        """Take in what it has sent; False at the end of its pipe."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.process.stdout, 2**20):
                self.buffer += chunk
                self.silence.broken()
            return False
        return True


class Pool:
    """At most `jobs` workers of `threads` threads each.

    `fresh`: a process for each job, which takes with it what the job leaves in memory; else they take job after job.
    """

    def __init__(self, jobs: int, threads: int, fresh: bool = False) -> None:
        self.jobs, self.threads, self.fresh = jobs, threads, fresh
        self.busy: list[_Worker] = []
        self._idle: list[_Worker] = []

    @property
    def free(self) -> int:
        """How many more jobs may be started."""
        return self.jobs - len(self.busy)

    def start(self, job: Job) -> None:
        """Give `job` to a worker."""
        assert self.free > 0
        call = pickle.dumps(job.prepare())
        worker = self._idle.pop() if self._idle else _Worker(job, self._spawn())
        self.busy.append(worker)
        worker.job, worker.unsent = job, _LENGTH.pack(len(call)) + call
        worker.silence.broken()
        worker.send()

    def poll(self) -> list[tuple[Job, Any]]:
        """The jobs that have been answered meanwhile, with what they returned; waits for at most a tick.

        Raises what a job raised, once there is nothing else to return, and UserError where one has lost more than
        RETRIES workers.
        """
        self._wait()
        answered = []
        for worker in list(self.busy):
            if worker.failure is not None:
                continue
            worker.send()
            open_end = worker.receive()
            if (answer := _take_answer(worker.buffer)) is not None:
                good, value = answer
                if good:
                    self._release(worker)
                    answered.append((worker.job, value))
                else:
                    worker.failure = value
            elif not open_end or worker.process.poll() is not None:
                self._replace(worker, _how_it_ended(worker.process))
            elif worker.silence.look() >= processes.PATIENCE:
                why = f"gave no sign of life for {processes.PATIENCE:g} s (stopped, or the machine is overloaded)"
                self._replace(worker, why)
        if not answered:
            for worker in self.busy:
                if (failure := worker.failure) is not None:
                    worker.failure = None
                    self._release(worker)
                    raise failure
        return answered

    def _release(self, worker: _Worker) -> None:
        self.busy.remove(worker)
        self._keep(worker)

    def terminate(self) -> None:
        """Ask all that are at work to save and end, as training does after a SIGTERM; those that are stopped, too."""
        for worker in self.busy:
            worker.process.send_signal(signal.SIGTERM)
            worker.process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        """Whether any that was at work has not ended yet."""
        return any(worker.process.poll() is None for worker in self.busy)

    def close(self) -> None:
        """End all workers at once."""
        every = [*self.busy, *self._idle]
        for worker in every:
            worker.process.kill()
        for worker in every:
            worker.process.close()
        self.busy, self._idle = [], []

    def _spawn(self) -> Child:
        """A new worker, which imports what we would, and shares our terminal: Ctrl-Z and `fg` mean it as well."""
        code = f"import sys; sys.path[:] = {sys.path!r}; from submission.workers import serve; serve()"
        ours = sys.orig_argv[1:]  # so that ps and pkill -f know whose it is
        worker = Child(code, ours, {**os.environ, "OMP_NUM_THREADS": str(self.threads)})
        processes.register(worker)
        return worker

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self.busy:
                selector.register(worker.process.stdout, selectors.EVENT_READ)
                if worker.unsent:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE)
            selector.select(TICK)

    def _keep(self, worker: _Worker) -> None:
        if self.fresh:
            worker.process.close()
        else:
            self._idle.append(worker)

    def _replace(self, worker: _Worker, why: str) -> None:
        """Give the job of a worker that is lost to another; UserError if it has lost too many."""
        self.busy.remove(worker)
        worker.process.close()
        job = worker.job
        job.lost += 1
        if job.lost > RETRIES:
            raise UserError(
                f"{job.name}: lost {job.lost} workers; the last one {why}. Run the command again: it goes on where it"
                " was; fewer --jobs need less memory"
            )
        note(f"{job.name}: its worker {why}; another one takes over")
        self.start(job)


def _how_it_ended(process: Child) -> str:
    code = process.wait(1.0)
    return "closed its pipe" if code is None else processes.how_it_ended(code)


def _take_answer(buffer: bytearray) -> tuple[bool, Any] | None:
    """The answer in what a worker has sent, if it is there as a whole; signs of life before it are dropped."""
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        message = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        if message:
            good, value = pickle.loads(message)
            return good, value
    return None


def serve() -> None:
    """What a worker does until its parent is gone: answer one call after the other from stdin on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which decides what becomes of us
    calls, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a job prints is no answer
    sending = threading.Lock()

    def send(message: bytes) -> None:
        rest = memoryview(_LENGTH.pack(len(message)) + message)
        with sending:
            while rest:
                rest = rest[os.write(answers, rest) :]

    def beat() -> None:
        with contextlib.suppress(OSError):
            while True:
                send(b"")
                time.sleep(BEAT)
        os.kill(os.getpid(), signal.SIGTERM)  # the parent is gone: training saves, everything else just ends
        time.sleep(LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=beat, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while header := calls.read(_LENGTH.size):
            send(pickle.dumps(_answer(calls.read(*_LENGTH.unpack(header)))))


def _answer(call: bytes) -> tuple[bool, Any]:
    """Whether the call went well, and what it returned or raised."""
    try:
        function, arguments = pickle.loads(call)
        return True, function(*arguments)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return False, RuntimeError(f"{type(error).__name__}: {error}")
        return False, error
