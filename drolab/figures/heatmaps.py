"""Figures of evidence: layer × position maps, the forest plot of a verdict, dose-response curves.

Public under `drolab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.figures.style import (
    HOVER,
    PALETTE,
    FigureError,
    blank_figure,
    escape,
    interval_text,
    legend_entry,
    need_columns,
    theme_colors,
    wrapped,
)

NOT_SIGNIFICANT = "n.s."
"""Second line of a heat map's cell that does not stand out from chance or from its control."""

_CORRELATION = (-1.0, 0.0, 1.0)
_SCALES = {
    "harmfulness": ("AUC", (0.0, 0.5, 1.0)),
    "refusal": ("correlation", _CORRELATION),
    "refusal within class": ("correlation", _CORRELATION),
    "shift size": ("× spread of the states", None),
    "shift cosine": ("cosine", _CORRELATION),
    "refusal cosine": ("cosine", _CORRELATION),
}
"""Per measure its unit, and its least, middle (chance) and largest value, if it has these."""


def layer_position_map(
    table: pd.DataFrame, *, measure: str, title: str | None = None, theme: str = "light"
) -> go.Figure:
    """One measure over the layers and read positions, the interval on hover.

    AUCs, correlations and cosines have a fixed scale with chance in its middle, so that maps compare; other measures
    go from zero to their largest value. Where the table has the measure's control, a cell whose interval does not lie
    above the control's says "n.s.".

    Args:
        table: layer, position, measure, value, and optionally token, low, high, as from `sweep.measure_sites`.
        measure: the one to show.

    Raises:
        FigureError: a column or the measure is missing, or it is NaN everywhere.
    """
    need_columns(table, ("layer", "position", "measure", "value"), "layer × position map")
    rows = table[table["measure"] == measure]
    if rows["value"].isna().all():
        known = table.loc[table["value"].notna(), "measure"].unique().tolist()
        raise FigureError(f"The table has no values of {measure!r}: choose one of {known}.")
    rows, control = _beside_control(table, rows, measure)
    layers, positions = (sorted(rows[name].unique()) for name in ("layer", "position"))
    values = np.full((len(layers), len(positions)), np.nan)
    hover, weak = np.full(values.shape, "", dtype=object), np.zeros(values.shape, dtype=bool)
    for row in rows.itertuples():
        cell = layers.index(row.layer), positions.index(row.position)
        values[cell], hover[cell] = row.value, _site_hover(row, control)
        weak[cell] = bool(control) and not getattr(row, "low", math.nan) > getattr(row, "control_high", math.nan)
    figure = blank_figure(theme, title or measure, height=max(360, 190 + 44 * len(layers)))
    places = {"x": list(range(len(positions))), "y": list(range(len(layers)))}
    figure.add_heatmap(z=values, customdata=hover, **places, **_color(measure, rows, theme), **cells(values, weak))
    _add_dashes(figure, values, hover, theme)
    texts = rows.drop_duplicates("position").set_index("position")["token"].to_dict() if "token" in rows else {}
    names = [f"−{-position}<br>{_visible(texts.get(position, ''))}" for position in positions]
    figure.update_xaxes(title_text="read position (−1: last token of the chat)", showgrid=False)
    figure.update_xaxes(tickvals=places["x"], ticktext=names)
    figure.update_yaxes(title_text="layer (0: embeddings)", showgrid=False)
    figure.update_yaxes(tickvals=places["y"], ticktext=[str(layer) for layer in layers])
    if weak[~np.isnan(values)].any():
        add_note(figure, f"{NOT_SIGNIFICANT}: the interval does not lie above that of “{escape(control)}”")
    return figure


def add_note(figure: go.Figure, text: str) -> None:
    """Small print below the names at the x axis, however deep they reach; already escaped."""
    small, above = f"<span style='font-size:11px'>{text}</span>", figure.layout.xaxis.title.text
    figure.update_xaxes(title_text=f"{above}<br>{small}" if above else small)


def _beside_control(table: pd.DataFrame, rows: pd.DataFrame, measure: str) -> tuple[pd.DataFrame, str]:
    """The rows with `control_value, control_low, control_high` of the same site, and the control's name, if any."""
    names = [name for name in (f"{measure}, shuffled", f"{measure}, control") if (table["measure"] == name).any()]
    if not names:
        return rows, ""
    sites = ["layer", "position"]
    ends = [name for name in ("value", "low", "high") if name in table]
    control = table.loc[table["measure"] == names[0], [*sites, *ends]]
    beside = control.rename(columns={name: f"control_{name}" for name in ends})
    return rows.merge(beside, on=sites, how="left"), names[0]


def cells(values: np.ndarray, weak: np.ndarray) -> dict[str, Any]:
    """The texts and settings of a heat map's cells; those that are `weak` get a second line that says so."""
    texts = [
        ["" if math.isnan(value) else f"{value:.2f}" + f"<br>{NOT_SIGNIFICANT}" * bool(dull) for value, dull in pair]
        for pair in (zip(*lines, strict=True) for lines in zip(values.round(2) + 0.0, weak, strict=True))
    ]
    gaps = {"xgap": 1, "ygap": 1, "hoverongaps": False, "hovertemplate": HOVER}
    return {"text": texts, "texttemplate": "%{text}", "textfont": {"size": 12}, **gaps}


def diverging(theme: str) -> list[list[Any]]:
    """Blue, the background, vermilion: for values on both sides of a middle."""
    return [[0, PALETTE[0]], [0.5, theme_colors(theme)["zero"]], [1, PALETTE[5]]]


def _color(measure: str, rows: pd.DataFrame, theme: str) -> dict[str, Any]:
    unit, limits = _SCALES.get(measure.split(",")[0], (escape(measure, limit=28), None))
    bar = {"colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 16}}
    if limits is None:
        least, largest = min(0.0, rows["value"].min()), max(0.0, rows["value"].max())
        return {"zmin": least, "zmax": largest if largest > least else least + 1, "colorscale": "Cividis", **bar}
    return {"zmin": limits[0], "zmid": limits[1], "zmax": limits[2], "colorscale": diverging(theme), **bar}


def _site_hover(row: Any, control: str) -> str:
    token = f" {_visible(row.token)}" if getattr(row, "token", "") else ""
    lines = [f"layer {row.layer}, position {row.position}{token}", f"{escape(row.measure)}: {_number(row)}"]
    if control:
        lines.append(f"{escape(control)}: {_number(row, 'control_')}")
    return "<br>".join(lines)


def _number(row: Any, prefix: str = "") -> str:
    value, low, high = (getattr(row, f"{prefix}{name}", math.nan) for name in ("value", "low", "high"))
    if math.isnan(value):
        return "none, the states do not differ here"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def _visible(token: str) -> str:
    return escape(token.replace(" ", "␣").replace("\n", "⏎"), limit=14)


def _add_dashes(figure: go.Figure, values: np.ndarray, hover: np.ndarray, theme: str) -> None:
    """A dash in each cell that has no value: an empty cell could be taken for a light one."""
    y, x = np.isnan(values).nonzero()
    figure.add_scatter(
        x=x, y=y, mode="text", text=["–"] * len(x), textfont={"color": theme_colors(theme)["grey"]},
        customdata=hover[y, x], hovertemplate=HOVER, showlegend=False,
    )  # fmt: skip


# --- the verdict -------------------------------------------------------------------------------------------


# --- dose and response -------------------------------------------------------------------------------------


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
        text = f"cos({escape(row.a)}, {escape(row.b)})<br>{row.cosine:.3f}{interval_text(row)}{_test(row)}"
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
        hovertemplate=HOVER,
        hoverongaps=False,
        xgap=2,
        ygap=2,
    )


_CELLS = {"ygap": 1, "zmin": 0, "zmax": 1, "colorscale": "Cividis", "hovertemplate": HOVER, "hoverongaps": False}


def rate_grid(table: pd.DataFrame, *, what: str = "rate", title: str | None = None, theme: str = "light") -> go.Figure:
    """Rates of models under prompts, one cell each, in percent, the interval on hover. What is missing has a dash.

    Args:
        table: model, prompt, value, and optionally low, high, as from `published.grid`.
        what: what the rate is of, for the colour bar.
    """
    need_columns(table, ("model", "prompt", "value"), "grid of rates")
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("model", "prompt"))
    values, hover = _cells(table, rows, columns)
    figure = blank_figure(theme, title, height=180 + 34 * len(rows))
    figure.add_heatmap(
        z=values,
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        text=[["" if math.isnan(value) else f"{100 * value:.1f}" for value in line] for line in values],
        texttemplate="%{text}",
        customdata=hover,
        xgap=1,
        colorbar={"title": {"text": escape(what)}, "tickformat": ".0%"},
        **_CELLS,
    )
    _add_gaps(figure, values, hover, theme)
    figure.update_xaxes(**_ticks(columns))
    figure.update_yaxes(**_ticks(rows), autorange="reversed")
    return figure


def _cells(table: pd.DataFrame, rows: list[str], columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """[rows, columns]: the values, NaN where there is none, and the hover texts."""
    values = np.full((len(rows), len(columns)), np.nan)
    hover = np.array([[f"{escape(a)}, {escape(b)}: missing" for b in columns] for a in rows], dtype=object)
    present: Any = table.dropna(subset="value").itertuples()
    for row in present:
        cell = rows.index(row.model), columns.index(row.prompt)
        low, high = getattr(row, "low", math.nan), getattr(row, "high", math.nan)
        interval = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
        values[cell] = row.value
        hover[cell] = f"{escape(row.model)}, {escape(row.prompt)}<br>{100 * row.value:.1f} %{interval}"
    return values, hover


def _add_gaps(figure: go.Figure, values: np.ndarray, hover: np.ndarray, theme: str) -> None:
    """A dash in each cell that is missing: an empty cell could be taken for a light one."""
    y, x = np.isnan(values).nonzero()
    figure.add_scatter(
        x=x,
        y=y,
        mode="text",
        text=["–"] * len(x),
        textfont={"color": theme_colors(theme)["grey"]},
        customdata=hover[y, x],
        hovertemplate=HOVER,
        showlegend=False,
    )


def _ticks(names: list[str]) -> dict[str, Any]:
    labels = [escape(name, limit=28) for name in names]
    return {"tickvals": list(range(len(names))), "ticktext": labels, "showgrid": False, "zeroline": False}


def query_grid(
    table: pd.DataFrame, *, what: str = "share of samples", title: str | None = None, theme: str = "light"
) -> go.Figure:
    """Every query in a column, sorted by its mean: which queries does it depend on?

    Args:
        table: row (a model, or a prompt), query_id, rate, and optionally text (of the query), as from
            `published.query_rows`.
    """
    need_columns(table, ("row", "query_id", "rate"), "grid of queries")
    wide = table.pivot(index="row", columns="query_id", values="rate").loc[list(dict.fromkeys(table["row"]))]
    wide = wide[wide.mean().sort_values(ascending=False, kind="stable").index]
    texts = table.drop_duplicates("query_id").set_index("query_id")["text"].to_dict() if "text" in table else {}
    heads = [f"{escape(query)}<br>{wrapped(texts.get(query, ''))}" for query in wide.columns]
    hover = [
        [f"<b>{escape(name)}</b>: {value:.2f}<br>{head}" for value, head in zip(line, heads, strict=True)]
        for name, line in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    figure = blank_figure(theme, title, height=220 + 26 * len(wide))
    figure.add_heatmap(
        z=wide.to_numpy(),
        x=list(range(1, wide.shape[1] + 1)),
        y=list(range(len(wide))),
        customdata=hover,
        colorbar={"title": {"text": escape(what)}},
        **_CELLS,
    )
    figure.update_xaxes(title_text="query, sorted by its mean", showgrid=False)
    figure.update_yaxes(**_ticks(list(wide.index)), autorange="reversed")
    return figure
