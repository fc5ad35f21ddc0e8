"""A reply taken apart: what the model thought aloud, and what it answered.

Reasoning models write their thoughts into the reply, between marks of their family. A judge must read the answer: a
thought such as "I cannot say this aloud" refuses nothing. Marks count at the beginning of a reply only, one block after
another, so that an answer may write about them. Some templates open the block themselves: then the reply has its end
alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "<scratchpad>": "</scratchpad>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
"""Where a block of reasoning begins → where it ends."""
_ANSWER_MARKS = {
    "<answer>": "</answer>",
    "<response>": "</response>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
}


def _any_of(marks: Iterable[str]) -> str:
    return "|".join(map(re.escape, marks))


_PIECES = ("</", "[/", "|>", "◁/")
"""One of these is in every reply with a mark that ends something: asked first, because it is quick."""
_BEGIN = re.compile(rf"\s*(?:{_any_of(_MARKS)})", re.IGNORECASE)
_END = re.compile(_any_of(_MARKS.values()), re.IGNORECASE)
_MARK = re.compile(  # a mark that is quoted, on both sides, is spoken of
    rf"(?P<begin>{_any_of(_MARKS)})"
    rf"|(?<![`\"'])(?:{_any_of(_MARKS.values())})|(?:{_any_of(_MARKS.values())})(?![`\"'])",
    re.IGNORECASE,
)
_ANSWER = re.compile(rf"\s*(?:{_any_of(_ANSWER_MARKS)})", re.IGNORECASE)
_ANSWER_END = re.compile(rf"(?:{_any_of(_ANSWER_MARKS.values())})\s*\Z", re.IGNORECASE)

_HARMONY = ("<|channel|>", "<|start|>")
_MESSAGE = re.compile(  # each message names its channel
    r"<\|channel\|>\s*+([a-z]++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>(.*?)"
    r"(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_FINAL = "final"
"""The channel of the answer."""
# Harmony after its special tokens were left out in decoding: the names of role and channel stand before the words.
_BARE = re.compile(
    r"\s*(?:assistant)?(?:(?:analysis|commentary)(?:(?=[^\W\d_a-z]|[\"'“])|(?=.*assistantfinal))|final(?=[A-Z]))",
    re.DOTALL,
)
_BARE_THOUGHT = re.compile(r"(?:\A\s*(?:assistant)?|assistant)(?:analysis|commentary)")
_BARE_FINAL = re.compile(r"(?:\A\s*(?:assistant)?|assistant)final")


class Reply(NamedTuple):
    """The parts of a reply, without the marks and the white space around them."""

    reasoning: str
    """Empty where the model did not think aloud."""
    answer: str | None
    """None where the reply ended before its answer began: there is nothing to judge."""
    begins: int
    """Where the answer begins in the reply; the reply's length if there is none."""


def split_reply(text: str) -> Reply:
    """Take a reply apart into reasoning and answer. A reply without marks is an answer, unchanged.

    Examples:
        >>> from drolab.models import split_reply
        >>> split_reply("<think>Is that safe? I think so.</think> Use kill.")
        Reply(reasoning='Is that safe? I think so.', answer='Use kill.', begins=41)
        >>> split_reply("<think>They ask about").answer is None
        True
        >>> split_reply("analysisThey want bread.assistantfinalMix flour and water.").answer
        'Mix flour and water.'
    """
    if text.lstrip().startswith(_HARMONY) and _HARMONY[0] in text:
        return _from_channels(text)
    if _BARE.match(text):
        return _from_bare_channels(text)
    return _from_blocks(text)


def _reply(text: str, thoughts: list[str], begin: int, end: int) -> Reply:
    """The answer is what stands from `begin` to `end`."""
    answer = text[begin:end].strip()
    reasoning = "\n".join(filter(None, thoughts))
    if not answer:
        return Reply(reasoning, None, len(text))
    return Reply(reasoning, answer, begin + len(text[begin:end]) - len(text[begin:end].lstrip()))


def _from_channels(text: str) -> Reply:
    messages = list(_MESSAGE.finditer(text))
    answers = [message for message in messages if message[1] == _FINAL]
    thoughts = [message[2].strip() for message in messages if message[1] != _FINAL]
    begin, end = answers[-1].span(2) if answers else (len(text), len(text))
    return _reply(text, thoughts, begin, end)


def _from_bare_channels(text: str) -> Reply:
    final = _BARE_FINAL.search(text)
    begin = final.end() if final else len(text)
    thought = text[: final.start()] if final else text
    return _reply(text, [part.strip() for part in _BARE_THOUGHT.split(thought)], begin, len(text))


def _from_blocks(text: str) -> Reply:
    thoughts, place = [], 0
    while (found := _block(text, place)) is not None:
        begin, end, place = found
        thoughts.append(text[begin:end].strip())
    if not thoughts:
        return Reply("", text, 0)
    answer, closed = _ANSWER.match(text, place), _ANSWER_END.search(text, place)
    begin = answer.end() if answer else place
    return _reply(text, thoughts, begin, closed.start() if answer and closed else len(text))


def _block(text: str, place: int) -> tuple[int, int, int] | None:
    """A block of reasoning that begins here, or began before: where it begins and ends, and where the rest begins."""
    begin = _BEGIN.match(text, place)
    if begin is not None:
        end = _END.search(text, begin.end())
        return (begin.end(), end.start(), end.end()) if end else (begin.end(), len(text), len(text))
    if not any(piece in text for piece in _PIECES):
        return None
    mark = _MARK.search(text, place)
    return None if mark is None or mark["begin"] else (place, mark.start(), mark.end())
