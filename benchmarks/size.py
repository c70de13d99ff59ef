"""Sizes of pictures as the commands here take them."""

import re

from submission.errors import UserError


def size(text: str) -> tuple[int, int]:
    """`2048x1365` -> width and height in pixels: a `type` for argparse. UserError for anything else."""
    if not (sides := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text, re.ASCII)):
        raise UserError(f"{text}: not a size in pixels, such as 2048x1365")
    return int(sides[1]), int(sides[2])
