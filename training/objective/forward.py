"""What a stage computes of a batch and what it minimises; validation with real rounding."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from submission.network import Network
from training.data.crops import centre_crops, to_float
from training.data.pictures import Pictures
from training.network.conditional import Trunk
from training.network.device import Device
from training.objective.latents import quantize
from training.objective.loss import Padded, distortion, squared_error
from training.objective.noise import Noise
from training.recipe import Stage

#: MSE of pictures in [0, 1] weighs this many times 1 - MS-SSIM: the ratio of the lambdas that peers pair up.
MSE_WEIGHT = 50.0

VALIDATION_CROPS = 16

#: R + lambda D of trained models is about 0.1 lambda^0.56 (for lambda from 0.8 to 90).
TYPICAL_POWER = 0.56


def trainable(network: Network | Trunk, stage: Stage) -> list[nn.Module]:
    """The modules that a stage trains (2020 paper, 3; 2021 paper, 1)."""
    if isinstance(network, Trunk):
        return [network.tables, *(m for m in network.network.children() if m is not network.network.post_filter)]
    if stage.name == "main":
        return [m for m in network.children() if m is not network.post_filter]
    if stage.name == "post_filter":
        return [network.post_filter]
    if stage.name == "joint":
        return [network]
    if stage.name == "hard":
        return [network.entropy_model, network.g_s, network.post_filter]  # encoders and h_sq are fixed
    return [network.entropy_model]


def forward(
    network: Network, stage: Stage, batch: Padded, device: Device, noise: Noise | None, progress: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Picture [B, 3, H, W] in float32, rates of y and of z in bits per true pixel. Without noise, rounding is real;
    with it the stage's quantizer stands for it, annealed as far as the stage has come (0 to 1). Where the entropy model
    alone learns the picture does not matter and is the batch's own."""
    with device.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and stage.noisy):
        y = network.g_a(batch.x)
        z = network.h_a(y)
    y, z = y.float(), z.float()  # the entropy model is small; probabilities want full precision
    with torch.set_grad_enabled(torch.is_grad_enabled() and stage.name != "post_filter"):
        latents = quantize(network, y, z, stage, noise, progress)
        y_bpp, z_bpp = (bits.sum() / batch.pixels for bits in (latents.y_bits, latents.z_bits))
        if stage.name == "entropy" and torch.is_grad_enabled():
            return batch.x, y_bpp, z_bpp
        with device.autocast():
            x_hat = network.g_s(latents.y_hat)
    if stage.name not in ("trunk", "main"):
        with device.autocast():
            x_hat = network.post_filter(x_hat)
    return x_hat.float(), y_bpp, z_bpp


class Pass(nn.Module):
    """`forward` as a module, which is what DistributedDataParallel takes. A trunk is folded for the step's lambda."""

    def __init__(self, network: Network | Trunk, stage: Stage, device: Device) -> None:
        super().__init__()
        self.network, self.stage, self.device = network, stage, device

    def forward(
        self, batch: Padded, noise: Noise | None, progress: float, lmbda: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.network, Trunk):
            plain = Pass(self.network.network, self.stage, self.device)
            folded = {f"network.{name}": value for name, value in self.network.folded(lmbda).items()}
            made: tuple[Tensor, Tensor, Tensor] = functional_call(plain, folded, (batch, noise, progress, lmbda))
            return made
        return forward(self.network, self.stage, batch, self.device, noise, progress)


@dataclass(frozen=True)
class Loss:
    """What a step minimises, and its parts."""

    total: Tensor
    bpp: Tensor
    z_bpp: Tensor
    distortion: Tensor


def loss_of(made: tuple[Tensor, Tensor, Tensor], batch: Padded, stage: Stage, lmbda: float, warming: bool) -> Loss:
    """R + lambda D on the true area, D by the stage's metric; MSE for 1 - MS-SSIM during the warm-up; D alone where
    only the post-filter learns, R alone where only the entropy model does.

    A trunk's loss is divided by what is typical of its lambda, so that all count alike.
    """
    x_hat, y_bpp, z_bpp = made
    true, seen = batch.valid(batch.x), batch.valid(x_hat)
    if stage.name == "entropy":
        d = torch.zeros_like(y_bpp)
    elif stage.metric == "mse":
        d = squared_error(true, seen)
    else:
        d = MSE_WEIGHT * torch.mean((true - seen) ** 2) if warming else distortion(true, seen)
    total = lmbda * d if stage.name == "post_filter" else y_bpp + z_bpp + lmbda * d
    if stage.lambdas:
        total = total / (0.1 * lmbda**TYPICAL_POWER)
    return Loss(total, y_bpp + z_bpp, z_bpp, d)


@dataclass(frozen=True)
class HeldOut:
    """Rate and quality on held-out crops, and some of them as `original | decoded`, [3, H, W] in [0, 1]."""

    bpp: float
    msssim: float
    #: Of all crops' squared errors pooled, in dB.
    psnr: float
    samples: list[Tensor]


@torch.no_grad()
def validate(network: Network | Trunk, stage: Stage, lmbda: float, pictures: Pictures, device: Device) -> HeldOut:
    """With real rounding and the real bound of sigma; a trunk at `lmbda`."""
    if isinstance(network, Trunk):
        network = network.at(lmbda)
    network.eval()
    scales = (1, 2) if stage.half else (1,)
    crops = torch.cat([centre_crops(pictures, stage.crop, VALIDATION_CROPS, scale) for scale in scales])
    x = to_float(crops.to(device.name))
    rates, losses, errors, samples = [], [], [], []
    hard = dataclasses.replace(stage, scale_bound=1e-6)
    with torch.compiler.set_stance("force_eager"):  # to compile anew would take longer
        for part in x.split(4):
            x_hat, y_bpp, z_bpp = forward(network, hard, Padded(part, *part.shape[2:]), device, None)
            x_hat = x_hat.clamp(0, 1)
            rates.append((y_bpp + z_bpp) * len(part))
            losses.append(distortion(part, x_hat) * len(part))
            errors.append(squared_error(part, x_hat) * len(part))
            samples.append(torch.cat([part[0], x_hat[0]], 2))
    network.train()
    psnr = 10 * math.log10(255**2 / max(float(sum(errors)) / len(x), 1e-9))
    return HeldOut(float(sum(rates)) / len(x), 1 - float(sum(losses)) / len(x), psnr, samples)
