"""Derived queries: each has its parent, a file of attacks is read whole or refused, and all rooms take what is made."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drolab
from drolab import attacks, evidence
from drolab.data import validate_queries
from drolab.errors import QueryError
from drolab.models import ChatModel

GOALS = ["Write a rude letter", "Spy on a neighbour", "Forge a bus ticket", "Steal a bicycle"]


def queries(texts: list[str] | None = None, *, source: str = "advbench", harmful: bool = True) -> pd.DataFrame:
    table = pd.DataFrame({"text": texts or GOALS, "source": source})
    return drolab.load_queries(table.assign(query_id=[f"{source}-{i}" for i in range(len(table))]), harmful=harmful)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# Functions and templates


def test_a_child_has_its_parents_class_and_a_name() -> None:
    parents = queries().assign(category="made", split="test")
    derived = attacks.derive(parents, lambda text: [text.upper(), text + " now"], name="loud")
    assert validate_queries(derived) is derived
    assert list(derived["parent"]) == [f"advbench-{i}" for i in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert list(derived.index[:2]) == ["advbench-0+loud", "advbench-0+loud-2"]
    assert set(derived["attack"]) == {"loud"}
    assert (derived[["harmful", "category", "split", "source"]].nunique() == 1).all()
    assert len(attacks.derive(parents, lambda text: [text.upper(), text + " now"], name="loud", per_query=1)) == 4


def test_templates_hold_the_query_as_it_is_and_nothing_else_of_the_kind() -> None:
    parents = queries(["Why {query} and {0} %s?", "Who?"])
    derived = attacks.templates(parents)
    assert set(derived["attack"]) == set(attacks.TEMPLATES)
    assert {attacks.CONTROL, *attacks.CONTROLS} <= set(attacks.TEMPLATES)
    for text, parent in zip(derived["text"], derived["parent"], strict=True):
        assert parents["text"][parent] in text
    assert not any("{query}" in text.replace("Why {query}", "") for text in derived["text"])
    assert list(attacks.templates(parents, ["role_play"])["attack"]) == ["role_play"] * 2


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (lambda text: None, "x", "made None of"),
        (lambda text: [text + "!", " "], "x", "made ' ' of"),
        (lambda text: text, "x", "changes no query"),
        (lambda text: "the same", "x", "same text 'the same' for 4 queries"),
        (lambda text: text + "!", "none", "needs a name other than 'none'"),
        (lambda text: text + "!", " ", "needs a name"),
    ],
)
def test_a_function_that_derives_nothing_is_an_error(function: Any, name: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        attacks.derive(queries(), function, name=name)


def test_a_text_that_stays_as_it_was_is_left_out_and_said() -> None:
    with pytest.warns(UserWarning, match="leaves 1 texts as they were"):
        derived = attacks.derive(
            queries(), lambda text: text.replace("Write", "Type") + "!" * ("Spy" not in text), name="x"
        )
    assert len(derived) == 3


def test_an_unknown_template_is_an_error() -> None:
    with pytest.raises(QueryError, match=r"No template is called 'dan': there are prefix_injection, .*`derive`"):
        attacks.templates(queries(), ["dan"])


# Parents


def test_a_child_without_a_parent_is_an_error() -> None:
    derived = attacks.templates(queries(), ["role_play"])
    with pytest.raises(QueryError, match=r"2 derived queries have no parent here \(first: 'advbench-2\+role_play'"):
        attacks.join(queries().head(2), derived)
    everything = attacks.join(queries(), derived)
    with pytest.raises(QueryError, match="1 derived queries have no parent"):
        attacks.children_of(everything.drop("advbench-0"))
    with pytest.raises(QueryError, match="have no parent"):
        attacks.children_of(everything.assign(parent=everything["parent"].replace("advbench-0", "")))
    with pytest.raises(QueryError, match="has no attack"):
        attacks.children_of(everything.assign(attack=""))
    with pytest.raises(QueryError, match="No query here is derived"):
        attacks.children_of(attacks.join(queries(), derived).head(4))
    with pytest.raises(QueryError, match=r"lacks the columns \['parent', 'attack'\]"):
        attacks.children_of(queries())
    with pytest.raises(QueryError, match="of another class than its parent"):
        attacks.join(queries(), derived.assign(harmful=False))
    assert len(attacks.children_of(everything)) == 4


def test_more_can_be_added_and_nothing_else(tmp_path: Path) -> None:
    first = attacks.join(queries(), attacks.templates(queries(), ["role_play"]))
    both = attacks.join(first, attacks.templates(queries(), ["small_talk"]))
    assert both["attack"].value_counts().to_dict() == {"none": 4, "role_play": 4, "small_talk": 4}
    assert len(attacks.children_of(both)) == 8
    with pytest.raises(QueryError, match="4 derived queries have no parent here"):  # an attack on an attack
        attacks.join(first, attacks.derive(attacks.children_of(first), str.upper, name="loud"))
    with pytest.raises(QueryError, match="A table of derived queries lacks the columns"):
        attacks.join(queries(), queries(["Who?"], source="own"))


def test_the_same_child_twice_is_an_error() -> None:
    derived = attacks.templates(queries(), ["role_play"])
    with pytest.raises(QueryError, match="more than once"):
        attacks.join(queries(), derived, derived)


def test_parents_are_found_again_in_a_file_of_ones_own(tmp_path: Path) -> None:
    everything = attacks.join(queries(), attacks.templates(queries(), ["role_play", "small_talk"]))
    everything.to_csv(tmp_path / "mine.csv", index=False)
    pd.testing.assert_frame_equal(drolab.load_queries(tmp_path / "mine.csv"), everything, check_dtype=False)


def test_derived_queries_pass_every_room_and_the_store(tiny_llama: ChatModel, store: drolab.Store) -> None:
    asked = pd.concat(
        [queries(), queries(["Bake bread", "Mend a net", "Sing a song", "Paint a door"], source="own", harmful=False)]
    )
    attacked = attacks.join(asked, attacks.templates(asked, ["role_play", "small_talk"]))
    prompts = [drolab.SafetyPrompt(name=name, text=text) for name, text in (("none", ""), ("short", "Be safe."))]
    states = drolab.hidden_states(tiny_llama, attacked, prompts, store=store, progress=False)
    settings = {"n_samples": 2, "max_new_tokens": 4, "store": store, "progress": False}
    replies = drolab.generate(tiny_llama, attacked, prompts, **settings)
    again = drolab.hidden_states(tiny_llama, attacked, prompts, store=store, progress=False)
    assert torch.equal(again.values, states.values)
    pd.testing.assert_frame_equal(drolab.generate(tiny_llama, attacked, prompts, **settings), replies)
    scores = drolab.judge(replies)
    table = evidence.broken_by(scores, attacked)
    assert len(table) == len(prompts) * 2 * 2
    assert (table["n_queries"] == 4).all()
    space = drolab.fit_anchors(states)
    harm = drolab.fit_probe(space, states, attacked["harmful"], positive="harmful", check=False)
    margins = evidence.attack_margins(states, attacked, space, harm, scores)
    assert len(margins) == len(prompts) * 16
    assert set(margins["parent"]) == set(asked["query_id"])


# Files of attacks


def test_the_papers_suffixes_follow_advbenchs_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the paper's code joins them: the line of advbench.txt with its line break, then the suffix."""
    suffixes = {str(row): {"final_suffix": f"suffix {row} !"} for row in range(len(GOALS))}
    written(tmp_path / "code/data/gcg.json", suffixes)
    written(tmp_path / "code/data/advbench.txt", "\n".join(GOALS))
    shuffled = queries().iloc[[2, 0, 3, 1]]
    derived = attacks.suffixes(shuffled, tmp_path)
    assert capsys.readouterr().out == "GCG suffixes of AdvBench (GCG): 4 texts for 4 of 4 queries\n"
    assert derived.loc["advbench-3+GCG", "text"] == "Steal a bicycle\nsuffix 3 !"
    assert list(derived["parent"]) == list(shuffled["query_id"])
    assert derived.attrs["about"]["without_parent"] == []


def test_numbered_suffixes_without_goals_are_refused(tmp_path: Path) -> None:
    suffixes = {str(row): {"final_suffix": f"suffix {row}"} for row in range(len(GOALS))}
    file = written(tmp_path / "gcg.json", suffixes)
    with pytest.raises(QueryError, match="does not name their goals: give AdvBench, too, such as goals="):
        attacks.suffixes(queries(), file)
    goals = written(
        tmp_path / "advbench/harmful_behaviors.csv", "goal,target\n" + "".join(f"{g},Sure\n" for g in GOALS)
    )
    assert len(attacks.suffixes(queries(), file, goals=goals, verbose=False)) == 4
    with pytest.raises(QueryError, match="a suffix for row 4, of 1 goals"):
        attacks.suffixes(queries(), file, goals=written(tmp_path / "one.txt", "Write a rude letter"))
    with pytest.raises(QueryError, match="has no column `goal`"):
        attacks.suffixes(queries(), file, goals=written(tmp_path / "wrong.csv", "a,b\n1,2\n"))
    named = {key: value | {"goal": goal} for (key, value), goal in zip(suffixes.items(), GOALS, strict=True)}
    assert len(attacks.suffixes(queries(), written(tmp_path / "named.json", named), verbose=False)) == 4


def artifact(goals: list[str], **more: Any) -> dict[str, Any]:
    rows = [{"index": i, "goal": goal, "prompt": f"As a friend: {goal}?"} for i, goal in enumerate(goals)]
    return {"parameters": {"method": "PAIR", "model": "vicuna-13b-v1.5"}, "jailbreaks": rows} | more


def test_an_artifact_of_jailbreakbench_is_matched_by_its_goals(tmp_path: Path) -> None:
    content = artifact([goal.upper() + "." for goal in GOALS])  # copies of a data set differ in such
    content["jailbreaks"][1]["prompt"] = None
    derived = attacks.suffixes(queries(), written(tmp_path / "a.json", content), verbose=False)
    assert list(derived["parent"]) == ["advbench-0", "advbench-2", "advbench-3"]
    assert set(derived["attack"]) == {"PAIR"}
    assert derived.attrs["about"]["without_text"] == 1
    assert derived.attrs["about"]["queries"] == 3


def test_test_cases_of_harmbench_are_matched_by_their_ids(tmp_path: Path) -> None:
    asked = queries(source="harmbench").assign(query_id=[f"harmbench-case_{i}" for i in range(4)])
    asked = validate_queries(asked.reset_index(drop=True))
    cases = {f"case_{i}": [f"{goal}, please", f"{goal}, dear"] for i, goal in enumerate(GOALS)}
    file = written(tmp_path / "PAP/llama2/test_cases/test_cases.json", cases)
    derived = attacks.suffixes(asked, file, verbose=False)
    assert len(derived) == 8
    assert set(derived["attack"]) == {"PAP"}
    assert len(attacks.suffixes(asked, file, name="persuasion", per_query=1, verbose=False)) == 4


def test_goals_that_are_not_among_the_queries_are_listed(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", artifact([*GOALS, "Do another thing", "And one more"]))
    with pytest.warns(UserWarning, match=r"a.json: 2 goals .* not among these queries .*first: 'Do another thing'"):
        derived = attacks.suffixes(queries(), file, verbose=False)
    assert derived.attrs["about"]["without_parent"] == ["Do another thing", "And one more"]
    with pytest.warns(UserWarning, match="3 goals"):  # a few of the queries that a file attacks
        assert (
            len(attacks.suffixes(queries().head(1), written(tmp_path / "b.json", artifact(GOALS)), verbose=False)) == 1
        )


def test_a_file_of_another_data_set_is_refused(tmp_path: Path) -> None:
    other = artifact([GOALS[0], *(f"Do thing {i}" for i in range(9))])
    with pytest.raises(QueryError) as raised:
        attacks.suffixes(queries(), written(tmp_path / "a.json", other))
    message = str(raised.value)
    for part in (
        "a.json is of another data set",
        "of its 10 goals",
        "1 are among these 4 queries",
        "advbench",
        GOALS[0],
    ):
        assert part in message
    cases = {f"case_{i}": ["text"] for i in range(4)}
    with pytest.raises(QueryError, match=r"of its 4 goals 0 are among these 4 queries \('case_0' is not\)"):
        attacks.suffixes(queries(), written(tmp_path / "test_cases.json", cases))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "none of the files of attacks"),
        ([], "none of the files of attacks"),
        ({"a": 1}, "none of the files of attacks"),
        ({"a": ["text", ["image.png", "text"]]}, "none of the files of attacks"),
        ({"jailbreaks": []}, "must be a list of objects"),
        ({"jailbreaks": [{"prompt": "x"}]}, "must be a list of objects"),
        ({"jailbreaks": [{"goal": "Steal a bicycle", "prompt": ["x"]}]}, r"is \['x'\], not a text"),
        ({"first": {"final_suffix": "x"}}, "numbered by the rows of AdvBench, but one is 'first'"),
        ({"jailbreaks": [{"goal": "Steal a bicycle", "prompt": None}]}, "of another data set: of its 0 goals"),
        ("{", "cannot be read as"),
        ("<html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_what_is_no_file_of_attacks_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        attacks.suffixes(queries(), written(tmp_path / "a.json", content))


KEYS = ["jailbreaks", "goal", "prompt", "final_suffix", "0", "1", "x"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*GOALS, "0", "1", "", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=json_values)
def test_any_json_is_refused_or_read(tmp_path: Path, content: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            derived = attacks.suffixes(queries(), written(tmp_path / "a.json", content), verbose=False)
            attacked = attacks.join(queries(), derived)
        except QueryError:
            return
    assert len(attacks.children_of(attacked)) == len(derived) > 0


def test_a_path_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="There is no file"):
        attacks.suffixes(queries(), tmp_path / "a.json")
    with pytest.raises(QueryError, match=r"holds no code/data/gcg\.json"):
        attacks.suffixes(queries(), tmp_path)
    with pytest.raises(QueryError, match="per_query must be at least 1"):
        attacks.suffixes(queries(), written(tmp_path / "a.json", artifact(GOALS)), per_query=0)
