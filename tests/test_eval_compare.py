"""eval.compare and eval.demo: one whole comparison of small pictures, looked at from all sides."""

import base64
import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval import compare, demo, peers
from eval.codecs import peer as codecs
from eval.rate_distortion import points
from eval.simulate import decoded
from metrics.clic import ms_ssim
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from submission.errors import UserError
from submission.files import Picture
from tests.commands import Result, assert_refused, call
from tests.conftest import ROOT, noise_picture
from tests.faults import assert_gone, wait_for
from tests.test_eval_report import page_data

#: No codec reaches the first, all have their best quality at the second.
RATES = ("0.001", "96")
PEERS = tuple(dataclasses.replace(peer, qualities=(5, 40)) for peer in codecs.PEERS[:2])
TABLES = ("scores.csv", "scores.tsv", "images.tsv", "curves.tsv", "bd-rates.tsv")
CODECS = [points.OURS, *(peer.name for peer in PEERS)]


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Two peers of two qualities each, and one thread for the commands that are run beside other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(demo, "RATES", RATES)
        patch.setattr(demo, "CODECS", CODECS[1:])
        patch.setattr(peers, "PEERS", PEERS)
        yield patch


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, ladder_folder: Path, pictures: Path, patched: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The folder of a demo of two small pictures, made by the command itself, and those pictures."""
    folder, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("demo")
    for name in ("a.png", "c.png"):
        Image.open(pictures / name).crop((0, 0, 40, 31)).save(folder / name)
    done = call(demo.main, folder, "-o", out, "--weights", ladder_folder)
    assert done.code == 0, done.stderr
    assert "BD-rate of ours against" in done.stdout
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


def decoded_picture(out: Path, codec: str, stem: str) -> np.ndarray:
    """What the counted file of one picture holds, read from where the comparison keeps it."""
    place = out / "96" / codec
    if codec == points.OURS:
        return np.array(Image.open(place / "decoded" / f"{stem}.png"))
    row = pd.read_csv(place / "choice.csv").set_index("image").loc[f"{stem}.png"]
    return np.array(Image.open(place / row["stream"]))


def counted(out: Path, codec: str, stem: str) -> int:
    place = out / "96" / codec
    if codec == points.OURS:
        return (place / "submission" / f"{stem}.clic").stat().st_size
    row = pd.read_csv(place / "choice.csv").set_index("image").loc[f"{stem}.png"]
    return (place / row["stream"]).stat().st_size


def test_scores_are_those_of_the_files(shown: tuple[Path, Path]) -> None:
    out, folder = shown
    scores = pd.read_csv(out / "scores.csv").set_index(["bpp_target", "codec"])
    images = pd.read_csv(out / "images.tsv", sep="\t")
    assert len(images) == 2 * len(CODECS)
    for row in images.to_dict("records"):
        original = np.array(Image.open(folder / f"{row['image']}.png"))
        assert row["msssim"] == pytest.approx(ms_ssim(original, decoded_picture(out, row["codec"], row["image"])))
        assert row["bytes"] == counted(out, row["codec"], row["image"])
    for codec in CODECS:
        own = images[images["codec"] == codec]
        assert scores.loc[(96, codec), "bytes"] == own["bytes"].sum()
        assert scores.loc[(96, codec), "msssim"] == pytest.approx(own["msssim"].mean())


def test_decoded_is_what_the_encoder_foresaw(shown: tuple[Path, Path]) -> None:
    out, _ = shown
    images = pd.read_csv(out / "images.tsv", sep="\t")
    for codec in CODECS:
        foreseen = pd.read_csv(out / "96" / codec / "choice.csv").sort_values("image")["msssim"]
        assert list(images[images["codec"] == codec]["msssim"]) == pytest.approx(list(foreseen), abs=1e-6)


@pytest.fixture(scope="module")
def kept(
    shown: tuple[Path, Path],
    ladder_folder: Path,
    patched: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The results that a second run keeps, which decodes nothing and says the same."""
    out, folder = shown
    results = tmp_path_factory.mktemp("kept") / "results"
    before = {name: (out / name).read_text() for name in TABLES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "decoded", None)  # what runs our decoder
        for peer in PEERS:
            patch.setitem(peer.__dict__, "compress", None)
        patch.setattr(compare, "RELEASES", results)
        arguments = [folder, "-o", out, "--weights", ladder_folder, "--keep", "small", "--bpp", *RATES]
        done = call(compare.main, *arguments)
    assert done.code == 0, done.stderr
    assert {name: (out / name).read_text() for name in TABLES} == before
    return results


def test_what_is_kept_is_what_the_run_has(shown: tuple[Path, Path], kept: Path) -> None:
    out, _ = shown
    texts = {path.name: path.read_text() for path in kept.glob("*/*")}
    assert set(texts) == {f"small-{name}" for name in (*TABLES[1:], "candidates.tsv")}
    assert all(texts[f"small-{name}"] == (out / name).read_text() for name in TABLES[1:])
    assert len(texts["small-candidates.tsv"].splitlines()) == 1 + 2 * (3 + 2 * len(PEERS))
    assert not any("seconds" in text for text in texts.values()), "what differs from run to run is not kept"


def test_what_peers_made_before_need_not_be_made_again(
    shown: tuple[Path, Path], ladder_folder: Path, kept: Path, tmp_path: Path
) -> None:
    """The same results from kept candidates: of one peer, only what is chosen is made; the other is not installed."""
    out, folder = shown
    made: list[int] = []
    first, absent = PEERS

    def compress(picture: Picture, quality: int) -> bytes:
        made.append(quality)
        return first.compress(picture, quality)

    words = [folder, "--weights", ladder_folder, "--bpp", *RATES, "--table", out / "tables" / "ours.csv"]
    known = tmp_path / "candidates.tsv"
    shutil.copyfile(next(kept.rglob("small-candidates.tsv")), known)
    with pytest.MonkeyPatch.context() as patch:
        there = (dataclasses.replace(first, compress=compress), dataclasses.replace(absent, version=lambda: None))
        patch.setattr(peers, "PEERS", there)
        done = call(compare.main, *words, "-o", tmp_path / "new", "--known", known)
        assert done.code == 0, done.stderr
        assert f"{absent.name} counts as it was kept" in done.stderr
        assert made == [40, 40], "the better of two qualities, for two pictures"
        for name in ("scores.tsv", "images.tsv", "curves.tsv", "bd-rates.tsv"):
            assert_same_figures(tmp_path / "new" / name, out / name)
        shown_of = page_data((tmp_path / "new" / "report.html").read_text())["shown"]["a"]["sources"]
        assert f"96/{first.name}" in shown_of and f"96/{absent.name}" not in shown_of
        made.clear()
        assert call(compare.main, *words, "-o", tmp_path / "new", "--known", known).code == 0
        assert not made

        text = known.read_text()
        table = pd.read_csv(known, sep="\t")
        table.loc[(table["codec"] == first.name) & (table["quality"] == 40), "bytes"] += 1
        table.to_csv(known, sep="\t", index=False)
        done = call(compare.main, *words, "-o", tmp_path / "other", "--known", known)
        assert done.code == 2 and "another file than the one that was kept (bytes" in done.stderr
        for spoilt, word in (
            (text.replace("c.png", "d.png"), "png"),
            (text.replace("\t40\t31\t", "\t41\t31\t"), "a.png"),
        ):
            known.write_text(spoilt)
            assert_refused(
                call(compare.main, *words, "-o", tmp_path / "spoilt", "--known", known), word, "not those of"
            )
        known.write_text("a\tb\n1\t2\n")
        assert_refused(call(compare.main, *words, "-o", tmp_path / "spoilt", "--known", known), "not the candidates")
        assert not (tmp_path / "spoilt").exists()


def assert_same_figures(found: Path, expected: Path) -> None:
    """Codecs in any order, and what was kept in ten digits."""
    tables = [pd.read_csv(path, sep="\t") for path in (found, expected)]
    columns = list(tables[0].select_dtypes(exclude="float").columns) + ["bpp_target"] * ("bpp_target" in tables[0])
    left, right = (table.sort_values(columns, ignore_index=True) for table in tables)
    pd.testing.assert_frame_equal(left, right, rtol=1e-8)


def test_a_decoder_runs_again_only_if_something_changed(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission, kept, record = tmp_path / "submission", tmp_path / "decoded", tmp_path / "run.json"
    submission.mkdir()
    (submission / "decode").write_text(
        f"#!/bin/sh\ncp '{submission}'/*.png.clic .; for f in *.clic; do mv $f ${{f%.clic}}; done"
    )
    (submission / "decode").chmod(0o755)
    Image.fromarray(noise_picture(5, 6)).save(submission / "a.png.clic", format="PNG")
    runs: list[Path] = []

    def watched(*arguments: Any) -> Any:
        runs.append(submission)
        return decoded(*arguments)

    monkeypatch.setattr(points, "decoded", watched)

    def decode() -> int:
        """How often the decoder had run after asking once more for what it writes."""
        found = points._decode(pictures, submission, kept, record)
        assert found["seconds"] > 0 and found["peak_bytes"] > 0
        assert (kept / "a.png").read_bytes() == (submission / "a.png.clic").read_bytes()
        return len(runs)

    assert decode() == decode() == 1
    (kept / "a.png").write_bytes(b"touched")
    assert decode() == decode() == 2
    Image.fromarray(noise_picture(5, 7)).save(submission / "a.png.clic", format="PNG")
    assert decode() == decode() == 3
    record.write_text('{"submission": ')  # cut off
    assert decode() == decode() == 4


def test_report_holds_everything(shown: tuple[Path, Path]) -> None:
    out, folder = shown
    page = (out / "report.html").read_text()
    assert "@@" not in page
    assert page.count("does not reach this rate") == len(CODECS) + 1  # the rows, and the tile of ours
    for codec, bytes_used in pd.read_csv(out / "scores.csv").dropna()[["codec", "bytes"]].itertuples(index=False):
        assert codec in page
        assert f"{bytes_used:,.0f} / " in page
    assert "python -m eval." in page
    assert "libjpeg_turbo" in page
    data = page_data(page)
    assert data["rates"] == list(RATES)
    assert data["codecs"] == CODECS
    assert [picture["name"] for picture in data["pictures"]] == ["a.png", "c.png"]
    assert set(data["shown"]) == {"a", "c"}
    for picture in data["pictures"]:
        sources = data["shown"][picture["stem"]]["sources"]
        assert set(sources) == {"original", *(f"96/{codec}" for codec in CODECS)}
        assert set(picture["numbers"]) == set(sources) - {"original"}
        for name, source in sources.items():
            kind, text = source.split(",")
            assert kind == "data:image/webp;base64"
            view = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
            original = np.array(Image.open(folder / picture["name"]))
            whole = original if name == "original" else decoded_picture(out, name[3:], picture["stem"])
            assert (view == whole).all()


def test_report_needs_nothing_outside(shown: tuple[Path, Path]) -> None:
    page = (shown[0] / "report.html").read_text()
    assert not re.search(r'(src|href)\s*=\s*"(?!data:)', page)
    assert not re.search(r"https?://|@import|url\(", page)


def test_foreign_folders_are_left_alone(tmp_path: Path, pictures: Path, ladder_folder: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists with other content"):
        compare.compare(pictures, tmp_path, ladder_folder, ["0.15"])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_table_that_was_measured_before_is_taken(
    shown: tuple[Path, Path], ladder_folder: Path, tmp_path: Path
) -> None:
    out, folder = shown
    table = out / "tables" / "ours.csv"
    arguments = ["--bpp", "96", "--codecs", "jpeg", "--weights", ladder_folder]
    done = call(compare.main, folder, "-o", tmp_path / "out", "--table", table, *arguments)
    assert done.code == 0, done.stderr
    before, after = (
        pd.read_csv(place / "images.tsv", sep="\t").query("codec == 'ours' and bpp_target == 96")
        for place in (out, tmp_path / "out")
    )
    assert len(after) == 2
    assert (
        before.drop(columns="bpp_target")
        .reset_index(drop=True)
        .equals(after.drop(columns="bpp_target").reset_index(drop=True))
    )
    assert not (tmp_path / "out" / "tables" / "ours.csv").exists()
    (tmp_path / "bad.csv").write_text("image,bytes\na.png,3\n")
    refused = call(compare.main, folder, "-o", tmp_path / "none", "--table", tmp_path / "bad.csv", *arguments)
    assert_refused(refused, "bad.csv", "lacks the columns")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("column", ["width", "quality", "bytes", "msssim", "sse", "encode_seconds"])
def test_a_table_with_a_cell_that_is_no_number(
    shown: tuple[Path, Path], ladder_folder: Path, tmp_path: Path, column: str
) -> None:
    out, folder = shown
    table = pd.read_csv(out / "tables" / "ours.csv", dtype=str)
    table.loc[1, column] = "many"
    table.to_csv(tmp_path / "bad.csv", index=False)
    arguments = ["--table", tmp_path / "bad.csv", "--codecs", "jpeg", "--weights", ladder_folder]
    refused = call(compare.main, folder, "-o", tmp_path / "none", *arguments)
    assert_refused(refused, f"bad.csv: line 3: {column} 'many' is not a number")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("broken", ["folder", "weights", "rate", "codec"])
def test_bad_input_leaves_nothing(tmp_path: Path, pictures: Path, ladder_folder: Path, broken: str) -> None:
    folder = tmp_path / "nowhere" if broken == "folder" else pictures
    weights = tmp_path / "nowhere" if broken == "weights" else ladder_folder
    rates = ["0.15", "x" if broken == "rate" else "0.3"]
    names = ["betamax"] if broken == "codec" else []
    with pytest.raises(UserError):
        compare.compare(folder, tmp_path / "out", weights, rates, names)
    assert not (tmp_path / "out").exists()


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    assert_refused(call(compare.main, tmp_path, "-o", tmp_path / "out"), "no pictures in this folder")


def test_demo_has_photos_of_its_own(tmp_path: Path) -> None:
    folder = demo.photos(tmp_path / "photos")
    assert sorted(path.name for path in folder.iterdir()) == sorted(demo.PHOTOS)
    assert all(Image.open(path).mode == "RGB" for path in folder.iterdir())


@pytest.fixture
def measuring(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that has started another, as eval.compare does with ratecontrol.measure, and the process id of that."""
    (tmp_path / "measures.py").write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(f'{os.getpid()} '); time.sleep(600)"
    )
    script = (
        "from eval.rate_distortion.points import run_module; from submission import console, processes;"
        "processes.PATIENCE = 3;"
        "console.run(lambda: run_module('measures'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    written = tmp_path / "pid"
    try:
        wait_for(lambda: process.poll() is not None or (written.exists() and written.read_text().endswith(" ")))
        assert process.poll() is None
        yield process, int(written.read_text())
    finally:
        process.kill()


@pytest.mark.parametrize("stopped", [False, True])
def test_termination_ends_the_command_that_measures(
    measuring: tuple[subprocess.Popen[str], int], stopped: bool
) -> None:
    process, measure = measuring
    if stopped:
        os.kill(measure, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[1] == "error: interrupted\n"
    assert process.returncode == 130
    assert_gone(measure)


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was killed (SIGKILL)"), (signal.SIGSTOP, "was stopped and not continued")]
)
def test_a_command_that_is_killed_or_stopped(
    measuring: tuple[subprocess.Popen[str], int], number: signal.Signals, words: str
) -> None:
    process, measure = measuring
    os.kill(measure, number)
    _, errors = process.communicate(timeout=120)
    assert_refused(Result(process.returncode, "", errors), f"measures {words}", "it goes on where it was")
    assert_gone(measure)


def test_kill_ends_what_it_started(measuring: tuple[subprocess.Popen[str], int]) -> None:
    process, measure = measuring
    process.kill()
    assert_gone(measure)
