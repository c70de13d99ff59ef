"""Draw the curves of a run: loss, held-out rate and quality of every lambda, the rate-distortion curve so far, and what
was minimised, J = R + lambda D, against hours, with what another day would make of it if its slope stayed."""

import argparse
import csv
import importlib
import io
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submission.console import run
from submission.errors import UserError
from submission.files import make_folder, write_bytes
from training.recipe import STAGES

Row = dict[str, float]

#: Columns without which a log is none.
NEEDED = {"step", "seconds", "loss", "val_bpp", "val_msssim", "val_psnr"}

#: Share of a run's points, the last ones, whose slope is drawn on for a day.
RECENT = 0.3


@dataclass(frozen=True)
class Curve:
    """The log of one model, its stages one after the other; `step` and `seconds` count on, `stages` tells where each
    begins. A trunk's lambda is the one that it is validated at."""

    name: str
    lmbda: float
    metric: str
    rows: list[Row]
    stages: dict[str, float]

    def costs(self) -> list[tuple[float, float]]:
        """(hours, held-out R + lambda D) wherever it was validated."""
        found = []
        for row in self.rows:
            if not math.isnan(row.get("val_bpp", math.nan)):
                lost = 255**2 / 10 ** (row["val_psnr"] / 10) if self.metric == "mse" else 1 - row["val_msssim"]
                found.append((row["seconds"] / 3600, row["val_bpp"] + self.lmbda * lost))
        return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m training.plot runs/small -o curves.png",
    )
    parser.add_argument("run", type=Path, help="run folder of training.ladder, or of one model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="where to draw it")
    options = parser.parse_args()
    if options.output.suffix.lower() != ".png":
        raise UserError(f"{options.output}: the plot is a PNG; give a name that ends in .png")
    draw(read_curves(options.run), options.output)
    print(options.output)
    return 0


def read_curves(root: Path) -> list[Curve]:
    """One curve for each folder with logs, by lambda; UserError if there is none."""
    folders = [root, *sorted(root.iterdir())] if root.is_dir() else []
    curves = [curve for folder in folders if folder.is_dir() and (curve := _curve(folder)).rows]
    if not curves:
        raise UserError(f"{root}: no logs of training here")
    return sorted(curves, key=lambda c: c.lmbda)


def _curve(folder: Path) -> Curve:
    rows: list[Row] = []
    stages: dict[str, float] = {}
    lmbda, metric = math.nan, "ms-ssim"
    for stage in ("trunk", *STAGES):
        path = folder / f"{stage}.csv"
        if path.exists():
            last = rows[-1] if rows else {"step": 0.0, "seconds": 0.0}
            stages[stage] = last["step"]
            lines = _numbers(path)
            rows += [{**line, **{name: last[name] + line[name] for name in ("step", "seconds")}} for line in lines]
            lmbda, metric = _record(folder / f"{stage}.json", lmbda, metric)
    name = "trunk" if "trunk" in stages else f"{lmbda:g}"
    return Curve(name, lmbda, metric, rows, stages)


def _record(path: Path, lmbda: float, metric: str) -> tuple[float, str]:
    """Lambda and metric of a stage's record, or those given where it has none."""
    try:
        record = json.loads(path.read_bytes())
        return float(record["lmbda"]), str(record["stage"]["metric"])
    except FileNotFoundError:
        return lmbda, metric
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the record of a stage") from None


def _numbers(path: Path) -> list[Row]:
    """The lines of a log; an empty cell is NaN."""
    try:
        with path.open(newline="") as file:
            lines = csv.DictReader(file)
            if not set(lines.fieldnames or NEEDED) >= NEEDED:
                raise ValueError
            return [{n: float(v) if v else math.nan for n, v in line.items()} for line in lines]
    except (ValueError, TypeError, csv.Error):
        raise UserError(f"{path}: not the log of a stage") from None


def draw(curves: list[Curve], output: Path) -> None:
    """Write the picture of `curves`."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(17, 8.5), layout="constrained")
        colours = importlib.import_module("matplotlib").colormaps["viridis"]
    except ImportError:
        raise UserError("matplotlib is not installed: pip install matplotlib") from None
    placed = figure.subplot_mosaic([["loss", "bpp", "cost"], ["quality", "plane", "cost"]])
    loss, bpp, quality, plane, cost = (placed[name] for name in ("loss", "bpp", "quality", "plane", "cost"))
    shades = {c.name: colours(0.92 * k / max(len(curves) - 1, 1)) for k, c in enumerate(curves)}
    for curve in curves:
        shade = shades[curve.name]
        _line(loss, curve, "loss", shade)
        _line(bpp, curve, "val_bpp", shade)
        _line(quality, curve, "val_msssim", shade)
    for axes, title in ((loss, "training loss"), (bpp, "held-out rate, bpp"), (quality, "held-out MS-SSIM, dB")):
        axes.set(title=title, xlabel="step")
        for begin in max(curves, key=lambda c: c.rows[-1]["step"]).stages.values():
            if begin:
                axes.axvline(begin, color="0.85", linewidth=1, zorder=0)
    loss.set(xscale="log", yscale="log")
    _rate_distortion(plane, curves, shades)
    _costs(cost, curves, shades)
    figure.legend(*loss.get_legend_handles_labels(), title="λ", loc="outside right center")
    for axes in (loss, bpp, quality, plane, cost):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes(make_folder(output.parent) / output.name, drawn.getvalue())


def decibels(msssim: float) -> float:
    return -10 * math.log10(max(1 - msssim, 1e-9))


def _line(axes: Any, curve: Curve, name: str, shade: Any) -> None:
    points = [(r["step"], r[name]) for r in curve.rows if not math.isnan(r.get(name, math.nan))]
    if points:
        steps, values = zip(*points, strict=True)
        shown = map(decibels, values) if name == "val_msssim" else values
        axes.plot(
            steps, list(shown), color=shade, linewidth=1.4, marker="." if len(points) < 30 else None, label=curve.name
        )


def _rate_distortion(axes: Any, curves: list[Curve], shades: dict[str, Any]) -> None:
    """The newest held-out point of each model."""
    points = []
    for curve in curves:
        seen = [r for r in curve.rows if not math.isnan(r.get("val_bpp", math.nan))]
        if seen:
            points.append((seen[-1]["val_bpp"], decibels(seen[-1]["val_msssim"]), curve.name))
    points.sort()
    axes.plot([p[0] for p in points], [p[1] for p in points], color="0.6", linewidth=1, zorder=0)
    for rate, quality, name in points:
        axes.plot(rate, quality, "o", color=shades[name])
        axes.annotate(name, (rate, quality), textcoords="offset points", xytext=(6, -9), fontsize=8)
    axes.set(title="newest held-out point of each model", xlabel="bpp", ylabel="MS-SSIM, dB")


def _costs(axes: Any, curves: list[Curve], shades: dict[str, Any]) -> None:
    """Held-out J over hours, and dashed where the power law of the newest points leads in a day."""
    for curve in curves:
        points = [(hours, cost) for hours, cost in curve.costs() if hours > 0]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=shades[curve.name], linewidth=1.4, marker=".")
        slope = power(points[int(len(points) * (1 - RECENT)) :])
        hours, cost = points[-1]
        if slope < 0:
            later = hours + 24
            ahead = cost * (later / hours) ** slope
            axes.plot((hours, later), (cost, ahead), "--", color=shades[curve.name], linewidth=1)
            label = f"{ahead / cost - 1:+.0%}"
            axes.annotate(label, (later, ahead), textcoords="offset points", xytext=(0, -10), ha="right", fontsize=8)
    axes.set(title="held-out R + λD; dashed: another day at this slope", xlabel="hours", xscale="log", yscale="log")


def power(points: list[tuple[float, float]]) -> float:
    """The exponent of the power law through `points`, by least squares in logarithms; 0 for fewer than three."""
    if len(points) < 3:
        return 0.0
    hours, costs = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    return statistics.linear_regression(hours, costs).slope


if __name__ == "__main__":
    run(main)
