"""Programs that a command starts: none outlives it, and none that is stopped makes it wait for ever."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from submission.errors import UserError

#: Seconds without a sign of life after which nothing more is expected of a process.
PATIENCE = 60.0

#: Seconds between looks at what was started.
TICK = 0.5

#: A look counts for at most so many seconds: longer ones were spent asleep, or stopped, by this process itself.
LONGEST_LOOK = 2 * TICK

_PR_SET_PDEATHSIG = 1  #: of Linux's prctl(2)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

_running: dict[int, subprocess.Popen[bytes]] = {}


class Silence:
    """How long another process has given no sign of life, in seconds that this one was awake to notice it."""

    def __init__(self) -> None:
        self.broken()

    def broken(self) -> None:
        """There was a sign of life just now."""
        self.seconds, self.looked = 0.0, time.monotonic()

    def look(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self.looked, LONGEST_LOOK)
        self.looked = now
        return self.seconds


def tie(number: signal.Signals) -> None:
    """Have the system send this process `number` when its parent dies, even of SIGKILL (Linux alone)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number.value)


def tied() -> Callable[[], None]:
    """A `preexec_fn`: the new process is killed when this one dies."""
    parent = os.getpid()

    def before_exec() -> None:
        tie(signal.SIGKILL)
        if os.getppid() != parent:  # it has died already
            os._exit(1)

    return before_exec


def register(process: subprocess.Popen[bytes]) -> None:
    """Have `process` killed where the command is cut off."""
    _running[process.pid] = process


@contextlib.contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`process` does not outlive this block, nor the command that is cut off within it."""
    register(process)
    try:
        yield process
    finally:
        kill(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End `process`, stopped or not."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # the system keeps one that waits for a dead disk
        process.wait(1.0)
    _running.pop(process.pid, None)


def kill_all() -> None:
    """End everything that was registered, without waiting for it: the last act of a command that is cut off."""
    for process in list(_running.values()):
        process.kill()


def finish(process: subprocess.Popen[bytes], what: str) -> tuple[bytes, bytes]:
    """Wait for the end of `process`, whose stdin is no pipe, and return its output, where stdout and stderr are pipes.

    UserError if it is stopped (SIGSTOP) and nobody continues it for PATIENCE.
    """
    silence = Silence()
    while True:
        try:
            out, err = process.communicate(timeout=TICK)
            return out or b"", err or b""
        except subprocess.TimeoutExpired:
            check_not_stopped(process, what, silence)


def check_not_stopped(process: subprocess.Popen[bytes], what: str, silence: Silence) -> None:
    """Call it now and then: UserError once `process` has been stopped for PATIENCE, which `silence` counts."""
    if not _is_stopped(process.pid):
        silence.broken()
    elif silence.look() >= PATIENCE:
        raise UserError(
            f"{what} was stopped and not continued for {PATIENCE:g} s; run the command again: it goes on where it was"
        )


def how_it_ended(code: int) -> str:
    """The exit code of a process in words."""
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _is_stopped(pid: int) -> bool:
    """Whether a child of ours is stopped by a signal; False where the system cannot say."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
