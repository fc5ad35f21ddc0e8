"""What a chat template does about thinking aloud, found by its marks and by trying its switches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import nodes

from drolab.errors import ChatTemplateError
from drolab.models.markers import behind_query
from drolab.models.reasoning import LIKE_THOUGHT, at_answer, ends_thought

if TYPE_CHECKING:
    from drolab.models.templates import Template


@dataclass(frozen=True)
class Thinking:
    """What a template does about thinking aloud, and where it leaves the model when the reply begins."""

    kind: str
    """`none`: nothing is known of it; `by the model`: it may begin a thought, and the template has no switch;
    `optional`: `off` or `on` switch it; `always`."""
    place: str
    """Where the last token is: before the `answer`, inside a `thought`, before a `channel` is named (harmony), or
    before a `reply` that may begin with a thought."""
    opens: str = ""
    """The text from the open thought's mark to the chat's end, such as "<think>\\n"."""
    closed: str = ""
    """The text from an empty thought's mark (or the mark that ends it alone) to the chat's end."""
    off: Mapping[str, Any] | None = None
    """`template_kwargs` with which the reply begins without a thought."""
    on: Mapping[str, Any] | None = None
    """`template_kwargs` with which it begins with one."""
    names: tuple[str, ...] = ()
    """All `template_kwargs` that have to do with it and change a chat."""
    words: tuple[str, ...] = ()
    """Words that switch it if they are in a text, such as /no_think. Texts that have them are refused."""


def thinking_of(template: Template) -> Thinking:
    """What it does about thinking aloud: found by its marks, and by what its switches change."""
    end = behind_query(template.sample())
    opens, closed = thought_in(end, template.generation_prompt)
    asked = sorted(set(re.findall(r"(?<![<\w])/(?:no_?)?think\b", template.jinja)))
    words = tuple(word for word in asked if template.reacts_to(word))
    changes = [(name, value, _state(told)) for name, value, told in _switched(template)]
    names = tuple(dict.fromkeys(name for name, _, _ in changes))
    now = _state(template)
    off = next(({name: value} for name, value, state in changes if _turns(now, state, value) == "off"), None)
    on = next(({name: value} for name, value, state in changes if _turns(now, state, value) == "on"), None)
    if opens:
        kind = "optional" if off or words else "always"
        return Thinking(kind, "thought", opens=opens, off=off, names=names, words=words)
    if "<|channel|>" in template.jinja and not closed:
        return Thinking("always", _channel(end), names=names)
    if closed:
        kind = "optional" if on or words else "none"
        return Thinking(kind, "answer", closed=closed, on=on, names=names, words=words)
    if at_answer(end):  # a mark of the answer alone
        return Thinking("optional" if on or words else "none", "answer", on=on, names=names, words=words)
    if names or words:
        return Thinking("optional", "reply", off=off, on=on, names=names, words=words)
    if LIKE_THOUGHT.search(template.jinja):
        return Thinking("by the model", "reply")
    return Thinking("none", "answer")


def _state(told: Template) -> str:
    opens, closed = thought_in(behind_query(told.sample()), told.generation_prompt)
    return "open" if opens else "closed" if closed else "bare"


def _switched(template: Template) -> Iterator[tuple[str, Any, Template]]:
    """Each switch and value that changes a chat, and the template that is told so."""
    whole = template.sample()
    for name in sorted(filter(is_switch, template.reads)):
        for value in switch_values(template, name):
            told = template.told_more(**{name: value})
            try:
                if told.sample() != whole:
                    yield name, value, told
            except ChatTemplateError:
                continue


def switch_values(template: Template, name: str) -> list[Any]:
    """What may be said under this name: what the template compares it with, or what is usual."""
    found = [
        constant.value
        for compared in template.tree.find_all(nodes.Compare)
        if any(each.name == name for each in compared.find_all(nodes.Name))
        for constant in compared.find_all(nodes.Const)
    ]
    words = [value for value in found if isinstance(value, str)]
    graded = re.search("effort|level|strength|mode|budget|option", name) is not None
    usual = ["none", "low", "high"] if graded and not words else []
    return [*([] if graded else [False, True]), *dict.fromkeys(words), *usual, *([0, 512] * ("budget" in name))]


def is_switch(name: str) -> bool:
    return re.search("think|reason|thought", name) is not None


_OFF = ("none", "off", "no", "false", "disable", "disabled", "no_think", "nothink")


def is_off(value: Any) -> bool:
    return value is False or (value == 0 and value is not True) or (isinstance(value, str) and value.lower() in _OFF)


def _turns(now: str, then: str, value: Any) -> str:
    """What a switch does that takes the chat's end from one state to another: "off", "on" or nothing known."""
    if now != then:
        closes = then == "closed" or now == "open"
        return "off" if closes else "on"
    if now != "bare":
        return ""
    return "off" if is_off(value) else "on"


def thought_in(tail: str, begins: str) -> tuple[str, str]:
    """The end of a chat from the mark of a thought that is open, and from an empty one that is closed.

    Args:
        tail: what stands behind the query.
        begins: the generation prompt, which may open a thought in words ("Here are my reasoning steps:").
    """
    marks = list(LIKE_THOUGHT.finditer(tail))
    if not marks:
        words = re.search(r"[^\n]*\b(?:think|thought|reason)\w*[^\n<>]*\s*\Z", re.sub(r"<[^<>]*>", "", begins), re.I)
        return (words[0], "") if words and len(words[0].split()) > 2 else ("", "")
    last = marks[-1]
    if not ends_thought(last[0]):
        return tail[last.start() :], ""
    begin = marks[-2] if len(marks) > 1 and not ends_thought(marks[-2][0]) else last
    return "", tail[begin.start() :]


def _channel(tail: str) -> str:
    name = re.search(r"<\|channel\|>(\w+)<\|message\|>\s*\Z", tail)
    return "channel" if name is None else "answer" if name[1] == "final" else "thought"
