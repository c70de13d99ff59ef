"""The score of the Challenge on Learned Image Compression (CLIC), as its organisers compute it.

MS-SSIM after Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (2003), with
the organisers' choices, all of which move the number: float64, *valid* windows, SSIM and contrast-structure averaged
over space and the three channels jointly at each scale before the product, a 2x2 box with mirrored edges before each
halving (odd sizes give ceil(n / 2)), and no clamp, so that a negative mean contrast-structure gives NaN.
A set has one MS-SSIM, weighted by pixels, and one PSNR, from the squared errors of all its samples pooled.

The Gaussian is separable and is applied as a product with a banded matrix, in stripes that stay in the cache: the
result of the organisers' 2-D FFT convolution to about 1e-12, at a fraction of its time and memory. Both pictures enter
as their sum and difference, whose box-filtered halves stay exact integers:
with s = x + y and d = x - y, structure is (var s - var d + 2 C2) / (var s + var d + 2 C2), and luminance likewise.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_TAPS = 11
WINDOW_SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2

#: Rows and columns of window positions handled at once: small enough for the cache, large enough for BLAS.
STRIPE_ROWS, STRIPE_COLUMNS = 16, 24

Array = NDArray[np.float64]
Integers = NDArray[np.signedinteger]


def ms_ssim(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """MS-SSIM of `decoded` against `original`, both uint8 H x W x 3; NaN where the definition has no real value.

    Pictures too small for the window (H or W under 11 at some scale, that is under 161 at the first) are measured with
    the window cut to min(11, H, W) taps and its sigma scaled alike. Raises ValueError when the shapes differ.
    """
    _check_shapes(original, decoded)
    x, y = (np.ascontiguousarray(picture.transpose(2, 0, 1)) for picture in (original, decoded))
    total, difference = np.add(x, y, dtype=np.int16), np.subtract(x, y, dtype=np.int16)
    factors: list[float] = []
    for scale in range(len(SCALE_WEIGHTS)):
        if scale:
            # four samples are added where the definition takes their mean; up to 510 * 4^3, two bytes hold them
            dtype = np.int16 if scale < 4 else np.int32
            total, difference = _halve(total, dtype), _halve(difference, dtype)
        last = scale == len(SCALE_WEIGHTS) - 1  # the coarsest scale alone also compares luminance
        factors.append(_mean_similarity(total, difference, 4**scale, last))
    if min(factors) < 0:
        return math.nan  # a fractional power of a negative number
    return math.prod(math.pow(factor, weight) for factor, weight in zip(factors, SCALE_WEIGHTS, strict=True))


def ms_ssim_db(value: float) -> float:
    """`value`, an MS-SSIM, in decibels: -10 log10(1 - value); infinite for identical pictures."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def squared_error(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """The sum of squared differences over all samples. Raises ValueError when the shapes differ."""
    _check_shapes(original, decoded)
    difference = np.subtract(original, decoded, dtype=np.float32).ravel()  # exact: |difference| <= 255
    return float(np.sum(np.square(difference), dtype=np.float64))


def psnr(sse: float, samples: int) -> float:
    """PSNR in dB of `sse`, a sum of squared errors over `samples` 8-bit samples (3 a pixel); infinite at no error."""
    return math.inf if sse == 0 else 10 * math.log10(255**2 * samples / sse)


@dataclass(frozen=True)
class SetScore:
    """What a set of pictures scores: pixel-weighted MS-SSIM, pooled PSNR in dB, and the pixels behind them."""

    msssim: float
    psnr: float
    pixels: int


def pooled(msssim: Sequence[float], sse: Sequence[float], pixels: Sequence[int]) -> SetScore:
    """The score of a set from its pictures' MS-SSIM, squared errors and pixel counts (H * W), in the same order.

    An MS-SSIM of NaN counts as 0. Raises ValueError for an empty set or lists of unequal length.
    """
    if not pixels:
        raise ValueError("a set without pictures has no score")
    total = sum(pixels)
    weighted = sum(0.0 if math.isnan(m) else m * p for m, p in zip(msssim, pixels, strict=True))
    return SetScore(weighted / total, psnr(math.fsum(sse), 3 * total), total)


def _check_shapes(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> None:
    if original.shape != decoded.shape or original.ndim != 3 or original.shape[2] != 3 or original.size == 0:
        raise ValueError(f"two H x W x 3 pictures of one size are needed, not {original.shape} and {decoded.shape}")


def _halve(planes: Integers, dtype: type[np.signedinteger]) -> Integers:
    """3 x H x W to half the size: the sum of each 2x2 block; an odd last row or column is mirrored."""
    _, height, width = planes.shape
    if height % 2 or width % 2:
        planes = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), mode="symmetric")
    rows = np.add(planes[:, 0::2], planes[:, 1::2], dtype=dtype)
    return np.add(rows[:, :, 0::2], rows[:, :, 1::2])


def _mean_similarity(total: Integers, difference: Integers, unit: int, luminance: bool) -> float:
    """The mean over all valid window positions and channels of contrast-structure, or of SSIM if `luminance`.

    `total` and `difference`, 3 x H x W, are the sum and the difference of the two pictures in multiples of 1 / `unit`.
    """
    _, height, width = total.shape
    taps = min(WINDOW_TAPS, height, width)
    positions_down, positions_across = height - taps + 1, width - taps + 1
    c1, c2 = 2 * C1 * unit**2, 2 * C2 * unit**2
    similarity = 0.0
    for top in range(0, positions_down, STRIPE_ROWS):
        rows = slice(top, min(top + STRIPE_ROWS, positions_down) + taps - 1)
        planes = np.empty((4, 3, rows.stop - top, width))
        planes[0], planes[1] = total[:, rows], difference[:, rows]
        np.square(planes[:2], out=planes[2:])
        squares = _windowed_means(planes, taps)
        mean_s, mean_d, variance_s, variance_d = squares  # the last two so far the means of the squares
        np.square(squares[:2], out=squares[:2])
        squares[2:] -= squares[:2]
        structure = (variance_s - variance_d + c2) / (variance_s + variance_d + c2)
        if luminance:
            structure *= (mean_s - mean_d + c1) / (mean_s + mean_d + c1)
        similarity += float(np.sum(structure))
    return float(similarity / (3 * positions_down * positions_across))


def _windowed_means(planes: Array, taps: int) -> Array:
    """Weighted means of ... x H x W under the 2-D Gaussian window of taps x taps, at its valid positions only."""
    *leading, height, width = planes.shape
    down, across = height - taps + 1, width - taps + 1
    rows = (_band(down, taps) @ planes).reshape(-1, width)
    means = np.empty((len(rows), across))
    for left in range(0, across, STRIPE_COLUMNS):
        count = min(STRIPE_COLUMNS, across - left)
        np.matmul(rows[:, left : left + count + taps - 1], _band(count, taps).T, out=means[:, left : left + count])
    return means.reshape(*leading, down, across)


@functools.cache  # at most STRIPE_COLUMNS sizes for each of the WINDOW_TAPS windows
def _band(positions: int, taps: int) -> Array:
    """The matrix, positions x (positions + taps - 1), whose row i holds the window's taps from column i on.

    The taps are a Gaussian of sum 1 whose sigma shrinks with their number.
    """
    at = np.arange(taps) - (taps - 1) / 2
    sigma = WINDOW_SIGMA * taps / WINDOW_TAPS
    gauss = np.exp(-(at**2) / (2 * sigma**2))
    band = np.zeros((positions, positions + taps - 1))
    for i in range(positions):
        band[i, i : i + taps] = gauss / gauss.sum()
    return band
