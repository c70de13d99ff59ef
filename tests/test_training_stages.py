"""Laws of the stages: what each trains and sees, Algorithm 1, the loss, the recipes of the papers."""

import itertools
from pathlib import Path

import pytest
import torch

from submission.config import PRESETS
from submission.network import Network
from tests.training_kit import CPU, RECIPE, run_all, weights
from training.objective.forward import forward
from training.objective.loss import Padded, distortion, simulate_padding
from training.recipe import RECIPES, STAGES


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    run_all(run)
    return run


def test_each_stage_trains_its_parts_and_no_others(finished: Path) -> None:
    parts = ("g_a", "h_a", "entropy_model", "g_s", "post_filter")
    moved = {"post_filter": {"post_filter"}, "joint": set(parts), "hard": {"entropy_model", "g_s", "post_filter"}}
    moved["entropy"] = {"entropy_model"}
    for before, after in itertools.pairwise(STAGES):
        old, new = weights(finished / f"{before}.pt"), weights(finished / f"{after}.pt")
        changed = {p for p in parts if any(not torch.equal(old[k], new[k]) for k in old if k.startswith(p + "."))}
        assert changed == moved[after], after


def test_algorithm_1() -> None:
    x = torch.rand(2, 3, 256, 256)
    kinds = set()
    for step in range(60):
        padded = simulate_padding(x, 20, 1, step)
        h, w = 256 - padded.height, 256 - padded.width
        kinds.add((h > 0) + (w > 0))
        assert padded.x.shape == x.shape and 0 <= h <= 20 and 0 <= w <= 20
        assert padded.pixels == 2 * (256 - h) * (256 - w)
        assert torch.equal(padded.valid(padded.x), x[:, :, h:, w:])
        assert padded.x[:, :, 256 - h :].abs().sum() == 0 and padded.x[:, :, :, 256 - w :].abs().sum() == 0
    assert kinds >= {0, 2}
    assert torch.equal(simulate_padding(x, 0, 1, 3).x, x)


def test_padding_is_free_of_distortion() -> None:
    """What the network makes of the padded rows does not count."""
    step = next(s for s in range(99) if simulate_padding(torch.zeros(1, 3, 256, 256), 20, 1, s).height < 256)
    padded = simulate_padding(torch.rand(1, 3, 256, 256), 20, 1, step)
    made = padded.x.clone()
    made[:, :, padded.height :] = 1
    assert distortion(padded.valid(padded.x), padded.valid(made)) < 1e-5


def test_post_filter_starts_as_the_identity() -> None:
    network = Network(PRESETS["tiny"])
    x = torch.rand(1, 3, 64, 96)
    assert torch.equal(network.post_filter(x), x)


def test_rate_counts_true_pixels_only() -> None:
    torch.manual_seed(0)
    network = Network(PRESETS["tiny"])
    x = torch.rand(1, 3, 192, 192)
    stage = RECIPE.stage("joint")
    _, *whole = forward(network, stage, Padded(x, 192, 192), CPU, None)
    _, *part = forward(network, stage, Padded(x, 96, 192), CPU, None)
    assert torch.allclose(torch.stack(part), 2 * torch.stack(whole))


def test_hard_stage_sees_rounded_latents() -> None:
    torch.manual_seed(0)
    network = Network(PRESETS["tiny"])
    seen = []
    network.g_s.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    forward(network, RECIPE.stage("hard"), Padded(torch.rand(1, 3, 192, 192), 192, 192), CPU, None)
    assert torch.equal(seen[0], seen[0].round())


def test_the_paper_recipe_is_that_of_the_papers() -> None:
    """2020 paper, 3: 300k steps at 1e-4 and 300k at 1e-5, 256 x 256 crops, batch 8, P1 = P2 = 20; 200k in the last
    stage of the 2021 paper; 4th paper: sigma at least 0.11 with noise, 1e-6 with rounding."""
    main, post_filter, joint, hard = RECIPES["paper"].stages
    for stage in (main, post_filter, joint, hard):
        assert (stage.lr, stage.schedule, stage.crop, stage.batch) == (1e-4, "step", 256, 8)
    assert [s.steps for s in (main, post_filter, joint, hard)] == [600_000, 600_000, 600_000, 200_000]
    assert (main.padding, post_filter.padding, joint.padding) == (0, 0, 20)
    assert [s.scale_bound for s in (main, joint, hard)] == [0.11, 0.11, 1e-6]
    model = RECIPES["paper"].model
    assert (model.M, model.N, model.mixtures, model.groups, model.rpe) == (192, 192, 3, 2, True)
