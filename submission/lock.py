"""One process at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from submission.errors import UserError

#: A process that was told to stop finishes its step and saves: so long another one waits for it.
PATIENCE = 60.0


@contextmanager
def locked(path: Path, what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock file `path`; UserError if another process, which does `what`, keeps it for longer than `patience`
    seconds. A killed process holds nothing."""
    with path.open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"{path}: another process {what}; wait for it or stop it") from None
                time.sleep(0.2)
        yield
