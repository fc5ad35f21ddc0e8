"""Panels: controls beside a figure or a table. The only module that imports ipywidgets.

A panel computes nothing: it calls the function it was given with the values of its controls and shows what comes
back. It works without a browser too: setting a control's `.value` redraws.
"""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from drolab.style import CONFIG
from drolab.types import DrolabError


class PanelError(DrolabError, ValueError):
    """A panel cannot be built from its controls."""


class Panel(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """Controls and what they show. `controls` is a mapping of name to widget; `result()` what is shown now."""

    def __init__(self, controls: Mapping[str, widgets.Widget], shown: widgets.Widget, redraw: Callable[..., Any]):
        self.controls = dict(controls)
        self.message = widgets.HTML(layout=widgets.Layout(width="auto"))
        self._redraw = redraw
        self._last: Any = None
        bar = widgets.HBox(list(self.controls.values()), layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([bar, self.message, shown])
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        self._draw()

    def values(self) -> dict[str, Any]:
        """The controls' present values."""
        return {name: control.value for name, control in self.controls.items()}

    def result(self) -> tuple[dict[str, Any], Any]:
        """The controls' values and what was last drawn from them: a figure, or a table."""
        return self.values(), self._last

    def _on_change(self, _: Any) -> None:
        self._draw()

    def _draw(self) -> None:
        """Redraw; what goes wrong is shown in the panel, since a callback's exception is invisible in a browser."""
        self.message.value = ""
        try:
            self._last = self._redraw(**self.values())
        except DrolabError as error:
            self.message.value = _alert(str(error))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.message.value = _alert(f"{type(error).__name__}: {error} (in {last.name}, line {last.lineno})")


def _alert(text: str) -> str:
    return f'<div role="alert" style="color:#D55E00;padding:4px 0">Not drawn: {html.escape(text)}</div>'


def _control(name: str, spec: Any) -> widgets.Widget:
    """A widget as it is; a tuple of lists `(choices, chosen)` as a multiple choice; a sequence as one choice."""
    if isinstance(spec, widgets.Widget):
        return spec
    style = {"description_width": "initial"}
    label = name.replace("_", " ")
    shared = {"description": label, "tooltip": f"choose {label}", "style": style}
    if isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(part, list) for part in spec):
        choices, chosen = spec
        return widgets.SelectMultiple(options=choices, value=tuple(chosen), rows=min(8, len(choices)), **shared)
    choices = list(spec)
    if not choices:
        raise PanelError(f"Control {name!r} offers nothing to choose: give it at least one value.")
    if len(choices) > 3 and all(isinstance(choice, (int, float)) for choice in choices):
        return widgets.SelectionSlider(options=choices, value=choices[0], continuous_update=False, **shared)
    return widgets.Dropdown(options=choices, value=choices[0], **shared)


def explore(draw: Callable[..., go.Figure], controls: Mapping[str, Any]) -> Panel:
    """A figure that is redrawn when a control changes.

    Args:
        draw: called with each control's value under its name; returns the figure.
        controls: name → what it offers. A sequence of more than three numbers becomes a slider, any other sequence
            a drop-down (its first value is chosen), a pair of lists (choices, chosen) a multiple choice, and a
            widget with `.value` is taken as it is.

    An error in `draw` is shown in words above the figure, which stays as it was.
    """
    shown = go.FigureWidget()
    shown._config = {**shown._config, **CONFIG}

    def redraw(**values: Any) -> go.Figure:
        figure = draw(**values)
        _replace(shown, figure)
        return figure

    return Panel({name: _control(name, spec) for name, spec in controls.items()}, shown, redraw)


def _replace(shown: go.FigureWidget, figure: go.Figure) -> None:
    """Put another figure into a displayed widget.

    FigureWidget sends its whole state only on construction; later changes go as messages to the views that exist.
    So a view made later (a page reload, a panel shown twice) would draw the first figure. Setting the synced state
    as well cures that. `_widget_data` and `_widget_layout` are plotly's own private names (plotly 6 and 7); the
    browser test reloads the page to see that they still do this.
    """
    with shown.batch_update():
        shown.data = []
        shown.layout = figure.layout
        shown.add_traces([deepcopy(trace) for trace in figure.data])
    shown._widget_data = deepcopy(shown._data)
    shown._widget_layout = deepcopy(shown._layout_obj._props)


def responses(table: pd.DataFrame) -> Panel:
    """Read the responses to one query under several prompts side by side.

    Args:
        table: RESPONSE_COLUMNS, or at least query_id, prompt, sample, text, response; with a column `refusal`
            (bool) each response says how it was judged.

    Raises:
        PanelError: the table lacks a column or has no rows.
    """
    needed = ("query_id", "prompt", "sample", "text", "response")
    if missing := [column for column in needed if column not in table.columns]:
        raise PanelError(f"The table of responses lacks the columns {missing}: give what drolab.generate returned.")
    if table.empty:
        raise PanelError("The table of responses has no rows: generate some first.")
    queries = table.drop_duplicates("query_id")
    labels = [(row.text, row.query_id) for row in queries.itertuples()]
    prompts = list(table["prompt"].unique())
    shown = widgets.HTML()

    def redraw(query: Any, prompts: Sequence[str], samples: int) -> pd.DataFrame:
        chosen = table[(table["query_id"] == query) & table["prompt"].isin(prompts)]
        chosen = chosen[chosen.groupby("prompt").cumcount() < samples]
        shown.value = _side_by_side(chosen, list(prompts))
        return chosen

    controls = {
        "query": widgets.Dropdown(options=labels, description="query", layout=widgets.Layout(width="36em")),
        "prompts": _control("prompts", (prompts, prompts[:3])),
        "samples": _control("samples", [1, 2, 3, 5, 10, 20]),
    }
    controls["samples"].value = 3
    return Panel(controls, shown, redraw)


def _side_by_side(chosen: pd.DataFrame, prompts: Sequence[str]) -> str:
    if chosen.empty:
        return "<p>Choose at least one prompt.</p>"
    cells = []
    for prompt in prompts:
        items = "".join(_response_item(row) for row in chosen[chosen["prompt"] == prompt].itertuples())
        cells.append(f'<td style="vertical-align:top;text-align:left"><ol>{items}</ol></td>')
    heads = "".join(f'<th style="text-align:left">{html.escape(prompt)}</th>' for prompt in prompts)
    caption = f'<caption style="text-align:left"><b>{html.escape(chosen["text"].iloc[0])}</b></caption>'
    return f"<table>{caption}<tr>{heads}</tr><tr>{''.join(cells)}</tr></table>"


def _response_item(row: Any) -> str:
    refused = getattr(row, "refusal", None)
    verdict = "" if refused is None else f"<i>{'refused' if refused else 'answered'}</i>: "
    return f'<li style="white-space:pre-wrap">{verdict}{html.escape(row.response)}</li>'
