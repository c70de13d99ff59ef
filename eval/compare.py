"""Our codec and JPEG, WebP and AVIF on one folder of pictures, at the byte caps of the challenge.

Every codec chooses a quality for each picture under the cap of the set, with `ratecontrol.allocate`. Ours is then
packaged, and its decoder runs apart from everything, as the judge would run it (`eval.simulate`); every codec is scored
from PNGs decoded from the files that were counted. A second run measures only what changed.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval import peers
from eval.metrics import SetScore, ms_ssim_db
from eval.score import PictureScore, aligned, byte_cap, find_streams, parse_bpp, pool, score_pictures
from eval.simulate import decoded
from submission import console
from submission.errors import UserError
from submission.files import list_images, make_folder, write_bytes, write_png
from submission.ladder import DEFAULT_WEIGHTS, Ladder

#: The rate points of the challenge, in bits per pixel.
RATES = ("0.075", "0.15", "0.30")

OURS = "ours"


@dataclass(frozen=True)
class Point:
    """What one codec makes of the set at one rate; without pictures where even its smallest files exceed the cap."""

    bpp: str
    codec: str
    cap: int
    smallest: int  #: bytes of the set at the codec's lowest quality
    pixels: int
    pictures: list[PictureScore] = dataclasses.field(default_factory=list)
    decoded: Path = Path()  #: folder of the decoded PNGs
    encode_seconds: float = float("nan")  #: mean per picture
    decode_seconds: float = float("nan")  #: mean per picture; ours includes starting the decoder
    decode_peak_bytes: int | None = None  #: memory of our decoder

    @property
    def bytes(self) -> int:
        return sum(picture.bytes or 0 for picture in self.pictures)

    @property
    def total(self) -> SetScore:
        return pool(self.pictures)


def compare(folder: Path, results: Path, weights: Path, rates: Sequence[str]) -> list[Point]:
    """Measure, allocate, decode and score; leaves scores.csv and images.tsv in `results` and returns every point.

    Raises UserError if `results` holds anything that an earlier comparison did not leave there.
    """
    for rate in rates:
        parse_bpp(rate)
    list_images([folder])
    Ladder.load(weights)  # bad input of any kind is found before anything is written
    tables_folder = open_results(results)
    tables = {OURS: tables_folder / f"{OURS}.csv"}
    _module("ratecontrol.measure", folder, "-o", tables[OURS], "--weights", weights, "--replace")
    tables |= peers.measure(folder, tables_folder, peers.available())
    work = [(rate, codec) for rate in rates for codec in tables]
    points = []
    for rate, codec in console.progress(work, "comparing"):
        points.append(_point(folder, results / rate / codec, tables[codec], weights, rate, codec))
    write_bytes(results / "scores.csv", scores(points).to_csv(index=False, na_rep="nan").encode())
    write_bytes(results / "images.tsv", images(points).to_csv(index=False, na_rep="nan", sep="\t").encode())
    return points


def open_results(results: Path) -> Path:
    """Make `results` if need be and return its folder of tables; UserError if it holds anything but a comparison."""
    tables = results / "tables"
    if results.is_dir() and any(results.iterdir()) and not tables.is_dir():
        raise UserError(f"{results}: exists with other content; give another -o")
    make_folder(results)
    return make_folder(tables)


def _module(module: str, *arguments: object) -> None:
    """Run `python -m module`, showing only its progress; if it fails, its error line and exit code become ours."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)


def _point(folder: Path, place: Path, table: Path, weights: Path, rate: str, codec: str) -> Point:
    """Allocate, decode and score one codec at one rate, in the folder `place`."""
    candidates = pd.read_csv(table)
    sizes = candidates.drop_duplicates("image")
    pixels = int((sizes["width"] * sizes["height"]).sum())
    smallest = int(candidates.groupby("image")["bytes"].min().sum())
    point = Point(rate, codec, byte_cap(parse_bpp(rate), pixels), smallest, pixels)
    if smallest > point.cap:
        return point
    choice = make_folder(place) / "choice.csv"
    _module("ratecontrol.allocate", table, "--bpp", rate, "-o", choice)
    pictures = place / "decoded"
    shutil.rmtree(pictures, ignore_errors=True)
    make_folder(pictures)
    if codec == OURS:
        streams = place / "submission"
        _module(
            "ratecontrol.package", folder, choice, "-o", streams, "--weights", weights, "--bpp", rate, "--overwrite"
        )
        with decoded(streams, folder) as run:
            for path in run.folder.rglob("*.png"):
                shutil.copy(path, pictures)
        seconds, peak = run.seconds, run.peak_bytes
    else:
        streams, peak = place / "streams", None
        seconds = _decode_peer(choice, streams, pictures)
    scored = score_pictures(folder, pictures, find_streams(streams, "*.clic" if codec == OURS else "*"))
    return dataclasses.replace(
        point,
        pictures=scored,
        decoded=pictures,
        encode_seconds=float(pd.read_csv(choice)["encode_seconds"].mean()),
        decode_seconds=seconds / len(scored),
        decode_peak_bytes=peak,
    )


def _decode_peer(choice: Path, streams: Path, pictures: Path) -> float:
    """Collect the chosen files of a peer in `streams`, decode them to `pictures`; returns the seconds that took."""
    shutil.rmtree(streams, ignore_errors=True)
    make_folder(streams)
    seconds = 0.0
    for row in pd.read_csv(choice, keep_default_na=False).to_dict("records"):
        stem, source = Path(str(row["image"])).stem, choice.parent / str(row["stream"])
        stream = streams / (stem + source.suffix)
        shutil.copy(source, stream)
        start = time.perf_counter()
        picture = peers.decompress(stream.read_bytes())
        seconds += time.perf_counter() - start
        write_png(pictures / f"{stem}.png", picture)
    return seconds


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
    columns = ["bpp_target", "codec", "bytes", "cap", "msssim", "psnr", "msssim_db", "bpp"]
    columns += ["encode_seconds", "decode_seconds", "decode_peak_bytes", "smallest_bytes", "images", "pixels"]
    return pd.DataFrame(rows, columns=columns).astype({"bytes": "Int64", "decode_peak_bytes": "Int64"})


def images(points: Sequence[Point]) -> pd.DataFrame:
    """One row a rate, codec and picture."""
    rows = []
    for point in points:
        for score in point.pictures:
            row = {"bpp_target": float(point.bpp), "codec": point.codec, **dataclasses.asdict(score)}
            rows.append({**row, "bpp": 8 * (score.bytes or 0) / score.pixels, "psnr": score.psnr})
    return pd.DataFrame(rows)


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
    options = parser.parse_args()
    print(table(compare(options.folder, options.output, options.weights, options.bpp)))
    print(f"written to {options.output}: scores.csv, images.tsv, and for each rate the submission and decoded pictures")
    return 0


if __name__ == "__main__":
    console.run(main)
