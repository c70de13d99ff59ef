"""Which candidates to measure, so that the best choice under each cap rests on measured ones, and few others are.

Every round predicts what is not measured (`ratecontrol.candidates.predict`) and finds the price of a byte at each cap,
as `ratecontrol.allocation.knapsack` does. At a price, every picture chooses for itself, so that a candidate matters by
what it is worth over the best measured one of its picture. Of that, prediction and its variance give the expected gain.
Measured next are

1. of each picture the likely best at some price; at first of a few pilot pictures alone, which show the curves;
2. where all of those are measured, the candidates of most expected gain, until that of all others together is small;
3. what an exact allocation of predictions would choose, since few pictures cannot meet a cap at one price.

The expected gains that are left are evidence: by duality no choice, in the mean over what the others may be, is better
by more. How far off predictions were is seen whenever what was predicted is measured.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ratecontrol.allocation.knapsack import Candidates, DoesNotFit, Table, allocate, lagrangian, undominated
from ratecontrol.candidates.predict import LEAST_DISTORTION, MOST_BPP, Flags, Floats, Kind, Prediction, Prior, predict

Integers = NDArray[np.int64]

#: Of the set's MS-SSIM: what all unmeasured candidates together may be expected to add at a cap, and the gain for which
#: an exact allocation of predictions has its choice measured.
TOLERANCE, WORTH_MEASURING = 5e-6, 1e-6

#: Pilot pictures, and the rounds that they have to themselves.
PILOTS, PILOT_ROUNDS = 6, 3

#: Part of the expected gain that is measured in a round; what is measured makes the rest easier to predict.
PORTION = 0.5

#: A price, in MS-SSIM of the set a byte and picture, at which the smallest is the best; where nothing fits.
PROHIBITIVE = 1.0


@dataclass(frozen=True)
class Rows:
    """Candidates of n pictures and C kinds, arrays [n, C], NaN where not measured."""

    pixels: Integers  #: [n]
    size: Floats  #: bytes
    msssim: Floats

    @property
    def measured(self) -> Flags:
        return ~np.isnan(self.size)

    @property
    def weight(self) -> Floats:
        """Of each picture in the set's MS-SSIM, [n, 1]."""
        return np.asarray(self.pixels / self.pixels.sum())[:, None]

    def of(self, known: Flags) -> Candidates:
        """Those marked, for `ratecontrol.allocation.knapsack`, in the order of np.nonzero(known)."""
        image = np.nonzero(known)[0]
        return Candidates(image, np.rint(self.size[known]).astype(np.int64), (self.msssim * self.weight)[known])


@dataclass(frozen=True)
class Evidence:
    """What is known about the best choice under one cap when the search ends."""

    value: float | None  #: the set's MS-SSIM of the best choice of measured rows; None if none fits
    left: float  #: what all that was not measured is expected to add at most


@dataclass(frozen=True)
class Found:
    evidence: list[Evidence]  #: one a cap
    measured: int
    candidates: int  #: there are, of all kinds and pictures
    rounds: int
    error: float  #: root mean square error of predictions, in their own standard deviations; NaN if none was checked


#: Measures what is marked in [n, C]; returns bytes and MS-SSIM of those, in the order of np.nonzero.
Measure = Callable[[Flags], tuple[Floats, Floats]]


def search(kinds: list[Kind], pixels: Integers, caps: list[int], measure: Measure) -> Found:
    """Measure what may be chosen under one of `caps` (bytes of the whole set).

    Kinds without refinement come first: refined ones are worth their time only near what is chosen without.
    The same pictures, kinds, caps and measurements give the same search.
    """
    shape = len(pixels), len(kinds)
    rows = Rows(pixels, np.full(shape, np.nan), np.full(shape, np.nan))
    refined = np.array([kind.refinement > 0 for kind in kinds])
    errors = Errors()
    rounds = 0
    evidence: list[Evidence] = []
    for allowed in [~refined, np.ones(len(kinds), bool)][: 2 if refined.any() else 1]:
        part = Rows(pixels, rows.size[:, allowed], rows.msssim[:, allowed])
        prior = Prior.of([kind for kind, use in zip(kinds, allowed, strict=True) if use])
        for number in itertools.count():
            prediction = predict(prior, *logarithms(part))
            views = [View.at(part, prediction, cap) for cap in caps]
            wanted = choose(part, views, number)
            evidence = [view.evidence(part) for view in views]
            if not wanted.any():
                break
            whole = np.zeros(shape, bool)
            whole[:, allowed] = wanted
            size, msssim = measure(whole)
            rows.size[whole], rows.msssim[whole] = size, msssim
            part.size[wanted], part.msssim[wanted] = size, msssim
            if number >= PILOT_ROUNDS:
                errors.learn(part, prediction, wanted)
            rounds += 1
    return Found(evidence, int(rows.measured.sum()), rows.size.size, rounds, errors.mean)


def logarithms(rows: Rows) -> tuple[Floats, Floats]:
    """Rate and distortion as `predict` takes them. A picture without a score (MS-SSIM 0) says nothing about others."""
    rate = np.log(np.minimum(8 * rows.size / rows.pixels[:, None], MOST_BPP))
    scored = np.where(rows.msssim > 0, rows.msssim, np.nan)
    return rate, np.log(np.clip(1 - scored, LEAST_DISTORTION, 1))


class Errors:
    """How far off predictions were, over how far off they said they might be."""

    def __init__(self) -> None:
        self.squares, self.count = 0.0, 0

    def learn(self, rows: Rows, prediction: Prediction, wanted: Flags) -> None:
        rate, distortion = logarithms(rows)
        for truth, guess, variance in (
            (rate, prediction.rate, prediction.rate_variance),
            (distortion, prediction.distortion, prediction.distortion_variance),
        ):
            checked = wanted & ~np.isnan(truth)
            self.squares += float(((truth - guess)[checked] ** 2 / variance[checked]).sum())
            self.count += int(checked.sum())

    @property
    def mean(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@dataclass(frozen=True)
class View:
    """Measured and predicted candidates at the price of a byte that a cap has; arrays [n, C]."""

    cap: int
    table: Rows  #: without NaN
    worth: Floats
    deviation: Floats  #: of the worth, 0 where measured
    gain: Floats  #: expected, over the best measured candidate of the picture; 0 where measured

    @staticmethod
    def at(rows: Rows, prediction: Prediction, cap: int) -> "View":
        measured = rows.measured
        size = np.exp(np.minimum(prediction.rate, math.log(MOST_BPP))) * rows.pixels[:, None] / 8
        size = np.where(measured, rows.size, np.maximum(np.rint(size), 1))
        distortion = np.exp(np.minimum(prediction.distortion, 0))
        table = Rows(rows.pixels, size, np.where(measured, rows.msssim, 1 - distortion))
        price = price_of(table, cap)
        worth = table.msssim * rows.weight - price * size
        by_rate, by_distortion = price * size, distortion * rows.weight
        variance = by_rate**2 * prediction.rate_variance + by_distortion**2 * prediction.distortion_variance
        variance = variance + 2 * by_rate * by_distortion * prediction.covariance
        deviation = np.where(measured, 0, np.sqrt(np.maximum(variance, 0)))
        best = np.where(measured, worth, -np.inf).max(1, keepdims=True)
        gain = np.where(measured, 0, expected_gain(worth - best, deviation))
        return View(cap, table, worth, deviation, gain)

    @property
    def likely(self) -> Integers:
        """The kind that is best for each picture if predictions are right, [n]."""
        return np.asarray(self.worth.argmax(1))

    @property
    def lead(self) -> Floats:
        """By how many standard deviations it leads, [n]."""
        if self.worth.shape[1] == 1:
            return np.zeros(len(self.worth))
        second = np.partition(self.worth, -2, axis=1)[:, -2]
        at = np.arange(len(self.worth)), self.likely
        return (self.worth[at] - second) / np.maximum(self.deviation[at], 1e-12)

    def evidence(self, rows: Rows) -> Evidence:
        """What the measured rows reach under the cap."""
        started = rows.measured.any(1)
        left = float(self.gain[started].sum())
        try:
            return Evidence(allocate(rows.of(rows.measured), self.cap).value if started.all() else None, left)
        except DoesNotFit:
            return Evidence(None, left)

    def chosen(self) -> Integers:
        """The kind of each picture in the best choice if predictions are right, and the smallest where none fits."""
        every = np.ones_like(self.worth, bool)
        try:
            return np.nonzero(every)[1][allocate(self.table.of(every), self.cap).chosen]
        except DoesNotFit:
            return np.asarray(self.table.size.argmin(1))


def price_of(table: Rows, cap: int) -> float:
    """The price of a byte at which the candidates just fit under the cap."""
    candidates = table.of(~np.isnan(table.size))
    best = Table.of(candidates, undominated(candidates))
    if best.total_size(best.start) > cap:
        return PROHIBITIVE / len(table.pixels)
    return lagrangian(best, cap).price


def expected_gain(lead: Floats, deviation: Floats) -> Floats:
    """The mean of max(0, a normal variable of this mean and deviation)."""
    with np.errstate(invalid="ignore", over="ignore"):
        z = lead / np.maximum(deviation, 1e-300)
        density = np.exp(-np.square(np.clip(z, -40, 40)) / 2) / math.sqrt(2 * math.pi)
        return np.where(np.isinf(lead), np.inf, deviation * density + lead * ndtr(z))


def choose(rows: Rows, views: list[View], number: int) -> Flags:
    """What to measure in round `number`; nothing when the search is over."""
    measured = rows.measured
    n, count = measured.shape
    started = measured.any(1)
    wanted = np.zeros((n, count), bool)
    if not started.any():
        wanted[pilots(n), count // 2] = True
        return wanted
    gain: Floats = np.sum([view.gain for view in views], 0)
    # the likely best of each picture; of several, for several caps, the surest
    lead = np.full((n, count), -np.inf)
    for view in views:
        at = np.arange(n), view.likely
        lead[at] = np.maximum(lead[at], view.lead)
    lead[measured | (gain <= TOLERANCE * PORTION / n)] = -np.inf
    if number <= PILOT_ROUNDS:
        lead[~started] = -np.inf
    some = np.flatnonzero(lead.max(1) > -np.inf)
    if len(some):
        wanted[some, lead[some].argmax(1)] = True
        return wanted
    if not started.all():
        return choose(rows, views, PILOT_ROUNDS + 1)
    if max(float(view.gain.sum()) for view in views) > TOLERANCE:
        most = gain.max(1)
        order = np.argsort(-most, kind="stable")
        enough = int(np.searchsorted(np.cumsum(most[order]), PORTION * most.sum())) + 1
        wanted[order[:enough], gain[order[:enough]].argmax(1)] = True
        return wanted & (gain > 0)
    for view in views:
        now = view.evidence(rows).value
        chosen = view.chosen()
        at = np.arange(n), chosen
        promised = float((view.table.msssim * rows.weight)[at].sum())
        if now is None or promised > now + WORTH_MEASURING:
            wanted[at] = True
    return wanted & ~measured


def pilots(n: int) -> Integers:
    """A few pictures from all over the list."""
    return np.unique(np.linspace(0, n - 1, min(n, PILOTS)).astype(np.int64))
