"""Figures made of cells: `cosine_heatmap`, `layer_position_map`, `rate_grid`, `query_grid` and `token_strip`.

A cell has its number in it and the rest on hover. One without a value has a dash, since an empty cell could be taken
for a light one; one that does not stand out from chance or from its control says "n.s.".
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
    short_name,
    small_print,
    text_of,
    theme_colors,
    token_label,
    value_text,
    wrapped,
)

_NOT_SIGNIFICANT = "n.s."

_CORRELATION = (-1.0, 0.0, 1.0)
_SCALES = {
    "harmfulness": ("AUC", (0.0, 0.5, 1.0)),
    "refusal": ("correlation", _CORRELATION),
    "refusal within class": ("correlation", _CORRELATION),
    "shift size": ("× spread of the states", None),
    "shift cosine": ("cosine", _CORRELATION),
    "refusal cosine": ("cosine", _CORRELATION),
}
"""Per measure of a map its unit, and its least, middle (chance) and largest value, if it has these."""

_ROLES = {
    "shared": ("the same for every query", "#E4E4E4"),
    "prompt": ("safety prompt", PALETTE[4]),
    "own": ("only in this chat", PALETTE[1]),
    "read": ("read position", PALETTE[5]),
}
"""What a token of a chat is: in words, and its colour."""


def cosine_heatmap(table: pd.DataFrame, *, title: str | None = None, theme: str = "light") -> go.Figure:
    """Cosines between directions, one cell per pair, the interval on hover.

    Args:
        table: a, b, cosine, and optionally low, high; a pair may stand in one order only. With `significant` (against
            the null, after correction), a cell that is not says "n.s."; the hover says `p`, and from `null_low` and
            `null_high` how far the null reaches, which is why a large cosine can be "n.s.".

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> pairs = pd.DataFrame({"a": ["default", "default", "short"], "b": ["short", "mine", "mine"],
        ...                       "cosine": [0.91, 0.12, 0.64], "significant": [True, False, True]})
        >>> figures.cosine_heatmap(pairs).data[0].text[0]  # the row of `default`
        ['', '0.91', '0.12<br>n.s.']
    """
    need_columns(table, ("a", "b", "cosine"), "cosine heat map")
    across = set(table["a"]).isdisjoint(table["b"])  # shifts against directions, say: a table, no square
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("a", "b"))
    if not across:
        rows = columns = list(dict.fromkeys([*rows, *columns]))
    values, hover, weak = _blank_cells(len(rows), len(columns))
    for row in table.itertuples():
        text = f"cos({escape(row.a)}, {escape(row.b)})<br>{value_text(row, 'cosine')}{_test(row)}"
        for a, b in [(row.a, row.b)] if across else [(row.a, row.b), (row.b, row.a)]:
            cell = rows.index(a), columns.index(b)
            values[cell], hover[cell], weak[cell] = row.cosine, text, not getattr(row, "significant", True)
    figure = blank_figure(theme, title, height=max(480, 200 + (40 if weak.any() else 32) * len(rows)))
    scale = {"zmin": -1, "zmax": 1, "colorscale": _diverging(theme), "colorbar": {"title": {"text": "cosine"}}}
    _add_cells(figure, values, hover, text=_numbers(values, weak), textfont={"size": 12}, **scale)
    note = f"{_NOT_SIGNIFICANT}: not significant against the null, after correction" if weak.any() else ""
    figure.update_xaxes(**_name_ticks(columns), title_text=small_print(note))
    figure.update_yaxes(**_name_ticks(rows), autorange="reversed")
    return figure


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
    if rows["value"].isna().all() and not _noted(rows):
        known = table.loc[table["value"].notna(), "measure"].unique().tolist()
        raise FigureError(f"The table has no values of {measure!r}: choose one of {known}.")
    rows, control = _beside_control(table, rows, measure)
    layers, positions = (sorted(rows[name].unique()) for name in ("layer", "position"))
    values, hover, weak = _blank_cells(len(layers), len(positions))
    for row in rows.itertuples():
        cell = layers.index(row.layer), positions.index(row.position)
        values[cell], hover[cell] = row.value, _site_hover(row, control)
        stands_out = getattr(row, "low", math.nan) > getattr(row, "control_high", math.nan)
        weak[cell] = (bool(control) and not stands_out) or bool(text_of(row, "note"))
    figure = blank_figure(theme, title or measure, height=max(360, 190 + 44 * len(layers)))
    look = {"textfont": {"size": 12}, **_scale(measure, rows, theme)}
    _add_cells(figure, values, hover, text=_numbers(values, weak), **look)
    _add_dashes(figure, values, hover, theme)
    above = "read position (−1: last token of the chat)"
    note = f"{_NOT_SIGNIFICANT}: the interval does not lie above that of “{escape(control)}”, or see the note on hover"
    texts = rows.drop_duplicates("position").set_index("position")["token"].to_dict() if "token" in rows else {}
    names = [f"−{-position}<br>{token_label(texts.get(position, ''), 14)}" for position in positions]
    figure.update_xaxes(**_ticks(names), title_text=small_print(note if weak[~np.isnan(values)].any() else "", above))
    figure.update_yaxes(**_ticks([str(layer) for layer in layers]), title_text="layer (0: embeddings)")
    return figure


def rate_grid(table: pd.DataFrame, *, what: str = "rate", title: str | None = None, theme: str = "light") -> go.Figure:
    """Rates of models under prompts, one cell each, in percent, the interval on hover. What is missing has a dash.

    Args:
        table: model, prompt, value, and optionally low, high, as from `published.grid`.
        what: what the rate is of, for the colour bar.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.
    """
    need_columns(table, ("model", "prompt", "value"), "grid of rates")
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("model", "prompt"))
    values, hover, _ = _blank_cells(len(rows), len(columns))
    hover[:] = [[f"{escape(a)}, {escape(b)}: missing" for b in columns] for a in rows]
    present: Any = table.dropna(subset="value").itertuples()
    for row in present:
        cell, interval = (rows.index(row.model), columns.index(row.prompt)), interval_text(row, digits=1, scale=100)
        values[cell] = row.value
        hover[cell] = f"{escape(row.model)}, {escape(row.prompt)}<br>{100 * row.value:.1f} %{interval}"
    figure = blank_figure(theme, title, height=180 + 34 * len(rows))
    texts = [["" if math.isnan(value) else f"{100 * value:.1f}" for value in line] for line in values]
    _add_cells(
        figure, values, hover, text=texts, **_SHARES, colorbar={"title": {"text": escape(what)}, "tickformat": ".0%"}
    )
    _add_dashes(figure, values, hover, theme)
    figure.update_xaxes(**_name_ticks(columns))
    figure.update_yaxes(**_name_ticks(rows), autorange="reversed")
    return figure


def query_grid(
    table: pd.DataFrame, *, what: str = "share of samples", title: str | None = None, theme: str = "light"
) -> go.Figure:
    """Every query in a column, sorted by its mean: which queries does it depend on?

    Args:
        table: row (a model, or a prompt), query_id, rate, and optionally text (of the query), as from
            `published.query_rows`.

    Raises:
        FigureError: a column is missing, there are no rows, or no such theme.
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
    look = {"x0": 1, "xgap": 0, "colorbar": {"title": {"text": escape(what)}}, **_SHARES}
    _add_cells(figure, wide.to_numpy(), hover, **look)
    figure.update_xaxes(title_text="query, sorted by its mean", showgrid=False)
    figure.update_yaxes(**_name_ticks(list(wide.index)), autorange="reversed")
    return figure


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

    Raises:
        FigureError: there are no tokens, or no such theme.

    Examples:
        >>> from drolab import figures
        >>> strip = figures.token_strip(["<s>", "Be", " nice", "\\n", "How", "?"], prompt_span=(1, 3), prefix=4)
        >>> list(strip.data[0].text[0][:6])
        ['&lt;s&gt;', 'Be', '␣nice', '⏎', 'How', '?']
        >>> [trace.name for trace in strip.data[1:]]
        ['the same for every query', 'safety prompt', 'only in this chat', 'read position']
    """
    if not tokens:
        raise FigureError("No tokens to show: render a chat first.")
    span = range(*prompt_span) if prompt_span else range(0)
    roles = ["prompt" if i in span else "shared" if i < prefix else "own" for i in range(len(tokens))]
    roles[read % len(tokens)] = "read"
    rows, names = math.ceil(len(tokens) / columns), list(_ROLES)
    codes = np.full((rows, columns), None)  # not nan, which a widget's messages cannot hold in two dimensions
    labels, hover = np.full(codes.shape, "", dtype=object), np.full(codes.shape, "", dtype=object)
    for i, (token, role) in enumerate(zip(tokens, roles, strict=True)):
        cell = divmod(i, columns)
        codes[cell], labels[cell] = names.index(role), token_label(token, 10)
        hover[cell] = f"token {i}: {token_label(token)}<br>{_ROLES[role][0]}"
    figure = blank_figure(theme, title)
    colors = [color for _, color in _ROLES.values()]
    steps = [[edge, color] for i, color in enumerate(colors) for edge in (i / len(colors), (i + 1) / len(colors))]
    font = {"family": "'DejaVu Sans Mono', Consolas, monospace", "size": 12, "color": "#1F1F1F"}
    scale = {"zmin": -0.5, "zmax": len(colors) - 0.5, "colorscale": steps, "showscale": False}
    _add_cells(figure, codes, hover, text=labels, textfont=font, xgap=2, ygap=2, **scale)
    for role in dict.fromkeys(roles):
        marker = {"symbol": "square", "size": 12, "color": _ROLES[role][1]}
        figure.add_trace(legend_entry(_ROLES[role][0], marker=marker))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    legend = {"orientation": "h", "y": -0.02, "yanchor": "top"}
    figure.update_layout(height=140 + 30 * rows, legend=legend, showlegend=True, margin_b=70)
    return figure


# ---------------------------------------------------------------- cells


_SHARES = {"zmin": 0, "zmax": 1, "colorscale": "Cividis"}


def _blank_cells(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[rows, columns] each: no value, no hover text, and False for cells that do not stand out."""
    shape = (rows, columns)
    return np.full(shape, np.nan), np.full(shape, "", dtype=object), np.zeros(shape, dtype=bool)


def _add_cells(figure: go.Figure, values: np.ndarray, hover: Any, **look: Any) -> None:
    """A heat map at the places 0, 1, …; `look` may have the cells' `text`."""
    shown = {"texttemplate": "%{text}"} if "text" in look else {}
    gaps = {"xgap": 1, "ygap": 1, "hoverongaps": False, "hovertemplate": HOVER}
    figure.add_heatmap(z=values, customdata=hover, **{"x0": 0, "dx": 1, "y0": 0, "dy": 1, **gaps, **shown, **look})


def _add_dashes(figure: go.Figure, values: np.ndarray, hover: np.ndarray, theme: str) -> None:
    y, x = np.isnan(values).nonzero()
    figure.add_scatter(
        x=x, y=y, mode="text", text=["–"] * len(x), textfont={"color": theme_colors(theme)["grey"]},
        customdata=hover[y, x], hovertemplate=HOVER, showlegend=False,
    )  # fmt: skip


def _numbers(values: np.ndarray, weak: np.ndarray) -> list[list[str]]:
    """The texts of cells: their values, and a second line in those that are `weak`."""
    return [
        ["" if math.isnan(value) else f"{value:.2f}" + f"<br>{_NOT_SIGNIFICANT}" * bool(dull) for value, dull in pair]
        for pair in (zip(*lines, strict=True) for lines in zip(values.round(2) + 0.0, weak, strict=True))
    ]  # + 0.0: no "-0.00"


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    return {"tickvals": list(range(len(labels))), "ticktext": labels, "ticklabeloverflow": "allow", "showgrid": False}


def _name_ticks(names: Sequence[str]) -> dict[str, Any]:
    return _ticks([short_name(name) for name in names])


def _diverging(theme: str) -> list[list[Any]]:
    """Blue, the background, vermilion: for values on both sides of a middle."""
    return [[0, PALETTE[0]], [0.5, theme_colors(theme)["zero"]], [1, PALETTE[5]]]


def _test(row: Any) -> str:
    """What a test against the null says of a cosine, if there was one, and why."""
    p, low, high = (getattr(row, name, math.nan) for name in ("p", "null_low", "null_high"))
    lines = [] if pd.isna(p) else [f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"]
    ranged = not pd.isna([low, high]).any()
    if ranged:
        lines.append(f"the null reaches from {low:.2f} to {high:.2f}")
    if not getattr(row, "significant", True):
        inside = (
            ": the null reaches as far" if low <= row.cosine <= high else ": too close to the null for so many cells"
        )
        lines.append(f"{_NOT_SIGNIFICANT} after correction{inside if ranged else ''}")
    return "".join(f"<br>{line}" for line in lines)


# ---------------------------------------------------------------- layers × positions


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


def _scale(measure: str, rows: pd.DataFrame, theme: str) -> dict[str, Any]:
    unit, limits = _SCALES.get(measure.split(",")[0], (short_name(measure), None))
    bar = {"colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 16}}
    if limits is None:
        least, largest = min(0.0, rows["value"].min()), max(0.0, rows["value"].max())
        return {"zmin": least, "zmax": largest if largest > least else least + 1, "colorscale": "Cividis", **bar}
    return {"zmin": limits[0], "zmid": limits[1], "zmax": limits[2], "colorscale": _diverging(theme), **bar}


def _site_hover(row: Any, control: str) -> str:
    token = f" {token_label(row.token, 14)}" if getattr(row, "token", "") else ""
    lines = [f"layer {row.layer}, position {row.position}{token}", f"{escape(row.measure)}: {_site_value(row)}"]
    if control:
        lines.append(f"{escape(control)}: {_site_value(row, 'control_')}")
    if note := text_of(row, "note"):
        lines.append(wrapped(note))
    return "<br>".join(lines)


def _noted(rows: pd.DataFrame) -> bool:
    return any(text_of(row, "note") for row in rows.itertuples())


def _site_value(row: Any, prefix: str = "") -> str:
    name = f"{prefix}value"
    return "none, the states do not differ here" if math.isnan(getattr(row, name)) else value_text(row, name, prefix)
