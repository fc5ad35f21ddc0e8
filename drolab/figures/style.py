"""How drolab's figures look: palette, symbols, template, plotly settings, and text made safe for plotly.

The template is applied figure by figure: importing this changes nothing in plotly. Every text that comes from
data goes through `escape` or `wrapped`, because plotly reads its labels as a small HTML.

In order: constants, text, colours and template, what a table must have, the parts that figures share, `show`.
"""

from __future__ import annotations

import html
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.errors import DrolabError
from drolab.types import NO_PROMPT

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito without yellow: told apart with every common kind of colour blindness."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
CLASS_SYMBOLS = {"harmful": "x", "harmless": "circle", "borderline": "diamond"}
CLASS_COLORS = {"harmful": "#D55E00", "harmless": "#0072B2", "borderline": "#009E73"}
CLASS_PATTERNS = {"harmful": "", "harmless": "/", "borderline": "."}

THEMES = {
    "light": {
        "ink": "#1F1F1F", "paper": "#FFFFFF", "grid": "#E4E4E4", "grey": "#595959", "zero": "#FFFFFF",
        "band": "#E4E4E4",
    },
    "dark": {
        "ink": "#E6E6E6", "paper": "#161616", "grid": "#3A3A3A", "grey": "#BDBDBD", "zero": "#2A2A2A",
        "band": "#4A4A4A",
    },
}  # fmt: skip
"""`zero` is the middle of diverging colours, `band` a range under a null or over controls."""
DARK = {THEMES["light"][part]: THEMES["dark"][part] for part in reversed(THEMES["light"])}  # ink's and paper's win
"""What a page that is dark puts in the place of the light theme's colours."""

CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "responsive": True,
    "typesetMath": False,
    "displayModeBar": "hover",
    "modeBarButtonsToRemove": ["zoomIn2d", "zoomOut2d", "autoScale2d"],  # dragging and "Reset axes" do as much
}
"""plotly.js settings for every place that draws: no upload button, no logo, no `$…$` read as formulas. The buttons
show on hover and need the uppermost 28 pixels: titles and legends leave these free, or end left of them."""

SVG_LIMIT = 5000
"""Points: with more, traces are drawn by scattergl, which is quicker but makes no vector image."""
HOVER = "%{customdata}<extra></extra>"
"""A template that shows `customdata`, one escaped text per point: a text in the template itself could hold `%{…}`."""
NAME_LIMIT = 28
"""Characters of a name at an axis or in a legend; what is cut off stands on hover."""
BIDIRECTIONAL = r"\u202a-\u202e\u2066-\u2069"
"""Marks that turn the reading direction of what follows, for a set of characters in a regular expression."""


class FigureError(DrolabError, ValueError):
    """A figure cannot be drawn from what it was given."""


# ---------------------------------------------------------------- text


def escape(text: object, *, limit: int | None = None) -> str:
    """Text as plotly's pseudo-HTML shows it literally: markup escaped, control characters and lone surrogates
    replaced, cut to `limit` characters."""
    plain = str(text)
    if limit is not None and len(plain) > limit:
        plain = plain[: limit - 1] + "…"
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else " " for c in plain)
    return html.escape(plain, quote=False)


def wrapped(text: object, *, width: int = 60, lines: int = 8) -> str:
    """Escaped text broken into at most `lines` lines of `width` characters, joined with `<br>`."""
    # Not textwrap: panels wrap a hundred thousand texts, and a text may be 100 kB.
    words = str(text).split(None, width * lines)[: width * lines]
    plain = " ".join(words)[: (width + 1) * lines + width]
    parts = re.findall(rf"(?=\S)(?:.{{1,{width}}}(?=\s|$)|.{{{width}}})", plain)
    if len(parts) > lines:
        parts[lines - 1 :] = [parts[lines - 1][: width - 2] + " …"]
    return "<br>".join(escape(part) for part in parts)


def short_name(name: object, limit: int = NAME_LIMIT) -> str:
    """A name at an axis or in a legend, escaped."""
    return escape(name, limit=limit)


def token_label(token: str, limit: int | None = None) -> str:
    """A token with its spaces and line breaks made visible, escaped."""
    return escape(token.replace(" ", "␣").replace("\n", "⏎"), limit=limit)


def text_of(row: Any, name: str) -> str:
    """A text of a row; empty if there is no such column, or NaN in it, as a table from a file has for an empty text."""
    text = getattr(row, name, "")
    return text if isinstance(text, str) else ""


def value_text(row: Any, name: str = "value", prefix: str = "") -> str:
    """A number of a row with its interval: 0.512 [0.41, 0.61]."""
    return f"{getattr(row, name):.3f}{interval_text(row, prefix)}"


def interval_text(row: Any, prefix: str = "", *, digits: int = 2, scale: float = 1) -> str:
    """` [low, high]` of a row's `{prefix}low` and `{prefix}high`; nothing where it has no interval."""
    ends = [getattr(row, f"{prefix}{end}", math.nan) for end in ("low", "high")]
    return "" if pd.isna(ends).any() else f" [{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]"


# ---------------------------------------------------------------- colours and template


def theme_colors(theme: str) -> dict[str, str]:
    if theme not in THEMES:
        raise FigureError(f"No theme {theme!r}: choose one of {sorted(THEMES)}.")
    return THEMES[theme]


def prompt_colors(prompts: Iterable[str], *, theme: str = "light", repeat: bool = False) -> dict[str, str]:
    """One colour per prompt, in order; `none` is grey, since it is what the others are compared with.

    Args:
        repeat: start again after the last colour, for figures whose symbols tell the prompts apart too.

    Raises:
        FigureError: more prompts than colours that can be told apart.
    """
    names = list(dict.fromkeys(prompts))
    coloured = [name for name in names if name != NO_PROMPT]
    if len(coloured) > len(PALETTE) and not repeat:
        raise FigureError(
            f"{len(coloured)} prompts, but only {len(PALETTE)} colours can be told apart: show fewer prompts at once."
        )
    colors = dict(zip(coloured, cycle(PALETTE), strict=False))
    return {name: colors.get(name, theme_colors(theme)["grey"]) for name in names}


def template(theme: str = "light") -> go.layout.Template:
    """The template "drolab" (`light` or `dark`), as an object: it is not registered with plotly."""
    colors = theme_colors(theme)
    axis = {
        "gridcolor": colors["grid"],
        "linecolor": colors["grey"],
        "zeroline": False,
        "ticks": "outside",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 14}},
    }
    bar = {"colorbar": {"title": {"font": {"size": 13}}, "tickfont": {"size": 12}}}
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13, "color": colors["ink"]},
            "paper_bgcolor": colors["paper"],
            "plot_bgcolor": colors["paper"],
            "colorway": [*PALETTE, colors["grey"]],
            "colorscale": {"sequential": "Cividis"},
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 24, "t": 64, "b": 56},
            "title": {"x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
            "hoverlabel": {"align": "left", "namelength": -1},
            "hovermode": "closest",
            "legend": {"title": {"font": {"size": 12}}, "font": {"size": 12}, "tracegroupgap": 0},
        },
        data={"heatmap": [bar]},
    )


@lru_cache
def template_content(theme: str) -> dict[str, Any]:
    """`template` as plain dicts: plotly takes longer to make it than to draw a thousand points."""
    return dict(template(theme).to_plotly_json())


# ---------------------------------------------------------------- tables


def need_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raises:
    FigureError: the table of a `what` lacks one of the columns, or has no rows.
    """
    if missing := [column for column in columns if column not in table.columns]:
        raise FigureError(f"The table of a {what} lacks the columns {missing}: it has {list(table.columns)}.")
    if table.empty:
        raise FigureError(f"The table of a {what} has no rows: select something that is there.")


def groups(table: pd.DataFrame, by: Any) -> Any:
    """The rows of each value of `by`, in order of appearance (pandas' own types are too wide for a type checker)."""
    return table.groupby(by, sort=False)


def class_name(harmful: bool) -> str:
    return "harmful" if harmful else "harmless"


def class_names(harmful: pd.Series) -> list[str]:
    return [class_name(value) for value in harmful]


# ---------------------------------------------------------------- parts of figures


def blank_figure(theme: str, title: str | None, **layout: Any) -> go.Figure:
    figure = go.Figure()
    dress(figure, theme, title, **layout)
    return figure


def dress(figure: go.Figure, theme: str, title: str | None, **layout: Any) -> None:
    """Template, title and height; the titles of subplots, which are annotations, get the size of axes' titles."""
    text = "<br>".join(escape(line) for line in textwrap.wrap(title, 72)) if title else None
    figure.update_layout(template=template(theme), title_text=text, **{"height": 480, **layout})
    figure.update_annotations(font_size=14)


BOUNDARIES = {"refuses": ("refusal boundary", "solid"), "harmful": ("harm boundary", "dash")}
"""A probe's positive class → what its boundary is called, and how it is dashed, in every figure."""


def boundary_line(name: str, theme: str) -> tuple[str, dict[str, Any]]:
    """What the boundary of a probe with this positive class is called, escaped, and the look of its line."""
    words, dash = BOUNDARIES.get(name, (f"boundary: {name}", "dashdot"))
    return short_name(words), {"color": theme_colors(theme)["ink"], "width": 1.8, "dash": dash}


def reference_line(theme: str) -> dict[str, Any]:
    """The look of a line that others are compared with: chance, a threshold, a warning level, equality."""
    return {"color": theme_colors(theme)["grey"], "width": 1.4, "dash": "dot"}


SMALL_PRINT = "<span style='font-size:12px'>"
"""How the small print begins in an axis' title."""


def small_print(text: str, above: str = "") -> str:
    """The title of an x axis with small print below it, both escaped: plotly keeps room for all of it, however deep
    the names at the axis reach."""
    return f"{above}<br>{SMALL_PRINT}{text}</span>" if text else above


def legend_entry(name: str, *, mode: str = "markers", **look: Any) -> dict[str, Any]:
    """A trace that is only its legend entry; `name` is escaped already, `look` has its marker or line."""
    return {"type": "scatter", "x": [None], "y": [None], "mode": mode, "hoverinfo": "skip", "name": name, **look}


def error_bars(rows: Any, name: str = "value", prefix: str = "", **look: Any) -> dict[str, Any] | None:
    """plotly's error bars from `name` to `{prefix}low` and `{prefix}high` of a table or of one row, if it has them."""
    value, low, high = (getattr(rows, column, None) for column in (name, f"{prefix}low", f"{prefix}high"))
    if low is None or high is None:
        return None
    spread = {"array": np.atleast_1d(high - value), "arrayminus": np.atleast_1d(value - low)}
    return {"type": "data", "symmetric": False, **spread, "thickness": 1.4, "width": 4, **look}


_IN_THE_DARK = """<style class="drolab-light">
.jp-OutputArea-child:has(.drolab-light) { display: none; }
body[data-jp-theme-light="false"] .jp-OutputArea-child:has(.drolab-light) + * .jp-RenderedPlotly {
  filter: invert(0.914) hue-rotate(180deg);
}
</style>"""
"""An output before a light figure: it makes white the ground of the dark theme, and leaves hues what they are."""


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, with `CONFIG`: JupyterLab and VS Code draw it themselves, offline.

    In a dark JupyterLab or Notebook 7 a light figure is shown dark.
    """
    from IPython.display import HTML, display

    # Not `responsive`: plotly.js would take the height anew from a place that has none, when the window changes. The
    # front-end itself says when the width is another.
    content = {**json.loads(figure.to_json()), "config": {**CONFIG, "responsive": False}}
    bundle = {"application/vnd.plotly.v1+json": content, "text/plain": repr(type(figure).__name__)}
    if figure.layout.template.layout.paper_bgcolor == THEMES["light"]["paper"]:
        display(HTML(_IN_THE_DARK))
    display(bundle, raw=True)
