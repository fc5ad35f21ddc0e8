"""Whatever is measured, its interval has a width: the public tables, where nothing that was seen varies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import planted_states
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab import evidence, judges
from drolab.evidence import causal, claims, comparison, sweep
from drolab.probing import fit_anchors
from drolab.types import HiddenStates, Probe

PROMPTS = ("none", "long", "short")
shares = st.integers(0, 10).map(lambda tenths: tenths / 10)
sizes = st.integers(2, 40)
SOME = settings(max_examples=15, deadline=None)


def assert_widths(table: pd.DataFrame) -> None:
    """Each pair of limits has a width, or there are none."""
    ends = [name.removesuffix("low") for name in table.columns if str(name).endswith("low") and "null" not in name]
    assert ends
    for name in ends:
        low, high = table[f"{name}low"].astype(float), table[f"{name}high"].astype(float)
        assert (low.isna() == high.isna()).all(), name
        assert ((high - low > 1e-6) | low.isna()).all(), table[[f"{name}low", f"{name}high"]]


def queries_of(n: int) -> pd.DataFrame:
    return pd.DataFrame({"query_id": [f"q{i}" for i in range(2 * n)], "harmful": [True] * n + [False] * n})


def scores_of(n: int, rates: dict[str, float]) -> pd.DataFrame:
    """Each query's rate is that of its prompt."""
    table = queries_of(n).merge(pd.DataFrame({"prompt": list(rates), "refusal_rate": list(rates.values())}), "cross")
    table = table.assign(n_samples=10, compliance_rate=1 - table["refusal_rate"])
    table = table.assign(any_refusal=table["refusal_rate"] > 0, any_compliance=table["refusal_rate"] < 1)
    return table.set_index(["query_id", "prompt"])


@SOME
@given(n=sizes, rates=st.tuples(shares, shares))
def test_rates_and_their_changes(n: int, rates: tuple[float, float]) -> None:
    scores = scores_of(n, dict(zip(PROMPTS, rates, strict=False)))
    groups = comparison.group_rates(scores, n_bootstrap=50)
    for table in (groups, comparison.tradeoff(groups), evidence.rate_table(scores, n_bootstrap=50)):
        assert_widths(table)
    for test in comparison.TESTS:
        assert_widths(comparison.paired(scores, "none", test=test, n_bootstrap=50))


@SOME
@given(n=sizes, values=st.tuples(shares, shares, shares), odd=st.integers(0, 1))
def test_what_an_edit_does(n: int, values: tuple[float, float, float], odd: int) -> None:
    before, after, whole = (np.full((2 * n, 4), value) for value in values)
    after[:odd] = 1 - after[:odd]
    queries, plans = queries_of(n), np.stack([after, before])
    labels = [{"direction": name, "kind": "direction", "dose": 1.0, "layer": 1} for name in ("moved", "still")]
    dosed = causal.dose_table(queries, before, plans, labels, 0.95)
    assert_widths(dosed)
    assert dosed[["refusal_low", "change_low"]].notna().all(axis=None)
    assert_widths(causal.ablation_table(queries, before, plans, labels, 0.95))
    swapped = causal.swap_table(queries, before, plans, labels, 0.95, whole)
    assert_widths(swapped)
    if not odd:
        assert swapped["recovered_low"].isna().all()


@SOME
@given(n=st.integers(4, 40), said=st.tuples(*[st.sampled_from(judges.VERDICTS)] * 2), rates=st.tuples(shares, shares))
def test_how_far_judges_agree(n: int, said: tuple[str, str], rates: tuple[float, float]) -> None:
    index = pd.Index([f"q{i}" for i in range(n)], name="query_id")
    verdicts = pd.DataFrame(dict(zip("ab", said, strict=True)), index=index)
    assert_widths(judges.confusion(verdicts, "a", "b"))
    assert_widths(judges.disagreement(verdicts, index.to_series(), n_bootstrap=50))
    ranked = np.linspace(0, 1, n)
    for score, rate in (rates, (ranked, ranked), (ranked, ranked**2), (rates[0], ranked)):
        scores = pd.DataFrame({"query_id": index, "prompt": "none", "refusal": score})
        judged = scores[["query_id", "prompt"]].assign(refusal_rate=rate).set_index(["query_id", "prompt"])
        assert_widths(judges.score_agreement(scores, judged, n_bootstrap=20))


@pytest.fixture(scope="module")
def states() -> HiddenStates:
    return planted_states({name: np.full(24, 0.5) for name in PROMPTS[1:]}, n_per_class=6)


@settings(max_examples=5, deadline=None)
@given(rates=st.tuples(shares, shares, shares))
def test_claims(states: HiddenStates, rates: tuple[float, float, float]) -> None:
    space = fit_anchors(states)
    probe = Probe(coef=torch.ones(len(space.components)), intercept=0.0, positive="refuses")
    given = {"safety": PROMPTS[1:], "space": space, "refusal": probe, "trained": {"short": "long"}, "n_null": 20}
    scores = scores_of(6, dict(zip(PROMPTS, rates, strict=True)))
    assert_widths(claims.verdict(states, scores, **given).table)  # type: ignore[arg-type]


def test_readouts_of_states_that_are_all_equal(states: HiddenStates) -> None:
    """As those at layer 0, at a token of the template."""
    still = HiddenStates(values=torch.ones_like(states.values), index=states.index, layers=(2,), num_hidden_layers=2)
    folds = {"n_splits": 3}
    assert_widths(evidence.separability(still, **folds))
    assert_widths(evidence.auc_change(still, fit_anchors(states), PROMPTS[1:], **folds))
    rates = scores_of(6, dict(zip(PROMPTS, (0.1, 0.5, 0.7), strict=True)))["refusal_rate"]
    for rate in (rates, rates * np.linspace(0, 1, len(rates))):
        found = sweep.measure_sites(still, rate, n_bootstrap=50, n_shuffles=10, **folds)
        measured = found[~found["measure"].str.contains("shuffled")]  # of those it is the range of the null
        assert_widths(measured)
        assert measured["low"].notna().sum() == 3
