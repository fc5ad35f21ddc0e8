"""The simplest panel: any figure, redrawn when a control changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from drolab.panels.base import Panel, alert, control
from drolab.panels.picture import Picture


class ExplorePanel(Panel):
    """See `explore`."""

    def __init__(self, draw: Callable[..., go.Figure], controls: Mapping[str, Any]) -> None:
        self.picture = Picture()
        self._draw = draw
        self._last: go.Figure | None = None
        super().__init__({name: control(name, spec) for name, spec in controls.items()}, [self.picture])
        self.redraw_on_change()
        self.guarded(self.draw)()

    def draw(self) -> None:
        self._last = self._draw(**self.values())
        self.picture.show(self._last)

    def result(self) -> tuple[dict[str, Any], go.Figure | None]:
        """The controls' values and the figure last drawn from them."""
        return self.values(), self._last


def explore(draw: Callable[..., go.Figure], controls: Mapping[str, Any]) -> ExplorePanel:
    """A figure that is redrawn when a control changes.

    Args:
        draw: called with each control's value under its name; returns the figure.
        controls: name → what it offers, see `shell.control`.

    An error in `draw` is shown in words above the figure, which stays as it was.
    """
    return ExplorePanel(draw, controls)


class Tabs(widgets.Tab):  # type: ignore[misc]  # ipywidgets ships no types
    """See `tabs`."""

    def __init__(self, panels: Mapping[str, Callable[[], widgets.Widget]]) -> None:
        self._make = list(panels.values())
        super().__init__([widgets.VBox() for _ in panels], titles=tuple(panels), selected_index=0)
        self.observe(lambda _: self._fill(), "selected_index")
        self._fill()

    def _fill(self) -> None:
        if self.selected_index is None or self.children[self.selected_index].children:
            return
        box, make = self.children[self.selected_index], self._make[self.selected_index]
        try:
            box.children = (make(),)
        except Exception as error:
            box.children = (widgets.HTML(alert(error)),)


def tabs(panels: Mapping[str, Callable[[], widgets.Widget]]) -> Tabs:
    """Show panels behind tabs.

    Args:
        panels: title → makes the panel; called once, when the tab is opened first. An error stands in the tab in words.
    """
    return Tabs(panels)
