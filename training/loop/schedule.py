"""How far a stage has come, in steps or in seconds of a budget, and what follows from it: learning rate, warm-up."""

import math
import time
from dataclasses import dataclass

from training.network.device import ALONE, World
from training.recipe import Stage

#: Steps between looks at the clock where several processes must agree on it.
LOOK_EVERY = 10

#: The learning rate rises over this many steps at most, while Adam gathers its averages.
RISE = 100

#: Share of a stage, its end, over which a `flat` learning rate falls to zero.
COOLDOWN = 0.3


@dataclass(frozen=True)
class Moment:
    """A point of a stage: steps done, and how far that is, 0 to 1."""

    step: int
    progress: float


def learning_rate(stage: Stage, now: Moment) -> float:
    rise = min(1.0, (now.step + 1) / min(RISE, max(stage.steps // 10, 1)))
    if stage.schedule == "flat":
        return stage.lr * rise * min(1.0, (1 - now.progress) / COOLDOWN)
    if stage.schedule == "step":
        return stage.lr * rise * (1.0 if now.progress < 0.5 else 0.1)
    if stage.schedule == "steps":
        falls = (400 / 450, 425 / 450) if stage.name == "main" else (0.5, 0.75)
        return stage.lr * rise * 0.1 ** sum(now.progress >= at for at in falls)
    return stage.lr * rise * 0.5 * (1 + math.cos(math.pi * now.progress))


def in_warmup(stage: Stage, now: Moment) -> bool:
    """Whether MSE stands for MS-SSIM."""
    return now.progress < stage.warmup / stage.steps


class Pace:
    """How far a stage has come: the share of its steps that are done, or of its seconds where it has a time budget.

    With a budget the clock alone moves the schedule: a slow machine, a pause for compiling or a neighbour on the GPU
    costs steps, but the learning rate always comes down to its end in time. `begun` (0 to 1) is how far calls before
    this one came and `spent` the seconds that they took; this call counts from `started` (`time.monotonic`), so that
    its preparations are paid as well. What is left of the schedule is fitted to what is left of the budget.
    """

    def __init__(self, stage: Stage, begun: float, spent: float, started: float, world: World = ALONE) -> None:
        self.stage, self.world, self.begun = stage, world, begun
        self.offset = spent - started
        self.left = max((stage.seconds or 0.0) - spent, 1e-9)
        # slow preparations take no more than half of the time: a stage of no steps would be worth nothing
        self.grace = max(0.0, time.monotonic() - started - self.left / 2)
        self._seen: tuple[int, float] | None = None
        self._per_step = 0.0
        self._furthest = begun

    @property
    def spent(self) -> float:
        """Seconds used so far, by all calls."""
        return time.monotonic() + self.offset

    def at(self, step: int) -> Moment:
        if self.stage.seconds is None:
            return Moment(step, step / self.stage.steps)
        used = 1 - (self.stage.seconds - self._elapsed(step)) / self.left
        self._furthest = max(self._furthest, min(1.0, self.begun + (1 - self.begun) * used))
        return Moment(step, self._furthest)

    def _elapsed(self, step: int) -> float:
        """Seconds spent, the same on all processes: between looks it is reckoned from the last rate."""
        if self.world.size == 1:
            return self.spent - self.grace
        if self._seen is None or step - self._seen[0] >= LOOK_EVERY:
            elapsed = float(self.world.share(self.spent - self.grace))
            if self._seen is not None:
                self._per_step = (elapsed - self._seen[1]) / (step - self._seen[0])
            self._seen = (step, elapsed)
        return self._seen[1] + (step - self._seen[0]) * self._per_step
