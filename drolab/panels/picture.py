"""The figure in a panel: it survives a page reload, sends only what changed, and says which points were touched."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import plotly
import plotly.graph_objects as go
import traitlets
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from drolab.figures import CONFIG, DARK, escape, template_content

PointsCallback = Callable[[str, list[tuple[int, int]]], None]


class PlotlyJS(widgets.Widget):  # type: ignore[misc]  # ipywidgets ships no types
    """Carries plotly's code to the page. It is not shown."""

    code = traitlets.Bytes().tag(sync=True)
    version = traitlets.Unicode().tag(sync=True)


_sent: list[PlotlyJS] = []


def plotlyjs() -> PlotlyJS:
    """The one of this kernel."""
    if not _sent or _sent[0].comm is None:  # never made, or closed with all other widgets
        _sent[:] = [PlotlyJS(code=get_plotlyjs().encode("utf-8"), version=plotly.__version__)]
    return _sent[0]


class Picture(anywidget.AnyWidget):
    """A figure in a panel. `update_to` and `show` put another one in its place; what the user did in it (zoom, hidden
    legend entries, the outline of a selection) is an edit, which stays where the two agree.

    A page that opens, or opens again, gets the whole state; those that are open get what changed. A page that is dark,
    by JupyterLab's theme or the system's, shows the dark theme's colours in place of the light one's.
    """

    _esm = Path(__file__).with_suffix(".js")
    # The outline of a selection would take the mouse, so that no second lasso could start in it.
    _css = ".js-plotly-plot .selectionlayer * { pointer-events: none !important; }"
    _library = traitlets.Instance(PlotlyJS).tag(sync=True, **widgets.widget_serialization)
    _config = traitlets.Dict({**CONFIG, "responsive": False}).tag(sync=True)
    _dark = traitlets.Dict(DARK).tag(sync=True)
    _state = traitlets.Any().tag(sync=True, to_json=lambda _, picture: picture._whole())
    """Never set: what is sent is made when it is asked for."""
    _id = traitlets.Unicode().tag(sync=True)
    """Its own, by which the page finds what anywidget does not hand out."""
    _keeps = traitlets.Bool(False).tag(sync=True)
    _hovered: Any = traitlets.List().tag(sync=True)

    def __init__(self, figure: go.Figure | Mapping[str, Any] | None = None) -> None:
        self._content = figure if isinstance(figure, Mapping) else content_of(figure or go.Figure())
        self._edits: dict[tuple[str | int, ...], Any] = {}
        self._points_callback: PointsCallback | None = None
        self.kept = ""
        """What it looked like last, as a `data:` address of an image; empty if no page has said so."""
        self._kept_callback: Callable[[], None] = lambda: None
        self._n_told = 0
        own = uuid.uuid4().hex
        super().__init__(_id=own, model_id=own)
        self.on_msg(lambda _, message, buffers: self.receive(message))

    @traitlets.default("_library")
    def _default_library(self) -> PlotlyJS:
        return plotlyjs()

    @property
    def figure(self) -> go.Figure:
        """What is shown now, as zoomed and hidden by the user; a new figure each time."""
        figure = go.Figure(self._content)
        for path, value in self._edits.items():
            part = figure
            for name in path[:-1]:
                part = part[name]
            part[path[-1]] = value
        return figure

    @property
    def data(self) -> Any:
        """The traces of `figure`."""
        return self.figure.data

    @property
    def layout(self) -> Any:
        """The layout of `figure`."""
        return self.figure.layout

    def show(self, figure: go.Figure) -> None:
        """Show another figure. Zoom and hidden legend entries stay while `figure.layout.uirevision` is the same."""
        content = content_of(figure)
        revisions = [each["layout"].get("uirevision") for each in (self._content, content)]
        self._change(content, keep_edits=revisions[0] is not None and revisions[0] == revisions[1])

    def update_to(self, content: Mapping[str, Any]) -> None:
        """Show `content`, plain `data` and `layout` as the figures' `…_content` give them: only what differs is sent.

        A trace of the same type and name in the same place is the same trace. What the user did since (zoom, hidden
        legend entries) stays, where the two contents agree.
        """
        self._change(content, keep_edits=True)

    def relayout(self, changes: Mapping[str, Any]) -> None:
        """Edit the layout as the user would: names as plotly.js writes them, such as `xaxis.range`, and values."""
        edits = [(("layout", *name.split(".")), value) for name, value in changes.items()]
        edits = [(path, value) for path, value in edits if self._edits.get(path) != value]
        self._edits.update(edits)
        self._tell([], edits)

    def on_points(self, callback: PointsCallback) -> None:
        """Call `callback(event, points)` when points are hovered, clicked or selected in the browser.

        Args:
            callback: `event` is hover, unhover, click, selected or deselect, `points` are (trace, point) numbers.
        """
        self._points_callback = callback

    def on_kept(self, callback: Callable[[], None]) -> None:
        """From now on let the browser say what the figure looks like, and call `callback()` when `kept` is another."""
        self._kept_callback, self._keeps = callback, True

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take what the browser tells: {"event": click, hover, unhover or deselect, "points": (trace, point) numbers},
        {"event": "edit", "edits": (path, value) pairs}, {"event": "kept", "image": address}, or {"event": "ready",
        "n": how many messages the state that it has knows of}.

        A selection is known by the outlines that the user drew, whatever their number of points.
        """
        if message["event"] == "ready":
            if message["n"] != self._n_told:
                self.send_state("_state")
            return
        if message["event"] == "kept":
            if re.fullmatch(r"(data:image/\w+;base64,[\w+/=]+)?", message["image"]) and message["image"] != self.kept:
                self.kept = message["image"]
                self._kept_callback()
            return
        n = len(self._content["data"])  # there may be fewer traces than when the user clicked
        edits = {tuple(path): value for path, value in message.get("edits", []) if path[0] != "data" or path[1] < n}
        self._edits |= edits
        if self._points_callback is None:
            return
        if message["event"] != "edit":
            self._points_callback(message["event"], [(trace, point) for trace, point in message["points"]])
        elif outlines := edits.get(("layout", "selections")):
            self._points_callback("selected", self._points_in(outlines))

    @traitlets.observe("_hovered")
    def _hover(self, change: Any) -> None:
        self.receive({"event": "hover" if change.new else "unhover", "points": change.new})

    def _points_in(self, outlines: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        found = []
        for number, trace in enumerate(self._content["data"]):
            visible = self._edits.get(("data", number, "visible"), trace.get("visible", True))
            if visible is True and "markers" in trace.get("mode", "") and trace.get("x") is not None:
                x, y = np.asarray(trace["x"], dtype=float), np.asarray(trace["y"], dtype=float)
                inside = np.any([points_inside(outline, x, y) for outline in outlines], axis=0)
                found += [(number, int(point)) for point in np.flatnonzero(inside)]
        return found

    def _change(self, content: Mapping[str, Any], *, keep_edits: bool) -> None:
        last, self._content = self._content, content
        changes = list(_differences(last, content))
        edits = list(self._edits)  # the user may add to them meanwhile
        gone = [edit for edit in edits if not keep_edits or any(_meet(path, edit) for path, *_ in changes)]
        for edit in gone:
            self._edits.pop(edit, None)
        self._tell(changes, [[edit] for edit in gone])

    def _tell(self, changes: list[Any], edits: list[Any]) -> None:
        """Each change and edit is a path and a value, or only a path where there is nothing any more."""
        buffers: list[memoryview] = []
        if changes or edits:
            self._n_told += 1
            self.send({"changes": packed(changes, buffers), "edits": packed(edits, buffers)}, buffers)

    def _whole(self) -> dict[str, Any]:
        n = self._n_told  # before the content, which another thread may change: then the page asks again, see `receive`
        buffers: list[memoryview] = []
        content = packed(self._content, buffers)
        return {"content": content, "edits": packed(list(self._edits.items()), buffers), "buffers": buffers, "n": n}


def content_of(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data and layout for `Picture.update_to`, its arrays as arrays."""
    return {"data": [trace.to_plotly_json() for trace in figure.data], "layout": figure.layout.to_plotly_json()}


def packed(part: Any, buffers: list[memoryview]) -> Any:
    """Part of a content for JSON: arrays of numbers go into `buffers`, and `{"$array": …}` stands for them."""
    if isinstance(part, Mapping):
        return {name: packed(value, buffers) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [packed(value, buffers) for value in part]
    if isinstance(part, np.ndarray) and part.dtype.kind in "fiu" and part.ndim in (1, 2) and part.size:
        kind = "f4" if part.dtype == np.float32 else "f8"
        buffers.append(np.ascontiguousarray(part, dtype=kind).data.cast("B"))
        return {"$array": [len(buffers) - 1, kind, *part.shape]}
    if part is None or isinstance(part, (str, int)) or (isinstance(part, float) and math.isfinite(part)):
        return part
    return json.loads(to_json_plotly(part))  # times, numpy's and pandas' values; NaN is null


def placeholder(words: str) -> dict[str, Any]:
    """Content for `Picture.update_to`: words in place of a figure that is not there yet."""
    axis = {"visible": False, "fixedrange": True}
    note = {"text": escape(words), "x": 0, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    layout = {"height": 60, "margin": dict.fromkeys("ltrb", 4), "xaxis": axis, "yaxis": axis, "annotations": [note]}
    return {"data": [], "layout": layout | {"template": template_content("light")}}


def points_inside(outline: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n] booleans: the points (x, y) that lie in a box or lasso, one of plotly's `layout.selections`."""
    if outline["type"] == "rect":
        (left, right), (low, high) = (sorted((outline[f"{axis}0"], outline[f"{axis}1"])) for axis in "xy")
        return (x >= left) & (x <= right) & (y >= low) & (y <= high)
    corners = np.array([pair.split(",") for pair in re.findall(r"[ML]([^MLZ]+)", outline["path"])], dtype=float)
    inside = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crossed = (y0 > y) != (y1 > y)  # an edge that a ray to the right may cross, an odd number of times from inside
        inside ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1.0))
    return inside


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[list[Any]]:
    """[path, value] of all that differs between two contents, [path] of what is gone."""
    last, traces = old["data"], new["data"]
    for number, trace in enumerate(traces):
        if number < len(last) and _same_trace(last[number], trace):
            yield from _changed(last[number], trace, ["data", number])
        else:
            yield [["data", number], trace]
    for number in reversed(range(len(traces), len(last))):
        yield [["data", number]]
    yield from _changed(old["layout"], new["layout"], ["layout"])


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], path: list[str | int]) -> Iterator[list[Any]]:
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed(before, after, [*path, name])
        elif after is None and before is not None:
            yield [[*path, name]]
        elif before is not after and not _same(before, after):
            yield [[*path, name], after]


def _same_trace(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(old.get(name) == new.get(name) for name in ("type", "name"))


def _meet(change: Sequence[str | int], edit: Sequence[str | int]) -> bool:
    """Whether a change is of what was edited, of a part of it, or of what has it as a part."""
    return all(a == b or {a, b} == {"range", "autorange"} for a, b in zip(change, edit, strict=False))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and not isinstance(a, np.ndarray) and bool(a == b)
