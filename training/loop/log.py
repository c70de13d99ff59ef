"""What a run leaves to look at: a CSV for each stage, and for TensorBoard scalars and sample pictures."""

import csv
import functools
import importlib
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from submission.files import write_bytes
from training.objective.forward import HeldOut

FIELDS = (
    *("step", "seconds", "progress", "lr", "loss", "bpp", "z_bpp", "distortion", "gradient", "skipped"),
    *("val_bpp", "val_msssim", "val_psnr"),
)


@dataclass(frozen=True)
class Line:
    """Averages since the line before; `gradient` is the norm before clipping, `skipped` counts from the start."""

    step: int
    seconds: float
    progress: float
    lr: float
    loss: float
    bpp: float
    z_bpp: float
    distortion: float
    gradient: float
    skipped: int


class Log:
    """Writes RUN/STAGE.csv and, if tensorboard is installed, RUN/tensorboard/STAGE."""

    def __init__(self, run: Path, stage: str, step: int, tensorboard: bool) -> None:
        """Continue at `step`: lines past it, which a killed run has left, are dropped."""
        self.path = run / f"{stage}.csv"
        kept = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_bytes(self.path, text.getvalue().encode())
        self.board = _board(str(run / "tensorboard" / stage), step) if tensorboard else None

    def write(self, line: Line, held_out: HeldOut | None) -> None:
        values = {**vars(line), "val_bpp": "", "val_msssim": "", "val_psnr": ""}
        if held_out:
            values |= {"val_bpp": held_out.bpp, "val_msssim": held_out.msssim, "val_psnr": held_out.psnr}
        with self.path.open("a", newline="") as file:
            row = [f"{v:.6g}" if isinstance(v, float) else v for v in (values[name] for name in FIELDS)]
            csv.writer(file, lineterminator="\n").writerow(row)
        if self.board is not None:
            _to_board(self.board, line, held_out)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


@functools.cache
def _writer() -> Any:
    """TensorBoard's SummaryWriter, or None, said once, where it is not installed."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        print("tensorboard is not installed: no TensorBoard log (pip install tensorboard)", file=sys.stderr)
        return None


def _board(folder: str, step: int) -> Any:
    writer = _writer()
    return writer(folder, purge_step=step + 1 if step else None) if writer else None


def _to_board(board: Any, line: Line, held_out: HeldOut | None) -> None:
    for name, value in vars(line).items():
        if name != "step":
            board.add_scalar(f"train/{name}", value, line.step)
    if held_out:
        board.add_scalar("validation/bpp", held_out.bpp, line.step)
        board.add_scalar("validation/msssim", held_out.msssim, line.step)
        board.add_scalar("validation/psnr", held_out.psnr, line.step)
        board.add_scalar("validation/msssim_db", -10 * math.log10(max(1 - held_out.msssim, 1e-9)), line.step)
        for k, sample in enumerate(held_out.samples):
            board.add_image(f"original | decoded/{k}", as_uint8(sample), line.step)


def as_uint8(picture: Tensor) -> Tensor:
    """[0, 1] -> 0..255."""
    return (picture * 255).round().byte().cpu()
