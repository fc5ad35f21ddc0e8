"""What colours the points of a plane have: by prompt, by class, by any column, each with its legend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import sequential

from drolab.figures.style import (
    CLASS_COLORS,
    CLASS_SYMBOLS,
    PALETTE,
    class_name,
    class_names,
    escape,
    need_columns,
    prompt_colors,
    theme_colors,
)
from drolab.types import NO_PROMPT

CIVIDIS = tuple(sequential.Cividis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Paint:
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


def paint(points: pd.DataFrame, color: str, prompts: Sequence[str], visible: Collection[str], theme: str) -> Paint:
    """Colours for `points` by `color`, see `planes.projection`. `prompts` are all in order, `visible` those to show."""
    if color == "prompt":
        return _by_prompt(prompts, visible, theme)
    if color == "class":
        marker = {(prompt, kind): CLASS_COLORS[class_name(kind)] for prompt in prompts for kind in (True, False)}
        return Paint(marker=marker, title="")
    need_columns(points, (color,), "projection")
    name = escape(color.replace("_", " "), limit=28)
    if pd.api.types.is_numeric_dtype(points[color]) and not pd.api.types.is_bool_dtype(points[color]):
        return _by_number(points[color], name, theme)
    return _by_value(points[color].astype(str), f"{name[:1].upper()}{name[1:]} (colour)", theme)


def _by_prompt(prompts: Sequence[str], visible: Collection[str], theme: str) -> Paint:
    names = list(dict.fromkeys(prompts))
    if len([name for name in names if name != NO_PROMPT]) > len(PALETTE):
        names = [name for name in names if name in visible]  # colours for the shown ones, if those are few enough
    grey = theme_colors(theme)["grey"]
    colors = dict.fromkeys(prompts, grey) | prompt_colors(names, theme=theme)
    marker = {(prompt, kind): color for prompt, color in colors.items() for kind in (True, False)}
    return Paint(marker=marker, title="Prompt (colour)", strokes=colors)


def _by_number(column: pd.Series, name: str, theme: str) -> Paint:
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
        ramp = [[start + (1 - start) * i / (len(CIVIDIS) - 1), color] for i, color in enumerate(CIVIDIS)]
        axis |= {"colorscale": [[0, grey], [start, grey], *ramp], "cmin": low - step}
        ticks = np.linspace(low, high, 6)
        bar |= {"tickvals": [low - step / 2, *ticks], "ticktext": ["unknown", *(f"{tick:.2g}" for tick in ticks)]}
        values = np.where(np.isnan(values), low - step, values)
    outline = grey if theme == "dark" else ""  # cividis begins dark
    return Paint(marker=values, title="", layout={"coloraxis": axis}, outline=outline)


def _by_value(column: pd.Series, title: str, theme: str) -> Paint:
    """Points get numbers and the axis steps of colours: plotly checks numbers a hundred times faster than colours."""
    values = list(column.value_counts().index)
    named, rest = values[: len(PALETTE)], values[len(PALETTE) :]
    steps = [*PALETTE[: len(named)], *([theme_colors(theme)["grey"]] if rest else [])]
    labels = [escape(value, limit=28) or "(none)" for value in named]
    labels += [f"{len(rest)} others" if len(rest) > 1 else escape(rest[0], limit=28)] if rest else []
    entries = [
        legend_trace(label, {"symbol": "square", "size": 11, "color": color})
        for label, color in zip(labels, steps, strict=True)
    ]
    numbers = column.map({value: min(number, len(PALETTE)) for number, value in enumerate(values)})
    scale = [[(i + end) / len(steps), color] for i, color in enumerate(steps) for end in (0, 1)]
    axis = {"colorscale": scale, "cmin": -0.5, "cmax": len(steps) - 0.5, "showscale": False}
    layout = {"coloraxis": axis, "legend": {"itemclick": False}}
    return Paint(marker=numbers.to_numpy(dtype=float), title=title, legend=entries, layout=layout)


def prompt_legend(prompts: Sequence[str], colors: Paint, visible: Collection[str]) -> list[dict[str, Any]]:
    """The colour of each prompt. Without colours of prompts the entries are there, unseen: a panel can then change the
    colours by one message."""
    return [
        legend_trace(
            escape(prompt, limit=28),
            {"symbol": "square", "size": 11, "color": colors.strokes.get(prompt, CLASS_COLORS["harmless"])},
            legendgroup=f"prompt {prompt}",
            visible=bool(colors.strokes) and prompt in visible,
        )
        for prompt in prompts
    ]


def class_legend(points: pd.DataFrame, color: str, theme: str) -> list[dict[str, Any]]:
    """The symbol of each class; in its colour where colours mean the class."""
    colors = CLASS_COLORS if color == "class" else dict.fromkeys(CLASS_COLORS, theme_colors(theme)["grey"])
    return [
        legend_trace(name, {"symbol": CLASS_SYMBOLS[name], "size": 9, "color": colors[name]}, legend="legend2")
        for name in class_names(points["harmful"].drop_duplicates())
    ]


def legend_trace(name: str, marker: dict[str, Any], **where: Any) -> dict[str, Any]:
    """A trace that is only its legend entry."""
    shared = {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip"}
    return {**shared, "name": name, "marker": marker, **where}
