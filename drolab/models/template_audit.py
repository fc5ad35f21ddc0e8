"""What a chat template does with a chat, in words: what to know before prompts are compared."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from drolab.errors import ChatTemplateError
from drolab.models.chat import RenderedChat, encode, prompt_token_ids, render
from drolab.models.load import ChatModel
from drolab.models.markers import QUERY, REPLY
from drolab.models.places import unknown_thoughts
from drolab.models.reasoning import LIKE_THOUGHT
from drolab.models.templates import DATE, FIRST_USER, Template
from drolab.types import NO_PROMPT, SafetyPrompt

OK, NOTE, PROBLEM = "ok", "note", "problem"

_SYSTEM = "You answer questions about gardens. Keep it short."
_QUERY = "How to paint a wooden fence?"
_NONE = SafetyPrompt(name=NO_PROMPT, text="")
_CAUTION = re.compile(r"\b(safe|harm|ethic|unethic|legal|illegal|danger|refus|decline|offens|toxic|biased|hate)", re.I)
"""Words of a safety prompt."""
_TRICKY = {
    "blanks around it": " {} \n",
    "blanks in it": "{}\n\n\n\tYes,  that   one.",
    'signs such as < & " \\ {': "{} <b> & \"c\" 'd' \\ {{e}} [f] #g",
    "other scripts": "{} 篱笆 ограда ﬁ é",
    "twenty thousand letters": "{}" + " And then?" * 2000,
    "/no_think": "{} /no_think",
    "/think": "{} /think",
}
"""What a template may not leave as it is, in words → a text that has it."""
_BLANKS = "blanks around it"
_SWITCHED = ("/no_think", "/think")


class Row(NamedTuple):
    """One row of the table."""

    check: str
    status: str
    found: str
    means: str = ""
    do: str = ""


def audit_rows(model: ChatModel) -> list[Row]:
    """The rows of `chat.audit`, in order."""
    template, care = model.template, SafetyPrompt(name="audit", text=_SYSTEM)
    try:
        chat, without = render(model, _QUERY, _NONE), ""
    except ChatTemplateError as error:
        without = _problem(template, error)
        try:
            chat = render(model, _QUERY, care)
        except ChatTemplateError:
            raise error from None
    try:
        chat = render(model, _QUERY, care)
    except ChatTemplateError as error:
        system = _no_system(template, error)
    else:
        system = _no_none(without) if without else _system(template)
    rows: list[Row] = [
        system,
        _query(template, _SYSTEM if without else None),
        _own(template),
        _empty(template),
        _date(template),
        *_settings(template),
    ]
    rows += [_bos(model, chat), _generation(template), _thinking(template), _last_token(model, chat)]
    rows += [*_prompt_tokens(model, chat), _markers(model, chat), _prefix(model, chat)]
    return rows


# --- what is kept of the texts -----------------------------------------------------------------------------


def _problem(template: Template, error: ChatTemplateError) -> str:
    return re.split(": (?:pass|write|leave) ", str(error).partition(f"{template.owner!r} ")[2])[0]


def _no_none(problem: str) -> Row:
    found = f"without one it {problem}"
    return Row("system kept verbatim", PROBLEM, found, "there is no `none` to compare with", "compare with `empty`")


def _no_system(template: Template, error: ChatTemplateError) -> Row:
    offer = f"load it with system_as={FIRST_USER!r}, or with another chat_template"
    do = offer if template.system_as is None else "load it with another chat_template"
    return Row("system kept verbatim", PROBLEM, f"it {_problem(template, error)}", "no safety prompt can arrive", do)


def _system(template: Template) -> Row:
    row = _kept("system kept verbatim", lambda text: _arrived(template, _QUERY, text, 0), _SYSTEM, "prompt")
    layout = template.layout(with_system=True)
    if layout.query_first or layout.middle.strip():
        return row
    where = "in the user's turn, with nothing but blanks before the query"
    means = "the model may read it as the user's words" + (f"; {row.means}" if row.means else "")
    return row._replace(found=f"{where}; {row.found}", status=max(row.status, NOTE, key=_worse), means=means)


def _query(template: Template, system: str | None) -> Row:
    return _kept("query kept verbatim", lambda text: _arrived(template, text, system, 1), _QUERY, "query")


def _arrived(template: Template, query: str, system: str | None, which: int) -> str:
    text, *spans = template.chat(query, system, "audit")
    start, stop = spans[which] or (0, 0)
    return text[start:stop]


def _kept(check: str, arrives: Callable[[str], str], plain: str, what: str) -> Row:
    """Whether a text arrives as it is, also if there is something in it that a template may change."""
    trimmed, refused = False, []
    for name, tricky in _TRICKY.items():
        text = tricky.format(plain)
        try:
            trimmed |= arrives(text) != text
        except ChatTemplateError:
            refused.append(name)
    found = "kept as it is" + (", but blanks around it are trimmed" if trimmed and _BLANKS not in refused else "")
    if not refused:
        return Row(check, OK, found)
    found += f"; changed if there is in it: {', '.join(refused)}"
    means = f"drolab refuses such a {what}: its chat would be another than it seems"
    status = NOTE if set(refused) <= {*_SWITCHED} else PROBLEM
    do = "set thinking by template_kwargs, not by words" if set(refused) & {*_SWITCHED} else "use another chat_template"
    return Row(check, status, found, means, do)


def _worse(status: str) -> int:
    return (OK, NOTE, PROBLEM).index(status)


# --- what the template adds --------------------------------------------------------------------------------


def _own(template: Template) -> Row:
    check, own = "own system text", template.own
    asks = bool(_CAUTION.search(f"{own.replaced} {own.kept}"))
    beside = [f"in every chat: {_quoted(own.kept)}"] * bool(own.kept)
    beside += [f"with any prompt: {_quoted(own.added)}"] * bool(own.added)
    also = "prompts are compared beside the template's own words" if beside else ""
    if not own.replaced:
        if not beside:
            return Row(check, OK, "none: without a prompt there is no system text")
        return Row(check, PROBLEM if asks else NOTE, "; ".join(beside), also, "name it beside the results")
    found = "; ".join([f"without a prompt: {_quoted(own.replaced)}", *beside])
    means = f"`none` is this text{', which speaks of safety itself,' if asks else ''} and a prompt takes its place"
    do = "compare with `empty` as well; `own` is this text as a prompt"
    return Row(check, PROBLEM if asks else NOTE, found, f"{means}; {also}" if also else means, do)


def _empty(template: Template) -> Row:
    check = "empty system text"
    try:
        made = template.empty
    except ChatTemplateError:
        return Row(check, PROBLEM, "its own text cannot be left out", "there is no `empty` to compare with")
    if made == "absent":
        return Row(check, OK, "the same chat as without a prompt: there is no system message that could be empty")
    if made == "cut":
        return Row(check, OK, "the system text's place, left empty by drolab: the template would write its own")
    same = template.empty_chat(_QUERY, "empty")[0] == _safely(template.write, _QUERY, None)
    return Row(check, OK, "as the template writes it" + (": the same chat as without a prompt" if same else ""))


def _date(template: Template) -> Row:
    check, day = "date", template.date or DATE
    if not _asks_for_date(template):
        names = sorted(name for name in template.reads if re.search("date|today", name))
        return Row(check, OK, "no date of today" + (f" (template_kwargs may give {', '.join(names)})" if names else ""))
    found = f"it asks for today's, and is told {day:%d %B %Y} on every day"
    if template.date is not None:
        return Row(check, OK, found)
    return Row(check, NOTE, found, "all chats have the same date; it is not today's", "load_model(…, date=…) sets it")


def _asks_for_date(template: Template) -> bool:
    if "strftime_now" not in template.jinja:
        return False
    other = replace(template, date=datetime.date(2031, 11, 3))
    return _differ(template, other)


def _differ(one: Template, other: Template) -> bool:
    """Whether they write other chats, with a system message or without."""
    return any(_safely(one.write, _QUERY, text) != _safely(other.write, _QUERY, text) for text in (None, _SYSTEM))


def _safely(write: Callable[..., str], *texts: str | None) -> str:
    try:
        return write(*texts)
    except ChatTemplateError:
        return ""


def _settings(template: Template) -> Iterator[Row]:
    for name, value in template.kwargs.items():
        others = {key: kept for key, kept in template.kwargs.items() if key != name}
        changes = _differ(template, replace(template, kwargs=others))
        found = f"{name}={value!r}" + ("" if changes else " changes nothing: it is what the template does anyway")
        yield Row("template_kwargs", OK if changes else NOTE, found)


# --- the tokens --------------------------------------------------------------------------------------------


def _bos(model: ChatModel, chat: RenderedChat) -> Row:
    check, tokenizer = "BOS once", model.tokenizer
    bos, mark = tokenizer.bos_token_id, tokenizer.bos_token
    count = chat.input_ids.count(bos)
    adds = bos is not None and bos in tokenizer("a")["input_ids"]
    if not count and not adds:
        return Row(check, OK, "this tokenizer uses none")
    if not count:
        found = f"none: the tokenizer would add {mark} to a text, the template writes none"
        return Row(
            check, NOTE, found, "drolab follows the template, as transformers does", "compare with its makers' code"
        )
    twice = chat.input_ids[:2] == (bos, bos)
    if count == 1 and chat.input_ids[0] == bos:
        return Row(check, OK, f"once, {mark}")
    if not twice and chat.input_ids[0] == bos and _opens_turns(model.template, mark):
        return Row(check, OK, f"once in each turn: it is what a turn begins with, {mark}")
    found = f"{count} times" if count > 1 else "once, but not first"
    return Row(
        check, PROBLEM, found, "states may be other than the model was trained with", "use another chat_template"
    )


def _opens_turns(template: Template, mark: str) -> bool:
    answered = _safely(lambda: template.sample(reply="Yes.", begin=False))
    asked = _safely(lambda: template.sample(begin=False))
    return mark in template.generation_prompt or answered.count(mark) > asked.count(mark)


def _generation(template: Template) -> Row:
    check, begins = "generation prompt", template.generation_prompt
    end = template.tokenizer.eos_token
    do = "use another chat_template"
    text = template.sample()
    if end and text.rstrip().endswith(end):
        means = "the model is asked to go on behind its own end"
        return Row(check, PROBLEM, f"the chat ends with {end}", means, do)
    if not begins:
        means = "the last token is the user's turn's, and the model may go on with that"
        return Row(check, PROBLEM, "nothing begins the reply", means, do)
    if template.sample(begin=False) == text:
        return Row(check, OK, f"{_quoted(begins)}, which ends the user's turn (the template has no switch for it)")
    written = _safely(lambda: template.sample(reply=REPLY)).partition(REPLY)[0]
    ours, theirs = (LIKE_THOUGHT.split(each[each.find(QUERY) :])[0].rstrip() for each in (text, written))
    if written and not (theirs.startswith(ours) or ours.startswith(theirs)):  # but for thoughts, which chats leave out
        found = f"{_quoted(begins)}, but a reply is written behind {_quoted(theirs.removeprefix(QUERY))}"
        return Row(check, NOTE, found, "replies may begin otherwise than in training", "compare with its makers' code")
    return Row(check, OK, _quoted(begins))


_THINKS = {
    "none": (OK, "none: no sign of it", ""),
    "by the model": (
        NOTE,
        "the model may begin a thought itself; the template has no switch",
        "the state at the last token may be that of a model that is about to think",
    ),
    "always": (NOTE, "always", "what the model refuses may be decided in the thought"),
    "optional": (NOTE, "optional", "compare prompts with thinking on or off, not mixed"),
}


def _thinking(template: Template) -> Row:
    found = template.thinking
    status, words, means = _THINKS[found.kind]
    if found.opens:
        words += f"; the chat opens a thought: {_quoted(found.opens)}"
    if found.closed:
        words += f"; the chat has an empty thought: {_quoted(found.closed)}"
    switches = [
        f"{how} by template_kwargs={dict(kwargs)}" for how, kwargs in (("off", found.off), ("on", found.on)) if kwargs
    ]
    switches += [f"{name} changes it" for name in found.names if name not in {**(found.off or {}), **(found.on or {})}]
    switches += [f"words in the text switch it: {', '.join(found.words)}"] * bool(found.words)
    if why := unknown_thoughts(template):
        said = f"{why}: they are judged together with its answers"
        do = f"choose one at load: {'; '.join(switches)}" if switches else "use another chat_template"
        return Row("thinking", PROBLEM, "; ".join([words, *switches]), said, do)
    return Row("thinking", status, "; ".join([words, *switches]), means, "; ".join(switches) and "choose one at load")


_PLACES = {
    "answer": (OK, "the answer begins behind it", ""),
    "reply": (
        NOTE,
        "the reply begins behind it, perhaps with a thought",
        "the next word may be a thought's, not an answer's",
    ),
    "thought": (NOTE, "it is inside a thought", "the state is read where a thought begins, not an answer"),
    "channel": (
        NOTE,
        "the model names a channel next (analysis or final)",
        "the state is read before a thought or an answer is chosen",
    ),
}


def _last_token(model: ChatModel, chat: RenderedChat) -> Row:
    status, words, means = _PLACES[model.template.thinking.place]
    last = str(model.tokenizer.decode(list(chat.input_ids[-1:])))
    return Row("last token", status, f"{_quoted(last)}: {words}", means)


def _prompt_tokens(model: ChatModel, chat: RenderedChat) -> Iterator[Row]:
    if chat.prompt_span is None:
        return
    check, (start, stop) = "prompt tokens as on their own", chat.prompt_span
    own, here = prompt_token_ids(model, _SYSTEM), list(chat.input_ids[start:stop])
    if own == here:
        yield Row(check, OK, "the same as on their own")
        return
    found = f"{len(own)} alone, {len(here)} in the chat: some merge with their neighbours"
    yield Row(check, NOTE, found, "a trained prompt starts from slightly other tokens than the text has")


def _markers(model: ChatModel, chat: RenderedChat) -> Row:
    check = "special tokens"
    markers = {*re.findall(r"<\|[^|<>\s]+\|>", chat.text), *model.tokenizer.all_special_tokens}
    split = sorted(marker for marker in markers if len(prompt_token_ids(model, marker)) != 1)
    if not split:
        return Row(check, OK, f"one token each ({len(markers)})")
    found, means = f"split into several: {', '.join(split)}", "the tokenizer may not be this template's"
    return Row(check, PROBLEM, found, means, "load the tokenizer that the model was trained with")


def _prefix(model: ChatModel, chat: RenderedChat) -> Row:
    check, prompt = "prefix shared", SafetyPrompt(name="audit", text=_SYSTEM) if chat.prompt_span else _NONE
    shared = len(encode(model, [_QUERY, "What blooms in May?"], prompt).prefix)
    if chat.prompt_span is None or shared >= chat.prompt_span[1]:
        return Row(check, OK, f"all chats under a prompt share the {shared} tokens before the query")
    means = "the prompt is read after the query; nothing of it is shared, and no soft prompt can be trained"
    return Row(
        check,
        PROBLEM,
        f"the query comes before the prompt: {shared} tokens are shared",
        means,
        "use another chat_template",
    )


def _quoted(text: str) -> str:
    shown = text if len(text) <= 300 else f"{text[:150]} … {text[-140:]}"
    return '"' + shown.replace("\n", "↵") + '"'
