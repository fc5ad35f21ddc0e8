"""Figures of rates: `rate_bars` per prompt and group, `tradeoff` of safety and helpfulness, `rate_change` of each query
between two prompts, `attack_margins` of each query without and with an attack, and the `forest` of claims with their
intervals.

`tradeoff_content`, `rate_change_content` and `ring` give what the figure of that name is made of, as plotly's plain
dicts, for panels that redraw.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from drolab.figures.labels import FONT_SIZE, text_places
from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_PATTERNS,
    CLASS_SYMBOLS,
    HOVER,
    PALETTE,
    SVG_LIMIT,
    SYMBOLS,
    FigureError,
    blank_figure,
    class_names,
    dress,
    error_bars,
    escape,
    groups,
    interval_text,
    legend_entry,
    need_columns,
    prompt_colors,
    reference_line,
    short_name,
    small_print,
    template_content,
    text_of,
    theme_colors,
    value_text,
    wrapped,
)

VERDICT_LOOKS = {
    "supported": {"symbol": "circle", "color": PALETTE[2]},
    "not supported": {"symbol": "x", "color": PALETTE[5]},
    "too little data": {"symbol": "diamond-open", "color": ""},
    "cannot be tested here": {"symbol": "square-x-open", "color": ""},
    "what DRO trains": {"symbol": "circle-open", "color": ""},
}
"""How each verdict on a claim is drawn; an empty colour is the theme's grey."""

OUTCOMES = {"broken": "x", "held": "circle", "answered": "diamond-open", "not judged": "circle-open"}
"""What came of an attack → the symbol of its query."""
_MOST_FACETS = 6
"""Prompts whose facets stand beside each other, three in a row."""

_ROW_HEIGHT, _HEAD_HEIGHT = 106, 74
"""Pixels of a claim, and of what of them is not its axis: the ticks of the one above and its words."""
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def rate_bars(
    table: pd.DataFrame,
    *,
    y_title: str = "refusal rate",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """A rate per prompt and group of queries, as grouped bars with intervals.

    Args:
        table: prompt, group, value, and optionally low, high. `group` is harmful, harmless, borderline, or any name;
            a table of `evidence.rate_table`, with `harmful` instead, is taken as it is.

    Raises:
        FigureError: a column is missing, there are no rows, more groups than colours that can be told apart, or no
            such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> rates = pd.DataFrame(
        ...     [("none", "harmful", 0.61, 0.52, 0.69), ("none", "harmless", 0.03, 0.01, 0.07),
        ...      ("default", "harmful", 0.83, 0.75, 0.89), ("default", "harmless", 0.13, 0.08, 0.20)],
        ...     columns=["prompt", "group", "value", "low", "high"])
        >>> figure = figures.rate_bars(rates)
        >>> [(bar.name, bar.x, bar.y) for bar in figure.data]
        [('harmful', ('none', 'default'), array([0.61, 0.83])),
         ('harmless', ('none', 'default'), array([0.03, 0.13]))]
        >>> figure.data[0].customdata[1]  # what hovering shows
        'default, harmful: 0.830 [0.75, 0.89]'
    """
    if "group" not in table.columns and "harmful" in table.columns:
        table = table.assign(group=class_names(table["harmful"]))
    need_columns(table, ("prompt", "group", "value"), "bar chart")
    figure = blank_figure(theme, title, barmode="group", bargap=0.25)
    others = prompt_colors([name for name in table["group"].unique() if name not in CLASS_COLORS], theme=theme)
    for name, rows in groups(table, "group"):
        figure.add_bar(
            x=[short_name(prompt) for prompt in rows["prompt"]],
            y=rows["value"],
            name=short_name(name),
            error_y=error_bars(rows),
            marker={
                "color": CLASS_COLORS.get(name) or others[name],
                "pattern": {"shape": CLASS_PATTERNS.get(name, "x"), "fillmode": "overlay", "size": 6},
                "line": {"width": 1, "color": theme_colors(theme)["ink"]},
            },
            customdata=[f"{escape(r.prompt)}, {escape(name)}: {value_text(r)}" for r in rows.itertuples()],
            hovertemplate=HOVER,
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text=escape(y_title), range=[0, 1.02], tickformat=".1f")
    figure.update_layout(showlegend=True, legend_title_text="Queries")
    return figure


def tradeoff(
    table: pd.DataFrame,
    *,
    helpful: str = "harmless",
    safe: str = "harmful",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """The safety-helpfulness plane: one prompt a point with its intervals, the Pareto front a line through its members.

    The axes end where the intervals do. Each name stands beside its point, or on hover only where there is no room.

    Args:
        table: prompt, compliance, refusal, on_front, dominated_by, and optionally compliance_low, compliance_high,
            refusal_low, refusal_high, as from `comparison.tradeoff`. A dominated prompt is drawn as an outline.
        helpful, safe: the groups of queries, for the axes' titles.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> prompts = pd.DataFrame(
        ...     [("none", 0.97, 0.61, True, ""), ("default", 0.87, 0.83, True, ""),
        ...      ("mine", 0.80, 0.70, False, "default")],
        ...     columns=["prompt", "compliance", "refusal", "on_front", "dominated_by"])
        >>> front, *points = figures.tradeoff(prompts).data
        >>> front.x, front.y
        ((0.87, 0.97), (0.83, 0.61))
        >>> [point.name for point in points]
        ['none', 'default', 'mine (dominated)']
    """
    return _titled(tradeoff_content(table, helpful=helpful, safe=safe, theme=theme), title, top=64)


def tradeoff_content(
    table: pd.DataFrame, *, helpful: str = "harmless", safe: str = "harmful", theme: str = "light"
) -> dict[str, Any]:
    """What `tradeoff` is made of but for its title.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.
    """
    need_columns(table, ("prompt", "compliance", "refusal", "on_front", "dominated_by"), "safety-helpfulness plane")
    colors = prompt_colors(table["prompt"], theme=theme, repeat=True)
    front = table[table["on_front"]].sort_values(["compliance", "refusal"])
    line = {"color": theme_colors(theme)["ink"], "width": 1.2, "dash": "dash"}
    through = {"x": front["compliance"].to_list(), "y": front["refusal"].to_list(), "mode": "lines", "line": line}
    data = [{"type": "scatter", "name": "Pareto front", "hoverinfo": "skip", **through}]
    ends = _ends(table)
    ranges = _around(ends)
    places = text_places([short_name(name) for name in table["prompt"]], ends, ranges, size=_POINT_SIZE)
    for number, (row, place) in enumerate(zip(table.itertuples(), places, strict=True)):
        point = _prompt_point(row, SYMBOLS[number % len(SYMBOLS)], colors[str(row.prompt)], theme)
        data.append(point | ({"mode": "markers+text", "textposition": place} if place else {}))
    note = small_print("filled: on the Pareto front (dashed); outlined: dominated")
    titles = (
        f"helpfulness: {escape(helpful, limit=20)} queries answered{note}",
        f"safety: {escape(safe, limit=20)} queries refused",
    )
    layout = _layout(theme, titles, {"tickformat": ".2~f"})
    for axis, limits in zip(("xaxis", "yaxis"), ranges.T.tolist(), strict=True):
        layout[axis]["range"] = limits
    return {"data": data, "layout": layout | {"height": 520, "showlegend": False}}


def rate_change(
    queries: pd.DataFrame,
    *,
    prompts: tuple[str, str],
    read: str | None = None,
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Each query's refusal rate under one prompt against that under another: above the diagonal, the second one makes
    the model refuse it more. Queries at the same place are spread a little around it; the hover has the rates.

    Args:
        queries: indexed by query_id: text, group, rate_a, rate_b, as from `comparison.query_changes`. A query that
            lacks a rate is left out.
        prompts: the names of the two prompts.
        read: the id of a query to ring.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.
    """
    content = rate_change_content(queries, prompts=prompts, theme=theme)
    content["data"].append(ring(content, read, theme=theme))
    return _titled(content, title)


def rate_change_content(queries: pd.DataFrame, *, prompts: tuple[str, str], theme: str = "light") -> dict[str, Any]:
    """What `rate_change` is made of but for its title and its `ring`: a trace per group, then the diagonal.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.
    """
    need_columns(queries, ("text", "group", "rate_a", "rate_b"), "figure of two rates")
    shown = queries.dropna(subset=["rate_a", "rate_b"])
    places = shown[["rate_a", "rate_b"]].to_numpy(dtype=float) + _spread(shown)
    data = [_queries(rows, theme) for _, rows in groups(shown.assign(x=places[:, 0], y=places[:, 1]), "group")]
    diagonal = {"type": "scatter", "x": [0, 1], "y": [0, 1], "mode": "lines", "line": reference_line(theme)}
    a, b = (f"refusal rate under {short_name(prompt)}" for prompt in prompts)
    layout = _layout(theme, (a, b), {"range": [-0.12, 1.12], "tickvals": [0, 0.25, 0.5, 0.75, 1]})
    legend = {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0}
    layout |= {"legend": legend, "height": 400, "margin": {"l": 56, "r": 16, "t": 58, "b": 48}}
    return {"data": [*data, diagonal | {"hoverinfo": "skip", "showlegend": False}], "layout": layout}


def ring(content: dict[str, Any], query_id: str | None, *, theme: str = "light") -> dict[str, Any]:
    """A trace that rings one query of `rate_change_content`; an empty one if it is not there."""
    places = [
        (trace["x"][place], trace["y"][place])
        for trace in content["data"]
        for place in np.flatnonzero(trace.get("ids", np.array([])) == query_id)
    ]
    x, y = zip(*places, strict=True) if places else ([None], [None])
    marker = {"symbol": "circle-open", "size": 18, "color": theme_colors(theme)["ink"], "line": {"width": 2.5}}
    shared = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "showlegend": False}
    return {**shared, "x": list(x), "y": list(y), "marker": marker}


def attack_margins(table: pd.DataFrame, *, title: str | None = None, theme: str = "light") -> go.Figure:
    """Where attacks move queries: the refusal logit of each query (across) and of what was derived from it (up), under
    each prompt. Below the dotted diagonal an attack moves back; below the full line the probe sees no refusal any more.
    The colour is the attack, the symbol what came of it.

    Args:
        table: prompt, attack, text, parent_logit, derived_logit, and optionally outcome (of OUTCOMES), as from
            `evidence.attack_margins`. Choose a class and up to six prompts first.

    Raises:
        FigureError: a column is missing, there are no rows, an outcome that is none, more than six prompts, more
            attacks than colours that can be told apart, or no such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> margins = pd.DataFrame({"prompt": "long", "attack": "suffix", "text": ["How?", "Why?"],
        ...                         "parent_logit": [2.0, 3.0], "derived_logit": [-1.0, 2.5],
        ...                         "outcome": ["broken", "held"]})
        >>> [trace.name for trace in figures.attack_margins(margins).data if trace.name]
        ['suffix', 'broken', 'held']
    """
    need_columns(table, ("prompt", "attack", "text", "parent_logit", "derived_logit"), "figure of margins")
    table = table.assign(outcome=table["outcome"] if "outcome" in table.columns else "not judged")
    if unknown := sorted(set(table["outcome"]) - set(OUTCOMES)):
        raise FigureError(f"No outcome is called {unknown}: use {list(OUTCOMES)}.")
    prompts = list(table["prompt"].unique())
    if len(prompts) > _MOST_FACETS:
        raise FigureError(f"{len(prompts)} prompts, but only {_MOST_FACETS} have room: choose some of {prompts}.")
    columns = 2 if len(prompts) == 4 else min(3, len(prompts))
    rows = math.ceil(len(prompts) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.03,
        vertical_spacing=0.12, subplot_titles=[short_name(prompt) for prompt in prompts],
    )  # fmt: skip
    colors, ink = prompt_colors(table["attack"], theme=theme), theme_colors(theme)["ink"]
    ends = [float(f(table[["parent_logit", "derived_logit"]].to_numpy())) for f in (np.nanmin, np.nanmax)]
    for number, (_, own) in enumerate(groups(table, "prompt")):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        line = {"x": ends, "y": ends, "mode": "lines", "line": reference_line(theme), "hoverinfo": "skip"}
        figure.add_scatter(**line, showlegend=False, **place)
        figure.add_hline(0, line={"color": ink, "width": 1.4}, **place)
        for (attack, outcome), queries in groups(own, ["attack", "outcome"]):
            marker = {"color": colors[attack], "symbol": OUTCOMES[outcome], "size": 8, "opacity": 0.8}
            figure.add_scatter(
                x=queries["parent_logit"], y=queries["derived_logit"], mode="markers", marker=marker, showlegend=False,
                customdata=[_margin_hover(row) for row in queries.itertuples()], hovertemplate=HOVER, **place,
            )  # fmt: skip
    for attack, color in colors.items():
        figure.add_trace(legend_entry(short_name(attack), marker={"color": color, "symbol": "square", "size": 9}))
    for outcome in [name for name in OUTCOMES if (table["outcome"] == name).any() and name != "not judged"]:
        figure.add_trace(legend_entry(outcome, marker={"color": ink, "symbol": OUTCOMES[outcome], "size": 9}))
    figure.update_xaxes(showticklabels=True)
    figure.update_xaxes(title_text="refusal logit without the attack", row=rows)
    figure.update_yaxes(title_text="with the attack", col=1)
    legend = {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    dress(figure, theme, title, height=120 + 320 * rows, margin_t=96 if title else 48, margin_b=96)
    return figure.update_layout(showlegend=True, legend=legend)


def forest(table: pd.DataFrame, *, title: str | None = None, theme: str = "light") -> go.Figure:
    """The verdict: one row per claim with its estimate and interval, and the range that its null gives in grey.

    Claims have different units, so each row has an axis of its own; rows of one unit share their scale. The numbers,
    the sample size and the verdict stand above each row in words.

    Args:
        table: claim, estimate, low, high, null_low, null_high (NaN: none), n, unit, verdict (of VERDICT_LOOKS), and
            optionally threshold, what the estimate must pass, which gets a dotted line, under (which judge or controls)
            and reason (why it cannot be tested).

    Raises:
        FigureError: a column is missing, there are no rows, a verdict that is none, or no such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> claims = pd.DataFrame(
        ...     [("Harmful and harmless queries are separable", 0.98, 0.96, 0.99, 0.42, 0.58, 224, "AUC", "supported")],
        ...     columns=["claim", "estimate", "low", "high", "null_low", "null_high", "n", "unit", "verdict"])
        >>> print(figures.forest(claims).layout.annotations[0].text.replace("<br>", "\\n"))
        Harmful and harmless queries are separable
        <b>supported</b>: AUC 0.98 [0.96, 0.99], null [0.42, 0.58], n = 224
    """
    columns = ("claim", "estimate", "low", "high", "null_low", "null_high", "n", "unit", "verdict")
    need_columns(table, columns, "forest plot")
    if unknown := sorted(set(table["verdict"]) - set(VERDICT_LOOKS)):
        raise FigureError(f"No verdict is called {unknown}: use {list(VERDICT_LOOKS)}.")
    count, colors = len(table), theme_colors(theme)
    height = 120 + _ROW_HEIGHT * count
    figure = make_subplots(rows=count, cols=1, vertical_spacing=_HEAD_HEIGHT / (height - 120) if count > 1 else 0)
    ranges = {unit: _range(rows) for unit, rows in groups(table, "unit")}
    looks = {name: {**look, "color": look["color"] or colors["grey"]} for name, look in VERDICT_LOOKS.items()}
    dress(figure, theme, title, height=height, margin_t=96 if title else 60, margin_b=50)
    for number, row in enumerate(table.itertuples(), start=1):
        _add_claim(figure, row, number, ranges[row.unit], looks[str(row.verdict)], theme)
        if not math.isnan(threshold := getattr(row, "threshold", math.nan)):
            figure.add_vline(threshold, line=reference_line(theme), row=number, col=1)
    for name in dict.fromkeys(table["verdict"]):
        figure.add_trace(legend_entry(name, marker={**looks[name], "size": 11}))
    if table["null_low"].notna().any():
        marker = {"symbol": "square", "size": 12, "color": colors["band"]}
        figure.add_trace(legend_entry("range under the null", marker=marker))
    if "threshold" in table.columns:
        figure.add_trace(legend_entry("threshold", mode="lines", line=reference_line(theme)))
    legend = {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(showlegend=True, legend=legend)
    return figure


# ---------------------------------------------------------------- planes of rates


def _titled(content: dict[str, Any], title: str | None, *, top: int = 90) -> go.Figure:
    figure = go.Figure(content)
    return figure.update_layout(title_text=escape(title), margin_t=top) if title else figure


def _layout(theme: str, titles: tuple[str, str], axis: dict[str, Any]) -> dict[str, Any]:
    axes = zip(("xaxis", "yaxis"), titles, strict=True)
    named = {name: {"title": {"text": title}, **axis} for name, title in axes}
    return {"template": template_content(theme), "showlegend": True, **named}


_POINT_SIZE = 13


def _ends(table: pd.DataFrame) -> np.ndarray:
    """[n, 3, 2]: compliance and refusal of each prompt, their lower and their upper ends."""
    parts = []
    for end in ("", "_low", "_high"):
        columns = [table.get(f"{name}{end}", table[name]).fillna(table[name]) for name in ("compliance", "refusal")]
        parts.append(np.stack(columns, axis=1))
    return np.stack(parts, axis=1).astype(float)


def _around(ends: np.ndarray) -> np.ndarray:
    """[2, 2]: the least and the greatest x and y to show: what there is and room for names, no less than a tenth."""
    low, high = ends.min(axis=(0, 1)), ends.max(axis=(0, 1))
    margin = 0.14 * np.maximum(high - low, 0.1) + np.maximum(0.1 - (high - low), 0) / 2
    return np.stack([np.maximum(low - margin, -0.03), np.minimum(high + margin, 1.03)])


def _prompt_point(row: Any, symbol: str, color: str, theme: str) -> dict[str, Any]:
    marker = {"symbol": symbol, "size": _POINT_SIZE, "color": color}
    if not row.on_front:  # an outline, for every symbol: "x-open" would be a thin cross
        marker |= {"color": theme_colors(theme)["paper"], "line": {"width": 2.5, "color": color}}
    lines = [f"<b>{escape(row.prompt, limit=60)}</b>"]
    lines += [f"{name}: {value_text(row, name, f'{name}_')}" for name in ("compliance", "refusal")]
    lines += [] if row.on_front else [f"dominated by {wrapped(row.dominated_by, lines=3)}"]
    return {
        "type": "scatter",
        "x": [row.compliance],
        "y": [row.refusal],
        "error_x": error_bars(row, "compliance", "compliance_", color=color),
        "error_y": error_bars(row, "refusal", "refusal_", color=color),
        "mode": "markers",
        "name": short_name(row.prompt) + ("" if row.on_front else " (dominated)"),
        "text": [short_name(row.prompt)],
        "textfont": {"size": FONT_SIZE},
        "marker": marker,
        "customdata": ["<br>".join(lines)],
        "hovertemplate": HOVER,
    }


def _queries(rows: pd.DataFrame, theme: str) -> dict[str, Any]:
    """The trace of one group's queries."""
    name = rows["group"].iloc[0]
    look = {"symbol": CLASS_SYMBOLS.get(name, "star"), "color": CLASS_COLORS.get(name, PALETTE[3]), "size": 8}
    return {
        "type": "scattergl" if len(rows) > SVG_LIMIT else "scatter",
        "x": rows["x"].to_numpy(),
        "y": rows["y"].to_numpy(),
        "ids": rows.index.to_numpy(dtype=object),
        "mode": "markers",
        "name": short_name(name) or "no group",
        "marker": look | {"opacity": 0.75, "line": {"width": 0.8, "color": theme_colors(theme)["paper"]}},
        "customdata": [_change_hover(row) for row in rows.itertuples()],
        "hovertemplate": HOVER,
    }


def _change_hover(row: Any) -> str:
    return (
        f"<b>{wrapped(row.text, lines=4)}</b><br>{escape(row.group)} · refusal rate {row.rate_a:.2f} → {row.rate_b:.2f}"
    )


def _margin_hover(row: Any) -> str:
    lines = [f"<b>{wrapped(row.text, lines=4)}</b>", f"{escape(row.attack)}: {escape(row.outcome)}"]
    return "<br>".join([*lines, f"refusal logit {row.parent_logit:.2f} → {row.derived_logit:.2f}"])


def _spread(queries: pd.DataFrame) -> np.ndarray:
    """[n, 2]: where to draw each query beside its place: those of one place on a spiral, the first in the middle."""
    turn = queries.groupby(["rate_a", "rate_b"]).cumcount().to_numpy(dtype=float)
    radius = min(0.012, 0.1 / math.sqrt(max(turn.max(initial=0), 1))) * np.sqrt(turn)
    return radius[:, None] * np.stack([np.cos(turn * _GOLDEN_ANGLE), np.sin(turn * _GOLDEN_ANGLE)], axis=1)


# ---------------------------------------------------------------- claims


def _range(rows: pd.DataFrame) -> list[float]:
    """Of all numbers of one unit, with a margin."""
    columns = ["estimate", "low", "high", "null_low", "null_high", "threshold"]
    values = rows.reindex(columns=columns).to_numpy(dtype=float)
    if np.isnan(values).all():
        return [0.0, 1.0]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 0.5
    return [low - margin, high + margin]


def _add_claim(figure: go.Figure, row: Any, number: int, limits: list[float], look: dict[str, Any], theme: str) -> None:
    place, band = {"row": number, "col": 1}, theme_colors(theme)["band"]
    numbers = _claim_numbers(row, digits=max(2, 1 - math.floor(math.log10(limits[1] - limits[0]))))
    figure.add_scatter(
        x=[row.estimate], y=[0], mode="markers", marker={**look, "size": 12}, showlegend=False,
        error_x=error_bars(row, "estimate", color=look["color"], thickness=2.5, width=6),
        customdata=[f"{escape(_claim_name(row))}<br>{numbers}{_why(row)}"], hovertemplate=HOVER, **place,
    )  # fmt: skip
    if not math.isnan(row.null_low):
        line = {"color": band, "width": 3}  # shows a null of one value
        figure.add_vrect(row.null_low, row.null_high, fillcolor=band, line=line, layer="below", **place)
    figure.update_xaxes(range=limits, nticks=8, tickfont_size=12, showgrid=False, showline=True, **place)
    figure.update_xaxes(visible=not math.isnan(row.estimate), **place)
    figure.update_yaxes(visible=False, range=[-1, 1], **place)
    top = figure.layout["yaxis" if number == 1 else f"yaxis{number}"].domain[1]
    figure.add_annotation(
        text=f"{escape(_claim_name(row), limit=120)}<br>{numbers}", x=0, y=top, xref="paper", yref="paper",
        xanchor="left", yanchor="bottom", align="left", showarrow=False, font={"size": 13},
    )  # fmt: skip


def _claim_name(row: Any) -> str:
    under = text_of(row, "under")
    return f"{row.claim} ({under})" if under else str(row.claim)


def _why(row: Any) -> str:
    reason = text_of(row, "reason")
    return f"<br>{wrapped(reason)}" if reason else ""


def _claim_numbers(row: Any, *, digits: int) -> str:
    value = f"{escape(row.unit, limit=40)} {row.estimate:.{digits}f}{interval_text(row, digits=digits)}"
    estimate = "no estimate" if math.isnan(row.estimate) else value
    null = interval_text(row, "null_", digits=digits)
    return f"<b>{escape(row.verdict)}</b>: {estimate}{f', null{null}' if null else ''}, n = {int(row.n):,}"
