"""Encode every picture with every model of the ladder: real bytes and real scores, one row each, in a table.

Rows are appended as they are made. A run that was stopped goes on where it was, and nothing is encoded again whose
pixels and model stand in the table. The streams are kept, so that packaging need not encode.
"""

import argparse
import contextlib
import csv
import fcntl
import functools
import hashlib
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from eval.metrics import ms_ssim, squared_error
from ratecontrol.parallel import Workers, compute
from ratecontrol.refine import check_refinable, refine
from ratecontrol.table import MEASURED_COLUMNS, picture_hash, read_table, write_table
from submission.codec import Encoded
from submission.console import Progress, progress, run
from submission.errors import ImageError, UserError
from submission.files import Picture, list_images, make_folder, read_image, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder

#: The first line of every table that this command writes.
HEADER = (",".join(MEASURED_COLUMNS) + "\n").encode()

#: Steps of refinement that are taken, and that are worth it (`docs/ratecontrol.md`).
MOST_STEPS, GOOD_STEPS = 10_000, 24

Row = dict[str, str]
Key = tuple[str, str, str]  #: what makes a measurement: hash of the pixels, candidate, hash of the model


@dataclass(frozen=True)
class Choice:
    """A way to encode a picture: a model, and how its latents are refined (`ratecontrol.refine`), if at all."""

    quality: int
    steps: int = 0  #: of refinement
    factor: str = "1"  #: its lambda over that of the model, as it was given

    @property
    def name(self) -> str:
        return f"q{self.quality}-r{self.factor}-s{self.steps}" if self.steps else f"q{self.quality}"

    def encode(self, ladder: Ladder, picture: Picture) -> Encoded:
        """The stream of `picture`, and what a decoder makes of it."""
        codec = ladder.codec(self.quality)
        if not self.steps:
            return codec.encode(picture)
        lmbda = float(self.factor) * float(ladder.models[self.quality]["lmbda"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        y, z = refine(codec, picture, lmbda, self.steps, device)
        return codec.encode_latents(y, z, *picture.shape[:2])


@dataclass(frozen=True)
class Task:
    """One picture to encode with one model of a ladder."""

    picture: Path
    image_sha256: str
    pixels: int
    weights: Path
    model_sha256: str
    choice: Choice
    table: Path
    stream: str  #: the file to keep the stream in, relative to the table's folder

    def __str__(self) -> str:
        return f"{self.picture.name} {self.candidate}"

    @property
    def candidate(self) -> str:
        return self.choice.name

    @property
    def kept(self) -> Path:
        return self.table.parent / self.stream


def measure(task: Task) -> tuple[Row, bytes]:
    """Encode and decode: the row of the table and the stream, for the caller to keep."""
    ladder = load_ladder(task.weights)
    picture = read_image(task.picture)
    if picture_hash(picture) != task.image_sha256:
        raise UserError(f"{task.picture}: changed while it was being measured; run again")
    if ladder.model_hash(task.choice.quality) != task.model_sha256:
        raise UserError(f"{task.weights}: changed while it was being measured; run again")
    start = time.perf_counter()
    encoded = task.choice.encode(ladder, picture)
    seconds = time.perf_counter() - start
    score = ms_ssim(picture, encoded.reconstruction)
    height, width, _ = picture.shape
    row = {
        "image": task.picture.name,
        "width": str(width),
        "height": str(height),
        "candidate": task.candidate,
        "quality": str(task.choice.quality),
        "bytes": str(len(encoded.stream)),
        "msssim": f"{0.0 if math.isnan(score) else score:.10f}",  # where it is undefined the organisers count 0
        "sse": f"{squared_error(picture, encoded.reconstruction):.0f}",
        "encode_seconds": f"{seconds:.3f}",
        "image_sha256": task.image_sha256,
        "model_sha256": task.model_sha256,
        "stream_sha256": hashlib.sha256(encoded.stream).hexdigest(),
        "stream": task.stream,
    }
    return row, encoded.stream


@functools.cache
def load_ladder(weights: Path) -> Ladder:
    """A ladder, once a process, so that each of its models is loaded once."""
    return Ladder.load(weights)


def measure_all(tasks: list[Task], workers: Workers) -> Generator[Row]:
    """The rows of `tasks` as they are done, their streams kept."""
    workers = workers.enough_for(sum(task.pixels * (1 + task.choice.steps) for task in tasks))
    places = {(task.image_sha256, task.candidate): task.kept for task in tasks}
    done = map(measure, tasks) if workers.alone else compute(measure, tasks, workers)
    for row, stream in done:
        write_bytes(places[row["image_sha256"], row["candidate"]], stream)
        yield row


def hash_pictures(paths: list[Path], skip_bad: bool) -> dict[Path, tuple[str, int]]:
    """The hash of each picture and its number of pixels.

    A bad one ends the run before the long work, or is named and left out.
    """
    hashes = {}
    for path in progress(paths, "reading"):
        if not path.name.isprintable():
            raise UserError(f"{path.name!a}: this name cannot stand in a table; rename the picture")
        try:
            picture = read_image(path)
            hashes[path] = picture_hash(picture), picture.shape[0] * picture.shape[1]
        except ImageError as error:
            if not skip_bad:
                raise UserError(f"{error}; --skip-bad leaves such pictures out") from None
            print(f"skipped: {error}", file=sys.stderr)
    if not hashes:
        raise UserError("none of the pictures can be read")
    return hashes


def key_of(row: Row) -> Key:
    return row["image_sha256"], row["candidate"], row["model_sha256"]


def refuse_foreign(table: Path) -> None:
    """UserError if `table` is there but is something else than a table, perhaps cut off, of this command."""
    if table.exists():
        start = table.read_bytes()[: len(HEADER)]
        if not HEADER.startswith(start):
            raise UserError(f"{table}: exists and is not a table of ratecontrol.measure; give another -o")


def read_rows(table: Path) -> list[Row]:
    """The rows that earlier runs left in `table`, as far as their streams are still there and whole.

    A last line that was cut off is no row.
    """
    if not table.exists():
        return []
    text = table.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(table, whole)
    if whole <= len(HEADER):
        return []
    rows: list[Row] = read_table(table, MEASURED_COLUMNS).to_dict("records")  # type: ignore[assignment]
    return [row for row in rows if stream_is_whole(table, row)]


def stream_is_whole(table: Path, row: Row) -> bool:
    try:
        stream = (table.parent / row["stream"]).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(stream).hexdigest() == row["stream_sha256"]


def check_rows(table: Path, rows: list[Row], ladder: Ladder, hashes: dict[Path, tuple[str, int]]) -> None:
    """Refuse a table that would mix measurements: with other weights, or of other pixels under the same name."""
    models = {str(quality): ladder.model_hash(quality) for quality in ladder.qualities}
    pictures = {path.stem: (path.name, image_hash) for path, (image_hash, _) in hashes.items()}
    for row in rows:
        if models.get(row["quality"]) != row["model_sha256"]:
            raise UserError(f"{table}: has rows measured with other weights; give another -o, or --replace them")
        found = row["image"], row["image_sha256"]
        if pictures.get(Path(row["image"]).stem, found) != found:
            raise UserError(f"{table}: has rows of another {row['image']}; give another -o, or --replace them")


def replace_rows(table: Path, rows: list[Row], wanted: dict[Key, list[Task]]) -> list[Row]:
    """Only those rows that are wanted now; says how many are dropped."""
    kept = [row for row in rows if any(row["image"] == task.picture.name for task in wanted.get(key_of(row), []))]
    if len(kept) < len(rows):
        print(f"{table}: dropped {len(rows) - len(kept)} rows", file=sys.stderr)
    return kept


def complete(table: Path, rows: list[Row], wanted: dict[Key, list[Task]], workers: Workers) -> list[Row]:
    """Write `rows` to `table`, measure what is lacking of `wanted`, a line at a time, and return all rows.

    `wanted` holds, for each key, the tasks of all pictures with those pixels: they share one measurement.
    """
    write_table(table, pd.DataFrame(rows, columns=MEASURED_COLUMNS))
    known = {key_of(row): row for row in rows}
    done = {(row["image"], row["candidate"]) for row in rows}
    lacking = {
        key: missing
        for key, tasks in wanted.items()
        if (missing := [task for task in tasks if (task.picture.name, task.candidate) not in done])
    }
    measured = measure_all([tasks[0] for key, tasks in lacking.items() if key not in known], workers)
    bar = Progress("measuring", len(lacking))
    with table.open("a", newline="", encoding="utf-8") as file, contextlib.closing(measured), contextlib.closing(bar):
        writer = csv.DictWriter(file, MEASURED_COLUMNS, lineterminator="\n")
        for row in itertools.chain([known[key] for key in lacking if key in known], measured):
            for task in lacking[key_of(row)]:
                rows.append(share(row, task))
                writer.writerow(rows[-1])
            file.flush()
            bar.advance(note=f"{row['image']} {row['candidate']}")
    return rows


def share(row: Row, task: Task) -> Row:
    """The row of `task`'s picture, given a row of the same pixels and model; each picture keeps its own stream."""
    if row["stream"] != task.stream:
        write_bytes(task.kept, (task.table.parent / row["stream"]).read_bytes())
    return {**row, "image": task.picture.name, "stream": task.stream}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from measuring into `folder`; UserError if one does already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder}: another ratecontrol.measure is writing here") from None
    finally:
        os.close(descriptor)


def parse_qualities(text: str | None, ladder: Ladder) -> list[int]:
    """`"0,2"` as a list; without it, all of the ladder."""
    if text is None:
        return ladder.qualities
    chosen = [quality for quality in ladder.qualities if str(quality) in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise UserError(f"--qualities {text}: give some of {','.join(map(str, ladder.qualities))}")
    return chosen


def parse_factors(text: str) -> list[str]:
    """`"0.5,1"` as a list of texts; UserError unless each is a number from 0.01 to 100, given once."""
    factors = text.split(",")
    for factor in factors:
        if not re.fullmatch(r"\d+(\.\d+)?", factor) or not 0.01 <= float(factor) <= 100:
            raise UserError(f"--factors {text}: give numbers from 0.01 to 100, such as 0.7,1")
    if len({float(factor) for factor in factors}) < len(factors):
        raise UserError(f"--factors {text}: names one twice")
    return factors


def report(table: Path, rows: list[Row], choices: list[Choice]) -> str:
    """What each choice alone makes of the pictures in the table: bytes, rate, pixel-weighted MS-SSIM."""
    lines = [f"{table}: {len(rows)} rows"]
    width = max(len(choice.name) for choice in choices)
    for choice in choices:
        own = [row for row in rows if row["candidate"] == choice.name]
        areas = [int(row["width"]) * int(row["height"]) for row in own]
        total = sum(int(row["bytes"]) for row in own)
        score = sum(float(row["msssim"]) * area for row, area in zip(own, areas, strict=True)) / sum(areas)
        lines.append(
            f"{choice.name:{width}}  {len(own)} pictures  {total:,} bytes  {8 * total / sum(areas):.4f} bpp"
            f"  MS-SSIM {score:.5f}  {sum(float(row['encode_seconds']) for row in own) / len(own):.1f} s a picture"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m ratecontrol.measure photos -o table.csv",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="table.csv")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--qualities", metavar="0,1,...", help="models of the ladder to measure (default: all)")
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="also refine every encoding, in STEPS")
    parser.add_argument(
        "--factors", default="1", metavar="F,...", help="refine for these multiples of each model's lambda (default: 1)"
    )
    parser.add_argument("--streams", type=Path, metavar="DIR", help="folder for streams (default: table.streams)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes on this machine (default: one a core)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="measure on the workers of this Dask scheduler instead")
    parser.add_argument("--skip-bad", action="store_true", help="name and leave out pictures that cannot be read")
    parser.add_argument(
        "--replace", action="store_true", help="drop the table's rows of other pictures, pixels, weights or qualities"
    )
    options = parser.parse_args()
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least 1")
    workers = Workers(options.jobs, options.scheduler)

    if not 0 <= options.refine <= MOST_STEPS:
        raise UserError(f"--refine {options.refine}: 1 to {MOST_STEPS} steps; {GOOD_STEPS} are good")
    factors = parse_factors(options.factors)

    table = options.output.resolve()
    weights = options.weights.absolute()
    ladder = load_ladder(weights)
    qualities = parse_qualities(options.qualities, ladder)
    choices = [Choice(quality) for quality in qualities]
    if options.refine:
        for quality in qualities:
            check_refinable(ladder, quality)
        choices += [Choice(quality, options.refine, factor) for quality in qualities for factor in factors]
    paths = list_images(options.inputs)
    hashes = hash_pictures(paths, options.skip_bad)
    refuse_foreign(table)
    make_folder(table.parent)
    streams = make_folder((options.streams or table.with_suffix(".streams")).resolve())
    wanted: dict[Key, list[Task]] = {}
    for path, (image_hash, pixels) in hashes.items():
        for choice in choices:
            stream = os.path.relpath(streams / f"{path.stem}.{choice.name}.clic", table.parent)
            model_hash = ladder.model_hash(choice.quality)
            task = Task(path.absolute(), image_hash, pixels, weights, model_hash, choice, table, stream)
            wanted.setdefault((image_hash, choice.name, model_hash), []).append(task)
    with locked(streams):
        rows = read_rows(table)
        if options.replace:
            rows = replace_rows(table, rows, wanted)
        check_rows(table, rows, ladder, hashes)
        rows = complete(table, rows, wanted, workers)
    print(report(options.output, rows, choices))
    if others := {row["image"] for row in rows} - {path.name for path in hashes}:
        print(f"note: the table keeps rows of {len(others)} other pictures; --replace drops them", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from ratecontrol import measure as importable  # workers look its functions up by that name, not in __main__

    run(importable.main)
