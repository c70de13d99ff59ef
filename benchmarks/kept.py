"""The candidates that `eval.compare --keep` left, for benchmarks that look them up."""

from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.errors import EmptyDataError, ParserError

from submission.errors import UserError

NUMBERS = ["width", "height", "quality", "bytes", "msssim"]


def read_or_empty(path: Path, separator: str) -> pd.DataFrame:
    """The table in `path`, or an empty one if it is none."""
    try:
        return pd.read_csv(path, sep=separator)
    except (EmptyDataError, ParserError, UnicodeDecodeError):
        return pd.DataFrame()


def read_kept(path: Path) -> pd.DataFrame:
    """One row a codec, picture and candidate; UserError for what is no such file."""
    table = read_or_empty(path, "\t")
    there = {"codec", "image", *NUMBERS} <= set(table.columns)
    if table.empty or not there or not all(is_numeric_dtype(table[name]) for name in NUMBERS):
        raise UserError(f"{path}: not the candidates that eval.compare --keep leaves (NAME-candidates.tsv)")
    return table
