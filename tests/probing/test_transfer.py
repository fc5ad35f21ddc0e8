"""Transfer: directions are judged on queries they have not seen, and targets without meaning give .5."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.planted import as_states, state_index
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import drolab
from drolab.errors import StatesError
from drolab.intervals import Interval, auc
from drolab.models import ChatModel
from drolab.probing import METHODS, TRANSFER_COLUMNS, fit_directions, grouped_folds, transfer
from drolab.probing.directions import RIDGE_GRID, select_rows
from drolab.store import Store
from drolab.types import HiddenStates

WIDTH = 16
QUICK = {"n_shuffles": 0, "n_bootstrap": 400}


def identities(
    prompts: tuple[str, ...] = ("none", "long"),
    *,
    n_per_class: int = 40,
    n_categories: int = 5,
    gap: float = 0.0,
    own: float = 0.1,
    name: str = "",
    seed: int = 0,
) -> HiddenStates:
    """States that repeat their query's noise under each prompt, but for `own`; classes `gap` apart."""
    rng = np.random.default_rng(seed)
    index = state_index(list(prompts), n_per_class)
    index["category"] = [f"c{int(query[1:]) % n_categories}" for query in index["query_id"]]
    index["query_id"], index["text"] = name + index["query_id"], name + index["text"]
    values = np.tile(rng.normal(size=(2 * n_per_class, WIDTH)), (len(prompts), 1))
    values += own * rng.normal(size=values.shape)
    values[:, 0] += gap * (index["harmful"].to_numpy() - 0.5)
    return as_states(values, index)


def harmful(states: HiddenStates) -> np.ndarray:
    return states.index["harmful"].to_numpy(dtype=float)


def meaningless(states: HiddenStates, seed: int = 0) -> pd.Series:
    """One label per query, at random."""
    queries = states.index["query_id"].unique()
    return pd.Series(np.random.default_rng(seed).permutation(np.arange(len(queries)) % 2), index=queries)


@pytest.mark.parametrize("across", ["category", "prompt"])
def test_planted_directions_carry_over_and_shuffled_ones_do_not(across: str) -> None:
    states = identities(gap=3)
    table = transfer(states, harmful(states), across=across, n_shuffles=5, n_bootstrap=200)  # type: ignore[arg-type]
    assert list(table.columns) == list(TRANSFER_COLUMNS)
    real, control = table[~table["shuffled"]], table[table["shuffled"]]
    assert set(real["method"]) == set(control["method"]) == set(METHODS)
    pooled = "each category" if across == "category" else "long"
    assert real.loc[real["tested_on"] == pooled, "low"].min() > 0.75
    assert (control["low"] < 0.5).all()
    assert (control["high"] > 0.5).mean() > 0.95
    assert control["auc"].mean() == pytest.approx(0.5, abs=0.05)
    assert (table["ceiling"] == 1).all()


def test_each_test_has_its_rows() -> None:
    states = identities(("none", "long", "short"), gap=3)
    told: list[tuple[int, int]] = []
    options = {"methods": ["mean_difference"], "progress": lambda *counts: told.append(counts), **QUICK}
    by_category = transfer(states, harmful(states), across="category", **options)
    assert told == [(done, told[-1][1]) for done in range(len(told))]
    assert told[-1][0] == told[-1][1]
    assert by_category["tested_on"].tolist() == ["c0", "each category", "c1", "c2", "c3", "c4"]
    assert by_category["n_queries"].tolist() == [16, 80, 16, 16, 16, 16]
    assert by_category["n"].tolist() == [48, 240, 48, 48, 48, 48]
    by_prompt = transfer(states, harmful(states), across="prompt", methods=["mean_difference"], **QUICK)
    assert len(by_prompt) == 9
    assert set(by_prompt["n"]) == set(by_prompt["n_queries"]) == {80}
    other = identities(gap=3, name="t", seed=1)
    to_states = transfer(
        states, harmful(states), test_states=other, test_target=harmful(other), methods=["leace", "sparse"], **QUICK
    )
    assert to_states[["method", "fitted_on", "tested_on", "n"]].values.tolist() == [
        ["leace", "states", "test states", 160],
        ["sparse", "states", "test states", 160],
    ]
    assert to_states["auc"].min() > 0.95


def test_a_direction_of_one_prompt_fails_under_another_that_moves_it() -> None:
    states = identities(gap=3)
    under_long = (states.index["prompt"] == "long").to_numpy()
    turned = states.matrix().numpy().copy()
    turned[under_long] = turned[under_long, ::-1]  # under this prompt the classes differ along the last axis
    states = as_states(turned, states.index)
    table = transfer(states, harmful(states), across="prompt", **QUICK).set_index(["fitted_on", "tested_on"])
    for prompt, other in (("none", "long"), ("long", "none")):
        assert table.loc[(prompt, prompt), "low"].min() > 0.75
        assert table.loc[(prompt, other), "auc"].max() < 0.7


def test_the_auc_is_that_of_soft_labels_in_the_probes() -> None:
    states, other = identities(gap=1), identities(gap=1, name="t", seed=1)
    rng = np.random.default_rng(0)
    soft, soft_test = (np.clip(0.6 * harmful(s) + rng.random(len(s)) / 3, 0, 1) for s in (states, other))
    row = transfer(states, soft, test_states=other, test_target=soft_test, methods=["anchor_probe"], **QUICK).iloc[0]
    direction = fit_directions(states, soft, positive="p", methods=["anchor_probe"])["anchor_probe"]
    wanted = auc(direction.scores(other.matrix()).double().numpy(), soft_test)
    assert row["auc"] == pytest.approx(wanted, abs=1e-9)
    assert row["auc"] < row["ceiling"] == pytest.approx(auc(soft_test, soft_test), abs=1e-9)
    assert row["ceiling"] < 0.99
    assert row["low"] < row["auc"] < row["high"]


@pytest.mark.parametrize("across", ["category", "prompt"])
def test_no_query_is_in_both_parts(across: str) -> None:
    """Labels without meaning: a direction that has seen a query under another prompt ranks it far above chance."""
    states = identities(tuple("abcd"), n_per_class=20)
    aucs = []
    for seed in range(4):
        target = meaningless(states, seed)
        table = transfer(states, target, across=across, methods=["leace"], **QUICK)  # type: ignore[arg-type]
        aucs.append(table.loc[table["tested_on"].isin(["each category", "b"]), "auc"].mean())
    assert np.mean(aucs) < 0.62
    known = select_rows(states, np.flatnonzero(states.index["prompt"] != "b"))
    seen = fit_directions(known, target, positive="1", methods=["leace"])["leace"]
    scores = seen.scores(states.select(prompt="b").matrix()).numpy()
    labels = target[states.select(prompt="b").index["query_id"]].to_numpy()
    assert ((scores > 0) == labels).mean() > 0.75


def test_no_query_is_in_both_sets_of_states() -> None:
    states = identities(gap=1)
    with pytest.raises(StatesError, match=r"80 queries are in the states and in the test states \(first: 'q0'\)"):
        transfer(states.select(prompt="none"), harmful(states)[:80], test_states=states.select(prompt="long"))
    renamed = identities(gap=1, name="t")
    renamed.index["text"] = states.index["text"]
    with pytest.raises(StatesError, match=r"80 queries .* drop them from one"):
        transfer(states, harmful(states), test_states=renamed, test_target=harmful(renamed))


@pytest.mark.parametrize("across", ["category", "prompt"])
def test_what_the_store_has_is_not_fitted_again(store: Store, across: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = identities(gap=1.0, n_per_class=12, n_categories=3)
    options: dict[str, Any] = {"across": across, "methods": ["mean_difference", "logistic"], "n_shuffles": 1}
    options |= {"n_bootstrap": 50, "n_splits": 2, "store": store, "progress": False}
    first = transfer(states, harmful(states), **options)
    pd.testing.assert_frame_equal(
        first, transfer(states, harmful(states), **options | {"store": None}), check_exact=True
    )

    def none(*given: object) -> None:
        raise AssertionError("a direction was fitted again")

    monkeypatch.setattr(sys.modules["drolab.probing.transfer"], "fit_direction", none)
    pd.testing.assert_frame_equal(first, transfer(states, harmful(states), **options), check_exact=True)
    transfer(states, harmful(states), **options | {"level": 0.9, "n_bootstrap": 60})  # not of the fits
    swapped = 1 - harmful(states)
    for other in ({"random_state": 1}, {"methods": ["logistic"]}, {"n_shuffles": 2}):
        with pytest.raises(AssertionError, match="fitted again"):
            transfer(states, harmful(states), **options | other)
    for own, target in ((states, swapped), (replace(states, values=states.values + 1), harmful(states))):
        with pytest.raises(AssertionError, match="fitted again"):
            transfer(own, target, **options)


def test_what_to_transfer_across_is_asked_for() -> None:
    states = identities(gap=1)
    with pytest.raises(StatesError, match="either across='category' or 'prompt', or test_states"):
        transfer(states, harmful(states))
    with pytest.raises(StatesError, match="test_states given"):
        transfer(states, harmful(states), across="prompt", test_states=states)
    single = as_states(states.values[:, 0].numpy(), states.index.assign(category="c0"))
    with pytest.raises(StatesError, match=r"at least two, these states have \['c0'\]"):
        transfer(single, harmful(states), across="category")


def test_a_perfect_auc_is_not_certain() -> None:
    states = identities(gap=30)
    table = transfer(states, harmful(states), across="category", methods=["mean_difference"], **QUICK)
    assert (table["auc"] == 1).all()
    assert table["low"].between(0.6, 0.99).all()
    assert (table["high"] == 1).all()


def test_intervals_of_directions_without_meaning_hold_one_half_at_their_rate() -> None:
    """About nominal on other states (300 data sets; the full table: calibration.py)."""
    held = []
    for seed in range(300):
        states, other = identities(n_per_class=10, seed=seed), identities(n_per_class=40, name="t", seed=10_000 + seed)
        test = {"test_states": other, "test_target": meaningless(other, seed)}
        options = {"methods": ["mean_difference"], "random_state": seed, **QUICK}
        row = transfer(states, meaningless(states, seed), **test, **options).iloc[0]  # type: ignore[arg-type]
        held.append(row["low"] <= 0.5 <= row["high"])
    assert 0.92 < np.mean(held) < 0.975


def test_intervals_across_categories_hold_one_half_and_without_the_training_part_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 data sets of two categories: the fewer there are, the more does the training part count."""
    module = sys.modules["drolab.probing.transfer"]
    whole, without = module.crossval_interval, []

    def interval(value: float, draws: np.ndarray, refits: np.ndarray, n_queries: int, *rest: Any) -> Interval:
        if n_queries == 80:
            without.append(whole(value, draws, refits[:0], n_queries, *rest))
        return whole(value, draws, refits, n_queries, *rest)

    monkeypatch.setattr(module, "crossval_interval", interval)
    held = []
    for seed in range(100):
        states = identities(("none",), n_categories=2, seed=10_000 + seed)
        options = {"methods": ["mean_difference"], "random_state": seed, **QUICK}
        table = transfer(states, meaningless(states, seed), across="category", **options)  # type: ignore[arg-type]
        row = table.set_index("tested_on").loc["each category"]
        held.append(row["low"] <= 0.5 <= row["high"])
    assert np.mean(held) > 0.92
    assert np.mean([one.low <= 0.5 <= one.high for one in without]) < 0.92


def _accuracies(states: HiddenStates, target: pd.Series, predict: Callable[..., np.ndarray]) -> tuple[float, float]:
    """Accuracy in ungrouped folds and in folds grouped by query."""
    labels, queries = target[states.index["query_id"]].to_numpy(dtype=float), states.index["query_id"].to_numpy()
    divisions = KFold(4, shuffle=True, random_state=0).split(labels), grouped_folds(labels, queries, 4, 0)
    measured = []
    for folds in divisions:
        right = np.empty(len(labels), dtype=bool)
        for train, test in folds:
            right[test] = predict(select_rows(states, train), labels[train], select_rows(states, test)) == labels[test]
        measured.append(float(right.mean()))
    return measured[0], measured[1]


def leace(train: HiddenStates, labels: np.ndarray, test: HiddenStates) -> np.ndarray:
    fitted = fit_directions(train, labels, positive="1", methods=["leace"])["leace"]
    return (fitted.scores(test.matrix()) > 0).numpy()


def plain_logistic(train: HiddenStates, labels: np.ndarray, test: HiddenStates) -> np.ndarray:
    """The probe of most papers: scikit-learn's logistic regression as it comes, on standardised states."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return model.fit(train.matrix().numpy(), labels).predict(test.matrix().numpy())


@pytest.mark.parametrize("predict", [plain_logistic, leace])
def test_ungrouped_folds_pretend_on_the_demo_model(demo: ChatModel, predict: Callable[..., np.ndarray]) -> None:
    """Labels dealt out to the queries at random: nothing can be learned, but folds that part a query claim so."""
    queries = drolab.load_queries("anchors", demo=True).iloc[::2]
    states = drolab.hidden_states(demo, queries, drolab.load_prompts(), progress=False)
    pairs = [_accuracies(states, meaningless(states, seed), predict) for seed in range(3)]
    ungrouped, grouped = np.mean(pairs, axis=0)
    assert ungrouped > 0.75
    assert grouped < 0.6


def test_our_logistic_probe_chooses_its_penalty_in_grouped_folds() -> None:
    """With states of a query in both parts a weak penalty, which learns queries by heart, would look best; it is the
    strongest that is chosen, so that the probe hardly pretends even where others do."""
    states = identities(tuple("abcd"), n_per_class=30)
    labels = meaningless(states)[states.index["query_id"]].to_numpy(dtype=float)
    apart = as_states(states.matrix().numpy(), states.index.assign(query_id=[f"q{n}" for n in range(len(states))]))
    ours, control = (
        fit_directions(given, labels, positive="1", methods=["logistic"])["logistic"].setting
        for given in (states, apart)
    )
    assert ours == RIDGE_GRID[0]
    assert control > RIDGE_GRID[1]
