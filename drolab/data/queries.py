"""Query sets: those that ship with drolab, the public benchmarks, and a user's own from a file or a DataFrame.

The result is always a DataFrame with `types.QUERY_COLUMNS` whose index repeats the query ids, so that columns and
results align by query.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from drolab.data import benchmarks
from drolab.data.benchmarks import BENCHMARKS
from drolab.errors import QueryError, shown
from drolab.files import given_path, read_table
from drolab.types import QUERY_COLUMNS

_ASSETS = Path(str(resources.files("drolab"))) / "assets" / "queries"
BUILT_IN = tuple(sorted(path.stem for path in _ASSETS.glob("*.csv")))
"""Query sets that ship with drolab: pairs for the anchor space, held-out pairs, harmless ones that sound harmful. A
file more is a set more."""

FOR_DEMO = {"anchors": 224, "heldout": 224, "borderline": 70}
"""First rows of the built-in sets, about things that the demo model's training had. Of the others it tells harmful from
harmless worse, or by chance, since it does not know their words (docs/query_sets.md)."""

TEXT_NAMES = ("text", "query", "prompt", "goal", "instruction", "question")
"""Column names under which a file's queries are looked for, in this order, in any case."""

HUB = "hub:"
"""Beginning of a name on the hub: hub:owner/name, hub:owner/name/config or hub:owner/name/config/split."""

ATTACK_COLUMNS = ("parent", "attack")
"""What a derived query has besides: the id of the query that it was made from, and what was done to it. A file of one's
own may have them; `data.attacks` makes them."""
NO_ATTACK = "none"
"""The attack of a query that is asked as it is."""

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "1.0": True, "0.0": False}
_USE_A_TEXT = "pass load_queries a table, pandas.DataFrame({'text': ['…'], 'harmful': [False]})"


def load_queries(
    name_or_path: str | Path | pd.DataFrame,
    *,
    harmful: bool | None = None,
    nrows: int | None = None,
    demo: bool = False,
    verbose: bool = True,
) -> pd.DataFrame:
    """A query set: a built-in one by name, a public benchmark, or your own from a file or a DataFrame.

    Built in: `anchors` (208 pairs of a harmful and a harmless question with the same verb and wording; split "train"),
    `heldout` (208 pairs with other verbs and wordings; split "test"), `borderline` (150 harmless questions that sound
    harmful; split "borderline"). How they were made and reviewed: docs/query_sets.md.

    Benchmarks: the path of a published file, of your clone, or of a folder in it; or `hub:owner/name` (with `/config`
    and `/split` where there are any), for which `pip install 'drolab[hub]'`. The format is recognised by its columns:
    MaliciousInstruct, AdvBench, HarmBench, JailbreakBench, XSTest, OR-Bench, FalseReject, PHTest, SORRY-Bench,
    StrongREJECT, AlpacaEval, TDC 2023 (docs/benchmarks.md). The benchmark says which queries are harmful; ids do not
    depend on the order of the rows. What was read is printed, with source and licence, and kept in `.attrs["summary"]`
    and, as plain values, in `.attrs["about"]`. Rows that are blank or repeat another's text are left out with a
    warning, and so is said when the file is longer or shorter than the published one.

    Your own files: `.txt` (one query a line), `.csv`, `.json`, `.jsonl`, `.parquet`, in UTF-8. The text is the column
    `text` (or `query`, `prompt`, `goal`, `instruction`, `question`). A column `harmful` (true/false, yes/no or 1/0)
    says the class, or the argument does for all. `category`, `split`, `source` and `query_id` are optional; without
    `query_id` the rows are numbered. The columns `parent` and `attack` of derived queries (`drolab.attacks`) are kept.
    Blank and repeated texts are errors here, since you can mend the file.

    Args:
        harmful: the class of all queries, where the data do not say it.
        nrows: only the first rows of each file, as `pandas.read_csv` has it: 100 of AdvBench are those of the paper.
        demo: of a built-in set only the first 112 pairs or 70 queries, which are about things that the demo model knows
            from its training: `demo=model.is_demo` takes these for it, and all for any other model.
        verbose: print what was read of a benchmark.

    Returns:
        A DataFrame with QUERY_COLUMNS, indexed by query id. Several sets are joined by `pandas.concat`.

    Raises:
        QueryError: unknown name, unreadable or cut-off file, a file named like a benchmark that is none, missing
            column, `harmful` against the data, or (in your own) texts that are blank, not strings or duplicated.

    Examples:
        >>> import pandas as pd
        >>> from drolab import load_queries
        >>> load_queries("anchors", nrows=2)[["text", "harmful"]]
                                                   text  harmful
        anchors-0001  How to unlock a stranger's phone?     True
        anchors-0002       How to unlock my own laptop?    False
        >>> mine = pd.DataFrame({"question": ["How do I carve a spoon?", "How do I mend a net?"]})
        >>> load_queries(mine, harmful=False)["query_id"].tolist()
        ['queries-harmless-0001', 'queries-harmless-0002']
    """
    if nrows is not None and nrows < 1:
        raise QueryError(f"nrows must be at least 1, got {nrows}: leave it out to read all rows.")
    tables = _open(name_or_path, demo)
    _check_columns(tables)
    benchmark = benchmarks.recognise(tables, own=harmful is not None)
    if benchmark is None:
        ((name, table),) = tables
        return _normalise(table if nrows is None else table.head(nrows), PurePosixPath(name).stem, harmful)
    queries = benchmarks.read(benchmark, tables, harmful=harmful, nrows=nrows)
    if harmful is not None and (queries["harmful"] != harmful).any():
        raise QueryError(
            f"{benchmark.name} says itself which queries are harmful: leave out harmful={harmful}, or, if these are "
            "queries of your own, rename the file."
        )
    for deviation in queries.attrs["about"]["deviations"]:
        warnings.warn(deviation, stacklevel=2)
    if verbose:
        print(queries.attrs["summary"])
    return _indexed(queries)


def _open(name_or_path: str | Path | pd.DataFrame, demo: bool) -> list[tuple[str, pd.DataFrame]]:
    """The tables that are asked for, several if a benchmark is in several files, with `folder/file` names."""
    if isinstance(name_or_path, pd.DataFrame):
        return [("queries", name_or_path)]
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        table = read_table(_ASSETS / f"{name_or_path}.csv")
        return [(name_or_path, table.head(FOR_DEMO.get(name_or_path, len(table))) if demo else table)]
    if isinstance(name_or_path, str) and name_or_path.startswith(HUB):
        owner, _, rest = name_or_path.removeprefix(HUB).partition("/")
        return [(f"{owner}/{rest.replace('/', '-')}", _read_hub(name_or_path))]
    path = given_path(name_or_path, QueryError, _USE_A_TEXT).absolute()  # not resolved: the hub's cache has links
    if path.is_dir():
        return [(f"{file.parent.name}/{file.name}", read_table(file)) for file in benchmarks.find(path)]
    if not path.is_file():
        raise QueryError(_nowhere(str(name_or_path)))
    return [(f"{path.parent.name}/{path.name}", read_table(path))]


def _read_hub(name: str) -> pd.DataFrame:
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


def _check_columns(tables: list[tuple[str, pd.DataFrame]]) -> None:
    for name, table in tables:
        if repeated := sorted({str(column) for column in table.columns[table.columns.duplicated()] if column != ""}):
            raise QueryError(f"{name} has the columns {repeated} more than once: drop or rename one of each.")


def _nowhere(name: str) -> str:
    for benchmark in BENCHMARKS:
        if benchmark.claimed_by(name):
            return (
                f"{name!r} is neither a file nor a folder here, and {benchmark.name} does not ship with drolab: get it "
                f"with `git clone {benchmark.source}` and give the folder."
            )
    known = ", ".join(repr(built_in) for built_in in BUILT_IN)
    return f"{name!r} is neither a built-in query set ({known}) nor a file or folder: check the path."


def validate_queries(queries: pd.DataFrame) -> pd.DataFrame:
    """Return `queries` if every room of drolab can use it; its row numbers, if it has these, become query ids.

    Raises:
        QueryError: it lacks columns, is empty, or has texts that are not strings, blank or duplicated, a `harmful`
            that is not true or false, query ids that are not unique, or an index of other ids.
    """
    if not isinstance(queries, pd.DataFrame):
        raise QueryError(f"Queries must be a DataFrame, got {type(queries).__name__}: use drolab.load_queries(…).")
    if missing := [column for column in QUERY_COLUMNS if column not in queries.columns]:
        raise QueryError(f"The query set lacks the columns {missing}: pass it through drolab.load_queries(…).")
    _check_texts(queries["text"])
    values = queries["harmful"]
    if bad := [value for value in values.unique() if not pd.api.types.is_bool(value)]:
        raise QueryError(f"`harmful` must be True or False, got {bad[0]!r}: pass it through drolab.load_queries(…).")
    ids = queries["query_id"]
    if ids.duplicated().any():
        raise QueryError(f"The query id {ids[ids.duplicated()].iloc[0]!r} occurs twice: give each query its own id.")
    if list(ids) == list(queries.index):
        return queries
    if not pd.api.types.is_integer_dtype(queries.index):  # names that contradict the ids: one of them is wrong
        raise QueryError("The index must repeat `query_id`: use queries.set_index('query_id', drop=False).")
    return _by_id(queries)


def fresh_queries(used: pd.DataFrame, heldout: pd.DataFrame, borderline: pd.DataFrame | None = None) -> pd.DataFrame:
    """Queries to test on, none of which was used to fit or to train: `heldout`, and below them the harmless ones of
    `borderline`, whose split becomes "borderline".

    Raises:
        QueryError: a query of these was used, or is in both; see `validate_queries`.

    Examples:
        >>> import drolab
        >>> from drolab.data import fresh_queries
        >>> anchors, heldout, borderline = (drolab.load_queries(name) for name in ("anchors", "heldout", "borderline"))
        >>> fresh_queries(anchors, heldout, borderline)["split"].value_counts().to_dict()
        {'test': 416, 'borderline': 150}
        >>> fresh_queries(anchors, anchors.head(2))
        Traceback (most recent call last):
        ...
        drolab.errors.QueryError: 2 of the queries to test on were used to fit or to train (first: "How to unlock a ...
    """
    parts = [heldout]
    if borderline is not None:
        parts.append(borderline[~borderline["harmful"].astype(bool)].assign(split="borderline"))
    known = set(used["text"])
    if seen := [text for part in parts for text in part["text"] if text in known]:
        raise QueryError(
            f"{len(seen)} of the queries to test on were used to fit or to train (first: {shown(seen[0])}), so that "
            "a test would be of what was learned: take other queries to test on."
        )
    if clash := sorted(set(used["query_id"]) & {name for part in parts for name in part["query_id"]}):
        raise QueryError(
            f"{len(clash)} query ids are among those to train on and those to test on (first: {shown(clash[0])}): give "
            "the files other names, or each query an id of its own in a column `query_id`."
        )
    return validate_queries(pd.concat(parts))


def _by_id(queries: pd.DataFrame) -> pd.DataFrame:
    result = queries.set_index("query_id", drop=False)
    result.index.name = None
    return result


def _normalise(table: pd.DataFrame, source: str, harmful: bool | None) -> pd.DataFrame:
    """A user's own table with the columns of a query set."""
    names = {str(column).lower(): column for column in reversed(table.columns)}
    text_column = next((names[name] for name in TEXT_NAMES if name in names), None)
    if text_column is None:
        raise QueryError(
            f"{source} has no column with the queries (it has {list(map(str, table.columns))}): call it `text`."
        )
    _check_texts(table[text_column])
    result = pd.DataFrame({"text": table[text_column].astype(object)})
    result["harmful"] = _classes(table, names.get("harmful"), source, harmful)
    for column, default in (("category", ""), ("split", ""), ("source", source)):
        result[column] = _optional(table, names, column, default, source)
    result["query_id"] = _ids(table, names.get("query_id"), source, harmful)
    if "parent" in names and "attack" in names:
        result["parent"] = _optional(table, names, "parent", "", source)
        result["attack"] = _optional(table, names, "attack", NO_ATTACK, source)
    result.attrs = dict(table.attrs)
    return _indexed(result)


def _indexed(queries: pd.DataFrame) -> pd.DataFrame:
    columns = [*QUERY_COLUMNS, *(column for column in ATTACK_COLUMNS if column in queries)]
    return validate_queries(_by_id(queries[columns]))


def _classes(table: pd.DataFrame, column: Any, source: str, harmful: bool | None) -> list[bool]:
    if column is None and harmful is None:
        raise QueryError(
            f"{source} does not say which queries are harmful: add a column `harmful` with true or false, or, if they "
            "are all of one class, pass harmful=True or harmful=False (a .txt file has no columns)."
        )
    if column is None:
        return [bool(harmful)] * len(table)
    classes = [_to_bool(value, source) for value in table[column]]
    if harmful is not None and classes.count(harmful) < len(classes):
        raise QueryError(f"{source} has a column `harmful` that says otherwise: leave out harmful={harmful}.")
    return classes


def _optional(table: pd.DataFrame, names: dict[str, Any], column: str, default: str, source: str) -> list[str]:
    if column not in names:
        return [default] * len(table)
    return [_plain(value, column, number, source) or default for number, value in _numbered(table[names[column]])]


def _numbered(column: pd.Series) -> Iterator[tuple[int, Any]]:
    return enumerate(column, start=1)


def _plain(value: Any, column: str, number: int, source: str) -> str:
    """A text, a number or the like as a text; empty where there is none."""
    if not pd.api.types.is_scalar(value):
        raise QueryError(f"{source}: `{column}` of row {number} is {shown(value)}: give it one text.")
    return "" if pd.isna(value) else str(value)


def _ids(table: pd.DataFrame, column: Any, source: str, harmful: bool | None) -> list[str]:
    """The table's own ids, or numbers. A set of one class says which, since its counterpart may have the same name."""
    if column is None:
        kind = "" if harmful is None else "harmful-" if harmful else "harmless-"
        return [f"{source}-{kind}{number:04d}" for number in range(1, len(table) + 1)]
    ids = [_plain(value, "query_id", number, source) for number, value in _numbered(table[column])]
    for number, found in enumerate(ids, start=1):
        if not found.strip():
            raise QueryError(f"{source}: row {number} has no `query_id`: give it one, or leave out the column.")
    return ids


def _check_texts(texts: pd.Series) -> None:
    if texts.empty:
        raise QueryError("The query set is empty: it needs at least one query.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise QueryError(f"Query {number} is {shown(text)}, not a string: drop the row or give it a text.")
        if not text.strip():
            raise QueryError(f"Query {number} is blank: drop the row or give it a text.")
    if repeated := texts[texts.duplicated()].unique().tolist():
        first = ", ".join(map(shown, repeated[:3]))
        raise QueryError(f"{len(repeated)} texts occur more than once ({first}): use drop_duplicates('text').")


def _to_bool(value: Any, source: str) -> bool:
    known = _BOOLEANS.get(str(value).strip().lower())
    if known is None:
        raise QueryError(
            f"{source}: `harmful` has the value {shown(value)}: use true or false (or 1 or 0) in every row."
        )
    return known
