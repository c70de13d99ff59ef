"""`ratecontrol.submission`: all rates in one go, the same as the three commands make, stopped or not."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ratecontrol import allocate, measure, package
from ratecontrol.submission import main
from tests.commands import Result, assert_refused, call
from tests.conftest import ROOT

#: Two that are reached and decide differently.
RATES = ("0.95", "1.1")


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of the submissions."""
    files = [path for rate in RATES for path in (folder / rate).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def submit(pictures: Path, dist: Path, weights: Path, *more: object) -> Result:
    return call(main, pictures, "-o", dist, "--weights", weights, "--jobs", 1, "--bpp", *RATES, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures: Path, ladder_folder: Path) -> Path:
    dist = tmp_path_factory.mktemp("made") / "dist"
    result = submit(pictures, dist, ladder_folder, "--refine", 1)
    assert result.code == 0, result.stderr
    return dist


def test_what_the_three_commands_make(made: Path, pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    table, weights = tmp_path / "table.csv", ("--weights", ladder_folder)
    call(measure.main, pictures, "-o", table, *weights, "--refine", 1, "--bpp", *RATES, "--jobs", 1)
    for rate in RATES:
        choice = tmp_path / f"{rate}.csv"
        assert call(allocate.main, table, "--bpp", rate, "-o", choice).code == 0
        assert call(package.main, pictures, choice, "-o", tmp_path / rate, "--bpp", rate, *weights).code == 0
    assert contents(made) == contents(tmp_path)
    assert {str(path) for path in made.iterdir()} >= {str(made / f"choice-{rate}.csv") for rate in RATES}


def test_again_nothing_is_encoded(
    made: Path, pictures: Path, ladder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made)
    monkeypatch.setattr(measure, "measure", lambda task: pytest.fail(f"encoded {task}"))
    assert submit(pictures, made, ladder_folder, "--refine", 1).code == 0
    assert contents(made) == before


def test_killed_and_started_again(made: Path, pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    words = [pictures, "-o", dist, "--weights", ladder_folder, "--jobs", 1, "--refine", 1, "--bpp", *RATES]
    command = [sys.executable, "-m", "ratecontrol.submission", *map(str, words)]
    table = dist / "table.csv"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and (not table.exists() or table.read_text().count("\n") < 3):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 1 < table.read_text().count("\n") < (made / "table.csv").read_text().count("\n")
    assert submit(pictures, dist, ladder_folder, "--refine", 1).code == 0
    assert contents(dist) == contents(made)


def test_a_rate_that_cannot_be_reached(pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    """It is named with the smallest that can; the others are made."""
    result = call(main, pictures, "-o", tmp_path, "--weights", ladder_folder, "--jobs", 1, "--bpp", "0.01", "1.1")
    assert result.code == 2 and result.stderr.count("error: ") == 1
    assert "--bpp 0.01 allows" in result.stderr and "smallest feasible rate is --bpp" in result.stderr
    assert (tmp_path / "1.1" / "manifest.json").exists() and not (tmp_path / "0.01").exists()


def test_names_that_look_like_options(
    pictures: Path, ladder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "-p")
    words = ("--weights", ladder_folder, "--jobs", 1, "--bpp", "1.1")
    assert call(main, "./-p", "-o", "./-d", *words).code == 0
    assert Path("./-d/1.1/manifest.json").exists()


def test_bad_input(pictures: Path, ladder_folder: Path, tmp_path: Path) -> None:
    dist = ("-o", tmp_path / "dist", "--weights", ladder_folder)
    assert_refused(call(main, tmp_path / "none", *dist), "none: no such folder")
    assert_refused(call(main, pictures / "a.png", *dist), "a.png: no such folder")
    assert_refused(call(main, tmp_path, *dist), "no pictures")
    assert_refused(call(main, pictures, *dist, "--bpp", "much"), "--bpp much")
    assert_refused(call(main, pictures, *dist, "--wheels", tmp_path / "none"), "none: no such folder; make wheels")
    assert not (tmp_path / "dist").exists()
