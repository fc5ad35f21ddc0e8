"""Reading whole or refusing, writing whole or not at all: the one place for both.

Readers and the writer end in the class of error that they are given, whose `read_again` or `write_again` says what to
do next. A file that is not whole, or not what it is taken for, is an error and no result: empty, cut off, a Git LFS
pointer or a web page in place of the data, another encoding.

A writer holds a shared lock on the folder while its temporary file exists. The system releases it when a process ends,
however it ends: who gets the exclusive lock knows that no temporary file there is in use, whatever the clock says.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.errors import DrolabError, ExportError, QueryError, shown

try:
    import fcntl
except ImportError:  # Windows: no folder can be locked or flushed, and a file in use cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""Ending of the temporary files that a killed writer leaves behind."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype html", b"<html")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


# ---------------------------------------------------------------- reading


def given_path(path: object, error: type[DrolabError], otherwise: str) -> Path:
    """The path that a caller gave to read from.

    Raises:
        error: neither a text nor a path; or what no file can be called, such as a text in place of its file. It ends
            in `otherwise`, which says what to do with a text.
    """
    if not isinstance(path, (str, Path)):
        raise error(f"{type(path).__name__} is no path: give one, or {otherwise}.")
    found = expanded(path, error)
    try:
        found.stat()
    except (OSError, ValueError) as reason:  # a NUL is a ValueError
        if isinstance(reason, ValueError) or reason.errno == errno.ENAMETOOLONG or "\n" in str(path):
            raise error(f"{shown(str(path))} is no name of a file: to use a text, {otherwise}.") from reason
    return found


def read_bytes(path: Path, error: type[DrolabError]) -> bytes:
    """The bytes of a file that is there whole: not empty, no Git LFS pointer, no web page in place of the data."""
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(f"Cannot read {path} ({reason.strerror or reason}): {error.read_again}") from reason
    if not content or content.isspace():
        raise error(f"{path} is empty: {error.read_again}")
    if content.startswith(_LFS_POINTER):
        raise error(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in the clone.")
    if content[:256].lstrip().lower().startswith(_WEB_PAGE):
        raise error(f"{path} is a web page, not the data: download the raw file, or clone the repository.")
    return content


def read_text(path: Path, error: type[DrolabError]) -> str:
    """The text of a whole file (see `read_bytes`) in UTF-8, without a byte-order mark."""
    content = read_bytes(path, error)
    if content.startswith(_UTF_16):
        raise error(f"{path} is UTF-16 text, not UTF-8: save it in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = content[: reason.start].count(b"\n") + 1
        raise error(
            f"{path} is not UTF-8 text (line {line}, byte {reason.start}; Latin-1 or Windows-1252, perhaps): save it "
            "in UTF-8."
        ) from reason
    if "\0" in text:
        raise error(f"{path} holds NUL characters (UTF-16 without a mark, or no text at all): save it in UTF-8.")
    return text


def read_json(path: Path, error: type[DrolabError]) -> Any:
    """What a JSON file holds; a key that an object has twice is an error."""
    text = read_text(path, error)
    with _parsing(path, error):
        try:
            return parse_json(text)
        except json.JSONDecodeError as reason:
            if reason.msg != "Extra data":
                raise
            raise ValueError(f"{reason}. If it has one value on each line, its name should end in .jsonl") from reason


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: no JSON, or an object with the same key twice, of which Python would keep the last.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(repeated)} is there twice in one object")
    return found


def read_csv(path: Path, error: type[DrolabError], columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV file whose fields are all texts: nothing is taken for a missing value or a number, so that the query
    "None" stays one. A row that was cut short ends in empty fields, a row that is longer than the header is refused.

    Args:
        columns: those that the file must have, each of them once.
    """
    text = read_text(path, error)
    # Where lines end in a line feed, a carriage return is part of a value: pandas writes it without quotes.
    header, line_feed, _ = text.partition("\n")
    if "," not in header and (mark := next((mark for mark in ";\t|" if mark in header), None)):
        raise error(f"{path} separates its columns by {mark!r}, not by commas: save it as CSV with commas.")
    end = "\n" if line_feed and not header.endswith("\r") else None
    with _parsing(path, error):
        # Without header=None, pandas takes the first column for an index where all rows are longer than the header.
        cells = pd.read_csv(io.StringIO(text, newline=""), header=None, dtype=str, na_filter=False, lineterminator=end)
    names = [str(name).strip() for name in cells.iloc[0]]
    if wrong := [column for column in columns if names.count(column) != 1]:
        raise error(f"{path} must have the columns {wrong} once each, and has {names}: is it the right file?")
    return cells.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """The table in a `.txt`, `.csv`, `.json`, `.jsonl` or `.parquet` file.

    A plain list (lines of a text file, a JSON list of strings) has the one column `text`. Blank lines are no rows.

    Raises:
        QueryError: another ending, no UTF-8, empty, a Git LFS pointer, a web page, broken or cut off.
    """
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".txt": lambda file: pd.DataFrame({"text": [line.strip() for line in _lines(file)]}),
        ".csv": lambda file: read_csv(file, QueryError),
        ".json": lambda file: _records(read_json(file, QueryError)),
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise QueryError(f"{path} has the ending {path.suffix!r}: use one of {', '.join(readers)}.")
    with _parsing(path, QueryError):
        return reader(path)


@contextmanager
def _parsing(path: Path, error: type[DrolabError]) -> Iterator[None]:
    """Whatever a parser of JSON, CSV or Parquet objects to becomes an `error` that names the file."""
    try:
        yield
    except DrolabError:
        raise
    except (ValueError, OSError, RecursionError) as reason:
        raise error(f"{path} cannot be read as {path.suffix} ({str(reason).strip()}): {error.read_again}") from reason


def _lines(path: Path) -> list[str]:
    """The lines that are not blank. Only line feeds and carriage returns end one: a query or a JSON string may hold
    the line separators of Unicode."""
    text = read_text(path, QueryError).replace("\r\n", "\n").replace("\r", "\n")
    return [line for line in text.split("\n") if line.strip()]


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    content = read_bytes(path, QueryError)
    try:
        # Otherwise a text that is no UTF-8 is found only where it is looked at.
        pyarrow.parquet.read_table(io.BytesIO(content)).validate(full=True)
        return pd.read_parquet(io.BytesIO(content))
    except Exception as error:  # of pandas' own notes in the file, pyarrow takes for granted that they are whole
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read_jsonl(path: Path) -> pd.DataFrame:
    records = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            records.append(parse_json(line))
        except ValueError as error:
            hint = ". If the file is one JSON list, its name should end in .json" if number == 1 else ""
            raise ValueError(f"record {number}: {error}{hint}") from error
    return _records(records)


def _records(content: Any) -> pd.DataFrame:
    """A list of strings or of objects."""
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return pd.DataFrame({"text": content})
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return pd.DataFrame(content)
    raise ValueError("expected a list of strings or a list of objects")


def expanded(path: str | Path, error: type[DrolabError], otherwise: str = "give a full path") -> Path:
    """The path with the home folder in place of `~`.

    Raises:
        error: neither HOME nor the system's list of users knows that home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as reason:
        raise error(f"There is no home folder for {shown(str(path))}: {otherwise}.") from reason


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---------------------------------------------------------------- writing


def write_file(path: Path, content: str | bytes, error: type[DrolabError] = ExportError) -> Path:
    """All of the file under its name, durable, or none of it; returns the path. Its folder is made if absent.

    A text is written in UTF-8; half of a surrogate pair, which has no UTF-8, as its escape.

    Raises:
        error: the system refused; what was there before is untouched, and no partial file is left.
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    partial = path.with_name(f".{path.stem[:16]}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path.parent) as folder:
            if folder is not None:
                with suppress(OSError):  # some network folders lock nothing: then `idle` says no
                    fcntl.flock(folder, fcntl.LOCK_SH)
            try:
                with open(partial, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            if folder is not None:
                _flush(folder)
    except (OSError, ValueError) as reason:  # a path with a NUL is a ValueError
        why = getattr(reason, "strerror", None) or reason
        raise error(f"Cannot write {path} ({why}): {error.write_again}") from reason
    return path


def _flush(folder: int) -> None:
    """Make a rename durable. Some network folders cannot be flushed, and say that the argument is invalid."""
    try:
        os.fsync(folder)
    except OSError as reason:
        if reason.errno != errno.EINVAL:
            raise


@contextmanager
def idle(folder: Path) -> Iterator[bool]:
    """Whether nobody writes in `folder`; if so, nobody starts to until the block ends."""
    with _opened(folder) as descriptor:
        if descriptor is None:
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder; None where the platform has none."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- names


def safe_path(folder: str | Path, name: str, suffix: str) -> Path:
    """`folder/name.suffix`, if the name is one that every system takes and that stays in the folder.

    Raises:
        ExportError: the name has other characters than letters, digits, `.`, `-`, `_`, or starts with a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ExportError(f"{name!r} is no file name to write: use up to 100 letters, digits, '.', '-' and '_'.")
    return Path(folder) / f"{name}.{suffix}"


def plain_name(name: str) -> str:
    """A name of plain characters for a file or folder of any name; different for different names."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:40].strip("-")
    if plain and plain == name:
        return name
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
