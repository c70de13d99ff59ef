"""Each of the 4th paper's networks as a real codec: trained for a while, exported, packaged, decoded as the judge does.

Prints a row for each: parameters; bits per pixel and PSNR that the floating-point network estimates; the bits that it
estimates for the latents that are decoded, and the real ones, of which the difference is what exactness costs; seconds
of encoding and decoding a picture, MS-SSIM and PSNR. Everything is kept in the folder, and what is there is not done
again.
"""

import argparse
import filecmp
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.arguments import positive
from benchmarks.exactness import bytes_of, decoded_latents, floating_latents
from benchmarks.surrogates import STAGE_NAMES, model_folder
from eval.rate_distortion.points import our_point, run_module
from eval.score import pool
from metrics.clic import psnr, squared_error
from ratecontrol.allocation.table import write_table
from submission.config import NETWORKS, ModelConfig
from submission.console import progress, run
from submission.errors import UserError
from submission.files import Picture, list_images, make_folder, read_image
from submission.ladder import MANIFEST, Ladder
from submission.network import Network
from training.loop.checkpoint import load_checkpoint
from training.loop.options import seconds
from training.loop.stage import CALIBRATION

#: Bits per pixel that no picture needs: the one model is taken for all.
NO_CAP = "24"

#: Part of the time that goes into the main stage.
MAIN = 0.8

FIELDS = (
    *("network", "parameters", "lambda", "steps", "estimated_bpp", "estimated_psnr"),
    *("decoded_estimated_bpp", "bpp", "cost_percent", "encode_seconds", "decode_seconds", "msssim", "psnr"),
)


def train(preset: str, lmbda: float, budget: float, data: list[Path], cache: Path, folder: Path) -> None:
    """Main and hard stage of one model within `budget` seconds."""
    for script, stage, share in (("main_net", "main", MAIN), ("hard", "hard", 1 - MAIN)):
        checkpoint = folder / f"{stage}.pt"
        # UserError if it is of another lambda
        state = load_checkpoint(checkpoint, None, None, lmbda) if checkpoint.exists() else None
        if state is None or not state["done"]:
            again = ["--resume"] if state else []
            common = ["--preset", preset, "--lmbda", f"{lmbda:g}", "--time-budget", f"{share * budget:g}s"]
            run_module(f"training.{script}", *common, "--data", *data, "--cache", cache, "--run", folder, *again)


def take(trained: Path, network: str, lmbda: float, folder: Path) -> None:
    """Copy to `folder` the stages of a model that `benchmarks.surrogates` trained, and what calibrates its export;
    UserError where it is not there, or the folder has another."""
    model = model_folder(trained, network, lmbda)
    for name in (*(f"{stage}.pt" for stage in STAGE_NAMES), CALIBRATION):
        source = model / name
        if name != CALIBRATION and not load_checkpoint(source, None, None, lmbda)["done"]:
            raise UserError(f"{source}: is not trained to the end")
        target = folder / source.name
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise UserError(f"{target}: is another model's; give another folder with -o")
        shutil.copyfile(source, target)


def measure(name: str, lmbda: float, images: Path, folder: Path) -> dict[str, object]:
    """The row of a trained model in `folder`, on the pictures `images`."""
    weights = folder / "weights"
    if not (weights / MANIFEST).exists():
        run_module("training.export", folder, "-o", weights)
    run_module("ratecontrol.measure", images, "-o", folder / "table.csv", "--weights", weights, "--jobs", 1)
    point = our_point(images, folder / "judged", folder / "table.csv", weights, NO_CAP)
    assert point.pictures is not None
    state = load_checkpoint(folder / "hard.pt", None, None, None)
    network = Network(ModelConfig.from_json(state["config"])).eval()
    network.load_state_dict(state["network"])
    codec = Ladder.load(weights).codec(0)
    pictures = [read_image(path) for path in list_images([images])]
    estimated = decoded = error = 0.0
    for picture in progress(pictures, f"{name}, estimating"):
        latents = floating_latents(network, codec, picture)
        estimated += bytes_of(network, *latents)
        error += reconstruction_error(network, latents[0], picture)
        decoded += bytes_of(network, *decoded_latents(codec, picture))
    total = pool(point.pictures)
    real = sum(path.stat().st_size for path in (folder / "judged" / "submission").glob("*.clic"))
    steps = sum(load_checkpoint(folder / f"{stage}.pt", None, None, None)["step"] for stage in ("main", "hard"))
    values = (
        *(name, sum(p.numel() for p in network.parameters()), lmbda, steps),
        *(8 * estimated / total.pixels, psnr(error, 3 * total.pixels)),
        *(8 * decoded / total.pixels, 8 * real / total.pixels, 100 * (real / decoded - 1)),
        *(point.encode_seconds, point.decode_seconds, total.msssim, total.psnr),
    )
    return dict(zip(FIELDS, values, strict=True))


@torch.inference_mode()
def reconstruction_error(network: Network, y_hat: Tensor, picture: Picture) -> float:
    """The sum of squared errors of what the floating-point network makes of y_hat [1, M, h, w]."""
    height, width = picture.shape[:2]
    pixels = network.g_s(y_hat)[0, :, :height, :width].clamp(0, 1).mul(255).round()
    return squared_error(picture, pixels.to(torch.uint8).permute(1, 2, 0).numpy())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "network               parameters  steps  estimated:  bpp   PSNR  of what is decoded  real bpp  cost %"
        "  encode s  decode s  MS-SSIM   PSNR"
    ]
    lines += [
        "{network:20}  {parameters:10,}  {steps:5}  {estimated_bpp:15.4f}  {estimated_psnr:5.2f}"
        "  {decoded_estimated_bpp:18.4f}  {bpp:8.4f}  {cost_percent:6.2f}"
        "  {encode_seconds:8.2f}  {decode_seconds:8.2f}  {msssim:.5f}  {psnr:5.2f}".format(**row)
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.networks kodak --data photos --minutes 5 -o runs/networks\n"
        "  python -m benchmarks.networks kodak --trained runs/surrogates --networks charm-zero -o runs/networks",
    )
    names = [config.name for config in NETWORKS]
    parser.add_argument("images", type=Path, help="folder of pictures to code")
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--data", type=Path, nargs="+", help="folders of training pictures")
    models.add_argument("--trained", type=Path, metavar="DIR", help="take the models that benchmarks.surrogates left")
    parser.add_argument("--cache", type=Path, help="folder for the decoded pictures (default: that of the results)")
    parser.add_argument("--minutes", default="5", metavar="M", help="training time of each (default: %(default)s)")
    parser.add_argument("--lmbda", type=positive, default=0.0067, help="of the squared error (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for models and results")
    options = parser.parse_args()
    budget = seconds(f"{options.minutes}m")
    if not options.images.is_dir():
        raise UserError(f"{options.images}: not a folder of pictures")
    rows = []
    for name in options.networks:
        folder = make_folder(make_folder(options.output) / name)
        if options.trained is not None:
            take(options.trained, name, options.lmbda, folder)
        else:
            train(f"{name}-small", options.lmbda, budget, options.data, options.cache or options.output, folder)
        rows.append(measure(f"{name}-small", options.lmbda, options.images, folder))
        write_table(options.output / "networks.csv", pd.DataFrame(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    run(main)
