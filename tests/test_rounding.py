"""Weights are rounded such that outputs stay as they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submission.errors import UserError
from submission.integer import RELU_OFFSET, WEIGHT_PEAK, Linear, conv
from submission.latent_coding import Reader
from training.network import rounding
from training.network.rounding import Floats, IntegerLayers, free_unit, gather, round_weights


def related_inputs(rng: np.random.Generator, n: int, count: int) -> Floats:
    """[n, count] of mean 0 that depend on a few common causes."""
    x = rng.normal(size=(n, 5)) @ rng.normal(size=(5, count)) + 0.3 * rng.normal(size=(n, count))
    return np.asarray(x - x.mean(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(16, 60), st.sampled_from([2048, 7]))
def test_outputs_err_less_than_with_the_nearest_integers(seed: int, count: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    x, scaled = related_inputs(rng, 400, count), rng.normal(0, 20, (count, 30)).clip(-63.4, 63.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "BLOCK", block)
        whole = round_weights(scaled, x)
    assert (whole == np.rint(whole)).all() and np.abs(whole).max() <= WEIGHT_PEAK
    error, nearest = (np.square(x @ (scaled - w)).mean() for w in (whole, np.rint(scaled)))
    assert error < 0.9 * nearest


def test_inputs_that_never_change_do_no_harm() -> None:
    whole = round_weights(np.full((6, 2), 0.4), np.zeros((10, 6)))
    assert (whole == 0).all()


@pytest.mark.parametrize("relu_in", [False, True])
def test_a_layer_gives_what_it_stores(relu_in: bool) -> None:
    """Outputs are those of the layer that a decoder reads, near the exact ones, and right in the mean."""
    rng = np.random.default_rng(1)
    inputs = np.clip(np.rint(30 * related_inputs(rng, 500, 40)), -127, 127).astype(np.int8).reshape(5, 10, 10, 40)
    real = inputs.astype(float) + (RELU_OFFSET if relu_in else 0)
    weight, bias = rng.normal(0, 0.1, (40, 8)), rng.normal(size=8)
    exact = real @ weight + bias
    unit = free_unit(weight, bias, np.abs(exact).max((0, 1, 2)), 127)
    layers = IntegerLayers()
    made = layers.add("layer", inputs, weight, bias, unit, relu_in)
    again = Reader(layers.tensors).linear("layer", relu_in)
    assert (again(inputs.reshape(-1, 40)).reshape(made.shape) == made).all()
    steps = made - exact / unit
    assert np.abs(steps).max() < 3 and np.abs(steps.mean((0, 1, 2))).max() < 0.1


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="layer wide: weights too large"):
        IntegerLayers().add("wide", np.zeros((3, 2), np.int8), np.full((2, 1), 1e6), np.zeros(1), np.ones(1))


def test_patches_are_those_of_the_decoder() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(-128, 128, (2, 5, 6, 3), np.int8)
    layer = Linear.build(
        "l", rng.integers(-60, 60, (27, 4)).astype(np.int8), np.zeros(4, np.int32), np.zeros(4, np.int8), True, 2**20
    )
    patches = gather(a, [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], -RELU_OFFSET)
    for one, gathered in zip(a, patches, strict=True):
        assert (conv(layer, one, relu_in=True) == layer(gathered.reshape(-1, 27)).reshape(5, 6, 4)).all()
