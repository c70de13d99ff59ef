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


class Child:
    """Another Python, which runs `code`, with a pipe each to its stdin and from its stdout that never block.

    Nothing is waited for, not even its start. `subprocess.Popen` returns when the new process has got its own program,
    and one that is stopped before that has the caller wait, deaf to signals.
    """

    def __init__(self, code: str, arguments: list[str], environment: dict[str, str]) -> None:
        command = [sys.executable, "-c", code, *arguments]
        its_stdin, self.stdin = os.pipe()
        self.stdout, its_stdout = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                tie(signal.SIGCONT)  # one that is stopped when we die goes on, and finds itself alone
                os.dup2(its_stdin, 0)
                os.dup2(its_stdout, 1)
                os.execve(sys.executable, command, environment)
            finally:
                os._exit(127)
        for descriptor in (its_stdin, its_stdout):
            os.close(descriptor)
        for descriptor in (self.stdin, self.stdout):
            os.set_blocking(descriptor, False)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, once it has ended."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # of one whose parent was told to ignore its children's ends
                pid, status = self.pid, 0
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, seconds: float) -> int | None:
        """As `poll`, after its end or `seconds`."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End it at once."""
        kill(self)
        os.close(self.stdin)
        os.close(self.stdout)


Process = subprocess.Popen[bytes] | Child

_running: dict[int, Process] = {}  #: by process id


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


def register(process: Process) -> None:
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


def kill(process: Process) -> None:
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
