"""The first-token score, and how well it agrees with sampling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from drolab import figures
from drolab.errors import QueryError, StatesError
from drolab.inference import generate
from drolab.judges import FirstTokenJudge, calibration_table, first_token, judge, score_agreement
from drolab.models import ChatModel, Prompt
from drolab.types import SafetyPrompt


def test_fit_counts_refusals_per_first_token() -> None:
    texts = ["Sorry.", "Sorry.", "Sure.", "Sorry to hear it: a plan."]
    table = pd.DataFrame({"response": texts, "first_token": [7, 7, 3, 7]})
    fitted = FirstTokenJudge.fit(table)
    assert fitted.tokens.tolist() == [3, 7]
    assert fitted.counts.tolist() == [1, 3]
    torch.testing.assert_close(fitted.refusal_rate, torch.tensor([0.0, 2 / 3]))
    with pytest.raises(QueryError, match=r"lack the columns \['first_token'\]"):
        FirstTokenJudge.fit(table[["response"]])


def replies(n_refused: int, n_answered: int, n_samples: int = 3) -> pd.DataFrame:
    """So many queries that are refused in one sample, and so many that are answered in all; some are in both counts."""
    rows = [
        {"query_id": f"q{i}", "response": "Sorry." if i < n_refused and not k else "Sure.", "first_token": 7}
        for i in range(n_refused + n_answered)
        for k in range(n_samples)
    ]
    return pd.DataFrame(rows)


def test_a_judge_of_too_few_refusals_says_so() -> None:
    few = FirstTokenJudge.fit(replies(9, 100))
    assert "saw 9 of 109 queries refused (9 of 327 replies), and needs 10" in few.problem
    assert "more samples, prompts or queries that are refused more often, or another judge" in few.problem
    assert FirstTokenJudge.fit(replies(10, 100)).problem == ""
    many_samples = FirstTokenJudge.fit(replies(9, 100).loc[lambda table: table.index.repeat(50)])
    assert "saw 9 of 109 queries refused (450 of" in many_samples.problem, "the replies to one query are alike"
    assert "saw 0 of 50 queries refused" in FirstTokenJudge.fit(replies(0, 50)).problem


def test_a_judge_of_too_few_answers_says_so() -> None:
    assert "saw 9 of 109 queries answered" in FirstTokenJudge.fit(replies(100, 9, n_samples=1)).problem
    assert FirstTokenJudge.fit(replies(100, 10, n_samples=1)).problem == ""
    assert FirstTokenJudge.fit(replies(100, 9, n_samples=2)).problem == "", "the second samples are answers"


def test_without_query_ids_each_reply_counts_as_a_query() -> None:
    table = replies(10, 10, n_samples=1).drop(columns="query_id").set_axis(range(20, 40))
    assert FirstTokenJudge.fit(table).problem == ""
    assert "saw 9 of 19 queries refused" in FirstTokenJudge.fit(table.iloc[1:]).problem


def test_what_the_judge_has_no_opinion_on_does_not_count() -> None:
    class Unsure:
        def verdicts(self, responses: pd.DataFrame) -> pd.Series:
            said = responses["response"].map({"Sorry.": "full_refusal", "Sure.": "compliance"})
            return said.where(responses["query_id"] != "q0")

    assert "saw 9 of 29 queries refused" in FirstTokenJudge.fit(replies(10, 20, n_samples=1), Unsure()).problem


def test_fit_leaves_out_what_the_judge_has_no_opinion_on() -> None:
    class Listed:
        def verdicts(self, responses: pd.DataFrame) -> pd.Series:
            return pd.Series(["full_refusal", "partial_refusal", None], index=responses.index, dtype=object)

    table = pd.DataFrame({"response": ["a", "b", "c"], "first_token": [7, 7, 3]})
    fitted = FirstTokenJudge.fit(table, Listed())
    assert fitted.tokens.tolist() == [7]
    assert fitted.refusal_rate.tolist() == [0.5]


def test_score_splits_the_mass(monkeypatch: pytest.MonkeyPatch, tiny_llama: ChatModel) -> None:
    index = pd.DataFrame({"query_id": ["a", "b"], "prompt": "none", "harmful": [True, False]})
    probabilities = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.0, 0.0, 1.0, 0.0]])
    monkeypatch.setattr(first_token, "first_token_probabilities", lambda *_, **__: (index, probabilities))
    fitted = FirstTokenJudge(
        tokens=torch.tensor([1, 2]), refusal_rate=torch.tensor([0.8, 0.0]), counts=torch.tensor([5, 5])
    )
    scores = fitted.score(tiny_llama, index, SafetyPrompt(name="none", text=""))
    assert list(scores.columns) == ["query_id", "prompt", "harmful", "refusal", "compliance", "other"]
    np.testing.assert_allclose(scores[["refusal", "compliance", "other"]], [[0.4, 0.4, 0.2], [0, 1, 0]], atol=1e-6)


def test_score_of_a_model(tiny_llama: ChatModel) -> None:
    """With a judge that looks at the first byte alone, the score is the exact rate that sampling estimates."""
    ids = [f"q{number}" for number in range(6)]
    texts = ["How to boil an egg?", "How to sing?", "How to plan a trip?", "What?", "Why not?", "How to swim?"]
    columns = {"harmful": [False, True] * 3, "category": "any", "split": "test", "source": "test"}
    queries = pd.DataFrame({"query_id": ids, "text": texts, **columns}, index=ids)
    prompts: list[Prompt] = [SafetyPrompt(name="none", text=""), SafetyPrompt(name="careful", text="Be careful.")]
    sampled = generate(tiny_llama, queries, prompts, n_samples=400, max_new_tokens=1, top_p=1, progress=False)
    sampled["response"] = np.where(sampled.first_token % 3 == 0, "No.", "Yes.")

    def no(text: str) -> bool:
        return text == "No."

    fitted = FirstTokenJudge.fit(sampled, judge=no)
    scores = fitted.score(tiny_llama, queries, prompts)
    np.testing.assert_allclose(scores.refusal + scores.compliance + scores.other, 1, atol=1e-6)
    assert (scores.other < 0.1).all()
    judged = judge(sampled, judge=no)
    table = score_agreement(scores, judged, n_bootstrap=200)
    assert table.value["mean_absolute_error"] < 0.05
    few = FirstTokenJudge.fit(sampled[sampled["sample"] == 0], judge=no).score(tiny_llama, queries, prompts)
    assert (few.other > scores.other).all()  # tokens that were not seen are not guessed


def pairs(predicted: np.ndarray, observed: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = pd.DataFrame(
        {"query_id": [f"q{i // 2}" for i in range(len(predicted))], "prompt": ["a", "b"] * (len(predicted) // 2)}
    )
    judged = ids.assign(refusal_rate=observed).set_index(["query_id", "prompt"])
    return ids.assign(refusal=predicted), judged


def test_agreement_of_equal_related_and_unrelated_scores() -> None:
    generator = np.random.default_rng(0)
    rates = generator.random(200)
    equal = score_agreement(*pairs(rates, rates), n_bootstrap=100)
    assert list(equal.index) == ["pearson", "spearman", "mean_absolute_error"]
    np.testing.assert_allclose(equal.value, [1, 1, 0], atol=1e-12)
    related = score_agreement(*pairs(np.clip(rates + generator.normal(0, 0.1, 200), 0, 1), rates))
    assert (related.low <= related.value).all()
    assert (related.value <= related.high).all()
    assert related.low["pearson"] > 0.85
    assert (related.n == 200).all()
    unrelated = score_agreement(*pairs(generator.permutation(rates), rates))
    assert unrelated.low["pearson"] < 0 < unrelated.high["pearson"]
    again = [score_agreement(*pairs(rates, rates), n_bootstrap=100, random_state=1) for _ in range(2)]
    assert again[0].equals(again[1])


def test_agreement_with_a_constant_side_has_no_correlation() -> None:
    table = score_agreement(*pairs(np.linspace(0, 1, 10), np.zeros(10)), n_bootstrap=20)
    assert table.value.isna().tolist() == [True, True, False]
    assert table.value["mean_absolute_error"] == pytest.approx(0.5)


def test_few_queries_give_agreement_without_limits() -> None:
    rates = np.linspace(0.1, 0.9, 8)
    assert score_agreement(*pairs(rates, rates**2), n_bootstrap=50)[["low", "high"]].notna().all(axis=None)
    few = score_agreement(*pairs(rates[:2], rates[:2] ** 2), n_bootstrap=50)
    assert few.loc["pearson", "value"] == pytest.approx(1)  # as of any two points
    assert few[["low", "high"]].isna().all(axis=None)
    with pytest.raises(StatesError, match="n_bootstrap must be a whole number above 0"):
        score_agreement(*pairs(rates, rates), n_bootstrap=0)


def test_agreement_needs_common_pairs() -> None:
    scores, judged = pairs(np.zeros(4), np.zeros(4))
    with pytest.raises(QueryError, match="share no query and prompt: compute both for the same ones"):
        score_agreement(scores.assign(prompt=scores.prompt + "!"), judged)
    with pytest.raises(QueryError, match="appear twice in the scores"):
        calibration_table(pd.concat([scores, scores]), judged, pd.DataFrame())


def test_calibration_has_the_columns_of_its_figure() -> None:
    scores, judged = pairs(np.array([0.0, 0.05, 0.55, 1.0]), np.array([0.0, 0.2, 0.5, 1.0]))
    scores = scores.assign(harmful=[True, True, False, False])
    queries = pd.DataFrame({"query_id": ["q0", "q1"], "text": ["How?", "Why?"]}, index=["q0", "q1"])
    table = calibration_table(scores, judged, queries)
    assert table[["query_id", "prompt", "text"]].to_numpy().tolist() == [
        ["q0", "a", "How?"],
        ["q0", "b", "How?"],
        ["q1", "a", "Why?"],
        ["q1", "b", "Why?"],
    ]
    np.testing.assert_allclose(table[["score", "rate"]], [[0, 0], [0.05, 0.2], [0.55, 0.5], [1, 1]])
    assert len(figures.calibration(table).data) > 1
