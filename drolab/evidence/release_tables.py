"""Results of real models without a GPU: the paper's release, XSTest's labelled completions, and one's own runs.

`load` reads the paper's release and `load_xstest` XSTest's completions, each from a user's clone; `Release.with_scores`
puts one's own runs into the same tables. The rest makes tables of them: rates with intervals, averages over models,
paired tests between prompts, judges against labels, and what the trained prompts look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
from scipy import stats

from drolab import judges
from drolab.data import CLONE, LABELS, XSTEST_CLONE, Release, load, load_xstest, release_name, scores_from_events
from drolab.dro import drift_from_text, token_drift
from drolab.errors import PromptError, QueryError
from drolab.evidence import comparison
from drolab.intervals import rate_interval
from drolab.models import ChatModel
from drolab.types import NO_PROMPT, SafetyPrompt

__all__ = [
    "CLONE",
    "RATE_COLUMNS",
    "XSTEST_CLONE",
    "Release",
    "annotators",
    "averages",
    "differences",
    "grid",
    "judge_agreement",
    "label_rates",
    "label_tests",
    "load",
    "load_xstest",
    "query_rows",
    "rates",
    "table",
    "trained_tokens",
    "two_counts",
]

_PLACE = ["dataset", "model", "prompt"]
_ANY, _EACH = ["any", "any_low", "any_high"], ["per_sample", "per_sample_low", "per_sample_high"]
RATE_COLUMNS = ("dataset", "measure", "source", "model", "prompt", "n_queries", "n_samples", *_ANY, *_EACH)
"""Columns of `rates`: the share of queries with the event in any of their samples, and the share of samples with it."""


def rates(release: Release, dataset: str | None = None, *, k: int | None = None, random_state: int = 0) -> pd.DataFrame:
    """Every model under every prompt on every data set: RATE_COLUMNS. What is not there is NaN, never 0.

    The two rates differ widely. The paper reports `any`, which grows with the number of samples; `per_sample` does not.

    Args:
        dataset: one data set alone.
        k: `any` is the expected share among k samples of a query, drawn from those it has: the only fair comparison
            between results with different numbers of samples. None takes all samples.

    Returns:
        With 95 % intervals over queries, as from `comparison.group_rates`: Wilson's where each query's value is 0 or 1,
        else bootstrap, made wider where hardly any query differs from the rest. A result that comes as a count alone
        has no `per_sample`, and no `any` for a `k`.

    Raises:
        QueryError: no results, no such data set, or fewer than k samples of a query.
    """
    counts, queries = _of_dataset(release, dataset)
    measured = _add_any(queries, k)
    parts = [_model_rates(part, random_state) for _, part in measured.groupby("model", sort=False)]
    found = pd.concat(parts) if parts else pd.DataFrame(columns=[*_PLACE, *_ANY, *_EACH])
    found = counts.merge(found, on=_PLACE, how="left")
    if k is None:
        alone = found["any"].isna()
        sizes = zip(counts.loc[alone, "count"], counts.loc[alone, "n_queries"], strict=True)
        found.loc[alone, _ANY] = np.array([rate_interval(int(c), int(n)) for c, n in sizes]).reshape(-1, 3)
    found[[*_ANY, *_EACH]] = found[[*_ANY, *_EACH]].astype(float).round(12)
    return _whole_grid(found, release.counts)[list(RATE_COLUMNS)]


def _of_dataset(release: Release, dataset: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    counts, queries = release.counts, release.queries
    if dataset is not None:
        counts, queries = counts[counts["dataset"] == dataset], queries[queries["dataset"] == dataset]
    if counts.empty:
        known = (
            ", ".join(release.counts["dataset"].unique()) or f"none: load a clone (`{CLONE}`) or add your own scores"
        )
        raise QueryError(f"No results{f' on {dataset!r}' if dataset else ''}. There are data sets: {known}.")
    return counts.reset_index(drop=True), queries


def _add_any(queries: pd.DataFrame, k: int | None) -> pd.DataFrame:
    """With `any`, the chance that k of a query's samples have the event, and `rate`, the share of them that have it."""
    events, n = queries["events"].to_numpy(dtype=int), queries["n_samples"].to_numpy(dtype=int)
    if k is not None and (k < 1 or (n < k).any()):
        raise QueryError(f"k={k} samples of a query cannot be drawn: choose 1 to {min(n, default=1)}.")
    return queries.assign(any=stats.hypergeom.sf(0, n, events, n if k is None else k), rate=events / n)


def _model_rates(queries: pd.DataFrame, random_state: int) -> pd.DataFrame:
    """One model's rows of `rates`, as far as queries tell them."""
    groups = _datasets_of(queries)
    measures = queries.drop_duplicates("dataset").set_index("dataset")["measure"]
    rows = queries[_PLACE].drop_duplicates()
    for column, wanted in (("any", _ANY), ("rate", _EACH)):
        scores = scores_from_events(queries, queries[column].to_numpy(dtype=float))
        found = comparison.group_rates(scores, groups, random_state=random_state)
        found = found[found["measure"] == found["group"].map(measures)]
        found = found.rename(columns={"group": "dataset", **dict(zip(("value", "low", "high"), wanted, strict=True))})
        rows = rows.merge(found[["dataset", "prompt", *wanted]], on=["dataset", "prompt"])
    return rows


def _datasets_of(queries: pd.DataFrame) -> pd.Series:
    """Query id → data set."""
    return queries.drop_duplicates("query_id").set_index("query_id")["dataset"]


def _whole_grid(found: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """A row for every model and prompt of the release on these data sets; those that were not there are NaN."""
    axes = [list(found["dataset"].unique()), list(counts["model"].unique()), list(counts["prompt"].unique())]
    grid = pd.MultiIndex.from_product(axes, names=_PLACE).to_frame(index=False)
    grid["measure"] = grid["dataset"].map(counts.drop_duplicates("dataset").set_index("dataset")["measure"])
    grid["source"] = grid["model"].map(counts.drop_duplicates("model").set_index("model")["source"])
    return grid.merge(found.drop(columns=["measure", "source"]), on=_PLACE, how="left")


def averages(
    release: Release,
    dataset: str | None = None,
    *,
    models: Sequence[str] | None = None,
    k: int | None = None,
    random_state: int = 0,
) -> pd.DataFrame:
    """The rates of each prompt on each data set, averaged over models.

    Args:
        models: None takes the released ones, without one's own, if there are any.
        k: as in `rates`.

    Returns:
        dataset, measure, prompt, n_models, n_missing (models without this result), any, any_low, any_high, per_sample,
        per_sample_low, per_sample_high. An average over fewer models than the others would mislead: it is NaN as soon
        as one is missing. The intervals are over queries, as in `rates`, for these models: they are no sample. They
        need the same queries from each model.

    Raises:
        QueryError: as from `rates`, or no such model.
    """
    counts, queries = _of_dataset(release, dataset)
    released = counts[counts["source"] == "released"]
    chosen = list((counts if released.empty else released)["model"].unique()) if models is None else list(models)
    if absent := [name for name in chosen if name not in set(counts["model"])]:
        raise QueryError(f"No results of the models {absent}: there are {list(counts['model'].unique())}.")
    counts, queries = (part[part["model"].isin(chosen)] for part in (counts, queries))
    share = counts.assign(any=counts["count"] / counts["n_queries"] if k is None else np.nan)
    rows = share.groupby(["dataset", "measure", "prompt"], sort=False, as_index=False).agg(
        found=("any", "size"), alone=("any", "mean")
    )
    rows = rows.assign(n_models=len(chosen), n_missing=len(chosen) - rows["found"])
    mean = _mean_over_models(_add_any(queries, k), len(chosen))
    measured = _model_rates(mean, random_state) if len(mean) else pd.DataFrame(columns=[*_PLACE, *_ANY, *_EACH])
    rows = rows.merge(measured, on=["dataset", "prompt"], how="left")
    rows["any"] = rows["any"].fillna(rows["alone"]).where(rows["n_missing"] == 0)
    rows[[*_ANY, *_EACH]] = rows[[*_ANY, *_EACH]].astype(float).round(12)
    return rows[["dataset", "measure", "prompt", "n_models", "n_missing", *_ANY, *_EACH]]


def _mean_over_models(queries: pd.DataFrame, n_models: int) -> pd.DataFrame:
    """As if all models were one: per query the mean over them, of the results where each was asked the same queries."""
    keys = ["dataset", "measure", "prompt", "query_id"]
    mean = queries.groupby(keys, sort=False, as_index=False).agg(
        any=("any", "mean"), rate=("rate", "mean"), n_samples=("n_samples", "max"), asked=("any", "size")
    )
    complete = mean.groupby(["dataset", "prompt"])["asked"].transform("min") == n_models
    return mean[complete].round({"any": 12, "rate": 12}).assign(model="average")


def table(release: Release, dataset: str, *, k: int | None = None) -> pd.DataFrame:
    """The table for an appendix: models × prompts in percent of queries, the average over the released models below.

    `.to_latex(na_rep="–", float_format="%.1f")` makes it LaTeX.
    """
    found = grid(release, dataset, k=k)
    percent = found.pivot(index="model", columns="prompt", values="value") * 100
    return percent.loc[list(found["model"].unique()), list(found["prompt"].unique())].rename_axis(columns=None)


def grid(release: Release, dataset: str, *, k: int | None = None) -> pd.DataFrame:
    """The same as a long table with intervals: model, prompt, value, low, high; the last model is "average", if there
    are several.

    Models and prompts that have no result on this data set are left out.
    """
    average = averages(release, dataset, k=k).assign(model="average").query("n_models > 1")
    both = pd.concat([rates(release, dataset, k=k), average], ignore_index=True)
    known = both.dropna(subset="any")
    both = both[both["model"].isin([*known["model"], "average"]) & both["prompt"].isin(known["prompt"])]
    columns = {"model": "model", "prompt": "prompt", **dict(zip(_ANY, ("value", "low", "high"), strict=True))}
    return both[list(columns)].rename(columns=columns).reset_index(drop=True)


def two_counts(rates: pd.DataFrame) -> pd.DataFrame:
    """The two rates of `rates` below each other, for a figure: dataset, model, prompt, group (which of them), value,
    low, high."""
    parts = []
    for columns, group in ((_ANY, "in any sample"), (_EACH, "per sample")):
        part = rates[[*_PLACE, *columns]].rename(columns=dict(zip(columns, ("value", "low", "high"), strict=True)))
        parts.append(part.assign(group=group).dropna(subset="value"))
    return pd.concat(parts, ignore_index=True)


def differences(
    release: Release,
    baseline: str,
    *,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    random_state: int = 0,
) -> pd.DataFrame:
    """Every other prompt against `baseline`, per model and data set, each query with itself: the paper has no tests.

    Args:
        models, datasets, prompts: what to compare; None compares all there is. p_holm corrects for the rows asked for:
            choose before looking.

    Returns:
        model, dataset, and the columns of `comparison.paired`: whether any sample has the event, McNemar's exact test,
        p_holm over the whole table.

    Raises:
        QueryError: no model was asked under `baseline` and another prompt.
    """
    queries = release.queries
    for column, wanted in (("model", models), ("dataset", datasets), ("prompt", prompts and [*prompts, baseline])):
        queries = queries if wanted is None else queries[queries[column].isin(list(wanted))]
    parts = []
    for model, own in queries.groupby("model", sort=False):
        under = own.groupby("dataset")["prompt"].agg(set)
        own = own[own["dataset"].map(under).map(lambda found: baseline in found and len(found) > 1).astype(bool)]
        if not own.empty:
            scores = scores_from_events(own, (own["events"] / own["n_samples"]).to_numpy(dtype=float))
            found = comparison.paired(scores, baseline, _datasets_of(own), test="any", random_state=random_state)
            parts.append(found.rename(columns={"group": "dataset"}).assign(model=model))
    if not parts:
        known = list(release.queries["prompt"].unique())
        raise QueryError(f"No model has results per query under {baseline!r} and another prompt: there are {known}.")
    return comparison.holm(pd.concat(parts, ignore_index=True)).pipe(_columns_first, ["model", "dataset"])


def query_rows(release: Release, dataset: str, *, prompt: str | None = None, model: str | None = None) -> pd.DataFrame:
    """Each query's share of samples with the event: every model under one prompt, or one model under every prompt.

    Returns:
        row (model or prompt), query_id, rate, text (empty where the clone has no responses to this data set).

    Raises:
        QueryError: neither or both of `prompt` and `model`, or no results per query of it.
    """
    if (prompt is None) == (model is None):
        raise QueryError("Give a prompt, to see every model, or a model, to see every prompt.")
    column, wanted, row = ("prompt", prompt, "model") if model is None else ("model", model, "prompt")
    queries = release.queries[release.queries["dataset"] == dataset]
    own = queries[queries[column] == wanted]
    if own.empty:
        raise QueryError(
            f"No results per query of {wanted!r} on {dataset!r}: there are {list(queries[column].unique())}."
        )
    texts = own["query_id"].map(release.texts(dataset)).fillna("")
    rate = (own["events"] / own["n_samples"]).astype(float)
    found = own[["query_id"]].assign(row=own[row], rate=rate, text=texts)[["row", "query_id", "rate", "text"]]
    order = {name: place for place, name in enumerate(release.counts[row].unique())}
    return found.sort_values("row", key=lambda column: column.map(order), kind="stable", ignore_index=True)


def _columns_first(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return frame[[*columns, *(column for column in frame.columns if column not in columns)]]


# ---------------------------------------------------------------- judges


def judge_agreement(
    responses: pd.DataFrame, judged_by: Mapping[str, Callable[[str], bool]], *, label: str = "label", by: str = "model"
) -> pd.DataFrame:
    """Judges against the verdicts that came with the responses (the release's, or people's), and against each other.

    Args:
        responses: from `Release.responses` or `load_xstest`, with `refused`.
        judged_by: judges by name, as in `judges.verdicts`.
        label: the name of the released verdict in the table.
        by: the column to tell apart: model, prompt, dataset.

    Returns:
        `by` ("all" for everything together) and the columns of `judges.disagreement`.

    Raises:
        QueryError: responses without verdicts, or without the column `by`.
    """
    if missing := [column for column in ("response", "refused", by) if column not in responses.columns]:
        raise QueryError(f"The responses lack {missing}: pass what Release.responses or load_xstest returned.")
    verdicts = judges.verdicts(responses, judged_by).assign(**{label: responses["refused"].astype("boolean")})
    parts = [(str(name), verdicts.loc[rows]) for name, rows in responses.groupby(by, sort=False).groups.items()]
    parts += [("all", verdicts)] if len(parts) > 1 else []
    found = [judges.disagreement(part).assign(**{by: name}) for name, part in parts]
    return pd.concat(found, ignore_index=True).pipe(_columns_first, [by])


# ---------------------------------------------------------------- soft prompts


def trained_tokens(
    release: Release,
    *,
    chat_model: ChatModel | None = None,
    inits: Mapping[str, SafetyPrompt] | None = None,
) -> pd.DataFrame:
    """What training did to each token of the released prompts, DRO's beside those of vanilla prompt tuning.

    Args:
        chat_model, inits: one of the models, and the human prompts by name (see `load_prompts`): then its prompts alone
            are compared with the human prompt they began with. Without them the two trainings that began with the same
            prompt are compared with each other: the release has not the models' own embeddings.

    Returns:
        model, init, prompt, against, token (from 0), norm, drift, cosine, see `drift.token_drift`.

    Raises:
        QueryError: no soft prompts, or none of this model.
        PromptError: a prompt that does not fit `chat_model`.
    """
    name = None if chat_model is None else release_name(chat_model)
    table = release.soft_prompts
    own = table if name is None else table[table["model"] == name]
    if own.empty:
        raise QueryError(
            f"No soft prompts{f' of {name}' if name else ''}: there are some of {list(table['model'].unique())}."
        )
    parts = []
    for key, rows in own.groupby(["model", "init"], sort=False):
        model, init = map(str, key)
        soft = [release.soft_prompt(model, prompt, chat_model=chat_model) for prompt in rows["prompt"]]
        if chat_model is None:
            found = [token_drift(*pair) for pair in permutations(soft, 2)] or [token_drift(soft[0])]
        elif init in (inits or {}):
            found = [drift_from_text(chat_model, prompt, (inits or {})[init]) for prompt in soft]
        else:
            raise PromptError(
                f"`inits` lacks the human prompt {init!r}: pass load_prompts(<clone of the paper's code>)."
            )
        parts += [part.assign(model=model, init=init) for part in found]
    return pd.concat(parts, ignore_index=True).pipe(_columns_first, ["model", "init"])


# ---------------------------------------------------------------- people's labels


def label_rates(responses: pd.DataFrame, *, by: str = "group") -> pd.DataFrame:
    """How often people gave each label.

    Args:
        responses: from `load_xstest`.
        by: `group` (safe, unsafe) or `type` (18 kinds).

    Returns:
        model, prompt, `by`, label, count, n, value, low, high (Wilson's 95 %).
    """
    rows = []
    for place, part in responses.groupby(["model", "prompt", by], sort=False):
        for label in LABELS:
            count = int((part["label"] == label).sum())
            rows.append((*place, label, count, len(part), *rate_interval(count, len(part))))
    return pd.DataFrame(rows, columns=["model", "prompt", by, "label", "count", "n", "value", "low", "high"])


def label_tests(
    responses: pd.DataFrame, *, by: str = "group", labels: Sequence[str] = LABELS[2:], random_state: int = 0
) -> pd.DataFrame:
    """Whether a safety prompt changes people's labels: each prompt with itself, with and without the safety prompt.

    Args:
        by: as in `label_rates`.
        labels: what counts as refusal; ("full_refusal", "partial_refusal") takes both.

    Returns:
        model and the columns of `comparison.paired` with `by` in place of its group: McNemar's exact test, p_holm over
        the whole table.

    Raises:
        QueryError: no model with and without a safety prompt.
    """
    parts = []
    for model, own in responses.groupby("model", sort=False):
        if not {NO_PROMPT} < set(own["prompt"]):
            continue
        scores = judges.score_table(own, own["label"].isin(list(labels)))
        groups = own.drop_duplicates("query_id").set_index("query_id")[by]
        found = comparison.paired(scores, NO_PROMPT, groups, test="majority", random_state=random_state)
        parts.append(found.rename(columns={"group": by}).assign(model=model, measure=" or ".join(labels)))
    if not parts:
        raise QueryError("No model is there with and without a safety prompt: XSTest has Llama 2 and Mistral as pairs.")
    return comparison.holm(pd.concat(parts, ignore_index=True)).pipe(_columns_first, ["model"])


def annotators(responses: pd.DataFrame) -> pd.DataFrame:
    """How far the two people agree: release, n, agreement (share), kappa (Cohen's, three labels), and all together."""
    parts = [(str(name), part) for name, part in responses.groupby("release", sort=False)]
    both = ["annotation_1", "annotation_2"]
    rows = [judges.disagreement(part[both]).assign(release=name) for name, part in [*parts, ("all", responses)]]
    return pd.concat(rows, ignore_index=True)[["release", "n", "agreement", "kappa"]]
