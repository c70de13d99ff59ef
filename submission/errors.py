"""The errors a user can cause. Each carries one line that says what is wrong and what to do next."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

#: What the system says when a disk, or what a user may have of it, is full.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input or usage: the command prints the message as one line and exits with code 2."""


class BitstreamError(UserError):
    """A stream that is damaged, truncated, foreign, or made with other weights."""


class WeightsError(UserError):
    """A weights folder or model file that is missing, damaged or of another version."""


class ImageError(UserError):
    """A picture that cannot be read, or that this codec does not take."""


@contextlib.contextmanager
def guarded(doing: str) -> Iterator[None]:
    """Turn whatever keeps one file from being `doing` (encoded, decoded), but not others, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(error.strerror or str(error)) from None
    except MemoryError:
        raise UserError("not enough memory for this picture") from None
    except RuntimeError as error:  # torch, which has no memory error of its own on a CPU
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot be {doing} here: {reason}") from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a picture or stream before whatever keeps it from being worked on, as an ImageError."""
    try:
        yield
    except UserError as error:
        raise ImageError(f"{path}: {error}") from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps this one file from being written into a UserError; a full disk concerns all of them."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
