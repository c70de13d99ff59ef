"""The best model whose stream fits into given bytes, for one picture."""

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from submission.errors import ImageError, UserError
from submission.files import Picture
from submission.ladder import Ladder

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


@dataclass(frozen=True)
class Target:
    """What each picture may take: bits per pixel as they were given, or bytes."""

    bpp: str | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if self.bpp is not None:
            parse_bpp(self.bpp)
        elif self.bytes is None or self.bytes < 1:
            raise UserError(f"--bytes {self.bytes}: at least 1")

    def limit(self, pixels: int) -> int:
        """The most bytes that a picture of `pixels` may take: its rate is at most the one asked for, not just above."""
        if self.bpp is not None:
            return math.floor(parse_bpp(self.bpp) * pixels / 8)
        assert self.bytes is not None
        return self.bytes

    def reachable(self, least: int, pixels: int) -> str:
        """The option, with the smallest value that holds `least` bytes; rates in steps of a millionth of a bit."""
        rate = Decimal(-(-8 * least * 10**6 // pixels)).scaleb(-6)
        return f"--bytes {least}" if self.bpp is None or rate > MOST else f"--bpp {rate}"


def compress_under(ladder: Ladder, picture: Picture, target: Target) -> tuple[int, bytes]:
    """The highest quality whose stream fits `target`, and that stream.

    Goes down from the best model, so the answer is right for any picture: every better model was seen not to fit. Sizes
    need not rise with the quality, and of tiny or flat pictures they do not always; where two models fit, the better
    one counts, even if its file is the smaller. ImageError, with the smallest possible, if none fits.
    """
    height, width, _ = picture.shape
    limit = target.limit(height * width)
    sizes = []
    for quality in reversed(ladder.qualities):
        stream = ladder.codec(quality).compress(picture)
        if len(stream) <= limit:
            return quality, stream
        sizes.append(len(stream))
    least = min(sizes)
    raise ImageError(
        f"{limit:,} bytes are not enough; the smallest possible are {least:,},"
        f" with {target.reachable(least, height * width)}"
    )
