"""Measure JPEG, WebP and AVIF as `ratecontrol.measure` measures ours: a table of candidates for each codec.

The encoders are those inside Pillow, on one core, with the settings that spend their bytes best; only the quality
varies. From the tables `ratecontrol.allocate` chooses a quality for each picture under the cap of the set, so a peer
gets exactly the freedom that our codec has. A second run measures only what changed.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import math
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from pandas.errors import EmptyDataError, ParserError
from PIL import Image, features

from eval.metrics import ms_ssim, squared_error
from submission import console
from submission.errors import UserError
from submission.files import Picture, list_images, make_folder, read_image, write_bytes

COLUMNS = [
    "image",
    "width",
    "height",
    "candidate",
    "quality",
    "bytes",
    "msssim",
    "sse",
    "encode_seconds",
    "image_sha256",
    "settings",
    "stream",
]


@dataclass(frozen=True)
class Peer:
    """A codec of Pillow's: its settings, and the qualities (of 0 to 100) to choose from, dense at low rates."""

    name: str
    suffix: str
    library: str  #: what Pillow calls the library behind it
    options: dict[str, int | str | bool]
    qualities: tuple[int, ...]

    @property
    def settings(self) -> str:
        """Everything but the quality that decides the bytes."""
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"Pillow {PIL.__version__} {self.library} {features.version(self.library)} {options}"

    def compress(self, picture: Picture, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format=self.name, quality=quality, **self.options)
        return buffer.getvalue()


#: AVIF's own defaults already tune libaom for pictures (`tune=iq`), which also scores best here; 4:2:0 likewise.
PEERS = (
    Peer(
        name="jpeg",
        suffix=".jpg",
        library="libjpeg_turbo",
        options={"optimize": True, "progressive": True, "subsampling": "4:2:0"},
        qualities=(*range(1, 31), *range(32, 61, 2)),
    ),
    Peer(
        name="webp",
        suffix=".webp",
        library="webp",
        options={"method": 6},
        qualities=(*range(0, 31, 2), *range(35, 81, 5)),
    ),
    Peer(
        name="avif",
        suffix=".avif",
        library="avif",
        options={"speed": 4, "subsampling": "4:2:0", "max_threads": 1, "autotiling": False},
        qualities=(*range(0, 43, 3), 47, 52, 57, 62),
    ),
)


def decompress(data: bytes) -> Picture:
    """The picture in a JPEG, WebP or AVIF file."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.array(opened.convert("RGB"))


def available() -> list[Peer]:
    """The peers that this Pillow can write; the others are named on stderr."""
    found = [peer for peer in PEERS if features.check(peer.library)]
    for peer in PEERS:
        if peer not in found:
            print(f"{peer.name} is left out: this Pillow is built without {peer.library}", file=sys.stderr)
    return found


def measure(folder: Path, output: Path, peers: Iterable[Peer]) -> dict[str, Path]:
    """Bring `output`/<peer>.csv up to date for the pictures of `folder`; returns the table of each peer."""
    pictures = list_images([folder])
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}
    tables = {}
    for peer in peers:
        tables[peer.name] = make_folder(output) / f"{peer.name}.csv"
        _measure_peer(hashes, tables[peer.name], peer)
    return tables


def _measure_peer(hashes: dict[Path, str], table: Path, peer: Peer) -> None:
    known = _read_rows(table, peer)
    rows = [row for path, image_hash in hashes.items() for row in known.get((path.name, image_hash), [])]
    lacking = [(path, image_hash) for path, image_hash in hashes.items() if (path.name, image_hash) not in known]
    if not lacking:
        _write_rows(table, rows)
        return
    # threads do: Pillow's encoders and numpy run outside Python's lock
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    bar = console.Progress(f"measuring {peer.name}", len(lacking))
    with contextlib.closing(bar):
        try:
            for measured in pool.map(functools.partial(_measure_picture, table=table, peer=peer), lacking):
                rows += measured
                _write_rows(table, rows)
                bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)


def _measure_picture(item: tuple[Path, str], table: Path, peer: Peer) -> list[dict[str, object]]:
    """A row for each quality of one picture (its path and hash); the streams are kept beside the table."""
    path, image_hash = item
    picture = read_image(path)
    height, width, _ = picture.shape
    streams = make_folder(table.with_suffix(".streams"))
    rows: list[dict[str, object]] = []
    for quality in peer.qualities:
        start = time.perf_counter()
        data = peer.compress(picture, quality)
        seconds = time.perf_counter() - start
        decoded = decompress(data)
        msssim = ms_ssim(picture, decoded)
        stream = streams / f"{path.stem}.q{quality}{peer.suffix}"
        write_bytes(stream, data)
        values = [path.name, width, height, f"q{quality}", quality, len(data), 0.0 if math.isnan(msssim) else msssim]
        values += [squared_error(picture, decoded), round(seconds, 4), image_hash, peer.settings]
        rows.append(dict(zip(COLUMNS, [*values, os.path.relpath(stream, table.parent)], strict=True)))
    return rows


def _read_rows(table: Path, peer: Peer) -> dict[tuple[str, str], list[dict[str, object]]]:
    """The rows of `table` by picture (name and hash), for pictures that it holds whole and with today's settings."""
    try:
        rows = pd.read_csv(table, keep_default_na=False).to_dict("records")
    except FileNotFoundError:
        return {}
    except (EmptyDataError, ParserError, UnicodeDecodeError):
        raise UserError(f"{table}: not a table of candidates; move it away") from None
    if rows and list(rows[0]) != COLUMNS:
        raise UserError(f"{table}: not a table of eval.peers; move it away")
    found: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows:
        stream = table.parent / str(row["stream"])
        if row["settings"] == peer.settings and stream.is_file() and stream.stat().st_size == row["bytes"]:
            found.setdefault((str(row["image"]), str(row["image_sha256"])), []).append({str(k): row[k] for k in row})
    whole = set(peer.qualities)
    return {key: rows for key, rows in found.items() if {row["quality"] for row in rows} == whole}


def _write_rows(table: Path, rows: list[dict[str, object]]) -> None:
    write_bytes(table, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.peers",
        description=__doc__,
        epilog="""example:
  python -m eval.peers photos -o peers
  python -m ratecontrol.allocate peers/avif.csv --bpp 0.15 -o avif-0.15.csv
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the tables")
    options = parser.parse_args()
    for name, table in measure(options.folder, options.output, available()).items():
        rows = pd.read_csv(table)
        print(f"{table}: {name}, {rows['image'].nunique()} pictures, {len(rows)} candidates")
    return 0


if __name__ == "__main__":
    console.run(main)
