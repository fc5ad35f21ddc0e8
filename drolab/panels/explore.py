"""The simplest panels: any figure, redrawn when a control changes, and any panels behind tabs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from drolab.panels.base import Panel, PanelError, alert
from drolab.panels.controls import labelled, pick
from drolab.panels.picture import Picture


class ExplorePanel(Panel):
    """See `explore`."""

    def __init__(self, draw: Callable[..., go.Figure], controls: Mapping[str, Any]) -> None:
        self.picture = Picture()
        self._draw = draw
        self._last: go.Figure | None = None
        super().__init__({name: _control(name, offered) for name, offered in controls.items()}, [self.picture])
        self.on_change(self.draw)
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
        draw: called with each control's value under its name; returns the figure. An error in it is shown in words
            above the figure, which stays as it was.
        controls: name → what it offers: values to choose one from (a slider for more than three numbers, else a
            drop-down list; the first is chosen), or a pair of lists, choices and those chosen, to choose several from.

    Raises:
        PanelError: a control offers nothing to choose.

    Examples:
        A line that follows a slider. Setting a control's value does what a hand does:

        >>> import plotly.graph_objects as go
        >>> from drolab import panels
        >>> panel = panels.explore(
        ...     lambda power, points: go.Figure(go.Scatter(y=[x**power for x in range(points)])),
        ...     {"power": [1, 2, 3, 4], "points": [3, 5]},
        ... )
        >>> panel.controls["power"].value = 2
        >>> values, figure = panel.result()
        >>> values
        {'power': 2, 'points': 3}
        >>> figure.data[0].y
        (0, 1, 4)
    """
    return ExplorePanel(draw, controls)


def _control(name: str, offered: Any) -> widgets.Widget:
    label = name.replace("_", " ")
    tooltip = f"choose {label}"
    if isinstance(offered, tuple) and len(offered) == 2 and all(isinstance(part, list) for part in offered):
        choices, chosen = offered
        shown = {"options": choices, "value": tuple(chosen), "rows": min(8, len(choices))}
        return labelled(widgets.SelectMultiple, label, tooltip, **shown)
    choices = list(offered)
    if not choices:
        raise PanelError(f"Control {name!r} offers nothing to choose: give it at least one value.")
    return pick(label, choices, tooltip)


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

    Examples:
        Each panel is made when its tab is opened:

        >>> import plotly.graph_objects as go
        >>> from drolab import panels
        >>> def lines(n):
        ...     print(f"made for {n}")
        ...     return panels.explore(lambda slope: go.Figure(go.Scatter(y=[0, slope * n])), {"slope": [1, 2]})
        >>> shown = panels.tabs({"one": lambda: lines(1), "two": lambda: lines(2)})
        made for 1
        >>> shown.selected_index = 1
        made for 2
    """
    return Tabs(panels)
