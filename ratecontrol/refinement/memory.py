"""What refining takes of memory, and how what is freed stays with the process for a while."""

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator

from submission.config import ModelConfig
from submission.memory import REST

# of mallopt(3), with the defaults that glibc documents
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 128 * 2**10, _MMAP_MAX: 65536}

#: Bytes a pixel that MS-SSIM and the latents take, and features of g_s a pixel and channel that wait for their
#: gradients: what was measured (`docs/ratecontrol.md`), rounded up.
_SIMILARITY, _FEATURES = 400, 26

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def refining_bytes(config: ModelConfig, pixels: int, fast: bool) -> int:
    """Bytes that refining a block of so many pixels takes at most; `fast` if g_s works in bfloat16."""
    a, b, c = config.synthesis
    features = _FEATURES * (a / 64 + b / 16 + c / 4)
    return math.ceil(REST + pixels * (_SIMILARITY + (2 if fast else 4) * features))


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
