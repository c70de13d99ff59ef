"""Values of options as the commands here take them: each a `type` for argparse."""

import argparse
import math
import re

from submission.errors import UserError


def size(text: str) -> tuple[int, int]:
    """`2048x1365` -> width and height in pixels. UserError for anything else."""
    if not (sides := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text, re.ASCII)):
        raise UserError(f"{text}: not a size in pixels, such as 2048x1365")
    return int(sides[1]), int(sides[2])


def count(text: str) -> int:
    """A whole number from 1 up."""
    if not re.fullmatch(r"0*[1-9]\d{0,17}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 up")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value
