"""Our codec and its peers on one folder of pictures, at the byte caps of the challenge.

Every codec chooses a quality for each picture under the cap of the set, with `ratecontrol.allocate`. Ours is then
packaged, and its decoder runs apart from everything, as the judge would run it (`eval.simulate`). Peers that are not
installed are named and left out. A run that was stopped goes on where it was; a later one measures only what changed,
so with new weights only ours. RESULTS gets report.html, which shows it all.
"""

import argparse
import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval import peers
from eval.codecs.kept import read_kept_of
from eval.rate_distortion.curves import Curves, as_table, bd_rates, curve
from eval.rate_distortion.points import OURS, Point, our_point, peer_point, run_module
from eval.report import page as report
from eval.score import aligned
from metrics.clic import ms_ssim_db
from ratecontrol.allocate import read_problem
from ratecontrol.allocation.budget import RATES, parse_bpp
from ratecontrol.allocation.table import MEASURED_COLUMNS, numbers, read_table
from submission import __version__, console
from submission.errors import UserError
from submission.files import list_images, make_folder, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder

#: Where the text results of each release are kept.
RELEASES = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Comparison:
    """Every codec at every rate, its curve, and the table of candidates that both come from."""

    points: list[Point]
    curves: Curves
    tables: dict[str, Path]


def compare(
    folder: Path,
    results: Path,
    weights: Path,
    rates: Sequence[str],
    names: Sequence[str] = (),
    commands: Sequence[str] = (),
    measured: Path | None = None,
    known: Path | None = None,
) -> Comparison:
    """Measure, allocate, decode and score ours and the peers called `names` (all, if none); writes into `results`.

    `commands`, for people to repeat, are shown in the report. `measured` is a table of `ratecontrol.measure` with the
    candidates of ours, refined ones perhaps; without it each model is measured. `known` has what peers made of the
    same pictures, as `keep` left it: only what is chosen is made again, and nothing of peers that are not installed.

    Raises UserError if `results` holds anything that an earlier comparison did not leave there.
    """
    for rate in rates:
        parse_bpp(rate)
    pictures = list_images([folder])
    Ladder.load(weights)  # bad input of any kind is found before anything is written
    if measured:
        check_table(measured)
    kept = read_kept_of(known, pictures) if known else {}
    chosen = {peer.name: peer for peer in peers.available(names, kept)}
    place = open_results(results)
    tables = {OURS: measured or place / f"{OURS}.csv"}
    if measured is None:
        run_module("ratecontrol.measure", folder, "-o", tables[OURS], "--weights", weights, "--replace")
    tables |= peers.measure(folder, place, chosen.values(), kept, rates)
    for name in sorted(kept.keys() & (set(names) or kept.keys()) - chosen.keys() - {OURS}):
        tables[name] = place / f"{name}.csv"
        peers.write_kept(tables[name], kept[name])
    points = []
    for rate, codec in console.progress([(rate, codec) for rate in rates for codec in tables], "comparing"):
        where = results / rate / codec
        if codec == OURS:
            points.append(our_point(folder, where, tables[codec], weights, rate))
        else:
            points.append(peer_point(where, tables[codec], rate, codec, chosen.get(codec)))
    curves = {codec: curve(table) for codec, table in console.progress(tables.items(), "curves", len(tables))}
    found = Comparison(points, curves, tables)
    _write_csv(results / "scores.csv", scores(points))
    for name, frame in texts(found).items():
        write_bytes(results / name, _tsv(frame))
    report.write(results / "report.html", folder, points, curves, commands)
    return found


def check_table(path: Path) -> None:
    """UserError, with the line of the first fault, for what is no table of `ratecontrol.measure`."""
    read_problem(path)
    table = read_table(path, MEASURED_COLUMNS)
    for column in ("sse", "encode_seconds"):
        numbers(path, table, column, 0, 1e15)


def open_results(results: Path) -> Path:
    """Make `results` if need be and return its folder of tables; UserError if it holds anything but a comparison."""
    tables = results / "tables"
    if results.is_dir() and any(results.iterdir()) and not tables.is_dir():
        raise UserError(f"{results}: exists with other content; give another -o")
    make_folder(results)
    return make_folder(tables)


def keep(found: Comparison, name: str) -> Path:
    """Keep the text results, without anything that differs from run to run, under the version of this project."""
    place = make_folder(RELEASES / __version__)
    for file, frame in {**texts(found), "candidates.tsv": candidates(found.tables)}.items():
        write_bytes(place / f"{name}-{file}", _tsv(frame))
    return place


def texts(found: Comparison) -> dict[str, pd.DataFrame]:
    """The results that are the same in every run, by file name."""
    untimed = [column for column in SCORE_COLUMNS if not column.startswith(("encode", "decode"))]
    return {
        "scores.tsv": scores(found.points)[untimed],
        "images.tsv": images(found.points),
        "curves.tsv": as_table(found.curves),
        "bd-rates.tsv": pd.DataFrame(bd_rates(found.curves, OURS), columns=["anchor", "at_msssim", "at_psnr"]),
    }


SCORE_COLUMNS = ["bpp_target", "codec", "bytes", "cap", "msssim", "psnr", "msssim_db", "bpp"]
SCORE_COLUMNS += ["encode_seconds", "decode_seconds", "decode_peak_bytes", "smallest_bytes", "images", "pixels"]


def scores(points: Sequence[Point]) -> pd.DataFrame:
    """One row a rate and codec; NaN where the codec does not reach the rate."""
    rows = []
    for point in points:
        row: dict[str, object] = {"bpp_target": float(point.bpp), "codec": point.codec, "cap": point.cap}
        if point.pictures:
            total = point.total
            row |= {"bytes": point.bytes, "msssim": total.msssim, "psnr": total.psnr}
            row |= {"msssim_db": ms_ssim_db(total.msssim), "bpp": 8 * point.bytes / total.pixels}
            row |= {"encode_seconds": point.encode_seconds, "decode_seconds": point.decode_seconds}
            row |= {"decode_peak_bytes": point.decode_peak_bytes}
        row |= {"smallest_bytes": point.smallest, "images": len(point.pictures), "pixels": point.pixels}
        rows.append(row)
    return pd.DataFrame(rows, columns=SCORE_COLUMNS).astype({"bytes": "Int64", "decode_peak_bytes": "Int64"})


def images(points: Sequence[Point]) -> pd.DataFrame:
    """One row a rate, codec and picture."""
    rows = []
    for point in points:
        for score in point.pictures:
            row = {"bpp_target": float(point.bpp), "codec": point.codec, **dataclasses.asdict(score)}
            rows.append({**row, "bpp": 8 * (score.bytes or 0) / score.pixels, "psnr": score.psnr})
    return pd.DataFrame(rows)


def candidates(tables: dict[str, Path]) -> pd.DataFrame:
    """One row a codec, picture and quality: every rate-distortion point that was measured."""
    columns = ["image", "width", "height", "quality", "bytes", "msssim", "sse"]
    frames = [pd.read_csv(table)[columns].assign(codec=codec) for codec, table in tables.items()]
    return pd.concat(frames).sort_values(["codec", "image", "quality", "bytes"])[["codec", *columns]]


def _tsv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, na_rep="nan", sep="\t", lineterminator="\n", float_format="%.10g").encode()


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_bytes(path, frame.to_csv(index=False, na_rep="nan", lineterminator="\n").encode())


def table(points: Sequence[Point]) -> str:
    """The comparison as text."""
    lines = [["bpp", "codec", "bytes / cap", "", "MS-SSIM", "dB", "PSNR", "encode s", "decode s"]]
    for point in points:
        if not point.pictures:
            least = [f"{point.smallest:,} / {point.cap:,}", f"{point.smallest / point.cap:.2%}"]
            lines.append([point.bpp, point.codec, *least, "does not reach", "-", "-", "-", "-"])
            continue
        total = point.total
        used = [f"{point.bytes:,} / {point.cap:,}", f"{point.bytes / point.cap:.2%}"]
        quality = [f"{total.msssim:.5f}", f"{ms_ssim_db(total.msssim):.2f}", f"{total.psnr:.2f}"]
        seconds = [f"{point.encode_seconds:.2f}", f"{point.decode_seconds:.2f}"]
        lines.append([point.bpp, point.codec, *used, *quality, *seconds])
    return aligned(lines)


def bd_table(curves: Curves) -> str:
    """Our BD-rate against each peer as text."""
    lines = [["BD-rate of ours against", "at equal MS-SSIM (dB)", "at equal PSNR"]]
    lines += [[found.anchor, _percent(found.at_msssim), _percent(found.at_psnr)] for found in bd_rates(curves, OURS)]
    return aligned(lines)


def _percent(value: float) -> str:
    return "no common quality" if math.isnan(value) else f"{value:+.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare",
        description=__doc__,
        epilog="example: python -m eval.compare photos -o results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RESULTS", help="folder for everything")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument(
        "--bpp", nargs="+", default=RATES, metavar="RATE", help="rate points (default: the challenge's)"
    )
    parser.add_argument("--codecs", nargs="+", default=(), metavar="NAME", help="peers (default: all installed)")
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="ours as ratecontrol.measure left it (default: measure each model)"
    )
    parser.add_argument(
        "--known",
        type=Path,
        metavar="TSV",
        help="peers' candidates that --keep left: only what is chosen is made again",
    )
    parser.add_argument("--keep", metavar="NAME", help="also keep the text results as eval/results/VERSION/NAME-*.tsv")
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "eval.compare", *sys.argv[1:]])
    found = compare(
        options.folder,
        options.output,
        options.weights,
        options.bpp,
        options.codecs,
        [command],
        options.table,
        options.known,
    )
    print(table(found.points))
    print(bd_table(found.curves))
    print(f"{options.output / 'report.html'}: everything at a glance; scores.csv and *.tsv beside it: the numbers")
    if options.keep:
        print(f"{keep(found, options.keep)}: {options.keep}-*.tsv")
    return 0


if __name__ == "__main__":
    console.run(main)
