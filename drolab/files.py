"""A user's file, or a data set on the hub, as a table: read strictly, refused with the reason and the next step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.errors import QueryError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype html", b"<html")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

HUB = "hub:"
"""Beginning of a name on the hub: hub:owner/name, hub:owner/name/config or hub:owner/name/config/split."""


def read_table(path: Path) -> pd.DataFrame:
    """The table in a `.txt`, `.csv`, `.json`, `.jsonl` or `.parquet` file.

    A plain list (lines of a text file, a JSON list of strings) has the one column `text`. In a `.csv` every value is
    text, and nothing is taken for a missing value: the query "None" stays one. Blank lines are no rows.

    Raises:
        QueryError: another ending, no UTF-8, empty, a Git LFS pointer, a web page, broken or cut off.
    """
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".txt": lambda file: pd.DataFrame({"text": [line.strip() for line in _lines(file)]}),
        ".csv": _read_csv,
        ".json": lambda file: _records(json.loads(read_text(file))),
        ".jsonl": _read_jsonl,
        ".parquet": lambda file: pd.read_parquet(io.BytesIO(read_content(file))),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise QueryError(f"{path} has the ending {path.suffix!r}: use one of {', '.join(readers)}.")
    try:
        return reader(path)
    except QueryError:
        raise
    except pd.errors.EmptyDataError as error:
        raise QueryError(f"{path} is empty: write a header line and one query a row.") from error
    except (ValueError, OSError, RecursionError) as error:  # of the JSON, CSV and Parquet parsers
        raise QueryError(
            f"{path} cannot be read as {path.suffix} ({error}): check the file's format, or download it again if it "
            "was cut off."
        ) from error


def read_content(path: Path) -> bytes:
    """The bytes of a file that is there whole: not empty, no Git LFS pointer, no web page in place of the data."""
    content = path.read_bytes()
    if not content:
        raise QueryError(f"{path} is empty: write a header line and one query a row, or download it again.")
    if content.startswith(_LFS_POINTER):
        raise QueryError(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in the clone.")
    if content[:256].lstrip().lower().startswith(_WEB_PAGE):
        raise QueryError(f"{path} is a web page, not the data: download the raw file, or clone the repository.")
    return content


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark."""
    content = read_content(path)
    if content.startswith(_UTF_16):
        raise QueryError(f"{path} is UTF-16 text, not UTF-8: save it in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise QueryError(
            f"{path} is not UTF-8 text (line {line}, byte {error.start}; Latin-1 or Windows-1252, perhaps): save it "
            "in UTF-8."
        ) from error
    if "\0" in text:
        raise QueryError(f"{path} holds NUL characters (UTF-16 without a mark, or no text at all): save it in UTF-8.")
    return text


def _lines(path: Path) -> list[str]:
    """The lines that are not blank. Only line feeds and carriage returns end one: a query or a JSON string may hold
    the line separators of Unicode."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    return [line for line in text.split("\n") if line.strip()]


def _read_csv(path: Path) -> pd.DataFrame:
    text = read_text(path)
    # Where lines end in a line feed, a carriage return is part of a value: pandas writes it without quotes.
    header, line_feed, _ = text.partition("\n")
    end = "\n" if line_feed and not header.endswith("\r") else None
    # Without header=None, pandas takes the first column for an index where all rows are longer than the header.
    cells = pd.read_csv(io.StringIO(text, newline=""), header=None, dtype=str, na_filter=False, lineterminator=end)
    names = [str(name).strip() for name in cells.iloc[0]]
    return cells.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def _read_jsonl(path: Path) -> pd.DataFrame:
    records = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"record {number}: {error}") from error
    return _records(records)


def _records(content: Any) -> pd.DataFrame:
    """A list of strings or of objects."""
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return pd.DataFrame({"text": content})
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return pd.DataFrame(content)
    raise ValueError("expected a list of strings or a list of objects")


def read_hub(name: str) -> pd.DataFrame:
    """The table of a data set on the Hugging Face hub, through the package `datasets` and its cache.

    `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere; no code of the data set is run.

    Raises:
        QueryError: no such package, a name of another form, several splits to choose from, or whatever the hub says.
    """
    parts = name.removeprefix(HUB).split("/")
    if not (2 <= len(parts) <= 4 and all(parts)):
        raise QueryError(f"{name!r} is no name on the hub: write {HUB}owner/name, and /config/split if there are any.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise QueryError(
            f"Reading {name} needs the package datasets: pip install 'drolab[hub]'. Or download the files in any other "
            "way and give their path."
        ) from error
    config, split = (*parts[2:], None, None)[:2]
    try:
        loaded = load_dataset("/".join(parts[:2]), name=config, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx each have their own, without a common base
        raise QueryError(
            f"The hub did not give {name} ({type(error).__name__}: {error}). Check the name and the connection; "
            "a gated set needs access from its page, and `hf auth login`. Without a connection, give a file's path."
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            choices = ", ".join(f"{HUB}{'/'.join(parts[:2])}/{config or 'default'}/{split}" for split in loaded)
            raise QueryError(f"{name} has several splits: choose one of {choices}.")
        (loaded,) = loaded.values()
    return loaded.to_pandas()
