"""Build the submission of one rate: the chosen streams, the decoder with its weights, and a manifest.

The folder is what CLIC asks for: `decode`, called without arguments in the folder of the streams, writes the pictures
there as PNGs. Every stream is checked against what was measured and every picture against what was encoded; the folder
appears whole or not at all, and the same input gives the same bytes.
"""

import argparse
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.table import MEASURED_COLUMNS, picture_hash, read_table, whole_numbers
from ratecontrol.decoder import MAX_DECODER_BYTES, add_wheels, check_size, write, write_decoder
from submission.bitstream import read_header
from submission.console import progress, run
from submission.errors import BitstreamError, UserError
from submission.files import exchange, list_images, make_folder, read_image
from submission.ladder import DEFAULT_WEIGHTS, Ladder

MANIFEST = "manifest.json"

#: What makes a manifest ours, and the version of its fields.
FORMAT = "clic-submission-1"


@dataclass(frozen=True)
class Entry:
    """One stream of the submission, as its manifest lists it."""

    name: str
    image: str
    bytes: int
    sha256: str
    width: int
    height: int
    quality: int


def collect(folder: Path, choice: Path, ladder: Ladder) -> list[tuple[Entry, bytes]]:
    """The chosen stream of each picture in `folder`, in the order of their names, everything checked.

    Raises UserError when pictures and choice are not of the same images and pixels, or when a stream is not what was
    measured with this ladder.
    """
    table = read_table(choice, MEASURED_COLUMNS)
    for column in ("width", "height", "quality", "bytes"):
        table[column] = whole_numbers(choice, table, column, 0, 2**40)
    if (twice := table["image"].duplicated()).any():
        raise UserError(f"{choice}: {table['image'][twice].iloc[0]} is chosen twice")
    pictures = {path.name: path for path in list_images([folder])}
    rows = {str(row["image"]): row for row in table.to_dict("records")}
    if lacking := sorted(pictures.keys() - rows.keys()):
        raise UserError(
            f"{choice}: has no row for {lacking[0]} of {folder}; measure and allocate it, or move it elsewhere"
        )
    if unknown := sorted(rows.keys() - pictures.keys()):
        raise UserError(f"{folder}: has no picture {unknown[0]}, which {choice} lists; measure and allocate again")
    names = sorted(pictures)
    return [check_stream(pictures[name], choice, rows[name], ladder) for name in progress(names, "checking")]


def check_stream(picture: Path, choice: Path, row: dict[Any, Any], ladder: Ladder) -> tuple[Entry, bytes]:
    """The stream of one picture; UserError unless picture, row, stream and model belong together."""
    width, height, quality, size = (int(row[column]) for column in ("width", "height", "quality", "bytes"))
    if picture_hash(read_image(picture, as_stored=True)) != row["image_sha256"]:
        raise UserError(f"{picture}: changed since it was measured; measure and allocate again")
    if quality not in ladder.qualities or ladder.model_hash(quality) != row["model_sha256"]:
        raise UserError(f"{picture.name}: was measured with other weights than {ladder.folder}; give --weights")
    path = choice.parent / row["stream"]
    try:
        stream = path.read_bytes()
        header = read_header(stream)
    except FileNotFoundError:
        raise UserError(f"{path}: the stream of {picture.name} is missing; run ratecontrol.measure again") from None
    except BitstreamError as error:
        raise UserError(f"{path}: {error}; run ratecontrol.measure again") from None
    digest = hashlib.sha256(stream).hexdigest()
    if (len(stream), digest) != (size, row["stream_sha256"]):
        raise UserError(f"{path}: is not the stream that was measured; run ratecontrol.measure again")
    if (header.quality, header.height, header.width) != (quality, height, width):
        raise UserError(f"{choice}: the row of {picture.name} does not describe its stream; allocate again")
    return Entry(f"{picture.stem}.clic", picture.name, size, digest, width, height, quality), stream


def manifest_of(streams: list[tuple[Entry, bytes]], ladder: Ladder, bpp: Fraction | None) -> dict[str, Any]:
    """What the submission is made of, for people and for `eval`."""
    pixels = sum(entry.width * entry.height for entry, _ in streams)
    return {
        "format": FORMAT,
        "bpp": None if bpp is None else float(bpp),
        "cap": None if bpp is None else byte_cap(bpp, pixels),
        "bytes": sum(len(stream) for _, stream in streams),
        "pixels": pixels,
        "ladder": ladder.id,
        "files": [asdict(entry) for entry, _ in streams],
    }


def build(
    folder: Path, streams: list[tuple[Entry, bytes]], ladder: Ladder, manifest: dict[str, Any], wheels: Path | None
) -> int:
    """Write the whole submission into the empty `folder`; returns the bytes of the decoder."""
    write_decoder(folder, ladder, {entry.quality for entry, _ in streams}, wheels)
    decoder_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for entry, stream in streams:
        write(folder / entry.name, stream)
    write(folder / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        inside.chmod(0o755)
    return decoder_bytes


def is_submission(folder: Path) -> bool:
    """Whether `folder` was written by this command, so that it may be replaced."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Mode and bytes of every file under `folder`, by relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): (path.stat().st_mode, path.read_bytes()) for path in files}


@contextlib.contextmanager
def replacing(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` at the end, or vanishes if anything fails.

    An absent or empty target is filled, an equal one left as it is. A submission with other content is replaced only
    if `overwrite` says so. Anything else is never ours to delete. Raises UserError where it leaves the target alone.
    """
    occupied = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if occupied and not is_submission(target):
        raise UserError(f"{target}: exists and is not a submission; give another -o")
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        if occupied and contents(new) == contents(target):
            return
        if occupied and not overwrite:
            raise UserError(f"{target}: is a submission with other content; --overwrite replaces it")
        if occupied:
            exchange(new, target)
        else:
            new.rename(target)  # over an empty folder too


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.package",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m ratecontrol.package photos choice.csv -o submission --bpp 0.15",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the pictures, all of them")
    parser.add_argument("choice", type=Path, metavar="choice.csv", help="what ratecontrol.allocate wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SUBMISSION")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--bpp", metavar="RATE", help="refuse to write more bytes than this rate allows")
    add_wheels(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a submission with other content")
    options = parser.parse_args(words)

    bpp = None if options.bpp is None else parse_bpp(options.bpp)
    ladder = Ladder.load(options.weights)
    with replacing(options.output, options.overwrite) as new:
        streams = collect(options.folder, options.choice, ladder)
        manifest = manifest_of(streams, ladder, bpp)
        size, cap = manifest["bytes"], manifest["cap"]
        if cap is not None and size > cap:
            raise UserError(
                f"{options.choice}: {size:,} bytes, {size - cap:,} over the cap of {cap:,}; "
                f"allocate with --bpp {options.bpp}"
            )
        decoder_bytes = build(new, streams, ladder, manifest, options.wheels)
    used = "" if cap is None else f" of {cap:,} ({100 * size / cap:.3f} %)"
    rate = 8 * size / manifest["pixels"]
    print(f"{options.output}: {len(streams)} streams, {size:,} bytes{used}, {rate:.4f} bpp")
    print(f"decoder {decoder_bytes / 1e6:.1f} MB of {MAX_DECODER_BYTES / 1e6:.0f}")
    return check_size(decoder_bytes)


if __name__ == "__main__":
    run(main)
