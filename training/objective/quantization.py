"""What stands for rounding in training: forward calculations and gradient estimators.

After "On Uniform Scalar Quantization for Learned Image Compression" (arXiv 2309.17051), called the 4th paper here. The
rate and the distortion each have a forward calculation and an estimator of its gradient, so a quantizer is written as
`RATE/DISTORTION`, each `FORWARD+ESTIMATOR`: `sua+ep/sua+pge`. `NAMED` has the usual ones by short names.

Everything here is a pure function of the latent `y`, of noise `u` of the same shape, uniform in [-1/2, 1/2), and of a
temperature coefficient tau, which grows as surrogates that have one harden into rounding.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from submission.errors import UserError

Forward = Callable[[Tensor, Tensor, float], Tensor]
Soft = Callable[[Tensor, float], Tensor]

#: Below this tau soft rounding is the identity for all that float32 can tell.
_FLAT = 1e-3

#: Arguments of atanh stop this short of 1, where its slope is 2^19.
_ATANH_MARGIN = 2.0**-20


# --- soft functions ---------------------------------------------------------------------------------------------------


def identity(y: Tensor, tau: float) -> Tensor:
    return y


def soft_round(y: Tensor, tau: float) -> Tensor:
    """s_tau(y): the identity for tau -> 0, rounding for tau -> infinity, invertible in between (4th paper, eq. 9)."""
    if tau < _FLAT:
        return y
    whole = torch.floor(y)
    return whole + 0.5 + torch.tanh(tau * (y - whole - 0.5)) / (2 * math.tanh(tau / 2))


def soft_round_inverse(v: Tensor, tau: float) -> Tensor:
    """The y with s_tau(y) = v."""
    if tau < _FLAT:
        return v
    whole = torch.floor(v)
    argument = 2 * math.tanh(tau / 2) * (v - whole - 0.5)
    offset = torch.atanh(argument.clamp(-1 + _ATANH_MARGIN, 1 - _ATANH_MARGIN)) / tau
    return whole + 0.5 + offset.clamp(-0.5, 0.5)


def denoise(v: Tensor, tau: float) -> Tensor:
    """r_tau(v) = E[y | s_tau(y) + u = v] where y is locally uniform (Agustsson and Theis 2020)."""
    return soft_round_inverse(v - 0.5, tau) + 0.5


# --- forward calculations (4th paper, 4.1.1) --------------------------------------------------------------------------


def rounding(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """The quantiser of the deployed codec: nearest integer."""
    return torch.round(y)


def additive_uniform_noise(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """AUN (Balle et al. 2017)."""
    return y + u


def universal_shared(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """UQ-s: universal quantisation, one noise value for each sample of the batch."""
    shared = u.flatten(1)[:, 0].reshape(-1, *(1,) * (y.dim() - 1))
    return torch.round(y + shared) - shared


def universal_independent(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """UQ-i: universal quantisation, independent noise; distributed as AUN, element by element."""
    return torch.round(y + u) - u


def soft_to_hard(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SHA: soft rounding, no noise, and so no loss of information (Agustsson et al. 2017)."""
    return soft_round(y, tau)


def stochastic_uniform(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SUA: soft rounding, noise, and the best guess of y from it; AUN for tau -> 0 (4th paper, eq. 15)."""
    return denoise(soft_round(y, tau) + u, tau)


def stochastic_uniform_noisy(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SUA-n: SUA without the guess, which is left to the decoder's network."""
    return soft_round(y, tau) + u


def stochastic_rounding(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SR: up with probability y - floor(y), else down (Theis et al. 2017; 4th paper, eq. 17)."""
    return torch.floor(y + u + 0.5)


def stochastic_rounding_annealed(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SRA: stochastic rounding of s_tau(y)."""
    return stochastic_rounding(soft_round(y, tau), u, tau)


def stochastic_gumbel(y: Tensor, u: Tensor, tau: float) -> Tensor:
    """SGA: down and up mixed by a Gumbel softmax of temperature 1 / tau (Yang et al. 2020; 4th paper, eq. 14).

    The difference of its two Gumbel variables is one logistic variable, the logit of u + 1/2.
    """
    whole = torch.floor(y)
    fraction = (y - whole).clamp(1e-5, 1 - 1e-5)
    preference = tau * (torch.atanh(fraction) - torch.atanh(1 - fraction))
    return whole + torch.sigmoid(tau * (preference + torch.logit(u + 0.5, eps=1e-6)))


# --- surrogates: a forward calculation and what its estimators need ---------------------------------------------------


def unit_around(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return y - 0.5, y + 0.5


def unit_around_soft(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return unit_around(soft_round(y, tau), tau)


def cell(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return torch.floor(y), torch.floor(y) + 1


def sharpness(progress: float, largest: float) -> float:
    """tau: from 1 to `largest`, linear over the first 8/9 of training (4th paper, 6.1.2: 400 of 450 epochs)."""
    return 1 + (largest - 1) * min(1.0, progress * 450 / 400)


def gumbel_sharpness(progress: float, largest: float) -> float:
    """1 / temperature of SGA: temperature min(0.5, 0.5 exp(-(n - 700) / 1000)) for n from 0 to 2000 (Yang et al.)."""
    return 2 / min(1.0, math.exp(-(2000 * progress - 700) / 1000))


@dataclass(frozen=True)
class Surrogate:
    """A forward calculation and what is known of its gradient."""

    forward: Forward
    #: Its estimators: `pge` goes back through the forward calculation, `ste` through `soft` instead, `ep` is exact.
    estimators: tuple[str, ...]
    #: The part of the forward calculation that is smooth and not steep.
    soft: Soft = identity
    #: (lower, upper): the expectation of a function f of one element has the gradient (f(upper) - f(lower)) * soft'.
    edges: Callable[[Tensor, float], tuple[Tensor, Tensor]] = unit_around
    #: tau, of progress in 0..1 and its largest value.
    anneal: Callable[[float, float], float] = sharpness


SURROGATES = {
    "round": Surrogate(rounding, ("ste",)),
    "aun": Surrogate(additive_uniform_noise, ("pge", "ep")),
    "uq-s": Surrogate(universal_shared, ("ste", "ep")),
    "uq-i": Surrogate(universal_independent, ("ste", "ep")),
    "sha": Surrogate(soft_to_hard, ("pge",)),
    "sua": Surrogate(stochastic_uniform, ("pge", "ste", "ep"), soft_round),
    "sua-n": Surrogate(stochastic_uniform_noisy, ("pge", "ep"), soft_round, unit_around_soft),
    "sr": Surrogate(stochastic_rounding, ("ste", "ep"), edges=cell),
    "sra": Surrogate(stochastic_rounding_annealed, ("ste", "ep"), soft_round, cell),
    "sga": Surrogate(stochastic_gumbel, ("pge", "ste"), anneal=gumbel_sharpness),
}

#: RATE/DISTORTION of the usual quantizers. MIX: noise for the rate, rounding for the decoder. For SUA, what the 4th
#: paper recommends where attention makes the biased `sua+ste` diverge; for the others, the estimators of least risk.
NAMED = {
    "aun": "aun+pge/aun+pge",
    "ste": "round+ste/round+ste",
    "mix": "aun+pge/round+ste",
    "sga": "sga+pge/sga+pge",
    "sha": "sha+pge/sha+pge",
    "uq-s": "uq-s+ste/uq-s+ste",
    "uq-i": "uq-i+ste/uq-i+ste",
    "sua": "sua+ep/sua+pge",
    "sua-n": "sua-n+ep/sua-n+pge",
    "sr": "sr+ep/sr+ste",
    "sra": "sra+ep/sra+ste",
}


# --- estimators (4th paper, 4.1.2) ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """The surrogate of one term of the loss, and how its gradient is estimated."""

    surrogate: Surrogate
    estimator: str

    def sample(self, y: Tensor, u: Tensor, tau: float) -> Tensor:
        """The forward calculation, with the gradient of PGE or STE.

        With `ep` this is what the context model and h_s see: PGE where there is one, which like EP is unbiased.
        """
        value = self.surrogate.forward(y, u, tau)
        if "pge" in self.surrogate.estimators and self.estimator != "ste":
            return value
        soft = self.surrogate.soft(y, tau)
        return soft + (value - soft).detach()

    def expected_bits(self, y: Tensor, value: Tensor, tau: float, likelihood: Callable[[Tensor], Tensor]) -> Tensor:
        """-log2 likelihood(value), `value` a sample of y, whose gradient by y is that of the expectation (EP).

        Whatever `likelihood` itself depends on gets the ordinary gradient, at the sample.
        """
        bits = -torch.log2(likelihood(value.detach()))
        with torch.no_grad():
            lower, upper = self.surrogate.edges(y, tau)
            slope = torch.log2(likelihood(lower)) - torch.log2(likelihood(upper))
        soft = self.surrogate.soft(y, tau)
        return bits + slope * (soft - soft.detach())


def term(text: str) -> Term:
    """`FORWARD+ESTIMATOR`, as in `sua+ep`; UserError if there is no such thing."""
    forward, _, estimator = text.partition("+")
    if forward not in SURROGATES:
        raise UserError(f"quantizer {text!r}: {forward!r} is none of {', '.join(SURROGATES)}")
    if estimator not in SURROGATES[forward].estimators:
        known = ", ".join(f"{forward}+{e}" for e in SURROGATES[forward].estimators)
        raise UserError(f"quantizer {text!r}: no such gradient estimator; there is {known}")
    return Term(SURROGATES[forward], estimator)


@functools.cache
def terms(quantizer: str) -> tuple[Term, Term]:
    """(rate, distortion) of a name or of `RATE/DISTORTION`; UserError if it is neither."""
    parts = NAMED.get(quantizer, quantizer).split("/")
    if len(parts) != 2:
        raise UserError(f"quantizer {quantizer!r}: give RATE/DISTORTION or one of {', '.join(NAMED)}")
    rate, distortion = map(term, parts)
    if distortion.estimator == "ep":
        raise UserError(f"quantizer {quantizer!r}: the expected gradient (ep) is known for the rate only")
    return rate, distortion
