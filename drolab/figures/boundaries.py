"""Where linear probes are zero, as lines in the plane of two components.

Public under `drolab.figures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drolab.figures.style import FigureError, escape, theme_colors
from drolab.types import Probe

Box = tuple[tuple[float, float], tuple[float, float]]
"""The ranges of x and y."""


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


def boundary_traces(
    boundaries: Mapping[str, Boundary], box: Box, theme: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """The lines, annotations that mark the positive sides of those inside the box, and a caption, escaped."""
    traces: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    outside: list[str] = []
    for (name, line), dash in zip(boundaries.items(), itertools.cycle(("solid", "dash", "dot", "dashdot"))):
        ends = line.segment(*box)
        traces.append(_line(name, ends, dash, theme))
        if ends is None:
            outside.append(name)
            continue
        marks.append(_positive_side(name, line, ends, box, theme, at=0.88 - 0.14 * len(marks)))
    words = "; ".join(dict.fromkeys(line.held for line in boundaries.values()))
    caption = f"Boundaries are drawn with the other components held at {escape(words)}."
    caption += f"<br>Outside this view: {escape(', '.join(outside))}." if outside else ""
    return traces, marks, caption


def _line(name: str, ends: np.ndarray | None, dash: str, theme: str) -> dict[str, Any]:
    """A line outside the box is there, unseen: its place in a panel's figure stays."""
    places = np.full((2, 2), np.nan) if ends is None else ends
    return {
        "type": "scatter",
        "x": places[:, 0],
        "y": places[:, 1],
        "visible": ends is not None,
        "mode": "lines",
        "name": escape(f"{name} = 0", limit=28),
        "line": {"color": theme_colors(theme)["ink"], "width": 1.8, "dash": dash},
        "hoverinfo": "text",  # a template would read %{…} in a name
        "hovertext": f"boundary of {escape(name, limit=60)}",
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
        "hovertext": f"{escape(name, limit=60)} is above zero on this side",
    }
