"""Agreement between judges: κ against scikit-learn, its intervals over queries, confusion tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import proportion_confint

from drolab.errors import QueryError
from drolab.judges import VERDICTS, confusion, disagreement


def test_disagreement_counts_each_pair_and_leaves_out_what_one_has_no_opinion_on() -> None:
    said = {"a": [True, True, False, False, True], "b": [True, False, True, False, pd.NA], "c": [pd.NA] * 5}
    table = disagreement(pd.DataFrame(said, dtype="boolean")).set_index(["a", "b"])
    assert table.loc[("a", "b"), ["n", "both", "only_a", "only_b", "neither"]].tolist() == [4, 1, 1, 1, 1]
    assert table.loc[("a", "b"), ["agreement", "kappa"]].tolist() == [0.5, 0]
    assert table.loc[("a", "c"), "n"] == 0
    assert np.isnan(table.loc[("a", "c"), "kappa"])


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1, max_size=40))
@settings(max_examples=60)
def test_kappa_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(pairs, columns=["a", "b"])
    found = disagreement(table).iloc[0]
    if pd.isna(found["kappa"]):
        assert table["a"].nunique() == table["b"].nunique() == 1  # nothing could disagree
    else:
        assert found["kappa"] == pytest.approx(cohen_kappa_score(table["a"], table["b"]))
    assert found["agreement"] == pytest.approx((table["a"] == table["b"]).mean())
    refused = (table == "full_refusal").sum(axis=1)
    assert (found["both"], found["neither"]) == ((refused == 2).sum(), (refused == 0).sum())


def noisy(n_queries: int, n_samples: int, *, alike: bool, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Two judges that agree on 80 %; with `alike` all samples of a query are the same."""
    generator = np.random.default_rng(seed)
    n_drawn = n_queries if alike else n_queries * n_samples
    a = generator.random(n_drawn) < 0.4
    b = np.where(generator.random(n_drawn) < 0.8, a, ~a)
    if alike:
        a, b = a.repeat(n_samples), b.repeat(n_samples)
    return pd.DataFrame({"a": a, "b": b}), pd.Series(np.arange(n_queries).repeat(n_samples))


def width(table: pd.DataFrame) -> float:
    return float((table["kappa_high"] - table["kappa_low"]).iloc[0])


def test_intervals_are_over_queries_not_over_samples() -> None:
    verdicts, queries = noisy(50, 20, alike=True)
    table = disagreement(verdicts, queries)
    assert (table["kappa_low"] < table["kappa"]).all()
    assert (table["kappa"] < table["kappa_high"]).all()
    each = disagreement(verdicts, pd.Series(np.arange(1000)))  # the control: every sample as if on its own
    assert width(table) == pytest.approx(width(each) * np.sqrt(20), rel=0.2)
    assert disagreement(verdicts, queries, random_state=1).equals(disagreement(verdicts, queries, random_state=1))
    assert width(disagreement(verdicts, queries, level=0.5)) < width(table) / 2


def test_intervals_cover_the_truth() -> None:
    truth = disagreement(noisy(200_000, 1, alike=False)[0])["kappa"].item()
    covered = []
    for seed in range(100):
        table = disagreement(*noisy(80, 2, alike=True, seed=seed), n_bootstrap=300).iloc[0]
        covered.append(table["kappa_low"] <= truth <= table["kappa_high"])
    assert 88 <= sum(covered) <= 100


@pytest.mark.parametrize(("n", "least"), [(2, -0.5), (10, 0.3), (100, 0.85)])
def test_judges_that_agree_about_all_queries_may_not_agree_about_others(n: int, least: float) -> None:
    said = np.arange(n) % 2 == 0
    row = disagreement(pd.DataFrame({"a": said, "b": said}), pd.Series(range(n))).iloc[0]
    assert (row["kappa"], row["kappa_high"]) == (1, 1)
    assert least < row["kappa_low"] < 0.95


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=2, max_size=12))
def test_kappas_have_a_width(pairs: list[tuple[str, str]]) -> None:
    verdicts = pd.DataFrame(pairs, columns=["a", "b"])
    row = disagreement(verdicts, pd.Series(range(len(pairs))), n_bootstrap=100).iloc[0]
    if not np.isnan(row["kappa"]):  # NaN: both say one thing only
        assert -1 <= row["kappa_low"] <= row["kappa"] <= row["kappa_high"] <= 1
        assert row["kappa_low"] < row["kappa_high"]


def test_no_interval_where_nothing_can_disagree() -> None:
    verdicts = pd.DataFrame({"a": [True, True], "b": [True, True], "c": pd.array([pd.NA, pd.NA], dtype="boolean")})
    table = disagreement(verdicts, pd.Series(["q0", "q1"]))
    assert table[["kappa", "kappa_low", "kappa_high"]].isna().all().all()


def test_half_a_million_verdicts() -> None:
    verdicts, queries = noisy(25_000, 20, alike=False)
    table = disagreement(verdicts, queries, n_bootstrap=200)
    assert table["n"].item() == len(verdicts) == 500_000


def test_queries_of_other_rows() -> None:
    verdicts, queries = noisy(3, 2, alike=True)
    with pytest.raises(QueryError, match=r"must have the index of the verdicts: pass responses\['query_id'\]"):
        disagreement(verdicts, queries.iloc[:-1])
    with pytest.raises(QueryError, match=r"No verdict 'refused'\. A judge says True .* full_refusal"):
        disagreement(pd.DataFrame({"a": ["refused"], "b": ["compliance"]}))


def test_confusion_counts_cells_with_wilsons_interval() -> None:
    people = ["full_refusal"] * 8 + ["partial_refusal"] * 2 + ["compliance"] * 4
    judge = ["full_refusal"] * 6 + ["compliance"] * 2 + ["full_refusal"] + ["compliance"] * 4 + [None]
    table = confusion(pd.DataFrame({"people": people, "judge": judge}), "people", "judge")
    assert table[["a", "b", "n", "of"]].to_numpy().tolist() == [
        ["full_refusal", "full_refusal", 6, 8],
        ["full_refusal", "compliance", 2, 8],
        ["partial_refusal", "full_refusal", 1, 2],
        ["partial_refusal", "compliance", 1, 2],
        ["compliance", "full_refusal", 0, 3],
        ["compliance", "compliance", 3, 3],
    ]
    np.testing.assert_allclose(table["share"], table["n"] / table["of"])
    np.testing.assert_allclose(table.loc[0, ["low", "high"]].astype(float), proportion_confint(6, 8, method="wilson"))


def test_confusion_of_booleans() -> None:
    table = confusion(pd.DataFrame({"rule": [True, False], "other": [True, True]}), "rule", "other")
    assert table[["a", "b", "n"]].to_numpy().tolist() == [
        ["full_refusal", "full_refusal", 1],
        ["compliance", "full_refusal", 1],
    ]


def test_confusion_needs_both_judges() -> None:
    table = pd.DataFrame({"a": pd.array([True, pd.NA]), "b": pd.array([pd.NA, True])})
    with pytest.raises(QueryError, match=r"No judge 'c': the verdicts have \['a', 'b'\]"):
        confusion(table, "a", "c")
    with pytest.raises(QueryError, match="No response was judged by both 'a' and 'b'"):
        confusion(table, "a", "b")
