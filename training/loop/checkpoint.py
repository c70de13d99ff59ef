"""Checkpoints: written whole or not at all, read with suspicion."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from submission.config import ModelConfig
from submission.errors import UserError
from submission.network import Network
from training.network.conditional import Trunk
from training.recipe import Stage


def save_checkpoint(
    path: Path,
    network: Network | Trunk,
    optimizer: dict[str, Any],
    stage: Stage,
    lmbda: float,
    progress: dict[str, Any],
    done: bool,
) -> None:
    """Write to a temporary name, then rename: the last good checkpoint survives a full disk and a kill.

    `progress`: `step`, `skipped` (steps that were not finite), `seconds` spent on the stage, the weights' `average`.
    """
    state = {
        "config": network.config.to_json(),
        "stage": dataclasses.asdict(stage),
        "lmbda": lmbda,
        **progress,
        "done": done,
        "network": {k: v.cpu() for k, v in network.state_dict().items()},
        "optimizer": optimizer,
    }
    part = path.with_suffix(".pt.part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: cannot write the checkpoint ({reason}); the last good one is intact: make room, then continue"
        ) from None


def load_checkpoint(path: Path, config: ModelConfig | None, stage: Stage | None, lmbda: float | None) -> dict[str, Any]:
    """Read a checkpoint; UserError if it is damaged or belongs to another model, stage or lambda."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = ModelConfig.from_json(state["config"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; run the stage before this one first") from None
    except UserError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for a damaged file
        raise UserError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from None
    if config is not None and found != config:
        raise UserError(f"{path}: made for another network ({found.name}); use its preset, or another run folder")
    if stage is not None and (other := _differences(state["stage"], stage)):
        raise UserError(
            f"{path}: made with other settings of this stage ({', '.join(other)}); use the same, or another run folder"
        )
    if lmbda is not None and state["lmbda"] != lmbda:
        raise UserError(f"{path}: made for lambda {state['lmbda']:g}, not {lmbda:g}; use another run folder")
    return state


def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The network's state in a checkpoint: with the mean of the weights if it has one, as unfinished flat stages do."""
    return {**state["network"], **state.get("average", {})}


def _differences(saved: dict[str, Any], stage: Stage) -> list[str]:
    """Names of the settings in which a saved stage differs from `stage`: all but its time, which may be extended, and
    the steps of a `flat` one, whose end may come sooner or later, with the warm-up that follows from them.

    Settings that came after it was saved have their defaults; those that are gone differ.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Stage) if f.default is not dataclasses.MISSING}
    was, now = {**defaults, **saved}, dataclasses.asdict(stage)
    free = {"seconds", "steps", "warmup"} if stage.schedule == "flat" else {"seconds"}
    return [n for n in {**now, **was} if n not in free and was.get(n) != now.get(n)]


def is_done(path: Path) -> bool:
    """Whether `path` is the checkpoint of a finished stage."""
    return path.exists() and bool(load_checkpoint(path, None, None, None)["done"])
