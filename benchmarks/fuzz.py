"""Damage streams in many ways and decode them: every case must end in a BitstreamError or in the right picture."""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from submission import bitstream
from submission.codec import Codec
from submission.console import progress, run
from submission.errors import BitstreamError
from submission.ladder import Ladder

#: A case that takes longer than this many seconds counts as a hang.
HANG = 20.0


def picture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: coarse and fine noise."""
    coarse = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
    return np.clip(coarse[:height, :width] + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def damaged(rng: np.random.Generator, stream: bytes) -> tuple[str, bytes]:
    """One of seven kinds of damage."""
    data = bytearray(stream)
    kind = ("flip", "bytes", "truncate", "append", "random", "header", "resealed")[rng.integers(7)]
    if kind == "flip":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] = rng.integers(256)
    elif kind == "truncate":
        data = data[: rng.integers(len(data))]
    elif kind == "append":
        data += rng.bytes(int(rng.integers(1, 20)))
    elif kind == "random":
        data = bytearray(rng.bytes(int(rng.integers(0, 200))))
    elif kind == "header":
        data[rng.integers(bitstream.HEADER_BYTES)] = rng.integers(256)
    else:  # wrong content under a right checksum: what an attacker, or 1 in 65,536 damages, gets through
        header, payload = bitstream.read(stream)
        changed = bytearray(payload)
        changed[rng.integers(len(changed))] ^= int(rng.integers(1, 256))
        return kind, bitstream.write(header, bytes(changed))
    return kind, bytes(data)


def attempt(codec: Codec, stream: bytes, right: NDArray[np.uint8]) -> str:
    """How decoding `stream` ends."""
    start = time.monotonic()
    try:
        result = "right picture" if np.array_equal(codec.decompress(stream), right) else "WRONG PICTURE"
    except BitstreamError:
        result = "refused"
    except Exception as error:
        result = f"CRASH {type(error).__name__}: {error}"
    return "HANG" if time.monotonic() - start > HANG else result


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.fuzz --cases 100000",
    )
    parser.add_argument("--cases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="a ladder (default: tiny untrained models of every network)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        if options.weights is None:
            from tests.conftest import make_ladder, make_networks

            folders = [make_ladder(Path(temporary) / "weights"), make_networks(Path(temporary) / "networks")]
        else:
            folders = [options.weights]
        ladders = [Ladder.load(folder) for folder in folders]
        codecs = [ladder.codec(quality) for ladder in ladders for quality in ladder.qualities]
    sources = []
    for codec in codecs:
        for height, width in ((16, 16), (64, 64), (70, 40), (130, 100)):
            encoded = codec.encode(picture(rng, height, width))
            sources.append((codec, encoded.stream, encoded.reconstruction))
    ends: Counter[tuple[str, str]] = Counter()
    for _ in progress(range(options.cases), "fuzzing"):
        codec, stream, right = sources[rng.integers(len(sources))]
        kind, data = damaged(rng, stream)
        ends[kind, attempt(codec, data, right)] += 1
    for (kind, end), count in sorted(ends.items()):
        print(f"{kind:10}  {end:40}  {count:8,}")
    bad = sum(count for (_, end), count in ends.items() if end not in ("refused", "right picture"))
    print(f"{options.cases:,} cases, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
