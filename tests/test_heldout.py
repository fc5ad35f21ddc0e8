"""Intervals of cross-validated numbers: what test queries and what training queries add, and how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from drolab import ridge
from drolab.heldout import N_GROUPS, limits, query_groups, training_variance, without_each

ANY = (-np.inf, np.inf)


def table(trained: np.ndarray, tested: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Refits of k groups: effects of the group left out of training, of that left out of the test, and of both."""
    refits = np.add.outer(np.append(0.0, trained), np.append(0.0, tested))
    refits[1:, 1:] += together
    return refits


def test_the_two_parts_add_in_squares() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=200_000)
    none = limits(0.0, draws, np.zeros((1, 1)), 10_000, 0.95, ANY)
    assert none == pytest.approx((-1.96, 1.96), abs=0.03)
    apart = np.tile([1.0, -1.0], 5) / 3  # of ten groups: a jackknife error of 1
    refits = table(apart, rng.normal(size=10), np.zeros((10, 10)))
    both = limits(0.0, draws, refits, 10_000, 0.95, ANY)
    half = float(np.hypot(1.96, stats.t.ppf(0.975, 9)))  # ten groups: nine degrees of freedom
    assert both == pytest.approx((-half, half), abs=0.03)
    assert limits(0.0, draws, np.full((11, 11), 0.7), 10_000, 0.95, ANY) == pytest.approx(none)
    assert limits(0.9, 0.9 + draws, refits, 10_000, 0.95, (0.0, 1.0)) == (0.0, 1.0)


def test_what_tested_and_training_queries_do_to_each_other_alike_is_not_taken_off() -> None:
    rng = np.random.default_rng(0)
    apart, pairs = np.tile([1.0, -1.0], 5), rng.normal(size=(10, 10)) / 30
    alike, other = pairs + pairs.T, pairs - pairs.T
    assert training_variance(table(apart, apart, 0 * pairs)) == pytest.approx(9.0)
    assert training_variance(table(apart, apart, alike)) == pytest.approx(9.0)
    taken = 81 * (4 * other[~np.eye(10, dtype=bool)] ** 2).mean() / 2
    assert training_variance(table(apart, apart, other)) == pytest.approx(9.0 - taken)
    assert training_variance(table(apart, apart, 30 * other)) == 0.0


def test_the_variance_is_that_of_many_data_sets() -> None:
    """The AUC of a ridge readout of labels without meaning: what the two parts sum to, on average. The control, which
    takes nothing off, is far too large."""
    rng, labels = np.random.default_rng(1), np.repeat([1.0, 0.0], 25)
    targets = ridge.Targets.make(labels[None], 5, 0, 0)
    kept = without_each(np.arange(50), targets.left_out)
    for half in (slice(25), slice(25, 50)):
        kept[:, half] /= kept[:, half].sum(axis=1, keepdims=True)
    values, found = [], []
    for _ in range(250):
        scores, fewer = (own[:, 0] for own in ridge.held_out(rng.normal(size=(50, 30)), targets))
        wins = (scores[0, :25, None] > scores[0, 25:]).astype(float)
        tested = sum(stats.sem(wins.mean(axis=axis)) ** 2 for axis in (0, 1))
        refits = np.stack([ridge.auc_draws(own, labels, kept) for own in (scores[0], *fewer)])
        values.append(wins.mean())
        found.append([tested + training_variance(refits), tested + 9 * refits[1:, 0].var()])
    ours, control = np.mean(found, axis=0) / np.var(values)
    assert ours == pytest.approx(1.0, abs=0.3)
    assert control > 1.3


def test_groups_hold_every_query_once_with_all_its_rows() -> None:
    queries = np.tile(np.arange(40), 3)
    groups = query_groups((queries < 20) * 1.0, queries, 0)
    assert len(groups) == N_GROUPS
    assert sorted(np.concatenate(groups)) == list(range(120))
    for rows in groups:
        assert np.isin(np.flatnonzero(np.isin(queries, queries[rows])), rows).all()
        assert (queries[rows] < 20).mean() == 0.5
    assert len(query_groups(np.array([1.0, 1, 1, 0, 0, 0]), np.arange(6), 0)) == 3


def test_readouts_of_nothing_hold_one_half_and_without_the_training_part_do_not() -> None:
    """A ridge readout of labels without meaning: 95 % intervals of 200 data sets hold an AUC of .5."""
    rng = np.random.default_rng(1)
    labels = np.repeat([1.0, 0.0], 30)
    targets = ridge.Targets.make(labels[None], 5, 0, 0)
    weights, kept = np.empty((300, 60)), without_each(np.arange(60), targets.left_out)
    for half in (slice(30), slice(30, 60)):
        weights[:, half] = rng.multinomial(30, np.full(30, 1 / 30), size=300) / 30
        kept[:, half] /= kept[:, half].sum(axis=1, keepdims=True)
    held = []
    for _ in range(200):
        scores, fewer = ridge.held_out(rng.normal(size=(60, 16)), targets)
        value = ridge.aucs(scores[:, 0], labels[None])[0]
        draws = ridge.auc_draws(scores[0, 0], labels, weights)
        refits = np.stack([ridge.auc_draws(own, labels, kept) for own in (scores[0, 0], *fewer[:, 0])])
        both = [limits(value, draws, part, 60, 0.95, (0.0, 1.0)) for part in (refits, refits[:1, :1])]
        held.append([low <= 0.5 <= high for low, high in both])
    ours, control = np.mean(held, axis=0)
    assert ours > 0.92
    assert control < 0.9
