"""Measure the peer codecs as `ratecontrol.measure` measures ours: a table of candidates for each.

The codecs and their settings are those of `eval.codecs.peer`. From the tables `ratecontrol.allocate` chooses a quality
for each picture under the cap of the set, so a peer gets exactly the freedom that our codec has. Every file is written
and read again before it is scored. A run that was stopped goes on where it was; a later one measures only what changed.
"""

import argparse
import contextlib
import functools
import hashlib
import math
import os
import sys
import time
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pandas.errors import EmptyDataError, ParserError

from eval.codecs.peer import PEERS, Peer
from metrics.clic import ms_ssim, squared_error
from ratecontrol.allocate import read_problem
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import allocate
from ratecontrol.allocation.table import check_name
from submission import console
from submission.cores import given_cores
from submission.errors import UserError, guarded, naming
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
    "decode_seconds",
    "image_sha256",
    "settings",
    "stream",
]

#: Columns that tell a table of this command from another.
TELLTALE = {"image_sha256", "settings", "stream"}

#: What a file that is made again has in common with the one that was kept.
SAME = ("bytes", "msssim", "sse")

Row = dict[str, object]
Key = tuple[str, str, int]  #: what makes a measurement: the picture's name, the hash of its file, the quality


@dataclass(frozen=True)
class Task:
    """One picture to encode at one quality."""

    picture: Path
    image_sha256: str
    quality: int

    @property
    def key(self) -> Key:
        return self.picture.name, self.image_sha256, self.quality


def available(names: Sequence[str] = (), known: Container[str] = ()) -> list[Peer]:
    """The peers called `names` (all, if none are given) that are installed; the others are named on stderr, and so is
    what becomes of those whose rows are `known`."""
    there = [peer.name for peer in PEERS]
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"{unknown[0]}: no such codec; there are {', '.join(there)}")
    found = []
    for peer in (peer for peer in PEERS if not names or peer.name in names):
        if peer.version() is None:
            fate = "counts as it was kept, without pictures or times" if peer.name in known else "is left out"
            print(f"{peer.name} {fate}; it needs {peer.needs}", file=sys.stderr)
        else:
            found.append(peer)
    return found


def measure(
    folder: Path,
    output: Path,
    peers: Iterable[Peer],
    kept: Mapping[str, pd.DataFrame] | None = None,
    rates: Sequence[str] = (),
) -> dict[str, Path]:
    """Bring `output`/<peer>.csv up to date for the pictures of `folder`; returns the table of each peer.

    Of a peer that is in `kept` only those files are made that are chosen at one of `rates`. UserError where one of them
    is another than the one that was kept.
    """
    paths = list_images([folder])
    for path in paths:
        check_name(path)
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    tables = {}
    for peer in peers:
        tables[peer.name] = make_folder(output) / f"{peer.name}.csv"
        if kept and peer.name in kept:
            _measure_chosen(hashes, tables[peer.name], peer, kept[peer.name], rates)
        else:
            _measure_peer(hashes, tables[peer.name], peer)
    return tables


def _measure_peer(hashes: dict[Path, str], table: Path, peer: Peer) -> None:
    """Complete one table, row by row: what it holds after an interrupt need not be measured again."""
    tasks = [Task(path, image_hash, quality) for path, image_hash in hashes.items() for quality in peer.qualities]
    known = _read_rows(table, peer)
    rows = {task.key: known[task.key] for task in tasks if task.key in known}
    _complete(table, peer, [task.key for task in tasks], rows, [task for task in tasks if task.key not in rows])


def _complete(table: Path, peer: Peer, order: Sequence[Key], rows: dict[Key, Row], lacking: Sequence[Task]) -> None:
    _write_rows(table, order, rows)
    # threads do: the encoders and numpy run outside Python's lock
    pool = ThreadPoolExecutor(given_cores())
    bar = console.Progress(f"measuring {peer.name}", len(order), len(order) - len(lacking))
    with contextlib.closing(bar):
        try:
            started = {pool.submit(_measure, task, table, peer): task for task in lacking}
            for done in as_completed(started):
                rows[started[done].key] = done.result()
                _write_rows(table, order, rows)
                bar.advance(note=started[done].picture.name)
        finally:
            pool.shutdown(cancel_futures=True)


def _measure_chosen(hashes: dict[Path, str], table: Path, peer: Peer, kept: pd.DataFrame, rates: Sequence[str]) -> None:
    """Complete one table: rows as they were kept, and files of those that are chosen at one of `rates`."""
    paths = {path.name: path for path in hashes}
    tasks: dict[Key, Task] = {}
    before: dict[Key, Row] = {}
    for row in kept.to_dict("records"):
        path = paths[str(row["image"])]
        task = Task(path, hashes[path], int(row["quality"]))
        tasks[task.key], before[task.key] = task, _kept_row(row, task.image_sha256)
    measured = {
        key: _as_before(peer, row, before[key]) for key, row in _read_rows(table, peer).items() if key in before
    }
    rows = before | measured
    _write_rows(table, list(rows), rows)
    problem = read_problem(table)
    images, candidates = problem.table["image"], problem.table["candidate"]
    chosen: set[tuple[str, str]] = set()
    for cap in (byte_cap(parse_bpp(rate), problem.pixels) for rate in rates):
        if problem.smallest <= cap:
            places = allocate(problem.candidates, cap).chosen
            chosen |= set(zip(images.iloc[places], candidates.iloc[places], strict=True))
    wanted = [key for key, row in rows.items() if (row["image"], row["candidate"]) in chosen]
    _complete(table, peer, list(rows), rows, [tasks[key] for key in wanted if key not in measured])
    _write_rows(table, list(rows), rows | {key: _as_before(peer, rows[key], before[key]) for key in wanted})


def _as_before(peer: Peer, row: Row, before: Row) -> Row:
    """A row of a file that was made again, its figures to the last digit those that were kept: the same is chosen.

    UserError if it is another file.
    """
    for name in SAME:
        if not math.isclose(float(str(row[name])), float(str(before[name])), rel_tol=1e-8):
            raise UserError(
                f"{peer.name} makes of {row['image']} at quality {row['quality']} another file than the one that was"
                f" kept ({name} {row[name]}, not {before[name]}); leave --known out, and every file is made"
            )
    return row | {name: before[name] for name in SAME}


def write_kept(table: Path, kept: pd.DataFrame) -> None:
    """Write the table of a peer that is not installed: rows as they were kept, without files."""
    rows = {("", "", number): _kept_row(row, "") for number, row in enumerate(kept.to_dict("records"))}
    _write_rows(table, list(rows), rows)


def _kept_row(kept: Mapping[Hashable, object], image_sha256: str) -> Row:
    row = {column: kept.get(column, "") for column in COLUMNS}
    row |= {"candidate": f"q{kept['quality']}", "image_sha256": image_sha256}
    return row | {"encode_seconds": math.nan, "decode_seconds": math.nan}


@functools.lru_cache(maxsize=4)  # its qualities are measured one after the other
def _read(path: Path, image_sha256: str) -> Picture:
    return read_image(path, as_stored=True)


@contextlib.contextmanager
def _naming(task: Task, doing: str) -> Iterator[None]:
    """Turn whatever a codec's library says about one picture into a UserError that names it."""
    try:
        with naming(task.picture), guarded(doing):
            yield
    except ValueError as error:  # of Pillow's encoders
        raise UserError(f"{task.picture}: cannot be {doing} here: {error}") from None


def _measure(task: Task, table: Path, peer: Peer) -> Row:
    """The row of one file, which is kept beside the table."""
    picture = _read(task.picture, task.image_sha256)
    height, width, _ = picture.shape
    start = time.perf_counter()
    with _naming(task, f"coded with {peer.name}"):
        data = peer.compress(picture, task.quality)
    encode_seconds = time.perf_counter() - start
    stream = make_folder(table.with_suffix(".streams")) / f"{task.picture.stem}.q{task.quality}{peer.suffix}"
    write_bytes(stream, data)
    start = time.perf_counter()
    with _naming(task, f"decoded with {peer.name}"):
        decoded = peer.decompress(stream.read_bytes())
    decode_seconds = time.perf_counter() - start
    msssim = ms_ssim(picture, decoded)
    values = [task.picture.name, width, height, f"q{task.quality}", task.quality, len(data)]
    values += [0.0 if math.isnan(msssim) else msssim, squared_error(picture, decoded)]
    values += [round(encode_seconds, 4), round(decode_seconds, 4), task.image_sha256, peer.settings]
    return dict(zip(COLUMNS, [*values, os.path.relpath(stream, table.parent)], strict=True))


def _read_rows(table: Path, peer: Peer) -> dict[Key, Row]:
    """The rows of `table` that were measured with today's settings and whose files are still there."""
    try:
        rows = pd.read_csv(table, keep_default_na=False, compression=None).to_dict("records")
    except FileNotFoundError:
        return {}
    except (EmptyDataError, ParserError, UnicodeDecodeError):
        raise UserError(f"{table}: not a table of candidates; move it away") from None
    if rows and not set(rows[0]) >= TELLTALE:
        raise UserError(f"{table}: not a table of eval.peers; move it away")
    if rows and list(rows[0]) != COLUMNS:
        return {}  # of an earlier version
    found: dict[Key, Row] = {}
    settings = peer.settings
    for row in rows:
        stream = table.parent / str(row["stream"])
        if row["settings"] == settings and stream.is_file() and stream.stat().st_size == row["bytes"]:
            try:
                key = (str(row["image"]), str(row["image_sha256"]), int(row["quality"]))
            except ValueError:
                raise UserError(f"{table}: quality {row['quality']}: not a whole number; move the table away") from None
            found[key] = {str(column): value for column, value in row.items()}
    return found


def _write_rows(table: Path, order: Sequence[Key], rows: dict[Key, Row]) -> None:
    """Write the rows in the order of pictures and qualities, whichever was measured first."""
    sorted_rows = [rows[key] for key in order if key in rows]
    write_bytes(
        table,
        pd.DataFrame(sorted_rows, columns=COLUMNS).to_csv(index=False, na_rep="nan", lineterminator="\n").encode(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.peers",
        description=__doc__,
        epilog="""example:
  python -m eval.peers photos -o peers --codecs avif heic
  python -m ratecontrol.allocate peers/avif.csv --bpp 0.15 -o avif-0.15.csv
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the tables")
    names = ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--codecs", nargs="+", default=(), metavar="NAME", help=f"some of {names} (default: all)")
    options = parser.parse_args()
    for name, table in measure(options.folder, options.output, available(options.codecs)).items():
        rows = pd.read_csv(table)
        print(f"{table}: {name}, {rows['image'].nunique()} pictures, {len(rows)} candidates")
    return 0


if __name__ == "__main__":
    console.run(main)
