"""The tables that the three commands hand on: one row an image and candidate, read strictly, written whole.

Cells stay text: what a command does not use passes through unchanged.
"""

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.errors import EmptyDataError, ParserError, ParserWarning

from submission.errors import UserError
from submission.files import Picture, make_folder, write_bytes

#: What an allocation needs; any codec's table can have these.
CANDIDATE_COLUMNS = ["image", "width", "height", "candidate", "quality", "bytes", "msssim"]

#: What `ratecontrol.measure` writes besides, and `ratecontrol.package` needs.
#: `stream` is the path of the encoded file, relative to the folder of the table.
MEASURED_COLUMNS = [
    *CANDIDATE_COLUMNS,
    "sse",
    "encode_seconds",
    "image_sha256",
    "model_sha256",
    "stream_sha256",
    "stream",
]


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """The table in `path`, every cell as text, row k from line k + 2.

    Raises UserError if it is no table, has no rows, lacks one of `columns` or a cell of them, or has two rows for the
    same image and candidate.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # a first row longer than the header
            table = pd.read_csv(path, dtype=str, na_filter=False, index_col=False, compression=None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such table") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a table") from None
    except EmptyDataError:
        raise UserError(f"{path}: is empty") from None
    except (ParserError, ParserWarning, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table of comma-separated values ({error})") from None
    if missing := [column for column in columns if column not in table.columns]:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}")
    if table.empty:
        raise UserError(f"{path}: has no rows")
    for column in columns:
        if (empty := table[column] == "").any():
            raise UserError(f"{path}: line {line_of(empty)}: no {column}; a cell is missing")
    if (twice := table.duplicated(["image", "candidate"])).any():
        row = table[twice].iloc[0]
        raise UserError(f"{path}: line {line_of(twice)}: a second row for {row['image']} {row['candidate']}")
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write `table` to `path`, whole or not at all."""
    make_folder(path.parent)
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    write_bytes(path, buffer.getvalue().encode())


def numbers(path: Path, table: pd.DataFrame, column: str, lowest: float, highest: float) -> NDArray[np.float64]:
    """A column as numbers; UserError names the first line where one is not a number within the two limits."""
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= lowest) & (values <= highest))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(
            f"{path}: line {at + 2}: {column} {table[column].iloc[at]!r} is not a number from {lowest:g} to {highest:g}"
        )
    return values


def whole_numbers(path: Path, table: pd.DataFrame, column: str, lowest: int, highest: int) -> NDArray[np.int64]:
    """A column as whole numbers; UserError as for `numbers`."""
    values = numbers(path, table, column, lowest, highest)
    if (wrong := values != np.floor(values)).any():
        at = int(np.argmax(wrong))
        raise UserError(f"{path}: line {at + 2}: {column} {table[column].iloc[at]!r} is not a whole number")
    return values.astype(np.int64)


def line_of(marked: "pd.Series[bool]") -> int:
    """The line in the file of the first marked row."""
    return int(np.argmax(marked.to_numpy())) + 2


def check_name(picture: Path) -> None:
    """UserError for a name that is no text, or would break a line."""
    if not picture.name.isprintable():
        raise UserError(f"{picture.name!a}: this name cannot stand in a table; rename the picture")


def picture_hash(picture: Picture) -> str:
    """SHA-256 of a picture's size and pixels: the same for a photo and its copy in another file format."""
    height, width, _ = picture.shape
    return hashlib.sha256(f"{width}x{height}:".encode() + picture.tobytes()).hexdigest()
