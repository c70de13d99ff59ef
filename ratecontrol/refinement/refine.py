"""Encoder refinement: better integers for one picture, with the decoder and its entropy model as they are.

The encoder's g_a was trained for all pictures; for one picture other latents have a lower R + lambda (1 - MS-SSIM)
(Yang, Bamler and Mandt, "Improving inference for neural image compression", 2020). That paper anneals a continuous
relaxation over thousands of steps. Here the latents stay integers, and each step is a move that is known to pay:

1. one forward and backward pass gives the loss and its slope at the current integers;
2. the loss of moving one integer by one is predicted from the slope (distortion, and rate of what the integer is
   context for), a curvature for each channel and place, and the exact cost of the integer itself under its mixture;
3. the most promising moves are made together and the loss is computed again, which is the next step's pass. What does
   not lower it is taken back, and fewer moves are tried: a trust region. So the loss only falls, whenever one stops.

The post-filter enters as what it adds to the picture, renewed every few steps; its own gradient costs twice the rest
and gains nothing (`docs/ratecontrol.md`).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.msssim import MSSSIM
from ratecontrol.refinement.memory import kept_memory, refining_bytes
from ratecontrol.refinement.rate import Rate
from submission import memory
from submission.codec import Codec
from submission.config import PAD, ModelConfig
from submission.entropy_coding import EntropyCoder
from submission.errors import ImageError, UserError
from submission.files import Picture
from submission.ladder import Ladder
from submission.latent_coding import STEP_BITS, Latents
from submission.precision import fast_bfloat16
from submission.tiles import tiles

#: Larger pictures are refined in blocks of at most this many units of 64 pixels a side, each on its own, to bound the
#: memory (`docs/ratecontrol.md`).
BLOCK = 2048 // PAD

#: Steps after which the post-filter's share is computed anew.
RENEW = 8

#: Part of the promising moves that is tried at first; what it is multiplied by after a step that failed, that gained
#: less than `DOUBTFUL` of what was promised, or that went well.
FIRST_SHARE, AFTER_FAILURE, AFTER_DOUBT, AFTER_SUCCESS = 0.5, 0.4, 0.8, 1.5
DOUBTFUL = 0.3

#: How far the curvature of a place may be from its channel's.
PLACES = 0.1, 10.0

#: Bits that a move must promise.
LEAST_GAIN = 0.02


@dataclass(frozen=True)
class State:
    """Integer latents and what is known about moving them, all in bits; lists hold y's and z's, [1, C, h, w]."""

    latents: list[Tensor]
    loss: float
    slope: list[Tensor]  #: of everything but each integer's own cost
    up: list[Tensor]  #: own cost of one more, less the present one
    down: list[Tensor]


class Objective:
    """The loss of one picture's latents in one model: bits + lambda * pixels * (1 - MS-SSIM)."""

    def __init__(self, codec: Codec, picture: Picture, lmbda: float, steps: Tensor) -> None:
        """`steps` are the quantisation steps of y, [1, M, h, w] or [1, 1, 1, 1], on the device to compute on."""
        device, self.steps = steps.device, steps
        #: Learned steps follow from z, which then stays as it is.
        self.z_moves = not codec.config.learned_step
        x = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255
        self.height, self.width = picture.shape[:2]
        self.weight = lmbda * self.height * self.width
        self.similarity = MSSSIM(x, joint_channels=True)
        assert isinstance(codec.entropy, EntropyCoder)
        self.rate = Rate(codec.config, codec.entropy).to(device)
        self.transforms = codec.transforms if device.type == "cpu" else copy.deepcopy(codec.transforms).to(device)
        fast = device.type == "cuda" or fast_bfloat16()
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=fast)
        self.filtered: Tensor | float = 0.0

    def picture(self, y: Tensor) -> Tensor:
        """What g_s makes of y's symbols, padding included."""
        with self.autocast:
            x: Tensor = self.transforms.g_s((y * self.steps).contiguous(memory_format=torch.channels_last))
        return x.float()

    @torch.no_grad()
    def renew_filter(self, y: Tensor) -> None:
        """Compute what the post-filter adds at y; it counts as constant until the next call."""
        x = self.picture(y)
        with self.autocast:
            self.filtered = self.transforms.post_filter(x).float() - x

    def state(self, latents: list[Tensor]) -> State:
        """The loss at `latents` and what moving them would do to it."""
        y, z = (latent.detach().requires_grad_() for latent in latents)
        features = self.rate.hyper_features(z)
        mixtures = self.rate.mixtures(y, features)
        bits = self.rate.y_cost(y.detach(), mixtures).sum()
        slope_y, slope_z = torch.autograd.grad(bits, [y, z])
        x_hat = (self.picture(y) + self.filtered)[:, :, : self.height, : self.width].clamp(0, 1)
        distortion = self.weight * (1 - self.similarity(x_hat))
        slope_y = slope_y + torch.autograd.grad(distortion, y)[0]
        with torch.no_grad():
            costs = [(self.rate.y_cost(y + step, mixtures), self.rate.z_cost(z + step)) for step in (0, 1, -1)]
            loss = float(bits + distortion + costs[0][1].sum())
            up, down = ([a - b for a, b in zip(costs[k], costs[0], strict=True)] for k in (1, 2))
            if not self.z_moves:
                up[1], down[1] = (torch.full_like(z, torch.inf) for _ in range(2))
        return State([y.detach(), z.detach()], loss, [slope_y, slope_z], up, down)


class Curvature:
    """Second derivative of the loss along each integer of a latent, learned from how the slope changes.

    Modelled as a factor for each channel times one for each place: MS-SSIM weighs an error by the variance around it,
    so a flat sky is many times as sensitive as grass.
    """

    def __init__(self, slope: Tensor, distance: Tensor) -> None:
        """From the slope at rounded latents and their distance to the encoder's, where the slope counts as 0.

        Where that is nowhere different, as for z, nearly nothing is known yet.
        """
        change, moved = slope * distance, distance * distance
        change_of_channel, moved_of_channel = self._of_channels(change), self._of_channels(moved)
        average = (change.sum() / moved.sum().clamp(min=1e-6)).clamp(min=1e-3)
        self.lowest = 0.1 * average
        self.channel = ((change_of_channel + 2 * average) / (moved_of_channel + 2)).clamp(min=2 * self.lowest)
        self.place = torch.ones_like(slope[:, :1])
        self._learn_places(change, moved)

    @property
    def value(self) -> Tensor:
        return self.channel * self.place

    def learn(self, change: Tensor, moves: Tensor) -> None:
        """Take in how the slope changed with `moves`."""
        change, moved = change * moves, moves * moves
        seen = (self._of_channels(change) + 4 * self.channel) / (self._of_channels(moved * self.place) + 4)
        self.channel = ((self.channel + seen) / 2).clamp(min=self.lowest)
        self._learn_places(change, moved)

    def _learn_places(self, change: Tensor, moved: Tensor) -> None:
        """What was seen around each place counts as much as one move of an average channel did before."""
        known = self.channel.mean()
        seen, expected = self._around(change), self._around(self.channel * moved)
        self.place = ((seen + known * self.place) / (expected + known)).clamp(*PLACES)

    @staticmethod
    def _of_channels(values: Tensor) -> Tensor:
        return values.sum((0, 2, 3), keepdim=True)

    @staticmethod
    def _around(values: Tensor) -> Tensor:
        """Sums over all channels and 3 x 3 places."""
        return 9 * F.avg_pool2d(values.sum(1, keepdim=True), 3, stride=1, padding=1)


def promised(state: State, curvatures: list[Curvature]) -> tuple[list[Tensor], list[Tensor]]:
    """For each integer of each latent its better move, +1 or -1, and the change of the loss that it promises."""
    moves, gains = [], []
    for slope, up, down, curvature in zip(state.slope, state.up, state.down, curvatures, strict=True):
        rise, fall = (own + sign * slope + curvature.value / 2 for own, sign in ((up, 1), (down, -1)))
        moves.append(torch.where(rise < fall, 1.0, -1.0))
        gains.append(torch.minimum(rise, fall))
    return moves, gains


def descend(objective: Objective, start: list[Tensor], steps: int) -> list[Tensor]:
    """Integer latents after at most `steps` evaluations, from the encoder's y before rounding, and z."""
    rounded = [latent.round() for latent in start]
    objective.renew_filter(rounded[0])
    state = objective.state(rounded)
    curvatures = [Curvature(s, r - y) for s, r, y in zip(state.slope, rounded, start, strict=True)]
    share = FIRST_SHARE
    for step in range(1, steps):
        if step % RENEW == 0:
            objective.renew_filter(state.latents[0])
            state = objective.state(state.latents)
            continue
        moves, gains = promised(state, curvatures)
        every = torch.cat([gain.flatten() for gain in gains])
        promising = int((every < -LEAST_GAIN).sum())
        if promising == 0:
            break
        threshold = every.kthvalue(max(1, int(promising * share))).values
        moves = [torch.where(gain <= threshold, move, 0.0) for move, gain in zip(moves, gains, strict=True)]
        promise = float(every[every <= threshold].sum())
        tried = objective.state([latent + move for latent, move in zip(state.latents, moves, strict=True)])
        for curvature, new, old, move in zip(curvatures, tried.slope, state.slope, moves, strict=True):
            curvature.learn(new - old, move)
        gained = state.loss - tried.loss
        if gained <= 0:
            share *= AFTER_FAILURE
            continue
        share = min(1.0, share * (AFTER_DOUBT if gained < -DOUBTFUL * promise else AFTER_SUCCESS))
        state = tried
    return state.latents


def blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a picture as (rows, columns), in units of 64 pixels."""
    for rows, columns in tiles(-(-height // PAD), -(-width // PAD), BLOCK, 0):
        yield rows.kept, columns.kept


def times(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)


def check_refinable(ladder: Ladder, quality: int) -> None:
    """UserError unless this model of the ladder is one whose encodings can be refined."""
    entry = ladder.models[quality]
    config = ModelConfig.from_json(entry["config"])
    if config.entropy != "mixture" or config.transforms != "cheng":
        raise UserError(f"--refine: model {quality} is {config.name}; refinement knows only cheng with mixtures")
    if entry.get("metric", "ms-ssim") != "ms-ssim":
        raise UserError(f"--refine: model {quality} was trained for MSE; refinement lowers R + lambda (1 - MS-SSIM)")


def _check_memory(config: ModelConfig, height: int, width: int) -> None:
    """ImageError if refining a picture of this size would take more than there is."""
    pixels = max(
        PAD**2 * (rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks(height, width)
    )
    needed = refining_bytes(config, pixels, fast_bfloat16())
    if lacking := memory.shortage(needed, f"refining {width}x{height}"):
        raise ImageError(f"{lacking}; leave --refine away, or fewer --jobs at once")


def refine(codec: Codec, picture: Picture, lmbda: float, steps: int, device: torch.device) -> tuple[Latents, Latents]:
    """Symbols y [h, w, M] and z [h/4, w/4, N] of `picture` (uint8 [H, W, 3]), better than the encoder's at R + lambda
    (1 - MS-SSIM), after at most `steps` evaluations a block. The same on every run of one machine.

    ImageError for a picture that is too large for the memory there is.
    """
    if device.type == "cpu":
        _check_memory(codec.config, *picture.shape[:2])
    y, z_hat = codec.continuous_latents(picture)
    z = torch.from_numpy(z_hat).permute(2, 0, 1)[None].float()
    sizes = torch.from_numpy(codec.entropy.step_sizes(z_hat)).permute(2, 0, 1)[None] / 2**STEP_BITS
    sizes = sizes.expand_as(y)
    for rows, columns in blocks(*picture.shape[:2]):
        part = picture[times(rows, PAD), times(columns, PAD)]
        y_place = times(rows, PAD // 16), times(columns, PAD // 16)
        places = [y[:, :, *y_place], z[:, :, rows, columns]]
        with kept_memory():
            objective = Objective(codec, part, lmbda, sizes[:, :, *y_place].to(device))
            found = descend(objective, [place.to(device) for place in places], steps)
        for place, better in zip(places, found, strict=True):
            place.copy_(better)
    y_symbols, z_symbols = (np.asarray(v[0].permute(1, 2, 0).round().to(torch.int32).contiguous()) for v in (y, z))
    return y_symbols, z_symbols
