"""Laws of the learned quantisation step: 1 at first, rate of scaled noise, exact round trips, fixed in stage 4."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from submission.codec import Codec
from submission.config import PRESETS, ModelConfig
from submission.entropy_model import EntropyModel
from submission.errors import WeightsError
from submission.ladder import Ladder
from submission.latent_coding import STEP_BITS
from submission.network import Network
from tests.conftest import convolution, noise_picture
from training.data.pictures import Pictures
from training.export import export_ladder, export_tensors
from training.loop.stage import run_stage
from training.loop.train import Session
from training.network.device import Device
from training.objective.latents import quantize
from training.objective.noise import Noise
from training.recipe import RECIPES

CONFIG = dataclasses.replace(PRESETS["tiny"], learned_step=True)
MAIN = RECIPES["tiny"].stage("main")


def scaled_network(seed: int = 0) -> Network:
    """A network whose steps, symbols and hyper-latents are spread out."""
    torch.manual_seed(seed)
    network = Network(CONFIG)
    assert network.h_sq is not None
    with torch.no_grad():
        convolution(network.g_a[-2]).weight.mul_(20)
        last = network.h_sq[-1]
        assert isinstance(last, nn.Sequential)
        nn.init.normal_(convolution(last[0]).weight, std=0.02)
    return network


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return export_tensors(scaled_network(), np.stack([noise_picture(192, 192, seed) for seed in range(2)]))


@pytest.fixture(scope="module")
def codec(tensors: dict[str, np.ndarray]) -> Codec:
    return Codec(CONFIG, tensors, 0, 0)


def test_off_by_default_and_absent_from_older_configurations() -> None:
    old = PRESETS["tiny"].to_json()
    del old["learned_step"]
    assert ModelConfig.from_json(old) == PRESETS["tiny"]
    assert ModelConfig.from_json(CONFIG.to_json()) == CONFIG
    assert not any("h_sq" in name for name in Network(PRESETS["tiny"]).state_dict())


def test_without_it_latents_are_symbols(ladder_folder: Path) -> None:
    entropy = Ladder.load(ladder_folder).codec(0).entropy
    symbols = np.arange(-127, 128, dtype=np.int32)[None, None]
    assert np.array_equal(entropy.dequantize(symbols, np.zeros((1, 1, 8), np.int32)), symbols)


def test_steps_are_one_at_first() -> None:
    network = Network(CONFIG)
    step = network.step_size(torch.randn(1, 8, 2, 3))
    assert isinstance(step, Tensor) and step.shape == (1, 16, 8, 12) and torch.equal(step, torch.ones_like(step))


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (130, 200)])
def test_round_trip_is_exact(codec: Codec, size: tuple[int, int]) -> None:
    image = noise_picture(*size)
    encoded = codec.encode(image)
    assert np.array_equal(codec.decompress(encoded.stream), encoded.reconstruction)
    symbols, z_hat = codec.latents(image)
    data, y_hat, _ = codec.entropy.encode(symbols, z_hat)
    found = codec.entropy.decode(data, symbols.shape[:2])
    assert np.array_equal(found[0], y_hat) and np.array_equal(found[1], z_hat)


def test_the_decoder_finds_y_within_half_a_step(
    tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submission.codec.fast_bfloat16", lambda: False)  # g_a below is in float32
    codec = Codec(CONFIG, tensors, 0, 0)
    image = noise_picture(128, 192)
    symbols, z_hat = codec.latents(image)
    steps = codec.entropy.step_sizes(z_hat) / 2**STEP_BITS
    assert steps.min() < 0.8 and steps.max() > 1.25 and len(np.unique(steps)) > 20
    with torch.no_grad():
        y = codec.transforms.g_a(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0)
    error = np.abs(codec.entropy.dequantize(symbols, z_hat) - y.numpy())
    assert (error <= steps / 2 + 1e-3).all()
    assert np.array_equal(codec.entropy.dequantize(symbols, z_hat), (symbols * steps).astype(np.float32))


def test_integer_steps_follow_those_of_training(codec: Codec) -> None:
    _, z_hat = codec.latents(noise_picture(128, 192))
    with torch.no_grad():
        expected = scaled_network().step_size(torch.from_numpy(z_hat).permute(2, 0, 1)[None].float())
    assert isinstance(expected, Tensor)
    log2 = expected[0].log2().numpy()
    error = np.log2(codec.entropy.step_sizes(z_hat).transpose(2, 0, 1) / 2**STEP_BITS) - log2
    # 7-bit weights and 8-bit activations err by about 2 % a layer, and steps are in 1/32 of an octave
    assert error.std() < 0.02 * 2**0.5 * 1.5 * log2.std() + 1 / 64


def test_scaled_noise_and_its_rate() -> None:
    """y_hat = y + step * u, and bits are those of an interval as wide as the step under the unscaled density."""
    network = scaled_network().double()
    y, z = torch.randn(1, 16, 4, 4).double() * 5, torch.randn(1, 8, 1, 1).double() * 5
    made = quantize(network, y, z, MAIN, Noise(torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5
    z_hat = z + torch.rand(z.shape, generator=generator, dtype=z.dtype) - 0.5
    step = network.step_size(z_hat)
    assert isinstance(step, Tensor) and isinstance(network.entropy_model, EntropyModel)
    assert torch.allclose(made.y_hat, y + step * u)

    group = slice(0, 8)
    p = network.entropy_model.parameters_of(y / step + u, z_hat)[0]
    logits, means, scales = p.view(1, 3, 3, 8, 4, 4).unbind(2)
    scales = torch.exp2(scales).clamp(MAIN.scale_bound, 64) * step[:, group]
    mixture = torch.distributions.Normal(means * step[:, group], scales)
    edges = (made.y_hat + step / 2, made.y_hat - step / 2)
    upper, lower = (mixture.cdf(edge[:, group].unsqueeze(1)) for edge in edges)
    mass = (torch.softmax(logits, 1) * (upper - lower)).sum(1)
    assert torch.allclose(made.y_bits[:, group], -torch.log2(mass.clamp(min=1e-9)), rtol=1e-4, atol=1e-4)


def test_its_gradient_is_right() -> None:
    network = scaled_network().double()
    assert network.h_sq is not None
    y, z = torch.randn(1, 16, 4, 4).double() / 2, torch.randn(1, 8, 1, 1).double() * 2
    weight = torch.randn(1, 16, 4, 4).double()

    def loss() -> Tensor:
        made = quantize(network, y, z, MAIN, Noise(torch.Generator().manual_seed(1)))
        return made.y_bits.sum() + (made.y_hat * weight).sum()

    loss().backward()
    for parameter in network.h_sq.parameters():
        assert parameter.grad is not None
        index = int(parameter.grad.abs().argmax())
        ends = []
        for h in (1e-6, -2e-6):
            with torch.no_grad():
                parameter.view(-1)[index] += h
                ends.append(float(loss()))
        with torch.no_grad():
            parameter.view(-1)[index] += 1e-6
        assert float(parameter.grad.view(-1)[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_stages_train_it_and_hard_leaves_it(tmp_path: Path) -> None:
    """From the first stage to a stream: main and joint move the step, the later ones that fix the encoder do not."""
    recipe = dataclasses.replace(RECIPES["tiny"], model=CONFIG)
    photos = Pictures.of([noise_picture(200, 210, s) for s in range(4)], [noise_picture(200, 200, 9)])
    states = {}
    for name in ("main", "post_filter", "joint", "hard"):
        stage = dataclasses.replace(recipe.stage(name), steps=3)
        run_stage(recipe.model, stage, 4.0, tmp_path, None, Session(photos, Device("cpu", bf16=False)))
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)["network"]
        states[name] = torch.cat([v.flatten() for k, v in state.items() if k.startswith("h_sq.")])
    assert states["main"][-1] != 0  # a bias of the last layer, zero at first
    assert torch.equal(states["main"], states["post_filter"])
    assert not torch.equal(states["post_filter"], states["joint"])
    assert torch.equal(states["joint"], states["hard"])

    network = Network(CONFIG)
    network.load_state_dict(state)
    crops = np.stack([noise_picture(192, 192, seed) for seed in range(2)])
    export_ladder([(network, 4.0, {"stage": "hard", "steps": 3}, crops)], tmp_path / "weights")
    ladder = Ladder.load(tmp_path / "weights")
    encoded = ladder.codec(0).encode(crops[0])
    assert np.array_equal(ladder.decompress(encoded.stream), encoded.reconstruction)


@pytest.mark.parametrize("damage", ["missing", "short", "zero", "huge"])
def test_a_model_file_with_a_bad_table_is_refused(tensors: dict[str, np.ndarray], damage: str) -> None:
    broken, name = dict(tensors), "entropy.tables.step"
    table = broken.pop(name).copy()
    if damage != "missing":
        table[3] = {"short": table[3], "zero": 0, "huge": 2**25}[damage]
        broken[name] = table[:-1] if damage == "short" else table
    with pytest.raises(WeightsError, match=r"tables\.step"):
        Codec(CONFIG, broken, 0, 0)
