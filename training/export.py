"""Turn trained runs into weights that the codec loads: integer entropy model, half-precision transforms, manifest."""

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from submission.codec import Codec
from submission.config import ModelConfig
from submission.console import progress, run
from submission.entropy_model import EntropyModel
from submission.errors import UserError
from submission.files import exchange, write_bytes
from submission.ladder import FORMAT, MANIFEST, read_safetensors
from submission.latent_coding import Tensors
from submission.network import Network
from training.loop.checkpoint import load_checkpoint
from training.loop.stage import CALIBRATION
from training.loop.warm_start import finished_stage
from training.network.integer import quantize_mixture, quantize_steps
from training.network.integer_sliced import quantize_sliced
from training.objective.loss import rate
from training.objective.zero_centre import rounded
from training.recipe import STAGES

Crops = NDArray[np.uint8]  #: [n, H, W, 3]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m training.export runs/small -o weights",
    )
    parser.add_argument("run", type=Path, help="run folder of training.ladder, or of one model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="WEIGHTS", help="folder for the ladder")
    parser.add_argument("--overwrite", action="store_true", help="replace the ladder in that folder")
    options = parser.parse_args()
    if options.output.exists() and not (options.overwrite and is_ladder(options.output)):
        raise UserError(f"{options.output} exists; remove it, or replace a ladder there with --overwrite")
    checkpoints = [newest_stage(folder) for folder in model_folders(options.run)]
    export(checkpoints, options.output)
    return 0


def is_ladder(folder: Path) -> bool:
    """Whether all that is in `folder` was written by this command, so that it may be replaced."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    files = {path.name for path in folder.iterdir()} - {MANIFEST}
    ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return ours and all(re.fullmatch(r"model_\d+\.safetensors", name) for name in files)


def model_folders(root: Path) -> list[Path]:
    """The folders of single models in a run."""
    candidates = [root, *sorted(root.iterdir())] if root.is_dir() else []
    folders = [f for f in candidates if any((f / f"{stage}.pt").exists() for stage in STAGES)]
    if not folders:
        raise UserError(f"{root}: no trained models here; run training.ladder first")
    return folders


def newest_stage(folder: Path) -> Path:
    """The checkpoint of the last finished stage."""
    path = finished_stage(folder)
    if path is None:
        raise UserError(f"{folder}: no finished stage yet; let training go on")
    return path


def export(checkpoints: list[Path], output: Path) -> None:
    """Write a ladder of the models in `checkpoints`."""
    models = []
    for path in checkpoints:
        state = load_checkpoint(path, None, None, None)
        network = Network(ModelConfig.from_json(state["config"]))
        network.load_state_dict(state["network"])
        metric = state["stage"].get("metric", "ms-ssim")  # which older checkpoints do not name
        origin = {"stage": state["stage"]["name"], "steps": state["step"], "metric": metric}
        models.append((network, float(state["lmbda"]), origin, read_calibration(path.parent)))
    if len({lmbda for _, lmbda, _, _ in models}) < len(models):
        raise UserError("two models of the same lambda; export one run at a time")
    export_ladder(models, output)


def read_calibration(folder: Path) -> Crops:
    """The crops that a stage kept for calibration; UserError if they are missing or damaged."""
    path = folder / CALIBRATION
    try:
        crops: Crops = np.load(path)
        whole = (
            isinstance(crops, np.ndarray)
            and crops.dtype == np.uint8
            and crops.ndim == 4
            and crops.shape[3] == 3
            and crops.size > 0
        )
    except (OSError, ValueError, EOFError):
        whole = False
    if not whole:
        raise UserError(f"{path}: missing or damaged; delete it and run the stage again with --resume to write it")
    return crops


def export_ladder(models: list[tuple[Network, float, dict[str, Any], Crops]], output: Path) -> None:
    """Write a ladder folder, whole or not at all, and print what exactness costs each model.

    `models`: network, lambda, where it comes from (for the manifest), and crops that calibrate it; stored by lambda.
    """
    output = output.resolve()
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        entries = []
        print("quality  lambda  stage        bpp float  bpp real   cost %       MB")
        for quality, model in enumerate(progress(sorted(models, key=lambda m: m[1]), "exporting")):
            entries.append(_export_model(*model, quality, part))
        manifest = {"format": FORMAT, "models": entries}
        write_bytes(part / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        if output.exists():
            exchange(part, output)
        else:
            part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _export_model(
    network: Network, lmbda: float, origin: dict[str, Any], crops: Crops, quality: int, folder: Path
) -> dict[str, Any]:
    data = save(export_tensors(network, crops))
    name = f"model_{quality}.safetensors"
    write_bytes(folder / name, data)
    estimate, real = cost_of_exactness(network, read_safetensors(folder / name, data), crops)
    print(
        f"{quality:7}  {lmbda:6g}  {origin['stage']:11}  {estimate:9.4f}  {real:8.4f}"
        f"  {100 * (real / estimate - 1):7.2f}  {len(data) / 1e6:7.2f}",
        flush=True,
    )
    digest = hashlib.sha256(data).hexdigest()
    return {"file": name, "sha256": digest, "lmbda": lmbda, **origin, "config": network.config.to_json()}


def latents(network: Network, crops: Crops) -> tuple[torch.Tensor, torch.Tensor]:
    """y over its step, before rounding, [B, M, h, w], and symbols of z, of crops [B, H, W, 3] uint8."""
    network.eval()
    with torch.no_grad():
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        y = network.g_a(x.contiguous(memory_format=torch.channels_last))
        z_hat = network.h_a(y).round()
        return y / network.step_size(z_hat), z_hat


def export_tensors(network: Network, crops: Crops) -> Tensors:
    """All tensors of a model file; crops [B, H, W, 3] uint8 tell the ranges of activations."""
    y, z_hat = latents(network, crops)
    y_hat, model = rounded(network, y, z_hat), network.entropy_model
    quantized = (
        quantize_mixture(model, y_hat, z_hat)
        if isinstance(model, EntropyModel)
        else quantize_sliced(model, y_hat, z_hat)
    )
    tensors: Tensors = {f"entropy.{name}": np.ascontiguousarray(value) for name, value in quantized.items()}
    if network.h_sq is not None:
        tensors |= {f"entropy.{name}": value for name, value in quantize_steps(network.h_sq, z_hat).items()}
    for name, value in network.state_dict().items():
        if not name.startswith(("entropy_model.", "h_sq.")):
            half = value.half()
            if not torch.isfinite(half).all():
                raise UserError(f"{name}: weights do not fit half precision; training has diverged")
            tensors[name] = half.numpy()
    return tensors


def cost_of_exactness(network: Network, tensors: Tensors, crops: Crops) -> tuple[float, float]:
    """(bits per pixel that the floating-point model estimates, bits per pixel that the integer model really writes
    without headers), over the crops."""
    y, z_hat = latents(network, crops)
    y_hat = rounded(network, y, z_hat)
    pixels = crops.shape[0] * crops.shape[1] * crops.shape[2]
    with torch.no_grad():
        estimate = sum(float(rate(part, pixels)) for part in network.entropy_model(y_hat, z_hat, 1e-6))
    codec = Codec(network.config, tensors, 0, 0)
    real = 0
    whole = (y * codec.entropy.unit).round()
    for one, z in zip(whole, z_hat, strict=True):
        payload, _, _ = codec.entropy.encode(one.permute(1, 2, 0).int().numpy(), z.permute(1, 2, 0).int().numpy())
        real += len(payload)
    return estimate, 8 * real / pixels


if __name__ == "__main__":
    run(main)
