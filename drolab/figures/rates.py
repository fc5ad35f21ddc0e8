"""Figures of prompts against each other: the safety-helpfulness plane, and each query under two prompts.

Public under `drolab.figures`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_PATTERNS,
    CLASS_SYMBOLS,
    HOVER,
    PALETTE,
    SVG_LIMIT,
    SYMBOLS,
    FigureError,
    band_color,
    blank_figure,
    class_names,
    dress,
    error_bars,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    template_content,
    theme_colors,
    value_text,
    wrapped,
)

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def tradeoff(
    table: pd.DataFrame,
    *,
    helpful: str = "harmless",
    safe: str = "harmful",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """The safety-helpfulness plane: one prompt a point with its intervals, the Pareto front a line through its members.

    Args:
        table: prompt, compliance, refusal, on_front, dominated_by, and optionally compliance_low, compliance_high,
            refusal_low, refusal_high, as from `comparison.tradeoff`. A dominated prompt is drawn as an outline.
        helpful, safe: the groups of queries, for the axes' titles.
    """
    figure = go.Figure(tradeoff_content(table, helpful=helpful, safe=safe, theme=theme))
    return _titled(figure, title)


def tradeoff_content(
    table: pd.DataFrame, *, helpful: str = "harmless", safe: str = "harmful", theme: str = "light"
) -> dict[str, Any]:
    """What `tradeoff` is made of but for its title, as plotly's plain dicts, for panels that redraw."""
    need_columns(table, ("prompt", "compliance", "refusal", "on_front", "dominated_by"), "safety-helpfulness plane")
    colors = prompt_colors(table["prompt"], theme=theme, repeat=True)
    front = table[table["on_front"]].sort_values(["compliance", "refusal"])
    line = {"color": theme_colors(theme)["ink"], "width": 1.2, "dash": "dash"}
    through = {"x": front["compliance"].to_list(), "y": front["refusal"].to_list(), "mode": "lines", "line": line}
    data = [{"type": "scatter", "name": "Pareto front", "hoverinfo": "skip", **through}]
    for number, row in enumerate(table.itertuples()):
        data.append(_prompt_point(row, SYMBOLS[number % len(SYMBOLS)], colors[str(row.prompt)], theme))
    titles = (
        f"helpfulness: compliance with {escape(helpful, limit=28)} queries",
        f"safety: refusal of {escape(safe, limit=28)} queries",
    )
    layout = _layout(theme, titles, {"range": [-0.03, 1.03]})
    return {"data": data, "layout": layout | {"height": 520, "legend": {"title": {"text": "Prompt"}}}}


def _prompt_point(row: Any, symbol: str, color: str, theme: str) -> dict[str, Any]:
    marker = {"symbol": symbol, "size": 13, "color": color}
    if not row.on_front:  # an outline, for every symbol: "x-open" would be a thin cross
        marker |= {"color": theme_colors(theme)["paper"], "line": {"width": 2.5, "color": color}}
    return {
        "type": "scatter",
        "x": [row.compliance],
        "y": [row.refusal],
        "error_x": _error_bar(row, "compliance", color),
        "error_y": _error_bar(row, "refusal", color),
        "mode": "markers",
        "name": escape(row.prompt, limit=28) + ("" if row.on_front else " (dominated)"),
        "marker": marker,
        "customdata": [_tradeoff_hover(row)],
        "hovertemplate": HOVER,
    }


def _tradeoff_hover(row: Any) -> str:
    lines = [f"<b>{escape(row.prompt, limit=60)}</b>"]
    for name in ("compliance", "refusal"):
        low, high = (getattr(row, f"{name}_{end}", math.nan) for end in ("low", "high"))
        lines.append(f"{name}: {getattr(row, name):.3f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"))
    lines += [] if row.on_front else [f"dominated by {wrapped(row.dominated_by, lines=3)}"]
    return "<br>".join(lines)


def _error_bar(row: Any, name: str, color: str) -> dict[str, Any]:
    value, low, high = getattr(row, name), getattr(row, f"{name}_low", math.nan), getattr(row, f"{name}_high", math.nan)
    spread = {"array": [high - value], "arrayminus": [value - low]}
    return {"type": "data", "symmetric": False, **spread, "thickness": 1.4, "width": 4, "color": color}


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
    """
    content = rate_change_content(queries, prompts=prompts, theme=theme)
    content["data"].append(ring(content, read, theme=theme))
    return _titled(go.Figure(content), title)


def _titled(figure: go.Figure, title: str | None) -> go.Figure:
    return figure.update_layout(title_text=escape(title), margin_t=90) if title else figure


def _layout(theme: str, titles: tuple[str, str], axis: dict[str, Any]) -> dict[str, Any]:
    axes = zip(("xaxis", "yaxis"), titles, strict=True)
    named = {name: {"title": {"text": title}, **axis} for name, title in axes}
    return {"template": template_content(theme), "showlegend": True, **named}


def rate_change_content(queries: pd.DataFrame, *, prompts: tuple[str, str], theme: str = "light") -> dict[str, Any]:
    """What `rate_change` is made of but for its title and its `ring`, as plotly's plain dicts, for panels that redraw:
    a trace per group, then the diagonal."""
    need_columns(queries, ("text", "group", "rate_a", "rate_b"), "figure of two rates")
    shown = queries.dropna(subset=["rate_a", "rate_b"])
    places = shown[["rate_a", "rate_b"]].to_numpy(dtype=float) + _spread(shown)
    data = [_queries(rows, theme) for _, rows in groups(shown.assign(x=places[:, 0], y=places[:, 1]), "group")]
    line = {"color": theme_colors(theme)["grey"], "width": 1, "dash": "dot"}
    diagonal = {"type": "scatter", "x": [0, 1], "y": [0, 1], "mode": "lines", "line": line}
    a, b = (f"refusal rate under {escape(prompt, limit=28)}" for prompt in prompts)
    layout = _layout(theme, (a, b), {"range": [-0.12, 1.12], "tickvals": [0, 0.25, 0.5, 0.75, 1]})
    legend = {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0}
    layout |= {"legend": legend, "height": 400, "margin": {"l": 56, "r": 16, "t": 40, "b": 48}}
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
        "name": escape(name, limit=28) or "no group",
        "marker": look | {"opacity": 0.75, "line": {"width": 0.8, "color": theme_colors(theme)["paper"]}},
        "customdata": [_change_hover(row) for row in rows.itertuples()],
        "hovertemplate": HOVER,
    }


def _change_hover(row: Any) -> str:
    return (
        f"<b>{wrapped(row.text, lines=4)}</b><br>{escape(row.group)} · refusal rate {row.rate_a:.2f} → {row.rate_b:.2f}"
    )


def _spread(queries: pd.DataFrame) -> np.ndarray:
    """[n, 2]: where to draw each query beside its place: those of one place on a spiral, the first in the middle."""
    turn = queries.groupby(["rate_a", "rate_b"]).cumcount().to_numpy(dtype=float)
    radius = min(0.012, 0.1 / math.sqrt(max(turn.max(initial=0), 1))) * np.sqrt(turn)
    return radius[:, None] * np.stack([np.cos(turn * _GOLDEN_ANGLE), np.sin(turn * _GOLDEN_ANGLE)], axis=1)


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
    """
    if "group" not in table.columns and "harmful" in table.columns:
        table = table.assign(group=class_names(table["harmful"]))
    need_columns(table, ("prompt", "group", "value"), "bar chart")
    figure = blank_figure(theme, title, barmode="group", bargap=0.25)
    others = prompt_colors([name for name in table["group"].unique() if name not in CLASS_COLORS], theme=theme)
    for name, rows in groups(table, "group"):
        figure.add_bar(
            x=[escape(prompt, limit=28) for prompt in rows["prompt"]],
            y=rows["value"],
            name=escape(name, limit=28),
            error_y=error_bars(rows),
            marker={
                "color": CLASS_COLORS.get(name) or others[name],
                "pattern": {"shape": CLASS_PATTERNS.get(name, "x"), "fillmode": "overlay", "size": 6},
                "line": {"width": 1, "color": theme_colors(theme)["ink"]},
            },
            customdata=[[f"{escape(r.prompt)}, {escape(name)}: {value_text(r)}"] for r in rows.itertuples()],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text=escape(y_title), range=[0, 1.02], tickformat=".1f")
    figure.update_layout(showlegend=True, legend_title_text="Queries")
    return figure


VERDICTS = {
    "supported": {"symbol": "circle", "color": PALETTE[2]},
    "not supported": {"symbol": "x", "color": PALETTE[5]},
    "too little data": {"symbol": "diamond-open", "color": ""},
}
"""How each verdict is drawn; an empty colour is the theme's grey."""


def forest(table: pd.DataFrame, *, title: str | None = None, theme: str = "light") -> go.Figure:
    """The verdict: one row per claim with its estimate and interval, and the range that its null gives in grey.

    Claims have different units, so each row has an axis of its own; rows of one unit share their scale. The numbers,
    the sample size and the verdict stand above each row in words.

    Args:
        table: claim, estimate, low, high, null_low, null_high (NaN: none), n, unit, verdict (of VERDICTS), and
            optionally threshold, what the estimate must pass, which gets a dashed line.

    Raises:
        FigureError: a column is missing, there are no rows, or a verdict that is none.
    """
    columns = ("claim", "estimate", "low", "high", "null_low", "null_high", "n", "unit", "verdict")
    need_columns(table, columns, "forest plot")
    if unknown := sorted(set(table["verdict"]) - set(VERDICTS)):
        raise FigureError(f"No verdict is called {unknown}: use {list(VERDICTS)}.")
    count = len(table)
    height = 120 + _ROW_HEIGHT * count
    figure = make_subplots(rows=count, cols=1, vertical_spacing=_HEAD_HEIGHT / (height - 120) if count > 1 else 0)
    ranges = {unit: _range(rows) for unit, rows in groups(table, "unit")}
    looks = {name: {**look, "color": look["color"] or theme_colors(theme)["grey"]} for name, look in VERDICTS.items()}
    dress(figure, theme, title, height=height, margin_t=96 if title else 60, margin_b=50)
    for number, row in enumerate(table.itertuples(), start=1):
        _add_claim(figure, row, number, ranges[row.unit], looks[str(row.verdict)], theme)
    for name in dict.fromkeys(table["verdict"]):
        legend_entry(figure, name, {**looks[name], "size": 11})
    if table["null_low"].notna().any():
        legend_entry(figure, "range under the null", {"symbol": "square", "size": 12, "color": band_color(theme)})
    if _threshold(table):
        line = {"color": theme_colors(theme)["ink"], "width": 1.5, "dash": "dash"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name="threshold", hoverinfo="skip")
    legend = {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(showlegend=True, legend=legend)
    return figure


def _threshold(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name == "threshold"]


def _range(rows: pd.DataFrame) -> list[float]:
    """Of all numbers of one unit, with a margin."""
    values = rows[["estimate", "low", "high", "null_low", "null_high", *_threshold(rows)]].to_numpy(dtype=float)
    if np.isnan(values).all():
        return [0.0, 1.0]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 0.5
    return [low - margin, high + margin]


def _add_claim(figure: go.Figure, row: Any, number: int, limits: list[float], look: dict[str, Any], theme: str) -> None:
    place = {"row": number, "col": 1}
    digits = max(2, 1 - math.floor(math.log10(limits[1] - limits[0])))
    interval = "" if math.isnan(row.low) else f" [{row.low:.{digits}f}, {row.high:.{digits}f}]"
    unit = escape(row.unit, limit=40)
    estimate = "no estimate" if math.isnan(row.estimate) else f"{unit} {row.estimate:.{digits}f}{interval}"
    null = "" if math.isnan(row.null_low) else f", null [{row.null_low:.{digits}f}, {row.null_high:.{digits}f}]"
    numbers = f"<b>{escape(row.verdict)}</b>: {estimate}{null}, n = {int(row.n):,}"
    figure.add_scatter(
        x=[row.estimate], y=[0], mode="markers", marker={**look, "size": 12}, showlegend=False,
        error_x={
            "type": "data", "symmetric": False, "array": [row.high - row.estimate],
            "arrayminus": [row.estimate - row.low], "thickness": 2.5, "width": 6, "color": look["color"],
        },
        customdata=[f"{escape(row.claim)}<br>{numbers}"], hovertemplate=HOVER, **place,
    )  # fmt: skip
    if null:
        grey = {"color": band_color(theme), "width": 3}  # the edge shows a null of one value
        figure.add_vrect(row.null_low, row.null_high, fillcolor=band_color(theme), line=grey, layer="below", **place)
    if not math.isnan(threshold := getattr(row, "threshold", math.nan)):
        dashed = {"color": theme_colors(theme)["ink"], "width": 1.5, "dash": "dash"}
        figure.add_vline(threshold, line=dashed, **place)
    figure.update_xaxes(range=limits, nticks=8, tickfont_size=11, showgrid=False, showline=True, **place)
    figure.update_xaxes(visible=not math.isnan(row.estimate), **place)
    figure.update_yaxes(visible=False, range=[-1, 1], **place)
    top = figure.layout["yaxis" if number == 1 else f"yaxis{number}"].domain[1]
    figure.add_annotation(
        text=f"{escape(row.claim, limit=120)}<br>{numbers}", x=0, y=top, xref="paper", yref="paper",
        xanchor="left", yanchor="bottom", align="left", showarrow=False, font={"size": 13},
    )  # fmt: skip


_ROW_HEIGHT, _HEAD_HEIGHT = 106, 74
"""Pixels of a claim, and of what of them is not its axis: the ticks of the one above and its words."""
