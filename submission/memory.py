"""What a picture will need of memory, and what there is: so that what does not fit is refused before the work."""

import math
import sys
from pathlib import Path

from submission.config import PAD, ModelConfig
from submission.cores import CGROUP
from submission.tiles import BLOCK, KEPT_BYTES, TILE

#: Bytes that code, libraries and weights take, and what memory management wastes.
REST = 3 * 2**27

#: Pixels that a block has beside it, at most: 11 latents and a little.
_MARGIN = 192


def encoding_bytes(config: ModelConfig, height: int, width: int) -> int:
    """Bytes that encoding takes at most, beside the picture."""
    pixels, block = _pixels(height, width), _block(height, width)
    a, b, c = config.analysis
    between = 4 * block * max(a / 4 + b / 16, b / 16 + c / 64)
    transform = 3 * pixels + 16 * config.M * pixels / 256 + between + _tile(pixels, max(config.analysis))
    return math.ceil(REST + max(transform, _coding(config, pixels)))


def decoding_bytes(config: ModelConfig, height: int, width: int, fast: bool) -> int:
    """The same for decoding, the picture included; `fast` if the post-filter works in bfloat16."""
    pixels, block = _pixels(height, width), _block(height, width)
    picture, digits = 12 * pixels, 2 if fast else 4
    a, b, c = config.synthesis
    between = 4 * block * (12 / 4 + max(a / 64 + b / 16, b / 16 + c / 4))
    synthesis = picture + 12 * config.M * pixels / 256 + between + _tile(pixels, max(config.synthesis))
    need = [_coding(config, pixels), synthesis]
    if config.grdn is not None:
        grdn = config.grdn
        reach = 2 * (grdn.groups * grdn.blocks * grdn.layers + 1)
        features = 3 * (grdn.channels * grdn.blocks + grdn.growth * grdn.layers)
        tile = min(pixels / 4, (TILE + reach) ** 2) * features * digits
        kept = min(KEPT_BYTES, pixels * grdn.channels * digits)
        half = pixels / 4 * grdn.channels * digits
        need.append(picture + 4 * config.M * pixels / 256 + half + max(tile, kept))
    return math.ceil(REST + max(*need, picture + 6 * pixels))


def _pixels(height: int, width: int) -> float:
    """Pixels of the padded picture."""
    return float(math.ceil(height / PAD) * math.ceil(width / PAD) * PAD**2)


def _block(height: int, width: int) -> float:
    """Pixels for which the features between stages are held."""
    return min(_pixels(height, width), float(BLOCK + 2 * _MARGIN) ** 2)


def _tile(pixels: float, channels: int) -> float:
    """A handful of features of one tile."""
    return 4 * 8 * min(pixels, (TILE + 16) ** 2) * channels


def _coding(config: ModelConfig, pixels: float) -> float:
    """Bytes of the entropy coder: sums of the hyper features for each group, those features, y six times."""
    return pixels / 256 * (4 * config.estimator * config.groups + 24 * config.M)


def free_bytes(cgroup: Path = CGROUP, proc: Path = Path("/proc")) -> float:
    """Memory that this process can still have: of the machine, its control group and its address space.

    Infinity where the system does not say.
    """
    return min(_of_machine(proc), _of_group(cgroup), _of_address_space(proc))


def _of_machine(proc: Path) -> float:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        return 1024.0 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    except (OSError, ValueError, KeyError, IndexError):
        return math.inf


def _of_group(cgroup: Path) -> float:
    """Of either version of control groups. What the group has cached of files it can give back."""
    for most, used, cached in (
        ("memory.max", "memory.current", "memory.stat"),
        *((f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")),),
    ):
        try:
            limit = int((cgroup / most).read_text())
            lines = (cgroup / cached).read_text().splitlines()
            statistics = {name: int(value) for name, value in (line.split() for line in lines)}
            files = statistics.get("inactive_file", 0) + statistics.get("active_file", 0)
            return float(limit - int((cgroup / used).read_text()) + files)
        except (OSError, ValueError):  # "max": no limit
            continue
    return math.inf


def _of_address_space(proc: Path) -> float:
    if sys.platform == "win32":
        return math.inf
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        used = int((proc / "self" / "statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return math.inf
    return math.inf if limit == resource.RLIM_INFINITY else float(limit - used)


def shortage(needed: int, what: str) -> str | None:
    """One line that says what is lacking, or None where `needed` bytes are there."""
    free = free_bytes()
    if needed <= free:
        return None
    return f"{what} takes about {needed / 1e9:.1f} GB of memory, and {max(free, 0.0) / 1e9:.1f} GB are free"
