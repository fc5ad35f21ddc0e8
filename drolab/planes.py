"""Figures of hidden states in a plane: projections, probes' boundaries, movement in training.

Public under `drolab.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from drolab.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    FigureError,
    blank_figure,
    class_names,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    small_print,
    theme_colors,
    wrapped,
)
from drolab.types import NO_PROMPT, Probe

_SVG_LIMIT = 5000


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Where a linear probe's logit is zero, in the plane of two components: normal · (x, y) + offset = 0."""

    normal: tuple[float, float]
    offset: float
    held: str
    """In words: where the components that the plane does not show are held."""

    def logit(self, x: float, y: float) -> float:
        """The probe's logit at a point of the plane; above zero is the positive class."""
        return self.normal[0] * x + self.normal[1] * y + self.offset

    def segment(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> np.ndarray | None:
        """[2, 2]: the end points of the line inside a box, or None if it passes outside."""
        a, b = self.normal
        norm = math.hypot(a, b)
        foot = np.array([a, b]) * (-self.offset / norm**2)
        along = np.array([-b, a]) / norm
        low, high = -math.inf, math.inf
        for position, step, (start, stop) in zip(foot, along, (x_range, y_range), strict=True):
            if abs(step) < 1e-12:
                if not start <= position <= stop:
                    return None
                continue
            enter, leave = sorted(((start - position) / step, (stop - position) / step))
            low, high = max(low, enter), min(high, leave)
        return np.stack([foot + low * along, foot + high * along]) if low < high else None


def boundary(
    coef: Sequence[float] | np.ndarray,
    intercept: float,
    *,
    plane: tuple[int, int] = (0, 1),
    held: Sequence[float] | np.ndarray | None = None,
    held_at: str = "the mean of the anchors",
) -> Boundary:
    """The line of a linear probe in the plane of two components (numbered from 0).

    The probe sees all its m components, the plane two of them, so the others must stand somewhere: at `held`
    ([m] coordinates; None is 0, the mean of the anchors), which `held_at` names in words.

    Raises:
        FigureError: the plane or `held` do not fit the coefficients, or the probe does not depend on the plane.
    """
    weights = np.asarray(coef, dtype=float)
    rest = np.zeros_like(weights) if held is None else np.asarray(held, dtype=float).copy()
    if rest.shape != weights.shape:
        raise FigureError(
            f"held has shape {list(rest.shape)}, the probe's coef {list(weights.shape)}: give them alike."
        )
    if plane[0] == plane[1] or not all(0 <= number < len(weights) for number in plane):
        raise FigureError(f"plane must be two different components below {len(weights)}, got {plane}.")
    rest[list(plane)] = 0.0
    normal = (float(weights[plane[0]]), float(weights[plane[1]]))
    if math.hypot(*normal) < 1e-12:
        raise FigureError(f"The probe does not depend on components {plane}: draw its boundary in another plane.")
    return Boundary(normal=normal, offset=float(weights @ rest + intercept), held=held_at)


def probe_boundaries(*probes: Probe, plane: tuple[int, int] = (0, 1)) -> dict[str, Boundary]:
    """The boundaries of several probes in one plane, by the name of their positive class, for `projection`."""
    return {probe.positive: boundary(probe.coef.numpy(), probe.intercept, plane=plane) for probe in probes}


def _add_boundaries(
    figure: go.Figure,
    boundaries: Mapping[str, Boundary],
    box: tuple[tuple[float, float], tuple[float, float]],
    theme: str,
) -> None:
    colors = theme_colors(theme)
    outside: list[str] = []
    marked: list[str] = []
    for (name, line), dash in zip(
        boundaries.items(), ("solid", "dash", "dot", "dashdot") * len(boundaries), strict=False
    ):
        ends = line.segment(*box)
        if ends is None:
            outside.append(name)
            continue
        figure.add_scatter(
            x=ends[:, 0],
            y=ends[:, 1],
            mode="lines",
            name=escape(f"{name} = 0", limit=28),
            line={"color": colors["ink"], "width": 1.8, "dash": dash},
            hovertemplate=f"boundary of {escape(name)}<extra></extra>",
            legend="legend2",
        )
        _mark_positive_side(figure, name, line, ends, box, at=0.88 - 0.14 * len(marked))
        marked.append(name)
    words = "; ".join(dict.fromkeys(line.held for line in boundaries.values()))
    text = f"Boundaries are drawn with the other components held at {escape(words)}."
    small_print(figure, text + (f"<br>Outside this view: {escape(', '.join(outside))}." if outside else ""))


def _mark_positive_side(figure: go.Figure, name: str, line: Boundary, ends: np.ndarray, box: Any, *, at: float) -> None:
    """A short arrow from the line, a share `at` of its way up, towards where the logit is above zero."""
    sizes = np.array([high - low for low, high in box])
    low, high = ends[ends[:, 1].argsort()]
    start = low + at * (high - low)
    step = np.array(line.normal) * sizes**2  # steepest ascent on the screen, where both axes have one length
    step *= 0.06 / np.linalg.norm(step / sizes)
    figure.add_annotation(
        x=float(start[0] + step[0]),
        y=float(start[1] + step[1]),
        ax=float(start[0]),
        ay=float(start[1]),
        axref="x",
        ayref="y",
        text="",
        arrowhead=2,
        arrowwidth=1.4,
        hovertext=f"{escape(name)} is above zero on this side",
    )


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
    arrows: pd.DataFrame | None = None,
    boundaries: Mapping[str, Boundary] | None = None,
    axis_titles: tuple[str, str] = ("component 1", "component 2"),
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    prompts: Sequence[str] | None = None,
    title: str | None = None,
    theme: str = "light",
) -> go.Figure:
    """Hidden states in a plane: the prompt by colour, the class by symbol, the query's text on hover.

    Args:
        points: query_id, prompt, harmful, text, x, y; with refusal_rate and response they are shown on hover.
        arrows: prompt, harmful, x, y, to_x, to_y, as from `mean_shifts`.
        boundaries: name of a probe's positive class → its `boundary`; an arrow marks the positive side.
        ranges: (x, y) ranges of the axes; None fits the points.
        prompts: all prompts in order, so that colours stay when only some are shown.
    """
    need_columns(points, ("query_id", "prompt", "harmful", "text", "x", "y"), "projection")
    colors = prompt_colors([*(prompts or ()), *points["prompt"]], theme=theme)
    box = ranges or _box(points)
    figure = blank_figure(theme, title, height=560)
    shown = list(dict.fromkeys(points["prompt"]))
    _prompt_legend(figure, shown, colors)
    kind = go.Scattergl if len(points) > _SVG_LIMIT else go.Scatter
    for (prompt, harmful), group in groups(points, ["prompt", "harmful"]):
        figure.add_trace(_cloud(kind, group, prompt, harmful, colors[prompt], theme, faded=arrows is not None))
    if arrows is not None:
        for row in arrows.itertuples():
            _add_arrow(figure, row, colors.get(str(row.prompt), theme_colors(theme)["ink"]), theme)
    _class_legend(figure, list(dict.fromkeys(class_names(points["harmful"]))), theme)
    if boundaries:
        _add_boundaries(figure, boundaries, box, theme)
    _plane_axes(figure, axis_titles, box)
    return figure


def _box(points: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    limits = []
    for column in ("x", "y"):
        low, high = float(points[column].min()), float(points[column].max())
        margin = 0.06 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    return limits[0], limits[1]


def _plane_axes(figure: go.Figure, titles: tuple[str, str], box: Any) -> None:
    figure.update_xaxes(title_text=escape(titles[0]), range=list(box[0]))
    figure.update_yaxes(title_text=escape(titles[1]), range=list(box[1]))
    figure.update_layout(
        legend={"title": {"text": "Prompt (colour)"}, "y": 1, "yanchor": "top"},
        legend2={
            "title": {"text": "Query (symbol)", "font": {"size": 12}},
            "font": {"size": 12},
            "y": 0,
            "yanchor": "bottom",
            "x": 1.02,
            "itemclick": False,
        },
    )


def _prompt_legend(figure: go.Figure, prompts: Sequence[str], colors: Mapping[str, str]) -> None:
    for prompt in prompts:
        marker = {"symbol": "square", "size": 11, "color": colors[prompt]}
        legend_entry(figure, escape(prompt, limit=28), marker, legendgroup=f"prompt {prompt}")


def _class_legend(figure: go.Figure, classes: Sequence[str], theme: str) -> None:
    for name in classes:
        marker = {"symbol": CLASS_SYMBOLS[name], "size": 9, "color": theme_colors(theme)["grey"]}
        legend_entry(figure, name, marker, legend="legend2")


def _cloud(kind: Any, group: pd.DataFrame, prompt: str, harmful: bool, color: str, theme: str, *, faded: bool) -> Any:
    name = "harmful" if harmful else "harmless"
    return kind(
        x=group["x"],
        y=group["y"],
        mode="markers",
        name=escape(f"{prompt}, {name}"),
        legendgroup=f"prompt {prompt}",
        showlegend=False,
        marker={
            "symbol": CLASS_SYMBOLS[name],
            "color": color,
            "size": 9,
            "opacity": 0.55 if faded else 0.9,
            "line": {"width": 0.8, "color": theme_colors(theme)["paper"]},
        },
        ids=[f"{query}|{prompt}" for query in group["query_id"]],
        customdata=_hover_rows(group, prompt, name),
        hovertemplate="%{customdata[0]}<extra></extra>",
    )


def _hover_rows(group: pd.DataFrame, prompt: str, name: str) -> list[list[str]]:
    rows = []
    for row in group.itertuples():
        text = f"<b>{wrapped(row.text)}</b><br>{name} · prompt: {escape(prompt, limit=60)}"
        if not math.isnan(rate := float(getattr(row, "refusal_rate", math.nan))):
            text += f"<br>refusal rate: {rate:.2f}"
        if isinstance(response := getattr(row, "response", None), str):
            text += f"<br>response: <i>{wrapped(response, lines=5)}</i>"
        rows.append([text])
    return rows


def _add_arrow(figure: go.Figure, row: Any, color: str, theme: str) -> None:
    """A mean shift as two traces (a halo and the arrow), so that the legend hides it with its prompt."""
    name = "harmful" if row.harmful else "harmless"
    hover = f"mean shift of {name} queries<br>under {escape(row.prompt)}"
    for stroke, width, head in ((theme_colors(theme)["paper"], 7, 22), (color, 3, 17)):
        figure.add_scatter(
            x=[row.x, row.to_x],
            y=[row.y, row.to_y],
            mode="lines+markers",
            line={"color": stroke, "width": width, "dash": "solid" if row.harmful else "7px,3px"},
            marker={
                "symbol": [CLASS_SYMBOLS[name], "arrow"],
                "angleref": "previous",
                "size": [width + 6, head],
                "color": stroke,
                "opacity": 1,
            },
            name=escape(f"shift: {row.prompt}, {name}"),
            legendgroup=f"prompt {row.prompt}",
            showlegend=False,
            hovertemplate=hover + "<extra></extra>",
        )


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
    need_columns(path, ("query_id", "harmful", "text", "step", "x", "y"), "movement")
    steps = sorted(path["step"].unique())
    last = steps[-1] if step is None else step
    if last not in steps:
        raise FigureError(f"No step {last} in this movement: choose one of {steps}.")
    figure = blank_figure(theme, title, height=560)
    walked = path[path["step"] <= last].sort_values("step", kind="stable")
    for harmful, group in groups(walked, "harmful"):
        _add_walk(figure, group, "harmful" if harmful else "harmless", last, theme)
    box = _box(path)
    if boundaries:
        _add_boundaries(figure, boundaries, box, theme)
    _plane_axes(figure, axis_titles, box)
    figure.update_layout(legend_title_text=f"Step {steps[0]} to {last}", legend2_title_text="Boundary")
    return figure


def _add_walk(figure: go.Figure, group: pd.DataFrame, name: str, last: int, theme: str) -> None:
    color = CLASS_COLORS[name]
    pieces = [part[["x", "y"]].to_numpy(dtype=float) for _, part in groups(group, "query_id")]
    gap = np.full((1, 2), np.nan)
    lines = np.concatenate([block for piece in pieces for block in (piece, gap)])
    shared = {"legendgroup": name, "showlegend": False}
    figure.add_scatter(
        x=lines[:, 0], y=lines[:, 1], mode="lines", line={"color": color, "width": 0.7}, opacity=0.45,
        hoverinfo="skip", name=f"paths, {name}", **shared,
    )  # fmt: skip
    now = group[group["step"] == last]
    figure.add_scatter(
        x=now["x"],
        y=now["y"],
        mode="markers",
        name=name,
        legendgroup=name,
        marker={
            "symbol": CLASS_SYMBOLS[name],
            "color": color,
            "size": 8,
            "opacity": 0.8,
            "line": {"width": 0.8, "color": theme_colors(theme)["paper"]},
        },
        customdata=[[f"<b>{wrapped(text)}</b><br>{name} · step {last}"] for text in now["text"]],
        hovertemplate="%{customdata[0]}<extra></extra>",
    )
    means = group.groupby("step")[["x", "y"]].mean()
    figure.add_scatter(
        x=means["x"], y=means["y"], mode="lines+markers", line={"color": theme_colors(theme)["ink"], "width": 2.5},
        marker={"symbol": CLASS_SYMBOLS[name], "size": 9, "color": color, "line": {"width": 1.5}},
        name=f"mean, {name}", hovertemplate=f"mean of {name} queries<extra></extra>", **shared,
    )  # fmt: skip
