"""Knowing a picture again: by its pixels, and by what is left of it after rescaling and re-encoding."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from submission.console import progress
from submission.files import SUFFIXES, Picture, read_image

#: Perceptual hashes that differ in at most this many of 64 bits belong to copies of one picture (docs/training.md).
LARGEST_DISTANCE = 8


#: Cosines of the 32-point DCT (II): only signs matter, so they are not normalised.
_DCT = np.cos(np.pi / 32 * np.outer(np.arange(32), np.arange(32) + 0.5))


@dataclass(frozen=True)
class Fingerprint:
    """SHA-256 of size and pixels, in hex, and the perceptual hash."""

    pixels: str
    look: int


def fingerprint(picture: Picture) -> Fingerprint:
    """Of a picture [H, W, 3]."""
    return Fingerprint(hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest(), look(picture))


def look(picture: Picture) -> int:
    """Signs of the 64 lowest frequencies but the mean of the picture in grey at 32 x 32, as bits (a "pHash")."""
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((32, 32), Image.Resampling.BOX), np.float64)
    spectrum = _DCT @ grey @ _DCT.T
    u, v = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    lowest = np.lexsort((u.ravel(), (u + v).ravel()))[1:65]
    bits = spectrum.ravel()[lowest] > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def orientations(picture: Picture) -> list[Picture]:
    """The picture, rotated by quarters and mirrored: eight ways."""
    turned = [np.rot90(picture, k) for k in range(4)]
    return [np.ascontiguousarray(p) for q in turned for p in (q, q[:, ::-1])]


def fingerprints(paths: list[Path]) -> list[tuple[Path, Fingerprint]]:
    """Of every picture of `paths` in each orientation; ImageError for a broken one."""
    found: list[tuple[Path, Fingerprint]] = []
    for path in progress(paths, "reading pictures to exclude"):
        found += [(path, fingerprint(picture)) for picture in orientations(read_image(path))]
    return found


def pictures_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())


def find_copies(ours: list[Fingerprint], theirs: list[Fingerprint]) -> dict[int, int]:
    """Index into `ours` -> index of the nearest of `theirs`, for each that is a copy of one of them."""
    if not ours or not theirs:
        return {}
    pixels = {f.pixels: k for k, f in reversed(list(enumerate(theirs)))}
    apart = distances([f.look for f in ours], [f.look for f in theirs])
    copies = {k: int(apart[k].argmin()) for k in np.flatnonzero(apart.min(1) <= LARGEST_DISTANCE)}
    return {int(k): j for k, j in copies.items()} | {
        k: pixels[f.pixels] for k, f in enumerate(ours) if f.pixels in pixels
    }


def distances(a: list[int], b: list[int]) -> NDArray[np.int64]:
    """[len(a), len(b)]: how many bits differ."""
    rows, columns = (np.array(v, np.uint64) for v in (a, b))
    return np.stack([np.bitwise_count(row ^ columns) for row in rows]).astype(np.int64)
