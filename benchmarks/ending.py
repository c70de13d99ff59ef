"""How long measuring takes to begin, and to end with all that it started, whatever ends it.

Each run measures one made-up picture many times over in two processes. "first row" is from the start of the command to
the first line of its table, "the end" from a signal to the command alone until the last of its processes has ended.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.arguments import count
from submission import console
from submission.errors import UserError

#: Seconds after which an end is no longer waited for.
LONGEST = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ending",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.ending",
    )
    parser.add_argument("--runs", type=count, default=3, help="of each kind (default 3)")
    options = parser.parse_args()
    print(f"{'signal':10}{'first row':>12}{'the end':>12}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        for _ in range(options.runs):
            first, end = run(number)
            print(f"{number.name:10}{first:10.2f} s{end:10.2f} s", flush=True)
    return 0


def run(number: signal.Signals) -> tuple[float, float]:
    """Seconds from the start to the first row, and from `number`, sent to the command alone, to the end of all."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "noise.png")
        table = folder / "table.csv"
        factors = ",".join(f"{k / 100}" for k in range(1, 100))
        arguments = [folder / "noise.png", "-o", table, "--jobs", 2, "--refine", 4, "--factors", factors]
        command = [sys.executable, "-m", "ratecontrol.measure", *map(str, arguments)]
        start = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while not table.exists() or table.read_bytes().count(b"\n") < 2:
                if process.poll() is not None:
                    raise UserError("ratecontrol.measure ended before it was to; run it by itself to see why")
                time.sleep(0.01)
            sent = time.monotonic()
            every = [process.pid, *below(process.pid)]
            process.send_signal(number)
            while any(map(runs, every)) and time.monotonic() - sent < LONGEST:
                process.poll()
                time.sleep(0.01)
            end = time.monotonic() - sent
            for pid in filter(runs, every):
                os.kill(pid, signal.SIGKILL)
            return sent - start, end


def below(parent: int) -> list[int]:
    """All processes that come from `parent`."""
    every = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    children = [pid for pid in every if stat(pid)[1:2] == [str(parent)]]
    return children + [pid for child in children for pid in below(child)]


def runs(pid: int) -> bool:
    return bool(stat(pid)) and stat(pid)[0] not in "ZX"


def stat(pid: int) -> list[str]:
    """What Linux tells of a process, from its state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


if __name__ == "__main__":
    console.run(main)
