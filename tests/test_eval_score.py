"""eval.score: what it computes, and that every fault is named."""

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval import score
from metrics.clic import ms_ssim, squared_error
from submission.errors import UserError
from tests.commands import assert_refused, call
from tests.conftest import noise_picture, run_module


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three originals, coarser copies of them as decoded PNGs, and their streams of 100, 200 and 300 bytes."""
    originals, decoded, streams = (tmp_path / name for name in ("originals", "decoded", "streams"))
    for folder in (originals, decoded, streams):
        folder.mkdir()
    for i, (name, height, width) in enumerate([("a.png", 170, 180), ("b.webp", 33, 47), ("c.bmp", 161, 90)]):
        picture = noise_picture(height, width)
        Image.fromarray(picture).save(originals / name, lossless=True)
        stem = Path(name).stem
        Image.fromarray(picture & np.uint8(0xF0)).save(decoded / f"{stem}.png")
        (streams / f"{stem}.clic").write_bytes(bytes(100 * (i + 1)))
    return originals, decoded, streams


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["score", *map(str, arguments)])
    return score.main()


def test_scores_are_the_metrics_of_the_files(folders: tuple[Path, Path, Path]) -> None:
    originals, decoded, streams = folders
    found = score.score_pictures(originals, decoded, score.find_streams(streams))
    assert [s.image for s in found] == ["a", "b", "c"]
    assert [s.bytes for s in found] == [100, 200, 300]
    for s in found:
        picture = noise_picture(s.height, s.width)
        assert s.msssim == ms_ssim(picture, picture & np.uint8(0xF0))
        assert s.sse == squared_error(picture, picture & np.uint8(0xF0))
    total = score.pool(found)
    assert total.msssim == pytest.approx(sum(s.msssim * s.pixels for s in found) / sum(s.pixels for s in found))


def test_json_csv_and_table(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    originals, decoded, streams = folders
    files = ["--json", tmp_path / "new/score.json", "--csv", tmp_path / "score.csv"]
    done = run_module("eval.score", originals, decoded, "--streams", streams, "--bpp", "1", *files)
    assert done.returncode == 0, done.stderr
    pixels = 170 * 180 + 33 * 47 + 161 * 90
    written = json.loads((tmp_path / "new/score.json").read_text())
    assert (written["bytes"], written["pixels"], written["images"]) == (600, pixels, 3)
    assert written["bpp"] == pytest.approx(8 * 600 / pixels)
    assert written["cap"] == math.ceil(pixels / 8)
    lines = pd.read_csv(tmp_path / "score.csv")
    assert list(lines["image"]) == ["a", "b", "c"]
    assert written["msssim"] == pytest.approx(np.average(lines["msssim"], weights=lines["width"] * lines["height"]))
    assert f"{written['msssim']:.5f}" in done.stdout
    assert "600 of" in done.stdout


def test_over_the_cap_still_scores_and_leaves_with_one(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    originals, decoded, streams = folders
    pixels = 170 * 180 + 33 * 47 + 161 * 90
    exact = f"{8 * 600 / pixels:.9f}"
    assert main(monkeypatch, originals, decoded, "--streams", streams, "--bpp", exact) == 0
    assert main(monkeypatch, originals, decoded, "--streams", streams, "--bpp", "0.05") == 1
    printed = capsys.readouterr().out
    assert "over the cap" in printed
    assert printed.count("MS-SSIM") == 2


def test_without_streams_there_is_no_rate(
    folders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals, decoded, _ = folders
    assert main(monkeypatch, originals, decoded, "--json", tmp_path / "score.json") == 0
    written = json.loads((tmp_path / "score.json").read_text())
    assert written["bytes"] is None
    assert written["bpp"] is None
    with pytest.raises(UserError, match="--streams"):
        main(monkeypatch, originals, decoded, "--bpp", "0.15")


def test_identical_pictures_give_valid_json(
    folders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals, decoded, _ = folders
    for path in originals.iterdir():
        Image.open(path).save(decoded / f"{path.stem}.png")
    assert main(monkeypatch, originals, decoded, "--json", tmp_path / "score.json") == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "score.json").read_text(), parse_constant=refuse)["msssim"] == pytest.approx(1)


def test_undefined_scores_are_named_and_count_as_zero(
    folders: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    originals, decoded, _ = folders
    Image.fromarray(255 - noise_picture(170, 180)).save(decoded / "a.png")
    assert main(monkeypatch, originals, decoded, "--json", tmp_path / "score.json") == 0
    assert "not defined for a: it counts as 0" in capsys.readouterr().out
    found = score.score_pictures(originals, decoded)
    assert math.isnan(found[0].msssim)
    expected = sum(s.msssim * s.pixels for s in found[1:]) / sum(s.pixels for s in found)
    assert json.loads((tmp_path / "score.json").read_text())["msssim"] == pytest.approx(expected)


def grey(path: Path) -> None:
    Image.open(path).convert("L").save(path)


def alpha(path: Path) -> None:
    Image.open(path).convert("RGBA").save(path)


def deep(path: Path) -> None:
    """A PNG of 16 bits a sample and of the same size, which Pillow reads as RGB."""
    data = bytearray(path.read_bytes())
    data[24] = 16
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)  # of the header
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * 47) for _ in range(33)))
    samples = b"IDAT" + rows
    chunk = len(rows).to_bytes(4) + samples + zlib.crc32(samples).to_bytes(4)
    path.write_bytes(data[:33] + chunk + b"\0\0\0\0IEND\xaeB`\x82")


def same_name(path: Path) -> None:
    (path.parent / "sub").mkdir()
    shutil.copy(path, path.parent / "sub" / path.name)


FAULTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "extra": lambda path: shutil.copy(path, path.with_name("b2.png")),
    "same name": same_name,
    "46x33": lambda path: Image.fromarray(noise_picture(33, 46)).save(path),
    "not 8-bit RGB": grey,
    "mode RGBA": alpha,
    "b.png: not 8-bit RGB (mode RGB)": deep,
    "unreadable": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "no image": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("named", FAULTS)
def test_each_fault_is_named(folders: tuple[Path, Path, Path], named: str) -> None:
    originals, decoded, _ = folders
    FAULTS[named](decoded / "b.png")
    with pytest.raises(UserError) as caught:
        score.score_pictures(originals, decoded)
    message = str(caught.value).replace("cannot identify image file", "no image")
    assert named in message
    assert f"{decoded}/" in message or "b.png: missing" in message


def test_all_faults_are_named_at_once(folders: tuple[Path, Path, Path]) -> None:
    originals, decoded, _ = folders
    grey(decoded / "a.png")
    Image.fromarray(noise_picture(5, 5)).save(decoded / "c.png")
    with pytest.raises(UserError, match=r"a\.png: not 8-bit RGB.*c\.png: 5x5"):
        score.score_pictures(originals, decoded)


@pytest.mark.parametrize("broken", ["missing.png", "nowhere", "bpp", "empty bpp", "streams", "no originals"])
def test_command_leaves_with_two_and_one_line(folders: tuple[Path, Path, Path], broken: str) -> None:
    originals, decoded, streams = folders
    arguments: list[object] = [originals, decoded, "--streams", streams, "--bpp", "0.15"]
    if broken == "missing.png":
        (decoded / "c.png").unlink()
    elif broken == "nowhere":
        arguments[1] = decoded / "nowhere"
    elif broken == "bpp":
        arguments[-1] = "-1"
    elif broken == "empty bpp":  # a shell's variable that is not set
        arguments[-1] = ""
    elif broken == "streams":
        arguments[3] = decoded
    else:
        arguments[0] = streams
    done = call(score.main, *arguments)
    assert_refused(done)
    assert done.stdout == ""


def test_papers_means_are_named_and_are_other_numbers(
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    originals, decoded, streams = folders
    Image.fromarray(noise_picture(200, 177)).save(originals / "b.webp", lossless=True)  # odd, and large enough
    Image.fromarray(noise_picture(200, 177) & np.uint8(0xF0)).save(decoded / "b.png")
    for folder, name in ((originals, "c.bmp"), (decoded, "c.png")):
        (folder / name).unlink()
    file = tmp_path / "score.json"
    assert main(monkeypatch, originals, decoded, "--streams", streams, "--papers", "--json", file) == 0
    printed = capsys.readouterr().out
    assert "as papers print it, not the challenge's score:" in printed
    written = json.loads(file.read_text())
    found = score.score_pictures(originals, decoded, score.find_streams(streams))
    assert written["mean_msssim"] == pytest.approx((found[0].msssim + found[1].msssim) / 2)
    assert written["mean_psnr"] == pytest.approx((found[0].psnr + found[1].psnr) / 2)
    assert written["mean_bpp"] == pytest.approx(8 * (100 / (170 * 180) + 200 / (200 * 177)) / 2)
    import torch
    from pytorch_msssim import ms_ssim as theirs

    expected = []
    for height, width in ((170, 180), (200, 177)):
        picture = noise_picture(height, width)
        x, y = (torch.tensor(p.transpose(2, 0, 1)[None].copy()).float() for p in (picture, picture & np.uint8(0xF0)))
        expected.append(float(theirs(x, y, data_range=255)))
    assert written["mean_pytorch_msssim"] == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert abs(written["mean_pytorch_msssim"] - written["mean_msssim"]) > 1e-5, "odd sizes: another number"
    assert f"mean_pytorch_msssim  {written['mean_pytorch_msssim']:.5f}" in printed


def test_papers_values_of_small_pictures_and_without_the_package(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    originals, decoded, _ = folders
    file = tmp_path / "score.json"
    assert main(monkeypatch, originals, decoded, "--papers", "--json", file) == 0  # b has 47 x 33 pixels
    assert json.loads(file.read_text())["mean_pytorch_msssim"] is None
    monkeypatch.setitem(__import__("sys").modules, "pytorch_msssim", None)
    with pytest.raises(UserError, match="pip install pytorch-msssim"):
        main(monkeypatch, originals, decoded, "--papers")


def test_bad_sets_of_originals_are_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    originals, decoded, _ = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(call(score.main, empty, decoded), f"{empty}: no pictures in this folder")
    assert_refused(call(score.main, originals, empty), "a.png: missing", "b.png: missing", "c.png: missing")
    assert_refused(call(score.main, originals, decoded, "--streams", empty, "--bpp", "1"), "no streams")
    for pattern in ("", str(empty / "*.clic")):
        refused = call(score.main, originals, decoded, "--streams", empty, "--pattern", pattern)
        assert_refused(refused, f"--pattern {pattern!r}: give names")
    shutil.copy(originals / "a.png", originals / "b.png")
    assert_refused(call(score.main, originals, decoded), "b.png", "b.webp", "rename one")
    (originals / "b.png").unlink()
    (originals / "c.bmp").write_bytes(b"BM nothing")
    grey(decoded / "a.png")
    words = ["c.bmp: not a readable picture", "a.png: not 8-bit RGB"]
    assert_refused(call(score.main, originals, decoded), *words)
    assert_refused(call(score.main, originals, decoded, "--pattern", "*.bin"), "--pattern needs --streams")


def test_originals_count_as_they_are_stored(folders: tuple[Path, Path, Path]) -> None:
    """The organisers' code looks at neither rotation nor profile."""
    originals, decoded, _ = folders
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(originals / "a.png")
    picture.save(originals / "a.png", exif=exif)
    picture.save(decoded / "a.png")
    found = score.score_pictures(originals, decoded)
    assert found[0].msssim == 1
    before = score.paper_means(originals, decoded, found)
    picture.save(decoded / "a.png", exif=exif)  # decoded ones, too
    assert str(score.paper_means(originals, decoded, found)) == str(before)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    folders = [tmp_path / "originals", tmp_path / "decoded"]
    for folder in folders:
        folder.mkdir()
        Image.fromarray(noise_picture(20, 30)).save(folder / os.fsdecode(b"caf\xe9.png"))
    assert call(score.main, *folders, "--csv", tmp_path / "scores.csv").code == 0
    assert "caf\\udce9,30,20" in (tmp_path / "scores.csv").read_text()
