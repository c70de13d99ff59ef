"""Train a whole ladder: all stages, all lambdas, one run folder; kill it and start it again at any time."""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from submission.config import ModelConfig
from submission.console import Progress, run
from submission.errors import UserError
from submission.files import make_folder, write_bytes
from training.loop.checkpoint import load_checkpoint
from training.loop.jobs import Launched, run_side_by_side
from training.loop.options import add_options, check_batch, check_lambda, device_of, pictures_of, recipe_of, seconds
from training.loop.plan import Key, Start, Task, share_time, tasks
from training.loop.stage import run_stage
from training.loop.train import Session
from training.network.device import ALONE, World, join_world
from training.recipe import Recipe, Stage

#: Seconds used so far, of all calls together.
CLOCK = "time.json"

#: Seconds between writes of it: what a kill can hide.
CLOCK_SECONDS = 3.0


#: Parts of the budget: what stages at its end get in any case, and how far that may go past it.
LAST, OVERRUN = 0.02, 0.1


def run_name(lmbda: float) -> str:
    return f"lambda_{lmbda:g}"


@dataclass
class Clock:
    """Time spent on a ladder by this call and by those before it."""

    path: Path
    started: float
    before: float = 0.0
    written_at: float = field(default=0.0)

    @classmethod
    def open(cls, root: Path, started: float) -> "Clock":
        try:
            return cls(root / CLOCK, started, float(json.loads((root / CLOCK).read_text())["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(root / CLOCK, started)

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def tick(self) -> None:
        if time.monotonic() - self.written_at > CLOCK_SECONDS:
            self.written_at = time.monotonic()
            write_bytes(self.path, json.dumps({"seconds": round(self.spent, 1)}).encode())


@dataclass(frozen=True)
class LadderRun:
    """A ladder's run folder and how it is trained."""

    recipe: Recipe
    root: Path
    clock: Clock
    #: Models to start from instead of neighbours.
    init: Path | None = None
    #: Seconds for everything, over all calls.
    budget: float | None = None
    jobs: int = 1
    world: World = ALONE

    def folder(self, lmbda: float) -> Path:
        return self.root / run_name(lmbda)

    @property
    def begins_with(self) -> Start:
        if self.init is None:
            return "random"
        return "trunk" if (self.init / "trunk.pt").exists() else "models"

    def start_of(self, task: Task) -> Path | None:
        """The folder that `task` starts from, besides its own."""
        if task.neighbour is not None:
            return self.folder(task.neighbour)
        return self.init if task.stage.name == "main" else None  # later stages inherit what the main one began with

    def progress(self, task: Task) -> tuple[float, float, bool]:
        """How far a task is (0 to 1), seconds spent on it, and whether it is done."""
        checkpoint = self.folder(task.lmbda) / f"{task.stage.name}.pt"
        if not checkpoint.exists():
            return 0.0, 0.0, False
        state = load_checkpoint(checkpoint, self.recipe.model, task.stage, task.lmbda)
        return float(state.get("progress", 0.0)), float(state.get("seconds", 0.0)), bool(state["done"])

    def timed(self, task: Task, pending: list[Task], left: dict[Key, float]) -> Stage:
        """The task's stage with its share of what is left of the budget. `pending` is all that is not done and `left`
        how much of the tasks that run at the moment is still to do, 0 to 1."""
        if self.budget is None:
            return task.stage
        progress, spent, _ = self.progress(task)
        remaining = float(self.world.share(self.budget - self.clock.spent))
        if remaining < -OVERRUN * self.budget:
            raise UserError(
                f"the time budget is used up with {len(pending)} stages to go; continue with a longer --time-budget"
            )
        remaining = max(remaining, LAST * self.budget)
        share = share_time(pending, {**left, task.key: 1 - progress}, self.jobs, remaining)[task.key]
        return dataclasses.replace(task.stage, seconds=spent + share)


def train_ladder(ladder: LadderRun, session: Session) -> None:
    """One task after the other, in this process."""
    pending = [task for task in tasks(ladder.recipe, ladder.begins_with) if not ladder.progress(task)[2]]

    def tick(_: float) -> None:
        if session.world.first:
            ladder.clock.tick()

    session = dataclasses.replace(session, report=tick)
    while pending:
        task = pending[0]
        stage = ladder.timed(task, pending, {})
        folder = make_folder(ladder.folder(task.lmbda))
        run_stage(ladder.recipe.model, stage, task.lmbda, folder, ladder.start_of(task), session)
        pending.remove(task)
        tick(1.0)


def train_side_by_side(ladder: LadderRun, options: argparse.Namespace) -> None:
    """`jobs` tasks at a time, each in a process of its own."""
    every = tasks(ladder.recipe, ladder.begins_with)
    pending = [task for task in every if not ladder.progress(task)[2]]
    bar = Progress("ladder, stages", len(every), len(every) - len(pending))
    begun: dict[Key, tuple[float, float, float]] = {}  # when it should end, the seconds to then, what was left to do

    def launch(task: Task, missing: set[Key]) -> Launched:
        now = time.monotonic()
        left = {key: part * min(1.0, max(0.0, end - now) / given) for key, (end, given, part) in begun.items()}
        stage = ladder.timed(task, [t for t in every if t.key in missing], left)
        if stage.seconds is not None:
            progress, spent, _ = ladder.progress(task)
            share = stage.seconds - spent
            begun[task.key] = now + share, share, 1 - progress
        folder = make_folder(ladder.folder(task.lmbda))
        arguments = (options, ladder.recipe.model, stage, task.lmbda, folder, ladder.start_of(task), now)
        return Launched(_stage_in_child, arguments, folder / f"{stage.name}.log")

    def tick(running: list[Task], missing: set[Key]) -> None:
        ladder.clock.tick()
        if ladder.budget is not None:
            bar.left = max(0.0, ladder.budget - ladder.clock.spent)
        bar.advance(len(every) - len(missing) - bar.done, note=", ".join(map(str, running)))

    run_side_by_side(pending, ladder.jobs, launch, tick)
    bar.close()


def _stage_in_child(
    options: argparse.Namespace,
    model: ModelConfig,
    stage: Stage,
    lmbda: float,
    folder: Path,
    init: Path | None,
    started: float,
) -> None:
    session = Session(pictures_of(options, stage.crop, ALONE), device_of(options), ALONE, not options.no_tensorboard)
    run_stage(model, stage, lmbda, folder, init, session, started)


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m training.ladder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m training.ladder --preset small --data photos --run runs/small --time-budget 8h",
    )
    add_options(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; an unfinished one is continued")
    parser.add_argument("--lmbda", type=float, nargs="+", help="lambdas instead of the recipe's, the base among them")
    parser.add_argument(
        "--init", type=Path, help="start every model from a trunk, or from the nearest one of a ladder: run or weights"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models to train side by side on one device (default 1)")
    options = parser.parse_args()
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    recipe = _with_options(recipe_of(options), options)
    make_folder(options.run)
    with join_world() as world:
        if world.size > 1 and options.jobs > 1:
            raise UserError("--jobs is for one device; torchrun already shares each batch among its processes")
        budget = None if options.time_budget is None else seconds(options.time_budget)
        clock = Clock.open(options.run, started)
        ladder = LadderRun(recipe, options.run, clock, options.init, budget, options.jobs, world)
        pictures = pictures_of(options, recipe.stages[0].crop, world)
        if options.jobs > 1:
            train_side_by_side(ladder, options)
        else:
            train_ladder(ladder, Session(pictures, device_of(options), world, not options.no_tensorboard))
    return 0


def _with_options(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    if options.lmbda:
        for lmbda in options.lmbda:
            check_lambda(lmbda)
        lambdas = tuple(sorted(set(options.lmbda)))
        base = recipe.base
        if options.init:
            base = lambdas[len(lambdas) // 2]
        elif base not in lambdas:
            raise UserError(f"--lmbda must include {base:g}, from which the others start")
        recipe = dataclasses.replace(recipe, lambdas=lambdas, base=base)
    check_batch(options.batch)
    if options.batch is not None:
        recipe = recipe.changed(batch=options.batch)
    return recipe


if __name__ == "__main__":
    from training import ladder as importable  # workers look its functions up by that name, not in __main__

    run(importable.main)
