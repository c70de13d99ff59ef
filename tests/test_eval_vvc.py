"""The VVC peer: its colour conversion by laws, FFmpeg's VVenC for real, VVenC's own programs by stand-ins that take the
same arguments."""

import importlib.util
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import peers
from eval.codecs import vvc
from eval.codecs.peer import PEERS
from submission.errors import UserError
from tests.conftest import noise_picture

VVC = next(peer for peer in PEERS if peer.name == "vvc")

#: Keeps the planes as they are, behind a note of the arguments.
ENCODER = """#!/usr/bin/env python3
import sys
from pathlib import Path
if "--version" in sys.argv:
    print("vvencapp: Fraunhofer VVC Encoder ver. 1.13.1")
    sys.exit()
at = {name: value for name, value in zip(sys.argv[1::2], sys.argv[2::2])}
width, height = map(int, at["--size"].split("x"))
assert width % 2 == height % 2 == 0 and at["--format"] == "yuv420_10" and at["--frames"] == "1"
planes = Path(at["-i"]).read_bytes()
assert len(planes) == width * height * 3
Path(at["-o"]).write_bytes(f"{int(at['--qp']):3}".encode() + planes)
"""
DECODER = """#!/usr/bin/env python3
import sys
from pathlib import Path
at = {name: value for name, value in zip(sys.argv[1::2], sys.argv[2::2])}
Path(at["-o"]).write_bytes(Path(at["-b"]).read_bytes()[3:])
"""


FFMPEG = pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg not installed")


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    install(folder, vvc.ENCODER, ENCODER)
    install(folder, vvc.DECODER, DECODER)
    monkeypatch.setenv("PATH", f"{folder}:/usr/local/bin:/usr/bin:/bin")
    return folder


@pytest.mark.parametrize("value", [0, 1, 77, 128, 254, 255])
def test_flat_colours_survive_the_conversion(value: int) -> None:
    for colour in ((value, value, value), (value, 0, 255), (10, value, 200)):
        picture = np.full((4, 6, 3), colour, np.uint8)
        back = vvc.from_planes(vvc.to_planes(picture), 4, 6)
        assert np.abs(back.astype(int) - picture).max() <= 1


def test_luma_is_kept_where_colour_is_not() -> None:
    picture = noise_picture(32, 48)
    back = vvc.from_planes(vvc.to_planes(picture), 32, 48)
    luma = np.array([0.2126, 0.7152, 0.0722])
    inside = (back.min(-1) > 0) & (back.max(-1) < 255)  # nothing was clipped
    assert np.abs((back - picture.astype(float)) @ luma)[inside].max() < 1


def test_chroma_is_interpolated_between_blocks() -> None:
    plane = np.arange(12, dtype=np.float64).reshape(3, 4)
    doubled = vvc._doubled(plane)
    assert doubled.shape == (6, 8)
    assert doubled.reshape(3, 2, 4, 2).mean((1, 3))[1, 1:3] == pytest.approx(plane[1, 1:3])
    assert doubled[0, :3] == pytest.approx([0, 0.25, 0.75])


@pytest.fixture
def only_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no vvencapp


@FFMPEG
@pytest.mark.usefixtures("only_ffmpeg")
@pytest.mark.parametrize("height, width", [(64, 96), (63, 95), (8, 8)])
def test_ffmpeg_codes_a_smooth_picture_of_any_size(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 2, columns * 2, 255 - rows - columns], axis=-1).astype(np.uint8)
    errors, sizes = [], []
    for quality in (13, 39):
        data = VVC.compress(picture, quality)
        assert data == VVC.compress(picture, quality)
        decoded = VVC.decompress(data)
        assert decoded.shape == picture.shape
        errors.append(np.square(decoded.astype(float) - picture).mean())
        sizes.append(len(data))
    assert errors[1] < 4 and errors[1] <= errors[0]
    assert sizes[0] <= sizes[1]


@FFMPEG
@pytest.mark.usefixtures("only_ffmpeg")
def test_ffmpeg_that_fails_is_quoted() -> None:
    assert "FFmpeg" in VVC.settings
    with pytest.raises(UserError, match=r"ffmpeg.* failed: "):
        VVC.decompress(b"\0\x08\0\x08 no stream")


@pytest.mark.parametrize("height, width", [(32, 48), (31, 47), (1, 1)])
def test_any_size_comes_back(programs: Path, height: int, width: int) -> None:
    picture = noise_picture(height, width)
    data = VVC.compress(picture, 31)
    assert data[4:7] == b" 32"  # QP 63 - 31
    decoded = VVC.decompress(data)
    assert decoded.shape == picture.shape
    assert np.abs(decoded.mean((0, 1)) - picture.mean((0, 1))).max() < 3


def test_is_measured_like_any_other(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(noise_picture(20, 30)).save(folder / "a.png")
    assert VVC.settings.startswith("VVenC 1.13.1 preset medium")
    table = peers.measure(folder, tmp_path / "out", peers.available(["vvc"]))["vvc"]
    assert len(table.read_text().splitlines()) == 1 + len(vvc.QUALITIES)


def test_without_the_programs_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], programs: Path
) -> None:
    (programs / vvc.DECODER).chmod(stat.S_IRUSR)
    monkeypatch.setattr(vvc, "_ffmpeg", lambda: None)
    assert peers.available(["vvc"]) == []
    assert "vvc is left out; it needs pip install imageio-ffmpeg" in capsys.readouterr().err


def test_a_program_that_fails_is_quoted(programs: Path) -> None:
    install(programs, vvc.ENCODER, "#!/bin/sh\necho 'error: no such preset' >&2; exit 1")
    with pytest.raises(UserError, match="vvencapp failed: error: no such preset"):
        VVC.compress(noise_picture(4, 4), 20)
    install(programs, vvc.ENCODER, ENCODER)
    data = VVC.compress(noise_picture(4, 4), 20)
    with pytest.raises(UserError, match="the VVC decoder wrote"):
        VVC.decompress(data[:-2])
