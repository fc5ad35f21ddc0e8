"""What the projection panel shows: states and choices in, the content of a figure and tables out. No widgets here.

The spaces are fitted once, on the anchor prompts alone: a prompt that comes later is placed into them, bends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drolab.errors import StatesError
from drolab.figures import Boundary, Box, FigureError, PlaneLook, class_names, plane, probe_boundaries, tables
from drolab.panels import markup
from drolab.probing import coordinates, fit_anchors, fit_probe, one_position, umap_view
from drolab.types import NO_PROMPT, UNFINISHED, AnchorSpace, HiddenStates, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drolab.store import Store

MOST_POINTS = 50_000
"""A browser cannot draw more than these and keep up: whole queries are left out, and the figure says so."""
MOST_ROWS = 200
"""Of the table of the chosen points."""
POINT_COLUMNS = ("query_id", "prompt", "harmful", "text", "category", "refusal_rate", "response")
"""Columns of `point_table`."""
Plane = tuple[str, int, int, int]
"""View, layer, and the components along and up: what the places of points depend on."""
_LOOKING = "UMAP is for looking only: distances and sizes in it mean little, and no number comes from it."
_PAIR = ["query_id", "prompt"]
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """An anchor space and the places of all states in it."""

    space: AnchorSpace
    coordinates: NDArray[np.float32]
    """[n, m], in the order of the states."""


class FrozenSpaces:
    """The anchor spaces, probes and maps of each layer of some states, made when first asked for and kept.

    Args:
        anchors: the prompts on which everything is fitted.
        n_components: of the anchor spaces.
        store: where UMAP's maps are kept beyond this object's life.

    Raises:
        StatesError: an anchor prompt without states, or states of several positions.
    """

    def __init__(
        self, states: HiddenStates, anchors: Sequence[str], *, n_components: int = 4, store: Store | None = None
    ) -> None:
        self.states = one_position(states)
        self.anchors = tuple(anchors)
        self.n_components = n_components
        self._store = store
        states.select(prompt=list(self.anchors), layer=states.layers[-1])  # names an anchor that has no states
        self._is_anchor = states.index["prompt"].isin(self.anchors).to_numpy()
        self._placed: dict[int, Placed] = {}
        self._probes: dict[tuple[int, str], Probe] = {}
        self._maps: dict[int, NDArray[np.float32]] = {}

    def placed(self, layer: int) -> Placed:
        """The anchor space of a layer, with every state's coordinates.

        Raises:
            StatesError: the anchor states are too few for the components, or not finite.
        """
        if layer not in self._placed:
            states = self.states.select(layer=layer)
            anchors = states.select(prompt=list(self.anchors))
            space = fit_anchors(anchors, n_components=self.n_components, layer=layer, spread=False)
            self._placed[layer] = Placed(space=space, coordinates=coordinates(space, states).numpy())
        return self._placed[layer]

    def probe(self, layer: int, name: str, rates: Sequence[float] | np.ndarray, *, positive: str) -> Probe:
        """A probe of a layer, fitted on the anchor states for which `rates` is known, and kept under `name`.

        Args:
            rates: one value per state, from 0 to 1, NaN where it is not known.

        Raises:
            StatesError: no value is known for an anchor state, or all that are known lie on one side.
        """
        if (layer, name) not in self._probes:
            values = np.asarray(rates, dtype=float)
            rows = np.flatnonzero(self._is_anchor & ~np.isnan(values))
            if not len(rows):
                raise StatesError(
                    f"No score of a state under the anchor prompts {list(self.anchors)}: score these too."
                )
            states, space = self.states.select(layer=layer), self.placed(layer).space
            known = replace(states, values=states.values[rows], index=states.index.iloc[rows].reset_index(drop=True))
            self._probes[layer, name] = fit_probe(space, known, values[rows].tolist(), positive=positive)
        return self._probes[layer, name]

    def has_map(self, layer: int) -> bool:
        return layer in self._maps

    def umap(self, layer: int) -> NDArray[np.float32]:
        """[n, 2]: a UMAP of the anchor states with the others placed into it, for looking only. Slow at first.

        Raises:
            StatesError: too few anchor states for a map, or states that are not finite.
        """
        if layer not in self._maps:
            states = self.states.select(layer=layer)
            others = [prompt for prompt in states.index["prompt"].unique() if prompt not in self.anchors]
            anchors = states.select(prompt=list(self.anchors))
            extra = states.select(prompt=others) if others else None
            view = umap_view(anchors, layer=layer, extra=extra, store=self._store)
            places = np.empty((len(states), 2), dtype=np.float32)
            places[np.argsort(~self._is_anchor, kind="stable")] = view[["x", "y"]].to_numpy()
            self._maps[layer] = places
        return self._maps[layer]


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
    """See `figures.projection`."""
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
        """`tables`: judge → `point_table` with its scores, for the same states."""
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

    def layer_choices(self) -> list[tuple[str, int]]:
        """(label, layer) for each layer of the states."""
        words = {0: " (embeddings)", self.spaces.states.num_hidden_layers: " (last)"}
        return [(f"{layer}{words.get(layer, '')}", layer) for layer in self.spaces.states.layers]

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
        """The figure, for `Picture.update_to`; `selected`: row numbers, None for no selection.

        Raises:
            FigureError: more prompts are shown than colours can be told apart.
        """
        scene = self._scene_of(choices)
        lines, missing = self._lines(choices) if choices.boundaries and choices.view == "PCA" else ({}, [])
        mask = None if selected is None else np.isin(self.drawn, np.fromiter(selected, dtype=np.intp))
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
        with two more columns: see `refusal_changes`. The index holds row numbers.
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
        titles = axis_title(placed.space, x), axis_title(placed.space, y)
        arrows = plane.mean_shifts(points) if NO_PROMPT in self.prompts else None
        return _Scene(xy=xy, box=plane.plane_box(points), titles=titles, arrows=arrows)

    def _lines(self, choices: Choices) -> tuple[dict[str, Boundary], list[str]]:
        """The boundaries of the probes that can be fitted, and in words those that cannot, or read nothing."""
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
                missing += [probe.problem] if probe.problem else []
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


def axis_title(space: AnchorSpace, number: int) -> str:
    """Of a component, counted from 1: its share of the anchors' variance is in it."""
    return f"component {number} ({float(space.explained_variance_ratio[number - 1]):.0%})"


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


# ---------------------------------------------------------------- tables


def point_table(
    states: HiddenStates, *, scores: pd.DataFrame | None = None, replies: pd.DataFrame | None = None
) -> pd.DataFrame:
    """POINT_COLUMNS, one row per state: its query, and what is known of the behaviour under its prompt.

    Args:
        scores: as from `judge`: `refusal_rate` by (query_id, prompt). NaN for a state that it lacks.
        replies: as from `generate`: the first response of each query and prompt is taken. NaN where there is none.

    Raises:
        StatesError: scores that are not indexed by (query_id, prompt), hold a pair twice, or lack a column.
    """
    table = states.index[["query_id", "prompt", "harmful", "text", "category"]].astype(
        {"query_id": object, "prompt": object, "text": object, "category": object}
    )
    places = pd.MultiIndex.from_frame(table[_PAIR])
    rates, responses = np.full(len(table), np.nan), np.full(len(table), np.nan, dtype=object)
    if scores is not None:
        rates = _checked_scores(scores).reindex(places).to_numpy(dtype=float)
    if replies is not None:
        first = replies.drop_duplicates(_PAIR).set_index(_PAIR)
        said = first["response"].astype(object)
        if "finish_reason" in first:
            said = said.mask(first["finish_reason"] == UNFINISHED, markup.NO_ANSWER)
        responses = said.reindex(places).to_numpy()
    return table.assign(refusal_rate=rates, response=responses)


def _checked_scores(scores: pd.DataFrame) -> pd.Series:
    if "refusal_rate" not in scores.columns or list(scores.index.names) != _PAIR:
        raise StatesError("The scores must be a table of drolab.judge: `refusal_rate`, indexed by query_id and prompt.")
    if scores.index.has_duplicates:
        pair = scores.index[scores.index.duplicated()][0]
        raise StatesError(f"The scores have {pair} twice: pass each table once, not concatenated.")
    return scores["refusal_rate"]


def refusal_changes(points: pd.DataFrame, prompt: str, baseline: str) -> pd.DataFrame:
    """How much more often each query is refused under `prompt` than under `baseline`, the largest change first.

    Args:
        points: query_id, prompt, refusal_rate and any other columns.

    Returns:
        The rows of `prompt` for which both rates are known, with two more columns: `baseline_rate`, and `change` =
        `refusal_rate` - `baseline_rate`. The index is that of `points`.
    """
    before = points[points["prompt"] == baseline].set_index("query_id")["refusal_rate"]
    rows = points[points["prompt"] == prompt]
    rows = rows.assign(baseline_rate=rows["query_id"].map(before))
    rows = rows.assign(change=rows["refusal_rate"] - rows["baseline_rate"]).dropna(subset=["change"])
    return rows.sort_values("change", ascending=False, kind="stable")


def replies_as_html(query: str, replies: pd.DataFrame, prompts: Sequence[str]) -> str:
    """All replies to one query, a column for each of the prompts that have some, as text that runs nothing."""
    columns = {
        prompt: [
            markup.Cell(number, str(reply["response"]), (), {}, False, **markup.thought_of(reply))
            for number, reply in enumerate(rows.to_dict("records"))
        ]
        for prompt in prompts
        if len(rows := replies[replies["prompt"] == prompt])
    }
    if not columns:
        return ""
    heads = {prompt: f"{len(cells)} {'reply' if len(cells) == 1 else 'replies'}" for prompt, cells in columns.items()}
    shown = markup.side_by_side(query, columns, heads)
    return f'<div tabindex="0" style="max-height:30em;overflow:auto">{shown}</div>'


def points_as_html(points: pd.DataFrame, caption: str, prompt: str, baseline: str) -> str:
    """The chosen points, the first MOST_ROWS of them, as text that runs nothing."""
    shown = points.head(MOST_ROWS)
    columns = {"query": shown["text"], "class": class_names(shown["harmful"])}
    if "change" in points.columns:
        rates = [f"refusal rate: {markup.label(name, 40)}" for name in (prompt, baseline)]
        columns |= {rates[0]: shown["refusal_rate"], rates[1]: shown["baseline_rate"], "change": shown["change"]}
    else:
        columns |= {"prompt": shown["prompt"], "refusal rate": shown["refusal_rate"]}
    columns |= {"first response": shown["response"], "category": shown["category"]}
    frame = pd.DataFrame(columns, dtype=object)
    cut = f"; the first {MOST_ROWS} are shown here, selection() gives all" if len(points) > MOST_ROWS else ""
    rows = tables.table_html(frame) if len(frame) else ""
    head = f'<div role="status" style="font-weight:bold;line-height:1.6">{markup.visible(caption + cut)}</div>'
    return f'{head}<div tabindex="0" style="max-height:24em;overflow:auto">{rows}</div>'
