"""Refusal and harmfulness probes: logistic regressions with soft labels in the anchor space.

Paper, section 3. In drolab the refusal probe is positive for "refuses" (the paper's code labels compliance 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from drolab.errors import StatesError
from drolab.intervals import auc, weighted_labels
from drolab.probing.anchors import anchor_matrix, content, coordinates, fit_key
from drolab.types import AnchorSpace, HiddenStates, Origin, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

Target = pd.Series | Sequence[float]
"""What `fit_probe` takes as labels: see there."""


def fit_probe(space: AnchorSpace, states: HiddenStates, target: Target, *, positive: str, C: float = 1.0) -> Probe:
    """Fit a logistic regression on the states' coordinates.

    Args:
        space: the anchor space; the states must hold its layer.
        states: n states of one read position.
        target: how much each state belongs to the positive class, from 0 to 1 (booleans count). Either a
            Series indexed by (query_id, prompt), or a Series indexed by query_id (the same under every prompt),
            or an array with one value per state, in their order. Fractions are soft labels: each state enters
            twice, as positive with weight p and as negative with weight 1 - p.
        positive: the name of the positive class, such as "refuses" or "harmful".
        C: scikit-learn's inverse strength of the ridge penalty.

    Raises:
        StatesError: the target lacks a state, is NaN or outside [0, 1], or knows one class only.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> logits = harm.decision_function(space.transform(states.matrix()))
        >>> bool(((logits > 0).numpy() == states.index["harmful"]).all())
        True
    """
    fractions = align_target(states, target)
    check_classes(fractions, positive)
    matrix = anchor_matrix(space, states)
    model = ridge_logistic(space.transform(matrix).numpy(), fractions, C)
    probe = Probe(
        coef=torch.tensor(model.coef_[0], dtype=torch.float32),
        intercept=float(model.intercept_[0]),
        positive=positive,
    )
    inputs = fit_key(
        "probe", space=space.identity, states=content(matrix.numpy()), target=content(fractions), C=float(C)
    )
    return replace(probe, origin=Origin(inputs, probe.sha256))


def cross_validate(
    space: AnchorSpace,
    states: HiddenStates,
    target: Target,
    *,
    n_splits: int = 10,
    random_state: int = 0,
    C: float = 1.0,
) -> pd.DataFrame:
    """How well a probe predicts queries that it was not fitted on.

    Folds are grouped by query: the same query under another prompt never sits in both train and test. The
    anchor space itself was fitted without labels and stays as it is.

    Returns:
        One row per fold: `fold, n_test, accuracy, auc`. With soft labels both count each state by its
        fractions, so that their best possible value lies below 1; auc is NaN in a fold with one class only.

    Raises:
        StatesError: as in `fit_probe`, or too few queries or states per class for `n_splits` folds.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab.probing import cross_validate
        >>> space = drolab.fit_anchors(states)
        >>> folds = cross_validate(space, states, queries["harmful"], n_splits=4)
        >>> list(folds.columns), len(folds)
        (['fold', 'n_test', 'accuracy', 'auc'], 4)
        >>> bool(folds["auc"].mean() > 0.9)
        True
    """
    fractions = align_target(states, target)
    check_classes(fractions, "positive")
    points = coordinates(space, states).numpy()
    rows = []
    for fold, (train, test) in enumerate(
        grouped_folds(fractions, states.index["query_id"].to_numpy(), n_splits, random_state)
    ):
        logits = ridge_logistic(points[train], fractions[train], C).decision_function(points[test])
        own = fractions[test]
        accuracy = float(np.where(logits > 0, own, 1 - own).mean())
        rows.append({"fold": fold, "n_test": len(test), "accuracy": accuracy, "auc": auc(logits, own)})
    return pd.DataFrame(rows)


def align_target(states: HiddenStates, target: Target) -> NDArray[np.float64]:
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
    fractions: NDArray[np.float64], groups: NDArray[Any], n_splits: int, random_state: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(train, test) row numbers of each fold: no group in both, classes spread evenly.

    Raises:
        StatesError: too few groups, or too few rows of a class, for `n_splits` folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = fractions >= 0.5
    fewest = min(len(np.unique(groups)), *np.unique(labels, return_counts=True)[1])
    if not 2 <= n_splits <= fewest:
        raise StatesError(
            f"n_splits={n_splits} needs at least 2 folds and at least as many queries and states per class as "
            f"folds (the fewest here: {fewest}): lower n_splits, or pass more queries."
        )
    folds = {"n_splits": n_splits, "shuffle": True, "random_state": random_state}
    if len(np.unique(groups)) == len(groups):  # nothing to keep together: the plain splitter is much faster
        yield from StratifiedKFold(**folds).split(fractions, labels)
    else:
        yield from StratifiedGroupKFold(**folds).split(fractions, labels, groups)


def _aligned_series(states: HiddenStates, target: pd.Series) -> NDArray[np.float64]:
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


def _numbers(target: Target) -> NDArray[np.float64]:
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


def check_classes(fractions: NDArray[np.float64], positive: str) -> None:
    """Raise a StatesError if the target knows one class only."""
    if fractions.max() == 0 or fractions.min() == 1:
        value = int(fractions.max())
        raise StatesError(
            f"The target of the probe {positive!r} is {value} for all {len(fractions)} states, so there is nothing to "
            "tell apart: add queries or prompts of the other class (or responses sampled at a higher temperature)."
        )


def ridge_logistic(points: NDArray[np.floating], fractions: NDArray[np.float64], C: float) -> Any:
    """scikit-learn's logistic regression with a ridge penalty, fitted on points [n, m] and soft labels [n].

    Raises:
        StatesError: labels of one class only, as a part of the queries may have; or no penalty that it can be.
    """
    from sklearn.linear_model import LogisticRegression

    if not 0 < C < np.inf:
        raise StatesError(f"C must be a number above 0, got {C}: it is the inverse strength of the penalty.")
    rows, labels, weights = weighted_labels(points.astype(np.float64), fractions)
    if np.ptp(labels) == 0:
        raise StatesError(
            f"The target is {labels[0]:g} for all {len(fractions)} states of one training part, so there is nothing to "
            f"tell apart there: hardly any query has {1 - labels[0]:g} in it. Pass more queries or prompts of that "
            "class, or more responses to each, or lower n_splits."
        )
    # Newton steps converge on the few, badly scaled coordinates of an anchor space, where lbfgs may not.
    model = LogisticRegression(C=C, solver="newton-cholesky", max_iter=1000)
    return model.fit(rows, labels, sample_weight=weights)
