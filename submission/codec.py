"""One model of the ladder, deployed: pictures to streams and back."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from submission import bitstream, memory
from submission.config import PAD, ModelConfig
from submission.errors import BitstreamError, ImageError, UserError, WeightsError
from submission.files import MAX_PIXELS, MAX_SIDE, Picture
from submission.grdn import GRDN
from submission.latent_coding import STEP_BITS, Latents, Tensors, YHat
from submission.parts import analysis, entropy_coder, hyper_analysis, synthesis
from submission.precision import fast_bfloat16, multiply_in_bfloat16
from submission.tiles import Tiled, post_filter


@dataclass(frozen=True)
class Encoded:
    """A stream, and the picture that every decoder makes of it: within one level where another CPU rounds otherwise."""

    stream: bytes
    reconstruction: Picture


class Transforms(nn.Module):
    """The floating-point part of a deployed model: g_a and h_a for the encoder, g_s and post-filter for the decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.g_a = analysis(config)
        self.h_a = hyper_analysis(config)
        self.g_s = synthesis(config)
        self.post_filter = GRDN(config.grdn) if config.grdn is not None else nn.Identity()


class Codec:
    """Compresses and decompresses with one model. Rate is 8 * len(stream) / (H * W) of true pixels."""

    def __init__(self, config: ModelConfig, tensors: Tensors, quality: int, model: int) -> None:
        """`tensors` of a model file: transforms in half precision, the rest as `LatentCoder` takes it.

        `model` is the tag that streams carry, so that a stream of other weights is recognised.
        """
        self.config, self.quality, self.model = config, quality, model
        names = tuple(f"{name}." for name in ("g_a", "h_a", "g_s", "post_filter"))
        with torch.device("meta"):  # no time spent on random initial weights
            self.transforms = Transforms(config)
        state = {k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items() if k.startswith(names)}
        try:
            self.transforms.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"weights do not fit the network: {str(error).splitlines()[-1].strip()}") from None
        self.transforms.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        self.fast = fast_bfloat16()
        if self.fast:
            self.transforms.post_filter.to(torch.bfloat16)
        prefix = "entropy."
        entropy = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.entropy = entropy_coder(config, entropy)

    def compress(self, image: Picture) -> bytes:
        """uint8 [H, W, 3] -> stream. ImageError for what is no such picture, or too large for the memory there is."""
        self._check(image)
        return self.write(*self.latents(image), *image.shape[:2])[0]

    def decompress(self, stream: bytes) -> Picture:
        """Stream -> uint8 [H, W, 3]. Raises BitstreamError for anything but a whole stream of this model, UserError for
        a picture that is too large for the memory there is."""
        header, symbols, z_hat = self.read(stream)
        return self._reconstruct(self.entropy.dequantize(symbols, z_hat), header.height, header.width)

    def read(self, stream: bytes) -> tuple[bitstream.Header, Latents, Latents]:
        """`decompress` up to the latents: the header, y [h, w, M] in steps of the entropy coder, z [h/4, w/4, N]."""
        header, payload = bitstream.read(stream)
        self.check(header)
        self._check_memory(header.height, header.width)
        symbols, z_hat = self.entropy.decode(payload, latent_size(header.height, header.width))
        if bitstream.latents_check(symbols, z_hat, self.entropy.unit) != header.latents_check:
            raise BitstreamError("decoded data fails its checksum: damaged, or made with other weights")
        return header, symbols, z_hat

    def check(self, header: bitstream.Header) -> None:
        """BitstreamError unless this model made the stream, and the picture is not too large."""
        if header.quality != self.quality or header.model != self.model:
            raise BitstreamError("made with other weights than these: use the weights that encoded it")
        if header.height * header.width > MAX_PIXELS:
            raise BitstreamError(f"promises {header.width}x{header.height} pixels, more than this decoder takes")

    def encode(self, image: Picture) -> Encoded:
        """`compress`, with the picture that this machine's decoder will make."""
        self._check(image)
        self._check_memory(*image.shape[:2])
        return self.encode_latents(*self.latents(image), *image.shape[:2])

    def encode_latents(self, y: Latents, z: Latents, height: int, width: int) -> Encoded:
        """`encode` a picture of this size with latents y [h, w, M] and z [h/4, w/4, N] found elsewhere."""
        stream, y_hat = self.write(y, z, height, width)
        return Encoded(stream, self._reconstruct(y_hat, height, width))

    def write(self, y: Latents, z: Latents, height: int, width: int) -> tuple[bytes, YHat]:
        """`encode_latents` up to the stream, and y_hat [h, w, M] as a decoder finds it."""
        payload, symbols, z_hat = self.entropy.encode(y, z)
        check = bitstream.latents_check(symbols, z_hat, self.entropy.unit)
        header = bitstream.Header(self.quality, height, width, self.model, check)
        return bitstream.write(header, payload), self.entropy.dequantize(symbols, z_hat)

    def _check(self, image: Picture) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(f"expected uint8 pixels [H, W, 3], got {image.dtype} {list(image.shape)}")
        height, width = image.shape[:2]
        if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
            raise ImageError(f"{width}x{height} is too large; split the picture first")
        needed = memory.encoding_bytes(self.config, height, width)
        if lacking := memory.shortage(needed, f"encoding {width}x{height}"):
            raise ImageError(f"{lacking}; split the picture first")

    def _check_memory(self, height: int, width: int) -> None:
        needed = memory.decoding_bytes(self.config, height, width, self.fast)
        if lacking := memory.shortage(needed, f"decoding {width}x{height}"):
            raise UserError(f"{lacking}; end other programs, or decode where there is more")

    def latents(self, image: Picture) -> tuple[Latents, Latents]:
        """y [h, w, M] (over its quantisation step, in the steps of the entropy coder) and symbols of z [h/4, w/4, N].

        The picture is zero-padded at the right and bottom.
        """
        y, z_hat = self.continuous_latents(image)
        return _rounded(y), z_hat

    @functools.cached_property
    def g_a(self) -> Tiled:
        """Levels 0..255 -> y. Digits matter where the resolution changes, and at the size of y."""
        tiled = Tiled(self.transforms.g_a, 3, 16, peak=255)
        if self.fast:
            for stage in tiled.stages[:-1]:
                multiply_in_bfloat16(stage.layers[1:])
        return tiled

    @functools.cached_property
    def h_a(self) -> Tiled:
        return Tiled(self.transforms.h_a, self.config.M, PAD)

    @functools.cached_property
    def g_s(self) -> Tiled:
        return Tiled(self.transforms.g_s, self.config.M, 16)

    def continuous_latents(self, image: Picture) -> tuple[Tensor, Latents]:
        """The same before y is rounded, [1, M, h, w]."""
        height, width = image.shape[:2]
        h, w = latent_size(height, width)
        padded = np.pad(image, ((0, 16 * h - height), (0, 16 * w - width), (0, 0)))
        with torch.no_grad():
            y = self.g_a(torch.from_numpy(padded).permute(2, 0, 1)[None])
            z = self.h_a(y)
        z_hat = np.clip(_rounded(z), -self.entropy.z_peak, self.entropy.z_peak)  # as a decoder finds it
        steps = torch.from_numpy(self.entropy.step_sizes(z_hat)).permute(2, 0, 1)
        return y * (self.entropy.unit * 2**STEP_BITS) / steps, z_hat

    def _reconstruct(self, y_hat: YHat, height: int, width: int) -> Picture:
        y = torch.from_numpy(y_hat).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            x_hat = self.g_s(y)
            if isinstance(self.transforms.post_filter, GRDN):
                x_hat = post_filter(self.transforms.post_filter, x_hat)
            pixels = x_hat[0, :, :height, :width].clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        picture: Picture = pixels.permute(1, 2, 0).contiguous().numpy()
        return picture


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Size of y: the picture padded to multiples of 64, over 16."""
    return -(-height // PAD) * (PAD // 16), -(-width // PAD) * (PAD // 16)


def _rounded(latent: Tensor) -> Latents:
    if not torch.isfinite(latent).all():
        raise WeightsError("the encoder produced values that are not finite: these weights are broken")
    whole: Latents = latent[0].permute(1, 2, 0).round().clamp(-(2**20), 2**20).to(torch.int32).contiguous().numpy()
    return whole
