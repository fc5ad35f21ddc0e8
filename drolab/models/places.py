"""Where a chat ends and its last token is read: where the reply begins, or where the answer does.

For a model that thinks before it answers these are different places. What its template does about thinking is known to
`templates`; here a chat is taken on to where its answer begins, with a thought that is closed and empty.
"""

from __future__ import annotations

from typing import Any, get_args
from weakref import WeakKeyDictionary

from drolab.errors import ChatTemplateError, StatesError
from drolab.models.reasoning import at_answer, marks_in, to_answer
from drolab.models.template_thinking import is_off, switch_values
from drolab.models.templates import Template
from drolab.types import ReadAt


def check_read_at(read_at: str, *, known: bool = False) -> None:
    """Raise StatesError if there is no such place; or, `known`, if it depends on a thought."""
    if read_at not in get_args(ReadAt):
        raise StatesError(f"read_at must be one of {', '.join(get_args(ReadAt))}, not {read_at!r}.")
    if known and read_at == "after_thinking":
        raise StatesError(
            "Where a thought ends is not known before it was thought: hidden_states and first_token_probabilities take "
            "read_at='after_thinking', and here it is 'reply' or 'answer'."
        )


def thought_mark(template: Template) -> str | None:
    """How the thoughts of a model begin, as `marks_in` gives it; None if its chats leave no room for any, because
    their template knows none, has them switched off, or has closed an empty one.

    Examples:
        >>> import drolab
        >>> from drolab.models import thought_mark
        >>> thought_mark(drolab.load_model("demo").template) is None
        True
    """
    if template not in _FOUND:
        _FOUND[template] = _mark(template)
    return _FOUND[template]


_FOUND: WeakKeyDictionary[Template, str | None] = WeakKeyDictionary()


def _mark(template: Template) -> str | None:
    found = template.thinking
    if found.kind == "none" or found.place == "answer" or (found.place == "reply" and _switched_off(template)):
        return None
    return marks_in(found.opens) or marks_in(template.jinja)


def unknown_thoughts(template: Template) -> str:
    """Why nobody can say where the answers of a model begin, in words that follow its name: its chats leave room for
    thoughts whose marks are not known. "" if they are, or it does not think.

    Examples:
        >>> import drolab
        >>> from drolab.models import unknown_thoughts
        >>> unknown_thoughts(drolab.load_model("demo").template)
        ''
    """
    found = template.thinking
    if found.kind == "none" or found.place == "answer" or thought_mark(template) is not None:
        return ""
    if found.place == "reply" and _switched_off(template):
        return ""
    how = f"begin with {found.opens.strip()!r}, and how they end is not known" if found.opens else "have no known marks"
    return f"may think before it answers, and its thoughts {how}"


def check_answers_known(template: Template) -> None:
    """Raise StatesError if nobody can say where the model's answers begin."""
    if why := unknown_thoughts(template):
        raise StatesError(
            f"{template.owner!r} {why}: read at 'reply', or switch thinking off at load, if chat.audit(model) says how."
        )


def _switched_off(template: Template) -> bool:
    """Whether a switch is off, in a chat whose end does not show it: off changes nothing, and on does."""

    def changed(name: str, value: Any) -> bool:
        try:
            return template.told_more(**{name: value}).write("?", None) != now
        except ChatTemplateError:
            return False

    now = template.write("?", None)
    on = [name for name in template.thinking.names if any(changed(name, value) for value in (True, "high"))]
    # Words count as on where a template asks for no word, so that only what a switch is compared with says off.
    return any(not any(changed(name, value) for value in _off_values(template, name)) for name in on)


def _off_values(template: Template, name: str) -> list[Any]:
    found = [value for value in switch_values(template, name) if is_off(value)]
    return [False] if False in found else found


def answering(template: Template) -> Template:
    """The template that writes chats up to their answers, or as far as one can.

    Raises:
        StatesError: nobody can say where its answers begin.
    """
    check_answers_known(template)
    off = template.thinking.off
    if off is None or thought_mark(template) is None:
        return template
    told = template.told_more(**off)
    try:
        return told if told.thinking.place == "answer" and told.thinking.closed else template
    except ChatTemplateError:
        return template


def ending_of(template: Template, ending: str) -> str:
    """What to write after a chat of `answering(template)` so that its answer comes next.

    Args:
        ending: the chat from the end of the query on.
    """
    return "" if at_answer(ending) else to_answer(ending, thought_mark(template))
