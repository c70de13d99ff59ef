"""What candidates will cost and score, predicted from those that were measured.

Rate-distortion curves of photos look alike: log(bits per pixel) and log(1 - MS-SSIM) run nearly in parallel from
picture to picture. So all of one picture's candidates together are taken for one draw of a normal distribution, in
which what was not measured has a mean and a variance given what was. Mean and covariance of the set are themselves
estimated from all that was measured (expectation maximisation with missing values), starting from a prior in which
pictures differ by a level, a tilt and a bend of their curves, and models by a little of their own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: The prior, in natural logarithms, found on photos for tuning (`docs/ratecontrol.md`). The middle of the mean curve
#: and how it changes with log(lambda), for rate and for distortion; how much pictures differ in level (and how that
#: correlates between the two), tilt and bend, and each model on each picture; what refinement does, how well that is
#: known, and how much it differs from picture to picture and from model to model.
START, SLOPE = (-2.0, -3.5), (0.55, -0.37)
LEVEL, LEVELS_CORRELATE, TILT, BEND = 0.6, 0.5, 0.06, 0.02
OWN = 0.012, 0.018
REFINED, REFINED_KNOWN, REFINED_PICTURE, REFINED_OWN = -0.05, 0.1, 0.03, 0.01

#: The same for the mean curve of the set.
MEAN_LEVEL, MEAN_TILT, MEAN_OWN = 3.0, 0.1, 0.05

#: Pictures that the prior covariance counts for, and rounds of estimation.
PRIOR_PICTURES, ROUNDS = 6, 10

#: Less distortion than this, or more bits a pixel than that, is not told apart.
LEAST_DISTORTION, MOST_BPP = 1e-6, 1e3


@dataclass(frozen=True)
class Kind:
    """A candidate that every picture can have: a model, and a way to refine its latents (0 for none)."""

    quality: int
    lmbda: float
    refinement: int = 0


@dataclass(frozen=True)
class Prediction:
    """Of n pictures and C kinds, arrays [n, C]; exact, with no variance, where measured."""

    rate: Floats  #: log of bits per pixel
    distortion: Floats  #: log of 1 - MS-SSIM
    rate_variance: Floats
    distortion_variance: Floats
    covariance: Floats  #: of the two


@dataclass(frozen=True)
class Prior:
    """Of the vector of all rates and then all distortions of a picture, length 2 C."""

    mean: Floats
    mean_covariance: Floats
    covariance: Floats

    @staticmethod
    def of(kinds: list[Kind]) -> "Prior":
        at = np.log([kind.lmbda for kind in kinds])
        at = at - (at.min() + at.max()) / 2
        quality, refinement = (np.array([getattr(kind, name) for kind in kinds]) for name in ("quality", "refinement"))
        refined = refinement > 0
        same_model = (quality[:, None] == quality).astype(float)
        same_refinement = ((refinement[:, None] == refinement) & refined).astype(float)
        ones, tilt, bend = np.ones((len(at), len(at))), np.outer(at, at), np.outer(at**2, at**2) / 16
        both = np.eye(2)
        levels = LEVEL**2 * np.array([[1, LEVELS_CORRELATE], [LEVELS_CORRELATE, 1]])
        covariance = np.kron(levels, ones) + np.kron(both, TILT**2 * tilt + BEND**2 * bend)
        covariance += np.kron(np.diag(np.square(OWN)), same_model)
        covariance += np.kron(both, REFINED_PICTURE**2 * same_refinement + REFINED_OWN**2 * np.diag(refined))
        own = MEAN_OWN**2 * same_model + REFINED_KNOWN**2 * same_refinement + REFINED_OWN**2 * np.diag(refined)
        mean = np.concatenate([START[k] + SLOPE[k] * at + REFINED * refined for k in range(2)])
        return Prior(mean, np.kron(both, MEAN_LEVEL**2 * ones + MEAN_TILT**2 * tilt + own), covariance)


@dataclass(frozen=True)
class Pattern:
    """Pictures of which the same was measured, and what follows from it by linear algebra."""

    pictures: NDArray[np.int64]
    known: Flags
    precision: Floats  #: of what is known; 0 elsewhere
    gain: Floats  #: from what is known to everything
    left: Floats  #: covariance of everything, given what is known

    @staticmethod
    def of(pictures: NDArray[np.int64], known: Flags, covariance: Floats) -> "Pattern":
        precision = np.zeros_like(covariance)
        precision[np.ix_(known, known)] = np.linalg.inv(covariance[np.ix_(known, known)])
        gain = covariance @ precision
        return Pattern(pictures, known, precision, gain, covariance - gain @ covariance)


def predict(prior: Prior, rate: Floats, distortion: Floats) -> Prediction:
    """Everything, from the logs of what was measured: arrays [n, C], NaN elsewhere."""
    values = np.concatenate([rate, distortion], 1)
    known = ~np.isnan(values)
    values = np.where(known, values, 0)
    patterns, pattern_of = np.unique(known, axis=0, return_inverse=True)
    groups = [np.flatnonzero(pattern_of.ravel() == k) for k in range(len(patterns))]
    seen = int(known.any(1).sum())
    start = np.linalg.inv(prior.mean_covariance)
    covariance = prior.covariance
    for round_ in range(ROUNDS + 1):
        parts = [Pattern.of(group, pattern, covariance) for group, pattern in zip(groups, patterns, strict=True)]
        # the mean of the set, and how well it is known
        information = start + sum(len(part.pictures) * part.precision for part in parts)
        pull = start @ prior.mean + sum(part.precision @ values[part.pictures].sum(0) for part in parts)
        doubt = np.linalg.inv(information)
        mean = doubt @ pull
        if round_ == ROUNDS:
            break
        spread = PRIOR_PICTURES * prior.covariance
        for part in parts:
            if part.known.any():
                away = ((values[part.pictures] - mean) * part.known) @ part.gain.T
                unsure = part.left + part.gain @ doubt @ part.gain.T
                spread = spread + away.T @ away + len(part.pictures) * unsure
        covariance = spread / (PRIOR_PICTURES + seen)

    n, count = rate.shape
    centre, left = np.empty_like(values), np.empty((n, 3, count))
    for part in parts:
        centre[part.pictures] = mean + ((values[part.pictures] - mean) * part.known) @ part.gain.T
        unexplained = np.eye(2 * count) - part.gain * part.known
        total = part.left + unexplained @ doubt @ unexplained.T
        blocks = total[:count, :count], total[count:, count:], total[:count, count:]
        left[part.pictures] = [np.diagonal(block) for block in blocks]
    centre = np.where(known, values, centre)
    return Prediction(centre[:, :count], centre[:, count:], left[:, 0], left[:, 1], left[:, 2])
