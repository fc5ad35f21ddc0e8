"""Directions: each method finds what is planted, its scores mean what they say, and cosines come with a control."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.planted import WIDTH, as_states, axis, planted_states, state_index
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drolab import figures
from drolab.errors import StatesError, UnreliableWarning
from drolab.probing import (
    METHODS,
    Direction,
    coordinates,
    direction_cosines,
    fit_anchors,
    fit_directions,
    fit_probe,
)
from drolab.probing.directions import Features, fit_direction
from drolab.types import HiddenStates


def spread_states(
    *, n_per_class: int = 60, width: int = WIDTH, gap: float = 3.0, mixing: np.ndarray | None = None, seed: int = 0
) -> HiddenStates:
    """Two prompts; the classes lie `gap` apart on axis 0; noise in every axis, made correlated by `mixing`."""
    rng = np.random.default_rng(seed)
    index = state_index(["none", "long"], n_per_class)
    noise = np.tile(rng.normal(size=(2 * n_per_class, width)), (2, 1)) + 0.3 * rng.normal(size=(len(index), width))
    noise = noise if mixing is None else noise @ mixing
    noise[:, 0] += gap * (index["harmful"].to_numpy() - 0.5)
    return as_states(noise, index)


def harmful(states: HiddenStates) -> np.ndarray:
    return states.index["harmful"].to_numpy(dtype=float)


def dealt(states: HiddenStates, seed: int = 0) -> np.ndarray:
    """Labels without meaning, the same for a query under both prompts."""
    return np.tile(np.random.default_rng(seed).permutation(harmful(states)[: len(states) // 2]), 2)


def one(states: HiddenStates, method: str, target: np.ndarray | None = None, **options: object) -> Direction:
    labels = harmful(states) if target is None else target
    return fit_directions(states, labels, positive="harmful", methods=[method], **options)[method]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_planted_direction(method: str) -> None:
    states = spread_states(n_per_class=200)
    direction = one(states, method)
    assert direction.vector[0].item() > 0.9
    assert direction.vector.norm().item() == pytest.approx(1, abs=1e-6)
    right = ((direction.scores(states.matrix()) > 0).numpy() == harmful(states)).mean()
    assert right > 0.85
    assert abs(one(states, method, dealt(states)).vector[0].item()) < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_swapped_target_turns_the_direction_round(method: str) -> None:
    states = spread_states(gap=1.0)
    there, back = one(states, method), one(states, method, 1 - harmful(states))
    torch.testing.assert_close(back.vector, -there.vector, atol=2e-3, rtol=0)
    torch.testing.assert_close(back.scores(states.matrix()), -there.scores(states.matrix()), atol=0.02, rtol=0.01)


@pytest.mark.parametrize(
    ("method", "setting"), [("mean_difference", np.nan), ("leace", 0.1), ("logistic", 0.1), ("sparse", 0.1)]
)
def test_soft_labels_are_the_limit_of_repeated_hard_ones(method: str, setting: float) -> None:
    states = spread_states(gap=1.0, n_per_class=30)
    twice = as_states(states.matrix().repeat(2, 1).numpy(), state_index(["a", "b", "c", "d"], 30))
    sometimes = (harmful(states) + (np.arange(len(states)) % 3 > 0)) / 2
    copies = np.concatenate([sometimes > 0, sometimes == 1]).astype(float)
    soft = fit_direction(method, Features(states=states), sometimes, setting, "harmful")
    # Twice the states weigh twice as much against the same penalty.
    penalty = setting / 2 if method in ("logistic", "sparse") else setting
    hard = fit_direction(method, Features(states=twice), copies, penalty, "harmful")
    torch.testing.assert_close(soft.vector, hard.vector, atol=2e-3, rtol=0)
    torch.testing.assert_close(soft.scores(states.matrix()), hard.scores(states.matrix()), atol=5e-3, rtol=0)


@pytest.mark.parametrize("n_per_class", [60, 20])  # above and below d / 4: two states per query, two classes
def test_logistic_is_scikit_learns_on_standardised_states(n_per_class: int) -> None:
    states = spread_states(n_per_class=n_per_class, width=100)
    states.values[:, 0, 3] *= 1000
    states.values[:, 0, 4] = 0.1
    direction = one(states, "logistic")
    points = states.matrix().double().numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=direction.setting, tol=1e-8, max_iter=10_000))
    wanted = model.fit(points, harmful(states)).decision_function(points)
    np.testing.assert_allclose(direction.scores(states.matrix()), wanted, atol=2e-3)
    assert direction.vector[4] == 0


def test_leace_reads_along_the_whitened_direction_and_removes_along_the_mean_difference() -> None:
    mixing = np.eye(WIDTH)
    mixing[1] = axis(1) + 2 * axis(0)  # noise that axes 0 and 1 share, so that reading 0 alone is bad
    states = spread_states(mixing=mixing)
    reads, removes = one(states, "leace"), one(states, "mean_difference")
    assert reads.vector[1].item() < -0.3
    assert removes.vector[0].item() > 0.8
    points, v, u = states.matrix().double(), reads.vector.double(), removes.vector.double()
    centred = points - points.mean(dim=0)
    target = torch.from_numpy(harmful(states) - 0.5)
    before = (target @ points).norm()
    erased = centred - torch.outer(centred @ v, u) / (v @ u)
    assert (target @ erased).norm() < 1e-5 * before
    control = centred - torch.outer(centred @ v, v)  # projecting out what is read removes little
    assert (target @ control).norm() > 0.5 * before


def test_leace_whitens_with_the_shrunk_covariance_below_and_above_n() -> None:
    for width in (WIDTH, 300):
        states = spread_states(width=width, mixing=np.diag(np.geomspace(1, 5, width)))
        points = states.matrix().double().numpy()
        standard = (points - points.mean(axis=0)) / points.std(axis=0)
        covariance, shrinkage = ledoit_wolf(standard, assume_centered=True)
        slope = np.linalg.solve(covariance, (harmful(states) - 0.5) @ standard) / points.std(axis=0)
        direction = one(states, "leace")
        assert direction.setting == pytest.approx(shrinkage)
        np.testing.assert_allclose(direction.vector, slope / np.linalg.norm(slope), atol=1e-5)


def test_sparse_uses_few_coordinates_and_says_how_many() -> None:
    states = spread_states(width=100)
    direction = one(states, "sparse")
    assert 1 <= direction.n_coordinates < 30
    assert one(states, "logistic").n_coordinates == 100
    assert f"n_coordinates={direction.n_coordinates}" in repr(direction)


def test_the_anchor_probe_is_the_papers(states: HiddenStates) -> None:
    space = fit_anchors(states)
    probe = fit_probe(space, states, harmful(states), positive="harmful")
    for direction in (one(states, "anchor_probe"), one(states, "anchor_probe", space=space)):
        torch.testing.assert_close(direction.vector, probe.direction(space), atol=1e-6, rtol=0)
        logits = probe.decision_function(coordinates(space, states))
        torch.testing.assert_close(direction.scores(states.matrix()), logits, atol=1e-4, rtol=1e-4)


def test_scores_of_a_plain_direction_are_log_odds() -> None:
    states = spread_states(n_per_class=400)
    scores = one(states, "mean_difference").scores(states.matrix()).double()
    frequency, expected = harmful(states), scores.sigmoid().numpy()
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        chosen = (expected >= low) & (expected < high)
        assert frequency[chosen].mean() == pytest.approx(expected[chosen].mean(), abs=0.08)


def test_a_layer_that_is_not_the_last() -> None:
    states = spread_states()
    deep = HiddenStates(
        values=torch.cat([states.values, torch.zeros_like(states.values)], dim=1),
        index=states.index,
        layers=(1, 2),
        num_hidden_layers=2,
    )
    fitted = fit_directions(deep, harmful(states), positive="harmful", layer=1)
    assert {direction.layer for direction in fitted.values()} == {1}
    assert min(direction.vector[0].item() for direction in fitted.values()) > 0.8
    told: list[tuple[int, int]] = []
    refits = {"n_groups": 4, "progress": lambda *counts: told.append(counts)}
    table = direction_cosines(fitted, deep, {"harmful": harmful(states)}, **refits)
    assert table["cosine"].notna().all()
    assert told == [(done, 4) for done in range(5)]
    with pytest.raises(StatesError, match=r"240 states are equal.*pass others"):
        fit_directions(deep, harmful(states), positive="harmful", layer=2)
    with pytest.raises(StatesError, match=r"space is of layer 2, the directions are of layer 1: pass a space"):
        fit_directions(deep, harmful(states), positive="harmful", layer=1, space=fit_anchors(states))


@pytest.fixture
def states() -> HiddenStates:
    return spread_states()


def test_cosines_with_intervals_and_a_random_control(states: HiddenStates) -> None:
    labels = harmful(states)
    fitted = fit_directions(states, labels, positive="harmful")
    table = direction_cosines(fitted, states, {"harmful": labels})
    assert list(table.columns) == ["a", "b", "kind", "cosine", "low", "high", "correlation"]
    assert len(table) == math.comb(len(METHODS) + 1, 2)
    assert (table["low"] <= table["cosine"]).all()
    assert (table["cosine"] <= table["high"]).all()
    real, control = table[table["kind"] == "direction"], table[table["b"] == "random"]
    assert real["low"].min() > 0.6
    assert real["correlation"].min() > 0.8
    assert control["cosine"].abs().max() < 0.6
    row = real.iloc[0]
    assert row["cosine"] == pytest.approx(float(fitted[row["a"]].vector @ fitted[row["b"]].vector), abs=1e-6)
    assert len(figures.cosine_heatmap(table).data[0].z) == len(METHODS) + 1


def test_directions_of_two_targets_and_of_none(states: HiddenStates) -> None:
    other = (states.matrix()[:, 5] > 0).numpy().astype(float)
    fitted = {
        "harm": one(states, "mean_difference"),
        "other": fit_directions(states, other, positive="other", methods=["mean_difference"])["mean_difference"],
    }
    bare = direction_cosines(fitted)
    assert bare[["low", "high", "correlation"]].isna().all().all()
    table = direction_cosines(fitted, states, {"harmful": harmful(states), "other": other})
    assert abs(table["cosine"].iloc[0]) < 0.4
    assert table["high"].iloc[0] - table["low"].iloc[0] < 1
    with pytest.raises(StatesError, match=r"No target for \['other'\]: pass targets="):
        direction_cosines(fitted, states, {"harmful": harmful(states)})
    with pytest.raises(StatesError, match="none called 'random'"):
        direction_cosines({"random": fitted["harm"]})
    with pytest.raises(StatesError, match="at least one direction"):
        direction_cosines({})


def test_the_interval_covers_what_other_queries_give() -> None:
    """The jackknife errs to the safe side: of 20 data sets, nearly every interval holds the mean cosine."""
    tables = []
    for seed in range(20):
        states = spread_states(n_per_class=40, gap=1.5, mixing=np.diag(np.geomspace(0.3, 2, WIDTH)), seed=seed)
        labels, methods = harmful(states), ["mean_difference", "leace"]
        fitted = fit_directions(states, labels, positive="harmful", methods=methods)
        tables.append(direction_cosines(fitted, states, {"harmful": labels}).iloc[0])
    low, high, cosine = (np.array([table[name] for table in tables]) for name in ("low", "high", "cosine"))
    assert ((low < cosine.mean()) & (cosine.mean() < high)).mean() > 0.85
    assert (high - low).mean() < 0.4  # and says something


def test_errors_that_say_what_to_do(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match=r"No method 'svm' .*: choose from \['anchor_probe'"):
        one(states, "svm")
    with pytest.raises(StatesError, match="is 1 for all 240 states"):
        one(states, "leace", np.ones(len(states)))
    with pytest.raises(StatesError, match=r"shape \[n, 24\], got \[3, 5\]: pass states.matrix\(2\)"):
        one(states, "leace").scores(torch.zeros(3, 5))


def test_directions_of_noise_say_so() -> None:
    states = planted_states({"long": 3 * axis(1)})
    noise = np.random.default_rng(0).binomial(10, 0.1, len(states)) / 10
    with pytest.warns(UnreliableWarning, match="'refuses' cannot be told from chance"):
        found = fit_directions(states, noise, positive="refuses", methods=["mean_difference", "leace"])
    assert len({one.problem for one in found.values()} - {""}) == 1
    harm = fit_directions(states, states.index["harmful"].to_numpy(), positive="harmful", methods=["mean_difference"])
    assert harm["mean_difference"].problem == ""


def test_the_anchor_probe_answers_for_its_four_components_only() -> None:
    """Refusal lies on an axis that the space does not hold: the other methods read it, the anchor probe does not."""
    rng = np.random.default_rng(0)
    states = planted_states({"long": 3 * axis(1)}, n_per_class=60)
    values = states.values[:, 0].double().numpy()
    values[:, 23] = np.tile(0.3 * rng.normal(size=120), 2)
    target = rng.binomial(10, 1 / (1 + np.exp(-12 * values[:, 23]))) / 10
    with pytest.warns(UnreliableWarning, match="cannot be told from chance"):
        found = fit_directions(
            as_states(values, states.index), target, positive="refuses", methods=["anchor_probe", "leace"]
        )
    assert found["anchor_probe"].problem != ""
    assert found["leace"].problem == ""


def test_one_refusal_gives_directions_with_a_problem() -> None:
    states = planted_states({"long": 3 * axis(1)})
    target = np.zeros(len(states))
    target[0] = 0.1
    with pytest.warns(UnreliableWarning, match="Only 1 of 60 queries"):
        found = fit_directions(states, target, positive="refuses")
    assert all(one.problem for one in found.values())
