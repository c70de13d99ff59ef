"""Training pictures: decoded once into one memory-mapped file, checked against evaluation pictures, split."""

import hashlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from submission.console import progress
from submission.cores import given_cores
from submission.errors import ImageError, UserError
from submission.files import Picture, make_folder, read_image, write_bytes
from submission.lock import locked
from training.data.similar import Fingerprint, find_copies, fingerprint, fingerprints, pictures_below

#: One picture in this many is held out for validation, by content: the split survives renaming and reordering.
HELD_OUT = 20

#: Version of the cached files.
FORMAT = 2

#: Pictures decoded ahead of the one that is being written.
AHEAD = 64


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures: all samples in one row, and where each picture lies in it."""

    #: uint8 [samples].
    pixels: Tensor
    #: [n, 3]: first sample, height and width of each picture; its samples are [height, width, 3] from there.
    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    @classmethod
    def of(cls, train: list[Picture], validation: list[Picture]) -> "Pictures":
        """From pictures in memory."""
        every = [*train, *validation]
        ends = np.cumsum([p.size for p in every])
        places = np.array([(end - p.size, *p.shape[:2]) for p, end in zip(every, ends, strict=True)], np.int64)
        pixels = torch.from_numpy(np.concatenate([p.ravel() for p in every]))
        return cls(pixels, places[: len(train)], places[len(train) :])


def load_pictures(
    folders: list[Path],
    crop: int,
    cache: Path,
    exclude: list[Path] | None = None,
    validate: list[Path] | None = None,
) -> Pictures:
    """Every picture below `folders`, decoded into a file in the folder `cache` unless it is there already.

    Validation takes the pictures below the folders `validate`, or else some of `folders`. Broken pictures, those
    smaller than `crop` and copies of pictures below `exclude` or `validate` are counted and named, not fatal. Raises
    UserError when too few usable pictures remain.
    """
    exclude, validate = exclude or [], validate or []
    for folder in [*folders, *exclude, *validate]:
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder of pictures")
    excluded = []
    for folder in exclude:
        below = pictures_below(folder)
        if not below:
            raise UserError(f"--exclude {folder}: no pictures there")
        excluded += below
    training = [path for folder in folders for path in pictures_below(folder)]
    paths = training + [path for folder in validate for path in pictures_below(folder)]
    name = f"pictures-{_key(paths)}"
    with locked(make_folder(cache) / ".pictures.lock", "is reading pictures here"):
        index = _read_index(cache / name) or _decode(paths, cache / name)
    entries = index["pictures"]
    _report(index["unreadable"], "unreadable")
    excluded += [paths[e["order"]] for e in entries if e["order"] >= len(training)]

    small = [e for e in entries if min(e["height"], e["width"]) < crop]
    _report([f"{e['name']} ({e['width']}x{e['height']})" for e in small], f"smaller than {crop}")
    entries = [e for e in entries if min(e["height"], e["width"]) >= crop]
    apart = [e for e in entries if e["order"] >= len(training)]
    entries = [e for e in entries if e["order"] < len(training)]
    if excluded:
        entries = _without_copies(entries, excluded)
    for found, of, needed in ((entries, folders, 1 if validate else 2), (apart, validate, 1 if validate else 0)):
        if len(found) < needed:
            where = ", ".join(map(str, of))
            raise UserError(f"{where}: {len(found)} usable pictures of at least {crop}x{crop}; need {needed} or more")
    held = np.array([int(e["split"], 16) % HELD_OUT == 0 for e in entries])
    if held.all() or not held.any():
        held = np.arange(len(entries)) == 0
    if validate:
        held = np.arange(len(entries) + len(apart)) >= len(entries)
        entries = entries + apart
    places = np.array([(e["start"], e["height"], e["width"]) for e in entries], np.int64)
    # copy-on-write, since torch wants to be allowed to write
    pixels = torch.from_numpy(np.memmap(_samples(cache / name), np.uint8, "c"))
    return Pictures(pixels, places[~held], places[held])


def _key(paths: list[Path]) -> str:
    """Changes with the files."""
    stats = [(p, p.stat() if p.exists() else p.lstat()) for p in paths]  # the others are links to nothing
    facts = [(str(p.resolve()), stat.st_size, stat.st_mtime_ns) for p, stat in stats]
    return hashlib.sha256(json.dumps([FORMAT, facts]).encode()).hexdigest()[:16]


def _samples(stem: Path) -> Path:
    return stem.with_suffix(".u8")


def _read_index(stem: Path) -> dict[str, Any] | None:
    try:
        index: dict[str, Any] = json.loads(stem.with_suffix(".json").read_text())
        return index if _samples(stem).stat().st_size == index["samples"] else None
    except (OSError, ValueError, KeyError):
        return None


def _decode(paths: list[Path], stem: Path) -> dict[str, Any]:
    """Decode all `paths` into one file; its index is written last and vouches for it."""
    entries: list[dict[str, Any]] = []
    unreadable = []
    start = 0
    part = stem.with_suffix(".u8.part")
    try:
        with part.open("wb") as file:
            for order, (path, decoded) in enumerate(progress(_decoded(paths), "reading pictures", len(paths))):
                if decoded is None:
                    unreadable.append(path.name)
                    continue
                picture, known = decoded
                size = {"start": start, "height": picture.shape[0], "width": picture.shape[1]}
                split = hashlib.sha256(picture.tobytes()).hexdigest()
                entries.append({"name": path.name, "order": order, **size, "split": split, **asdict(known)})
                file.write(picture.tobytes())
                start += picture.size
        part.replace(_samples(stem))
    except OSError as error:
        raise UserError(f"{part}: cannot write the decoded pictures ({error.strerror}); give --cache DIR") from None
    finally:
        part.unlink(missing_ok=True)
    index = {"samples": start, "pictures": entries, "unreadable": unreadable}
    write_bytes(stem.with_suffix(".json"), json.dumps(index).encode())
    return index


def _decoded(paths: list[Path]) -> Iterator[tuple[Path, tuple[Picture, Fingerprint] | None]]:
    """Each path with its picture, or None for a broken one, in order; Pillow decodes on all cores."""

    def read(path: Path) -> tuple[Picture, Fingerprint] | None:
        try:
            picture = read_image(path)
        except ImageError:
            return None
        return picture, fingerprint(picture)

    with ThreadPoolExecutor(given_cores()) as pool:
        pending = [pool.submit(read, path) for path in paths[:AHEAD]]
        for k, path in enumerate(paths):
            done = pending.pop(0)
            if k + AHEAD < len(paths):
                pending.append(pool.submit(read, paths[k + AHEAD]))
            yield path, done.result()


def _without_copies(entries: list[dict[str, Any]], excluded: list[Path]) -> list[dict[str, Any]]:
    forbidden = fingerprints(excluded)
    ours = [Fingerprint(e["pixels"], e["look"]) for e in entries]
    copies = find_copies(ours, [found for _, found in forbidden])
    _report([f"{entries[k]['name']} (as {forbidden[j][0].name})" for k, j in copies.items()], "excluded as copies")
    return [e for k, e in enumerate(entries) if k not in copies]


def _report(names: list[str], why: str) -> None:
    if names:
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        print(f"left out {len(names)} pictures, {why}: {shown}", file=sys.stderr)
