"""What `torch.compile` is given: each part of the network as one graph, once."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from submission.network import Network
from tests.training_kit import CPU, RECIPE, photos
from training.data.crops import Crops
from training.loop.schedule import Moment
from training.loop.train import Learner
from training.network.device import Device
from training.objective.forward import validate


def test_each_part_is_one_graph_and_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with and without simulated padding, and validation, compile nothing anew."""
    counter = CompileCounterWithBackend("eager")
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: compile_with(f, dynamic=dynamic, backend=counter))
    stage, pictures = RECIPE.stage("joint"), photos()
    crops, losses = Crops(pictures, stage, CPU), []
    for where in (CPU, Device("cpu", bf16=False, compile="on")):
        torch.manual_seed(1)
        learner = Learner(Network(RECIPE.model), stage, 4.0, where)
        losses.append([float(learner.step(crops.at(k), Moment(k, 0.1))[0].total.detach()) for k in range(4)])
        validate(learner.network, stage, 4.0, pictures, where)
    assert counter.frame_count == 5  # g_a, h_a, the entropy model, g_s, the post-filter
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("seconds", "worth"), [(None, True), (600.0, True), (60.0, False)])
def test_compiling_has_to_pay(seconds: float | None, worth: bool) -> None:
    assert Device("cuda", True, "auto").compiles(seconds) == worth
    assert not Device("cpu", True, "auto").compiles(seconds)
    assert Device("cpu", True, "on").compiles(seconds) and not Device("cuda", True, "off").compiles(seconds)
