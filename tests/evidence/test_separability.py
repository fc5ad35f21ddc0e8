"""Telling the classes apart from their states: intervals, controls, and what a prompt changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import WIDTH, as_states, axis, planted_states, state_index
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from drolab.errors import StatesError
from drolab.evidence import auc_change, separability, shuffled_aucs
from drolab.evidence.separability import standardised
from drolab.probing import fit_anchors
from drolab.types import AnchorSpace, HiddenStates

SAFE, NEUTRAL = 3 * axis(1), 3 * axis(12)


@pytest.fixture(scope="module")
def states() -> HiddenStates:
    return planted_states({"long": SAFE, "short": 0.5 * SAFE + axis(13), "neutral": NEUTRAL})


def test_separable_classes_and_shuffled_labels(states: HiddenStates) -> None:
    space = fit_anchors(states)
    found = separability(states, prompt="none", space=space, n_splits=5)
    assert found["features"].tolist() == ["anchor", "full"]
    assert (found["auc"] > 0.9).all()
    assert (found["accuracy"] > 0.85).all()
    many = planted_states({"long": SAFE, "short": SAFE, "neutral": NEUTRAL}, n_per_class=100)
    control = separability(many, space=space, prompt=["none", "long"], n_splits=3, shuffle_labels=True)
    assert control["prompt"].tolist() == ["none", "none", "long", "long"]
    for name in ("auc", "accuracy"):
        assert np.allclose(control[name], 0.5, atol=0.05)
        assert ((control[f"{name}_low"] < 0.5) & (control[f"{name}_high"] > 0.5)).all()
    for name in ("auc", "accuracy"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()


def test_several_layers_are_read_one_after_the_other(states: HiddenStates) -> None:
    twice = replace(states, values=torch.cat([torch.zeros_like(states.values), states.values], dim=1), layers=(1, 2))
    done: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"prompt": ["none", "long"], "n_splits": 5, "n_repeats": 1}
    found = separability(twice, layer=(1, 2), progress=lambda *counts: done.append(counts), **settings)
    assert done == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert found["layer"].tolist() == [1, 1, 2, 2]
    last = found[found["layer"] == 2].drop(columns="layer").reset_index(drop=True)
    pd.testing.assert_frame_equal(last, separability(states, **settings))
    assert (found["auc"][:2] == 0.5).all()  # all states are equal there


def test_classes_without_a_difference_are_not_separable() -> None:
    found = separability(planted_states({}, gap=0.0, n_per_class=60), n_splits=5)
    assert found["auc_low"].item() < 0.5 < found["auc_high"].item() + 0.05


def test_separability_of_one_class(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="these are of one class: add the other"):
        separability(states.select(harmful=True))


def two_conditions(n: int, gap: float, gain: float, seed: int) -> HiddenStates:
    """n + n queries in 4 dimensions under `none` and `more`, which moves all of them and the classes by `gain` more."""
    rng = np.random.default_rng(seed)
    side = np.repeat([0.5, -0.5], n)
    none = rng.normal(size=(2 * n, 4)) + gap * side[:, None] * [1, 0, 0, 0]
    more = 0.8 * (none - gap * side[:, None] * [1, 0, 0, 0]) + 0.6 * rng.normal(size=(2 * n, 4))
    more += (gap + gain) * side[:, None] * [1, 0, 0, 0] + [0, 3, 0, 0]
    values = np.zeros((4 * n, WIDTH))
    values[:, :4] = np.concatenate([none, more])
    return as_states(values, state_index(["none", "more"], n))


def flat(states: HiddenStates) -> AnchorSpace:
    return fit_anchors(states, n_components=4)


def test_the_auc_is_that_of_held_out_scores() -> None:
    states = two_conditions(40, gap=2.0, gain=0.0, seed=0)
    found = separability(states, prompt="none", n_splits=5).iloc[0]
    normal = stats.norm.cdf(2.0 / np.sqrt(2))  # of the best score there is
    assert found["auc_low"] < normal < found["auc_high"]
    first_axis = roc_auc_score(states.index["harmful"][:80], states.values[:80, 0, 0])
    assert found["auc"] == pytest.approx(first_axis, abs=0.06)


def test_a_perfect_auc_is_not_certain() -> None:
    found = separability(planted_states({}, gap=20.0, n_per_class=15), n_splits=5).iloc[0]
    assert found["auc"] == 1
    assert 0.6 < found["auc_low"] < 0.9


def test_no_change_of_a_perfect_auc_has_a_width() -> None:
    states = two_conditions(15, gap=40.0, gain=0.0, seed=0)
    row = auc_change(states, flat(states), ["more"], n_repeats=1, n_splits=5).iloc[0]
    assert (row["auc"], row["baseline_auc"], row["change"], row["p"]) == (1, 1, 0, 1)
    assert row["low"] == -row["high"] < -0.01


def test_a_prompt_that_only_moves_changes_nothing_and_one_that_separates_does() -> None:
    false = 0
    for seed in range(60):
        states = two_conditions(40, gap=1.5, gain=0.0, seed=seed)
        false += auc_change(states, flat(states), ["more"], n_repeats=1, n_splits=5)["p"].iloc[0] < 0.05
    assert false <= 8
    states = two_conditions(100, gap=1.5, gain=1.5, seed=0)
    table = auc_change(states, flat(states), ["more"], n_repeats=2)
    assert table["prompt"].tolist() == ["more", "all"]
    assert table["change"].iloc[0] == pytest.approx(table["auc"].iloc[0] - table["baseline_auc"].iloc[0])
    assert table["low"].iloc[0] > 0
    assert table["p"].iloc[0] < 1e-3
    assert table.drop(columns="prompt").iloc[0].equals(table.drop(columns="prompt").iloc[1])


def test_the_order_of_the_queries_does_not_matter_but_their_names_do() -> None:
    states = two_conditions(30, gap=1.5, gain=0.5, seed=1)
    table = auc_change(states, flat(states), ["more"], n_repeats=1)
    turned = states.select(prompt="more")
    flipped = HiddenStates(
        values=turned.values.flip(0), index=turned.index[::-1].reset_index(drop=True), layers=(2,), num_hidden_layers=2
    )
    both = HiddenStates(
        values=np_cat(states.select(prompt="none"), flipped),
        index=pd.concat([states.select(prompt="none").index, flipped.index], ignore_index=True),
        layers=(2,),
        num_hidden_layers=2,
        model_fingerprint="planted",
    )
    pd.testing.assert_frame_equal(auc_change(both, flat(states), ["more"], n_repeats=1), table)
    index = both.index.assign(query_id=both.index["query_id"].where(both.index["prompt"] == "none", "other"))
    with pytest.raises(StatesError, match="'more' has other queries than 'none'"):
        auc_change(
            HiddenStates(
                values=both.values, index=index, layers=(2,), num_hidden_layers=2, model_fingerprint="planted"
            ),
            flat(states),
            ["more"],
        )


def np_cat(first: HiddenStates, second: HiddenStates) -> torch.Tensor:
    return torch.cat([first.values, second.values])


def test_a_wide_model_is_scored_as_in_all_its_dimensions() -> None:
    rng = np.random.default_rng(3)
    points, labels = rng.normal(size=(30, 200)) * rng.random(200) + 5, np.repeat([1.0, 0.0], 15)
    whole = (points - points.mean(axis=0)) / points.std(axis=0)
    features = standardised(torch.from_numpy(points))
    assert features.shape == (30, 30)
    model = LogisticRegression(tol=1e-9)
    scores = [model.fit(own[::2], labels[::2]).decision_function(own[1::2]) for own in (features, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    cut = features[:, -15:]  # the control: half of the span
    assert model.fit(cut[::2], labels[::2]).decision_function(cut[1::2]) != pytest.approx(scores[1], abs=0.05)


def test_shuffled_labels() -> None:
    states = two_conditions(40, gap=3.0, gain=0.0, seed=2)
    dealt = shuffled_aucs(states.select(prompt="none"), flat(states), n_splits=5, n_shuffles=20)
    assert dealt.shape == (20,)
    assert abs(dealt.mean() - 0.5) < 0.07
    assert dealt.max() < separability(states, prompt="none", n_splits=5)["auc"].item()
