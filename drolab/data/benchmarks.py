"""Public benchmarks from a user's copy: recognise a file's format, find the files in a clone, read the queries.

A file is recognised by its columns; its name says only what they cannot, and a name that claims a benchmark must be
borne out by the columns. `data.load_queries` is the way in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import yaml

from drolab.errors import QueryError

PLAIN = ["text"]
"""Columns of a plain list: one query a line, or a JSON list of strings."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One public benchmark: its format and where it comes from. `assets/benchmarks.yaml` has them all."""

    key: str
    """Value of the column `source`, and the beginning of the query ids."""
    name: str
    columns: Sequence[str] = field(default_factory=PLAIN.copy)
    """Columns that its table has. A plain list has no mark of its own and is known by its name alone."""
    text: str = "text"
    """Column with the queries."""
    harmful: bool | Mapping[str, bool] | None = None
    """The class of all queries, that of each part, or None: its own function below adds a column `harmful`."""
    rows: Mapping[str, int]
    """Part of the benchmark (in the column `split`; "" if it has none) → rows of the published file."""
    places: Sequence[Sequence[str]]
    """Where a clone has it: alternatives, of which the first that is there is read, all its files together."""
    also_named: Sequence[str] = ()
    """Patterns of further file names, in lower case."""
    plain_name: str = ""
    """File name under which a plain list is this benchmark too."""
    category: str = ""
    """Column with the kind of harm or of task."""
    categories: Sequence[str] = ()
    """The values of `category`, where the columns alone are too little to go by."""
    own_id: str = ""
    """Column with ids of the benchmark's own; without it, an id is a hash of the text."""
    may_be_blank: Sequence[str] = ()
    """Columns in which a row may have nothing."""
    kept: Sequence[str] = ()
    """Column and value: if rows have it, only they are the benchmark; the others are variations on them."""
    omitted: Sequence[str] = ()
    """Column and value: rows of the benchmark that are no safety queries."""
    source: str
    licence: str
    citation: str

    def missing(self, table: pd.DataFrame) -> list[str]:
        return [column for column in self.columns if column not in table.columns]

    def fits(self, table: pd.DataFrame) -> bool:
        """Do the columns alone say that this is the benchmark?"""
        if self.columns == PLAIN or self.missing(table):
            return False
        return not self.categories or set(table[self.category].astype(str)) <= set(self.categories)

    def fits_named(self, table: pd.DataFrame, name: str) -> bool:
        """Is this the benchmark, given that the file's name claims so?"""
        if list(table.columns) == PLAIN:
            return self.columns == PLAIN or PurePosixPath(name.lower()).name == self.plain_name
        return self.columns != PLAIN and not self.missing(table)

    def claimed_by(self, name: str) -> bool:
        """Does a file's name claim that it is this benchmark?"""
        file = PurePosixPath(name.lower())
        published = {PurePosixPath(place.lower()).name for places in self.places for place in places}
        claimed = file.name in published or _letters(file.stem) == _letters(self.key)
        return claimed or any(fnmatch(file.name, pattern) for pattern in self.also_named)

    def part(self, name: str, n_rows: int) -> str | None:
        """Which part of the benchmark a file is, by its name, its folder or its length; None if nothing says it."""
        *folders, file = name.lower().split("/")
        by_name = [part for part in self.rows if part and re.search(rf"(?<![a-z0-9]){part}(?![a-z0-9])", file)]
        by_folder = [part for part in self.rows if part and part in folders]
        by_length = [part for part, count in self.rows.items() if count == n_rows]
        if found := by_name or by_folder or (by_length if len(by_length) == 1 else []):
            return found[0]
        return "" if "" in self.rows else None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def is_blank(value: Any) -> bool:
    """Nothing: a missing value, or white space."""
    return not value.strip() if isinstance(value, str) else pd.api.types.is_scalar(value) and bool(pd.isna(value))


_TABLE = resources.files("drolab") / "assets" / "benchmarks.yaml"
BENCHMARKS = tuple(
    Benchmark(key=key, **fields) for key, fields in yaml.safe_load(_TABLE.read_text(encoding="utf-8")).items()
)
"""The public benchmarks that drolab reads."""


Named = tuple[str, pd.DataFrame]
"""A table and its file's name with its folder's (`dev/behaviors.json`)."""


def recognise(tables: Sequence[Named], *, own: bool = False) -> Benchmark | None:
    """The benchmark that the tables are, or None for a user's own queries.

    Args:
        own: the user has said which queries are harmful, so that an unknown format is fine whatever its name.

    Raises:
        QueryError: a name claims a benchmark that the content is not, or the tables are not of one kind.
    """
    known = [_recognise(name, table, own) for name, table in tables]
    if any(benchmark is not known[0] for benchmark in known) or (known[0] is None and len(tables) > 1):
        names = ", ".join(name for name, _ in tables)
        raise QueryError(f"The files {names} do not belong together: give the path of one of them.")
    return known[0]


def _recognise(name: str, table: pd.DataFrame, own: bool) -> Benchmark | None:
    if any(str(column).lower() == "harmful" for column in table.columns):
        return None
    claimed = next((benchmark for benchmark in BENCHMARKS if benchmark.claimed_by(name)), None)
    if claimed and claimed.fits_named(table, name):
        return claimed
    fitting = next((benchmark for benchmark in BENCHMARKS if benchmark.fits(table)), None)
    if claimed is None or (own and fitting is None):
        return fitting
    raise QueryError(_false_claim(claimed, name, table, fitting))


def _false_claim(claimed: Benchmark, name: str, table: pd.DataFrame, fitting: Benchmark | None) -> str:
    plain = claimed.columns == PLAIN
    lack = "is no plain list of queries" if plain else f"lacks the columns {claimed.missing(table)}"
    message = f"{name} is named like {claimed.name} but {lack} (it has {list(map(str, table.columns))})."
    if fitting:
        return f"{message} It has the columns of {fitting.name}: rename it to load it as that."
    return (
        f"{message} Get the published file from {claimed.source}; or, if these are queries of your own, add a column "
        "`harmful`, or pass harmful=True or harmful=False."
    )


def find(folder: Path) -> list[Path]:
    """The files of the benchmark that a user's clone, or a folder in it, holds.

    Raises:
        QueryError: none, more than one, or a part of one only.
    """
    found = {benchmark.name: paths for benchmark in BENCHMARKS if (paths := _find(benchmark, folder))}
    if not found:
        names = ", ".join(benchmark.name for benchmark in BENCHMARKS)
        raise QueryError(
            f"{folder} holds no file of a benchmark that drolab knows ({names}). If it is a clone, complete it "
            "(git pull, git lfs pull); otherwise give the path of the file with the queries."
        )
    if len(found) > 1:
        listed = ", ".join(f"{name}: {paths[0]}" for name, paths in found.items())
        raise QueryError(f"{folder} holds several benchmarks ({listed}): give the path of one file.")
    return next(iter(found.values()))


def _find(benchmark: Benchmark, folder: Path) -> list[Path]:
    for places in benchmark.places:
        paths = {place: locate(folder, place) for place in places}
        present = [path for path in paths.values() if path]
        if present and len(present) < len(places):
            lacking = ", ".join(place for place, path in paths.items() if path is None)
            raise QueryError(
                f"{folder} holds a part of {benchmark.name} ({present[0].name}) but not {lacking}: complete the clone "
                "(git pull, git lfs pull), or give the path of the one file."
            )
        if present:
            return list(dict.fromkeys(present))
    return []


def locate(folder: Path, place: str) -> Path | None:
    """The file at a place of a clone, seen from the clone's root or from any folder on the way down."""
    parts = PurePosixPath(place).parts
    candidates = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in candidates if path.is_file()), None)


def read(
    benchmark: Benchmark, tables: Sequence[Named], *, harmful: bool | None = None, nrows: int | None = None
) -> pd.DataFrame:
    """The queries of a benchmark's tables, together, in their order.

    Args:
        harmful: the class, for a table of which nothing else says what part of the benchmark it is.
        nrows: only the first rows of each table.

    Returns:
        Columns query_id, text, harmful, category, split, source; in `.attrs`, `summary` (two lines) and `about` (plain
        values: what was read, what was left out and why, deviations from the published files, source, licence,
        citation).

    Raises:
        QueryError: a table is cut off, contradicts itself, or does not say which part of the benchmark it is.
    """
    about: dict[str, Any] = {
        "benchmark": benchmark.name,
        "files": [name for name, _ in tables],
        "rows": sum(len(table) for _, table in tables),
        "left_out": {},
        "deviations": [],
        "source": benchmark.source,
        "licence": benchmark.licence,
        "citation": benchmark.citation,
    }
    parts = [_read(benchmark, name, table, harmful, nrows, about) for name, table in tables]
    queries = pd.concat(parts, ignore_index=True)
    queries = _without(queries, queries["text"].map(is_blank), "blank", about)
    queries = _without(queries, queries["text"].duplicated(), "repeated", about)
    for reason in ("blank", "repeated"):
        if count := about["left_out"].get(reason):
            about["deviations"].append(f"{benchmark.name}: {count} rows are {reason} and are left out.")
    about |= {"queries": len(queries), "harmful": int(queries["harmful"].sum())}
    queries.attrs = {"summary": _summary(about), "about": about}
    return queries


def _read(
    benchmark: Benchmark,
    name: str,
    table: pd.DataFrame,
    harmful: bool | None,
    nrows: int | None,
    about: dict[str, Any],
) -> pd.DataFrame:
    if list(table.columns) == PLAIN:
        table = table.set_axis([benchmark.text], axis=1)
    if benchmark.kept and (kept := _equals(table, benchmark.kept)).any():
        table = _without(table, ~kept, f"of another {benchmark.kept[0]} than {benchmark.kept[1]}", about)
    part = benchmark.part(name, len(table))
    _check_length(benchmark, name, table, part, about)
    if nrows is not None:
        table = table.head(nrows)
    if benchmark.omitted:
        table = _without(table, _equals(table, benchmark.omitted), benchmark.omitted[1], about)
    if prepare := _PREPARE.get(benchmark.key):
        table = prepare(table)
    queries = pd.DataFrame({"query_id": _ids(benchmark, table), "text": table[benchmark.text].astype(object)})
    queries["harmful"] = _classes(benchmark, name, table, part, harmful)
    queries["category"] = table[benchmark.category].astype(str) if benchmark.category else ""
    return queries.assign(split=part or "", source=benchmark.key)


def _equals(table: pd.DataFrame, choice: Sequence[str]) -> pd.Series:
    column, value = choice
    return table[column].astype(str).str.strip() == value


def _without(table: pd.DataFrame, rows: pd.Series, reason: str, about: dict[str, Any]) -> pd.DataFrame:
    """The table without these rows; how many there were is noted."""
    if count := int(rows.sum()):
        about["left_out"][reason] = about["left_out"].get(reason, 0) + count
    return table[~rows]


def _check_length(
    benchmark: Benchmark, name: str, table: pd.DataFrame, part: str | None, about: dict[str, Any]
) -> None:
    """A table that ends within a row is refused; one of another length than the published file is only noted."""
    if table.empty:
        raise QueryError(f"{name} has the columns of {benchmark.name} but no rows: get it from {benchmark.source}.")
    filled = [column for column in benchmark.columns if column in table and column not in benchmark.may_be_blank]
    if blank := [column for column in filled if is_blank(table[column].iloc[-1])]:
        raise QueryError(
            f"{name} is cut off: its last row ({len(table)}) has nothing in {blank}. Get it again from "
            f"{benchmark.source}."
        )
    lengths = {part: benchmark.rows[part]} if part is not None else benchmark.rows
    if len(table) in lengths.values():
        return
    published = " or ".join(f"{count}{f' ({key})' if key else ''}" for key, count in lengths.items())
    about["deviations"].append(
        f"{name} has {len(table)} rows, {benchmark.name} as published has {published}: it is a part, another version, "
        "or half-downloaded."
    )


def _classes(
    benchmark: Benchmark, name: str, table: pd.DataFrame, part: str | None, harmful: bool | None
) -> pd.Series | bool:
    if benchmark.harmful is None:
        return table["harmful"]
    if isinstance(benchmark.harmful, bool):
        return benchmark.harmful
    if part is not None:
        return benchmark.harmful[part]
    if harmful is None:
        raise QueryError(
            f"{name} has the columns of {benchmark.name} but does not say which part it is: keep the published name "
            f"(with {' or '.join(benchmark.harmful)} in it), or pass harmful=True or harmful=False."
        )
    return harmful


def _ids(benchmark: Benchmark, table: pd.DataFrame) -> list[str]:
    """The benchmark's own ids, or hashes of the texts: the same in whatever order or part of the benchmark."""
    if benchmark.own_id and benchmark.own_id in table.columns:
        return [f"{benchmark.key}-{value}" for value in table[benchmark.own_id]]
    return [f"{benchmark.key}-{sha256(str(text).encode()).hexdigest()[:12]}" for text in table[benchmark.text]]


def _summary(about: Mapping[str, Any]) -> str:
    n, n_harmful = about["queries"], about["harmful"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in about["left_out"].items())
    return (
        f"{about['benchmark']}: {n} queries ({n_harmful} harmful, {n - n_harmful} harmless) of {about['rows']} rows"
        f"{f'; left out: {left_out}' if left_out else ''}\n"
        f"Source: {about['source']} | licence: {about['licence']} | cite: {about['citation']}"
    )


# ---------------------------------------------------------------- what no column says


def _with_context(table: pd.DataFrame) -> pd.DataFrame:
    """HarmBench: the context goes before the behaviour, divided as in HarmBench's own direct requests."""
    texts = [
        behavior if is_blank(context) else f"{context}\n\n---\n\n{behavior}"
        for behavior, context in zip(table["Behavior"], table["ContextString"], strict=True)
    ]
    return table.assign(Behavior=texts)


def _by_type(table: pd.DataFrame) -> pd.DataFrame:
    """XSTest: the types that start with `contrast_` are the unsafe ones; a label must say the same."""
    unsafe = table["type"].astype(str).str.startswith("contrast_")
    if "label" in table.columns:
        wrong = table["label"] != unsafe.map({True: "unsafe", False: "safe"})
        if wrong.any():
            row = table[wrong].iloc[0]
            raise QueryError(
                f"XSTest: the type {row['type']!r} contradicts the label {row['label']!r} (in {int(wrong.sum())} "
                "rows): the file was changed or cut off. Get it again."
            )
    if "id_v2" in table.columns:  # an earlier file; the present one numbers the same prompts without the prefix
        table = table.assign(id=table["id_v2"].astype(str).str.removeprefix("v2-"))
    return table.assign(harmful=unsafe)


def _first_turn(table: pd.DataFrame) -> pd.DataFrame:
    """SORRY-Bench: `turns` is a list of one query."""
    for number, turns in enumerate(table["turns"], start=1):
        if isinstance(turns, str) or not isinstance(turns, Sized) or len(turns) != 1:
            raise QueryError(f"SORRY-Bench: `turns` of row {number} is no list of one query: get the published file.")
    return table.assign(turns=[turns[0] for turns in table["turns"]])


_PREPARE: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "harmbench": _with_context,
    "xstest": _by_type,
    "sorry-bench": _first_turn,
}
"""What a format needs beyond the choice of columns."""
