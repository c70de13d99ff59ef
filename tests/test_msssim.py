"""metrics.msssim: the score's definition and that of pytorch_msssim, gradients included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_msssim import ms_ssim as theirs

from metrics import clic
from metrics.msssim import MSSSIM
from submission.files import Picture
from tests.conftest import noise_picture


def as_batch(*pictures: Picture) -> torch.Tensor:
    """[B, 3, H, W] in [0, 1]."""
    return torch.stack([torch.as_tensor(picture).permute(2, 0, 1).float() / 255 for picture in pictures])


def blend(x: Picture, y: Picture) -> Picture:
    return (0.9 * x + 0.1 * y).astype(np.uint8)


@settings(deadline=None, max_examples=8)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(0, 100))
def test_joint_channels_are_the_organisers_score(height: int, width: int, seed: int) -> None:
    """At sizes with and without a full window, odd ones included."""
    x = noise_picture(height, width, seed)
    y = blend(x, noise_picture(height, width, seed + 1))
    value = MSSSIM(as_batch(x), joint_channels=True)(as_batch(y))
    assert value.item() == pytest.approx(clic.ms_ssim(x, y), abs=1e-4)


@pytest.mark.parametrize("joint", [False, True])
def test_grey_pictures_have_one_score(joint: bool) -> None:
    """Where averaging the channels before or after the product is the same; a batch has the mean of its pictures'."""
    pairs = []
    for seed in (1, 3):
        x, y = (noise_picture(181, 203, seed + k)[:, :, :1].repeat(3, 2) for k in (0, 1))
        pairs.append((x, blend(x, y)))
    value = MSSSIM(as_batch(*(x for x, _ in pairs)), joint)(as_batch(*(y for _, y in pairs)))
    assert value.item() == pytest.approx(np.mean([clic.ms_ssim(x, y) for x, y in pairs]), abs=1e-4)


@pytest.mark.parametrize("size", [(192, 192), (176, 240)])
def test_single_channels_are_pytorch_msssim(size: tuple[int, int]) -> None:
    """Value and gradient."""
    x, noise = as_batch(noise_picture(*size, 1)), 0.2 * torch.randn(1, 3, *size)
    a, b = ((x + noise).requires_grad_() for _ in range(2))
    ours, reference = MSSSIM(x, joint_channels=False)(a), theirs(x, b, data_range=1.0)
    assert ours.item() == pytest.approx(reference.item(), abs=2e-5)
    (of_ours,), (of_theirs,) = torch.autograd.grad(ours, a), torch.autograd.grad(reference, b)
    assert torch.allclose(of_ours, of_theirs, atol=1e-3 * of_theirs.abs().max().item())


@pytest.mark.parametrize("joint", [False, True])
def test_the_gradient_is_the_slope(joint: bool) -> None:
    """Against finite differences, in float64 and with a cut window."""
    x = as_batch(noise_picture(37, 44, 1)).double()
    y = (0.8 * x + 0.2 * as_batch(noise_picture(37, 44, 2)).double()).requires_grad_()
    similarity, direction = MSSSIM(x, joint), torch.randn_like(x)
    (slope,) = torch.autograd.grad(similarity(y), y)
    with torch.no_grad():
        rise = (similarity(y + 1e-5 * direction) - similarity(y - 1e-5 * direction)) / 2e-5
    assert (slope * direction).sum().item() == pytest.approx(rise.item(), rel=1e-5)


def test_the_opposite_picture_does_not_spoil_the_gradient() -> None:
    """Its structure factors are negative; the other picture of the batch still learns."""
    x = as_batch(*(noise_picture(192, 192, s) for s in (1, 2)))
    made = torch.stack([1 - x[0], 0.9 * x[1]]).requires_grad_()
    (slope,) = torch.autograd.grad(MSSSIM(x, joint_channels=False)(made), made)
    assert torch.isfinite(slope).all() and slope[1].abs().max() > 0
