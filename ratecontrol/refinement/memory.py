"""Memory that is freed stays with the process for a while."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# of mallopt(3), with the defaults that glibc documents
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 128 * 2**10, _MMAP_MAX: 65536}

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """While it lasts, glibc keeps what is freed instead of handing it back to the kernel.

    A pass over a large picture allocates and frees gigabytes of activations, each larger than the 32 MiB from which
    glibc maps and unmaps every block. The kernel clears each page of them anew, which took as long as the arithmetic.
    Nothing changes where there is no glibc.
    """
    if not hasattr(_libc, "mallopt"):
        yield
        return
    assert _libc is not None
    for option, value in _KEPT.items():
        _libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            _libc.mallopt(option, value)
        _libc.malloc_trim(0)
