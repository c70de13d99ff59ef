"""Several processes that train one model together, started by torchrun."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from submission.config import PRESETS
from submission.errors import UserError
from submission.network import Network
from tests.commands import call
from tests.conftest import ROOT, noise_picture
from tests.training_kit import CPU, RECIPE, weights
from training.loop import train as loop
from training.loop.stage import main
from training.network.device import World

#: The same values up to the order of sums, in the first step and over 12: Adam moves a weight whose gradient is next to
#: nothing by as much as any other, in the direction that its last bit says. SOAP's first eigenvectors hang on the last
#: bits of few gradients, so it strays further in the beginning.
FIRST_STEP = 1e-5
TOLERANCE = {"adam": 2e-4, "soap": 5e-3}

OPTIONS = ("--steps", 12, "--batch", 4, "--precision", "fp32", "--compile", "off", "--no-tensorboard")


def arguments(data: Path, run: Path, optimizer: str = "adam") -> list[str]:
    chosen = ("--optimizer", optimizer, *OPTIONS)
    return [str(a) for a in ("--preset", "tiny", "--lmbda", 4, "--data", data, "--run", run, *chosen)]


def in_two_processes(*options: str) -> None:
    """main_net under torchrun, which would take --run for an option of its own without the "--"."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "training.main_net"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def last_line(run: Path) -> dict[str, float]:
    with (run / "main.csv").open() as file:
        return {name: float(value or 0) for name, value in list(csv.DictReader(file))[-1].items()}


def state(run: Path) -> dict[str, object]:
    found: dict[str, object] = torch.load(run / "main.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for k in range(3):
        Image.fromarray(noise_picture(200, 200, k)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the whole batch."""
    run = tmp_path_factory.mktemp("alone")
    result = call(lambda: main("main", "text"), *arguments(data, run))
    assert result.code == 0, result.stderr
    return run


def assert_same_weights(run: Path, alone: Path) -> None:
    a, b = weights(alone / "main.pt"), weights(run / "main.pt")
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)


def assert_same_losses(run: Path, alone: Path, tolerance: float, names: tuple[str, ...]) -> None:
    one, two = last_line(alone), last_line(run)
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=tolerance), name


def test_two_processes_train_as_one_with_the_whole_batch(data: Path, alone: Path, tmp_path: Path) -> None:
    """Two gloo processes of two crops each have the losses and the weights of one process of four."""
    in_two_processes(*arguments(data, tmp_path))
    names = ("loss", "bpp", "z_bpp", "distortion", "val_bpp")
    assert_same_losses(tmp_path, alone, TOLERANCE["adam"], names)
    assert_same_weights(tmp_path, alone)


def test_two_processes_take_the_same_first_step(data: Path, tmp_path: Path) -> None:
    """From the same weights, so that the gradient is the same, too."""
    one, two = ([*arguments(data, tmp_path / name), "--steps", "1"] for name in ("one", "two"))
    assert call(lambda: main("main", "text"), *one).code == 0
    in_two_processes(*two)
    names = ("loss", "bpp", "z_bpp", "distortion", "gradient", "val_bpp", "val_msssim")
    assert_same_losses(tmp_path / "two", tmp_path / "one", FIRST_STEP, names)


def test_two_processes_train_as_one_with_soap(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(lambda: main("main", "text"), *arguments(data, one, "soap")).code == 0
    in_two_processes(*arguments(data, two, "soap"))
    assert_same_losses(two, one, TOLERANCE["soap"], ("loss", "bpp", "z_bpp", "distortion"))


def test_two_processes_continue_what_one_has_begun(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_stop_agreed", lambda stopping, world, step: step == 5)
    stopped = call(lambda: main("main", "text"), *arguments(data, tmp_path))
    assert stopped.code == 130 and state(tmp_path)["step"] == 5 and not state(tmp_path)["done"]
    in_two_processes(*arguments(data, tmp_path), "--resume")
    assert state(tmp_path)["step"] == 12 and state(tmp_path)["done"]
    assert_same_weights(tmp_path, alone)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        loop.Learner(Network(PRESETS["tiny"]), RECIPE.stage("main"), 4.0, CPU, World(0, 3))
