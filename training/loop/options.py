"""Options that the stage scripts and the ladder share."""

import argparse
import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args

from submission.errors import UserError
from training.data.pictures import Pictures, load_pictures
from training.network.device import Device, World
from training.objective.quantization import NAMED, terms
from training.recipe import RECIPES, Metric, Recipe

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(text: str) -> float:
    """`20m`, `1h30m`, `90s` or `90` -> seconds; UserError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    total = sum(float(value) * _UNITS[unit] for value, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        total = float(text)
    elif "".join(value + unit for value, unit in parts) != text:
        total = 0.0
    if total <= 0:
        raise UserError(f"{text!r} is no time; give one such as 20m, 1h30m or 90s")
    return total


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=RECIPES, required=True, help="network and recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of training pictures")
    parser.add_argument(
        "--exclude", type=Path, nargs="+", help="folders of evaluation pictures: no copy of one is used"
    )
    parser.add_argument(
        "--validate", type=Path, nargs="+", help="folders of pictures to validate on (default: one in 20 of --data)"
    )
    parser.add_argument(
        "--half", type=float, default=0.0, metavar="SHARE", help="share of crops at half the pictures' size (default 0)"
    )
    parser.add_argument("--cache", type=Path, help="folder for the decoded pictures (default: --run)")
    parser.add_argument("--time-budget", metavar="TIME", help="fit the whole schedule into this time, e.g. 20m")
    add_metric(parser)
    add_quantizer(parser)
    parser.add_argument("--batch", type=int, help="crops a step, all processes together, instead of the recipe's")
    parser.add_argument("--optimizer", choices=("adam", "soap"), help="instead of the recipe's, in all stages")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile (auto: on a GPU)"
    )
    parser.add_argument("--no-tensorboard", action="store_true", help="write the CSV alone")


def add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        choices=get_args(Metric),
        help="distortion D: 1 - MS-SSIM, or the squared error of pictures in 0..255 (default: the recipe's)",
    )


def add_quantizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantizer",
        metavar="Q",
        help=f"stands for rounding in trunk, main and joint stage: {', '.join(NAMED)} (default: aun), or "
        "RATE/DISTORTION as in sua+ep/sua+ste; see docs/quantization.md",
    )
    parser.add_argument("--sharpness", type=float, metavar="TAU", help="where quantizers that anneal end (default 12)")
    parser.add_argument("--learned-step", action="store_true", help="network with a learned step of quantisation")
    parser.add_argument(
        "--distortion-moves-means",
        action="store_true",
        help="hard stage of networks that round around means: not by the rate alone",
    )


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The preset's recipe with the command line's metric and quantization; UserError if there is no such
    thing."""
    recipe = RECIPES[options.preset]
    if not 0 <= options.half <= 1:
        raise UserError(f"--half {options.half:g}: must be 0 to 1")
    recipe = recipe.changed(half=options.half)
    changed: dict[str, Any] = {}
    if options.quantizer is not None:
        terms(options.quantizer)
        changed["quantizer"] = options.quantizer
    if options.sharpness is not None:
        if not 1 <= options.sharpness <= 100:
            raise UserError(f"--sharpness {options.sharpness:g}: must be 1 to 100")
        changed["sharpness"] = options.sharpness
    if options.optimizer is not None:
        recipe = recipe.changed(optimizer=options.optimizer)
    if options.distortion_moves_means and not recipe.model.zero_centre:
        raise UserError(f"--distortion-moves-means: {recipe.model.name} does not round around means")
    if options.metric is not None:
        recipe = recipe.for_metric(options.metric)
    hard = {"distortion_moves_means": options.distortion_moves_means}
    stages = tuple(
        dataclasses.replace(s, **(changed if s.noisy else hard if s.name == "hard" else {})) for s in recipe.stages
    )
    try:
        model = dataclasses.replace(recipe.model, learned_step=options.learned_step)
    except ValueError as error:
        raise UserError(f"--learned-step: {error}") from None
    return dataclasses.replace(recipe, model=model, stages=stages)


def device_of(options: argparse.Namespace) -> Device:
    return Device.choose(options.precision, options.compile)


def pictures_of(options: argparse.Namespace, crop: int, world: World) -> Pictures:
    """The first process decodes, the others find the file."""
    cache = options.cache or options.run
    if not world.first:
        world.wait()
    pictures = load_pictures(options.data, crop, cache, options.exclude, options.validate)
    if world.first:
        world.wait()
    return pictures


def check_lambda(lmbda: float) -> None:
    if not 0 < lmbda < math.inf:
        raise UserError(f"--lmbda {lmbda:g}: must be positive")


def check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch}: must be at least 1")
