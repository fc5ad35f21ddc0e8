"""Before the thought or after it: what can be read at the places of a model that thinks before it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch

from drolab.errors import StatesError
from drolab.probing import Target, align_target, fit_directions, one_position, transfer
from drolab.progress import Progress
from drolab.types import HiddenStates

PLACE_COLUMNS = ("fitted_at", "read_at", "n_queries", "n", "auc", "low", "high", "shuffled", "cosine", "note")
"""Columns of `compare_places`."""


def compare_places(
    states: Mapping[str, HiddenStates],
    target: Target,
    *,
    positive: str = "refuses",
    method: str = "mean_difference",
    layer: int = -1,
    n_bootstrap: int = 1000,
    n_shuffles: int = 5,
    random_state: int = 0,
    level: float = 0.95,
    progress: Progress = True,
) -> pd.DataFrame:
    """Is there a direction at each place, and is it the same one? Fitted at each, read on held-out queries at each.

    Only chats that have a state at every place count, so that the rows are about the same ones.

    Args:
        states: place → states of the same queries and prompts, as from `hidden_states(…, read_at=place)`.
        target: as in `fit_probe`: such as the `refusal_rate` of `judge`.
        positive: the name of the positive class.
        method: one of `fit_directions`.
        n_bootstrap, n_shuffles, random_state, level: as in `transfer`.

    Returns:
        PLACE_COLUMNS, one row per pair of places. `auc` is that of the direction fitted at the one on states of other
        queries at the other, with its interval, `shuffled` the same of targets that mean nothing (see `transfer`), and
        `cosine` that between the directions of both. `note` says where nothing is read. A high AUC with a low cosine
        says that both places know it and keep it along other axes.

    Raises:
        StatesError: less than two places; states that were not read at theirs, have no chats in common, or are of
            another model or layer; as in `fit_directions`.

    Examples:
        For a model that does not think, all places are one (here harm, which needs no replies):

        >>> import drolab
        >>> from drolab import evidence
        >>> model, none = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = {place: drolab.hidden_states(model, queries, none, read_at=place, progress=False)
        ...           for place in ("reply", "answer")}
        >>> options = {"n_bootstrap": 100, "n_shuffles": 1, "progress": False}
        >>> table = evidence.compare_places(states, queries["harmful"], positive="harmful", **options)
        >>> table[["fitted_at", "read_at", "n_queries", "cosine"]].round(3)
          fitted_at read_at  n_queries  cosine
        0     reply   reply         16     1.0
        1     reply  answer         16     1.0
        2    answer   reply         16     1.0
        3    answer  answer         16     1.0
    """
    if len(states) < 2:
        raise StatesError(f"Places are compared in pairs: pass states of two or three, not of {list(states)}.")
    if wrong := {place: one.read_at for place, one in states.items() if one.read_at != place}:
        place, where = next(iter(wrong.items()))
        raise StatesError(
            f"The states given under {place!r} were read at {where!r}: name them by where they were read, as "
            "{states.read_at: states}, or read them there with hidden_states(…, read_at=…)."
        )
    common = _in_common(states, layer)
    wanted = [align_target(one, target) for one in common.values()]
    options = {"n_bootstrap": n_bootstrap, "n_shuffles": n_shuffles, "random_state": random_state, "level": level}
    # Places take the part of prompts: fitted under one, tested under each, on queries that were held out.
    as_prompts = [one.index.assign(prompt=place) for place, one in common.items()]
    first = next(iter(common.values()))
    joined = replace(
        first,
        values=torch.cat([one.values for one in common.values()]),
        index=pd.concat(as_prompts, ignore_index=True),
    )
    found = transfer(
        joined,
        [value for values in wanted for value in values],
        across="prompt",
        methods=[method],
        progress=progress,
        **options,  # type: ignore[arg-type]
    )
    own = {
        place: fit_directions(one, target, positive=positive, methods=[method], random_state=random_state)[method]
        for place, one in common.items()
    }
    pair = ["fitted_on", "tested_on"]
    table = found[~found["shuffled"]].merge(
        found.loc[found["shuffled"], [*pair, "auc"]].rename(columns={"auc": "shuffled_auc"}), on=pair, how="left"
    )
    cosines = [
        float(own[one].vector.double() @ own[other].vector.double())
        for one, other in zip(table["fitted_on"], table["tested_on"], strict=True)
    ]
    table = table.drop(columns="shuffled").assign(cosine=cosines)
    names = {"fitted_on": "fitted_at", "tested_on": "read_at", "shuffled_auc": "shuffled"}
    return table.rename(columns=names)[list(PLACE_COLUMNS)]


def _in_common(states: Mapping[str, HiddenStates], layer: int) -> dict[str, HiddenStates]:
    """The states of one layer of the chats that all places have, in the same order."""
    chosen = {place: one_position(one).select(layer=layer) for place, one in states.items()}
    kinds = {(one.layers, one.values.shape[2], one.model_fingerprint) for one in chosen.values()}
    if len(kinds) > 1:
        raise StatesError("The states are of several layers or models: compute them all with the same one.")
    keys = [pd.MultiIndex.from_frame(one.index[["query_id", "prompt"]]) for one in chosen.values()]
    shared = keys[0]
    for other in keys[1:]:
        shared = shared[shared.isin(other)]
    if shared.empty:
        raise StatesError("No chat has a state at every place: raise max_thinking_tokens.")
    rows = [index.get_indexer(shared) for index in keys]
    return {
        place: replace(one, values=one.values[own], index=one.index.iloc[own].reset_index(drop=True))
        for (place, one), own in zip(chosen.items(), rows, strict=True)
    }
