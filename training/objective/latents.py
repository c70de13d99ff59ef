"""The latents of a network as a step of training sees them: quantised as its stage says, and their bits counted."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from submission.entropy_model import EntropyModel
from submission.network import Network
from submission.sliced_model import SlicedModel
from training.objective.noise import Noise
from training.objective.quantization import Term, terms
from training.objective.zero_centre import quantize_around_means
from training.recipe import Stage


@dataclass(frozen=True)
class Quantized:
    """Latents of a batch as one step of training sees them."""

    #: What g_s gets, [B, M, h, w].
    y_hat: Tensor
    #: Bits of each element of y [B, M, h, w] and of z [B, N, h/4, w/4].
    y_bits: Tensor
    z_bits: Tensor


def quantize(
    network: Network, y: Tensor, z: Tensor, stage: Stage, noise: Noise | None, progress: float = 1.0
) -> Quantized:
    """Quantise y and z as `stage` says when it is that far (0 to 1), or by rounding without noise; count their bits.

    The rate's forward calculation makes all that the entropy model sees, z_hat and the context included, since the
    distortion does not depend on it; the distortion's makes what g_s sees. Both take the same noise.
    """
    rate, distortion = terms(stage.quantizer if noise is not None else "ste")
    annealed = progress if stage.name in ("trunk", "main") else 1.0
    tau, decoder_tau = (part.surrogate.anneal(annealed, stage.sharpness) for part in (rate, distortion))
    u = [noise.like(latent) if noise is not None else torch.zeros_like(latent) for latent in (y, z)]
    model, bound = network.entropy_model, stage.scale_bound

    z_hat = rate.sample(z, u[1], tau)
    if network.config.zero_centre:
        sliced = cast(SlicedModel, model)
        moves = stage.distortion_moves_means and not stage.noisy
        y_hat, y_bits = quantize_around_means(
            sliced, y, u[0], z_hat, (rate, distortion), (tau, decoder_tau), bound, moves
        )
        return Quantized(y_hat, y_bits, _z_bits(rate, model, z, z_hat, tau))
    step = network.step_size(z_hat)
    y = y / step
    symbols = rate.sample(y, u[0], tau)
    if rate.estimator == "ep":
        parameters = model.parameters_of(symbols, z_hat)
        y_bits = rate.expected_bits(y, symbols, tau, lambda v: model.y_likelihood(v, parameters, bound))
        z_bits = _z_bits(rate, model, z, z_hat, tau)
    else:
        y_bits, z_bits = (-torch.log2(likelihood) for likelihood in model(symbols, z_hat, bound))
    return Quantized(distortion.sample(y, u[0], decoder_tau) * step, y_bits, z_bits)


def _z_bits(rate: Term, model: EntropyModel | SlicedModel, z: Tensor, z_hat: Tensor, tau: float) -> Tensor:
    if rate.estimator == "ep":
        return rate.expected_bits(z, z_hat, tau, model.prior.likelihood)
    return -torch.log2(model.prior.likelihood(z_hat))
