"""The one training loop of all stages: resumable at any step, on a CPU with bitwise the same result."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from submission.console import Progress, patient
from submission.errors import UserError
from submission.network import Network
from training.data.crops import Crops
from training.data.pictures import Pictures
from training.loop.average import Average
from training.loop.checkpoint import save_checkpoint
from training.loop.log import Line, Log
from training.loop.schedule import LOOK_EVERY, Moment, Pace, in_warmup, learning_rate
from training.loop.soap import SOAP
from training.network.conditional import Trunk
from training.network.device import ALONE, Device, World
from training.objective.forward import Loss, Pass, loss_of, trainable, validate
from training.objective.loss import simulate_padding
from training.objective.noise import Noise
from training.recipe import Stage

#: Seconds between checkpoints: what a kill can cost. With a time budget a twentieth of it, within these bounds.
CHECKPOINT_SECONDS = (15.0, 120.0)

#: Steps between lines of the log and between validations.
LOG_EVERY = 100
VALIDATE_EVERY = 1000

#: Seconds between looks at the loss for the progress line: each makes the host wait for the device.
NOTE_SECONDS = 2.0


class Learner:
    """A network with its optimizer, and one step of them. Nothing here waits for the device."""

    def __init__(
        self, network: Network | Trunk, stage: Stage, lmbda: float, device: Device, world: World = ALONE
    ) -> None:
        if stage.batch % world.size:
            raise UserError(f"a batch of {stage.batch} crops cannot be shared by {world.size} processes; give --batch")
        network.requires_grad_(False)
        for module in trainable(network, stage):
            module.requires_grad_(True)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError(f"stage {stage.name} has nothing to train: this model has no post-filter")
        device.prepare(network, stage.seconds)
        network.train()
        self.network, self.stage, self.lmbda, self.device, self.world = network, stage, lmbda, device, world
        self.optimizer: torch.optim.Adam | SOAP
        if stage.optimizer == "soap":
            self.optimizer = SOAP(self.parameters, stage.lr, bf16=device.bf16, world=world)
        else:
            self.optimizer = torch.optim.Adam(self.parameters, stage.lr, fused=True)
        self.run: nn.Module = Pass(network, stage, device)
        if world.size > 1:
            self.run = DistributedDataParallel(self.run, gradient_as_bucket_view=True)

    def lmbda_of(self, step: int) -> float:
        """The step's lambda: a trunk's are evenly spread in log lambda, over the steps and over the processes."""
        if self.stage.lambdas is None:
            return self.lmbda
        low, high = self.stage.lambdas
        place = np.random.default_rng((self.stage.seed, step, 2)).random() + self.world.rank / self.world.size
        return float(low * (high / low) ** (place % 1))

    def step(self, crops: Tensor, now: Moment) -> tuple[Loss, Tensor, Tensor]:
        """One step on crops [B, 3, H, W]; the loss, the gradient's norm before clipping, and whether it was skipped.

        A step whose gradient is not finite changes nothing; that is decided on the device, the same on all processes.
        """
        stage = self.stage
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(stage, now)
        batch = simulate_padding(crops, stage.padding, stage.seed, now.step)
        noise = None
        if stage.noisy:
            generator = self.device.generator(stage.seed * 1_000_003 + now.step)
            noise = Noise(generator, self.world.rank, self.world.size)
        lmbda = self.lmbda_of(now.step)
        loss = loss_of(self.run(batch, noise, now.progress, lmbda), batch, stage, lmbda, in_warmup(stage, now))
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, stage.clip)
        skip = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = skip  # type: ignore[union-attr]  # both look at it on the device
        self.optimizer.step()
        return loss, norm, skip


class Averages:
    """Means over the steps that were not skipped, kept on the device."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, loss: Loss, norm: Tensor, skip: Tensor) -> None:
        parts = (loss.total, loss.bpp, loss.z_bpp, loss.distortion, norm, torch.ones_like(norm))
        values = torch.stack([part.detach() for part in parts])
        values = torch.where(skip > 0, torch.zeros_like(values), values)
        self.sums = values if self.sums is None else self.sums + values

    def take(self, world: World) -> tuple[float, float, float, float, float]:
        """Loss, bits per pixel, those of z alone, distortion, gradient's norm, of all processes; starts anew."""
        assert self.sums is not None
        *sums, count = world.total(self.sums).tolist()
        self.sums = None
        loss, bpp, z_bpp, distortion, norm = (value / max(count, 1) for value in sums)
        return loss, bpp, z_bpp, distortion, norm


@dataclass(frozen=True)
class Session:
    """What a call of the program trains with, whatever the stage."""

    pictures: Pictures
    device: Device
    world: World = ALONE
    tensorboard: bool = False
    #: Called every few seconds with the progress of the stage, 0 to 1.
    report: Callable[[float], None] = lambda progress: None


def train(
    network: Network | Trunk,
    state: dict[str, Any] | None,
    stage: Stage,
    lmbda: float,
    run: Path,
    session: Session,
    started: float,
) -> None:
    """Run `stage` to its end, continuing the checkpoint `state` if there is one; save as `run`/NAME.pt, log to
    `run`/NAME.csv.

    With several processes each takes its share of every batch; the first one alone writes. A time budget counts from
    `started` (`time.monotonic`).
    """
    pictures, device, world = session.pictures, session.device, session.world
    checkpoint = run / f"{stage.name}.pt"
    if state:
        network.load_state_dict(state["network"])
        if state["done"]:
            return
    learner = Learner(network, stage, lmbda, device, world)
    if state:
        learner.optimizer.load_state_dict(state["optimizer"])
    average = None
    if stage.schedule == "flat" and world.first:
        average = Average(network, state.get("average") if state else None)
    before = state or {"step": 0, "skipped": 0}
    step = int(before["step"])
    skipped = torch.full((), float(before["skipped"]), device=device.name)
    begun, spent = (float(before.get(name, 0.0)) for name in ("progress", "seconds"))
    lost = int(before["skipped"])
    pace = Pace(stage, begun, spent, started, world)

    def save(done: bool) -> None:
        optimizer = {} if done else learner.optimizer.state_dict()  # of all processes together
        if world.first:
            reached = {"step": step, "skipped": int(skipped), "progress": now.progress, "seconds": pace.spent}
            mean = {"average": average.state_dict()} if average and not done else {}
            save_checkpoint(checkpoint, network, optimizer, stage, lmbda, {**reached, **mean}, done)

    now = pace.at(step)
    bar = _Bar(stage, lmbda, now, world)
    log = Log(run, stage.name, step, session.tensorboard) if world.first else None
    crops, averages = Crops(pictures, stage, device, world), Averages()
    saved_at = time.monotonic()
    with stop_gracefully() as stopping:
        while now.progress < 1:
            lr = learning_rate(stage, now)
            loss, norm, skip = learner.step(crops.at(step), now)
            skipped = skipped + skip
            averages.add(loss, norm, skip)
            step += 1
            if step % LOG_EVERY == 0:
                world.align(learner.parameters)
            if average:
                average.add(step)
            now = pace.at(step)
            ended = now.progress >= 1
            if bar.show(now, loss):
                session.report(now.progress)
            if step % LOG_EVERY == 0 or ended:
                means, held_out = averages.take(world), None
                lost, lost_before = int(skipped), lost
                if lost == step or lost - lost_before == LOG_EVERY:  # its end would be worth nothing
                    raise UserError(
                        "no step since the last line of the log was finite; begin the stage again (its script with "
                        "--overwrite), perhaps with another --seed or, if that fails too, --precision fp32"
                    )
                if world.first and (step % VALIDATE_EVERY == 0 or ended):
                    with average.in_place() if average and not ended else nullcontext():
                        held_out = validate(network, stage, lmbda, pictures, device)
                    bar.quality = f", held out {held_out.bpp:.3f} bpp {held_out.msssim:.4f} {held_out.psnr:.2f} dB"
                if log:
                    log.write(Line(step, pace.spent, now.progress, lr, *means, skipped=int(skipped)), held_out)
            if not ended and _save_agreed(saved_at, stage, world, step):
                save(done=False)
                saved_at = time.monotonic()
            if not ended and _stop_agreed(stopping, world, step):
                save(done=False)
                world.wait()
                raise KeyboardInterrupt
        bar.close()
        if log:
            log.close()
        save(done=True)
        if world.share(stopping.requested):  # in the last step, or since
            raise KeyboardInterrupt


def _save_agreed(saved_at: float, stage: Stage, world: World, step: int) -> bool:
    """Whether it is time for a checkpoint: several processes ask the first one now and then."""
    if world.size > 1 and step % LOOK_EVERY:
        return False
    return bool(world.share(time.monotonic() - saved_at > _checkpoint_seconds(stage)))


def _checkpoint_seconds(stage: Stage) -> float:
    shortest, longest = CHECKPOINT_SECONDS
    return longest if stage.seconds is None else min(longest, max(shortest, stage.seconds / 20))


class _Bar:
    """The progress line: steps of all, or seconds of the budget; rate and quality."""

    def __init__(self, stage: Stage, lmbda: float, now: Moment, world: World) -> None:
        self.stage, self.quality = stage, ""
        self.begun_at, self.begun = time.monotonic(), now.step
        self.shown_at = 0.0
        total = stage.steps if stage.seconds is None else math.ceil(stage.seconds)
        self.line = (
            Progress(f"{stage.name} lambda={lmbda:g}", total, int(now.progress * total)) if world.first else None
        )

    def show(self, now: Moment, loss: Loss) -> bool:
        """Draw it if it is time again; whether it was."""
        at = time.monotonic()
        if at - self.shown_at < NOTE_SECONDS:
            return False
        self.shown_at = at
        rate = (now.step - self.begun) / max(at - self.begun_at, 1e-9)
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/step"
        if self.line:
            note = f"{speed}, {float(loss.bpp.detach()):.3f} bpp, D {float(loss.distortion.detach()):.4f}{self.quality}"
            self.line.advance(int(now.progress * self.line.total) - self.line.done, note)
        return True

    def close(self) -> None:
        if self.line:
            self.line.close()


@dataclass
class Stopping:
    requested: bool = False


@contextmanager
def stop_gracefully() -> Iterator[Stopping]:
    """Let Ctrl-C and SIGTERM finish the current step and save, instead of losing up to two minutes."""
    stopping = Stopping()

    def request(*_: object) -> None:
        stopping.requested = True

    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with patient():
            yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_agreed(stopping: Stopping, world: World, step: int) -> bool:
    """Whether to stop after this step: several processes ask the first one now and then."""
    if world.size == 1:
        return stopping.requested
    return step % LOOK_EVERY == 0 and bool(world.share(stopping.requested))
