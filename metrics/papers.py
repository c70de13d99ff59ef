"""The figures that papers print, beside the challenge's score: they are other numbers and are never mixed with it.

Papers average over pictures what the challenge pools over pixels, and measure MS-SSIM with `pytorch_msssim`. That is
the challenge's to 1e-4 while all scales have even sides, and another number elsewhere: it pads odd sides with zeros.
"""

import math

import numpy as np

from submission.errors import UserError
from submission.files import Picture

#: Below this side `pytorch_msssim` has no value: its 11-tap window no longer fits at the coarsest of five scales.
SMALLEST_SIDE = 161


def pytorch_msssim(original: Picture, decoded: Picture) -> float:
    """MS-SSIM of two uint8 H x W x 3 pictures by the package of that name, in float32 at a data range of 255.

    NaN for a side under 161. Raises UserError where the package is not installed.
    """
    try:
        import torch
        from pytorch_msssim import ms_ssim
    except ImportError:
        raise UserError("pytorch_msssim is not installed: pip install pytorch-msssim") from None
    if min(original.shape[:2]) < SMALLEST_SIDE:
        return math.nan
    x, y = (torch.from_numpy(p.transpose(2, 0, 1)[None].astype(np.float32)) for p in (original, decoded))
    return float(ms_ssim(x, y, data_range=255))
