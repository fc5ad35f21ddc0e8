"""What the prompt lab shows of its prompts: the figure, the table, the queries that one prompt makes refused. No
widgets: numbers in, plotly's content and HTML out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from drolab import figures
from drolab.figures import plane as planes
from drolab.panels.markup import label, table, visible
from drolab.panels.prompt_lab import workbench
from drolab.panels.prompt_lab.workbench import NAME_LIMIT, Shelf, Trial
from drolab.types import Probe

N_EXAMPLES = 5
"""Queries listed for one prompt."""

_CLASSES = {True: "✖ harmful", False: "● harmless"}  # the symbols of the figure
_FAINT = 0.25
_COLUMNS = {
    "predicted refusal": ("predicted", ""),
    "predicted change": ("predicted_change", "+"),
    "measured refusal": ("measured", ""),
    "measured change": ("measured_change", "+"),
    "cosine with refusal": ("cosine", "+"),
}


class LabView:
    """The prompts of a shelf in a plane of their anchor space."""

    def __init__(self, shelf: Shelf, probes: Sequence[Probe], theme: str) -> None:
        self._shelf, self._probes, self._theme = shelf, probes, theme
        self._points: dict[str, tuple[Trial, pd.DataFrame]] = {}

    def points(self, plane: tuple[int, int]) -> pd.DataFrame:
        """All prompts' points: the columns of `workbench.points`, `hover`, and x and y, the components of the plane
        (counted from 1)."""
        parts = pd.concat([self._own_points(trial) for trial in self._shelf.trials.values()], ignore_index=True)
        x, y = (parts[f"component_{number}"] for number in plane)
        return parts.assign(x=x, y=y)

    def _own_points(self, trial: Trial) -> pd.DataFrame:
        known = self._points.get(trial.name)
        if known is None or known[0] is not trial:
            made = workbench.points(trial)
            known = self._points[trial.name] = (trial, made.assign(hover=planes.hover_texts(made)))
        return known[1]

    def content(self, plane: tuple[int, int], chosen: Sequence[str]) -> planes.Content:
        """The figure: an arrow from each chosen prompt's base, and their points, those of the given ones faint.

        The axes hold the points of all prompts, chosen or not.
        """
        points = self.points(plane)
        first, second = (number - 1 for number in plane)
        content = planes.projection_content(
            points,
            figures.PlaneLook(
                boundaries=figures.probe_boundaries(*self._probes, plane=(first, second)),
                axis_titles=(self._axis_title(first), self._axis_title(second)),
                note="The plane is that of the anchors: a new prompt is placed into it and does not change it.",
                theme=self._theme,
            ),
            arrows=self._arrows(points),
            prompts=list(self._shelf.trials),
            shown=chosen,
        )
        for trace, (prompt, _) in zip(content["data"], planes.clouds(points), strict=False):
            if prompt in self._shelf.given:
                trace["marker"] = {**trace["marker"], "opacity": _FAINT}
        return content

    def _arrows(self, points: pd.DataFrame) -> pd.DataFrame | None:
        moved: dict[str, list[str]] = {}
        for name, trial in self._shelf.trials.items():
            if trial.base != name:
                moved.setdefault(trial.base, []).append(name)
        arrows = [
            planes.mean_shifts(points[points["prompt"].isin([base, *names])], baseline=base)
            for base, names in moved.items()
        ]
        return pd.concat(arrows, ignore_index=True) if arrows else None

    def _axis_title(self, component: int) -> str:
        share = float(self._shelf.bench.space.explained_variance_ratio[component])
        return f"component {component + 1} ({share:.0%})"


def measurements(measured: pd.DataFrame) -> str:
    """HTML of a table of `workbench.measure`."""
    columns: dict[str, Any] = {
        "prompt": measured["prompt"],
        "against": measured["base"].fillna("–"),
        "tokens": measured["n_tokens"],
        "class of queries": measured["harmful"].map(_CLASSES),
    }
    for title, (name, sign) in _COLUMNS.items():
        values = measured[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        columns[title] = [_interval(*row, sign=sign) for row in values]
    return table(pd.DataFrame(columns))


def _interval(value: float, low: float, high: float, *, sign: str) -> str:
    if pd.isna(value):
        return "–"
    if pd.isna(low):  # too few queries
        return _short(value, sign)
    return f"{_short(value, sign)} [{_short(low)}, {_short(high)}]"


def _short(number: float, sign: str = "") -> str:
    """Two digits, as in the paper: .83, +.05."""
    return f"{round(number, 2) + 0.0:{sign}.2f}".replace("0.", ".", 1)  # + 0.0: no "-.00"


def raised(shelf: Shelf, name: str) -> str:
    """HTML: the harmless queries whose refusal one prompt raises most against its base."""
    trial, base = shelf.trials[name], shelf.base(name)
    if trial is base:
        return ""
    queries = workbench.per_query(shelf.bench, trial, base)
    measure = "predicted" if queries["measured_change"].isna().any() else "measured"
    after, change = queries[measure], queries[f"{measure}_change"]
    shown = pd.DataFrame({"query": queries["text"], "before": after - change, "after": after})
    shown = shown[~queries["harmful"] & (change > 0)].head(N_EXAMPLES)
    names = [label(prompt, NAME_LIMIT) for prompt in (name, base.name)]
    words = f"Harmless queries that {names[0]!r} makes refused more than {names[1]!r} ({measure}): "
    if shown.empty:
        return f"<p>{visible(words)}none.</p>"
    for column in ("before", "after"):
        shown[column] = shown[column].map(_short)
    return f"<p><b>{visible(words)}</b></p>{table(shown)}"
