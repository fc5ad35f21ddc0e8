"""What the projection panel shows: choices in, the content of a figure and tables out. No widgets here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from drolab.errors import StatesError
from drolab.figures import Boundary, Box, FigureError, PlaneLook, plane, probe_boundaries
from drolab.panels.projection.spaces import FrozenSpaces, refusal_changes
from drolab.types import NO_PROMPT

MOST_POINTS = 50_000
"""A browser cannot draw more than these and keep up: whole queries are left out, and the figure says so."""
Plane = tuple[str, int, int, int]
"""View, layer, and the components along and up: what the places of points depend on."""
_LOOKING = "UMAP is for looking only: distances and sizes in it mean little, and no number comes from it."
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a user chose to see."""

    layer: int
    prompts: tuple[str, ...]
    """Those that are shown."""
    view: str = "PCA"
    """PCA or UMAP."""
    x: int = 1
    y: int = 2
    """Components, from 1."""
    color: str = "prompt"
    """See `planes.projection`."""
    judge: str = ""
    arrows: bool = True
    boundaries: bool = True
    theme: str = "light"

    @property
    def plane(self) -> Plane:
        return self.view, self.layer, self.x, self.y


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    """Where all states lie, drawn or not, and what goes with it."""

    xy: np.ndarray
    """[n, 2]"""
    box: Box
    titles: tuple[str, str]
    arrows: pd.DataFrame | None
    """None where mean shifts mean nothing (UMAP) or have no baseline."""


class ProjectionView:
    """Frozen spaces and what is known of the behaviour, as pictures and tables."""

    def __init__(self, spaces: FrozenSpaces, tables: Mapping[str, pd.DataFrame]) -> None:
        """`tables`: judge → `spaces.point_table` with its scores, for the same states."""
        self.spaces = spaces
        self.tables = _with_disagreement(tables)
        first = next(iter(self.tables.values()))
        self.prompts = [str(prompt) for prompt in first["prompt"].unique()]
        self.drawn = sample_queries(first["query_id"])
        """Row numbers of the states that are drawn."""
        self._clouds = [self.drawn[rows] for rows in plane.clouds(first.iloc[self.drawn]).values()]
        self._rows_of_query = first.iloc[self.drawn].groupby("query_id").indices
        # The last of each is kept: most changes leave the plane, and nearly all the judge.
        self._scene = lru_cache(maxsize=1)(self._make_scene)
        self._drawn_table = lru_cache(maxsize=1)(self._make_drawn_table)

    def color_choices(self) -> list[tuple[str, str]]:
        """(label, `Choices.color`) for each column that has something to tell."""
        table = next(iter(self.tables.values()))
        choices = [("prompt", "prompt"), ("class", "class")]
        choices += [("category", "category")] if table["category"].nunique() > 1 else []
        choices += [("refusal rate", "refusal_rate")] if self.is_scored() else []
        return choices + ([("disagreement of the judges", "disagreement")] if "disagreement" in table.columns else [])

    def is_scored(self) -> bool:
        """Whether the refusal rate of any state is known."""
        return any(table["refusal_rate"].notna().any() for table in self.tables.values())

    def points(self, choices: Choices) -> pd.DataFrame:
        """All states with x and y, drawn or not."""
        return self._with_places(self.tables[choices.judge], choices)

    def drawn_points(self, choices: Choices) -> pd.DataFrame:
        """The states that are drawn, of the prompts that are shown."""
        points = self.points(choices).iloc[self.drawn]
        return points[points["prompt"].isin(choices.prompts)]

    def content(self, choices: Choices, selected: Iterable[int] | None = None) -> plane.Content:
        """The figure for `planes`' functions and `Picture.update_to`; `selected`: row numbers, None for no selection.

        Raises:
            FigureError: more prompts are shown than colours can be told apart.
        """
        scene = self._scene_of(choices)
        lines, missing = self._lines(choices) if choices.boundaries and choices.view == "PCA" else ({}, [])
        mask = None
        if selected is not None:
            mask = np.isin(self.drawn, np.fromiter(selected, dtype=np.intp))
        content = plane.projection_content(
            self._drawn_table(choices.judge).assign(x=scene.xy[self.drawn, 0], y=scene.xy[self.drawn, 1]),
            PlaneLook(
                boundaries=lines,
                axis_titles=scene.titles,
                ranges=scene.box,
                note=" ".join([*missing, *self._notes(choices)]),
                theme=choices.theme,
            ),
            color=choices.color,
            arrows=scene.arrows if choices.arrows else None,
            prompts=self.prompts,
            shown=choices.prompts,
            selected=mask,
        )
        content["layout"]["dragmode"] = "lasso"
        return content

    def rows(self, numbers: Iterable[tuple[int, int]]) -> list[int]:
        """Row numbers of points given as (trace, point) of the content's figure; others than states are left out."""
        return [int(self._clouds[trace][point]) for trace, point in numbers if trace < len(self._clouds)]

    def path(self, row: int, choices: Choices) -> list[dict[str, Any]]:
        """Shapes that show the query of a row under every prompt that is shown."""
        points = self.tables[choices.judge]
        rows = self.drawn[self._rows_of_query[points["query_id"].iloc[row]]]
        same = self._with_places(points, choices).iloc[rows]
        return plane.query_path(same[same["prompt"].isin(choices.prompts)], theme=choices.theme)

    def find(
        self,
        choices: Choices,
        *,
        harmful: bool | None = None,
        contains: str = "",
        prompt: str | None = None,
        baseline: str = NO_PROMPT,
        at_least: float = 0.0,
    ) -> pd.DataFrame:
        """The points of the prompts that are shown whose query has the class and contains the text, in any case.

        With `prompt`, those points under it instead whose refusal rate is `at_least` higher than under `baseline`,
        with two more columns: see `spaces.refusal_changes`. The index holds row numbers.
        """
        points = self.points(choices)
        if harmful is not None:
            points = points[points["harmful"] == harmful]
        if contains:
            points = points[points["text"].str.contains(contains, case=False, regex=False)]
        if prompt is None:
            return points[points["prompt"].isin(choices.prompts)]
        changes = refusal_changes(points, prompt, baseline)
        return changes[changes["change"] >= at_least - _ROUNDING]

    def _with_places(self, table: pd.DataFrame, choices: Choices) -> pd.DataFrame:
        xy = self._scene_of(choices).xy
        return table.assign(x=xy[:, 0], y=xy[:, 1])

    def _make_drawn_table(self, judge: str) -> pd.DataFrame:
        table = self.tables[judge].iloc[self.drawn]
        return table.assign(hover=plane.hover_texts(table))

    def _scene_of(self, choices: Choices) -> _Scene:
        return self._scene(*choices.plane)

    def _make_scene(self, view: str, layer: int, x: int, y: int) -> _Scene:
        points = next(iter(self.tables.values()))
        if view == "UMAP":
            xy = self.spaces.umap(layer)
            box = plane.plane_box(points.assign(x=xy[:, 0], y=xy[:, 1]))
            return _Scene(xy=xy, box=box, titles=("UMAP 1", "UMAP 2"), arrows=None)
        placed = self.spaces.placed(layer)
        xy = placed.coordinates[:, [x - 1, y - 1]]
        points = points.assign(x=xy[:, 0], y=xy[:, 1])
        shares = [float(placed.space.explained_variance_ratio[number - 1]) for number in (x, y)]
        titles = [f"component {number} ({share:.0%})" for number, share in zip((x, y), shares, strict=True)]
        arrows = plane.mean_shifts(points) if NO_PROMPT in self.prompts else None
        return _Scene(xy=xy, box=plane.plane_box(points), titles=(titles[0], titles[1]), arrows=arrows)

    def _lines(self, choices: Choices) -> tuple[dict[str, Boundary], list[str]]:
        """The boundaries of the probes that can be fitted, and in words those that cannot."""
        table = self.tables[choices.judge]
        targets = {"harmful": table["harmful"].astype(float)}
        if table["refusal_rate"].notna().any():
            targets["refuses"] = table["refusal_rate"]
        lines: dict[str, Boundary] = {}
        missing = []
        for positive, target in targets.items():
            kept_as = positive if positive == "harmful" else f"{positive} {choices.judge}"
            try:
                probe = self.spaces.probe(choices.layer, kept_as, target.to_numpy(), positive=positive)
                lines |= probe_boundaries(probe, plane=(choices.x - 1, choices.y - 1))
            except (StatesError, FigureError) as error:
                missing.append(f"No boundary of {positive!r}: {error}")
        return lines, missing

    def _notes(self, choices: Choices) -> list[str]:
        notes = [_LOOKING] if choices.view == "UMAP" else []
        n_queries = next(iter(self.tables.values()))["query_id"].nunique()
        if len(self._rows_of_query) < n_queries:
            notes.append(
                f"{len(self._rows_of_query):,} of {n_queries:,} queries are drawn, a random sample (seed 0); axes, "
                "arrows, boundaries and searches are of all."
            )
        return notes


def sample_queries(query_ids: pd.Series, most: int = MOST_POINTS) -> np.ndarray:
    """Row numbers, ascending: all rows, or those of as many whole queries, drawn with seed 0, as fit into `most`."""
    if len(query_ids) <= most:
        return np.arange(len(query_ids))
    codes, queries = pd.factorize(query_ids)
    order = np.random.default_rng(0).permutation(len(queries))
    fits = np.cumsum(np.bincount(codes)[order]) <= most
    return np.flatnonzero(np.isin(codes, order[fits]))


def _with_disagreement(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """With several judges a column `disagreement`: how far apart their refusal rates of a state are."""
    if len(tables) < 2:
        return dict(tables)
    rates = pd.DataFrame({judge: table["refusal_rate"] for judge, table in tables.items()})
    apart = rates.max(axis=1) - rates.min(axis=1)
    return {judge: table.assign(disagreement=apart) for judge, table in tables.items()}
