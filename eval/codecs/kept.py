"""The candidates that `eval.compare --keep` left: every file of every codec that was measured."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.errors import EmptyDataError, ParserError

from submission.errors import UserError
from submission.files import read_image

NUMBERS = ["width", "height", "quality", "bytes", "msssim"]


def read_or_empty(path: Path, separator: str) -> pd.DataFrame:
    """The table in `path`, or an empty one if it is none."""
    try:
        return pd.read_csv(path, sep=separator)
    except (EmptyDataError, ParserError, UnicodeDecodeError):
        return pd.DataFrame()


def read_kept(path: Path, *more: str) -> pd.DataFrame:
    """One row a codec, picture and candidate, NUMBERS and `more` as numbers; UserError for what is no such file."""
    table = read_or_empty(path, "\t")
    needed = [*NUMBERS, *more]
    there = {"codec", "image", *needed} <= set(table.columns)
    if table.empty or not there or not all(is_numeric_dtype(table[name]) for name in needed):
        raise UserError(f"{path}: not the candidates that eval.compare --keep leaves (NAME-candidates.tsv)")
    return table


def read_kept_of(path: Path, pictures: Collection[Path]) -> dict[str, pd.DataFrame]:
    """The rows of each codec; UserError unless they are of `pictures`, as far as names and sizes tell."""
    sizes = {picture.name: read_image(picture, as_stored=True).shape[1::-1] for picture in pictures}
    table = read_kept(path, "sse")
    for codec, rows in table.groupby("codec"):
        columns = (rows["image"], rows["width"], rows["height"])
        found = {str(image): (int(width), int(height)) for image, width, height in zip(*columns, strict=True)}
        if found != sizes:
            name = sorted(dict(found.items() ^ sizes.items()))[0]
            raise UserError(f"{path}: its rows of {codec} are not those of these pictures: {name}")
    return {str(codec): rows for codec, rows in table.groupby("codec")}
