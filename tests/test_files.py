"""Pictures in, streams and PNGs out: what is accepted, what is refused, and that nothing is left half-written."""

import ctypes
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from submission import decode, encode
from submission.bitstream import read_header
from submission.codec import Codec
from submission.errors import ImageError, UserError
from submission.files import Picture, exchange, list_images, read_image, write_bytes, write_png
from tests.commands import Result, assert_refused, call
from tests.conftest import noise_picture, run_module

RGB = noise_picture(20, 30)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_is_read_exactly(tmp_path: Path) -> None:
    assert np.array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(RGB))), RGB)


def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = read_image(save(tmp_path / "a.png", Image.fromarray(RGB[:, :, 0])))
    assert np.array_equal(grey, np.repeat(RGB[:, :, :1], 3, 2))
    palette = Image.fromarray(RGB).quantize(64)
    assert np.array_equal(read_image(save(tmp_path / "b.png", palette)), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(RGB[:, :, 0] > 128)
    assert set(np.unique(read_image(save(tmp_path / "c.png", bilevel)))) == {0, 255}


def test_16_bit_grey_is_rounded_not_clipped(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 257 // 2, dtype=np.uint16)[None].repeat(2, 0)
    found = read_image(save(tmp_path / "a.png", Image.fromarray(values)))
    assert np.array_equal(found[0, :, 0], np.rint(values[0] / 257))


def test_grey_of_more_than_8_bits_in_a_pgm_is_rounded_too(tmp_path: Path) -> None:
    values = np.arange(1024, dtype=">u2").reshape(32, 32)
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 1023\n" + values.tobytes())
    found = read_image(tmp_path / "a.pgm")
    assert np.abs(found[:, :, 0] - values / 1023 * 255).max() <= 0.51


def profile(**changes: object) -> bytes:
    """Of sRGB, or where `space` says so of grey: as Pillow's own profiles have it, with the space's name changed."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if changes.get("space") == "GRAY":
        made[16:20] = b"GRAY"
    return bytes(made)


def test_a_profile_for_other_samples_says_nothing(tmp_path: Path) -> None:
    grey = Image.fromarray(RGB[:, :, 0])
    expected = np.repeat(RGB[:, :, :1], 3, 2)
    assert np.array_equal(read_image(save(tmp_path / "a.png", grey, icc_profile=profile())), expected)
    opaque = Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
    assert np.array_equal(read_image(save(tmp_path / "b.png", opaque, icc_profile=profile())), expected)
    foreign = profile(space="GRAY")
    assert np.array_equal(read_image(save(tmp_path / "c.png", Image.fromarray(RGB), icc_profile=foreign)), RGB)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_profile_of_other_primaries_is_converted(tmp_path: Path, mode: str) -> None:
    """With red and blue swapped, sRGB's own profile makes red of blue."""
    swapped = bytearray(profile())
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = bytearray(
        bytes(swapped).replace(b"sRGB", b"xRGB").replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
    )
    blue_picture = Image.new("RGB", (20, 20), (0, 0, 255)).convert(mode)
    path = save(tmp_path / "a.png", blue_picture, icc_profile=bytes(swapped))
    found = read_image(path)
    assert found[0, 0, 0] > 250 and found[0, 0, 2] < 5
    assert np.array_equal(read_image(path, as_stored=True), np.asarray(Image.open(path).convert("RGB")))


def test_a_transparent_shade_of_16_bit_grey_is_refused_where_it_occurs(tmp_path: Path) -> None:
    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    path = save(tmp_path / "a.png", Image.fromarray(values), transparency=399)
    with pytest.raises(ImageError, match="flatten"):
        read_image(path)
    assert read_image(save(path, Image.fromarray(values), transparency=400)).shape == (20, 20, 3)


def test_transparency_is_refused_unless_it_shows_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(opaque))), RGB)
    opaque[3, 4, 3] = 254
    with pytest.raises(ImageError, match="flatten"):
        read_image(save(tmp_path / "b.png", Image.fromarray(opaque)))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    path = save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, -1))
    assert np.array_equal(read_image(path, as_stored=True), RGB)


def test_icc_profiles_are_converted(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = read_image(save(tmp_path / "a.png", Image.fromarray(RGB), icc_profile=lab))
    assert np.array_equal(found, RGB)
    save(tmp_path / "b.png", Image.fromarray(RGB), icc_profile=b"not a profile")
    with pytest.raises(ImageError):
        read_image(tmp_path / "b.png")


def test_cmyk_is_read(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB).convert("CMYK")
    assert read_image(save(tmp_path / "a.tif", picture)).shape == RGB.shape


def test_a_damaged_exif_block_costs_one_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), exif=b"MM\0*")
    with pytest.raises(ImageError, match=r"a\.png: not a readable picture"):
        read_image(path)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder", "float"])
def test_unreadable_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        buffer = io.BytesIO()
        Image.fromarray(noise_picture(100, 100)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:2000])
    elif kind == "folder":
        path.mkdir()
    elif kind == "float":
        path = save(tmp_path / "a.tif", Image.fromarray(RGB[:, :, 0].astype(np.float32)))
    with pytest.raises(ImageError, match="a\\."):
        read_image(path)


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (65536, 2)).save(tmp_path / "wide.png")
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "wide.png")
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError):
        read_image(tmp_path / "bomb.png")


def test_listing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures"):
        list_images([tmp_path])
    with pytest.raises(UserError, match="no such"):
        list_images([tmp_path / "x"])
    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images([tmp_path])] == ["a.jpg", "b.png"]
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="rename"):
        list_images([tmp_path])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("swaps", [True, False])
def test_exchange_leaves_one_or_the_other(tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new", tmp_path / "sub mission"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if not swaps:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    exchange(new, old)
    assert ((new / "name").read_text(), (old / "name").read_text()) == ("sub mission", "new")
    assert len(list(tmp_path.iterdir())) == 2


def test_interrupted_exchange_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    for name in ("new", "target", "target.old"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"target\.old"):
        exchange(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target").exists()


def test_png_is_lossless(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RGB)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), RGB)


def test_encode_and_decode_commands(ladder_folder: Path, pictures: Path, tmp_path: Path) -> None:
    weights = ("--weights", ladder_folder)
    made = run_module("submission.encode", pictures, "-o", tmp_path / "s", "-q", 1, *weights)
    assert made.returncode == 0 and "bpp" in made.stdout, made.stderr
    (tmp_path / "s" / "bad.clic").write_bytes(b"\x20" + bytes(40))
    back = run_module("submission.decode", tmp_path / "s", "-o", tmp_path / "d", *weights)
    assert_refused(Result(back.returncode, back.stdout, back.stderr), "bad.clic")  # the others are decoded all the same
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["a.png", "b.png", "c.png"]
    for path in pictures.iterdir():
        assert Image.open(tmp_path / "d" / path.name).size == Image.open(path).size


def test_what_the_commands_say_to_mistakes(
    ladder_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ("--weights", ladder_folder)
    assert_refused(call(encode.main, pictures, "-o", tmp_path, "--weights", tmp_path), "no weights")
    assert_refused(call(encode.main, pictures, "-o", tmp_path, "-q", 9, *weights), "no model of quality 9")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(call(encode.main, empty, "-o", tmp_path, *weights), "no pictures")
    monkeypatch.chdir(empty)
    assert_refused(call(decode.main), "no streams")
    damaged = tmp_path / "weights"
    shutil.copytree(ladder_folder, damaged)
    with (damaged / "model_1.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert_refused(call(encode.main, pictures, "-o", tmp_path / "s", "-q", 1, "--weights", damaged), "SHA-256")
    assert not (tmp_path / "s").exists()
    (damaged / "manifest.json").write_text("{}")
    assert_refused(call(encode.main, pictures, "-o", tmp_path, "--weights", damaged), "not a manifest")


def test_one_picture_too_large_for_memory_spares_the_others(
    ladder_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = Codec.compress

    def scarce(self: Codec, picture: Picture) -> bytes:
        if picture.shape[:2] == np.asarray(Image.open(pictures / "b.png")).shape[:2]:
            raise MemoryError
        return compress(self, picture)

    monkeypatch.setattr(Codec, "compress", scarce)
    result = call(encode.main, pictures, "-o", tmp_path, "--weights", ladder_folder)
    assert_refused(result, "b.png", "not enough memory")
    assert sorted(path.name for path in tmp_path.glob("*.clic")) == ["a.clic", "c.clic"]


def test_a_stream_that_cannot_be_written_spares_the_others(ladder_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "b.clic").mkdir()
    result = call(encode.main, pictures, "-o", tmp_path, "--weights", ladder_folder)
    assert_refused(result, "cannot write", "b.clic")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.clic", "c.clic"]


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes
    write_bytes(path, b"all")
    assert path.read_bytes() == b"all"


def test_encoding_as_stored(ladder_folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    for option, size in (((), (20, 30)), (("--as-stored",), (30, 20))):
        result = call(encode.main, tmp_path / "a.png", "-o", tmp_path, "--weights", ladder_folder, *option)
        assert result.code == 0, result
        header = read_header((tmp_path / "a.clic").read_bytes())
        assert (header.width, header.height) == size


def test_names_that_are_no_text_are_printed(ladder_folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(noise_picture(64, 64)).save(tmp_path / name)
    made = run_module("submission.encode", tmp_path, "-o", tmp_path, "--bpp", 9, "--weights", ladder_folder)
    assert made.returncode == 0 and "caf\\udce9.png: quality" in made.stdout, made
