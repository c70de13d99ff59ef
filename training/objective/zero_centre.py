"""Zero-centre quantisation: y_hat = round(y - mu) + mu, mu the mean of each latent's Gaussian (4th paper, 4.6.2 and
5.3).

Partial stop-gradient: the value that g_s and later slices see is Q(y - sg(mu)) + sg(mu), so only the rate, of the
symbol Q(y - mu), moves mu. The same in the hard stage, where Q rounds; there the distortion may move mu as well if it
is asked to, since the symbol is constant and dy_hat / dmu = 1 is exact.
"""

from typing import cast

import torch
from torch import Tensor

from submission.entropy_model import gaussian_likelihood
from submission.network import Network
from submission.sliced_model import SlicedModel
from training.objective.quantization import Term, universal_shared


def rounded(network: Network, y: Tensor, z_hat: Tensor) -> Tensor:
    """y [B, M, h, w] as a decoder will have it: whole, or whole steps from its means."""
    if not network.config.zero_centre:
        return y.round()
    model = cast(SlicedModel, network.entropy_model)

    def value(channels: slice, means: Tensor) -> Tensor:
        return (y[:, channels] - means).round() + means

    with torch.no_grad():
        means, _ = model.gaussians(model.walk(z_hat, value))
    return (y - means).round() + means


def quantize_around_means(
    model: SlicedModel,
    y: Tensor,
    u: Tensor,
    z_hat: Tensor,
    terms: tuple[Term, Term],
    taus: tuple[float, float],
    scale_bound: float,
    distortion_moves_means: bool = False,
) -> tuple[Tensor, Tensor]:
    """y_hat for g_s and bits of each element, [B, M, h, w], of latents y with noise u.

    `terms` and `taus` are those of rate and distortion; the rate's forward calculation makes what later slices see.
    With `distortion_moves_means` symbols are constant for the distortion, and its gradient reaches the means instead of
    y: for a fixed encoder.
    """
    rate, distortion = terms
    u_rate = u
    if rate.surrogate.forward is universal_shared:  # the same for all slices
        u_rate = u.flatten(1)[:, 0].reshape(-1, 1, 1, 1).expand_as(u)

    def value(channels: slice, means: Tensor) -> Tensor:
        offset = means.detach()
        return rate.sample(y[:, channels] - offset, u_rate[:, channels], taus[0]) + offset

    means, log2_scales = model.gaussians(model.walk(z_hat, value))
    around = y - means
    symbols = rate.sample(around, u_rate, taus[0])

    def likelihood(k: Tensor) -> Tensor:
        return gaussian_likelihood(k, log2_scales, scale_bound)

    if rate.estimator == "ep":
        bits = rate.expected_bits(around, symbols, taus[0], likelihood)
    else:
        bits = -torch.log2(likelihood(symbols))
    offset = means.detach()
    if distortion_moves_means:
        return distortion.sample((y - offset).detach(), u, taus[1]) + means, bits
    return distortion.sample(y - offset, u, taus[1]) + offset, bits
