"""The comparison of surrogates: every setting of every network, resumed where it stopped, in the paper's form."""

import dataclasses
import math
import time
from pathlib import Path

import pytest

from benchmarks import networks, surrogates
from benchmarks.surrogates import KEPT, PAPER, SETTINGS, Bench, Results, paper_against_first, table
from submission.config import NETWORKS, PRESETS, tiny
from submission.errors import UserError
from submission.ladder import Ladder
from tests.commands import assert_refused, call
from tests.conftest import ROOT
from tests.training_kit import CPU, photos
from training import export
from training.loop.train import Session
from training.recipe import RECIPES


def bench(folder: Path, deadline: float = math.inf) -> Bench:
    return Bench(folder, Session(photos(), CPU), Results(folder / "results.csv"), 2, (2, 1), 1, 12.0, deadline)


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ms-hyper", "ms-hyper-zero"):
        usual = RECIPES[f"{name}-small"]
        monkeypatch.setitem(RECIPES, f"{name}-small", dataclasses.replace(usual, model=tiny(PRESETS[name])))
    monkeypatch.setattr(surrogates, "CROP", 192)
    monkeypatch.setattr(surrogates, "COUNT", 4)


def test_it_goes_on_where_it_stopped(tmp_path: Path, tiny_recipes: None) -> None:
    settings = (SETTINGS[0], SETTINGS[5], SETTINGS[6])  # the anchor, SUA, and a learned step
    assert not bench(tmp_path, deadline=time.monotonic()).network("ms-hyper", (0.01, 0.02), settings)
    assert not (tmp_path / "results.csv").exists()
    assert bench(tmp_path).network("ms-hyper", (0.01, 0.02), settings[:1])
    before = (tmp_path / "results.csv").read_text()
    assert bench(tmp_path).network("ms-hyper", (0.01, 0.02), settings)
    rows = Results(tmp_path / "results.csv").rows
    assert (tmp_path / "results.csv").read_text().startswith(before)
    assert sorted(rows) == sorted(
        ("ms-hyper", s.name, lmbda, stage) for s in settings for lmbda in ("0.01", "0.02") for stage in ("main", "hard")
    )
    assert all(math.isfinite(float(row["psnr"])) and float(row["bpp"]) > 0 for row in rows.values())
    assert not list(tmp_path.rglob("sua*/*.pt"))  # scored models are not kept, starts are
    assert len(list(tmp_path.rglob("start/main.pt"))) == 2
    text = table(Results(tmp_path / "results.csv"))
    assert all(s.name in text for s in settings)


def test_means_are_moved_in_the_hard_stage_alone(tmp_path: Path, tiny_recipes: None) -> None:
    moved = next(s for s in SETTINGS if s.moves_means)
    assert bench(tmp_path).network("ms-hyper-zero", (0.01,), (moved,))
    log = next(tmp_path.rglob("sua*/log.txt")).read_text()
    assert [line.split()[-1] for line in log.splitlines() if "moves_means" in line] == ["False", "True"]


def test_one_settings_models_stay_for_the_other_benchmark(tmp_path: Path, tiny_recipes: None) -> None:
    assert bench(tmp_path).network("ms-hyper", (0.01,), (KEPT,))
    taken = tmp_path / "taken"
    taken.mkdir()
    networks.take(tmp_path, "ms-hyper", 0.01, taken)
    assert sorted(path.name for path in taken.iterdir()) == ["calibration.npy", "hard.pt", "main.pt"]
    assert call(export.main, taken, "-o", tmp_path / "weights").code == 0
    assert Ladder.load(tmp_path / "weights").models[0]["lmbda"] == 0.01
    networks.take(tmp_path, "ms-hyper", 0.01, taken)
    with pytest.raises(UserError, match="no such checkpoint"):
        networks.take(tmp_path, "ms-context", 0.01, taken)
    (taken / "main.pt").write_bytes(b"")
    with pytest.raises(UserError, match="another model's"):
        networks.take(tmp_path, "ms-hyper", 0.01, taken)


def test_a_cut_line_is_ignored(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.csv")
    values = ("ms-hyper", "aun", "0.01", "main", 2, 2, 0.5, 0.1, 30.0, 1.0)
    results.add(dict(zip(surrogates.FIELDS, values, strict=True)))
    with results.path.open("a") as file:
        file.write("ms-hyper,mix,0.01")
    again = Results(results.path)
    assert list(again.rows) == [("ms-hyper", "aun", "0.01", "main")]
    again.add(dict(zip(surrogates.FIELDS, ("ms-hyper", "mix", *values[2:]), strict=True)))
    assert [key[1] for key in Results(results.path).rows] == ["aun", "mix"]


def test_kept_rows_are_shown(tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    results = Results(kept)
    for lmbda, bpp in (("0.01", 0.5), ("0.02", 0.7)):
        for stage in ("main", "hard"):
            values = ("ms-hyper", SETTINGS[0].name, lmbda, stage, 2, 2, bpp, 0.1, 40 * bpp, 1.0)
            results.add(dict(zip(surrogates.FIELDS, values, strict=True)))
    assert call(surrogates.main, "--show", kept).stdout == table(results) + "\n"
    assert_refused(call(surrogates.main), "--show")
    assert_refused(call(surrogates.main, "--show", tmp_path / "none.csv"), "none.csv")
    kept.write_text("a,b\n")
    assert_refused(call(surrogates.main, "--show", kept), "not the results")


def test_the_docs_have_the_kept_rows() -> None:
    kept = Results(ROOT / "benchmarks" / "results" / "surrogates.csv")
    assert kept.rows and table(kept) in (ROOT / "docs" / "networks.md").read_text()


def test_bd_rates_and_orderings(tmp_path: Path) -> None:
    """Curves of which one needs 20 % less than the anchor throughout, one 10 % more."""
    results = Results(tmp_path / "results.csv")
    for setting, factor in ((SETTINGS[0], 1.0), (SETTINGS[1], 0.8), (SETTINGS[2], 1.1)):
        for lmbda, bpp, psnr in ((0.01, 0.2, 28.0), (0.02, 0.4, 30.0), (0.03, 0.7, 32.0)):
            for stage, more in (("main", 1.0), ("hard", 0.9)):
                values = ("charm", setting.name, f"{lmbda:g}", stage, 2, 2, bpp * factor * more, 0.1, psnr, 1.0)
                results.add(dict(zip(surrogates.FIELDS, values, strict=True)))
    lines = table(results).splitlines()
    assert lines[1] == "charm"
    assert lines[2].split()[-4:] == ["+0.0%", "-10.0%", "+0.0%", "-10.1%"]
    assert "-20.0%   -28.0%" in lines[3] and "+10.0%    -1.0%" in lines[4]
    # the paper: mix < aun < aun, sigma >= 1e-6
    assert "1 of 3 pairs" in lines[5] and {line.strip() for line in lines[6:]} == {
        "not: mix < aun, sigma >= 1e-6",
        "not: mix < aun",
    }
    values = ("charm", SETTINGS[3].name, "0.01", "main", 2, 2, 0.1, 0.1, 28.0, 1.0)
    results.add(dict(zip(surrogates.FIELDS, values, strict=True)))
    assert table(results).splitlines()[5].split()[:3] == ["uq-s", "-", "-"], "a curve without all lambdas"
    results.rows = {key: row for key, row in results.rows.items() if key[2] != "0.03"}
    assert table(results).splitlines()[2].split()[-4:-2] == ["-", "-"], "an anchor without all lambdas"


def test_what_the_paper_has_no_figure_for_is_no_pair(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.csv")
    for setting in SETTINGS[:5]:  # in cheng-attn the last of them diverged
        for lmbda, bpp, psnr in ((0.01, 0.2, 28.0), (0.02, 0.4, 30.0), (0.03, 0.7, 32.0)):
            for stage in ("main", "hard"):
                values = ("cheng-attn", setting.name, f"{lmbda:g}", stage, 2, 2, bpp, 0.1, psnr, 1.0)
                results.add(dict(zip(surrogates.FIELDS, values, strict=True)))
    assert "of 6 pairs" in table(results)


def test_the_papers_figures() -> None:
    assert set(PAPER) == {config.name for config in NETWORKS}
    joint, post = paper_against_first("charm-zero")["sua+ep/sua+ste"]
    assert joint == pytest.approx(100 * (81.37 / 95.21 - 1)) and post == pytest.approx(100 * (79.50 / 95.21 - 1))
