"""The plug-in for Pillow: *.clic behaves as Pillow's own formats do, and leaves those alone."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from submission import bitstream, pillow
from submission.files import Picture
from submission.ladder import Ladder
from tests.conftest import noise_picture

PICTURE = noise_picture(70, 100)


@pytest.fixture(autouse=True)
def weights(ladder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ladder]:
    monkeypatch.setattr(pillow, "WEIGHTS", ladder_folder)
    yield pillow.ladder(ladder_folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream of model 1."""
    found = tmp_path / "photo.clic"
    Image.fromarray(PICTURE).save(found, quality=1)
    return found


def with_size(stream: bytes, height: int, width: int) -> bytes:
    """The stream with another size in its header, and a checksum that is right."""
    header, payload = bitstream.read(stream)
    return bitstream.write(bitstream.Header(**{**vars(header), "height": height, "width": width}), payload)


def test_saved_and_opened_as_the_codec_does(weights: Ladder, path: Path) -> None:
    assert path.read_bytes() == weights.codec(1).compress(PICTURE)
    with Image.open(path) as opened:
        assert (opened.format, opened.mode, opened.size) == ("CLIC", "RGB", (100, 70))
        assert opened.info["quality"] == 1 and opened.get_format_mimetype() == pillow.MIME
        assert np.array_equal(np.asarray(opened), weights.decompress(path.read_bytes()))
        assert np.array_equal(np.asarray(opened.crop((3, 4, 20, 30))), np.asarray(opened)[4:30, 3:20])


def test_without_a_quality_it_is_the_middle_one(weights: Ladder) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "CLIC")
    assert buffer.getvalue() == weights.codec(1).compress(PICTURE)


def test_nothing_is_decoded_before_it_is_needed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def decompress(_: Ladder, stream: bytes) -> Picture:
        decoded.append(stream)
        return PICTURE

    monkeypatch.setattr(Ladder, "decompress", decompress)
    with Image.open(path) as opened:
        assert opened.size == (100, 70) and not decoded
        opened.load()
        opened.load()
        opened.getpixel((0, 0))
    assert len(decoded) == 1


def test_models_are_loaded_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.open(path).load()
    monkeypatch.setattr(Ladder, "load", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr("submission.ladder.read_safetensors", lambda *_: pytest.fail("read again"))
    Image.open(path).load()


def test_from_any_file_object_which_stays_open(path: Path) -> None:
    with path.open("rb") as file:
        image = Image.open(file)
        image.load()
        assert not file.closed
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(path.read_bytes()))))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image))), np.asarray(image))


def test_verify(weights: Ladder, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ladder, "decompress", lambda *_: pytest.fail("decoded"))
    Image.open(path).verify()
    header, payload = bitstream.read(path.read_bytes())
    for change in ({"model": header.model ^ 1}, {"quality": 7}):
        path.write_bytes(bitstream.write(bitstream.Header(**{**vars(header), **change}), payload))
        with pytest.raises(OSError, match="weights"):
            Image.open(path).verify()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "longer"])
def test_damaged_files_are_not_identified(path: Path, damage: str) -> None:
    stream = path.read_bytes()
    changed = {"cut": stream[:-3], "bit": stream[:-1] + bytes([stream[-1] ^ 4]), "empty": b"", "longer": stream + b"x"}
    path.write_bytes(changed[damage])
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)


def test_large_files_are_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photoshop's begin as a stream may."""
    monkeypatch.setattr(pillow, "MOST_STREAM", 1000)

    class File(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            File.asked = max(File.asked, len(found))
            return found

    with pytest.raises(UnidentifiedImageError):
        Image.open(File(b"8BPS" + bytes(10**6)))
    assert File.asked < 10**5


def test_damage_that_shows_only_in_decoding(path: Path) -> None:
    header, payload = bitstream.read(path.read_bytes())
    wrong = bitstream.Header(**{**vars(header), "latents_check": header.latents_check ^ 1})
    path.write_bytes(bitstream.write(wrong, payload))
    with Image.open(path) as opened, pytest.raises(OSError, match="checksum"):
        opened.load()


def test_missing_weights(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "WEIGHTS", tmp_path)
    with Image.open(path) as opened, pytest.raises(OSError, match="no weights"):
        opened.load()


def test_bombs(path: Path) -> None:
    stream = path.read_bytes()
    path.write_bytes(with_size(stream, 10_000, 10_000))
    with pytest.warns(Image.DecompressionBombWarning):
        opened = Image.open(path)
    with pytest.raises(OSError, match="more than this decoder takes"):
        opened.load()
    path.write_bytes(with_size(stream, 60_000, 60_000))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "CMYK", "RGBA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / "a.clic", quality=0)
    assert Image.open(tmp_path / "a.clic").mode == "RGB"


def test_what_is_not_saved_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.clic"
    seen_through = Image.fromarray(PICTURE)
    seen_through.putalpha(100)
    for image, options, error in (
        (seen_through, {}, OSError),
        (Image.new("F", (9, 9)), {}, OSError),
        (Image.fromarray(PICTURE), {"quality": 3}, ValueError),
        (Image.fromarray(PICTURE), {"quality": "best"}, ValueError),
    ):
        with pytest.raises(error):
            image.save(path, **options)
        assert not path.exists()


@pytest.mark.parametrize("format", ["EPS", "XBM", "TGA", "PDF"])
def test_other_formats_are_left_alone(format: str, tmp_path: Path) -> None:
    """Also those whose first byte is that of a stream, or that have no magic number."""
    path = tmp_path / f"a.{format.lower()}"
    Image.fromarray(PICTURE).convert("1" if format == "XBM" else "RGB").save(path)
    if format == "PDF":
        with pytest.raises(UnidentifiedImageError):
            Image.open(path)
    else:
        assert Image.open(path).format == format


def test_streams_are_not_taken_for_another_format(path: Path) -> None:
    """At heights whose bytes are those of a TGA's header."""
    Image.init()
    stream = path.read_bytes()
    for height in (1, 2, 3, 9, 10, 11, 257, 258, 259, 266):
        for width in range(1, 200):
            assert Image.open(io.BytesIO(with_size(stream, height, width))).format == "CLIC"
