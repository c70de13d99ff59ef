"""What the stage scripts share: their options, and where a stage starts from."""

import argparse
import dataclasses
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submission.config import ModelConfig
from submission.console import note
from submission.errors import UserError
from submission.files import make_folder, write_bytes
from submission.lock import locked
from submission.network import Network
from training.data.crops import gather, random_places
from training.data.pictures import Pictures
from training.loop.checkpoint import is_done, load_checkpoint
from training.loop.options import add_options, check_batch, check_lambda, device_of, pictures_of, recipe_of, seconds
from training.loop.schedule import COOLDOWN
from training.loop.train import Session, train
from training.loop.warm_start import initial_trunk, initial_weights
from training.network.conditional import Trunk
from training.network.device import join_world
from training.recipe import STAGES, Stage, StageName

#: Crops kept with a run, from which `training.export` takes the ranges of activations.
CALIBRATION = "calibration.npy"
CALIBRATION_CROPS = 64

#: Stages that can start from weights of another run.
STARTERS: tuple[StageName, ...] = ("trunk", "main", "post_filter")


def main(name: StageName, description: str) -> int:
    """The command line of stage `name`."""
    started = time.monotonic()
    script = {"main": "main_net"}.get(name, name)
    example = "0.7 110 --run runs/trunk" if name == "trunk" else "6 --run runs/lambda_6"
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: python -m training.{script} --preset small --data photos --lmbda {example}",
    )
    add_options(parser)
    if name == "trunk":
        parser.add_argument(
            "--lmbda", type=float, nargs=2, required=True, metavar=("LOW", "HIGH"), help="range of lambda"
        )
    else:
        parser.add_argument("--lmbda", type=float, required=True, help="weight of the distortion against the rate")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and logs")
    if name in STARTERS:
        what = "another trunk: its run folder" if name == "trunk" else "a model: a run folder, a ladder's, or weights"
        parser.add_argument("--init", type=Path, help=f"start from {what}")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--seed", type=int, help="of crops and noise (default 1); another one for further training")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the checkpoint in --run")
    again.add_argument("--overwrite", action="store_true", help="start this stage again")
    options = parser.parse_args()
    lmbda, span = (_middle(*options.lmbda), tuple(options.lmbda)) if name == "trunk" else (options.lmbda, None)
    check_lambda(lmbda)
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: must be 0 to {2**32 - 1}")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps}: must be at least 1")
    check_batch(options.batch)

    init = options.init if name in STARTERS else None
    if init and init.resolve() == options.run.resolve():
        raise UserError(f"--init {init}: is the run itself; give a copy of it, or another --run")
    recipe = recipe_of(options)
    stage = dataclasses.replace(_with_options(recipe.stage(name), options, init), lambdas=span)
    checkpoint = make_folder(options.run) / f"{name}.pt"
    if checkpoint.exists() and not (options.resume or options.overwrite):
        raise UserError(f"{checkpoint} exists; give --resume to continue it or --overwrite to start again")
    done = is_done(checkpoint) and not options.overwrite
    with join_world() as world:
        pictures = pictures_of(options, stage.crop, world)
        session = Session(pictures, device_of(options), world, not options.no_tensorboard)
        run_stage(recipe.model, stage, lmbda, options.run, init, session, started, options.overwrite)
        if done and world.first:
            note(f"{options.run}: stage {name} was done already")
    return 0


def _middle(low: float, high: float) -> float:
    """The lambda at which a trunk is validated."""
    if not 0 < low < high < math.inf:
        raise UserError(f"--lmbda {low:g} {high:g}: must be positive, LOW below HIGH")
    return math.sqrt(low * high)


def _with_options(stage: Stage, options: argparse.Namespace, init: Path | None) -> Stage:
    if options.steps:
        stage = dataclasses.replace(stage, steps=options.steps, warmup=min(stage.warmup, options.steps // 16))
    if init:
        stage = stage.warm()
    budget = None if options.time_budget is None else seconds(options.time_budget)
    changed = {"seed": options.seed, "batch": options.batch, "seconds": budget}
    return dataclasses.replace(stage, **{k: v for k, v in changed.items() if v is not None})


def run_stage(
    model: ModelConfig,
    stage: Stage,
    lmbda: float,
    run: Path,
    init: Path | None,
    session: Session,
    started: float | None = None,
    overwrite: bool = False,
) -> None:
    """Train one stage in `run`, from its checkpoint if there is one, which `overwrite` deletes; a stage that is done
    stays as it is. Nothing is written or deleted before all that it is given has been found good.

    Trunk and main network start from a model of `init`, or at random; the others start from the stage before in `run`,
    the post-filter's own weights from `init` if there is one (`training.loop.warm_start` tells what `init` may be).
    """
    started = time.monotonic() if started is None else started
    if not session.world.first:
        session.world.wait()  # until the first one has written the stage's record: it may have to wait for a lock
        train(*_start(model, stage, lmbda, run, init), stage, lmbda, run, session, started)
        return
    with locked(run / ".lock", "trains in this folder"):
        network, state = _start(model, stage, lmbda, run, init, overwrite)
        if overwrite:
            (run / f"{stage.name}.pt").unlink(missing_ok=True)
            if later := [name for name in stages_after(stage.name) if (run / f"{name}.pt").exists()]:
                note(f"{run}: {', '.join(later)} came from the stage that begins again; give --overwrite there, too")
        done = state is not None and state["done"]
        if not done or not (run / CALIBRATION).exists():
            _save_calibration(session.pictures, stage, run / CALIBRATION)
        if not done:
            _write_record(model, stage, lmbda, run, init, session)
            print(f"stage {stage.name}, model {model.name}, lambda {lmbda:g}\n{stage.table()}", flush=True)
        session.world.wait()
        train(network, state, stage, lmbda, run, session, started)


def _start(
    model: ModelConfig, stage: Stage, lmbda: float, run: Path, init: Path | None, overwrite: bool = False
) -> tuple[Network | Trunk, dict[str, Any] | None]:
    """The network that the stage begins with, and its checkpoint if it is to be continued."""
    torch.manual_seed(stage.seed)
    network = Trunk(model, *stage.lambdas) if stage.lambdas else Network(model)
    checkpoint = run / f"{stage.name}.pt"
    if checkpoint.exists() and not overwrite:
        state = load_checkpoint(checkpoint, model, stage, lmbda)
        if not state["done"] and (lacking := _no_time_left(stage, state)):
            raise UserError(f"{checkpoint}: {lacking}")
        return network, state
    _initialise(network, stage, lmbda, run, init)
    return network, None


def _no_time_left(stage: Stage, state: dict[str, Any]) -> str | None:
    """Why an unfinished stage would end without a step that lowers its rate, and what to do, or None where it won't."""
    if stage.seconds is not None:
        used = float(state.get("seconds", 0.0))
        return f"{used:.0f} s are used up; give a longer --time-budget" if used >= stage.seconds else None
    if state["step"] < stage.steps:
        return None
    if stage.schedule == "flat":
        return f"{state['step']} steps are done; give --steps {math.ceil(state['step'] / (1 - COOLDOWN))} or more"
    return f"{state['step']} steps are done in a time budget; give a --time-budget again"


def _initialise(network: Network | Trunk, stage: Stage, lmbda: float, run: Path, init: Path | None) -> None:
    model = network.config
    if isinstance(network, Trunk):
        if init is not None and stage.lambdas is not None:
            network.load_state_dict(initial_trunk(init, stage.lambdas, model))
        return
    earlier = stage_before(stage.name, model, run)
    if earlier is not None:
        before = load_checkpoint(run / f"{earlier}.pt", model, None, lmbda)
        if not before["done"]:
            raise UserError(f"{run}: stage {earlier} is not finished; continue it with --resume")
        network.load_state_dict(before["network"])
    if init is not None:
        weights = initial_weights(init, stage.name, lmbda, model)
        if stage.name == "main":
            network.load_state_dict(weights)
        elif stage.name == "post_filter":
            part = {k.removeprefix("post_filter."): v for k, v in weights.items() if k.startswith("post_filter.")}
            network.post_filter.load_state_dict(part)


def stages_after(name: StageName) -> tuple[StageName, ...]:
    """The stages that start from this one, one after the other; none from a trunk, which has a folder of its own."""
    return STAGES[STAGES.index(name) + 1 :] if name in STAGES else ()


def stage_before(name: StageName, model: ModelConfig, run: Path) -> StageName | None:
    """The stage that this one starts from. A model without post-filter skips that stage, and may skip the joint one."""
    position = STAGES.index(name)
    before = STAGES[position - 1] if position else None
    if model.grdn is None and name in ("joint", "hard") and not (before == "joint" and (run / "joint.pt").exists()):
        return "main"
    return before


def _write_record(
    model: ModelConfig, stage: Stage, lmbda: float, run: Path, init: Path | None, session: Session
) -> None:
    """Everything that this run was made with."""
    pictures = session.pictures
    record = {
        "model": model.to_json(),
        "lmbda": lmbda,
        "stage": dataclasses.asdict(stage),
        "init": str(init) if init else None,
        "pictures": {"train": len(pictures.train), "validation": len(pictures.validation)},
        "device": dataclasses.asdict(session.device),
        "processes": session.world.size,
        "torch": torch.__version__,
    }
    write_bytes(run / f"{stage.name}.json", json.dumps(record, indent=1).encode())


def _save_calibration(pictures: Pictures, stage: Stage, path: Path) -> None:
    """Some training crops that calibrate the export, as uint8 [n, H, W, 3]."""
    places = random_places(pictures.train, CALIBRATION_CROPS, stage.crop, stage.seed, step=2**40, half=stage.half)
    buffer = io.BytesIO()
    np.save(buffer, gather(pictures.pixels, places, stage.crop).permute(0, 2, 3, 1).contiguous().numpy())
    write_bytes(path, buffer.getvalue())
