"""Figures: a table in, a `plotly.graph_objects.Figure` out.

Nothing here computes a statistic, reads a file or changes a global setting. Every text that comes from data is
escaped before plotly sees it. A class is told by symbol *and* colour or pattern, never by colour alone.
The figures of hidden states in a plane live in `drolab.figures.plane` and `drolab.figures.boundaries`, those of prompts against
each other in `drolab.figures.rates`, those of training in `drolab.figures.curves`, those of many results at once in `drolab.figures.grids`,
those of evidence in `drolab.figures.heatmaps`; they are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.figures.boundaries import Boundary, boundary, probe_boundaries
from drolab.figures.curves import first_token_curves, training_curves
from drolab.figures.grids import query_grid, rate_grid, token_lines
from drolab.figures.heatmaps import (
    NOT_SIGNIFICANT,
    add_note,
    cells,
    diverging,
    dose_response,
    forest,
    layer_position_map,
)
from drolab.figures.plane import mean_shifts, movement, projection
from drolab.figures.rates import rate_change, tradeoff
from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_PATTERNS,
    CONFIG,
    PALETTE,
    SYMBOLS,
    FigureError,
    blank_figure,
    class_names,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    show,
    small_print,
    template,
    theme_colors,
)

__all__ = [
    "CONFIG",
    "Boundary",
    "FigureError",
    "boundary",
    "calibration",
    "cosine_heatmap",
    "dose_response",
    "first_token_curves",
    "forest",
    "layer_position_map",
    "layer_sweep",
    "mean_shifts",
    "movement",
    "probe_boundaries",
    "projection",
    "query_grid",
    "rate_bars",
    "rate_change",
    "rate_grid",
    "show",
    "template",
    "token_lines",
    "token_strip",
    "tradeoff",
    "training_curves",
]


def _with_interval(row: Any) -> str:
    return f"{row.value:.3f}{_interval(row)}"


def _interval(row: Any) -> str:
    low, high = getattr(row, "low", math.nan), getattr(row, "high", math.nan)
    return "" if pd.isna(low) or pd.isna(high) else f" [{low:.2f}, {high:.2f}]"


def cosine_heatmap(table: pd.DataFrame, *, title: str | None = None, theme: str = "light") -> go.Figure:
    """Cosines between directions, one cell per pair, the interval on hover.

    Args:
        table: a, b, cosine, and optionally low, high; a pair may stand in one order only. With `significant` (against
            the null, after correction), a cell that is not says "n.s."; with `p`, the hover says it.
    """
    need_columns(table, ("a", "b", "cosine"), "cosine heat map")
    across = set(table["a"]).isdisjoint(table["b"])  # shifts against directions, say: a table, no square
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("a", "b"))
    if not across:
        rows = columns = list(dict.fromkeys([*rows, *columns]))
    values = np.full((len(rows), len(columns)), np.nan)
    hover, weak = np.full(values.shape, "", dtype=object), np.zeros(values.shape, dtype=bool)
    for row in table.itertuples():
        text = f"cos({escape(row.a)}, {escape(row.b)})<br>{row.cosine:.3f}{_interval(row)}{_test(row)}"
        for a, b in [(row.a, row.b)] if across else [(row.a, row.b), (row.b, row.a)]:
            cell = rows.index(a), columns.index(b)
            values[cell], hover[cell], weak[cell] = row.cosine, text, not getattr(row, "significant", True)
    figure = blank_figure(theme, title, height=max(480, 200 + (40 if weak.any() else 32) * len(rows)))
    figure.add_heatmap(
        z=values,
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        zmin=-1,
        zmax=1,
        colorscale=diverging(theme),
        customdata=hover,
        colorbar={"title": {"text": "cosine"}},
        **cells(values, weak),
    )
    figure.update_xaxes(**_name_ticks(columns))
    figure.update_yaxes(**_name_ticks(rows), autorange="reversed")
    if weak.any():
        add_note(figure, f"{NOT_SIGNIFICANT}: not significant against the null, after correction")
    return figure


def _test(row: Any) -> str:
    p, significant = getattr(row, "p", None), getattr(row, "significant", None)
    shown = "" if p is None or pd.isna(p) else f"<br>p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    return shown + ("" if significant is None or significant else f"<br>{NOT_SIGNIFICANT} after correction")


def _name_ticks(names: Sequence[str]) -> dict[str, Any]:
    labels = [escape(name, limit=28) for name in names]
    return {"tickvals": list(range(len(names))), "ticktext": labels, "showgrid": False}


def layer_sweep(
    table: pd.DataFrame,
    *,
    chance: float | None = None,
    y_title: str = "value",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """How measures change over the layers, with intervals.

    Args:
        table: layer, measure, value, and optionally low, high.
        chance: a dashed line at the value that chance gives.
    """
    need_columns(table, ("layer", "measure", "value"), "layer sweep")
    figure = blank_figure(theme, title)
    colors = prompt_colors(table["measure"], theme=theme)
    for number, (name, group) in enumerate(groups(table, "measure")):
        rows = group.sort_values("layer")
        aside = 0.05 * (number - (len(colors) - 1) / 2)  # so that intervals do not cover each other
        figure.add_scatter(
            x=rows["layer"] + aside,
            y=rows["value"],
            error_y=_error_bars(rows),
            mode="lines+markers",
            name=escape(name, limit=40),
            line={"color": colors[name], "width": 2},
            marker={"symbol": SYMBOLS[number], "size": 9},
            customdata=[[f"layer {r.layer}<br>{escape(name)}: {_with_interval(r)}"] for r in rows.itertuples()],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    if chance is not None:
        figure.add_hline(y=chance, line={"dash": "dash", "width": 1, "color": theme_colors(theme)["grey"]})
    figure.update_xaxes(title_text="layer (0: embeddings)", tickvals=sorted(table["layer"].unique()))
    figure.update_yaxes(title_text=escape(y_title))
    figure.update_layout(showlegend=True)
    return figure


def _error_bars(rows: pd.DataFrame) -> dict[str, Any] | None:
    if not {"low", "high"} <= set(rows.columns):
        return None
    above, below = rows["high"] - rows["value"], rows["value"] - rows["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.4, "width": 4}


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
            error_y=_error_bars(rows),
            marker={
                "color": CLASS_COLORS.get(name) or others[name],
                "pattern": {"shape": CLASS_PATTERNS.get(name, "x"), "fillmode": "overlay", "size": 6},
                "line": {"width": 1, "color": theme_colors(theme)["ink"]},
            },
            customdata=[[f"{escape(r.prompt)}, {escape(name)}: {_with_interval(r)}"] for r in rows.itertuples()],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title_text=escape(y_title), range=[0, 1.02], tickformat=".1f")
    figure.update_layout(showlegend=True, legend_title_text="Queries")
    return figure


def calibration(
    table: pd.DataFrame,
    *,
    note: str = "",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """A quick refusal score against the sampled refusal rate, one point per query and prompt.

    Args:
        table: query_id, prompt, harmful, text, score, rate.
        note: a line under the plot, such as the measured agreement.
    """
    need_columns(table, ("query_id", "prompt", "harmful", "text", "score", "rate"), "calibration")
    points = table.assign(x=table["rate"], y=table["score"])
    titles = ("sampled refusal rate", "first-token score")
    figure = projection(points, axis_titles=titles, ranges=((-0.04, 1.04), (-0.04, 1.04)), title=title, theme=theme)
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="equal", hoverinfo="skip", legend="legend2",
        line={"color": theme_colors(theme)["ink"], "width": 1, "dash": "dash"},
    )  # fmt: skip
    if note:
        small_print(figure, escape(note))
    return figure


_ROLES = {
    "shared": ("template, the same for every query", "#E4E4E4"),
    "prompt": ("safety prompt", PALETTE[4]),
    "own": ("only in this chat", PALETTE[1]),
    "read": ("read position", PALETTE[5]),
}


def token_strip(
    tokens: Sequence[str],
    *,
    prompt_span: tuple[int, int] | None = None,
    prefix: int = 0,
    read: int = -1,
    columns: int = 10,
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """The tokens of one rendered chat, in reading order, coloured by what they are.

    Args:
        tokens: the text of each token; spaces and line breaks are made visible.
        prompt_span: first and one past the last token of the safety prompt.
        prefix: how many first tokens all chats under this prompt share.
        read: the position whose hidden state is read (negative counts from the end).
    """
    if not tokens:
        raise FigureError("No tokens to show: render a chat first.")
    span = range(*prompt_span) if prompt_span else range(0)
    position = read % len(tokens)
    names = list(_ROLES)
    roles = ["prompt" if i in span else "shared" if i < prefix else "own" for i in range(len(tokens))]
    roles[position] = "read"
    rows = math.ceil(len(tokens) / columns)
    codes = np.full((rows, columns), None)  # not nan, which a widget's messages cannot hold in two dimensions
    labels, hover = np.full(codes.shape, "", dtype=object), np.full(codes.shape, "", dtype=object)
    for i, (token, role) in enumerate(zip(tokens, roles, strict=True)):
        visible = token.replace(" ", "␣").replace("\n", "⏎")
        codes[divmod(i, columns)] = names.index(role)
        labels[divmod(i, columns)] = escape(visible, limit=12)
        hover[divmod(i, columns)] = f"token {i}: {escape(visible)}<br>{_ROLES[role][0]}"
    figure = blank_figure(theme, title)
    _add_token_cells(figure, codes, labels, hover)
    for role in dict.fromkeys(roles):
        legend_entry(figure, _ROLES[role][0], {"symbol": "square", "size": 12, "color": _ROLES[role][1]})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    legend = {"orientation": "h", "y": -0.02, "yanchor": "top"}
    figure.update_layout(height=140 + 30 * rows, legend=legend, showlegend=True, margin_b=70)
    return figure


def _add_token_cells(figure: go.Figure, codes: np.ndarray, labels: np.ndarray, hover: np.ndarray) -> None:
    colors = [color for _, color in _ROLES.values()]
    steps = [[edge, color] for i, color in enumerate(colors) for edge in (i / len(colors), (i + 1) / len(colors))]
    figure.add_heatmap(
        z=codes,
        zmin=-0.5,
        zmax=len(colors) - 0.5,
        colorscale=steps,
        showscale=False,
        text=labels,
        texttemplate="%{text}",
        textfont={"family": "'DejaVu Sans Mono', Consolas, monospace", "size": 11, "color": "#1F1F1F"},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
    )
