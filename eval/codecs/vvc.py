"""VVC stills by Fraunhofer's VVenC: through its programs vvencapp and vvdecapp where they are on the PATH, else through
the FFmpeg of the package imageio-ffmpeg, which has VVenC inside and a VVC decoder of its own.

Both take and give raw 4:2:0 planes, so the conversion from and to RGB (BT.709, full range, 10 bits) happens here, and
a file of ours is the picture's width and height, 2 bytes each, then the encoder's stream: sides are padded to even
numbers, and to the least that VVenC takes.
"""

import functools
import importlib.util
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
from submission.processes import finish, how_it_ended, tied, watched

ENCODER, DECODER = "vvencapp", "vvdecapp"

#: Quantisation parameters run against quality, from 63 down.
MAX_QP = 63
QUALITIES = tuple(range(13, 41, 2))  # QP 50 to 24

ARGUMENTS = ("--preset", "medium", "--frames", "1", "--threads", "1", "--qpa", "1")
FFMPEG_ARGUMENTS = ("-c:v", "libvvenc", "-preset", "medium", "-threads", "1", "-qpa", "1")
OPTIONS = "preset medium, perceptual QP adaptation, 4:2:0 BT.709 10 bits"

LEAST_SIDE = 16
PEAK = 1023  #: of 10 bits
RED, BLUE = 0.2126, 0.0722  #: BT.709

Array = NDArray[np.float64]


def version() -> str | None:
    """What encodes; None where nothing does."""
    if _programs():
        said = _ended(ENCODER, "--version")[1].decode(errors="replace")
        found = re.search(r"\d+\.\d+[.\d]*", said)
        return f"VVenC {found[0] if found else 'of unknown version'}"
    ffmpeg = _ffmpeg()
    if ffmpeg is None or "libvvenc" not in _run(ffmpeg, "-hide_banner", "-encoders").decode():
        return None
    return f"VVenC in FFmpeg {_run(ffmpeg, '-version').decode().split()[2]}"


def compress(picture: Picture, quality: int) -> bytes:
    """`picture`, uint8 H x W x 3, at QP 63 - `quality`."""
    height, width, _ = picture.shape
    padded = np.pad(picture, ((0, _side(height) - height), (0, _side(width) - width), (0, 0)), mode="edge")
    planes, size = to_planes(padded), f"{padded.shape[1]}x{padded.shape[0]}"
    encode = _encode_with_programs if _programs() else _encode_with_ffmpeg
    return struct.pack(">HH", width, height) + encode(planes, size, MAX_QP - quality)


def decompress(data: bytes) -> Picture:
    """The picture in what `compress` made."""
    width, height = struct.unpack(">HH", data[:4])
    planes = (_decode_with_programs if _programs() else _decode_with_ffmpeg)(data[4:])
    return from_planes(planes, _side(height), _side(width))[:height, :width]


def _side(length: int) -> int:
    """What a side of `length` is padded to."""
    return max(length + length % 2, LEAST_SIDE)


def _programs() -> bool:
    return bool(shutil.which(ENCODER) and shutil.which(DECODER))


@functools.cache
def _ffmpeg() -> str | None:
    """The FFmpeg of imageio-ffmpeg, if that is installed."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg

    try:
        program: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:  # the package has no program for this machine
        return None
    return program


def _encode_with_programs(planes: bytes, size: str, qp: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vvc-") as folder:
        source, target = Path(folder) / "picture.yuv", Path(folder) / "picture.266"
        source.write_bytes(planes)
        layout = ["--size", size, "--format", "yuv420_10", "--fps", "1"]
        _run(ENCODER, "-i", source, "-o", target, *layout, "--qp", qp, *ARGUMENTS)
        return target.read_bytes()


def _decode_with_programs(stream: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vvc-") as folder:
        source, target = Path(folder) / "picture.266", Path(folder) / "picture.yuv"
        source.write_bytes(stream)
        _run(DECODER, "-b", source, "-o", target)
        return target.read_bytes()


RAW = ("-f", "rawvideo", "-pix_fmt", "yuv420p10le")


def _encode_with_ffmpeg(planes: bytes, size: str, qp: int) -> bytes:
    layout = [*RAW, "-video_size", size, "-framerate", 1, "-i", "pipe:"]
    return _run_ffmpeg(*layout, *FFMPEG_ARGUMENTS, "-qp", qp, "-f", "vvc", "pipe:", given=planes)


def _decode_with_ffmpeg(stream: bytes) -> bytes:
    return _run_ffmpeg("-threads", 1, "-f", "vvc", "-i", "pipe:", *RAW, "pipe:", given=stream)


def _run_ffmpeg(*arguments: object, given: bytes) -> bytes:
    ffmpeg = _ffmpeg()
    assert ffmpeg is not None, "the peer is left out without it"
    return _run(ffmpeg, "-hide_banner", "-loglevel", "error", *arguments, given=given)


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
        raise UserError(f"the VVC decoder wrote {samples.size} samples for a picture of {width}x{height}")
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


def _run(program: str, *arguments: object, given: bytes = b"") -> bytes:
    code, out, err = _ended(program, *arguments, given=given)
    if code:
        said = (err.strip() or out.strip()).decode(errors="replace") or how_it_ended(code)
        raise UserError(f"{Path(program).name} failed: {said.splitlines()[-1]}")
    return out


def _ended(program: str, *arguments: object, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """The exit code of `program` and what it wrote to stdout and stderr."""
    command, pipe = [program, *map(str, arguments)], subprocess.PIPE
    with tempfile.TemporaryFile() as source:
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(command, stdin=source, stdout=pipe, stderr=pipe, preexec_fn=tied())
    with watched(process):
        out, err = finish(process, Path(program).name)
    return process.returncode, out, err
