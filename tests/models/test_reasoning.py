"""Replies of reasoning models: what is a thought, what is the answer, and what has none."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drolab.models import split_reply

PLAIN = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<[◁"))
HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"


CALL = '<|channel|>commentary to=f <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>They ask.</think> Use kill.", "They ask.", "Use kill."),
        ("\n<think>\nFirst.\n\nSecond.\n</think>\n\nI'm sorry.", "First.\n\nSecond.", "I'm sorry."),
        ("<Think>Hm.</THINK>Yes.", "Hm.", "Yes."),
        ("[THINK]I cannot say this aloud.[/THINK]Water the plant.", "I cannot say this aloud.", "Water the plant."),
        ("They ask.</think>Use kill.", "They ask.", "Use kill."),  # the template opened the block
        ('They ask about "kill"</think>Use kill.', 'They ask about "kill"', "Use kill."),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>One.</think><think>Two.</think>Yes.", "One.\nTwo.", "Yes."),
        ("<think>One.</think>\n</think>Yes.", "One.", "Yes."),
        ("<think>One. <think>Two.</think> Three.</think>Yes.", "One. <think>Two.\nThree.", "Yes."),
        ("<thinking>I write </think> here.</thinking>Yes.", "I write\nhere.", "Yes."),
        ("<think>Hm.</think>Put it between <think> and </think>.", "Hm.", "Put it between <think> and </think>."),
        ("<thought>Hm.</thought><answer>Yes.</answer>\n", "Hm.", "Yes."),
        ("<thought>Hm.</thought><answer>Yes.", "Hm.", "Yes."),
        ("<thought>Hm.</thought>Close it with </answer>", "Hm.", "Close it with </answer>"),
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>", "Hm.", "Yes."),
        ("<|channel>thought\nHm.<channel|>Yes.", "Hm.", "Yes."),
        (HARMONY.format("Hm.", "Yes."), "Hm.", "Yes."),
        (HARMONY.format("Hm.", "Yes.<|return|>"), "Hm.", "Yes."),
        ("<|start|>assistant" + HARMONY.format("Hm.", "Yes."), "Hm.", "Yes."),
        (CALL + HARMONY.format("Hm.", "Yes."), '{"a": 1}\nHm.', "Yes."),
        ("<|channel|>final<|message|>Yes.", "", "Yes."),
        ("analysisUser asks.assistantfinalMix flour.", "User asks.", "Mix flour."),
        ("analysis user asks.assistantfinal\nMix flour.", "user asks.", "Mix flour."),
        ("assistantanalysisUser asks.assistantfinalMix flour.", "User asks.", "Mix flour."),
        ("analysisHm.assistantcommentaryPlan.assistantfinalYes.", "Hm.\nPlan.", "Yes."),
        ("finalYes.", "", "Yes."),
    ],
)
def test_marks_of_many_families(text: str, reasoning: str, answer: str) -> None:
    reply = split_reply(text)
    assert reply[:2] == (reasoning, answer)
    assert text[reply.begins :].startswith(answer)
    assert split_reply(answer).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>They ask about",
        "<think>They ask.</think>",
        "<think>They ask.</think><answer> </answer>",
        "They ask.</think>\n",
        "[THINK]Hm. [/THINK]  \n",
        "<|channel|>analysis<|message|>They ask",
        "<|channel|>analysis",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
        "analysisUser asks about bread. I must",
        "analysis“Bread”, they ask",
    ],
)
def test_a_reply_that_ended_too_soon_has_no_answer(text: str) -> None:
    reply = split_reply(text)
    assert reply.answer is None
    assert reply.begins == len(text)


@pytest.mark.parametrize(
    "text",
    [
        "Wrap the thought in <think> first.",
        "Use <think> and </think>, one block after another.",
        "The block ends with `</think>`, as said.",
        'It ends with "</think>".',
        "<answer>Yes.</answer>",
        "<b>Yes.</b>",
        "analysis of variance compares means.",
        "analysis_plan = 3",
        "Analysis: it fails.",
        "commentary, in short, helps.",
        "finally, mix.",
        "  indented",
        "<|start|> is a token.",
        "",
    ],
)
def test_what_has_no_marks_at_its_beginning_is_an_answer(text: str) -> None:
    assert split_reply(text) == ("", text, 0)


@given(thought=PLAIN, answer=PLAIN)
@example(thought="", answer="analysisUser asks.")
def test_the_parts_of_a_marked_reply_come_back(thought: str, answer: str) -> None:
    for text in (f"<think>{thought}</think>{answer}", HARMONY.format(thought, answer)):
        assert split_reply(text)[:2] == (thought.strip(), answer.strip() or None)


PIECES = [*"a \n.`\"'", "<think>", "</think>", "[THINK]", "[/THINK]", "<answer>", "</answer>", "analysis", "Hm"]
PIECES += ["assistant", "final", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<channel|>"]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_the_answer_stands_where_it_is_said_to(text: str) -> None:
    reply = split_reply(text)
    if reply.answer is None:
        assert reply.begins == len(text)
    else:
        assert text[reply.begins :].startswith(reply.answer)
        assert reply.begins or reply.answer == text


UNITS = ["<think>", "</think>", "<think></think>", "<think>a</think>\n", "</answer> ", "[/THINK", "`</think>`", "</"]
UNITS += ["<|channel|>", "<|message|>", "<|channel|>a<|message|>", "analysisA", "assistantfinal", "a", " "]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("before", ["", "<think>", "<|channel|>analysis", "analysisA", "<think>a</think><answer>"])
def test_a_megabyte_takes_no_time(before: str, unit: str) -> None:
    start = time.process_time()
    split_reply(before + unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 2
