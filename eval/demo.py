"""The whole pipeline on a few photos: our codec and the peers that are installed, at the three rates, with a report.

Without IMAGES it takes the photos that come inside scikit-image.
"""

import argparse
import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from eval.codecs.peer import PEERS
from eval.compare import bd_table, compare, open_results, table
from ratecontrol.allocation.budget import RATES
from submission import console
from submission.errors import UserError
from submission.files import make_folder
from submission.ladder import DEFAULT_WEIGHTS

#: All that code a photo in a second or so.
CODECS = tuple(peer.name for peer in PEERS if peer.name != "vvc")

#: Colour photos of everyday things among the files of the scikit-image wheel.
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def photos(folder: Path) -> Path:
    """Copy the photos of scikit-image to `folder`; UserError if it is not installed or has them no more."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError("scikit-image is not installed: pip install scikit-image, or give a folder of pictures")
    make_folder(folder)
    for name in PHOTOS:
        source = Path(package.origin).parent / "data" / name
        if not source.is_file():
            raise UserError(f"{source}: this scikit-image has no such photo; give a folder of pictures")
        shutil.copy(source, folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.demo",
        description=__doc__,
        epilog="example: python -m eval.demo -o demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=Path, nargs="?", metavar="IMAGES", help="folder of pictures")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    options = parser.parse_args()

    folder = options.images
    if folder is None:
        folder = photos(open_results(options.output).parent / "photos")
    command = shlex.join(["python", "-m", "eval.demo", *sys.argv[1:]])
    found = compare(folder, options.output, options.weights, RATES, CODECS, [command])
    print(table(found.points))
    print(bd_table(found.curves))
    print(
        f"{options.output / 'scores.csv'}: these numbers; {options.output / 'report.html'}: the pictures side by side"
    )
    return 0


if __name__ == "__main__":
    console.run(main)
