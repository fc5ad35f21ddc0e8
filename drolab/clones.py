"""Files of a clone that a user made, checked so that half a download is an error and no result."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from drolab import files
from drolab.errors import DrolabError, QueryError

T = TypeVar("T")
_AGAIN = "run `git checkout -- .` in the clone, or clone it again."


class CloneError(DrolabError, ValueError):
    """A folder or file is not what a clone of that repository holds."""


def check_whole(path: Path) -> None:
    """Raise CloneError for a file that is not there, is empty, or is a Git LFS pointer in place of its content."""
    _checked(files.read_content, path)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark.

    Raises:
        CloneError: no such file, a Git LFS pointer, a web page, nothing in it, or another encoding.
    """
    return _checked(files.read_text, path)


def _checked(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except OSError as error:
        raise CloneError(f"Cannot read {path} ({error.strerror}): {_AGAIN}") from error
    except QueryError as error:
        raise CloneError(str(error)) from error


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file whose fields are all texts: nothing is taken for a missing value or a number. A row that was cut
    short ends in empty fields.

    Raises:
        CloneError: as from `read_text`, or the file is no CSV or has not these columns.
    """
    text = read_text(path)
    # A carriage return inside a response is no end of a line, unless every line ends in one. `tables.read_table` would
    # end the row there, as most CSV files mean it.
    newline = None if text.partition("\n")[0].endswith("\r") else "\n"
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, lineterminator=newline)
    except (pd.errors.ParserError, ValueError) as error:
        raise CloneError(f"{path} cannot be read as CSV ({error}): {_AGAIN}") from error
    if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of fields beyond the header's
        raise CloneError(f"{path} has rows that are longer than its header: {_AGAIN}")
    if missing := [column for column in columns if column not in table.columns]:
        raise CloneError(f"{path} has the columns {list(table.columns)}, not {missing}: is it the right file?")
    return table
