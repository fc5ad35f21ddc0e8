"""Panels behind tabs, each made when its tab is opened first: a page with many of them is there sooner."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ipywidgets as widgets

from drolab.panels.base import alert


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
