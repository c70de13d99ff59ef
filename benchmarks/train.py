"""Speed of training: steps, pixels and operations a second, the share of the device's GEMM rate, waiting for data.

The share compares the operations of a step's convolutions and matrix products with what plain square products reach on
the same device in the same run. Waiting for data is what real crops cost over one crop used again and again.
"""

import argparse
import csv
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arguments import count
from submission.console import progress, run
from submission.network import Network
from training.data.crops import Crops
from training.data.pictures import Pictures, load_pictures
from training.loop.schedule import Moment
from training.loop.train import Learner
from training.network.device import Device
from training.recipe import RECIPES, STAGES, Stage

LMBDA = 10.0

#: Alternating blocks of steps with real crops and with one crop used again.
BLOCKS = 5

FIELDS = (
    *("device", "preset", "stage", "batch", "crop", "bf16", "compiled", "steps_per_s", "mpx_per_s", "tflop_per_step"),
    *("tflop_per_s", "gemm_tflop_per_s", "share_percent", "waiting_percent"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.train --preset base paper --batch 8 32 -o train.csv",
    )
    parser.add_argument("--preset", choices=RECIPES, nargs="+", default=["small"], help="networks (default: small)")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=["main"], help="stages (default: main)")
    parser.add_argument("--batch", type=count, nargs="+", help="crops a step (default: the recipe's)")
    parser.add_argument(
        "--steps", type=count, default=20, help="steps in each of the blocks that are timed (default 20)"
    )
    parser.add_argument("--data", type=Path, nargs="+", help="folders of pictures (default: noise)")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder for the decoded pictures of --data")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile (auto: GPU)")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the table there, too")
    options = parser.parse_args()
    device = Device.choose(options.precision, options.compile)
    crop = max(RECIPES[preset].stages[0].crop for preset in options.preset)
    pictures = load_pictures(options.data, crop, options.cache) if options.data else _noise()
    cases = [
        (preset, dataclasses.replace(RECIPES[preset].stage(name), **({"batch": batch} if batch else {})))
        for preset in options.preset
        for name in options.stage
        for batch in options.batch or [None]
    ]
    rows = []
    gemm = gemm_rate(device)
    for preset, stage in progress(cases, "measuring"):
        rows.append(measure(preset, stage, pictures, device, options.steps, gemm))
        _print(rows)
        if options.output:
            _write(rows, options.output)
    return 0


def _noise() -> Pictures:
    rng = np.random.default_rng(1)
    return Pictures.of(*([rng.integers(0, 256, (512, 768, 3), dtype=np.uint8) for _ in range(8)] for _ in range(2)))


def gemm_rate(device: Device) -> float:
    """TFLOP/s of square products in the precision of the convolutions, the best of several."""
    size = 8192 if device.name == "cuda" else 2048
    kind = torch.bfloat16 if device.bf16 else torch.float32
    a, b = (torch.randn(size, size, device=device.name, dtype=kind) for _ in range(2))
    times = [_seconds(lambda: a @ b, 5, device) / 5 for _ in range(6)]
    return 2 * size**3 / min(times[1:]) / 1e12


def _seconds(work: Callable[[], object], count: int, device: Device) -> float:
    device.wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    device.wait()
    return time.perf_counter() - start


def measure(
    preset: str, stage: Stage, pictures: Pictures, device: Device, steps: int, gemm: float
) -> dict[str, str | float]:
    """One row of the table."""
    flops = flops_of_a_step(preset, stage, pictures, device)
    learner = _learner(preset, stage, device)
    crops = Crops(pictures, stage, device)
    fixed, step = crops.at(0), 0

    def one(real: bool) -> None:
        nonlocal step
        step += 1
        learner.step(crops.at(step) if real else fixed, Moment(step, 0.5))

    _seconds(lambda: one(real=True), 3, device)  # compiles, chooses algorithms
    times: dict[bool, list[float]] = {True: [], False: []}
    for block in range(2 * BLOCKS):
        real = block % 2 == 0
        times[real].append(_seconds(lambda real=real: one(real), steps, device) / steps)  # type: ignore[misc]
    with_data, without = (statistics.median(times[real]) for real in (True, False))
    pixels = stage.batch * stage.crop**2
    return {
        "device": torch.cuda.get_device_name() if device.name == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "preset": preset,
        "stage": stage.name,
        "batch": stage.batch,
        "crop": stage.crop,
        "bf16": int(device.bf16),
        "compiled": int(device.compiles(None)),
        "steps_per_s": 1 / with_data,
        "mpx_per_s": pixels / with_data / 1e6,
        "tflop_per_step": flops / 1e12,
        "tflop_per_s": flops / with_data / 1e12,
        "gemm_tflop_per_s": gemm,
        "share_percent": 100 * flops / with_data / 1e12 / gemm,
        "waiting_percent": max(0.0, 100 * (1 - without / with_data)),
    }


def _learner(preset: str, stage: Stage, device: Device) -> Learner:
    torch.manual_seed(1)
    return Learner(Network(RECIPES[preset].model), stage, LMBDA, device)


def flops_of_a_step(preset: str, stage: Stage, pictures: Pictures, device: Device) -> int:
    """Operations of the convolutions and matrix products of one step, forward and backward, as they are executed."""
    learner = _learner(preset, stage, dataclasses.replace(device, compile="off"))
    with FlopCounterMode(display=False) as counter:
        learner.step(Crops(pictures, stage, device).at(0), Moment(0, 0.5))
    return int(counter.get_total_flops())


def _print(rows: list[dict[str, str | float]]) -> None:
    if len(rows) == 1:
        print(rows[0]["device"])
        print("preset  stage        batch  crop  bf16  compiled  steps/s    Mpx/s", end="")
        print("  TFLOP/step  TFLOP/s   GEMM  share  wait")
    r = rows[-1]
    print(
        f"{r['preset']:6}  {r['stage']:11}  {r['batch']:5}  {r['crop']:4}  {r['bf16']:4}  {r['compiled']:8}"
        f"  {r['steps_per_s']:7.2f}  {r['mpx_per_s']:7.3f}  {r['tflop_per_step']:10.3f}  {r['tflop_per_s']:7.3f}"
        f"  {r['gemm_tflop_per_s']:5.3g}  {r['share_percent']:4.1f}%  {r['waiting_percent']:3.1f}%"
    )
    sys.stdout.flush()


def _write(rows: list[dict[str, str | float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    run(main)
