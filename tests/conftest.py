"""Fixtures: a ladder of tiny untrained models, and synthetic pictures of awkward sizes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from submission.config import NETWORKS, PRESETS, ModelConfig, tiny
from submission.entropy_model import EntropyModel, Estimator
from submission.network import Network
from training.export import export_ladder

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def keep_one_thread() -> Iterator[None]:
    """Commands that were called here may have taken more, with which the last digits of floats are others."""
    yield
    torch.set_num_threads(1)


def convolution(module: nn.Module) -> nn.Conv2d:
    """What a network's index is known to give."""
    assert isinstance(module, nn.Conv2d)
    return module


def untrained(seed: int, preset: str = "tiny") -> Network:
    """A network with random weights whose latents are spread out, so that all of the entropy coder is used."""
    torch.manual_seed(seed)
    network = Network(PRESETS[preset])
    with torch.no_grad():
        convolution(network.g_a[-2]).weight.mul_(20)  # the convolution that makes y
        assert isinstance(network.entropy_model, EntropyModel)
        for estimator in network.entropy_model.estimators:
            assert isinstance(estimator, Estimator) and estimator.residual is not None
            nn.init.normal_(convolution(estimator.residual[-1]).weight, std=0.05)
    return network


def untrained_network(config: ModelConfig, seed: int) -> Network:
    """The same for any network: spread latents, and Gaussians of many means and widths."""
    torch.manual_seed(seed)
    network = Network(config)
    with torch.no_grad():
        last = [m for m in network.g_a.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)][-1]
        last.weight.mul_(60)
        for name, module in network.entropy_model.named_modules():
            if isinstance(module, nn.Conv2d) and name.endswith((".2", ".head.4")) and not name.startswith("h_s"):
                nn.init.normal_(module.weight, std=2 / (module.in_channels * module.kernel_size[0]) ** 0.5)
        if config.entropy == "hyper":
            convolution(network.entropy_model.h_s[-1]).weight.mul_(3)
    return network


def noise_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3] with structure at several scales."""
    rng = np.random.default_rng((seed, height, width))
    total = np.zeros((height, width, 3))
    for cell in (64, 16, 4, 1):
        coarse = rng.normal(size=(-(-height // cell), -(-width // cell), 3))
        total += coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width] * cell**0.5
    return np.clip(128 + 12 * total, 0, 255).astype(np.uint8)


def make_ladder(folder: Path) -> Path:
    """Write a ladder of three tiny untrained models."""
    crops = np.stack([noise_picture(192, 192, seed) for seed in range(2)])
    models = [(untrained(seed), float(2**seed), {"stage": "untrained", "steps": 0}, crops) for seed in range(3)]
    export_ladder(models, folder)
    return folder


@pytest.fixture(scope="session")
def ladder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder of three tiny untrained models."""
    return make_ladder(tmp_path_factory.mktemp("ladder") / "weights")


def make_networks(folder: Path) -> Path:
    """Write a ladder of tiny untrained models of all the 4th paper's networks, in their order."""
    crops = np.stack([noise_picture(192, 192, seed) for seed in range(2)])
    models = [
        (untrained_network(tiny(config), k), float(k + 1), {"stage": "untrained", "steps": 0}, crops)
        for k, config in enumerate(NETWORKS)
    ]
    export_ladder(models, folder)
    return folder


@pytest.fixture(scope="session")
def networks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder of tiny untrained models of all the 4th paper's networks, in their order."""
    return make_networks(tmp_path_factory.mktemp("networks") / "weights")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small PNGs."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, (height, width) in {"a": (192, 240), "b": (181, 200), "c": (256, 177)}.items():
        Image.fromarray(noise_picture(height, width)).save(folder / f"{name}.png")
    return folder


def run_module(module: str, *args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m module args` as a user runs it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=300)
