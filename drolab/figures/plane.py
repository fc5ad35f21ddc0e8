"""Figures of hidden states in a plane: `projection`, and `movement` in training.

What notebooks call comes first: the two figures, `mean_shifts` (arrows for a projection) and `boundary` (the lines of
linear probes). `projection_content` and `movement_content` give what the figure of that name is made of, as plotly's
plain dicts: a tenth of a figure's cost, for panels that redraw (`panels.Picture.update_to`); `clouds`, `hover_texts`,
`query_path` and `plane_box` are for panels too. Then the parts: points, arrows, ways, colours, boundaries, frame.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sequential

from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    HOVER,
    PALETTE,
    SVG_LIMIT,
    FigureError,
    blank_figure,
    boundary_line,
    class_name,
    class_names,
    escape,
    groups,
    legend_entry,
    need_columns,
    prompt_colors,
    short_name,
    small_print,
    theme_colors,
    wrapped,
)
from drolab.types import NO_PROMPT, Probe

Box = tuple[tuple[float, float], tuple[float, float]]
"""The ranges of x and y."""
Content = dict[str, Any]
"""`data` (traces) and `layout`, as `go.Figure` takes them."""


@dataclass(frozen=True, kw_only=True)
class PlaneLook:
    """What every figure of a plane has around its points."""

    boundaries: Mapping[str, Boundary] | None = None
    """Name of a probe's positive class → its `boundary`; an arrow marks the positive side."""
    axis_titles: tuple[str, str] = ("component 1", "component 2")
    ranges: Box | None = None
    """None fits the points."""
    note: str = ""
    """A line of small print."""
    title: str | None = None
    theme: str = "light"


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

    Raises:
        FigureError: a column is missing, there are no rows, more prompts than colours that can be told apart, or no
            such theme.

    Examples:
        Two queries without a prompt and under one, and the line of a probe that says `harmful` right of x = 0.5:

        >>> import pandas as pd
        >>> from drolab import figures
        >>> points = pd.DataFrame(
        ...     [("q1", "none", True, "How do I kill the witness?", 1.0, 0.0),
        ...      ("q2", "none", False, "How do I kill a process?", 0.0, 0.0),
        ...      ("q1", "default", True, "How do I kill the witness?", 1.2, 0.9),
        ...      ("q2", "default", False, "How do I kill a process?", 0.1, 0.8)],
        ...     columns=["query_id", "prompt", "harmful", "text", "x", "y"])
        >>> harmful = figures.boundary([2.0, 0.0], -1.0)
        >>> figure = figures.projection(points, arrows=figures.mean_shifts(points), boundaries={"harmful": harmful})
        >>> [trace.name for trace in figure.data if trace.x[0] is None]  # the legends
        ['none', 'default', 'harmful', 'harmless']
    """
    look = PlaneLook(boundaries=boundaries, axis_titles=axis_titles, ranges=ranges, note=note, title=title, theme=theme)
    return go.Figure(projection_content(points, look, color=color, arrows=arrows, prompts=prompts))


def projection_content(
    points: pd.DataFrame,
    look: PlaneLook | None = None,
    *,
    color: str = "prompt",
    arrows: pd.DataFrame | None = None,
    prompts: Sequence[str] | None = None,
    shown: Sequence[str] | None = None,
    selected: np.ndarray | None = None,
) -> Content:
    """The content of `projection`: its arguments are those, and two more for panels.

    The first traces are the clouds, one per item of `clouds(points)` and in its order, whatever is shown.

    Args:
        points: with a column `hover` (see `hover_texts`) the texts are not made again.
        shown: the prompts to show; the others' points and arrows are there, but invisible. None shows all.
        selected: [n] booleans: the points that stand out; None for no selection.

    Raises:
        FigureError: a column is missing, there are no rows, more prompts are shown than colours can be told apart, or
            no such theme.
    """
    need_columns(points, ("query_id", "prompt", "harmful", "text", "x", "y"), "projection")
    look = look or PlaneLook()
    present = list(points["prompt"].unique())
    visible = set(present if shown is None else shown)
    colors = _paint(points, color, list(dict.fromkeys([*(prompts or ()), *present])), visible, look.theme)
    box = look.ranges or plane_box(points)
    lines, layout = _framed(look, box)
    data = _points(points, colors, visible, selected, look.theme, faded=arrows is not None)
    data += [] if arrows is None else _arrows(arrows, colors, visible, look.theme)
    data += _prompt_legend(present, colors, visible) + _class_legend(points, color, look.theme)
    layout |= colors.layout
    layout["legend"] = {"title": {"text": colors.title}, "y": 1, "yanchor": "top", **colors.layout.get("legend", {})}
    return {"data": data + lines + colors.legend, "layout": layout}


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
        boundaries: name of a probe's positive class → its `boundary`; an arrow marks the positive side.

    Raises:
        FigureError: a column is missing, there are no rows, or `step` is none of the table's.
    """
    look = PlaneLook(boundaries=boundaries, axis_titles=axis_titles, title=title, theme=theme)
    return go.Figure(movement_content(path, look, step=step))


def movement_content(path: pd.DataFrame, look: PlaneLook | None = None, *, step: int | None = None) -> Content:
    """The content of `movement`, whose arguments it takes.

    Raises:
        FigureError: a column is missing, there are no rows, or `step` is none of the table's.
    """
    need_columns(path, ("query_id", "harmful", "text", "step", "x", "y"), "movement")
    look = look or PlaneLook()
    steps = sorted(path["step"].unique())
    last = steps[-1] if step is None else step
    if last not in steps:
        raise FigureError(f"No step {last} in this movement: choose one of {steps}.")
    walked = path[path["step"] <= last].sort_values("step", kind="stable")
    lines, layout = _framed(look, look.ranges or plane_box(path))
    data = [
        trace
        for harmful, group in groups(walked, "harmful")
        for trace in _walk(group, class_name(harmful), last, look.theme)
    ]
    layout["legend"] = {"title": {"text": f"Step {steps[0]} to {last}"}, "y": 1, "yanchor": "top"}
    layout["legend2"]["title"] = {"text": "Boundary", "font": {"size": 12}}
    return {"data": data + lines, "layout": layout}


def mean_shifts(points: pd.DataFrame, *, baseline: str = NO_PROMPT) -> pd.DataFrame:
    """Per prompt and class, the arrow from the mean of `baseline` to the mean of the prompt, for `projection`.

    Args:
        points: prompt, harmful, x, y: the columns of `projection`.

    Returns:
        Columns prompt, harmful, x, y (where the arrow starts), to_x, to_y.

    Raises:
        FigureError: a column is missing, there are no rows, or none of `baseline`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import figures
        >>> points = pd.DataFrame(
        ...     [("none", True, 1.0, 0.0), ("none", True, 3.0, 0.0), ("default", True, 2.0, 1.0)],
        ...     columns=["prompt", "harmful", "x", "y"])
        >>> figures.mean_shifts(points)
            prompt  harmful    x    y  to_x  to_y
        0  default     True  2.0  0.0   2.0   1.0
    """
    need_columns(points, ("prompt", "harmful", "x", "y"), "projection")
    if baseline not in set(points["prompt"]):
        raise FigureError(f"No points under {baseline!r}: arrows start there, so show it or choose another baseline.")
    means = points.groupby(["prompt", "harmful"], sort=False)[["x", "y"]].mean().reset_index()
    start = means[means["prompt"] == baseline].drop(columns="prompt")
    ends = means[means["prompt"] != baseline].rename(columns={"x": "to_x", "y": "to_y"})
    return ends.merge(start, on="harmful")[["prompt", "harmful", "x", "y", "to_x", "to_y"]]


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


# ---------------------------------------------------------------- for panels


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
    name = lru_cache(maxsize=None)(short_name)
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
    rings, lines = [], []
    for row in points.itertuples():
        ring = {"type": "circle", "xanchor": row.x, "yanchor": row.y, "xsizemode": "pixel", "ysizemode": "pixel"}
        rings.append({**ring, "x0": -9, "x1": 9, "y0": -9, "y1": 9, "line": {"color": ink, "width": 2}})
        if len(start) and row.prompt != baseline:
            ends = {"x0": start["x"].iloc[0], "y0": start["y"].iloc[0], "x1": row.x, "y1": row.y}
            label = {"text": short_name(row.prompt), "textposition": "end", "textangle": 0, "font": {"size": 12}}
            lines.append({"type": "line", **ends, "line": {"color": ink, "width": 1.6}, "label": label})
    # A line comes last, if need be from a point to itself: after a shape with sizes in pixels, plotly.js takes the
    # outline of a lasso for pixels, too.
    dots = [{"type": "line", "x0": row.x, "y0": row.y, "x1": row.x, "y1": row.y} for row in points.tail(1).itertuples()]
    return [*rings, *(lines or dots)]


def plane_box(points: pd.DataFrame) -> Box:
    """Ranges of the axes that hold all points, with a margin."""
    limits = []
    for column in ("x", "y"):
        low, high = float(points[column].min()), float(points[column].max())
        margin = 0.06 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    return limits[0], limits[1]


# ---------------------------------------------------------------- points, arrows, ways


def _points(
    points: pd.DataFrame,
    colors: _Paint,
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
            "hovertemplate": HOVER,
            **({} if many else {"ids": queries[rows]}),
        }
        traces.append(trace if selected is None else {**trace, "selectedpoints": np.flatnonzero(selected[rows])})
    return traces


def _arrows(arrows: pd.DataFrame, colors: _Paint, visible: Collection[str], theme: str) -> list[dict[str, Any]]:
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
            "hovertemplate": HOVER,
        },
        {
            **shared, "x": means["x"].to_numpy(), "y": means["y"].to_numpy(), "mode": "lines+markers",
            "name": f"mean, {name}", "showlegend": False, "line": {"color": looks["ink"], "width": 2.5},
            "marker": {**symbol, "size": 9, "line": {"width": 1.5}},
            "hovertemplate": f"mean of {name} queries<extra></extra>",
        },
    ]  # fmt: skip


# ---------------------------------------------------------------- colours and legends


@dataclass(frozen=True, kw_only=True, eq=False)
class _Paint:
    """The colours of a projection's points."""

    marker: Mapping[tuple[str, bool], str] | np.ndarray
    """One colour per (prompt, harmful), or [n]: per point a number on the layout's colour axis."""
    title: str
    """Of the colours' legend."""
    legend: list[dict[str, Any]] = field(default_factory=list)
    """Entries for colours that do not mean a prompt."""
    layout: dict[str, Any] = field(default_factory=dict)
    strokes: Mapping[str, str] = field(default_factory=dict)
    """Prompt → colour of its arrows; empty where colour does not mean the prompt."""
    outline: str = ""
    """Of the points, where it must not be the background's colour."""

    def of(self, cloud: tuple[str, bool], rows: np.ndarray) -> dict[str, Any]:
        """The marker settings of one cloud."""
        if isinstance(self.marker, np.ndarray):
            return {"color": self.marker[rows], "coloraxis": "coloraxis"}
        return {"color": self.marker[cloud]}


def _paint(points: pd.DataFrame, color: str, prompts: Sequence[str], visible: Collection[str], theme: str) -> _Paint:
    """Colours for `points` by `color`, see `projection`. `prompts` are all in order, `visible` those to show."""
    if color == "prompt":
        return _by_prompt(prompts, visible, theme)
    if color == "class":
        marker = {(prompt, kind): CLASS_COLORS[class_name(kind)] for prompt in prompts for kind in (True, False)}
        return _Paint(marker=marker, title="")
    need_columns(points, (color,), "projection")
    name = short_name(color.replace("_", " "))
    if pd.api.types.is_numeric_dtype(points[color]) and not pd.api.types.is_bool_dtype(points[color]):
        return _by_number(points[color], name, theme)
    return _by_value(points[color].astype(str), f"{name[:1].upper()}{name[1:]} (colour)", theme)


def _by_prompt(prompts: Sequence[str], visible: Collection[str], theme: str) -> _Paint:
    names = list(dict.fromkeys(prompts))
    if len([name for name in names if name != NO_PROMPT]) > len(PALETTE):
        names = [name for name in names if name in visible]  # colours for the shown ones, if those are few enough
    grey = theme_colors(theme)["grey"]
    colors = dict.fromkeys(prompts, grey) | prompt_colors(names, theme=theme)
    marker = {(prompt, kind): color for prompt, color in colors.items() for kind in (True, False)}
    return _Paint(marker=marker, title="Prompt (colour)", strokes=colors)


_CIVIDIS = tuple(sequential.Cividis)


def _by_number(column: pd.Series, name: str, theme: str) -> _Paint:
    """Cividis; what is not known gets a grey step below it, named on the colour bar."""
    values = column.to_numpy(dtype=float)
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0  # a rate keeps its scale whatever is shown
    small = {"size": 12}
    bar = {"title": {"text": name, "side": "top", "font": small}, "tickfont": small, "thickness": 14}
    bar |= {"len": 0.55, "y": 1, "yanchor": "top"}
    axis = {"colorscale": "Cividis", "cmin": low, "cmax": high, "colorbar": bar}
    grey = theme_colors(theme)["grey"]
    if len(known) < len(values):
        step = 0.1 * (high - low or 1.0)
        start = step / (high - low + step)
        ramp = [[start + (1 - start) * i / (len(_CIVIDIS) - 1), color] for i, color in enumerate(_CIVIDIS)]
        axis |= {"colorscale": [[0, grey], [start, grey], *ramp], "cmin": low - step}
        ticks = np.linspace(low, high, 6)
        bar |= {"tickvals": [low - step / 2, *ticks], "ticktext": ["unknown", *(f"{tick:.2g}" for tick in ticks)]}
        values = np.where(np.isnan(values), low - step, values)
    outline = grey if theme == "dark" else ""  # cividis begins dark
    return _Paint(marker=values, title="", layout={"coloraxis": axis}, outline=outline)


def _by_value(column: pd.Series, title: str, theme: str) -> _Paint:
    """Points get numbers and the axis steps of colours: plotly checks numbers a hundred times faster than colours."""
    values = list(column.value_counts().index)
    named, rest = values[: len(PALETTE)], values[len(PALETTE) :]
    steps = [*PALETTE[: len(named)], *([theme_colors(theme)["grey"]] if rest else [])]
    labels = [short_name(value) or "(none)" for value in named]
    labels += [f"{len(rest)} others" if len(rest) > 1 else short_name(rest[0])] if rest else []
    entries = [
        legend_entry(text, marker={"symbol": "square", "size": 11, "color": color})
        for text, color in zip(labels, steps, strict=True)
    ]
    numbers = column.map({value: min(number, len(PALETTE)) for number, value in enumerate(values)})
    scale = [[(i + end) / len(steps), color] for i, color in enumerate(steps) for end in (0, 1)]
    axis = {"colorscale": scale, "cmin": -0.5, "cmax": len(steps) - 0.5, "showscale": False}
    layout = {"coloraxis": axis, "legend": {"itemclick": False}}
    return _Paint(marker=numbers.to_numpy(dtype=float), title=title, legend=entries, layout=layout)


def _prompt_legend(prompts: Sequence[str], colors: _Paint, visible: Collection[str]) -> list[dict[str, Any]]:
    """The colour of each prompt. Without colours of prompts the entries are there, unseen: a panel can then change the
    colours by one message."""
    return [
        legend_entry(
            short_name(prompt),
            marker={"symbol": "square", "size": 11, "color": colors.strokes.get(prompt, CLASS_COLORS["harmless"])},
            legendgroup=f"prompt {prompt}",
            visible=bool(colors.strokes) and prompt in visible,
        )
        for prompt in prompts
    ]


def _class_legend(points: pd.DataFrame, color: str, theme: str) -> list[dict[str, Any]]:
    """The symbol of each class; in its colour where colours mean the class."""
    colors = CLASS_COLORS if color == "class" else dict.fromkeys(CLASS_COLORS, theme_colors(theme)["grey"])
    return [
        legend_entry(name, marker={"symbol": CLASS_SYMBOLS[name], "size": 9, "color": colors[name]}, legend="legend2")
        for name in class_names(points["harmful"].drop_duplicates())
    ]


# ---------------------------------------------------------------- boundaries and frame


def _boundaries(
    boundaries: Mapping[str, Boundary], box: Box, theme: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """The lines, annotations that mark the positive sides of those inside the box, and a caption, escaped."""
    traces: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    outside: list[str] = []
    for name, line in boundaries.items():
        ends = line.segment(*box)
        traces.append(_line(name, ends, theme))
        if ends is None:
            outside.append(boundary_line(name, theme)[0])
            continue
        marks.append(_positive_side(name, line, ends, box, theme, at=0.88 - 0.14 * len(marks)))
    words = "; ".join(dict.fromkeys(line.held for line in boundaries.values()))
    caption = f"Boundaries are drawn with the other components held at {escape(words)}."
    caption += f"<br>Outside this view: {', '.join(outside)}." if outside else ""
    return traces, marks, caption


def _line(name: str, ends: np.ndarray | None, theme: str) -> dict[str, Any]:
    """A line outside the box is there, unseen: its place in a panel's figure stays."""
    places = np.full((2, 2), np.nan) if ends is None else ends
    words, look = boundary_line(name, theme)
    return {
        "type": "scatter",
        "x": places[:, 0],
        "y": places[:, 1],
        "visible": ends is not None,
        "mode": "lines",
        "name": words,
        "line": look,
        "hoverinfo": "text",  # a template would read %{…} in a name
        "hovertext": f"on this line the probe gives “{escape(name, limit=60)}”<br>a probability of one half",
        "legend": "legend2",
    }


def _positive_side(name: str, line: Boundary, ends: np.ndarray, box: Box, theme: str, *, at: float) -> dict[str, Any]:
    """A short arrow from the line, a share `at` of its way up, towards where the logit is above zero."""
    sizes = np.array([high - low for low, high in box])
    low, high = ends[ends[:, 1].argsort()]
    start = low + at * (high - low)
    step = np.array(line.normal) * sizes**2  # steepest ascent on the screen, where both axes have one length
    step *= 0.06 / np.linalg.norm(step / sizes)
    return {
        "x": float(start[0] + step[0]),
        "y": float(start[1] + step[1]),
        "ax": float(start[0]),
        "ay": float(start[1]),
        "axref": "x",
        "ayref": "y",
        "text": "",
        "arrowhead": 2,
        "arrowwidth": 1.4,
        "arrowcolor": theme_colors(theme)["ink"],
        "hovertext": f"on this side the probe says “{escape(name, limit=60)}”",
    }


def _framed(look: PlaneLook, box: Box) -> tuple[list[dict[str, Any]], Content]:
    """The traces of the boundaries, and a layout with the axes, the boundaries' positive sides and the small print."""
    lines, marks, caption = _boundaries(look.boundaries, box, look.theme) if look.boundaries else ([], [], "")
    small = "<br>".join(text for text in (caption, wrapped(look.note, width=100)) if text)
    x_title, y_title = (escape(title) for title in look.axis_titles)
    side = {"title": {"text": "Query (symbol)", "font": {"size": 12}}, "font": {"size": 12}, "x": 1.02, "y": 0}
    layout = _blank_layout(look.theme, look.title) | {
        "xaxis": {"title": {"text": small_print(small, x_title)}, "range": list(box[0])},
        "yaxis": {"title": {"text": y_title}, "range": list(box[1])},
        "legend2": {**side, "yanchor": "bottom", "itemclick": False},
        "annotations": marks,
        "margin": {} if look.title else {"t": 40},
    }
    return lines, layout


@lru_cache(maxsize=8)
def _blank_layout(theme: str, title: str | None) -> Content:
    """A blank figure's layout: made once, since plotly takes longer for it than for a thousand points."""
    return dict(blank_figure(theme, title, height=560).layout.to_plotly_json())
