"""How many cores this process was given: what `docker run --cpus` or `--cpuset-cpus`, or a batch system, allows."""

import os
from pathlib import Path

#: Where Linux shows a process its own control group.
CGROUP = Path("/sys/fs/cgroup")


def given_cores(cgroup: Path = CGROUP) -> int:
    """Cores to use: those of the affinity mask, or fewer where a quota of the control group is less than they give.

    A quota leaves all cores visible; with a thread on each of them, the threads spend their time stopped.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, round(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores of the quota, of either version of control groups; None where there is none."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None  # "max" and -1: no quota
    except (OSError, ValueError):
        return None
