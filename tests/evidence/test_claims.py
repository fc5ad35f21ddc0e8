"""The verdict on planted states: what is there is supported, what is not there is not, what is unclear is said so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import WIDTH, as_states, axis, planted_states, state_index
from scipy import stats

from drolab import claims, figures
from drolab.errors import QueryError, StatesError, UnreliableWarning
from drolab.evidence import shift_similarity
from drolab.evidence.claims import (
    ALIKE,
    ALONG,
    APART,
    BEYOND,
    HARMFUL,
    HARMLESS,
    LOGIT_APART,
    NOT_ENHANCED,
    SEPARABLE,
    Claim,
    Verdict,
)
from drolab.intervals import FISHER
from drolab.probing import fit_anchors, fit_probe
from drolab.types import AnchorSpace, HiddenStates, Probe

REFUSE = torch.tensor(axis(1), dtype=torch.float32)
SAFETY, CONTROLS = ("long", "short"), ("date", "format")
SHIFTS = {
    "long": 3 * axis(1) + axis(14),
    "short": 1.5 * axis(1) + axis(15),
    "date": 2 * axis(12),
    "format": 2 * axis(13),
    "trained": 3 * axis(1) + axis(14),
}


def probe(states: HiddenStates) -> tuple[AnchorSpace, Probe]:
    space = fit_anchors(states, n_components=16)
    return space, Probe(coef=space.components @ REFUSE, intercept=0.0, positive="refuses")


def states_of(
    shifts: dict[str, np.ndarray] = SHIFTS, *, n: int = 40, apart: float = 3.0, seed: int = 0
) -> HiddenStates:
    """As `planted_states`; the trained prompt moves harmful queries by `apart` more along refusal."""
    states = planted_states(shifts, n_per_class=n, seed=seed)
    values = states.values.clone()
    for harmful, sign in ((True, 1.0), (False, -1.0)):
        rows = ((states.index["prompt"] == "trained") & (states.index["harmful"] == harmful)).to_numpy().nonzero()[0]
        values[rows, 0] += sign * apart / 2 * REFUSE
    return as_states(values[:, 0].numpy(), states.index)


def rates(
    states: HiddenStates, rises: tuple[float, float] = (0.3, 0.1), seed: int = 0, apart: float = 0.2
) -> pd.DataFrame:
    """The trained prompt has the refusals of the long one, and `apart` more of harmful than of harmless queries."""
    rng = np.random.default_rng(seed)
    index = states.index
    base = np.where(index["harmful"], 0.4, 0.2) + 0.1 * rng.normal(size=len(index))
    rise = np.where(index["harmful"], *rises) * index["prompt"].isin((*SAFETY, "trained")).to_numpy()
    rise += apart / 2 * np.where(index["harmful"], 1, -1) * (index["prompt"] == "trained").to_numpy()
    pairs = pd.MultiIndex.from_frame(index[["query_id", "prompt"]])
    return pd.DataFrame({"refusal_rate": np.clip(base + rise, 0, 1)}, index=pairs)


def reach(states: HiddenStates, scores: Any = None, **options: object) -> Verdict:
    space, refusal = probe(states)
    settings = {"refusal": refusal, "controls": CONTROLS, "trained": {"trained": "long"}, "n_null": 200} | options
    scores = rates(states) if scores is None else scores
    return claims.verdict(states, scores, safety=SAFETY, space=space, **settings)  # type: ignore[arg-type]


def said(result: Verdict) -> dict[str, str]:
    return dict(zip(result.table["claim"], result.table["verdict"], strict=True))


@pytest.fixture(scope="module")
def planted() -> Verdict:
    return reach(states_of())


def test_what_is_planted_is_supported(planted: Verdict) -> None:
    result = planted
    assert tuple(result.table.columns) == claims.COLUMNS
    order = [SEPARABLE, NOT_ENHANCED, ALIKE, BEYOND, ALONG, HARMFUL, HARMLESS, APART, LOGIT_APART]
    assert list(said(result)) == [claim.text for claim in order]
    assert [verdict for claim, verdict in said(result).items() if claim != LOGIT_APART.text] == [claims.SUPPORTED] * 8
    rows = result.table.set_index("claim")
    assert rows.loc[APART.text, "estimate"] == pytest.approx(0.2, abs=0.05)
    assert rows.loc[LOGIT_APART.text, "estimate"] == pytest.approx(3.0, abs=0.4)
    assert rows.loc[BEYOND.text, "under"] == ", ".join(CONTROLS)
    cosine = 3 * 1.5 / (np.sqrt(10) * np.sqrt(1.5**2 + 1))
    assert rows.loc[ALIKE.text, "low"] < cosine < rows.loc[ALIKE.text, "high"]
    assert rows.loc[HARMLESS.text, "n"] == 40
    assert ((rows["low"] <= rows["estimate"]) & (rows["estimate"] <= rows["high"])).all()
    assert (
        rows.loc[[ALIKE.text, ALONG.text, HARMFUL.text], "null_high"]
        < rows.loc[[ALIKE.text, ALONG.text, HARMFUL.text], "low"]
    ).all()
    assert "supported: safety prompts shift alike: 0." in str(result)


def test_how_alike_the_shifts_are_is_said_of_the_named_prompts_alone(planted: Verdict) -> None:
    states = states_of()
    found = shift_similarity(states, SAFETY, CONTROLS).set_index("measure")
    rows = planted.table.set_index("claim")
    for claim, measure in ((ALIKE, "alike"), (BEYOND, "beyond the controls")):
        assert list(rows.loc[claim.text, ["estimate", "n"]]) == pytest.approx(list(found.loc[measure, ["value", "n"]]))
    # The control: the trained prompt among the safety prompts changes both.
    other = shift_similarity(states, [*SAFETY, "trained"], CONTROLS).set_index("measure")
    assert abs(other.loc["alike", "value"] - rows.loc[ALIKE.text, "estimate"]) > 0.02


def test_what_is_not_there_is_not_supported() -> None:
    """Separate shifts, against refusal, no class difference, no rise, DRO the wrong way round."""
    shifts = {"long": 3 * axis(14) - axis(1), "short": 3 * axis(15) - axis(1), "trained": 3 * axis(14)}
    shifts |= {"date": 3 * (axis(14) + axis(15)) / np.sqrt(2), "format": 3 * (axis(14) + axis(15)) / np.sqrt(2)}
    states = states_of(shifts, apart=-3.0)
    centred = states.values - torch.where(
        torch.tensor(states.index["harmful"].to_numpy())[:, None, None], 1.5, -1.5
    ) * (torch.tensor(axis(0), dtype=torch.float32))
    states = as_states(centred[:, 0].numpy(), states.index)
    verdicts = said(reach(states, rates(states, rises=(-0.2, -0.05), apart=-0.2)))
    del verdicts[NOT_ENHANCED.text]  # nothing to enhance
    assert verdicts.pop(LOGIT_APART.text) == claims.BY_DESIGN
    assert set(verdicts.values()) == {claims.NOT_SUPPORTED}


def test_a_prompt_that_separates_the_classes_is_found_out() -> None:
    rng = np.random.default_rng(0)
    index = state_index(["none", *SHIFTS], 80)
    side = np.where(index["harmful"], 0.5, -0.5)[:, None]
    values = rng.normal(size=(len(index), WIDTH))
    values += side * axis(0) * np.where(index["prompt"].isin(SAFETY), 4.0, 1.0)[:, None]
    result = reach(as_states(values, index))
    assert said(result)[NOT_ENHANCED.text] == claims.NOT_SUPPORTED
    assert result.table.set_index("claim").loc[NOT_ENHANCED.text, "low"] > 0.02


def test_few_queries_are_too_little_data() -> None:
    states = states_of({name: 0.05 * shift for name, shift in SHIFTS.items()}, n=10, apart=0.0)
    verdicts = said(reach(states, rates(states, rises=(0.0, 0.0), apart=0.0), n_null=50))
    assert [verdicts[claim.text] for claim in (HARMFUL, HARMLESS, APART)] == [claims.TOO_LITTLE] * 3


def test_claims_without_their_prompts_are_left_out() -> None:
    result = reach(states_of(n=4), controls=(), trained=None)
    assert BEYOND.text not in said(result)
    assert APART.text not in said(result)
    two = reach(states_of(n=4), trained={"trained": "long", "short": "long"})
    assert [claim for claim in said(two) if claim.startswith(APART.text)] == [
        f"{APART.text} (trained)",
        f"{APART.text} (short)",
    ]


def test_missing_prompts_and_scores_are_named() -> None:
    states = states_of()
    sound = rates(states)
    for scores in (sound.drop("short", level="prompt"), sound.rename(lambda name: f"other-{name}", level="query_id")):
        with pytest.raises(QueryError, match=r"none of these queries under \[.*'short'.*\]: judge the replies"):
            reach(states, scores)
    with pytest.raises(StatesError, match="The refusal probe '' is 'x': pass what fit_probe returns, or None"):
        reach(states, refusal="x")
    for nothing in (lambda: reach(states, {}), lambda: reach(states, refusal={})):
        with pytest.raises(QueryError, match="A verdict needs the scores of a judge and a refusal probe"):
            nothing()
    for options in ({"controls": ("neutral",)}, {"trained": {"neutral": "long"}}, {"trained": {"long": "neutral"}}):
        with pytest.raises(StatesError, match=r"No states under \['neutral'\]: compute them"):
            reach(states, **options)
    with pytest.raises(StatesError, match="at least 4 queries of each class"):
        reach(states_of(n=3))


def test_shifts_that_cannot_be_told_from_none_say_nothing() -> None:
    one = claims.Measured(ALIKE, float("nan"), float("nan"), 20, (0.0, 0.0)).row(0.95)
    sure = claims.Measured(HARMLESS, 1.0, 0.1, 20, (0.0, 0.0)).row(0.95)
    decided = claims._decided(pd.DataFrame([one, sure]), 0.05)
    assert decided["verdict"].tolist() == [claims.TOO_LITTLE, claims.SUPPORTED]


def test_p_values_are_corrected_for_the_number_of_claims() -> None:
    """Each claim alone at p = .02, eight of them: none is supported."""
    ratio = stats.t.isf(0.02, 99)
    measured = claims.Measured(HARMLESS, 0.1 * ratio, 0.1, 100, (0.0, 0.0))
    alone = claims._decided(pd.DataFrame([measured.row(0.95)]), 0.05)
    assert alone["p_support"].item() == pytest.approx(0.02)
    assert alone["verdict"].item() == claims.SUPPORTED
    many = claims._decided(pd.DataFrame([measured.row(0.95)] * 8), 0.05)
    assert set(many["verdict"]) == {claims.TOO_LITTLE}
    assert many["p_support"].max() == pytest.approx(0.16)


def test_at_the_threshold_a_claim_is_supported_as_often_as_it_may_be() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        rises = rng.normal(size=40)
        one = claims.Measured(HARMLESS, rises.mean(), stats.sem(rises), 40, (0.0, 0.0)).row(0.95)
        wrong += one["p_support"] < 0.05
    assert 30 <= wrong <= 70


def power_by_simulation(n: int, effect: float, alpha: float) -> float:
    rng = np.random.default_rng(1)
    rises = effect + 0.3 * rng.normal(size=(2000, n))
    ratios = rises.mean(axis=1) / (rises.std(axis=1, ddof=1) / np.sqrt(n))
    return float((ratios > stats.t.isf(alpha, n - 1)).mean())


def test_the_power_table_keeps_its_promise() -> None:
    measured = claims.Measured(HARMLESS, 0.05, 0.3 / np.sqrt(60), 60, (0.0, 0.0))
    result = Verdict(table=pd.DataFrame(), measured=(measured,))
    table = claims.power_table(result, {HARMLESS.text: [0.1, 0.2]})
    assert table["n"].is_monotonic_decreasing
    for effect, n in zip(table["effect"], table["n"], strict=True):
        assert power_by_simulation(n, effect, 0.05) == pytest.approx(0.8, abs=0.03)
        assert power_by_simulation(n // 2, effect, 0.05) < 0.7  # the control
    eight = Verdict(table=pd.DataFrame(), measured=(measured,) * 8)
    assert claims.power_table(eight, {HARMLESS.text: [0.1]})["n"].min() > table["n"].iloc[0]


def test_a_spread_too_wide_to_tell_gives_no_number_of_queries() -> None:
    """With an error of 1.2 a cosine counts as at least .6 off the end of its range, and .4 is below the threshold."""
    wide = claims.Measured(claims.ALIKE, 0.7, 1.2, 8, (0.0, 0.1))
    result = Verdict(table=pd.DataFrame(), measured=(wide, claims.Measured(claims.ALIKE, 0.7, 0.1, 8, (0.0, 0.1))))
    table = claims.power_table(result, {claims.ALIKE.text: [0.6]})
    assert table["n"].isna().tolist() == [True, False]


def test_the_power_table_asks_for_effects_that_support_the_claim(planted: Verdict) -> None:
    result = planted
    default = claims.power_table(result)
    assert set(default["claim"]) == set(said(result)) - {LOGIT_APART.text}
    assert (default["n"] >= 2).all()
    with pytest.raises(StatesError, match=r"must lie below the threshold 0\.02 .* got 0\.1"):
        claims.power_table(result, {NOT_ENHANCED.text: [0.1]})
    with pytest.raises(StatesError, match="No claim 'all is well'"):
        claims.power_table(result, {"all is well": [0.1]})


def test_distances_are_measured_on_the_claimed_side() -> None:
    above, below = Claim("a", "u", 0.5, scale=FISHER), Claim("b", "u", 0.02, side=-1)
    assert above.distance(0.8) == pytest.approx(np.arctanh(0.8) - np.arctanh(0.5))
    assert above.distance(0.2) < 0 < below.distance(0.0)


# what cannot be tested


def noise(states: HiddenStates, seed: int = 0) -> tuple[AnchorSpace, Probe]:
    """A probe of rates that have nothing to do with the states."""
    space, rng = fit_anchors(states, n_components=4), np.random.default_rng(seed)
    return space, fit_probe(space, states, rng.binomial(10, 0.1, len(states)) / 10, positive="refuses")


def test_figures_know_every_verdict() -> None:
    assert set(figures.VERDICT_LOOKS) == set(claims.VERDICTS)


def test_a_probe_of_noise_decides_nothing_and_says_why() -> None:
    states = states_of()
    with pytest.warns(UnreliableWarning, match="cannot be told from chance"):
        space, refusal = noise(states_of(seed=1))
    told: list[tuple[int, int]] = []
    given = {"safety": SAFETY, "space": space, "refusal": refusal, "n_null": 50}
    result = claims.verdict(states, rates(states), **given, progress=lambda *counts: told.append(counts))
    assert told[-1] == (5, 5)
    row = result.table.set_index("claim").loc[ALONG.text]
    assert (row["verdict"], row["reason"]) == (claims.CANNOT, refusal.problem)
    assert row[["estimate", "low", "high", "null_high"]].isna().all()  # a number would look like a finding
    assert refusal.problem in str(result)
    assert "the shift is along refusal" not in set(claims.power_table(result)["claim"])
    # The control: taken as given, as if it were a refusal direction, it is decided upon.
    given = claims.verdict(
        states, rates(states), safety=SAFETY, space=space, refusal=replace(refusal, check=None), n_null=50
    )
    assert said(given)[ALONG.text] != claims.CANNOT
    assert given.table.set_index("claim").loc[ALONG.text, "p_against"] < 1


def test_without_a_refusal_probe_the_other_claims_are_decided(planted: Verdict) -> None:
    """Beside the control, a judge that gives one: with it everything is as before, to the last digit."""
    states, why = states_of(), "The target is 0 for all 400 states."
    result = reach(states, refusal={"blind": None, "strict": probe(states)[1]}, problem=why)
    rows = result.table.set_index(["claim", "under"])
    for claim in (ALONG, LOGIT_APART):
        lacking = rows.loc[claim.text, "blind"]
        assert (lacking["verdict"], lacking["reason"]) == (claims.CANNOT, f"There is no refusal probe here. {why}")
        assert lacking[["estimate", "low", "p_support"]].isna().all()
    assert rows.loc[(ALONG.text, "strict"), "verdict"] == claims.SUPPORTED
    others = result.table[result.table["under"] != "blind"].replace({"under": "strict"}, "")
    pd.testing.assert_frame_equal(others.reset_index(drop=True), planted.table)
    words = f"cannot be tested here: {ALONG.text} (blind): no estimate. There is no refusal probe here. {why}"
    assert words in str(result)
    assert "blind" not in set(claims.power_table(result)["under"])
    assert sum("no estimate" in note.text for note in figures.forest(result.table).layout.annotations) == 2


def test_a_prompt_may_be_trained_from_the_baseline() -> None:
    rows = reach(states_of(), trained={"trained": "none"}).table.set_index("claim")
    assert rows.loc[LOGIT_APART.text, "estimate"] == pytest.approx(3.0, abs=0.4)
    assert rows.loc[APART.text, "verdict"] == claims.SUPPORTED


def test_without_a_trained_prompt_its_claim_says_why(planted: Verdict) -> None:
    result = reach(states_of(), trained={}, untrained="Hardly a query is refused.")
    row = result.table.set_index("claim").loc[APART.text]
    assert (row["verdict"], row["reason"]) == (
        claims.CANNOT,
        "There is no trained prompt. Hardly a query is refused.",
    )
    others = planted.table[~planted.table["claim"].isin([APART.text, LOGIT_APART.text])]
    assert said(result) == dict(zip(others["claim"], others["verdict"], strict=True)) | {APART.text: claims.CANNOT}


def test_rates_that_never_change_decide_nothing() -> None:
    states = states_of()
    never = rates(states).assign(refusal_rate=0.0)
    result = reach(states, never)
    for claim in (HARMFUL, HARMLESS, APART):
        assert said(result)[claim.text] == claims.CANNOT
    assert "0 for every query" in result.table.set_index("claim").loc[HARMFUL.text, "reason"]
    assert said(result)[ALIKE.text] == claims.SUPPORTED


def test_equal_changes_of_few_queries_have_an_interval_with_a_width() -> None:
    states = states_of(n=4)
    index = states.index
    flat = rates(states).assign(refusal_rate=(index["prompt"] != "none").to_numpy(dtype=float))
    row = reach(states, flat, n_null=50).table.set_index("claim").loc[HARMFUL.text]
    assert row["estimate"] == 1.0
    assert row["low"] < 0.7


def test_several_judges_and_controls_show_where_the_decision_depends_on_them() -> None:
    states = states_of(SHIFTS | {"twin": 3 * axis(1) + axis(14)})
    both = {"strict": rates(states), "blind": rates(states, rises=(-0.2, -0.2))}
    sets = {"far": CONTROLS, "near": ("twin",)}
    result = reach(states, both, controls=sets, trained=None)
    rows = result.table.set_index(["claim", "under"])["verdict"]
    assert rows[HARMFUL.text, "strict"] == claims.SUPPORTED
    assert rows[HARMFUL.text, "blind"] == claims.NOT_SUPPORTED
    assert rows[BEYOND.text, "far: date, format"] == claims.SUPPORTED
    assert rows[BEYOND.text, "near: twin"] == claims.NOT_SUPPORTED
    assert len(rows[ALIKE.text]) == 1  # it depends on neither
    summary = result.summary().set_index("claim")["verdict"]
    assert summary[HARMFUL.text] == "supported (strict); not supported (blind)"
    assert summary[ALIKE.text] == claims.SUPPORTED


REFUSALS = [HARMFUL.text, HARMLESS.text, APART.text]


def test_a_claim_rests_on_the_queries_that_the_judge_has_an_opinion_of() -> None:
    """As if there were no others: whether they are missing or NaN, and only where they are compared."""
    states = states_of()
    sound = rates(states)
    gone = [("q3", "short"), ("q4", "trained"), ("q60", "none")]
    unsure = sound.astype({"refusal_rate": "Float64"})
    unsure.loc[gone, "refusal_rate"] = pd.NA
    rows = reach(states, {"sound": sound, "gone": sound.drop(gone), "unsure": unsure, "again": sound}).table
    table = rows[rows["claim"].isin(REFUSALS)].set_index(["claim", "under"])
    assert table["n"].unstack()["gone"][REFUSALS].tolist() == [39, 39, 79]
    by_hand = sound["refusal_rate"].unstack()
    kinds = states.index.drop_duplicates("query_id").set_index("query_id")["harmful"]
    rise = (by_hand[list(SAFETY)].mean(axis=1) - by_hand["none"])[kinds].drop("q3")
    limits = stats.t.interval(0.95, 38, rise.mean(), stats.sem(rise))
    found = table.loc[(HARMFUL.text, "gone"), ["estimate", "low", "high"]].tolist()
    assert found == pytest.approx([rise.mean(), *limits])
    numbers = table[["estimate", "low", "high", "n", "null_low", "null_high"]]
    gone_numbers, unsure_numbers = (numbers.xs(name, level=1).iloc[:, :4] for name in ("gone", "unsure"))
    pd.testing.assert_frame_equal(gone_numbers, unsure_numbers)  # each judge has a null of its own
    others = reach(states, {"sound": sound, "gone": sound, "unsure": sound, "again": sound}).table
    others = others[others["claim"].isin(REFUSALS)].set_index(["claim", "under"])
    for name in ("sound", "again"):  # the other judges' rows are what they were, before and after it
        pd.testing.assert_frame_equal(numbers.xs(name, level=1), others[numbers.columns].xs(name, level=1))


def test_opinions_of_too_few_queries_decide_nothing() -> None:
    """Such as those of a guard, which judges harmful queries alone."""
    states = states_of()
    sound = rates(states)
    guard = sound[states.index["harmful"].to_numpy()]
    few = sound[sound.index.get_level_values("query_id").isin(["q0", "q1", "q2", "q3", "q77", "q78", "q79"])]
    result = reach(states, {"guard": guard, "few": few, "all": sound})
    table = result.table.set_index(["claim", "under"])
    said = table["verdict"].unstack().loc[REFUSALS]
    cannot = [claims.CANNOT] * 2
    assert said["guard"].tolist() == [claims.SUPPORTED, *cannot]
    assert said["few"].tolist()[1:] == cannot
    assert said["all"].tolist() == [claims.SUPPORTED] * 3
    assert table["n"].unstack().loc[REFUSALS, ["guard", "few"]].to_numpy().tolist() == [[40, 4], [0, 3], [40, 7]]
    assert "opinion of 3 queries of a class under all prompts compared, and 4 are needed" in str(result)
    power = claims.power_table(result)
    assert set(power.loc[power["under"].isin(["few", "guard"]), "claim"]) == {HARMFUL.text}
    figures.forest(result.table)


def test_equal_changes_are_equal_also_in_floating_point() -> None:
    """.1 to .2 and .2 to .3 differ by 1e-17, which is no spread; and the mean of three times .1 is not .1."""
    states = states_of(n=6)
    index = states.index
    start = np.where(index["query_id"].str[-1].astype(int) % 2, 0.1, 0.2)
    rises = rates(states).assign(refusal_rate=start + 0.1 * (index["prompt"] != "none").to_numpy())
    row = reach(states, rises, n_null=50).table.set_index("claim").loc[HARMFUL.text]
    assert row["estimate"] == pytest.approx(0.1)
    assert row["high"] - row["low"] > 0.1
    never = rates(states).assign(refusal_rate=np.where(index["query_id"] == "q1", 0.1, 0.2))
    row = reach(states, never, n_null=50).table.set_index("claim").loc[HARMFUL.text]
    assert row["estimate"] == 0
    assert row["verdict"] == claims.TOO_LITTLE


def test_a_verdict_without_a_shift_is_drawn_and_asked_for_its_power() -> None:
    states = states_of({name: 0 * shift for name, shift in SHIFTS.items()}, n=4, apart=0.0)
    result = reach(states, rates(states).assign(refusal_rate=0.0))
    figures.forest(result.table)
    assert claims.power_table(result, {HARMLESS.text: [0.1]}).empty
    doubled = pd.concat([rates(states)] * 2)
    with pytest.raises(QueryError, match="twice: pass each judge's once"):
        reach(states, doubled)
