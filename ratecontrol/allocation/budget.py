"""The byte cap of a rate point, exactly: a float's last bit must not decide whether a submission is accepted."""

import math
from decimal import Decimal
from fractions import Fraction

from submission.target import parse_bpp as parse_bpp

#: The rate points of the challenge, in bits per pixel.
RATES = ("0.075", "0.15", "0.30")


def byte_cap(bpp: Fraction, pixels: int) -> int:
    """The bytes that all files of a set of `pixels` may have together: ceil(bpp * pixels / 8)."""
    return math.ceil(bpp * pixels / 8)


def smallest_bpp(size: int, pixels: int) -> str:
    """The smallest rate, in steps of a millionth, whose cap for `pixels` holds `size` bytes."""
    return str(Decimal(8 * (size - 1) * 10**6 // pixels + 1).scaleb(-6))
