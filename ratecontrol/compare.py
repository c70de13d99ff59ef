"""What rate control is worth: ways to choose a candidate for each picture, side by side under one byte cap.

Reproduces Table 1 of the 2020 paper with our ladder (one, two, four, all models), and adds equal rate for every
picture, greedy upgrades, the proven optimum, and the optimum with refined candidates (`ratecontrol.refinement.refine`).
"""

import argparse
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ratecontrol.allocate import Problem, feasible, read_problem
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import Candidates, DoesNotFit, Table, allocate, fill, undominated
from ratecontrol.allocation.table import write_table
from submission import console
from submission.errors import UserError
from submission.files import make_folder, write_bytes

Integers = NDArray[np.int64]

#: Names of refined candidates, as `ratecontrol.measure --refine` gives them.
REFINED = re.compile(r"-r[\d.]+-s\d+$")

EXAMPLE = """example:
  python -m ratecontrol.measure photos -o table.csv --refine 16
  python -m ratecontrol.compare table.csv --bpp 0.15 -o comparison
"""


@dataclass(frozen=True)
class Method:
    """A way to choose, and the rows it chose; none where it cannot meet the cap."""

    name: str
    models: str  #: the qualities it chose from
    chosen: Integers | None  #: rows of the problem's table, one an image


def methods(problem: Problem, bpp: Fraction) -> Iterator[Method]:
    """All ways to choose under the cap of `bpp`."""
    cap = byte_cap(bpp, problem.pixels)
    refined = problem.table["candidate"].str.contains(REFINED).to_numpy(bool)
    plain = np.flatnonzero(~refined)
    quality = pd.to_numeric(problem.table["quality"]).to_numpy(np.float64)
    models = sorted(set(quality[plain].tolist()))
    everything = names(models)
    for count in sorted({min(count, len(models)) for count in (1, 2, 4)}):
        tried = [
            (optimum(problem, plain[np.isin(quality[plain], subset)], cap), names(subset))
            for subset in itertools.combinations(models, count)
        ]
        chosen, best = max(tried, key=lambda answer: -1.0 if answer[0] is None else value(problem, answer[0]))
        yield Method(f"best {count} of {len(models)}", best, chosen)
    yield Method("equal bpp for every picture", everything, equal_rate(problem, plain, bpp))
    yield Method("greedy", everything, greedy(problem, plain, cap))
    yield Method("exact", everything, optimum(problem, plain, cap))
    if refined.any():
        yield Method("exact, refined", everything, optimum(problem, np.arange(len(problem.table)), cap))


def check_whole(path: Path, problem: Problem) -> None:
    """UserError unless each picture has each model: a way to choose must have something to choose from."""
    plain = problem.table[~problem.table["candidate"].str.contains(REFINED)]
    cells = plain["image"].nunique() * plain["quality"].nunique()
    if plain["image"].nunique() < len(problem.images) or len(plain.drop_duplicates(["image", "quality"])) < cells:
        raise UserError(f"{path}: not every picture has every model; measure the pictures without --bpp first")


def names(models: list[float] | tuple[float, ...]) -> str:
    return ",".join(f"{model:g}" for model in models)


def value(problem: Problem, chosen: Integers) -> float:
    """The set's MS-SSIM."""
    return float(problem.candidates.value[chosen].sum())


def only(problem: Problem, rows: Integers) -> Candidates:
    candidates = problem.candidates
    return Candidates(candidates.image[rows], candidates.size[rows], candidates.value[rows])


def optimum(problem: Problem, rows: Integers, cap: int) -> Integers | None:
    """The best choice among `rows`, or none where even the smallest do not fit."""
    try:
        return rows[allocate(only(problem, rows), cap).chosen]
    except DoesNotFit:
        return None


def greedy(problem: Problem, rows: Integers, cap: int) -> Integers | None:
    """From every image's smallest candidate up, the upgrades of most value a byte first."""
    candidates = only(problem, rows)
    kept = undominated(candidates)
    table = Table.of(candidates, kept)
    if table.total_size(table.start) > cap:
        return None
    return rows[kept[fill(table, table.start, cap)]]


def equal_rate(problem: Problem, rows: Integers, bpp: Fraction) -> Integers | None:
    """For every image the best candidate within its own share of the bytes; none where an image has none."""
    area = problem.area[rows]
    share = np.array([bpp * int(pixels) // 8 for pixels in area], np.int64)
    candidates = problem.candidates
    fits = rows[candidates.size[rows] <= share]
    order = fits[np.lexsort((candidates.size[fits], -candidates.value[fits], candidates.image[fits]))]
    first = order[np.flatnonzero(np.diff(candidates.image[order], prepend=-1))]
    return first if len(first) == len(problem.images) else None


def smallest_cap(problem: Problem, rows: Integers, target: float, most: int) -> int:
    """The fewest bytes with which the best choice among `rows` reaches the value `target`, at most `most`."""
    lowest, highest = 0, most  # `most` reaches it
    while highest - lowest > 1:
        cap = (lowest + highest) // 2
        chosen = optimum(problem, rows, cap)
        if chosen is not None and value(problem, chosen) >= target:
            highest = cap
        else:
            lowest = cap
    return highest


def summary(problem: Problem, found: list[Method], cap: int) -> pd.DataFrame:
    """One row a method; NaN where it cannot meet the cap."""
    rows = []
    for method in found:
        size, score = np.nan, np.nan
        if method.chosen is not None:
            size = float(problem.candidates.size[method.chosen].sum())
            score = value(problem, method.chosen)
        rows.append(
            {
                "method": method.name,
                "models": method.models,
                "bytes": size,
                "of_cap": size / cap,
                "bpp": 8 * size / problem.pixels,
                "msssim": score,
                "db": -10 * np.log10(max(1 - score, 1e-12)),
            }
        )
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame) -> str:
    lines = [f"{'method':28} {'models':12} {'bytes':>10} {'of cap':>8} {'bpp':>7} {'MS-SSIM':>8} {'dB':>7}"]
    for row in table.to_dict("records"):
        start = f"{row['method']:28} {row['models']:12}"
        if np.isnan(row["bytes"]):
            lines.append(f"{start} does not meet the cap")
        else:
            lines.append(
                f"{start} {row['bytes']:10,.0f} {100 * row['of_cap']:7.2f}% {row['bpp']:7.4f}"
                f" {row['msssim']:8.5f} {row['db']:7.3f}"
            )
    return "\n".join(lines)


def plot(problem: Problem, found: list[Method], bpp: str, path: Path) -> None:
    """Which picture got what: a row of models for each method, and the rates that follow."""
    try:
        from matplotlib.colors import BoundaryNorm
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("the plot needs matplotlib: pip install matplotlib") from None
    drawn = [(method.name, method.chosen) for method in found if method.chosen is not None]
    rates = 8 * problem.candidates.size / problem.area
    order = np.argsort(rates[drawn[-1][1]], kind="stable")
    quality = pd.to_numeric(problem.table["quality"]).to_numpy(np.float64)
    levels = np.unique(quality)
    count = len(problem.images)
    figure = Figure(figsize=(min(max(8, 0.32 * count + 4), 20), 7.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))

    grid = np.stack([np.searchsorted(levels, quality[chosen])[order] for _, chosen in drawn])
    norm = BoundaryNorm(np.arange(len(levels) + 1) - 0.5, 256)
    image = top.imshow(grid, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    refined = problem.table["candidate"].str.contains(REFINED).to_numpy(bool)
    marks = [(x, y) for y, (_, chosen) in enumerate(drawn) for x, row in enumerate(chosen[order]) if refined[row]]
    if marks:
        top.scatter(*zip(*marks, strict=True), s=14, c="white", edgecolors="black", linewidths=0.5)
    top.set_yticks(range(len(drawn)), [name for name, _ in drawn])
    top.set_title(f"Model of each picture at {bpp} bpp" + (" (dots: refined)" if marks else ""), loc="left")
    bar = figure.colorbar(image, ax=top, ticks=range(len(levels)), label="quality", pad=0.01)
    bar.set_ticklabels([f"{level:g}" for level in levels])

    for name, chosen in drawn:
        if name.startswith(("equal", "exact")):
            bottom.plot(rates[chosen][order], marker="o", markersize=3, linewidth=1, label=name)
    bottom.axhline(float(bpp), color="grey", linewidth=0.8, linestyle="--")
    bottom.set_ylabel("bits per pixel")
    bottom.set_ylim(bottom=0)
    bottom.legend(frameon=False, loc="upper left")
    if count <= 60:
        bottom.set_xticks(range(count), [Path(problem.images[k]).stem for k in order], rotation=90, fontsize=8)
    else:
        bottom.set_xlabel("pictures, by rate")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratecontrol.compare",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, metavar="table.csv", help="what ratecontrol.measure wrote")
    parser.add_argument("--bpp", required=True, metavar="RATE", help="bits per pixel of the whole set, such as 0.15")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="for compare-RATE.csv, .png")
    arguments = parser.parse_args()

    bpp = parse_bpp(arguments.bpp)
    problem = read_problem(arguments.table)
    check_whole(arguments.table, problem)
    cap = byte_cap(bpp, problem.pixels)
    feasible(problem, arguments.bpp, cap)
    found = list(console.progress(methods(problem, bpp), "comparing", total=7))
    table = summary(problem, found, cap)
    folder = make_folder(arguments.output)
    write_table(folder / f"compare-{arguments.bpp}.csv", table)
    plot(problem, found, arguments.bpp, folder / f"compare-{arguments.bpp}.png")
    print(as_text(table))
    exact = next(method for method in found if method.name == "exact")
    if found[-1].name == "exact, refined" and exact.chosen is not None:
        size = int(problem.candidates.size[exact.chosen].sum())
        least = smallest_cap(problem, np.arange(len(problem.table)), value(problem, exact.chosen), size)
        print(
            f"refined candidates reach the exact row's MS-SSIM with {least:,} bytes, {100 * (least / size - 1):+.2f} %"
        )
    print(f"{folder}/compare-{arguments.bpp}.png: which picture got what")
    return 0


if __name__ == "__main__":
    console.run(main)
