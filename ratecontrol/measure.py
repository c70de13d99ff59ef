"""Encode every picture with every model of the ladder: real bytes and real scores, one row each, in a table.

Rows are appended as they are made. A run that was stopped goes on where it was, and nothing is encoded again whose
pixels and model stand in the table. The streams are kept, so that packaging need not encode.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import itertools
import math
import os
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from metrics.clic import ms_ssim, squared_error
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.table import (
    MEASURED_COLUMNS,
    check_name,
    numbers,
    picture_hash,
    read_table,
    whole_numbers,
    write_table,
)
from ratecontrol.candidates.choices import Choice, every_choice, kinds_of
from ratecontrol.candidates.predict import Flags, Floats
from ratecontrol.candidates.search import Found, search
from ratecontrol.parallel.compute import Workers, compute
from submission.console import Progress, progress, run
from submission.errors import ImageError, UserError, guarded, naming
from submission.files import list_images, make_folder, read_image, write_bytes
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.lock import locked

#: The first line of every table that this command writes.
HEADER = (",".join(MEASURED_COLUMNS) + "\n").encode()

EXAMPLE = """examples:
  python -m ratecontrol.measure photos -o table.csv
  python -m ratecontrol.measure photos -o table.csv --bpp 0.075 0.15 0.30
"""

Row = dict[str, str]
Key = tuple[str, str, str]  #: what makes a measurement: hash of the pixels, candidate, hash of the model


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
    if ladder.model_hash(task.choice.quality) != task.model_sha256:
        load_ladder.cache_clear()  # a worker may be older than the weights
        ladder = load_ladder(task.weights)
    picture = read_image(task.picture, as_stored=True)
    if picture_hash(picture) != task.image_sha256:
        raise UserError(f"{task.picture}: changed while it was being measured; run again")
    if ladder.model_hash(task.choice.quality) != task.model_sha256:
        raise UserError(f"{task.weights}: changed while it was being measured; run again")
    start = time.perf_counter()
    with naming(task.picture), guarded("encoded"):
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
        check_name(path)
        try:
            picture = read_image(path, as_stored=True)
            hashes[path] = picture_hash(picture), picture.shape[0] * picture.shape[1]
        except ImageError as error:
            if not skip_bad:
                raise UserError(f"{error}; remove it, or leave such out with ratecontrol.measure --skip-bad") from None
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


def read_rows(table: Path) -> tuple[list[Row], list[Row]]:
    """The rows that earlier runs left in `table`, and those of them whose streams are missing or damaged.

    A last line that was cut off is no row.
    """
    if not table.exists():
        return [], []
    text = table.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(table, whole)
    if whole <= len(HEADER):
        return [], []
    found = read_table(table, MEASURED_COLUMNS)
    for column in ("width", "height", "bytes"):
        whole_numbers(table, found, column, 1, 2**40)
    numbers(table, found, "msssim", -1, 1)
    numbers(table, found, "encode_seconds", 0, math.inf)
    rows: list[Row] = found.to_dict("records")  # type: ignore[assignment]
    whole_rows: list[Row] = []
    lost: list[Row] = []
    for row in rows:
        (whole_rows if stream_is_whole(table, row) else lost).append(row)
    return whole_rows, lost


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


def complete(
    table: Path, rows: list[Row], wanted: dict[Key, list[Task]], workers: Workers, what: str = "measuring"
) -> list[Row]:
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
    bar = Progress(what, len(lacking))
    with table.open("a", newline="", encoding="utf-8") as file, contextlib.closing(measured), contextlib.closing(bar):
        writer = csv.DictWriter(file, MEASURED_COLUMNS, lineterminator="\n")
        for row in itertools.chain([known[key] for key in lacking if key in known], measured):
            for task in lacking[key_of(row)]:
                rows.append(share(row, task))
                writer.writerow(rows[-1])
            file.flush()
            bar.advance(note=f"{row['image']} {row['candidate']}")
    return rows


def complete_likely(
    table: Path, rows: list[Row], wanted: dict[Key, list[Task]], workers: Workers, ladder: Ladder, rates: list[str]
) -> tuple[list[Row], Found]:
    """As `complete`, but only what may be chosen at one of `rates`.

    What stands in the table already is looked at when the search comes to it: a run that was stopped and one that was
    not measure the same.
    """
    tasks = {(task.picture, task.choice): (key, task) for key, shared in wanted.items() for task in shared}
    pictures, choices = (list(dict.fromkeys(column)) for column in zip(*tasks, strict=True))
    pixels = np.array([tasks[picture, choices[0]][1].pixels for picture in pictures], np.int64)
    rounds = itertools.count(1)

    def measure_some(marked: Flags) -> tuple[Floats, Floats]:
        nonlocal rows
        asked = [tasks[pictures[i], choices[k]] for i, k in np.argwhere(marked)]
        some: dict[Key, list[Task]] = {}
        for key, task in asked:
            some.setdefault(key, []).append(task)
        rows = complete(table, rows, some, workers, f"measuring, round {next(rounds)}")
        known = {(row["image"], row["candidate"]): row for row in rows}
        got = [known[task.picture.name, task.candidate] for _, task in asked]
        return np.array([float(row["bytes"]) for row in got]), np.array([float(row["msssim"]) for row in got])

    caps = [byte_cap(parse_bpp(rate), int(pixels.sum())) for rate in rates]
    found = search(kinds_of(choices, ladder), pixels, caps, measure_some)
    return rows, found


def share(row: Row, task: Task) -> Row:
    """The row of `task`'s picture, given a row of the same pixels and model; each picture keeps its own stream."""
    if row["stream"] != task.stream:
        write_bytes(task.kept, (task.table.parent / row["stream"]).read_bytes())
    return {**row, "image": task.picture.name, "stream": task.stream}


def report(table: Path, rows: list[Row], choices: list[Choice]) -> str:
    """What each choice alone makes of the pictures in the table: bytes, rate, pixel-weighted MS-SSIM."""
    lines = [f"{table}: {len(rows)} rows"]
    width = max(len(choice.name) for choice in choices)
    for choice in choices:
        own = [row for row in rows if row["candidate"] == choice.name]
        if not own:  # --bpp had no use for it
            continue
        areas = [int(row["width"]) * int(row["height"]) for row in own]
        total = sum(int(row["bytes"]) for row in own)
        score = sum(float(row["msssim"]) * area for row, area in zip(own, areas, strict=True)) / sum(areas)
        lines.append(
            f"{choice.name:{width}}  {len(own)} pictures  {total:,} bytes  {8 * total / sum(areas):.4f} bpp"
            f"  MS-SSIM {score:.5f}  {sum(float(row['encode_seconds']) for row in own) / len(own):.1f} s a picture"
        )
    return "\n".join(lines)


def report_search(found: Found, rates: list[str]) -> str:
    """How little was measured, and why nothing else is likely to be chosen."""
    share = f"{found.measured:,} of {found.candidates:,} candidates in {found.rounds} rounds"
    off = (
        "" if math.isnan(found.error) else f"; predictions were off by {found.error:.1f} standard deviations of theirs"
    )
    lines = [f"looked at {share}{off}"]
    for rate, evidence in zip(rates, found.evidence, strict=True):
        if evidence.value is None:
            lines.append(f"--bpp {rate}: nothing that was measured fits, and the rest is expected to be larger")
        else:
            left = f"the candidates not measured can be expected to add {evidence.left:.0e} at most"
            lines.append(f"--bpp {rate}: MS-SSIM {evidence.value:.8f}; {left}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLE,
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="table.csv")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="ladder (default: ours)")
    parser.add_argument("--qualities", metavar="0,1,...", help="models of the ladder to measure (default: all)")
    parser.add_argument("--refine", type=int, default=0, metavar="STEPS", help="also refine every encoding, in STEPS")
    parser.add_argument(
        "--factors", default="1", metavar="F,...", help="refine for these multiples of each model's lambda (default: 1)"
    )
    parser.add_argument(
        "--bpp", nargs="+", metavar="RATE", help="measure only what may be chosen at one of these bits per pixel"
    )
    parser.add_argument("--streams", type=Path, metavar="DIR", help="folder for streams (default: table.streams)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes on this machine (default: one a core)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="measure on the workers of this Dask scheduler instead")
    parser.add_argument("--skip-bad", action="store_true", help="name and leave out pictures that cannot be read")
    parser.add_argument(
        "--replace", action="store_true", help="drop the table's rows of other pictures, pixels, weights or qualities"
    )
    options = parser.parse_args(words)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least 1")
    workers = Workers(options.jobs, options.scheduler)

    for rate in options.bpp or []:
        parse_bpp(rate)

    table = options.output.resolve()
    weights = options.weights.absolute()
    ladder = load_ladder(weights)
    choices = every_choice(ladder, options.qualities, options.refine, options.factors)
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
    with (
        locked(streams / ".lock", "measures into this folder", 0),
        locked(table.with_name(f".{table.name}.lock"), "measures into this table", 0),
    ):
        rows, lost = read_rows(table)
        if options.replace:
            rows = replace_rows(table, rows, wanted)
        elif away := sorted({row["image"] for row in lost} - {path.name for path in hashes}):
            raise UserError(
                f"{table}: streams of {away[0]}, which is not among these pictures, are missing or damaged;"
                " put them back, name the picture, too, or --replace the rows of others"
            )
        elif lost:
            print(f"{table}: {len(lost)} rows whose streams are missing or damaged are dropped", file=sys.stderr)
        check_rows(table, rows, ladder, hashes)
        others = {row["image"] for row in rows} - {path.name for path in hashes}
        if others and options.bpp:
            raise UserError(
                f"{table}: has rows of {len(others)} other pictures, which --bpp counts; --replace drops them"
            )
        found = None
        if options.bpp:
            rows, found = complete_likely(table, rows, wanted, workers, ladder, options.bpp)
        else:
            rows = complete(table, rows, wanted, workers)
    print(report(options.output, rows, choices))
    if others:
        print(f"note: the table keeps rows of {len(others)} other pictures; --replace drops them", file=sys.stderr)
    if found is None:
        return 0
    print(report_search(found, options.bpp))
    return 1 if any(evidence.value is None for evidence in found.evidence) else 0


if __name__ == "__main__":
    from ratecontrol import measure as importable  # workers look its functions up by that name, not in __main__

    run(importable.main)
