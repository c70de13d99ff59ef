"""What a measurement depends on beside the code: the machine and the versions of everything that took part."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from submission import __version__

PACKAGES = ("torch", "numpy", "scipy", "constriction", "pillow")


def describe() -> dict[str, str]:
    """Facts about this machine and its software, by name."""
    packages = [f"clic-pipeline {__version__}"]
    for name in PACKAGES:
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"{name} (not installed)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "Processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory",
        "System": platform.platform(),
        "Python": platform.python_version(),
        "Packages": ", ".join(packages),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
