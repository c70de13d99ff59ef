"""eval.compare, eval.report and eval.demo: one whole comparison of small pictures, looked at from all sides."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval import compare, demo, peers, report
from eval.metrics import ms_ssim
from eval.score import PictureScore, byte_cap, parse_bpp
from submission.errors import UserError
from tests.conftest import noise_picture, run_module

#: No codec reaches the first, all have their best quality at the second.
RATES = ("0.001", "96")
PEERS = peers.PEERS[:2]
CODECS = [compare.OURS, *(peer.name for peer in PEERS)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, ladder_folder: Path, pictures: Path) -> tuple[Path, Path]:
    """The folder of a demo of two small pictures, made by the command itself, and those pictures."""
    folder, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("demo")
    for name in ("a.png", "c.png"):
        Image.open(pictures / name).crop((0, 0, 40, 31)).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the commands that it runs; they may share the cores with other tests
        patch.setattr(demo, "RATES", RATES)
        patch.setattr(peers, "PEERS", PEERS)
        for peer in PEERS:
            patch.setitem(peer.__dict__, "qualities", (5, 40))
        patch.setattr("sys.argv", ["demo", str(folder), "-o", str(out), "--weights", str(ladder_folder)])
        assert demo.main() == 0
    return out, folder


def test_scores_table(shown: tuple[Path, Path]) -> None:
    out, _ = shown
    scores = pd.read_csv(out / "scores.csv")
    assert list(scores.columns)[:6] == ["bpp_target", "codec", "bytes", "cap", "msssim", "psnr"]
    assert list(scores["codec"]) == CODECS * 2
    assert list(scores["bpp_target"]) == [0.001] * len(CODECS) + [96] * len(CODECS)
    beyond, reached = scores[scores["bpp_target"] == 0.001], scores[scores["bpp_target"] == 96]
    pixels = 2 * 40 * 31
    assert (beyond["cap"] == byte_cap(parse_bpp("0.001"), pixels)).all()
    assert beyond[["bytes", "msssim", "psnr"]].isna().all(axis=None)
    assert (beyond["smallest_bytes"] > beyond["cap"]).all()
    assert (reached["bytes"] <= reached["cap"]).all()
    assert reached[["msssim", "psnr", "encode_seconds", "decode_seconds"]].notna().all(axis=None)


def test_scores_are_those_of_the_files(shown: tuple[Path, Path]) -> None:
    out, folder = shown
    scores = pd.read_csv(out / "scores.csv").set_index(["bpp_target", "codec"])
    images = pd.read_csv(out / "images.tsv", sep="\t")
    assert len(images) == 2 * len(CODECS)
    for row in images.to_dict("records"):
        decoded = np.array(Image.open(out / "96" / row["codec"] / "decoded" / f"{row['image']}.png"))
        assert row["msssim"] == pytest.approx(ms_ssim(np.array(Image.open(folder / f"{row['image']}.png")), decoded))
    for codec in CODECS:
        streams = out / "96" / codec / ("submission" if codec == compare.OURS else "streams")
        counted = sum(path.stat().st_size for stem in "ac" for path in streams.glob(f"{stem}.*"))
        assert scores.loc[(96, codec), "bytes"] == counted == images[images["codec"] == codec]["bytes"].sum()
        assert scores.loc[(96, codec), "msssim"] == pytest.approx(images[images["codec"] == codec]["msssim"].mean())


def test_decoded_is_what_the_encoder_foresaw(shown: tuple[Path, Path]) -> None:
    out, _ = shown
    images = pd.read_csv(out / "images.tsv", sep="\t")
    for codec in CODECS:
        foreseen = pd.read_csv(out / "96" / codec / "choice.csv").sort_values("image")["msssim"]
        assert list(images[images["codec"] == codec]["msssim"]) == pytest.approx(list(foreseen), abs=1e-6)


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_report_holds_everything(shown: tuple[Path, Path]) -> None:
    out, folder = shown
    page = (out / "report.html").read_text()
    assert "@@" not in page
    assert page.count("does not reach this rate") == len(CODECS)
    for codec, bytes_used in pd.read_csv(out / "scores.csv").dropna()[["codec", "bytes"]].itertuples(index=False):
        assert codec in page
        assert f"{bytes_used:,.0f} / " in page
    data = page_data(page)
    assert data["rates"] == list(RATES)
    assert data["codecs"] == CODECS
    assert [picture["name"] for picture in data["pictures"]] == ["a.png", "c.png"]
    for picture in data["pictures"]:
        assert set(picture["sources"]) == {"original", *(f"96/{codec}" for codec in CODECS)}
        assert set(picture["numbers"]) == set(picture["sources"]) - {"original"}
        for name, source in picture["sources"].items():
            kind, text = source.split(",")
            assert kind == "data:image/webp;base64"
            view = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
            stem = Path(picture["name"]).stem
            file = folder / picture["name"] if name == "original" else out / name / "decoded" / f"{stem}.png"
            assert (view == np.array(Image.open(file))).all()


def test_report_needs_nothing_outside(shown: tuple[Path, Path]) -> None:
    page = (shown[0] / "report.html").read_text()
    assert not re.search(r'(src|href)\s*=\s*"(?!data:)', page)
    assert not re.search(r"https?://|@import|url\(", page)


def test_foreign_folders_are_left_alone(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists with other content"):
        compare.compare(pictures, tmp_path, ladder_folder, ["0.15"])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("broken", ["folder", "weights", "rate"])
def test_bad_input_leaves_nothing(tmp_path: Path, pictures: Path, ladder_folder: Path, broken: str) -> None:
    folder = tmp_path / "nowhere" if broken == "folder" else pictures
    weights = tmp_path / "nowhere" if broken == "weights" else ladder_folder
    rates = ["0.15", "x" if broken == "rate" else "0.3"]
    with pytest.raises(UserError):
        compare.compare(folder, tmp_path / "out", weights, rates)
    assert not (tmp_path / "out").exists()


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = run_module("eval.compare", tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_report_shrinks_to_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large pictures: some are shown, their central parts, and lossily when lossless would be too large."""
    folder, decoded = tmp_path / "photos", tmp_path / "decoded"
    folder.mkdir()
    decoded.mkdir()
    scores = []
    for i in range(5):
        picture = noise_picture(60, 90, i)
        Image.fromarray(picture).save(folder / f"<{i}>.png")
        Image.fromarray(picture & 0xF8).save(decoded / f"<{i}>.png")
        scores.append(PictureScore(f"<{i}>", 90, 60, 1000, 0.9, 1e5))
    points = [compare.Point("0.30", "ours", 9000, 10, 5 * 5400, scores, decoded, 1.0, 2.0)]
    monkeypatch.setattr(report, "SHOWN_SIDE", 64)
    monkeypatch.setattr(report, "SHOWN_PICTURES", 2)
    report.write(tmp_path / "whole.html", folder, points)
    lossless = (tmp_path / "whole.html").read_text()
    monkeypatch.setattr(report, "BUDGET", len(lossless) // 2)
    report.write(tmp_path / "small.html", folder, points)
    lossy = (tmp_path / "small.html").read_text()
    assert len(lossy) < len(lossless)
    assert "2 of 5 pictures" in lossless
    assert "embedded losslessly" in lossless
    assert "WebP of quality" in lossy
    data = page_data(lossless)
    assert [(p["name"], p["size"], p["width"], p["height"]) for p in data["pictures"]] == [
        (f"<{i}>.png", "90 × 60", 64, 60) for i in (0, 3)
    ]


def test_demo_has_photos_of_its_own(tmp_path: Path) -> None:
    folder = demo.photos(tmp_path / "photos")
    assert sorted(path.name for path in folder.iterdir()) == sorted(demo.PHOTOS)
    assert all(Image.open(path).mode == "RGB" for path in folder.iterdir())
