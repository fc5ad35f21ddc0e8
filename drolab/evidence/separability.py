"""How well harmful and harmless queries can be told apart from their states, and whether a prompt changes that.

Paper, section 3: the classes are separable without a safety prompt, and safety prompts do not separate them better.

Every AUC here is of held-out predictions, in folds grouped by query, averaged over several divisions into folds.
Its standard error is DeLong's (see `intervals.Placements`): it comes from the place of each query's score among those
of the other class, which two prompts have for the same queries, so that a difference is paired. It does not contain
what other training queries would have changed, which is little while there are many more queries than features: use an
anchor space for statements (docs/evidence.md has the simulations, also of where this fails).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from drolab.errors import StatesError
from drolab.intervals import CHANGE, Placements, check_settings, interval, percentiles, rate_interval
from drolab.probing import coordinates, grouped_folds, one_position
from drolab.progress import Progress, bar
from drolab.threads import one_thread
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

N_SHUFFLES = 10
"""How often labels are shuffled for the control: one shuffle alone is often below .5 or above it by chance."""

ALL = "all"
"""Name of the row of `auc_change` that averages the prompts."""


class _HeldOut(NamedTuple):
    """What held-out predictions say of each query, averaged over the divisions into folds."""

    placements: Placements
    """Harmful queries are the positive ones."""
    correct: Array
    """[n]: the share of right answers."""


@one_thread
def separability(
    states: HiddenStates,
    *,
    prompt: str | Sequence[str] | None = None,
    space: AnchorSpace | None = None,
    layer: int | Sequence[int] = -1,
    n_splits: int = 10,
    n_repeats: int = 3,
    random_state: int = 0,
    level: float = 0.95,
    shuffle_labels: bool = False,
    progress: Progress = False,
) -> pd.DataFrame:
    """How well harmful and harmless queries can be told apart from their states, per prompt.

    Args:
        prompt: one or several prompts; None takes each that is there.
        space: adds rows for the coordinates in this space (at its layer); the full states are always used.
        layer: one, or several, one after the other.
        n_repeats: divisions into folds.
        shuffle_labels: the control: the queries swap their classes at random, 10 times; expect about .5 (the mean
            of the 10; the interval is their percentiles).
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        One row per prompt and kind of features (`anchor`, `full`): `prompt, features, n, accuracy,
        accuracy_low, accuracy_high, auc, auc_low, auc_high`; of several layers also `layer`.

    Raises:
        StatesError: a prompt that is not there, one class only, too few queries for `n_splits` folds, or a `level` that
            is not between 0 and 1.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab import evidence
        >>> settings = {"prompt": "none", "n_splits": 4, "n_repeats": 1}
        >>> real = evidence.separability(states, **settings)
        >>> control = evidence.separability(states, shuffle_labels=True, **settings)
        >>> float(real["auc"].item()) > control["auc_high"].item()
        True
    """
    check_settings(level)
    chosen = one_position(states if prompt is None else states.select(prompt=prompt))
    several = isinstance(layer, Sequence)
    layers, names = (layer if isinstance(layer, Sequence) else [layer]), chosen.index["prompt"].unique()
    seeds, rows = [random_state + repeat for repeat in range(n_repeats)], []
    with bar(progress, total=len(layers) * len(names), desc="separability", unit="readout") as counted:
        for number in layers:
            features = {} if space is None else {"anchor": coordinates(space, chosen)}
            features["full"] = chosen.matrix(number)
            for name in names:
                places = np.flatnonzero(chosen.index["prompt"] == name)
                part = chosen.index.iloc[places]
                labels, groups = _labels(part), part["query_id"].to_numpy()
                for kind, everywhere in features.items():
                    readout = (everywhere[places], labels, groups, n_splits)
                    if shuffle_labels:
                        # A stream of its own per prompt: what it yields does not depend on the other prompts there.
                        measured = _of_shuffled(_shuffled(*readout, N_SHUFFLES, [random_state, *name.encode()]), level)
                    else:
                        measured = _intervals(_held_out(*readout, seeds), level)
                    row = {"prompt": name, "features": kind, "n": len(part), **measured}
                    rows.append(row | {"layer": number} if several else row)
                counted.update()
    return pd.DataFrame(rows)


@one_thread
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
        change, low, high, error, p` (errors are standard errors; p is two-sided, of no change). The error of a change
        is at least that of half a comparison lost, also where both AUCs are 1.

    Raises:
        StatesError: a prompt without states, other queries under some prompt, one class only, too few queries, or a
            `level` that is not between 0 and 1.
    """
    check_settings(level)
    chosen = one_position(states)
    seeds = [random_state + repeat for repeat in range(n_repeats)]
    order = chosen.select(prompt=baseline).index["query_id"].to_numpy()
    placed = {}
    for name in [baseline, *prompts]:
        part = chosen.select(prompt=name, layer=space.layer)
        queries = part.index["query_id"].to_numpy()
        if len(queries) != len(order) or set(queries) != set(order):
            raise StatesError(f"Prompt {name!r} has other queries than {baseline!r}: compute the same ones under both.")
        places = pd.Index(queries).get_indexer(order)
        points, labels = coordinates(space, part)[places], _labels(part.index)[places]
        placed[name] = _held_out(points, labels, order, n_splits, seeds).placements
    rows = [paired_change([placed[name]], placed[baseline], level) | {"prompt": name} for name in prompts]
    rows.append(paired_change([placed[name] for name in prompts], placed[baseline], level) | {"prompt": ALL})
    columns = ["prompt", "n", "auc", "baseline_auc", "baseline_error", "change", "low", "high", "error", "p"]
    return pd.DataFrame(rows)[columns]


@one_thread
def shuffled_aucs(
    states: HiddenStates, space: AnchorSpace, *, n_splits: int = 10, n_shuffles: int = 20, random_state: int = 0
) -> Array:
    """[n_shuffles]: the AUC in `space` of states of one prompt when the queries swap their classes at random."""
    part = one_position(states)
    points, labels, groups = coordinates(space, part), _labels(part.index), part.index["query_id"].to_numpy()
    found = _shuffled(points, labels, groups, n_splits, n_shuffles, random_state)
    return np.array([one.placements.auc for one in found])


def _shuffled(
    points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, n_shuffles: int, random_state: Any
) -> list[_HeldOut]:
    # One state per query here (one prompt, one position), so shuffling states is shuffling queries.
    generator = np.random.default_rng(random_state)
    return [_held_out(points, generator.permutation(labels), groups, n_splits, [seed]) for seed in range(n_shuffles)]


def paired_change(changed: Sequence[Placements], baseline: Placements, level: float) -> dict[str, float]:
    """The AUC under some prompts (their mean) less that under the baseline, over the same queries."""
    mean = Placements.mean(changed)
    differences = mean.positives - baseline.positives, mean.negatives - baseline.negatives
    error = max(float(np.sqrt(sum(stats.sem(values) ** 2 for values in differences))), mean.least_error)
    n, change = sum(map(len, differences)), mean.auc - baseline.auc
    p = 2 * stats.t.sf(abs(change) / error, n - 1)
    limits = interval(change, error, n, level, CHANGE)
    return {
        "n": n,
        "auc": mean.auc,
        "baseline_auc": baseline.auc,
        "baseline_error": baseline.error,
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


def _held_out(points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, seeds: Sequence[int]) -> _HeldOut:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    features, model, found = standardised(points), LogisticRegression(max_iter=10_000), []
    for seed in seeds:
        folds = list(grouped_folds(labels, groups, n_splits, seed))
        found.append(cross_val_predict(model, features, labels, cv=folds, method="decision_function"))
    placements = Placements.mean([Placements.of(scores, labels) for scores in found])
    return _HeldOut(placements, np.mean([(scores > 0) == labels for scores in found], axis=0))


def standardised(points: Tensor) -> Array:
    """Standardised; where there are many more features than states, in the states' own span, which changes no score of
    a regression with a ridge penalty. Labels have no part in either."""
    features: Array = points.double().numpy()
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if features.shape[1] > 4 * len(features):
        squares, axes = np.linalg.eigh(features @ features.T)
        features = axes * np.sqrt(squares.clip(min=0))
    return features


def _intervals(held: _HeldOut, level: float) -> dict[str, float]:
    accuracy = rate_interval(held.correct.sum(), len(held.correct), level=level)
    values = (*accuracy, *held.placements.interval(level))
    names = ("accuracy", "accuracy_low", "accuracy_high", "auc", "auc_low", "auc_high")
    return {name: round(float(value), 12) for name, value in zip(names, values, strict=True)}


def _of_shuffled(found: Sequence[_HeldOut], level: float) -> dict[str, float]:
    """Accuracy and AUC when the labels mean nothing: mean and percentiles over the shuffles."""
    table: dict[str, float] = {}
    for name, values in {
        "accuracy": [held.correct.mean() for held in found],
        "auc": [held.placements.auc for held in found],
    }.items():
        low, high = percentiles(np.array(values), level)
        table |= {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
    return table
