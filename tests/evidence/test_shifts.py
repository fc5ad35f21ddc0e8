"""Evidence: shifts, cosines and rates with intervals, on states whose geometry is known, and their controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import axis, planted_states
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab import evidence
from drolab.errors import StatesError, UnreliableWarning
from drolab.probing import as_direction, fit_anchors, fit_probe
from drolab.types import AnchorSpace, HiddenStates, Probe

SAFE = 3 * axis(1)
NEUTRAL = 3 * axis(12)
REFUSAL = torch.tensor(axis(1), dtype=torch.float32)


@pytest.fixture(scope="module")
def states() -> HiddenStates:
    return planted_states({"long": SAFE, "short": 0.5 * SAFE + axis(13), "neutral": NEUTRAL})


def row(table: pd.DataFrame, a: str, b: str) -> pd.Series:
    return table[(table["a"] == a) & (table["b"] == b)].squeeze()


def shuffled(states: HiddenStates) -> HiddenStates:
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(1))
    return replace(states, values=states.values[order], index=states.index.iloc[order.numpy()].reset_index(drop=True))


# --- shifts -------------------------------------------------------------------------------------------------


def test_mean_shifts_are_the_planted_ones(states: HiddenStates) -> None:
    moved = evidence.shifts(states)
    assert moved.prompts == ("long", "short", "neutral")
    assert moved.classes == (True, False)
    torch.testing.assert_close(moved.mean("long", True), torch.tensor(SAFE).float(), atol=0.3, rtol=0)
    table = moved.table()
    assert list(table.columns) == ["prompt", "harmful", "n", "norm", "mean_norm"]
    assert table["n"].tolist() == [30] * 6
    assert table.loc[0, "norm"] == pytest.approx(3, abs=0.3)
    assert (table["mean_norm"] >= table["norm"]).all()


def test_rows_are_matched_by_query_not_by_order(states: HiddenStates) -> None:
    one, other = evidence.shifts(states), evidence.shifts(shuffled(states))
    for prompt, harmful in one.groups():
        torch.testing.assert_close(one.mean(prompt, harmful), other.mean(prompt, harmful), atol=1e-5, rtol=1e-5)


def test_shifts_need_the_baseline_and_another_prompt(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match=r"under 'none' and under another prompt, these have \['long'\]: compute"):
        evidence.shifts(states.select(prompt="long"))
    with pytest.raises(StatesError, match="under 'empty'"):
        evidence.shifts(states, baseline="empty")
    assert evidence.shifts(states, baseline="neutral").prompts == ("none", "long", "short")


def test_a_query_that_a_prompt_lacks_is_named(states: HiddenStates) -> None:
    keep = ~((states.index["prompt"] == "short") & (states.index["query_id"] == "q4"))
    part = replace(
        states, values=states.values[keep.to_numpy().nonzero()[0]], index=states.index[keep].reset_index(drop=True)
    )
    with pytest.raises(StatesError, match=r"Under prompt 'short' the queries differ .*first: 'q4'.*once each"):
        evidence.shifts(part)


# --- cosines ------------------------------------------------------------------------------------------------


def test_cosines_with_directions_and_with_a_random_one(states: HiddenStates) -> None:
    table = evidence.shift_cosines(states, {"refusal": REFUSAL}, n_null=300)
    assert list(table.columns) == [
        *("a", "b", "kind", "cosine", "low", "high"),
        *("null_low", "null_high", "p", "significant", "note"),
    ]
    assert table["kind"].value_counts().to_dict() == {"shifts": 15, "direction": 6, "control": 6}
    assert row(table, "long harmful", "long harmless")["low"] > 0.9
    assert row(table, "long harmful", "refusal")["low"] > 0.9
    assert abs(row(table, "neutral harmful", "refusal")["cosine"]) < 0.2
    assert table.loc[table["kind"] == "control", "cosine"].abs().max() < 0.6
    assert ((table["low"] <= table["cosine"] + 0.02) & (table["cosine"] <= table["high"] + 0.02)).all()
    pd.testing.assert_frame_equal(table, evidence.shift_cosines(states, {"refusal": REFUSAL}, n_null=300))


def test_memory_is_bounded_by_chunks_without_changing_the_intervals(
    states: HiddenStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evidence.shift_cosines(states, n_null=200)
    monkeypatch.setattr("drolab.intervals.CHUNK_VALUES", 1000)
    pd.testing.assert_frame_equal(whole, evidence.shift_cosines(states, n_null=200))


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 50))
def test_cosines_do_not_depend_on_scale(scale: float, seed: int) -> None:
    small = planted_states({"long": SAFE}, n_per_class=5, seed=seed)
    one = evidence.shift_cosines(small, n_null=20)
    other = evidence.shift_cosines(replace(small, values=small.values * scale), n_null=20)
    np.testing.assert_allclose(one[["cosine", "low", "high"]], other[["cosine", "low", "high"]], atol=1e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """The cosine of a noisy shift with its direction: the true value lies in 90 % intervals about 90 % of the time."""
    shift, noise = axis(1) + axis(2), 0.5
    direction = {"refusal": REFUSAL}
    hits = narrow = 0
    for seed in range(60):
        drawn = planted_states({"long": shift}, n_per_class=60, noise=noise, seed=seed)
        table = evidence.shift_cosines(drawn, direction, n_null=200, level=0.9)
        found = row(table, "long harmful", "refusal")
        hits += found["low"] <= np.sqrt(0.5) <= found["high"]
        narrow += abs(found["cosine"] - np.sqrt(0.5)) <= (found["high"] - found["low"]) / 8
    assert 48 <= hits <= 59
    assert narrow < 40  # the control: a quarter of the width does not cover


def test_queries_are_resampled_whole(states: HiddenStates) -> None:
    """Two prompts that move each query equally, noise included: their cosine is 1 in every draw."""
    twin = states.select(prompt=["none", "long"])
    copy = states.select(prompt="long")
    both = replace(
        twin,
        values=torch.cat([twin.values, copy.values]),
        index=pd.concat([twin.index, copy.index.assign(prompt="twin")], ignore_index=True),
    )
    table = evidence.shift_cosines(both, n_null=100)
    assert row(table, "long harmful", "twin harmful")["low"] == pytest.approx(1, abs=1e-9)
    assert row(table, "long harmful", "twin harmless")["low"] < 0.9999


@pytest.mark.parametrize("bad", [torch.zeros(24), torch.ones(5), torch.full((24,), float("nan"))])
def test_directions_that_are_none(states: HiddenStates, bad: torch.Tensor) -> None:
    with pytest.raises(StatesError, match="Direction 'mine' must be a finite vector of width 24 that is not zero"):
        evidence.shift_cosines(states, {"mine": bad})


def test_the_controls_name_is_taken(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="'random' is added as the control: give yours another name"):
        evidence.shift_cosines(states, {"random": REFUSAL})


# --- is it a safety shift? ----------------------------------------------------------------------------------


def planted_refusal(states: HiddenStates) -> tuple[AnchorSpace, Probe]:
    """A probe for axis 1, in a space that has all the planted axes."""
    space = fit_anchors(states, n_components=16)
    coef = space.components @ REFUSAL
    return space, Probe(coef=coef, intercept=0.0, positive="refuses")


def test_a_safety_prompt_is_reported_and_a_neutral_one_is_not(states: HiddenStates) -> None:
    report = evidence.shift_report(states, *planted_refusal(states), n_null=300)
    assert report.groupby("prompt")["safety_shift"].all().to_dict() == {"long": True, "short": True, "neutral": False}
    long = report[report["prompt"] == "long"].iloc[0]
    assert long["logit_shift"] == pytest.approx(3, abs=0.4)
    assert long["logit_low"] < long["logit_shift"] < long["logit_high"]
    assert 0 < long["null_quantile"] < long["cosine_low"] < long["cosine"] <= long["cosine_high"]


def test_a_neutral_prompt_that_leans_towards_refusal_needs_more_than_significance() -> None:
    states = planted_states({"date": NEUTRAL + 0.4 * SAFE, "long": SAFE})
    space, refusal = planted_refusal(states)
    states = states.select(prompt=["none", "date"])
    report = evidence.shift_report(states, space, refusal, n_null=200)
    assert (report["logit_low"] > 0).all()
    assert (report["cosine_low"] < 0.5).all()
    assert not report["safety_shift"].any()
    lenient = evidence.shift_report(states, space, refusal, n_null=200, min_cosine=0.0)
    assert lenient["cosine"].equals(report["cosine"])


def test_a_shift_against_refusal_or_of_one_class_is_no_safety_shift() -> None:
    states = planted_states({"against": -SAFE, "safe": SAFE})
    one_sided = (states.index["prompt"] == "safe") & ~states.index["harmful"]
    values = states.values.clone()
    values[one_sided.to_numpy().nonzero()[0], 0, 1] -= 6
    report = evidence.shift_report(replace(states, values=values), *planted_refusal(states), n_null=200)
    assert not report["safety_shift"].any()
    assert report.loc[report["prompt"] == "safe", "logit_low"].max() > 0


def test_shifts_in_random_directions_are_rarely_safety_shifts() -> None:
    rng = np.random.default_rng(0)
    shifts = {f"p{i}": 3 * v / np.linalg.norm(v) for i, v in enumerate(rng.normal(size=(40, 24)))}
    states = planted_states(shifts)
    report = evidence.shift_report(states, *planted_refusal(states), n_null=100)
    assert report.groupby("prompt")["safety_shift"].all().mean() < 0.1


def test_shifts_that_are_all_equal_tell_nothing_of_other_queries() -> None:
    noisy = planted_states({"safe": SAFE})
    fitted = planted_refusal(noisy)
    same = planted_states({"safe": SAFE}, noise=0.0)
    same = replace(same, values=(same.values * 8).round() / 8)  # so that float32 has all of them
    report = evidence.shift_report(same, *fitted, n_null=50)
    assert report[["logit_low", "logit_high"]].isna().all(axis=None)
    assert not report["safety_shift"].any()
    usual = evidence.shift_report(noisy, *fitted, n_null=50)  # the control
    assert (usual["logit_low"] < usual["logit_shift"]).all()
    assert usual["safety_shift"].all()


def test_the_report_needs_both_classes(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="pass states of both classes"):
        evidence.shift_report(states.select(harmful=True), *planted_refusal(states))


def test_the_interval_along_refusal_holds_the_uncertainty_of_the_direction() -> None:
    """Intervals hold the cosine of the direction that endless queries give, and those that take the direction as given
    do not. (Noise in the direction pulls its cosines towards 0, so with few queries they hold it more rarely.)"""
    shift, slope = 3 * axis(2) + 2 * axis(3), np.array([1.5, 0.5])
    space = fit_anchors(planted_states({"long": shift}, n_per_class=300, seed=7), n_components=6)

    def fitted(n: int, seed: int, check: bool = True) -> Probe:
        states = planted_states({"long": shift}, n_per_class=n, gap=0.0, seed=seed).select(prompt="none")
        logits = states.matrix().double().numpy()[:, 2:4] @ slope
        target = np.random.default_rng(seed).uniform(size=2 * n) < 1 / (1 + np.exp(-logits))
        return fit_probe(space, states, target, positive="refuses", C=100.0, check=check)

    def cosine(probe: Probe) -> float:
        return float(np.mean(probe.direction(space).double().numpy() @ shift / np.linalg.norm(shift)))

    truth = cosine(fitted(20_000, 0, check=False))
    held = []
    for seed in range(1, 41):
        moved = planted_states({"long": shift}, n_per_class=50, seed=1000 + seed)
        probe = fitted(300, seed)
        reports = [evidence.shift_report(moved, space, one, n_null=2) for one in (probe, replace(probe, refits=None))]
        held.append([((one["cosine_low"] < truth) & (truth < one["cosine_high"])).all() for one in reports])
    whole, given = np.mean(held, axis=0)
    assert whole > 0.8
    assert given < 0.3


def test_a_probe_with_a_problem_decides_nothing() -> None:
    states = planted_states({"long": 3 * axis(2)})
    space = fit_anchors(states)
    with pytest.warns(UnreliableWarning, match="cannot be told from chance"):
        noise = fit_probe(
            space, states, np.random.default_rng(0).binomial(10, 0.1, len(states)) / 10, positive="refuses"
        )
    report = evidence.shift_report(states, space, noise, n_null=20)
    assert report["safety_shift"].isna().all()
    assert set(report["note"]) == {noise.problem}
    given = evidence.shift_report(
        states, space, replace(noise, check=None), n_null=20
    )  # the control: as if it were one
    assert given["safety_shift"].notna().all()
    assert set(given["note"]) == {""}


def test_a_direction_with_a_problem_is_never_significant(states: HiddenStates) -> None:
    space, refusal = planted_refusal(states)
    good = as_direction(refusal, space)
    bad = replace(good, problem="A readout of 'refuses' cannot be told from chance.")
    table = evidence.shift_cosines(states, {"good": good, "bad": bad}, n_null=100)
    assert row(table, "long harmful", "good")["significant"]
    assert not row(table, "long harmful", "bad")["significant"]
    assert row(table, "long harmful", "bad")["note"] == bad.problem
    assert row(table, "long harmful", "good")["cosine"] == row(table, "long harmful", "bad")["cosine"]
    with pytest.raises(StatesError, match="has 3 coefficients, the anchor space"):
        as_direction(replace(refusal, coef=torch.ones(3)), space)
