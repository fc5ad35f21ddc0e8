"""Query sets: three that ship with drolab, and loading of a user's own from a file or a DataFrame.

The result is always a DataFrame with `types.QUERY_COLUMNS` whose index repeats the query ids, so that columns and
results align by query.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.types import QUERY_COLUMNS, QueryError

BUILT_IN = ("anchors", "heldout", "borderline")
"""Query sets that ship with drolab: pairs for the anchor space, held-out pairs, harmless ones that sound harmful."""

TEXT_NAMES = ("text", "query", "prompt", "goal", "instruction", "question")
"""Column names under which a file's queries are looked for, in this order, in any case."""

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "1.0": True, "0.0": False}


def load_queries(name_or_path: str | Path | pd.DataFrame) -> pd.DataFrame:
    """A query set: one of the built-in ones by name, a file, or a DataFrame.

    Built in: `anchors` (112 pairs of a harmful and a harmless question with the same verb; split "train"),
    `heldout` (112 pairs with other verbs and other wordings; split "test"), `borderline` (70 harmless questions that
    sound harmful; split "borderline").

    Files: `.txt` (one query a line), `.csv`, `.json`, `.jsonl`, `.parquet`, in UTF-8. The text is the column `text` (or
    `query`, `prompt`, `goal`, `instruction`, `question`). A column `harmful` (true/false, yes/no or 1/0) is needed,
    since every analysis compares the two classes; a `.txt` has none, so load it with pandas and add the column.
    `category`, `split`, `source` and `query_id` are optional.

    Returns:
        A DataFrame with QUERY_COLUMNS, indexed by query id.

    Raises:
        QueryError: unknown name, unreadable file, missing column, or texts that are empty, not strings or duplicated.
    """
    if isinstance(name_or_path, pd.DataFrame):
        return _normalise(name_or_path, "queries")
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        path = files("drolab").joinpath("assets", "queries", f"{name_or_path}.csv")
        with path.open(encoding="utf-8") as opened:
            return _normalise(pd.read_csv(opened, dtype=str, keep_default_na=False), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(repr(name) for name in BUILT_IN)
        raise QueryError(f"{str(name_or_path)!r} is neither a built-in query set ({known}) nor a file: check the path.")
    return _normalise(_read_file(path), path.stem)


def validate_queries(queries: pd.DataFrame) -> pd.DataFrame:
    """Return `queries` unchanged if every room of drolab can use it.

    Raises:
        QueryError: it lacks columns, is empty, or has texts that are not strings, blank or duplicated, a `harmful`
            that is not true or false, or query ids that are not unique or not its index.
    """
    if not isinstance(queries, pd.DataFrame):
        raise QueryError(f"Queries must be a DataFrame, got {type(queries).__name__}: use drolab.load_queries(…).")
    if missing := [column for column in QUERY_COLUMNS if column not in queries.columns]:
        raise QueryError(f"The query set lacks the columns {missing}: pass it through drolab.load_queries(…).")
    _check_texts(queries["text"])
    values = queries["harmful"]
    if bad := [value for value in values.unique() if not (pd.api.types.is_bool(value) or _is_numpy_bool(value))]:
        raise QueryError(f"`harmful` must be True or False, got {bad[0]!r}: pass it through drolab.load_queries(…).")
    ids = queries["query_id"]
    if ids.duplicated().any():
        raise QueryError(f"The query id {ids[ids.duplicated()].iloc[0]!r} occurs twice: give each query its own id.")
    if list(ids) != list(queries.index):
        raise QueryError("The index must repeat `query_id`: use queries.set_index('query_id', drop=False).")
    return queries


def _is_numpy_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")


def _read_file(path: Path) -> pd.DataFrame:
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".txt": _read_lines,
        ".csv": lambda file: pd.read_csv(file, encoding="utf-8-sig"),
        ".json": lambda file: _records(json.loads(file.read_text(encoding="utf-8-sig"))),
        ".jsonl": _read_jsonl,
        ".parquet": pd.read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise QueryError(f"{path} has the ending {path.suffix!r}: use one of {', '.join(readers)}.")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise QueryError(f"{path} is not UTF-8 text (byte {error.start}): save it in UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise QueryError(f"{path} is empty: write a header line and one query a row.") from error
    except (ValueError, OSError) as error:  # of the JSON, CSV and Parquet parsers
        raise QueryError(f"{path} cannot be read as {path.suffix} ({error}): check the file's format.") from error


def _read_lines(path: Path) -> pd.DataFrame:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return pd.DataFrame({"text": [line.strip() for line in lines if line.strip()]})


def _read_jsonl(path: Path) -> pd.DataFrame:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return _records([json.loads(line) for line in lines if line.strip()])


def _records(content: Any) -> pd.DataFrame:
    """A list of strings or of objects; anything else has no rows."""
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return pd.DataFrame({"text": content})
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return pd.DataFrame(content)
    raise ValueError("expected a list of strings or a list of objects")


def _normalise(table: pd.DataFrame, source: str) -> pd.DataFrame:
    names = {str(column).lower(): column for column in reversed(table.columns)}
    text_column = next((names[name] for name in TEXT_NAMES if name in names), None)
    if text_column is None:
        raise QueryError(
            f"{source} has no column with the queries (it has {list(map(str, table.columns))}): call it `text`."
        )
    _check_texts(table[text_column])
    if "harmful" not in names:
        raise QueryError(
            f"{source} does not say which queries are harmful: add a column `harmful` with true or false "
            "(a .txt file has none: use pandas.DataFrame({'text': lines, 'harmful': True}))."
        )
    result = pd.DataFrame({"text": table[text_column].astype(object)})
    result["harmful"] = [_to_bool(value, source) for value in table[names["harmful"]]]
    for column, default in (("category", ""), ("split", ""), ("source", source)):
        result[column] = _optional(table, names, column, default)
    numbered = [f"{source}-{number:04d}" for number in range(1, len(table) + 1)]
    result["query_id"] = table[names["query_id"]].astype(str).to_list() if "query_id" in names else numbered
    result = result[list(QUERY_COLUMNS)].set_index("query_id", drop=False)
    result.index.name = None
    return validate_queries(result)


def _optional(table: pd.DataFrame, names: dict[str, Any], column: str, default: str) -> list[str]:
    if column not in names:
        return [default] * len(table)
    return [default if pd.isna(value) else str(value) for value in table[names[column]]]


def _check_texts(texts: pd.Series) -> None:
    if texts.empty:
        raise QueryError("The query set is empty: it needs at least one query.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise QueryError(f"Query {number} is {text!r}, not a string: drop the row or give it a text.")
        if not text.strip():
            raise QueryError(f"Query {number} is blank: drop the row or give it a text.")
    if repeated := texts[texts.duplicated()].unique().tolist():
        shown = ", ".join(repr(text) for text in repeated[:3])
        raise QueryError(f"{len(repeated)} texts occur more than once ({shown}): use drop_duplicates('text').")


def _to_bool(value: Any, source: str) -> bool:
    known = _BOOLEANS.get(str(value).strip().lower())
    if known is None:
        raise QueryError(f"{source}: `harmful` has the value {value!r}: use true or false (or 1 or 0) in every row.")
    return known
