"""The errors a user can cause. Each carries one line that says what is wrong and what to do next."""

import contextlib
from collections.abc import Iterator


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
        raise UserError(f"cannot be {doing} here: {str(error).splitlines()[0]}") from None
