"""Training survives: kills, steps that are not finite, full disks, damaged and foreign checkpoints."""

import dataclasses
import errno
import signal
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from submission.config import PRESETS
from submission.errors import UserError
from tests.training_kit import RECIPE, equal, killed_after, run_all, session, weights
from training.data.crops import Crops
from training.loop import train as loop
from training.loop.checkpoint import load_checkpoint
from training.loop.soap import SOAP
from training.loop.stage import run_stage
from training.recipe import STAGES, Stage


def train_main(stage: Stage, run: Path, lmbda: float = 4.0) -> None:
    run.mkdir(exist_ok=True)
    run_stage(PRESETS["tiny"], stage, lmbda, run, None, session(), 0.0)


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", (0.0, 0.0))  # a checkpoint after every step
    for _ in range(40):
        with monkeypatch.context() as patch:
            killed_after(patch, 2)
            try:
                run_all(tmp_path / "run")
                break
            except ConnectionAbortedError:
                continue
    for name in STAGES:
        assert equal(tmp_path / "whole" / f"{name}.pt", tmp_path / "run" / f"{name}.pt"), name


def test_a_signal_in_the_last_step_stops_what_would_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is done and saved; a ladder does not begin the next one."""
    stage, at = RECIPE.stage("main"), Crops.at

    def signalled(self: Crops, step: int) -> torch.Tensor:
        if step == stage.steps - 1:
            signal.raise_signal(signal.SIGTERM)
        return at(self, step)

    monkeypatch.setattr(Crops, "at", signalled)
    with pytest.raises(KeyboardInterrupt):
        train_main(stage, tmp_path)
    assert torch.load(tmp_path / "main.pt", weights_only=True)["done"]


def test_what_a_kill_loses_leaves_no_line_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    stage = dataclasses.replace(RECIPE.stage("main"), steps=5)
    with monkeypatch.context() as patch, pytest.raises(ConnectionAbortedError):
        killed_after(patch, 3)  # and no checkpoint yet
        train_main(stage, tmp_path)
    train_main(stage, tmp_path)
    steps = [line.split(",")[0] for line in (tmp_path / "main.csv").read_text().splitlines()[1:]]
    assert steps == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("optimizer", "bad"), [("adam", 1), ("soap", 1), ("soap", 2)])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    optimizer: Literal["adam", "soap"], bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device: the weights and the optimizer's averages are as if the step had not been. The last of all may be
    such a step."""
    at, seen = Crops.at, []
    original = loop.Learner.step

    def poisoned(self: Crops, step: int) -> torch.Tensor:
        return at(self, step) * (float("nan") if step == bad else 1.0)

    def watched(self: loop.Learner, *arguments: object) -> object:
        result = original(self, *arguments)  # type: ignore[arg-type]
        if isinstance(self.optimizer, SOAP):
            moments = [batch.state[name].clone() for batch in self.optimizer.batches for name in ("m", "v")]
        else:
            moments = [state["exp_avg"].clone() for state in self.optimizer.state.values()]
        seen.append([*(p.detach().clone() for p in self.parameters), *moments])
        return result

    monkeypatch.setattr(Crops, "at", poisoned)
    monkeypatch.setattr(loop.Learner, "step", watched)
    train_main(dataclasses.replace(RECIPE.stage("main"), steps=3, optimizer=optimizer), tmp_path)
    assert torch.load(tmp_path / "main.pt", weights_only=True)["skipped"] == 1
    for step in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(seen[step - 1], seen[step], strict=True)) == (step == bad)
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "main.pt").values())
    line = (tmp_path / "main.csv").read_text().splitlines()[-1]
    assert "nan" not in line


def test_a_stage_without_a_finite_step_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of going on to an end that later stages would start from."""
    at = Crops.at
    monkeypatch.setattr(Crops, "at", lambda self, step: at(self, step) * float("nan"))
    with pytest.raises(UserError, match="no step since the last line of the log was finite; begin the stage again"):
        train_main(dataclasses.replace(RECIPE.stage("main"), steps=3), tmp_path)
    assert not (tmp_path / "main.pt").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dataclasses.replace(RECIPE.stage("main"), steps=4)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", (0.0, 0.0))
    save, calls = torch.save, 0

    def fills(state: object, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", fills)
    with pytest.raises(UserError, match="last good one is intact"):
        train_main(stage, tmp_path)
    assert load_checkpoint(tmp_path / "main.pt", PRESETS["tiny"], stage, 4.0)["step"] == 1
    assert not list(tmp_path.glob("*.part"))
    train_main(stage, tmp_path)
    train_main(stage, tmp_path / "..")  # another folder, uninterrupted
    assert equal(tmp_path / "main.pt", tmp_path / ".." / "main.pt")


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    stage = dataclasses.replace(RECIPE.stage("main"), steps=1)
    train_main(stage, tmp_path)
    path = tmp_path / "main.pt"
    with pytest.raises(UserError, match="lambda 4, not 5"):
        load_checkpoint(path, None, None, 5.0)
    with pytest.raises(UserError, match="another network"):
        load_checkpoint(path, PRESETS["small"], None, None)
    with pytest.raises(UserError, match=r"other settings of this stage \(lr, crop\)"):
        load_checkpoint(path, None, dataclasses.replace(stage, lr=1.0, crop=256), None)
    load_checkpoint(path, None, dataclasses.replace(stage, seconds=60.0), None)  # a budget may change
    with pytest.raises(UserError, match=r"other settings of this stage \(steps\)"):
        load_checkpoint(path, None, dataclasses.replace(stage, steps=2), None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path, None, None, None)


def test_checkpoints_of_before_this_version_are_read(tmp_path: Path) -> None:
    stage = dataclasses.replace(RECIPE.stage("main"), steps=1)
    train_main(stage, tmp_path)
    state = torch.load(tmp_path / "main.pt", weights_only=True)
    for name in ("progress", "seconds"):
        del state[name]
    del state["stage"]["seconds"]
    torch.save(state, tmp_path / "main.pt")
    assert load_checkpoint(tmp_path / "main.pt", PRESETS["tiny"], stage, 4.0)["done"]


def test_a_checkpoint_holds_no_more_than_numbers(tmp_path: Path) -> None:
    """It is read with `weights_only`, so a foreign file cannot run code."""
    torch.save({"config": np.ones}, tmp_path / "main.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "main.pt", None, None, None)
