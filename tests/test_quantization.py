"""Laws of the quantizers: gradients are those of expectations, annealing ends in rounding, noise is determined."""

import argparse
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from submission.config import PRESETS
from submission.entropy_model import EntropyModel, FactorizedPrior, mixture_likelihood
from submission.errors import UserError
from submission.network import Network
from training import table2
from training.loop.options import add_metric, add_quantizer, recipe_of
from training.network.device import Device
from training.objective.forward import forward
from training.objective.latents import quantize
from training.objective.loss import Padded
from training.objective.noise import Noise
from training.objective.quantization import (
    NAMED,
    SURROGATES,
    denoise,
    gumbel_sharpness,
    sharpness,
    soft_round,
    soft_round_inverse,
    term,
    terms,
)
from training.recipe import RECIPES
from training.table2 import ROWS, SCALES, agrees, gradient, likelihood, risk

CPU = Device("cpu", bf16=False)
HARDEST = {"sga": 1e5}  # its sigmoid is slow to harden; tau of the others, 200, overflows nothing in float64

Function = Callable[[Tensor], Tensor]


def grid(n: int = 2**14) -> Tensor:
    """Equally probable values of the noise."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5


def expectation(forward: str, y: float, tau: float, f: Function, n: int = 2**14) -> float:
    u = grid(n)
    return float(f(SURROGATES[forward].forward(torch.full_like(u, y)[:, None], u[:, None], tau)).mean())


def slope(forward: str, y: float, tau: float, f: Function) -> float:
    """Of the expectation, by finite differences; where the noise decides between two values, the grid's steps must
    stay small beside the difference."""
    h = 1 / 64 if forward in ("sr", "sra") else 1e-3
    return (expectation(forward, y + h, tau, f, 2**16) - expectation(forward, y - h, tau, f, 2**16)) / (2 * h)


def mixture_bits(v: Tensor) -> Tensor:
    """A mixture of three Gaussians, as the entropy model has it."""
    p = torch.tensor([0.2, -0.8, -1.0, -0.5, 0.7, 0.3, 0.0, 0.1, 1.0], dtype=v.dtype)
    return -torch.log2(
        mixture_likelihood(v.reshape(-1, 1, 1, 1), p.view(1, 9, 1, 1).expand(v.numel(), 9, 1, 1), 3, 1e-6)
    )


def prior_bits(v: Tensor) -> Tensor:
    torch.manual_seed(3)
    prior = FactorizedPrior(1).double().requires_grad_(False)
    return -torch.log2(prior.likelihood(v.reshape(-1, 1, 1, 1)))


@pytest.mark.parametrize("bits", [mixture_bits, prior_bits])
@pytest.mark.parametrize("tau", [2.0, 5.0])
@pytest.mark.parametrize("name", [n for n, s in SURROGATES.items() if "ep" in s.estimators])
def test_expected_gradient_is_the_slope_of_the_expected_rate(name: str, tau: float, bits: Function) -> None:
    for at in (-1.3, 0.12, 0.4, 1.77):
        y = torch.full((1, 1, 1, 1), at, dtype=torch.float64, requires_grad=True)
        part = term(f"{name}+ep")
        value = part.sample(y, torch.full_like(y, 0.3), tau)
        made = part.expected_bits(y, value, tau, lambda v: torch.exp2(-bits(v).reshape(v.shape)))
        assert torch.allclose(made.flatten(), bits(value).flatten())  # the value is still that at the sample
        (found,) = torch.autograd.grad(made.sum(), y)
        assert float(found) == pytest.approx(slope(name, at, tau, bits), rel=0.01, abs=0.01)


@pytest.mark.parametrize("name", ["aun", "sua", "sua-n", "sga"])
def test_pathwise_gradient_is_unbiased(name: str) -> None:
    u = grid()[:, None]
    for at in (-1.3, 0.12, 0.4, 1.77):
        y = torch.full_like(u, at, requires_grad=True)
        (found,) = torch.autograd.grad(torch.sin(2 * term(f"{name}+pge").sample(y, u, 3.0)).sum(), y)
        assert float(found.mean()) == pytest.approx(slope(name, at, 3.0, lambda v: torch.sin(2 * v)), abs=2e-3)


def test_straight_through_skips_the_hard_or_steep_part_only() -> None:
    y, u = torch.tensor([[0.3, -1.2, 2.45]], dtype=torch.float64, requires_grad=True), torch.tensor([[0.4, -0.1, 0.2]])
    (inner,) = torch.autograd.grad(soft_round(y, 5.0).sum(), y)
    for name, surrogate in SURROGATES.items():
        if "ste" in surrogate.estimators:
            value = term(f"{name}+ste").sample(y, u, 5.0)
            assert torch.allclose(value, surrogate.forward(y, u, 5.0))
            (found,) = torch.autograd.grad(value.sum(), y)
            assert torch.allclose(found, inner if name in ("sua", "sra") else torch.ones_like(y)), name


def test_gradient_of_soft_rounding() -> None:
    y = torch.tensor([0.1, 0.4, 0.5, 0.93], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(soft_round(y, 6.0).sum(), y)
    r = (y - 0.5).detach()
    assert torch.allclose(found, 6 / torch.cosh(6 * r) ** 2 / (2 * math.tanh(3)))


@settings(max_examples=100, deadline=None)
@given(st.floats(-100, 100), st.floats(0.001, 12))
def test_soft_rounding_is_inverted(value: float, tau: float) -> None:
    y = torch.tensor(value, dtype=torch.float64)
    assert torch.allclose(soft_round_inverse(soft_round(y, tau), tau), y, atol=1e-5)
    for side in (-0.5, 0.5):  # the ends of SUA's noise lead to those of a unit around y
        assert abs(float(denoise(soft_round(y, tau) + side * (1 - 1e-12), tau) - y - side)) < 1e-4


def test_expected_values() -> None:
    y = 3.3
    soft = float(soft_round(torch.tensor(y, dtype=torch.float64), 4.0))
    means = {"aun": y, "uq-i": y, "uq-s": y, "sr": y, "sua-n": soft, "sra": soft, "sha": soft, "round": 3.0}
    for name, mean in means.items():
        assert expectation(name, y, 4.0, lambda v: v) == pytest.approx(mean, abs=1e-4), name
    # best guesses, weighted, are y again only where y is uniform: over a unit of y they average to its middle
    units = [expectation("sua", 3 + k / 64, 4.0, lambda v: v, 2**10) for k in range(64)]
    assert sum(units) / 64 == pytest.approx(3 + 63 / 128, abs=1e-3)


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_limits_of_annealing(name: str) -> None:
    y, u = torch.linspace(-2.97, 3.01, 173, dtype=torch.float64)[:, None], grid(8)[3].expand(173, 1)
    forward = SURROGATES[name].forward
    hard, soft = forward(y, u, HARDEST.get(name, 200.0)), forward(y, u, 0.0)
    away = ((y % 1 - 0.5).abs() > 0.05).flatten()  # from where rounding jumps
    ends = {
        "aun": (y + u, y + u),
        "sua-n": (torch.round(y) + u, y + u),
        "sua": (torch.round(y), y + u),
        "sha": (torch.round(y), y),
        "sra": (torch.round(y), torch.floor(y + u + 0.5)),
        "sr": (torch.floor(y + u + 0.5),) * 2,
        "uq-i": (torch.round(y + u) - u,) * 2,
        "uq-s": (torch.round(y + u) - u,) * 2,
    }
    last, first = ends.get(name, (torch.round(y), soft))
    assert torch.allclose(hard[away], last[away], atol=0.06)
    assert torch.allclose(soft, first)


def test_schedules() -> None:
    assert [sharpness(p, 12.0) for p in (0, 200 / 450, 400 / 450, 1)] == pytest.approx([1, 6.5, 12, 12])
    temperatures = [1 / gumbel_sharpness(n / 2000, 12.0) for n in (0, 700, 1700, 2000)]
    assert temperatures == pytest.approx([0.5, 0.5, 0.5 * math.exp(-1), 0.5 * math.exp(-1.3)])


def test_shared_noise_is_shared_within_a_sample_and_universal_noise_is_that_of_aun() -> None:
    y = torch.rand(2, 3, 4, 5)
    u = torch.rand(y.shape) - 0.5
    shared = SURROGATES["uq-s"].forward(y, u, 0.0)
    offsets = (shared - shared.round()).flatten(1)
    assert (offsets - offsets[:, :1]).abs().max() < 1e-6 and (offsets[0, 0] - offsets[1, 0]).abs() > 1e-3
    error = SURROGATES["uq-i"].forward(torch.full((2**14, 1), 0.37), grid()[:, None].float(), 0.0) - 0.37
    assert torch.allclose(error.flatten().sort().values, grid().float(), atol=1e-4)


def test_rate_mismatch_of_noise() -> None:
    """Expected bits of noise and of rounding, y ~ N(0, s): noise needs more where s is small (4th paper, 4.3)."""
    z = torch.special.ndtri((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096)[:, None]
    for s, noisy, rounded in ((0.05, 0.130, 0.0), (0.11, 0.286, 0.0002), (0.2, 0.521, 0.111), (1.0, 2.106, 2.105)):
        y, u = s * z, grid(128).expand(4096, 128)
        bits = [-torch.log2(likelihood(SURROGATES[n].forward(y, u, 0.0), s)).mean() for n in ("aun", "round")]
        assert [float(b) for b in bits] == pytest.approx([noisy, rounded], abs=0.004)


@pytest.mark.parametrize("quantizer", [*sorted(NAMED), "sua+ep/sua+ste", "aun+ep/uq-s+ste", "sra+ep/sua+ste"])
def test_training_with_each_quantizer(quantizer: str) -> None:
    """Encoder and entropy model get finite gradients, the decoder the distortion's latents; the generator decides."""
    stage = dataclasses.replace(RECIPES["tiny"].stage("main"), quantizer=quantizer)
    torch.manual_seed(0)
    network = Network(PRESETS["tiny"])
    seen: list[Tensor] = []
    network.g_s.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = Padded(torch.rand(1, 3, 64, 64), 64, 64)
    results = []
    for seed in (1, 1, 2):
        network.zero_grad()
        made = forward(network, stage, batch, CPU, Noise(torch.Generator().manual_seed(seed)), 0.3)
        sum(v.sum() for v in made).backward()  # type: ignore[union-attr]
        for part in (network.g_a, network.h_a, network.entropy_model, network.g_s):
            gradients = [p.grad for p in part.parameters() if p.grad is not None]
            assert gradients and all(torch.isfinite(g).all() for g in gradients)
            assert any(g.abs().max() > 0 for g in gradients)
        results.append(torch.cat([v.flatten() for v in made]))
    assert torch.equal(results[0], results[1])
    noiseless = quantizer in ("ste", "sha")
    assert torch.equal(results[0], results[2]) == noiseless
    whole = quantizer in ("ste", "mix", "sr", "sra")
    assert all(torch.allclose(y, y.round(), atol=1e-6) for y in seen) == whole


def test_mix_gives_noise_to_the_entropy_model_and_integers_to_the_decoder() -> None:
    torch.manual_seed(0)
    network = Network(PRESETS["tiny"])
    seen: list[Tensor] = []
    assert isinstance(network.entropy_model, EntropyModel)
    network.entropy_model.contexts[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.entropy_model.h_s.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage = dataclasses.replace(RECIPES["tiny"].stage("main"), quantizer="mix")
    y, z = torch.randn(1, 16, 4, 4) * 3, torch.randn(1, 8, 1, 1) * 3
    made = quantize(network, y, z, stage, Noise(torch.Generator().manual_seed(0)), 0.0)
    assert torch.equal(made.y_hat, y.round())
    for noisy in seen:
        origin = y if noisy.shape == y.shape else z
        assert (noisy - origin).abs().max() <= 0.5 and not torch.allclose(noisy, noisy.round(), atol=1e-3)


def test_rates_are_those_of_the_entropy_model() -> None:
    torch.manual_seed(0)
    network = Network(PRESETS["tiny"])
    y, z = torch.randn(2, 16, 4, 4) * 3, torch.randn(2, 8, 1, 1) * 3
    stage = RECIPES["tiny"].stage("main")
    made = quantize(network, y, z, stage, None)
    expected = network.entropy_model(y.round(), z.round(), stage.scale_bound)
    assert torch.allclose(made.y_bits, -torch.log2(expected[0])) and torch.allclose(
        made.z_bits, -torch.log2(expected[1])
    )


@pytest.mark.parametrize("text", ["", "noise", "aun+ep", "aun/aun", "aun+pge/sua+ep", "sr+pge/sr+ste", "a/b/c"])
def test_unknown_quantizers_are_named(text: str) -> None:
    with pytest.raises(UserError, match="quantizer"):
        terms(text)


def command_line(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="tiny")
    parser.set_defaults(half=0.0, optimizer=None)
    add_metric(parser)
    add_quantizer(parser)
    return parser.parse_args(arguments)


def test_the_command_line_changes_the_stages_that_train_the_encoder() -> None:
    assert recipe_of(command_line()) == RECIPES["tiny"]
    recipe = recipe_of(command_line("--quantizer", "sua+ep/sua+ste", "--sharpness", "8", "--learned-step"))
    assert recipe.model == dataclasses.replace(PRESETS["tiny"], learned_step=True)
    for stage, usual in zip(recipe.stages, RECIPES["tiny"].stages, strict=True):
        changed = dataclasses.replace(usual, quantizer="sua+ep/sua+ste", sharpness=8.0)
        assert stage == (changed if stage.name in ("main", "joint") else usual)


def test_moved_means_are_of_the_hard_stage_of_networks_that_round_around_them() -> None:
    arguments = ("--distortion-moves-means", "--preset")
    stages = recipe_of(command_line(*arguments, "charm-zero-small")).stages
    assert [stage.name for stage in stages if stage.distortion_moves_means] == ["hard"]
    with pytest.raises(UserError, match="does not round around means"):
        recipe_of(command_line(*arguments, "charm-small"))


@pytest.mark.parametrize("arguments", [("--quantizer", "sr+pge/sr+ste"), ("--sharpness", "nan"), ("--sharpness", "0")])
def test_the_command_line_is_checked(arguments: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=arguments[0].removeprefix("--")):
        recipe_of(command_line(*arguments))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.term + str(row.tau))
def test_table_2(row: table2.Row) -> None:
    for scale, paper in zip(SCALES, (row.narrow, row.wide), strict=True):
        if row.name != "PGE  SUA10":
            bias, variance = risk(row, scale, 360, 2**10)
        else:  # its steep places want a finer grid, and its bias, really 0, a finer one than a test has time for
            bias, variance = 0.0, risk(row, scale, 480, 2**13)[1]
        assert agrees(row, (bias, variance), paper), (bias, variance)


def test_expected_gradient_has_neither_bias_nor_variance() -> None:
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].expand(9, 16)
    found = gradient("sua+ep", y, grid(16).expand(9, 16), 5.0, 0.3)
    assert found.var(1).max() == 0
