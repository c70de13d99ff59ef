"""Tiled transforms give what the untiled ones give, and know what influences a tile."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from submission import tiles
from submission.config import PRESETS, GRDNConfig, TransformName
from submission.grdn import GRDN
from submission.network import Network
from submission.tiles import Tiled, post_filter, spans

PLAIN = dataclasses.replace(PRESETS["tiny"], attention="plain")


def rough(module: torch.nn.Module) -> torch.nn.Module:
    """Random biases and no zero layers, so that borders and gates matter."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
        elif not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def transform(
    name: str, height: int, width: int, transforms: TransformName = "cheng"
) -> tuple[nn.Sequential, Tensor, int]:
    """A transform, an input of height x width latents (or 4 of them) and the pixels of a cell."""
    network = rough(Network(dataclasses.replace(PLAIN, transforms=transforms)))
    inputs = {
        "g_a": torch.rand(1, 3, 16 * height, 16 * width),
        "h_a": 9 * torch.randn(1, 16, 4 * height, 4 * width),
        "g_s": torch.randint(-3, 4, (1, 16, height, width)).float(),
    }
    return getattr(network, name), inputs[name], 64 if name == "h_a" else 16


@torch.inference_mode()
@pytest.mark.parametrize("name", ["g_a", "h_a", "g_s"])
@pytest.mark.parametrize(
    ("transforms", "size"), [("cheng", (36, 20)), *((name, (4, 28)) for name in get_args(TransformName))]
)
def test_transforms(name: str, transforms: TransformName, size: tuple[int, int]) -> None:
    module, x, cell = transform(name, *size, transforms)
    whole = module(x)
    tiled = Tiled(module, x.shape[1], cell)
    for tile, block in ((8, 2048), (32, 8 * cell), (256, 13 * cell), (256, 2048)):
        found = tiled(x, tile, block)
        assert found.shape == whole.shape and (found - whole).abs().max() < 1e-5 * whole.abs().max()


@torch.inference_mode()
def test_less_than_the_halo_is_not_enough() -> None:
    """What lies around a tile is needed to the last cell, so the halos are not merely large."""
    module, x, cell = transform("g_s", 24, 24)
    tiled, whole = Tiled(module, 16, cell), module(x)
    assert [stage.halo for stage in tiled.stages] == [5, 3, 4, 3, 1] and tiled.halo == 11
    for k, stage in enumerate(tiled.stages):
        tiled.stages[k] = dataclasses.replace(stage, halo=stage.halo - 1)
        assert not torch.equal(tiled(x, 8), whole)
        tiled.stages[k] = stage
    assert torch.allclose(tiled(x, 8), whole, atol=1e-4)


def test_a_transform_that_spoils_everything_is_still_cut() -> None:
    first = nn.Conv2d(3, 4, 3, 2, 1)
    broken = nn.Sequential(first, nn.Conv2d(4, 4, 3, 2, 1))
    nn.init.constant_(first.weight, torch.nan)
    assert [stage.grid.before for stage in Tiled(broken, 3, 4).stages] == [2, 2]


@torch.inference_mode()
@pytest.mark.parametrize("config", [GRDNConfig(8, 8, 1, 2, 2), GRDNConfig(8, 4, 2, 2, 3)])
def test_post_filter(config: GRDNConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    grdn = GRDN(config)
    rough(grdn)
    x = torch.rand(1, 3, 192, 320)
    whole = grdn(x)
    assert (whole - x).abs().max() > 0.01
    for tile in (24, 40, 800):
        for most in (0, 2**30):  # nothing is kept, or all
            monkeypatch.setattr(tiles, "KEPT_BYTES", most)
            assert (post_filter(grdn, x.clone(), tile) - whole).abs().max() < 1e-5


def test_spans_cover_once() -> None:
    for size in (1, 7, 32, 33, 100):
        covered = [k for span in spans(size, 32, 7) for k in range(span.start, span.stop)]
        assert covered == list(range(size))
