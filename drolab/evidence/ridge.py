"""Held-out ridge readouts: a cross-validation of many targets from one fit, and how good its predictions are.

A sweep over layers and positions reads hundreds of shuffled targets at every place: too many for a logistic regression
each. A ridge regression is linear in its target, so one decomposition of the features serves all folds and targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg, stats

from drolab.probing.crossval import query_groups
from drolab.probing.probes import grouped_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE = 0.1
"""Penalty of the readouts, in units of the variance of a standardised feature."""

FLAT = 1e-5
"""A feature or a site whose spread is below this share of the states' size is constant but for rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What a readout is to predict, and its shuffled copies."""

    values: Array
    """[1 + n_shuffles, n_prompts, n_queries]: the targets themselves first."""
    folds: list[NDArray[np.intp]]
    """The rows (prompts × queries, prompts first) that each fold holds out."""
    left_out: list[NDArray[np.intp]]
    """The rows of each group of queries that is left out in turn, see `drolab.probing.crossval`."""

    @classmethod
    def make(cls, grid: Array, n_splits: int, n_shuffles: int, seed: int) -> Targets:
        """From [n_prompts, n_queries]."""
        n_prompts, n_queries = grid.shape
        queries = np.tile(np.arange(n_queries), n_prompts)
        folds = [test for _, test in grouped_folds(grid.ravel(), queries, n_splits, seed)]
        left_out = query_groups(grid.ravel(), queries, seed)
        generator = np.random.default_rng(seed)
        order = np.tile(np.arange(n_queries), (1 + n_shuffles, 1))
        order[1:] = generator.permuted(order[1:], axis=1)
        return cls(values=grid[:, order].transpose(1, 0, 2), folds=folds, left_out=left_out)


def scale_of(points: Array) -> float:
    """Root mean square of all numbers: the scale below which a difference is rounding."""
    return float(np.sqrt(np.square(points).mean()))


def held_out(points: Array, targets: Targets) -> tuple[Array, Array]:
    """What a ridge regression fitted without a row's fold predicts for it, less its intercept: that is the mean of the
    other folds, which is low where the own fold's is high.

    All folds and targets come from one fit: for a linear smoother H the held-out residuals of a fold B are
    (I - H_BB)⁻¹ r_B, with r the residuals of the fit to all rows (Pahikkala, Boberg and Salakoski 2006).
    Features are standardised over all rows, which needs no label.

    Args:
        points: [n_prompts · n_queries, d].

    Returns:
        [1 + n_shuffles, n_prompts, n_queries], and [n_groups, n_prompts, n_queries]: predictions of the targets
        themselves without one group of queries more.
    """
    flat = targets.values.reshape(len(targets.values), -1).T
    half = _half_smoother(points)
    hat, residuals = half @ half.T, flat - half @ (half.T @ flat)
    predicted, fewer = np.empty_like(flat), np.empty((len(flat), len(targets.left_out)))
    for fold in targets.folds:
        predicted[fold] = _without(fold, hat, residuals, flat)
        for number, group in enumerate(targets.left_out):
            rows = np.concatenate([fold, np.setdiff1d(group, fold)])
            fewer[fold, number] = _without(rows, hat, residuals[:, :1], flat[:, :1])[: len(fold), 0]
    # Rounded: equal states get equal predictions.
    first, second = (found.T.reshape(-1, *targets.values.shape[1:]).round(12) for found in (predicted, fewer))
    return first, second


def _without(rows: NDArray[np.intp], hat: Array, residuals: Array, flat: Array) -> Array:
    """[k, targets]: predictions of k rows by a fit without them."""
    block = np.eye(len(rows)) - hat[np.ix_(rows, rows)]
    others = (flat.sum(axis=0) - flat[rows].sum(axis=0)) / (len(flat) - len(rows))
    predicted: Array = flat[rows] - linalg.solve(block, residuals[rows], assume_a="pos") - others
    return predicted


def _half_smoother(points: Array) -> Array:
    """[n, 1 + min(n, d)]: W, such that WWᵀ is the hat matrix of a ridge regression with an intercept."""
    n = len(points)
    spreads = points.std(axis=0)
    used = spreads > FLAT * scale_of(points)
    features = (points[:, used] - points[:, used].mean(axis=0)) / spreads[used]
    penalty = RIDGE * n
    if n <= features.shape[1]:
        eigenvalues, basis = linalg.eigh(features @ features.T)
        half = basis * np.sqrt(np.clip(eigenvalues, 0, None) / (np.clip(eigenvalues, 0, None) + penalty))
    else:
        eigenvalues, basis = linalg.eigh(features.T @ features)
        half = features @ basis / np.sqrt(np.clip(eigenvalues, 0, None) + penalty)
    return np.column_stack([np.full(n, 1 / np.sqrt(n)), half])


def aucs(scores: Array, labels: Array) -> Array:
    """[k] from [k, n] and [k, n]: the share of pairs in the right order, from the sum of ranks."""
    ranks = stats.rankdata(scores, axis=1)
    positive = labels.sum(axis=1)
    wins = (ranks * labels).sum(axis=1) - positive * (positive + 1) / 2
    return wins / (positive * (labels.shape[1] - positive))


def auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """[draws] from [n], [n] and [draws, n]: a draw's AUC is a weighted mean over the pairs."""
    up, down = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    wins = (scores[up, None] > scores[down]) + 0.5 * (scores[up, None] == scores[down])
    drawn: Array = ((weights[:, up] @ wins) * weights[:, down]).sum(axis=1)
    return drawn.round(12)


def correlations(a: Array, b: Array, weights: Array, classes: Sequence[NDArray[np.intp]]) -> tuple[Array, Array]:
    """Two [k, draws]: correlations of a and b [k, n_prompts, n_queries] over all rows, and within class and prompt."""
    n = weights.shape[1]
    products = np.stack([a, b, a * a, b * b, a * b])
    cells = np.stack([products[..., rows] @ weights[:, rows].T for rows in classes])  # class, moment, k, prompt, draw
    shares = np.array([len(rows) / n for rows in classes])
    pooled = np.tensordot(shares, cells, 1).mean(axis=2)
    within = np.tensordot(shares, _covariances(cells.swapaxes(0, 1)).swapaxes(0, 1), 1).mean(axis=2)
    return _correlation(_covariances(pooled)), _correlation(within)


def _covariances(moments: Array) -> Array:
    """[3, …]: variance of a, of b, and their covariance, from their means and those of aa, bb and ab."""
    a, b, aa, bb, ab = moments
    return np.stack([aa - a * a, bb - b * b, ab - a * b])


def _correlation(covariances: Array) -> Array:
    """Zero where a side is constant: nothing is read there."""
    a, b, ab = covariances
    scale = np.sqrt(np.clip(a, 0, None) * np.clip(b, 0, None))
    return np.divide(ab, scale, out=np.zeros_like(ab), where=scale > 1e-12)
