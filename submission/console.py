"""How every command of this project talks to a person: one line for an error, a progress bar for anything long."""

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from submission.errors import UserError

T = TypeVar("T")

#: Nothing is drawn before this many seconds, so that quick commands stay quiet.
QUIET_SECONDS = 1.0

#: What the system says when a disk, or what a user may have of it, is full.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Back to the start of the line on a terminal, and erase what stands there.
ERASE_LINE = "\r\x1b[K"


def run(main: Callable[[], int]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    0 done; 1 done, but a limit is broken; 2 bad input or usage (one line on stderr); 130 interrupted.
    """
    # As Ctrl-C: nothing half-written stays. The first process of a container would not even notice the signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code = fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        advice = "; free some space and run the command again" if error.errno in DISK_FULL else ""
        where = f"{error.filename}: " if error.filename else ""
        code = fail(f"{where}{error.strerror or error}{advice}")
    except MemoryError:
        code = fail("not enough memory for this picture")
    sys.exit(code)


def fail(message: str) -> int:
    """Print one error line to stderr, in place of a progress line if one stands there; returns the exit code 2."""
    erase = ERASE_LINE if sys.stderr.isatty() else ""
    print(f"{erase}error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, drawing one line on a terminal: what, done/total, elapsed, remaining.

    Off a terminal it prints a plain line about every 30 seconds instead.
    """
    if total is None:
        items = list(items)
        total = len(items)
    bar = Progress(what, total)
    with contextlib.closing(bar):
        for item in items:
            yield item
            bar.advance()


class Progress:
    """A progress line on stderr with an estimate of the time that remains; `note` holds a short extra text."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.note = what, total, done, ""
        self.first, self.start = done, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.drawn_at = self.start if not self.terminal else 0.0
        self.shown = False

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        self.note = self.note if note is None else note
        now = time.monotonic()
        every = 0.1 if self.terminal else 30.0
        if now - self.start >= QUIET_SECONDS and now - self.drawn_at >= every:
            self.drawn_at = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        elapsed = now - self.start
        made = self.done - self.first
        left = elapsed / made * (self.total - self.done) if made else 0.0
        line = f"{self.what} {self.done}/{self.total}  {clock(elapsed)} elapsed, {clock(left)} left  {self.note}"
        if self.terminal:
            full = int(24 * self.done / max(self.total, 1))
            line = f"[{'#' * full}{'.' * (24 - full)}] {line}"
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # a container's terminal may say 0
            print(ERASE_LINE + line[: columns - 1], end="", file=sys.stderr, flush=True)
            self.shown = True
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.shown:
            print(ERASE_LINE, end="", file=sys.stderr, flush=True)
            self.shown = False


def clock(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
