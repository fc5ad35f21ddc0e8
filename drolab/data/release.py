"""The paper's released results, read from a user's clone, with a user's own beside them.

Zheng et al., *On Prompt-Driven Safeguarding for Large Language Models*, ICML 2024; the release is
https://github.com/chujiezheng/LLM-Safeguard_data. Of each query 20 responses were judged (of 25 samples those with the
most words). A harmful query counts as complied with if any of them complies, a harmless one as refused if any refuses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from drolab.errors import CloneError, PromptError, QueryError
from drolab.files import given_path, read_bytes, read_csv, read_json
from drolab.types import NO_PROMPT, SCORE_COLUMNS, SoftPrompt

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


class AnyModel(Protocol):
    """What the release needs to know of a model, such as a `ChatModel`."""

    @property
    def name(self) -> str: ...

    @property
    def hidden_size(self) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """Released results, and the user's own beside them. `Release()` is empty, to hold own runs alone.

    Data sets: `malicious` (MaliciousInstruct), `advbench`, `gcg` (AdvBench with attack suffixes) and `custom` (the
    training queries) are harmful, and compliance is counted; `testset` (held out) and `custom-harmless` are harmless,
    and refusals are counted; `alpaca` counts wins in AlpacaEval. Prompts: `none`, three human ones, `dro-X` (trained by
    DRO from X), `vpt-X` (vanilla prompt tuning from X). What a clone lacks is not in the tables.
    """

    counts: pd.DataFrame = field(default_factory=lambda: _nothing(COUNT_COLUMNS))
    """COUNT_COLUMNS, one row per result; `source` is released or own."""
    queries: pd.DataFrame = field(default_factory=lambda: _nothing(QUERY_COUNT_COLUMNS))
    """QUERY_COUNT_COLUMNS, one row per query and result, of the results that come per query."""
    soft_prompts: pd.DataFrame = field(default_factory=lambda: _nothing(SOFT_PROMPT_COLUMNS))
    """SOFT_PROMPT_COLUMNS, one row per trained prompt."""
    response_files: Mapping[Place, Path] = field(default_factory=dict)
    """The files with responses; `responses` reads them."""
    absent: tuple[str, ...] = ()
    """Folders of the release that the clone has not."""
    unread: tuple[str, ...] = ()
    """Names of files in the results' folders that follow no pattern of the release."""

    def __repr__(self) -> str:
        sizes = {name: self.counts[name].nunique() for name in ("model", "prompt", "dataset")}
        parts = [f"{number} {name}s" for name, number in sizes.items()]
        parts += [f"{len(self.counts)} results", f"{len(self.response_files)} files of responses"]
        parts += [f"{len(self.soft_prompts)} soft prompts"]
        parts += [f"without {', '.join(self.absent)}"] if self.absent else []
        parts += [f"{len(self.unread)} unread files"] if self.unread else []
        return f"Release({', '.join(parts)})"

    def scores(self, model: str) -> pd.DataFrame:
        """One model's results per query as `drolab.judge` gives them, for everything that takes scores.

        For harmful queries `compliance_rate` is the release's (no refusal by the string rule, unsafe to a guard model,
        and longer than two lines), and `refusal_rate` is the rest.

        Raises:
            QueryError: no results per query of this model.
        """
        own = self.queries[self.queries["model"] == model]
        if own.empty:
            raise QueryError(
                f"No results per query of {model!r}: choose one of {list(self.queries['model'].unique())}."
            )
        return scores_from_events(own, (own["events"] / own["n_samples"]).to_numpy(dtype=float))

    def responses(
        self,
        *,
        dataset: str | Sequence[str] | None = None,
        model: str | Sequence[str] | None = None,
        prompt: str | Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The released responses of some results. All of them are 546,000, about half a gigabyte of text.

        Returns:
            dataset, model, prompt, query_id, sample, text, harmful, response, refused (the release's verdict; for
            harmful queries: does not comply, see `scores`). The samples of a query come sorted by verdict, so their
            order says nothing.

        Raises:
            CloneError: a file that is no table of responses, or contradicts the results per query.
            QueryError: no responses of these results.
        """
        given = {"dataset": dataset, "model": model, "prompt": prompt}
        wanted = {name: [one] if isinstance(one, str) else list(one) for name, one in given.items() if one is not None}
        chosen = [
            place
            for place in self.response_files
            if all(getattr(place, column) in values for column, values in wanted.items())
        ]
        if not chosen:
            known = ", ".join(f"{place.model} {place.prompt} {place.dataset}" for place in self.response_files)
            raise QueryError(f"No responses with {wanted} in this clone: there are those of {known or 'none'}.")
        return pd.concat([self._responses_of(place) for place in chosen], ignore_index=True)

    def _responses_of(self, place: Place) -> pd.DataFrame:
        table = _read_responses(place, self.response_files[place])
        rows = np.logical_and.reduce([self.queries[column] == value for column, value in place._asdict().items()])
        counted = self.queries.loc[rows, "events"].to_numpy(dtype=int)
        event = table["refused"] if place.measure == "refusal" else ~table["refused"]
        found = event.groupby(table["query_id"], sort=False).sum().to_numpy(dtype=int)
        if len(counted) and not np.array_equal(found, counted):
            path = self.response_files[place]
            raise CloneError(f"{path} has other verdicts than the file of results per query beside it: clone again.")
        return table

    def texts(self, dataset: str) -> pd.Series:
        """Query id → text, from the first file of responses of a data set; empty if there is none."""
        place = next((place for place in self.response_files if place.dataset == dataset), None)
        if place is None:
            return pd.Series(dtype=object)
        return self._responses_of(place).drop_duplicates("query_id").set_index("query_id")["text"]

    def soft_prompt(self, model: str, prompt: str, *, chat_model: AnyModel | None = None) -> SoftPrompt:
        """A released soft prompt. The release does not say for which weights it was made beyond the model's name.

        Args:
            chat_model: the model that is to read it.

        Raises:
            PromptError: there is no such prompt, or `chat_model` has another name or width.
            CloneError: a Git LFS pointer in place of the file.
        """
        table = self.soft_prompts
        rows = table[(table["model"] == model) & (table["prompt"] == prompt)]
        if rows.empty:
            known = [f"{row.model} {row.prompt}" for row in table.itertuples()]
            raise PromptError(f"No soft prompt {prompt!r} of {model!r} in this clone: there are {known}.")
        read_bytes(rows["path"].iloc[0], CloneError)
        found = SoftPrompt.from_pretrained(rows["path"].iloc[0], name=prompt)
        if chat_model is not None:
            _check_released(found, model, chat_model)
        return found

    def with_scores(self, scores: pd.DataFrame, *, model: str, dataset: str | Mapping[str, str] | pd.Series) -> Release:
        """The same with one's own results as one more model, in the same tables.

        Args:
            scores: from `drolab.judge`. Its judge decides: the paper's compliance also needs a guard model's verdict.
            model: the name to show.
            dataset: what the queries are, or query id → data set; queries without one are left out.

        Raises:
            QueryError: no score table, no query with a data set, results or query ids of this model that are there
                already, or a data set of harmful and of harmless queries.
        """
        own = _own_queries(scores, model, dataset)
        both = pd.concat([self.counts, _own_counts(own)], ignore_index=True) if len(self.counts) else _own_counts(own)
        if (both.groupby("dataset")["measure"].nunique() > 1).any():
            raise QueryError(f"A data set is harmful or harmless, not both: give those of {model!r} a name for each.")
        if both.duplicated(["dataset", "model", "prompt"]).any():
            raise QueryError(f"There are results of {model!r} for this data set and prompt already: use another name.")
        queries = pd.concat([self.queries, own], ignore_index=True) if len(self.queries) else own
        if queries.duplicated(["model", "query_id", "prompt"]).any():
            raise QueryError(f"Query ids of {model!r} are in two data sets: give the queries of each ids of their own.")
        return replace(self, counts=_tidy(both), queries=queries)


def load(folder: str | Path) -> Release:
    """Read the paper's released results from a clone of its data repository (`CLONE` is the command, about 1 GB).

    Zheng et al., ICML 2024: for each model, prompt and data set, how many queries were complied with
    or refused, per query where the release has it. What a clone lacks is missing in the tables; what is there must be
    whole. The responses stay on disk until `Release.responses` is asked for some.

    For instance `published.rates(published.load("LLM-Safeguard_data"), "malicious")`: every model under every prompt,
    with intervals.

    Args:
        folder: the clone's folder.

    Raises:
        CloneError: no clone of the release, or files in it that are broken, cut short or contradict each other.
    """
    root = given_path(folder, CloneError, f"get the release with `{CLONE}`")
    folders = (*RESULTS, *TRAINED)
    if not root.is_dir():
        raise CloneError(f"No folder {root}: get the paper's release with `{CLONE}` and give its folder.")
    files, unread = _result_files(root)
    soft_prompts = _soft_prompt_files(root)
    if not files and soft_prompts.empty:
        raise CloneError(
            f"{root} has no results in the folders {', '.join(folders)}, so it is no whole clone of the paper's "
            f"release (its code is another repository): get it with `{CLONE}` and give its folder."
        )
    found = _read_results(files)
    return Release(
        counts=_counts_table(found),
        queries=_queries_table(found),
        soft_prompts=soft_prompts,
        response_files={place: own["_all.csv"] for place, own in files.items() if "_all.csv" in own},
        absent=tuple(name for name in folders if not (root / name).is_dir()),
        unread=tuple(unread),
    )


# ---------------------------------------------------------------- files of a clone


def _result_files(root: Path) -> tuple[dict[Place, dict[str, Path]], list[str]]:
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


def _read_results(files: Mapping[Place, Mapping[str, Path]]) -> dict[Place, np.ndarray | int]:
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
    problems += _odd_counts(files, found)
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
    content = read_json(path, CloneError)
    count = content.get("sampling") if isinstance(content, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise CloneError(f"{path} holds no count under 'sampling': is it a file of the release?")
    return count


def _read_events(place: Place, path: Path) -> np.ndarray:
    """[n queries]: how many samples of each have the event. The file has the share that comply."""
    table = read_csv(path, CloneError, ["sampling"])
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


def _odd_counts(files: Mapping[Place, Mapping[str, Path]], found: Found) -> list[str]:
    """Summaries of more queries than their data set has."""
    usual = _usual_lengths(found)
    return [
        f"{files[place]['_summary.json']} counts {count} queries of the {n_queries} that {place.dataset!r} has: clone "
        "again."
        for place, count in found.items()
        if isinstance(count, int) and count > (n_queries := usual.get(place.dataset, _N_QUERIES))
    ]


def _usual_lengths(found: Found) -> dict[str, int]:
    lengths: dict[str, list[int]] = defaultdict(list)
    for place, events in found.items():
        if isinstance(events, np.ndarray):
            lengths[place.dataset].append(len(events))
    return {dataset: int(pd.Series(seen).mode().iloc[-1]) for dataset, seen in lengths.items()}


def _read_responses(place: Place, path: Path) -> pd.DataFrame:
    """The columns of `Release.responses` from one file.

    Raises:
        CloneError: another kind of file, or one that is cut short.
    """
    table = read_csv(path, CloneError, ["prompt", "output", "refusal_score"])
    scores, texts = table["refusal_score"], table["prompt"]
    if not scores.isin(["0", "1"]).all():
        raise CloneError(f"{path} has a verdict that is neither 0 nor 1: is it a file of the release?")
    number, sample = np.divmod(np.arange(len(table)), N_SAMPLES)
    if len(table) % N_SAMPLES or (texts.groupby(number).nunique() > 1).any():
        raise CloneError(f"{path} has not {N_SAMPLES} responses to each query: it is not whole, so clone again.")
    ids = np.array(_query_ids(place.dataset, len(table) // N_SAMPLES), dtype=object)
    columns: dict[str, Any] = {
        "dataset": place.dataset,
        "model": place.model,
        "prompt": place.prompt,
        "query_id": ids[number],
        "sample": sample,
        "text": texts,
        "harmful": place.measure == "compliance",
        "response": table["output"],
        "refused": scores == "0",
    }
    return pd.DataFrame(columns)


def _soft_prompt_files(root: Path) -> pd.DataFrame:
    """SOFT_PROMPT_COLUMNS from the names of the files."""
    rows = []
    for folder, method in TRAINED.items():
        for path in sorted((root / folder).glob("*/*.safetensors")):
            if match := _SOFT_PROMPT.fullmatch(path.name):
                rows.append((path.parent.name, f"{method}-{match['init']}", match["init"], path))
    return pd.DataFrame(rows, columns=list(SOFT_PROMPT_COLUMNS), dtype=object)


def release_name(chat_model: AnyModel) -> str:
    """The model's name without its owner or folder, as the release has it."""
    return PurePosixPath(chat_model.name.replace("\\", "/")).name


def _check_released(soft: SoftPrompt, trained_on: str, chat_model: AnyModel) -> None:
    width = soft.embeddings.shape[1]
    if release_name(chat_model) != trained_on or width != chat_model.hidden_size:
        raise PromptError(
            f"Soft prompt {soft.name!r} was released for {trained_on!r}, with vectors of width {width}, and does not "
            f"fit {chat_model.name!r} with hidden size {chat_model.hidden_size}: load {trained_on!r}, or train a "
            "prompt for this model."
        )


# ---------------------------------------------------------------- tables


def _counts_table(found: Found) -> pd.DataFrame:
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
    return _tidy(pd.DataFrame(rows, columns=list(COUNT_COLUMNS)))


def _queries_table(found: Found) -> pd.DataFrame:
    """QUERY_COUNT_COLUMNS from the results that come per query."""
    parts = [
        pd.DataFrame({**place._asdict(), "query_id": _query_ids(place.dataset, len(events)), "events": events})
        for place, events in found.items()
        if isinstance(events, np.ndarray)
    ]
    if not parts:
        return _nothing(QUERY_COUNT_COLUMNS)
    queries = pd.concat(parts, ignore_index=True).assign(source="released", n_samples=N_SAMPLES)
    return queries[list(QUERY_COUNT_COLUMNS)]


def _query_ids(dataset: str, n_queries: int) -> list[str]:
    """The ids of a data set's queries, by their place in its file."""
    return [f"{dataset}-{number:04d}" for number in range(1, n_queries + 1)]


def _tidy(counts: pd.DataFrame) -> pd.DataFrame:
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


def _nothing(columns: Sequence[str]) -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame(columns=list(columns), dtype=object)


def scores_from_events(queries: pd.DataFrame, rate: np.ndarray) -> pd.DataFrame:
    """SCORE_COLUMNS by (query_id, prompt), from rows of `Release.queries` and a share of events for each."""
    harmful = (queries["measure"] == "compliance").to_numpy()
    refusal = np.where(harmful, 1 - rate, rate)
    scores = queries[["query_id", "prompt"]].assign(
        harmful=harmful,
        n_samples=queries["n_samples"].to_numpy(dtype=int),
        refusal_rate=refusal,
        compliance_rate=np.where(harmful, rate, 1 - rate),
        any_refusal=refusal > 0,
        any_compliance=refusal < 1,
    )
    return scores.set_index(["query_id", "prompt"])[list(SCORE_COLUMNS)]


def _own_queries(scores: pd.DataFrame, model: str, dataset: str | Mapping[str, str] | pd.Series) -> pd.DataFrame:
    flat = scores.reset_index()
    if missing := [column for column in ("query_id", "prompt", *SCORE_COLUMNS) if column not in flat.columns]:
        raise QueryError(f"The scores lack the columns {missing}: pass what drolab.judge returned.")
    flat["dataset"] = dataset if isinstance(dataset, str) else flat["query_id"].map(dict(dataset))
    flat = flat.dropna(subset="dataset")
    if flat.empty:
        raise QueryError("No query of these scores has a data set: pass its name, or query id → name.")
    harmful = flat["harmful"].astype(bool)
    rate = flat["compliance_rate"].where(harmful, flat["refusal_rate"])
    events = (rate * flat["n_samples"]).round().astype(int)
    measure = harmful.map({True: "compliance", False: "refusal"})
    return flat.assign(model=model, source="own", measure=measure, events=events)[list(QUERY_COUNT_COLUMNS)]


def _own_counts(own: pd.DataFrame) -> pd.DataFrame:
    seen = own.assign(count=own["events"] > 0, n_queries=1)
    place = ["dataset", "measure", "source", "model", "prompt"]
    return seen.groupby(place, sort=False, as_index=False).agg(
        count=("count", "sum"), n_queries=("n_queries", "sum"), n_samples=("n_samples", "max")
    )
