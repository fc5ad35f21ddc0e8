"""Figures of DRO's training over its steps: the terms of the loss, and what the model is about to say.

Public under `drolab.figures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    class_name,
    class_names,
    dress,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    theme_colors,
)

_TERMS = {
    "refusal_loss": "refusal loss",
    "harmfulness_loss": "harmfulness loss",
    "residual_loss": "residual loss",
    "residual_drift": "residual drift (× anchor variance)",
}
_MASSES = {
    "refusal": "first token: refusal",
    "compliance": "first token: compliance",
    "other": "first token: neither",
}
_DASHES = {"harmful": "solid", "harmless": "dash"}
Cells = Sequence[tuple[int, int]]
"""Rows and columns of subplots, from 1."""


def training_curves(
    history: pd.DataFrame,
    measured: pd.DataFrame | None = None,
    *,
    n_steps: int | None = None,
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """The terms of DRO's loss and the residual drift over the steps: thin the batches, thick the epochs' means.

    Below them, what the model is about to say, if that was measured: see `first_token_curves`.

    Args:
        history: rows of `DROStep.numbers()`; with a column `run`, one colour per run.
        measured: rows of `runs.measure`, with the same runs.
        n_steps: the last step of the axis, for runs that are not finished; None fits the rows.
    """
    if measured is None or measured.empty:
        figure = make_subplots(
            rows=2, cols=2, subplot_titles=list(_TERMS.values()), vertical_spacing=0.16, horizontal_spacing=0.1
        )
        _add_terms(figure, history, [(1, 1), (1, 2), (2, 1), (2, 2)], theme)
        return _dressed(figure, n_steps, title, theme, rows=2)
    half, third = [{"colspan": 3}, None, None] * 2, [{"colspan": 2}, None] * 3
    figure = make_subplots(
        rows=3, cols=6, specs=[half, half, third], subplot_titles=[*_TERMS.values(), *_MASSES.values()],
        vertical_spacing=0.11, horizontal_spacing=0.06,
    )  # fmt: skip
    _add_terms(figure, history, [(1, 1), (1, 4), (2, 1), (2, 4)], theme)
    _add_masses(figure, measured, [(3, 1), (3, 3), (3, 5)], theme)
    return _dressed(figure, n_steps, title, theme, rows=3)


def first_token_curves(
    measured: pd.DataFrame, *, n_steps: int | None = None, title: str | None = None, theme: str = "light"
) -> go.Figure:
    """The first-token probability of refusal, of compliance and of neither over the steps, for each class.

    Full lines and crosses are harmful queries, dashed lines and circles harmless ones; query sets after the first
    (queries held out, say) have open symbols. One run is coloured by class, several by run.

    Args:
        measured: rows of `runs.measure`; with a column `run`, one colour per run.
        n_steps: the last step of the axis, for runs that are not finished; None fits the rows.
    """
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(_MASSES.values()), horizontal_spacing=0.06)
    _add_masses(figure, measured, [(1, 1), (1, 2), (1, 3)], theme)
    _run_legend(figure, measured, theme)
    return _dressed(figure, n_steps, title, theme, rows=1)


def _add_terms(figure: go.Figure, history: pd.DataFrame, cells: Cells, theme: str) -> None:
    need_columns(history, ("step", "epoch", *_TERMS), "training curve")
    for name, color, rows in _runs(history, theme):
        epochs = rows.groupby("epoch")[["step", *_TERMS]].mean()
        shared = {"mode": "lines", "name": escape(name, limit=28), "legendgroup": name, "showlegend": False}
        for column, (row, col) in zip(_TERMS, cells, strict=True):
            thin, thick = {"color": color, "width": 1}, {"color": color, "width": 2.5}
            figure.add_scatter(
                x=rows["step"], y=rows[column], line=thin, opacity=0.55, hoverinfo="skip", row=row, col=col, **shared
            )
            figure.add_scatter(
                x=epochs["step"], y=epochs[column], line=thick, hovertemplate="step %{x:.0f}: %{y:.4f}",
                row=row, col=col, **shared,
            )  # fmt: skip
    _run_legend(figure, history, theme)


def _add_masses(figure: go.Figure, measured: pd.DataFrame, cells: Cells, theme: str) -> None:
    need_columns(measured, ("step", "queries", "harmful", *_MASSES), "first-token curve")
    sets = list(measured["queries"].unique())
    several = "run" in measured.columns and measured["run"].nunique() > 1
    for name, color, rows in _runs(measured, theme):
        for (queries, harmful), group in groups(rows, ["queries", "harmful"]):
            look = _class_look(harmful, color if several else None, opened=queries != sets[0])
            hover = f"step %{{x}}: %{{y:.3f}}<extra>{escape(name, limit=28)}, {escape(queries, limit=28)}</extra>"
            for column, (row, col) in zip(_MASSES, cells, strict=True):
                figure.add_scatter(
                    x=group["step"], y=group[column], mode="lines+markers", hovertemplate=hover, showlegend=False,
                    legendgroup=name, row=row, col=col, **look,
                )  # fmt: skip
    _class_legend(figure, measured, sets, theme)
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".1f", row=cells[0][0])


def _dressed(figure: go.Figure, n_steps: int | None, title: str | None, theme: str, *, rows: int) -> go.Figure:
    figure.update_xaxes(title_text="step", row=rows)
    if n_steps is not None:
        figure.update_xaxes(range=[-0.02 * n_steps, 1.02 * n_steps])
    dress(figure, theme, title, height=160 + 210 * rows, margin_t=96 if title else 48, margin_b=96)
    figure.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"})
    return figure


def _runs(table: pd.DataFrame, theme: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each run."""
    names = table["run"] if "run" in table.columns else pd.Series("run", index=table.index)
    colors = prompt_colors(names, theme=theme)
    for name, rows in groups(table, names):
        yield str(name), colors[name], rows


def _run_legend(figure: go.Figure, table: pd.DataFrame, theme: str) -> None:
    runs = list(_runs(table, theme))
    for name, color, _ in runs if len(runs) > 1 else ():
        marker = {"symbol": "square", "size": 11, "color": color}
        legend_entry(figure, escape(name, limit=28), marker, legendgroup=name)


def _class_look(harmful: bool, color: str | None, *, opened: bool) -> dict[str, Any]:
    name = class_name(harmful)
    color = color or CLASS_COLORS[name]
    symbol = CLASS_SYMBOLS[name] + ("-open" if opened else "")
    return {
        "name": name,
        "line": {"color": color, "width": 1.2 if opened else 2, "dash": _DASHES[name]},
        "marker": {"symbol": symbol, "size": 7, "color": color},
    }


def _class_legend(figure: go.Figure, measured: pd.DataFrame, sets: Sequence[str], theme: str) -> None:
    present = set(class_names(measured["harmful"]))
    for number, queries in enumerate(sets):
        for name in (name for name in CLASS_SYMBOLS if name in present):
            marker = {"symbol": CLASS_SYMBOLS[name] + ("-open" if number else ""), "size": 9}
            label = f"{name}, {escape(queries, limit=28)} queries"
            legend_entry(figure, label, {**marker, "color": theme_colors(theme)["grey"]}, legendgroup=label)
