"""Laws of SOAP: Adam where there is nothing to rotate, blind to rotations where there is, exact about skipped steps."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from training.loop.soap import SOAP, share_work
from training.network.device import World


def orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return q


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Whose directions differ in size, so that the covariances have one eigenbasis."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.logspace(0, 1, shape[0], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1))
    columns = torch.logspace(0, -1, shape[1], dtype=torch.float64).view(1, -1, *(1,) * (len(shape) - 2))
    return [rows * columns * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def run(start: Tensor, pulls: list[Tensor], **options: object) -> Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = SOAP([weight], 0.1, **options)  # type: ignore[arg-type]
    for pull in pulls:
        weight.grad = pull.clone()
        optimizer.step()
    return weight.detach()


def test_it_does_not_see_a_rotation_of_the_outputs_and_inputs() -> None:
    """The same steps, rotated: what Adam cannot do and Shampoo is for."""
    left, right = orthogonal(5, 1), orthogonal(4, 2)
    start, pulls = torch.zeros(5, 4, 3, 3, dtype=torch.float64), gradients((5, 4, 3, 3), 12)

    def turn(v: Tensor) -> Tensor:
        return torch.einsum("ab,bchw,cd->adhw", left, v, right)

    plain = run(start, pulls, interval=3, gather=2)
    turned = run(turn(start), [turn(p) for p in pulls], interval=3, gather=2)
    assert torch.allclose(turned, turn(plain), atol=1e-6)
    assert not torch.allclose(turned, plain, atol=0.1)


@pytest.mark.parametrize("shape", [(7,), (3, 2, 4), (1, 1), (2000, 1)])
def test_what_has_no_sides_is_left_to_adam(shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pulls = [p.view(shape) for p in gradients((math.prod(shape), 1), 9)]
    weight = nn.Parameter(start.clone())
    adam = torch.optim.Adam([weight], 0.1, (0.95, 0.95))
    for pull in pulls:
        weight.grad = pull.clone()
        adam.step()
    assert torch.allclose(run(start, pulls), weight.detach(), atol=1e-9)


def test_layers_of_one_shape_do_not_mix() -> None:
    """They are worked on as one batch; each moves as it would alone."""
    pulls = [gradients((4, 3), 8), [2 * p.flip(0) for p in gradients((4, 3), 8)]]
    together = [nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)) for _ in pulls]
    optimizer = SOAP(together, 0.1, interval=2)
    for step in range(8):
        for weight, mine in zip(together, pulls, strict=True):
            weight.grad = mine[step].clone()
        optimizer.step()
    for weight, mine in zip(together, pulls, strict=True):
        assert torch.allclose(weight.detach(), run(torch.zeros(4, 3, dtype=torch.float64), mine, interval=2))


def test_a_skipped_step_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = SOAP([weight], 0.1, interval=1, gather=1)
    good = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    weight.grad = good.clone()
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    before = [weight.detach().clone(), *(optimizer.batches[0].state[k].clone() for k in ("m", "v", "L", "R"))]
    weight.grad = torch.full((4, 3), float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = [weight.detach(), *(optimizer.batches[0].state[k] for k in ("m", "v", "L", "R"))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_is_faster_than_adam_where_directions_are_coupled() -> None:
    """Least squares with correlated inputs and outputs, the same rate and steps."""
    left, right = orthogonal(8, 4), orthogonal(8, 5)
    mix_out, mix_in = (q * torch.logspace(0, -1.5, 8, dtype=torch.float64) for q in (left, right))
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def loss_after(kind: str) -> float:
        weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
        optimizer = (
            SOAP([weight], 0.03, interval=2) if kind == "soap" else torch.optim.Adam([weight], 0.03, (0.95, 0.95))
        )
        for _ in range(150):
            optimizer.zero_grad()
            loss = (mix_out.T @ (weight - target) @ mix_in).square().sum()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert loss_after("soap") < 0.25 * loss_after("adam")


def test_its_state_continues_bitwise() -> None:
    pulls = gradients((6, 5), 20)
    whole = run(torch.zeros(6, 5, dtype=torch.float64), pulls, interval=4, gather=3)
    weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    state = None
    for part in (pulls[:7], pulls[7:]):
        optimizer = SOAP([weight], 0.1, interval=4, gather=3)
        if state:
            optimizer.load_state_dict(state)
        for pull in part:
            weight.grad = pull.clone()
            optimizer.step()
        state = optimizer.state_dict()
    assert torch.equal(weight.detach(), whole)


SHAPES = [(6, 5), (6, 5), (4, 3, 3, 3), (7,), (9, 8, 1, 1), (2, 2), (8, 4, 3, 3)]


def several_steps(world: World, state: dict[str, object] | None, first: int) -> tuple[list[Tensor], dict[str, object]]:
    """Four steps of layers of all kinds from step `first` on, the same gradients in every process."""
    layers = [nn.Parameter(torch.full(shape, float(first))) for shape in SHAPES]
    optimizer = SOAP(layers, 0.1, interval=2, world=world)
    if state:
        optimizer.load_state_dict(state)
    for step in range(first, first + 4):
        generator = torch.Generator().manual_seed(step)
        for layer in layers:
            layer.grad = torch.randn(layer.shape, generator=generator)
        optimizer.step()
    return [layer.detach() for layer in layers], optimizer.state_dict()


SCRIPT = """
import sys, torch
from tests.test_training_soap import several_steps
from training.network.device import join_world
with join_world() as world:
    weights, state = several_steps(world, None, 0)
    box = world.share(state)
    more, _ = several_steps(world, box, 4)
    torch.save([weights, more, state], f"{sys.argv[1]}/{world.rank}.pt")
"""


def test_processes_share_its_work_and_make_the_same_weights(tmp_path: Path) -> None:
    """Bitwise, in every process; the first one's state is whole and continues, there and in one process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)]
    alone, state = several_steps(World(), None, 0)
    more, _ = several_steps(World(), found[0][2], 4)
    for weights, continued, _ in found:
        assert all(torch.equal(a, b) for a, b in zip(weights, alone, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(continued, more, strict=True))
    batches = state["batches"]
    assert isinstance(batches, list) and len(found[0][2]["batches"]) == len(batches)
    for kept, expected in zip(found[0][2]["batches"], batches, strict=True):
        assert kept.keys() == expected.keys() and all(torch.equal(kept[k], expected[k]) for k in kept)


def test_work_is_shared_evenly() -> None:
    work = [9, 1, 5, 5, 2, 7, 3]
    owners = [share_work(work, n) for n in (1, 2, 3)]
    assert owners[0] == [0] * 7
    for n, shares in enumerate(owners, 1):
        loads = [sum(w for w, owner in zip(work, shares, strict=True) if owner == k) for k in range(n)]
        assert sum(loads) == sum(work) and max(loads) - min(loads) <= 2


def test_layers_whose_gradient_is_mostly_zero_stay_finite() -> None:
    """Of such matrices, dead units behind them, some have no eigenvectors in single precision, says LAPACK."""
    generator = torch.Generator().manual_seed(1)
    layers = []
    for alive in torch.randint(1, 20, (300,), generator=generator).tolist():
        layer = nn.Parameter(torch.ones(48, 24, 3, 3))
        layer.grad = torch.zeros_like(layer)
        rows = torch.randperm(48, generator=generator)[:alive]
        sizes = 10 ** (-1 - 8 * torch.rand(alive, 1, 1, 1, generator=generator))
        layer.grad[rows] = sizes * torch.randn(alive, 24, 3, 3, generator=generator)
        layers.append(layer)
    SOAP(layers, 1e-3).step()
    assert all(torch.isfinite(layer).all() for layer in layers)
