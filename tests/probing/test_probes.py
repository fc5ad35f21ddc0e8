"""Probes: soft labels, alignment by name, the sign of `refusal`, and cross-validation grouped by query."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import as_states, axis, parity_states, planted_states, state_index
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict

from drolab.errors import StatesError, TooFewError, UnreliableWarning
from drolab.intervals import auc
from drolab.probing import align_target, check_table, coordinates, cross_validate, fit_anchors, fit_probe, try_probe
from drolab.probing.crossval import RIDGE, spread_folds
from drolab.types import AnchorSpace, HiddenStates


@pytest.fixture
def states() -> HiddenStates:
    return planted_states({"long": 3 * axis(1)})


@pytest.fixture
def space(states: HiddenStates) -> AnchorSpace:
    return fit_anchors(states)


def by_query(states: HiddenStates) -> pd.Series:
    return states.index.drop_duplicates("query_id").set_index("query_id")["harmful"]


def test_refusal_points_against_the_papers_compliance_probe(reference: Path) -> None:
    states = parity_states(reference)
    paper = load_file(reference / "parity" / "anchor.safetensors")
    # The reference space itself, so that its probes' coefficients mean the same axes.
    space = replace(fit_anchors(states), components=paper["components"].float())
    folds = load_file(reference / "parity" / "probes.safetensors")
    complies = coordinates(space, states) @ folds["refusal.weight"].mean(0)[0] + folds["refusal.bias"].mean()
    scores = json.loads((reference / "parity" / "compliance_scores.json").read_text())
    compliance = np.concatenate(
        [scores[f"{p}.{k}"] for k in ("harmless", "harmful") for p in ("none", "default", "short", "mistral")]
    )
    refusal = fit_probe(space, states, 1 - compliance, positive="refuses")
    logits = refusal.decision_function(coordinates(space, states))
    assert np.corrcoef(logits, complies)[0, 1] < -0.3
    assert np.corrcoef(logits, 1 - compliance)[0, 1] > 0
    assert np.corrcoef(complies, compliance)[0, 1] > 0
    assert refusal.positive == "refuses"


def test_soft_labels_are_the_limit_of_repeated_hard_ones(states: HiddenStates, space: AnchorSpace) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, len(states))
    soft = fit_probe(space, states, counts / 4, positive="refuses")
    points = coordinates(space, states).double().numpy()
    labels = np.concatenate([np.repeat([1, 0], [count, 4 - count]) for count in counts])
    hard = LogisticRegression(C=0.25, tol=1e-8, max_iter=10_000).fit(np.repeat(points, 4, axis=0), labels)
    np.testing.assert_allclose(soft.coef, hard.coef_[0], atol=1e-3)
    assert soft.intercept == pytest.approx(hard.intercept_[0], abs=1e-3)


def test_the_three_kinds_of_target_agree(states: HiddenStates, space: AnchorSpace) -> None:
    harmful = by_query(states)
    probes = [
        fit_probe(space, states, target, positive="harmful")
        for target in (
            harmful,
            harmful.sample(frac=1, random_state=0),
            states.index.set_index(["query_id", "prompt"])["harmful"].sample(frac=1, random_state=1),
            states.index["harmful"].to_numpy(),
            states.index["harmful"].tolist(),
        )
    ]
    for probe in probes[1:]:
        torch.testing.assert_close(probe.coef, probes[0].coef)
    assert (probes[0].direction(space)[0]).item() > 0.9


def test_a_swapped_target_turns_the_probe_round(states: HiddenStates, space: AnchorSpace) -> None:
    probe = fit_probe(space, states, by_query(states), positive="harmful")
    swapped = fit_probe(space, states, ~by_query(states), positive="harmless")
    torch.testing.assert_close(swapped.coef, -probe.coef, atol=1e-5, rtol=1e-5)


def test_a_subset_of_states_takes_its_part_of_the_target(states: HiddenStates) -> None:
    target = states.index.set_index(["query_id", "prompt"])["harmful"]
    part = states.select(prompt="long")
    np.testing.assert_array_equal(align_target(part, target), part.index["harmful"])


def test_missing_rows_are_named(states: HiddenStates, space: AnchorSpace) -> None:
    target = states.index.set_index(["query_id", "prompt"])["harmful"].iloc[5:]
    with pytest.raises(StatesError, match=r"no value for 5 of 120 states: \(q0, none\), \(q1, none\).*…: select"):
        fit_probe(space, states, target, positive="harmful")
    with pytest.raises(StatesError, match=r"no value for 2 of 120 states: \(q0, none\), \(q0, long\)"):
        fit_probe(space, states, by_query(states).iloc[1:], positive="harmful")
    with pytest.raises(StatesError, match=r"pass .to_numpy\(\) to go by row order"):
        fit_probe(space, states, states.index["harmful"], positive="harmful")


def test_a_target_with_two_values_for_one_state(states: HiddenStates, space: AnchorSpace) -> None:
    target = pd.concat([by_query(states), by_query(states).head(1)])
    with pytest.raises(StatesError, match="several values for q0: average them"):
        fit_probe(space, states, target, positive="harmful")


def test_a_target_of_the_wrong_length(states: HiddenStates, space: AnchorSpace) -> None:
    with pytest.raises(StatesError, match=r"shape \[3\] for 120 states: give one value per state"):
        fit_probe(space, states, [0, 1, 0], positive="harmful")


def test_a_target_that_is_nan(states: HiddenStates, space: AnchorSpace) -> None:
    target = by_query(states).astype(float)
    target["q7"] = float("nan")
    with pytest.raises(StatesError, match=r"NaN for 2 of 120 states: \(q7, none\), \(q7, long\): drop"):
        fit_probe(space, states, target, positive="refuses")


def test_counts_instead_of_fractions(states: HiddenStates, space: AnchorSpace) -> None:
    with pytest.raises(StatesError, match=r"must lie in \[0, 1\], got 0 to 20: divide counts by n_samples"):
        fit_probe(space, states, by_query(states) * 20, positive="refuses")


@pytest.mark.parametrize("value", [0, 1])
def test_a_class_that_is_missing(states: HiddenStates, space: AnchorSpace, value: int) -> None:
    with pytest.raises(StatesError, match=rf"probe 'refuses' is {value} for all 120 states.*add queries"):
        fit_probe(space, states, np.full(len(states), value), positive="refuses")


def test_soft_labels_below_one_half_are_enough(states: HiddenStates, space: AnchorSpace) -> None:
    probe = fit_probe(space, states, 0.4 * by_query(states), positive="refuses")
    probabilities = probe.decision_function(coordinates(space, states)).sigmoid()
    assert probabilities.mean().item() == pytest.approx(0.2, abs=1e-4)


def test_cross_validation_on_separable_classes(states: HiddenStates, space: AnchorSpace) -> None:
    table = cross_validate(space, states, by_query(states), n_splits=5)
    assert list(table.columns) == ["fold", "n_test", "accuracy", "auc"]
    assert table["n_test"].sum() == len(states)
    assert table["accuracy"].mean() > 0.95
    assert table["auc"].mean() > 0.95
    pd.testing.assert_frame_equal(table, cross_validate(space, states, by_query(states), n_splits=5))


def test_grouping_by_query_prevents_what_ungrouped_folds_pretend() -> None:
    """Labels without meaning, and states that repeat their query's noise under each of eight prompts.

    Ungrouped folds recognise each query from its copies and score far above chance; grouped ones cannot.
    """
    rng = np.random.default_rng(0)
    n_per_class, prompts = 15, [f"p{number}" for number in range(8)]
    index = state_index(prompts, n_per_class)
    noise = np.tile(rng.normal(size=(2 * n_per_class, 24)), (8, 1))
    states = as_states(noise + 0.01 * rng.normal(size=noise.shape), index)
    space = fit_anchors(states, n_components=20)
    labels = index["harmful"].to_numpy()
    grouped = cross_validate(space, states, labels, n_splits=5, C=100)["accuracy"].mean()
    guesses = cross_val_predict(
        LogisticRegression(C=100, max_iter=10_000),
        coordinates(space, states).numpy(),
        labels,
        cv=KFold(5, shuffle=True, random_state=0),
    )
    ungrouped = (guesses == labels).mean()
    assert ungrouped > 0.85
    assert grouped < 0.65


def test_too_many_folds(states: HiddenStates, space: AnchorSpace) -> None:
    few = states.select(prompt="none")
    with pytest.raises(TooFewError, match=r"n_splits=40 folds.* \(the fewest here: 30\): take more queries"):
        cross_validate(space, few, by_query(states), n_splits=40)
    for impossible in (1, 500):
        with pytest.raises(StatesError, match=f"n_splits={impossible} folds") as caught:
            cross_validate(space, few, by_query(states), n_splits=impossible)
        assert caught.type is StatesError  # nothing that a notebook could end with in peace


def test_hardly_any_positive_is_said(space: AnchorSpace, states: HiddenStates) -> None:
    target = np.zeros(len(states))
    target[0] = 0.05
    with pytest.raises(TooFewError, match=r"n_splits=10 folds.* fewest here: 1"):
        cross_validate(space, states, target)


@pytest.mark.parametrize("C", [0, -1.0, float("inf"), float("nan")])
def test_a_penalty_that_is_none(space: AnchorSpace, states: HiddenStates, C: float) -> None:
    with pytest.raises(StatesError, match="C must be a number above 0"):
        fit_probe(space, states, by_query(states), positive="harmful", C=C)


def test_a_target_of_words(space: AnchorSpace, states: HiddenStates) -> None:
    words = by_query(states).map({True: "refusal", False: "compliance"})
    for target in (words, ["refusal"] * len(states)):
        with pytest.raises(StatesError, match="must be booleans or numbers from 0 to 1"):
            fit_probe(space, states, target, positive="refuses")  # type: ignore[arg-type]


def test_a_target_by_row_numbers_is_not_guessed(space: AnchorSpace, states: HiddenStates) -> None:
    with pytest.raises(StatesError, match=r"row numbers, which are no query ids. Take the column from load_queries"):
        fit_probe(space, states, by_query(states).reset_index(drop=True), positive="harmful")


# does it read anything?


def refusals(states: HiddenStates, slope: float, seed: int = 0) -> np.ndarray:
    """Shares of refusals in 10 samples that rise along axis 2, in which queries differ whatever their class."""
    logits = slope * states.matrix().double().numpy()[:, 2] - 1
    return np.random.default_rng(seed).binomial(10, 1 / (1 + np.exp(-logits))) / 10


@pytest.mark.parametrize("value", [0.05, 0.5])
def test_a_target_that_is_the_same_everywhere(states: HiddenStates, space: AnchorSpace, value: float) -> None:
    with pytest.raises(StatesError, match=rf"is {value} for all 120 states, so there is nothing to tell apart"):
        fit_probe(space, states, np.full(len(states), value), positive="refuses")


def test_where_no_probe_can_be_fitted_the_reason_is_given(states: HiddenStates, space: AnchorSpace) -> None:
    probe, problem = try_probe(space, states, np.zeros(len(states)), positive="refuses")
    assert probe is None
    assert problem.startswith("The target of the probe 'refuses' is 0 for all 120 states")
    target = refusals(states, 3.0)
    found, problem = try_probe(space, states, target, positive="refuses")
    assert found is not None
    assert found.identity == fit_probe(space, states, target, positive="refuses").identity
    assert problem == found.problem == ""
    with pytest.raises(StatesError, match="must lie in"):  # a mistake is no property of the model
        try_probe(space, states, 10 * target, positive="refuses")


def test_noise_does_not_pass_and_what_is_there_does() -> None:
    """Targets with and without meaning, under two prompts. benchmarks/calibration.py has 2,000 sets of queries."""
    problems: dict[float, list[bool]] = {0.0: [], 2.5: []}
    for slope, found in problems.items():
        for seed in range(25):
            states = planted_states({"long": 3 * axis(1)}, n_per_class=25, seed=seed)
            probe = fit_probe(fit_anchors(states, n_components=8), states, refusals(states, slope, seed), positive="r")
            found.append(bool(probe.problem))
    assert np.mean(problems[0.0]) == 1
    assert np.mean(problems[2.5]) < 0.2


def test_what_the_prompt_alone_does_is_no_reading_of_the_queries(states: HiddenStates, space: AnchorSpace) -> None:
    """All queries are refused more often under the prompt, which the states show: any probe finds the prompt."""
    rate = np.where(states.index["prompt"] == "long", 0.6, 0.2)
    target = np.random.default_rng(0).binomial(10, rate) / 10
    with pytest.warns(UnreliableWarning, match="cannot be told from chance with these 60 queries: AUC 0.[67]"):
        probe = fit_probe(space, states, target, positive="refuses")
    assert probe.check is not None
    assert min(probe.check.null) > 0.55  # shuffled queries keep the prompt


def test_hardly_any_refusals_are_counted(states: HiddenStates, space: AnchorSpace) -> None:
    rare = pd.Series(0.0, index=by_query(states).index)
    rare.iloc[[3, 40]] = 0.1
    with pytest.warns(
        UnreliableWarning, match="Only 2 of 60 queries have anything of 'refuses'.*Add queries, most of the rarer kind"
    ):
        probe = fit_probe(space, states, rare, positive="refuses")
    assert probe.check is not None
    assert np.isnan(probe.check.auc)
    assert probe.refits is None
    with pytest.warns(UnreliableWarning, match="All but 2 of 60 queries have nothing but 'answers'"):
        fit_probe(space, states, 1 - rare, positive="answers")


def test_a_check_changes_nothing_of_the_probe(states: HiddenStates, space: AnchorSpace) -> None:
    target = refusals(states, 1.5)
    checked, plain = (fit_probe(space, states, target, positive="refuses", check=check) for check in (True, False))
    assert checked.identity == plain.identity
    assert plain.check is None
    assert plain.problem == checked.problem == ""
    assert checked.check is not None
    assert checked.check.auc > max(checked.check.null)
    assert checked.refits is not None
    assert checked.refits.shape == (10, 4)
    assert (checked.refits - checked.coef).abs().max() < checked.coef.abs().max()


def test_the_aucs_are_those_of_ridge_regressions_without_the_fold(states: HiddenStates, space: AnchorSpace) -> None:
    target = refusals(states, 1.5)
    probe = fit_probe(space, states, target, positive="refuses")
    points = coordinates(space, states).double().numpy()
    scaled, predicted = (points - points.mean(axis=0)) / points.std(axis=0), np.empty(len(points))
    for rows in spread_folds(target, states.index["query_id"].to_numpy(), 0):
        train = np.setdiff1d(np.arange(len(points)), rows)
        model = Ridge(alpha=RIDGE * len(points)).fit(scaled[train], target[train])
        predicted[rows] = model.predict(scaled[rows]) - target[train].mean()
    assert probe.check is not None
    assert probe.check.auc == pytest.approx(auc(predicted, target))


def test_the_auc_of_soft_labels_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 7, 200):
        scores, fractions = rng.integers(0, 9, n) / 3, np.r_[0.0, 1.0, rng.uniform(size=n - 2)]
        twice, weights = np.repeat([1.0, 0.0], n), np.r_[fractions, 1 - fractions]
        expected = roc_auc_score(twice, np.tile(scores, 2), sample_weight=weights)
        assert auc(scores, fractions) == pytest.approx(expected)
    assert np.isnan(auc(np.arange(3.0), np.ones(3)))


def test_queries_that_share_no_prompt_cannot_be_shuffled() -> None:
    states = planted_states({"long": 3 * axis(1)}).select(prompt="none")
    alone = replace(states, index=states.index.assign(prompt=states.index["query_id"]))
    with pytest.warns(
        UnreliableWarning, match="60 queries were asked under prompts that no other query was asked under"
    ):
        fit_probe(fit_anchors(alone), alone, by_query(alone), positive="harmful")
    assert fit_probe(fit_anchors(states), states, by_query(states), positive="harmful").problem == ""


def test_a_table_of_checks(states: HiddenStates, space: AnchorSpace) -> None:
    harm = fit_probe(space, states, by_query(states), positive="harmful")
    table = check_table({"harm": harm, "by hand": replace(harm, check=None)}).set_index("probe")
    assert table.loc["harm", "auc"] > table.loc["harm", "shuffled_high"] > table.loc["harm", "shuffled"]
    assert table.loc["by hand"].drop("problem").isna().all()
