"""Intervals cover, bootstraps draw queries, AUCs are scikit-learn's, and Holm's correction is statsmodels'."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from drolab.errors import StatesError
from drolab.intervals import (
    FISHER,
    LOGIT,
    PLAIN,
    Placements,
    auc,
    auc_draws,
    aucs,
    drawn_counts,
    holm,
    interval,
    jackknife_error,
    mean_interval,
    pair_tables,
    percentiles,
    rate_interval,
    rate_table,
    weighted_labels,
)

# --- an estimate and its standard error ----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1, 1), error=st.floats(0, 2), n=st.integers(2, 500))
def test_intervals_stay_in_their_range_and_hold_the_estimate(value: float, error: float, n: int) -> None:
    for scale, low, high in ((FISHER, -1, 1), (LOGIT, 0, 1), (PLAIN, -math.inf, math.inf)):
        inside = (value + 1) / 2 if scale is LOGIT else value
        limits = interval(inside, error, n, 0.95, scale)
        assert low <= limits.low <= limits.value <= limits.high <= high
        wider = interval(inside, error, n, 0.99, scale)
        assert wider.low <= limits.low
        assert limits.high <= wider.high


def test_a_sure_estimate_has_no_width() -> None:
    assert interval(1.0, 0.0, 50, 0.95, FISHER) == pytest.approx((1.0, 1.0, 1.0), abs=1e-8)
    assert interval(0.5, 0.0, 50, 0.95) == (0.5, 0.5, 0.5)
    assert math.isnan(interval(0.5, math.nan, 50, 0.95).low)


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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_mean_lies_in_its_interval_and_in_the_range(values: list[float]) -> None:
    interval = mean_interval(values, list(range(len(values))), n_bootstrap=100)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.value == pytest.approx(np.mean(values))


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
