"""Integer layers: the arithmetic that decides probabilities, exact on every machine.

A layer computes `clamp((a @ w + b) >> shift)` with 8-bit activations and weights and 32-bit sums (a negative shift goes
to the left). `Linear.build` bounds the sums with the actual weights and refuses a model that could overflow, so no
order of summation, thread count, batch shape, library or CPU feature can change a result (`docs/exactness.md`).

Activations are int8 arrays. Signed ones lie in -127..127. Those behind a ReLU lie in 0..255 and are stored less 128.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from submission.errors import WeightsError

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Weight = NDArray[np.generic]  #: int8, or the same integers in float32 or float64 (`operand`)

#: Weights are at most this in magnitude: with 8-bit activations, sums of two products stay below 2^15, so that matrix
#: kernels of CPUs without VNNI, which saturate pairs at 16 bits, are exact too.
WEIGHT_PEAK = 64

SIGNED_PEAK = 127
RELU_PEAK = 255
#: What is subtracted from ReLU activations to store them, and so what stands for zero there.
RELU_OFFSET = 128


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one thread: a wavefront's products take microseconds, less than threads take to meet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def product(a: Int8, w: Weight) -> Int32:
    """a [n, inputs] @ w [inputs, outputs], exact, for weights of any type that `operand` gives."""
    left, right = torch.from_numpy(a), torch.from_numpy(w)
    if right.dtype == torch.int8:
        sums = torch._int_mm(left, right)
    else:
        sums = torch.empty(len(a), w.shape[1], dtype=torch.int32)
        band = max(1, _BAND // max(a.shape[1], 1))
        for top in range(0, len(a), band):
            sums[top : top + band] = torch.mm(left[top : top + band].to(right.dtype), right)
    result: Int32 = sums.numpy()
    return result


#: So many elements are converted to a floating type at a time, to bound the memory.
_BAND = 2**20


def operand(weight: Int8) -> Weight:
    """The same integers in the type of which this machine is the fastest to compute `product`.

    float32 holds integers to 2^24, float64 to 2^53: where no sum of some of the products can be larger, every sum is
    exact, in whatever order it is computed. (The operands themselves need 8 bits and are exact in any floating type.)
    """
    weight = np.ascontiguousarray(weight)
    if fast_int8():
        return weight
    largest = RELU_OFFSET * int(np.abs(weight.astype(np.int64)).sum(0).max(initial=0))
    return weight.astype(np.float32 if largest <= 2**24 else np.float64)


@functools.cache
def fast_int8() -> bool:
    """Whether this machine multiplies 8-bit integers faster than floating-point numbers.

    Without the instructions for it (VNNI and its like) the library takes a plain loop, dozens of times as slow. Which
    processors have them it does not say for all, so a product of a wavefront's shape is timed; either type gives the
    same result.
    """
    a, w = torch.ones(28, 512, dtype=torch.int8), torch.ones(512, 256, dtype=torch.int8)
    floating = w.float()
    with one_thread():
        return _seconds(lambda: torch._int_mm(a, w)) <= _seconds(lambda: torch.mm(a.float(), floating).int())


def _seconds(compute: Callable[[], object]) -> float:
    """Of the fastest of a few runs; the first, which sets things up, does not count."""
    compute()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


def clamp(a: Int32, lowest: int, highest: int) -> Int32:
    """Clip in place; bounds of the array's own type take the short way, several times faster on a small array."""
    return a.clip(np.int32(lowest), np.int32(highest), out=a)


@dataclass(frozen=True)
class Linear:
    """One integer layer. `weight` [inputs, outputs], the rest [outputs]; `bias` holds the offsets of ReLU activations
    and the half that makes the shift round to nearest."""

    weight: Weight
    bias: Int32
    right: Int32
    left: Int32 | None
    lowest: int
    highest: int

    @classmethod
    def build(
        cls, name: str, weight: Int8, bias: Int32, shift: Int8, relu_in: bool, highest: int, relu: bool = False
    ) -> "Linear":
        """From stored integers. Outputs lie in 0..255 if `relu`, else in -highest..highest.

        Raises WeightsError if a weight is too large or a sum could leave 32 bits.
        """
        w = weight.astype(np.int64)
        shifts = shift.astype(np.int64)
        if np.abs(w).max(initial=0) > WEIGHT_PEAK or shifts.min(initial=0) < -8 or shifts.max(initial=0) > 22:
            raise WeightsError(f"layer {name}: weights or shifts out of range")
        right, left = np.maximum(shifts, 0), np.maximum(-shifts, 0)
        b = bias.astype(np.int64)
        if relu_in:
            b = b + RELU_OFFSET * w.sum(0)
        if relu:
            b = b - (RELU_OFFSET << right >> left)
        bound = int(((np.abs(w).sum(0) * RELU_OFFSET + np.abs(b)) << left).max(initial=0))
        if bound >= 2**31:
            raise WeightsError(f"layer {name}: sums up to {bound} do not fit 32 bits")
        return cls(
            operand(weight),
            b.astype(np.int32),
            right.astype(np.int32),
            left.astype(np.int32) if left.any() else None,
            -RELU_OFFSET if relu else -highest,
            RELU_PEAK - RELU_OFFSET if relu else highest,
        )

    def finish(self, sums: Int32) -> Int32:
        """Bare sums [n, outputs], which are overwritten -> outputs, still in 32 bits."""
        sums += self.bias
        if self.left is not None:
            sums <<= self.left
        sums >>= self.right
        return clamp(sums, self.lowest, self.highest)

    def __call__(self, a: Int8) -> Int32:
        return self.finish(product(a, self.weight))


#: The matrix product of a convolution works on operands of this many bytes at a time, to bound its memory.
_CHUNK = 2**25


def conv(layer: Linear, a: Int8, relu_in: bool, rows: range | None = None) -> Int32:
    """Zero-padded k x k convolution of a [h, w, C] as a product of gathered patches; `layer.weight` is [k*k*C,
    outputs].

    Returns all rows or those of `rows`, [rows, w, outputs].
    """
    h, w, c = a.shape
    k = math.isqrt(len(layer.weight) // c)
    edge = k // 2
    rows = rows if rows is not None else range(h)
    low, high = max(0, rows.start - edge), min(h, rows.stop + edge)
    border = ((low - rows.start + edge, rows.stop + edge - high), (edge, edge), (0, 0))
    padded = np.pad(a[low:high], border, constant_values=-RELU_OFFSET if relu_in else 0)
    count, chunk = len(rows), max(1, _CHUNK // (w * k * k * c * layer.weight.itemsize))
    parts = []
    for top in range(0, count, chunk):
        bottom = min(top + chunk, count)
        taps = [padded[top + i : bottom + i, j : j + w] for i in range(k) for j in range(k)]
        patches = np.concatenate(taps, axis=2).reshape(-1, k * k * c)
        parts.append(layer(patches).reshape(bottom - top, w, -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def conv8(layer: Linear, a: Int8, relu_in: bool) -> Int8:
    """`conv` for layers whose outputs fit 8 bits."""
    h, w, _ = a.shape
    band = max(1, _CHUNK // (w * len(layer.weight) * layer.weight.itemsize))
    parts = [conv(layer, a, relu_in, range(t, min(t + band, h))).astype(np.int8) for t in range(0, h, band)]
    return np.concatenate(parts)


def pixel_shuffle(a: Int8) -> Int8:
    """[h, w, 4C] -> [2h, 2w, C], channel order as torch.nn.PixelShuffle(2)."""
    h, w, c = a.shape
    return a.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, c // 4)
