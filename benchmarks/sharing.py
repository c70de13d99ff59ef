"""A chain of models against one trunk: the chain's part, at equal steps for every lambda.

Main networks alone, the recipe's, each of STEPS steps, from the base outwards: the base from random weights, the others
from their neighbour's end at half the rate. Under torchrun the processes share each batch. The folder that comes out is
scored, beside a trunk of LAMBDAS x STEPS steps, by `benchmarks.quality`.
"""

import argparse
import dataclasses
from pathlib import Path

from benchmarks.arguments import count, positive
from submission.console import run
from submission.errors import UserError
from submission.files import make_folder
from training.ladder import run_name
from training.loop.options import add_options, device_of, pictures_of, recipe_of
from training.loop.plan import order
from training.loop.stage import run_stage
from training.loop.train import Session
from training.network.device import join_world


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.sharing --preset small --data photos --validate dev "
        "--lmbda 1.1 4.5 18 40 90 --base 18 --steps 1600 --batch 8 --run runs/chain",
    )
    add_options(parser)
    parser.add_argument("--lmbda", type=positive, nargs="+", required=True)
    parser.add_argument("--base", type=positive, required=True, help="the lambda that comes first")
    parser.add_argument("--steps", type=count, required=True, help="of each lambda")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; an unfinished one is continued")
    options = parser.parse_args()
    if options.base not in options.lmbda:
        raise UserError(f"--base {options.base:g}: must be one of --lmbda")
    if options.time_budget is not None:
        raise UserError("--time-budget: every model gets equal steps here; give --steps")
    recipe = recipe_of(options)
    first = dataclasses.replace(recipe.stage("main"), steps=options.steps)
    first = dataclasses.replace(first, batch=options.batch or first.batch, warmup=options.steps // 16)
    later = dataclasses.replace(first, lr=first.lr / 2, warmup=0)
    with join_world() as world:
        pictures = pictures_of(options, first.crop, world)
        session = Session(pictures, device_of(options), world, tensorboard=False)
        for place, (lmbda, neighbour) in enumerate(order(tuple(options.lmbda), options.base)):
            stage = dataclasses.replace(first if neighbour is None else later, seed=1 + place)
            start = None if neighbour is None else options.run / run_name(neighbour)
            run_stage(recipe.model, stage, lmbda, make_folder(options.run / run_name(lmbda)), start, session)
    return 0


if __name__ == "__main__":
    run(main)
