"""Train a whole ladder: all stages, all lambdas, one run folder; kill it and start it again at any time."""

import argparse
import dataclasses
from pathlib import Path

from submission.console import run
from submission.errors import UserError
from submission.files import make_folder
from training.data import Pictures, load_pictures
from training.loop import Device
from training.recipe import RECIPES, STAGES, Recipe
from training.stage import run_stage


def order(lambdas: tuple[float, ...], base: float) -> list[tuple[float, float | None]]:
    """(lambda, the neighbour it starts from), base first, then outwards: each starts from a finished model."""
    ordered = sorted(lambdas)
    at = ordered.index(base)
    up = [(ordered[k], ordered[k - 1]) for k in range(at + 1, len(ordered))]
    down = [(ordered[k], ordered[k + 1]) for k in range(at - 1, -1, -1)]
    pairs: list[tuple[float, float | None]] = [(base, None)]
    for k in range(max(len(up), len(down))):
        pairs += up[k : k + 1] + down[k : k + 1]
    return pairs


def run_name(lmbda: float) -> str:
    return f"lambda_{lmbda:g}"


def train_ladder(recipe: Recipe, pictures: Pictures, root: Path, device: Device) -> None:
    """The base model through all stages first, then each neighbour: a usable ladder exists early and grows."""
    for lmbda, start in order(recipe.lambdas, recipe.base):
        folder = make_folder(root / run_name(lmbda))
        init = root / run_name(start) if start is not None else None
        for name in STAGES:
            stage = recipe.stage(name)
            if init is not None:
                steps = recipe.neighbour[STAGES.index(name)]
                stage = dataclasses.replace(stage, steps=steps, lr=min(stage.lr, 3e-4), warmup=0, hyper_ramp=0)
            run_stage(recipe, stage, lmbda, pictures, folder, init, device)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.ladder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m training.ladder --preset small --data photos --run runs/small",
    )
    parser.add_argument("--preset", choices=RECIPES, required=True, help="network and recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of training pictures")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; an unfinished one is continued")
    parser.add_argument("--lmbda", type=float, nargs="+", help="lambdas instead of the recipe's, the base among them")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    options = parser.parse_args()
    recipe = RECIPES[options.preset]
    if options.lmbda:
        if recipe.base not in options.lmbda:
            raise UserError(f"--lmbda must include {recipe.base:g}, from which the others start")
        recipe = dataclasses.replace(recipe, lambdas=tuple(sorted(set(options.lmbda))))
    make_folder(options.run)
    pictures = load_pictures(options.data, recipe.stages[0].crop)
    train_ladder(recipe, pictures, options.run, Device.choose(options.precision))
    return 0


if __name__ == "__main__":
    run(main)
