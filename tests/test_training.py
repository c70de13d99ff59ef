"""Laws of training: Algorithm 1, what each stage trains, resumed equals uninterrupted, identity at the start."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from submission.config import PRESETS
from submission.errors import UserError
from submission.network import Network
from tests.conftest import noise_picture, run_module
from training import loop
from training.data import Pictures, load_pictures, random_crops
from training.ladder import order
from training.loop import Device, forward, train
from training.loss import Padded, distortion, simulate_padding
from training.recipe import RECIPES, STAGES
from training.stage import run_stage

RECIPE = RECIPES["tiny"]
CPU = Device("cpu", bf16=False)


@pytest.fixture(scope="module")
def photos() -> Pictures:
    return Pictures([noise_picture(200, 210, s) for s in range(4)], [noise_picture(200, 200, 9)])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


def run_all(photos: Pictures, run: Path) -> None:
    run.mkdir(exist_ok=True)
    for name in STAGES:
        run_stage(RECIPE, RECIPE.stage(name), 4.0, photos, run, None, CPU)


@pytest.fixture(scope="module")
def finished(photos: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    run_all(photos, run)
    return run


def test_each_stage_trains_its_parts_and_no_others(finished: Path) -> None:
    parts = ("g_a", "h_a", "entropy_model", "g_s", "post_filter")
    moved = {"post_filter": {"post_filter"}, "joint": set(parts), "hard": {"entropy_model", "g_s", "post_filter"}}
    for before, after in itertools.pairwise(STAGES):
        old, new = weights(finished / f"{before}.pt"), weights(finished / f"{after}.pt")
        changed = {p for p in parts if any(not torch.equal(old[k], new[k]) for k in old if k.startswith(p + "."))}
        assert changed == moved[after], after


def test_a_killed_run_ends_with_the_same_weights(
    photos: Pictures, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    crops, calls = loop.random_crops, 0

    def killed_now_and_then(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise ConnectionAbortedError
        return crops(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "random_crops", killed_now_and_then)
    for _ in range(40):
        try:
            run_all(photos, run)
            break
        except ConnectionAbortedError:
            continue
    for name in STAGES:
        a, b = weights(finished / f"{name}.pt"), weights(run / f"{name}.pt")
        assert all(torch.equal(a[k], b[k]) for k in a), name


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
    padded = simulate_padding(
        torch.rand(1, 3, 256, 256),
        20,
        1,
        next(s for s in range(99) if simulate_padding(torch.zeros(1, 3, 256, 256), 20, 1, s).height < 256),
    )
    made = padded.x.clone()
    made[:, :, padded.height :] = 1
    assert distortion(padded.valid(padded.x), padded.valid(made)) < 1e-6


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


def test_crops_depend_on_seed_and_step_alone(photos: Pictures) -> None:
    a = random_crops(photos.train, 2, 192, 1, 5)
    assert torch.equal(a, random_crops(photos.train, 2, 192, 1, 5))
    assert not torch.equal(a, random_crops(photos.train, 2, 192, 1, 6))
    assert not torch.equal(a, random_crops(photos.train, 2, 192, 2, 5))


def test_ladder_order_starts_each_model_from_a_finished_neighbour() -> None:
    done: set[float] = set()
    for lmbda, start in order((1.0, 2.0, 4.0, 8.0, 16.0), 4.0):
        assert (start is None) == (lmbda == 4.0) and (start is None or start in done)
        done.add(lmbda)
    assert done == {1.0, 2.0, 4.0, 8.0, 16.0}


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    photos: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.random_crops
    poisoned = lambda *a: original(*a) * (float("nan") if a[-1] == 1 else 1.0)  # noqa: E731
    monkeypatch.setattr(loop, "random_crops", poisoned)
    stage = dataclasses.replace(RECIPE.stage("main"), steps=3)
    train(Network(PRESETS["tiny"]), stage, 4.0, photos, tmp_path, CPU)
    state = torch.load(tmp_path / "main.pt", weights_only=True)
    assert state["skipped"] == 1
    assert all(torch.isfinite(v).all() for v in state["network"].values())


def test_data_folders_with_broken_and_small_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        Image.fromarray(noise_picture(200, 200, k)).save(tmp_path / f"good{k}.png")
    Image.fromarray(noise_picture(30, 200)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    pictures = load_pictures([tmp_path], 192)
    assert len(pictures.train) + len(pictures.validation) == 3 and pictures.validation
    text = capsys.readouterr().err
    assert "left out 2" in text and "small.png" in text and "broken.png" in text
    with pytest.raises(UserError, match="usable"):
        load_pictures([tmp_path], 500)


def test_commands_end_to_end(tmp_path: Path) -> None:
    """The stage scripts and export on a real folder, and what they say to mistakes."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for k in range(3):
        Image.fromarray(noise_picture(200, 200, k)).save(data / f"{k}.png")
    common = ("--preset", "tiny", "--lmbda", 4, "--data", data, "--run", run, "--steps", 1)

    missing = run_module("training.joint", *common)
    assert missing.returncode == 2 and "run the stage before" in missing.stderr
    assert missing.stderr.count("\n") == 1 and "Traceback" not in missing.stderr
    first = run_module("training.main_net", *common)
    assert first.returncode == 0, first.stderr
    again = run_module("training.main_net", *common)
    assert again.returncode == 2 and "--resume" in again.stderr
    other = run_module("training.main_net", *common[:2], "--lmbda", 5, *common[4:], "--resume")
    assert other.returncode == 2 and "lambda" in other.stderr
    (tmp_path / "empty").mkdir()
    empty = run_module("training.main_net", *common[:4], "--data", tmp_path / "empty", "--run", tmp_path / "x")
    assert empty.returncode == 2 and "usable pictures" in empty.stderr
    (run / "post_filter.pt").write_bytes((run / "main.pt").read_bytes()[:1000])
    torn = run_module("training.joint", *common)
    assert torn.returncode == 2 and "not a checkpoint" in torn.stderr

    made = run_module("training.export", run, "-o", tmp_path / "weights")
    assert made.returncode == 2  # the torn checkpoint
    (run / "post_filter.pt").unlink()
    made = run_module("training.export", run, "-o", tmp_path / "weights")
    assert made.returncode == 0, made.stderr
    stream = run_module("submission.encode", data / "0.png", "-o", tmp_path, "--weights", tmp_path / "weights")
    assert stream.returncode == 0, stream.stderr
    decoded = run_module(
        "submission.decode", tmp_path / "0.clic", "-o", tmp_path / "out", "--weights", tmp_path / "weights"
    )
    assert decoded.returncode == 0, decoded.stderr
    assert np.asarray(Image.open(tmp_path / "out" / "0.png")).shape == (200, 200, 3)
