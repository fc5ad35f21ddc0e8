"""Figures laid out for a column of a paper or for a slide: a plotly template per size, and `sheet`, which applies it.

A figure is not drawn in millimetres: it is laid out at the width at which drolab's 13-pixel text becomes 8 points on
paper, and plotly's export scales the finished drawing. The legend stands below the plot. Plotly keeps room for it, for
names and for titles by itself; counted here are only characters (where a line breaks) and lines (how high all is).
All of it works on plotly's plain dictionaries, so that a figure of any size is prepared without being validated again.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drolab.figures.style import NAME_LIMIT, SMALL_PRINT, THEMES, FigureError, escape, small_print, template_content

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = {"single": 85.0, "double": 178.0}
"""Widths in millimetres, as in most two-column journals."""
STYLES = ("print", "slide", "shown")

_PX_PER_INCH = 96
_MM_PER_PX = 8 * 25.4 / 72 / 13
_SLIDE = (800, 450)
_SLIDE_MM = 40 / 3 * 25.4
_SCREEN_WIDTH = 900
_CHARACTER, _LINE, _ROW, _SYMBOL, _CELL = 7, 18, 26, 45, 25
"""Pixels of a character, a line of text, a row of tokens, a legend's symbol and a cell's number, roughly."""
_TITLE_LINE = 1.3 * 16
_BELOW = {"x": 0.01, "y": 0, "xref": "container", "yref": "container", "xanchor": "left", "yanchor": "bottom"}
_NARROW_PLOT, _NARROW_MARKERS = 0.65, 0.7
"""In a single column, of the height and of the markers on the screen."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A figure that is ready to be rendered."""

    figure: dict[str, Any]
    """`data` and `layout`, in plotly's own words."""
    width: float
    height: float
    """Pixels of the layout."""
    width_mm: float
    """How wide the picture is on paper or on a slide."""
    dpi: int
    """Of raster images."""

    @property
    def page_scale(self) -> float:
        """From layout pixels to the page's, of which an inch has 96."""
        return self.width_mm / 25.4 * _PX_PER_INCH / self.width

    @property
    def raster_scale(self) -> float:
        """From layout pixels to a raster image's."""
        return self.page_scale * self.dpi / _PX_PER_INCH


def size_template(size: str, theme: str = "light") -> dict[str, Any]:
    """drolab's template with what a size adds to it: the legend below the plot, and its width and margins.

    Args:
        size: `print-single`, `print-double` or `slide`.
    """
    base = template_content(theme)
    added = {
        "legend": {**base["layout"]["legend"], **_BELOW, "orientation": "h", "traceorder": "normal", "maxheight": 1},
        "margin": {"l": 10, "r": 14, "t": 12, "b": 10},
        "width": _SLIDE[0] if size == "slide" else round(COLUMNS[size.removeprefix("print-")] / _MM_PER_PX),
    }
    return {**base, "layout": base["layout"] | added}


def sheet(figure: go.Figure, *, style: str = "print", width: str = "double") -> Sheet:
    """Lay a figure out. The figure itself is left as it is.

    Args:
        style: `print` (light, text of 7 to 9 pt, no title, since a paper's caption has its words), `slide` (16:9,
            13.33 inches wide, large text), or `shown` (as on the screen).
        width: for `print`, a `single` (85 mm) or `double` (178 mm) column.

    Raises:
        FigureError: no such style or width.
    """
    if style not in STYLES or width not in COLUMNS:
        raise FigureError(f"No style {style!r} of width {width!r}: choose from {STYLES} and {tuple(COLUMNS)}.")
    content = _static(figure.to_dict())
    if style == "print":
        return _printed(content, width)
    if style == "slide":
        return _slide(content)
    width_mm, height = _SCREEN_WIDTH / _PX_PER_INCH * 25.4, content["layout"].get("height") or 480
    return Sheet(figure=content, width=_SCREEN_WIDTH, height=height, width_mm=width_mm, dpi=2 * _PX_PER_INCH)


def caption(figure: go.Figure) -> str:
    """The title and the small print as plain text: what a caption begins with."""
    layout = figure.to_dict()["layout"]
    small = layout.get("xaxis", {}).get("title", {}).get("text", "").partition(SMALL_PRINT)[2]
    return " ".join(_plain(text) for text in (layout.get("title", {}).get("text"), small) if text)


# ---------------------------------------------------------------- the two layouts


def _printed(content: dict[str, Any], column: str) -> Sheet:
    if _theme(content["layout"]) == "dark":
        content = _light(content)
    layout, template = content["layout"], size_template(f"print-{column}")
    width, narrow = template["layout"]["width"], column == "single"
    height = layout.pop("height", 480) - 2 * _LINE * bool(layout.pop("title", {}).get("text"))
    if narrow:
        height *= 1 if _is_dense(content) else _NARROW_PLOT
        _shrink_markers(content["data"])
        height += _fit_cells(content["data"], width)
    height += _names(content, width, limit=14 if narrow else NAME_LIMIT)
    height += _broken_titles(layout, width, height) + _one_legend(content, width)
    _apply(layout, template, width=width, height=height, top=12 + _head_room(layout))
    return Sheet(figure=content, width=width, height=height, width_mm=COLUMNS[column], dpi=300)


def _slide(content: dict[str, Any]) -> Sheet:
    layout = content["layout"]
    own = layout.pop("height", 480) * (0.9 if _is_dense(content) else 0.8)
    height = round(max(_SLIDE[1], own, 0.5 * _SLIDE[1] + _one_legend(content, _SLIDE[0])))
    width = round(_SLIDE[0] / _SLIDE[1] * height)
    _broken_titles(layout, width, height)
    text = _broken((layout.get("title", {}).get("text") or "").replace("<br>", " "), 80)
    second = _TITLE_LINE * (_lines(text) - 1)  # plotly moves the first line up by this
    layout["title"] = {"text": text, "y": 1 - (10 + second) / height, "yref": "container", "yanchor": "top"}
    top = 24 + _TITLE_LINE * _lines(text) * bool(text) + _head_room(layout)
    _apply(layout, size_template("slide", _theme(layout)), width=width, height=height, top=top)
    return Sheet(figure=content, width=width, height=height, width_mm=_SLIDE_MM, dpi=144)


def _apply(layout: dict[str, Any], template: dict[str, Any], *, width: float, height: float, top: float) -> None:
    layout.update(template=template, width=width, height=height, margin={**template["layout"]["margin"], "t": top})


def _static(content: dict[str, Any]) -> dict[str, Any]:
    """WebGL points become SVG ones (WebGL is a raster picture in SVG and PDF); controls are left out."""
    for trace in content["data"]:
        if trace.get("type") == "scattergl":
            trace["type"] = "scatter"
    for name in ("sliders", "updatemenus", "width"):
        content["layout"].pop(name, None)
    return content


# ---------------------------------------------------------------- what a size changes


def _one_legend(content: dict[str, Any], width: float) -> float:
    """All entries in one legend, where the template says; how high it may become."""
    layout, traces = content["layout"], content["data"]
    titles = [layout.pop(name, {}).get("title", {}).get("text") for name in ("legend", "legend2")]
    layout["legend"] = {"title": {"text": " · ".join(title for title in titles if title), "side": "top"}}
    for trace in traces:
        trace.pop("legend", None)
    names = [
        _plain(trace.get("name") or "trace")
        for trace in traces
        if trace.get("visible", True) and trace.get("showlegend", trace.get("type") != "heatmap")
    ]
    if not names or layout.get("showlegend") is False:
        return 0
    columns = max(1, int(0.8 * width / (_CHARACTER * max(map(len, names)) + _SYMBOL)))
    return _LINE * (math.ceil(len(names) / columns) + 1)


def _broken_titles(layout: dict[str, Any], width: float, height: float) -> float:
    """Break the titles of axes and subplots and the small print; how much height the new lines need."""
    rows = len(_domains(layout, "y"))
    columns = max(Counter(tuple(axis.get("domain", ())) for _, axis in _axes(layout, "y")).values(), default=1)
    lines = 0
    for note in layout.get("annotations", []):
        if note.get("xref") == "paper" and note.get("yref") == "paper":
            before = _lines(note["text"])
            note["text"] = _broken(note["text"], int(width / columns / _CHARACTER))
            lines = max(lines, rows * (_lines(note["text"]) - before))
    for letter, along in (("x", 0.7 * width / columns), ("y", 0.6 * height / rows)):
        characters = int(along / _CHARACTER)
        for _, axis in _axes(layout, letter):
            title, _, small = (axis.get("title", {}).get("text") or "").partition(f"<br>{SMALL_PRINT}")
            small = _broken(small.removesuffix("</span>"), characters)
            axis["title"] = {**axis.get("title", {}), "text": small_print(small, _broken(title, characters))}
            lines += _lines(small) * bool(small)
    return _LINE * lines


def _names(content: dict[str, Any], width: float, *, limit: int) -> float:
    """Cut names at the axes to `limit` characters; the height of those that stand aslant below the plot."""
    layout, depth = content["layout"], 0
    bars = [str(name) for trace in content["data"] if trace.get("type") == "bar" for name in trace.get("x", ())]
    if unique := list(dict.fromkeys(bars)):
        layout.setdefault("xaxis", {}).update(tickmode="array", tickvals=unique, ticktext=unique)
    for name, axis in [*_axes(layout, "x"), *_axes(layout, "y")]:
        if axis.get("ticktext"):
            axis["ticktext"] = [
                "<br>".join(_cut(line, limit) for line in text.split("<br>")) for text in axis["ticktext"]
            ]
            lengths = [len(_plain(text)) for text in axis["ticktext"]]
            if name.startswith("x") and _CHARACTER * sum(lengths) > 0.7 * width:
                depth = max(depth, _CHARACTER * min(14, max(lengths)))
    return depth


def _fit_cells(traces: Sequence[dict[str, Any]], width: float) -> float:
    """Put the colour bars of heat maps below them, write their numbers as .83, and fold strips of tokens into half as
    many columns; the height that this needs."""
    height = 0
    for trace in (trace for trace in traces if trace.get("type") == "heatmap"):
        if not trace.get("showscale", True):
            rows = len(trace["z"])
            _fold(trace, math.ceil(len(trace["z"][0]) / 2))
            height += _ROW * (len(trace["z"]) - rows)
            continue
        bar = trace.get("colorbar", {})
        below = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "thickness": 10}
        trace["colorbar"] = {**bar, **below, "title": {**bar.get("title", {}), "side": "right"}}
        height += 3 * _LINE
        if "text" in trace:
            trace["text"] = [[re.sub(r"\b0\.", ".", text) for text in line] for line in trace["text"]]
            if len(trace["text"][0]) * _CELL > 0.65 * width:
                trace.get("textfont", {}).pop("size", None)  # plotly fits it to the cells
    return height


def _fold(trace: dict[str, Any], columns: int) -> None:
    """The cells of a heat map, in reading order, in fewer columns."""
    for name in ("z", "text", "customdata"):
        flat = [cell for line in trace[name] for cell in line]
        flat += [None] * (-len(flat) % columns)
        trace[name] = [flat[start : start + columns] for start in range(0, len(flat), columns)]


def _shrink_markers(traces: Sequence[dict[str, Any]]) -> None:
    for trace in traces:
        marker = trace.get("marker", {})
        if isinstance(size := marker.get("size"), (list, tuple)):
            marker["size"] = [_NARROW_MARKERS * one for one in size]
        elif size is not None:
            marker["size"] = _NARROW_MARKERS * size


def _head_room(layout: dict[str, Any]) -> float:
    """For what stands above the plot, such as the titles of subplots."""
    above = [note for note in layout.get("annotations", []) if note.get("yref") == "paper" and note.get("y", 0) >= 1]
    return max((_LINE * _lines(note["text"]) + 4 for note in above), default=0)


def _is_dense(content: dict[str, Any]) -> bool:
    """Whether the figure has the height that its rows need."""
    return len(_domains(content["layout"], "y")) > 1 or any(trace.get("type") == "heatmap" for trace in content["data"])


def _axes(layout: dict[str, Any], letter: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, layout[name]) for name in layout if re.fullmatch(rf"{letter}axis\d*", name)]


def _domains(layout: dict[str, Any], letter: str) -> set[tuple[float, ...]]:
    """Where subplots begin and end: as many as there are columns (`x`) or rows (`y`) of them."""
    return {tuple(axis.get("domain", ())) for _, axis in _axes(layout, letter)} or {()}


# ---------------------------------------------------------------- text


def _plain(text: str) -> str:
    """What plotly's pseudo-HTML shows."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()


def _lines(text: str) -> int:
    return text.count("<br>") + 1


def _broken(text: str, width: int) -> str:
    """Pseudo-HTML in lines of about `width` characters: broken at spaces only, so never inside a `<b>`."""
    pieces = text.split("<br>")
    return "<br>".join("<br>".join(textwrap.wrap(piece, width, break_long_words=False)) for piece in pieces)


def _cut(text: str, limit: int) -> str:
    return escape(html.unescape(text), limit=limit)


# ---------------------------------------------------------------- colours


def _theme(layout: dict[str, Any]) -> str:
    paper = layout.get("template", {}).get("layout", {}).get("paper_bgcolor")
    return next((theme for theme, colors in THEMES.items() if colors["paper"] == paper), "light")


def _light(node: Any, *, color: bool = False) -> Any:
    """The same with the dark theme's colours replaced by the light theme's."""
    if isinstance(node, dict):
        return {key: _light(value, color=color or "color" in str(key)) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_light(item, color=color) for item in node]
    return _DARK_TO_LIGHT.get(node, node) if color and isinstance(node, str) else node


_DARK_TO_LIGHT = {THEMES["dark"][part]: THEMES["light"][part] for part in THEMES["dark"]}
