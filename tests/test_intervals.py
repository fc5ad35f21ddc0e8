"""Intervals cover, bootstraps draw queries, AUCs are scikit-learn's, and Holm's correction is statsmodels'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from drolab import evidence, judges
from drolab.errors import StatesError
from drolab.intervals import (
    CHANGE,
    FISHER,
    LOGIT,
    PLAIN,
    SHARE,
    Placements,
    auc,
    auc_draws,
    aucs,
    between_aucs,
    drawn_counts,
    holm,
    interval,
    jackknife_error,
    mean_interval,
    mean_intervals,
    nearly_alike,
    pair_tables,
    percentiles,
    rate_interval,
    rate_table,
    sample_interval,
    weighted_labels,
    widened,
)

# --- an estimate and its standard error ----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1, 1), error=st.floats(0, 2), n=st.integers(2, 500))
def test_intervals_stay_in_their_range_and_hold_the_estimate(value: float, error: float, n: int) -> None:
    ranges = ((FISHER, -1, 1), (CHANGE, -1, 1), (LOGIT, 0, 1), (SHARE, 0, 1), (PLAIN, -math.inf, math.inf))
    for scale, low, high in ranges:
        inside = (value + 1) / 2 if low == 0 else value
        limits = interval(inside, error, n, 0.95, scale)
        assert low <= limits.low <= limits.value <= limits.high <= high
        wider = interval(inside, error, n, 0.9999, scale)
        assert wider.low <= limits.low
        assert limits.high <= wider.high


def test_a_sure_estimate_has_no_width() -> None:
    assert interval(1.0, 0.0, 50, 0.95, FISHER) == pytest.approx((1.0, 1.0, 1.0), abs=1e-8)
    assert interval(0.5, 0.0, 50, 0.95) == (0.5, 0.5, 0.5)
    assert math.isnan(interval(0.5, math.nan, 50, 0.95).low)


# --- what intervals are made with ------------------------------------------------------------------------------

NONE: Any = None  # settings are checked before anything else is looked at
TAKE_A_LEVEL: dict[str, Callable[..., Any]] = {
    "interval": lambda **given: interval(0.5, 0.1, 10, **given),
    "sample_interval": lambda **given: sample_interval(np.arange(3.0), **given),
    "percentiles": lambda **given: percentiles(np.arange(3.0), **given),
    "widened": lambda **given: widened(n=5, **given),
    "AUC": lambda **given: Placements.of(np.arange(4.0), np.array([0, 1, 0, 1])).interval(**given),
    "rate_interval": lambda **given: rate_interval(1, 2, **given),
    "confusion": lambda **given: judges.confusion(NONE, "a", "b", **given),
    "separability": lambda **given: evidence.separability(NONE, **given),
    "auc_change": lambda **given: evidence.auc_change(NONE, NONE, [], **given),
}
TAKE_DRAWS: dict[str, Callable[..., Any]] = {
    "mean_interval": lambda **given: mean_interval([0.1, 0.2], [0, 1], **given),
    "group_rates": lambda **given: evidence.comparison.group_rates(NONE, **given),
    "paired": lambda **given: evidence.comparison.paired(NONE, "none", **given),
    "disagreement": lambda **given: judges.disagreement(NONE, **given),
}
TAKE_A_NULL: dict[str, Callable[..., Any]] = {
    "shift_cosines": lambda **given: evidence.shift_cosines(NONE, **given),
    "shift_similarity": lambda **given: evidence.shift_similarity(NONE, [], **given),
    "shift_report": lambda **given: evidence.shift_report(NONE, NONE, NONE, **given),
}


@pytest.mark.parametrize("name", [*TAKE_A_LEVEL, *TAKE_DRAWS, *TAKE_A_NULL])
@pytest.mark.parametrize("level", [95, 1, 0, -0.5, math.nan, math.inf, "0.95", None])
def test_a_level_lies_between_0_and_1(name: str, level: Any) -> None:
    with pytest.raises(StatesError, match=r"^level must lie between 0 and 1, such as 0\.95, got "):
        (TAKE_A_LEVEL | TAKE_DRAWS | TAKE_A_NULL)[name](level=level)


@pytest.mark.parametrize("count", [0, -1, math.nan, 10.5, "many", None])
def test_draws_are_whole_and_above_0(count: Any) -> None:
    calls = [(call, "n_bootstrap") for call in TAKE_DRAWS.values()]
    calls += [(call, "n_null") for call in TAKE_A_NULL.values()]
    calls += [(lambda **given: rate_table(one_rate(), **given), "n_bootstrap")]
    for call, setting in calls:
        with pytest.raises(StatesError, match=rf"^{setting} must be a whole number above 0, such as 1000, got "):
            call(**{setting: count})


def test_without_draws_there_are_no_limits() -> None:
    with pytest.raises(StatesError, match="An interval needs draws: n_bootstrap"):
        percentiles(np.zeros((0, 2)), 0.95)


def one_rate() -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples([("q0", "none")], names=["query_id", "prompt"])
    return pd.DataFrame({"harmful": [True], "refusal_rate": [0.2]}, index)


# --- rates and means -----------------------------------------------------------------------------------------


def test_wilson() -> None:
    """10 of 20 by hand: centre .5, half width 1.96/(2·√20)/√(1 + 1.96²/20)."""
    half = 1.959964 / (2 * np.sqrt(20)) / np.sqrt(1 + 1.959964**2 / 20)
    assert rate_interval(10, 20) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)
    assert rate_interval(0, 20).high > 0.05  # a plain normal interval would have width zero
    for successes, n in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(StatesError, match="are no rate: pass counts"):
            rate_interval(successes, n)


def test_intervals_of_means_treat_a_query_as_one() -> None:
    rng = np.random.default_rng(0)
    rates = rng.random(50)
    values, groups = np.repeat(rates, 20), np.repeat(np.arange(50), 20)
    grouped = mean_interval(values, groups)
    alone = mean_interval(rates, np.arange(50))
    as_if_independent = mean_interval(values, np.arange(1000))
    assert grouped == pytest.approx(alone, abs=0.01)
    assert grouped.high - grouped.low > 3 * (as_if_independent.high - as_if_independent.low)
    half_width = 1.96 * rates.std() / np.sqrt(50)
    assert (grouped.high - grouped.low) / 2 == pytest.approx(half_width, rel=0.15)


tenths = st.integers(0, 10).map(lambda count: count / 10)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20) | st.lists(tenths, min_size=1, max_size=8))
def test_an_interval_has_a_width_holds_the_mean_and_stays_in_the_range(values: list[float]) -> None:
    queries = range(len(values))
    found = mean_interval(values, queries, n_bootstrap=100)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.value == pytest.approx(np.mean(values))
    change = mean_interval(np.array(values) * 2 - 1, queries, bounds=(-1, 1), n_bootstrap=100)
    assert -1 <= change.low <= change.value <= change.high <= 1
    assert change.low < change.high


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_without_bounds_only_equal_values_have_no_limits(values: list[float]) -> None:
    values = [*values, 101.0] if len(set(values)) > 1 else [101.0 for _ in values]  # beyond 1, so no rates
    found = mean_interval(values, range(len(values)), n_bootstrap=100)
    by_t = sample_interval(np.array(values), 0.95)
    assert math.isnan(found.low) == math.isnan(found.high) == (len(set(values)) == 1) == math.isnan(by_t.low)
    if len(set(values)) > 1:
        assert found.low <= found.value <= found.high
        assert found.low < found.high
        assert by_t.low < by_t.high


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.0] * 112, 0.0, 0.0332),  # what a rate has that was seen 0 times of 112
        ([1.0] * 2, 0.3424, 1.0),
        ([0.05] * 3, 0.0219, 0.5834),  # a share of .5615 of all queries may be unlike these three
        ([0.4, 0.5], 0.1541, 0.8117),
    ],
)
def test_what_was_not_seen_may_be_anything_possible(values: list[float], low: float, high: float) -> None:
    found = mean_interval(values, range(len(values)))
    assert found == pytest.approx((np.mean(values), low, high), abs=1e-4)
    share = rate_interval(0, len(values)).high
    assert (found.low, found.high) == pytest.approx(
        ((1 - share) * found.value, (1 - share) * found.value + share), abs=1e-9
    )


def test_up_to_three_queries_unlike_the_rest_say_nothing_of_the_tails() -> None:
    for n in (1, 2, 3, 4, 5, 8, 10, 30, 112, 1000):
        for unlike in range(min(n, 8)):
            values = np.concatenate([np.zeros(n - unlike), np.linspace(0.2, 1, unlike)])
            assert nearly_alike(values, 0.95) == (unlike <= 3), (n, unlike)
    assert not nearly_alike(np.arange(4.0), 0.5)  # a tail of .25 is more than four queries need


def test_an_interval_with_ordinary_spread_is_the_bootstraps() -> None:
    values = np.random.default_rng(0).binomial(10, 0.3, 30) / 10
    distinct, sizes = np.unique(values, return_counts=True)
    draws = np.concatenate(list(drawn_counts(sizes, 1000, np.random.default_rng(0)))) @ distinct / 30
    low, high = percentiles(draws, widened(0.95, 30))
    assert mean_interval(values, range(30)) == (values.mean().round(12), low, high)
    rare = np.append(np.zeros(29), 0.1)  # one reply of 300
    draws = np.random.default_rng(0).multinomial(30, [29 / 30, 1 / 30], 1000) @ [0, 0.1] / 30
    assert mean_interval(rare, range(30)).high > 5 * percentiles(draws, widened(0.95, 30))[1]  # the control


def test_intervals_of_few_queries_cover() -> None:
    """Ten replies to each of three queries, of which one in twenty refuses. A bootstrap, the control, does not."""
    rng, hits, alone = np.random.default_rng(2), 0, 0
    for _ in range(400):
        rates = rng.binomial(10, 0.05, 3) / 10
        found = mean_interval(rates, range(3), n_bootstrap=100)
        hits += found.low <= 0.05 <= found.high
        alone += rates.min() <= 0.05 <= rates.max()
    assert hits >= 0.95 * 400
    assert alone < 0.85 * 400


def test_values_beyond_their_bounds() -> None:
    for bounds in ((0, 1), (2, 1)):
        with pytest.raises(StatesError, match=r"Values from -1 to 0\.5 do not lie within the bounds \(\d, 1\)"):
            mean_interval([-1, 0.5], [0, 1], bounds=bounds)
    assert mean_intervals(np.array([[0.1, 1.0], [0.1, 1.0]]))[1].high == 1.0


def test_few_queries_widen_the_interval() -> None:
    """Percentiles alone, the control, cover the mean too rarely with 5 queries."""
    rng = np.random.default_rng(1)
    covered, without = [], []
    for seed in range(300):
        values = rng.normal(size=5)
        found = mean_interval(values, range(5), n_bootstrap=400, random_state=seed)
        covered.append(found.low <= 0 <= found.high)
        low, high = percentiles(rng.choice(values, size=(400, 5)).mean(axis=1), 0.95)
        without.append(low <= 0 <= high)
    assert np.mean(covered) > 0.88
    assert np.mean(without) < 0.87


def test_draws_of_kinds_are_draws_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drolab.intervals.CHUNK_VALUES", 300)
    chunks = list(drawn_counts([5, 3, 2], 1050, np.random.default_rng(0)))
    shares = np.concatenate(chunks) / 10
    assert [len(chunk) for chunk in chunks] == [100] * 10 + [50]
    assert np.allclose(shares.sum(axis=1), 1)
    assert shares.mean(axis=0) == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert shares[:, 0].var() == pytest.approx(0.25 / 10, rel=0.15)


def test_bad_means() -> None:
    with pytest.raises(StatesError, match=r"0 values \(NaN: 0\)"):
        mean_interval([], [])
    with pytest.raises(StatesError, match=r"2 values \(NaN: 1\)"):
        mean_interval([0.5, float("nan")], [1, 2])
    with pytest.raises(StatesError, match=r"2 values .* in 1 groups"):
        mean_interval([0.5, 0.5], [1])


def test_rates_per_prompt_and_class() -> None:
    index = pd.MultiIndex.from_product([["q0", "q1", "q2"], ["none", "long"]], names=["query_id", "prompt"])
    harmful, rates = [True, True, True, True, False, False], [1, 1, 0, 1, 0, 0.5]
    table = rate_table(pd.DataFrame({"harmful": harmful, "refusal_rate": rates}, index))
    assert list(table.columns) == ["prompt", "harmful", "n_queries", "value", "low", "high"]
    assert list(table[["prompt", "harmful", "n_queries", "value"]].itertuples(index=False, name=None)) == [
        ("none", True, 2, 0.5),
        ("long", True, 2, 1.0),
        ("none", False, 1, 0.0),
        ("long", False, 1, 0.5),
    ]


# --- resampled queries ---------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(20, 2))
    without = np.stack([np.delete(values, i, axis=0).mean(axis=0) for i in range(20)])
    np.testing.assert_allclose(jackknife_error(without), stats.sem(values))


# --- AUCs ----------------------------------------------------------------------------------------------------


def ranked(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels that they tell something of."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < n // 3) * 1.0
    return (rng.normal(size=n) + labels).round(1), labels


def test_soft_labels_are_the_limit_of_repeated_hard_ones() -> None:
    scores, _ = ranked()
    counts = np.random.default_rng(1).integers(0, 5, 60)
    hard = np.concatenate([np.repeat([1, 0], [count, 4 - count]) for count in counts])
    assert auc(scores, counts / 4) == pytest.approx(roc_auc_score(hard, np.repeat(scores, 4)))
    points, labels, weights = weighted_labels(scores, counts / 4)
    assert (weights > 0).all()
    assert (labels @ weights, weights.sum()) == pytest.approx((counts.sum() / 4, 60))
    assert set(points) == set(scores)


def test_one_class_has_no_auc() -> None:
    assert math.isnan(auc(np.arange(3.0), np.ones(3)))
    assert math.isnan(auc(np.arange(3.0), np.zeros(3)))


def test_every_way_to_an_auc_is_the_same_auc() -> None:
    many = [ranked(seed=seed) for seed in range(5)]
    wanted = [roc_auc_score(labels, scores) for scores, labels in many]
    assert aucs(*map(np.stack, zip(*many, strict=True))) == pytest.approx(wanted)
    assert [auc(*one) for one in many] == pytest.approx(wanted)
    assert [Placements.of(*one).auc for one in many] == pytest.approx(wanted)
    tables = [pair_tables(*one, np.arange(60)) for one in many]
    assert [auc_draws([table], np.ones((1, 60)))[0] for table in tables] == pytest.approx(wanted)
    assert auc_draws(tables, np.ones((1, 300)))[0] == pytest.approx(np.mean(wanted))  # pairs within a table only


def test_a_draw_of_queries_is_the_auc_of_their_states() -> None:
    """Two states per query with soft labels: drawn once, twice or not at all."""
    rng = np.random.default_rng(2)
    queries, fractions = np.repeat(np.arange(10), 2), rng.integers(0, 5, 20) / 4
    scores, counts = rng.normal(size=20), np.array([0, 2, 1, 1, 0, 1, 3, 1, 0, 1])
    table = pair_tables(scores, fractions, queries)
    copies = [(query, copy) for query, count in enumerate(counts) for copy in range(count)]
    right = compared = 0.0
    for first in copies:
        for second in copies:
            if first[0] != second[0] or first == second:  # two copies of a query are not compared with each other
                right += table[0, first[0], second[0]]
                compared += table[1, first[0], second[0]]
    assert auc_draws([table], counts[None] * 1.0)[0] == pytest.approx(right / compared)
    assert math.isnan(auc_draws([table], np.zeros((1, 10)))[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 4))
def test_an_auc_has_a_width_also_where_the_classes_lie_apart(positive: int, negative: int, seed: int) -> None:
    labels = np.repeat([1.0, 0.0], [positive, negative])
    for gap in (0.0, 1.0, 20.0):
        scores = np.random.default_rng(seed).normal(size=len(labels)) + gap * labels
        found = Placements.of(scores, labels).interval(0.95)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


def test_delongs_interval_covers() -> None:
    """The AUC of two normal distributions 1 apart, from 25 + 25 queries; a quarter of the width does not cover."""
    rng, truth, labels = np.random.default_rng(3), stats.norm.cdf(1 / math.sqrt(2)), np.repeat([1.0, 0.0], 25)
    found = [Placements.of(rng.normal(size=50) + labels, labels).interval(0.95) for _ in range(600)]
    assert np.mean([one.low <= truth <= one.high for one in found]) == pytest.approx(0.95, abs=0.025)
    assert np.mean([abs(one.value - truth) <= (one.high - one.low) / 8 for one in found]) < 0.6


# --- corrected p-values --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    with patch("gc.collect"):  # statsmodels does at each call: most of a second beside a loaded torch
        wanted = multipletests(values, method="holm")[1]
    np.testing.assert_allclose(holm(np.array(values)), wanted)


def test_aucs_between_queries_leave_pairs_of_one_query_out() -> None:
    generator = np.random.default_rng(0)
    queries, scores = np.repeat(np.arange(12), 3), generator.integers(0, 6, 36).astype(float)
    labels = generator.integers(0, 2, (4, 36)).astype(float)
    found = between_aucs(scores, labels, queries)
    for own, value in zip(labels, found, strict=True):
        pairs = [
            (scores[a] > scores[b]) + 0.5 * (scores[a] == scores[b])
            for a in np.flatnonzero(own == 1)
            for b in np.flatnonzero(own == 0)
            if queries[a] != queries[b]
        ]
        assert value == pytest.approx(np.mean(pairs))
    alone = between_aucs(scores, labels, np.arange(36))
    assert alone == pytest.approx([auc(scores, own) for own in labels])
    assert np.isnan(between_aucs(scores[:3], np.array([[1.0, 0.0, 1.0]]), queries[:3])).all()
