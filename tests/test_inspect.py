"""`submission.inspect`: what it says adds up to the bytes of the file, for every entropy model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from submission import bitstream, inspect
from submission.ladder import Ladder
from tests.commands import assert_refused, call
from tests.conftest import noise_picture


def check(ladder: Ladder, quality: int, size: tuple[int, int]) -> inspect.Inspection:
    """The laws for one stream."""
    stream = ladder.codec(quality).compress(noise_picture(*size))
    found = inspect.inspect(ladder, stream)
    header = bitstream.read_header(stream)
    assert {name: getattr(found, name) for name in vars(header)} == vars(header)
    assert found.bytes == len(stream) and found.bpp == 8 * len(stream) / (size[0] * size[1])
    # a range coder ends within two words of what the probabilities say, and cannot do better but for cut-off zeros
    assert -8 <= found.end_bytes <= 8
    assert found.header_bytes + found.z_bytes + found.y_bytes + found.end_bytes == pytest.approx(len(stream))
    height, width = (-(-side // 64) * 4 for side in size)
    assert found.map.shape == (height, width) and (found.map >= 0).all()
    assert found.map.sum() == pytest.approx(8 * (found.z_bytes + found.y_bytes))
    assert sum(found.symbol_bits.values()) == pytest.approx(8 * found.y_bytes)
    coded = sum(count for kind, count in found.symbols.items() if kind != "escaped")
    assert coded == height * width * ladder.codec(quality).config.M
    return found


@pytest.mark.parametrize("size", [(1, 1), (70, 130)])
def test_it_adds_up(ladder_folder: Path, size: tuple[int, int]) -> None:
    ladder = Ladder.load(ladder_folder)
    kinds = {kind for quality in ladder.qualities for kind, n in check(ladder, quality, size).symbols.items() if n}
    assert kinds >= {"narrow", "wide", "any"} or size == (1, 1)


def test_it_adds_up_for_every_network(networks_folder: Path) -> None:
    ladder = Ladder.load(networks_folder)
    for quality in ladder.qualities:
        check(ladder, quality, (70, 130))


def test_the_map_is_where_the_detail_is() -> None:
    """Of a picture that is flat on the left the weights that ship spend their bits on the right."""
    ladder = Ladder.load()
    picture = np.full((128, 256, 3), 120, np.uint8)
    picture[:, 128:] = noise_picture(128, 128)
    found = inspect.inspect(ladder, ladder.codec(2).compress(picture))
    assert found.map[:, 8:].sum() > 5 * found.map[:, :8].sum()
    sheet = np.asarray(inspect.draw(found.map, picture))
    assert sheet[:128, 128:256].mean() > sheet[:128, :128].mean() + 20


def test_looking_on_changes_nothing(ladder_folder: Path) -> None:
    ladder = Ladder.load(ladder_folder)
    stream = ladder.codec(1).compress(noise_picture(70, 60))
    before = ladder.decompress(stream)
    inspect.inspect(ladder, stream)
    assert np.array_equal(ladder.decompress(stream), before)
    assert ladder.codec(1).compress(noise_picture(70, 60)) == stream


def test_the_command(ladder_folder: Path, tmp_path: Path) -> None:
    ladder = Ladder.load(ladder_folder)
    path, chart = tmp_path / "a.clic", tmp_path / "rate.png"
    path.write_bytes(ladder.codec(1).compress(noise_picture(100, 90)))
    weights = ("--weights", ladder_folder)
    text = call(inspect.main, path, *weights)
    assert text.code == 0 and "90 x 100" in text.stdout and "quality 1" in text.stdout
    result = call(inspect.main, path, "--json", "--map", chart, *weights)
    found = json.loads(result.stdout)
    assert (found["width"], found["height"], found["bytes"]) == (90, 100, path.stat().st_size)
    assert found["symbols"].keys() == {"certain", "narrow", "wide", "any", "escaped"}
    with Image.open(chart) as sheet:
        assert sheet.width >= 90 and sheet.height > 100


def test_bad_input(ladder_folder: Path, tmp_path: Path) -> None:
    weights = ("--weights", ladder_folder)
    stream = Ladder.load(ladder_folder).codec(0).compress(noise_picture(20, 20))
    for name, data in {
        "empty": b"",
        "text": b"hello, world",
        "cut": stream[:-1],
        "flipped": stream[:-1] + b"x",
    }.items():
        path = tmp_path / f"{name}.clic"
        path.write_bytes(data)
        assert_refused(call(inspect.main, path, "--map", tmp_path / "rate.png", *weights), f"{name}.clic: ")
    assert_refused(call(inspect.main, tmp_path / "none.clic", *weights), "none.clic: No such file")
    assert_refused(call(inspect.main, tmp_path, *weights), "Is a directory")
    (tmp_path / "whole.clic").write_bytes(stream)
    assert_refused(call(inspect.main, tmp_path / "whole.clic"), "other weights")
    assert_refused(call(inspect.main, tmp_path / "whole.clic", "--map", tmp_path / "rate.tif", *weights), ".png")
    assert not (tmp_path / "rate.png").exists()
