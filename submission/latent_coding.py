"""What the integer entropy models share: the prior of z, integer h_s, quantisation steps, and the walk through a
stream.

Encoder and decoder walk the same code (`_code`) and differ in the coder that they hand in (`submission.symbols`).
`_code_y` belongs to the models: `submission.entropy_coding` goes in wavefronts, `submission.sliced_coding` slice by
slice.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from submission.coder import Decoder, Encoder
from submission.config import ModelConfig
from submission.errors import WeightsError
from submission.integer import SIGNED_PEAK, Int8, Int32, Linear, conv8, pixel_shuffle
from submission.mixture import CODER_BITS, Positions, Tables
from submission.symbols import SymbolCoder, SymbolDecoder, SymbolEncoder

Latents = NDArray[np.int32]  #: [h, w, channels]
YHat = NDArray[np.float32]  #: [h, w, M]
Tensors = dict[str, NDArray[np.generic]]

#: Sees what is coded together: rows and columns [n], mixtures [K, 3, n * C] and symbols [n * C], C channels a place.
Watch = Callable[[Positions, Positions, Int32, Int32], None]

#: Parameters of Gaussians leave the network as integers in this range, twice that after a residual branch.
PARAMETER_PEAK = 2**14 - 1

#: Learned quantisation steps: log2 in 1/32 from -2 to 2 (the network's output), and the steps themselves in 1/2^14, so
#: that a symbol of 7 bits times a step of 17 is exact in float32.
STEP_UNIT = 32
STEP_PEAK = 2 * STEP_UNIT
STEP_BITS = 14


class Reader:
    """Named integer arrays of a model file; WeightsError when one is missing."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def int32(self, name: str) -> Int32:
        if name not in self.tensors:
            raise WeightsError(f"model file lacks {name}")
        return self.tensors[name].astype(np.int32)

    def linear(self, name: str, relu_in: bool = False, relu: bool = False, highest: int = SIGNED_PEAK) -> Linear:
        weight, shift = (self.int32(f"{name}.{part}").astype(np.int8) for part in ("weight", "shift"))
        return Linear.build(name, weight, self.int32(f"{name}.bias"), shift, relu_in, highest, relu)


class LatentCoder:
    """Codes the latents of one picture with the integer entropy model of one model file.

    Latents of y are in steps of 1 / `unit`: whole symbols, or 1/64 where they are rounded around means of that grid.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        """`tensors` as `training.export` stores them; WeightsError when they are incomplete or could overflow."""
        self.config = config
        #: Called with every step of y that is decoded, if set (`submission.inspect`).
        self.watch: Watch | None = None
        self.unit = 1
        self.read = Reader(tensors)
        read = self.read
        self.tables = Tables(*(read.int32(f"tables.{name}") for name in ("exp", "inverse_scale", "cdf", "reach")))
        self.prior = read.int32("prior").astype(np.float64)
        if (self.prior.sum(1) != (1 << CODER_BITS) - self.prior.shape[1]).any() or (self.prior < 0).any():
            raise WeightsError("prior of z: rows do not sum to the coder's total")
        if self.prior.shape[1] < 3:
            raise WeightsError("prior of z: fewer than three values")
        self.z_peak = self.prior.shape[1] // 2
        # layers behind which a pixel shuffle doubles the size
        self.shuffles, last = ((1, 3), 4) if config.transforms == "cheng" else ((0, 1), 2)
        highest = PARAMETER_PEAK if config.entropy == "hyper" else SIGNED_PEAK
        self.h_s = [
            read.linear(f"h_s.{k}", k > 0, k < last, highest if k == last else SIGNED_PEAK) for k in range(last + 1)
        ]
        self.h_sq: list[Linear] = []
        if config.learned_step:
            self.h_sq = [read.linear("h_sq.0", relu=True), read.linear("h_sq.1", relu_in=True, highest=STEP_PEAK)]
            self.step_table = read.int32("tables.step")
            fits = (self.step_table > 0) & (self.step_table <= 2**24)  # times a symbol, within 32 bits
            if self.step_table.shape != (2 * STEP_PEAK + 1,) or not fits.all():
                raise WeightsError("tables.step: not a table of quantisation steps")

    def hyper_features(self, z_hat: Latents) -> Int8:
        """h_s: z_hat [h, w, N] -> features [4h, 4w, F] in -127..127."""
        return conv8(self.h_s[-1], self.hyper_hidden(z_hat), relu_in=True)

    def hyper_hidden(self, z_hat: Latents) -> Int8:
        """h_s but for its last layer."""
        a = z_hat.astype(np.int8)
        for k, layer in enumerate(self.h_s[:-1]):
            a = conv8(layer, a, relu_in=k > 0)
            a = pixel_shuffle(a) if k in self.shuffles else a
        return a

    def step_sizes(self, z_hat: Latents) -> Int32:
        """h_sq: z_hat [h, w, N] -> quantisation steps of y [4h, 4w, M] in 1/2^14; [1, 1, 1] if all are 1."""
        if not self.h_sq:
            return np.full((1, 1, 1), 1 << STEP_BITS, np.int32)
        a = pixel_shuffle(conv8(self.h_sq[0], z_hat.astype(np.int8), relu_in=False))
        a = pixel_shuffle(conv8(self.h_sq[1], a, relu_in=True))
        return self.step_table[a.astype(np.intp) + STEP_PEAK]

    def dequantize(self, latents: Latents, z_hat: Latents) -> YHat:
        """Decoded latents [4h, 4w, M] -> y_hat, the same bits on every machine."""
        y_hat = (latents * self.step_sizes(z_hat)).astype(np.float32)
        return y_hat * np.float32(2.0**-STEP_BITS / self.unit)

    def encode(self, y: Latents, z: Latents) -> tuple[bytes, Latents, Latents]:
        """Latents y [h, w, M] in steps of 1 / `unit` and z [h/4, w/4, N] -> coded bytes, and the latents as a decoder
        finds them.

        Those differ where a value lies outside the alphabet or another one was all but certain, and where rounding
        around a mean moved them.
        """
        sink = Encoder()
        y_hat, z_hat = self._code(SymbolEncoder(self.tables, sink), (y.shape[0], y.shape[1]), y, z)
        return sink.bytes(), y_hat, z_hat

    def decode(self, data: bytes, size: tuple[int, int]) -> tuple[Latents, Latents]:
        """Coded bytes and the size (h, w) of y -> (y_hat [h, w, M] in steps of 1 / `unit`, z_hat [h/4, w/4, N])."""
        return self._code(SymbolDecoder(self.tables, Decoder(data)), size, None, None)

    def _code(
        self, coder: SymbolCoder, size: tuple[int, int], y: Latents | None, z: Latents | None
    ) -> tuple[Latents, Latents]:
        z_hat = self._code_z(coder, (size[0] // 4, size[1] // 4), z)
        return self._code_y(coder, size, z_hat, y), z_hat

    def _code_z(self, coder: SymbolCoder, size: tuple[int, int], z: Latents | None) -> Latents:
        z_hat = np.empty((*size, self.config.N), np.int32)
        count = size[0] * size[1]
        for channel in range(self.config.N):
            given = None
            if z is not None:
                given = np.clip(z[:, :, channel].ravel(), -self.z_peak, self.z_peak).astype(np.int32) + self.z_peak
            found = coder.code_alike(self.prior[channel], count, given) - self.z_peak
            z_hat[:, :, channel] = found.reshape(size)
        return z_hat

    def _code_y(self, coder: SymbolCoder, size: tuple[int, int], z_hat: Latents, y: Latents | None) -> Latents:
        raise NotImplementedError
