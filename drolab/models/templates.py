"""What writes the chats: a tokenizer's template, what it is told beside the messages, and what it makes of them.

Every chat is written by the tokenizer's own `apply_chat_template`; nothing is put together here. Two markers, one in
the system text's place and one in the query's, say once what a template writes around them. A chat counts only if it
is exactly that, with the prompt and the query in the markers' places (blanks at their ends may be trimmed). So a text
that a template cuts, repeats, rewrites, or takes a switch from, is an error, whatever the text is, also if it has the
template's own marks in it; and where a text stands is known, not searched for.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from drolab.errors import ChatTemplateError
from drolab.models.reasoning import _MARKS

Span = tuple[int, int]

_FORMATS = Path(str(resources.files("drolab"))) / "assets" / "chat_formats"
CHAT_FORMATS: tuple[str, ...] = tuple(sorted(path.stem for path in _FORMATS.glob("*.jinja")))
"""Names of the chat formats that drolab brings: one for each file in that folder."""

FIRST_USER = "first_user"
"""`system_as`: the system text before the first user's, as the makers of Gemma do it."""
BLANK_LINE = "\n\n"
"""Between the two."""
DATE = datetime.date(2024, 7, 26)
"""Today, for templates that ask: the date that Llama 3.1's writes where it cannot ask. Any would do, but one."""

_SYSTEM, _QUERY, _REPLY = "dRolab0System", "dRolab0Query", "dRolab0Reply"
"""Words that a template has no reason to treat as special, and that upper, lower, title and so on change."""
_OTHER = f"pass load_model(…, chat_template=…), one of {', '.join(CHAT_FORMATS)}, or Jinja text that writes both."
_GIVEN = {"messages", "add_generation_prompt", "continue_final_message", "chat_template", "strftime_now"}
"""What a template reads and a user does not pass."""


@dataclass(frozen=True)
class Layout:
    """What a template writes around the system text and the query, in the order of the chat."""

    first: str
    middle: str
    """Between the two; unused in chats without a system text."""
    last: str
    system: bool
    query_first: bool = False
    """The system text stands behind the query."""

    def find(self, text: str, system: str, query: str) -> tuple[Span | None, Span] | None:
        """Where system text and query are in a chat that is this layout's, in characters; None if it is not."""
        for ours, asked in itertools.product(_trimmed(system) if self.system else [""], _trimmed(query)):
            one, two = (asked, ours) if self.query_first else (ours, asked)
            if not self.system:
                if text == self.first + asked + self.last:
                    return None, (len(self.first), len(self.first) + len(asked))
                continue
            for first, middle in self._around(blank=not asked):
                if text == first + one + middle + two + self.last:
                    start = len(first) + len(one) + len(middle)
                    spans = (len(first), len(first) + len(one)), (start, start + len(two))
                    return (spans[1], spans[0]) if self.query_first else spans
        return None

    def _around(self, *, blank: bool) -> Iterator[tuple[str, str]]:
        """What stands before each; a query of blanks is trimmed together with those before it."""
        yield self.first, self.middle
        if blank:
            yield self.first, self.middle.rstrip()


def _trimmed(text: str) -> list[str]:
    return list(dict.fromkeys([text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n")]))


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


@dataclass(frozen=True, eq=False)
class Template:
    """A tokenizer's chat template, and what it is told beside the messages."""

    tokenizer: PreTrainedTokenizerBase
    owner: str
    """The model's name, for messages."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_as: str | None = None
    date: datetime.date | None = None
    """What a template that asks for today's date is told; None is `DATE`."""

    @cached_property
    def jinja(self) -> str:
        """The template's text."""
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def reads(self) -> set[str]:
        """The names of what it reads beside the messages and the tokenizer's special tokens: what can be passed."""
        tree = _parsed(self.jinja)
        return meta.find_undeclared_variables(tree) - _GIVEN - set(self.tokenizer.special_tokens_map) - _GLOBALS

    @property
    def told(self) -> dict[str, Any]:
        """What a user said about it, for the fingerprint; empty if nothing."""
        said: dict[str, Any] = dict(self.kwargs)
        if self.system_as is not None:
            said["system_as"] = self.system_as
        if self.date is not None:
            said["strftime_now"] = self.date.isoformat()
        return said

    # --- chats ---------------------------------------------------------------------------------------------

    def chat(self, query: str, system: str | None, name: str) -> tuple[str, Span | None, Span]:
        """The chat's text, and where in it the system text and the query are; None is no system message.

        Raises:
            ChatTemplateError: the template rejects, drops, repeats or changes one of them.
        """
        layout = self.layout(with_system=system is not None)
        text = self.write(query, system)
        found = layout.find(text, system or "", query)
        if found is None:
            raise self._changed(query, system, name)
        return text, *found

    def layout(self, *, with_system: bool) -> Layout:
        """What the template writes around a system text and a query.

        Raises:
            ChatTemplateError: it rejects or drops a system message, or drops or repeats what it is given.
        """
        return self._trial(with_system)[0]

    def write(self, query: str, system: str | None, *, reply: str | None = None, begin: bool = True) -> str:
        """The chat as the template writes it, unchecked.

        Args:
            reply: what the assistant has said; None ends the chat after the query.
            begin: ask for what makes the model begin its reply.
        """
        return self._write(query, system, self._trial(system is not None)[1], reply=reply, begin=begin)

    def told_more(self, **kwargs: Any) -> Template:
        """The same template, told something else."""
        return Template(self.tokenizer, self.owner, {**self.kwargs, **kwargs}, self.system_as, self.date)

    @cached_property
    def _trials(self) -> dict[bool, tuple[Layout, tuple[bool, bool]]]:
        return {}

    def _trial(self, with_system: bool) -> tuple[Layout, tuple[bool, bool]]:
        if with_system not in self._trials:
            self._trials[with_system] = self._try(with_system)
        return self._trials[with_system]

    def _try(self, with_system: bool) -> tuple[Layout, tuple[bool, bool]]:
        """The layout, and which of system text and query it wants as a list of parts, as for models that see images."""
        problems: list[ChatTemplateError] = []
        for parts in (
            ((False, False), (True, True), (False, True), (True, False)) if with_system else ((False,) * 2, (True,) * 2)
        ):
            try:
                text = self._write(_QUERY, _SYSTEM if with_system else None, parts)
                return self._laid_out(text, with_system), parts
            except ChatTemplateError as error:
                problems.append(error)
        # What went wrong first, unless a later trial came further: nothing said of a text is said better than "drops".
        raise next((error for error in problems if "repeats" in str(error)), problems[0])

    def _laid_out(self, text: str, with_system: bool) -> Layout:
        if re.search(r"type\W{1,8}text\W{1,4}text\W", text):  # parts as Python or JSON writes them
            raise self._error("drops the query", of_system=False)
        for marker, what in ((_QUERY, "the query"), (_SYSTEM, "the system message"))[: 1 + with_system]:
            count = text.count(marker)
            if not count:
                changes = marker.casefold() in text.casefold()
                lost = "" if changes or marker == _QUERY else ", so no safety prompt can arrive"
                problem = ("changes " if changes else "drops ") + what + lost
                raise self._error(problem, of_system=marker == _SYSTEM)
            if count > 1:
                raise self._error(f"repeats {what}", of_system=marker == _SYSTEM)
        if not with_system:
            first, last = text.split(_QUERY)
            return Layout(first, "", last, system=False)
        query_first = text.index(_QUERY) < text.index(_SYSTEM)
        first, middle, last = re.split(f"{_SYSTEM}|{_QUERY}", text)
        return Layout(first, middle, last, system=True, query_first=query_first)

    def _write(
        self,
        query: str,
        system: str | None,
        parts: tuple[bool, bool],
        *,
        reply: str | None = None,
        begin: bool = True,
    ) -> str:
        said = [("user", query, parts[1])]
        if system is not None and self.system_as == FIRST_USER:
            said = [("user", system + BLANK_LINE + query, parts[1])]
        elif system is not None:
            said = [("system", system, parts[0]), *said]
        if reply is not None:
            said.append(("assistant", reply, parts[1]))
        messages: list[Any] = [
            {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
            for role, text, as_parts in said
        ]
        options: dict[str, Any] = dict(self.kwargs)
        if "strftime_now" in self.jinja:
            options["chat_template"] = _clock(self.date or DATE) + self.jinja
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin, **options)
            )
        except Exception as error:  # a template can divide by zero as well as raise what jinja knows
            problem = "rejects a system message" if system is not None else "cannot render a user message"
            raise self._error(f"{problem} ({error})", of_system=system is not None) from error

    def _changed(self, query: str, system: str | None, name: str) -> ChatTemplateError:
        """What to say of a chat that is not its layout's: it is the query's fault, or else the prompt's."""
        try:
            alone = self.write(query, None if system is None else _SYSTEM)
            of_query = self.layout(with_system=system is not None).find(alone, _SYSTEM, query) is None
        except ChatTemplateError:
            of_query = True
        what = f"the query {query[:60]!r}" if of_query else f"the text of prompt {name!r}"
        problem = f"changes or repeats {what}, or what stands around it (a switch in it, such as /no_think?)"
        advice = f"leave it out, or {_OTHER}" if of_query else f"write it in other words, or {_OTHER}"
        return ChatTemplateError(f"The chat template of {self.owner!r} {problem}: {advice}")

    def _error(self, problem: str, *, of_system: bool) -> ChatTemplateError:
        offer = f"pass load_model(…, system_as={FIRST_USER!r}), which puts the system text before the first user's, or "
        advice = offer if of_system and self.system_as is None else ""
        return ChatTemplateError(f"The chat template of {self.owner!r} {problem}: {advice}{_OTHER}")

    # --- how the reply begins ------------------------------------------------------------------------------

    @cached_property
    def generation_prompt(self) -> str:
        """What makes the model begin its reply: the end of every chat, the same under every prompt; "" if nothing does.

        Found by rendering with it and without it; where the template writes it in any case, by rendering a reply.
        """
        tail, without = (_tail(self.write(_QUERY, None, begin=begin)) for begin in (True, False))
        if tail != without:
            return tail[_common(tail, without) :]
        try:
            answered = _tail(self.write(_QUERY, None, reply=_REPLY)).partition(_REPLY)[0]
        except ChatTemplateError:
            return ""
        return tail if answered.rstrip() == tail.rstrip() else ""

    @cached_property
    def thinking(self) -> Thinking:
        """What it does about thinking aloud: found by its marks, and by what its switches change."""
        base = _thought(self._tail_with({}))
        changes = list(self._switched())
        names = tuple(dict.fromkeys(name for name, _, _ in changes))
        off = next(({name: value} for name, value, tail in changes if not _thought(tail)[0] and _is_off(value)), None)
        on = next(({name: value} for name, value, tail in changes if _thought(tail)[0] or not _is_off(value)), None)
        opens, closed = base
        if opens:
            return Thinking("optional" if off else "always", "thought", opens=opens, off=off, names=names)
        if "<|channel|>" in self.jinja and not closed:
            return Thinking("always", _channel(self._tail_with({})), names=names)
        if closed:
            return Thinking("optional" if on else "none", "answer", closed=closed, on=on, names=names)
        if names:
            return Thinking("optional", "reply", off=off, on=on, names=names)
        if any(mark in self.jinja for mark in _MARKS.values()):
            return Thinking("by the model", "reply")
        return Thinking("none", "answer")

    def _tail_with(self, kwargs: Mapping[str, Any]) -> str:
        return _tail((self.told_more(**kwargs) if kwargs else self).write(_QUERY, None))

    def _switched(self) -> Iterator[tuple[str, Any, str]]:
        """Each switch and value that changes a chat, and what then stands behind the query."""
        whole = self.write(_QUERY, None)
        for name in sorted(name for name in self.reads if re.search("think|reason|thought", name)):
            for value in _SWITCHES:
                try:
                    text = self.told_more(**{name: value}).write(_QUERY, None)
                except ChatTemplateError:
                    continue
                if text != whole:
                    yield name, value, _tail(text)


_SWITCHES: tuple[Any, ...] = (False, True, "none", "low", "high", 0)
"""Values to try of what has to do with thinking."""


def _is_off(value: Any) -> bool:
    return value is False or value == 0 or value == "none"


def _tail(text: str) -> str:
    """What stands behind the query."""
    return text.partition(_QUERY)[2]


_PIECE = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|.", re.DOTALL)


def _common(one: str, other: str) -> int:
    """How many first characters they share; a mark is shared whole."""
    pairs = zip(_PIECE.findall(one), _PIECE.findall(other), strict=False)
    return sum(len(a) for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


_THOUGHT = re.compile("|".join(map(re.escape, [*_MARKS, *_MARKS.values()])))


def _thought(tail: str) -> tuple[str, str]:
    """The end of a chat from the mark of a thought that is open, and from an empty one that is closed."""
    marks = list(_THOUGHT.finditer(tail))
    if not marks:
        return "", ""
    last = marks[-1]
    if last[0] in _MARKS:
        return tail[last.start() :], ""
    begin = marks[-2] if len(marks) > 1 and marks[-2][0] in _MARKS else last
    return "", tail[begin.start() :]


def _channel(tail: str) -> str:
    name = re.search(r"<\|channel\|>(\w+)<\|message\|>\s*\Z", tail)
    return "channel" if name is None else "answer" if name[1] == "final" else "thought"


# --- the template's text -----------------------------------------------------------------------------------


def open_template(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    system_as: str | None = None,
    date: datetime.date | str | None = None,
) -> Template:
    """A tokenizer's template, checked as far as it can be before a chat is written. The tokenizer is not changed: with
    a `chat_template` the result has a copy.

    Raises:
        ChatTemplateError: no template, one with an error in its syntax, several without a default, an unknown format
            name, something that it never reads among `template_kwargs`, or a thinking switch that switches nothing.
    """
    own = tokenizer.chat_template
    chosen = _chosen(own, name, chat_template)
    if chosen is not None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = chosen
    if system_as not in (None, FIRST_USER):
        raise ChatTemplateError(f"A system text can be written as None or {FIRST_USER!r}, got {system_as!r}.")
    found = Template(tokenizer, name, dict(template_kwargs or {}), system_as, _date(date))
    _check_syntax(found)
    _check_kwargs(found)
    return found


def _chosen(own: Any, name: str, chat_template: str | None) -> str | None:
    """The text that takes the place of the tokenizer's own template; None if that stays."""
    several = own if isinstance(own, Mapping) else {}
    if chat_template is not None:
        return str(several[chat_template]) if chat_template in several else chat_format(chat_template)
    if not own:
        raise ChatTemplateError(
            f"The tokenizer of {name!r} has no chat template (a base model?): pass chat_template=…, "
            f"one of {', '.join(CHAT_FORMATS)}, or Jinja text."
        )
    if several and "default" not in several:
        raise ChatTemplateError(
            f"The tokenizer of {name!r} has several chat templates and none of them is the default: pass "
            f"chat_template=…, one of {', '.join(sorted(several))}."
        )
    return None


def chat_format(name_or_jinja: str) -> str:
    """The Jinja text of a known chat format; Jinja text is returned as it is.

    Raises:
        ChatTemplateError: neither a known name nor text with Jinja in it.
    """
    if name_or_jinja in CHAT_FORMATS:
        return (_FORMATS / f"{name_or_jinja}.jinja").read_text(encoding="utf-8")
    if "{{" not in name_or_jinja and "{%" not in name_or_jinja:
        raise ChatTemplateError(
            f"No chat format is called {name_or_jinja!r}, and it is no Jinja text: "
            f"pass one of {', '.join(CHAT_FORMATS)}, or a Jinja template."
        )
    return name_or_jinja


def _date(date: datetime.date | str | None) -> datetime.date | None:
    if date is None or isinstance(date, datetime.date):
        return date
    try:
        return datetime.date.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise ChatTemplateError(f"{date!r} is no date: write it as '2025-01-31'.") from error


class _Generation(Extension):
    """The tag of transformers around what the assistant said: here only so that templates with it can be read."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=False
)
_GLOBALS = {*_ENVIRONMENT.globals, "raise_exception"}


def _parsed(jinja: str) -> nodes.Template:
    return _ENVIRONMENT.parse(jinja)


def _check_syntax(template: Template) -> None:
    try:
        _parsed(template.jinja)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The chat template of {template.owner!r} cannot be read: {error.message} (line {error.lineno}). Correct "
            f"it, or pass load_model(…, chat_template=…), one of {', '.join(CHAT_FORMATS)}, or Jinja text."
        ) from error


def _check_kwargs(template: Template) -> None:
    own = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"tools", "documents"}
    for name in template.kwargs:
        if not isinstance(name, str) or name in own | _GIVEN or name not in template.reads:
            known = ", ".join(sorted(template.reads - own)) or "nothing"
            raise ChatTemplateError(
                f"The chat template of {template.owner!r} never reads {name!r}: among template_kwargs it reads {known}."
            )
    try:
        json.dumps(dict(template.kwargs))
    except (TypeError, ValueError) as error:
        raise ChatTemplateError(f"template_kwargs must be what JSON can hold ({error}).") from error
    if template.date is not None and "strftime_now" not in template.jinja:
        raise ChatTemplateError(
            f"The chat template of {template.owner!r} does not ask for today's date, so date= changes nothing: leave "
            f"it out. Among template_kwargs it reads {', '.join(sorted(template.reads)) or 'nothing'}."
        )


def _clock(today: datetime.date) -> str:
    """Jinja text that, before a template, tells it this date when it asks for today's.

    A macro of the name that transformers gives its function, because a function cannot be passed.
    """
    codes = [f"%{flag}{letter}" for letter in string.ascii_letters.replace("s", "") for flag in ("", "-")]
    said = {"%%": "\0", **{code: today.strftime(code) for code in codes}, "\0": "%"}
    replaced = "".join(f"|replace({code!r}, {text!r})" for code, text in said.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
