"""The submissions of a folder of pictures at all rates in one go: measure, allocate, package.

DIST gets table.csv with its streams, and for each rate the choice and a folder that can be handed in. Each step is the
command of its name, and only candidates that may be chosen at one of the rates are encoded. A run that was stopped goes
on where it was and ends with the same submissions; a later one encodes only what is new.
"""

import argparse
from pathlib import Path

from ratecontrol import allocate, measure, package
from ratecontrol.allocation.budget import RATES, parse_bpp
from ratecontrol.decoder import add_wheels
from submission.console import fail, run, word
from submission.errors import UserError
from submission.ladder import DEFAULT_WEIGHTS

EXAMPLES = """examples:
  python -m ratecontrol.submission photos -o dist
  python -m ratecontrol.submission photos -o dist --bpp 0.15 --refine 16
"""


def submit(folder: Path, dist: Path, rate: str, weights: Path, wheels: Path | None) -> int:
    """Allocate and package for one rate; the exit code. UserError where the rate cannot be reached."""
    choice = dist / f"choice-{rate}.csv"
    print(f"\n{rate} bpp")
    allocate.main([word(dist / "table.csv"), "--bpp", rate, "-o", word(choice)])
    words = [word(folder), word(choice), "-o", word(dist / rate), "--bpp", rate, "--weights", word(weights)]
    return package.main([*words, "--overwrite", *(["--wheels", word(wheels)] if wheels else [])])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the pictures, all of them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIST")
    parser.add_argument(
        "--bpp", nargs="+", default=RATES, metavar="RATE", help="bits per pixel of the set (default: the challenge's)"
    )
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="also refine every encoding, in STEPS")
    parser.add_argument("--factors", default="1", metavar="F,...", help="refine for these multiples of lambda")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    add_wheels(parser)
    parser.add_argument("--jobs", type=int, metavar="N", help="processes on this machine (default: one a core)")
    options = parser.parse_args()
    for rate in options.bpp:
        parse_bpp(rate)
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder of pictures")

    words = [word(options.folder), "-o", word(options.output / "table.csv"), "--weights", word(options.weights)]
    words += ["--replace", "--refine", str(options.refine), "--factors", options.factors, "--bpp", *options.bpp]
    measure.main([*words, *(["--jobs", str(options.jobs)] if options.jobs is not None else [])])
    codes = []
    for rate in options.bpp:
        try:  # one rate that cannot be reached does not keep the others from being made
            codes.append(submit(options.folder, options.output, rate, options.weights, options.wheels))
        except UserError as error:
            codes.append(fail(str(error)))
    return max(codes)


if __name__ == "__main__":
    run(main)
