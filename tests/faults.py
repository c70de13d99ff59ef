"""Tests that kill and stop processes: looking at these, and jobs for them, without the seconds that torch takes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def state(pid: int) -> str:
    """The letter that Linux gives a process, such as T for one that is stopped; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_stopped(pid: int) -> bool:
    return state(pid) == "T"


def is_gone(pid: int) -> bool:
    return state(pid) in ("", "Z", "X")


def assert_gone(pid: int, seconds: float = 30) -> None:
    """It ends within `seconds`: on an idle machine it is two at most."""
    wait_for(lambda: is_gone(pid), seconds)


def children(parent: int) -> list[int]:
    """The processes that `parent` has started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def square(number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return number * number


def who() -> int:
    return os.getpid()


def said(errors: str) -> list[str]:
    """The notes and errors in what a command wrote to stderr, without the lines of its progress."""
    return [line for line in errors.splitlines() if line.startswith(("note: ", "error: "))]


def call_in(folder: Path, seconds: float, deadly: int = 0) -> int:
    """Leave this process's id in `folder`, work for a while, die at the first `deadly` calls. How many there were."""
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)
    calls = len(list(folder.iterdir()))
    if calls <= deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def large(folder: Path) -> bytes:
    (folder / str(os.getpid())).touch()
    return bytes(10**7)


def measure_slowly(task: Any) -> Any:
    """As `ratecontrol.measure.measure`, but with time to be disturbed in."""
    from ratecontrol import measure

    time.sleep(0.7)
    return measure.measure(task)


def fail_with(error: Exception) -> None:
    raise error


class Odd(Exception):
    """What does not come back from pickle: it wants two arguments and hands on one."""

    def __init__(self, why: str, more: str) -> None:
        super().__init__(why + more)


def fail_oddly() -> None:
    raise Odd("not to be ", "pickled")


def stop_one_and_end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Stop the first child of `process` and send it `number`; all of them end. What it said on stderr."""
    every = children(process.pid)
    os.kill(every[0], signal.SIGSTOP)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    for pid in every:
        assert_gone(pid)
    return errors
