"""The size of a network, as one frozen value, and the presets that this project trains.

Every part that the CLIC 2020 and 2021 papers name is a field here, so that each can be switched off and measured.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from submission.errors import WeightsError

#: Pictures are zero-padded at the right and bottom to multiples of this: 4 + 2 downsamplings (2020 paper, 2.4).
PAD = 64


@dataclass(frozen=True)
class GRDNConfig:
    """Post-filter size: `groups` GRDBs of `blocks` RDBs of `layers` convolutions (Kim et al. 2019)."""

    channels: int = 64
    growth: int = 64
    groups: int = 4
    blocks: int = 4
    layers: int = 8


@dataclass(frozen=True)
class ModelConfig:
    """Channel counts and switches of one model. `M` and `N` are the latent and hyper-latent channels."""

    name: str
    M: int
    N: int
    #: Channels of g_a at 1/2, 1/4 and 1/8 of the picture's size; g_s has them in reverse. The paper has N everywhere;
    #: fewer at the large sizes ("tapered") cost several times less there.
    analysis: tuple[int, int, int]
    synthesis: tuple[int, int, int]
    #: Width of the 1x1 layers that estimate entropy parameters.
    estimator: int
    #: `plain`: Cheng et al.'s simplified attention (2020). `group`: group-separate attention (2021).
    attention: Literal["plain", "group"] = "group"
    #: 2: the 3-D context model; 1: the ordinary 2-D one.
    groups: Literal[1, 2] = 2
    #: Residual parameter estimation (2020 paper, 2.3).
    rpe: bool = True
    #: Gaussians in the mixture, K.
    mixtures: int = 3
    #: A step of quantisation for each element of y, learned and sent with z (soft-then-hard, ICML 2021); else 1.
    learned_step: bool = False
    #: None: no post-filter.
    grdn: GRDNConfig | None = GRDNConfig()

    def __post_init__(self) -> None:
        if any(channels % 4 for channels in (self.M, self.N, *self.analysis, *self.synthesis)):
            raise ValueError("channels must be multiples of 4: attention halves each of its two groups")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`; WeightsError on unknown or missing fields."""
        try:
            fields = dict(value)
            fields["analysis"] = tuple(fields["analysis"])
            fields["synthesis"] = tuple(fields["synthesis"])
            fields["grdn"] = GRDNConfig(**fields["grdn"]) if fields["grdn"] is not None else None
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"model configuration not understood ({error}); made by another version?") from None


PRESETS = {
    config.name: config
    for config in (
        # Seconds to train, no use as a codec: for tests.
        ModelConfig("tiny", 16, 8, (8, 8, 8), (8, 8, 8), 24, grdn=GRDNConfig(8, 8, 1, 2, 2)),
        # Two CPU cores train it in an hour or two and decode a 3-megapixel photo in seconds.
        ModelConfig("small", 96, 64, (32, 48, 96), (96, 48, 32), 192, grdn=GRDNConfig(24, 16, 2, 2, 3)),
        # A decoder that two cores run in seconds, wide where it is cheap; wants a GPU to train.
        ModelConfig("base", 192, 192, (96, 128, 192), (192, 128, 64), 448, grdn=GRDNConfig(48, 24, 2, 3, 3)),
        # As the papers have it: constant width, full GRDN.
        ModelConfig("paper", 192, 192, (192, 192, 192), (192, 192, 192), 640),
    )
}
