"""The tiled decoder gives the picture of the untiled one."""

import dataclasses
from typing import get_args

import pytest
import torch

from submission.config import PRESETS, GRDNConfig, TransformName
from submission.grdn import GRDN
from submission.parts import synthesis, synthesis_halo
from submission.tiles import post_filter, spans, synthesize


def rough(module: torch.nn.Module) -> torch.nn.Module:
    """Random biases and no zero layers, so that borders and gates matter."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
        elif not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(36, 20), (8, 40)])
@pytest.mark.parametrize("transforms", get_args(TransformName))
def test_synthesis(size: tuple[int, int], transforms: TransformName) -> None:
    config = dataclasses.replace(PRESETS["tiny"], attention="plain", transforms=transforms)
    g_s = rough(synthesis(config))
    y_hat = torch.randint(-3, 4, (1, 16, *size)).float()
    whole = g_s(y_hat)
    halo = synthesis_halo(config)
    for tile in (8, 15):
        assert (synthesize(g_s, y_hat, halo, tile) - whole).abs().max() < 1e-5 * whole.abs().max()
    # half as many would be too few
    assert (synthesize(g_s, y_hat, halo // 2, 8) - whole).abs().max() > 1e-5 * whole.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("config", [GRDNConfig(8, 8, 1, 2, 2), GRDNConfig(8, 4, 2, 2, 3)])
def test_post_filter(config: GRDNConfig) -> None:
    grdn = rough(GRDN(config))
    x = torch.rand(1, 3, 192, 320)
    whole = grdn(x)
    assert (whole - x).abs().max() > 0.01
    for tile in (3, 5, 99):
        assert (post_filter(grdn, x, tile) - whole).abs().max() < 1e-5


def test_spans_cover_once() -> None:
    for size in (1, 7, 32, 33, 100):
        covered = [k for span in spans(size, 32, 7) for k in range(span.start, span.stop)]
        assert covered == list(range(size))
