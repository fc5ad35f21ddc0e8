"""A reply taken apart: what the model thought aloud, and what it answered.

Reasoning models write their thoughts into the reply, between marks of their family. A judge must read the answer: a
thought such as "I cannot say this aloud" refuses nothing. Marks count at the beginning of a reply only, one block after
another, so that an answer may write about them. Some templates open the block themselves: then the reply has its end
alone.

The same marks say, of the text that a chat template writes, whether it leaves a thought open, has closed one, or leaves
it to the model to begin one; and what must be written there so that the answer comes next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_MARKS = {
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "<scratchpad>": "</scratchpad>",
    "<seed:think>": "</seed:think>",
    "<mm:think>": "</mm:think>",
    "<think:opensource>": "</think:opensource>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",
}
"""Where a block of reasoning begins → where it ends."""
_ANSWER_MARKS = {
    "<answer>": "</answer>",
    "<response>": "</response>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<|open|>response<|sep|>": "<|close|>response<|sep|>",
}
"""The same of answers, where a family has marks for them."""


def _any_of(marks: Iterable[str]) -> str:
    return "|".join(map(re.escape, marks))


LIKE_THOUGHT = re.compile(
    _any_of([*_MARKS, *_MARKS.values()])
    + r"|<\|(?:open|close)\|>think\w*<\|sep\|>|[<\[◁]\|?/?[\w:.-]{0,24}?(?:think|thought|reason)[\w:|.-]{0,24}[>\]▷]",
    re.IGNORECASE,
)
"""Those marks, and what looks like one of a family that is not known."""
_LIKE_END = re.compile(r"^[<\[◁]\|?/|end|close|suffix", re.IGNORECASE)


def ends_thought(mark: str) -> bool:
    """Whether a mark, or what looks like one, ends a thought."""
    return mark in _MARKS.values() or (mark not in _MARKS and _LIKE_END.search(mark) is not None)


_ENDINGS = tuple(dict.fromkeys(mark.lower() for mark in _MARKS.values()))
"""One of these is in every reply with a thought that ended: asked first, because it is quick."""
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
_TO_FINAL = "<|channel|>final<|message|>"
_AT_FINAL = re.compile(r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>\s*\Z")
_IN_CHANNEL = re.compile(r"<\|channel\|>(?!\s*final)\s*[a-z]+[^<]*(?:<\|message\|>[^<]*)?\Z")
# Harmony after its special tokens were left out in decoding: the names of role and channel stand before the words.
_BARE = re.compile(
    r"\s*(?:assistant)?(?:(?:analysis|commentary)(?:(?=[^\W\d_a-z]|[\"'“])|(?=.*assistantfinal))|final(?=[A-Z]))",
    re.DOTALL,
)
_BARE_THOUGHT = re.compile(r"(?:\A\s*(?:assistant)?|assistant)(?:analysis|commentary)")
_BARE_FINAL = re.compile(r"(?:\A\s*(?:assistant)?|assistant)final")


_OF_HARMONY = frozenset({*_HARMONY, "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"})
THOUGHT_MARKS = frozenset(
    {*_MARKS, *_MARKS.values(), *_ANSWER_MARKS, *_ANSWER_MARKS.values(), "<|channel>"} | _OF_HARMONY
)
"""What marks thoughts and answers in replies, of all families."""


def marks_among(tokens: Iterable[str]) -> frozenset[str]:
    """Those of a tokenizer's special tokens that a decoded reply must keep: without them nobody could say where its
    answer begins. Those of harmony are other families' ends of turns, and count together only."""
    found = THOUGHT_MARKS & set(tokens)
    return found if {_HARMONY[0], "<|message|>"} <= found else found - _OF_HARMONY


class Reply(NamedTuple):
    """The parts of a reply, without the marks and the white space around them."""

    reasoning: str
    """Empty where the model did not think aloud."""
    answer: str | None
    """None where the reply ended before its answer began: there is nothing to judge."""
    begins: int
    """Where the answer begins in the reply; the reply's length if there is none."""


def split_reply(text: str, opening: str = "") -> Reply:
    """Take a reply apart into reasoning and answer. A reply without marks is an answer, unchanged.

    Args:
        opening: what the chat ended with, if it left a thought open (`open_thought`): then a reply without any mark is
            a thought that did not end. `begins` counts in the reply alone.

    Examples:
        >>> from drolab.models import split_reply
        >>> split_reply("<think>Is that safe? I think so.</think> Use kill.")
        Reply(reasoning='Is that safe? I think so.', answer='Use kill.', begins=41)
        >>> split_reply("<think>They ask about").answer is None
        True
        >>> split_reply("analysisThey want bread.assistantfinalMix flour and water.").answer
        'Mix flour and water.'
        >>> split_reply("They ask about", opening="<think>\\n")
        Reply(reasoning='They ask about', answer=None, begins=14)
    """
    if opening:
        reply = split_reply(opening + text)
        if not reply.begins and reply.answer:  # of marks that are not known: nothing says that it has ended
            return Reply(text.strip(), None, len(text))
        return reply._replace(begins=max(0, reply.begins - len(opening)))
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
    lowered = text.lower()
    ended = any(ending in lowered for ending in _ENDINGS)
    thoughts, place = [], 0
    while (found := _block(text, place, ended)) is not None:
        begin, end, place = found
        thoughts.append(text[begin:end].strip())
    answer, closed = _ANSWER.match(text, place), _ANSWER_END.search(text, place)
    marked = [found for found in (answer, closed) if found and "|" in found[0]]
    if not thoughts and not marked:  # words in angle brackets may be the answer's own
        return Reply("", text, 0)
    begin = answer.end() if answer else place
    return _reply(text, thoughts, begin, closed.start() if closed and (answer or closed in marked) else len(text))


def _block(text: str, place: int, ended: bool) -> tuple[int, int, int] | None:
    """A block of reasoning that begins here, or began before: where it begins and ends, and where the rest begins.

    Args:
        ended: whether a mark that ends one is anywhere in the text.
    """
    begin = _BEGIN.match(text, place)
    if begin is not None:
        end = _END.search(text, begin.end())
        return (begin.end(), end.start(), end.end()) if end else (begin.end(), len(text), len(text))
    if not ended:
        return None
    mark = _MARK.search(text, place)
    return None if mark is None or mark["begin"] else (place, mark.start(), mark.end())


def could_be_mark(answer: str) -> bool:
    """Whether an answer that is still being written may turn out to be the beginning of a mark.

    Examples:
        >>> from drolab.models import could_be_mark
        >>> could_be_mark("<thi"), could_be_mark("<b>")
        (True, False)
    """
    low = answer.strip().lower()
    if low.startswith(_HARMONY[1]) and _HARMONY[0] not in low:
        return len(low) < _HEADER
    return any(mark.startswith(low) and mark != low for mark in _ALL_MARKS)


_ALL_MARKS = tuple(mark.lower() for mark in (*_MARKS, *_MARKS.values(), *_ANSWER_MARKS, *_HARMONY))
_HEADER = 40
"""Characters of a message's head at most, before it names its channel."""


# --- the end of a chat: where in the thinking a template leaves the model ------------------------------------


def open_thought(ending: str) -> str:
    """What of a chat's ending stands in a thought that is not closed: "" if none is.

    Args:
        ending: the rendered chat from the end of the query on, with the generation prompt.

    Examples:
        >>> from drolab.models import open_thought
        >>> open_thought("<|Assistant|><think>\\n")
        '<think>\\n'
        >>> open_thought("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
        ''
    """
    if found := _IN_CHANNEL.search(ending):
        return found[0]
    begun = [match.start() for match in re.finditer(_any_of(_MARKS), ending, re.IGNORECASE)]
    return ending[begun[-1] :] if begun and not _END.search(ending, begun[-1]) else ""


def at_answer(ending: str) -> bool:
    """Whether a chat's ending has closed the thinking: what the model writes next is its answer.

    Examples:
        >>> from drolab.models import at_answer
        >>> at_answer("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"), at_answer("<|im_start|>assistant\\n")
        (True, False)
    """
    return bool(_AT_FINAL.search(ending) or _CLOSED.search(ending))


_CLOSED = re.compile(rf"(?:{_any_of([*_MARKS.values(), *_ANSWER_MARKS])})\s*\Z", re.IGNORECASE)


def marks_in(template: str) -> str | None:
    """How thoughts begin in the chats of a template that knows them, from its source: a mark, or that of harmony's
    channels. None if it knows none.

    Examples:
        >>> from drolab.models import marks_in
        >>> marks_in("{{ content.split('</think>')[-1] }}")
        '<think>'
    """
    if _HARMONY[0] in template and "<|message|>" in template:
        return _HARMONY[0]
    for begin, end in _MARKS.items():
        if begin in template or end in template:
            return begin
    return None


def to_answer(ending: str, mark: str | None) -> str:
    """What to write after a chat's ending so that the answer comes next: the thought, closed and empty.

    Args:
        ending: as in `open_thought`.
        mark: how the model's thoughts begin, from `marks_in`; None if it does not think.

    Examples:
        >>> from drolab.models import to_answer
        >>> to_answer("<|Assistant|><think>\\n", "<think>")
        '\\n</think>\\n\\n'
        >>> to_answer("<|im_start|>assistant\\n", "<think>")
        '<think>\\n\\n</think>\\n\\n'
        >>> to_answer("<|start|>assistant", "<|channel|>")
        '<|channel|>final<|message|>'
    """
    begun = open_thought(ending)
    if begun.startswith(_HARMONY[0]):
        return ("" if "<|message|>" in begun else "<|message|>") + "<|end|><|start|>assistant" + _TO_FINAL
    if begun:
        return _closing(begun)
    if mark is None or at_answer(ending):
        return ""
    return _TO_FINAL if mark == _HARMONY[0] else _EMPTY.get(mark) or mark + _closing(mark)


_LINES = {"<think>": "\n", "<thinking>": "\n", "<thought>": "\n", "<reasoning>": "\n"}
"""What families write between such a mark and the thought; the others write nothing."""
_EMPTY = {"<|channel>thought": "<|channel>thought\n<channel|>"}
_THEN = {
    "<|END_THINKING|>": "<|START_RESPONSE|>",
    "<|end_of_thought|>": "\n\n<|begin_of_solution|>",
    "<|close|>think<|sep|>": "<|open|>response<|sep|>",
    "[BEGIN FINAL RESPONSE]": "\n",
}
"""What stands between the end of a thought and the answer, where a mark does."""


def _closing(begun: str) -> str:
    """The end of the thought that has begun so, an empty one as far as it can be: as models are taught to skip it."""
    found = _BEGIN.match(begun)
    mark = found[0].strip() if found else begun
    end = next(end for begin, end in _MARKS.items() if begin.lower() == mark.lower())
    said = begun[len(mark) :]
    if mark in _EMPTY:
        return ("" if said else "\n") + end
    line = _LINES.get(mark.lower()) or ("\n" if "\n" in said else "")
    before = line if said else 2 * line
    return before + end + _THEN.get(end, 2 * line)
