"""What the range coder in Python costs beside constriction's: PICTURE's latents, repeated to a larger size, are coded
with both in turn, and must give the same stream. Processor seconds on one core, the least of some runs.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.arguments import count, size
from benchmarks.decoder import repeated_stream
from submission import bitstream, coder_constriction, coder_python, latent_coding
from submission.codec import Codec, latent_size
from submission.console import run
from submission.files import read_image
from submission.ladder import DEFAULT_WEIGHTS, Ladder

CODERS = {"constriction": coder_constriction, "Python": coder_python}


class Clock:
    """Processor seconds spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object) -> object:
            start = time.process_time()
            result = function(*arguments)
            self.seconds += time.process_time() - start
            return result

        return timed


def use(module: ModuleType, clock: Clock) -> None:
    """Code with the coder of `module` from now on."""
    for name in ("Encoder", "Decoder"):
        side = getattr(module, name)
        methods = {m: clock.wrap(getattr(side, m)) for m in ("encode", "decode", "decode_alike") if hasattr(side, m)}
        setattr(latent_coding, name, type(name, (side,), methods))


def compare(codec: Codec, stream: bytes, repeats: int) -> None:
    """Print the table for one stream."""
    header, payload = bitstream.read(stream)
    places = latent_size(header.height, header.width)
    y, z = codec.entropy.decode(payload, places)
    jobs: dict[str, Callable[[], object]] = {
        "entropy encoding": lambda: codec.entropy.encode(y, z),
        "entropy decoding": lambda: codec.entropy.decode(payload, places),
        "whole decoder": lambda: codec.decompress(stream),
    }
    rate = 8 * len(stream) / (header.width * header.height)
    print(f"{header.width}x{header.height}, quality {header.quality}, {rate:.3f} bpp")
    print("                  coder         seconds  coder alone")
    for job, function in jobs.items():
        least = dict.fromkeys(CODERS, (float("inf"), 0.0))
        for _ in range(repeats):
            for name, module in CODERS.items():
                clock = Clock()
                use(module, clock)
                start = time.process_time()
                result = function()
                least[name] = min(least[name], (time.process_time() - start, clock.seconds))
                assert job != "entropy encoding" or result[0] == payload  # type: ignore[index]
        for name, (seconds, coder) in least.items():
            print(f"{job:16}  {name:12}  {seconds:7.2f}  {coder:11.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.coder photo.png --qualities 2 6",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="whose latents to repeat")
    parser.add_argument("--size", type=size, default="2048x1365", metavar="WxH", help="default: %(default)s")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--qualities", type=int, nargs="+", default=[2], metavar="Q", help="models (default: 2)")
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="runs each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ladder, picture = Ladder.load(options.weights), read_image(options.picture)
    width, height = options.size
    for quality in options.qualities:
        codec = ladder.codec(quality)
        compare(codec, repeated_stream(codec, picture, height, width), options.repeats)
    return 0


if __name__ == "__main__":
    run(main)
