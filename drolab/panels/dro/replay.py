"""The part of the DRO panel that replays how training moved the queries."""

from __future__ import annotations

from itertools import combinations
from weakref import WeakKeyDictionary

import ipywidgets as widgets
import pandas as pd
import traitlets

from drolab import dro
from drolab.dro import KeptRun
from drolab.figures import PlaneLook, movement_content, probe_boundaries
from drolab.models import ChatModel
from drolab.panels.base import Job, Panel, PanelError, button
from drolab.panels.controls import choice
from drolab.panels.picture import Picture, placeholder
from drolab.store import Store
from drolab.types import AnchorSpace, DRORun

_FRAME_MS = 400


class Replay(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """A step slider with a play button over the queries' movement in one plane of the frozen anchor space.

    Coordinates are computed once per run, from a button; after that a step is only redrawn.
    """

    def __init__(
        self, panel: Panel, model: ChatModel, queries: pd.DataFrame, space: AnchorSpace, store: Store | None, theme: str
    ) -> None:
        self._model, self._queries, self._space, self._store, self._theme = model, queries, space, store, theme
        self._panel = panel
        self._kept: KeptRun | None = None
        self._paths: WeakKeyDictionary[KeptRun, pd.DataFrame] = WeakKeyDictionary()
        self.job = Job(panel, "Movement")
        self._nothing = placeholder("The movement of the queries is drawn here: press Replay to compute it.")
        self.picture = Picture(self._nothing)
        pairs = [(f"{a + 1} and {b + 1}", (a, b)) for a, b in combinations(range(len(space.components)), 2)]
        self.controls = {
            "replay": button("Replay", "Compute where each kept step of the chosen run moved the queries", icon="film"),
            "plane": choice("components", pairs, "The two components of the anchor space that are the axes"),
            "play": widgets.Play(value=0, max=0, interval=_FRAME_MS, tooltip="Play the steps one after the other"),
            "step": widgets.SelectionSlider(options=[0], description="step", tooltip="How far the training is shown"),
        }
        traitlets.link((self.controls["play"], "value"), (self.controls["step"], "index"))
        self.controls["replay"].on_click(panel.guarded(lambda _: self.start()))
        for name in ("plane", "step"):
            self.controls[name].observe(panel.guarded(lambda _: self.draw()), "value")
        super().__init__([widgets.HBox(list(self.controls.values())), self.job, self.picture])

    def choose(self, kept: KeptRun | None) -> None:
        """Show this run, if its coordinates are known."""
        self._kept = kept
        table = self._table()
        steps = [0] if table is None else sorted(int(step) for step in table["step"].unique())
        if steps != list(self.controls["step"].options):
            self.controls["play"].max = len(steps) - 1
            self.controls["step"].options = steps
        self.controls["step"].value = steps[-1]
        self.draw()

    def start(self, kept: KeptRun | None = None) -> None:
        """Compute the coordinates of all steps that a run (None: the chosen one) has kept."""
        kept = kept or self._kept
        if kept is None:
            raise PanelError("There is no run to replay: start or load one.")
        run = kept.run
        self.job.start(lambda job: self._compute(run, job), lambda table: self._computed(kept, table))

    def _compute(self, run: DRORun, job: Job) -> pd.DataFrame:
        table = dro.trajectories(self._model, self._queries, run, store=self._store, progress=job.tick)
        return table.assign(text=table["query_id"].map(self._queries["text"]))

    def _computed(self, kept: KeptRun, table: pd.DataFrame) -> None:
        self._paths[kept] = table
        if kept is self._kept:
            self.choose(kept)

    def shown(self) -> pd.DataFrame | None:
        """The chosen run's movement in the chosen plane: `dro.trajectories`, with x, y and the queries' texts."""
        table = self._table()
        if table is None:
            return None
        x, y = (table[f"component_{axis + 1}"] for axis in self.controls["plane"].value)
        return table.assign(x=x, y=y)

    def content(self) -> dict[str, object] | None:
        """The figure as plain data and layout; None as long as there is nothing to show."""
        table = self.shown()
        if table is None or self._kept is None:
            return None
        plane, run = self.controls["plane"].value, self._kept.run
        shares = self._space.explained_variance_ratio.tolist()
        titles = [f"component {axis + 1} ({shares[axis]:.0%} of the anchors' variance)" for axis in plane]
        look = PlaneLook(
            boundaries=probe_boundaries(run.refusal, run.harmfulness, plane=plane),
            axis_titles=(titles[0], titles[1]),
            theme=self._theme,
        )
        return movement_content(table, look, step=self.controls["step"].value)

    def draw(self) -> None:
        self.picture.update_to(self.content() or self._nothing)

    def _table(self) -> pd.DataFrame | None:
        return None if self._kept is None else self._paths.get(self._kept)
