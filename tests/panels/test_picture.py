"""The figure in a panel: nothing of a former figure lingers, and an outline knows its points."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from drolab.panels import Picture
from drolab.panels.picture import content_of, packed, points_inside


def test_a_layout_property_of_the_last_figure_does_not_linger() -> None:
    picture = Picture()
    picture.show(go.Figure(layout={"title": {"text": "there"}}))
    picture.show(go.Figure())
    assert picture.layout.title.text is None


def test_a_page_that_missed_something_gets_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, sent = Picture(go.Figure(go.Bar(y=[1]))), []
    opened = picture.get_state()["_state"]["n"]
    monkeypatch.setattr(picture, "send_state", sent.append)
    picture.receive({"event": "ready", "n": opened})
    assert sent == []
    picture.show(go.Figure(go.Bar(y=[2])))
    picture.receive({"event": "ready", "n": opened})
    assert sent == ["_state"]
    picture.receive({"event": "ready", "n": picture.get_state()["_state"]["n"]})
    assert sent == ["_state"]


def test_no_share_button() -> None:
    config = Picture().get_state()["_config"]
    assert (config["showSendToCloud"], config["displaylogo"]) == (False, False)


class Page:
    """What an open page knows of a picture: the state it began with, and what was sent since."""

    def __init__(self, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[Any, list[memoryview]]] = []
        state = picture.get_state()["_state"]
        self.content = unpacked(state["content"], state["buffers"])
        self.edits = {tuple(path): value for path, value in state["edits"]}
        monkeypatch.setattr(picture, "send", self._take)

    def _take(self, message: Any, buffers: list[memoryview]) -> None:
        self.sent.append((message, buffers))
        for path, *value in unpacked(message["changes"], buffers):
            place = self.content
            for name in path[:-1]:
                place = place[name] if isinstance(place, list) else place.setdefault(name, {})
            if isinstance(place, list):
                place[path[-1] : path[-1] + 1] = value
            elif value:
                place[path[-1]] = value[0]
            else:
                del place[path[-1]]
        for path, *value in message["edits"]:
            self.edits.pop(tuple(path), None)
            self.edits |= {tuple(path): one for one in value}


def unpacked(part: Any, buffers: list[memoryview]) -> Any:
    if isinstance(part, dict) and "$array" in part:
        number, kind, *shape = part["$array"]
        return np.frombuffer(buffers[number], dtype=kind).reshape(shape).tolist()
    if isinstance(part, dict):
        return {name: unpacked(value, buffers) for name, value in part.items()}
    return [unpacked(value, buffers) for value in part] if isinstance(part, list) else part


def as_sent(content: Any) -> Any:
    buffers: list[memoryview] = []
    return unpacked(packed(content, buffers), buffers)


def test_a_figure_may_get_another_subplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the curves do when a training that goes on from the store is measured for the first time."""
    line = {"type": "scatter", "x": [0, 1], "y": [0, 1]}
    one = {"data": [{**line, "name": "a"}], "layout": {"xaxis": {"title": {"text": "step"}}}}
    more = {
        "data": [*one["data"], {**line, "name": "b", "xaxis": "x2", "legend": "legend2"}],
        "layout": {**one["layout"], "xaxis2": {"anchor": "y"}, "legend2": {"y": 0.2}},
    }
    picture = Picture(one)
    page = Page(picture, monkeypatch)
    for content in (more, one, more):
        picture.update_to(content)
        assert picture.figure == go.Figure(content)
        assert page.content == as_sent(content)


def test_an_open_page_follows_traces_that_come_go_and_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def content(*names: str, **more: Any) -> dict[str, Any]:
        traces = [{"type": "scatter", "x": np.arange(3.0), "y": np.arange(3.0), "name": name, **more} for name in names]
        return {"data": traces, "layout": {"title": {"text": " ".join(names)}}}

    picture = Picture(content("a", "b"))
    page = Page(picture, monkeypatch)
    bar = {"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {}}
    for wanted in (content("a"), content("a", "d", "e", line={"color": "red"}), content("a", "e"), bar, content("b")):
        picture.update_to(wanted)
        assert picture.figure == go.Figure(wanted)
        assert page.content == as_sent(wanted)


def test_a_recolouring_sends_colours_only_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def content(color: np.ndarray) -> dict[str, Any]:
        trace = {"type": "scattergl", "x": np.arange(1e5), "y": np.arange(1e5), "text": ["a text"] * 100_000}
        return {"data": [{**trace, "marker": {"color": color}}], "layout": {}}

    picture = Picture(content(np.zeros(100_000, dtype=np.float32)))
    page = Page(picture, monkeypatch)
    picture.update_to(content(np.ones(100_000, dtype=np.float32)))
    picture.update_to(content(np.ones(100_000, dtype=np.float32)))
    ((message, buffers),) = page.sent
    assert message == {"changes": [[["data", 0, "marker", "color"], {"$array": [0, "f4", 100_000]}]], "edits": []}
    assert [buffer.nbytes for buffer in buffers] == [400_000]


def test_what_json_cannot_say_is_sent_as_plotly_says_it() -> None:
    day = datetime.datetime(2024, 7, 1)
    values = [math.nan, np.float64(0.5), np.int64(3), np.True_, day, np.array(["a", None]), np.array([day], "M8[s]")]
    assert as_sent(values) == [None, 0.5, 3, True, "2024-07-01T00:00:00", ["a", None], ["2024-07-01T00:00:00"]]
    arrays = [np.array([[1, 2, 3], [4, 5, 6]]), np.array([2**40]), np.arange(6.0)[::2]]
    assert as_sent(arrays) == [[[1, 2, 3], [4, 5, 6]], [2**40], [0, 2, 4]]
    assert as_sent([np.array([True, False]), np.array([])]) == [[True, False], []]


def test_what_the_user_did_stays_where_two_figures_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def content(*names: str, title: str = "", y: list[int] | None = None) -> dict[str, Any]:
        traces = [{"type": "scatter", "x": [0, 1], "y": [0, 1], "name": name} for name in names]
        return {"data": traces, "layout": {"title": {"text": title}, "xaxis": {}, "yaxis": {"range": y or [0, 1]}}}

    hidden, zoom = ["data", 1, "visible"], [["layout", axis, "range"] for axis in ("xaxis", "yaxis")]
    done = [(hidden, "legendonly"), (zoom[0], [0, 0.5]), (zoom[1], [0, 0.5]), (["layout", "yaxis", "autorange"], False)]
    picture = Picture(content("a", "b"))
    picture.receive({"event": "edit", "edits": done})
    page = Page(picture, monkeypatch)
    assert page.edits == {tuple(path): value for path, value in done}
    picture.update_to(content("a", "b", title="other"))
    assert (picture.data[1].visible, picture.layout.xaxis.range) == ("legendonly", (0, 0.5))
    picture.update_to(content("a", "b", y=[0, 2]))
    assert (picture.layout.xaxis.range, picture.layout.yaxis.range) == ((0, 0.5), (0, 2))
    picture.update_to(content("a", "c", y=[0, 2]))
    assert picture.data[1].visible is None
    assert page.edits == {tuple(zoom[0]): [0, 0.5]}


@pytest.mark.parametrize(("revisions", "kept"), [(("a", "a"), True), (("a", "b"), False), ((None, None), False)])
def test_another_figure_keeps_the_zoom_of_its_revision(revisions: tuple[str | None, str | None], kept: bool) -> None:
    first, second = (go.Figure(layout={"uirevision": revision}) for revision in revisions)
    picture = Picture(first)
    picture.relayout({"xaxis.range": [0, 1]})
    picture.show(second)
    assert (picture.layout.xaxis.range == (0, 1)) is kept


def test_points_and_outlines_reach_python() -> None:
    trace = {"type": "scatter", "mode": "markers", "x": np.arange(4.0), "y": np.arange(4.0)}
    picture = Picture({"data": [trace, trace], "layout": {}})
    heard: list[Any] = []
    picture.on_points(lambda *what: heard.append(what))
    gone = (["data", 9, "visible"], "legendonly")
    picture.receive({"event": "edit", "edits": [(["data", 0, "visible"], "legendonly"), gone]})
    assert [trace.visible for trace in picture.data] == ["legendonly", None]
    box = {"type": "rect", "x0": 0.5, "x1": 2.5, "y0": 0, "y1": 3}
    picture.receive({"event": "edit", "edits": [(["layout", "selections"], [box])]})
    picture._hovered = [[1, 2]]
    picture._hovered = []
    picture.receive({"event": "click", "points": [[0, 3]]})
    picture.receive({"event": "deselect", "points": []})
    selected, hover, *others = heard
    assert selected == ("selected", [(1, 1), (1, 2)])
    assert (hover, others) == (("hover", [(1, 2)]), [("unhover", []), ("click", [(0, 3)]), ("deselect", [])])


def test_a_figures_content_makes_the_same_figure() -> None:
    figure = go.Figure(go.Scatter(x=np.arange(3.0), y=[1, 2, 3]), layout={"title": {"text": "three"}})
    assert go.Figure(content_of(figure)) == figure


def test_points_inside_of_a_concave_outline_and_a_box() -> None:
    u_shape = {"type": "path", "path": "M0,0L6,0L6,6L4,6L4,2L2,2L2,6L0,6Z"}
    x, y = np.array([1.0, 3.0, 5.0, 3.0, 7.0]), np.array([5.0, 5.0, 5.0, 1.0, 1.0])
    assert points_inside(u_shape, x, y).tolist() == [True, False, True, True, False]
    box = {"type": "rect", "x0": 4, "x1": 0, "y0": 6, "y1": 4}
    assert points_inside(box, x, y).tolist() == [True, True, False, False, False]
