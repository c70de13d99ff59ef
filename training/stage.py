"""What the four stage scripts share: their options, and where a stage starts from."""

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submission.errors import UserError
from submission.files import make_folder, write_bytes
from submission.network import Network
from training.data import Pictures, load_pictures, random_crops
from training.loop import Device, load_checkpoint, train
from training.quantization import NAMED, terms
from training.recipe import RECIPES, STAGES, Recipe, Stage, StageName

#: Crops kept with a run, from which `training.export` takes the ranges of activations.
CALIBRATION = "calibration.npy"
CALIBRATION_CROPS = 16


def main(name: StageName, description: str) -> int:
    """The command line of stage `name`."""
    script = {"main": "main_net"}.get(name, name)
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: python -m training.{script} --preset small --lmbda 6 --data photos --run runs/lambda_6",
    )
    parser.add_argument("--preset", choices=RECIPES, required=True, help="network and recipe")
    parser.add_argument("--lmbda", type=float, required=True, help="weight of 1 - MS-SSIM against bits per pixel")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of training pictures")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--init", type=Path, help="run folder to start from (default: --run itself)")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    add_quantizer(parser)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    parser.add_argument("--seed", type=int, help="of crops and noise (default 1); another one for further training")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the checkpoint in --run")
    again.add_argument("--overwrite", action="store_true", help="start this stage again")
    options = parser.parse_args()
    if options.lmbda <= 0:
        raise UserError(f"--lmbda {options.lmbda:g}: must be positive")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps}: must be at least 1")

    recipe = recipe_of(options)
    stage = recipe.stage(name)
    if options.steps:
        warmup, ramp = min(stage.warmup, options.steps // 16), min(stage.hyper_ramp, options.steps // 4)
        stage = dataclasses.replace(stage, steps=options.steps, warmup=warmup, hyper_ramp=ramp)
    if options.seed is not None:
        stage = dataclasses.replace(stage, seed=options.seed)
    if options.init:  # a model that works already needs neither
        stage = dataclasses.replace(stage, warmup=0, hyper_ramp=0)
    checkpoint = make_folder(options.run) / f"{name}.pt"
    if checkpoint.exists() and options.overwrite:
        checkpoint.unlink()
    elif checkpoint.exists() and not options.resume:
        raise UserError(f"{checkpoint} exists; give --resume to continue it or --overwrite to start again")
    pictures = load_pictures(options.data, stage.crop)
    run_stage(recipe, stage, options.lmbda, pictures, options.run, options.init, Device.choose(options.precision))
    return 0


def add_quantizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantizer",
        metavar="Q",
        help=f"stands for rounding in the main and joint stage: {', '.join(NAMED)} (default: aun), or RATE/DISTORTION "
        "as in sua+ep/sua+ste; see docs/quantization.md",
    )
    parser.add_argument("--sharpness", type=float, metavar="TAU", help="where quantizers that anneal end (default 12)")
    parser.add_argument("--learned-step", action="store_true", help="network with a learned step of quantisation")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The preset's recipe with the command line's quantizer; UserError if there is no such thing."""
    recipe = RECIPES[options.preset]
    changed: dict[str, Any] = {}
    if options.quantizer is not None:
        terms(options.quantizer)
        changed["quantizer"] = options.quantizer
    if options.sharpness is not None:
        if not 1 <= options.sharpness <= 100:
            raise UserError(f"--sharpness {options.sharpness:g}: must be 1 to 100")
        changed["sharpness"] = options.sharpness
    main, post_filter, joint, hard = recipe.stages
    stages = dataclasses.replace(main, **changed), post_filter, dataclasses.replace(joint, **changed), hard
    model = dataclasses.replace(recipe.model, learned_step=options.learned_step)
    return dataclasses.replace(recipe, model=model, stages=stages)


def run_stage(
    recipe: Recipe, stage: Stage, lmbda: float, pictures: Pictures, run: Path, init: Path | None, device: Device
) -> None:
    """Train one stage in `run`. The main network starts from the same stage of `init`, or at random; the others
    start from the stage before in `run`, the post-filter's own weights from `init` if that has trained them."""
    torch.manual_seed(stage.seed)
    network = Network(recipe.model)
    position = STAGES.index(stage.name)
    if position > 0:
        network.load_state_dict(
            load_checkpoint(run / f"{STAGES[position - 1]}.pt", recipe.model, None, lmbda)["network"]
        )
    if init is not None and init != run:
        state = load_checkpoint(init / f"{stage.name}.pt", recipe.model, None, None)["network"]
        if stage.name == "main":
            network.load_state_dict(state)
        elif stage.name == "post_filter":
            filter_state = {k.removeprefix("post_filter."): v for k, v in state.items() if k.startswith("post_filter.")}
            network.post_filter.load_state_dict(filter_state)
    record = {
        "model": recipe.model.to_json(),
        "lmbda": lmbda,
        "stage": dataclasses.asdict(stage),
        "init": str(init) if init else None,
        "pictures": {"train": len(pictures.train), "validation": len(pictures.validation)},
        "device": dataclasses.asdict(device),
        "torch": torch.__version__,
    }
    write_bytes(run / f"{stage.name}.json", json.dumps(record, indent=1).encode())
    _save_calibration(pictures, stage, run / CALIBRATION)
    print(f"stage {stage.name}, model {recipe.model.name}, lambda {lmbda:g}\n{stage.table()}", flush=True)
    train(network, stage, lmbda, pictures, run, device)


def _save_calibration(pictures: Pictures, stage: Stage, path: Path) -> None:
    """Some training crops, as uint8 [n, H, W, 3]."""
    crops = random_crops(pictures.train, CALIBRATION_CROPS, stage.crop, stage.seed, step=2**40)
    buffer = io.BytesIO()
    np.save(buffer, (crops * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    write_bytes(path, buffer.getvalue())
