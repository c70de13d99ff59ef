"""What a training stage does, as a frozen value, and the recipes that come with the project.

Four stages are those of the 2020 paper (section 3) and the 2021 paper (section 1): main network, post-filter, joint
fine-tuning with the padding strategy, soft-then-hard. A fifth, ours, goes on with the entropy model alone: files become
smaller, decoded pictures stay as they are. The networks of the 4th paper have two, main and hard (its
joint training and post-training), and MSE for the distortion.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from submission.config import NETWORKS, PRESETS, ModelConfig, small
from submission.errors import UserError

StageName = Literal["trunk", "main", "post_filter", "joint", "hard", "entropy"]
Metric = Literal["ms-ssim", "mse"]

#: Highest rate of stages that start from weights that work: twice that undid some of them in short stages.
WARM_LR = 5e-4

STAGES: tuple[StageName, ...] = ("main", "post_filter", "joint", "hard", "entropy")


@dataclass(frozen=True)
class Stage:
    """One stage of training; `steps` are optimiser steps of `batch` crops of `crop` x `crop` pixels."""

    name: StageName
    steps: int
    lr: float
    #: `step`: lr, and a tenth of it for the second half (the CLIC papers). `cosine`: lr falling to zero (short runs).
    #: `flat`: lr until the last part, then falling to zero: other runs can branch off before, and a run that goes on
    #: may do so with other `steps`. `steps`: lr, a tenth of it at the end, a hundredth at the very end (the 4th
    #: paper).
    schedule: Literal["step", "cosine", "flat", "steps"]
    crop: int
    batch: int
    #: Steps at the start that minimise R + 50 lambda MSE instead: the gradient of MS-SSIM can vanish at first.
    warmup: int = 0
    #: Algorithm 1 of the 2020 paper: largest simulated padding in pixels; 0 switches it off.
    padding: int = 0
    #: Lower bound of sigma: 0.11 while noise stands for rounding, 1e-6 once rounding is real (4th paper).
    scale_bound: float = 0.11
    #: What stands for rounding while the encoder is trained (trunk, main, joint): one that is NAMED in
    #: `training.objective.quantization`, or RATE/DISTORTION.
    quantizer: str = "aun"
    #: Largest temperature coefficient of quantizers that anneal: reached in the main stage, kept in the joint one.
    sharpness: float = 12.0
    #: The distortion D of R + lambda D: 1 - MS-SSIM, or the squared error of pictures in 0..255.
    metric: Metric = "ms-ssim"
    #: `adam` (the papers) or `soap` (`training.loop.soap`), which needs fewer steps; its rate is another one.
    optimizer: Literal["adam", "soap"] = "adam"
    clip: float = 1.0
    #: Hard stage with zero-centre quantisation: the distortion moves the means, too; in the 4th paper the rate alone.
    distortion_moves_means: bool = False
    #: The trunk's range of lambda: each step of each process draws its own.
    lambdas: tuple[float, float] | None = None
    #: Share of the crops that are taken from pictures at half their size.
    half: float = 0.0
    seed: int = 1
    #: Time budget: the schedule follows the clock instead of `steps`, which then only give the proportions.
    seconds: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether the encoder learns, with something that stands for rounding."""
        return self.name in ("trunk", "main", "joint")

    def warm(self) -> "Stage":
        """The stage for weights that work already: without warm-up, at a rate that does not undo them first."""
        return dataclasses.replace(self, warmup=0, lr=self.lr if self.name == "trunk" else min(self.lr, WARM_LR))

    def table(self) -> str:
        """The stage as lines of `name value`."""
        values = dataclasses.asdict(self)
        width = max(map(len, values))
        return "\n".join(f"  {name:{width}}  {value}" for name, value in values.items())


@dataclass(frozen=True)
class Recipe:
    """A model, its stages, and the ladder: the base model is trained from scratch, every other one starts from its
    finished neighbour and takes `neighbour` steps in the stages."""

    model: ModelConfig
    stages: tuple[Stage, ...]
    lambdas: tuple[float, ...]
    #: The lambda that is trained first, from scratch.
    base: float
    neighbour: tuple[int, ...]

    def stage(self, name: StageName) -> Stage:
        """A stage by name, UserError if the recipe has none; the trunk is trained as the main network is, for
        all lambdas together and so for longer."""
        if name == "trunk":
            main = self.stages[0]
            return dataclasses.replace(main, name="trunk", steps=20 * main.steps, batch=2 * main.batch, schedule="flat")
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise UserError(f"model {self.model.name} has no stage {name}: its recipe is {names}")

    def changed(self, **changes: Any) -> "Recipe":
        """The recipe with these fields of all its stages changed."""
        return dataclasses.replace(self, stages=tuple(dataclasses.replace(s, **changes) for s in self.stages))

    def for_metric(self, metric: Metric) -> "Recipe":
        """The recipe with this distortion, and the usual lambdas of it where that is another one."""
        if metric == self.stages[0].metric:
            return self
        lambdas, base = LAMBDAS[metric]
        return dataclasses.replace(self.changed(metric=metric), lambdas=lambdas, base=base)


def _paper_stages() -> tuple[Stage, ...]:
    """300k steps at 1e-4 and 300k at 1e-5 in each stage, 200k in the last; 256 x 256 crops, batch 8 (2020, 3)."""
    first = Stage("main", 600_000, 1e-4, "step", 256, 8, warmup=5_000)
    return (
        first,
        dataclasses.replace(first, name="post_filter", warmup=0),
        dataclasses.replace(first, name="joint", warmup=0, padding=20),
        dataclasses.replace(first, name="hard", warmup=0, padding=20, steps=200_000, scale_bound=1e-6),
    )


def _short_stages(
    main: int, post_filter: int, joint: int, hard: int, entropy: int, crop: int, batch: int
) -> tuple[Stage, ...]:
    """The same four stages for hours instead of weeks, and the fifth: SOAP, and higher rates that fall to zero."""
    later = Stage("post_filter", post_filter, 1e-3, "cosine", crop, batch, optimizer="soap")
    return (
        dataclasses.replace(later, name="main", steps=main, warmup=main // 16),
        later,
        dataclasses.replace(later, name="joint", steps=joint, lr=3e-4, padding=20),
        dataclasses.replace(later, name="hard", steps=hard, lr=3e-4, padding=20, scale_bound=1e-6),
        # rates of the stages before undo in hundreds of steps what those have found
        dataclasses.replace(
            later, name="entropy", steps=entropy, lr=2.5e-4, batch=2 * batch, padding=20, scale_bound=1e-6
        ),
    )


def _post_training_stages() -> tuple[Stage, ...]:
    """The 4th paper's (6.1.2): 450 and 100 epochs of 20,000 pictures in batches of 8, 256 x 256 crops; the rate falls
    to a tenth and a hundredth after 400 and 425 epochs, and after 50 and 75."""
    main = Stage("main", 1_125_000, 1e-4, "steps", 256, 8, metric="mse")
    return main, dataclasses.replace(main, name="hard", steps=250_000, scale_bound=1e-6)


def _short_post_training_stages(main: int, hard: int, crop: int, batch: int) -> tuple[Stage, ...]:
    """The same two for hours instead of weeks."""
    first = Stage("main", main, 1e-3, "cosine", crop, batch, metric="mse", optimizer="soap")
    return first, dataclasses.replace(first, name="hard", steps=hard, lr=3e-4, scale_bound=1e-6)


#: From Kodak to CLIC, 0.075 to 0.30 bpp: the allocator wants neighbours on both sides of each cap.
_LAMBDAS = (2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0)

#: Those usual for the squared error (CompressAI's first six), about 0.1 to 0.9 bpp on Kodak.
_MSE_LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483)

#: Lambdas of a ladder and its base where a recipe is used with another metric than its own.
LAMBDAS: dict[Metric, tuple[tuple[float, ...], float]] = {"ms-ssim": (_LAMBDAS, 10.0), "mse": (_MSE_LAMBDAS, 0.013)}

RECIPES = {
    "tiny": Recipe(PRESETS["tiny"], _short_stages(6, 4, 4, 4, 3, 192, 2), (3.0, 12.0), 3.0, (3, 2, 2, 2, 2)),
    "small": Recipe(
        PRESETS["small"],
        _short_stages(8000, 300, 800, 400, 600, 192, 4),
        (0.8, 1.6, 3.0, 6.0, 12.0, 26.0, 60.0),
        6.0,
        (1000, 80, 100, 1600, 500),
    ),
    "base": Recipe(
        PRESETS["base"],
        _short_stages(60_000, 6_000, 12_000, 8_000, 8_000, 256, 8),
        _LAMBDAS,
        10.0,
        (8_000, 1_000, 6_000, 6_000, 4_000),
    ),
    "paper": Recipe(PRESETS["paper"], _paper_stages(), _LAMBDAS, 20.0, (300_000, 300_000, 300_000, 200_000)),
    **{
        model.name: Recipe(model, _post_training_stages(), _MSE_LAMBDAS, 0.013, (250_000, 250_000))
        for model in NETWORKS
    },
    **{
        model.name: Recipe(model, _short_post_training_stages(8000, 800, 192, 4), _MSE_LAMBDAS, 0.013, (1000, 400))
        for model in map(small, NETWORKS)
    },
}
