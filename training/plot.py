"""Draw the curves of a run: loss, held-out rate and quality of every lambda, and the rate-distortion curve so far."""

import argparse
import csv
import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submission.console import run
from submission.errors import UserError
from submission.files import make_folder
from training.recipe import STAGES

Row = dict[str, float]


@dataclass(frozen=True)
class Curve:
    """The log of one model, its stages one after the other; `step` counts on, `stages` tells where each begins."""

    name: str
    lmbda: float
    rows: list[Row]
    stages: dict[str, float]


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
    name = folder.name.removeprefix("lambda_")
    for stage in STAGES:
        path = folder / f"{stage}.csv"
        if path.exists():
            before = rows[-1]["step"] if rows else 0.0
            stages[stage] = before
            with path.open(newline="") as file:
                rows += [{**_numbers(line), "step": before + float(line["step"])} for line in csv.DictReader(file)]
    try:
        lmbda = float(name)
    except ValueError:
        lmbda = math.nan
    return Curve(name, lmbda, rows, stages)


def _numbers(line: dict[str, str]) -> Row:
    return {name: float(value) if value else math.nan for name, value in line.items() if name is not None}


def draw(curves: list[Curve], output: Path) -> None:
    """Write the picture of `curves`."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(13, 8.5), layout="constrained")
        colours = importlib.import_module("matplotlib").colormaps["viridis"]
    except ImportError:
        raise UserError("matplotlib is not installed: pip install matplotlib") from None
    (loss, bpp), (quality, plane) = figure.subplots(2, 2)
    shades = {c.name: colours(0.92 * k / max(len(curves) - 1, 1)) for k, c in enumerate(curves)}
    for curve in curves:
        shade = shades[curve.name]
        _line(loss, curve, "loss", shade)
        _line(bpp, curve, "val_bpp", shade)
        _line(quality, curve, "val_msssim", shade)
    for axes, title in ((loss, "training loss"), (bpp, "held-out rate, bpp"), (quality, "held-out MS-SSIM, dB")):
        axes.set(title=title, xlabel="step")
        for begin in max(curves, key=lambda c: c.rows[-1]["step"]).stages.values():
            axes.axvline(begin, color="0.85", linewidth=1, zorder=0)
    loss.set(xscale="log", yscale="log")
    _rate_distortion(plane, curves, shades)
    figure.legend(*loss.get_legend_handles_labels(), title="λ", loc="outside right center")
    for axes in (loss, bpp, quality, plane):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    make_folder(output.parent)
    figure.savefig(output, dpi=110)


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


if __name__ == "__main__":
    run(main)
