"""Intervals of cross-validated numbers: what test queries and what training queries add, and how often they hold."""

from __future__ import annotations

import numpy as np
import pytest

from drolab.evidence import sweep
from drolab.intervals import auc_draws, aucs, crossval_interval, pair_tables
from drolab.probing import left_out_groups
from drolab.probing.crossval import N_GROUPS

ANY = (-np.inf, np.inf)


def test_the_two_parts_add_in_squares() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=200_000)
    none = crossval_interval(0.0, draws, np.zeros(0), 10_000, 0.95, ANY)
    assert none == pytest.approx((0, -1.96, 1.96), abs=0.03)
    refits = np.tile([1.0, -1.0], 5) / 3  # of ten groups: a jackknife error of 1
    both = crossval_interval(0.0, draws, refits, 10_000, 0.95, ANY)
    assert both == pytest.approx((0, -1.96 * 2**0.5, 1.96 * 2**0.5), abs=0.03)
    assert crossval_interval(0.0, draws, np.full(10, 0.7), 10_000, 0.95, ANY) == pytest.approx(none)
    assert crossval_interval(0.9, 0.9 + draws, refits, 10_000, 0.95, (0.0, 1.0))[1:] == (0.0, 1.0)


def test_groups_hold_every_query_once_with_all_its_rows() -> None:
    queries = np.tile(np.arange(40), 3)
    groups = left_out_groups((queries < 20) * 1.0, queries, 0)
    assert len(groups) == N_GROUPS
    assert sorted(np.concatenate(groups)) == list(range(120))
    for rows in groups:
        assert np.isin(np.flatnonzero(np.isin(queries, queries[rows])), rows).all()
        assert (queries[rows] < 20).mean() == 0.5
    assert len(left_out_groups(np.array([1.0, 1, 1, 0, 0, 0]), np.arange(6), 0)) == 3


def test_readouts_of_nothing_hold_one_half_and_without_the_training_part_do_not() -> None:
    """A ridge readout of labels without meaning: 95 % intervals of 200 data sets hold an AUC of .5."""
    rng = np.random.default_rng(1)
    labels = np.repeat([1.0, 0.0], 30)
    targets = sweep.Targets.make(labels[None], 5, 0, 0, labels[None])
    weights = np.empty((300, 60))
    for half in (slice(30), slice(30, 60)):
        weights[:, half] = rng.multinomial(30, np.full(30, 1 / 30), size=300) / 30
    held = []
    for _ in range(200):
        scores, fewer = sweep.held_out(rng.normal(size=(60, 16)), targets)
        value = aucs(scores[:, 0], labels[None])[0]
        draws = auc_draws([pair_tables(scores[0, 0], labels, np.arange(60))], weights)
        refits = aucs(fewer[:, 0], labels[None])
        both = [crossval_interval(value, draws, part, 60, 0.95, (0.0, 1.0)) for part in (refits, refits[:0])]
        held.append([one.low <= 0.5 <= one.high for one in both])
    ours, control = np.mean(held, axis=0)
    assert ours > 0.92
    assert control < 0.9
