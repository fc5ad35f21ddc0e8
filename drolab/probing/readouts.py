"""How each method of `drolab.directions` fits a linear function of the states to a target, and tunes its penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from drolab.errors import StatesError
from drolab.probing.anchors import fit_anchors
from drolab.probing.probes import fit_probe, grouped_folds, hard_labels, ridge_logistic
from drolab.types import AnchorSpace, HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

INNER_FOLDS = 3
"""Folds of the search for a penalty, within the states that a direction is fitted on."""

RIDGE_GRID = tuple(10.0**power for power in range(-4, 1))
"""scikit-learn's C of `logistic`, for standardised coordinates."""

SPARSE_GRID = tuple(2.0**power for power in range(1, 7))
"""C of `sparse`, in units of the smallest C at which a coordinate enters."""


def take(states: HiddenStates, rows: NDArray[np.intp]) -> HiddenStates:
    """The states of some rows, in this order; a row may come several times."""
    return replace(states, values=states.values[rows], index=states.index.iloc[rows].reset_index(drop=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The states that directions are fitted on: raw, standardised, and rotated onto their principal axes."""

    states: HiddenStates
    """One layer, one position."""
    space: AnchorSpace | None = None
    """For `anchor_probe`; None fits one on the states."""

    def __post_init__(self) -> None:
        if self.space is not None and self.space.layer != self.layer:
            raise StatesError(
                f"The anchor space is of layer {self.space.layer}, the directions are of layer "
                f"{self.layer}: pass a space of this layer, or none."
            )
        if not np.ptp(self.raw, axis=0).any():
            raise StatesError(
                f"All {len(self.states)} states are equal, so no direction tells them apart: pass others."
            )

    @property
    def layer(self) -> int:
        return self.states.layers[0]

    @cached_property
    def raw(self) -> Array:
        """[n, d]"""
        return self.states.matrix(self.layer).double().numpy()

    @cached_property
    def _centre_and_scale(self) -> tuple[Array, Array]:
        # A coordinate that never varies counts for nothing; its deviation need not be 0 in floating point.
        scale = np.where(np.ptp(self.raw, axis=0) > 0, self.raw.std(axis=0), np.inf)
        return self.raw.mean(axis=0), scale

    @cached_property
    def standardised(self) -> Array:
        """[n, d]"""
        centre, scale = self._centre_and_scale
        return (self.raw - centre) / scale

    @cached_property
    def rotated(self) -> tuple[Array, Array]:
        """[n, r] and [r, d]: coordinates on the r axes that the standardised states span, and these axes.

        A ridge penalty and a covariance do not change under rotation, so that fits cost by min(n, d), not by d.
        """
        points = self.standardised
        n, width = points.shape
        if n >= width:
            axes = np.linalg.eigh(points.T @ points)[1].T
            return points @ axes.T, axes
        squares, vectors = np.linalg.eigh(points @ points.T)
        used = squares > 1e-10 * squares[-1]
        axes = (vectors[:, used] / np.sqrt(squares[used])).T @ points
        return points @ axes.T, axes

    def to_raw(self, coef: Array, intercept: float) -> tuple[Array, float]:
        """A linear function of the standardised states as one of the raw states."""
        centre, scale = self._centre_and_scale
        slope = coef / scale
        return slope, float(intercept - slope @ centre)


_Linear = tuple["Array", float]
"""Slope [d] and intercept of a function of the raw states: logits."""


def _anchor_probe(features: Features, fractions: Array, setting: float) -> _Linear:
    space = features.space or fit_anchors(features.states, layer=features.layer)
    probe = fit_probe(space, features.states, fractions.tolist(), positive="positive")
    slope = (probe.coef @ space.components).double().numpy()
    return slope, float(probe.intercept - slope @ space.mean.double().numpy())


def _mean_difference(features: Features, fractions: Array, setting: float) -> _Linear:
    positive, negative = _class_means(features.raw, fractions)
    return _with_log_odds(features.raw, fractions, positive - negative)


def _logistic(features: Features, fractions: Array, setting: float) -> _Linear:
    points, axes = features.rotated
    model = ridge_logistic(points, fractions, setting)
    return features.to_raw(model.coef_[0] @ axes, model.intercept_[0])


def _leace(features: Features, fractions: Array, setting: float) -> _Linear:
    points, axes = features.rotated
    variances = np.square(points).mean(axis=0)
    shrunk = (1 - setting) * variances + setting * variances.sum() / axes.shape[1]
    covariance_with_target = (fractions - fractions.mean()) @ points / len(points)
    slope, _ = features.to_raw((covariance_with_target / shrunk) @ axes, 0.0)
    return _with_log_odds(features.raw, fractions, slope)


def _sparse(features: Features, fractions: Array, setting: float) -> _Linear:
    model = _fit_sparse(features.standardised, fractions, setting)
    return features.to_raw(model.coef_[0], model.intercept_[0])


def _fit_sparse(points: Array, fractions: Array, C: float) -> Any:
    """scikit-learn's logistic regression with an L1 penalty, fitted on points [n, d] and soft labels [n]."""
    from sklearn.linear_model import LogisticRegression

    labels, weights = hard_labels(fractions)
    used = weights > 0
    # liblinear penalises the intercept, too: scaled up, it hardly pays. The seed only orders the coordinates.
    model = LogisticRegression(
        C=C, l1_ratio=1.0, solver="liblinear", intercept_scaling=10.0, max_iter=10_000, random_state=0
    )
    return model.fit(np.tile(points, (2, 1))[used], labels[used], sample_weight=weights[used])


def _class_means(points: Array, fractions: Array) -> tuple[Array, Array]:
    return fractions @ points / fractions.sum(), (1 - fractions) @ points / (1 - fractions).sum()


def _with_log_odds(points: Array, fractions: Array, slope: Array) -> _Linear:
    """Scales a slope so that the function is the log odds of two normals along it (Fisher's discriminant in 1-d)."""
    places = points @ slope
    positive, negative = _class_means(places, fractions)
    within = fractions @ np.square(places - positive) + (1 - fractions) @ np.square(places - negative)
    # The floor is for states without any spread within a class, which would give endless odds.
    gain = (positive - negative) / max(within / len(places), 1e-12 * (positive - negative) ** 2)
    prior = math.log(fractions.sum() / (1 - fractions).sum())
    return gain * slope, float(prior - gain * (positive + negative) / 2)


def _penalty(
    fit_penalised: Callable[[Array, Array, float], Any],
    points: Array,
    features: Features,
    fractions: Array,
    grid: Sequence[float],
    random_state: int,
) -> float:
    """The smallest C of the grid whose log loss on held-out queries is within one standard error of the best's."""
    queries = pd.factorize(features.states.index["query_id"])[0]
    losses = np.empty((len(grid), len(points)))
    for train, test in grouped_folds(fractions, queries, INNER_FOLDS, random_state):
        for number, C in enumerate(grid):
            logits = fit_penalised(points[train], fractions[train], C).decision_function(points[test])
            losses[number, test] = np.logaddexp(0, logits) - fractions[test] * logits
    worse = losses - losses[losses.mean(axis=1).argmin()]
    by_query = np.stack([np.bincount(queries, own) for own in worse])
    error = by_query.std(axis=1) / np.sqrt(by_query.shape[1])
    return grid[int((by_query.mean(axis=1) <= error).argmax())]


def _tune_logistic(features: Features, fractions: Array, random_state: int) -> float:
    return _penalty(ridge_logistic, features.rotated[0], features, fractions, RIDGE_GRID, random_state)


def _tune_leace(features: Features, fractions: Array, random_state: int) -> float:
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(features.standardised, assume_centered=True))


def _tune_sparse(features: Features, fractions: Array, random_state: int) -> float:
    points = features.standardised
    smallest = 1 / np.abs((fractions - fractions.mean()) @ points).max()
    grid = [smallest * factor for factor in SPARSE_GRID]
    return _penalty(_fit_sparse, points, features, fractions, grid, random_state)


def _untuned(features: Features, fractions: Array, random_state: int) -> float:
    return math.nan


class _Method(NamedTuple):
    fit: Callable[[Features, Array, float], _Linear]
    tune: Callable[[Features, Array, int], float] = _untuned


_METHODS = {
    "anchor_probe": _Method(_anchor_probe),
    "mean_difference": _Method(_mean_difference),
    "logistic": _Method(_logistic, _tune_logistic),
    "leace": _Method(_leace, _tune_leace),
    "sparse": _Method(_sparse, _tune_sparse),
}
METHODS = tuple(_METHODS)
"""What `fit_directions` can do."""


def known_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
    """The methods asked for; None is all.

    Raises:
        StatesError: one that does not exist.
    """
    chosen = METHODS if methods is None else tuple(methods)
    if unknown := [method for method in chosen if method not in _METHODS]:
        raise StatesError(f"No method {unknown[0]!r} to find a direction: choose from {list(METHODS)}.")
    return chosen


def tune(method: str, features: Features, fractions: Array, random_state: int) -> float:
    """The setting for one method: see `Direction.setting`."""
    return _METHODS[method].tune(features, fractions, random_state)


def readout(method: str, features: Features, fractions: Array, setting: float) -> _Linear:
    """What one method finds, with a given setting: slope [d] and intercept of logits of the raw states."""
    return _METHODS[method].fit(features, fractions, setting)
