"""Figures of many results at once: models × prompts, models × queries, and the tokens of trained prompts.

Public under `drolab.figures`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.figures.style import (
    SYMBOLS,
    blank_figure,
    escape,
    groups,
    need_columns,
    prompt_colors,
    theme_colors,
    wrapped,
)

_HOVER = "%{customdata}<extra></extra>"
_CELLS = {"ygap": 1, "zmin": 0, "zmax": 1, "colorscale": "Cividis", "hovertemplate": _HOVER, "hoverongaps": False}


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
    _add_dashes(figure, values, hover, theme)
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


def _add_dashes(figure: go.Figure, values: np.ndarray, hover: np.ndarray, theme: str) -> None:
    """A dash in each cell that is missing: an empty cell could be taken for a light one."""
    y, x = np.isnan(values).nonzero()
    figure.add_scatter(
        x=x,
        y=y,
        mode="text",
        text=["–"] * len(x),
        textfont={"color": theme_colors(theme)["grey"]},
        customdata=hover[y, x],
        hovertemplate=_HOVER,
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


_TOKEN_MEASURES = {"norm": "norm of the embedding", "drift": "distance", "cosine": "cosine"}


def token_lines(
    table: pd.DataFrame, *, measure: str = "norm", title: str | None = None, theme: str = "light"
) -> go.Figure:
    """A measure of each token of trained prompts, one line per prompt.

    Args:
        table: prompt, token, the measure, and optionally against, text (of the token), as from
            `published.trained_tokens` for one model and one human prompt.
        measure: norm, drift or cosine.
    """
    need_columns(table, ("prompt", "token", measure), "figure of tokens")
    colors = prompt_colors(table["prompt"], theme=theme)
    figure = blank_figure(theme, title, height=380)
    for number, (name, rows) in enumerate(groups(table, "prompt")):
        figure.add_scatter(
            x=rows["token"],
            y=rows[measure],
            mode="lines+markers",
            name=escape(name, limit=40),
            line={"color": colors[name], "width": 1.5},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 6},
            customdata=[_token_hover(row, measure) for row in rows.itertuples()],
            hovertemplate=_HOVER,
        )
    against = [name for name in table["against"].unique() if name] if "against" in table else []
    apart = f" from {against[0]}" if measure != "norm" and len(against) == 1 else ""
    figure.update_xaxes(title_text="token of the prompt")
    figure.update_yaxes(title_text=escape(_TOKEN_MEASURES.get(measure, measure) + apart), rangemode="tozero")
    figure.update_layout(showlegend=True)
    return figure


def _token_hover(row: Any, measure: str) -> str:
    text = f" {escape(repr(row.text), limit=40)}" if hasattr(row, "text") else ""
    other = "" if measure == "norm" or not hasattr(row, "against") else row.against
    against = f" (against {escape(other)})" if other else ""
    return f"{escape(row.prompt)}, token {row.token}{text}<br>{measure} {getattr(row, measure):.3f}{against}"
