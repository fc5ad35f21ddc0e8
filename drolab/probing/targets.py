"""Targets of a readout: how much each state belongs to a class, and folds that keep a query's states together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drolab.errors import StatesError, TooFewError
from drolab.types import HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Target = pd.Series | Sequence[float]
"""What `fit_probe` takes as labels: see there."""


def align_target(states: HiddenStates, target: Target) -> Array:
    """[n]: the target of each state, in the order of the states (the rules of `fit_probe`).

    Raises:
        StatesError: states without a target (named), a target that is ambiguous, NaN or outside [0, 1].
    """
    if isinstance(target, pd.Series):
        values = _aligned_series(states, target)
    else:
        values = _numbers(target)
        if values.shape != (len(states),):
            raise StatesError(
                f"The target has shape {list(values.shape)} for {len(states)} states: give one value per state, "
                "or a Series indexed by query_id or by (query_id, prompt)."
            )
    if np.isnan(values).any():
        names = _names(states, np.isnan(values))
        raise StatesError(f"The target is NaN for {names}: drop these states, or score their responses.")
    if (values < 0).any() or (values > 1).any():
        raise StatesError(
            f"The target must lie in [0, 1], got {values.min():g} to {values.max():g}: divide counts by n_samples."
        )
    return values


def grouped_folds(
    fractions: Array, groups: NDArray[Any], n_splits: int, random_state: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(train, test) row numbers of each fold: no group in both, fractions below and from one half spread evenly; those
    below and above their mean, where too few reach one half.

    Raises:
        StatesError: fewer groups than `n_splits`, or `n_splits` below 2.
        TooFewError: too few rows of a class for `n_splits` folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = next((part for part in _halves(fractions) if _fewest(part) >= n_splits), fractions > fractions.mean())
    fewest = min(len(np.unique(groups)), *np.unique(labels, return_counts=True)[1])
    if not 2 <= n_splits <= fewest:
        possible = 2 <= n_splits <= len(np.unique(groups))  # then it is the target that has too few of a kind
        raise (TooFewError if possible else StatesError)(
            f"Cross-validation in n_splits={n_splits} folds, two at least, needs as many queries and states of each "
            f"class (the fewest here: {fewest}): take more queries, or lower n_splits."
        )
    folds = {"n_splits": n_splits, "shuffle": True, "random_state": random_state}
    if len(np.unique(groups)) == len(groups):  # nothing to keep together: the plain splitter is much faster
        yield from StratifiedKFold(**folds).split(fractions, labels)
    else:
        yield from StratifiedGroupKFold(**folds).split(fractions, labels, groups)


def n_of_rarer_kind(fractions: Array) -> int:
    """How many rows there are of the rarer kind: of as many folds `grouped_folds` can spread both kinds over."""
    return max(map(_fewest, _halves(fractions)))


def _halves(fractions: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return fractions >= 0.5, fractions > fractions.mean()


def _fewest(labels: NDArray[np.bool_]) -> int:
    return int(min(labels.sum(), (~labels).sum()))


def _aligned_series(states: HiddenStates, target: pd.Series) -> Array:
    by_prompt = isinstance(target.index, pd.MultiIndex)
    if by_prompt and target.index.nlevels != 2:
        raise StatesError(f"The target's index has {target.index.nlevels} levels: use (query_id, prompt).")
    if target.index.has_duplicates:
        first = target.index[target.index.duplicated()][0]
        raise StatesError(f"The target has several values for {first}: average them per query and prompt first.")
    wanted: pd.Index = (
        pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])
        if by_prompt
        else pd.Index(states.index["query_id"])
    )
    place = target.index.get_indexer(wanted)
    if (place < 0).any():
        raise StatesError(f"The target has no value for {_names(states, place < 0)}: {_how_to_align(target)}")
    return _numbers(target)[place]


def _how_to_align(target: pd.Series) -> str:
    if pd.api.types.is_integer_dtype(target.index):  # of a table that load_queries has not seen
        return (
            "its index are row numbers, which are no query ids. Take the column from load_queries(table), or from "
            "table.set_index('query_id'); pass .to_numpy() to go by row order."
        )
    return (
        "select the states it covers, or score these responses too. Its index must be query_id or (query_id, prompt); "
        "pass .to_numpy() to go by row order."
    )


def _numbers(target: Target) -> Array:
    try:
        if isinstance(target, pd.Series):
            return target.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.asarray(target, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StatesError(
            f"The target must be booleans or numbers from 0 to 1 ({error}): compare texts first, as in "
            "target == 'refusal'."
        ) from error


def _names(states: HiddenStates, missing: NDArray[np.bool_]) -> str:
    rows = states.index.loc[missing, ["query_id", "prompt"]]
    named = ", ".join(f"({query}, {prompt})" for query, prompt in rows.head(3).itertuples(index=False))
    return f"{len(rows)} of {len(states)} states: {named}" + (", …" if len(rows) > 3 else "")


def check_classes(fractions: Array, positive: str = "") -> None:
    """Raise a TooFewError if the target (of the probe that is positive for this, if that is known) is the same for all
    states."""
    if np.ptp(fractions) < 1e-9:
        of_probe = f" of the probe {positive!r}" if positive else ""
        raise TooFewError(
            f"The target{of_probe} is {fractions.mean():g} for all {len(fractions)} states, so there is nothing to "
            "tell apart: add queries or prompts of the other class (or responses sampled at a higher temperature)."
        )
