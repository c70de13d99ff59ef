"""Run a submission's decoder as the judge does, then score what it wrote.

The submission is copied to a fresh folder and `./decode` runs there without arguments in a process of its own: an
environment of PATH alone, 2 cores, 12 GB of memory, 5 hours. Where the machine allows it (`unshare`), the process has
no network and finds every original emptied. A decoder that fails, or whose pictures are not all there in the right
sizes, fails the submission.
"""

import argparse
import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.score import check_cap, find_streams, pool, score_pictures, table
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.decoder import MAX_DECODER_BYTES
from submission import console
from submission.errors import UserError
from submission.files import list_images
from submission.processes import Silence, check_not_stopped, finish, kill, register, tied, watched

CORES = 2
MEMORY_BYTES = 12 * 1000**3
TIME_SECONDS = 5 * 3600

#: The decoder finds this Python as `python3`, and the system's tools.
PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])

#: Empties the pictures named as arguments, for this process alone, then becomes the decoder.
HIDE_AND_DECODE = 'for original; do mount --bind /dev/null "$original" || exit 125; done; exec ./decode'


class TooSlow(UserError):
    """The decoder was stopped at the time limit."""


@dataclass(frozen=True)
class Run:
    """One run of a decoder: the folder it ran in, wall seconds, its largest process, and how far it was shut in."""

    folder: Path
    seconds: float
    peak_bytes: int
    isolated: bool


@contextlib.contextmanager
def decoded(submission: Path, originals: Path, seconds: float = TIME_SECONDS) -> Iterator[Run]:
    """Run `submission`'s decoder in a fresh copy of its folder, which lives as long as the context.

    Raises UserError with the decoder's last words if it fails, TooSlow if it needs more than `seconds`.
    """
    if not os.access(submission / "decode", os.X_OK):
        raise UserError(f"{submission}: no executable named decode in this folder")
    with tempfile.TemporaryDirectory(prefix="judge-") as temporary:
        folder = Path(temporary) / "submission"
        shutil.copytree(submission, folder)
        prefix = isolation()
        pictures = list_images([originals])
        hidden = [str(path.resolve()) for path in pictures if prefix]
        command = [*prefix, "sh", "-c", HIDE_AND_DECODE, "sh", *hidden]
        log = Path(temporary) / "log"
        start = time.monotonic()
        code, peak = _run(command, folder, log, seconds, len(pictures))
        elapsed = time.monotonic() - start
        if code:
            lines = log.read_text(errors="replace").strip().splitlines()
            why = " / ".join(lines[-3:]) or "it said nothing"
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
            raise UserError(f"{submission}: the decoder {how}: {why}")
        yield Run(folder, elapsed, peak, bool(prefix))


@functools.cache
def isolation() -> list[str]:
    """The command prefix that shuts a process off from the network and lets it hide files; empty if not allowed."""
    prefix = ["unshare", "--map-root-user", "--net", "--mount"]
    command, pipe = [*prefix, "sh", "-c", "mount --bind /dev/null /dev/null"], subprocess.PIPE
    try:
        probe = subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=tied())
    except FileNotFoundError:
        return []
    with watched(probe):
        finish(probe, prefix[0])
    return prefix if probe.returncode == 0 else []


def _run(command: list[str], folder: Path, log: Path, seconds: float, pictures: int) -> tuple[int, int]:
    """Run `command` in `folder` under the limits; returns its exit code and the bytes of its largest process.

    `pictures` is how many PNGs it will write, for the progress line.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limits(),
        )
    register(process)
    bar, silence = console.Progress("decoding", pictures), Silence()
    deadline = time.monotonic() + seconds
    peak = 0
    try:
        while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, high_water(process.pid))
            if time.monotonic() > deadline:
                raise TooSlow(f"the decoder was stopped at the limit of {seconds:g} s")
            check_not_stopped(process, "the decoder", silence)
            time.sleep(0.05)
            bar.advance(sum(1 for _ in folder.rglob("*.png")) - bar.done)
        _, status, usage = done
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        bar.close()
        with contextlib.suppress(ProcessLookupError):  # what the decoder, or an interrupt of ours, left running
            os.killpg(process.pid, signal.SIGKILL)
        kill(process)
    return process.returncode, peak or usage.ru_maxrss * 1024


def high_water(process: int) -> int:
    """The most bytes that the process or one below it has had in memory so far; 0 where the system does not tell.

    What the system counts for a process that has ended includes the memory of the one that started it.
    """
    most, family = 0, [process]
    while family:
        place = Path(f"/proc/{family.pop()}")
        with contextlib.suppress(OSError, StopIteration):
            lines = (place / "status").read_text(errors="replace").splitlines()
            most = max(most, 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]))
            family += map(int, (place / "task" / place.name / "children").read_text().split())
    return most


def limits() -> Callable[[], None]:
    """What the child does before the decoder: take the judge's memory and cores, and end when we do."""
    end_with_us = tied()

    def before_exec() -> None:
        end_with_us()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])

    return before_exec


def decoder_size(submission: Path) -> int:
    """The bytes of everything in `submission` but the streams."""
    streams = set(find_streams(submission))
    return sum(p.stat().st_size for p in submission.rglob("*") if p.is_file() and p not in streams)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.simulate",
        description=__doc__,
        epilog="""example:
  python -m ratecontrol.measure photos -o table.csv
  python -m ratecontrol.allocate table.csv --bpp 0.15 -o choice.csv
  python -m ratecontrol.package photos choice.csv -o submission-0.15
  python -m eval.simulate submission-0.15 --originals photos --bpp 0.15
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("submission", type=Path, metavar="SUBMISSION", help="what ratecontrol.package wrote")
    parser.add_argument("--originals", type=Path, required=True, metavar="FOLDER", help="the original pictures")
    parser.add_argument("--bpp", metavar="RATE", help="the cap in bits per pixel of the set")
    parser.add_argument("--seconds", type=float, default=TIME_SECONDS, help="the time limit (default: %(default)s)")
    options = parser.parse_args()

    bpp = parse_bpp(options.bpp) if options.bpp is not None else None
    streams = find_streams(options.submission)
    try:
        with decoded(options.submission, options.originals, options.seconds) as run:
            scores = score_pictures(options.originals, run.folder, streams)
    except TooSlow as error:
        console.fail(str(error))
        return 1
    total = pool(scores)
    size = sum(path.stat().st_size for path in streams)
    print(table(scores, total, size))
    print(
        f"decoded in {run.seconds:.1f} s ({run.seconds / len(scores):.2f} s an image), largest process"
        f" {run.peak_bytes / 1e6:,.0f} MB; " + ("no network, originals hidden" if run.isolated else "not isolated")
    )
    code = 0 if bpp is None else check_cap(size, byte_cap(bpp, total.pixels))
    if (decoder := decoder_size(options.submission)) > MAX_DECODER_BYTES:
        print(f"the decoder has {decoder:,} bytes, over the limit of {MAX_DECODER_BYTES:,}")
        code = 1
    return code


if __name__ == "__main__":
    console.run(main)
