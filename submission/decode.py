"""Decompress streams: photo.clic -> DIR/photo.png. Without arguments: every stream in the current folder."""

import argparse
import os
from pathlib import Path

import torch

from submission import __version__
from submission.console import fail, program, progress, run
from submission.cores import given_cores
from submission.errors import UserError, guarded, writing
from submission.files import Picture, list_files, output_folder, read_stream, write_png
from submission.ladder import DEFAULT_WEIGHTS, Ladder

SUFFIX = ".clic"


def decompress(ladder: Ladder, path: Path) -> Picture:
    """The picture of the stream in `path`. UserError for whatever keeps this one from being decoded."""
    with guarded("decoded"):
        return ladder.decompress(read_stream(path))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=program("decode"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m submission.decode streams -o pictures",
    )
    parser.add_argument("inputs", type=Path, nargs="*", metavar="STREAM|FOLDER", help="default: the current folder")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the PNGs (needed with STREAM or FOLDER; else the current one)",
    )
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--version", action="store_true", help="print the version and the ladder's hash")
    options = parser.parse_args()
    ladder = Ladder.load(options.weights)
    if options.version:
        print(f"version {__version__}, ladder {ladder.id}")
        return 0
    if options.inputs and options.output is None:
        raise UserError("give -o DIR for the decoded pictures")
    paths = list_files(options.inputs or [Path()], {SUFFIX}, f"streams (*{SUFFIX})")
    folder = output_folder(options.output or Path())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(given_cores())
    failed = 0
    for path in progress(paths, "decoding"):
        try:  # one bad stream does not keep the others from being decoded
            picture, target = decompress(ladder, path), folder / f"{path.stem}.png"
            with writing(target):
                write_png(target, picture)
        except UserError as error:
            fail(f"{path}: {error}")
            failed += 1
    print(f"decoded {len(paths) - failed} of {len(paths)} streams")
    return 2 if failed else 0


def command() -> None:
    """`clic-decode`."""
    run(main)


if __name__ == "__main__":
    command()
