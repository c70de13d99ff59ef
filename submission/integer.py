"""Integer layers: the arithmetic that decides probabilities, exact on every machine.

A layer computes `clamp((a @ w + b) >> shift, lo, hi)` on integers (a negative shift goes to the left). The numbers are
held in floating point, because that is what fast matrix products take, but every intermediate is an exactly
representable integer: `Linear` bounds the sums with the actual weights, takes float32 below 2^24 and float64 below
2^53, and refuses anything larger. So no order of summation, thread count, batch shape, BLAS or CPU feature can change
a result (`docs/exactness.md`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from submission.errors import WeightsError

Ints = NDArray[np.floating]  #: integers, held exactly in float32 or float64

#: Weights are at most this in magnitude: with 8-bit activations, pairs of products stay below 2^15, so that 8-bit
#: matrix kernels that saturate at 16 bits are exact too.
WEIGHT_PEAK = 64

#: Ranges of activations: latents and linear features are signed, ReLU features are not.
SIGNED_PEAK = 127
RELU_PEAK = 255


@dataclass(frozen=True)
class Linear:
    """One integer layer. `weight` [inputs, outputs], `bias` and `scale` (2^-shift) [outputs], bounds `lo` and `hi`."""

    weight: Ints
    bias: Ints
    scale: Ints
    lo: int
    hi: int

    @classmethod
    def build(
        cls,
        name: str,
        weight: NDArray[np.int8],
        bias: NDArray[np.int32],
        shift: NDArray[np.int8],
        peak: int,
        lo: int,
        hi: int,
    ) -> "Linear":
        """From stored integers: `weight` [inputs, outputs]; inputs are at most `peak` in magnitude.

        Raises WeightsError if a weight is too large or a sum could leave the range where float64 is exact.
        """
        w = weight.astype(np.int64)
        if np.abs(w).max(initial=0) > WEIGHT_PEAK or shift.min(initial=0) < -8 or shift.max(initial=0) > 30:
            raise WeightsError(f"layer {name}: weights or shifts out of range")
        bounds = np.abs(w).sum(0) * peak + np.abs(bias.astype(np.int64))
        bound = int((bounds << np.maximum(-shift.astype(np.int64), 0)).max(initial=0))
        if bound >= 2**53:
            raise WeightsError(f"layer {name}: sums up to {bound} would not be exact")
        dtype = np.float32 if bound < 2**24 else np.float64
        return cls(weight.astype(dtype), bias.astype(dtype), np.exp2(shift.astype(dtype) * -1), lo, hi)

    def accumulate(self, a: Ints) -> Ints:
        """a [n, inputs] -> the bare sums [n, outputs]."""
        result: Ints = a.astype(self.weight.dtype, copy=False) @ self.weight
        return result

    def finish(self, sums: Ints) -> Ints:
        """Add the bias, shift (rounding down; the bias holds the half that makes it round to nearest) and clamp."""
        out = sums + self.bias
        out *= self.scale
        np.floor(out, out=out)
        np.clip(out, self.lo, self.hi, out=out)
        return out.astype(np.float32, copy=False)

    def __call__(self, a: Ints) -> Ints:
        return self.finish(self.accumulate(a))


#: The matrix product of a convolution works on this many gathered values at a time, to bound its memory.
_CHUNK = 2**24


def conv3x3(layer: Linear, a: Ints) -> Ints:
    """Zero-padded 3x3 convolution of a [h, w, C] as a product of gathered patches; `layer.weight` is [9C, outputs]."""
    h, w, c = a.shape
    padded = np.pad(a, ((1, 1), (1, 1), (0, 0)))
    rows = max(1, _CHUNK // (w * 9 * c))
    parts = []
    for top in range(0, h, rows):
        bottom = min(top + rows, h)
        taps = [padded[top + i : bottom + i, j : j + w] for i in range(3) for j in range(3)]
        patches = np.concatenate(taps, axis=2).reshape(-1, 9 * c)
        parts.append(layer(patches).reshape(bottom - top, w, -1))
    return np.concatenate(parts)


def pixel_shuffle(a: Ints) -> Ints:
    """[h, w, 4C] -> [2h, 2w, C], channel order as torch.nn.PixelShuffle(2)."""
    h, w, c = a.shape
    return a.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, c // 4)
