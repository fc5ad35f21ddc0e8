"""Taking a panel's figures and tables away: the box "Export" at the end of every panel."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from drolab import export
from drolab.errors import ExportError
from drolab.figures import COLUMNS
from drolab.panels.base import Job, Panel
from drolab.panels.controls import Controls, button, labelled
from drolab.panels.markup import label, visible
from drolab.types import EMPTY_PROMPT, NO_PROMPT

Offered = dict[str, tuple[go.Figure | None, pd.DataFrame]]
"""File name → figure (if there is one) and table of what a panel shows at this moment."""
About = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
"""What `export.about` returns, or a callable that gives it at the moment of the export."""

_FORMATS = {
    "html": "HTML: interactive, opens offline",
    "csv": "CSV: the numbers that are shown",
    "png": "PNG: 300 dpi",
    "svg": "SVG: vectors",
    "pdf": "PDF: vectors",
}
_STYLES = {"print": "print: light, 7 to 9 pt", "slide": "slide: 16:9, large text", "shown": "as shown here"}


def completed(given: About | None, own: Callable[[], Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
    """What was given for the manifest, and what the panel itself knows at the moment of the export: of a prompt its own
    text, since that one is shown; of all else what was given, if it was."""

    def about() -> dict[str, Any]:
        known, said = own(), _asked(given)
        said = {name: value for name, value in said.items() if value is not None and not _is_empty(value)}
        return {**known, **said, "prompts": {**said.get("prompts", {}), **known["prompts"]}}

    return about


def _asked(about: About | None) -> dict[str, Any]:
    return {} if about is None else dict(about() if callable(about) else about)


def _is_empty(value: object) -> bool:
    return isinstance(value, Mapping) and not value


class ExportBox(widgets.Accordion):  # type: ignore[misc]  # ipywidgets ships no types
    """Folder, formats, width and style, and a button that writes what the panel shows, with a manifest.

    Args:
        offer: asked on every press of the button.
        about: see `export.about`; goes into the manifest. Prompts that are shown and that it does not describe are
            listed there as `prompts_without_text`, and named after the export.
    """

    def __init__(self, offer: Callable[[], Offered], about: About | None = None) -> None:
        self._offer, self._about = offer, about
        self.paths: list[Path] = []
        """What the last export wrote."""
        self.status = widgets.HTML()
        self.panel = Panel(_controls(), [])
        self.job = Job(self.panel, "Images")
        self.panel.append(self.job, self.status)
        self.panel.on_click("export", self._export)
        self.panel.controls["style"].observe(self._style_changed, "value")
        super().__init__([self.panel], titles=("Export",), selected_index=None)

    def _style_changed(self, change: Any) -> None:
        """Only paper has columns."""
        self.panel.controls["width"].disabled = change.new != "print"

    def _export(self) -> None:
        values = self.panel.values()
        folder = values.pop("folder")
        if not folder.strip() or not values["formats"]:
            raise ExportError("Nothing to do: name a folder, and choose at least one format.")
        about, offered = _asked(self._about), self._offer()
        if unknown := _without_text(offered, about.get("prompts", {})):
            about["prompts_without_text"] = unknown

        def work(job: Job) -> None:
            self.paths = []
            self.status.value = _note("Writing. Images take a few seconds, since Chrome has to start.")
            try:
                self.paths = export.bundle(offered, folder.strip(), about=about, progress=job.tick, **values)
            except ExportError as error:
                self.paths = list(error.written)
                raise
            finally:
                self.status.value = _listed(self.paths, unknown)

        self.job.start(work)


def _without_text(offered: Offered, described: Mapping[str, Any]) -> list[str]:
    """The prompts that the tables name and the manifest does not describe. Those of runs are described by the run."""
    columns = [table["prompt"] for _, table in offered.values() if {"prompt", "run"} & {*table.columns} == {"prompt"}]
    shown = dict.fromkeys(str(name) for column in columns for name in column.dropna().unique())
    return [name for name in shown if name not in (NO_PROMPT, EMPTY_PROMPT) and name not in described]


def _listed(paths: Sequence[Path], unknown: Sequence[str]) -> str:
    if not paths:
        return ""
    items = "".join(f"<li>{html.escape(path.name)}</li>" for path in paths)
    names = ", ".join(visible(label(name, 60)) for name in unknown)
    lacks = (
        f"The manifest lacks the texts of these prompts: {names}. Give the panel <code>about=export.about(…)</code>."
    )
    return _note(f"Written to {html.escape(str(paths[0].parent.resolve()))}:<ul>{items}</ul>{lacks if unknown else ''}")


def _note(content: str) -> str:
    return f'<div role="status">{content}</div>'


def _controls() -> Controls:
    columns = [(f"{name} column, {mm:.0f} mm", name) for name, mm in COLUMNS.items()]
    return {
        "folder": labelled(
            widgets.Text,
            "folder",
            "where to write, seen from the notebook's folder; it is made if absent",
            value="out/export",
        ),
        "formats": labelled(
            widgets.SelectMultiple,
            "formats",
            "what to write; Ctrl or Shift for several",
            options=[(label, kind) for kind, label in _FORMATS.items()],
            value=("html", "csv"),
            rows=len(_FORMATS),
        ),
        "width": labelled(
            widgets.Dropdown,
            "width",
            "the column of a paper that printed images fill",
            options=columns,
            value="double",
        ),
        "style": labelled(
            widgets.Dropdown,
            "style",
            "what PNG, SVG and PDF are for: print leaves the title to the caption",
            options=[(label, style) for style, label in _STYLES.items()],
        ),
        "export": button("Export", "Write what this panel shows now, with a manifest of what made it", icon="download"),
    }
