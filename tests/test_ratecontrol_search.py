"""Measuring only what may win: few candidates, and nearly the choice that all of them give."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.search import rows_of
from ratecontrol.allocation.budget import byte_cap, parse_bpp
from ratecontrol.allocation.knapsack import DoesNotFit, allocate
from ratecontrol.candidates.predict import Flags, Floats, Kind, Prior, predict
from ratecontrol.candidates.search import Found, Rows, expected_gain, search

KEPT = Path(__file__).parent.parent / "eval" / "results"
#: Of the ladders of the releases.
LAMBDAS = {"0.1.0": [0.8, 1.1, 2.2, 4.5, 9.0, 18.0, 40.0, 90.0], "0.2.0": [0.8, 1.6, 3.0, 6.0, 12.0, 26.0, 60.0]}
KINDS = [Kind(quality, lmbda) for quality, lmbda in enumerate(LAMBDAS["0.1.0"])]


def simulated(rows: Rows, kinds: list[Kind], caps: list[int]) -> tuple[Found, Flags]:
    """A search that looks candidates up, and what it asked for."""
    asked = np.zeros(rows.size.shape, bool)

    def look_up(marked: Flags) -> tuple[Floats, Floats]:
        assert marked.any() and not (marked & asked).any()
        asked[marked] = True
        return rows.size[marked], rows.msssim[marked]

    return search(kinds, rows.pixels, caps, look_up), asked


def best(rows: Rows, known: Flags, cap: int) -> float:
    return allocate(rows.of(known), cap).value


def curves(n: int, kinds: list[Kind], seed: int) -> Rows:
    """Curves that differ by level, tilt and noise."""
    rng = np.random.default_rng(seed)
    at = np.log([kind.lmbda for kind in kinds]) - 2
    refined = np.array([-0.06 * (kind.refinement > 0) for kind in kinds])
    level, tilt = rng.normal(0, 0.5, (2, n, 1)), rng.normal(0, 0.05, (2, n, 1))
    noise = rng.normal(0, 0.01, (2, n, len(kinds)))
    rate = -2.5 + level[0] + (0.55 + tilt[0]) * at + refined + noise[0]
    distortion = -3.2 + level[1] + (tilt[1] - 0.37) * at + refined + noise[1]
    pixels = rng.integers(100, 2000, n) * 1000
    return Rows(pixels, np.rint(np.exp(rate) * pixels[:, None] / 8), 1 - np.minimum(np.exp(distortion), 1))


@pytest.mark.parametrize(
    ("version", "name", "share", "loss"),
    [("0.1.0", "kodak", 0.75, 1e-4), ("0.1.0", "valid", 0.85, 1.5e-4), ("0.2.0", "kodak", 0.75, 1e-4)],
)
def test_tables_kept_from_earlier(version: str, name: str, share: float, loss: float) -> None:
    """All models, or 2 to 7, at the three rates of the challenge. How much is asked for hangs on the last
    bits of the fit, so on versions of NumPy and SciPy."""
    rows, models = rows_of(KEPT / version / f"{name}-candidates.tsv")
    kinds = [Kind(quality, LAMBDAS[version][quality]) for quality in models]
    caps = [byte_cap(parse_bpp(rate), int(rows.pixels.sum())) for rate in ("0.075", "0.15", "0.30")]
    found, asked = simulated(rows, kinds, caps)
    assert asked.mean() <= share
    assert found.measured == asked.sum() and found.candidates == asked.size
    for cap, evidence in zip(caps, found.evidence, strict=True):
        assert evidence.value == best(rows, asked, cap) >= best(rows, np.ones_like(asked), cap) - loss


def test_one_cap_needs_a_third() -> None:
    rows = curves(60, KINDS, 1)
    cap = byte_cap(parse_bpp("0.15"), int(rows.pixels.sum()))
    found, asked = simulated(rows, KINDS, [cap])
    assert asked.mean() < 0.45
    assert found.evidence[0].left < 1e-5
    assert best(rows, asked, cap) >= best(rows, np.ones_like(asked), cap) - 2e-5


def test_only_candidates_near_the_price_are_refined() -> None:
    kinds = KINDS + [Kind(kind.quality, kind.lmbda, refinement) for refinement in (1, 2) for kind in KINDS]
    rows = curves(12, kinds, 2)
    cap = byte_cap(parse_bpp("0.15"), int(rows.pixels.sum()))
    _, asked = simulated(rows, kinds, [cap])
    refined = asked[:, len(KINDS) :]
    assert refined.any(1).all() and refined.mean() < 0.5
    assert best(rows, asked, cap) >= best(rows, np.ones_like(asked), cap) - 1e-4


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    """Anything that a codec might write, however odd."""
    n, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    cells = st.lists(st.integers(1, 10**6), min_size=n * count, max_size=n * count)
    scores = st.lists(st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]), min_size=n * count, max_size=n * count)
    pixels = draw(st.lists(st.integers(1, 10**7), min_size=n, max_size=n))
    size, msssim = (np.array(draw(values), float).reshape(n, count) for values in (cells, scores))
    return Rows(np.array(pixels), size, msssim)


@settings(deadline=None, max_examples=40)
@given(tables(), st.lists(st.integers(1, 10**7), min_size=1, max_size=3))
def test_any_table_ends_with_what_was_measured(rows: Rows, caps: list[int]) -> None:
    found, asked = simulated(rows, KINDS[: rows.size.shape[1]], caps)
    assert asked.any(1).all()
    for cap, evidence in zip(caps, found.evidence, strict=True):
        try:
            assert evidence.value == best(rows, asked, cap)
        except DoesNotFit:
            assert evidence.value is None
    again, same = simulated(rows, KINDS[: rows.size.shape[1]], caps)
    assert (same == asked).all() and again.evidence == found.evidence


def test_predictions_are_exact_where_measured_and_honest_elsewhere() -> None:
    rows = curves(40, KINDS, 3)
    rate, distortion = np.log(8 * rows.size / rows.pixels[:, None]), np.log(1 - rows.msssim)
    known = np.random.default_rng(0).random(rate.shape) < 0.5
    found = predict(Prior.of(KINDS), np.where(known, rate, np.nan), np.where(known, distortion, np.nan))
    assert (found.rate[known] == rate[known]).all() and (found.distortion[known] == distortion[known]).all()
    assert found.rate_variance[known] == pytest.approx(0, abs=1e-9)
    unseen = ~known & known.any(1, keepdims=True)
    errors = (found.rate - rate)[unseen] / np.sqrt(found.rate_variance[unseen])
    assert 0.2 < np.sqrt(np.mean(errors**2)) < 1.5


def test_expected_gain_is_the_mean_of_what_exceeds() -> None:
    draws = np.random.default_rng(0).normal(0.3, 2, 200_000)
    assert float(expected_gain(np.array(0.3), np.array(2.0))) == pytest.approx(np.maximum(draws, 0).mean(), abs=0.02)
    assert expected_gain(np.array([1.0, -1.0]), np.zeros(2)).tolist() == [1, 0]
