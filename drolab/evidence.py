"""The statistics: how each prompt shifts the states, how sure that is, and the controls beside it.

Paper, section 3: safety prompts move all queries in similar directions, and these have to do with refusal. The
unit of every interval is the query: a query is drawn with all its prompts (a cluster bootstrap, within each
class), because states of the same query under several prompts are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from drolab.anchors import anchor_matrix, coordinates, one_position
from drolab.probes import grouped_folds
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates, Probe, StatesError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

RANDOM = "random"
"""Name of the control rows: a random direction, against which a real one must stand out."""

N_SHUFFLES = 10
"""How often labels are dealt out anew for the control: one deal alone is often below .5 or above it by chance."""

CHUNK_VALUES = 2**24
"""Numbers that one chunk of bootstrap draws may hold: 128 MB."""


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Shifts:
    """How each prompt moves each query, against the states of the same query under the baseline."""

    deltas: Tensor
    """[n_prompts, n_queries, d], float32: state under the prompt minus state under the baseline."""
    baseline: Tensor
    """[n_queries, d], float32: the states under the baseline itself."""
    prompts: tuple[str, ...]
    queries: pd.DataFrame
    """n_queries rows: query_id, harmful."""

    @property
    def classes(self) -> tuple[bool, ...]:
        """The classes present, harmful first."""
        return tuple(kind for kind in (True, False) if (self.queries["harmful"] == kind).any())

    def rows(self, harmful: bool) -> NDArray[np.intp]:
        return np.flatnonzero(self.queries["harmful"].to_numpy() == harmful)

    def own(self, prompt: str, harmful: bool) -> Tensor:
        """[n, d]: the shifts of one class's queries under one prompt."""
        return self.deltas[self.prompts.index(prompt), torch.from_numpy(self.rows(harmful))]

    def mean(self, prompt: str, harmful: bool) -> Tensor:
        """[d]: the mean shift of one class under one prompt."""
        return self.own(prompt, harmful).mean(dim=0)

    def table(self) -> pd.DataFrame:
        """One row per prompt and class: `prompt, harmful, n, norm` (length of the mean shift)
        and `mean_norm` (mean length of the queries' own shifts)."""
        rows = []
        for prompt, harmful in self.groups():
            own = self.own(prompt, harmful)
            norms = {"norm": float(own.mean(dim=0).norm()), "mean_norm": float(own.norm(dim=1).mean())}
            rows.append({"prompt": prompt, "harmful": harmful, "n": len(own), **norms})
        return pd.DataFrame(rows)

    def groups(self) -> list[tuple[str, bool]]:
        """(prompt, class), in the order of every table here."""
        return [(prompt, harmful) for prompt in self.prompts for harmful in self.classes]


def shifts(states: HiddenStates, *, baseline: str = NO_PROMPT, layer: int = -1) -> Shifts:
    """Every query's movement from `baseline` to each other prompt, at one layer.

    Raises:
        StatesError: no states under the baseline, no other prompt, or a query that some prompt lacks.
    """
    matrix = one_position(states).matrix(layer)
    places = _places(states.index, baseline)
    by_prompt = {prompt: matrix[torch.from_numpy(rows)] for prompt, rows in places.items()}
    start = by_prompt.pop(baseline)
    first = states.index.iloc[places[baseline]]
    return Shifts(
        deltas=torch.stack([moved - start for moved in by_prompt.values()]),
        baseline=start,
        prompts=tuple(by_prompt),
        queries=first[["query_id", "harmful"]].reset_index(drop=True),
    )


def shift_cosines(
    states: HiddenStates,
    directions: Mapping[str, Tensor] | None = None,
    *,
    baseline: str = NO_PROMPT,
    layer: int = -1,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Cosines between the mean shifts of all prompts and classes, and between them and given directions.

    Args:
        directions: name → [d], such as `{"refusal": refusal.direction(space)}`. Probes' directions are taken
            as given: their own uncertainty is not in the intervals. A direction drawn at random in d
            dimensions is always added under the name `random`, as the control.

    Returns:
        One row per pair: `a, b, cosine, low, high`, and which kind of pair it is: `shifts`, `direction` or
        `control`. Shifts are called `{prompt} harmful` and `{prompt} harmless`. The interval has the width of
        the bootstrap's percentile interval over queries and is centred on the estimate, on Fisher's z scale:
        resampling adds noise in all d dimensions, which pulls the draws' cosines towards 0, out of reach of
        the estimate when d is large. (The estimate is pulled too, by half as much: it errs towards 0.)

    Raises:
        StatesError: as in `shifts`; a direction of another width, not finite, zero, or called `random`.
    """
    moved = shifts(states, baseline=baseline, layer=layer)
    width = moved.deltas.shape[2]
    named = _checked_directions(directions or {}, width)
    generator = np.random.default_rng(random_state)
    fixed = np.stack([*named.values(), _unit(generator.normal(size=width))])
    names = [_label(prompt, harmful) for prompt, harmful in moved.groups()]
    pairs = _pairs(names, [*named, RANDOM])
    pick_a, pick_b = np.array([pair[:2] for pair in pairs]).T

    def pair_cosines(means: Array) -> Array:
        units = np.concatenate([_unit(means), np.broadcast_to(fixed, (len(means), *fixed.shape))], axis=1)
        cosines: Array = (units @ units.transpose(0, 2, 1))[:, pick_a, pick_b]
        return cosines

    cosines = pair_cosines(_group_means(moved, None))[0]
    draws = [pair_cosines(means) for means in _bootstrap_means(moved, n_bootstrap, generator)]
    low, high = _cosine_interval(cosines, np.concatenate(draws), level)
    both = [*names, *named, RANDOM]
    table = pd.DataFrame([(both[a], both[b], kind) for a, b, kind in pairs], columns=["a", "b", "kind"])
    return table.assign(cosine=cosines, low=low, high=high)[["a", "b", "cosine", "low", "high", "kind"]]


def shift_report(
    states: HiddenStates,
    space: AnchorSpace,
    refusal: Probe,
    *,
    baseline: str = NO_PROMPT,
    n_bootstrap: int = 1000,
    n_null: int = 1000,
    min_cosine: float = 0.5,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Does each prompt move the queries as a safety prompt does: towards refusal, and not just somewhere?

    A prompt is reported as a safety shift if in both classes (1) the refusal logit rises, with its whole
    interval, and (2) the cosine of the mean shift with the refusal direction lies, with its whole interval,
    above what directions without meaning reach and above `min_cosine`. The last is a bar for the size of the
    effect beside the one for its significance: with a hundred queries, a neutral prompt that moves the states
    somewhat towards refusal (as any system message may) is significant, too.

    Directions without meaning are drawn as random contrasts of the baseline states within each class (see
    `null_directions`): they have no more to do with refusal than chance allows, and yet lie where this model's
    states vary. Directions drawn evenly in all d dimensions would be too easy to beat (their cosines shrink as
    1/√d with anything), and evenly in the m dimensions of the anchor space too hard (with m = 4, one in twenty
    of them has a cosine above .88 with any vector of the space).

    Returns:
        One row per prompt and class: `prompt, harmful, n, norm, logit_shift, logit_low, logit_high, cosine,
        cosine_low, cosine_high, null_quantile, safety_shift` (the same for both classes of a prompt).
        `null_quantile` is the `level` quantile of |cosine| with the null directions.

    Raises:
        StatesError: as in `shifts` and `coordinates`, or only one class is present.
    """
    anchor_matrix(space, states)
    moved = shifts(states, baseline=baseline, layer=space.layer)
    if len(moved.classes) < 2:
        raise StatesError("A safety shift concerns harmful and harmless queries: pass states of both classes.")
    generator = np.random.default_rng(random_state)
    direction = refusal.direction(space).double().numpy()
    slope = (refusal.coef.double() @ space.components.double()).numpy()
    means = _group_means(moved, None)
    draws = np.concatenate(
        [np.stack([part @ slope, _unit(part) @ direction]) for part in _bootstrap_means(moved, n_bootstrap, generator)],
        axis=1,
    )
    logit_low, logit_high = _percentiles(draws[0], level)
    cosines = _unit(means[0]) @ direction
    cosine_low, cosine_high = _cosine_interval(cosines, draws[1], level)
    null = np.abs(null_directions(moved, n_null, generator) @ _unit(means[0]).T)
    table = moved.table().drop(columns="mean_norm")
    table = table.assign(logit_shift=means[0] @ slope, logit_low=logit_low, logit_high=logit_high)
    table = table.assign(cosine=cosines, cosine_low=cosine_low, cosine_high=cosine_high)
    table = table.assign(null_quantile=np.quantile(null, level, axis=0))
    passes = (table["logit_low"] > 0) & (table["cosine_low"] > table["null_quantile"].clip(lower=min_cosine))
    return table.assign(safety_shift=passes.groupby(table["prompt"]).transform("all"))


def null_directions(moved: Shifts, n: int, generator: np.random.Generator) -> Array:
    """[n, d], unit norm: random contrasts of the baseline states, centred within each class.

    Each is the sum of all queries' states with random normal weights, so the directions follow the states'
    own covariance within a class, and know neither the classes nor the prompts.
    """
    centred = moved.baseline.double().numpy().copy()
    for harmful in moved.classes:
        rows = moved.rows(harmful)
        centred[rows] -= centred[rows].mean(axis=0)
    return _unit(generator.normal(size=(n, len(centred))) @ centred)


def separability(
    states: HiddenStates,
    *,
    prompt: str | Sequence[str] | None = None,
    space: AnchorSpace | None = None,
    layer: int = -1,
    n_splits: int = 10,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
    shuffle_labels: bool = False,
) -> pd.DataFrame:
    """How well harmful and harmless queries can be told apart from their states, per prompt.

    A logistic regression is cross-validated in folds grouped by query; accuracy and AUC are those of all
    held-out predictions together, with bootstrap intervals over queries (the folds stay as they are).

    Args:
        prompt: one or several prompts; None takes each that is there.
        space: adds rows for the coordinates in this space (at its layer); the full states are always used.
        shuffle_labels: the control: the classes are dealt out to the queries at random, 10 times; expect about
            .5 (the mean of the 10; the interval is their percentiles).

    Returns:
        One row per prompt and kind of features (`anchor`, `full`): `prompt, features, n, accuracy,
        accuracy_low, accuracy_high, auc, auc_low, auc_high`.

    Raises:
        StatesError: a prompt that is not there, one class only, or too few queries for `n_splits` folds.
    """
    chosen = one_position(states if prompt is None else states.select(prompt=prompt))
    rows = []
    for name in chosen.index["prompt"].unique():
        part = chosen.select(prompt=name)
        features = {} if space is None else {"anchor": coordinates(space, part)}
        labels, groups = _labels(part), part.index["query_id"].to_numpy()
        for kind, points in {**features, "full": part.matrix(layer)}.items():
            # A stream of its own per prompt: what it yields does not depend on which other prompts are there.
            generator = np.random.default_rng([random_state, *name.encode()])
            if shuffle_labels:
                measured = _shuffled_scores(points, labels, groups, n_splits, generator, level)
            else:
                scores = _held_out_scores(points, labels, groups, n_splits, random_state)
                measured = _accuracy_and_auc(scores, labels, n_bootstrap, generator, level)
            rows.append({"prompt": name, "features": kind, "n": len(part), **measured})
    return pd.DataFrame(rows)


def rate_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A rate of independent trials with Wilson's interval.

    Raises:
        StatesError: n is 0, or `successes` is not between 0 and n.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= n or n == 0:
        raise StatesError(f"{successes} successes of {n} trials are no rate: pass counts, with at least one trial.")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return Interval(successes / n, float(low), float(high))


def mean_interval(
    values: Sequence[float] | pd.Series,
    groups: Sequence[Any] | pd.Series,
    *,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean over groups (queries) of each group's mean value, with a bootstrap interval over groups.

    Raises:
        StatesError: no values, NaN among them, or another number of groups than of values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0 or len(numbers) != len(groups) or np.isnan(numbers).any():
        raise StatesError(
            f"{len(numbers)} values (NaN: {int(np.isnan(numbers).sum())}) in {len(groups)} groups: pass at least one "
            "value, a group for each, and no NaN."
        )
    means = pd.Series(numbers).groupby(np.asarray(groups), sort=False).mean().to_numpy()
    generator = np.random.default_rng(random_state)
    draws = np.concatenate([weights @ means for weights in _weights(len(means), n_bootstrap, generator, 1)])
    low, high = _percentiles(draws, level)
    return Interval(round(float(means.mean()), 12), float(low), float(high))


def rate_table(
    scores: pd.DataFrame, *, column: str = "refusal_rate", n_bootstrap: int = 1000, random_state: int = 0
) -> pd.DataFrame:
    """Mean rates per prompt and class, from the scores of `judge` (index: query_id, prompt).

    Returns:
        `prompt, harmful, n_queries, value, low, high`; the interval is a bootstrap over queries.
    """
    flat = scores.reset_index()
    rows = []
    for (prompt, harmful), part in flat.groupby(["prompt", "harmful"], sort=False):
        interval = mean_interval(part[column], part["query_id"], n_bootstrap=n_bootstrap, random_state=random_state)
        rows.append(
            {"prompt": prompt, "harmful": harmful, "n_queries": part["query_id"].nunique()} | interval._asdict()
        )
    return pd.DataFrame(rows)


def _places(index: pd.DataFrame, baseline: str) -> dict[str, NDArray[np.intp]]:
    """Prompt → row numbers of its states, in the order of the baseline's queries; the baseline first."""
    present = list(index["prompt"].unique())
    if baseline not in present or len(present) < 2:
        raise StatesError(
            f"Shifts need states under {baseline!r} and under another prompt, these have {present}: compute them with "
            "hidden_states(model, queries, prompts), or name another baseline."
        )
    rows = {prompt: np.flatnonzero(index["prompt"] == prompt) for prompt in [baseline, *_without(present, baseline)]}
    order = pd.Index(index["query_id"].to_numpy()[rows[baseline]])
    return {prompt: own[_match(order, index["query_id"].to_numpy()[own], prompt)] for prompt, own in rows.items()}


def _match(order: pd.Index, queries: NDArray[Any], prompt: str) -> NDArray[np.intp]:
    here = pd.Index(queries)
    if here.has_duplicates or len(here) != len(order) or not order.isin(here).all():
        odd = list(here[here.duplicated()]) + list(order.symmetric_difference(here))
        raise StatesError(
            f"Under prompt {prompt!r} the queries differ from the baseline's (first: {odd[0]!r}): compute the same "
            "queries, once each, under every prompt."
        )
    return here.get_indexer(order)


def _without(items: Sequence[str], item: str) -> list[str]:
    return [other for other in items if other != item]


def _label(prompt: str, harmful: bool) -> str:
    return f"{prompt} {'harmful' if harmful else 'harmless'}"


def _pairs(names: list[str], directions: list[str]) -> list[tuple[int, int, str]]:
    """(row, row, kind) of every pair of shifts, and of every shift with every direction."""
    count = len(names)
    between = [(a, b, "shifts") for a in range(count) for b in range(a + 1, count)]
    across = [
        (a, count + b, "control" if direction == RANDOM else "direction")
        for a in range(count)
        for b, direction in enumerate(directions)
    ]
    return between + across


def _checked_directions(directions: Mapping[str, Tensor], width: int) -> dict[str, Array]:
    if RANDOM in directions:
        raise StatesError(f"A direction called {RANDOM!r} is added as the control: give yours another name.")
    checked = {}
    for name, direction in directions.items():
        vector = torch.as_tensor(direction).double().numpy()
        if vector.shape != (width,) or not np.isfinite(vector).all() or not vector.any():
            raise StatesError(
                f"Direction {name!r} must be a finite vector of width {width} that is not zero, got shape "
                f"{list(vector.shape)}: use probe.direction(space) of the same model and layer."
            )
        checked[name] = _unit(vector)
    return checked


def _unit(vectors: Array) -> Array:
    """Scaled to length one along the last axis; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def _percentiles(draws: Array, level: float) -> tuple[Array, Array]:
    # Rounded so that draws which all equal the estimate give an interval that contains it.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0).round(12)
    return low, high


def _cosine_interval(estimates: Array, draws: Array, level: float) -> tuple[Array, Array]:
    """The draws' percentiles after moving their median to the estimate; see `shift_cosines`."""

    def fisher(cosines: Array) -> Array:
        return np.arctanh(np.clip(cosines, -1 + 1e-12, 1 - 1e-12))

    spread = fisher(draws) - np.median(fisher(draws), axis=0)
    low, high = _percentiles(np.tanh(fisher(estimates) + spread), level)
    return low, high


def _weights(n: int, n_draws: int, generator: np.random.Generator, row_values: int) -> Iterator[Array]:
    """Chunks of [draws, n]: how often each of n queries is drawn, over n. `row_values` numbers follow per draw."""
    chunk = max(1, CHUNK_VALUES // max(n, row_values))
    for start in range(0, n_draws, chunk):
        yield generator.multinomial(n, np.full(n, 1 / n), size=min(chunk, n_draws - start)) / n


def _bootstrap_means(moved: Shifts, n_draws: int, generator: np.random.Generator) -> Iterator[Array]:
    """Chunks of [draws, n_groups, d]: the mean shifts of resampled queries, each with all its prompts."""
    row_values = len(moved.groups()) * moved.deltas.shape[2]
    sizes = {harmful: len(moved.rows(harmful)) for harmful in moved.classes}
    # One stream of weights per class, in step: the larger class decides the chunks for both.
    largest = max(row_values, *sizes.values())
    streams = [
        _weights(size, n_draws, child, largest)
        for size, child in zip(sizes.values(), generator.spawn(len(sizes)), strict=True)
    ]
    for parts in zip(*streams, strict=True):
        yield _group_means(moved, dict(zip(sizes, parts, strict=True)))


def _group_means(moved: Shifts, weights: Mapping[bool, Array] | None) -> Array:
    """[draws, n_groups, d], in the order of `moved.groups()`; without weights one draw: the plain means."""
    means = []
    for prompt, harmful in moved.groups():
        own = moved.own(prompt, harmful).double().numpy()
        means.append((np.full((1, len(own)), 1 / len(own)) if weights is None else weights[harmful]) @ own)
    return np.stack(means, axis=1)


def _labels(states: HiddenStates) -> Array:
    labels = states.index["harmful"].to_numpy(dtype=np.float64)
    if len(np.unique(labels)) < 2:
        raise StatesError("Separability needs harmful and harmless queries, these are of one class: add the other.")
    return labels


def _shuffled_scores(
    points: Tensor,
    labels: Array,
    groups: NDArray[Any],
    n_splits: int,
    generator: np.random.Generator,
    level: float,
) -> dict[str, float]:
    """Accuracy and AUC when the labels mean nothing: mean and percentiles over N_SHUFFLES deals of the labels."""
    measured = []
    for seed in range(N_SHUFFLES):
        # One state per query here (one prompt, one position), so shuffling states is shuffling queries.
        dealt = generator.permutation(labels)
        scores = _held_out_scores(points, dealt, groups, n_splits, seed)
        measured.append([((scores > 0) == dealt).mean(), _auc(scores, dealt)])
    table: dict[str, float] = {}
    for name, values in zip(("accuracy", "auc"), np.array(measured).T, strict=True):
        low, high = _percentiles(values, level)
        table |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return table


def _auc(scores: Array, labels: Array) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _held_out_scores(points: Tensor, labels: Array, groups: NDArray[Any], n_splits: int, random_state: int) -> Array:
    """[n]: each state's logit from the fold in which it was held out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = points.double().numpy()
    scores = np.empty(len(labels))
    for train, test in grouped_folds(labels, groups, n_splits, random_state):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
        scores[test] = model.fit(features[train], labels[train]).decision_function(features[test])
    return scores


def _accuracy_and_auc(
    scores: Array, labels: Array, n_bootstrap: int, generator: np.random.Generator, level: float
) -> dict[str, float]:
    """Both with intervals; queries are drawn within each class."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    # AUC is the share of pairs in the right order, so a draw's AUC is a weighted mean over this table.
    wins = (positive[:, None] > negative).astype(np.float64) + 0.5 * (positive[:, None] == negative)
    share = len(positive) / len(scores)
    draws: list[tuple[Array, Array]] = []
    size = max(len(positive), len(negative))
    for up, down in zip(
        _weights(len(positive), n_bootstrap, generator, size),
        _weights(len(negative), n_bootstrap, generator, size),
        strict=True,
    ):
        accuracy = share * (up @ (positive > 0)) + (1 - share) * (down @ (negative <= 0))
        draws.append((accuracy, ((up @ wins) * down).sum(axis=1)))
    measured = {"accuracy": round(float(((scores > 0) == labels).mean()), 12), "auc": round(float(wins.mean()), 12)}
    table: dict[str, float] = {}
    for (name, value), parts in zip(measured.items(), zip(*draws, strict=True), strict=True):
        low, high = _percentiles(np.concatenate(parts), level)
        table |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return table
