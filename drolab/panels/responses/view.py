"""Which queries the response panel lists, and what it says of each: rates per prompt, changes, disagreements. No
widgets here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from drolab.errors import QueryError
from drolab.evidence import comparison
from drolab.figures import tables
from drolab.panels.markup import label

ONLY = ("all", "judges disagree", "changed", "refused more", "refused less")
"""Which queries `narrowed` leaves."""


def query_rates(
    responses: pd.DataFrame,
    verdicts: pd.DataFrame,
    judge: str,
    groups: Mapping[str, str] | pd.Series | None = None,
) -> pd.DataFrame:
    """One row per query: its refusal rate under each prompt, and how often the judges disagree about it.

    Args:
        responses: the table of `generate`.
        verdicts: from `judges.verdicts`, same rows; NA where a judge has no opinion.
        judge: the judge (a column of `verdicts`) whose refusal rates count.
        groups: as in `group_rates`; a query without one is in group "".

    Returns:
        Indexed by query_id: text, group, disagreements (the responses, under any prompt, that one judge calls a refusal
        and another does not), and `rate: <prompt>` for each prompt, NaN where the judge has no opinion.
    """
    said = verdicts.to_numpy(dtype=float, na_value=np.nan)
    split = (said == 1).any(axis=1) & (said == 0).any(axis=1)
    flat = responses[["query_id", "prompt"]].assign(refused=said[:, list(verdicts.columns).index(judge)], split=split)
    table = responses.drop_duplicates("query_id").set_index("query_id")
    names = (
        comparison.class_labels(table["harmful"])
        if groups is None
        else table.index.to_series().map(dict(groups)).fillna("")
    )
    rates = flat.groupby(["query_id", "prompt"], sort=False)["refused"].mean().unstack()[flat["prompt"].unique()]
    disagreements = flat.groupby("query_id")["split"].sum()
    return table[["text"]].assign(group=names, disagreements=disagreements).join(rates.add_prefix("rate: "))


def query_changes(rates: pd.DataFrame, prompts: tuple[str, str]) -> pd.DataFrame:
    """From `query_rates`: text, group, disagreements, and the refusal rate under two prompts as rate_a, rate_b, with
    change = rate_b - rate_a."""
    a, b = (rates[f"rate: {prompt}"] for prompt in prompts)
    return rates[["text", "group", "disagreements"]].assign(rate_a=a, rate_b=b, change=b - a)


def narrowed(
    queries: pd.DataFrame, *, contains: str = "", group: str | None = None, only: str = ONLY[0]
) -> pd.DataFrame:
    """Those rows of `query_changes` whose text contains some words (in any case), of one group, or with a behaviour.

    Args:
        only: "judges disagree" (the most often first), "changed" (the largest change first), "refused more" or
            "refused less" under the second prompt than under the first (the largest change first), or "all".

    Raises:
        QueryError: `only` is none of these.
    """
    keep = queries["text"].str.contains(contains, case=False, regex=False)
    found = queries[keep if group is None else keep & (queries["group"] == group)]
    if only == "all":
        return found
    order = {
        "judges disagree": found["disagreements"].astype(float),
        "changed": found["change"].abs(),
        "refused more": found["change"],
        "refused less": -found["change"],
    }.get(only)
    if order is None:
        raise QueryError(f"No queries called {only!r}: choose one of {', '.join(ONLY)}.")
    return found.loc[order[order > 0].sort_values(ascending=False, kind="stable").index]


def query_label(row: Any) -> str:
    """A row of `query_changes` on one line: both rates, class, how often judges disagree, the text."""
    rates = " → ".join(tables.MISSING if pd.isna(rate) else f"{rate:.2f}" for rate in (row.rate_a, row.rate_b))
    split = f" · ≠{int(row.disagreements)}" if row.disagreements else ""
    return f"{rates} · {label(row.group, 20)}{split} · {label(row.text, 90)}"


def refusals_in_words(prompts: pd.Series, verdicts: pd.Series, judge: str) -> dict[str, str]:
    """Prompt → how often it refuses one query, from that query's responses: their prompts and a judge's verdicts."""
    counts = verdicts.groupby(prompts).agg(["sum", "count"])
    return {
        prompt: f"refused {int(refused)} of {n} by {judge}" if n else f"not judged by {judge}"
        for prompt, refused, n in counts.itertuples(name=None)
    }
