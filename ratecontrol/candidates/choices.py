"""The ways to encode a picture that are measured: the models of a ladder, and refinements of each."""

import re
from dataclasses import dataclass

import torch

from ratecontrol.candidates.predict import Kind
from ratecontrol.refinement.refine import check_refinable, refine
from submission.codec import Encoded
from submission.errors import UserError
from submission.files import Picture
from submission.ladder import Ladder

#: Steps of refinement that are taken, and that are worth it (`docs/ratecontrol.md`).
MOST_STEPS, GOOD_STEPS = 10_000, 16


@dataclass(frozen=True)
class Choice:
    """A way to encode a picture: a model, and how its latents are refined (`ratecontrol.refinement`), if at all."""

    quality: int
    steps: int = 0  #: of refinement
    factor: str = "1"  #: its lambda over that of the model, as it was given

    @property
    def name(self) -> str:
        return f"q{self.quality}-r{self.factor}-s{self.steps}" if self.steps else f"q{self.quality}"

    def encode(self, ladder: Ladder, picture: Picture) -> Encoded:
        """The stream of `picture`, and what a decoder makes of it."""
        codec = ladder.codec(self.quality)
        if not self.steps:
            return codec.encode(picture)
        lmbda = float(self.factor) * float(ladder.models[self.quality]["lmbda"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        y, z = refine(codec, picture, lmbda, self.steps, device)
        return codec.encode_latents(y, z, *picture.shape[:2])


def every_choice(ladder: Ladder, qualities: str | None, steps: int, factors: str) -> list[Choice]:
    """What the options of `ratecontrol.measure` ask for; UserError for what cannot be."""
    if not 0 <= steps <= MOST_STEPS:
        raise UserError(f"--refine {steps}: 1 to {MOST_STEPS} steps; {GOOD_STEPS} are good")
    if not steps and factors != "1":
        raise UserError(f"--factors {factors}: is for refinements; give --refine {GOOD_STEPS}, too")
    multiples, models = parse_factors(factors), parse_qualities(qualities, ladder)
    choices = [Choice(quality) for quality in models]
    if steps:
        for quality in models:
            check_refinable(ladder, quality)
        choices += [Choice(quality, steps, factor) for quality in models for factor in multiples]
    return choices


def kinds_of(choices: list[Choice], ladder: Ladder) -> list[Kind]:
    """The same choices as `ratecontrol.candidates.search` takes them."""
    refinements = sorted({(choice.steps, choice.factor) for choice in choices if choice.steps})
    return [
        Kind(
            choice.quality,
            float(ladder.models[choice.quality]["lmbda"]),
            1 + refinements.index((choice.steps, choice.factor)) if choice.steps else 0,
        )
        for choice in choices
    ]


def parse_qualities(text: str | None, ladder: Ladder) -> list[int]:
    """`"0,2"` as a list; without it, all of the ladder."""
    if text is None:
        return ladder.qualities
    chosen = [quality for quality in ladder.qualities if str(quality) in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise UserError(f"--qualities {text}: give some of {','.join(map(str, ladder.qualities))}")
    return chosen


def parse_factors(text: str) -> list[str]:
    """`".5,1.0"` as `["0.5", "1"]`: one text a number, which names candidates; UserError unless each is a number from
    0.01 to 100, given once."""
    factors = text.split(",")
    for factor in factors:
        if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", factor) or not 0.01 <= float(factor) <= 100:
            raise UserError(f"--factors {text}: give numbers from 0.01 to 100, such as 0.7,1")
    factors = [f"{float(factor):g}" for factor in factors]
    if len(set(factors)) < len(factors):
        raise UserError(f"--factors {text}: names one twice")
    return factors
