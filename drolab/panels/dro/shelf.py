"""The part of the DRO panel that keeps runs side by side: choose, compare, save, load, remove."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from drolab.dro import KeptRun, runs
from drolab.figures import PALETTE
from drolab.models import ChatModel
from drolab.panels.base import Panel, PanelError, button
from drolab.panels.controls import STYLE, choice, named
from drolab.panels.markup import label, table

_NAME_LENGTH = 60
_SHOWN = "The runs whose curves are drawn; Ctrl or Shift for several"


class Shelf(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """Runs by name, their table, and what can be done with them."""

    def __init__(self, panel: Panel, model: ChatModel, changed: Callable[[], None]) -> None:
        self._panel, self._model, self._changed = panel, model, changed
        self.kept: dict[str, KeptRun] = {}
        self.active: KeptRun | None = None
        """The run that is in training, if there is one."""
        self._listing = False
        self.controls = {
            "run": choice("run", [], "The run that is replayed, and that result() gives back"),
            "shown": widgets.SelectMultiple(options=[], rows=4, description="curves of", tooltip=_SHOWN, style=STYLE),
            "folder": widgets.Text(
                "out/dro_runs", description="folder", tooltip="Where runs are saved, and loaded from"
            ),
            "save": button("Save", "Write every run into the folder, each as far as it is", icon="save"),
            "load": button("Load", "Read all runs that were saved in the folder", icon="folder-open"),
            "remove": button("Remove", "Take the chosen run out of this panel; files and the store stay", icon="trash"),
        }
        self.table = widgets.HTML()
        for name, action in (("save", self._save), ("load", self._load), ("remove", self._remove)):
            self.controls[name].on_click(panel.guarded(lambda _, action=action: action()))
        for name in ("run", "shown"):
            self.controls[name].observe(panel.guarded(lambda _: None if self._listing else changed()), "value")
        rows = [
            [self.controls[name] for name in names]
            for names in (("run", "remove", "shown"), ("folder", "save", "load"))
        ]
        super().__init__([*map(widgets.HBox, rows), widgets.Box([self.table], layout={"overflow": "auto"})])

    def chosen(self) -> KeptRun:
        """The chosen run.

        Raises:
            PanelError: there is none.
        """
        if not self.kept:
            raise PanelError("There is no run yet: start or load one.")
        return self.kept[self.controls["run"].value]

    def shown(self) -> dict[str, KeptRun]:
        """The runs whose curves are drawn."""
        return {name: self.kept[name] for name in self.controls["shown"].value}

    def add(self, kept: KeptRun, name: str = "") -> None:
        """Keep a run and choose it; one without a name is numbered, a long name is cut.

        Raises:
            PanelError: another run has this name.
        """
        name = label(name, _NAME_LENGTH).strip() or self._free("run")
        if name in self.kept:
            raise PanelError(f"There is a run called {name!r} already: give this one another name, or remove that one.")
        self.kept[name] = kept
        self.choose(name)

    def choose(self, name: str | None) -> None:
        """Choose a run (None: the last) and draw its curves, beside as many others as there are colours for."""
        name = name or next(reversed(self.kept), None)
        others = [other for other in self.controls["shown"].value if other in self.kept and other != name]
        self._listing = True
        try:
            for control in ("run", "shown"):
                self.controls[control].options = named(self.kept)
            if name is not None:
                self.controls["run"].value = name
                self.controls["shown"].value = (*others[1 - len(PALETTE) :], name)
        finally:
            self._listing = False
        self._changed()

    def draw(self, state: str) -> None:
        """Fill the table; `state` is that of the run in training."""
        if not self.kept:
            self.table.value = ""
            return
        found = _compact(runs.compare(self.kept))
        states = [state if kept is self.active and state else kept.status for kept in self.kept.values()]
        found.insert(1, "status", states)
        self.table.value = table(found)

    def _save(self) -> None:
        if not self.kept:
            raise PanelError("There is no run to save: start one.")
        folder = Path(self.controls["folder"].value)
        for name, kept in self.kept.items():
            runs.save_run(folder, name, kept)
        self._panel.say(f"Saved to {folder.resolve()}: {', '.join(self.kept)}.")

    def _load(self) -> None:
        found = runs.load_runs(self.controls["folder"].value)
        for name, kept in found.items():
            if kept.run.space.model_fingerprint not in ("", self._model.fingerprint):
                raise PanelError(f"The run {name!r} is of another model: load it into a panel of that model.")
        before = set(self.kept)
        for name, kept in found.items():
            short = label(name, _NAME_LENGTH // 2).strip()
            self.add(kept, self._free(f"{short}-loaded") if short in self.kept else short)
        self._panel.say(f"Loaded: {', '.join(name for name in self.kept if name not in before)}.")

    def _free(self, stem: str) -> str:
        return next(name for number in count(1) if (name := f"{stem}-{number}") not in self.kept)

    def _remove(self) -> None:
        kept = self.chosen()
        if kept is self.active:
            raise PanelError("This run is in training: stop it first.")
        del self.kept[self.controls["run"].value]
        self.choose(None)


def _compact(found: pd.DataFrame) -> pd.DataFrame:
    """The table as a person reads it: one column for both classes, numbers rounded."""
    shown: dict[str, Any] = {}
    for name in found.columns:
        stem, _, kind = name.rpartition(" ")
        if kind in ("harmful", "harmless"):
            both = found.reindex(columns=[f"{stem} harmful", f"{stem} harmless"]).itertuples(index=False)
            cells = [" / ".join("–" if pd.isna(value) else f"{value:.2f}" for value in pair) for pair in both]
            shown[f"{stem.replace('other', 'neither')} harmful/harmless"] = cells
        else:
            shown[name.replace("_", " ")] = found[name].map(_rounded)
    return pd.DataFrame(shown)


def _rounded(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


def stacked(tables: dict[str, pd.DataFrame], columns: Any) -> pd.DataFrame:
    """The tables of several runs below each other, with the run's name before."""
    parts = [rows.assign(run=name) for name, rows in tables.items() if len(rows)]
    wanted = ["run", *columns]
    return pd.concat(parts, ignore_index=True)[wanted] if parts else pd.DataFrame(columns=wanted)
