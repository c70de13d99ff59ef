"""The trunk: folded it is an ordinary network, at any lambda, and models start from it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from submission.errors import UserError
from submission.network import Network
from tests.commands import call
from tests.conftest import convolution
from tests.training_kit import CPU, RECIPE, killed_after, photos, session, weights
from training.loop import average
from training.loop import train as loop
from training.loop.average import Average
from training.loop.checkpoint import load_checkpoint
from training.loop.stage import main, run_stage
from training.loop.train import Learner
from training.loop.warm_start import initial_weights
from training.network.conditional import Tables, Trunk
from training.objective.forward import Pass, forward
from training.objective.latents import quantize
from training.objective.loss import Padded
from training.objective.noise import Noise

STAGE = dataclasses.replace(RECIPE.stage("trunk"), lambdas=(1.0, 64.0), warmup=0, steps=6)


def perturbed() -> Trunk:
    torch.manual_seed(1)
    trunk = Trunk(RECIPE.model, 1.0, 64.0)
    with torch.no_grad():
        for table in trunk.tables.parameters():
            table.add_(0.2 * torch.randn_like(table))
    return trunk


def test_at_first_it_is_the_network_at_every_lambda() -> None:
    torch.manual_seed(1)
    trunk = Trunk(RECIPE.model, 1.0, 64.0)
    own = trunk.network.state_dict()
    for lmbda in (0.5, 1.0, 7.0, 64.0, 100.0):
        assert all(torch.equal(v, own[k]) for k, v in trunk.at(lmbda).state_dict().items())


def test_folded_is_scaled_and_shifted() -> None:
    """Every convolution's output is its own times the scale, plus the shift."""
    trunk = perturbed()
    folded, (scales, shifts) = trunk.at(5.0), trunk.tables.at(5.0)
    sizes = [channels for _, channels in trunk.convolutions]
    for (name, size), scale, shift in zip(trunk.convolutions, scales.split(sizes), shifts.split(sizes), strict=True):
        before, after = (convolution(network.get_submodule(name)) for network in (trunk.network, folded))
        x = torch.randn(1, before.in_channels, 7, 7)
        expected = before(x) * scale.view(1, size, 1, 1) + shift.view(1, size, 1, 1)
        assert torch.allclose(after(x), expected, atol=1e-4), name


def test_training_sees_what_is_folded() -> None:
    """The conditional pass is bitwise the pass of the folded network; gradients reach network and tables."""
    trunk, x = perturbed(), torch.rand(1, 3, 192, 192)
    batch = Padded(x, 192, 192)
    made = Pass(trunk, STAGE, CPU)(batch, None, 0.5, 3.0)
    plain = forward(trunk.at(3.0), STAGE, batch, CPU, None)
    assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))
    (made[0].sum() + made[1]).backward()
    gradients = {n: p.grad for n, p in trunk.named_parameters() if p.grad is not None}
    moved = {n.split(".")[1] for n in gradients}
    assert moved >= {"g_a", "g_s", "entropy_model", "h_a", "scales", "shifts"} and "post_filter" not in moved


def test_tables_are_interpolated_in_log_lambda() -> None:
    tables = Tables(1, 1.0, 4.0)
    with torch.no_grad():
        tables.scales.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    assert [round(tables.at(v)[0].item(), 4) for v in (0.1, 1, 2**0.5, 2, 2**1.5, 4, 9)] == [1, 1, 1.5, 2, 3, 4, 4]


def test_its_quantizer_anneals_as_that_of_the_main_stage() -> None:
    torch.manual_seed(1)
    network = Network(RECIPE.model)
    y, z = torch.randn(1, RECIPE.model.M, 12, 12), torch.randn(1, RECIPE.model.N, 3, 3)
    for progress in (0.0, 0.5):
        main, trunk = (
            quantize(network, y, z, dataclasses.replace(stage, quantizer="sua"), noise(), progress).y_hat
            for stage in (RECIPE.stage("main"), STAGE)
        )
        assert torch.equal(main, trunk)


def noise() -> Noise:
    return Noise(torch.Generator().manual_seed(1))


def test_its_lambdas_are_spread_over_steps_and_processes() -> None:
    learner = Learner(perturbed(), STAGE, 8.0, CPU)
    drawn = torch.tensor([learner.lmbda_of(step) for step in range(400)]).log()
    assert drawn.min() >= 0 and drawn.max() <= torch.tensor(64.0).log()
    counts = torch.histc(drawn, 4, 0, float(torch.tensor(64.0).log()))
    assert counts.min() > 70
    assert [learner.lmbda_of(s) for s in range(5)] == [learner.lmbda_of(s) for s in range(5)]


def test_models_start_from_it(tmp_path: Path) -> None:
    (tmp_path / "trunk").mkdir()
    run_stage(RECIPE.model, STAGE, 8.0, tmp_path / "trunk", None, session())
    trunk = Trunk(RECIPE.model, 1.0, 64.0)
    trunk.load_state_dict(weights(tmp_path / "trunk" / "trunk.pt"))
    start = initial_weights(tmp_path / "trunk", "main", 20.0, RECIPE.model)
    assert all(torch.equal(start[k], v) for k, v in trunk.at(20.0).state_dict().items())
    assert not all(torch.equal(start[k], v) for k, v in trunk.network.state_dict().items())
    Network(RECIPE.model).load_state_dict(start)


def test_a_range_that_is_none_is_refused(tmp_path: Path) -> None:
    for low, high in ((4, 4), (9, 2), (-1, 3), (0, 1)):
        options = ("--preset", "tiny", "--lmbda", low, high, "--data", tmp_path, "--run", tmp_path)
        done = call(lambda: main("trunk", "text"), *map(str, options))
        assert done.code == 2 and "LOW below HIGH" in done.stderr


@pytest.mark.parametrize("half", [0.0, 0.5])
def test_it_is_validated_in_the_middle_of_its_range(tmp_path: Path, half: float) -> None:
    run_stage(RECIPE.model, dataclasses.replace(STAGE, half=half), 8.0, tmp_path, None, session())
    assert (tmp_path / "trunk.csv").read_text().splitlines()[-1].split(",")[-1] != ""
    assert photos().validation.size


def test_it_may_go_on_with_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat rate does not depend on the steps that are left: a run can be ended sooner or later than planned."""
    started = dataclasses.replace(STAGE, steps=100)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", (0.0, 0.0))  # a checkpoint after every step
    with monkeypatch.context() as patch, pytest.raises(ConnectionAbortedError):
        killed_after(patch, 2)
        run_stage(RECIPE.model, started, 8.0, tmp_path, None, session())
    run_stage(RECIPE.model, dataclasses.replace(started, steps=4), 8.0, tmp_path, None, session())
    state = load_checkpoint(tmp_path / "trunk.pt", None, None, None)
    assert state["done"] and state["step"] == 4


def test_before_its_end_others_start_from_the_mean_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise the same mean in a run that was killed and resumed; a finished one counts as it is."""
    monkeypatch.setattr(average, "EVERY", 1)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", (0.0, 0.0))
    stage = dataclasses.replace(STAGE, steps=100)
    for name, kills in (("whole", [5]), ("resumed", [2, 3])):
        for steps in kills:
            with monkeypatch.context() as patch, pytest.raises(ConnectionAbortedError):
                killed_after(patch, steps)
                (tmp_path / name).mkdir(exist_ok=True)
                run_stage(RECIPE.model, stage, 8.0, tmp_path / name, None, session())
    starts = [initial_weights(tmp_path / name, "main", 8.0, RECIPE.model) for name in ("whole", "resumed")]
    assert all(torch.equal(v, starts[1][k]) for k, v in starts[0].items())
    last = Trunk(RECIPE.model, 1.0, 64.0)
    last.load_state_dict(weights(tmp_path / "whole" / "trunk.pt"))
    assert not torch.equal(last.at(8.0).state_dict()["g_a.0.conv1.weight"], starts[0]["g_a.0.conv1.weight"])
    run_stage(RECIPE.model, dataclasses.replace(stage, steps=6), 8.0, tmp_path / "whole", None, session())
    last.load_state_dict(weights(tmp_path / "whole" / "trunk.pt"))
    ended = initial_weights(tmp_path / "whole", "main", 8.0, RECIPE.model)
    assert all(torch.equal(v, ended[k]) for k, v in last.at(8.0).state_dict().items())


def test_the_mean_reaches_back_over_a_tenth_of_the_steps() -> None:
    """Of a weight that rises evenly it is what the weight was about a tenth of the steps before; while it is in place
    nothing of the network's own is lost."""
    network = torch.nn.Linear(1, 1, bias=False)
    mean, steps = Average(network), 20_000
    for step in range(1, steps + 1):
        network.weight.data.fill_(step)
        mean.add(step)
    with mean.in_place():
        seen = network.weight.item()
    assert network.weight.item() == steps
    assert 0.85 * steps < seen < 0.95 * steps


def test_a_trunk_starts_from_another_of_the_same_range(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    run_stage(RECIPE.model, STAGE, 8.0, tmp_path / "first", None, session())
    still = dataclasses.replace(STAGE, lr=0.0, steps=1)
    run_stage(RECIPE.model, still, 8.0, tmp_path / "second", tmp_path / "first", session())
    first, second = (weights(tmp_path / folder / "trunk.pt") for folder in ("first", "second"))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    (tmp_path / "third").mkdir()
    other = dataclasses.replace(STAGE, lambdas=(1.0, 32.0))
    with pytest.raises(UserError, match="first: a trunk for lambda 1 to 64; give --lmbda 1 64"):
        run_stage(RECIPE.model, other, 8.0, tmp_path / "third", tmp_path / "first", session())
