"""VVC stills through the command-line programs vvencapp and vvdecapp of Fraunhofer's VVenC and VVdeC.

They take and give raw 4:2:0 planes, so the conversion from and to RGB (BT.709, full range, 10 bits) happens here, and
a file of ours is the picture's width and height, 2 bytes each, then the encoder's stream: odd sides are padded by one.
"""

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from submission.errors import UserError
from submission.files import Picture

ENCODER, DECODER = "vvencapp", "vvdecapp"

#: Quantisation parameters run against quality, from 63 down.
MAX_QP = 63
QUALITIES = tuple(range(13, 41, 2))  # QP 50 to 24

ARGUMENTS = ("--preset", "medium", "--frames", "1", "--threads", "1", "--qpa", "1")
OPTIONS = f"{' '.join(ARGUMENTS)} 4:2:0 BT.709 10 bits"

PEAK = 1023  #: of 10 bits
RED, BLUE = 0.2126, 0.0722  #: BT.709

Array = NDArray[np.float64]


def version() -> str | None:
    """What the installed encoder calls itself; None unless both programs are on the PATH."""
    if not (shutil.which(ENCODER) and shutil.which(DECODER)):
        return None
    said = subprocess.run([ENCODER, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+\.\d+[.\d]*", said)
    return f"VVenC {found[0] if found else 'of unknown version'}"


def compress(picture: Picture, quality: int) -> bytes:
    """`picture`, uint8 H x W x 3, at QP 63 - `quality`."""
    height, width, _ = picture.shape
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with tempfile.TemporaryDirectory(prefix="vvc-") as folder:
        source, target = Path(folder) / "picture.yuv", Path(folder) / "picture.266"
        source.write_bytes(to_planes(padded))
        size = f"{padded.shape[1]}x{padded.shape[0]}"
        layout = ["--size", size, "--format", "yuv420_10", "--fps", "1"]
        _run(ENCODER, "-i", source, "-o", target, *layout, "--qp", MAX_QP - quality, *ARGUMENTS)
        return struct.pack(">HH", width, height) + target.read_bytes()


def decompress(data: bytes) -> Picture:
    """The picture in what `compress` made."""
    width, height = struct.unpack(">HH", data[:4])
    with tempfile.TemporaryDirectory(prefix="vvc-") as folder:
        source, target = Path(folder) / "picture.266", Path(folder) / "picture.yuv"
        source.write_bytes(data[4:])
        _run(DECODER, "-b", source, "-o", target)
        return from_planes(target.read_bytes(), height + height % 2, width + width % 2)[:height, :width]


def to_planes(picture: Picture) -> bytes:
    """`picture`, of even sides, as the planes Y, Cb, Cr of 10 bits; chroma is the mean of each 2x2 block."""
    rgb = picture.astype(np.float64) / 255
    luma = RED * rgb[..., 0] + (1 - RED - BLUE) * rgb[..., 1] + BLUE * rgb[..., 2]
    blue = (rgb[..., 2] - luma) / (2 * (1 - BLUE)) + 0.5
    red = (rgb[..., 0] - luma) / (2 * (1 - RED)) + 0.5
    height, width = luma.shape
    small = [plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for plane in (blue, red)]
    return b"".join(np.rint(np.clip(plane, 0, 1) * PEAK).astype("<u2").tobytes() for plane in (luma, *small))


def from_planes(data: bytes, height: int, width: int) -> Picture:
    """The inverse of `to_planes`, chroma interpolated between the centres of its blocks."""
    samples = np.frombuffer(data, "<u2") / PEAK
    if samples.size != height * width * 3 // 2:
        raise UserError(f"{DECODER} wrote {samples.size} samples for a picture of {width}x{height}")
    luma, blue, red = np.split(samples, [height * width, height * width * 5 // 4])
    y = luma.reshape(height, width)
    cb, cr = (_doubled(plane.reshape(height // 2, width // 2)) - 0.5 for plane in (blue, red))
    r, b = y + 2 * (1 - RED) * cr, y + 2 * (1 - BLUE) * cb
    g = (y - RED * r - BLUE * b) / (1 - RED - BLUE)
    return np.rint(np.clip(np.stack([r, g, b], axis=-1), 0, 1) * 255).astype(np.uint8)


def _doubled(plane: Array) -> Array:
    """A plane at twice its size by linear interpolation, edges repeated."""
    for axis in (0, 1):
        before = np.concatenate([plane.take([0], axis), plane.take(range(plane.shape[axis] - 1), axis)], axis)
        after = np.concatenate([plane.take(range(1, plane.shape[axis]), axis), plane.take([-1], axis)], axis)
        pair = np.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis + 1)
        plane = pair.reshape([side * (2 if i == axis else 1) for i, side in enumerate(plane.shape)])
    return plane


def _run(program: str, *arguments: object) -> None:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"{program} failed: {last}")
