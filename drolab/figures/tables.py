"""Tables for people: headings in words, at most three digits, – for what is missing, an estimate beside its interval.

`number_text` is how drolab rounds wherever a person reads a number in a table or a sentence: panels, notebooks and the
report. `worded` is a table as texts, `table_html` one as HTML that runs nothing, `show_table` displays it in a
notebook.
"""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import pandas as pd

from drolab.figures.style import class_name, escape
from drolab.figures.terms import explained

MISSING = "–"
HEADINGS = {
    "a": "one",
    "any": "any sample",
    "auc": "AUC",
    "b": "the other",
    "baseline_value": "under the baseline",
    "beyond_control": "beyond the control",
    "beyond_null": "beyond directions without meaning?",
    "broken": "derived queries that break",
    "ceiling": "AUC of a perfect ranking",
    "control_high": "the control reaches",
    "common_part": "common part (1: all alike)",
    "fell": "share whose logit falls",
    "fell_dealt": "with other queries' parents",
    "group": "queries",
    "harmful": "class",
    "harmfulness_logit": "harm logit",
    "higher": "queries higher",
    "kappa": "Cohen's κ",
    "kl": "KL (nats)",
    "logit_shift": "shift of the refusal logit",
    "lower": "queries lower",
    "mean_norm": "mean length of the shifts",
    "moves_back": "moves back?",
    "n": "number",
    "n_broken": "broken",
    "n_derived": "derived queries",
    "n_missing": "missing",
    "n_models": "models",
    "n_queries": "number of queries",
    "norm": "length",
    "null": "range under the null",
    "null_quantile": "cosine without meaning",
    "ok": "holds",
    "other": "neither",
    "p_holm": "p (Holm)",
    "p_value": "p",
    "queries": "query set",
    "random_quantile": "cosine of random directions",
    "recovered": "share of the prompt's effect",
    "residual_drift": "residual drift (× anchor variance)",
    "safety_shift": "a safety shift?",
    "total": "effect of the prompt",
}
"""What a column is called where a person reads it, with its unit if it has one; others lose their underscores."""

_ESTIMATES = {"logit": "logit_shift", "beyond": "beyond_control"}
"""The columns whose ends do not have their name."""
_CHANGES = ("beyond_control", "change", "difference", "logit_shift", "measured_change", "predicted_change")
"""Columns whose numbers have a sign."""
_P_VALUES = ("p", "p_holm", "p_value")


def number_text(value: Any, *, sign: bool = False) -> str:
    """A value as a person reads it: three digits, at most three behind the point, – for what is missing.

    Args:
        sign: + before what is above zero, for changes.

    Examples:
        >>> from drolab import tables
        >>> [tables.number_text(value) for value in (0.8934, 3.1834, 1344, 0.00042, float("nan"), True, "none")]
        ['0.893', '3.18', '1,344', '0.0004', '–', 'yes', 'none']
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, int | float | np.integer | np.floating):
        return str(value) or MISSING
    number = float(value)
    if math.isnan(number):
        return MISSING
    size, mark = abs(number), "+" if sign and number > 0 else ""
    if isinstance(value, int | np.integer):
        return f"{mark}{value:,}"
    if size < 1e-12:  # what rounding leaves of a difference of equal numbers
        return "0.00"
    if math.isinf(number) or size < 0.00095:
        return f"{mark}{number:.1g}".replace("inf", "∞")
    digits = 2 - math.floor(math.log10(float(f"{size:.3g}")))  # of the rounded one: 9.996 is 10.0
    return f"{mark}{number:,.{min(3, max(0, digits))}f}"


def interval_words(value: object, low: object, high: object, *, sign: bool = False) -> str:
    """An estimate with its interval: `0.893 [0.850, 0.920]`; what is not known is left out.

    Examples:
        >>> from drolab import tables
        >>> tables.interval_words(0.0594, 0.0381, 0.0812, sign=True)
        '+0.059 [+0.038, +0.081]'
    """
    words, *ends = (number_text(each, sign=sign) for each in (value, low, high))
    return words if MISSING in (words, *ends) else f"{words} [{', '.join(ends)}]"


def worded(table: pd.DataFrame, **headings: str) -> pd.DataFrame:
    """A table as a person reads it: all texts, headings from `HEADINGS`, a named index as columns.

    `low` and `high` join the column before them (`0.893 [0.850, 0.920]`); `x_low` and `x_high` join the column x, or
    become a range (`0.480 to 0.520`) if there is none.

    Args:
        headings: of this table's columns, where `HEADINGS` cannot know: `value="refusal rate"`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import tables
        >>> rates = pd.DataFrame({"prompt": ["none", "default"], "harmful": True, "value": [0.61, float("nan")],
        ...                       "low": [0.52, float("nan")], "high": [0.69, float("nan")]})
        >>> print(tables.worded(rates, value="refusal rate").to_string(index=False))
         prompt   class  refusal rate [95 %]
           none harmful 0.610 [0.520, 0.690]
        default harmful                    –
    """
    flat = table.reset_index() if any(table.index.names) else table.reset_index(drop=True)
    flat.columns = flat.columns.map(str)
    ends = _intervals(list(flat.columns))
    inner = {end for pair in ends.values() for end in pair} - set(ends)
    shown = [name for name in flat.columns if name not in inner]
    texts = {place: _texts(flat, name, ends.get(name)) for place, name in enumerate(shown)}
    heads = [_heading(name, ends.get(name), HEADINGS | headings) for name in shown]
    return pd.DataFrame(texts, dtype=object).set_axis(heads, axis=1)


def _intervals(names: list[str]) -> dict[str, tuple[str, str]]:
    """Column → the columns of its interval's ends; without an estimate the lower end stands for both."""
    found = {}
    for before, low in zip(["", *names], names, strict=False):
        stem, high = low.removesuffix("low").removesuffix("_"), f"{low.removesuffix('low')}high"
        if low.split("_")[-1] == "low" and high in names:
            estimate = _ESTIMATES.get(stem, stem) if stem else before
            found[estimate if estimate in names else low] = (low, high)
    return found


def _heading(name: str, ends: tuple[str, str] | None, known: dict[str, str]) -> str:
    if ends is not None and name == ends[0]:
        name = name.removesuffix("_low")
        return known.get(name, f"{name.replace('_', ' ')} (range)")
    return known.get(name, name.replace("_", " ")) + (" [95 %]" if ends else "")


def _texts(table: pd.DataFrame, name: str, ends: tuple[str, str] | None) -> list[str]:
    if ends is None:
        return [_cell_text(name, value) for value in table[name]]
    low, high = (table[end] for end in ends)
    if name == ends[0]:
        return [" to ".join(map(number_text, pair)) for pair in zip(low, high, strict=True)]
    sign = name in _CHANGES
    return [interval_words(*row, sign=sign) for row in zip(table[name], low, high, strict=True)]


def _cell_text(name: str, value: object) -> str:
    if name == "harmful" and isinstance(value, bool | np.bool_):
        return class_name(bool(value))
    if name in _P_VALUES and isinstance(value, float) and value < 0.001:
        return "< 0.001"
    return number_text(value, sign=name in _CHANGES)


_CELL = "border:1px solid var(--jp-border-color2, #BDBDBD);padding:4px 6px;vertical-align:top;text-align:left;"
_CELL += "overflow-wrap:break-word;max-width:26em"  # no word is cut in the middle
_SHORT = len("+0.123 [+0.123, +0.123]")
_LONG = 80


def table_html(table: pd.DataFrame) -> str:
    """A table as HTML, its numbers by `number_text`, without its index: texts from data are shown and run nothing, and
    each is cut to 400 characters. For headings in words give it what `worded` returns."""
    head = "".join(map(_head, map(str, table.columns)))
    lines = "".join(
        "<tr>" + "".join(_cell(number_text(value)) for value in row) + "</tr>"
        for row in table.itertuples(index=False, name=None)
    )
    rows = f'<table style="border-collapse:collapse;line-height:1.4"><tr>{head}</tr>{lines}</table>'
    return f'<div style="overflow-x:auto">{rows}</div>'


def _cell(text: str) -> str:
    look = _CELL
    if len(text) <= _SHORT:
        look += ";white-space:nowrap"  # an estimate and its interval on one line
    elif len(text) > _LONG:
        look += ";min-width:22em"  # a sentence is no tower of words: the table scrolls instead
    return f'<td style="{look}">{escape(text, limit=400)}</td>'


def _head(name: str) -> str:
    meaning = html.escape(explained(name))
    return f'<th scope="col" title="{meaning}" style="{_CELL}">{escape(name, limit=400)}</th>'


def show_table(table: pd.DataFrame, *, note: str = "", **headings: str) -> None:
    """Display a table in a notebook, see `worded`. The table itself keeps its numbers and names.

    Args:
        note: a sentence to stand below it, such as what `none` is for this model (`chat.about_none`).
    """
    from IPython.display import display

    words = worded(table, **headings)
    below = f'<p style="line-height:1.4">{escape(note, limit=2000)}</p>' if note else ""
    plain = words.to_string(index=False) + (f"\n{note}" if note else "")
    display({"text/html": table_html(words) + below, "text/plain": plain}, raw=True)
