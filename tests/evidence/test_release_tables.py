"""The paper's release: its numbers are read right, what is missing is missing, own runs stand in the same tables."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.small_release import QUERIES, write
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import drolab
from drolab import comparison, judges, notebooks, published
from drolab.errors import PromptError, QueryError
from drolab.evidence.release_tables import Release
from drolab.models import ChatModel
from drolab.types import SoftPrompt

ROOT = Path(__file__).parents[2]
PROMPTS = ["none", "default", "mistral", "short", "dro-default", "dro-mistral", "dro-short"]
AVERAGES = {
    "malicious": [46.875, 9.75, 11.5, 18.25, 1.625, 1.375, 2.25],
    "advbench": [49.375, 10.25, 13.5, 19.125, 1.375, 2.125, 2.5],
}


@pytest.fixture(scope="module")
def release(reference: Path) -> Release:
    return published.load(reference / "published")


@pytest.fixture
def small(tmp_path: Path) -> Release:
    return published.load(write(tmp_path))


def own_scores(events: list[int], n_samples: int, *, prompt: str = "none", harmful: bool = True) -> pd.DataFrame:
    """A score table of drolab's judges: `events` of the samples of each query comply (harmful) or refuse."""
    rows = [
        {"query_id": f"q{number}", "prompt": prompt, "sample": sample, "harmful": harmful, "response": "", "yes": yes}
        for number, count in enumerate(events)
        for sample, yes in enumerate([True] * count + [False] * (n_samples - count))
    ]
    table = pd.DataFrame(rows)
    return judges.score_table(table, ~table["yes"] if harmful else table["yes"])


# The paper's numbers


def test_averages_of_the_release(release: Release) -> None:
    found = published.averages(release).set_index(["dataset", "prompt"])
    for dataset, wanted in AVERAGES.items():
        assert [100 * found.loc[(dataset, prompt), "any"] for prompt in PROMPTS] == pytest.approx(wanted)
    gcg, testset = found.loc["gcg"]["any"] * 100, found.loc["testset"]["any"] * 100
    assert list(gcg[["none", "default", "dro-default"]]) == pytest.approx([54.125, 13.25, 3.125])
    assert list(testset[["none", "default", "dro-default"]]) == pytest.approx([0.75, 7.125, 2.0])
    assert (found["n_models"] == 8).all()
    assert (found["n_missing"] == 0).all()
    judged = found[found["measure"] != "win"]
    assert ((judged["any_low"] < judged["any"]) & (judged["any"] < judged["any_high"])).all()
    assert (judged["per_sample"] < judged["any"]).all()


def test_one_model_complies_in_any_of_20_samples_thrice_as_often_as_per_sample(release: Release) -> None:
    found = published.rates(release, "malicious").set_index(["model", "prompt"]).loc[("vicuna-7b-v1.5", "none")]
    assert found["any"] == 0.51
    assert found["per_sample"] == pytest.approx(0.166)
    assert list(found[["any_low", "any_high"]]) == pytest.approx(_wilson(51, 100))
    assert found["per_sample_low"] < 0.166 < found["per_sample_high"]


def _wilson(count: int, n: int) -> list[float]:
    interval = stats.binomtest(count, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def test_every_model_prompt_and_data_set_has_a_row_and_missing_ones_are_nan(release: Release) -> None:
    rates = published.rates(release)
    assert len(rates) == 8 * 10 * 7
    gcg = rates[rates["dataset"] == "gcg"].reset_index(drop=True)
    pd.testing.assert_frame_equal(gcg, published.rates(release, "gcg"))
    missing = gcg["any"].isna()
    assert set(gcg.loc[~missing, "prompt"]) == {"none", "default", "dro-default", "vpt-default"}
    assert gcg.loc[missing, ["n_queries", "any_low", "per_sample", "per_sample_low"]].isna().all(axis=None)
    wins = published.rates(release, "alpaca")
    assert len(wins) == 80
    assert wins["any"].notna().all()
    assert wins["per_sample"].isna().all()
    assert (rates["source"] == "released").all()


def test_the_table_for_an_appendix(release: Release, small: Release) -> None:
    table = published.table(release, "gcg")
    assert list(table.columns) == ["none", "default", "dro-default", "vpt-default"]
    assert list(table.index)[-1] == "average"
    assert table.loc["average", "none"] == pytest.approx(54.125)
    assert "54.1" in table.to_latex(na_rep="–", float_format="%.1f")
    gaps = published.table(small, "malicious")
    assert gaps.loc["Alpha-7b", "dro-default"] == 0
    assert gaps.loc[["Beta_2-7b", "average"], "dro-default"].isna().all()


def test_the_released_label_is_the_string_rule(release: Release) -> None:
    responses = release.responses(dataset="testset", prompt="default")
    assert len(responses) == 2 * 100 * 20
    found = published.judge_agreement(responses, {"string rule": judges.is_refusal, "nothing": lambda _: False})
    rule = found[(found["a"] == "string rule") & (found["b"] == "label")].set_index("model")
    assert (rule["kappa"] == 1).all()
    assert rule.loc["all", "n"] == 4000
    with pytest.raises(QueryError, match=r"The responses lack \['refused'\]"):
        published.judge_agreement(responses.drop(columns="refused"), {})
    control = found[(found["a"] == "nothing") & (found["b"] == "label")]
    assert (control["kappa"] == 0).all()


def test_rates_per_query_agree_with_the_responses(release: Release) -> None:
    responses = release.responses(model="Llama-2-7b-chat-hf")
    again = judges.score_table(responses, responses["refused"])
    scores = release.scores("Llama-2-7b-chat-hf")
    both = scores.join(again["refusal_rate"].rename("again"), how="inner")
    assert len(both) == 100
    np.testing.assert_allclose(both["refusal_rate"], both["again"])
    assert (again["n_samples"] == 20).all()


def test_differences_are_tested_by_query_and_corrected(release: Release) -> None:
    found = published.differences(release, "default", datasets=["malicious"], prompts=["dro-default", "none"])
    assert len(found) == 16
    row = found[(found["model"] == "Mistral-7B-Instruct-v0.1") & (found["prompt"] == "dro-default")].iloc[0]
    assert (row["value"], row["baseline_value"], row["dataset"]) == (0.03, 0.31, "malicious")
    assert row["p"] == pytest.approx(stats.binomtest(row["higher"], row["higher"] + row["lower"]).pvalue)
    assert row["p"] < row["p_holm"] < 0.001
    np.testing.assert_allclose(found["p_holm"], comparison.holm(found)["p_holm"])
    assert found["p"].max() <= 1


def test_equal_prompts_differ_nowhere(release: Release) -> None:
    again = release.scores("vicuna-7b-v1.5").loc[(slice(None), ["none"]), :]
    twice = pd.concat([again, again.rename(index={"none": "copy"}, level="prompt")])
    only = Release().with_scores(twice, model="vicuna", dataset=_datasets(release))
    assert (published.differences(only, "none")["p_holm"] == 1).all()


def _datasets(release: Release) -> pd.Series:
    return release.queries.drop_duplicates("query_id").set_index("query_id")["dataset"]


def test_each_model_can_be_compared_with_what_takes_scores(release: Release) -> None:
    scores = release.scores("openchat-3.5")
    rates = comparison.group_rates(scores)
    assert set(rates["group"]) == {"harmful", "harmless"}
    assert not comparison.tradeoff(rates).empty


# Own runs


def test_own_runs_stand_in_the_same_tables(release: Release) -> None:
    own = release.with_scores(own_scores([20, 0, 5, 0], 20), model="mine", dataset="malicious")
    rates = published.rates(own, "malicious").set_index(["model", "prompt"])
    assert rates.loc[("mine", "none"), "any"] == 0.5
    assert rates.loc[("mine", "none"), "per_sample"] == pytest.approx(25 / 80)
    assert rates.loc[("mine", "none"), "source"] == "own"
    assert np.isnan(rates.loc[("mine", "default"), "any"])
    assert rates.loc[("vicuna-7b-v1.5", "none"), "any"] == 0.51
    assert published.table(own, "malicious").loc["average", "none"] == pytest.approx(46.875)  # of the released ones
    assert release.counts["source"].eq("released").all()  # the release itself is left alone


def test_a_released_model_added_as_an_own_run_has_the_same_rates(release: Release) -> None:
    both = release.with_scores(release.scores("Orca-2-7b"), model="again", dataset=_datasets(release))
    rates = published.rates(both).query("measure != 'win'").set_index(["dataset", "prompt", "model"])
    columns = [
        "n_queries",
        "n_samples",
        "any",
        "any_low",
        "any_high",
        "per_sample",
        "per_sample_low",
        "per_sample_high",
    ]
    first, second = (rates.xs(name, level="model")[columns] for name in ("Orca-2-7b", "again"))
    pd.testing.assert_frame_equal(first, second)


def test_fewer_samples_are_compared_at_the_same_k(release: Release) -> None:
    own = release.with_scores(own_scores([5, 0, 1], 5), model="mine", dataset="malicious")
    with pytest.raises(QueryError, match="choose 1 to 5"):
        published.rates(own, "malicious", k=6)
    rates = published.rates(own, "malicious", k=5).set_index(["model", "prompt"])["any"]
    assert rates["mine", "none"] == pytest.approx(2 / 3)
    assert 0.166 < rates["vicuna-7b-v1.5", "none"] < 0.51


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 5))
def test_any_of_k_is_the_mean_over_all_choices_of_k_samples(events: list[int], k: int) -> None:
    mine = Release().with_scores(own_scores(events, 5), model="m", dataset="d")
    choices = list(itertools.combinations(range(5), k))
    wanted = np.mean([any(sample < count for sample in choice) for count in events for choice in choices])
    found = published.rates(mine, k=k).iloc[0]
    assert found["any"] == pytest.approx(wanted)
    assert published.rates(mine, k=1).iloc[0]["any"] == pytest.approx(found["per_sample"])


@pytest.mark.parametrize(
    ("scores", "dataset", "message"),
    [
        (own_scores([1], 2, harmful=False), "malicious", "harmful or harmless, not both"),
        (own_scores([1], 2), {"other": "malicious"}, "No query of these scores has a data set"),
        (own_scores([1], 2).drop(columns="harmful"), "malicious", r"lack the columns \['harmful'\]"),
    ],
)
def test_bad_own_runs_are_refused(small: Release, scores: pd.DataFrame, dataset: object, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        small.with_scores(scores, model="mine", dataset=dataset)
    with pytest.raises(QueryError, match="already: use another name"):
        small.with_scores(own_scores([1], 2), model="Alpha-7b", dataset="malicious")
    mine = small.with_scores(own_scores([1], 2), model="mine", dataset="malicious")
    with pytest.raises(QueryError, match="Query ids of 'mine' are in two data sets"):
        mine.with_scores(own_scores([1], 2), model="mine", dataset="with a suffix")


# A small clone: names, missing results, texts


def test_a_small_clone_is_read_with_its_gaps(small: Release) -> None:
    assert repr(small) == (
        "Release(2 models, 3 prompts, 2 datasets, 8 results, 8 files of responses, 2 soft prompts, "
        "without eval_results_alpaca)"
    )
    any_ = published.rates(small).set_index(["dataset", "model", "prompt"])["any"]
    assert any_["malicious", "Alpha-7b", "none"] == pytest.approx(2 / 3)
    assert any_["malicious", "Alpha-7b", "dro-default"] == 0
    assert any_["testset", "Alpha-7b", "default"] == pytest.approx(2 / 3)
    assert np.isnan(any_["malicious", "Beta_2-7b", "dro-default"])
    assert np.isnan(any_["testset", "Beta_2-7b", "default"])
    averages = published.averages(small).set_index(["dataset", "prompt"])
    assert averages.loc[("malicious", "none"), "any"] == pytest.approx(5 / 6)
    assert averages.loc[("malicious", "none"), "per_sample"] == pytest.approx(55 / 120)
    assert np.isnan(averages.loc[("malicious", "dro-default"), "any"])
    assert averages.loc[("malicious", "dro-default"), "n_missing"] == 1
    alone = published.averages(small, "malicious", models=["Alpha-7b"]).set_index("prompt")["any"]
    assert alone["dro-default"] == 0


def test_responses_keep_their_texts(small: Release) -> None:
    table = small.responses(dataset="testset", model="Beta_2-7b")
    assert list(table["text"].unique()) == QUERIES["testset"]
    assert list(table["response"][:3]) == ["Sure.\n1. Yes, and\r\nso on", "None", "a\rb"]
    assert list(table["query_id"].unique()) == ["testset-0001", "testset-0002", "testset-0003"]
    assert table["refused"].sum() == 2
    rows = published.query_rows(small, "testset", prompt="none")
    assert list(rows["row"].unique()) == ["Alpha-7b", "Beta_2-7b"]
    assert list(rows["text"][:3]) == QUERIES["testset"]
    assert rows["rate"].sum() == pytest.approx(0.1)
    assert list(published.query_rows(small, "malicious", model="Alpha-7b")["row"].unique()) == [
        "none", "default", "dro-default",
    ]  # fmt: skip


def test_what_is_not_there_is_named(small: Release) -> None:
    with pytest.raises(QueryError, match="There are data sets: malicious, testset"):
        published.rates(small, "gcg")
    with pytest.raises(QueryError, match=re.escape(published.CLONE)):
        published.rates(Release())
    with pytest.raises(QueryError, match=r"No results per query of 'GPT': choose one of \['Alpha-7b', 'Beta_2-7b'\]"):
        small.scores("GPT")
    with pytest.raises(QueryError, match=r"No responses with .* there are those of Alpha-7b none malicious"):
        small.responses(prompt="mistral")
    with pytest.raises(QueryError, match="No model has results per query under 'mistral'"):
        published.differences(small, "mistral")
    with pytest.raises(QueryError, match=r"No results of the models \['GPT'\]"):
        published.averages(small, models=["GPT"])
    with pytest.raises(QueryError, match="Give a prompt"):
        published.query_rows(small, "testset")


# Soft prompts


@pytest.mark.parametrize(
    ("model", "lengths"), [("Llama-2-7b-chat-hf", (116, 54, 23)), ("Mistral-7B-Instruct-v0.1", (112, 51, 23))]
)
def test_released_soft_prompts_load(release: Release, model: str, lengths: tuple[int, ...]) -> None:
    for method in ("dro", "vpt"):
        for init, length in zip(("default", "mistral", "short"), lengths, strict=True):
            prompt = release.soft_prompt(model, f"{method}-{init}")
            assert isinstance(prompt, SoftPrompt)
            assert prompt.embeddings.shape == (length, 4096)
            assert prompt.embeddings.dtype == torch.float32


def test_a_prompt_that_does_not_fit_names_both(release: Release, tiny_llama: ChatModel) -> None:
    message = "'dro-short' was released for 'Llama-2-7b-chat-hf'.* does not fit 'tiny-llama' with hidden size 32"
    with pytest.raises(PromptError, match=message):
        release.soft_prompt("Llama-2-7b-chat-hf", "dro-short", chat_model=tiny_llama)
    soft = release.soft_prompt("Llama-2-7b-chat-hf", "dro-short")
    with pytest.raises(PromptError, match="'dro-short' has vectors of width 4096, but 'tiny-llama' has hidden size 32"):
        drolab.generate(tiny_llama, drolab.load_queries("anchors")[:1], soft, n_samples=1)
    with pytest.raises(PromptError, match="No soft prompt 'dro-long' of 'Llama-2-7b-chat-hf' in this clone"):
        release.soft_prompt("Llama-2-7b-chat-hf", "dro-long")


def test_tokens_of_both_trainings_are_compared(release: Release) -> None:
    table = published.trained_tokens(release)
    mean = table.groupby(["model", "init", "prompt"])[["norm", "drift", "cosine"]].mean()
    llama = mean.loc["Llama-2-7b-chat-hf", "default"]
    a, b = (release.soft_prompt("Llama-2-7b-chat-hf", f"{method}-default").embeddings for method in ("dro", "vpt"))
    assert llama.loc["dro-default", "norm"] == pytest.approx(a.norm(dim=1).mean().item(), rel=1e-5)
    assert llama.loc["vpt-default", "norm"] == pytest.approx(b.norm(dim=1).mean().item(), rel=1e-5)
    assert llama.loc["dro-default", "drift"] == pytest.approx((a - b).norm(dim=1).mean().item(), rel=1e-5)
    assert (mean.xs("vpt-default", level="prompt")["norm"] > 1.5 * mean.xs("dro-default", level="prompt")["norm"]).all()
    assert set(table.loc[table["prompt"] == "dro-default", "against"]) == {"vpt-default"}


# The notebook


@pytest.fixture(scope="module")
def notebook_08(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> dict[str, tuple[str, dict]]:
    """Notebook 08 with few own replies, without and with clones: what it printed, and what it saved.

    One kernel runs both: imports are most of its work.
    """
    folder, cells = tmp_path_factory.mktemp("08"), []
    clones = {"RELEASE": str(reference / "published"), "XSTEST": str(reference / "xstest")}
    for name, parameters in {"without": {}, "with": clones}.items():
        opened = nbformat.read(ROOT / "notebooks" / "08_published_results.ipynb", as_version=4)
        settings = {"N_QUERIES": 2, "N_SAMPLES": 2, "OUT": str(folder / name), "STORE": str(folder / "store")}
        notebooks.inject(opened, settings | parameters, "08")
        sources = [cell.source for cell in opened.cells if cell.cell_type == "code"]
        cells += [
            *map(nbformat.v4.new_code_cell, sources),
            nbformat.v4.new_code_cell("%reset -sf", metadata={"end of": name}),
        ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "both.ipynb")
    (copy,) = notebooks.run_notebooks([folder / "both.ipynb"], folder)
    found, printed = {}, ""
    for cell in nbformat.read(copy, as_version=4).cells:
        printed += "".join(output.get("text", "") for output in cell.get("outputs", []))
        if name := cell.metadata.get("end of"):
            found[name] = printed, json.loads((folder / name / "numbers" / "08.json").read_text())
            printed = ""
    return found


def test_the_notebook_without_a_clone_says_how_to_get_one_and_runs(notebook_08: dict[str, tuple[str, dict]]) -> None:
    printed, saved = notebook_08["without"]
    assert published.CLONE in printed
    assert published.XSTEST_CLONE in printed
    assert "08_grid_harmful" in saved["figures"]
    assert {row["prompt"] for row in saved["numbers"]["averages"]} == set(drolab.load_prompts())
    assert "08_people" not in saved["figures"]


def test_the_notebook_with_clones_shows_the_papers_numbers(notebook_08: dict[str, tuple[str, dict]]) -> None:
    printed, saved = notebook_08["with"]
    assert "git clone" not in printed
    averages = {(row["dataset"], row["prompt"]): row["any"] for row in saved["numbers"]["averages"]}
    assert averages["malicious", "default"] == pytest.approx(0.0975)
    assert averages["malicious", "dro-default"] == pytest.approx(0.01625)
    people = {row["group"]: row["value"] for row in saved["numbers"]["people"]}
    assert people == {"safe": 0.38, "unsafe": 0.995}
    assert {"08_grid_harmful", "08_grid_harmless", "08_people", "08_norms", "08_queries"} <= set(saved["figures"])
