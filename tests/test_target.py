"""`submission.encode --bpp` and `--bytes`: the best model that fits, in each picture, or a refusal that helps."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from submission import bitstream, encode
from submission.errors import ImageError, UserError
from submission.files import read_image
from submission.ladder import Ladder
from submission.target import Target, compress_under
from tests.commands import Result, assert_refused, call
from tests.conftest import noise_picture

SIZES = [(1, 1), (3, 70), (64, 64), (100, 130)]


def streams(ladder: Ladder, picture: np.ndarray) -> list[bytes]:
    """What every model makes of it."""
    return [ladder.codec(quality).compress(picture) for quality in ladder.qualities]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flat", [False, True])
def test_the_best_model_that_fits(ladder_folder: Path, size: tuple[int, int], flat: bool) -> None:
    """At every limit that changes anything: the stream fits, and none of a better model does."""
    ladder = Ladder.load(ladder_folder)
    picture = np.full((*size, 3), 90, np.uint8) if flat else noise_picture(*size)
    every = streams(ladder, picture)
    least = min(map(len, every))
    for limit in sorted({len(stream) + more for stream in every for more in (-1, 0, 1)}):
        if limit < least:
            with pytest.raises(ImageError, match=rf"smallest possible are {least:,}, with --bytes {least}"):
                compress_under(ladder, picture, Target(bytes=limit))
            continue
        quality, stream = compress_under(ladder, picture, Target(bytes=limit))
        assert stream == every[quality] and len(stream) <= limit
        assert all(len(better) > limit for better in every[quality + 1 :])


class OneSize:
    """A ladder whose models make streams of these sizes, whatever the picture."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.qualities = list(range(len(sizes)))

    def codec(self, quality: int) -> "OneSize":
        return OneSize(self.sizes[quality : quality + 1])

    def compress(self, picture: np.ndarray) -> bytes:
        return bytes(self.sizes[0])


@given(st.lists(st.integers(11, 40), min_size=1, max_size=6), st.integers(1, 45))
def test_sizes_need_not_rise_with_the_quality(sizes: list[int], limit: int) -> None:
    fitting = [quality for quality, size in enumerate(sizes) if size <= limit]
    ladder, picture = OneSize(sizes), noise_picture(1, 1)
    if fitting:
        assert compress_under(ladder, picture, Target(bytes=limit))[0] == max(fitting)  # type: ignore[arg-type]
    else:
        with pytest.raises(ImageError, match=f"--bytes {min(sizes)}$"):
            compress_under(ladder, picture, Target(bytes=limit))  # type: ignore[arg-type]


@given(st.integers(1, 65535), st.integers(1, 4000), st.decimals("0.001", "24", places=4))
def test_rates_are_exact(height: int, width: int, bpp: object) -> None:
    """The limit is the most bytes of at most that rate, and the rate that is named for more holds them."""
    pixels = height * width
    limit = Target(bpp=str(bpp)).limit(pixels)
    assert Fraction(8 * limit, pixels) <= Fraction(str(bpp)) < Fraction(8 * (limit + 1), pixels)
    option, value = Target(bpp=str(bpp)).reachable(limit + 1, pixels).split()
    if 8 * (limit + 1) > 1000 * pixels:
        assert (option, int(value)) == ("--bytes", limit + 1)
        return
    assert option == "--bpp" and Target(bpp=value).limit(pixels) >= limit + 1
    below = Fraction(value) - Fraction(1, 10**6)
    assert below <= 0 or below * pixels < 8 * (limit + 1)


@pytest.mark.parametrize("bad", ["0", "-1", "nan", "inf", "much"])
def test_rates_that_are_none(bad: str) -> None:
    with pytest.raises(UserError, match="--bpp"):
        Target(bpp=bad)


def test_the_command(ladder_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """Each picture gets its own model and says so; one that cannot be made so small is named, the others are done."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(pictures / "a.png").save(folder / "a.png")
    Image.open(pictures / "b.png").convert("L").save(folder / "grey.png")
    Image.new("RGB", (2, 3), (9, 9, 9)).save(folder / "tiny.png")
    ladder = Ladder.load(ladder_folder)
    named = [read_image(folder / f"{name}.png") for name in ("a", "grey")]
    rate = max(8 * min(map(len, streams(ladder, picture))) / picture[:, :, 0].size for picture in named) + 0.01
    out = tmp_path / "out"
    result = call(encode.main, folder, "-o", out, "--bpp", f"{rate:.4f}", "--weights", ladder_folder)
    assert result.code == 2 and result.stderr.count("\n") == 1
    assert "tiny.png: " in result.stderr and not (out / "tiny.clic").exists()
    for name in ("a", "grey"):
        data = (out / f"{name}.clic").read_bytes()
        picture = read_image(folder / f"{name}.png")
        quality, stream = compress_under(ladder, picture, Target(bpp=f"{rate:.4f}"))
        assert data == stream and bitstream.read_header(data).quality == quality
        said = f"{name}.png: quality {quality}, {len(data):,} bytes of "
        assert said in result.stdout and f"{8 * len(data) / picture[:, :, 0].size:.4f} bpp" in result.stdout
    assert "2 of 3 pictures" in result.stdout

    option = re.search(r"--bpp ([\d.]+)", result.stderr)
    assert option is not None
    again = call(encode.main, folder / "tiny.png", "-o", out, "--bpp", option[1], "--weights", ladder_folder)
    assert again.code == 0 and (out / "tiny.clic").exists()


def test_what_the_command_refuses(ladder_folder: Path, pictures: Path, tmp_path: Path) -> None:
    def encoding(*options: object) -> Result:
        return call(encode.main, pictures / "a.png", "-o", tmp_path / "out", "--weights", ladder_folder, *options)

    assert_refused(encoding("--bpp", "0"), "--bpp 0")
    assert_refused(encoding("--bytes", 0), "--bytes 0")
    assert not (tmp_path / "out").exists()
    assert_refused(encoding("--bytes", 12), "a.png", "12 bytes are not enough", "--bytes")
    assert encoding("--bytes", 5000, "-q", 1).code == 2
    assert encoding("--bytes", 5000, "--bpp", "1").code == 2
