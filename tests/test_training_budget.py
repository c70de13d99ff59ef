"""Time budgets: the schedule follows the clock, over several calls; a ladder's time is shared among its stages."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from submission.config import PRESETS
from submission.errors import UserError
from tests.training_kit import RECIPE, session
from training import ladder
from training.data.crops import Crops
from training.loop import jobs as side_by_side
from training.loop import train as loop
from training.loop.options import seconds
from training.loop.plan import PLANNED, Start, Task, makespan, ready, share_time, tasks
from training.loop.schedule import Moment, Pace, in_warmup, learning_rate
from training.loop.stage import run_stage
from training.recipe import RECIPES, WARM_LR, Stage, StageName

STAGE = dataclasses.replace(RECIPES["small"].stage("main"), seconds=100.0)


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_progress_follows_the_clock_over_several_calls(clock: Clock) -> None:
    pace = Pace(STAGE, 0.0, 0.0, clock.now)
    clock.now += 30
    assert pace.at(5).progress == pytest.approx(0.3)
    clock.now += 500  # another day
    pace = Pace(STAGE, 0.3, 30.0, clock.now)
    assert pace.at(5).progress == pytest.approx(0.3)
    clock.now += 35
    assert pace.at(9).progress == pytest.approx(0.65) and pace.spent == pytest.approx(65)
    clock.now += 36
    assert pace.at(10).progress == 1


def test_what_a_kill_loses_is_made_up(clock: Clock) -> None:
    """50 seconds gone, but saved at 0.3 only: the rest of the schedule fits the rest of the budget, without a jump."""
    pace = Pace(STAGE, 0.3, 50.0, clock.now)
    assert pace.at(0).progress == pytest.approx(0.3)
    clock.now += 25
    assert pace.at(1).progress == pytest.approx(0.65)
    clock.now += 25
    assert pace.at(2).progress == 1


def test_slow_preparations_leave_half_of_the_time(clock: Clock) -> None:
    pace = Pace(STAGE, 0.0, 0.0, clock.now - 500)
    assert pace.at(0).progress == pytest.approx(0.5) and pace.spent == pytest.approx(500)
    clock.now += 25
    assert pace.at(1).progress == pytest.approx(0.75)


def test_without_a_budget_steps_decide() -> None:
    stage = dataclasses.replace(STAGE, seconds=None, steps=8)
    assert [Pace(stage, 0.0, 0.0, 0.0).at(k).progress for k in range(9)] == [k / 8 for k in range(9)]


def test_the_learning_rate_of_the_papers() -> None:
    stage = RECIPES["paper"].stage("main")
    rates = [learning_rate(stage, Moment(k, k / stage.steps)) for k in (99, 299_999, 300_000, 599_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


@pytest.mark.parametrize(("name", "falls"), [("main", (400 / 450, 425 / 450)), ("hard", (50 / 100, 75 / 100))])
def test_the_learning_rate_of_the_fourth_paper(name: StageName, falls: tuple[float, float]) -> None:
    stage = RECIPES["ms-hyper"].stage(name)
    assert stage.schedule == "steps"
    at = [share * stage.steps + k for share in falls for k in (-1, 1)]
    rates = [learning_rate(stage, Moment(round(k), k / stage.steps)) / stage.lr for k in at]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_learning_rate_comes_down_to_zero() -> None:
    assert learning_rate(STAGE, Moment(500, 0.0)) == pytest.approx(STAGE.lr)
    assert learning_rate(STAGE, Moment(500, 0.5)) == pytest.approx(STAGE.lr / 2)
    assert learning_rate(STAGE, Moment(500, 1.0)) == pytest.approx(0, abs=1e-12)


def test_warm_up_keeps_its_share_of_the_time() -> None:
    """Of 8,000 steps 500 are MSE; of 100 seconds, 6.25."""
    assert in_warmup(STAGE, Moment(10**6, 0.0624)) and not in_warmup(STAGE, Moment(0, 0.0626))


def test_a_stage_ends_in_time_and_its_model_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 7 seconds on the test's clock, in calls that are killed after 5 of them."""
    clock = Clock(monkeypatch)
    at = Crops.at

    def slow(self: Crops, step: int) -> torch.Tensor:
        clock.now += 7
        return at(self, step)

    monkeypatch.setattr(Crops, "at", slow)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    stage: Stage = dataclasses.replace(RECIPE.stage("main"), seconds=100.0)
    calls = 0
    for _ in range(5):
        calls += 1
        before = clock.now
        monkeypatch.setattr(loop, "_stop_agreed", lambda *_, before=before: clock.now - before >= 35)
        try:
            run_stage(PRESETS["tiny"], stage, 4.0, tmp_path, None, session(), clock.now)
            break
        except KeyboardInterrupt:
            clock.now += 3600
    assert calls == 3
    state = torch.load(tmp_path / "main.pt", weights_only=True)
    assert state["done"] and state["progress"] == 1 and state["step"] == math.ceil(100 / 7)
    assert 100 <= state["seconds"] <= 107
    names, *_, values = (line.split(",") for line in (tmp_path / "main.csv").read_text().splitlines())
    last = dict(zip(names, values, strict=True))
    assert last["step"] == "15" and float(last["lr"]) < 0.02 * stage.lr and last["val_msssim"]


@pytest.mark.parametrize(("text", "value"), [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("45", 45), ("1.5h", 5400)])
def test_times_are_read(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "20 m", "m20", "-5m", "0s", "20mm"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time; give one such as 20m"):
        seconds(text)


def test_a_ladder_shares_its_time_by_steps() -> None:
    """One after the other, everything together takes the planned part of the budget."""
    work = tasks(RECIPES["base"], "random")
    shares = share_time(work, {}, 1, 1500.0)
    assert sum(shares.values()) == pytest.approx(PLANNED * 1500)
    assert shares[10.0, "main"] / shares[10.0, "hard"] == pytest.approx(60_000 / 8_000)
    assert shares[10.0, "main"] / shares[14.0, "main"] == pytest.approx(60_000 / 8_000)


def test_side_by_side_a_task_that_goes_on_counts_with_what_is_left_of_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    """Not with the time that it took before."""
    run = ladder.LadderRun(
        RECIPES["small"], tmp_path, ladder.Clock(tmp_path / "time.json", clock.now), budget=1e4, jobs=2
    )
    work = tasks(run.recipe, run.begins_with)
    first, second = work[0], next(task for task in work if task.key == (12.0, "main"))
    progress = {first.key: (0.9, 5000.0, False)}
    monkeypatch.setattr(ladder.LadderRun, "progress", lambda _, task: progress.get(task.key, (0.0, 0.0, False)))
    launched: list[Any] = []

    def two(pending: list[Task], _jobs: int, launch: Callable[..., side_by_side.Launched], _tick: object) -> None:
        launched.append(launch(first, {task.key for task in pending}).arguments[2])
        clock.now += 7
        launched.append(launch(second, {task.key for task in pending}).arguments[2])

    monkeypatch.setattr(ladder, "run_side_by_side", two)
    ladder.train_side_by_side(run, argparse.Namespace())
    share = share_time(work, {first.key: 0.1}, 2, 1e4)[first.key]
    assert launched[0].seconds == pytest.approx(5000 + share)
    left = {first.key: 0.1 * (1 - 7 / share)}
    assert launched[1].seconds == pytest.approx(share_time(work, left, 2, 1e4 - 7)[second.key])


@pytest.mark.parametrize("jobs", [1, 2, 4, 40])
@pytest.mark.parametrize("begins_with", ["random", "models", "trunk"])
def test_a_plan_for_several_jobs_takes_the_budget_and_breaks_no_need(jobs: int, begins_with: Start) -> None:
    work = tasks(RECIPES["base"], begins_with)
    shares = share_time(work, {work[0].key: 0.5}, jobs, 1000.0)
    assert makespan(work, shares, jobs) == pytest.approx(PLANNED * 1000, rel=0.05)  # ties may fall otherwise
    assert sum(shares.values()) <= jobs * 1000


def test_each_task_needs_the_stage_before_and_its_neighbours() -> None:
    """Whatever the number of jobs, a task starts after everything that it loads is there."""
    work = tasks(RECIPES["small"], "random")
    needs = {task.key: set(task.needs) for task in work}
    assert needs[6.0, "main"] == set() and needs[6.0, "joint"] == {(6.0, "post_filter")}
    assert needs[12.0, "main"] == {(6.0, "main")}
    assert needs[26.0, "post_filter"] == {(26.0, "main"), (12.0, "post_filter")}
    done: set[object] = set()
    for task in work:  # the order itself is one that a single job can follow
        assert needs[task.key] <= done
        done.add(task.key)
    assert [t.key for t in ready(work, {t.key for t in work}, 9)] == [(6.0, "main")]
    assert all(not t.needs for t in tasks(RECIPES["small"], "models") if t.stage.name == "main")


def test_behind_a_trunk_only_post_filters_come_from_neighbours() -> None:
    """A trunk has none: the base's is trained at length, the others go on from their neighbour's."""
    recipe = RECIPES["small"]
    work = {task.key: task for task in tasks(recipe, "trunk")}
    assert all((task.neighbour is None) == (key[1] != "post_filter" or key[0] == 6.0) for key, task in work.items())
    assert work[12.0, "post_filter"].needs == ((12.0, "main"), (6.0, "post_filter"))
    assert work[6.0, "post_filter"].stage.steps == recipe.stages[1].steps
    assert work[12.0, "post_filter"].stage.steps == recipe.neighbour[1]
    assert {work[lmbda, "main"].stage.steps for lmbda in recipe.lambdas} == {recipe.neighbour[0]}


def test_weights_that_work_are_not_undone() -> None:
    """Whoever starts from them, a stage script or a ladder, has the same rate and no warm-up; a trunk goes on hot."""
    small, paper = (RECIPES[name].stage("main") for name in ("small", "paper"))
    assert (small.warm().lr, small.warm().warmup) == (WARM_LR, 0) and small.lr > WARM_LR
    assert paper.warm() == dataclasses.replace(paper, warmup=0)
    assert RECIPES["small"].stage("trunk").warm().lr == small.lr
    assert {t.stage.lr for t in tasks(RECIPES["small"], "models") if t.stage.name == "main"} == {WARM_LR}
