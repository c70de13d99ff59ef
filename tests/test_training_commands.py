"""The stage scripts and export on a real folder, and what they say to mistakes."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import Result, assert_refused, call
from tests.conftest import noise_picture
from tests.training_kit import killed_after
from training import export, ladder, plot
from training.loop import log, train
from training.loop.stage import main

Stage = Callable[[str], Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(noise_picture(200, 200, k)).save(folder / f"{k}.png")
    return folder


def stage(name: str, *arguments: object) -> Result:
    return call(lambda: main(name, "text"), "--preset", "tiny", *arguments)  # type: ignore[arg-type]


def test_from_photos_to_a_decoded_picture(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ("--lmbda", 4, "--data", data, "--run", run, "--steps", 1)
    assert_refused(stage("joint", *common), "run the stage before")
    first = stage("main", *common)
    assert first.code == 0, first.stderr
    assert re.search(r"scale_bound +0\.11\n", first.stdout)
    assert_refused(stage("main", *common), "--resume", "--overwrite")
    assert_refused(stage("main", "--lmbda", 5, *common[2:], "--resume"), "lambda")
    assert_refused(stage("main", *common[:-1], 2, "--resume"), "other settings", "steps")
    assert stage("main", *common, "--resume").code == 0
    assert stage("main", *common, "--overwrite", "--no-tensorboard").code == 0
    (run / "post_filter.pt").write_bytes((run / "main.pt").read_bytes()[:1000])
    assert_refused(stage("joint", *common), "not a checkpoint")
    assert_refused(call(export.main, run, "-o", tmp_path / "weights"), "not a checkpoint")
    (run / "post_filter.pt").unlink()
    for damaged in (b"", (run / "calibration.npy").read_bytes()[:500]):
        (run / "calibration.npy").write_bytes(damaged)
        assert_refused(call(export.main, run, "-o", tmp_path / "weights"), "calibration.npy", "--resume")
    with (run / "calibration.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))  # an archive of arrays
    assert_refused(call(export.main, run, "-o", tmp_path / "weights"), "calibration.npy", "--resume")
    (run / "calibration.npy").unlink()
    assert stage("main", *common, "--resume").code == 0
    assert call(export.main, run, "-o", tmp_path / "weights").code == 0

    from submission import decode, encode

    at = ("--weights", tmp_path / "weights")
    assert call(encode.main, data / "0.png", "-o", tmp_path, *at).code == 0
    assert call(decode.main, tmp_path / "0.clic", "-o", tmp_path / "out", *at).code == 0
    assert np.asarray(Image.open(tmp_path / "out" / "0.png")).shape == (200, 200, 3)

    assert list((run / "tensorboard" / "main").glob("events*"))
    drawn = call(plot.main, run, "-o", tmp_path / "curves.png")
    assert drawn.code == 0, drawn.stderr
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_mistakes_get_one_line(data: Path, tmp_path: Path) -> None:
    common = ("--lmbda", 4, "--data", data, "--run", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert_refused(
        stage("main", "--lmbda", 4, "--data", tmp_path / "empty", "--run", tmp_path / "x"), "usable pictures"
    )
    assert_refused(stage("main", "--lmbda", 4, "--data", tmp_path / "no", "--run", tmp_path / "x"), "not a folder")
    assert_refused(stage("main", *common, "--steps", 0), "--steps")
    assert_refused(stage("main", *common, "--batch", 0), "--batch")
    assert_refused(stage("main", *common, "--time-budget", "soon"), "20m")
    assert_refused(stage("main", "--lmbda", -1, *common[2:]), "positive")
    for lmbda in ("nan", "inf"):
        assert_refused(stage("main", "--lmbda", lmbda, *common[2:]), "positive")
    assert_refused(stage("main", *common, "--seed", -1), "--seed")
    assert_refused(stage("main", *common, "--init", tmp_path / "empty"), "empty: neither")
    assert_refused(stage("main", *common, "--init", tmp_path / "x" / ".." / "run"), "is the run itself")
    assert_refused(stage("main", *common[:4], "--run", data / "0.png"), "not a folder")
    of_ladder = ("--preset", "tiny", "--data", data, "--run", tmp_path / "run")
    assert_refused(call(ladder.main, *of_ladder, "--lmbda", 12), "must include 3")
    assert_refused(call(ladder.main, *of_ladder, "--jobs", 0), "--jobs")
    assert_refused(call(plot.main, tmp_path / "empty", "-o", tmp_path / "x.png"), "no logs")
    assert_refused(call(plot.main, tmp_path / "empty", "-o", tmp_path / "x.pgn"), "ends in .png")


def test_without_tensorboard_one_line_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    log._writer.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    result = stage("main", "--lmbda", 4, "--data", data, "--run", tmp_path / "run", "--steps", 1)
    log._writer.cache_clear()
    assert result.code == 0 and result.stderr.count("tensorboard is not installed") == 1
    assert (tmp_path / "run" / "main.csv").exists() and not (tmp_path / "run" / "tensorboard").exists()


def test_a_ladder_with_a_used_up_budget_says_so(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "time.json").write_text('{"seconds": 100}')
    result = call(ladder.main, "--preset", "tiny", "--data", data, "--run", run, "--time-budget", "1m")
    assert_refused(result, "used up with 10 stages to go")


def test_what_is_refused_leaves_the_run_as_it_is(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ("--lmbda", 4, "--data", data, "--run", run, "--steps", 1, "--no-tensorboard")
    assert stage("main", *common).code == 0
    before = contents(run)
    assert_refused(stage("main", *common[:2], "--data", tmp_path / "no", *common[4:], "--overwrite"), "not a folder")
    assert_refused(stage("main", *common, "--init", tmp_path / "no", "--overwrite"), "no: neither weights")
    assert_refused(stage("main", "--lmbda", 5, *common[2:], "--resume"), "lambda")
    assert_refused(stage("main", *common, "--seed", 7, "--resume"), "seed")
    assert contents(run) == before
    done = stage("main", *common, "--resume")
    assert done.code == 0 and "stage main was done already" in done.stderr
    assert contents(run) == before


def test_later_stages_of_what_begins_again_are_named(data: Path, tmp_path: Path) -> None:
    common = ("--lmbda", 4, "--data", data, "--run", tmp_path, "--steps", 1, "--no-tensorboard")
    assert stage("main", *common).code == stage("post_filter", *common).code == 0
    again = stage("main", *common, "--overwrite")
    assert again.code == 0 and "post_filter came from the stage that begins again" in again.stderr


def test_a_budget_that_is_used_up_is_no_end(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage could not be continued any more, and its mean of the weights would be gone."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", (0.0, 0.0))
    common = ("--lmbda", 1, 16, "--data", data, "--run", tmp_path, "--no-tensorboard")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        assert stage("trunk", *common, "--time-budget", "1h").code == 2
    assert_refused(stage("trunk", *common, "--resume", "--time-budget", "0.0001s"), "longer --time-budget")


def test_steps_of_a_budget_are_no_end_either(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", (0.0, 0.0))
    common = ("--lmbda", 4, "--data", data, "--run", tmp_path, "--no-tensorboard", "--steps", 2)
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        assert stage("main", *common, "--time-budget", "1h").code == 2
    assert_refused(stage("main", *common, "--resume"), "3 steps are done in a time budget; give a --time-budget again")


def test_a_trunk_is_ended_by_other_steps(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as have been done are no end: the rate has not fallen."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", (0.0, 0.0))
    common = ("--lmbda", 1, 16, "--data", data, "--run", tmp_path, "--no-tensorboard")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        assert stage("trunk", *common, "--steps", 100).code == 2
    assert_refused(stage("trunk", *common, "--steps", 2, "--resume"), "2 steps are done", "--steps 3 or more")
    assert stage("trunk", *common, "--steps", 4, "--resume").code == 0


def test_an_export_that_fails_leaves_the_old_ladder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights"
    for lmbda in (4, 5):
        made = stage("main", "--lmbda", lmbda, "--data", data, "--run", run / str(lmbda), "--steps", 1)
        assert made.code == 0, made.stderr
    assert call(export.main, run / "4", "-o", weights).code == 0
    before = contents(weights)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(export, "exchange", interrupt)
        assert call(export.main, run / "5", "-o", weights, "--overwrite").code == 130
    assert contents(weights) == before
    with monkeypatch.context() as patch:
        patch.chdir(weights)
        assert call(export.main, run / "5", "-o", ".", "--overwrite").code == 0
    assert contents(weights) != before and not list(tmp_path.glob(".*.part"))
    for name, text in (("thesis.tex", "mine"), ("manifest.json", '{"format": "another"}')):
        (weights / name).write_text(text)
        kept = contents(weights)
        assert_refused(call(export.main, run / "5", "-o", weights, "--overwrite"), "weights exists", "--overwrite")
        assert contents(weights) == kept
        (weights / name).unlink()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
