"""The response browser: the right queries are listed and read, labels are kept, text from data stays text."""

from __future__ import annotations

import html
import re
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
import pytest

from drolab import export, panels
from drolab.errors import QueryError
from drolab.judges import HandJudge, judge, verdicts
from drolab.panels import markup
from drolab.panels.responses.panel import LISTED
from drolab.panels.responses.view import narrowed, query_changes, query_rates

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> & \"' <b>%{x}</b> \x00 \u202eabc 🦜"
PROMPTS = ("none", "default", "mine")
REFUSAL, ANSWER = "I'm sorry, but I cannot help.", "Sure, here is a plan."
# Refusals of four samples, per query, under each of PROMPTS.
REFUSED = {"q0": (4, 4, 4), "q1": (0, 2, 4), "q2": (0, 0, 1), "q3": (2, 0, 0), "q4": (0, 0, 0)}


def answers(refused: dict[str, tuple[int, ...]] = REFUSED, mark: str = "") -> pd.DataFrame:
    rows = [
        (query, prompt, sample, f"Question {query}?{mark}", query == "q0", (REFUSAL if sample < n else ANSWER) + mark)
        for query, counts in refused.items()
        for prompt, n in zip(PROMPTS, counts, strict=True)
        for sample in range(4)
    ]
    return pd.DataFrame(rows, columns=["query_id", "prompt", "sample", "text", "harmful", "response"])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are kept below the folder in which one works."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def panel() -> panels.ResponsePanel:
    return panels.responses(answers())


def listed(panel: panels.ResponsePanel) -> list[str]:
    return [name for _, name in panel.controls["query"].options]


def points(panel: panels.ResponsePanel) -> dict[str, tuple[int, int]]:
    """Query id → the numbers of its trace and point in the map."""
    ids = [(number, [] if trace.ids is None else list(trace.ids)) for number, trace in enumerate(panel.picture.data)]
    return {query: (number, place) for number, own in ids for place, query in enumerate(own)}


def click(panel: panels.ResponsePanel, query: str) -> None:
    """What the browser sends when a point is clicked."""
    panel.picture.receive({"event": "click", "points": [points(panel)[query]]})


# Finding the query


def test_it_starts_with_all_queries_between_the_first_and_the_last_prompt(panel: panels.ResponsePanel) -> None:
    assert panel.message.value == ""
    assert listed(panel) == list(REFUSED)
    assert panel.controls["query"].options[1][0] == "0.00 → 1.00 · harmless · Question q1?"
    assert panel.controls["prompts"].value == ("none", "mine")
    assert panel.controls["query"].value == "q0"


def test_every_control_is_labelled_and_says_what_it_does(panel: panels.ResponsePanel) -> None:
    for name, control in panel.controls.items():
        assert control.tooltip, name
        assert control.description or name == "query", name


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("changed", ["q1", "q3", "q2"]),
        ("refused more", ["q1", "q2"]),
        ("refused less", ["q3"]),
        ("judges disagree", []),
    ],
)
def test_queries_whose_behaviour_changes_are_found_by_the_size_of_the_change(
    panel: panels.ResponsePanel, only: str, expected: list[str]
) -> None:
    panel.controls["only"].value = only
    assert listed(panel) == expected
    assert panel.controls["query"].value == (expected[0] if expected else None)
    assert ("No query fits" in panel.message.value) == (not expected)
    assert panel.selection().empty == (not expected)


def test_filters_work_together(panel: panels.ResponsePanel) -> None:
    panel.controls["group"].value = "harmless"
    panel.controls["contains"].value = "QUESTION Q"
    panel.controls["first"].value, panel.controls["only"].value = "default", "refused more"
    assert listed(panel) == ["q1", "q2"]  # .50 and .25
    assert panel.controls["prompts"].value == PROMPTS  # what is compared is shown
    panel.controls["second"].value = "none"
    assert listed(panel) == ["q3"]
    assert panel.picture.layout.xaxis.title.text == "refusal rate under default"
    panel.controls["contains"].value = "q4"
    assert listed(panel) == []
    panel.controls["only"].value = "all"
    assert listed(panel) == ["q4"]


def test_the_query_that_is_read_stays_while_it_is_listed(panel: panels.ResponsePanel) -> None:
    panel.controls["query"].value = "q2"
    panel.controls["only"].value = "refused more"
    assert panel.controls["query"].value == "q2"
    panel.controls["only"].value = "refused less"
    assert panel.controls["query"].value == "q3"


def test_groups_are_the_classes_to_choose_from() -> None:
    panel = panels.responses(answers(), groups={"q1": "borderline", "q2": HOSTILE})
    assert [name for _, name in panel.controls["group"].options] == ["", "borderline", HOSTILE]
    panel.controls["group"].value = HOSTILE
    assert listed(panel) == ["q2"]


def test_judges_disagree_where_one_of_them_does() -> None:
    judges = {"strict": lambda text: True, "rule": lambda text: text == REFUSAL}
    panel = panels.responses(answers({"q0": (4, 4, 4), "q1": (4, 4, 3), "q2": (0, 0, 0)}), judges=judges)
    panel.controls["only"].value = "judges disagree"
    assert listed(panel) == ["q2", "q1"]
    assert "≠12" in panel.controls["query"].options[0][0]
    panel.controls["only"].value, panel.controls["judge"].value = "changed", "rule"
    assert listed(panel) == ["q1"]
    panel.controls["judge"].value = "strict"
    assert listed(panel) == []


class Short:
    """A judge of one's own: short answers are refusals, and it has no opinion of those without a word."""

    def verdicts(self, responses: pd.DataFrame) -> pd.Series:
        short = responses["response"].str.len() < len(REFUSAL)
        return short.map({True: "full_refusal", False: "compliance"}).where(responses["response"] != "")


def test_judges_of_ones_own_are_shown_by_their_names() -> None:
    table = answers()
    table.loc[0, "response"] = ""
    panel = panels.responses(table, judges={"my class": Short(), "my function": lambda text: text.startswith("Sure")})
    panel.controls["samples"].value = 1
    panel.controls["prompts"].value = ("none",)
    assert "my function: compliance" in panel.shown.value
    assert "refused 0 of 3 by my class" in panel.shown.value  # of one it has no opinion
    assert panel.selection()["refusal: my class"].isna().all()
    panel.controls["query"].value = "q4"
    assert "my class: <b>refusal</b>" in panel.shown.value
    assert "my function: <b>refusal</b>" in panel.shown.value
    assert [name for _, name in panel.controls["judge"].options] == ["my class", "my function", "hand"]
    panel.controls["judge"].value = "my class"
    assert "refused 4 of 4 by my class" in panel.shown.value


def test_a_judge_that_says_something_else_is_refused() -> None:
    class Odd:
        def verdicts(self, responses: pd.DataFrame) -> pd.Series:
            return pd.Series("perhaps", index=responses.index)

    with pytest.raises(QueryError, match="No verdict 'perhaps'"):
        panels.responses(answers(), judges={"odd": Odd()})
    with pytest.raises(panels.PanelError, match="Judges have names: pass a dict"):
        panels.responses(answers(), judges=[Odd()])


def test_the_map_shows_the_listed_queries_and_a_click_chooses_one(panel: panels.ResponsePanel) -> None:
    ranges = panel.picture.layout.xaxis.range
    assert set(points(panel)) == set(REFUSED)
    click(panel, "q3")
    assert panel.controls["query"].value == "q3"
    assert set(panel.selection()["query_id"]) == {"q3"}
    assert (panel.picture.data[-1].x[0], panel.picture.data[-1].y[0]) == (0.5, 0)  # the ring
    panel.controls["only"].value = "refused more"
    assert set(points(panel)) == {"q1", "q2"}
    assert panel.picture.layout.xaxis.range == ranges
    click(panel, "q2")
    assert panel.controls["query"].value == "q2"
    assert panel.message.value == ""


def test_a_query_that_is_not_listed_can_be_chosen_from_elsewhere(panel: panels.ResponsePanel) -> None:
    panel.controls["only"].value = "refused more"
    panel.choose("q0")
    assert (listed(panel)[0], panel.controls["query"].value) == ("q0", "q0")
    assert "Question q0?" in panel.shown.value
    with pytest.raises(panels.PanelError, match="No responses to the query 'q9'"):
        panel.choose("q9")


def test_a_long_list_is_cut_in_words() -> None:
    many = answers({f"q{number}": (0, 0, 0) for number in range(LISTED + 10)})
    panel = panels.responses(many[many["sample"] == 0])
    assert len(listed(panel)) == LISTED
    assert f"the first {LISTED} of {LISTED + 10}" in panel.message.value
    click(panel, f"q{LISTED + 5}")
    assert panel.controls["query"].value == f"q{LISTED + 5}"


# Reading


def test_responses_stand_side_by_side_with_verdicts_and_marked_words(panel: panels.ResponsePanel) -> None:
    panel.controls["query"].value = "q1"
    panel.controls["samples"].value = 2
    text = panel.shown.value
    assert len(panel.selection()) == 4
    assert text.count("<tr>") == 3  # names, and a row per sample
    assert text.count("<td") == 4
    assert text.count("string rule: <b>refusal</b>") == text.count("string rule: compliance") == 2
    assert text.count("<mark>I&#x27;m sorry</mark>, but <mark>I cannot</mark> help.") == 2
    assert "refused 4 of 4 by string rule" in text
    panel.controls["prompts"].value = ("default",)
    assert panel.shown.value.count("<td") == 2
    assert "refused 2 of 4" in panel.shown.value
    panel.controls["prompts"].value = ()
    assert "at least one prompt" in panel.shown.value


def test_other_words_can_be_marked() -> None:
    panel = panels.responses(answers(), words=lambda text: [(0, 4)] if text.startswith("Sure") else [])
    panel.controls["query"].value = "q4"
    assert "<mark>Sure</mark>, here" in panel.shown.value


def test_selection_has_what_each_judge_says(panel: panels.ResponsePanel) -> None:
    panel.controls["query"].value = "q3"
    chosen = panel.selection()
    assert chosen["refusal: string rule"].tolist() == [True, True, False, False, False, False][: len(chosen)]
    assert chosen["refusal: hand"].isna().all()
    assert list(chosen.columns[:6]) == list(answers().columns)


def test_long_texts_are_folded_and_very_long_ones_cut_in_words() -> None:
    table = answers()
    table.loc[0, "response"] = "I cannot help. " + "x" * 3000
    table.loc[1, "response"] = "y" * 100_000
    table["text"] = table["text"] + "z" * 100_000
    panel = panels.responses(table)
    text = panel.shown.value
    assert "<summary>show all 3,015 characters</summary>" in text
    assert text.count("x") > 3000
    assert markup.LONG - 100 < text.count("y") < markup.LONG + 100
    assert "80,000 more: the whole text is in the data." in text
    assert len(panel.controls["query"].options[0][0]) < 150


def test_a_mark_may_reach_into_the_folded_part() -> None:
    at = markup.SHORT - 2
    text = "x" * at + "I cannot" + "y" * 50
    assert re.sub("<[^>]*>", "", markup.folded(text, [(at, at + 8)])).replace("show all 556 characters", "") == text
    assert "<mark>I </mark>" in markup.folded(text, [(at, at + 8)])
    assert "<mark>cannot</mark>" in markup.folded(text, [(at, at + 8)])


# Labels by hand


def test_labels_are_a_judge_and_lead_on_to_the_next_sample(panel: panels.ResponsePanel) -> None:
    panel.controls["query"].value = "q1"
    assert panel.shown.value.count('aria-current="true"') == 1
    panel.controls["refusal"].click()
    panel.controls["compliance"].click()
    panel.controls["refusal"].click()
    assert panel.result()["label"].tolist() == ["refusal", "compliance", "refusal"]
    assert panel.result()["sample"].tolist() == [0, 1, 2]
    assert "hand: <b>refusal</b>" in panel.shown.value
    assert "Labels by hand: 3, in out/hand_labels.csv" in panel.judged.value
    assert len(HandJudge.load("out/hand_labels.csv").labels) == 3
    session = panels.responses(answers(), hand_labels=None)
    assert "Labels by hand: 0, in this session only" in session.judged.value
    panel.controls["sample"].value = panel.controls["sample"].options[0][1]
    panel.controls["unsure"].click()
    assert panel.result()["label"].tolist() == ["compliance", "refusal"]
    panel.controls["judge"].value = "hand"
    assert "0.50 → – · harmless · ≠1 · Question q1?" in [label for label, _ in panel.controls["query"].options]
    assert "refused 1 of 2 by hand" in panel.shown.value
    panel.controls["only"].value = "judges disagree"
    assert listed(panel) == ["q1"]
    assert HandJudge(labels=panel.result()).scores(answers())["refusal_rate"].tolist() == [0.5]


def test_labels_are_kept_in_a_file_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "mine.csv"
    panel = panels.responses(answers(), hand_labels=path)
    assert not path.exists()
    panel.controls["refusal"].click()
    assert len(HandJudge.load(path).labels) == 1
    again = panels.responses(answers(), hand_labels=str(path))
    assert "Labels by hand: 1, in" in again.judged.value
    again.controls["compliance"].click()  # the same sample, from another panel
    again.controls["refusal"].click()
    panel.controls["compliance"].click()
    assert HandJudge.load(path).labels["label"].tolist() == ["compliance", "compliance"]
    assert [file.name for file in path.parent.iterdir()] == ["mine.csv"]  # no partial file


def test_labels_of_other_responses_are_reported_and_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    panel = panels.responses(answers(), hand_labels=path)
    panel.controls["refusal"].click()
    panel.controls["refusal"].click()
    changed = answers()
    changed.loc[0, "response"] = "Another text."
    panel = panels.responses(changed, hand_labels=path)
    assert "Labels by hand: 1, in" in panel.judged.value
    assert "given to other responses than these, and do not count: 1." in panel.judged.value
    assert panel.selection()["refusal: hand"].dropna().to_dict() == {1: True}


def test_a_label_that_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    panel = panels.responses(answers(), hand_labels=tmp_path / "file" / "labels.csv")
    panel.controls["refusal"].click()
    assert "Cannot write" in panel.message.value
    assert panel.result().empty
    assert panel.selection()["refusal: hand"].isna().all()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(QueryError, match="is no table of hand labels"):
        panels.responses(answers(), hand_labels=tmp_path / "other.csv")


# Text, tables, speed


def markup_of(widget: widgets.Widget) -> str:
    """All HTML that a panel puts into the page."""
    own = widget.value if isinstance(widget, widgets.HTML) else ""
    return own + "".join(map(markup_of, getattr(widget, "children", ())))


ALLOWED = {"b", "caption", "details", "div", "i", "li", "mark", "p", "summary", "table", "td", "th", "tr", "ul"}


def test_text_from_data_never_becomes_markup(tmp_path: Path) -> None:
    table = answers(mark=HOSTILE).replace({"mine": HOSTILE})
    table["query_id"] = table["query_id"] + HOSTILE
    given = {"judges": {HOSTILE: lambda text: True}, "hand_labels": tmp_path / "labels.csv"}
    panel = panels.responses(table, groups=dict.fromkeys(table["query_id"], HOSTILE), **given)
    panel.controls["refusal"].click()
    panel.controls["contains"].value = HOSTILE
    panel.choose(table["query_id"].iloc[-1])
    text = markup_of(panel)
    assert set(re.findall(r"<(\w+)", text)) <= ALLOWED
    assert "&lt;script&gt;" in text
    assert not re.search("[\x00\u202e]", text)
    labels = [label for control in panel.controls.values() for label in getattr(control, "_options_labels", ())]
    assert not [label for label in labels if re.search("[\x00\u202e\n]", label)]
    assert panels.responses(table, **given).result().equals(panel.result())


def test_the_markup_check_sees_raw_text() -> None:
    assert not set(re.findall(r"<(\w+)", f"<p>{HOSTILE}</p>")) <= ALLOWED


def test_what_it_offers_can_be_exported(panel: panels.ResponsePanel, tmp_path: Path) -> None:
    panel.controls["only"].value = "changed"
    panel.controls["refusal"].click()
    offered = panel.offer()
    assert offered["queries"][1]["query_id"].tolist() == ["q1", "q3", "q2"]
    assert len(offered["queries"][0].data) == len(panel.picture.data)
    assert len(offered["hand_labels"][1]) == 1
    written = export.bundle(offered, tmp_path, about=export.about(), formats=["html", "csv"])
    assert {"queries.html", "queries.csv", "responses.csv", "judges.csv", "hand_labels.csv"} <= {
        p.name for p in written
    }


def test_what_is_missing_is_named() -> None:
    with pytest.raises(panels.PanelError, match=r"lacks the columns \['response'\]"):
        panels.responses(answers().drop(columns="response"))
    with pytest.raises(panels.PanelError, match="no rows"):
        panels.responses(answers().head(0))
    with pytest.raises(panels.PanelError, match="none called 'hand'"):
        panels.responses(answers(), judges={"hand": bool})
    with pytest.raises(QueryError, match="are not texts"):
        panels.responses(answers().assign(response=None))


def test_one_prompt_and_one_sample_are_enough() -> None:
    panel = panels.responses(answers().query("prompt == 'none' and sample == 0"))
    assert panel.message.value == ""
    assert panel.shown.value.count("<td") == 1


# Which queries are listed (the view)


def two_samples() -> pd.DataFrame:
    """Two samples per query and prompt: "no" is a refusal, "maybe" one by the strict judge only."""
    said = {
        "q1": ("yes yes", "no no"),
        "q2": ("no no", "yes maybe"),
        "q3": ("yes yes", "yes yes"),
        "q4": ("yes no", "no no"),
    }
    rows = [
        (name, prompt, sample, f"Question {name}.*", name < "q3", word)
        for name, answers in said.items()
        for prompt, words in zip(("none", "mine"), answers, strict=True)
        for sample, word in enumerate(words.split())
    ]
    return pd.DataFrame(rows, columns=["query_id", "prompt", "sample", "text", "harmful", "response"])


def changes() -> pd.DataFrame:
    table = two_samples()
    said = verdicts(table, {"strict": lambda text: text != "yes", "mild": lambda text: text == "no"})
    return query_changes(query_rates(table, said, "mild"), ("none", "mine"))


def test_changes_of_queries_between_two_prompts() -> None:
    table = changes()
    assert table["rate_a"].to_dict() == {"q1": 0, "q2": 1, "q3": 0, "q4": 0.5}
    assert table["change"].to_dict() == {"q1": 1, "q2": -1, "q3": 0, "q4": 0.5}
    assert table["disagreements"].to_dict() == {"q1": 0, "q2": 1, "q3": 0, "q4": 0}
    assert table["group"].tolist() == ["harmful", "harmful", "harmless", "harmless"]
    rates = judge(two_samples(), judge=lambda text: text == "no")["refusal_rate"].unstack()
    assert table["rate_b"].to_dict() == rates["mine"].to_dict()


def test_a_judge_without_an_opinion_has_no_rate() -> None:
    table = two_samples()
    said = verdicts(table, {"rule": lambda text: text == "no"})
    said["hand"] = pd.Series([True, *[pd.NA] * (len(table) - 1)], dtype="boolean")
    found = query_rates(table, said, "hand", {"q1": "mild"})
    assert found["rate: none"].isna().tolist() == [False, True, True, True]
    assert found["disagreements"].tolist() == [1, 0, 0, 0]
    assert found["group"].tolist() == ["mild", "", "", ""]


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ("all", ["q1", "q2", "q3", "q4"]),
        ("changed", ["q1", "q2", "q4"]),
        ("refused more", ["q1", "q4"]),
        ("refused less", ["q2"]),
        ("judges disagree", ["q2"]),
    ],
)
def test_queries_are_narrowed_and_sorted_by_the_size_of_the_change(only: str, left: list[str]) -> None:
    assert list(narrowed(changes(), only=only).index) == left


def test_narrowing_by_words_and_group() -> None:
    assert list(narrowed(changes(), contains="question Q3.*").index) == ["q3"]  # no pattern, any case
    assert list(narrowed(changes(), group="harmless", only="refused more").index) == ["q4"]
    assert narrowed(changes(), contains="nothing").empty
    with pytest.raises(QueryError, match="No queries called 'odd'"):
        narrowed(changes(), only="odd")


def test_after_the_last_sample_comes_the_next_query(panel: panels.ResponsePanel) -> None:
    names = listed(panel)
    panel.controls["query"].value = names[0]
    sample = panel.controls["sample"]
    sample.index = len(sample.options) - 1
    panel.label("refusal")
    assert panel.controls["query"].value == names[1]
    assert sample.index == 0


def test_the_blind_queue_shows_each_response_once_and_nothing_that_others_say(panel: panels.ResponsePanel) -> None:
    panel.controls["contains"].value = "q1"
    panel.controls["blind"].value = True
    seen = []
    while len(panel.selection()):
        (row,) = panel.selection().itertuples()
        seen.append((row.prompt, row.sample))
        shown = panel.shown.value
        assert html.escape(row.response) in shown
        assert not any(word in shown for word in (*PROMPTS, "sample", "string rule", "<mark>"))
        assert [text for text, _ in panel.controls["sample"].options] == ["a response"]
        panel.label(None if row.sample == 3 else "refusal")
    assert sorted(seen) == sorted((prompt, sample) for prompt in PROMPTS for sample in range(4))
    assert seen != sorted(seen)  # at random
    assert len(panel.result()) == 9  # the three that were passed over have no label
    assert "Every response to these queries has a label" in panel.shown.value
    panel.controls["blind"].value = False
    assert "string rule" in panel.shown.value
