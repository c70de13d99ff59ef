"""What it takes to encode a large picture, and to decode it: time and memory of both commands under the judge's limits.

The picture is PICTURE, repeated up to the size.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.arguments import size
from benchmarks.decode import random_network
from benchmarks.decoder import limited_run
from submission import memory
from submission.config import PRESETS
from submission.console import run
from submission.files import read_image, write_png
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from training.export import export_ladder


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.encoder demo/photos/astronaut.png --preset base",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--quality", type=int, help="model (default: that of the highest rate)")
    parser.add_argument("--preset", choices=PRESETS, help="a model of random weights of this size instead")
    parser.add_argument("--size", type=size, default="8192x8192", metavar="WxH", help="default: %(default)s")
    parser.add_argument("--only", choices=("encode",), help="do not decode it again")
    options = parser.parse_args()
    width, height = options.size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = options.weights.resolve()
        if options.preset:
            weights = folder / "weights"
            network, crops = random_network(options.preset)
            with contextlib.redirect_stdout(io.StringIO()):
                export_ladder([(network, 1.0, {"stage": "untrained", "steps": 0}, crops)], weights)
        ladder = Ladder.load(weights)
        quality = ladder.qualities[-1] if options.quality is None else options.quality
        picture = read_image(options.picture)
        times = (-(-height // picture.shape[0]), -(-width // picture.shape[1]), 1)
        write_png(folder / "a.png", np.ascontiguousarray(np.tile(picture, times)[:height, :width]))
        codec = ladder.codec(quality)
        more = ["--weights", str(weights)]
        encoding = memory.encoding_bytes(codec.config, height, width)
        decoding = memory.decoding_bytes(codec.config, height, width, codec.fast)
        for what, estimate, arguments in (
            ("encode", encoding, ["a.png", "--quality", str(quality)]),
            ("decode", decoding, ["a.clic"]),
        ):
            command = [sys.executable, "-m", f"submission.{what}", str(folder / arguments[0]), *arguments[1:]]
            wall, busy, peak = limited_run([*command, "-o", str(folder), *more])
            print(
                f"{what} {width}x{height}: {wall:.1f} s, {busy:.1f} s computing, {peak:.2f} GB at most"
                f" (estimated beforehand: {estimate / 1e9:.2f} GB beside program and picture)",
                flush=True,
            )
            if what == options.only:
                break
    return 0


if __name__ == "__main__":
    run(main)
