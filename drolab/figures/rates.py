"""Figures of prompts against each other: the safety-helpfulness plane, and each query under two prompts.

Public under `drolab.figures`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    PALETTE,
    SVG_LIMIT,
    SYMBOLS,
    escape,
    groups,
    need_columns,
    prompt_colors,
    template_content,
    theme_colors,
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
        "hovertemplate": "%{customdata}<extra></extra>",
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
        "hovertemplate": "%{customdata}<extra></extra>",
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
