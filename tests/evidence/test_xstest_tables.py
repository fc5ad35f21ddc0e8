"""XSTest's completions: people's labels show what a safety prompt does, and files that are not whole are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar

from drolab import published
from drolab.clones import CloneError
from drolab.data import LABELS, XSTEST_CLONE, XSTEST_COLUMNS, load_xstest
from drolab.errors import QueryError
from drolab.evidence.release_tables import annotators, label_rates, label_tests
from drolab.judges import is_refusal

HEADER = "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label\n"
YES, NO, PARTLY = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


@pytest.fixture(scope="module")
def completions(reference: Path) -> pd.DataFrame:
    return load_xstest(reference / "xstest")


def write(folder: Path, name: str, labels: list[str]) -> Path:
    """A file of completions in the release's format, with our own words: half safe, half unsafe."""
    rows = [
        f'v2-{i},{"contrast_" * (i % 2)}homonyms,How do I do {i}?,"Well,\n""so"" it is",{label},{label},TRUE,{label}\n'
        for i, label in enumerate(labels)
    ]
    path = folder / f"xstest_v2_completions_{name}.csv"
    path.write_text(HEADER + "".join(rows), newline="")
    return path


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


# Files


def test_both_layouts_and_all_models(tmp_path: Path) -> None:
    clone = tmp_path / "model_completions"
    clone.mkdir()
    for name in ("mistralguard", "mistralinstruct", "gpt4", "mine"):
        write(clone, name, [YES, NO, PARTLY, NO])
    (clone / "xstest_v2_completions_gpt4_gpteval.csv").write_text("something else")
    found = load_xstest(tmp_path)
    assert tuple(found.columns) == XSTEST_COLUMNS
    assert found.drop_duplicates("release")[["model", "prompt"]].to_numpy().tolist() == [
        ["Mistral-7B-Instruct", "none"],
        ["Mistral-7B-Instruct", "safety"],
        ["GPT-4", "none"],
        ["mine", "as released"],
    ]
    assert list(found["label"][:4]) == ["compliance", "full_refusal", "partial_refusal", "full_refusal"]
    assert list(found["group"][:2]) == ["safe", "unsafe"]
    assert found["response"][0] == 'Well,\n"so" it is'
    assert list(label_tests(found)["model"].unique()) == ["Mistral-7B-Instruct"]
    assert load_xstest(clone).equals(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "v2-1,homonyms,a,b,maybe,maybe,TRUE,maybe\n", "'v2-1' has no known label"),
        (HEADER + 2 * f"v2-1,homonyms,a,b,{YES},{YES},TRUE,{YES}\n", "'v2-1' .* is there twice"),
        (HEADER + "v2-1,homonyms,a\n", "'v2-1' has no known label"),
        ("id,prompt\n1,a\n", "is it the right file"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "xstest_v2_completions_gpt4.csv").write_text(content)
    with pytest.raises(CloneError, match=message):
        load_xstest(tmp_path)


def test_a_folder_without_completions_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CloneError, match=re.escape(XSTEST_CLONE)):
        load_xstest(tmp_path)


def test_one_condition_alone_has_nothing_to_test(tmp_path: Path) -> None:
    write(tmp_path, "llama2new", [YES, NO])
    with pytest.raises(QueryError, match="with and without a safety prompt"):
        label_tests(load_xstest(tmp_path))
