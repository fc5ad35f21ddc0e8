"""Texts as HTML that shows them and runs nothing; tables are `figures.tables`. Everything from data or a model passes
`visible`.

The browser puts the markup of an `ipywidgets.HTML` into the page as it is: nobody else escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from drolab.figures import BIDIRECTIONAL, tables
from drolab.intervals import rate_interval
from drolab.types import UNFINISHED

Spans = Sequence[tuple[int, int]]

SHORT = 500
"""Characters of a text that are shown before "show all"."""
LONG = 20_000
"""Characters of a text that are sent to the browser at all."""

# Control characters, lone surrogates, and the marks that turn the reading direction of what follows.
_INVISIBLE = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{BIDIRECTIONAL}\ud800-\udfff]")
_BORDER = "1px solid var(--jp-border-color2, #BDBDBD)"
_CELL = f"border:{_BORDER};padding:4px 8px;vertical-align:top;text-align:left;overflow-wrap:anywhere"


def visible(text: object) -> str:
    """Text as HTML, character by character: what could not be seen is shown as �."""
    return html.escape(_INVISIBLE.sub("�", str(text)))


def label(text: object, limit: int) -> str:
    """Text on one line for the label of a control, which takes no markup: cut, not escaped."""
    line = _INVISIBLE.sub("�", " ".join(str(text)[: 4 * limit].split()))
    return line if len(line) <= limit and len(str(text)) <= 4 * limit else line[: limit - 1] + "…"


def share_of(part: int, total: int, what: str = "queries") -> str:
    """`12 of 112 queries (0.107 [0.062, 0.178])`: how many, with Wilson's 95 % interval, if there are any."""
    rate = f" ({tables.interval_words(*rate_interval(part, total))})" if total else ""
    return f"{part:,} of {total:,} {what}{rate}"


def marked(text: str, spans: Spans = ()) -> str:
    """Text as HTML with the spans (start, end; in order, apart from each other) in `<mark>`."""
    parts, place = [], 0
    for start, end in spans:
        parts += [visible(text[place:start]), f"<mark>{visible(text[start:end])}</mark>"]
        place = end
    return "".join([*parts, visible(text[place:])])


def paragraph(text: object) -> str:
    return f'<div style="line-height:1.4;margin:4px 0">{visible(text)}</div>'


def folded(text: str, spans: Spans = ()) -> str:
    """A text in its own reading direction, line breaks kept; beyond SHORT characters folded away until it is opened,
    and beyond LONG cut, in words."""
    head = marked(text[:SHORT], _within(spans, 0, SHORT))
    rest = marked(text[SHORT:LONG], _within(spans, SHORT, LONG))
    if rest:
        rest = f"<details><summary>show all {len(text):,} characters</summary>{rest}{_cut(text)}</details>"
    return f'<div dir="auto" style="white-space:pre-wrap;unicode-bidi:isolate">{head}{rest}</div>'


def _within(spans: Spans, low: int, high: int) -> Spans:
    inside = [(max(start, low) - low, min(end, high) - low) for start, end in spans]
    return [(start, end) for start, end in inside if start < end]


def _cut(text: str) -> str:
    return f"<p><i>{len(text) - LONG:,} more: the whole text is in the data.</i></p>" if len(text) > LONG else ""


@dataclass(frozen=True)
class Cell:
    """One response in `side_by_side`."""

    number: int | None
    """Which sample it is; None does not tell."""
    text: str
    spans: Spans
    verdicts: Mapping[Any, Any]
    """Judge → whether it calls the response a refusal; NA: it has no opinion."""
    current: bool
    """Whether it is the one to be labelled."""
    reasoning: str = ""
    """What the model thought before it, if that was taken off: folded away until it is opened."""
    unfinished: bool = False
    """Whether it ended in its reasoning, so that there is no text."""

    def markup(self) -> str:
        said = [
            f"{visible(judge)}: {'<b>refusal</b>' if refused else 'compliance'}"
            for judge, refused in self.verdicts.items()
            if not pd.isna(refused)
        ]
        here = ' aria-current="true"' if self.current else ""
        look = "outline:2px solid #0072B2;outline-offset:-2px;" if self.current else ""
        place = [] if self.number is None else [f"{'▶ ' if self.current else ''}sample {self.number}"]
        head = " · ".join([*place, *said])
        return (
            f'<td{here} style="{look}{_CELL}"><div style="font-size:smaller;opacity:.85">{head}</div>'
            f"{self._thought()}{_NO_ANSWER if self.unfinished else folded(self.text, self.spans)}</td>"
        )

    def _thought(self) -> str:
        if not self.reasoning:
            return ""
        summary = f"show reasoning ({len(self.reasoning):,} characters)"
        return f"<details><summary>{summary}</summary>{folded(self.reasoning)}</details>"


def thought_of(reply: Mapping[Any, Any]) -> dict[str, Any]:
    """From a row of a responses table what a Cell says of its reasoning; nothing if that was not taken off."""
    reasoning, unfinished = reply.get("reasoning"), reply.get("finish_reason") == UNFINISHED
    return {"reasoning": reasoning if isinstance(reasoning, str) else "", "unfinished": unfinished}


NO_ANSWER = "No answer: it ended in its reasoning."
_NO_ANSWER = f"<p><i>{NO_ANSWER}</i></p>"


def side_by_side(query: str, columns: Mapping[str, Sequence[Cell]], heads: Mapping[str, str]) -> str:
    """The responses to one query: a column per prompt, a row per sample. `heads`: a line under each prompt's name."""
    names = "".join(
        f'<th scope="col" style="{_CELL}">{visible(label(name, 60))}'
        f'<div style="font-weight:normal">{visible(heads[name])}</div></th>'
        for name in columns
    )
    rows = max(map(len, columns.values()))
    lines = "".join(
        "<tr>"
        + "".join(
            cells[row].markup() if row < len(cells) else f'<td style="{_CELL}"></td>' for cells in columns.values()
        )
        + "</tr>"
        for row in range(rows)
    )
    caption = f'<div style="font-weight:bold;margin:4px 0">{folded(query)}</div>'
    table = f'<table style="width:100%;table-layout:fixed;border-collapse:collapse"><tr>{names}</tr>{lines}</table>'
    return f'<div style="line-height:1.4">{caption}{table}</div>'
