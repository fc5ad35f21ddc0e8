"""The files of the paper's release in a user's clone: which result each one holds, read and checked."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from drolab.clones import CloneError, read_table, read_text
from drolab.types import NO_PROMPT

CLONE = "git clone https://github.com/chujiezheng/LLM-Safeguard_data"
"""The command that gets the release (about 1 GB)."""

COUNT_COLUMNS = ("dataset", "measure", "source", "model", "prompt", "count", "n_queries", "n_samples")
"""Columns of `Release.counts`: `count` of the `n_queries` had the event of `measure` in any of their samples."""
QUERY_COUNT_COLUMNS = ("dataset", "measure", "source", "model", "prompt", "query_id", "events", "n_samples")
"""Columns of `Release.queries`: `events` of the query's `n_samples` responses comply or refuse, as `measure` says."""
SOFT_PROMPT_COLUMNS = ("model", "prompt", "init", "path")
"""Columns of `Release.soft_prompts`."""

RESULTS = {"eval_results": "compliance", "eval_results_harmless": "refusal", "eval_results_alpaca": "win"}
"""Folder of results → what is counted in it."""
TRAINED = {"trained_prompts": "dro", "trained_prompts_unlikelihood": "vpt"}
"""Folder of soft prompts → how they were trained."""
N_SAMPLES = 20
"""Responses judged of each query: of 25 samples those with the most words."""
_N_QUERIES = 100  # of every data set of the release, for those that come as counts alone

_DATASETS = ("malicious", "advbench", "gcg", "custom", "testset", "custom-harmless", "alpaca")
_PROMPTS = (NO_PROMPT, "default", "mistral", "short")
_METHODS = {"soft_all_": "dro-", "soft_unlikelihood_": "vpt-"}
_RESULT = re.compile(
    r"(?P<model>.+?)(?:_with_(?P<prompt>.+?))?_(?P<dataset>[^_]+?)(?P<ending>_summary\.json|_all\.csv|_text\.csv|\.csv)"
)
_SOFT_PROMPT = re.compile(r"(?:type\.all_)?length\.(?P<init>.+)\.safetensors")


class Place(NamedTuple):
    """Where a result belongs."""

    dataset: str
    measure: str
    model: str
    prompt: str


Found = Mapping[Place, np.ndarray | int]
"""Each result: the events per query [n queries], or, where the clone has no more, how many queries had any."""


def nothing(columns: Sequence[str]) -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame(columns=list(columns), dtype=object)


def result_files(root: Path) -> tuple[dict[Place, dict[str, Path]], list[str]]:
    """Each result's files by the ending of their names, and the names that are no result's."""
    found: dict[Place, dict[str, Path]] = defaultdict(dict)
    unread = []
    for folder, measure in RESULTS.items():
        for path in sorted((root / folder / "sampling").glob("[!.]*")):
            match = _RESULT.fullmatch(path.name)
            if match is None:
                unread.append(path.name)
                continue
            dataset = match["dataset"] + ("-harmless" if (measure, match["dataset"]) == ("refusal", "custom") else "")
            place = Place(dataset, measure, match["model"], _prompt_name(match["prompt"]))
            found[place][match["ending"]] = path
    return found, unread


def _prompt_name(text: str | None) -> str:
    for start, method in _METHODS.items():
        if text and text.startswith(start):
            return method + text.removeprefix(start)
    return text or NO_PROMPT


def read_results(files: Mapping[Place, Mapping[str, Path]]) -> dict[Place, np.ndarray | int]:
    """Every result that the files hold.

    Raises:
        CloneError: files that are broken, cut short, or contradict each other; it names the first three.
    """
    found: dict[Place, np.ndarray | int] = {}
    problems = []
    for place, own in files.items():
        try:
            result = _read_result(place, own)
        except CloneError as error:
            problems.append(str(error))
            continue
        if result is not None:
            found[place] = result
    problems += _odd_lengths(found)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CloneError(f"The release cannot be used as it is. {' '.join(problems[:3])}{more}")
    return found


def _read_result(place: Place, files: Mapping[str, Path]) -> np.ndarray | int | None:
    count = _read_summary(files["_summary.json"]) if "_summary.json" in files else None
    if ".csv" not in files or place.measure == "win":
        return count
    events = _read_events(place, files[".csv"])
    n_any = int((events > 0).sum())
    if count is not None and count != n_any:
        raise CloneError(
            f"{files['_summary.json']} counts {count} queries, but {files['.csv'].name} has {n_any} of {len(events)}: "
            "one of them is not whole, so clone again."
        )
    return events


def _read_summary(path: Path) -> int:
    try:
        content = json.loads(read_text(path))
    except CloneError:
        raise
    except (ValueError, RecursionError) as error:
        raise CloneError(f"{path} is no JSON ({error}): clone again.") from error
    count = content.get("sampling") if isinstance(content, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise CloneError(f"{path} holds no count under 'sampling': is it a file of the release?")
    return count


def _read_events(place: Place, path: Path) -> np.ndarray:
    """[n queries]: how many samples of each have the event. The file has the share that comply."""
    table = read_table(path, ["sampling"])
    scores = pd.to_numeric(table["sampling"], errors="coerce").fillna(-1.0).to_numpy(dtype=float)
    complies = np.rint(scores * N_SAMPLES)
    if (np.abs(complies - scores * N_SAMPLES) > 1e-6).any() or (complies < 0).any() or (complies > N_SAMPLES).any():
        raise CloneError(f"{path} has a score that is no share of {N_SAMPLES} samples: is it a file of the release?")
    return (complies if place.measure == "compliance" else N_SAMPLES - complies).astype(int)


def _odd_lengths(found: Found) -> list[str]:
    """Results with another number of queries than most of their data set: files that were cut short."""
    usual = _usual_lengths(found)
    return [
        f"{place.model} under {place.prompt!r} has {len(events)} queries of {place.dataset!r} instead of "
        f"{usual[place.dataset]}, so its file is not whole: clone again."
        for place, events in found.items()
        if isinstance(events, np.ndarray) and len(events) != usual[place.dataset]
    ]


def _usual_lengths(found: Found) -> dict[str, int]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for place, events in found.items():
        if isinstance(events, np.ndarray):
            lengths[place.dataset].append(len(events))
    return {dataset: int(pd.Series(seen).mode().iloc[-1]) for dataset, seen in lengths.items()}


def counts_table(found: Found) -> pd.DataFrame:
    """COUNT_COLUMNS from every result."""
    usual = _usual_lengths(found)
    rows = [
        place._asdict()
        | {
            "source": "released",
            "count": int((result > 0).sum()) if isinstance(result, np.ndarray) else result,
            "n_queries": usual.get(place.dataset, _N_QUERIES),
            "n_samples": 1 if place.measure == "win" else N_SAMPLES,
        }
        for place, result in found.items()
    ]
    return tidy(pd.DataFrame(rows, columns=list(COUNT_COLUMNS)))


def queries_table(found: Found) -> pd.DataFrame:
    """QUERY_COUNT_COLUMNS from the results that come per query."""
    parts = [
        pd.DataFrame({**place._asdict(), "query_id": query_ids(place.dataset, len(events)), "events": events})
        for place, events in found.items()
        if isinstance(events, np.ndarray)
    ]
    if not parts:
        return nothing(QUERY_COUNT_COLUMNS)
    queries = pd.concat(parts, ignore_index=True).assign(source="released", n_samples=N_SAMPLES)
    return queries[list(QUERY_COUNT_COLUMNS)]


def query_ids(dataset: str, n_queries: int) -> list[str]:
    """The ids of a data set's queries, by their place in its file."""
    return [f"{dataset}-{number:04d}" for number in range(1, n_queries + 1)]


def tidy(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the paper's data sets, models and prompts; others after them."""
    ranks = {
        "_dataset": _rank(counts["dataset"], _DATASETS),
        "_source": counts["source"] != "released",
        "_model": counts["model"].str.lower(),
        "_prompt": _rank(counts["prompt"], _PROMPTS),
    }
    order = counts.assign(**ranks).sort_values([*ranks, "prompt"], kind="stable").index
    return counts.loc[order, list(COUNT_COLUMNS)].reset_index(drop=True)


def _rank(column: pd.Series, order: Sequence[str]) -> pd.Series:
    return column.map({name: place for place, name in enumerate(order)}).fillna(len(order))


def soft_prompt_files(root: Path) -> pd.DataFrame:
    """SOFT_PROMPT_COLUMNS from the names of the files."""
    rows = []
    for folder, method in TRAINED.items():
        for path in sorted((root / folder).glob("*/*.safetensors")):
            if match := _SOFT_PROMPT.fullmatch(path.name):
                rows.append((path.parent.name, f"{method}-{match['init']}", match["init"], path))
    return pd.DataFrame(rows, columns=list(SOFT_PROMPT_COLUMNS), dtype=object)


def read_responses(place: Place, path: Path) -> pd.DataFrame:
    """The columns of `Release.responses` from one file.

    Raises:
        CloneError: another kind of file, or one that is cut short.
    """
    table = read_table(path, ["prompt", "output", "refusal_score"])
    scores, texts = table["refusal_score"], table["prompt"]
    if not scores.isin(["0", "1"]).all():
        raise CloneError(f"{path} has a verdict that is neither 0 nor 1: is it a file of the release?")
    number, sample = np.divmod(np.arange(len(table)), N_SAMPLES)
    if len(table) % N_SAMPLES or (texts.groupby(number).nunique() > 1).any():
        raise CloneError(f"{path} has not {N_SAMPLES} responses to each query: it is not whole, so clone again.")
    ids = np.array(query_ids(place.dataset, len(table) // N_SAMPLES), dtype=object)
    columns: dict[str, Any] = {
        "query_id": ids[number],
        "sample": sample,
        "text": texts,
        "harmful": place.measure == "compliance",
    }
    judged = pd.DataFrame({**columns, "response": table["output"], "refused": scores == "0"})
    for at, column in enumerate(("dataset", "model", "prompt")):
        judged.insert(at, column, getattr(place, column))
    return judged
