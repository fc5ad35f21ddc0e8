"""Built-in prompts, prompts from a user's YAML or JSON, and prompts saved."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drolab.data import join_prompts, load_prompts, pick_prompt, random_words, save_prompts
from drolab.data.prompts import BUILT_IN
from drolab.errors import PromptError
from drolab.types import SafetyPrompt


def test_safety_has_the_three_roles_after_the_absence_of_a_prompt() -> None:
    prompts = load_prompts()
    assert list(prompts) == ["none", "default", "medium", "short"]
    lengths = [len(prompt.text) for prompt in prompts.values()]
    assert lengths[0] == 0
    assert lengths[1] > 2 * lengths[2] > 4 * lengths[3]
    assert {prompt.kind for prompt in prompts.values()} == {"safety"}


@pytest.mark.parametrize(("name", "kind"), [("neutral", "neutral"), ("unseen", "safety")])
def test_controls_and_unseen_prompts(name: str, kind: str) -> None:
    prompts = load_prompts(name)
    assert len(prompts) >= 3
    assert {prompt.kind for prompt in prompts.values()} == {kind}
    assert max(len(prompt.text) for prompt in prompts.values()) > 400, "one is about as long as `default`"


def test_names_and_texts_are_unique_across_the_built_in_sets() -> None:
    prompts = [prompt for name in BUILT_IN for prompt in load_prompts(name).values()]
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_the_wording_is_our_own(reference: Path) -> None:
    theirs = json.loads((reference / "parity" / "prompts.json").read_text())
    sentences = [sentence for text in theirs.values() for sentence in text.replace("\n", " ").split(". ")]
    ours = " ".join(prompt.text for name in BUILT_IN for prompt in load_prompts(name).values())
    assert not [sentence for sentence in sentences if sentence.strip(". ") in ours]


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_a_file_is_returned_as_it_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    path.write_text(json.dumps({"b": "Be calm.", "a": {"text": "Write briefly.", "kind": "neutral"}}))
    prompts = load_prompts(path)
    assert list(prompts) == ["b", "a"], "the file's order, and no `none` added"
    assert prompts["a"] == SafetyPrompt(name="a", text="Write briefly.", kind="neutral")
    assert load_prompts(str(path)) == prompts


def test_a_file_may_name_the_absence_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('none: ""\nmine: Be calm.\n')
    assert list(load_prompts(path)) == ["none", "mine"]


def test_a_mapping_is_taken_too() -> None:
    ready = SafetyPrompt(name="x", text="Be calm.")
    assert load_prompts({"x": ready, "y": "Be kind."})["x"] is ready


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "ending '.txt': use .yaml"),
        ("a.yaml", b"a: [1", r"cannot be parsed [\s\S]* check its syntax"),
        ("a.json", b"{", r"cannot be parsed [\s\S]* check its syntax"),
        ("a.yaml", b"- x", "must map names to texts"),
        ("a.yaml", b"", "is empty: check"),
        ("a.yaml", b"a: \xff", "not UTF-8"),
        ("a.yaml", b"a: {kind: safety}", "has no `text`: write"),
        ("a.yaml", b"a: {text: x, role: system}", r"unknown keys \['role'\]"),
        ("a.yaml", b"a: 3", "must be a string, got int"),
        ("a.yaml", b"3: x", "needs a name"),
        ("a.yaml", b"a: ''", "an empty text is called 'none'"),
        ("a.yaml", b"a: {text: x, kind: angry}", "kind must be 'safety' or 'neutral'"),
        ("a.yaml", b"a: !!python/object/apply:os.getcwd []", "cannot be parsed"),
    ],
)
def test_bad_files_say_what_to_do(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        load_prompts(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PromptError, match=r"'safty' is neither .* set \('neutral', 'safety', 'unseen'\)"):
        load_prompts("safty")


# --- saving


def texts(least: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(), min_size=least, max_size=40)  # any code point, lone surrogates too


@settings(max_examples=200, deadline=None)
@given(entries=st.dictionaries(texts(1), texts(1), min_size=1, max_size=4), neutral=st.booleans())
@example(entries={"yes": "a: b\n- c", "<<": "&x", "3": "a\x85b\u2028", "\x00": " \r\n"}, neutral=False)
def test_saved_prompts_come_back_equal(entries: dict[str, str], neutral: bool) -> None:
    kind = "neutral" if neutral else "safety"
    prompts = {
        name: SafetyPrompt(name=name, text=text, kind=kind)
        for name, text in entries.items()
        if name.strip() and name != "none"
    } | {"none": SafetyPrompt(name="none", text="")}
    with tempfile.TemporaryDirectory() as folder:
        path = save_prompts(prompts, Path(folder) / "new" / "mine.yaml")
        assert load_prompts(path) == prompts
        assert list(load_prompts(path)) == list(prompts)
        assert [found.name for found in path.parent.iterdir()] == ["mine.yaml"]


def test_a_file_is_overwritten_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    save_prompts({"a": SafetyPrompt(name="a", text="First.")}, path)
    second = {"a": SafetyPrompt(name="a", text="Second.")}
    with pytest.raises(PromptError, match="is there already: choose another name, or tick `overwrite`"):
        save_prompts(second, path)
    assert load_prompts(path)["a"].text == "First."
    save_prompts(second, path, overwrite=True)
    assert load_prompts(path) == second


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.json", "ending '.json': prompts are saved as .yaml"),
        ("a", "ending ''"),
        ("file/a.yaml", "Cannot write .*: choose another folder"),
        ("a\x00.yaml", "Cannot write"),
    ],
)
def test_what_cannot_be_saved_says_why_and_leaves_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptError, match=message):
        save_prompts({"a": SafetyPrompt(name="a", text="x")}, tmp_path / name)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_no_prompts_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no prompts to save"):
        save_prompts({}, tmp_path / "a.yaml")


def test_random_words_match_the_length_and_nothing_else() -> None:
    default = load_prompts()["default"]
    words = random_words(default, seed=1)
    assert words.name == "words (default)"
    assert len(words.text.split()) == len(default.text.split())
    assert random_words(default, seed=1).text == words.text != random_words(default, seed=2).text
    shared = set(words.text.lower().strip(".").split()) & set(default.text.lower().replace(",", "").split())
    assert not shared
    with pytest.raises(PromptError, match="'none' has no words to match"):
        random_words(load_prompts()["none"])


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    path.write_text('{"mine": "Be calm.", "other": "Be brief.", "mine": "Be kind."}')
    with pytest.raises(PromptError, match="the key 'mine' is there twice"):
        load_prompts(path)


def test_aliases_cannot_multiply(tmp_path: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    path = tmp_path / "mine.yaml"
    path.write_text(f"l0: &l0 [x]\n{levels}mine: {{text: Be kind., kind: *l8}}\n")
    started = time.process_time()
    with pytest.raises(PromptError, match="more than 20 aliases"):
        load_prompts(path)
    assert time.process_time() - started < 1


def test_a_few_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {text: Be calm., kind: neutral}\nb: {<<: *a, text: Be kind.}\n")
    prompts = load_prompts(path)
    assert prompts["b"] == SafetyPrompt(name="b", text="Be kind.", kind="neutral")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "0000-00-00: x"),
        ("a.yaml", "a: !!bool what"),
        ("a.yaml", "a: !!timestamp what"),
        ("a.yaml", 'a: !!int ""'),
        ("a.yaml", "a: " + "[" * 1200),
        ("a.json", '{"a": {"text": "x", "kind": ' + "[" * 900 + "]" * 900 + "}}"),
        ("a.json", '{"a": ' + '{"text": ' * 1200 + "1" + "}" * 1201),
    ],
)
def test_values_that_no_parser_takes_are_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(PromptError):
        load_prompts(path)


@pytest.mark.parametrize("text", ["You are a careful assistant. " * 30, "Be careful.\nBe kind.", "a\0b", None, 3])
def test_a_text_in_place_of_a_file_says_how_to_use_it(text: str | None) -> None:
    with pytest.raises(PromptError, match=r"pass load_prompts a mapping, \{'mine': '…'\}") as found:
        load_prompts(text)  # type: ignore[arg-type]
    assert len(str(found.value)) < 300


def test_sets_are_joined_and_no_text_is_lost() -> None:
    mine = load_prompts({"none": "", "mine": "Be careful."})
    assert list(join_prompts(load_prompts(), mine)) == ["none", "default", "medium", "short", "mine"]
    with pytest.raises(PromptError, match="Two prompts with different texts are called 'mine': rename one"):
        join_prompts(mine, load_prompts({"mine": "Be kind."}))


def test_a_prompt_is_picked_by_its_name_or_as_the_first_that_says_something() -> None:
    prompts = load_prompts({"none": "", "mine": "Be careful.", "yours": "Be kind."})
    assert [pick_prompt(prompts, name).name for name in (None, "yours", "none")] == ["mine", "yours", "none"]
    with pytest.raises(PromptError, match=r"No prompt here is called 'theirs': there are \['none', 'mine', 'yours'\]"):
        pick_prompt(prompts, "theirs")
    assert pick_prompt(load_prompts({"blank": " \n", "mine": "Be careful."})).name == "mine"
    with pytest.raises(PromptError, match=r"No prompt here says anything: there are \['none'\]; .*add one"):
        pick_prompt(load_prompts({"none": ""}))
