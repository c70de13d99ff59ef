"""How every command of this project talks to a person: one line for an error, a progress bar for anything long."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from submission import processes
from submission.errors import DISK_FULL, UserError

T = TypeVar("T")

#: Nothing is drawn before this many seconds, so that quick commands stay quiet.
QUIET_SECONDS = 1.0

#: Seconds in which a command ends by itself after Ctrl-C or SIGTERM; then it is cut off.
GOODBYE = 1.3

#: Back to the start of the line on a terminal, and erase what stands there.
ERASE_LINE = "\r\x1b[K"


def program(name: str) -> str:
    """What a command is called in its help: `clic-encode` where it was started by that name, else the module."""
    script = f"clic-{name}"
    return script if Path(sys.argv[0]).name == script else f"python -m submission.{name}"


def word(path: Path) -> str:
    """A path as a word of a command line, which no name makes an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def run(main: Callable[[], int]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    0 done; 1 done, but a limit is broken; 2 bad input or usage (one line on stderr); 130 interrupted.
    """
    # As Ctrl-C: nothing half-written stays. The first process of a container would not even notice the signal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    said = threading.Event()
    with _cut_off(said) as called:
        code = _exit_code(main, said)
    if called.is_set():  # Python's own end takes a second with all the libraries that there are
        processes.kill_all()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code(main: Callable[[], int], said: threading.Event) -> int:
    """What `main` returns, or the code of what it raised, told on stderr; `said` is set once that is an interrupt."""
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code = fail(str(error))
    except KeyboardInterrupt:
        said.set()
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
    return code


@contextlib.contextmanager
def _cut_off(said: threading.Event) -> Iterator[threading.Event]:
    """Leave the process GOODBYE after SIGINT or SIGTERM, with all that it started, whatever holds it up.

    A library's call may take longer than that, and so may the threads that Python waits for at the end. A main that
    saves its work first has the time that it needs (`patient`). Yields whether there was a signal.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    called = threading.Event()

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                called.set()
                time.sleep(GOODBYE)
                if not said.is_set():  # by a thread of its own, since whoever should read it may not
                    words = threading.Thread(target=fail, args=("interrupted",), daemon=True)
                    words.start()
                    words.join(0.1)
                processes.kill_all()
                os._exit(130)
        os.close(reader)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield called
    finally:
        if not called.is_set():
            signal.set_wakeup_fd(before)
            os.close(writer)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Nothing is cut off in this block: it ends by itself after a signal."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


def note(message: str) -> None:
    """Print one line to stderr that is no error, in place of a progress line if one stands there."""
    print(f"{_eraser()}note: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> int:
    """Print one error line to stderr, in place of a progress line if one stands there; returns the exit code 2."""
    print(f"{_eraser()}error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2


def _eraser() -> str:
    return ERASE_LINE if sys.stderr.isatty() else ""


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
    """A progress line on stderr with an estimate of the time that remains; `note` holds a short extra text.

    Whoever knows better sets `left`, in seconds.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.note = what, total, done, ""
        self.left: float | None = None
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
        left = elapsed / made * (self.total - self.done) if made and self.left is None else self.left
        times = f"{clock(elapsed)} elapsed" + (f", {clock(left)} left" if left is not None else "")
        line = f"{self.what} {self.done}/{self.total}  {times}  {self.note}"
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
