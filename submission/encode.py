"""Compress pictures: photo.png -> DIR/photo.clic."""

import argparse
from pathlib import Path

from submission.console import fail, program, progress, run
from submission.errors import UserError, guarded, naming, writing
from submission.files import Picture, list_images, output_folder, read_image, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.target import Target, compress_under

EXAMPLES = """examples:
  python -m submission.encode photos -o streams --quality 2
  python -m submission.encode photo.png -o streams --bpp 0.15
"""


def compress(ladder: Ladder, path: Path, picture: Picture, quality: int, target: Target | None) -> tuple[int, bytes]:
    """The quality that the picture of `path` got, and its stream. ImageError for what keeps it from being encoded."""
    with naming(path), guarded("encoded"):
        return compress_under(ladder, picture, target) if target else (quality, ladder.codec(quality).compress(picture))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=program("encode"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the streams")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("-q", "--quality", type=int, help="model of the ladder, 0 the smallest (default: the middle)")
    size.add_argument("--bpp", metavar="RATE", help="for each picture, the best model of at most RATE bits per pixel")
    size.add_argument("--bytes", type=int, metavar="N", help="for each picture, the best model of at most N bytes")
    parser.add_argument("--as-stored", action="store_true", help="do not apply EXIF rotation and ICC profile")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    target = Target(options.bpp, options.bytes) if (options.bpp, options.bytes) != (None, None) else None
    ladder = Ladder.load(options.weights)
    quality = len(ladder.qualities) // 2 if options.quality is None else options.quality
    for needed in ladder.qualities if target else [quality]:
        ladder.codec(needed)  # bad weights are found before anything is written
    paths = list_images(options.inputs)
    folder = output_folder(options.output)
    lines, done, total, pixels = [], 0, 0, 0
    for path in progress(paths, "encoding"):
        try:  # one bad picture does not keep the others from being encoded
            picture = read_image(path, options.as_stored)
            chosen, stream = compress(ladder, path, picture, quality, target)
            with writing(file := folder / f"{path.stem}.clic"):
                write_bytes(file, stream)
        except UserError as error:
            fail(str(error))
            continue
        area = picture.shape[0] * picture.shape[1]
        if target:
            reached = f"{len(stream):,} bytes of {target.limit(area):,}, {8 * len(stream) / area:.4f} bpp"
            lines.append(f"{path.name}: quality {chosen}, {reached}")
        done, total, pixels = done + 1, total + len(stream), pixels + area
    for line in lines:
        print(line)
    if done:
        how = "each the best that fits" if target else f"quality {quality}"
        print(f"{done} of {len(paths)} pictures, {how}: {total:,} bytes, {8 * total / pixels:.4f} bpp")
    return 2 if done < len(paths) else 0


def command() -> None:
    """`clic-encode`."""
    run(main)


if __name__ == "__main__":
    command()
