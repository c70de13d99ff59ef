"""Laws of training the 4th paper's networks: zero-centre quantisation, two stages, squared error, starting points."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from submission.config import NETWORKS, PRESETS, tiny
from submission.errors import UserError
from submission.ladder import Ladder
from submission.network import Network
from submission.sliced_model import SlicedModel
from tests.conftest import untrained_network
from tests.training_kit import CPU, photos
from training.export import export_ladder
from training.loop.options import add_options, recipe_of
from training.loop.plan import tasks
from training.loop.stage import run_stage, stage_before
from training.loop.train import Session
from training.loop.warm_start import initial_weights
from training.objective.latents import quantize
from training.objective.noise import Noise
from training.objective.zero_centre import rounded
from training.recipe import RECIPES, Recipe, Stage

ZERO = [config.name for config in NETWORKS if config.zero_centre]


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("quantizer", ["aun", "mix", "sua", "uq-s", "sua+ep/sua+ste", None])
def test_partial_stop_gradient(name: str, quantizer: str | None) -> None:
    """Only the rate moves means and scales; all values are those of the definition."""
    network = untrained_network(tiny(PRESETS[name]), 0)
    model = network.entropy_model
    assert isinstance(model, SlicedModel)
    torch.manual_seed(1)
    y, z = (3 * torch.randn(2, network.config.M, 8, 8)).requires_grad_(), 3 * torch.randn(2, network.config.N, 2, 2)
    stage = Stage("main", 1, 1e-4, "cosine", 64, 2, quantizer=quantizer or "aun", scale_bound=0.11)
    noise = Noise(torch.Generator().manual_seed(0)) if quantizer else None
    made = quantize(network, y, z, stage, noise, 0.5)
    weights = list(model.parameters())
    moved = torch.autograd.grad(made.y_hat.square().sum(), [y, *weights], retain_graph=True, allow_unused=True)
    assert moved[0] is not None and moved[0].abs().sum() > 0
    assert all(g is None or not g.any() for g in moved[1:])
    rates = torch.autograd.grad(made.y_bits.sum(), [y, *weights], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in rates if g is not None)
    predicting = [g for g, (n, _) in zip(rates[1:], model.named_parameters(), strict=True) if not n.startswith("prior")]
    assert all(g is not None and g.any() for g in predicting)
    if quantizer is None:
        expected = rounded(network, y, z.round())
        assert torch.allclose(made.y_hat, expected, atol=1e-5)
        assert torch.allclose(-torch.log2(model(expected, z.round(), 0.11)[0]), made.y_bits, atol=1e-2)


@pytest.mark.parametrize("name", ZERO)
def test_the_distortion_moves_means_where_it_is_told_to(name: str) -> None:
    """In the hard stage alone, and the values stay."""
    network = untrained_network(tiny(PRESETS[name]), 0)
    torch.manual_seed(1)
    y, z = 3 * torch.randn(2, network.config.M, 8, 8), 3 * torch.randn(2, network.config.N, 2, 2)
    stage = Stage("hard", 1, 1e-4, "cosine", 64, 2, scale_bound=1e-6)
    usual = quantize(network, y, z, stage, None)
    made = quantize(network, y, z, dataclasses.replace(stage, distortion_moves_means=True), None)
    assert torch.equal(made.y_hat, usual.y_hat) and torch.equal(made.y_bits, usual.y_bits)
    weights = [p for n, p in network.entropy_model.named_parameters() if not n.startswith("prior")]
    moved = torch.autograd.grad(made.y_hat.sum(), weights, allow_unused=True)
    assert any(g is not None and g.any() for g in moved)
    soft = dataclasses.replace(stage, name="main", distortion_moves_means=True)
    noise = Noise(torch.Generator().manual_seed(0))
    assert not usual.y_hat.requires_grad and not quantize(network, y, z, soft, noise, 0.5).y_hat.requires_grad


def test_noise_makes_zero_centre_the_same_as_none() -> None:
    """y + u - mu + mu: with additive noise only rounding tells the two apart."""
    config = tiny(PRESETS["charm"])
    plain, centred = (untrained_network(dataclasses.replace(config, zero_centre=zero), 0) for zero in (False, True))
    torch.manual_seed(1)
    y, z = 3 * torch.randn(2, config.M, 8, 8), 3 * torch.randn(2, config.N, 2, 2)
    stage = Stage("main", 1, 1e-4, "cosine", 64, 2)
    made = [quantize(n, y, z, stage, Noise(torch.Generator().manual_seed(0)), 0.5) for n in (plain, centred)]
    assert torch.allclose(made[0].y_hat, made[1].y_hat, atol=1e-5)
    assert torch.allclose(made[0].y_bits, made[1].y_bits, atol=1e-3)


def tiny_recipe(name: str) -> Recipe:
    """Two stages of a few steps."""
    main = Stage("main", 3, 1e-3, "cosine", 192, 2, metric="mse")
    hard = dataclasses.replace(main, name="hard", steps=2, scale_bound=1e-6)
    return Recipe(tiny(PRESETS[name]), (main, hard), (0.0067, 0.013), 0.013, (2, 2))


@pytest.mark.parametrize("name", ["ms-hyper-zero", "ms-context", "charm-zero", "elic-sm-zero"])
def test_from_training_to_pictures(name: str, tmp_path: Path) -> None:
    """main, then hard from it; the encoder stands still in hard; the export's picture is that of training."""
    recipe = tiny_recipe(name)
    run = tmp_path / "lambda_0.013"
    run.mkdir()
    session = Session(photos(), CPU)
    for stage in recipe.stages:
        run_stage(recipe.model, stage, 0.013, run, None, session)
    states = [torch.load(run / f"{n}.pt", weights_only=True)["network"] for n in ("main", "hard")]
    moved = {k.split(".")[0] for k in states[0] if not torch.equal(states[0][k], states[1][k])}
    assert moved == {"entropy_model", "g_s"}
    assert "val_psnr" in (run / "main.csv").read_text()
    network = Network(recipe.model)
    network.load_state_dict(states[1])
    crops = np.load(run / "calibration.npy")
    export_ladder([(network, 0.013, {"stage": "hard", "steps": 2, "metric": "mse"}, crops)], tmp_path / "weights")
    codec = Ladder.load(tmp_path / "weights").codec(0)
    encoded = codec.encode(crops[0])
    x = torch.from_numpy(crops[:1]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        y = network.g_a(x)
        made = quantize(network, y, network.h_a(y), recipe.stages[1], None)
        x_hat = network.post_filter(network.g_s(made.y_hat))
        expected = (x_hat.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.mean(np.abs(expected - encoded.reconstruction)) < 1.0


def test_recipes_of_two_stages() -> None:
    for config in NETWORKS:
        for recipe in (RECIPES[config.name], RECIPES[f"{config.name}-small"]):
            assert [s.name for s in recipe.stages] == ["main", "hard"]
            assert {s.metric for s in recipe.stages} == {"mse"} and recipe.base in recipe.lambdas
            assert [s.scale_bound for s in recipe.stages] == [0.11, 1e-6]
            with pytest.raises(UserError, match="no stage joint"):
                recipe.stage("joint")
    main, hard = RECIPES["elic-zero"].stages
    assert (main.steps, hard.steps, main.lr, main.crop, main.batch) == (450 * 2500, 100 * 2500, 1e-4, 256, 8)
    made = tasks(tiny_recipe("charm"), "random")
    assert [(t.lmbda, t.stage.name, t.needs) for t in made] == [
        (0.013, "main", ()),
        (0.013, "hard", ((0.013, "main"),)),
        (0.0067, "main", ((0.013, "main"),)),
        (0.0067, "hard", ((0.0067, "main"),)),
    ]


def test_where_a_stage_starts(tmp_path: Path) -> None:
    """hard starts from main where there is no joint, but not in a model whose recipe has one before it."""
    plain, filtered = PRESETS["charm-small"], PRESETS["small"]
    assert stage_before("hard", plain, tmp_path) == "main" and stage_before("joint", plain, tmp_path) == "main"
    assert stage_before("hard", filtered, tmp_path) == "joint" and stage_before("main", plain, tmp_path) is None
    (tmp_path / "joint.pt").touch()
    assert stage_before("hard", plain, tmp_path) == "joint"


def test_metric_changes_loss_and_lambdas() -> None:
    for name, metric in (("small", "mse"), ("charm-zero-small", "ms-ssim")):
        recipe = RECIPES[name].for_metric(metric)  # type: ignore[arg-type]
        assert {s.metric for s in recipe.stages} == {metric} and recipe.base in recipe.lambdas
        assert (max(recipe.lambdas) < 1) == (metric == "mse")
        assert RECIPES[name].for_metric(RECIPES[name].stages[0].metric) is RECIPES[name]


def test_the_command_line_knows_metric_and_impossible_models() -> None:
    def recipe(*arguments: str) -> Recipe:
        parser = argparse.ArgumentParser()
        add_options(parser)
        return recipe_of(parser.parse_args([*arguments, "--data", "photos"]))

    assert {s.metric for s in recipe("--preset", "small", "--metric", "mse").stages} == {"mse"}
    assert recipe("--preset", "charm-zero-small") == RECIPES["charm-zero-small"]
    assert recipe("--preset", "ms-hyper-small", "--learned-step").model.learned_step
    for name in ("ms-hyper-zero-small", "elic-zero"):
        with pytest.raises(UserError, match=r"--learned-step: .* exclude each other"):
            recipe("--preset", name, "--learned-step")


def test_what_can_start_from_weights(networks_folder: Path) -> None:
    """The models whose integers `training.network.dequantize` knows; the others say where to start instead."""
    names = [config.name for config in NETWORKS]
    config = tiny(PRESETS["cheng-attn"])
    network, original = Network(config), untrained_network(config, names.index("cheng-attn"))
    network.load_state_dict(initial_weights(networks_folder, "main", names.index("cheng-attn") + 1.0, config))
    y, z = 2 * torch.randn(1, config.M, 8, 8), 2 * torch.randn(1, config.N, 2, 2)
    with torch.no_grad():
        bits = [-torch.log2(n.entropy_model(y.round(), z.round(), 1e-6)[0]).sum() for n in (original, network)]
    assert float(bits[1]) == pytest.approx(float(bits[0]), rel=0.05)
    for name in ("ms-context", "charm-zero"):
        with pytest.raises(UserError, match="can start from a run folder"):
            initial_weights(networks_folder, "main", 1.0, tiny(PRESETS[name]))
