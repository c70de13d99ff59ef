"""Decompress streams: photo.clic -> DIR/photo.png. Without arguments: every stream in the current folder."""

import argparse
from pathlib import Path

from submission.console import fail, progress, run
from submission.errors import BitstreamError, UserError
from submission.files import list_files, make_folder, write_png
from submission.ladder import DEFAULT_WEIGHTS, Ladder

SUFFIX = ".clic"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m submission.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m submission.decode streams -o pictures",
    )
    parser.add_argument("inputs", type=Path, nargs="*", metavar="STREAM|FOLDER", help="default: the current folder")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the PNGs (default: current)")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()
    if options.inputs and options.output is None:
        raise UserError("give -o DIR for the decoded pictures")
    paths = list_files(options.inputs or [Path()], {SUFFIX}, f"streams (*{SUFFIX})")
    ladder = Ladder.load(options.weights)
    folder = make_folder(options.output or Path())
    failed = 0
    for path in progress(paths, "decoding"):
        try:
            picture = ladder.decompress(path.read_bytes())
        except BitstreamError as error:  # one bad stream does not keep the others from being decoded
            fail(f"{path}: {error}")
            failed += 1
        else:
            write_png(folder / f"{path.stem}.png", picture)
    print(f"decoded {len(paths) - failed} of {len(paths)} streams")
    return 2 if failed else 0


if __name__ == "__main__":
    run(main)
