"""The byte cap of a rate point, exactly: a float's last bit must not decide whether a submission is accepted."""

import math
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from submission.errors import UserError

#: No picture needs more (raw RGB is 24), and no set is so large that less than the other leaves it a byte.
MOST, LEAST = Decimal(1000), Decimal("1e-12")


def parse_bpp(text: str) -> Fraction:
    """`"0.15"` bits per pixel as the exact fraction 3/20. Raises UserError for anything but a positive number."""
    try:
        bpp = Decimal(text)
    except InvalidOperation:
        raise UserError(f"--bpp {text}: not a number of bits per pixel, such as 0.15") from None
    if not bpp.is_finite() or not LEAST <= bpp <= MOST:
        raise UserError(f"--bpp {text}: must be more than 0 and at most {MOST} bits per pixel")
    return Fraction(bpp)


def byte_cap(bpp: Fraction, pixels: int) -> int:
    """The bytes that all files of a set of `pixels` may have together: ceil(bpp * pixels / 8)."""
    return math.ceil(bpp * pixels / 8)


def smallest_bpp(size: int, pixels: int) -> str:
    """The smallest rate, in steps of a millionth, whose cap for `pixels` holds `size` bytes."""
    return str(Decimal(8 * (size - 1) * 10**6 // pixels + 1).scaleb(-6))
