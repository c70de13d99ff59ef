"""The comparison of ways to allocate: each row is what its name says, and none is over the cap."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ratecontrol import compare
from ratecontrol.allocate import read_problem
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from tests.commands import assert_refused, call

BPP = "0.15"
AREA = 512 * 384


def write(path: Path, refined: bool = True, images: int = 6, seed: int = 0) -> Path:
    """A table of four models, and perhaps of their refined versions: smaller, and no worse."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        difficulty = rng.uniform(0.5, 2)
        for quality in range(4):
            size = int(1500 * difficulty * 1.6**quality * rng.uniform(0.95, 1.05))
            score = 1 - 0.12 * difficulty * 0.75**quality * rng.uniform(0.95, 1.05)
            rows.append([f"p{image}.png", 512, 384, f"q{quality}", quality, size, score])
            if refined:
                rows.append([f"p{image}.png", 512, 384, f"q{quality}-r0.7-s24", quality, size * 9 // 10, score])
    columns = ["image", "width", "height", "candidate", "quality", "bytes", "msssim"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_table_and_plot(tmp_path: Path) -> None:
    result = call(compare.main, write(tmp_path / "t.csv"), "--bpp", BPP, "-o", tmp_path / "out")
    assert result.code == 0, result.stderr
    table = pd.read_csv(tmp_path / "out" / f"compare-{BPP}.csv").set_index("method")
    equal = "equal bpp for every picture"
    assert list(table.index) == [
        "best 1 of 4",
        "best 2 of 4",
        "best 4 of 4",
        equal,
        "greedy",
        "exact",
        "exact, refined",
    ]
    assert (table["of_cap"].dropna() <= 1).all()
    score = table["msssim"]
    assert score["best 1 of 4"] <= score["best 2 of 4"] <= score["best 4 of 4"] == score["exact"]
    assert max(score[equal], score["greedy"]) <= score["exact"] < score["exact, refined"]
    with Image.open(tmp_path / "out" / f"compare-{BPP}.png") as image:
        assert min(image.size) > 400
    for name in table.index:
        assert name in result.stdout
    assert "exact row's MS-SSIM" in result.stdout


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_what_they_say(tmp_path: Path, seed: int) -> None:
    problem = read_problem(write(tmp_path / "t.csv", refined=False, images=4, seed=seed))
    cap = byte_cap(parse_bpp(BPP), problem.pixels)
    found = {method.name: method.chosen for method in compare.methods(problem, parse_bpp(BPP))}
    assert "exact, refined" not in found
    sizes, values = (getattr(problem.candidates, name).reshape(4, 4) for name in ("size", "value"))

    def brute(models: tuple[int, ...]) -> float:
        every = itertools.product(models, repeat=4)
        return max((values[range(4), c].sum() for c in every if sizes[range(4), c].sum() <= cap), default=-np.inf)

    pairs = max(brute(pair) for pair in itertools.combinations(range(4), 2))
    for name, best in (("best 2 of 4", pairs), ("exact", brute((0, 1, 2, 3)))):
        chosen = found[name]
        assert chosen is not None and compare.value(problem, chosen) == pytest.approx(best)
    equal = found["equal bpp for every picture"]
    if equal is not None:
        assert (problem.candidates.size[equal] <= byte_cap(parse_bpp(BPP), AREA)).all()
    single = found["best 1 of 4"]
    if single is not None:
        assert len(set(problem.table["quality"].iloc[single])) == 1


def test_fewest_bytes_for_a_score(tmp_path: Path) -> None:
    problem = read_problem(write(tmp_path / "t.csv"))
    rows = np.arange(len(problem.table))
    chosen = compare.optimum(problem, rows, 20_000)
    assert chosen is not None
    target = compare.value(problem, chosen)
    least = compare.smallest_cap(problem, rows, target, 20_000)
    assert least == problem.candidates.size[chosen].sum()
    worse = compare.optimum(problem, rows, least - 1)
    assert worse is None or compare.value(problem, worse) < target


def test_a_method_without_an_answer_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", refined=False)
    table = pd.read_csv(path)
    table.loc[table["image"] == "p0.png", "bytes"] += 4000  # its share does not hold even its smallest
    table.to_csv(path, index=False)
    result = call(compare.main, path, "--bpp", BPP, "-o", tmp_path / "out")
    assert result.code == 0
    assert "does not meet the cap" in result.stdout


def test_a_plot_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    draw = figure.Figure.savefig

    def cut_off(self: object, target: object, **settings: object) -> None:
        draw(self, target, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(figure.Figure, "savefig", cut_off)
    result = call(compare.main, write(tmp_path / "t.csv"), "--bpp", BPP, "-o", tmp_path / "out")
    assert (result.code, result.stderr) == (130, "error: interrupted\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"compare-{BPP}.csv"]


def test_bad_input(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv")
    assert_refused(call(compare.main, path, "--bpp", "0.01", "-o", tmp_path / "out"), "smallest feasible rate")
    assert_refused(call(compare.main, path, "--bpp", "x", "-o", tmp_path / "out"), "--bpp")
    assert_refused(call(compare.main, tmp_path / "none.csv", "--bpp", BPP, "-o", tmp_path / "out"), "none.csv")
    table = pd.read_csv(path)
    for gap in (table["candidate"] == table["candidate"][0], ~table["candidate"].str.contains("-r")):
        table[~gap | (table["image"] != table["image"][0])].to_csv(tmp_path / "gaps.csv", index=False)
        refused = call(compare.main, tmp_path / "gaps.csv", "--bpp", BPP, "-o", tmp_path / "out")
        assert_refused(refused, "gaps.csv: not every picture has every model", "--bpp")
    assert not (tmp_path / "out").exists()
    assert_refused(call(compare.main, path, "--bpp", BPP, "-o", path), "not a folder")
