"""Figures laid out for a column of a paper or for a slide: light colours, readable text, nothing cut off.

A figure is not drawn in millimetres: it is laid out at the width at which drolab's 13-pixel text becomes 8 points on
paper, and the finished drawing is scaled. In a narrow column the legends move below the plot. All of it works on
plotly's plain dictionaries, so that a figure of any size is prepared without being validated again.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drolab.figures.style import THEMES, FigureError, escape

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = {"single": 85.0, "double": 178.0}
"""Widths in millimetres, as in most two-column journals."""
STYLES = ("print", "slide", "shown")

_PX_PER_INCH = 96
_MM_PER_PX = 8 * 25.4 / 72 / 13
_SCREEN_WIDTH = 900
_SLIDE = (800, 450)
_SLIDE_MM = 40 / 3 * 25.4
_TEXT = {"print": (11.4, 14.6), "slide": (11.4, 18.0)}
"""Smallest and largest text of a layout in pixels: 7 and 9 points on paper, 14 and 22 on a slide."""
_AXIS_TITLE = 14
_SMALL = 11.4
_LINE = 1.3
_AXIS_ROOM = 56  # tick labels and title below a plot
_TITLE_ROOM = 40
_NARROW_HEIGHT, _NARROW_MARKERS = 0.65, 0.7  # of those on the screen, in a single column


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
    height = float(content["layout"].get("height") or 480)
    if style == "print":
        return _printed(content, height, width)
    if style == "slide":
        return _slide(content)
    width_mm = _SCREEN_WIDTH / _PX_PER_INCH * 25.4
    return Sheet(figure=content, width=_SCREEN_WIDTH, height=height, width_mm=width_mm, dpi=2 * _PX_PER_INCH)


def caption(figure: go.Figure) -> str:
    """The title and the small print as plain text: what a caption begins with."""
    content = figure.to_dict()
    texts = [content["layout"].get("title", {}).get("text"), *(note["text"] for note in _small_print(content))]
    return " ".join(_plain(text) for text in texts if text)


def _static(content: dict[str, Any]) -> dict[str, Any]:
    """WebGL points become SVG ones (WebGL is a raster picture in SVG and PDF); controls are left out."""
    for trace in content["data"]:
        if trace.get("type") == "scattergl":
            trace["type"] = "scatter"
        if "name" in trace:
            trace["name"] = _wrapped(trace["name"], 40, lines=1)
    for name in ("sliders", "updatemenus", "width"):
        content["layout"].pop(name, None)
    return content


# ---------------------------------------------------------------- the two layouts


def _printed(content: dict[str, Any], height: float, column: str) -> Sheet:
    width = round(COLUMNS[column] / _MM_PER_PX)
    layout = content["layout"]
    plot = height - (_TITLE_ROOM if layout.pop("title", {}).get("text") else 0)
    if layout.get("template", {}).get("layout", {}).get("paper_bgcolor") == THEMES["dark"]["paper"]:
        content = _light(content)
        layout = content["layout"]
    if column == "single":
        plot *= _NARROW_HEIGHT if len(_domains(layout, "y")) == 1 else 1.0
        _shrink_markers(content["data"])
    plot += _fit_labels(content, width, limit=14 if column == "single" else 28)
    _fit_text(content, "print", width, plot)
    foot = _small_print_to_foot(content, width)
    layout["margin"] = {"l": 10, "r": 14, "t": _head_room(layout), "b": 10}
    legends = _legends(content)
    if any(legend.width > 0.35 * width for legend in legends if legend.upright or column == "single"):
        total = _legends_to_foot(layout, legends, width, plot + foot, foot)
    else:
        total = max(plot + foot, _beside(legends) + _AXIS_ROOM + foot + layout["margin"]["t"])
    layout.update(width=width, height=total)
    return Sheet(figure=content, width=width, height=total, width_mm=COLUMNS[column], dpi=300)


def _slide(content: dict[str, Any]) -> Sheet:
    layout = content["layout"]
    _fit_text(content, "slide", *_SLIDE)
    title = layout.setdefault("title", {})
    title["text"] = _wrapped((title.get("text") or "").replace("<br>", " "), 80, lines=2)
    second = _text_height(title["text"], 18) - _LINE * 18  # plotly moves the first line up by this
    title.update({"y": 1 - (10 + second) / _SLIDE[1], "yref": "container", "yanchor": "top"})
    notes = _small_print(content)
    for note in notes:
        note["text"] = _wrapped(note["text"], 110, lines=3)
    top = 24 + 22 * _lines(title["text"]) * bool(title["text"]) + _head_room(layout)
    bottom = _AXIS_ROOM + sum(_text_height(note["text"], _SMALL) + 8 for note in notes)
    layout["margin"] = {"l": 10, "r": 14, "t": top, "b": bottom}
    needed = top + bottom + _beside(_legends(content))
    grown = max(1.0, needed / _SLIDE[1])
    width, height = round(_SLIDE[0] * grown), round(_SLIDE[1] * grown)
    layout.update(width=width, height=height)
    return Sheet(figure=content, width=width, height=height, width_mm=_SLIDE_MM, dpi=144)


# ---------------------------------------------------------------- text


def _plain(text: str) -> str:
    """What plotly's pseudo-HTML shows."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()


def _lines(text: str) -> int:
    return text.count("<br>") + 1


def _text_height(text: str, size: float) -> float:
    return _lines(text) * _LINE * size


def _text_width(text: str, size: float) -> float:
    """Generous: no font is at hand to measure with."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.62 * len(text) + 0.45 * wide)


def _wrapped(text: str, width: int, *, lines: int) -> str:
    """Pseudo-HTML broken into lines of about `width` characters, never inside a tag; at most `lines` of them."""
    found: list[str] = []
    for piece in text.split("<br>"):
        found.append("")
        for word in _words(piece, width):
            joined = f"{found[-1]} {word}".strip()
            found[-1:] = [joined] if len(_plain(joined)) <= width or not found[-1] else [found[-1], word]
    return "<br>".join(found if len(found) <= lines else [*found[: lines - 1], f"{found[lines - 1]} …"])


def _words(text: str, width: int) -> Iterator[str]:
    """Words with the tags in them; a word that no line can hold comes in pieces."""
    for word in re.findall(r"(?:<[^>]*>|\S)+", text):
        plain = _plain(word)
        if len(plain) <= width:
            yield word
        else:
            yield from (escape(plain[start : start + width]) for start in range(0, len(plain), width))


def _fit_text(content: dict[str, Any], style: str, width: float, height: float) -> None:
    """Text of sizes that can be read, in lines that are no longer than what they belong to."""
    layout = content["layout"]
    low, high = _TEXT[style]
    columns = len(_domains(layout, "x"))
    for note in layout.get("annotations", []):
        if note.get("xref") == "paper" and note.get("yref") == "paper" and note not in _small_print(content):
            size = note.setdefault("font", {}).setdefault("size", 13)
            note["font"]["size"] = size = min(size, 13 if width / columns > 250 else 12)
            note["text"] = _wrapped(note.get("text", ""), int(width / columns / (0.6 * size)), lines=3)
    for letter, along in (("x", width / columns), ("y", height * 0.8)):
        for name, axis in _axes(layout, letter):
            title = axis.setdefault("title", {})
            title.setdefault("font", {}).setdefault("size", _AXIS_TITLE)
            title["text"] = _wrapped(title.get("text") or "", int(along / (0.62 * _AXIS_TITLE)), lines=2)
            layout[name] = {**axis, "automargin": True}
    _clamp(content, low, high)


def _axes(layout: dict[str, Any], letter: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, layout[name]) for name in list(layout) if re.fullmatch(rf"{letter}axis\d*", name)]


def _domains(layout: dict[str, Any], letter: str) -> set[tuple[float, ...]]:
    """Where subplots begin and end: as many as there are columns (`x`) or rows (`y`) of them."""
    return {tuple(axis.get("domain", ())) for _, axis in _axes(layout, letter)} or {()}


def _fit_labels(content: dict[str, Any], width: float, *, limit: int) -> float:
    """Cut names at the axes to `limit` characters; the room that they need below the plot when they stand aslant."""
    layout, depth = content["layout"], 0.0
    names = [str(name) for trace in content["data"] if trace.get("type") == "bar" for name in trace.get("x", ())]
    if names and not layout["xaxis"].get("ticktext"):
        unique = list(dict.fromkeys(names))
        layout["xaxis"].update(tickmode="array", tickvals=unique, ticktext=unique)
    for name, axis in [*_axes(layout, "x"), *_axes(layout, "y")]:
        if labels := [_wrapped(str(label), limit, lines=1) for label in axis.get("ticktext") or ()]:
            axis["ticktext"] = labels
            widest = max(_text_width(_plain(label), 13) for label in labels)
            if name.startswith("x") and widest * len(labels) > width - 100:
                depth = max(depth, widest)
    return depth


def _clamp(node: Any, low: float, high: float) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "colorbar":
            value.setdefault("tickfont", {}).setdefault("size", 12)
            value.setdefault("title", {}).setdefault("font", {}).setdefault("size", 13)
        if isinstance(key, str) and key.endswith("font") and isinstance(value.get("size"), (int, float)):
            value["size"] = min(max(value["size"], low), high)
        if isinstance(value, (dict, list, tuple)):
            _clamp(value, low, high)


def _small_print(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations that hang below the plot, see `style.small_print`."""
    notes = content["layout"].get("annotations", [])
    below = {"xref": "paper", "yref": "paper", "y": 0, "yanchor": "top"}
    return [note for note in notes if below.items() <= note.items() and note.get("yshift", 0) < 0]


def _small_print_to_foot(content: dict[str, Any], width: float) -> float:
    """Put the small print where a title at the bottom would be, since plotly keeps room for one; its height."""
    layout, notes = content["layout"], _small_print(content)
    if not notes:
        return 0
    layout["annotations"] = [note for note in layout["annotations"] if note not in notes]
    text = "<br>".join(_wrapped(note["text"], int((width - 20) / (0.58 * _SMALL)), lines=6) for note in notes)
    layout["title"] = {
        "text": text,
        "font": {"size": _SMALL},
        "automargin": True,
        "x": 0,
        "y": 1e-6,  # at 0 plotly moves a second line out of the picture
        "xref": "container",
        "yref": "container",
        "xanchor": "left",
        "yanchor": "bottom",
        "pad": {"l": 10, "b": 6},
    }
    return _text_height(text, _SMALL) + 16


def _head_room(layout: dict[str, Any]) -> float:
    """For what stands above the plot, such as the titles of subplots."""
    above = [note for note in layout.get("annotations", []) if note.get("yref") == "paper" and note.get("y", 0) >= 1]
    return 12 + max((_text_height(note["text"], note.get("font", {}).get("size", 13)) + 4 for note in above), default=0)


# ---------------------------------------------------------------- colours and marks


def _light(node: Any, *, color: bool = False) -> Any:
    """The same with the dark theme's colours replaced by the light theme's."""
    if isinstance(node, dict):
        return {key: _light(value, color=color or "color" in str(key)) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_light(item, color=color) for item in node]
    return _DARK_TO_LIGHT.get(node, node) if color and isinstance(node, str) else node


_DARK_TO_LIGHT = {THEMES["dark"][part]: THEMES["light"][part] for part in THEMES["dark"]}


def _shrink_markers(traces: Sequence[dict[str, Any]]) -> None:
    for trace in traces:
        marker = trace.get("marker", {})
        size = marker.get("size")
        if isinstance(size, (list, tuple)):
            marker["size"] = [_NARROW_MARKERS * one for one in size]
        elif isinstance(size, (int, float)):
            marker["size"] = _NARROW_MARKERS * size


# ---------------------------------------------------------------- legends


@dataclass(frozen=True, kw_only=True)
class _Legend:
    name: str
    upright: bool
    width: float
    height: float


def _legends(content: dict[str, Any]) -> list[_Legend]:
    """The legends, with room enough for each as a list. Plotly would cut off what a legend has no room for."""
    layout = content["layout"]
    entries: dict[str, list[str]] = {}
    for trace in content["data"] if layout.get("showlegend") is not False else ():
        if trace.get("showlegend", trace.get("type") != "heatmap") and trace.get("visible", True):
            entries.setdefault(trace.get("legend", "legend"), []).append(trace.get("name") or "trace")
    return [_measured(name, texts, layout.get(name, {})) for name, texts in entries.items()]


def _beside(legends: Sequence[_Legend]) -> float:
    """How high the legends are that stand beside the plot."""
    return sum(legend.height for legend in legends if legend.upright)


def _measured(name: str, texts: Sequence[str], legend: dict[str, Any]) -> _Legend:
    size = max(12, legend.get("font", {}).get("size", 12))
    title = legend.get("title", {}).get("text") or ""
    rows = [max(_text_height(text, size), 16) + 3 for text in texts]
    widest = max(_text_width(_plain(text), size) for text in (title, *texts))
    height = sum(rows) + _text_height(title, size) + 14
    return _Legend(name=name, upright=legend.get("orientation") != "h", width=widest + 50, height=height)


def _legends_to_foot(
    layout: dict[str, Any], legends: Sequence[_Legend], width: float, above: float, foot: float
) -> float:
    """Place the legends side by side below the plot, in as many rows as they need; the figure's height with them."""
    rows: list[list[_Legend]] = [[]]
    for legend in legends:
        if rows[-1] and sum(other.width for other in (*rows[-1], legend)) > width - 20:
            rows.append([])
        rows[-1].append(legend)
    heights = [max(legend.height for legend in row) for row in rows]
    total = above + sum(heights)
    for number, row in enumerate(rows):
        x, bottom = 0.0, foot + sum(heights[number + 1 :])
        for legend in row:
            layout.setdefault(legend.name, {}).update(
                x=x / (width - 80),
                y=(bottom + heights[number] - legend.height) / total,
                xref="paper",
                yref="container",
                xanchor="left",
                yanchor="bottom",
                orientation="v",
                maxheight=1,
            )
            x += legend.width
    return total
