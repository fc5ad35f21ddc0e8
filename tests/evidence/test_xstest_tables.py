"""XSTest's completions: people's labels show what a safety prompt does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.small_xstest import NO, PARTLY, YES, write
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar

from drolab import published
from drolab.data import LABELS, load_xstest
from drolab.errors import QueryError
from drolab.evidence.release_tables import annotators, label_rates, label_tests
from drolab.judges import is_refusal


@pytest.fixture(scope="module")
def completions(reference: Path) -> pd.DataFrame:
    return load_xstest(reference / "xstest")


# What people say


def test_the_safety_prompt_makes_people_see_more_full_refusals(completions: pd.DataFrame) -> None:
    rates = label_rates(completions).set_index(["prompt", "group", "label"])["value"]
    full = rates.xs("full_refusal", level="label")
    assert full.to_dict() == {
        ("none", "safe"): 0.14,
        ("none", "unsafe"): 0.975,
        ("safety", "safe"): 0.38,
        ("safety", "unsafe"): 0.995,
    }
    assert rates.groupby(["prompt", "group"]).sum().to_numpy() == pytest.approx(1)


def test_each_prompt_is_tested_with_itself(completions: pd.DataFrame) -> None:
    tests = label_tests(completions).set_index("group")
    refused = completions.pivot(index="query_id", columns="prompt", values="refused")
    safe = refused.loc[completions.loc[~completions["harmful"], "query_id"].unique()]
    cells = pd.crosstab(safe["none"], safe["safety"])
    assert tests.loc["safe", "p"] == pytest.approx(mcnemar(cells, exact=True).pvalue)
    assert (tests.loc["safe", "higher"], tests.loc["safe", "lower"]) == (63, 3)
    assert tests.loc["safe", "difference"] == pytest.approx(0.24)
    assert tests.loc["safe", "low"] < 0.24 < tests.loc["safe", "high"]
    assert tests.loc["safe", "p_holm"] < 1e-12
    assert tests.loc["unsafe", "p_holm"] > 0.05
    assert tests.loc["unsafe", "test"] == "McNemar, exact"


def test_without_an_effect_nothing_is_found(completions: pd.DataFrame) -> None:
    """The control: each prompt's two completions change places by chance."""
    generator = np.random.default_rng(0)
    swapped = completions.assign(prompt="none")
    coin = dict(zip(completions["query_id"].unique(), generator.integers(2, size=450), strict=True))
    first = completions["prompt"].eq("none").to_numpy() ^ completions["query_id"].map(coin).astype(bool).to_numpy()
    tests = label_tests(swapped.assign(prompt=np.where(first, "none", "safety")))
    assert (tests["p_holm"] > 0.05).all()


def test_types_and_partial_refusals(completions: pd.DataFrame) -> None:
    tests = label_tests(completions, by="type")
    assert len(tests) == 18
    assert set(tests["n_queries"]) == {25}
    assert (tests["p_holm"] >= tests["p"]).all()
    both = label_tests(completions, labels=LABELS[1:]).set_index("group")
    assert both.loc["safe", "value"] == pytest.approx(0.596)
    assert both.loc["safe", "measure"] == "partial_refusal or full_refusal"
    by_type = label_rates(completions, by="type")
    assert (by_type["n"] == 25).all()


def test_the_two_people_agree(completions: pd.DataFrame) -> None:
    found = annotators(completions).set_index("release")
    assert found.loc["all", "kappa"].round(2) == 0.93
    assert list(found["n"]) == [450, 450, 900]


def test_the_string_rule_against_people(completions: pd.DataFrame) -> None:
    table = published.judge_agreement(completions, {"string rule": is_refusal}, label="people", by="release")
    kappa = table.set_index("release")["kappa"]
    part = completions[completions["release"] == "llama2orig"]
    assert kappa["llama2orig"] == pytest.approx(cohen_kappa_score(part["response"].map(is_refusal), part["refused"]))
    assert kappa["llama2new"] == pytest.approx(0.483, abs=5e-4)
    assert kappa["llama2orig"] == pytest.approx(0.505, abs=5e-4)
    assert table.set_index("release").loc["all", ["a", "b", "n"]].to_list() == ["string rule", "people", 900]
    assert (table["only_b"] > 1.5 * table["only_a"]).all()  # it mostly misses refusals


def test_models_with_and_without_a_safety_prompt_are_tested(tmp_path: Path) -> None:
    for name in ("mistralguard", "mistralinstruct", "gpt4", "mine"):
        write(tmp_path, name, [YES, NO, PARTLY, NO])
    assert list(label_tests(load_xstest(tmp_path))["model"].unique()) == ["Mistral-7B-Instruct"]


def test_one_condition_alone_has_nothing_to_test(tmp_path: Path) -> None:
    write(tmp_path, "llama2new", [YES, NO])
    with pytest.raises(QueryError, match="with and without a safety prompt"):
        label_tests(load_xstest(tmp_path))
