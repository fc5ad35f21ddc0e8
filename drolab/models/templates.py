"""What writes the chats: a tokenizer's template, what it is told beside the messages, and what it makes of them.

Every chat is written by the tokenizer's own `apply_chat_template`; nothing is put together here (but for `empty`, where
a template would write its own text). Two markers, one in the system text's place and one in the query's, say once what
a template writes around them. A chat counts only if it is exactly that, with the prompt and the query in the markers'
places (blanks at their ends may be trimmed). So a text that a template cuts, repeats, rewrites, or takes a switch from,
is an error, whatever the text is, also if it has the template's own marks in it; and where a text stands is known, not
searched for.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from drolab.errors import ChatTemplateError
from drolab.models.markers import QUERY, REPLY, SYSTEM, VALUE, behind_query
from drolab.models.reasoning import LIKE_THOUGHT
from drolab.models.template_thinking import Thinking, is_off, is_switch, thinking_of, thought_in

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

_PLAIN_QUERY, _PLAIN_TEXT = "How do I mend a fence?", "You answer questions about gardens."
"""Neither has anything in it that a template could have a reason to change."""
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
class OwnText:
    """The words that a template writes of its own, without its marks and the names of its roles."""

    replaced: str
    """What stands in a system text's place where none is given; a prompt takes its place."""
    place: Span
    """Where that is, in what stands before the query (behind it, where the system text does)."""
    kept: str
    """What stands in every chat, also beside a prompt."""
    added: str
    """What comes with a prompt only, whatever the prompt says."""


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

    @property
    def source(self) -> str:
        """The text that chats are written with: the template, with a clock of its own if it asks for a date."""
        return self._dated or self.jinja

    @property
    def in_parts(self) -> tuple[bool, bool]:
        """Which of system text and query it wants as a list of parts, as for models that see images.

        Raises:
            ChatTemplateError: it writes no chat with a system text.
        """
        return self._trial(True)[1]

    @property
    def tree(self) -> nodes.Template:
        """The template as Jinja parses it: anew each time, because who looks at it may fold its constants."""
        return _ENVIRONMENT.parse(self.jinja)

    @cached_property
    def _dated(self) -> str:
        """The template with a clock of its own; "" if it asks for no date."""
        return _clock(self.date or DATE, self.jinja) + self.jinja if "strftime_now" in self.jinja else ""

    @cached_property
    def reads(self) -> set[str]:
        """The names of what it reads beside the messages and the tokenizer's special tokens: what can be passed."""
        found = meta.find_undeclared_variables(self.tree) - _GIVEN - set(self.tokenizer.special_tokens_map) - _GLOBALS
        sets = {name.name for name in self.tree.find_all(nodes.Name) if name.ctx == "store"}
        return {name for name in found if name not in sets or self._is_read(name)}

    def _is_read(self, name: str) -> bool:
        """Whether a value under a name that the template sets as well arrives, and is not set anew in any case."""
        try:
            plain = self._write(QUERY, None, (False, False))
            return any(
                self.told_more(**{name: value})._write(QUERY, None, (False, False)) != plain for value in _VALUES
            )
        except ChatTemplateError:
            return True

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

    def sample(self, *, reply: str | None = None, begin: bool = True) -> str:
        """A chat with a marker for its query, without a system message if there can be one."""
        return self.write(QUERY, self._usual, reply=reply, begin=begin)

    @cached_property
    def _usual(self) -> str | None:
        try:
            self.layout(with_system=False)
        except ChatTemplateError:
            try:
                self.layout(with_system=True)
            except ChatTemplateError:
                return None
            return SYSTEM  # a kind that must have one
        return None

    def check_chats(self) -> None:
        """Try whether there is any chat: an ordinary question's, without a system message or with one.

        Raises:
            ChatTemplateError: there is none.
        """
        self.sample()
        for system in (None, _PLAIN_TEXT):
            with suppress(ChatTemplateError):
                self.chat(_PLAIN_QUERY, system, "check")
                return
        raise self._error(
            f"changes {_PLAIN_QUERY!r}, or writes other words around it than around other queries", of_system=False
        )

    def reacts_to(self, word: str) -> bool:
        """Whether the chat around a query is another if this word is in it."""
        query = f"{QUERY} {word}"
        layout = self.layout(with_system=self._usual is not None)
        return layout.find(self.write(query, self._usual), self._usual or "", query) is None

    def told_more(self, **kwargs: Any) -> Template:
        """The same template, told something else."""
        return replace(self, kwargs={**self.kwargs, **kwargs})

    @cached_property
    def own(self) -> OwnText:
        """The words that it writes of its own."""
        if self._usual is not None:
            asked = self.layout(with_system=True)
            return OwnText("", (0, 0), "\n".join(_prose(asked.first) + _prose(asked.middle) + _prose(asked.last)), "")
        plain = self.layout(with_system=False)
        try:
            asked = self.layout(with_system=True)
        except ChatTemplateError:
            return OwnText("", (0, 0), "\n".join(_prose(plain.first) + _prose(plain.last)), "")
        written = plain.last if asked.query_first else plain.first
        before, behind = (asked.middle, asked.last) if asked.query_first else (asked.first, asked.middle)
        start = _alike(written, before)
        rest = written[start:]
        end = _alike(rest[::-1], behind[::-1])
        place = start, len(written) - end
        replaced = written[slice(*place)]
        if (start, end) != (len(before), len(behind)):  # not just the text: some marks, too
            replaced = "\n".join(_prose(replaced))
        always = _prose(plain.first) + _prose(plain.last)
        beside = _prose(asked.first) + _prose(asked.middle) + _prose(asked.last)
        kept = [line for line in beside if line in always and line not in _prose(replaced)]
        added = [line for line in beside if line not in always]
        text = replaced.strip()
        if (found := written.find(text, start)) >= 0:
            place = found, found + len(text)
        return OwnText(text, place, "\n".join(kept), "\n".join(added))

    def own_chat(self, query: str, name: str) -> tuple[str, Span, Span]:
        """The chat without a system message, and where in it the template's own text and the query are."""
        text, _, span = self.chat(query, None, name)
        shift = span[1] if self.layout(with_system=True).query_first else 0
        return text, (shift + self.own.place[0], shift + self.own.place[1]), span

    @cached_property
    def empty(self) -> str:
        """How a chat with an empty system text is made: `written` by the template; `cut`, by leaving the system text's
        place of its chats empty, because it writes its own text there otherwise; or `absent`, as without a prompt,
        because there is no system message that could be empty.

        Raises:
            ChatTemplateError: its own text stands where no system message is, and nothing can take its place.
        """
        own = self.own
        if self.system_as is not None:
            return "absent"
        try:
            self.layout(with_system=True)
        except ChatTemplateError:
            if not own.kept:
                return "absent"
            raise
        try:
            text = self.write(QUERY, "")
        except ChatTemplateError:
            return "cut"
        news = set(_prose(text.replace(QUERY, ""))) - set(f"{own.kept}\n{own.added}".split("\n"))
        return "cut" if text.count(QUERY) != 1 or news or (own.replaced and own.replaced in text) else "written"

    def empty_chat(self, query: str, name: str) -> tuple[str, None, Span]:
        """The chat with an empty system text (see `empty`), and where in it the query is."""
        if self.empty == "absent":
            text, _, span = self.chat(query, None, name)
        elif self.empty == "cut":
            whole, slot, span = self.chat(query, SYSTEM, name)
            start, stop = slot or (0, 0)
            text = whole[:start] + whole[stop:]
            span = span if span[0] < start else (span[0] - (stop - start), span[1] - (stop - start))
        else:
            text = self.write(query, "")
            first, _, last = self.write(QUERY, "").partition(QUERY)
            found = Layout(first, "", last, system=False).find(text, "", query)
            if found is None:
                raise self._changed(query, None, name)
            span = found[1]
        return text, None, span

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
                text = self._write(QUERY, SYSTEM if with_system else None, parts)
                return self._laid_out(text, with_system), parts
            except ChatTemplateError as error:
                problems.append(error)
        if with_system:
            self._trial(False)  # if there is no chat at all, that is what to say
        raise next((error for error in problems if "repeats" in str(error)), problems[0])

    def _laid_out(self, text: str, with_system: bool) -> Layout:
        if _PARTS.search(text):
            raise self._error("drops the query", of_system=False)
        for marker, what in ((QUERY, "the query"), (SYSTEM, "the system message"))[: 1 + with_system]:
            count = text.count(marker)
            if not count:
                changes = marker.casefold() in text.casefold()
                lost = "" if changes or marker == QUERY else ", so no safety prompt can arrive"
                problem = ("changes " if changes else "drops ") + what + lost
                raise self._error(problem, of_system=marker == SYSTEM)
            if count > 1:
                raise self._error(f"repeats {what}", of_system=marker == SYSTEM)
        if not with_system:
            first, last = text.split(QUERY)
            return Layout(first, "", last, system=False)
        query_first = text.index(QUERY) < text.index(SYSTEM)
        first, middle, last = re.split(f"{SYSTEM}|{QUERY}", text)
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
        if self._dated:
            options["chat_template"] = self._dated
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin, **options)
            )
        except Exception as error:  # a template can divide by zero as well as raise what jinja knows
            problem = "rejects a system message" if system is not None else "cannot render a user message"
            lacks = re.findall(r"'(\w+)' is undefined", str(error)) + ["tools"] * ("NoneType" in str(error))
            named = [name for name in lacks if re.search(rf"\b{name}\b", self.jinja) and name not in self.kwargs]
            wants = ", ".join(f"{name!r}: {'[]' if name == 'tools' else '…'}" for name in named)
            needs = f"; it wants template_kwargs={{{wants}}}" if named else ""
            needs = needs or (f"; template_kwargs={dict(self.kwargs)}" if self.kwargs else "")
            raise self._error(f"{problem} ({error}{needs})", of_system=system is not None) from error

    def _changed(self, query: str, system: str | None, name: str) -> ChatTemplateError:
        """What to say of a chat that is not its layout's: it is the query's fault, or else the prompt's."""
        try:
            alone = self.write(query, None if system is None else SYSTEM)
            of_query = self.layout(with_system=system is not None).find(alone, SYSTEM, query) is None
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
        end, without = (behind_query(self.sample(begin=begin)) for begin in (True, False))
        if end != without:
            return end[_common(end, without) :]
        if LIKE_THOUGHT.search(end):
            return end
        try:
            answered = behind_query(self.sample(reply=REPLY)).partition(REPLY)[0]
        except ChatTemplateError:
            return ""
        return end if answered.rstrip() == end.rstrip() else ""

    @cached_property
    def thinking(self) -> Thinking:
        """What it does about thinking aloud."""
        return thinking_of(self)


_PARTS = re.compile(
    rf"type\W{{1,8}}text\W{{1,8}}text\W{{1,8}}(?:{QUERY}|{SYSTEM})|text\W{{1,8}}(?:{QUERY}|{SYSTEM})\W{{1,8}}type\W{{1,8}}text"
)
"""A list of parts as Python or JSON writes it."""
_BETWEEN = re.compile(r"<[^<>\n]{1,60}>|\[/?[A-Z_]{2,}\]|\n")
"""What stands between a template's words: its marks, and line breaks."""


def _prose(text: str) -> list[str]:
    """The lines of a template's text that say something: three words at least (or six letters of a script without
    spaces), and no heading such as "USER:"."""
    lines = [line.strip() for line in _BETWEEN.split(text)]
    return [line for line in lines if _says_something(line) and not line.endswith(":")]


def _says_something(line: str) -> bool:
    words = [word for word in line.split() if re.search(r"[^\W_]", word) and "=" not in word]
    return len(words) > 2 or len(re.findall(r"[^\W\d_\x00-\u02ff]", line)) > 5


_VALUES: tuple[Any, ...] = (VALUE, False, True, 0)


def _alike(one: str, other: str) -> int:
    """How many first characters they share."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


_PIECE = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|.", re.DOTALL)


def _common(one: str, other: str) -> int:
    """How many first characters they share; a mark is shared whole."""
    pairs = zip(_PIECE.findall(one), _PIECE.findall(other), strict=False)
    return sum(len(a) for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


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


def _check_syntax(template: Template) -> None:
    try:
        _ENVIRONMENT.compile(template.jinja)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The chat template of {template.owner!r} cannot be read: {error.message} (line {error.lineno}). Correct "
            f"it, or pass load_model(…, chat_template=…), one of {', '.join(CHAT_FORMATS)}, or Jinja text."
        ) from error


def _check_kwargs(template: Template) -> None:
    own = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"tools", "documents"}
    for name in template.kwargs:
        if not isinstance(name, str) or name in own | _GIVEN or name not in template.reads:
            raise ChatTemplateError(
                f"The chat template of {template.owner!r} never reads {name!r}: {_readable(template)}"
                + (_no_switch(template) if is_switch(str(name)) else "")
            )
    try:
        json.dumps(dict(template.kwargs))
    except (TypeError, ValueError) as error:
        raise ChatTemplateError(f"template_kwargs must be what JSON can hold ({error}).") from error
    if template.date is not None and "strftime_now" not in template.jinja:
        raise ChatTemplateError(
            f"The chat template of {template.owner!r} does not ask for today's date, so date= changes nothing: leave "
            f"it out; {_readable(template)}"
        )
    if template.kwargs:
        _check_effects(template)


def _no_switch(template: Template) -> str:
    """What to say to somebody who asked for a switch of thinking that is not there."""
    try:
        found = replace(template, kwargs={}).thinking
    except ChatTemplateError:
        return ""
    known = {"always": " It has thinking always on, without a switch.", "none": " It knows nothing of thinking."}
    return known.get(found.kind, "")


def _safely(template: Template) -> str:
    try:
        return template.sample()
    except ChatTemplateError:
        return ""


def _readable(template: Template) -> str:
    return f"among template_kwargs it reads {', '.join(sorted(template.reads)) or 'nothing'}."


def _check_effects(template: Template) -> None:
    """Whether chats can be written with what a template is told, and whether thinking is off where it was put off."""
    text, untold = template.sample(), replace(template, kwargs={})
    for name, value in template.kwargs.items():
        if not is_switch(name) or not is_off(value):
            continue
        problem = ""
        if thought_in(behind_query(text), template.generation_prompt)[0]:
            problem = "opens a thought all the same"
        elif text == _safely(untold) == _safely(template.told_more(**{name: True})):
            problem = "writes the same chat whatever it is"
        if problem:
            raise ChatTemplateError(
                f"Thinking cannot be switched off so: the chat template of {template.owner!r} reads {name!r}, but "
                f"{problem}. Leave it out; chat.audit(model) says what the template does."
            )


def _clock(today: datetime.date, jinja: str) -> str:
    """Jinja text that, before a template, tells it this date when it asks for today's.

    A macro of the name that transformers gives its function, because a function cannot be passed.
    """
    codes = sorted(set(re.findall("%-?[A-Za-z]", jinja)), key=len, reverse=True)
    said = [("%%", "\0"), *((code, today.strftime(code)) for code in codes), ("\0", "%")]
    replaced = "".join(f"|replace({code!r}, {text!r})" for code, text in said)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
