"""How well harmful and harmless queries can be told apart from their states, and whether a prompt changes that.

Paper, section 3: the classes are separable without a safety prompt, and safety prompts do not separate them better.

Every AUC here is of held-out predictions, in folds grouped by query, averaged over several divisions into folds.
Its standard error is DeLong's (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44): each query's share of won
comparisons, which two prompts have for the same queries, so that a difference is paired. It does not contain what
other training queries would have changed, which is little while there are many more queries than features: use
an anchor space for statements (docs/evidence.md has the simulations, also of where this fails).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from drolab.errors import StatesError
from drolab.intervals import LOGIT, interval, percentiles
from drolab.probing import coordinates, grouped_folds, one_position
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

N_SHUFFLES = 10
"""How often labels are dealt out anew for the control: one deal alone is often below .5 or above it by chance."""

ALL = "all"
"""Name of the row of `auc_change` that averages the prompts."""


@dataclass(frozen=True, eq=False)
class _Held:
    """What held-out predictions say of each query, averaged over the divisions into folds."""

    won: Array
    """[n_harmful]: the share of harmless queries with a lower score."""
    beaten: Array
    """[n_harmless]: the share of harmful queries with a higher score."""
    correct: Array
    """[n]: the share of right answers."""

    @property
    def auc(self) -> float:
        return float(self.won.mean())

    def error(self) -> float:
        """DeLong's standard error of the AUC; at least that of half a comparison lost, also if none is."""
        measured = stats.sem(self.won) ** 2 + stats.sem(self.beaten) ** 2
        fewest, most = sorted((len(self.won), len(self.beaten)))
        return float(np.sqrt(max(measured, 0.5 / (fewest * most) / fewest)))


def separability(
    states: HiddenStates,
    *,
    prompt: str | Sequence[str] | None = None,
    space: AnchorSpace | None = None,
    layer: int = -1,
    n_splits: int = 10,
    n_repeats: int = 3,
    random_state: int = 0,
    level: float = 0.95,
    shuffle_labels: bool = False,
) -> pd.DataFrame:
    """How well harmful and harmless queries can be told apart from their states, per prompt.

    Args:
        prompt: one or several prompts; None takes each that is there.
        space: adds rows for the coordinates in this space (at its layer); the full states are always used.
        n_repeats: divisions into folds.
        shuffle_labels: the control: the classes are dealt out to the queries at random, 10 times; expect about
            .5 (the mean of the 10; the interval is their percentiles).

    Returns:
        One row per prompt and kind of features (`anchor`, `full`): `prompt, features, n, accuracy,
        accuracy_low, accuracy_high, auc, auc_low, auc_high`.

    Raises:
        StatesError: a prompt that is not there, one class only, or too few queries for `n_splits` folds.
    """
    chosen = one_position(states if prompt is None else states.select(prompt=prompt))
    features = {} if space is None else {"anchor": coordinates(space, chosen)}
    features["full"] = chosen.matrix(layer)
    rows = []
    for name in chosen.index["prompt"].unique():
        places = np.flatnonzero(chosen.index["prompt"] == name)
        part = chosen.index.iloc[places]
        labels, groups = _labels(part), part["query_id"].to_numpy()
        for kind, everywhere in features.items():
            points = everywhere[places]
            seeds = [random_state + repeat for repeat in range(n_repeats)]
            if shuffle_labels:
                # A stream of its own per prompt: what it yields does not depend on which other prompts are there.
                stream = [random_state, *name.encode()]
                measured = _of_shuffled(_deals(points, labels, groups, n_splits, N_SHUFFLES, stream), level)
            else:
                measured = _intervals(_held_out(points, labels, groups, n_splits, seeds), level)
            rows.append({"prompt": name, "features": kind, "n": len(part), **measured})
    return pd.DataFrame(rows)


def auc_change(
    states: HiddenStates,
    space: AnchorSpace,
    prompts: Sequence[str],
    *,
    baseline: str = NO_PROMPT,
    n_splits: int = 10,
    n_repeats: int = 3,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Do prompts make the classes easier to tell apart? The paired difference of cross-validated AUCs.

    A logistic regression on the coordinates in `space`, fitted anew under every prompt, in the same folds.

    Returns:
        One row per prompt, and one called `all` that averages them: `prompt, n, auc, baseline_auc, baseline_error,
        change, low, high, error, p` (errors are standard errors; p is two-sided, of no change).

    Raises:
        StatesError: a prompt without states, other queries under some prompt, one class only, too few queries.
    """
    chosen = one_position(states)
    seeds = [random_state + repeat for repeat in range(n_repeats)]
    order = chosen.select(prompt=baseline).index["query_id"].to_numpy()
    held = {}
    for name in [baseline, *prompts]:
        part = chosen.select(prompt=name, layer=space.layer)
        queries = part.index["query_id"].to_numpy()
        if len(queries) != len(order) or set(queries) != set(order):
            raise StatesError(f"Prompt {name!r} has other queries than {baseline!r}: compute the same ones under both.")
        places = pd.Index(queries).get_indexer(order)
        points, labels = coordinates(space, part)[places], _labels(part.index)[places]
        held[name] = _held_out(points, labels, order, n_splits, seeds)
    rows = [_change([held[name]], held[baseline], level) | {"prompt": name} for name in prompts]
    rows.append(_change([held[name] for name in prompts], held[baseline], level) | {"prompt": ALL})
    columns = ["prompt", "n", "auc", "baseline_auc", "baseline_error", "change", "low", "high", "error", "p"]
    return pd.DataFrame(rows)[columns]


def shuffled_aucs(
    states: HiddenStates, space: AnchorSpace, *, n_splits: int = 10, n_shuffles: int = 20, random_state: int = 0
) -> Array:
    """[n_shuffles]: the AUC in `space` of states of one prompt when the classes are dealt out at random."""
    part = one_position(states)
    points, labels, groups = coordinates(space, part), _labels(part.index), part.index["query_id"].to_numpy()
    return np.array([held.auc for held in _deals(points, labels, groups, n_splits, n_shuffles, random_state)])


def _deals(
    points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, n_shuffles: int, random_state: Any
) -> list[_Held]:
    # One state per query here (one prompt, one position), so shuffling states is shuffling queries.
    generator = np.random.default_rng(random_state)
    return [_held_out(points, generator.permutation(labels), groups, n_splits, [deal]) for deal in range(n_shuffles)]


def _change(changed: Sequence[_Held], baseline: _Held, level: float) -> dict[str, float]:
    won = np.mean([held.won for held in changed], axis=0)
    differences = won - baseline.won, np.mean([held.beaten for held in changed], axis=0) - baseline.beaten
    error = float(np.sqrt(sum(stats.sem(values) ** 2 for values in differences)))
    n, change = sum(map(len, differences)), float(won.mean() - baseline.auc)
    p = 2 * stats.t.sf(abs(change) / error, n - 1) if error else float(change == 0)
    limits = interval(change, error, n, level)
    return {
        "n": n,
        "auc": float(won.mean()),
        "baseline_auc": baseline.auc,
        "baseline_error": baseline.error(),
        "change": change,
        "low": limits.low,
        "high": limits.high,
        "error": error,
        "p": float(p),
    }


def _labels(index: pd.DataFrame) -> Array:
    labels = index["harmful"].to_numpy(dtype=np.float64)
    if len(np.unique(labels)) < 2:
        raise StatesError("Separability needs harmful and harmless queries, these are of one class: add the other.")
    return labels


def _held_out(points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, seeds: Sequence[int]) -> _Held:
    found = []
    for seed in seeds:
        scores = _scores(points, labels, groups, n_splits, seed)
        up, down = scores[labels == 1], scores[labels == 0]
        wins = (up[:, None] > down).astype(np.float64) + 0.5 * (up[:, None] == down)
        found.append((wins.mean(axis=1), wins.mean(axis=0), ((scores > 0) == labels).astype(np.float64)))
    won, beaten, correct = (np.mean(values, axis=0) for values in zip(*found, strict=True))
    return _Held(won, beaten, correct)


def _scores(points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, random_state: int) -> Array:
    """[n]: each state's logit from the fold in which it was held out."""
    from sklearn.linear_model import LogisticRegression

    features = _features(points)
    scores = np.empty(len(labels))
    for train, test in grouped_folds(labels, groups, n_splits, random_state):
        model = LogisticRegression(max_iter=10_000).fit(features[train], labels[train])
        scores[test] = model.decision_function(features[test])
    return scores


def _features(points: Tensor) -> Array:
    """Standardised; where there are many more features than states, in the states' own span, which changes no score of
    a regression with a ridge penalty. Labels have no part in either."""
    features: Array = points.double().numpy()
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if features.shape[1] > 4 * len(features):
        squares, axes = np.linalg.eigh(features @ features.T)
        features = axes * np.sqrt(squares.clip(min=0))
    return features


def _intervals(held: _Held, level: float) -> dict[str, float]:
    from statsmodels.stats.proportion import proportion_confint

    n = len(held.correct)
    accuracy = proportion_confint(held.correct.sum(), n, alpha=1 - level, method="wilson")
    auc = interval(held.auc, held.error(), n, level, LOGIT)
    values = (held.correct.mean(), *accuracy, *auc)
    names = ("accuracy", "accuracy_low", "accuracy_high", "auc", "auc_low", "auc_high")
    return {name: round(float(value), 12) for name, value in zip(names, values, strict=True)}


def _of_shuffled(deals: Sequence[_Held], level: float) -> dict[str, float]:
    """Accuracy and AUC when the labels mean nothing: mean and percentiles over the deals."""
    table: dict[str, float] = {}
    for name, values in {
        "accuracy": [held.correct.mean() for held in deals],
        "auc": [held.auc for held in deals],
    }.items():
        low, high = percentiles(np.array(values), level)
        table |= {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
    return table
