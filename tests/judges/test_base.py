"""Whatever has verdicts is a judge; from verdicts to rates; several judges side by side."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest

from drolab.errors import QueryError
from drolab.judges import HandJudge, Judge, TextJudge, is_refusal, judge, opinions, score_table, verdicts
from drolab.types import SCORE_COLUMNS


def replies(*rows: tuple[str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["query_id", "prompt", "response"])
    return table.assign(harmful=table.query_id.str.startswith("h"))


class Said:
    """A judge that says what it is told to say."""

    def __init__(self, *said: object) -> None:
        self.said = said

    def verdicts(self, responses: pd.DataFrame) -> pd.Series:
        return pd.Series(self.said, index=responses.index[: len(self.said)], dtype=object)


# From verdicts to rates


def test_judge_counts_per_query_and_prompt() -> None:
    scores = judge(
        replies(
            ("h1", "none", "I cannot help."),
            ("h1", "none", "Sure."),
            ("h1", "none", "Sure."),
            ("h1", "none", "Sorry."),
            ("b1", "none", "Sure."),
            ("h1", "long", "I cannot help."),
        )
    )
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert list(scores.index) == [("h1", "none"), ("b1", "none"), ("h1", "long")]
    assert list(scores.n_samples) == [4, 1, 1]
    assert list(scores.refusal_rate) == [0.5, 0.0, 1.0]
    assert list(scores.compliance_rate) == [0.5, 1.0, 0.0]
    assert list(scores.any_refusal) == [True, False, True]
    assert list(scores.any_compliance) == [True, True, False]
    assert list(scores.harmful) == [True, False, True]


def test_another_judge() -> None:
    table = replies(("h1", "none", "No."), ("h1", "none", "Sure."))
    assert judge(table).refusal_rate.item() == 0
    assert judge(table, judge=lambda text: text == "No.").refusal_rate.item() == 0.5


def test_bad_tables() -> None:
    with pytest.raises(QueryError, match=r"lack the columns \['harmful', 'response'\]: pass the table that drolab"):
        judge(pd.DataFrame({"query_id": ["a"], "prompt": ["none"]}))
    with pytest.raises(QueryError, match=r"There are no responses to judge: call drolab\.generate first"):
        judge(replies())
    with pytest.raises(QueryError, match="1 responses are not texts"):
        judge(replies(("h1", "none", "Sure."), ("h1", "none", float("nan"))))  # type: ignore[arg-type]
    table = replies(("h1", "none", "Sure."), ("h1", "none", "No."))
    with pytest.raises(QueryError, match="1 of 2 verdicts are missing: drop these"):
        score_table(table, pd.Series([True, pd.NA], index=table.index))


# Several judges


def test_verdicts_of_several_judges() -> None:
    table = replies(("h1", "none", "I cannot help."), ("h1", "none", "No.")).set_axis([7, 3])
    said = verdicts(table, {"rule": is_refusal, "short": lambda text: len(text) < 5})
    assert said.to_dict("index") == {7: {"rule": True, "short": False}, 3: {"rule": False, "short": True}}
    with pytest.raises(QueryError, match="no responses to judge"):
        verdicts(replies(), {"rule": is_refusal})


def test_opinions_keep_what_a_judge_says_in_words() -> None:
    table = replies(("h1", "none", "I cannot help."), ("h1", "none", "Sure.")).assign(text="How?")
    said = opinions(table, {"rule": is_refusal, "text": TextJudge(), "three": Said("neither", None)})
    assert said["rule"].tolist() == said["text"].tolist() == ["full_refusal", "compliance"]
    assert said["three"].isna().tolist() == [False, True]
    assert verdicts(table, {"three": Said("partial_refusal", None)})["three"].tolist() == [False, pd.NA]


def test_whatever_has_verdicts_is_a_judge() -> None:
    assert isinstance(TextJudge(), Judge)
    assert isinstance(HandJudge(), Judge)
    assert not isinstance(is_refusal, Judge)
    table = replies(*[("h1", "none", "Sure.")] * 4, ("h2", "none", "No.")).assign(sample=range(5))
    scores = judge(table, Said("full_refusal", "partial_refusal", "compliance", "neither", None))
    assert scores.index.tolist() == [("h1", "none")]  # of the other query it has no opinion
    assert scores.iloc[0][["n_samples", "refusal_rate", "compliance_rate"]].tolist() == [4, 0.25, 0.25]
    assert scores.iloc[0][["any_refusal", "any_compliance"]].tolist() == [True, True]
    by_hand = HandJudge().labelled(table.iloc[1], "refusal")
    assert judge(table, by_hand).refusal_rate.tolist() == [1]


def test_booleans_with_no_opinion_need_no_type_of_their_own() -> None:
    table = replies(*[("h1", "none", text) for text in ("No.", "Sure.", "Hm.")])
    assert opinions(table, {"a": Said(True, False, pd.NA)})["a"].tolist() == ["full_refusal", "compliance", pd.NA]
    said = {"No.": True, "Sure.": "compliance", "Hm.": pd.NA}
    assert opinions(table, {"a": said.get})["a"].tolist() == ["full_refusal", "compliance", pd.NA]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda text: "refuses", "No verdict 'refuses'"),  # were they taken for true and false, all would be refusals
        (lambda text: None, "returned None: does it lack a `return`"),
        (lambda text: len(text), "No verdict 3, 5"),
        (lambda text: text == "Sure." or 1, "No verdict 1"),
        (lambda text: re.findall("No", text), "No verdict .*'No'"),
        (lambda text: re.search("No", text) or False, "No verdict <re.Match"),
        (Said, "Said is a class, not a judge: pass Said"),
        ("string rule", "'string rule' is no judge: pass an object with a method"),
    ],
)
def test_what_is_no_verdict_counts_as_none(function: Any, message: str) -> None:
    table = replies(("h1", "none", "Sure."), ("h1", "none", "No."))
    with pytest.raises(QueryError, match=message):
        judge(table, function)
    with pytest.raises(QueryError, match="Judges have names: pass a dict"):
        verdicts(table, [function])


def test_an_error_in_a_judge_says_in_which() -> None:
    def mine(text: str) -> bool:
        return bool(text[100])

    with pytest.raises(IndexError) as caught:
        judge(replies(("h1", "none", "Sure.")), mine)
    assert "in the judge 'mine'. Its responses have the columns ['query_id'" in caught.value.__notes__[0]


def test_bad_judges() -> None:
    table = replies(("h1", "none", "Sure."), ("h1", "none", "No."))
    with pytest.raises(QueryError, match=r"The judge 'Said' gave 1 values for 2 responses: .* index=responses.index"):
        judge(table, Said("compliance"))
    with pytest.raises(QueryError, match=r"The judge 'Said': No verdict 'refused'\. A judge says True .* full_refusal"):
        judge(table, Said("refused", "compliance"))
    with pytest.raises(QueryError, match="has no opinion of any of these responses"):
        judge(table, Said(None, None))
    with pytest.raises(QueryError, match=r"lack the columns \['text'\]"):
        judge(table, TextJudge())
