"""The figure in a panel: it survives a page reload, sends only what changed, and says which points were touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly
import plotly.graph_objects as go
import traitlets
from plotly.basewidget import BaseFigureWidget

from drolab.figures import CONFIG, escape, template_content

MODULE = """
const loaded = (globalThis.drolabPlotly ??= new Map());

const library = async (model) => {
  const id = model.get("_library").replace("IPY_MODEL_", "");
  let holder;
  for (let tries = 0; !holder && tries < 200; tries++) {  // after a reload it may come later than the figure
    holder = await Promise.resolve().then(() => model.widget_manager.get_model(id)).catch(() => undefined);
    if (!holder) await new Promise(resolve => setTimeout(resolve, 50));
  }
  const version = holder.get("version");
  await new Promise(resolve => setTimeout(resolve, 100));  // first let the other figures come up
  if (!loaded.has(version)) {
    const code = new Blob([holder.get("code")], { type: "text/javascript" });
    loaded.set(version, import(URL.createObjectURL(code)));
  }
  return (await loaded.get(version)).default;
};

const MESSAGES = ["addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate",
                  "removeLayoutProps", "removeTraceProps"].map(name => `_py2js_${name}`);

const attach = async (context, early) => {
  const { model } = context;
  const made = (await library(model))();
  await made.initialize(context);
  for (const [name, listener] of early.listeners) model.off(`change:${name}`, listener);
  for (const [name, message] of early.kept) {
    model.set(name, null);
    model.set(name, message);
  }
  return made;
};

// FigureWidget draws before it is on the page, 700 pixels wide, and then follows the window's size only. And JupyterLab
// takes an arrow key in a list for the way to another cell, unless the control says that it wants its keys.
const CONTROLS = "select, button, .noUi-handle, input[type=checkbox], summary";

const settle = (place) => {
  const fit = () => setTimeout(() => window.dispatchEvent(new Event("resize")), 50);
  const observer = new ResizeObserver(() => {
    const controls = place.closest(".jp-OutputArea-output")?.querySelectorAll(CONTROLS) ?? [];
    for (const control of controls) control.setAttribute("data-lm-suppress-shortcuts", "true");
    fit();
  });
  observer.observe(place);
  document.addEventListener("plotlywidget-after-render", fit);
  return () => {
    observer.disconnect();
    document.removeEventListener("plotlywidget-after-render", fit);
  };
};

export default () => {
  let figure;
  return {
    initialize(context) {
      const early = { kept: [] };
      const keep = name => () => {
        const message = context.model.get(name);
        if (message) early.kept.push([name, message]);
      };
      early.listeners = MESSAGES.map(name => [name, keep(name)]);
      for (const [name, listener] of early.listeners) context.model.on(`change:${name}`, listener);
      figure = attach(context, early);
    },
    render: async context => {
      const made = await figure, remove = made.render(context), unsettle = settle(context.el);
      return () => { unsettle(); remove(); };
    },
  };
};
"""


CSS = """
/* The outline of a selection would take the mouse, so that no second lasso could start in it. */
.js-plotly-plot .selectionlayer * { pointer-events: none !important; }
"""


class PlotlyJS(widgets.Widget):  # type: ignore[misc]  # ipywidgets ships no types
    """Carries plotly's code to the page. It is not shown."""

    code = traitlets.Unicode().tag(sync=True)
    version = traitlets.Unicode().tag(sync=True)


_sent: list[PlotlyJS] = []


def plotlyjs() -> PlotlyJS:
    """The one of this kernel."""
    if not _sent or _sent[0].comm is None:  # never made, or closed with all other widgets
        code = BaseFigureWidget._esm
        text = code.read_text(encoding="utf-8") if hasattr(code, "read_text") else str(code)
        _sent[:] = [PlotlyJS(code=text, version=plotly.__version__)]
    return _sent[0]


PointsCallback = Callable[[str, list[tuple[int, int]]], None]


class Picture(go.FigureWidget):  # type: ignore[misc]
    """A figure in a panel. `show` puts another figure in its place; a page reload shows the present one.

    FigureWidget tells the browser its whole state only on construction, and later changes as messages to the views
    that exist: a view made later (a reload, a second view) would draw the first figure. So the synced state is brought
    up to date whenever the whole of it is asked for. `_widget_data`, `_widget_layout` and `_data`, `_layout_obj` are
    plotly's own private names (plotly 6 and 7); the browser test reloads the page to see that this still works.
    """

    _esm = MODULE
    _css = CSS
    _library = traitlets.Instance(PlotlyJS).tag(sync=True, **widgets.widget_serialization)

    def __init__(self, figure: go.Figure | Mapping[str, Any] | None = None) -> None:
        super().__init__(figure if figure is not None else go.Figure())
        self._config = {**self._config, **CONFIG}  # type: ignore[has-type]
        self._complete = True
        self.open()
        self._content = figure if isinstance(figure, Mapping) else None
        self._points_callback: PointsCallback | None = None

    @traitlets.default("_library")
    def _default_library(self) -> PlotlyJS:
        return plotlyjs()

    def open(self) -> None:
        """Tell the browser of this widget: once it is complete, and not, as plotly does, empty and then in parts."""
        if getattr(self, "_complete", False):
            super().open()

    def show(self, figure: go.Figure) -> None:
        """Replace everything. Zoom and hidden legend entries stay while `figure.layout.uirevision` is the same."""
        self._content = None
        with self.batch_update():
            self.data = []  # type: ignore[var-annotated]
            self.layout = figure.layout
            self.add_traces(figure.data)

    def update_to(self, content: Mapping[str, Any]) -> None:
        """Show `content`, plain `data` and `layout` as the figures' `…_content` give them, in place of the content
        before: only what differs is sent. A trace of the same type and name in the same place is the same trace, with
        its callbacks; from the first that is another one on they are made anew (plotly.js mixes up two traces of which
        one becomes the other).

        What the user did since (zoom, hidden legend entries) stays, where the two contents agree.
        """
        last, traces = self._content, content["data"]
        if last is None or _numbered(last) != _numbered(content):
            self.show(go.Figure(content))
            self._content = content
            return
        pairs = list(zip(last["data"], traces, strict=False))
        kept = next((i for i, (old, new) in enumerate(pairs) if not _same_trace(old, new)), len(pairs))
        if kept < len(self.data):
            self.data = self.data[:kept]
        with self.batch_update():
            for trace, (old, new) in zip(self.data, pairs, strict=False):
                _assign_changes(trace, old, new)
            _assign_changes(self.layout, last["layout"], content["layout"])
        if kept < len(traces):
            self.add_traces(traces[kept:])
        self._content = content

    def on_points(self, callback: PointsCallback) -> None:
        """Call `callback(event, points)` when points are hovered, clicked or selected in the browser.

        Args:
            callback: `event` is hover, unhover, click, selected or deselect, `points` are (trace, point) numbers.
                It takes the place of the traces' own `on_hover`, `on_selection` and so on: these restyle every trace
                on a selection, each a redraw, and a selection is lost when the kernel is busy with a hover.
        """
        self._points_callback = callback

    @traitlets.observe("_js2py_pointsCallback")
    def _handler_js2py_pointsCallback(self, change: Any) -> None:  # noqa: N802 - plotly's name
        message = change["new"]
        if self._points_callback is None or not message:
            super()._handler_js2py_pointsCallback(change)
            return
        event, points = message["event_type"].removeprefix("plotly_"), message["points"]
        if event != "selected":  # see below
            numbers = list(zip(points["trace_indexes"], points["point_indexes"], strict=True))
            self._points_callback(event, numbers)
        self._js2py_pointsCallback = None

    @traitlets.observe("_js2py_relayout")
    def _handler_js2py_relayout(self, change: Any) -> None:
        """A selection is known by the outlines that the user drew: the message with the points may never come, as the
        next hover overwrites it while the kernel is busy."""
        outlines = ((change["new"] or {}).get("relayout_data") or {}).get("selections")
        super()._handler_js2py_relayout(change)
        if outlines and self._points_callback is not None:
            self._points_callback("selected", self._points_in(outlines))

    def _points_in(self, outlines: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        found = []
        for number, trace in enumerate(self.data):
            if trace.visible in (None, True) and trace.x is not None and "markers" in (trace.mode or ""):
                x, y = np.asarray(trace.x, dtype=float), np.asarray(trace.y, dtype=float)
                inside = np.any([points_inside(outline, x, y) for outline in outlines], axis=0)
                found += [(number, int(point)) for point in np.flatnonzero(inside)]
        return found

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        if key is None and hasattr(self, "_layout_obj"):
            # Past the traits' notification: that would send everything to the views that are up to date.
            self._trait_values["_widget_data"] = self._data
            self._trait_values["_widget_layout"] = self._layout_obj._props
        return super().get_state(key, drop_defaults)


def content_of(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data and layout for `Picture.update_to`, its arrays as arrays."""
    return {"data": [trace.to_plotly_json() for trace in figure.data], "layout": figure.layout.to_plotly_json()}


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


def _numbered(content: Mapping[str, Any]) -> set[str]:
    """The parts of a layout that a figure may have several of, such as xaxis5 and legend2: plotly makes them only as a
    whole."""
    return {name for name in content["layout"] if name[-1].isdigit()}


def _same_trace(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(old.get(name) == new.get(name) for name in ("type", "name"))


def _assign_changes(target: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Set the properties of a trace or layout that differ between two descriptions of it."""
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before is after:
            continue
        # Leaf by leaf, also where all of it comes or goes: plotly refuses `line` and `line.color` in one message.
        if isinstance(before, Mapping) or isinstance(after, Mapping):
            _assign_changes(target[name], before or {}, after or {})
        elif not _same(before, after):
            target[name] = after


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and not isinstance(a, np.ndarray) and bool(a == b)
