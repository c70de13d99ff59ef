"""Laws of the codec: round trip for every size, one result on every path, sizes as estimated, faults named."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from submission import bitstream, entropy_coding, latent_coding
from submission.codec import Codec
from submission.coder import Decoder, Encoder
from submission.config import PRESETS, ModelConfig
from submission.entropy_coding import TAPS, EntropyCoder
from submission.errors import BitstreamError, ImageError, WeightsError
from submission.integer import Int32, Linear, Weight
from submission.ladder import Ladder
from submission.latent_coding import LatentCoder
from submission.mixture import LOGIT_UNIT, MEAN_UNIT, ONE, PEAK, SCALE_UNIT, Rows, boundaries, weights_row
from submission.symbols import CERTAIN, SymbolDecoder, SymbolEncoder, settle
from tests.conftest import noise_picture, untrained

Int64 = NDArray[np.int64]

SIZES = [(1, 1), (1, 200), (63, 65), (64, 64), (129, 70)]


@pytest.fixture(scope="module")
def codec(ladder_folder: Path) -> Codec:
    return Ladder.load(ladder_folder).codec(1)


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_is_what_the_encoder_promised(codec: Codec, size: tuple[int, int]) -> None:
    image = noise_picture(*size)
    encoded = codec.encode(image)
    decoded = codec.decompress(encoded.stream)
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert np.array_equal(decoded, encoded.reconstruction)
    assert codec.compress(image) == encoded.stream


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 3.0, 300.0]))
def test_any_latents_come_back(ladder_folder: Path, rows: int, columns: int, seed: int, spread: float) -> None:
    entropy = Ladder.load(ladder_folder).codec(0).entropy
    rng = np.random.default_rng(seed)
    y = np.rint(rng.laplace(scale=spread, size=(4 * rows, 4 * columns, entropy.config.M))).astype(np.int32)
    z = np.rint(rng.laplace(scale=spread, size=(rows, columns, entropy.config.N))).astype(np.int32)
    data, y_hat, z_hat = entropy.encode(y, z)
    y_found, z_found = entropy.decode(data, y.shape[:2])
    assert np.array_equal(y_found, y_hat) and np.array_equal(z_found, z_hat)
    assert np.mean(np.clip(y, -PEAK, PEAK) != y_hat) < 0.01  # only all but certain symbols are replaced


def reference_parameters(entropy: LatentCoder, y_hat: Int32, z_hat: Int32) -> list[Int64]:
    """Mixture parameters position by position, in 64-bit integers."""
    assert isinstance(entropy, EntropyCoder)

    def layer(linear: Linear, sums: Int64) -> Int64:
        left = linear.left if linear.left is not None else 0
        shifted: Int64 = (sums + linear.bias << left) >> linear.right
        return shifted.clip(linear.lowest, linear.highest)

    def product(a: NDArray[np.integer], weight: Weight) -> Int64:
        sums: Int64 = np.matmul(a, weight.astype(np.int64), dtype=np.int64)
        return sums

    height, width, m = y_hat.shape
    hyper = entropy.hyper_features(z_hat).astype(np.int64)
    out = [np.empty((height, width, e.third.weight.shape[1]), np.int64) for e in entropy.estimators]
    for i in range(height):
        for j in range(width):
            taps = []
            for di, dj in TAPS:
                inside = 0 <= i + di < height and 0 <= j + dj < width
                taps.append(y_hat[i + di, j + dj] if inside else np.zeros(m, np.int32))
            for g, e in enumerate(entropy.estimators):
                sums = product(np.concatenate(taps), e.context.weight)
                if g:
                    sums = sums + product(y_hat[i, j, : m // 2], e.centre)
                a = layer(e.context, sums)
                a = layer(e.first, product(a, e.first.weight) + product(hyper[i, j], e.hyper))
                for linear in (e.second, e.third):
                    a = layer(linear, product(a, linear.weight))
                p = a
                if e.branch:
                    assert e.branch_shift is not None
                    a = np.clip(a >> e.branch_shift, -127, 127)
                    for linear in e.branch:
                        a = layer(linear, product(a, linear.weight))
                    p = p + a
                out[g][i, j] = p
    return out


def test_wavefront_equals_position_by_position(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = codec.entropy
    data, y_hat, z_hat = entropy.encode(*codec.latents(noise_picture(100, 150)))
    expected = reference_parameters(entropy, y_hat, z_hat)
    seen: list[Int32] = []
    original = EntropyCoder.parts

    def watched(self: EntropyCoder, p: Int32) -> Any:
        seen.append(p)
        return original(self, p)

    monkeypatch.setattr(EntropyCoder, "parts", watched)
    entropy.decode(data, y_hat.shape[:2])
    height, width = y_hat.shape[:2]
    order = [[(i, s - 3 * i) for i in range(height) if 0 <= s - 3 * i < width] for s in range(width + 3 * (height - 1))]
    assert len(seen) == 2 * len(order), "both groups of every wavefront"
    for k, p in enumerate(seen):
        at = order[k // 2]
        assert np.array_equal(p, [expected[k % 2][i, j] for i, j in at])


def test_a_latent_influences_only_what_comes_later(codec: Codec) -> None:
    entropy, m = codec.entropy, codec.config.M
    rng = np.random.default_rng(0)
    y = rng.integers(-3, 4, (8, 8, m)).astype(np.int32)
    z = rng.integers(-2, 3, (2, 2, codec.config.N)).astype(np.int32)
    before = reference_parameters(entropy, y, z)
    for i, j, channel in ((3, 4, 0), (3, 4, m - 1), (0, 7, m // 2)):
        changed = y.copy()
        changed[i, j, channel] += 40
        after = reference_parameters(entropy, changed, z)
        for g in (0, 1):
            differs = (after[g] != before[g]).any(2)
            assert not differs[:i].any() and not differs[i, :j].any()
            assert not differs[i, j] or (g == 1 and channel < m // 2)
            assert differs[i + 1 :].any() or j == 7 or differs[i, j + 1 :].any()


def test_streams_are_as_long_as_the_model_says(codec: Codec) -> None:
    """Real size against the entropy of the integer probabilities actually used."""
    image = noise_picture(256, 256)
    y, z = codec.latents(image)
    bits = 0.0

    class Counting:
        def encode(self, starts: Int32, widths: Int32) -> None:
            nonlocal bits
            assert (starts >= 0).all() and (widths >= 1).all() and (starts + widths <= 2**24).all()
            bits -= np.log2(widths / 2**24).sum()

    codec.entropy._code(SymbolEncoder(codec.entropy.tables, Counting()), y.shape[:2], y, z)
    coded = 8 * len(codec.entropy.encode(y, z)[0])
    assert bits - 8 <= coded <= bits * 1.0005 + 40

    class Checking(Decoder):
        def decode(self, rows: Rows) -> Int32:
            assert (rows >= 0).all() and (rows.sum(1) == 2**24 - rows.shape[1]).all()
            return super().decode(rows)

    with mock.patch.object(latent_coding, "Decoder", Checking):
        codec.entropy.decode(codec.entropy.encode(y, z)[0], y.shape[:2])


def test_integer_model_follows_the_float_model(codec: Codec) -> None:
    """Mixture parameters of the exported integers against those of the network they came from."""
    network = untrained(1)
    y, z = codec.latents(noise_picture(192, 192))
    with torch.no_grad():
        y_float, z_float = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (y, z))
        expected = network.entropy_model.parameters_of(y_float, z_float)
    units = torch.tensor([1 / LOGIT_UNIT, 1 / MEAN_UNIT, 1 / SCALE_UNIT])
    for found, real in zip(reference_parameters(codec.entropy, y, z), expected, strict=True):
        k, size = codec.config.mixtures, codec.config.M // 2
        integers = torch.from_numpy(found).permute(2, 0, 1).view(k, 3, size, *y.shape[:2]) * units.view(3, 1, 1, 1)
        floats = real[0].view(k, 3, size, *y.shape[:2])
        spread = (floats - floats.mean((3, 4), keepdim=True)).std()
        # 7-bit weights and 8-bit activations err by about 2 % a layer, and eleven layers lie behind a parameter
        assert (integers - floats).std() < 0.02 * 11**0.5 * 1.5 * spread + 1 / 64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, ONE), min_size=1, max_size=20))
def test_rows_always_suit_the_coder(cuts: list[int]) -> None:
    row = weights_row(np.array([0, *sorted(cuts), ONE], dtype=np.int32)[:, None])
    assert (row >= 0).all() and row.sum() == 2**24 - row.shape[1]
    size = row.shape[1]
    sums, index = np.array([0, *sorted(cuts), ONE], np.int32), np.arange(size + 1, dtype=np.int32)
    assert boundaries(sums, index, size).tolist() == [0, *np.cumsum(row + 1).tolist()]


def test_every_single_byte_of_damage_is_noticed(codec: Codec) -> None:
    image = noise_picture(64, 64)
    stream = codec.compress(image)
    expected = codec.decompress(stream)
    rng = np.random.default_rng(0)
    for position in range(len(stream)):
        damaged = bytearray(stream)
        damaged[position] ^= int(rng.integers(1, 256))
        with pytest.raises(BitstreamError):
            codec.decompress(bytes(damaged))
    for length in range(len(stream)):
        with pytest.raises(BitstreamError):
            codec.decompress(stream[:length])
    assert np.array_equal(codec.decompress(stream), expected)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_random_bytes_are_refused(ladder_folder: Path, data: bytes) -> None:
    with pytest.raises(BitstreamError):
        Ladder.load(ladder_folder).decompress(data)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 31), st.integers(1, 65535), st.integers(1, 65535), st.binary(max_size=40))
def test_header_round_trip(quality: int, height: int, width: int, payload: bytes) -> None:
    header = bitstream.Header(quality, height, width, 7, 12345)
    assert bitstream.read(bitstream.write(header, payload)) == (header, payload)


def test_garbage_with_a_valid_header_is_refused(codec: Codec) -> None:
    """Right checksum over the bytes, wrong content: the checksum over the latents finds it."""
    for size in ((64, 64), (65535, 65535)):
        header = bitstream.Header(codec.quality, *size, codec.model, 0)
        with pytest.raises(BitstreamError):
            codec.decompress(bitstream.write(header, bytes(range(100))))


def test_streams_of_another_model_are_recognised(ladder_folder: Path) -> None:
    ladder = Ladder.load(ladder_folder)
    stream = ladder.codec(0).compress(noise_picture(64, 64))
    with pytest.raises(BitstreamError, match="other weights"):
        ladder.codec(1).decompress(stream)


def test_pictures_that_are_not_rgb_are_refused(codec: Codec) -> None:
    images: list[Any] = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
    for image in images:
        with pytest.raises(ImageError):
            codec.compress(image)


def test_overflowing_and_incomplete_models_are_refused(codec: Codec, ladder_folder: Path) -> None:
    from submission.ladder import read_safetensors

    path = ladder_folder / "model_1.safetensors"
    tensors = {k.removeprefix("entropy."): v for k, v in read_safetensors(path, path.read_bytes()).items()}
    broken = {**tensors, "h_s.0.weight": np.full_like(tensors["h_s.0.weight"], 100)}
    with pytest.raises(WeightsError, match="out of range"):
        EntropyCoder(codec.config, broken)
    for prior in ([[2**24 - 2]], [[2**24 - 2, 0]]):  # whole, but of fewer values than the coder takes
        with pytest.raises(WeightsError, match="prior of z"):
            EntropyCoder(codec.config, {**tensors, "prior": np.array(prior, np.int32)})
    del tensors["groups.1.second.bias"]
    with pytest.raises(WeightsError, match=r"groups\.1\.second\.bias"):
        EntropyCoder(codec.config, tensors)


@pytest.mark.parametrize("change", [{"M": 18}, {"N": 10}, {"analysis": (8, 6, 8)}, {"synthesis": (8, 8, 9)}, {"K": 3}])
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match="configuration not understood"):
        ModelConfig.from_json(PRESETS["tiny"].to_json() | change)


def test_every_value_has_its_place_whatever_the_mixture_says(codec: Codec) -> None:
    """Certain, narrow, wide and any, with escapes: a decoder finds in its rows what the encoder has settled."""
    entropy = codec.entropy
    assert isinstance(entropy, EntropyCoder)
    values = np.arange(-PEAK, PEAK + 1, dtype=np.int32)
    kinds = set()
    for log_scale in (-100, -20, 0, 40, 190):  # 1/32 octaves
        for mean in (-127 * 64, -50, 0, 500, 127 * 64):
            p = np.zeros((len(values), 3 * entropy.config.mixtures), np.int32)
            p[:, 1::3], p[:, 2::3] = mean, log_scale
            settled = settle(entropy.tables, entropy.parts(p), values)
            kinds |= set(settled.kinds.tolist())
            sink = Encoder()
            encoded = SymbolEncoder(entropy.tables, sink).code(entropy.parts(p), values)
            found = SymbolDecoder(entropy.tables, Decoder(sink.bytes())).code(entropy.parts(p))
            assert (found == encoded).all() and (found == settled.values).all()
            certain = settled.kinds == CERTAIN
            assert (found[~certain] == values[~certain]).all() and len(set(found[certain].tolist())) <= 1
            assert len(sink.bytes()) <= settled.bits().sum() / 8 + 4
    assert kinds == {0, 1, 2, CERTAIN}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.003, 0.1, 1]))
def test_wavefronts_settled_together_are_those_of_a_decoder(seed: int, rows: int, columns: int, share: float) -> None:
    """The shipped model is certain of most symbols: given otherwise, they spoil what their neighbours depend on."""
    entropy = Ladder.load().codec(0).entropy
    assert isinstance(entropy, EntropyCoder)
    rng = np.random.default_rng(seed)
    y = rng.integers(-20, 21, (4 * rows, 4 * columns, entropy.config.M), np.int32)
    y *= rng.random(y.shape) < share
    z = rng.integers(-2, 3, (rows, columns, entropy.config.N), np.int32)
    with mock.patch.object(entropy_coding, "MOST_FRONTS", 1):
        single, y_hat, _ = entropy.encode(y, z)
    assert (y_hat != y).any() or np.count_nonzero(y) < 30  # of a few it may be certain of none
    for together in (20, 10**6):
        with mock.patch.multiple(entropy_coding, TOGETHER=together, MOST_FRONTS=1000):
            data, found, _ = entropy.encode(y, z)
            assert data == single and (found == y_hat).all()
    assert (entropy.decode(single, y.shape[:2])[0] == y_hat).all()
