"""Refinement: its rate and its MS-SSIM are those of the codec and the organisers, and what it finds is better."""

import platform
import resource
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import submission.memory
from metrics.clic import ms_ssim
from ratecontrol import measure
from ratecontrol.refinement import memory
from ratecontrol.refinement import refine as module
from ratecontrol.refinement.memory import kept_memory
from ratecontrol.refinement.rate import Rate, floor
from ratecontrol.refinement.refine import blocks, refine
from submission.codec import Codec
from submission.config import PRESETS
from submission.entropy_coding import EntropyCoder
from submission.files import Picture
from submission.ladder import DEFAULT_WEIGHTS, Ladder
from submission.latent_coding import Latents
from submission.precision import fast_bfloat16
from tests.commands import assert_refused, call
from tests.conftest import noise_picture
from tests.test_learned_step import CONFIG, scaled_network
from training.export import export_tensors

CPU = torch.device("cpu")


def channels_first(latent: Latents) -> torch.Tensor:
    return torch.from_numpy(latent).permute(2, 0, 1)[None].float()


def spread(codec: Codec, height: int, width: int, seed: int = 0) -> tuple[Latents, Latents]:
    """Integer latents of size [height, width] that differ from place to place, as a decoder finds them."""
    rng = np.random.default_rng(seed)
    y = np.rint(rng.laplace(0, 2, (height, width, codec.config.M))).astype(np.int32)
    z = np.rint(rng.laplace(0, 1, (height // 4, width // 4, codec.config.N))).astype(np.int32)
    _, y, z = codec.entropy.encode(y, z)
    return y, z


@pytest.mark.parametrize("quality", [0, 5])
def test_surrogate_computes_the_integers_of_the_codec(quality: int) -> None:
    codec = Ladder.load(DEFAULT_WEIGHTS).codec(quality)
    y, z = spread(codec, 8, 12)
    assert isinstance(codec.entropy, EntropyCoder)
    rate = Rate(codec.config, codec.entropy)
    features = rate.hyper_features(channels_first(z))
    integers = codec.entropy.hyper_features(z)
    assert (features[0].permute(1, 2, 0).numpy() == integers).all()
    row, column = 5, 7
    padded = np.pad(y, ((2, 2), (2, 2), (0, 0))).astype(np.int8)
    window = [padded[row + 2 + i, column + 2 + j] for i in (-2, -1) for j in range(-2, 3)]
    window += [padded[row + 2, column + j] for j in (0, 1)]
    inputs = np.concatenate(window)[None]
    for group, estimator in enumerate(codec.entropy.estimators):
        known = y[row : row + 1, column, : len(estimator.centre)].astype(np.int8)
        sums = inputs.astype(np.int32) @ estimator.context.weight.astype(np.int32)
        hyper = integers[row, column][None].astype(np.int32) @ estimator.hyper.astype(np.int32)
        expected = estimator(sums, hyper, known)[0]
        found = rate.groups[group](channels_first(y), features)[0, :, row, column]
        assert (found.numpy() == expected).all()


def test_surrogate_knows_the_size_of_the_stream(ladder_folder: Path) -> None:
    for codec in (Ladder.load(ladder_folder).codec(1), Ladder.load(DEFAULT_WEIGHTS).codec(3)):
        _, y, z = codec.entropy.encode(*codec.latents(noise_picture(192, 256)))
        assert isinstance(codec.entropy, EntropyCoder)
        rate = Rate(codec.config, codec.entropy)
        mixtures = rate.mixtures(channels_first(y), rate.hyper_features(channels_first(z)))
        bits = rate.y_cost(channels_first(y), mixtures).sum() + rate.z_cost(channels_first(z)).sum()
        payload, _, _ = codec.entropy.encode(y, z)
        assert float(bits) / 8 == pytest.approx(len(payload), rel=0.01, abs=4)


def test_floor_passes_the_gradient() -> None:
    x = torch.tensor([-1.5, 0.25, 3.0], requires_grad=True)
    assert floor(x).tolist() == [-2, 0, 3]
    floor(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]


def loss(codec: Codec, picture: Picture, latents: tuple[Latents, Latents], lmbda: float) -> float:
    """What the real stream and the real decoder make of R + lambda (1 - MS-SSIM), in bits."""
    height, width = int(picture.shape[0]), int(picture.shape[1])
    encoded = codec.encode_latents(*latents, height, width)
    assert (codec.decompress(encoded.stream) == encoded.reconstruction).all()
    return 8 * len(encoded.stream) + lmbda * height * width * (1 - ms_ssim(picture, encoded.reconstruction))


@pytest.mark.parametrize("size", [(192, 240), (181, 200)])
def test_refined_latents_are_better(size: tuple[int, int]) -> None:
    codec, picture = Ladder.load(DEFAULT_WEIGHTS).codec(2), noise_picture(*size)
    before = loss(codec, picture, codec.latents(picture), 3)
    few, more = (loss(codec, picture, refine(codec, picture, 3, steps, CPU), 3) for steps in (4, 12))
    assert more < few < before
    assert more < 0.97 * before


def test_lambda_trades_bytes_for_quality() -> None:
    codec, picture = Ladder.load(DEFAULT_WEIGHTS).codec(2), noise_picture(192, 192)
    sizes, scores = [], []
    for lmbda in (1, 9):
        encoded = codec.encode_latents(*refine(codec, picture, lmbda, 10, CPU), 192, 192)
        sizes.append(len(encoded.stream))
        scores.append(ms_ssim(picture, encoded.reconstruction))
    assert sizes == sorted(sizes) and scores == sorted(scores)
    assert sizes[0] < sizes[1]


def test_z_is_refined_too(ladder_folder: Path) -> None:
    """Random models write a z that costs more than it helps."""
    codec, picture = Ladder.load(ladder_folder).codec(0), noise_picture(192, 192)
    y, z = codec.latents(picture)
    better_y, better_z = refine(codec, picture, 1, 12, CPU)
    assert (z != better_z).any() and (y != better_y).any()
    assert loss(codec, picture, (better_y, better_z), 1) < loss(codec, picture, (y, z), 1)


def test_same_every_time() -> None:
    codec, picture = Ladder.load(DEFAULT_WEIGHTS).codec(1), noise_picture(128, 128)
    one, two = (refine(codec, picture, 3, 6, CPU) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


def test_one_step_is_the_encoder(ladder_folder: Path) -> None:
    codec, picture = Ladder.load(ladder_folder).codec(2), noise_picture(100, 130)
    for a, b in zip(refine(codec, picture, 3, 1, CPU), codec.latents(picture), strict=True):
        assert (a == b).all()


def test_large_pictures_in_blocks() -> None:
    """Of 192 pixels: in smaller ones MS-SSIM has not all of its scales."""
    codec, picture = Ladder.load(DEFAULT_WEIGHTS).codec(2), noise_picture(360, 370)
    before = loss(codec, picture, codec.latents(picture), 3)
    with mock.patch.object(module, "BLOCK", 3):
        assert [(r.stop - r.start, c.stop - c.start) for r, c in blocks(360, 370)] == [(3, 3)] * 4
        assert loss(codec, picture, refine(codec, picture, 3, 8, CPU), 3) < 0.97 * before


def test_what_does_not_fit_into_memory_is_refused(ladder_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """Where it could still be encoded and decoded."""
    config, fast = Ladder.load(ladder_folder).codec(0).config, fast_bfloat16()
    limits = (
        submission.memory.encoding_bytes(config, 192, 240),
        submission.memory.decoding_bytes(config, 192, 240, fast),
    )
    enough = max(limits)
    assert enough < memory.refining_bytes(config, 192 * 256, fast)
    words = (measure.main, pictures, "--weights", ladder_folder, "--jobs", 1, "--qualities", 0)
    with mock.patch.object(submission.memory, "free_bytes", lambda: enough):
        assert call(*words, "-o", tmp_path / "plain.csv").code == 0
        done = call(*words, "--refine", 2, "-o", tmp_path / "refined.csv")
    assert_refused(done, "a.png", "refining 240x192 takes about 0.", "GB are free", "leave --refine away")


def test_estimates_of_memory_grow() -> None:
    sizes = [
        memory.refining_bytes(PRESETS["small"], side**2, fast) for side in (64, 1024, 2048) for fast in (True, False)
    ]
    assert sizes == sorted(sizes) and sizes[-1] < 8e9


def test_learned_steps_keep_z() -> None:
    picture = noise_picture(128, 128)
    codec = Codec(CONFIG, export_tensors(scaled_network(), noise_picture(192, 192)[None]), 0, 0)
    y, z = codec.latents(picture)
    better_y, better_z = refine(codec, picture, 3, 8, CPU)
    assert (z == better_z).all() and (y != better_y).any()
    assert loss(codec, picture, (better_y, better_z), 3) < loss(codec, picture, (y, z), 3)


def faults_of_large_tensors() -> int:
    """Pages that the kernel hands out for 64 MiB, made and freed ten times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_a_while() -> None:
    with kept_memory():
        faults_of_large_tensors()
        kept = faults_of_large_tensors()
    assert faults_of_large_tensors() > 2 * kept


def test_memory_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_libc", None)
    with kept_memory():
        pass
