"""How far directions carry: fitted on some states, how well do they rank those of another category, prompt or set?

A direction that only knows the queries it was fitted on is no property of the model. So every direction here is
judged on queries that it has not seen, under any prompt, beside directions fitted on targets without meaning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from drolab.errors import StatesError
from drolab.intervals import auc_draws, check_settings, crossval_interval, drawn_counts, pair_tables
from drolab.probing.anchors import content, fit_key, one_position
from drolab.probing.crossval import left_out_groups
from drolab.probing.directions import Features, checked_methods, fit_direction, select_rows, tune
from drolab.probing.targets import Target, align_target, check_classes, grouped_folds
from drolab.progress import Progress, bar
from drolab.store import Store
from drolab.threads import one_thread
from drolab.types import HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Rows = NDArray[np.intp]

TRANSFER_COLUMNS = (
    "method",
    "shuffled",
    "fitted_on",
    "tested_on",
    "n_queries",
    "n",
    "auc",
    "low",
    "high",
    "ceiling",
    "note",
)
"""Columns of `transfer`."""

NO_BETTER = "no better than shuffled targets"
"""The note on such a row."""


@one_thread
def transfer(
    states: HiddenStates,
    target: Target,
    *,
    across: Literal["category", "prompt"] | None = None,
    test_states: HiddenStates | None = None,
    test_target: Target | None = None,
    methods: Sequence[str] | None = None,
    layer: int = -1,
    n_splits: int = 5,
    n_bootstrap: int = 1000,
    n_shuffles: int = 5,
    random_state: int = 0,
    level: float = 0.95,
    store: Store | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """How well directions rank states of another kind than those they were fitted on.

    Everything is fitted on the training part alone: the anchor space and the penalties, too. No query is in both
    parts, under whichever prompt.

    Args:
        across: "category" leaves one category out and tests on it; "prompt" fits under one prompt and tests under
            each, itself included, on queries held out in `n_splits` folds.
        test_states: instead of `across`: fit on all `states`, test on these, such as queries of other templates.
        test_target: their target; None takes it from `target`, a Series that covers both.
        n_shuffles: for the control: how often the queries swap their targets at random, in the training and in the
            test part. Penalties stay as they were chosen for the real target.
        store: what directions that it has say of held-out states is not computed again.

    Returns:
        TRANSFER_COLUMNS, one row per method, what it was fitted and tested on, and `shuffled` or not. `auc` is that of
        a soft target: how often a state ranks above another, over all pairs, weighted by the chance that the one is
        positive and the other negative. Only states of one fit are compared with each other; so "each category" is the
        AUC within left-out categories. `ceiling` is the AUC of the target itself (1 for booleans). With `across`, the
        interval is of what the method reaches when it is fitted on so many other queries and tested on other ones, see
        `drolab.probing.crossval`; with `test_states`, of what these very directions reach on other test queries (a
        bootstrap over them, with all their prompts). For the control, `auc`, `low` and `high` are those of all shuffles
        together, and too narrow with few of them. `note` says where a direction ranks no better than its control.

    Raises:
        StatesError: both or none of `across` and `test_states`; a query that is in both sets of states; as in
            `fit_directions`, for any training part.

    Examples:
        Fitted without a safety prompt, tested under one, and on queries that were held out:

        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab.probing import transfer
        >>> options = {"methods": ["mean_difference"], "n_shuffles": 1, "n_bootstrap": 100}
        >>> pair = states.select(prompt=["none", "default"])
        >>> table = transfer(pair, queries["harmful"], across="prompt", **options)
        >>> table.loc[table["fitted_on"] == "none", ["shuffled", "tested_on", "n_queries", "ceiling"]]
           shuffled tested_on  n_queries  ceiling
        0     False      none         16      1.0
        1     False   default         16      1.0
        4      True      none         16      1.0
        5      True   default         16      1.0
    """
    check_settings(level, n_bootstrap=n_bootstrap)
    chosen = checked_methods(methods)
    both, part = _joined(states, test_states, across, layer)
    real = align_target(states, target)
    if test_states is not None:
        real = np.concatenate([real, align_target(test_states, target if test_target is None else test_target)])
    generator = np.random.default_rng(random_state)
    targets = [real, *(real[_shuffled_rows(both.index, part, generator)] for _ in range(n_shuffles))]
    left_out = left_out_groups(real, both.index["query_id"].to_numpy(), random_state) if across else []
    held_out: dict[tuple[str, str], list[_HeldOut]] = defaultdict(list)
    splits = list(_splits(both.index, real, part, across, n_splits, random_state))
    fits = _Fits(states=both, targets=targets, left_out=left_out, methods=chosen, random_state=random_state)
    for split, scores in zip(splits, _all_scores(fits, splits, store, progress), strict=True):
        for tested_on, scored in _held_out(split, scores, fits):
            held_out[split.fitted_on, tested_on].append(scored)
    rows = []
    for (fitted_on, tested_on), parts in held_out.items():
        place = {"fitted_on": fitted_on, "tested_on": tested_on}
        rows += [place | row for row in _auc_rows(parts, targets, both.index, n_bootstrap, generator, level)]
    table = pd.DataFrame(rows).sort_values("shuffled", kind="stable", ignore_index=True)
    return table.assign(note=_notes(table))[list(TRANSFER_COLUMNS)]


def _notes(table: pd.DataFrame) -> pd.Series:
    """Of the rows whose interval does not lie above that of the same with shuffled targets."""
    same = ["method", "fitted_on", "tested_on"]
    control = table[table["shuffled"]].set_index(same)["high"].fillna(np.inf)
    if control.empty:
        return pd.Series("", index=table.index)
    reached = pd.Series(pd.MultiIndex.from_frame(table[same]).map(control.to_dict()), index=table.index, dtype=float)
    like_chance = ~table["shuffled"] & (table["low"] <= reached)
    return pd.Series(np.where(like_chance, NO_BETTER, ""), index=table.index)


class _Split(NamedTuple):
    """Rows to fit on, and the rows of each name under which tests are reported."""

    fitted_on: str
    train: Rows
    tests: dict[str, Rows]


class _HeldOut(NamedTuple):
    """Scores of states by directions that were not fitted on their queries."""

    rows: Rows
    """[k]"""
    scores: dict[str, Array]
    """Method → [1 + n_shuffles, k]: a direction for each target, the real one first."""
    refits: dict[str, Array]
    """Method → [n_groups, k]: a direction without each group of queries, for the real target."""


def _joined(
    states: HiddenStates, test_states: HiddenStates | None, across: str | None, layer: int
) -> tuple[HiddenStates, Rows]:
    """Both sets of states as one, and for each row 0 or 1: which set it is of."""
    if (across is None) == (test_states is None) or across not in (None, "category", "prompt"):
        raise StatesError(
            f"transfer needs either across='category' or 'prompt', or test_states=…, got across={across!r} and "
            f"test_states {'missing' if test_states is None else 'given'}."
        )
    first = one_position(states).select(layer=layer)
    if test_states is None:
        return first, np.zeros(len(first), dtype=np.intp)
    second = one_position(test_states).select(layer=layer)
    for column in ("query_id", "text"):
        if shared := set(first.index[column]) & set(second.index[column]):
            raise StatesError(
                f"{len(shared)} queries are in the states and in the test states (first: {min(shared)!r}), so that the "
                "test would be of what was learned: drop them from one, or use across='prompt'."
            )
    if (first.layers, first.values.shape[2]) != (second.layers, second.values.shape[2]):
        raise StatesError("The test states are of another layer or model: compute both sets with the same model.")
    index = pd.concat([first.index, second.index], ignore_index=True)
    both = replace(first, values=torch.cat([first.values, second.values]), index=index)
    return both, np.repeat([0, 1], [len(first), len(second)])


def _splits(
    index: pd.DataFrame, fractions: Array, part: Rows, across: str | None, n_splits: int, random_state: int
) -> Iterator[_Split]:
    if across == "category":
        yield from _by_category(index["category"].to_numpy(), index["query_id"].to_numpy())
    elif across == "prompt":
        prompts = index["prompt"].to_numpy()
        for train, test in grouped_folds(fractions, index["query_id"].to_numpy(), n_splits, random_state):
            tests = {prompt: test[prompts[test] == prompt] for prompt in pd.unique(prompts)}
            for prompt in tests:
                yield _Split(prompt, train[prompts[train] == prompt], tests)
    else:
        yield _Split("states", np.flatnonzero(part == 0), {"test states": np.flatnonzero(part == 1)})


def _by_category(categories: NDArray[Any], queries: NDArray[Any]) -> Iterator[_Split]:
    names = pd.unique(categories)
    if len(names) < 2:
        raise StatesError(f"Leaving out a category needs at least two, these states have {list(names)}: add others.")
    for category in names:
        test = np.flatnonzero(categories == category)
        # A query filed under two categories is in neither's training part when the other is tested.
        train = np.flatnonzero(~np.isin(queries, queries[test]))
        yield _Split("other categories", train, {category: test, "each category": test})


def _shuffled_rows(index: pd.DataFrame, part: Rows, generator: np.random.Generator) -> Rows:
    """[n]: from which row each takes its target when the queries swap theirs at random.

    A query takes those of another query of its set that has as many, in any order: they mean nothing, but belong
    together as the real ones do, so that a split that parts a query's states would be found out.
    """
    by_query = list(index.groupby("query_id", sort=False).indices.values())
    alike = defaultdict(list)
    for rows in by_query:
        alike[part[rows[0]], len(rows)].append(rows)
    source = np.empty(len(index), dtype=np.intp)
    for group in alike.values():
        for rows, number in zip(group, generator.permutation(len(group)), strict=True):
            source[rows] = generator.permutation(group[number])
    return source


@dataclass(frozen=True, kw_only=True)
class _Fits:
    """What every split has fitted: each method to each target, and to the real one without each group of queries."""

    states: HiddenStates
    targets: Sequence[Array]
    left_out: Sequence[Rows]
    methods: Sequence[str]
    random_state: int

    def key(self, split: _Split) -> str:
        """The store key of the split's scores."""
        index = pd.util.hash_pandas_object(self.states.index, index=False).to_numpy()
        rows = [split.train, *split.tests.values()]
        return fit_key(
            "scores of held-out states",
            of=[content(one) for one in (index, self.states.values.numpy(), *self.targets, *self.left_out, *rows)],
            sizes=[len(self.targets), len(self.left_out)],
            methods=list(self.methods),
            random_state=self.random_state,
        )

    def scores(self, split: _Split) -> Array:
        """[n_methods, n_targets + n_groups, n]: of the states of the split's tests, one test after another.

        Settings are chosen for the training part's real target.
        """
        features = Features(states=select_rows(self.states, split.train))
        real = self.targets[0]
        check_classes(real[split.train])  # no setting can be chosen for one kind alone
        settings = {m: tune(m, features, real[split.train], self.random_state) for m in self.methods}
        fitted = {
            method: [fit_direction(method, features, one[split.train], setting, "positive") for one in self.targets]
            for method, setting in settings.items()
        }
        for group in self.left_out:
            kept = np.setdiff1d(split.train, group)
            fewer = Features(states=select_rows(self.states, kept))
            for method, setting in settings.items():
                fitted[method].append(fit_direction(method, fewer, real[kept], setting, "positive"))
        matrix = select_rows(self.states, np.concatenate(list(split.tests.values()))).matrix(features.layer)
        return np.array([[one.scores(matrix).double().numpy() for one in own] for own in fitted.values()])


def _all_scores(fits: _Fits, splits: Sequence[_Split], store: Store | None, progress: Progress) -> Iterator[Array]:
    """The scores of each split, store first."""
    names = [fits.key(split) for split in splits] if store else [""] * len(splits)
    kept = store.get_tensors(names) if store else {}
    with bar(progress, total=len(splits) - len(kept), desc="directions", unit="training part") as counted:
        for name, split in zip(names, splits, strict=True):
            if name in kept:
                yield kept[name].numpy()
                continue
            scores = fits.scores(split)
            if store:
                store.put_tensors(
                    [name], torch.from_numpy(scores)[None], note="scores of held-out states by directions"
                )
            counted.update()
            yield scores


def _held_out(split: _Split, scores: Array, fits: _Fits) -> Iterator[tuple[str, _HeldOut]]:
    """The split's scores, test by test."""
    borders = np.cumsum([len(rows) for rows in split.tests.values()])[:-1]
    for (tested_on, rows), own in zip(split.tests.items(), np.split(scores, borders, axis=2), strict=True):
        by_method = dict(zip(fits.methods, own, strict=True))
        n = len(fits.targets)
        yield (
            tested_on,
            _HeldOut(rows, {m: s[:n] for m, s in by_method.items()}, {m: s[n:] for m, s in by_method.items()}),
        )


def _auc_rows(
    parts: Sequence[_HeldOut],
    targets: Sequence[Array],
    index: pd.DataFrame,
    n_bootstrap: int,
    generator: np.random.Generator,
    level: float,
) -> Iterator[dict[str, Any]]:
    """The rows of every method for one test, `shuffled` or not."""
    queries = index["query_id"].to_numpy()
    tested = np.concatenate([part.rows for part in parts])
    size = {"n_queries": len(pd.unique(queries[tested])), "n": len(tested)}

    def auc(scores: Sequence[Array], target: Array, n_draws: int = 0) -> Array:
        """[1 + n_draws]: of the queries as they are, then of resampled ones."""
        tables = [pair_tables(own, target[p.rows], queries[p.rows]) for own, p in zip(scores, parts, strict=True)]
        once = np.ones((1, sum(table.shape[1] for table in tables)))
        chunks = chain([once], drawn_counts(once[0].astype(int), n_draws, generator))
        return np.concatenate([auc_draws(tables, counts) for counts in chunks])

    ceilings = [auc([target[part.rows] for part in parts], target)[0] for target in targets]
    for method in parts[0].scores:
        aucs = [auc([p.scores[method][k] for p in parts], one, n_bootstrap) for k, one in enumerate(targets)]
        n_refits = len(parts[0].refits[method])
        refits = np.array([auc([p.refits[method][g] for p in parts], targets[0])[0] for g in range(n_refits)])
        for shuffled, own in ((False, slice(0, 1)), (True, slice(1, None))):
            if aucs[own]:
                value, draws = np.mean([one[0] for one in aucs[own]]), np.concatenate([one[1:] for one in aucs[own]])
                # Several shuffles show by themselves how far the fits differ.
                low, high = _limits(value, draws, refits[: 0 if shuffled else None], size["n_queries"], level)
                row = {"method": method, "shuffled": shuffled, **size, "auc": value, "low": low, "high": high}
                yield row | {"ceiling": np.mean(ceilings[own])}


def _limits(value: float, draws: Array, refits: Array, n_queries: int, level: float) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return np.nan, np.nan
    return crossval_interval(value, known, refits[~np.isnan(refits)], n_queries, level, (0.0, 1.0))[1:]
