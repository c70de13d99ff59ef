"""The entropy models `mixture` (2020 paper, 2.2 and 2.3) and `context` (Minnen et al. 2018) as they are trained, and
what all entropy models share: the prior of z and the likelihoods.

Nothing here runs in the decoder: `training.export` turns it into the integers of `submission.integer`. What training
sees and what is deployed differ only by that quantisation, whose cost is measured.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from submission.config import ModelConfig
from submission.layers import Subpel, lower_bound

#: Probabilities are floored here in training, so that no single symbol dominates the gradient.
LIKELIHOOD_FLOOR = 1e-9

#: Scales never exceed 2^6: symbols are at most 127 in magnitude.
MAX_LOG2_SCALE = 6.0

#: Learned quantisation steps lie in 1/4..4.
MAX_LOG2_STEP = 2.0


class FactorizedPrior(nn.Module):
    """Learned density of each channel of z (Balle et al. 2018, appendix 6.1): a chain of 5 monotone layers."""

    WIDTHS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int, init_scale: float = 10.0) -> None:
        super().__init__()
        self.matrices, self.biases, self.gates = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        scale = init_scale ** (1 / (len(self.WIDTHS) - 1))
        for i, o in zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True):
            self.matrices.append(torch.full((channels, o, i), math.log(math.expm1(1 / scale / o))))
            self.biases.append(torch.rand(channels, o, 1) - 0.5)
            if o > 1:
                self.gates.append(torch.zeros(channels, o, 1))

    def logits(self, v: Tensor) -> Tensor:
        """[channels, 1, n] values -> logits of the cumulative distribution, same shape."""
        for k, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            v = F.softplus(matrix) @ v + bias
            if k < len(self.gates):
                v = v + torch.tanh(self.gates[k]) * torch.tanh(v)
        return v

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of the unit interval around each element of z [B, N, h, w]."""
        v = z.transpose(0, 1).reshape(z.shape[1], 1, -1)
        lower, upper = self.logits(v - 0.5), self.logits(v + 0.5)
        sign = -torch.sign(lower + upper).detach()  # the side of the distribution where the difference is precise
        mass = torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))
        shape = (z.shape[1], z.shape[0], *z.shape[2:])
        return lower_bound(mass, LIKELIHOOD_FLOOR).reshape(shape).transpose(0, 1)


def step_synthesis(config: ModelConfig) -> nn.Sequential:
    """h_sq: z_hat [B, N, H/64, W/64] -> log2 of the quantisation steps of y [B, M, H/16, W/16], 0 at first.

    Apart from h_s, since stage 4 trains h_s and must not move the quantiser.
    """
    last = Subpel(config.N, config.M)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(Subpel(config.N, config.N), nn.ReLU(), last)


class Context(nn.Module):
    """5x5 masked convolution over y_hat [B, M, h, w] -> [B, 2M, h, w].

    Visible are the 12 causal positions for all channels and, at the current position, the first `known` channels
    (0: 2-D context, or group 1; M/2: group 2 of the 3-D context).
    """

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 5, padding=2)
        mask = torch.zeros(1, channels, 5, 5)
        mask[:, :, :2] = 1
        mask[:, :, 2, :2] = 1
        mask[:, :known, 2, 2] = 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, y_hat: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return F.conv2d(y_hat, self.conv.weight * self.mask, self.conv.bias, padding=2)


class Estimator(nn.Module):
    """Context and hyper features [B, 4M, h, w] -> parameters [B, outputs, h, w] of `mixtures` Gaussians, or of a
    `single` one without weight: three 1x1 layers, and with `rpe` a residual branch of three more (residual parameter
    estimation)."""

    def __init__(
        self, inputs: int, widths: tuple[int, int], outputs: int, mixtures: int, rpe: bool, single: bool
    ) -> None:
        super().__init__()
        self.mixtures, self.single = mixtures, single
        self.head = self._stack(inputs, widths, outputs)
        self.residual = self._stack(outputs, widths, outputs) if rpe else None
        if self.residual is not None:  # starts as no refinement at all
            last = self.residual[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @staticmethod
    def _stack(inputs: int, widths: tuple[int, int], outputs: int) -> nn.Sequential:
        first, second = widths
        return nn.Sequential(
            nn.Conv2d(inputs, first, 1),
            nn.ReLU(),
            nn.Conv2d(first, second, 1),
            nn.ReLU(),
            nn.Conv2d(second, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        p: Tensor = self.head(features)
        return p if self.residual is None else p + self.residual(p)


def split_parameters(p: Tensor, mixtures: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 3*K*C, h, w] -> (weight logits, means, log2 scales), each [B, K, C, h, w].

    The order of the channels is (w0, mu0, s0, w1, mu1, s1, ...), as in Cheng et al.'s code.
    """
    parts = p.view(p.shape[0], mixtures, 3, -1, *p.shape[2:])
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def mixture_likelihood(y: Tensor, p: Tensor, mixtures: int, scale_bound: float) -> Tensor:
    """Probability of the unit interval around each element of y [B, C, h, w] under its Gaussian mixture.

    sum_k pi_k [Phi((y + 1/2 - mu_k) / sigma_k) - Phi((y - 1/2 - mu_k) / sigma_k)], floored at 1e-9.
    """
    logits, means, log2_scales = split_parameters(p, mixtures)
    log2_scales = lower_bound(log2_scales, math.log2(scale_bound)).clamp(max=MAX_LOG2_SCALE)
    inverse = torch.exp2(-log2_scales)
    distance = torch.abs(y.unsqueeze(1) - means)  # by symmetry; both arguments then lie on the precise side
    upper = torch.special.ndtr((0.5 - distance) * inverse)
    lower = torch.special.ndtr((-0.5 - distance) * inverse)
    mass = (torch.softmax(logits, 1) * (upper - lower)).sum(1)
    return lower_bound(mass, LIKELIHOOD_FLOOR)


def gaussian_likelihood(distance: Tensor, log2_scales: Tensor, scale_bound: float) -> Tensor:
    """Probability of the unit interval around each element, `distance` from the mean of its Gaussian: Phi((d + 1/2) /
    sigma) - Phi((d - 1/2) / sigma), floored at 1e-9."""
    log2_scales = lower_bound(log2_scales, math.log2(scale_bound)).clamp(max=MAX_LOG2_SCALE)
    inverse = torch.exp2(-log2_scales)
    d = torch.abs(distance)  # by symmetry; both arguments then lie on the precise side
    mass = torch.special.ndtr((0.5 - d) * inverse) - torch.special.ndtr((-0.5 - d) * inverse)
    return lower_bound(mass, LIKELIHOOD_FLOOR)


class EntropyModel(nn.Module):
    """Hyper-decoder, context models, parameter estimation and the prior of z."""

    def __init__(self, config: ModelConfig, prior: FactorizedPrior, h_s: nn.Sequential) -> None:
        super().__init__()
        self.config = config
        self.prior, self.h_s = prior, h_s
        size = config.M // config.groups
        single = config.entropy == "context"  # mean and scale of one Gaussian; a mixture has a weight for each as well
        widths = (config.estimator, round(0.8 * config.estimator) if single else config.estimator)
        outputs = (2 if single else 3 * config.mixtures) * size
        self.contexts = nn.ModuleList(Context(config.M, known) for known in range(0, config.M, size))
        self.estimators = nn.ModuleList(
            Estimator(4 * config.M, widths, outputs, config.mixtures, config.rpe, single) for _ in range(config.groups)
        )

    def parameters_of(self, y_hat: Tensor, z_hat: Tensor) -> list[Tensor]:
        """Parameters of each channel group's mixtures (or means and log2 scales), in one parallel pass."""
        hyper = self.h_s(z_hat)
        return [
            estimate(torch.cat([context(y_hat), hyper], 1))
            for context, estimate in zip(self.contexts, self.estimators, strict=True)
        ]

    def y_likelihood(self, y_hat: Tensor, parameters: list[Tensor], scale_bound: float) -> Tensor:
        """Likelihoods of y_hat [B, M, h, w] under these parameters."""
        if self.config.entropy == "context":
            means, log2_scales = parameters[0].chunk(2, 1)
            return gaussian_likelihood(y_hat - means, log2_scales, scale_bound)
        groups = y_hat.chunk(self.config.groups, 1)
        parts = [
            mixture_likelihood(y, p, self.config.mixtures, scale_bound) for y, p in zip(groups, parameters, strict=True)
        ]
        return torch.cat(parts, 1)

    def forward(self, y_hat: Tensor, z_hat: Tensor, scale_bound: float) -> tuple[Tensor, Tensor]:
        """Likelihoods of y_hat [B, M, h, w] and z_hat [B, N, h/4, w/4]."""
        parameters = self.parameters_of(y_hat, z_hat)
        return self.y_likelihood(y_hat, parameters, scale_bound), self.prior.likelihood(z_hat)
