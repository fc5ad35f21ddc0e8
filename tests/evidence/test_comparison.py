"""Comparisons: rates with intervals, paired tests that find what is there and nothing else, the Pareto front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from drolab import attacks, comparison, evidence
from drolab.errors import QueryError
from drolab.evidence.comparison import group_rates, holm, paired, pareto_front, tradeoff


def scores(rates: dict[str, np.ndarray], *, harmful: Any = True, n_samples: int = 20) -> pd.DataFrame:
    """The table of `judge` from refusal rates per prompt, each an array over the queries."""
    parts = [
        pd.DataFrame(
            {
                "query_id": [f"q{number}" for number in range(len(values))],
                "prompt": prompt,
                "harmful": harmful,
                "n_samples": n_samples,
                "refusal_rate": values,
                "compliance_rate": 1 - np.asarray(values),
                "any_refusal": np.asarray(values) > 0,
                "any_compliance": np.asarray(values) < 1,
            }
        )
        for prompt, values in rates.items()
    ]
    return pd.concat(parts).set_index(["query_id", "prompt"])


def equal_prompts(
    n_sets: int, *, n: int = 40, n_samples: int = 10, prompts: str = "ab", spread: float = 0.0
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Many data sets of n queries, as groups of one table. A query is refused with the same probability under each
    prompt, or, with `spread`, with one that goes up and down by chance: on average prompts are equal in both cases."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1, n_sets * n)
    moved = {name: logits + generator.normal(0, spread, len(logits)) for name in prompts}
    rates = {name: generator.binomial(n_samples, 1 / (1 + np.exp(-own))) / n_samples for name, own in moved.items()}
    groups = {f"q{number}": f"set {number // n}" for number in range(len(logits))}
    return scores(rates, n_samples=n_samples), groups


def at_most(share: float, n: int) -> float:
    """A frequency that is seen with probability below .002 if the true one is `share`."""
    return share + 3 * float(np.sqrt(share * (1 - share) / n))


# Rates


def test_groups_of_a_query_set() -> None:
    columns = {"query_id": ["a", "b", "c"], "harmful": [True, False, False], "split": ["test", "test", "borderline"]}
    groups = comparison.query_groups(pd.DataFrame(columns))
    assert groups.to_dict() == {"a": "harmful", "b": "harmless", "c": "borderline"}


def test_harmful_queries_that_were_derived_are_a_group_and_harmless_ones_are_in_none() -> None:
    ids = ["a", "b", "a+x", "b+x", "a+y", "a+z"]
    table = {"query_id": ids, "harmful": [True, False, True, False, True, True], "split": "test"}
    done = ["none", "none", "role_play", "role_play", *attacks.CONTROLS]
    table |= {"parent": [None, "", "a", "b", "a", "a"], "attack": done}
    groups = comparison.query_groups(pd.DataFrame(table))
    assert groups.to_dict() == {"a": "harmful", "b": "harmless", "a+x": "jailbroken"}


def test_rates_per_prompt_and_group_with_intervals_over_queries() -> None:
    generator = np.random.default_rng(0)
    values = generator.binomial(20, 0.3, 60) / 20
    table = group_rates(scores({"none": values, "mine": np.ones(60)}, harmful=np.arange(60) < 40))
    row = table.set_index(["prompt", "group", "measure"]).loc[("none", "harmful", "refusal")]
    usual = evidence.mean_interval(values[:40], range(40))
    assert row["n_queries"] == 40
    assert row["value"] == pytest.approx(values[:40].mean())
    assert (row["low"], row["high"]) == pytest.approx((usual.low, usual.high), abs=1e-9)
    answers = table[table["measure"] == "compliance"].reset_index(drop=True)
    refusals = table[table["measure"] == "refusal"].reset_index(drop=True)
    np.testing.assert_allclose(answers[["value", "low", "high"]], 1 - refusals[["value", "high", "low"]], atol=1e-9)


def test_where_every_rate_is_0_or_1_the_interval_is_wilsons_and_has_a_width() -> None:
    row = group_rates(scores({"none": np.ones(50)})).iloc[0]
    assert (row["value"], row["interval"]) == (1, "Wilson")
    assert row["low"] == pytest.approx(evidence.rate_interval(50, 50).low)
    assert row["low"] < 0.95


@pytest.mark.parametrize(("values", "kind"), [([0.05] * 3, "unseen queries"), ([0.1, 0.2, 0.3, 0.4, 0.5], "bootstrap")])
def test_equal_rates_are_no_point(values: list[float], kind: str) -> None:
    rows = group_rates(scores({"none": np.array(values)}))
    assert rows["interval"].tolist() == [kind] * 2
    assert (rows["low"] < rows["value"]).all()
    assert (rows["value"] < rows["high"]).all()
    usual = evidence.mean_interval(values, range(len(values)))
    assert tuple(rows.loc[0, ["low", "high"]]) == (usual.low, usual.high)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=9))
def test_rates_and_differences_have_a_width(counts: list[tuple[int, int]]) -> None:
    none, mine = np.array(counts).T / 10
    table = scores({"none": none, "mine": mine}, n_samples=10)
    for rows, value, least in (
        (group_rates(table, n_bootstrap=100), "value", 0),
        (paired(table, "none", n_bootstrap=100), "difference", -1),
        (paired(table, "none", test="any", n_bootstrap=100), "difference", -1),
    ):
        assert (rows["low"] < rows["high"]).all()
        assert (least <= rows["low"]).all()
        assert (rows["low"] <= rows[value]).all()
        assert (rows[value] <= rows["high"]).all()
        assert (rows["high"] <= 1).all()


def test_groups_are_taken_as_given_and_queries_without_one_are_left_out() -> None:
    table = group_rates(scores({"none": np.array([0.0, 0.5, 1.0])}), {"q0": "mild", "q1": "mild"})
    assert table["group"].unique().tolist() == ["mild"]
    assert table["n_queries"].tolist() == [2, 2]
    with pytest.raises(QueryError, match="No query of these scores has a group"):
        group_rates(scores({"none": np.ones(2)}), {"other": "mild"})
    with pytest.raises(QueryError, match="lack the columns"):
        group_rates(pd.DataFrame({"query_id": ["a"]}))


# Paired tests


@pytest.fixture
def few_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a p near .05, and for hundreds of data sets."""
    monkeypatch.setattr(comparison, "_N_FLIPS", 999)


@pytest.mark.parametrize("test", ["rate", "any", "majority"])
@pytest.mark.usefixtures("few_flips")
def test_equal_prompts_rarely_differ(test: str) -> None:
    """The control: over 250 data sets without a difference, p falls below .05 in about one of twenty."""
    # For "any", few samples: with many, any of them nearly always refuses, and there is nothing to test.
    table, groups = equal_prompts(250, n=30, n_samples=2 if test == "any" else 10)
    found = (paired(table, "a", groups, test=test, n_bootstrap=1)["p"] < 0.05).mean()
    assert found <= at_most(0.05, 250)
    if test == "rate":  # McNemar's exact test stays below its level: it has few values to take
        assert found >= 0.1 - at_most(0.05, 250)


@pytest.mark.usefixtures("few_flips")
def test_the_query_is_the_unit() -> None:
    """Prompts that are equal on average, but not for each query: a test of all samples as if they were independent
    finds differences everywhere, the paired test does not."""
    table, groups = equal_prompts(150, n_samples=40, spread=1.0)
    assert (paired(table, "a", groups, n_bootstrap=1)["p"] < 0.05).mean() <= at_most(0.05, 150)
    refused = (table["refusal_rate"] * 40).groupby([table.index.get_level_values("query_id").map(groups), "prompt"])
    naive = [stats.chi2_contingency([own, 1600 - own]).pvalue for own in refused.sum().unstack().to_numpy()]
    assert np.mean(np.array(naive) < 0.05) > 0.3


@pytest.mark.usefixtures("few_flips")
def test_intervals_cover_the_difference() -> None:
    table, groups = equal_prompts(150, spread=0.5)
    rows = paired(table, "a", groups)
    assert 0.89 < ((rows["low"] <= 0) & (rows["high"] >= 0)).mean() < 0.99


@pytest.mark.parametrize("test", ["rate", "any", "majority"])
def test_a_planted_difference_is_found(test: str) -> None:
    generator = np.random.default_rng(0)
    chance = generator.beta(1, 3, 60)
    rates = {
        name: generator.binomial(5, np.clip(chance + more, 0, 1)) / 5 for name, more in (("none", 0), ("mine", 0.4))
    }
    row = paired(scores(rates, harmful=False, n_samples=5), "none", test=test).iloc[0]
    assert (row["prompt"], row["baseline"], row["group"]) == ("mine", "none", "harmless")
    assert row["p_holm"] < 0.001
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["higher"] > row["lower"]
    assert row["difference"] == pytest.approx(row["value"] - row["baseline_value"])


def test_sign_flips_agree_with_scipy() -> None:
    generator = np.random.default_rng(1)
    differences = generator.integers(-4, 6, 30) / 10
    usual = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=0)
    assert comparison.sign_flips(differences, 0) == pytest.approx(usual.pvalue, abs=0.01)


def test_counts_go_to_mcnemar() -> None:
    none, mine = np.array([0.0] * 12 + [1.0] * 8), np.array([1.0] * 9 + [0.0] * 3 + [1.0] * 6 + [0.0] * 2)
    row = paired(scores({"none": none, "mine": mine}), "none", test="majority").iloc[0]
    assert (row["higher"], row["lower"], row["test"]) == (9, 2, "McNemar, exact")
    assert row["p"] == pytest.approx(mcnemar([[6, 9], [2, 3]], exact=True).pvalue)


def test_any_counts_compliance_of_harmful_queries_and_refusal_of_the_others() -> None:
    table = scores({"none": np.array([1.0, 1.0]), "mine": np.array([0.9, 1.0])}, harmful=np.array([True, False]))
    rows = paired(table, "none", test="any").set_index("group")
    assert rows["measure"].to_dict() == {"harmful": "any compliance", "harmless": "any refusal"}
    assert rows["difference"].to_dict() == {"harmful": 1, "harmless": 0}
    unequal = table.assign(n_samples=[20, 20, 10, 10])
    with pytest.raises(QueryError, match="draw equally many, or test the rate"):
        paired(unequal, "none", test="any")


def test_no_difference_at_all_still_has_an_interval() -> None:
    row = paired(scores({"none": np.ones(30), "mine": np.ones(30)}), "none").iloc[0]
    assert (row["difference"], row["p"]) == (0, 1)
    assert row["high"] == -row["low"] == pytest.approx(evidence.rate_interval(0, 30).high)


@pytest.mark.parametrize("n", [2, 3])
def test_an_interval_does_not_promise_what_the_test_cannot(n: int) -> None:
    row = paired(scores({"none": np.zeros(n), "mine": np.ones(n)}), "none").iloc[0]
    assert (row["difference"], row["high"]) == (1, 1)
    assert row["p"] == pytest.approx(2 * 0.5**n, abs=0.02)
    assert row["low"] < 0
    assert row["low"] == pytest.approx(1 - 2 * evidence.rate_interval(0, n).high)


@pytest.mark.usefixtures("few_flips")
def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    table, groups = equal_prompts(100, n=30, prompts="abcdef")
    rows = paired(table, "a", groups, n_bootstrap=1)
    corrected = [holm(part)["p_holm"].min() < 0.05 for _, part in rows.groupby("group")]
    assert np.mean(corrected) <= at_most(0.05, 100)
    assert (rows.groupby("group")["p"].min() < 0.05).mean() > 0.1  # the control: five tests without a correction


def test_only_queries_under_both_prompts_are_compared() -> None:
    table = scores({"none": np.zeros(10), "mine": np.ones(10)})
    row = paired(table.drop(("q3", "mine")), "none").iloc[0]
    assert row["n_queries"] == 9
    apart = table.drop([(f"q{n}", "mine") for n in range(5)] + [(f"q{n}", "none") for n in range(5, 10)])
    with pytest.raises(QueryError, match="No query was asked under 'none' and under another"):
        paired(apart, "none")


def test_what_cannot_be_compared_is_named() -> None:
    table = scores({"none": np.ones(3), "mine": np.ones(3)})
    with pytest.raises(QueryError, match="Nothing to compare with 'short'"):
        paired(table, "short")
    with pytest.raises(QueryError, match="Nothing to compare with 'none'"):
        paired(table.drop("mine", level="prompt"), "none")
    with pytest.raises(QueryError, match="No test 'best'"):
        paired(table, "none", test="best")


# The front

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_no_member_of_the_front_is_dominated_and_every_other_prompt_is(values: list[tuple[int, int]]) -> None:
    names = [f"p{number}" for number in range(len(values))]
    table = pd.DataFrame(values, columns=["compliance", "refusal"]).assign(prompt=names)
    front = pareto_front(table).set_index("prompt")

    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    for name, own in zip(names, values, strict=True):
        by = [other for other, place in zip(names, values, strict=True) if dominates(place, own)]
        assert front.at[name, "on_front"] == (not by)
        assert front.at[name, "dominated_by"] == ", ".join(by)


def test_the_plane_takes_compliance_of_one_group_and_refusal_of_another() -> None:
    harmful = np.arange(20) < 10
    rates = {
        "none": np.where(harmful, 0.6, 0.1),
        "mine": np.where(harmful, 0.9, 0.2),
        "bad": np.where(harmful, 0.5, 0.3),
    }
    found = tradeoff(group_rates(scores(rates, harmful=harmful))).set_index("prompt")
    np.testing.assert_allclose(found[["compliance", "refusal"]], [[0.9, 0.6], [0.8, 0.9], [0.7, 0.5]])
    assert found["on_front"].to_dict() == {"none": True, "mine": True, "bad": False}
    assert found.at["bad", "dominated_by"] == "none, mine"
    assert (found["compliance_low"] <= found["compliance"]).all()
    with pytest.raises(QueryError, match="No rates of 'borderline' queries"):
        tradeoff(group_rates(scores(rates)), helpful="borderline")
    with pytest.raises(QueryError, match="lacks compliance or refusal"):
        pareto_front(found.reset_index().assign(refusal=np.nan))


# The board


def contenders(n: int = 60, seed: int = 0, **kinds: tuple[float, float]) -> pd.DataFrame:
    """Scores of n harmful and n harmless queries under contenders that refuse with these probabilities."""
    rng = np.random.default_rng(seed)
    rates = {name: rng.binomial(10, np.repeat(kind, n)) / 10 for name, kind in kinds.items()}
    return scores(rates, harmful=np.arange(2 * n) < n, n_samples=10)


PLANTED = {"base": (0.5, 0.2), "right": (0.9, 0.05), "stern": (1.0, 1.0), "lax": (0.1, 0.2), "same": (0.5, 0.2)}


def test_the_board_says_who_gains_who_loses_and_who_trades() -> None:
    table = comparison.board(contenders(**PLANTED), "base", n_bootstrap=200).set_index("prompt")
    assert table["decision"].to_dict() == {
        "base": "baseline",
        "right": "better",
        "stern": "a trade",
        "lax": "worse",
        "same": "no difference shown",
    }
    assert (table.loc["stern", "gains"], table.loc["stern", "losses"]) == ("harmful", "harmless")
    assert table.loc["stern", "harmless"] == 1.0
    assert table.loc["right", "harmful_low"] < 0.9 < table.loc["right", "harmful_high"]
    assert table.loc["right", "on_front"]
    assert not table.loc["lax", "on_front"]


def test_who_refuses_everything_is_dominated_by_who_refuses_what_is_harmful() -> None:
    table = comparison.board(contenders(base=(0.5, 0.2), all=(1.0, 1.0), right=(1.0, 0.1)), "base", n_bootstrap=50)
    assert table.set_index("prompt")["dominated_by"].to_dict() == {"base": "right", "all": "right", "right": ""}


def test_lost_ability_is_a_loss_and_what_else_is_known_stands_beside() -> None:
    about = pd.DataFrame({"tokens": range(len(PLANTED))}, index=list(PLANTED))
    options = {"about": about, "lost": ["right", "same"], "n_bootstrap": 200}
    table = comparison.board(contenders(**PLANTED), "base", **options).set_index("prompt")
    assert table.loc[["right", "same"], "decision"].tolist() == ["a trade", "worse"]
    assert table.loc["right", "losses"] == "ability"
    assert table["tokens"].to_dict() == dict(zip(PLANTED, range(5), strict=True))


@pytest.mark.usefixtures("few_flips")
def test_who_does_nothing_is_rarely_called_better_or_worse() -> None:
    """The control: of many boards with three contenders that do as the baseline, one in twenty says so of any."""
    n = 40
    false = 0
    for seed in range(n):
        table = comparison.board(
            contenders(40, seed, **dict.fromkeys("abcd", (0.6, 0.2))), "a", n_bootstrap=50, random_state=seed
        )
        false += bool(set(table["decision"]) - {"baseline", "no difference shown"})
    assert false / n <= at_most(0.05, n)


def test_the_board_asks_for_groups_that_it_knows_and_for_all_contenders_in_each() -> None:
    table = contenders(**PLANTED)
    with pytest.raises(QueryError, match="Whether 'odd' queries are to be refused is not known: call it one of harm"):
        comparison.board(table, "base", {"q0": "odd"})
    one = table[(table.index.get_level_values("prompt") != "lax") | table["harmful"]]
    with pytest.raises(QueryError, match="not asked all groups"):
        comparison.board(one, "base")
    with pytest.raises(QueryError, match="Nothing is known about 'right'"):
        comparison.board(table, "base", about=pd.DataFrame({"tokens": [1]}, index=["base"]))


# Types of queries


def test_rates_per_type_are_those_of_the_harmless_queries() -> None:
    generator = np.random.default_rng(0)
    own = scores({"none": generator.random(40) < 0.1, "long": generator.random(40) < 0.6}, harmful=np.arange(40) < 10)
    types = ["homonyms", "definitions", ""] * 13 + ["homonyms"]
    queries = pd.DataFrame({"query_id": [f"q{i}" for i in range(40)], "harmful": np.arange(40) < 10, "category": types})
    table = comparison.type_rates(own, queries)
    assert list(table["prompt"]) == ["none"] * 3 + ["long"] * 3
    assert list(table["type"]) == ["definitions", "homonyms", "all"] * 2
    assert list(table["n_queries"]) == [10, 10, 30] * 2
    flat = own.reset_index().merge(queries[["query_id", "category"]], on="query_id")
    for row in table.itertuples():
        chosen = flat[(flat["prompt"] == row.prompt) & ~flat["harmful"]]
        chosen = chosen if row.type == "all" else chosen[chosen["category"] == row.type]
        usual = evidence.rate_interval(int(chosen["refusal_rate"].sum()), len(chosen))
        assert (row.value, row.low, row.high) == pytest.approx(usual)
    harmful = comparison.type_rates(own, queries, harmful=True)
    assert harmful.set_index(["prompt", "type"]).loc[("none", "all"), "n_queries"] == 10


def test_without_types_there_is_no_table_of_them() -> None:
    own = scores({"none": np.zeros(4)}, harmful=False)
    queries = pd.DataFrame({"query_id": [f"q{i}" for i in range(4)], "harmful": False, "category": ""})
    with pytest.raises(QueryError, match="No harmless query of this set has a category: take a set with types"):
        comparison.type_rates(own, queries)
    with pytest.raises(QueryError, match="No harmful query"):
        comparison.type_rates(own, queries.assign(category="homonyms"), harmful=True)
    with pytest.raises(QueryError, match="lacks the columns"):
        comparison.type_rates(own, queries.drop(columns="category"))
    with pytest.raises(QueryError, match="No query of these scores has a group"):
        comparison.type_rates(own, queries.assign(category="homonyms", query_id=list("abcd")))
