"""R, D and J = R + lambda D of models in training, on pictures kept apart, at full and at half size.

RUN is anything that a model can start from: the folder of one model, of a ladder, of a trunk, or weights. R is in
bits per pixel, estimated with real rounding, z's share apart; D is 1 - MS-SSIM; both of random crops that are the
same for all. An unfinished trunk counts as it is, another unfinished stage only with --stage, which wants the folder of
one model.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np
import torch

from benchmarks.arguments import positive
from submission.console import progress, run
from submission.errors import UserError
from submission.ladder import MANIFEST
from submission.network import Network
from training.data.crops import gather, random_places, to_float
from training.data.pictures import Pictures, load_pictures
from training.loop.warm_start import initial_weights, newest_stage
from training.network.device import Device
from training.objective.forward import forward
from training.objective.loss import Padded, distortion
from training.recipe import RECIPES, STAGES, Stage, StageName

#: Crops that are scored at each size, and theirs.
COUNT, CROP = 64, 256

FIELDS = ("R", "D", "J", "R_half", "D_half", "J_half", "z")


@torch.no_grad()
def score(network: Network, stage: Stage, lmbda: float, pictures: Pictures, device: Device) -> dict[str, float]:
    """What `FIELDS` name, of the validation pictures; the post-filter is used in the stages that have it."""
    network.eval()
    hard, z_bits = dataclasses.replace(stage, scale_bound=1e-6), 0.0
    row: dict[str, float] = {}
    for half, name in ((0.0, ""), (1.0, "_half")):
        places = random_places(pictures.validation, COUNT, CROP, 0, 0, half)
        rate = lost = 0.0
        for part in to_float(gather(pictures.pixels, places, CROP)).split(4):
            part = part.contiguous(memory_format=torch.channels_last)
            x_hat, y_bpp, z_bpp = forward(network, hard, Padded(part, *part.shape[2:]), device, None)
            rate += float(y_bpp + z_bpp) * len(part) / COUNT
            lost += float(distortion(part, x_hat.clamp(0, 1))) * len(part) / COUNT
            z_bits += float(z_bpp) * len(part) / COUNT / 2
        row |= {f"R{name}": rate, f"D{name}": lost, f"J{name}": rate + lmbda * lost}
    network.train()
    return {**row, "z": z_bits}


def stage_of(folder: Path, lmbda: float) -> StageName:
    """The newest stage of the model that is scored: from the post-filter's on, that counts."""
    if (folder / MANIFEST).exists():
        return "hard"
    if (folder / "trunk.pt").exists():
        return "main"
    return next(stage for stage in STAGES if stage == newest_stage(folder, lmbda).stem)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.quality runs/trunk submission/weights --lmbda 2 9 40 --validate dev",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--preset", choices=RECIPES, default="small", help="network (default small)")
    parser.add_argument("--lmbda", type=positive, nargs="+", required=True)
    parser.add_argument("--stage", choices=STAGES, help="of the folder of one model (default: the newest that is done)")
    parser.add_argument("--validate", type=Path, nargs="+", required=True, help="folders of pictures to score on")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs"), help="folder for the decoded pictures (default runs)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="add the rows there")
    options = parser.parse_args()
    recipe, device = RECIPES[options.preset], Device.choose("auto", "off")
    pictures = load_pictures(options.validate, CROP, options.cache)
    places = np.concatenate([pictures.train, pictures.validation])
    pictures = dataclasses.replace(pictures, validation=places[places[:, 0].argsort()])
    print(f"{'run':24} {'lambda':>7}  " + "  ".join(f"{field:>7}" for field in FIELDS))
    cases = [(folder, lmbda) for folder in options.runs for lmbda in options.lmbda]
    for folder, lmbda in progress(cases, "scoring"):
        if options.stage and not (folder / f"{options.stage}.pt").exists():
            raise UserError(f"{folder}: no {options.stage}.pt there; --stage wants the folder of one model")
        name = options.stage or stage_of(folder, lmbda)
        network = Network(recipe.model)
        network.load_state_dict(initial_weights(folder, name, lmbda, recipe.model))
        row = score(network, recipe.stage(name), lmbda, pictures, device)
        print(f"{folder!s:24} {lmbda:7g}  " + "  ".join(f"{row[field]:7.4f}" for field in FIELDS), flush=True)
        if options.output:
            _add(options.output, {"run": str(folder), "lmbda": lmbda, **row})
    return 0


def _add(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, ("run", "lmbda", *FIELDS), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    run(main)
