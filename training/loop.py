"""The one training loop of all four stages: resumable at any step, with bitwise the same result."""

import csv
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from submission.config import ModelConfig
from submission.console import Progress
from submission.errors import UserError
from submission.network import Network
from training.data import Pictures, centre_crops, random_crops
from training.loss import Padded, distortion, simulate_padding
from training.noise import Noise
from training.quantization import quantize
from training.recipe import Stage

#: Seconds between checkpoints: what a kill can cost.
CHECKPOINT_SECONDS = 120.0

#: MSE of pictures in [0, 1] weighs this many times 1 - MS-SSIM: the ratio of the lambdas that peers pair up.
MSE_WEIGHT = 50.0

#: Steps between lines of the log, and validation crops.
LOG_EVERY = 100
VALIDATION_CROPS = 16


@dataclass(frozen=True)
class Device:
    """Where and how precisely to compute: bf16 for convolutions where the device is fast at it, else fp32."""

    name: str
    bf16: bool

    @classmethod
    def choose(cls, precision: str = "auto") -> "Device":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        fast = name == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return cls(name, fast if precision == "auto" else precision == "bf16")

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.name, torch.bfloat16, enabled=self.bf16)


def trainable(network: Network, stage: Stage) -> list[nn.Module]:
    """The modules that a stage trains (2020 paper, 3; 2021 paper, 1)."""
    if stage.name == "main":
        return [m for m in network.children() if m is not network.post_filter]
    if stage.name == "post_filter":
        return [network.post_filter]
    if stage.name == "joint":
        return [network]
    return [network.entropy_model, network.g_s, network.post_filter]  # hard: encoders and h_sq are fixed


def forward(
    network: Network, stage: Stage, batch: Padded, device: Device, noise: Noise | None, progress: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Picture [B, 3, H, W] in float32, rates of y and of z in bits per true pixel. Without noise, rounding is real;
    with it the stage's quantizer stands for it, annealed as far as the stage has come (0 to 1)."""
    with device.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and stage.name in ("main", "joint")):
        y = network.g_a(batch.x)
        z = network.h_a(y)
    y, z = y.float(), z.float()  # the entropy model is small; probabilities want full precision
    with torch.set_grad_enabled(torch.is_grad_enabled() and stage.name != "post_filter"):
        latents = quantize(network, y, z, stage, noise, progress)
        y_bpp, z_bpp = (bits.sum() / batch.pixels for bits in (latents.y_bits, latents.z_bits))
        with device.autocast():
            x_hat = network.g_s(latents.y_hat)
    if stage.name != "main":
        with device.autocast():
            x_hat = network.post_filter(x_hat)
    return x_hat.float(), y_bpp, z_bpp


def learning_rate(stage: Stage, step: int) -> float:
    rise = min(1.0, (step + 1) / min(100, max(stage.steps // 10, 1)))
    if stage.schedule == "step":
        return stage.lr * rise * (1.0 if step < stage.steps / 2 else 0.1)
    return stage.lr * rise * 0.5 * (1 + math.cos(math.pi * step / stage.steps))


@torch.no_grad()
def validate(network: Network, stage: Stage, pictures: Pictures, device: Device) -> dict[str, float]:
    """Rate and quality with real rounding on the held-out pictures."""
    network.eval()
    x = centre_crops(pictures.validation, stage.crop, VALIDATION_CROPS).to(device.name)
    rates, losses = [], []
    hard = dataclasses.replace(stage, scale_bound=1e-6)
    for part in x.split(4):
        x_hat, y_bpp, z_bpp = forward(network, hard, Padded(part, *part.shape[2:]), device, None)
        rates.append(float(y_bpp + z_bpp) * len(part))
        losses.append(float(distortion(part, x_hat.clamp(0, 1))) * len(part))
    network.train()
    return {"val_bpp": sum(rates) / len(x), "val_msssim": 1 - sum(losses) / len(x)}


def train(
    network: Network,
    stage: Stage,
    lmbda: float,
    pictures: Pictures,
    run: Path,
    device: Device,
) -> None:
    """Run `stage` to its end, continuing from `run`/NAME.pt if that exists; log to `run`/NAME.csv."""
    checkpoint = run / f"{stage.name}.pt"
    network.to(device.name, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    network.requires_grad_(False)
    for module in trainable(network, stage):
        module.requires_grad_(True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(f"stage {stage.name} has nothing to train: this model has no post-filter")
    optimizer = torch.optim.Adam(parameters, stage.lr, fused=True)

    step, skipped = 0, 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, network.config, stage, lmbda)
        network.load_state_dict(state["network"])
        if state["done"]:
            return
        optimizer.load_state_dict(state["optimizer"])
        step, skipped = state["step"], state["skipped"]

    def save(done: bool) -> None:
        save_checkpoint(checkpoint, network, optimizer, stage, lmbda, step, skipped, done)

    bar = Progress(f"{stage.name} lambda={lmbda:g}", stage.steps, step)
    log = Log(run / f"{stage.name}.csv", step)
    saved_at = time.monotonic()
    with stop_gracefully() as stopping:
        while step < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            x = random_crops(pictures.train, stage.batch, stage.crop, stage.seed, step)
            batch = simulate_padding(x.to(device.name), stage.padding, stage.seed, step)
            soft = stage.name in ("main", "joint")
            generator = torch.Generator(device.name).manual_seed(stage.seed * 1_000_003 + step)
            noise = Noise(generator) if soft else None
            x_hat, y_bpp, z_bpp = forward(network, stage, batch, device, noise, step / stage.steps)
            true, made = batch.valid(batch.x), batch.valid(x_hat)
            d = MSE_WEIGHT * torch.mean((true - made) ** 2) if step < stage.warmup else distortion(true, made)
            counted = y_bpp + z_bpp * min(1.0, step / stage.hyper_ramp if stage.hyper_ramp else 1.0)
            loss = lmbda * d if stage.name == "post_filter" else counted + lmbda * d

            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, stage.clip)
            if torch.isfinite(loss) and torch.isfinite(norm):
                optimizer.step()
            else:
                skipped += 1
            step += 1

            bar.advance(note=f"{float((y_bpp + z_bpp).detach()):.3f} bpp, D {float(d.detach()):.4f}")
            if step % LOG_EVERY == 0 or step == stage.steps:
                held_out = validate(network, stage, pictures, device) if step % 1000 == 0 or step == stage.steps else {}
                values = [float(v.detach()) for v in (loss, y_bpp + z_bpp, z_bpp, d, norm)]
                log.write(step, values, skipped, held_out)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS and step < stage.steps:
                save(done=False)
                saved_at = time.monotonic()
            if stopping.requested and step < stage.steps:
                save(done=False)
                raise KeyboardInterrupt
    bar.close()
    save(done=True)


class Log:
    """A CSV of what training did; on resuming, lines past the checkpoint are dropped."""

    FIELDS = ("step", "loss", "bpp", "z_bpp", "distortion", "gradient", "skipped", "seconds", "val_bpp", "val_msssim")

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.start = path, time.monotonic()
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        kept = [line for line in lines if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step]
        path.write_text("\n".join([",".join(self.FIELDS), *kept]) + "\n")

    def write(self, step: int, values: list[float], skipped: int, held_out: dict[str, float]) -> None:
        """`values`: loss, bits per pixel, those of z alone, distortion, gradient norm before clipping."""
        seconds = time.monotonic() - self.start
        numbers = [f"{v:.6g}" for v in values]
        extra = [f"{held_out[k]:.6g}" if k in held_out else "" for k in ("val_bpp", "val_msssim")]
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([step, *numbers, skipped, f"{seconds:.1f}", *extra])


@dataclass
class Stopping:
    requested: bool = False


@contextmanager
def stop_gracefully() -> Iterator[Stopping]:
    """Let Ctrl-C and SIGTERM finish the current step and save, instead of losing up to two minutes."""
    stopping = Stopping()

    def request(*_: object) -> None:
        stopping.requested = True

    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save_checkpoint(
    path: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    lmbda: float,
    step: int,
    skipped: int,
    done: bool,
) -> None:
    """Write to a temporary name, then rename: the last good checkpoint survives a full disk and a kill."""
    state = {
        "config": network.config.to_json(),
        "stage": dataclasses.asdict(stage),
        "lmbda": lmbda,
        "step": step,
        "skipped": skipped,
        "done": done,
        "network": {k: v.cpu() for k, v in network.state_dict().items()},
        "optimizer": {} if done else optimizer.state_dict(),
    }
    part = path.with_suffix(".pt.part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write the checkpoint ({error}); the last good one is intact") from None


def load_checkpoint(path: Path, config: ModelConfig | None, stage: Stage | None, lmbda: float | None) -> dict[str, Any]:
    """Read a checkpoint; UserError if it is damaged or belongs to another model, stage or lambda."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = ModelConfig.from_json(state["config"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; run the stage before this one first") from None
    except UserError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise UserError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from None
    if config is not None and found != config:
        raise UserError(f"{path}: made for another network ({found.name}); use its preset, or another run folder")
    if stage is not None and state["stage"] != dataclasses.asdict(stage):
        raise UserError(f"{path}: made with other settings of this stage; use the same, or --overwrite")
    if lmbda is not None and state["lmbda"] != lmbda:
        raise UserError(f"{path}: made for lambda {state['lmbda']:g}, not {lmbda:g}; use another run folder")
    return state
