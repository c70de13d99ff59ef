"""Weights to start from: the same stage of another model, the nearest model of a ladder's run, or shipped weights."""

import math
from pathlib import Path

import torch
from torch import Tensor

from submission.config import ModelConfig
from submission.entropy_model import EntropyModel
from submission.errors import UserError
from submission.ladder import MANIFEST, Ladder, read_safetensors
from submission.network import Network
from training.loop.checkpoint import is_done, load_checkpoint, weights_of
from training.network.conditional import Trunk
from training.network.dequantize import dequantize_entropy_model, state_of
from training.recipe import STAGES, StageName

State = dict[str, Tensor]


def initial_weights(folder: Path, stage: StageName, lmbda: float, model: ModelConfig) -> State:
    """State of the whole network, for `stage` at `lmbda`. `folder` is one of

    * a run folder of a trunk: the trunk at `lmbda`, the mean of its last weights if it is not finished;
    * a run folder of one model: its `stage`, or its newest finished stage if it has not got that one;
    * a ladder's run folder: the newest finished stage of the nearest lambda;
    * a folder of weights, as `training.export` writes them: the model of the nearest lambda.

    UserError if it is none of these, or made for another network.
    """
    if (folder / MANIFEST).exists():
        return _from_weights(folder, lmbda, model)
    if (folder / "trunk.pt").exists():
        return _from_trunk(folder / "trunk.pt", lmbda, model)
    if (folder / f"{stage}.pt").exists():
        return _state(folder / f"{stage}.pt", model)
    return _state(newest_stage(folder, lmbda), model)


def newest_stage(folder: Path, lmbda: float) -> Path:
    """The checkpoint of the newest finished stage of the model in `folder`, or of a ladder's nearest to `lmbda`.

    UserError if there is none.
    """
    found = {}
    for candidate in [folder, *sorted(folder.iterdir())] if folder.is_dir() else []:
        newest = finished_stage(candidate)
        if newest is not None:
            found[float(load_checkpoint(newest, None, None, None)["lmbda"])] = newest
    if not found:
        raise UserError(f"{folder}: neither weights nor a finished stage of a model there")
    return found[_nearest(list(found), lmbda)]


def initial_trunk(folder: Path, lambdas: tuple[float, float], model: ModelConfig) -> State:
    """State of the trunk in the run folder `folder`, for another one of the same range; UserError if it is none."""
    saved = load_checkpoint(folder / "trunk.pt", model, None, None)
    low, high = saved["stage"]["lambdas"]
    if (low, high) != lambdas:
        raise UserError(f"--init {folder}: a trunk for lambda {low:g} to {high:g}; give --lmbda {low:g} {high:g}")
    return weights_of(saved)


def finished_stage(folder: Path) -> Path | None:
    """The checkpoint of the last finished stage of one model."""
    return next((p for stage in reversed(STAGES) if is_done(p := folder / f"{stage}.pt")), None)


def _nearest(lambdas: list[float], lmbda: float) -> float:
    return min(lambdas, key=lambda other: (abs(math.log(other / lmbda)), other))


def _state(path: Path, model: ModelConfig) -> State:
    return weights_of(load_checkpoint(path, model, None, None))


def _from_trunk(path: Path, lmbda: float, model: ModelConfig) -> State:
    saved = load_checkpoint(path, model, None, None)
    trunk = Trunk(model, *saved["stage"]["lambdas"])
    trunk.load_state_dict(weights_of(saved))
    return trunk.at(lmbda).state_dict()


def _from_weights(folder: Path, lmbda: float, model: ModelConfig) -> State:
    if model.transforms != "cheng" or model.entropy not in ("mixture", "context"):
        raise UserError(f"--init {folder}: model {model.name} can start from a run folder, not from weights")
    if model.learned_step:
        raise UserError(f"--init {folder}: a learned step cannot be taken from weights; start from a run folder")
    ladder = Ladder.load(folder)
    lambdas = [float(entry["lmbda"]) for entry in ladder.models]
    quality = lambdas.index(_nearest(lambdas, lmbda))
    entry = ladder.models[quality]
    if ModelConfig.from_json(entry["config"]) != model:
        raise UserError(f"--init {folder}: made for another network ({entry['config']['name']}); use its preset")
    ladder.codec(quality)  # checks the file
    path = folder / str(entry["file"])
    tensors = read_safetensors(path, path.read_bytes())
    network = Network(model)
    assert isinstance(network.entropy_model, EntropyModel)
    entropy = {k.removeprefix("entropy."): v for k, v in tensors.items() if k.startswith("entropy.")}
    with torch.random.fork_rng():
        dequantize_entropy_model(network.entropy_model, entropy)
    return state_of(network.state_dict(), tensors)
