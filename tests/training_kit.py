"""What the tests of training share: a tiny recipe, photos in memory, whole runs."""

from pathlib import Path

import pytest
import torch

from tests.conftest import noise_picture
from training.data.crops import Crops
from training.data.pictures import Pictures
from training.loop.stage import run_stage
from training.loop.train import Session
from training.network.device import Device
from training.recipe import RECIPES, STAGES

RECIPE = RECIPES["tiny"]
CPU = Device("cpu", bf16=False)


def photos() -> Pictures:
    return Pictures.of([noise_picture(200, 210, s) for s in range(4)], [noise_picture(200, 200, 9)])


def session() -> Session:
    return Session(photos(), CPU)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["network"]
    return state


def equal(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold bitwise the same network."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def run_all(run: Path) -> None:
    """All stages of one model, continuing what is there."""
    run.mkdir(exist_ok=True)
    for name in STAGES:
        run_stage(RECIPE.model, RECIPE.stage(name), 4.0, run, None, session())


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make training end like a killed process after so many more steps."""
    at, calls = Crops.at, 0

    def counted(self: Crops, step: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise ConnectionAbortedError
        return at(self, step)

    monkeypatch.setattr(Crops, "at", counted)
