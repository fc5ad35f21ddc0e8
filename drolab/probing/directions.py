"""Linear directions of a behaviour in the full space: ways to find one, how they agree, how far they carry.

Paper, section 3, reads refusal with a logistic regression in the anchor space. Here its direction stands beside
those that other methods find on the same states. Each direction is fitted on fractions (soft labels) as the
paper's is, scores states on the scale of a logit, and is judged on queries that it was not fitted on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from drolab.errors import StatesError, UnreliableWarning
from drolab.intervals import check_settings, jackknife_error, student, unit, weighted_labels
from drolab.probing.anchors import coordinates, fit_anchors, one_position
from drolab.probing.crossval import check_readout, too_few
from drolab.probing.probes import fit_probe, ridge_logistic
from drolab.probing.targets import Target, align_target, check_classes, grouped_folds
from drolab.progress import Progress, bar
from drolab.threads import one_thread
from drolab.types import AnchorSpace, HiddenStates, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

RANDOM = "random"
"""What control rows are called: a random direction, against which a real one must stand out. Several are `random 1`,
`random 2`, …"""

INNER_FOLDS = 3
"""Folds of the search for a penalty, within the states that a direction is fitted on."""

RIDGE_GRID = tuple(10.0**power for power in range(-4, 1))
"""scikit-learn's C of `logistic`, for standardised coordinates."""

SPARSE_GRID = tuple(2.0**power for power in range(1, 7))
"""C of `sparse`, in units of the smallest C at which a coordinate enters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A direction of hidden-state space along which a behaviour can be read."""

    method: str
    """One of METHODS."""
    positive: str
    """The class towards which it points, such as "refuses"."""
    vector: Tensor
    """[d], float32, of length 1; all 0 if the method found nothing."""
    threshold: float
    """Where along the vector both classes are equally likely."""
    scale: float
    """Logits per unit of length."""
    setting: float
    """What the method was tuned with: C of `logistic` and `sparse`, the shrinkage of `leace`, else NaN."""
    layer: int
    """In transformers' count, not negative."""
    model_fingerprint: str = ""
    problem: str = ""
    """Why it cannot be trusted, and what to do; empty if nothing speaks against it."""

    def __repr__(self) -> str:
        return (
            f"Direction({self.method!r}, positive={self.positive!r}, layer={self.layer}, d={len(self.vector)}, "
            f"n_coordinates={self.n_coordinates}, setting={self.setting:.3g})"
        )

    @property
    def n_coordinates(self) -> int:
        """How many of the d coordinates it uses: all but with `sparse`."""
        return int((self.vector != 0).sum())

    def scores(self, matrix: Tensor) -> Tensor:
        """[n, d] → [n]: logits; above zero means `positive`.

        Raises:
            StatesError: states of another width.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(self.vector):
            raise StatesError(
                f"Scores need states of shape [n, {len(self.vector)}], got {list(matrix.shape)}: "
                f"pass states.matrix({self.layer}) of the model that the direction was fitted on."
            )
        return (matrix.float() @ self.vector.to(matrix.device) - self.threshold) * self.scale


Directions = Mapping[str, Direction | torch.Tensor]
"""Name → what `fit_directions` found, or [d]."""


@one_thread
def fit_directions(
    states: HiddenStates,
    target: Target,
    *,
    positive: str,
    methods: Sequence[str] | None = None,
    space: AnchorSpace | None = None,
    layer: int = -1,
    random_state: int = 0,
) -> dict[str, Direction]:
    """Fit a direction with each method.

    - `anchor_probe`: the paper's (section 3): a logistic regression in the anchor space, mapped back.
    - `mean_difference`: from the mean of the negative class to that of the positive one; a state with fraction p
      belongs to both, with weights p and 1 - p (Marks and Tegmark 2023, arXiv 2310.06824; for refusal, Arditi
      et al. 2024, arXiv 2406.11717).
    - `logistic`: a logistic regression with a ridge penalty in all d standardised coordinates (le Cessie and van
      Houwelingen 1992). The penalty is the strongest of RIDGE_GRID whose log loss, in folds grouped by query, is
      within one standard error of the best (Hastie, Tibshirani and Friedman 2009, section 7.10).
    - `leace`: the direction that LEACE reads (Belrose et al. 2023, arXiv 2306.03819, section 4). With u = Cov(x, z)
      and v = Cov(x)⁻¹u, LEACE erases the concept z by x - u vᵀ(x - E[x]) / vᵀu: it *reads* along v and
      *removes* along u. Returned is v, the whitened one, since a direction here must score states; u is no
      further direction, it is `mean_difference` (for z in [0, 1] both are parallel). Cov(x) is shrunk towards
      the identity in standardised coordinates (Ledoit and Wolf 2004), so that n may lie below d. They take states
      as independent; with several prompts per query it is shrunk too little, and the scores are overconfident.
    - `sparse`: a logistic regression with an L1 penalty (Tibshirani 1996; for probes, Gurnee et al. 2023,
      arXiv 2305.01610); the penalty is chosen as for `logistic`, from SPARSE_GRID.

    Args:
        states: n states of one read position.
        target: as in `probes.fit_probe`: fractions or booleans.
        positive: the name of the positive class.
        methods: some of METHODS; None takes all.
        space: the anchor space of `anchor_probe`, which must be of the same layer; None fits one on the states,
            with 4 components.
        random_state: deals the queries into folds, and shuffles them for the check.

    Warns:
        UnreliableWarning: a linear readout of the states finds hardly more of the target than of shuffled ones, or
            hardly any query has one of the classes. Then every direction has this as its `problem`.

    Returns:
        Method → direction. The scores of `mean_difference` and `leace`, which fit no likelihood, are the log odds
        of two normal distributions of equal variance along the direction.

    Raises:
        StatesError: as in `fit_probe`; an unknown method; all states equal; a space of another layer.
        TooFewError: the same target for all states; too few queries per class for the folds.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab import directions
        >>> methods = ["anchor_probe", "mean_difference"]
        >>> found = directions.fit_directions(states, queries["harmful"], positive="harmful", methods=methods)
        >>> found["mean_difference"]
        Direction('mean_difference', positive='harmful', layer=4, d=256, n_coordinates=256, setting=nan)
        >>> bool(found["mean_difference"].vector @ found["anchor_probe"].vector > 0.7)
        True
    """
    chosen = one_position(states).select(layer=layer)
    wanted = checked_methods(methods)
    features, fractions = Features(states=chosen, space=space), align_target(states, target)
    check_classes(fractions, positive)
    if "anchor_probe" in wanted and space is None:
        space = fit_anchors(chosen, layer=features.layer, spread=False)
        features = replace(features, space=space)
    found = {
        method: fit_direction(method, features, fractions, tune(method, features, fractions, random_state), positive)
        for method in wanted
    }

    def problem(points: Array) -> str:
        return check_readout(points, chosen.index, fractions, positive, random_state=random_state).problem

    full = problem(features.raw)
    problems = dict.fromkeys(wanted, full)
    if "anchor_probe" in wanted and space is not None:  # it reads what the space holds, and nothing else
        problems["anchor_probe"] = problem(coordinates(space, chosen).double().numpy())
    for text in dict.fromkeys(filter(None, problems.values())):
        warnings.warn(text, UnreliableWarning, stacklevel=2)
    return {method: replace(direction, problem=problems[method]) for method, direction in found.items()}


def taken_apart(directions: Directions) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name → vector, and name → problem; a bare vector has none that is known."""
    vectors = {name: given.vector if isinstance(given, Direction) else given for name, given in directions.items()}
    return vectors, {name: given.problem for name, given in directions.items() if isinstance(given, Direction)}


def as_direction(probe: Probe, space: AnchorSpace) -> Direction:
    """A probe as a direction of the full space, with its problem: for `shift_cosines`, `causal` and the like.

    Examples:
        >>> import drolab
        >>> from drolab import directions
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(15)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> directions.as_direction(harm, space)
        Direction('anchor_probe', positive='harmful', layer=4, d=256, n_coordinates=256, setting=nan)
    """
    slope = probe.slope(space)
    length = float(slope.norm())
    return Direction(
        method="anchor_probe",
        positive=probe.positive,
        vector=probe.direction(space),
        threshold=(float(slope @ space.mean.double()) - probe.intercept) / length,
        scale=length,
        setting=math.nan,
        layer=space.layer,
        model_fingerprint=space.model_fingerprint,
        problem=probe.problem,
    )


@one_thread
def direction_cosines(
    directions: Mapping[str, Direction],
    states: HiddenStates | None = None,
    targets: Mapping[str, Target] | None = None,
    *,
    space: AnchorSpace | None = None,
    n_groups: int = 20,
    random_state: int = 0,
    level: float = 0.95,
    progress: Progress = True,
) -> pd.DataFrame:
    """Cosines between directions, and with one drawn at random as the control.

    Args:
        directions: any name → direction of one layer; they may be of several targets.
        states: with `targets`, adds intervals and correlations: the states that the directions were fitted on.
        targets: `positive` → what the directions of this class were fitted on.
        space: as it was given to `fit_directions`.
        n_groups: for the intervals: one group of queries at a time is left out, with all its prompts, and every
            direction is fitted again with the setting that it has (the delete-a-group jackknife, Shao and Wu 1989,
            Annals of Statistics 17).
        progress: show a bar of these groups; or a callable, see `drolab.progress`.

    Returns:
        One row per pair: `a, b, kind` (`direction` or `control`), `cosine, low, high`, and `correlation`, that of
        the scores of the states; low, high and correlation are NaN without states. Where few axes hold most of the
        states' variance, directions with a small cosine can rank the states alike.
        The intervals say how far a cosine depends on which queries were drawn, and err to the wide side. They do not
        cover the cosine that endless queries would give: noise in d dimensions pulls most estimates of it towards 0.

    Raises:
        StatesError: no direction, several layers or widths, one called `random`, a target that is missing, or fewer
            queries per class than groups.
    """
    check_settings(level)
    names = [*_same_place(directions), RANDOM]
    width = len(next(iter(directions.values())).vector)
    control = np.random.default_rng(random_state).normal(size=width)
    first, second = np.triu_indices(len(names), k=1)

    def stacked(fitted: Iterable[Direction]) -> Array:
        return np.stack([*(direction.vector.double().numpy() for direction in fitted), control])

    vectors = stacked(directions.values())
    table = pd.DataFrame({"a": np.array(names)[first], "b": np.array(names)[second]})
    table["kind"] = np.where(table["b"] == RANDOM, "control", "direction")
    table["cosine"] = _cosines(vectors)[first, second]
    if states is None:
        return table.assign(low=math.nan, high=math.nan, correlation=math.nan)
    chosen = one_position(states).select(layer=next(iter(directions.values())).layer)
    refits = []
    with bar(progress, total=n_groups, desc="cosines", unit="group") as counted:
        for fitted in _refits(directions, chosen, targets or {}, space, n_groups, random_state):
            refits.append(_cosines(stacked(fitted))[first, second])
            counted.update()
    low, high = _jackknife_interval(table["cosine"].to_numpy(), np.stack(refits), level)
    scores = vectors @ chosen.matrix(chosen.layers[0]).double().numpy().T
    correlations = _cosines(scores - scores.mean(axis=1, keepdims=True))[first, second]
    return table.assign(low=low, high=high, correlation=correlations)


def _cosines(vectors: Array) -> Array:
    """[k, d] → [k, k]; 0 with a zero vector."""
    units = unit(vectors)
    return units @ units.T


def _jackknife_interval(cosines: Array, refits: Array, level: float) -> tuple[Array, Array]:
    """Student's t on Fisher's z scale, from the cosines [n_groups, pairs] with one group left out."""
    places, moved = (np.arctanh(np.clip(values, -1 + 1e-12, 1 - 1e-12)) for values in (cosines, refits))
    half = student(level, len(refits)) * jackknife_error(moved)
    return np.tanh(places - half), np.tanh(places + half)


def _same_place(directions: Mapping[str, Direction]) -> list[str]:
    places = {(len(direction.vector), direction.layer) for direction in directions.values()}
    if len(places) != 1 or RANDOM in directions:
        raise StatesError(
            f"Cosines need at least one direction, all of one model and layer, and none called {RANDOM!r}, which is "
            f"added as the control: got (d, layer) in {sorted(places)} and the names {list(directions)}."
        )
    return list(directions)


def _refits(
    directions: Mapping[str, Direction],
    states: HiddenStates,
    targets: Mapping[str, Target],
    space: AnchorSpace | None,
    n_groups: int,
    random_state: int,
) -> Iterator[list[Direction]]:
    """The directions fitted again without one group of queries, with the settings that they have."""
    if missing := {direction.positive for direction in directions.values()} - set(targets):
        raise StatesError(f"No target for {sorted(missing)}: pass targets={{'{min(missing)}': …}} with the states.")
    fractions = {positive: align_target(states, target) for positive, target in targets.items()}
    harmful, queries = states.index["harmful"].to_numpy(dtype=np.float64), states.index["query_id"].to_numpy()
    for kept, _ in grouped_folds(harmful, queries, n_groups, random_state):
        features = Features(states=select_rows(states, kept), space=space)
        yield [
            fit_direction(
                direction.method, features, fractions[direction.positive][kept], direction.setting, direction.positive
            )
            for direction in directions.values()
        ]


# ---------------------------------------------------------------- what the methods are fitted on


def select_rows(states: HiddenStates, rows: NDArray[np.intp]) -> HiddenStates:
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


# ---------------------------------------------------------------- the methods

_Linear = tuple["Array", float]
"""Slope [d] and intercept of a function of the raw states: logits."""


def _anchor_probe(features: Features, fractions: Array, setting: float) -> _Linear:
    space = features.space or fit_anchors(features.states, layer=features.layer, spread=False)
    probe = fit_probe(space, features.states, fractions.tolist(), positive="positive", check=False)
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

    rows, labels, weights = weighted_labels(points, fractions)
    # liblinear penalises the intercept, too: scaled up, it hardly pays. The seed only orders the coordinates.
    model = LogisticRegression(
        C=C, l1_ratio=1.0, solver="liblinear", intercept_scaling=10.0, max_iter=10_000, random_state=0
    )
    return model.fit(rows, labels, sample_weight=weights)


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
    if too_few(fractions, queries, ""):
        return grid[0]  # there is nothing to choose by
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


def checked_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
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


def fit_direction(method: str, features: Features, fractions: Array, setting: float, positive: str) -> Direction:
    """The direction of one method with a given setting."""
    check_classes(fractions, positive)
    slope, intercept = _METHODS[method].fit(features, fractions, setting)
    length = float(np.linalg.norm(slope))
    vector = slope / length if length > 0 else slope
    return Direction(
        method=method,
        positive=positive,
        vector=torch.tensor(vector, dtype=torch.float32),
        threshold=-intercept / length if length > 0 else 0.0,
        scale=length,
        setting=setting,
        layer=features.layer,
        model_fingerprint=features.states.model_fingerprint,
    )
