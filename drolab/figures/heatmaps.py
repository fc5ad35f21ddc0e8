"""Figures of evidence: layer × position maps, the forest plot of a verdict, dose-response curves.

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
    PALETTE,
    SYMBOLS,
    FigureError,
    blank_figure,
    class_name,
    dress,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    theme_colors,
)

_HOVER = "%{customdata}<extra></extra>"
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
    gaps = {"xgap": 1, "ygap": 1, "hoverongaps": False, "hovertemplate": _HOVER}
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
        customdata=hover[y, x], hovertemplate=_HOVER, showlegend=False,
    )  # fmt: skip


# --- the verdict -------------------------------------------------------------------------------------------

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
        legend_entry(figure, "range under the null", {"symbol": "square", "size": 12, "color": _band(theme)})
    if _threshold(table):
        line = {"color": theme_colors(theme)["ink"], "width": 1.5, "dash": "dash"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name="threshold", hoverinfo="skip")
    legend = {"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(showlegend=True, legend=legend)
    return figure


_ROW_HEIGHT, _HEAD_HEIGHT = 106, 74
"""Pixels of a claim, and of what of them is not its axis: the ticks of the one above and its words."""


def _band(theme: str) -> str:
    return theme_colors(theme)["grid"] if theme == "light" else "#4A4A4A"


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
        customdata=[f"{escape(row.claim)}<br>{numbers}"], hovertemplate=_HOVER, **place,
    )  # fmt: skip
    if null:
        grey = {"color": _band(theme), "width": 3}  # the edge shows a null of one value
        figure.add_vrect(row.null_low, row.null_high, fillcolor=_band(theme), line=grey, layer="below", **place)
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


# --- dose and response -------------------------------------------------------------------------------------

_CHECKS = {"other": "mass on neither", "kl": "KL (nats)"}
"""What the lower panels can show, and the titles of their axes: short, since these are low."""


def dose_response(
    table: pd.DataFrame, *, check: str = "other", title: str | None = None, theme: str = "light"
) -> go.Figure:
    """What a direction does as more of it is added: refusal and compliance per class.

    Full lines are refusal with its interval, dotted ones compliance; the grey band is the range over random directions
    of the same norm. Below, whether the model is still on its manifold.

    Args:
        table: direction, kind ("direction" or "random"), dose (in units of the typical shift), harmful, refusal,
            refusal_low, refusal_high, compliance, other, kl; one row per direction, dose and class.
        check: what the lower panels show: `other`, the probability of a first token that neither refuses nor complies,
            or `kl`, the divergence from the unmodified next-token distribution.

    Raises:
        FigureError: a column is missing, there are fewer than two doses, or no row of kind "direction".
    """
    if check not in _CHECKS:
        raise FigureError(f"No check is called {check!r}: choose one of {list(_CHECKS)}.")
    columns = ("direction", "kind", "dose", "harmful", "refusal", "refusal_low", "refusal_high", "compliance", check)
    need_columns(table, columns, "dose-response figure")
    named = table[table["kind"] == "direction"]
    doses = sorted(named["dose"].unique().tolist())
    if len(doses) < 2:
        raise FigureError(f"A curve needs two doses of a direction, these have {doses}: steer at more doses.")
    classes = [kind for kind in (True, False) if (table["harmful"] == kind).any()]
    figure = make_subplots(
        rows=2, cols=len(classes), shared_xaxes=True, shared_yaxes=True, row_heights=[0.64, 0.36],
        vertical_spacing=0.08, horizontal_spacing=0.05,
        subplot_titles=[f"{class_name(kind)} queries" for kind in classes],
    )  # fmt: skip
    colors = prompt_colors(named["direction"], theme=theme)
    for col, kind in enumerate(classes, start=1):
        _add_random(figure, table[(table["kind"] == "random") & (table["harmful"] == kind)], check, col, theme)
        for number, (name, rows) in enumerate(groups(named[named["harmful"] == kind], "direction")):
            marker = {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7, "color": colors[name]}
            _add_direction(figure, rows.sort_values("dose"), check, col, marker)
    _dose_legend(figure, colors, bool((table["kind"] == "random").any()), theme)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".1f", row=1)
    # Never magnified so far that a change of no importance fills the panel.
    figure.update_yaxes(range=[0, max(1.06 * table[check].max(), 0.01)], row=2)
    figure.update_yaxes(title_text="rate", row=1, col=1)
    figure.update_yaxes(title_text=_CHECKS[check], row=2, col=1)
    figure.update_xaxes(title_text="dose (× typical shift)", row=2)
    dress(figure, theme, title, height=620, margin_t=96 if title else 48, margin_b=110)
    legend = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "traceorder": "normal"}
    figure.update_layout(showlegend=True, legend=legend)
    return figure


def _add_direction(figure: go.Figure, rows: pd.DataFrame, check: str, col: int, marker: dict[str, Any]) -> None:
    name, color = escape(rows["direction"].iloc[0], limit=40), marker["color"]
    _add_band(figure, rows["dose"], rows["refusal_low"], rows["refusal_high"], _faded(color), 1, col)
    lines = [("refusal", "solid", 1), ("compliance", "dot", 1), (check, "solid", 2)]
    for column, dash, row in lines:
        hover = [_dose_hover(name, column, each) for each in rows.itertuples()]
        figure.add_scatter(
            x=rows["dose"], y=rows[column], mode="lines+markers", line={"color": color, "width": 2, "dash": dash},
            marker=marker, name=f"{name}, {column}", showlegend=False, customdata=hover, hovertemplate=_HOVER,
            row=row, col=col,
        )  # fmt: skip


def _dose_hover(name: str, column: str, row: Any) -> str:
    interval = f" [{row.refusal_low:.2f}, {row.refusal_high:.2f}]" if column == "refusal" else ""
    return f"{name}<br>dose {row.dose:g}, {class_name(row.harmful)}<br>{column}: {getattr(row, column):.3f}{interval}"


def _add_random(figure: go.Figure, rows: pd.DataFrame, check: str, col: int, theme: str) -> None:
    """The range over random directions, of refusal above and of the check below."""
    grey = {"width": 1, "color": theme_colors(theme)["grey"]}
    hover = "dose %{x:g}: %{y:.3f}<extra>random directions</extra>"
    for row, column in enumerate(("refusal", check), start=1):
        ends = rows.groupby("dose")[column].agg(["min", "max"])
        edges = {"line": grey, "hoverinfo": None, "hovertemplate": hover}
        _add_band(figure, ends.index, ends["min"], ends["max"], _band(theme), row, col, **edges)


def _add_band(
    figure: go.Figure, x: Any, low: pd.Series, high: pd.Series, color: str, row: int, col: int, **edges: Any
) -> None:
    """An area between two curves; without `edges`, a look of theirs, they are not seen and say nothing."""
    shared = {"x": x, "mode": "lines", "showlegend": False, "line": {"width": 0}, "hoverinfo": "skip", **edges}
    figure.add_scatter(y=low, row=row, col=col, **shared)
    figure.add_scatter(y=high, fill="tonexty", fillcolor=color, row=row, col=col, **shared)


def _faded(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


def _dose_legend(figure: go.Figure, colors: dict[str, str], random: bool, theme: str) -> None:
    for number, (name, color) in enumerate(colors.items()):
        marker = {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9, "color": color}
        legend_entry(figure, escape(name, limit=40), marker)
    grey = theme_colors(theme)["grey"]
    for name, dash in (("refusal", "solid"), ("compliance", "dot")):
        line = {"color": grey, "dash": dash, "width": 2}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=name, hoverinfo="skip")
    if random:
        marker = {"symbol": "square", "size": 12, "color": _band(theme)}
        legend_entry(figure, "random, same norm (range)", marker)
