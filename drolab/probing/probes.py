"""Refusal and harmfulness probes: logistic regressions with soft labels in the anchor space.

Paper, section 3. In drolab the refusal probe is positive for "refuses" (the paper's code labels compliance 1).

A logistic regression can be fitted to anything, also to noise. So every probe is checked on queries that were held out,
against shuffled targets, and what is built on one that reads nothing says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from drolab.errors import StatesError, TooFewError, UnreliableWarning
from drolab.intervals import auc, weighted_labels
from drolab.probing.anchors import anchor_matrix, content, coordinates, fit_key
from drolab.probing.crossval import check_readout, spread_folds
from drolab.probing.targets import Target, align_target, check_classes, grouped_folds
from drolab.threads import one_thread
from drolab.types import AnchorSpace, FitCheck, HiddenStates, Origin, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]


@one_thread
def fit_probe(
    space: AnchorSpace,
    states: HiddenStates,
    target: Target,
    *,
    positive: str,
    C: float = 1.0,
    check: bool = True,
    random_state: int = 0,
) -> Probe:
    """Fit a logistic regression on the states' coordinates, and look whether these hold anything of the target.

    `probe.check` has the cross-validated AUC on held-out queries beside that with shuffled targets. Where it is hardly
    better, or where hardly any query has one of the classes, `probe.problem` says so, a warning shows it, and what is
    built on the probe is drawn, but decides nothing.

    Args:
        space: the anchor space; the states must hold its layer.
        states: n states of one read position.
        target: how much each state belongs to the positive class, from 0 to 1 (booleans count). Either a
            Series indexed by (query_id, prompt), or a Series indexed by query_id (the same under every prompt),
            or an array with one value per state, in their order. Fractions are soft labels: each state enters
            twice, as positive with weight p and as negative with weight 1 - p.
        positive: the name of the positive class, such as "refuses" or "harmful".
        C: scikit-learn's inverse strength of the ridge penalty.
        check: False leaves the check out; then nothing says whether the probe reads anything.
        random_state: of the check's folds and shuffles.

    Warns:
        UnreliableWarning: the probe has a problem.

    Raises:
        StatesError: the target lacks a state, is NaN or outside [0, 1].
        TooFewError: the target is the same for all states; `try_probe` says so and goes on.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(20)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> logits = harm.decision_function(space.transform(states.matrix()))
        >>> bool(((logits > 0).numpy() == states.index["harmful"]).all())
        True
        >>> harm.problem or "it reads harm"
        'it reads harm'
    """
    fractions = align_target(states, target)
    check_classes(fractions, positive)
    matrix = anchor_matrix(space, states)
    points = space.transform(matrix).numpy()
    model = ridge_logistic(points, fractions, C)
    probe = Probe(
        coef=torch.tensor(model.coef_[0], dtype=torch.float32),
        intercept=float(model.intercept_[0]),
        positive=positive,
    )
    inputs = fit_key(
        "probe", space=space.identity, states=content(matrix.numpy()), target=content(fractions), C=float(C)
    )
    probe = replace(probe, origin=Origin(inputs, probe.sha256))
    if not check:
        return probe
    checked = check_readout(points, states.index, fractions, positive, random_state=random_state)
    if checked.problem:
        warnings.warn(checked.problem, UnreliableWarning, stacklevel=2)
    enough = len(checked.null) > 0
    return replace(probe, check=checked, refits=_refits(points, states, fractions, C, random_state) if enough else None)


def try_probe(
    space: AnchorSpace, states: HiddenStates, target: Target, *, positive: str, random_state: int = 0
) -> tuple[Probe | None, str]:
    """The probe of `fit_probe` and its `problem`; or None and why, where the target is the same for all states.

    So it is with a model that never refuses: then there is no such probe, but all else can still be looked at.

    Args: as `fit_probe` takes them.

    Warns:
        UnreliableWarning: the probe has a problem.

    Raises:
        StatesError: the target lacks a state, is NaN or outside [0, 1].

    Examples:
        >>> import drolab
        >>> from drolab.probing import try_probe
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(20)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> probe, problem = try_probe(space, states, queries["harmful"], positive="harmful")
        >>> probe.positive, problem
        ('harmful', '')
        >>> try_probe(space, states, 0.0 * queries["harmful"], positive="refuses")
        (None, "The target of the probe 'refuses' is 0 for all 160 states, so there is nothing to tell apart: ...")
    """
    fractions = align_target(states, target)
    try:
        check_classes(fractions, positive)
    except TooFewError as error:
        return None, str(error)
    probe = fit_probe(space, states, target, positive=positive, random_state=random_state)
    return probe, probe.problem


def _refits(
    points: NDArray[np.floating], states: HiddenStates, fractions: Array, C: float, random_state: int
) -> Tensor:
    """[n_groups, m]: the coefficients without each group of queries."""
    groups = spread_folds(fractions, states.index["query_id"].to_numpy(), random_state)
    kept = (np.setdiff1d(np.arange(len(points)), group) for group in groups)
    return torch.tensor(np.stack([ridge_logistic(points[rows], fractions[rows], C).coef_[0] for rows in kept])).float()


def check_table(probes: Mapping[str, Probe]) -> pd.DataFrame:
    """What the checks of some probes found: `probe, auc, shuffled` (mean), `shuffled_low, shuffled_high` (the extremes)
    and `problem`, one row per probe; NaN where there were too few of a class to look, or nobody looked."""
    rows = []
    for name, probe in probes.items():
        found = probe.check or FitCheck(auc=np.nan, null=())
        null = np.array(found.null or [np.nan])
        rows.append((name, found.auc, null.mean(), null.min(), null.max(), found.problem))
    return pd.DataFrame(rows, columns=["probe", "auc", "shuffled", "shuffled_low", "shuffled_high", "problem"])


@one_thread
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
        StatesError: as in `fit_probe`.
        TooFewError: too few queries or states per class for `n_splits` folds.

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


def ridge_logistic(points: NDArray[np.floating], fractions: Array, C: float) -> Any:
    """scikit-learn's logistic regression with a ridge penalty, fitted on points [n, m] and soft labels [n].

    Raises:
        StatesError: no penalty that it can be.
        TooFewError: labels of one class only, as a part of the queries may have.
    """
    from sklearn.linear_model import LogisticRegression

    if not 0 < C < np.inf:
        raise StatesError(f"C must be a number above 0, got {C}: it is the inverse strength of the penalty.")
    rows, labels, weights = weighted_labels(points.astype(np.float64), fractions)
    if np.ptp(labels) == 0:
        raise TooFewError(
            f"The target is {labels[0]:g} for all {len(fractions)} states of one training part, so there is nothing to "
            f"tell apart there: hardly any query has {1 - labels[0]:g} in it. Take more queries or prompts of that "
            "class, or more replies to each; or lower n_splits."
        )
    # Newton steps converge on the few, badly scaled coordinates of an anchor space, where lbfgs may not.
    model = LogisticRegression(C=C, solver="newton-cholesky", max_iter=1000)
    return model.fit(rows, labels, sample_weight=weights)
