"""Readouts of held-out queries: how sure their numbers are, how they are computed, and whether they read anything.

A cross-validated number depends on the queries that were tested and on those that were fitted on.

A bootstrap over the held-out queries shows the first part only. Where there is little to read the second is as large,
and the bootstrap alone covers in 80 to 90 % of cases, not 95 %. The variances of the two parts add (Fukunaga and Hayes
1989, IEEE TPAMI 11; for AUCs Yousef, Wagner and Loew 2006, IEEE TPAMI 28). The second comes from a delete-a-group
jackknife (Shao and Wu 1989, Annals of Statistics 17): one group of queries at a time is left out of every training
part, while all queries are tested as before. A jackknife errs to the wide side (Efron and Stein 1981, ibid. 9), most
where there are hardly more queries than dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import linalg, stats

from drolab.intervals import auc
from drolab.probing.targets import grouped_folds, n_of_rarer_kind
from drolab.types import FitCheck

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Rows = NDArray[np.intp]

N_GROUPS = 10
"""Groups of queries that are left out in turn; fewer where a class has fewer."""


def left_out_groups(fractions: Array, queries: NDArray[Any], random_state: int) -> list[Rows]:
    """The rows of each group that is left out in turn, the classes spread evenly."""
    n_groups = min(N_GROUPS, len(pd.unique(queries)), n_of_rarer_kind(fractions))
    if n_groups < 2:
        return spread_folds(fractions, queries, random_state)
    return [rows for _, rows in grouped_folds(fractions, queries, n_groups, random_state)]


# ---------------------------------------------------------------- held-out predictions

RIDGE = 0.1
"""Penalty of the readouts, in units of the variance of a standardised feature."""

FLAT = 1e-5
"""A feature or a site whose spread is below this share of the states' size is constant but for rounding."""


def root_mean_square(points: Array) -> float:
    """Of all numbers: the size that rounding is measured against."""
    return float(np.sqrt(np.square(points).mean()))


def ridge_predictions(
    points: Array, targets: Array, folds: Sequence[Rows], left_out: Sequence[Rows] = ()
) -> tuple[Array, Array]:
    """What a ridge regression fitted without a row's fold predicts for it, less its intercept: that is the mean of the
    other folds, which is low where the own fold's is high.

    All folds and targets come from one fit: for a linear smoother H the held-out residuals of a fold B are
    (I - H_BB)⁻¹ r_B, with r the residuals of the fit to all rows (Pahikkala, Boberg and Salakoski 2006).
    Features are standardised over all rows, which needs no label.

    Args:
        points: [n, d].
        targets: [k, n].
        folds: the rows of each.
        left_out: the rows of groups that are left out in turn, see `left_out_groups`.

    Returns:
        [k, n], and [n_groups, n]: predictions of the first target without one group more.
    """
    flat = targets.T
    half = _half_smoother(points)
    residuals = flat - half @ (half.T @ flat)
    predicted, fewer = np.empty_like(flat), np.empty((len(flat), len(left_out)))
    for fold in folds:
        predicted[fold] = _predict_without(fold, half, residuals, flat)
        for number, group in enumerate(left_out):
            rows = np.concatenate([fold, np.setdiff1d(group, fold)])
            fewer[fold, number] = _predict_without(rows, half, residuals[:, :1], flat[:, :1])[: len(fold), 0]
    return predicted.T.round(12), fewer.T.round(12)  # rounded: equal states get equal predictions


def _predict_without(rows: Rows, half: Array, residuals: Array, flat: Array) -> Array:
    """[k, targets]: predictions of k rows by a fit without them."""
    block = np.eye(len(rows)) - half[rows] @ half[rows].T
    others = (flat.sum(axis=0) - flat[rows].sum(axis=0)) / (len(flat) - len(rows))
    predicted: Array = flat[rows] - linalg.solve(block, residuals[rows], assume_a="pos") - others
    return predicted


def _half_smoother(points: Array) -> Array:
    """[n, 1 + min(n, d)]: W, such that WWᵀ is the hat matrix of a ridge regression with an intercept."""
    n = len(points)
    spreads = points.std(axis=0)
    used = spreads > FLAT * root_mean_square(points)
    features = (points[:, used] - points[:, used].mean(axis=0)) / spreads[used]
    penalty = RIDGE * n
    if n <= features.shape[1]:
        eigenvalues, basis = linalg.eigh(features @ features.T)
        half = basis * np.sqrt(np.clip(eigenvalues, 0, None) / (np.clip(eigenvalues, 0, None) + penalty))
    else:
        eigenvalues, basis = linalg.eigh(features.T @ features)
        half = features @ basis / np.sqrt(np.clip(eigenvalues, 0, None) + penalty)
    return np.column_stack([np.full(n, 1 / np.sqrt(n)), half])


# ---------------------------------------------------------------- is there anything to read?

CHANCE = 1e-4
"""A readout counts as better than chance if shuffled targets do as well with less than this probability. Strict,
because many decisions rest on one probe: one of noise must not pass in a thousand models."""

N_SHUFFLES = 100
FEWEST = 5
"""Queries that must have some of each class in their target."""


def check_readout(
    points: Array, index: pd.DataFrame, fractions: Array, positive: str, *, random_state: int = 0
) -> FitCheck:
    """Whether a ridge regression reads more of a target from held-out queries than of shuffled targets.

    When targets are shuffled each query gets those of another one, under each prompt that of the same prompt: what the
    prompt alone does to the target can be read from shuffled ones, too. With D = (AUC - .5) / (best possible AUC - .5),
    z = atanh(D) is compared with that of the shuffles by Student's t for one more draw: (z - mean) / (sd · √(1 + 1/n)).

    Args:
        points: [n, m], what is read.
        index: n rows with query_id and prompt.
        fractions: [n], not all equal.
    """
    queries = index["query_id"].to_numpy()
    if few := too_few(fractions, queries, positive):
        return FitCheck(auc=math.nan, null=(), problem=few)
    alike, generator = _exchangeable(index), np.random.default_rng(random_state)
    if (alone := sum(len(rows) == 1 for rows in alike)) > len(pd.unique(queries)) / 2:
        return FitCheck(auc=math.nan, null=(), problem=_alone(alone, positive))
    targets = np.stack([fractions, *(_shuffled(fractions, alike, generator) for _ in range(N_SHUFFLES))])
    folds = spread_folds(fractions, queries, random_state)
    predicted = ridge_predictions(points.astype(np.float64), targets, folds)[0]
    aucs = np.array([auc(*pair) for pair in zip(predicted, targets, strict=True)])
    by_chance = _p_of_chance(aucs, auc(fractions, fractions), len(pd.unique(queries)))
    problem = _like_chance(aucs, by_chance, len(pd.unique(queries)), positive) if by_chance > CHANCE else ""
    return FitCheck(auc=float(aucs[0]), null=tuple(map(float, aucs[1:])), problem=problem)


def spread_folds(fractions: Array, queries: NDArray[Any], random_state: int) -> list[Rows]:
    """The rows of each fold, all of a query in one. Queries above the median are spread evenly: of a rare class few
    reach one half."""
    codes, names = pd.factorize(queries)
    means = np.bincount(codes, fractions) / np.bincount(codes)
    halves = [(means > np.median(means)).astype(np.float64), (means >= np.median(means)).astype(np.float64)]
    above = max(halves, key=lambda half: min(half.sum(), (1 - half).sum()))
    fewest = int(min(above.sum(), (1 - above).sum()))
    if fewest < 2:  # nearly all are equal: nothing to spread
        above, fewest = np.zeros(len(names)), len(names)
    folds = grouped_folds(above, names, min(N_GROUPS, fewest), random_state)
    return [np.flatnonzero(np.isin(codes, chosen)) for _, chosen in folds]


def _exchangeable(index: pd.DataFrame) -> list[Rows]:
    """[n_queries, n_prompts] row numbers, of the queries that were asked under the same prompts."""
    order = np.lexsort((index["prompt"].to_numpy(dtype=str), pd.factorize(index["query_id"])[0]))
    prompts = index["prompt"].to_numpy()[order]
    alike: dict[tuple[str, ...], list[Rows]] = {}
    for places in index.iloc[order].groupby("query_id", sort=False).indices.values():
        alike.setdefault(tuple(prompts[places]), []).append(order[places])
    return [np.stack(rows) for rows in alike.values()]


def _shuffled(fractions: Array, alike: Sequence[Rows], generator: np.random.Generator) -> Array:
    shuffled = np.empty_like(fractions)
    for rows in alike:
        shuffled[rows] = fractions[generator.permutation(rows)]
    return shuffled


def _p_of_chance(aucs: Array, best: float, n_queries: int) -> float:
    """How probable it is that one more shuffle does as well as the first: of [1 + n_shuffles] AUCs."""
    end = 1 - 1 / n_queries  # half a query may always be out of order
    places = np.arctanh(((aucs - 0.5) / (best - 0.5)).clip(-end, end))
    n, spread = len(places) - 1, max(float(places[1:].std(ddof=1)), 1e-9)
    return float(stats.t.sf((places[0] - places[1:].mean()) / (spread * np.sqrt(1 + 1 / n)), n - 1))


def too_few(fractions: Array, queries: NDArray[Any], positive: str) -> str:
    """In words, if hardly any query has one of the classes in its target."""
    by_query = pd.Series(fractions).groupby(queries)
    n = by_query.ngroups
    if (some := int((by_query.max() > 0).sum())) < FEWEST:
        return f"Only {some} of {n} queries have anything of {positive!r} in their target. {READOUT_ADVICE}"
    if (some := int((by_query.min() < 1).sum())) < FEWEST:
        return f"All but {some} of {n} queries have nothing but {positive!r} in their target. {READOUT_ADVICE}"
    return ""


def _alone(n: int, positive: str) -> str:
    return (
        f"Whether {positive!r} can be read cannot be checked: {n} queries were asked under prompts that no other query "
        "was asked under, so that their targets cannot be shuffled. Ask all queries under the same prompts."
    )


def _like_chance(aucs: Array, by_chance: float, n_queries: int, positive: str) -> str:
    return (
        f"A readout of {positive!r} cannot be told from chance with these {n_queries} queries: AUC {aucs[0]:.2f} on "
        f"held-out queries, {aucs[1:].mean():.2f} ({aucs[1:].min():.2f} to {aucs[1:].max():.2f}) with targets shuffled "
        f"{len(aucs) - 1} times (one more does as well with probability {by_chance:.1g}; since so much rests on it, "
        f"at most {CHANCE:g} will do). {READOUT_ADVICE}"
    )


READOUT_ADVICE = (
    "What is built on it says nothing about the model. Add queries, most of the rarer kind; where the target comes "
    "from replies, sample more of them, or try other prompts or another judge."
)
"""What follows from a readout like chance, and what to do."""
