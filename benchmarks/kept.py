"""Tables that benchmarks find: of `eval.compare --keep`, and of their own earlier calls."""

import json
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.errors import EmptyDataError, ParserError

from submission.errors import UserError
from submission.files import make_folder, write_bytes

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


def same_settings(table: Path, settings: dict[str, object]) -> None:
    """Keep beside `table` what its rows are made with; UserError where it was made with something else.

    What a call that came to no row was given does not count.
    """
    record = table.with_name(f"{table.name}.json")
    now = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in settings.items()
    }
    if not (table.exists() and record.exists()):
        write_bytes(make_folder(record.parent) / record.name, json.dumps(now, indent=1).encode())
        return
    try:
        before = json.loads(record.read_bytes())
        changed = next((name for name in now if before[name] != now[name]), None)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: not the settings of {table.name}; move both away") from None
    if changed:
        raise UserError(f"{table}: was made with {changed} {before[changed]}; use the same, or another -o")
