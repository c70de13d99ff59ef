"""The parts and the size of a network, as one frozen value, and the presets that this project trains.

Every part that the CLIC 2020 and 2021 papers name is a field here, so that each can be switched off and measured; so
are the transforms and entropy models of the networks that the 4th paper compares. `submission.parts` puts them
together.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

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


#: `cheng`: residual blocks, GDN, attention (Cheng et al. 2020). `balle`: strided 5x5 convolutions with GDN (Balle et
#: al. 2018). `elic`: residual bottlenecks and attention (He et al. 2022); `elic-sm`: fewer bottlenecks and no
#: attention.
TransformName = Literal["cheng", "balle", "elic", "elic-sm"]

#: `mixture`: 5x5 causal context, Gaussian mixtures (the CLIC papers'). The others have one Gaussian for each latent.
#: `hyper`: from z alone; `context`: 5x5 causal context (both Minnen et al. 2018). `channel`: slices of channels one
#: after the other (Minnen and Singh 2020). `elic`: uneven slices, each in two passes of a checkerboard (He et al.
#: 2022).
EntropyName = Literal["mixture", "hyper", "context", "channel", "elic"]


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
    #: Width of the 1x1 layers that estimate entropy parameters: of both hidden ones (mixture), of the first (context;
    #: the second has 4/5 of it), or the least of them (elic).
    estimator: int
    #: `plain`: Cheng et al.'s simplified attention (2020). `group`: group-separate attention (2021).
    attention: Literal["plain", "group", "none"] = "group"
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
    #: The 2020 paper's further attention blocks in g_a and h_a of `cheng`.
    extra_attention: bool = True
    transforms: TransformName = "cheng"
    entropy: EntropyName = "mixture"
    #: Latents are rounded around the mean of their Gaussian, not to integers (4th paper, 4.6.2).
    zero_centre: bool = False
    #: Channels of each slice of y (channel, elic).
    slices: tuple[int, ...] = ()
    #: Widths of the two hidden layers that predict a slice from those before (channel, elic).
    predictor: tuple[int, int] = (224, 128)

    def __post_init__(self) -> None:
        if any(channels % 4 for channels in (self.M, self.N, *self.analysis, *self.synthesis)):
            raise ValueError("channels must be multiples of 4: attention halves each of its two groups")
        if self.transforms not in get_args(TransformName) or self.entropy not in get_args(EntropyName):
            raise ValueError(f"no such parts: transforms {self.transforms!r}, entropy {self.entropy!r}")
        if self.sliced and (sum(self.slices) != self.M or min(self.slices, default=0) < 1):
            raise ValueError(f"slices {list(self.slices)} do not make up the {self.M} channels of y")
        if self.slices and not self.sliced:
            raise ValueError(f"entropy model {self.entropy} has no slices")
        if self.entropy != "mixture" and (self.groups, self.rpe, self.mixtures) != (1, False, 1):
            raise ValueError(f"entropy model {self.entropy} has one Gaussian: groups=1, rpe=False, mixtures=1")
        if self.zero_centre and self.entropy in ("mixture", "context"):
            reason = "a mixture has several means" if self.entropy == "mixture" else "training would go pixel by pixel"
            raise ValueError(f"zero_centre is for hyper, channel and elic: {reason}")
        if self.zero_centre and self.learned_step:
            raise ValueError("zero_centre and learned_step exclude each other")

    @property
    def sliced(self) -> bool:
        """Whether y is coded slice by slice."""
        return self.entropy in ("channel", "elic")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`; WeightsError on unknown or missing fields."""
        try:
            fields = dict(value)
            for name in ("analysis", "synthesis", "slices", "predictor"):
                if name in fields:
                    fields[name] = tuple(fields[name])
            fields["grdn"] = GRDNConfig(**fields["grdn"]) if fields["grdn"] is not None else None
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"model configuration not understood ({error}); made by another version?") from None


_PAPER = (192, 192, 192)

#: What the networks of the 4th paper have in common: none of the CLIC papers' additions.
_PLAIN = ModelConfig(
    *("plain", 320, 192, _PAPER, _PAPER, 0), "plain", 1, False, 1, grdn=None, extra_attention=False, entropy="hyper"
)
_MINNEN = dataclasses.replace(_PLAIN, transforms="balle")
_CHENG = dataclasses.replace(_PLAIN, M=192, estimator=640, mixtures=3, entropy="mixture")
_CHARM = dataclasses.replace(_MINNEN, entropy="channel", slices=(32,) * 10)
_ELIC = dataclasses.replace(_PLAIN, entropy="elic", estimator=384, slices=(16, 16, 32, 64, 192), zero_centre=True)

#: The networks of the 4th paper (6.1.1) at their papers' sizes.
NETWORKS = (
    dataclasses.replace(_MINNEN, name="ms-hyper"),
    dataclasses.replace(_MINNEN, name="ms-hyper-zero", zero_centre=True),
    dataclasses.replace(_MINNEN, name="ms-context", entropy="context", estimator=1066),
    dataclasses.replace(_CHENG, name="cheng-anchor", attention="none"),
    dataclasses.replace(_CHENG, name="cheng-attn"),
    dataclasses.replace(_CHARM, name="charm"),
    dataclasses.replace(_CHARM, name="charm-zero", zero_centre=True),
    dataclasses.replace(_ELIC, name="elic-sm-zero", transforms="elic-sm"),
    dataclasses.replace(_ELIC, name="elic-zero", transforms="elic"),
)


def small(config: ModelConfig) -> ModelConfig:
    """A network of the 4th paper at a size that two CPU cores train."""
    estimator = {"mixture": 192, "context": 320, "elic": 128}.get(config.entropy, 0)
    slices = {"channel": (8,) * 10, "elic": (8, 8, 16, 32, 32)}.get(config.entropy, ())
    size = ModelConfig("", sum(slices) or 96, 64, (32, 48, 96), (96, 48, 32), estimator)
    return _resized(config, "small", size, slices, (64, 48))


def tiny(config: ModelConfig) -> ModelConfig:
    """The same for tests: seconds to train, no use as a codec."""
    estimator = {"mixture": 24, "context": 52, "elic": 16}.get(config.entropy, 0)
    slices = {"channel": (4,) * 7, "elic": (4, 4, 8)}.get(config.entropy, ())
    size = ModelConfig("", sum(slices) or 16, 8, (8, 8, 8), (8, 8, 8), estimator)
    return _resized(config, "tiny", size, slices, (12, 8))


def _resized(
    config: ModelConfig, label: str, size: ModelConfig, slices: tuple[int, ...], predictor: tuple[int, int]
) -> ModelConfig:
    """`config` with the channels of `size`."""
    channels = {k: getattr(size, k) for k in ("M", "N", "analysis", "synthesis", "estimator")}
    return dataclasses.replace(config, name=f"{config.name}-{label}", slices=slices, predictor=predictor, **channels)


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
        *NETWORKS,
        *map(small, NETWORKS),
    )
}
