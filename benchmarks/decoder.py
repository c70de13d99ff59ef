"""What a judge sees of the decoder: seconds from its start to the first picture, and time and memory of a large one.

Each run is a process of its own under the judge's limits (2 cores, 12 GB of address space). The large stream is made
of the latents of PICTURE, repeated, so that a large picture need not be encoded.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.arguments import count, size
from eval.simulate import high_water, limits
from submission.codec import Codec
from submission.console import run
from submission.errors import UserError
from submission.files import Picture, read_image
from submission.ladder import DEFAULT_WEIGHTS, Ladder


def repeated_stream(codec: Codec, picture: Picture, height: int, width: int) -> bytes:
    """The stream of a picture [height, width] whose latents repeat those of `picture`, cut to multiples of 64."""
    rows, columns = (side // 64 for side in picture.shape[:2])
    if not rows or not columns:
        raise UserError("the picture is smaller than 64x64; take a larger one")
    y, z = codec.latents(np.ascontiguousarray(picture[: 64 * rows, : 64 * columns]))
    down, across = -(-height // 64), -(-width // 64)
    times = (-(-down // rows), -(-across // columns), 1)
    y, z = np.tile(y, times)[: 4 * down, : 4 * across], np.tile(z, times)[:down, :across]
    return codec.write(y, z, height, width)[0]


def limited_run(command: list[str]) -> tuple[float, float, float]:
    """Run a command; returns wall seconds and processor seconds of the whole process, and its peak memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=limits(), stdout=subprocess.DEVNULL)
    peak = 0
    while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
        peak = max(peak, high_water(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    _, status, usage = done
    if os.waitstatus_to_exitcode(status) != 0:
        raise UserError(f"failed: {' '.join(command)}")
    return seconds, usage.ru_utime + usage.ru_stime, peak / 1e9


def decode(command: list[str], stream: bytes) -> tuple[float, float, float]:
    """`limited_run` of a decoder on one stream."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "a.clic").write_bytes(stream)
        used = limited_run([*command, temporary, "-o", temporary])
        if not (Path(temporary) / "a.png").exists():
            raise UserError("the decoder wrote no picture")
    return used


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.decoder photo.png --decoder dist/0.15/decode --quality 3",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="whose latents to repeat")
    parser.add_argument("--decoder", metavar="COMMAND", help="default: submission.decode of this Python")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--quality", type=int, help="model (default: that of the highest rate)")
    parser.add_argument(
        "--size", type=size, default="8192x8192", metavar="WxH", help="of the large picture (default: %(default)s)"
    )
    parser.add_argument("--runs", type=count, default=5, help="starts to measure (default: %(default)s)")
    options = parser.parse_args()
    weights = ["--weights", str(options.weights.resolve())]
    command = shlex.split(options.decoder or "") or [sys.executable, "-m", "submission.decode", *weights]
    ladder = Ladder.load(options.weights)
    codec = ladder.codec(ladder.qualities[-1] if options.quality is None else options.quality)
    picture = read_image(options.picture)

    small = codec.compress(np.ascontiguousarray(picture[:64, :64]))
    starts = [decode(command, small) for _ in range(options.runs)]
    wall, busy, memory = (statistics.median(values) for values in zip(*starts, strict=True))
    print(
        f"a 64x64 picture: {wall:.2f} s from start to end, {busy:.2f} s of them computing, {memory:.2f} GB"
        f" (medians of {options.runs})",
        flush=True,
    )
    width, height = options.size
    stream = repeated_stream(codec, picture, height, width)
    wall, busy, memory = decode(command, stream)
    print(f"{width}x{height}: {len(stream):,} bytes in {wall:.1f} s, {busy:.1f} s computing, {memory:.2f} GB at most")
    return 0


if __name__ == "__main__":
    run(main)
