"""Figures of hidden states in a plane: projections, and movement in training.

Public under `drolab.figures`. The `…_content` functions give what the figure of that name is made of, as plotly's
plain dicts: a tenth of a figure's cost, for panels that redraw (`panels.Picture.update_to`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.figures.boundaries import Boundary, Box, boundary_traces
from drolab.figures.paint import Paint, class_legend, paint, prompt_legend
from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    SMALL_PRINT_MARGIN,
    SVG_LIMIT,
    FigureError,
    blank_figure,
    class_name,
    escape,
    groups,
    need_columns,
    small_print_note,
    theme_colors,
    wrapped,
)
from drolab.types import NO_PROMPT

Content = dict[str, Any]
"""`data` (traces) and `layout`, as `go.Figure` takes them."""


def mean_shifts(points: pd.DataFrame, *, baseline: str = NO_PROMPT) -> pd.DataFrame:
    """Per prompt and class, the arrow from the mean of `baseline` to the mean of the prompt.

    `points` has the columns of `projection`. Result: prompt, harmful, x, y, to_x, to_y.

    Raises:
        FigureError: the table has no points of `baseline`.
    """
    need_columns(points, ("prompt", "harmful", "x", "y"), "projection")
    if baseline not in set(points["prompt"]):
        raise FigureError(f"No points under {baseline!r}: arrows start there, so show it or choose another baseline.")
    means = points.groupby(["prompt", "harmful"], sort=False)[["x", "y"]].mean().reset_index()
    start = means[means["prompt"] == baseline].drop(columns="prompt")
    ends = means[means["prompt"] != baseline].rename(columns={"x": "to_x", "y": "to_y"})
    return ends.merge(start, on="harmful")[["prompt", "harmful", "x", "y", "to_x", "to_y"]]


def projection(
    points: pd.DataFrame,
    *,
    color: str = "prompt",
    arrows: pd.DataFrame | None = None,
    boundaries: Mapping[str, Boundary] | None = None,
    axis_titles: tuple[str, str] = ("component 1", "component 2"),
    ranges: Box | None = None,
    prompts: Sequence[str] | None = None,
    note: str = "",
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Hidden states in a plane: the class by symbol, the prompt or another column by colour, the query on hover.

    Args:
        points: query_id, prompt, harmful, text, x, y; with refusal_rate and response they are shown on hover.
        color: `prompt`, `class`, or a column of `points`: numbers are coloured with cividis, anything else with the
            palette, where values beyond the six most frequent share a grey.
        arrows: prompt, harmful, x, y, to_x, to_y, as from `mean_shifts`.
        boundaries: name of a probe's positive class → its `boundary`; an arrow marks the positive side.
        ranges: (x, y) ranges of the axes; None fits the points.
        prompts: all prompts in order, so that colours stay when only some are shown.
        note: a line of small print.
    """
    return go.Figure(
        projection_content(
            points,
            color=color,
            arrows=arrows,
            boundaries=boundaries,
            axis_titles=axis_titles,
            ranges=ranges,
            prompts=prompts,
            note=note,
            title=title,
            theme=theme,
        )
    )


def projection_content(
    points: pd.DataFrame,
    *,
    color: str = "prompt",
    arrows: pd.DataFrame | None = None,
    boundaries: Mapping[str, Boundary] | None = None,
    axis_titles: tuple[str, str] = ("component 1", "component 2"),
    ranges: Box | None = None,
    prompts: Sequence[str] | None = None,
    shown: Sequence[str] | None = None,
    selected: np.ndarray | None = None,
    note: str = "",
    title: str | None = None,
    theme: str = "light",
) -> Content:
    """The content of `projection`, whose arguments it takes, and two more for panels.

    The first traces are the clouds, one per item of `clouds(points)` and in its order, whatever is shown.

    Args:
        points: with a column `hover` (see `hover_texts`) the texts are not made again.
        shown: the prompts to show; the others' points and arrows are there, but invisible. None shows all.
        selected: [n] booleans: the points that stand out; None for no selection.
    """
    need_columns(points, ("query_id", "prompt", "harmful", "text", "x", "y"), "projection")
    present = list(points["prompt"].unique())
    visible = set(present if shown is None else shown)
    colors = paint(points, color, list(dict.fromkeys([*(prompts or ()), *present])), visible, theme)
    box = ranges or plane_box(points)
    data = _clouds(points, colors, visible, selected, theme, faded=arrows is not None)
    data += [] if arrows is None else _arrows(arrows, colors, visible, theme)
    data += prompt_legend(present, colors, visible) + class_legend(points, color, theme)
    lines, marks, caption = boundary_traces(boundaries, box, theme) if boundaries else ([], [], "")
    layout = _frame(theme, title) | _plane_axes(axis_titles, box) | colors.layout
    layout["legend"] = {"title": {"text": colors.title}, "y": 1, "yanchor": "top", **colors.layout.get("legend", {})}
    layout |= _small_print([caption, wrapped(note, width=110)], marks, titled=bool(title))
    return {"data": data + lines + colors.legend, "layout": layout}


def clouds(points: pd.DataFrame) -> dict[tuple[str, bool], np.ndarray]:
    """(prompt, harmful) → its row numbers in `points`, in order of appearance: a trace of `projection` each."""
    codes = points.groupby(["prompt", "harmful"], sort=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    prompt, harmful = points["prompt"].to_numpy(), points["harmful"].to_numpy()
    return {(str(prompt[rows[0]]), bool(harmful[rows[0]])): rows for rows in parts}


def hover_texts(points: pd.DataFrame) -> list[str]:
    """[n]: what hovering shows per point, escaped: query, class, prompt, and refusal rate and response if known."""
    lines = 5 if len(points) <= SVG_LIMIT else 2
    rates = points["refusal_rate"].tolist() if "refusal_rate" in points.columns else [np.nan] * len(points)
    responses = points["response"].tolist() if "response" in points.columns else [None] * len(points)
    wrap = lru_cache(maxsize=None)(lambda text: wrapped(text, width=44, lines=lines))
    name = lru_cache(maxsize=None)(lambda text: escape(text, limit=28))
    texts = []
    columns = (points[name].tolist() for name in ("text", "harmful", "prompt"))
    for text, harmful, prompt, rate, response in zip(*columns, rates, responses, strict=True):
        parts = [f"<b>{wrap(text)}</b>", f"{class_name(harmful)} · prompt: {name(prompt)}"]
        parts += [f"refusal rate: {rate:.2f}"] if rate == rate else []  # NaN: not known
        parts += [f"response: <i>{wrap(response)}</i>"] if isinstance(response, str) else []
        texts.append("<br>".join(parts))
    return texts


def query_path(points: pd.DataFrame, *, baseline: str = NO_PROMPT, theme: str = "light") -> list[dict[str, Any]]:
    """Shapes that show one query under every prompt: a ring at each point, a line to it from the baseline's.

    Shapes and not traces, since a new trace makes plotly draw all the others again.

    Args:
        points: prompt, x, y: the rows of one query. Without the baseline there are rings only.
    """
    ink = theme_colors(theme)["ink"]
    start = points[points["prompt"] == baseline]
    shapes: list[dict[str, Any]] = []
    for row in points.itertuples():
        ring = {"type": "circle", "xanchor": row.x, "yanchor": row.y, "xsizemode": "pixel", "ysizemode": "pixel"}
        shapes.append({**ring, "x0": -9, "x1": 9, "y0": -9, "y1": 9, "line": {"color": ink, "width": 2}})
        if len(start) and row.prompt != baseline:
            ends = {"x0": start["x"].iloc[0], "y0": start["y"].iloc[0], "x1": row.x, "y1": row.y}
            label = {"text": escape(row.prompt, limit=28), "textposition": "end", "textangle": 0, "font": {"size": 12}}
            shapes.append({"type": "line", **ends, "line": {"color": ink, "width": 1.6}, "label": label})
    return shapes


def plane_box(points: pd.DataFrame) -> Box:
    """Ranges of the axes that hold all points, with a margin."""
    limits = []
    for column in ("x", "y"):
        low, high = float(points[column].min()), float(points[column].max())
        margin = 0.06 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    return limits[0], limits[1]


@lru_cache(maxsize=8)
def _frame(theme: str, title: str | None) -> Content:
    """A blank figure's layout: made once, since plotly takes longer for it than for a thousand points."""
    return dict(blank_figure(theme, title, height=560).layout.to_plotly_json())


def _plane_axes(titles: tuple[str, str], box: Box) -> Content:
    names = ("xaxis", "yaxis")
    axes = {
        name: {"title": {"text": escape(title)}, "range": list(ends)}
        for name, title, ends in zip(names, titles, box, strict=True)
    }
    title = {"text": "Query (symbol)", "font": {"size": 12}}
    side = {"x": 1.02, "y": 0, "yanchor": "bottom", "itemclick": False}
    return {**axes, "legend2": {"title": title, "font": {"size": 12}, **side}}


def _small_print(lines: Sequence[str], annotations: Sequence[dict[str, Any]], *, titled: bool) -> Content:
    """Annotations of a layout, below the plot the lines that are not empty, and room for these and for a title."""
    text = "<br>".join(line for line in lines if line)
    notes = [small_print_note(text)] if text else []
    margin = ({} if titled else {"t": 40}) | ({"b": SMALL_PRINT_MARGIN} if text else {})
    return {"annotations": [*annotations, *notes], "margin": margin}


def _clouds(
    points: pd.DataFrame,
    colors: Paint,
    visible: Collection[str],
    selected: np.ndarray | None,
    theme: str,
    *,
    faded: bool,
) -> list[dict[str, Any]]:
    x, y, queries = (points[name].to_numpy() for name in ("x", "y", "query_id"))
    many = len(points) > SVG_LIMIT
    hover = np.array(points["hover"] if "hover" in points.columns else hover_texts(points), dtype=object)
    marker = {
        "size": 9,
        "opacity": 0.55 if faded else 0.9,
        "line": {"width": 0.8, "color": colors.outline or theme_colors(theme)["paper"]},
    }
    traces = []
    for (prompt, harmful), rows in clouds(points).items():
        name = class_name(harmful)
        trace = {
            "type": "scattergl" if many else "scatter",
            "x": x[rows],
            "y": y[rows],
            "mode": "markers",
            "name": escape(f"{prompt}, {name}", limit=60),
            "legendgroup": f"prompt {prompt}",
            "showlegend": False,
            "visible": prompt in visible,
            "marker": {"symbol": CLASS_SYMBOLS[name], **marker, **colors.of((prompt, harmful), rows)},
            "customdata": hover[rows],
            "hovertemplate": "%{customdata}<extra></extra>",
            **({} if many else {"ids": queries[rows]}),
        }
        traces.append(trace if selected is None else {**trace, "selectedpoints": np.flatnonzero(selected[rows])})
    return traces


def _arrows(arrows: pd.DataFrame, colors: Paint, visible: Collection[str], theme: str) -> list[dict[str, Any]]:
    """Mean shifts. Where colour does not tell the prompt, its name stands at one of its arrows."""
    traces = []
    labelled = arrows["harmful"].any()
    for row in arrows.itertuples():
        label = "" if colors.strokes or row.harmful != labelled else escape(row.prompt, limit=20)
        color = colors.strokes.get(str(row.prompt), theme_colors(theme)["ink"])
        traces += _arrow(row, color, theme, visible=row.prompt in visible, label=label)
    return traces


def _arrow(row: Any, color: str, theme: str, *, visible: bool, label: str) -> list[dict[str, Any]]:
    """A mean shift as two traces (a halo and the arrow), so that the legend hides it with its prompt."""
    name = class_name(row.harmful)
    shared = {
        "type": "scatter",
        "x": [row.x, row.to_x],
        "y": [row.y, row.to_y],
        "name": escape(f"shift: {row.prompt}, {name}", limit=60),
        "legendgroup": f"prompt {row.prompt}",
        "showlegend": False,
        "visible": visible,
        "hoverinfo": "text",  # a template would read %{…} in a name
        "hovertext": f"mean shift of {name} queries<br>under {escape(row.prompt, limit=60)}",
        "mode": "lines+markers+text",
        "textposition": "top center",
        "unselected": {"marker": {"opacity": 1}},
    }
    dash = "solid" if row.harmful else "7px,3px"
    return [
        {
            **shared,
            "line": {"color": stroke, "width": width, "dash": dash},
            "marker": {
                "symbol": [CLASS_SYMBOLS[name], "arrow"],
                "angleref": "previous",
                "size": [width + 6, head],
                "color": stroke,
                "opacity": 1,
                "line": {"width": 0},
            },
            "text": ["", text],
        }
        for stroke, width, head, text in ((theme_colors(theme)["paper"], 7, 22, ""), (color, 3, 17, label))
    ]


def movement(
    path: pd.DataFrame,
    *,
    step: int | None = None,
    boundaries: Mapping[str, Boundary] | None = None,
    axis_titles: tuple[str, str] = ("component 1", "component 2"),
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Where training moved each query: a thin line from the first step to `step`, and each class's mean.

    Args:
        path: query_id, harmful, text, step, x, y: one row per query and kept step.
        step: how far to show, one of the table's steps; None is the last. The axes fit all steps, so that a
            panel can replay the training.

    Raises:
        FigureError: `step` is none of the table's.
    """
    return go.Figure(
        movement_content(path, step=step, boundaries=boundaries, axis_titles=axis_titles, title=title, theme=theme)
    )


def movement_content(
    path: pd.DataFrame,
    *,
    step: int | None = None,
    boundaries: Mapping[str, Boundary] | None = None,
    axis_titles: tuple[str, str] = ("component 1", "component 2"),
    title: str | None = None,
    theme: str = "light",
) -> Content:
    """The content of `movement`, whose arguments it takes."""
    need_columns(path, ("query_id", "harmful", "text", "step", "x", "y"), "movement")
    steps = sorted(path["step"].unique())
    last = steps[-1] if step is None else step
    if last not in steps:
        raise FigureError(f"No step {last} in this movement: choose one of {steps}.")
    walked = path[path["step"] <= last].sort_values("step", kind="stable")
    box = plane_box(path)
    data = [
        trace
        for harmful, group in groups(walked, "harmful")
        for trace in _walk(group, class_name(harmful), last, theme)
    ]
    lines, marks, caption = boundary_traces(boundaries, box, theme) if boundaries else ([], [], "")
    layout = _frame(theme, title) | _plane_axes(axis_titles, box)
    layout |= _small_print([caption], marks, titled=bool(title))
    layout["legend"] = {"title": {"text": f"Step {steps[0]} to {last}"}, "y": 1, "yanchor": "top"}
    layout["legend2"]["title"] = {"text": "Boundary", "font": {"size": 12}}
    return {"data": data + lines, "layout": layout}


def _walk(group: pd.DataFrame, name: str, last: int, theme: str) -> list[dict[str, Any]]:
    """One class: the queries' ways, where they are now, and the way of their mean."""
    color, looks = CLASS_COLORS[name], theme_colors(theme)
    queries = pd.factorize(group["query_id"])[0]
    ways = group[["x", "y"]].to_numpy(dtype=float)[np.argsort(queries, kind="stable")]
    ways = np.insert(ways, np.cumsum(np.bincount(queries)), np.nan, axis=0)  # a gap after each query's way
    now = group[group["step"] == last]
    means = group.groupby("step")[["x", "y"]].mean()
    shared = {"type": "scatter", "legendgroup": name}
    symbol = {"symbol": CLASS_SYMBOLS[name], "color": color}
    return [
        {
            **shared, "x": ways[:, 0], "y": ways[:, 1], "mode": "lines", "name": f"paths, {name}", "showlegend": False,
            "line": {"color": color, "width": 0.7}, "opacity": 0.45, "hoverinfo": "skip",
        },
        {
            **shared, "x": now["x"].to_numpy(), "y": now["y"].to_numpy(), "mode": "markers", "name": name,
            "marker": {**symbol, "size": 8, "opacity": 0.8, "line": {"width": 0.8, "color": looks["paper"]}},
            "customdata": [f"<b>{wrapped(text)}</b><br>{name} · step {last}" for text in now["text"]],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        {
            **shared, "x": means["x"].to_numpy(), "y": means["y"].to_numpy(), "mode": "lines+markers",
            "name": f"mean, {name}", "showlegend": False, "line": {"color": looks["ink"], "width": 2.5},
            "marker": {**symbol, "size": 9, "line": {"width": 1.5}},
            "hovertemplate": f"mean of {name} queries<extra></extra>",
        },
    ]  # fmt: skip
