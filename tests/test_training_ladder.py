"""A ladder: its order, tasks side by side in processes that may be killed, starting from trained models."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from submission.config import PRESETS
from submission.errors import UserError
from submission.ladder import Ladder
from submission.network import Network
from tests.conftest import ROOT, noise_picture, untrained
from tests.faults import children, said, stop_one_and_end, wait_for
from tests.training_kit import RECIPE, equal, run_all, session, weights
from training.export import latents
from training.ladder import Clock, LadderRun, run_name, train_ladder
from training.loop.plan import order
from training.loop.stage import run_stage
from training.loop.warm_start import initial_weights
from training.objective.loss import rate
from training.recipe import STAGES


def test_ladder_order_starts_each_model_from_a_finished_neighbour() -> None:
    done: set[float] = set()
    for lmbda, start in order((1.0, 2.0, 4.0, 8.0, 16.0), 4.0):
        assert (start is None) == (lmbda == 4.0) and (start is None or start in done)
        done.add(lmbda)
    assert done == {1.0, 2.0, 4.0, 8.0, 16.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for k in range(3):
        Image.fromarray(noise_picture(200, 200, k)).save(folder / f"{k}.png")
    return folder


def ladder(data: Path, run: Path, *more: object) -> subprocess.Popen[str]:
    """`python -m training.ladder`, which waits less long for the silent than usual."""
    script = (
        "from submission import console, processes; from training import ladder; processes.PATIENCE = 8;"
        "console.run(ladder.main)"
    )
    command = [sys.executable, "-c", script, "--preset", "tiny", "--data", data, "--run", run]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [*map(str, command), "--no-tensorboard", *map(str, more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_killed_jobs_end_with_the_weights_of_one_process(data: Path, tmp_path: Path) -> None:
    """Training processes killed and stopped, the one that starts them terminated, then killed; again: bitwise as if
    nothing was."""
    whole = ladder(data, tmp_path / "whole")
    run = tmp_path / "run"

    def disturb(process: subprocess.Popen[str], until: Path, number: signal.Signals) -> list[str]:
        """Once `until` is there, stop a worker and send `number` to the command, which all ends; what it said."""
        wait_for(lambda: process.poll() is not None or (until.exists() and children(process.pid)))
        assert process.poll() is None, process.communicate()
        return said(stop_one_and_end(process, number))

    first = ladder(data, run, "--jobs", 2)
    wait_for(lambda: children(first.pid))
    os.kill(children(first.pid)[0], signal.SIGKILL)
    note, end = disturb(first, run / "lambda_3" / "main.pt", signal.SIGTERM)
    assert (first.returncode, end) == (130, "error: interrupted")
    assert "its worker was killed (SIGKILL); another one takes over" in note
    disturb(ladder(data, run, "--jobs", 2), run / "lambda_3" / "post_filter.pt", signal.SIGKILL)
    last = ladder(data, run, "--jobs", 2)
    wait_for(lambda: children(last.pid))
    os.kill(children(last.pid)[0], signal.SIGSTOP)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert "gave no sign of life" in errors
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    for lmbda in RECIPE.lambdas:
        for name in STAGES:
            path = Path(run_name(lmbda)) / f"{name}.pt"
            assert equal(tmp_path / "whole" / path, run / path), path


def test_a_failing_job_stops_the_ladder_with_its_message(data: Path, tmp_path: Path) -> None:
    run_all(tmp_path / "lambda_3")  # of lambda 4
    process = ladder(data, tmp_path, "--jobs", 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.count("error: ") == 1 and errors.count("\n") == 1 and "made for lambda 4" in errors


def test_a_ladder_that_starts_from_trained_models_takes_the_nearest(tmp_path: Path) -> None:
    """From a ladder's run folder; lambda 12 is nearer to 4 than to 100, on the scale of ratios."""
    for lmbda in (4.0, 100.0):
        folder = tmp_path / "old" / run_name(lmbda)
        folder.mkdir(parents=True)
        run_stage(RECIPE.model, RECIPE.stage("main"), lmbda, folder, None, session())
    start = initial_weights(tmp_path / "old", "main", 12.0, RECIPE.model)
    assert all(torch.equal(v, start[k]) for k, v in weights(tmp_path / "old/lambda_4/main.pt").items())
    run = tmp_path / "new"
    train_ladder(LadderRun(RECIPE, run, Clock.open(run, time.monotonic()), tmp_path / "old"), session())
    for lmbda in RECIPE.lambdas:
        assert all((run / run_name(lmbda) / f"{name}.pt").exists() for name in STAGES)
        record = (run / run_name(lmbda) / "main.json").read_text()
        assert '"steps": 3' in record and str(tmp_path / "old") in record


def test_shipped_weights_can_be_trained_further(ladder_folder: Path) -> None:
    """Transforms come back in half precision, the entropy model as float layers that mean the same."""
    crops = np.stack([noise_picture(192, 192, seed) for seed in range(2)])
    original, back = untrained(1), Network(PRESETS["tiny"])
    back.load_state_dict(initial_weights(ladder_folder, "main", 2.1, PRESETS["tiny"]))  # lambdas are 1, 2 and 4
    assert Ladder.load(ladder_folder).models[1]["lmbda"] == 2
    for name, value in original.g_s.state_dict().items():
        assert torch.equal(back.g_s.state_dict()[name], value.half().float())
    with torch.no_grad():
        y, z = latents(original, crops)
        bits = [[float(rate(p, 1)) for p in net.entropy_model(y.round(), z, 1e-6)] for net in (original, back)]
    assert bits[1] == pytest.approx(bits[0], rel=0.02)


def test_what_cannot_be_started_from(tmp_path: Path, ladder_folder: Path) -> None:
    with pytest.raises(UserError, match="neither weights nor a finished stage"):
        initial_weights(tmp_path, "main", 4.0, RECIPE.model)
    with pytest.raises(UserError, match="another network"):
        initial_weights(ladder_folder, "main", 4.0, PRESETS["small"])
