"""One codec at one rate: the allocator's choice under the cap of the set, decoded and scored.

A peer's numbers are those of its table, measured from the very files that are counted. Ours is packaged, and its
decoder runs apart from everything, as the judge would run it (`eval.simulate`); what it wrote is scored.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eval.codecs.peer import Peer
from eval.score import PictureScore, find_streams, pool, score_pictures
from eval.simulate import decoded
from metrics.clic import SetScore
from ratecontrol.allocate import portable, read_problem
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import allocate
from ratecontrol.allocation.table import write_table
from submission import console
from submission.errors import UserError
from submission.files import Picture, make_folder, read_image, write_bytes
from submission.processes import finish, how_it_ended, tied, watched

OURS = "ours"

#: Seconds for a command to end by itself when we are interrupted.
LEAVING = 0.8


@dataclass(frozen=True)
class Point:
    """What one codec makes of the set at one rate; without pictures where even its smallest files exceed the cap."""

    bpp: str
    codec: str
    cap: int
    smallest: int  #: bytes of all pictures' smallest candidates
    pixels: int
    pictures: list[PictureScore] = dataclasses.field(default_factory=list)
    read: Callable[[str], Picture] | None = None  #: the decoded picture of a stem
    encode_seconds: float = float("nan")  #: mean per picture
    decode_seconds: float = float("nan")  #: mean per picture; ours includes starting the decoder
    decode_peak_bytes: int | None = None  #: memory of our decoder

    @property
    def bytes(self) -> int:
        return sum(picture.bytes or 0 for picture in self.pictures)

    @property
    def total(self) -> SetScore:
        return pool(self.pictures)


def unreached(table: Path, rate: str, codec: str) -> Point:
    """The point of `table` at `rate` with its cap and smallest size, and nothing chosen yet."""
    problem = read_problem(table)
    return Point(rate, codec, byte_cap(parse_bpp(rate), problem.pixels), problem.smallest, problem.pixels)


def peer_point(place: Path, table: Path, rate: str, codec: str, peer: Peer | None) -> Point:
    """A peer at `rate`, chosen from its table; the choice is left in the folder `place`.

    Without `peer`, which is not installed, there are no pictures to look at.
    """
    point = unreached(table, rate, codec)
    if point.smallest > point.cap:
        return point
    choice = make_folder(place) / "choice.csv"
    choose(table, rate, choice)
    rows = pd.read_csv(choice, keep_default_na=False).to_dict("records")
    streams = {Path(str(row["image"])).stem: choice.parent / str(row["stream"]) for row in rows}
    pictures = [
        PictureScore(
            image=Path(str(row["image"])).stem,
            width=int(row["width"]),
            height=int(row["height"]),
            bytes=int(row["bytes"]),
            msssim=float(row["msssim"]),
            sse=float(row["sse"]),
        )
        for row in rows
    ]
    return dataclasses.replace(
        point,
        pictures=sorted(pictures, key=lambda picture: picture.image),
        read=None if peer is None else lambda stem: peer.decompress(streams[stem].read_bytes()),
        encode_seconds=_mean(rows, "encode_seconds"),
        decode_seconds=_mean(rows, "decode_seconds"),
    )


def our_point(folder: Path, place: Path, table: Path, weights: Path, rate: str) -> Point:
    """Ours at `rate`: packaged, decoded apart and scored; choice, submission and PNGs are left in `place`.

    A decoder that ran before on the same submission is not run again.
    """
    point = unreached(table, rate, OURS)
    if point.smallest > point.cap:
        return point
    choice, streams, pictures = make_folder(place) / "choice.csv", place / "submission", place / "decoded"
    choose(table, rate, choice)
    settings = ["--weights", weights, "--bpp", rate, "--overwrite"]
    run_module("ratecontrol.package", folder, choice, "-o", streams, *settings)
    run = _decode(folder, streams, pictures, place / "run.json")
    scored = score_pictures(folder, pictures, find_streams(streams))
    return dataclasses.replace(
        point,
        pictures=scored,
        read=lambda stem: read_image(pictures / f"{stem}.png"),
        encode_seconds=_mean(pd.read_csv(choice).to_dict("records"), "encode_seconds"),
        decode_seconds=run["seconds"] / len(scored),
        decode_peak_bytes=int(run["peak_bytes"]),
    )


def choose(table: Path, rate: str, choice: Path) -> None:
    """What `python -m ratecontrol.allocate table --bpp rate -o choice` does, without starting Python for it."""
    problem = read_problem(table)
    allocation = allocate(problem.candidates, byte_cap(parse_bpp(rate), problem.pixels))
    write_table(choice, portable(problem.table.iloc[allocation.chosen], table, choice))


def _decode(folder: Path, submission: Path, pictures: Path, record: Path) -> dict[str, float]:
    """Run the decoder of `submission` as the judge does and keep its PNGs in `pictures`; seconds and peak_bytes."""
    identity = digest(submission)
    try:
        earlier = json.loads(record.read_text())
        if earlier["submission"] == identity and earlier["pictures"] == digest(pictures):
            return {name: float(earlier[name]) for name in ("seconds", "peak_bytes")}
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no earlier run, or one that was cut off
    record.unlink(missing_ok=True)
    shutil.rmtree(pictures, ignore_errors=True)
    make_folder(pictures)
    with decoded(submission, folder) as run:
        for path in run.folder.rglob("*.png"):
            shutil.copy(path, pictures)
    found = {"seconds": run.seconds, "peak_bytes": float(run.peak_bytes)}
    text = json.dumps({"submission": identity, "pictures": digest(pictures), **found}, indent=2)
    write_bytes(record, text.encode() + b"\n")
    return found


def digest(folder: Path) -> str:
    """One hash of the names and contents of all files under `folder`."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def run_module(module: str, *arguments: object) -> None:
    """Run `python -m module`, showing only its progress; if it fails, its error line and exit code become ours.

    UserError if it is killed, or stopped for long.
    """
    words = [console.word(argument) if isinstance(argument, Path) else str(argument) for argument in arguments]
    command = [sys.executable, "-m", module, *words]
    with watched(subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=tied())) as child:
        try:
            finish(child, module)
        except KeyboardInterrupt:
            child.terminate()  # it has not seen the signal if that was for us alone
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LEAVING)
            raise
    if child.returncode < 0:
        raise UserError(f"{module} {how_it_ended(child.returncode)}; run the command again: it goes on where it was")
    if child.returncode:
        sys.exit(child.returncode)


def _mean(rows: list[dict[Hashable, Any]], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)
