"""Laws of the 4th paper's networks: parameter counts, exact round trips, integers against references, damage,
training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from submission.codec import Codec
from submission.config import NETWORKS, PRESETS, ModelConfig, tiny
from submission.errors import BitstreamError, WeightsError
from submission.integer import RELU_OFFSET, Linear
from submission.ladder import Ladder, read_safetensors
from submission.mixture import MEAN_UNIT, PEAK, SCALE_RANGE, SCALE_UNIT
from submission.network import Network
from submission.sliced_coding import SPATIAL_TAPS, ChannelSlice, HyperSlice, SlicedCoder, SpaceChannelSlice
from submission.sliced_model import SUPPORT, SlicedModel
from submission.symbols import SymbolCoder
from tests.conftest import noise_picture, untrained_network
from training.network.integer import subpixel
from training.network.integer_sliced import quantize_sliced

NAMES = [config.name for config in NETWORKS]
SLICED = [config.name for config in NETWORKS if config.entropy in ("hyper", "channel", "elic")]
ZERO = [config.name for config in NETWORKS if config.zero_centre]

#: At the papers' sizes. Where CompressAI 1.2.8 has the same network the difference is known: it has three numbers for
#: each channel of z more, and no mixtures (`docs/networks.md`).
PARAMETERS = {
    "ms-hyper": 17_561_699 - 3 * 192,
    "ms-hyper-zero": 17_561_699 - 3 * 192,
    "ms-context": 25_504_596 - 3 * 192,
    "cheng-anchor": 24_052_140,
    "cheng-attn": 27_084_972,
    "charm": 80_463_171,
    "charm-zero": 80_463_171,
    "elic-sm-zero": 24_908_184,
    "elic-zero": 32_074_200 - 3 * 192,
}


def codec_of(folder: Path, name: str) -> Codec:
    return Ladder.load(folder).codec(NAMES.index(name))


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        network = Network(PRESETS[name])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_size_comes_back(networks_folder: Path, name: str) -> None:
    codec = codec_of(networks_folder, name)
    for size in ((1, 1), (63, 65), (70, 200)):
        image = noise_picture(*size)
        encoded = codec.encode(image)
        assert np.array_equal(codec.decompress(encoded.stream), encoded.reconstruction)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 3, 300]),
)
def test_any_latents_come_back(
    networks_folder: Path, name: str, rows: int, columns: int, seed: int, spread: float
) -> None:
    entropy = codec_of(networks_folder, name).entropy
    rng = np.random.default_rng(seed)
    y = np.rint(entropy.unit * rng.laplace(scale=spread, size=(4 * rows, 4 * columns, entropy.config.M))).astype(
        np.int32
    )
    z = np.rint(rng.laplace(scale=spread, size=(rows, columns, entropy.config.N))).astype(np.int32)
    data, y_hat, z_hat = entropy.encode(y, z)
    y_found, z_found = entropy.decode(data, y.shape[:2])
    assert np.array_equal(y_found, y_hat) and np.array_equal(z_found, z_hat)


def convolve(layer: Linear, a: Tensor, relu_in: bool, taps: list[tuple[int, int]] | None = None) -> Tensor:
    """The layer on [C, h, w], all in float64, where every integer is exact."""
    k = 5 if taps else round((len(layer.weight) / len(a)) ** 0.5)
    taps = taps or [(i - k // 2, j - k // 2) for i in range(k) for j in range(k)]
    kernel = torch.zeros(layer.weight.shape[1], len(a), k, k, dtype=torch.float64)
    for tap, (i, j) in zip(torch.from_numpy(layer.weight).double().split(len(a)), taps, strict=True):
        kernel[:, :, i + k // 2, j + k // 2] = tap.T
    padded = F.pad(a, (k // 2,) * 4, value=-RELU_OFFSET if relu_in else 0)
    sums = F.conv2d(padded[None], kernel)[0] + torch.from_numpy(layer.bias).double().view(-1, 1, 1)
    left = torch.zeros(len(sums)) if layer.left is None else torch.from_numpy(layer.left)
    scale = torch.exp2((left - torch.from_numpy(layer.right)).double()).view(-1, 1, 1)
    return torch.floor(sums * scale).clamp(layer.lowest, layer.highest)


def stack(layers: tuple[Linear, ...], a: Tensor) -> Tensor:
    for k, layer in enumerate(layers):
        a = convolve(layer, a, relu_in=k > 0)
    return a


def reference(entropy: SlicedCoder, y_hat: np.ndarray, z_hat: np.ndarray) -> np.ndarray:
    """Means in 1/64 and log2 scales in 1/32 of all latents, [2, M, h, w], each slice in one piece."""
    a = torch.from_numpy(z_hat).permute(2, 0, 1).double()
    for k, layer in enumerate(entropy.h_s):
        a = convolve(layer, a, relu_in=k > 0)
        a = F.pixel_shuffle(a[None], 2)[0] if k in entropy.shuffles else a
    in_64ths = torch.from_numpy(y_hat * (64 // entropy.unit)).permute(2, 0, 1).double()
    shift = torch.from_numpy(entropy.seen_shift).view(-1, 1, 1)
    seen = torch.floor(in_64ths / 2.0**shift + 0.5 * (shift > 0)).clamp(-127, 127)
    found = []
    for span, part in zip(entropy.spans, entropy.slices, strict=True):
        if isinstance(part, HyperSlice):
            p = a
        elif isinstance(part, ChannelSlice):
            halves = zip((part.mean, part.scale), a.chunk(2), strict=True)
            p = torch.cat([stack(layers, torch.cat([half, seen[: part.known]])) for layers, half in halves])
        else:
            assert isinstance(part, SpaceChannelSlice)
            others = torch.cat([stack(part.channel, seen[: part.known]), a]) if part.channel else a
            own = seen[span].clone()
            rows, columns = np.indices(y_hat.shape[:2])
            second = torch.from_numpy((rows + columns) % 2 == 1)
            own[:, second] = 0
            spatial = torch.where(second, convolve(part.spatial, own, False, SPATIAL_TAPS), 0.0)
            p = stack(part.aggregate, torch.cat([spatial, others]))
        found.append(p.view(2, -1, *y_hat.shape[:2]))
    return torch.cat(found, 1).numpy().astype(np.int64)


@pytest.mark.parametrize("name", SLICED)
def test_step_by_step_equals_all_at_once(networks_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters that a decoder finds on its way, of a picture with several bands, against exact float64."""
    monkeypatch.setattr("submission.sliced_coding.BAND", 100)
    codec = codec_of(networks_folder, name)
    entropy = codec.entropy
    assert isinstance(entropy, SlicedCoder)
    data, y_hat, z_hat = entropy.encode(*codec.latents(noise_picture(100, 150)))
    seen: list[NDArray[np.int32]] = []
    code_step = SlicedCoder._code_step

    def watched(self: SlicedCoder, coder: SymbolCoder, p: NDArray[np.int32], given: Any, at: Any) -> Any:
        seen.append(p.copy())
        return code_step(self, coder, p, given, at)

    monkeypatch.setattr(SlicedCoder, "_code_step", watched)
    decoded, _ = entropy.decode(data, y_hat.shape[:2])
    assert np.array_equal(decoded, y_hat)
    expected = reference(entropy, y_hat, z_hat)
    (height, width), at = y_hat.shape[:2], 0
    for span in entropy.spans:
        channels = span.stop - span.start
        for phase in (0, 1) if codec.config.entropy == "elic" else (None,):
            for band in range(0, height, max(1, 100 // (width * channels))):
                rows, columns = np.indices((min(max(1, 100 // (width * channels)), height - band), width)).reshape(
                    2, -1
                )
                which = (rows + band + columns) % 2 == phase if phase is not None else np.ones(len(rows), bool)
                there = expected[:, span, rows[which] + band, columns[which]]
                assert np.array_equal(seen[at], there.reshape(2 * channels, -1).T)
                at += 1
    assert at == len(seen)


@pytest.mark.parametrize("name", [name for name in ZERO if PRESETS[name].slices])
def test_contexts_do_not_shift_means(name: str) -> None:
    """8 bits cannot hold latents around means. What that costs in precision must not add up over a layer's inputs."""
    network = untrained_network(tiny(PRESETS[name]), 0)
    model, config = network.entropy_model, network.config
    assert isinstance(model, SlicedModel)
    rng = np.random.default_rng(0)
    y = np.rint(MEAN_UNIT * rng.laplace(scale=2, size=(32, 32, config.M))).astype(np.int32)
    z = np.rint(rng.laplace(scale=2, size=(8, 8, config.N))).astype(np.int32)
    y_hat, z_hat = (torch.from_numpy(a).permute(2, 0, 1)[None].float() for a in (y / MEAN_UNIT, z))
    with torch.no_grad():
        for module in model.slices.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (5, 5):
                module.weight.abs_().mul_(0.2)  # now everything that is off adds up
        tensors = quantize_sliced(model, y_hat, z_hat)
        means, _ = model.gaussians(model.parameters_of(y_hat, z_hat))
    assert tensors["seen.shift"].min() > 0
    found, _ = reference(SlicedCoder(config, tensors), y, z)
    off = (found / MEAN_UNIT - means[0].numpy())[model.spans[1].start :]
    assert np.sqrt((off.mean((1, 2)) ** 2).mean()) < 0.25 * np.sqrt(off.var((1, 2)).mean())


@pytest.mark.parametrize("name", SLICED)
def test_a_latent_influences_only_what_comes_later(networks_folder: Path, name: str) -> None:
    entropy = codec_of(networks_folder, name).entropy
    assert isinstance(entropy, SlicedCoder)
    rng = np.random.default_rng(0)
    y = entropy.unit * rng.integers(-3, 4, (8, 8, entropy.config.M)).astype(np.int32)
    z = rng.integers(-2, 3, (2, 2, entropy.config.N)).astype(np.int32)
    before = reference(entropy, y, z)
    for k, span in enumerate(entropy.spans):
        for row, column in ((3, 3), (3, 4)):  # of the first and the second pass
            changed = y.copy()
            changed[row, column, span.start] += 30 * entropy.unit
            differs = (reference(entropy, changed, z) != before).any(0)
            assert not differs[: span.start].any()
            rows, columns = np.nonzero(differs[span].any(0))
            if entropy.config.entropy == "elic" and (row + column) % 2 == 0:
                assert len(rows) and ((rows + columns) % 2 == 1).all()
            else:
                assert not len(rows)
            last = len(entropy.spans) - 1
            supports = min(SUPPORT, last) if entropy.config.entropy == "channel" else last
            assert differs[span.stop :].any() == (k < supports)


@pytest.mark.parametrize("name", SLICED)
def test_integers_follow_the_floats(networks_folder: Path, name: str) -> None:
    codec = codec_of(networks_folder, name)
    entropy, network = codec.entropy, untrained_network(codec.config, NAMES.index(name))
    assert isinstance(entropy, SlicedCoder) and isinstance(network.entropy_model, SlicedModel)
    _, y_hat, z_hat = entropy.encode(*codec.latents(noise_picture(192, 192)))
    found = reference(entropy, y_hat, z_hat)
    y, z = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (y_hat / entropy.unit, z_hat))
    with torch.no_grad():
        real = network.entropy_model.gaussians(network.entropy_model.parameters_of(y, z))
    for integers, unit, floats in zip(found, (MEAN_UNIT, SCALE_UNIT), real, strict=True):
        error = integers / unit - floats[0].double().numpy()
        # about 2 % a layer, and up to nine layers lie behind a parameter
        assert error.std() < 0.02 * 9**0.5 * 1.5 * float(floats.std()) + 1 / unit


@pytest.mark.parametrize("name", ZERO)
def test_zero_centre_rounds_around_the_means(networks_folder: Path, name: str) -> None:
    codec = codec_of(networks_folder, name)
    image = noise_picture(70, 90)
    y, z_hat = codec.continuous_latents(image)
    _, latents, _ = codec.entropy.encode(*codec.latents(image))
    y_hat = codec.entropy.dequantize(latents, z_hat)
    assert y_hat.dtype == np.float32 and np.array_equal(y_hat * 64, latents)
    assert isinstance(codec.entropy, SlicedCoder)
    means, scales = (v.transpose(1, 2, 0) for v in reference(codec.entropy, latents, z_hat))
    certain = codec.entropy.tables.reach.take(scales + SCALE_RANGE, mode="clip") <= MEAN_UNIT // 2
    assert np.array_equal(latents[certain], np.clip(means, -PEAK * MEAN_UNIT, PEAK * MEAN_UNIT)[certain])
    error = np.abs(latents - y[0].permute(1, 2, 0).numpy())
    assert error[~certain].max() <= MEAN_UNIT // 2 + 1 and np.mean(latents % MEAN_UNIT != 0) > 0.5


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_a_subpixel_one(groups: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.ConvTranspose2d(4, 6, 5, 2, 2, 1, groups=groups)
    x = torch.randn(1, 4, 5, 7)
    assert layer.bias is not None
    made = F.pixel_shuffle(F.conv2d(x, subpixel(layer), layer.bias.repeat_interleave(4), padding=1), 2)
    assert torch.allclose(made, layer(x), atol=1e-5)


@pytest.mark.parametrize("name", ["ms-hyper-zero", "ms-context", "charm-zero", "elic-sm-zero"])
def test_damage_is_noticed(networks_folder: Path, name: str) -> None:
    codec = codec_of(networks_folder, name)
    stream = codec.compress(noise_picture(64, 64))
    rng = np.random.default_rng(0)
    for position in rng.choice(len(stream), 40, replace=False):
        damaged = bytearray(stream)
        damaged[position] ^= int(rng.integers(1, 256))
        with pytest.raises(BitstreamError):
            codec.decompress(bytes(damaged))
    with pytest.raises(BitstreamError):
        codec.decompress(stream[: len(stream) // 2])


def test_broken_models_are_refused(networks_folder: Path) -> None:
    path = networks_folder / f"model_{NAMES.index('elic-zero')}.safetensors"
    tensors = {k.removeprefix("entropy."): v for k, v in read_safetensors(path, path.read_bytes()).items()}
    config = tiny(PRESETS["elic-zero"])
    SlicedCoder(config, tensors)
    faults: tuple[tuple[str, Callable[[NDArray[Any]], NDArray[Any]], str], ...] = (
        ("slices.1.spatial.weight", lambda v: np.full_like(v, 100), "out of range"),
        ("slices.2.aggregate.2.bias", lambda v: np.full_like(v, 2**31 - 1), "do not fit"),
        ("seen.shift", lambda v: v + 7, "seen.shift"),
        ("seen.shift", lambda v: v[1:], "seen.shift"),
    )
    for name, change, message in faults:
        with pytest.raises(WeightsError, match=message):
            SlicedCoder(config, {**tensors, name: change(tensors[name])})
    for name in ("slices.1.channel.0.weight", "seen.shift", "h_s.2.bias"):
        with pytest.raises(WeightsError, match=f"lacks {name}"):
            SlicedCoder(config, {k: v for k, v in tensors.items() if k != name})


IMPOSSIBLE = [
    ("cheng-attn", {"zero_centre": True}, "several means"),
    ("ms-context", {"zero_centre": True}, "pixel by pixel"),
    ("charm", {"slices": (32,) * 9}, "do not make up"),
    ("charm", {"slices": ()}, "do not make up"),
    ("charm", {"slices": (320, 0)}, "do not make up"),
    ("elic-zero", {"M": 256}, "do not make up"),
    ("ms-hyper", {"slices": (160, 160)}, "no slices"),
    ("ms-hyper", {"mixtures": 3}, "one Gaussian"),
    ("charm", {"rpe": True}, "one Gaussian"),
    ("ms-hyper-zero", {"learned_step": True}, "exclude each other"),
    ("ms-hyper", {"entropy": "flow"}, "no such parts"),
    ("ms-hyper", {"transforms": "swin"}, "no such parts"),
]


@pytest.mark.parametrize(("name", "change", "message"), IMPOSSIBLE)
def test_combinations_that_make_no_sense_are_refused(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS[name], **change)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=message):
        ModelConfig.from_json(PRESETS[name].to_json() | change)


def test_parts_combine() -> None:
    """Every transform with every entropy model: deployed, it decodes."""
    image = noise_picture(64, 80)
    crops = np.stack([noise_picture(128, 128, seed) for seed in range(2)])
    for transforms, name in (
        ("cheng", "elic-zero"),
        ("elic", "charm"),
        ("elic-sm", "ms-context"),
        ("balle", "cheng-attn"),
    ):
        config = ModelConfig.from_json(tiny(PRESETS[name]).to_json() | {"transforms": transforms})
        codec = Codec(config, export_tensors_of(config, crops), 0, 0)
        encoded = codec.encode(image)
        assert np.array_equal(codec.decompress(encoded.stream), encoded.reconstruction)


def export_tensors_of(config: ModelConfig, crops: np.ndarray) -> dict[str, np.ndarray]:
    from training.export import export_tensors

    return export_tensors(untrained_network(config, 0), crops)


def test_configurations_survive_json() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_json(config.to_json()) == config
