"""Labels by hand: kept as they are, applied to the text they were given for, a judge of their own."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drolab.errors import QueryError
from drolab.judges import LABEL_COLUMNS, HandJudge, judge
from drolab.types import SCORE_COLUMNS


def replies() -> pd.DataFrame:
    rows = [
        {
            "query_id": query,
            "prompt": prompt,
            "sample": sample,
            "harmful": True,
            "response": f"{query} {prompt} {sample}",
        }
        for query in ("q1", "q2")
        for prompt in ("none", "mine")
        for sample in range(2)
    ]
    return pd.DataFrame(rows)


def labelled(*labels: tuple[int, str | None]) -> HandJudge:
    table, hand = replies(), HandJudge()
    for row, label in labels:
        hand = hand.labelled(table.loc[row], label)
    return hand


def test_a_label_is_a_verdict_until_it_is_taken_away() -> None:
    said = labelled((0, "refusal"), (3, "compliance")).verdicts(replies())
    assert said.dropna().to_dict() == {0: True, 3: False}
    assert len(said) == 8
    changed = labelled((0, "refusal"), (3, "compliance"), (0, "compliance"), (3, None))
    assert changed.verdicts(replies()).dropna().to_dict() == {0: False}
    assert list(changed.labels.columns) == list(LABEL_COLUMNS)
    assert HandJudge().verdicts(replies()).isna().all()
    with pytest.raises(QueryError, match="No label 'maybe'"):
        labelled((0, "maybe"))


def test_a_label_does_not_count_for_another_text_in_its_place() -> None:
    hand, now = labelled((0, "refusal"), (3, "refusal")), replies()
    assert hand.stale(now).empty
    now.loc[0, "response"] = "something else"
    assert hand.verdicts(now).dropna().to_dict() == {3: True}
    assert hand.stale(now)["query_id"].tolist() == ["q1"]
    both = hand.labelled(now.loc[0], "compliance")  # each text keeps its own
    assert both.verdicts(now)[0] == False  # noqa: E712 - numpy's
    assert both.verdicts(replies())[0] == True  # noqa: E712
    assert hand.stale(replies().drop(0)).empty  # a response that is not there says nothing


def test_scores_are_those_of_judge_over_the_labelled_responses() -> None:
    hand = labelled((0, "refusal"), (1, "compliance"), (6, "refusal"))
    scores = hand.scores(replies())
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert scores["n_samples"].to_dict() == {("q1", "none"): 2, ("q2", "mine"): 1}
    assert scores["refusal_rate"].to_dict() == {("q1", "none"): 0.5, ("q2", "mine"): 1}
    everything = labelled(*((row, "refusal" if row % 3 else "compliance") for row in range(8)))
    usual = judge(replies(), judge=lambda text: bool(list(replies()["response"]).index(text) % 3))
    pd.testing.assert_frame_equal(everything.scores(replies()), usual)
    with pytest.raises(QueryError, match="None of these responses has a hand label"):
        HandJudge().scores(replies())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


hostile = st.one_of(
    st.text(max_size=20), st.sampled_from(["=1+1", "'=x", "-", "@a", '"', "a,b", "\r", "\n", "\x00", "\ud800"])
)


@given(query=hostile, prompt=hostile, text=hostile)
def test_labels_come_back_from_csv_as_they_were(folder: Path, query: str, prompt: str, text: str) -> None:
    response = pd.Series({"query_id": query, "prompt": prompt, "sample": 3, "response": text})
    hand = HandJudge().labelled(response, "refusal")
    path = folder / "labels.csv"
    path.write_bytes(hand.to_csv())
    pd.testing.assert_frame_equal(HandJudge.load(path).labels, hand.labels)
    cells = csv.reader(io.StringIO(hand.to_csv().decode("utf-8", "surrogatepass"), newline=""))
    assert not [cell for line in cells for cell in line if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]  # no formulas


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no table of hand labels"),
        (b"query_id,prompt\na,b\n", "is no table of hand labels: its columns must be query_id, prompt, sample"),
        (b"query_id,prompt,sample,response_sha256,label\na,b,0,x\n", "is no table of hand labels"),
        (b"query_id,prompt,sample,response_sha256,label\na,b,0,x,<script>\n", "row 2: .* label refusal or compliance"),
        (b"query_id,prompt,sample,response_sha256,label\na,b,one,x,refusal\n", "row 2: the sample must be a number"),
        (
            b"query_id,prompt,sample,response_sha256,label\na,b," + b"9" * 5000 + b",x,refusal\n",
            "row 2: the sample must be a number",
        ),
        (b"\xff\xfe\x00", "Cannot read hand labels"),
        (b'a,"b', "Cannot read hand labels"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(QueryError, match=message):
        HandJudge.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"Cannot read hand labels from .*absent\.csv"):
        HandJudge.load(tmp_path / "absent.csv")
