"""Laws of the allocation: optimal, never over the cap, and a table with a fault is refused with its line."""

import itertools
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratecontrol.allocate import main
from ratecontrol.allocation.budget import byte_cap, parse_bpp, smallest_bpp
from ratecontrol.allocation.knapsack import RESOLUTION, Candidates, DoesNotFit, allocate, undominated
from submission.errors import UserError
from tests.commands import assert_refused, call

Options = list[list[tuple[int, float]]]  #: per image its candidates: size and value
Problem = tuple[Options, int]  #: and the cap

HEADER = "image,width,height,candidate,quality,bytes,msssim"
TABLE = f"""{HEADER},note
b.png,100,80,q0,0,100,0.80,first
b.png,100,80,q1,1,300,0.90,second
a.png,200,80,q0,0,200,0.70,third
a.png,200,80,q1,1,400,0.95,fourth
"""


def candidates(options: Options) -> Candidates:
    flat = [(image, size, value) for image, own in enumerate(options) for size, value in own]
    image, size, value = zip(*flat, strict=True)
    return Candidates(np.array(image), np.array(size), np.array(value, float))


def best_value(options: Options, cap: int) -> float:
    """By trying everything."""
    every = itertools.product(*options)
    return max((sum(v for _, v in choice) for choice in every if sum(s for s, _ in choice) <= cap), default=-np.inf)


# few distinct values, so that ties and dominated candidates are common
option = st.tuples(st.integers(1, 40), st.integers(0, 12).map(lambda k: k / 40))
problems = st.tuples(st.lists(st.lists(option, min_size=1, max_size=5), min_size=1, max_size=5), st.integers(1, 160))


@settings(max_examples=150, deadline=None)
@given(problems)
def test_allocation_equals_brute_force(problem: Problem) -> None:
    options, cap = problem
    table, best = candidates(options), best_value(options, cap)
    if best == -np.inf:
        with pytest.raises(DoesNotFit):
            allocate(table, cap)
        return
    found = allocate(table, cap)
    assert table.image[found.chosen].tolist() == list(range(len(options)))
    assert found.size == table.size[found.chosen].sum() <= cap
    assert found.value == pytest.approx(table.value[found.chosen].sum(), abs=1e-12)
    assert found.value == pytest.approx(best, abs=2 * RESOLUTION)
    assert found.value <= found.bound <= found.value + 2 * RESOLUTION


@pytest.mark.parametrize("seed", range(40))
def test_allocation_equals_dynamic_programming(seed: int) -> None:
    """Larger problems than can be enumerated: the best value for every budget, image by image."""
    rng = np.random.default_rng(seed)
    images, each = 20, 8
    size = np.sort(rng.integers(1, 60, (images, each)))
    value = np.sqrt(size) * rng.uniform(0.8, 1, size.shape) / 8 / images
    cap = int(rng.integers(size.min(1).sum(), size.max(1).sum()))
    best = np.zeros(cap + 1)
    for sizes, values in zip(size, value, strict=True):
        choices = [np.concatenate([np.full(s, -np.inf), best[:-s] + v]) for s, v in zip(sizes, values, strict=True)]
        best = np.max(choices, axis=0)
    found = allocate(Candidates(np.arange(images).repeat(each), size.ravel(), value.ravel()), cap)
    assert found.size <= cap
    assert found.value == pytest.approx(best[cap], abs=2 * RESOLUTION)
    assert found.gap <= 2 * RESOLUTION


@settings(max_examples=150, deadline=None)
@given(problems)
def test_lagrangian_bound_holds(problem: Problem) -> None:
    options, cap = problem
    best = best_value(options, cap)
    assume(best > -np.inf)
    found = allocate(candidates(options), cap, exact_up_to=0)
    assert found.size <= cap
    assert found.value <= best + 1e-12 <= found.bound + 2e-12


@settings(max_examples=40, deadline=None)
@given(problems)
def test_more_budget_is_never_worse(problem: Problem) -> None:
    options, cap = problem
    smallest = sum(min(size for size, _ in own) for own in options)
    values = [allocate(candidates(options), smallest + more).value for more in range(0, cap, 7)]
    assert all(after >= before - 2 * RESOLUTION for before, after in itertools.pairwise(values))


@settings(max_examples=40, deadline=None)
@given(problems, st.randoms(use_true_random=False))
def test_dominated_candidates_do_not_matter(problem: Problem, random: Random) -> None:
    options, cap = problem
    table = candidates(options)
    worse = [random.randrange(len(table.image)) for _ in range(6)]
    more = Candidates(
        np.append(table.image, table.image[worse]),
        np.append(table.size, table.size[worse] + np.arange(6)),
        np.append(table.value, table.value[worse] - np.arange(6) / 100),
    )
    assert undominated(more).tolist() == undominated(table).tolist()
    try:
        assert allocate(more, cap).chosen.tolist() == allocate(table, cap).chosen.tolist()
    except DoesNotFit:
        assume(False)


def realistic(images: int, candidates_each: int) -> tuple[Candidates, int]:
    """Noisy rate-distortion curves of pictures of many sizes, and their pixels."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(200_000, 2_800_000, images)
    hard = rng.uniform(0.3, 3, images)[:, None]
    rate = np.geomspace(0.02, 1, candidates_each) * rng.uniform(0.95, 1.05, (images, candidates_each))
    msssim = 1 - 0.02 * (rate / 0.15) ** -0.9 * hard**0.5 * rng.uniform(0.97, 1.03, rate.shape)
    size = np.ceil(rate * hard * pixels[:, None] / 8).astype(np.int64)
    value = msssim.round(6) * pixels[:, None] / pixels.sum()
    return Candidates(np.arange(images).repeat(candidates_each), size.ravel(), value.ravel()), int(pixels.sum())


@pytest.mark.parametrize("bpp", ["0.075", "0.15", "0.3"])
def test_competition_size_is_solved_to_optimality_in_seconds(bpp: str) -> None:
    table, pixels = realistic(428, 40)
    cap = byte_cap(parse_bpp(bpp), pixels)
    start = time.monotonic()
    found = allocate(table, cap)
    assert time.monotonic() - start < 10
    assert 0.9999 * cap <= found.size <= cap
    assert found.gap <= 2 * RESOLUTION
    relaxed = allocate(table, cap, exact_up_to=0)
    assert relaxed.value <= found.value <= relaxed.bound
    assert relaxed.gap < 1e-5


def test_identical_pictures_share_what_is_left() -> None:
    """All change their mind at one price, so bisection alone would leave half of the cap unspent."""
    found = allocate(candidates([[(10, 0.5), (20, 0.9)]] * 9), 135, exact_up_to=0)
    assert found.size == 130
    assert found.value == pytest.approx(9 * 0.5 + 4 * 0.4)


def test_cap_is_exact() -> None:
    assert byte_cap(parse_bpp("0.075"), 91_451_931) == 857_362  # the 2021 validation set, all three rates
    assert byte_cap(parse_bpp("0.15"), 91_451_931) == 1_714_724
    assert byte_cap(parse_bpp("0.30"), 91_451_931) == 3_429_448
    assert byte_cap(parse_bpp("0.1"), 80 * 10**15) == 10**15  # 0.1 as a float is more than 1/10
    assert parse_bpp("15e-2") == Fraction(3, 20)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_smallest_bpp_is_feasible_and_smallest(size: int, pixels: int) -> None:
    bpp = Fraction(smallest_bpp(size, pixels))
    assert byte_cap(bpp, pixels) >= size
    assert byte_cap(bpp - Fraction(1, 10**6), pixels) < size


@pytest.mark.parametrize("text", ["0", "-0.1", "nan", "inf", "", "x", "0,15", "1e999999999", "1e-999999999"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--bpp"):
        parse_bpp(text)


def test_choice_holds_whole_rows_in_order_of_images(tmp_path: Path) -> None:
    table, choice = tmp_path / "table.csv", tmp_path / "new" / "choice.csv"
    table.write_text(TABLE)
    result = call(main, table, "--bpp", "0.2", "-o", choice)  # 24,000 pixels: a cap of 600 bytes
    assert result.code == 0
    assert "500 of 600" in result.stdout
    assert choice.read_text() == f"{HEADER},note\na.png,200,80,q1,1,400,0.95,fourth\nb.png,100,80,q0,0,100,0.80,first\n"


def test_order_of_rows_decides_nothing(tmp_path: Path) -> None:
    choices = set()
    lines = [f"{image}.png,10,10,q{q},{q},{10 + q // 2 * 5},0.{5 + q // 3}" for image in "cab" for q in range(6)]
    for order in range(4):
        np.random.default_rng(order).shuffle(lines)
        (tmp_path / "table.csv").write_text("\n".join([HEADER, *lines]) + "\n")
        assert call(main, tmp_path / "table.csv", "--bpp", "1.2", "-o", tmp_path / "choice.csv").code == 0
        choices.add((tmp_path / "choice.csv").read_text())
    assert len(choices) == 1


def test_streams_are_found_from_the_choice(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(f"{HEADER},stream\na.png,10,10,q0,0,5,0.5,streams/a.q0.clic\n")
    call(main, tmp_path / "table.csv", "--bpp", "1", "-o", tmp_path / "sub" / "choice.csv")
    assert (tmp_path / "sub" / "choice.csv").read_text().splitlines()[1].endswith(",../streams/a.q0.clic")


def test_infeasible_rate_names_the_smallest(tmp_path: Path) -> None:
    table, choice = tmp_path / "table.csv", tmp_path / "choice.csv"
    table.write_text(TABLE)
    result = call(main, table, "--bpp", "0.05", "-o", choice)
    assert_refused(result, "smallest feasible")
    assert not choice.exists()
    assert call(main, table, "--bpp", result.stderr.split()[-1], "-o", choice).code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", ["empty"]),
        (lambda text: text.splitlines()[0] + "\n", ["no rows"]),
        (lambda text: text.replace(",msssim", ",ssim"), ["msssim"]),
        (lambda text: text.replace("300,0.90", "300,"), ["line 3", "msssim"]),
        (lambda text: text.replace("300,0.90", "300,nan"), ["line 3", "msssim"]),
        (lambda text: text.replace("300,0.90", "300,14.2"), ["line 3", "msssim"]),
        (lambda text: text.replace("300,0.90", "30.5,0.90"), ["line 3", "bytes"]),
        (lambda text: text.replace("300,0.90", "-300,0.90"), ["line 3", "bytes"]),
        (lambda text: text.replace("q1,1,400", "q0,0,400"), ["line 5", "a.png q0"]),
        (lambda text: text.replace("a.png,200,80,q1", "a.png,200,81,q1"), ["a.png", "sizes"]),
        (lambda text: text.replace("b.png,100,80,q0", "b.png,100,80"), ["line 2"]),
        (lambda text: text + "c.png,1,1\n", ["line 6"]),
        (lambda text: text.replace("first", "first,more"), ["table.csv"]),
        (lambda text: "\x00\xff" * 50, ["table.csv"]),
    ],
)
def test_faulty_tables_are_refused(tmp_path: Path, change: Callable[[str], str], words: list[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(change(TABLE).encode("latin-1"))
    assert_refused(call(main, table, "--bpp", "0.2", "-o", tmp_path / "choice.csv"), "table.csv", *words)
    assert list(tmp_path.iterdir()) == [table]


def test_faulty_usage_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(TABLE)
    assert_refused(call(main, table, "--bpp", "-1", "-o", tmp_path / "choice.csv"), "--bpp")
    assert_refused(call(main, table, "--bpp", "1", "-o", table), "overwrite")
    assert_refused(call(main, tmp_path, "--bpp", "1", "-o", tmp_path / "choice.csv"), "folder")
    assert_refused(call(main, tmp_path / "no.csv", "--bpp", "1", "-o", tmp_path / "choice.csv"), "no.csv")
    assert table.read_text() == TABLE
