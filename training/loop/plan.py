"""The work of a ladder: its tasks, what each needs first, and how a time budget is shared among them."""

import dataclasses
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from training.recipe import STAGES, Recipe, Stage, StageName

#: Part of the time that is planned with: the rest is for starting and for the last steps.
PLANNED = 0.98

Key = tuple[float, StageName]

#: What a ladder starts from: random weights, other models, or a trunk, which has no post-filter.
Start = Literal["random", "models", "trunk"]


@dataclass(frozen=True)
class Task:
    """One stage of one lambda."""

    lmbda: float
    stage: Stage
    #: The lambda whose models it starts from; None: from scratch, or from a folder given with --init.
    neighbour: float | None
    needs: tuple[Key, ...]

    @property
    def key(self) -> Key:
        return self.lmbda, self.stage.name

    def __str__(self) -> str:
        return f"{self.stage.name} lambda={self.lmbda:g}"


def order(lambdas: tuple[float, ...], base: float) -> list[tuple[float, float | None]]:
    """(lambda, the neighbour it starts from), base first, then outwards: each starts from a finished model."""
    ordered = sorted(lambdas)
    at = ordered.index(base)
    up = [(ordered[k], ordered[k - 1]) for k in range(at + 1, len(ordered))]
    down = [(ordered[k], ordered[k + 1]) for k in range(at - 1, -1, -1)]
    pairs: list[tuple[float, float | None]] = [(base, None)]
    for k in range(max(len(up), len(down))):
        pairs += up[k : k + 1] + down[k : k + 1]
    return pairs


def tasks(recipe: Recipe, begins_with: Start) -> list[Task]:
    """All stages of all lambdas, so that a usable ladder exists early and grows. The base starts with random weights
    and the others with their neighbour's, or all with those of other models or of a trunk; behind a trunk the
    post-filters alone come from random weights and neighbours.

    Each has crops of its own, since a model has seen those of the models that it comes from. A stage needs the one
    before it; the first two also those of the neighbour that they start from. So a neighbour's
    first stage can run beside the later stages of the model it comes from.
    """
    found = []
    for place, (lmbda, neighbour) in enumerate(order(recipe.lambdas, recipe.base)):
        for k, stage in enumerate(recipe.stages):
            name = stage.name
            given = begins_with == "models" or (begins_with == "trunk" and name != "post_filter")
            start = None if given else neighbour
            stage = dataclasses.replace(stage, seed=stage.seed + place * len(STAGES) + k)
            if given or neighbour is not None:
                stage = dataclasses.replace(stage.warm(), steps=recipe.neighbour[k])
            before: list[Key] = [(lmbda, recipe.stages[k - 1].name)] if k else []
            if start is not None and name in ("main", "post_filter"):
                before.append((start, name))
            found.append(Task(lmbda, stage, start, tuple(before)))
    return found


def share_time(pending: list[Task], left: Mapping[Key, float], jobs: int, seconds: float) -> dict[Key, float]:
    """Seconds for each task, in proportion to its steps, so that `jobs` at a time they take `seconds` together.

    `left`: the part of a task that is still to do, for those that have been begun.
    """
    weights = {task.key: task.stage.steps * left.get(task.key, 1.0) for task in pending}
    length = makespan(pending, weights, jobs)
    return {key: PLANNED * seconds * weight / length for key, weight in weights.items()}


def makespan(pending: list[Task], duration: Mapping[Key, float], jobs: int) -> float:
    """When the last task ends if each starts as soon as it may, earlier ones in the list first."""
    waiting, running, now = list(pending), list[tuple[float, Key]](), 0.0
    missing = {task.key for task in pending}
    while waiting or running:
        for task in ready(waiting, missing, jobs - len(running)):
            waiting.remove(task)
            heapq.heappush(running, (now + duration[task.key], task.key))
        now, ended = heapq.heappop(running)
        missing.discard(ended)
    return now


def ready(waiting: list[Task], missing: set[Key], count: int) -> list[Task]:
    """The first `count` tasks that need nothing that is still missing."""
    return [task for task in waiting if not missing.intersection(task.needs)][: max(count, 0)]
