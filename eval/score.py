"""Score a folder of decoded pictures against the originals, as the CLIC organisers do.

Pictures are matched by stem: originals in any picture format, decoded ones as 8-bit RGB PNGs of the same size. Every
picture that is missing, extra, of another size, not RGB or unreadable is named, and nothing is scored.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from PIL import Image

from metrics.clic import SetScore, ms_ssim, ms_ssim_db, pooled, psnr, squared_error
from metrics.papers import pytorch_msssim
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from submission import console
from submission.errors import ImageError, UserError
from submission.files import Picture, list_images, make_folder, read_image, write_bytes

STREAM_PATTERN = "*.clic"

#: Faults named one by one in the error line; the others are counted.
NAMED_FAULTS = 10


@dataclass(frozen=True)
class PictureScore:
    """What one decoded picture scores; `bytes` is the size of its stream, None where it has no stream of its own."""

    image: str
    width: int
    height: int
    bytes: int | None
    msssim: float
    sse: float

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def psnr(self) -> float:
        return psnr(self.sse, 3 * self.pixels)


def score_pictures(originals: Path, decoded: Path, streams: Sequence[Path] = ()) -> list[PictureScore]:
    """The score of every picture of the folder `originals`, in the order of its names.

    Decoded PNGs are taken from the folder `decoded` and the folders below it. Raises UserError that names every fault.
    """
    originals_by_stem = {path.stem: path for path in list_images([originals])}
    decoded_by_stem = _match(originals_by_stem, decoded)
    sizes = {path.stem: path.stat().st_size for path in streams}
    scores, faults = [], []
    for stem, path in console.progress(originals_by_stem.items(), "scoring", len(originals_by_stem)):
        try:
            original = read_image(path, as_stored=True)
            picture = _read_decoded(decoded_by_stem[stem], original)
        except UserError as fault:
            faults.append(str(fault))
            continue
        height, width, _ = original.shape
        quality = ms_ssim(original, picture)
        scores.append(PictureScore(stem, width, height, sizes.get(stem), quality, squared_error(original, picture)))
    if faults:
        raise UserError(_joined(faults))
    return scores


def _match(originals: dict[str, Path], decoded: Path) -> dict[str, Path]:
    """The decoded PNG of each stem of `originals`; UserError names the missing, the extra and the ambiguous."""
    if not decoded.is_dir():
        raise UserError(f"{decoded}: no such folder of decoded pictures")
    found: dict[str, Path] = {}
    faults = []
    for path in sorted(decoded.rglob("*.png")):
        if path.stem not in originals:
            faults.append(f"{path}: extra, no original has this name")
        elif path.stem in found:
            faults.append(f"{path}: extra, {found[path.stem]} has the same name")
        else:
            found[path.stem] = path
    faults += [f"{stem}.png: missing in {decoded}" for stem in originals if stem not in found]
    if faults:
        raise UserError(_joined(faults))
    return found


def _read_decoded(path: Path, original: Picture) -> Picture:
    """The decoded picture in `path`, which must be an 8-bit RGB PNG of the size of `original`."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            mode, (width, height) = opened.mode, opened.size
            if (height, width) != original.shape[:2]:
                raise UserError(
                    f"{path}: {width}x{height}, but the original is {original.shape[1]}x{original.shape[0]}"
                )
            # Pillow reads 16-bit colour as RGB too; the byte after the sizes in a PNG is the bits a sample
            if mode != "RGB" or path.read_bytes()[24] != 8:
                raise UserError(f"{path}: not 8-bit RGB (mode {mode})")
            return np.array(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: unreadable ({error})") from None


def paper_means(originals: Path, decoded: Path, scores: Sequence[PictureScore]) -> dict[str, float | None]:
    """What papers print for the pictures of `scores`: means in which every picture counts the same.

    `pytorch_msssim` is that package's MS-SSIM, the others are ours; NaN where a picture has none. No rate without
    streams. Raises UserError if the package is not installed.
    """
    originals_by_stem = {path.stem: path for path in list_images([originals])}
    found = _match(originals_by_stem, decoded)
    pairs = (
        (read_image(path, as_stored=True), read_image(found[stem], as_stored=True))
        for stem, path in originals_by_stem.items()
    )
    theirs = [pytorch_msssim(*pair) for pair in console.progress(pairs, "pytorch_msssim", len(found))]
    rates = [8 * score.bytes / score.pixels for score in scores if score.bytes is not None]
    return {
        "mean_msssim": fmean(score.msssim for score in scores),
        "mean_pytorch_msssim": fmean(theirs),
        "mean_psnr": fmean(score.psnr for score in scores),
        "mean_bpp": fmean(rates) if len(rates) == len(scores) else None,
    }


def _joined(faults: list[str]) -> str:
    rest = len(faults) - NAMED_FAULTS
    return "; ".join(faults[:NAMED_FAULTS]) + (f"; and {rest} more" if rest > 0 else "")


def pool(scores: Sequence[PictureScore]) -> SetScore:
    """The score of the set: MS-SSIM weighted by pixels, PSNR from the pooled squared error."""
    return pooled([s.msssim for s in scores], [s.sse for s in scores], [s.pixels for s in scores])


def finite(value: float) -> float | None:
    """`value` as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def summary(total: SetScore, images: int, size: int | None, bpp: str | None) -> dict[str, object]:
    """The set's numbers for a JSON file; `size` is the bytes of all streams, `bpp` the rate point."""
    return {
        "msssim": total.msssim,
        "msssim_db": finite(ms_ssim_db(total.msssim)),
        "psnr": finite(total.psnr),
        "bpp": None if size is None else 8 * size / total.pixels,
        "bytes": size,
        "pixels": total.pixels,
        "images": images,
        "bpp_target": bpp and float(bpp),
        "cap": bpp and byte_cap(parse_bpp(bpp), total.pixels),
    }


def table(scores: Sequence[PictureScore], total: SetScore, size: int | None) -> str:
    """The scores as text: one line a picture and one for the set."""

    def cells(name: str, shape: str, size: int | None, pixels: int, msssim: float, psnr: float) -> list[str]:
        rate = ["-", "-"] if size is None else [f"{size:,}", f"{8 * size / pixels:.4f}"]
        return [name, shape, *rate, f"{msssim:.5f}", f"{ms_ssim_db(msssim):.3f}", f"{psnr:.3f}"]

    lines = [["image", "size", "bytes", "bpp", "MS-SSIM", "dB", "PSNR"]]
    lines += [cells(s.image, f"{s.width}x{s.height}", s.bytes, s.pixels, s.msssim, s.psnr) for s in scores]
    lines.append(cells(f"all {len(scores)}", "", size, total.pixels, total.msssim, total.psnr))
    text = aligned(lines)
    if undefined := [s.image for s in scores if math.isnan(s.msssim)]:
        text += f"\nMS-SSIM is not defined for {', '.join(undefined)}: it counts as 0"
    return text


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(text).rstrip() for text in texts)


def picture_table(scores: Sequence[PictureScore]) -> pd.DataFrame:
    """One row a picture: image, width, height, bytes, msssim, sse, psnr."""
    rows = [{**dataclasses.asdict(score), "psnr": score.psnr} for score in scores]
    return pd.DataFrame(rows).astype({"bytes": "Int64"})


def find_streams(folder: Path, pattern: str = STREAM_PATTERN) -> list[Path]:
    """The files of `folder` that count as compressed data. UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of streams")
    try:
        matching = list(folder.glob(pattern))
    except (ValueError, NotImplementedError):
        raise UserError(
            f"--pattern {pattern!r}: give names in the folder of streams, such as {STREAM_PATTERN}"
        ) from None
    if not (found := sorted(path for path in matching if path.is_file())):
        raise UserError(f"{folder}: no streams ({pattern}) in this folder")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.score",
        description=__doc__,
        epilog="""example:
  python -m submission.encode photos -o streams --quality 2
  python -m submission.decode streams -o decoded
  python -m eval.score photos decoded --streams streams --json score.json
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("originals", type=Path, metavar="ORIGINALS", help="folder of the original pictures")
    parser.add_argument("decoded", type=Path, metavar="DECODED", help="folder of the decoded PNGs")
    parser.add_argument("--streams", type=Path, metavar="DIR", help="folder of the compressed files, for the rate")
    parser.add_argument(
        "--pattern", default=STREAM_PATTERN, help="names of the compressed files (default: %(default)s)"
    )
    parser.add_argument(
        "--bpp", metavar="RATE", help="the cap in bits per pixel of the set; exit code 1 if it is broken"
    )
    parser.add_argument(
        "--papers", action="store_true", help="also print the means over pictures and the pytorch_msssim of papers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the set's numbers to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each picture to FILE")
    options = parser.parse_args()

    if options.bpp is not None and not options.streams:
        raise UserError("--bpp needs --streams DIR: the rate is counted from the compressed files")
    if options.pattern != STREAM_PATTERN and not options.streams:
        raise UserError("--pattern needs --streams DIR: it says which of its files are counted")
    cap_bpp = parse_bpp(options.bpp) if options.bpp is not None else None
    streams = find_streams(options.streams, options.pattern) if options.streams else []
    scores = score_pictures(options.originals, options.decoded, streams)
    total = pool(scores)
    size = sum(path.stat().st_size for path in streams) if streams else None

    print(table(scores, total, size))
    written = summary(total, len(scores), size, options.bpp)
    if options.papers:
        means = paper_means(options.originals, options.decoded, scores)
        written |= {name: value and finite(value) for name, value in means.items()}
        print("as papers print it, not the challenge's score:")
        print("\n".join(f"  {name:20} {'-' if value is None else f'{value:.5f}'}" for name, value in means.items()))
    if options.json:
        text = json.dumps(written, indent=2)
        write_bytes(make_folder(options.json.parent) / options.json.name, text.encode() + b"\n")
    if options.csv:
        lines = picture_table(scores).to_csv(index=False, na_rep="nan", lineterminator="\n")
        write_bytes(make_folder(options.csv.parent) / options.csv.name, lines.encode(errors="backslashreplace"))
    return 0 if cap_bpp is None or size is None else check_cap(size, byte_cap(cap_bpp, total.pixels))


def check_cap(size: int, cap: int) -> int:
    """Print how `size` bytes stand to the cap; returns the exit code, 0 within it and 1 over it."""
    print(f"{size:,} of {cap:,} bytes ({size / cap:.2%})" + (f": over the cap by {size - cap:,}" if size > cap else ""))
    return 1 if size > cap else 0


if __name__ == "__main__":
    console.run(main)
