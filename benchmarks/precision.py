"""What the post-filter in bfloat16 changes beside float32: the same output of g_s is filtered in both, for each picture
and model. In levels of 0..255. Needs a CPU that is fast at bfloat16 for nothing but the time it takes.
"""

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from metrics.clic import ms_ssim
from submission import codec as codec_module
from submission.codec import Codec
from submission.console import progress, run
from submission.files import Picture, list_images, read_image
from submission.grdn import GRDN
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.tiles import post_filter


def load(weights: Path, quality: int, fast: bool) -> Codec:
    """A model with the post-filter in bfloat16 or not, whatever this CPU is fast at."""
    with mock.patch.object(codec_module, "fast_bfloat16", lambda: fast):
        return Ladder.load(weights).codec(quality)


def measure(one: Codec, other: Codec, picture: Picture) -> list[float]:
    """Largest correction, largest difference before rounding and of pixels, share of samples that differ, and how far
    the scores are apart."""
    stream = one.compress(picture)
    header, symbols, z_hat = one.read(stream)
    y = torch.from_numpy(one.entropy.dequantize(symbols, z_hat)).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        x = one.g_s(y)
        filters = [codec.transforms.post_filter for codec in (one, other)]
        filtered = [post_filter(grdn, x.clone()) for grdn in filters if isinstance(grdn, GRDN)]
    place = slice(None), slice(header.height), slice(header.width)
    before, exact, fast = (255 * image[0][place].permute(1, 2, 0).double().numpy() for image in (x, *filtered))
    shown = [np.rint(np.clip(levels, 0, 255)).astype(np.uint8) for levels in (exact, fast)]
    apart = np.abs(shown[0].astype(np.int16) - shown[1])
    scores = [ms_ssim(picture, levels) for levels in shown]
    numbers = (np.abs(exact - before).max(), np.abs(exact - fast).max(), apart.max(), (apart > 0).mean())
    return [*map(float, numbers), abs(scores[0] - scores[1])]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.precision photos --qualities 0 3",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--qualities", type=int, nargs="+", help="default: all")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    pictures = [read_image(path) for path in list_images(options.inputs)]
    print("model  photos  correction  before rounding  pixels  samples  MS-SSIM")
    for quality in options.qualities or Ladder.load(options.weights).qualities:
        one, other = (load(options.weights, quality, fast) for fast in (False, True))
        rows = np.array([measure(one, other, picture) for picture in progress(pictures, f"q{quality}")])
        most, share = rows.max(0), rows[:, 3].mean()
        named = f"q{quality:<5} {len(rows):6}  {most[0]:10.1f}  {most[1]:15.3f}  {most[2]:6.0f}"
        print(f"{named}  {share:7.2%}  {most[4]:7.0e}")
    return 0


if __name__ == "__main__":
    run(main)
