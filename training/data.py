"""Training pictures: decoded once, kept in memory, cropped at random as a pure function of seed and step."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from submission.console import progress
from submission.errors import ImageError, UserError
from submission.files import SUFFIXES, Picture, read_image

#: One picture in this many is held out for validation, by content: the split survives renaming and reordering.
HELD_OUT = 20


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, each at least `crop` pixels on both sides."""

    train: list[Picture]
    validation: list[Picture]


def load_pictures(folders: list[Path], crop: int) -> Pictures:
    """Decode every picture below `folders`. Broken and too small ones are counted and named, not fatal.

    Raises UserError when fewer than two usable pictures remain.
    """
    paths = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder of pictures")
        paths += sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    pictures, left_out = [], []
    for path in progress(paths, "reading pictures"):
        try:
            picture = read_image(path)
        except ImageError:
            left_out.append(f"{path.name} (unreadable)")
            continue
        if min(picture.shape[:2]) < crop:
            left_out.append(f"{path.name} ({picture.shape[1]}x{picture.shape[0]})")
        else:
            pictures.append(picture)
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        print(f"left out {len(left_out)} pictures, smaller than {crop} or unreadable: {shown}", file=sys.stderr)
    if len(pictures) < 2:
        where = ", ".join(map(str, folders))
        raise UserError(f"{where}: {len(pictures)} usable pictures of at least {crop}x{crop}; need 2 or more")
    held = [int(hashlib.sha256(p.tobytes()).hexdigest(), 16) % HELD_OUT == 0 for p in pictures]
    if not any(held) or all(held):
        held = [k == 0 for k in range(len(pictures))]
    train = [p for p, h in zip(pictures, held, strict=True) if not h]
    return Pictures(train, [p for p, h in zip(pictures, held, strict=True) if h])


def random_crops(pictures: list[Picture], batch: int, crop: int, seed: int, step: int) -> Tensor:
    """[batch, 3, crop, crop] in [0, 1]: random pictures (larger ones more often), places and flips.

    Depends on nothing but its arguments, so that a resumed run sees the same crops.
    """
    rng = np.random.default_rng((seed, step))
    area = np.array([p.shape[0] * p.shape[1] for p in pictures], dtype=np.float64)
    out = np.empty((batch, crop, crop, 3), dtype=np.uint8)
    for k, index in enumerate(rng.choice(len(pictures), batch, p=area / area.sum())):
        picture = pictures[index]
        top = rng.integers(picture.shape[0] - crop + 1)
        left = rng.integers(picture.shape[1] - crop + 1)
        piece = picture[top : top + crop, left : left + crop]
        out[k] = piece[:, ::-1] if rng.integers(2) else piece
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def centre_crops(pictures: list[Picture], crop: int, count: int) -> Tensor:
    """[<=count, 3, crop, crop] in [0, 1]: the middle of the first pictures, for validation."""
    pieces = []
    for picture in pictures[:count]:
        top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
        pieces.append(picture[top : top + crop, left : left + crop])
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).float() / 255
