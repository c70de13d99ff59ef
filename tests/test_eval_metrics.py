"""The metric against its definition, written out slowly here, and the rules for sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal

from metrics.clic import ms_ssim, ms_ssim_db, pooled, psnr, squared_error
from tests.conftest import noise_picture

WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


def slow_ms_ssim(original: np.ndarray, decoded: np.ndarray) -> float:
    """The organisers' computation: 2-D float64 FFT convolutions of the whole picture, no shortcut taken."""
    x, y = original.astype(np.float64), decoded.astype(np.float64)
    ssim, cs = np.zeros(5), np.zeros(5)
    for scale in range(5):
        size = min(11, x.shape[0], x.shape[1])
        at = np.arange(size) - (size - 1) / 2
        gauss = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * (1.5 * size / 11) ** 2))
        window = (gauss / gauss.sum())[:, :, None]
        mean_x, mean_y, xx, yy, xy = (signal.fftconvolve(v, window, mode="valid") for v in (x, y, x * x, y * y, x * y))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
        ssim[scale] = np.mean((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure)
        cs[scale] = np.mean(structure)
        x, y = (ndimage.convolve(v, np.full((2, 2, 1), 0.25), mode="reflect")[::2, ::2] for v in (x, y))
    with np.errstate(invalid="ignore"):
        return float(np.prod(cs[:4] ** WEIGHTS[:4]) * ssim[4] ** WEIGHTS[4])


def distorted(picture: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(192, 256), (435, 161), (177, 333), (160, 160), (1, 1), (6, 300), (10, 11)])
@pytest.mark.parametrize("strength", [3, 30])
def test_equals_the_definition(height: int, width: int, strength: float) -> None:
    original = noise_picture(height, width)
    decoded = distorted(original, strength)
    assert ms_ssim(original, decoded) == pytest.approx(slow_ms_ssim(original, decoded), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 99))
def test_equals_the_definition_at_any_size(height: int, width: int, seed: int) -> None:
    original = noise_picture(height, width, seed)
    decoded = distorted(original, 15, seed)
    fast, slow = ms_ssim(original, decoded), slow_ms_ssim(original, decoded)
    assert fast == pytest.approx(slow, abs=1e-9, nan_ok=True)


def test_identical_is_one_and_order_does_not_matter() -> None:
    original = noise_picture(200, 181)
    decoded = distorted(original, 20)
    assert ms_ssim(original, original) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(original, decoded) == pytest.approx(ms_ssim(decoded, original), abs=1e-12)


def test_channels_are_averaged_before_the_product() -> None:
    original = noise_picture(192, 192)
    decoded = original.copy()
    decoded[:, :, 2] = distorted(original, 60)[:, :, 2]
    per_channel = [ms_ssim(original[:, :, [c] * 3], decoded[:, :, [c] * 3]) for c in range(3)]
    assert ms_ssim(original, decoded) == pytest.approx(slow_ms_ssim(original, decoded), abs=1e-9)
    assert abs(ms_ssim(original, decoded) - np.mean(per_channel)) > 1e-3


def test_negative_structure_is_nan_as_with_the_organisers() -> None:
    original = noise_picture(192, 192)
    assert math.isnan(slow_ms_ssim(original, 255 - original))
    assert math.isnan(ms_ssim(original, 255 - original))


def test_nan_counts_as_zero_and_pixels_weigh() -> None:
    score = pooled([0.9, math.nan, 0.8], [0, 0, 300], [100, 100, 200])
    assert score.msssim == pytest.approx((0.9 * 100 + 0.8 * 200) / 400)
    assert score.pixels == 400
    assert score.psnr == pytest.approx(10 * math.log10(255**2 * 3 * 400 / 300))


def test_psnr_is_pooled_not_averaged() -> None:
    pair = pooled([1, 1], [10, 1000], [100, 100])
    assert pair.psnr == pytest.approx(psnr(1010, 600))
    assert pair.psnr < (psnr(10, 300) + psnr(1000, 300)) / 2


def test_squared_error_is_exact() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 301, 203, 3), dtype=np.uint8)
    assert squared_error(a, b) == int(((a.astype(np.int64) - b) ** 2).sum())


def test_limits() -> None:
    assert psnr(0, 3) == math.inf
    assert psnr(255**2 * 3, 3) == 0
    assert ms_ssim_db(0.99) == pytest.approx(20)
    assert ms_ssim_db(1) == math.inf


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4), (5, 4, 4), (0, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        ms_ssim(np.zeros((5, 4, 3), np.uint8), np.zeros(shape, np.uint8))


def test_empty_and_unequal_sets_are_refused() -> None:
    with pytest.raises(ValueError):
        pooled([], [], [])
    with pytest.raises(ValueError):
        pooled([1.0], [0.0], [1, 1])
