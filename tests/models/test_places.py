"""Where a chat ends: at its reply, at its answer, and what templates of all kinds do about the thought between."""

from __future__ import annotations

import pytest
from helpers.replies import queries
from helpers.thinkers import ANSWERS, CARE, HARMONY, NONE, TEMPLATES, thinker

from drolab.errors import ChatTemplateError, StatesError, UnreliableWarning
from drolab.inference import generate, hidden_states
from drolab.models import (
    at_answer,
    audit,
    could_be_mark,
    encode,
    marks_among,
    open_thought,
    render,
    split_reply,
    thought_mark,
    to_answer,
    unknown_thoughts,
)

THINKING = [kind for kind in ANSWERS if kind != "plain"]


@pytest.mark.parametrize("prompt", [NONE, CARE], ids=lambda prompt: prompt.name)
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_stands_behind_a_thought_that_is_closed_and_empty(kind: str, prompt) -> None:
    model = thinker(kind)
    reply, answer = (render(model, "How to sing?", prompt, read_at=place) for place in ("reply", "answer"))
    assert answer.text == reply.text + ANSWERS[kind]
    assert answer.prompt_span == reply.prompt_span
    assert model.tokenizer.decode(answer.input_ids) == answer.text
    assert (thought_mark(model.template) is None) == (kind == "plain")
    assert reply.opening == ("<think>\n" if kind == "opened" else "")
    assert not answer.opening


def test_where_the_template_has_a_switch_its_own_words_count() -> None:
    thinks, answers = thinker("switch that opens", thinking=True), thinker("switch that opens", thinking=False)
    assert render(thinks, "How?", NONE).opening == "<think>"
    assert render(thinks, "How?", NONE, read_at="answer").text == render(answers, "How?", NONE).text
    assert render(thinks, "How?", NONE).text.endswith("<think>")


def test_where_thinking_is_off_reply_and_answer_are_one_place() -> None:
    for model in (thinker("switch", enable_thinking=False), thinker("switch that opens"), thinker("plain")):
        assert thought_mark(model.template) is None
        assert render(model, "How?", CARE) == render(model, "How?", CARE, read_at="answer")


def test_a_switch_that_closes_nothing_is_no_help() -> None:
    """As Granite's: it asks for thoughts in the system text, and says nothing where they are off."""
    jinja = "{% if thinking %}[system]Think in <think></think> first.\n{% endif %}" + TEMPLATES["plain"]
    asked = thinker("plain", jinja=jinja, thinking=True)
    assert render(asked, "How?", NONE, read_at="answer").text.startswith("[system]Think")
    assert render(asked, "How?", NONE, read_at="answer").text.endswith("[assistant]<think>\n\n</think>\n\n")
    assert thought_mark(thinker("plain", jinja=jinja).template) is None


BEGIN = TEMPLATES["plain"]
ASKED = queries("Why?", "How?")
UNKNOWN = {
    "opened by the chat": BEGIN + "<my_thinking>",
    "opened by the model": BEGIN + "{# <|my_thought|>…<|done|> #}",
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_thoughts_of_unknown_marks_are_never_taken_for_answers_in_silence(kind: str) -> None:
    model = thinker("plain", jinja=UNKNOWN[kind])
    for place in ("answer", "after_thinking"):
        with pytest.raises(
            StatesError, match=r"may think before it answers.*: read at 'reply', or switch thinking off"
        ):
            hidden_states(model, ASKED, NONE, read_at=place, progress=False)
    with pytest.warns(UnreliableWarning, match="may think before it answers.*replies are judged with their thoughts"):
        generate(model, ASKED, NONE, n_samples=1, max_new_tokens=3, progress=False)
    row = audit(model).set_index("check").loc["thinking"]
    assert (row["status"], row["means"].endswith("they are judged together with its answers")) == ("problem", True)
    assert not unknown_thoughts(thinker("opened").template)


def test_a_switch_that_is_undecided_is_not_off() -> None:
    jinja = (
        BEGIN + "{% if enable_thinking is defined %}{% if enable_thinking is false %}<think>\n\n</think>"
        "{% elif enable_thinking is true %}<think>\n{% endif %}{% endif %}"
    )
    assert thought_mark(thinker("plain", jinja=jinja).template) == "<think>"
    assert thought_mark(thinker("plain", jinja=jinja, enable_thinking=False).template) is None


@pytest.mark.parametrize(
    ("ending", "answer"),
    [
        ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
        ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
        ("<|START_RESPONSE|>", ""),
    ],
)
def test_marks_of_other_families(ending: str, answer: str) -> None:
    model = thinker(
        "plain", jinja=BEGIN + "{% if add_generation_prompt %}" + ending.replace("\n", "{{ '\\n' }}") + "{% endif %}"
    )
    reply, there = (render(model, "How?", NONE, read_at=place).text for place in ("reply", "answer"))
    assert reply.endswith(ending)
    assert there == reply + answer
    said = split_reply(f"I cannot say this aloud.{answer}Sure.", ending if answer else "")
    assert said.answer == ("Sure." if answer else "I cannot say this aloud.Sure.")


def test_marks_in_a_query_are_the_querys() -> None:
    for kind in ("plain", "switch"):
        for query in ("Close <think>", "<think>\n", "What is </think>", "think"):
            try:
                chat = render(thinker(kind), query, NONE, read_at="answer")
            except ChatTemplateError:  # a template may cut it
                continue
            assert chat.opening == ""
            assert chat.text.endswith("[assistant]" + ANSWERS[kind])
    assert render(thinker("opened"), "think", NONE).opening == "<think>\n"


def test_all_chats_of_a_batch_end_there() -> None:
    model, texts = thinker("opened"), queries("How?", "How to sing?")["text"].tolist()
    batch = encode(model, texts, CARE, read_at="answer")
    for row, text in enumerate(texts):
        assert batch.chat(row) == render(model, text, CARE, read_at="answer").input_ids
    assert batch.openings == ()
    assert encode(model, texts, CARE).openings == ("<think>\n", "<think>\n")


def test_places_that_are_not_there() -> None:
    model = thinker("opened")
    for given, message in (("answers", "one of reply, answer, after_thinking"), ("after_thinking", "not known before")):
        with pytest.raises(StatesError, match=message):
            render(model, "How?", NONE, read_at=given)
        with pytest.raises(StatesError, match=message):
            encode(model, ["How?"], NONE, read_at=given)


@pytest.mark.parametrize(
    ("ending", "opening", "rest"),
    [
        ("<|Assistant|><think>", "<think>", "\n\n</think>\n\n"),
        ("[assistant]\n<think>\nOkay,", "<think>\nOkay,", "\n</think>\n\n"),
        ("[THINK]", "[THINK]", "[/THINK]"),
        ("x<|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
        ("<|turn>model\n<|channel>thought\n", "<|channel>thought\n", "<channel|>"),
        ("◁think▷", "◁think▷", "◁/think▷"),
        ("<seed:think>", "<seed:think>", "</seed:think>"),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
def test_a_thought_that_the_template_opened_is_closed(ending: str, opening: str, rest: str) -> None:
    assert open_thought(ending) == opening
    assert to_answer(ending, "<think>") == rest
    assert at_answer(ending + rest)
    assert not at_answer(ending)
    assert to_answer(ending + rest, "<think>") == ""


def test_what_could_still_be_a_mark() -> None:
    for begun in ("<", "<thi", "[TH", "<|chan", "<|start|>assi", "</", "<Thi"):
        assert could_be_mark(begun), begun
    for words in ("<b>", "Sure", "[1]", "<think>", "<|start|> is a token that I want to tell you about, if"):
        assert not could_be_mark(words), words


def test_ends_of_other_families_turns_are_no_marks() -> None:
    assert marks_among(["<|end|>", "<|start|>", "<s>"]) == set()
    assert marks_among([*HARMONY, "<s>"]) == set(HARMONY)
    assert marks_among(["[THINK]", "<|end|>"]) == {"[THINK]"}
