"""Figures of something against something: measures over layers (`layer_sweep`) and tokens (`token_lines`), a quick
score against the sampled rate (`calibration`), what a direction does by its dose (`dose_response`), and DRO's training
over its steps (`training_curves`, `first_token_curves`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from drolab.figures.plane import projection
from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    HOVER,
    SYMBOLS,
    FigureError,
    blank_figure,
    class_name,
    class_names,
    dress,
    error_bars,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    reference_line,
    short_name,
    theme_colors,
    value_text,
)

_LONG_NAME = 40
"""Characters of a measure or direction in a legend: there are few of them."""
_TOKEN_MEASURES = {"norm": "norm of the embedding", "drift": "distance", "cosine": "cosine"}
_CHECKS = {"other": "mass on neither", "kl": "KL (nats)"}
"""What the lower panels of `dose_response` can show, and the titles of their axes: short, since these are low."""
_TERMS = {
    "refusal_loss": "refusal loss",
    "harmfulness_loss": "harmfulness loss",
    "residual_loss": "residual loss",
    "residual_drift": "residual drift (× anchor variance)",
}
_TUNING_TERMS = {
    "likelihood_loss": "likelihood loss (replies that are wanted)",
    "unlikelihood_loss": "unlikelihood loss (replies that are not)",
}
_MASSES = {
    "refusal": "first token: refusal",
    "compliance": "first token: compliance",
    "other": "first token: neither",
}
_DASHES = {"harmful": "solid", "harmless": "dash"}
_Cells = Sequence[tuple[int, int]]
"""Rows and columns of subplots, from 1."""


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
        chance: a dotted line at the value that chance gives.

    Raises:
        FigureError: a column is missing, there are no rows, more measures than colours that can be told apart, or no
            such theme.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> sweep = pd.DataFrame({"layer": [0, 1, 2], "measure": "AUC", "value": [0.5, 0.8, 0.97],
        ...                       "low": [0.4, 0.7, 0.95], "high": [0.6, 0.9, 0.99]})
        >>> figures.layer_sweep(sweep, chance=0.5).data[0].customdata[2]  # what hovering shows
        'layer 2<br>AUC: 0.970 [0.95, 0.99]'
    """
    need_columns(table, ("layer", "measure", "value"), "layer sweep")
    figure = blank_figure(theme, title)
    _add_lines(figure, table, "measure", ("layer", "value"), _layer_hover, theme, apart=0.05)
    if chance is not None:
        figure.add_hline(y=chance, line=reference_line(theme))
    figure.update_xaxes(title_text="layer (0: embeddings)", tickvals=sorted(table["layer"].unique()))
    figure.update_yaxes(title_text=escape(y_title))
    return figure


def token_lines(
    table: pd.DataFrame, *, measure: str = "norm", title: str | None = None, theme: str = "light"
) -> go.Figure:
    """A measure of each token of trained prompts, one line per prompt.

    Args:
        table: prompt, token, the measure, and optionally against, text (of the token), as from
            `published.trained_tokens` for one model and one human prompt.
        measure: norm, drift or cosine.

    Raises:
        FigureError: a column is missing, there are no rows, more prompts than colours that can be told apart, or no
            such theme.
    """
    need_columns(table, ("prompt", "token", measure), "figure of tokens")
    figure = blank_figure(theme, title, height=380)
    _add_lines(figure, table, "prompt", ("token", measure), lambda row: _token_hover(row, measure), theme, size=6)
    against = [name for name in table["against"].unique() if name] if "against" in table else []
    apart = f" from {against[0]}" if measure != "norm" and len(against) == 1 else ""
    figure.update_xaxes(title_text="token of the prompt")
    figure.update_yaxes(title_text=escape(_TOKEN_MEASURES.get(measure, measure) + apart), rangemode="tozero")
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
        table: query_id, prompt, harmful, text, score, rate: the `refusal` of `FirstTokenJudge.score` beside the
            `refusal_rate` of `judge`, query by query. (The bins of `judges.calibration_table` are another table.)
        note: small print, such as the measured agreement.

    Raises:
        FigureError: a column is missing, there are no rows, more prompts than colours that can be told apart, or no
            such theme.
    """
    need_columns(table, ("query_id", "prompt", "harmful", "text", "score", "rate"), "calibration")
    points = table.assign(x=table["rate"], y=table["score"])
    titles, box = ("sampled refusal rate", "first-token score"), ((-0.04, 1.04), (-0.04, 1.04))
    figure = projection(points, axis_titles=titles, ranges=box, note=note, title=title, theme=theme)
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="equal", hoverinfo="skip", legend="legend2", line=reference_line(theme)
    )  # fmt: skip
    return figure


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
        FigureError: a column is missing, there are fewer than two doses, no row of kind "direction", no such check or
            theme, or more directions than colours that can be told apart.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> doses = pd.DataFrame({"direction": "probe", "kind": "direction", "dose": [-1.0, 0.0, 1.0], "harmful": True,
        ...                       "refusal": [0.3, 0.6, 0.9], "refusal_low": [0.2, 0.5, 0.8],
        ...                       "refusal_high": [0.4, 0.7, 1.0], "compliance": [0.6, 0.3, 0.0], "other": 0.1})
        >>> figure = figures.dose_response(doses)
        >>> next(trace for trace in figure.data if trace.name == "probe, refusal").customdata[2]  # on hover
        'probe<br>dose 1, harmful<br>refusal: 0.900 [0.80, 1.00]'
    """
    if check not in _CHECKS:
        raise FigureError(f"No check is called {check!r}: choose one of {list(_CHECKS)}.")
    columns = ("direction", "kind", "dose", "harmful", "refusal", "refusal_low", "refusal_high", "compliance", check)
    need_columns(table, columns, "dose-response figure")
    named, random = (table[table["kind"] == kind] for kind in ("direction", "random"))
    doses = sorted(named["dose"].unique().tolist())
    if len(doses) < 2:
        raise FigureError(f"A curve needs two doses of a direction, these have {doses}: steer at more doses.")
    classes = [kind for kind in (True, False) if (table["harmful"] == kind).any()]
    figure = make_subplots(
        rows=2, cols=len(classes), shared_xaxes=True, shared_yaxes=True, row_heights=[0.64, 0.36],
        vertical_spacing=0.08, horizontal_spacing=0.05,
        subplot_titles=[f"{class_name(kind)} queries" for kind in classes],
    )  # fmt: skip
    looks = _looks(named["direction"], theme)
    for col, kind in enumerate(classes, start=1):
        _add_random(figure, random[random["harmful"] == kind], check, col, theme)
        for name, rows in groups(named[named["harmful"] == kind], "direction"):
            _add_direction(figure, rows.sort_values("dose"), check, col, looks[name])
    _add_dose_legend(figure, looks, theme, random=not random.empty)
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".1f", row=1)
    # Never magnified so far that a change of no importance fills the panel.
    figure.update_yaxes(range=[0, max(1.06 * table[check].max(), 0.01)], row=2)
    figure.update_yaxes(title_text="rate", row=1, col=1)
    figure.update_yaxes(title_text=_CHECKS[check], row=2, col=1)
    figure.update_xaxes(title_text="dose (× typical shift)", row=2)
    dress(figure, theme, title, height=620, margin_t=96 if title else 48, margin_b=110)
    figure.update_layout(showlegend=True, legend={**_LEGEND_BELOW, "traceorder": "normal"})
    return figure


def training_curves(
    history: pd.DataFrame,
    measured: pd.DataFrame | None = None,
    *,
    n_steps: int | None = None,
    drift_level: float | None = None,
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """The terms of DRO's loss and the residual drift over the steps: thin the batches, thick the epochs' means; of
    runs of prompt tuning, the two terms of its own.

    Below them, what the model is about to say, if that was measured: see `first_token_curves`.

    Args:
        history: rows of `DROStep.numbers()`, or of a `PromptTuningRun`, or of both, with NaN for what a run has not;
            with a column `run`, one colour per run.
        measured: rows of `dro.measure_first_tokens`, with the same runs.
        n_steps: the last step of the axis, for runs that are not finished; None fits the rows.
        drift_level: a dotted line in the drift, beyond which the states left the data: `AnchorSpace.residual_spread`.

    Raises:
        FigureError: a column is missing, there are no rows, more runs than colours that can be told apart, or no such
            theme.
    """
    terms = _terms_of(history)
    high = len(terms) // 2
    if measured is None or measured.empty:
        figure = make_subplots(
            rows=high, cols=2, subplot_titles=list(terms.values()), vertical_spacing=0.32 / high, horizontal_spacing=0.1
        )
        _add_terms(figure, history, terms, (1, 2), theme, drift_level)
        return _dressed(figure, n_steps, title, theme, rows=high)
    half, third = [{"colspan": 3}, None, None] * 2, [{"colspan": 2}, None] * 3
    figure = make_subplots(
        rows=high + 1, cols=6, specs=[*[half] * high, third], subplot_titles=[*terms.values(), *_MASSES.values()],
        vertical_spacing=0.33 / (high + 1), horizontal_spacing=0.06,
    )  # fmt: skip
    _add_terms(figure, history, terms, (1, 4), theme, drift_level)
    _add_masses(figure, measured, [(high + 1, 1), (high + 1, 3), (high + 1, 5)], theme)
    return _dressed(figure, n_steps, title, theme, rows=high + 1)


def first_token_curves(
    measured: pd.DataFrame, *, n_steps: int | None = None, title: str | None = None, theme: str = "light"
) -> go.Figure:
    """The first-token probability of refusal, of compliance and of neither over the steps, for each class.

    Full lines and crosses are harmful queries, dashed lines and circles harmless ones; query sets after the first
    (queries held out, say) have open symbols. One run is coloured by class, several by run.

    Args:
        measured: rows of `dro.measure_first_tokens`; with a column `run`, one colour per run.
        n_steps: the last step of the axis, for runs that are not finished; None fits the rows.

    Raises:
        FigureError: a column is missing, there are no rows, more runs than colours that can be told apart, or no such
            theme.
    """
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(_MASSES.values()), horizontal_spacing=0.06)
    _add_masses(figure, measured, [(1, 1), (1, 2), (1, 3)], theme)
    _add_run_legend(figure, measured, theme)
    return _dressed(figure, n_steps, title, theme, rows=1)


# ---------------------------------------------------------------- lines


_LEGEND_BELOW = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}


def _looks(names: pd.Series, theme: str) -> dict[str, dict[str, Any]]:
    """The colour and symbol of each name."""
    colors = prompt_colors(names, theme=theme)
    return {
        name: {"color": color, "symbol": SYMBOLS[number % len(SYMBOLS)]}
        for number, (name, color) in enumerate(colors.items())
    }


def _add_lines(
    figure: go.Figure,
    table: pd.DataFrame,
    by: str,
    columns: tuple[str, str],
    hover: Callable[[Any], str],
    theme: str,
    *,
    apart: float = 0.0,
    size: int = 9,
) -> None:
    """A line per value of `by`, x and y from two columns; `apart`: along x, so that intervals do not cover each
    other."""
    x, y = columns
    looks = _looks(table[by], theme)
    for number, name in enumerate(looks):
        rows = table[table[by] == name].sort_values(x, kind="stable")
        figure.add_scatter(
            x=rows[x] + apart * (number - (len(looks) - 1) / 2),
            y=rows[y],
            error_y=error_bars(rows, y),
            mode="lines+markers",
            name=escape(name, limit=_LONG_NAME),
            line={"color": looks[name]["color"], "width": 2},
            marker={**looks[name], "size": size},
            customdata=[hover(row) for row in rows.itertuples()],
            hovertemplate=HOVER,
        )
    figure.update_layout(showlegend=True)


def _layer_hover(row: Any) -> str:
    return f"layer {row.layer}<br>{escape(row.measure)}: {value_text(row)}"


def _token_hover(row: Any, measure: str) -> str:
    text = f" {escape(repr(row.text), limit=40)}" if hasattr(row, "text") else ""
    other = "" if measure == "norm" or not hasattr(row, "against") else row.against
    against = f" (against {escape(other)})" if other else ""
    return f"{escape(row.prompt)}, token {row.token}{text}<br>{measure} {getattr(row, measure):.3f}{against}"


# ---------------------------------------------------------------- dose and response


def _add_direction(figure: go.Figure, rows: pd.DataFrame, check: str, col: int, look: dict[str, Any]) -> None:
    name, color = escape(rows["direction"].iloc[0], limit=_LONG_NAME), look["color"]
    _add_band(figure, rows["dose"], rows["refusal_low"], rows["refusal_high"], _faded(color), 1, col)
    lines = [("refusal", "solid", 1), ("compliance", "dot", 1), (check, "solid", 2)]
    for column, dash, row in lines:
        hover = [_dose_hover(name, column, each) for each in rows.itertuples()]
        figure.add_scatter(
            x=rows["dose"], y=rows[column], mode="lines+markers", line={"color": color, "width": 2, "dash": dash},
            marker={**look, "size": 7}, name=f"{name}, {column}", showlegend=False, customdata=hover,
            hovertemplate=HOVER, row=row, col=col,
        )  # fmt: skip


def _dose_hover(name: str, column: str, row: Any) -> str:
    value = value_text(row, column, f"{column}_")
    return f"{name}<br>dose {row.dose:g}, {class_name(row.harmful)}<br>{column}: {value}"


def _add_random(figure: go.Figure, rows: pd.DataFrame, check: str, col: int, theme: str) -> None:
    """The range over random directions, of refusal above and of the check below."""
    colors = theme_colors(theme)
    hover = "dose %{x:g}: %{y:.3f}<extra>random directions</extra>"
    edges = {"line": {"width": 1, "color": colors["grey"]}, "hoverinfo": None, "hovertemplate": hover}
    for row, column in enumerate(("refusal", check), start=1):
        ends = rows.groupby("dose")[column].agg(["min", "max"])
        _add_band(figure, ends.index, ends["min"], ends["max"], colors["band"], row, col, **edges)


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


def _add_dose_legend(figure: go.Figure, looks: dict[str, dict[str, Any]], theme: str, *, random: bool) -> None:
    colors = theme_colors(theme)
    entries = [legend_entry(escape(name, limit=_LONG_NAME), marker={**look, "size": 9}) for name, look in looks.items()]
    for name, dash in (("refusal", "solid"), ("compliance", "dot")):
        entries.append(legend_entry(name, mode="lines", line={"color": colors["grey"], "dash": dash, "width": 2}))
    if random:
        marker = {"symbol": "square", "size": 12, "color": colors["band"]}
        entries.append(legend_entry("random, same norm (range)", marker=marker))
    figure.add_traces(entries)


# ---------------------------------------------------------------- training


def _terms_of(history: pd.DataFrame) -> dict[str, str]:
    """Those of the objectives that its runs have; DRO's if none."""
    has = [terms for terms in (_TERMS, _TUNING_TERMS) if history.reindex(columns=list(terms)).notna().any(axis=None)]
    return {name: title for terms in has for name, title in terms.items()} or _TERMS


def _add_terms(
    figure: go.Figure,
    history: pd.DataFrame,
    terms: dict[str, str],
    columns: tuple[int, int],
    theme: str,
    drift_level: float | None,
) -> None:
    """Two in a row of the figure, in these columns of it."""
    need_columns(history, ("step", "epoch", *terms), "training curve")
    cells = [(1 + number // 2, columns[number % 2]) for number in range(len(terms))]
    for name, color, rows in _runs(history, theme):
        epochs = rows.groupby("epoch")[["step", *terms]].mean()
        shared = {"mode": "lines", "name": short_name(name), "legendgroup": name, "showlegend": False}
        for column, (row, col) in zip(terms, cells, strict=True):
            if rows[column].isna().all():  # a term of the other objective
                continue
            thin, thick = {"color": color, "width": 1}, {"color": color, "width": 2.5}
            figure.add_scatter(
                x=rows["step"], y=rows[column], line=thin, opacity=0.55, hoverinfo="skip", row=row, col=col, **shared
            )
            figure.add_scatter(
                x=epochs["step"], y=epochs[column], line=thick, hovertemplate="step %{x:.0f}: %{y:.4f}",
                row=row, col=col, **shared,
            )  # fmt: skip
    if drift_level is not None and "residual_drift" in terms:
        row, col = cells[list(terms).index("residual_drift")]
        figure.add_scatter(
            x=[history["step"].min(), history["step"].max()], y=[drift_level] * 2, mode="lines", name="data",
            line=reference_line(theme), showlegend=False, row=row, col=col,
            hovertemplate="beyond %{y:.3g}: outside the anchor data<extra></extra>",
        )  # fmt: skip
    _add_run_legend(figure, history, theme)


def _add_masses(figure: go.Figure, measured: pd.DataFrame, cells: _Cells, theme: str) -> None:
    need_columns(measured, ("step", "queries", "harmful", *_MASSES), "first-token curve")
    sets = list(measured["queries"].unique())
    several = "run" in measured.columns and measured["run"].nunique() > 1
    for name, color, rows in _runs(measured, theme):
        for (queries, harmful), group in groups(rows, ["queries", "harmful"]):
            look = _class_look(harmful, color if several else None, opened=queries != sets[0])
            names = [f"{short_name(name)}, {short_name(queries)}"] * len(group)
            for column, (row, col) in zip(_MASSES, cells, strict=True):
                figure.add_scatter(
                    x=group["step"], y=group[column], mode="lines+markers", customdata=names, showlegend=False,
                    hovertemplate="step %{x}: %{y:.3f}<extra>%{customdata}</extra>", legendgroup=name, row=row,
                    col=col, **look,
                )  # fmt: skip
    _add_class_legend(figure, measured, sets, theme)
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".1f", row=cells[0][0])


def _dressed(figure: go.Figure, n_steps: int | None, title: str | None, theme: str, *, rows: int) -> go.Figure:
    figure.update_xaxes(title_text="step", row=rows)
    if n_steps is not None:
        figure.update_xaxes(range=[-0.02 * n_steps, 1.02 * n_steps])
    dress(figure, theme, title, height=160 + 210 * rows, margin_t=96 if title else 48, margin_b=96)
    return figure.update_layout(legend=_LEGEND_BELOW)


def _runs(table: pd.DataFrame, theme: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each run."""
    names = table["run"] if "run" in table.columns else pd.Series("run", index=table.index)
    colors = prompt_colors(names, theme=theme)
    for name, rows in groups(table, names):
        yield str(name), colors[name], rows


def _add_run_legend(figure: go.Figure, table: pd.DataFrame, theme: str) -> None:
    runs = list(_runs(table, theme))
    for name, color, _ in runs if len(runs) > 1 else ():
        marker = {"symbol": "square", "size": 11, "color": color}
        figure.add_trace(legend_entry(short_name(name), marker=marker, legendgroup=name))


def _class_look(harmful: bool, color: str | None, *, opened: bool) -> dict[str, Any]:
    name = class_name(harmful)
    color = color or CLASS_COLORS[name]
    symbol = CLASS_SYMBOLS[name] + ("-open" if opened else "")
    return {
        "name": name,
        "line": {"color": color, "width": 1.2 if opened else 2, "dash": _DASHES[name]},
        "marker": {"symbol": symbol, "size": 7, "color": color},
    }


def _add_class_legend(figure: go.Figure, measured: pd.DataFrame, sets: Sequence[str], theme: str) -> None:
    present = set(class_names(measured["harmful"]))
    for number, queries in enumerate(sets):
        for name in (name for name in CLASS_SYMBOLS if name in present):
            symbol = CLASS_SYMBOLS[name] + ("-open" if number else "")
            marker = {"symbol": symbol, "size": 9, "color": theme_colors(theme)["grey"]}
            text = f"{name}, {short_name(queries)} queries"
            figure.add_trace(legend_entry(text, marker=marker, legendgroup=text))
