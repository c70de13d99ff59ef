"""Compress pictures: photo.png -> DIR/photo.clic."""

import argparse
from pathlib import Path

from submission.console import progress, run
from submission.errors import ImageError
from submission.files import list_images, make_folder, read_image, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m submission.encode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m submission.encode photos -o streams --quality 2",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the streams")
    parser.add_argument("-q", "--quality", type=int, help="model of the ladder, 0 the smallest (default: the middle)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    ladder = Ladder.load(options.weights)
    quality = len(ladder.qualities) // 2 if options.quality is None else options.quality
    codec = ladder.codec(quality)
    paths = list_images(options.inputs)
    folder = make_folder(options.output)
    total, pixels = 0, 0
    for path in progress(paths, "encoding"):
        image = read_image(path)
        try:
            stream = codec.compress(image)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        except RuntimeError as error:  # torch, which has no memory error of its own on a CPU
            raise ImageError(f"{path}: cannot be encoded here: {str(error).splitlines()[0]}") from None
        write_bytes(folder / f"{path.stem}.clic", stream)
        total += len(stream)
        pixels += image.shape[0] * image.shape[1]
    print(f"{len(paths)} pictures, quality {quality}: {total:,} bytes, {8 * total / pixels:.4f} bpp")
    return 0


if __name__ == "__main__":
    run(main)
