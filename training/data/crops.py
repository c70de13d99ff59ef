"""Crops of the training pictures, gathered on the device that trains, as a pure function of seed and step."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.data.pictures import Pictures
from training.network.device import ALONE, Device, World
from training.recipe import Stage

#: Pictures are copied to a GPU whole if they take at most this part of its free memory.
RESIDENT_SHARE = 0.4


def random_places(places: NDArray[np.int64], batch: int, crop: int, seed: int, step: int, half: float = 0.0) -> Tensor:
    """Random crops of pictures (larger ones more often), places and flips: int64 [batch, 4] for `gather`.

    A share `half` of the crops is of pictures at half their size, where these are large enough. Depends on nothing
    but its arguments, so that a resumed run sees the same crops.
    """
    rng = np.random.default_rng((seed, step))
    area = (places[:, 1] * places[:, 2]).astype(np.float64)
    out = np.empty((batch, 4), np.int64)
    for k, index in enumerate(rng.choice(len(places), batch, p=area / area.sum())):
        start, height, width = places[index]
        scale = 2 if half and rng.random() < half and min(height, width) >= 2 * crop else 1
        top, left = rng.integers(height - scale * crop + 1), rng.integers(width - scale * crop + 1)
        out[k] = start + 3 * (top * width + left), 3 * width, rng.integers(2), scale
    return torch.from_numpy(out)


def gather(pixels: Tensor, places: Tensor, crop: int) -> Tensor:
    """Samples [n] and (first sample, samples a row, whether to mirror, scale) [batch, 4], in the host's memory, ->
    uint8 [batch, 3, crop, crop]. Scale 2 takes twice the height and width and halves them by averaging."""
    halved = places[:, 3] == 2
    if not halved.any():
        return _gather(pixels, places, crop)
    made = torch.empty(len(places), 3, crop, crop, dtype=torch.uint8, device=pixels.device)
    made[~halved] = _gather(pixels, places[~halved], crop)
    made[halved] = F.avg_pool2d(_gather(pixels, places[halved], 2 * crop).float(), 2).round_().byte()
    return made


def _gather(pixels: Tensor, places: Tensor, crop: int) -> Tensor:
    if pixels.is_cuda:  # pinned, so that the copy does not wait for the GPU
        places = places.pin_memory().to(pixels.device, non_blocking=True)
    start, row, mirror = (part.view(-1, 1, 1, 1) for part in places[:, :3].unbind(1))
    along = torch.arange(crop, device=pixels.device)
    columns = along.view(1, 1, -1, 1)
    columns = torch.where(mirror > 0, crop - 1 - columns, columns)
    index = start + row * along.view(1, -1, 1, 1) + 3 * columns + torch.arange(3, device=pixels.device)
    return pixels[index].permute(0, 3, 1, 2)


def to_float(crops: Tensor) -> Tensor:
    """uint8 -> [0, 1]."""
    return crops.float() / 255


class Crops:
    """The crops of each step on the device: this process's share of the batch."""

    def __init__(self, pictures: Pictures, stage: Stage, device: Device, world: World = ALONE) -> None:
        self.pictures, self.stage, self.device, self.world = pictures, stage, device, world
        self.pixels = pictures.pixels
        self.ahead: tuple[int, Future[Tensor]] | None = None
        self.pool: ThreadPoolExecutor | None = None
        if device.name == "cuda":
            if self.pixels.numel() < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]:
                self.pixels = self.pixels.to(device.name)
            else:
                self.pool = ThreadPoolExecutor(1)  # too many for the GPU: gather on the CPU, one step ahead

    def at(self, step: int) -> Tensor:
        """[batch of this process, 3, crop, crop] in [0, 1]."""
        if self.pool is None:
            return to_float(self._gather(step))
        made = self.ahead[1] if self.ahead and self.ahead[0] == step else self.pool.submit(self._gather, step)
        self.ahead = step + 1, self.pool.submit(self._gather, step + 1)
        return to_float(made.result().to(self.device.name, non_blocking=True))

    def _gather(self, step: int) -> Tensor:
        stage = self.stage
        places = random_places(self.pictures.train, stage.batch, stage.crop, stage.seed, step, stage.half)
        crops = gather(self.pixels, places.chunk(self.world.size)[self.world.rank], stage.crop)
        return crops.pin_memory() if self.pool else crops


def centre_crops(pictures: Pictures, crop: int, count: int, scale: int = 1) -> Tensor:
    """uint8 [<=count, 3, crop, crop]: the middle of the first held-out pictures, or of them at half their size
    (`scale` 2), which leaves those out that are too small."""
    start, height, width = pictures.validation[:count].T
    fits = np.minimum(height, width) >= scale * crop
    start, height, width = start[fits], height[fits], width[fits]
    first = start + 3 * ((height - scale * crop) // 2 * width + (width - scale * crop) // 2)
    places = np.stack([first, 3 * width, np.zeros_like(first), np.full_like(first, scale)], 1)
    return gather(pictures.pixels, torch.from_numpy(places), crop)
