"""The figure in a panel: nothing of a former figure lingers, and an outline knows its points."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from drolab.panels import Picture
from drolab.panels.picture import content_of, points_inside


def test_a_layout_property_of_the_last_figure_does_not_linger() -> None:
    picture = Picture()
    picture.show(go.Figure(layout={"title": {"text": "there"}}))
    picture.show(go.Figure())
    assert picture.layout.title.text is None
    assert "title" not in picture.get_state()["_widget_layout"]


def test_no_share_button() -> None:
    picture = Picture()
    assert picture._config["showSendToCloud"] is False
    assert picture._config["displaylogo"] is False


def test_a_figure_may_get_another_subplot() -> None:
    """As the curves do when a training that goes on from the store is measured for the first time."""
    line = {"type": "scatter", "x": [0, 1], "y": [0, 1]}
    one = {"data": [{**line, "name": "a"}], "layout": {"xaxis": {"title": {"text": "step"}}}}
    more = {
        "data": [*one["data"], {**line, "name": "b", "xaxis": "x2", "legend": "legend2"}],
        "layout": {**one["layout"], "xaxis2": {"anchor": "y"}, "legend2": {"y": 0.2}},
    }
    picture = Picture(one)
    for content in (more, one, more):
        picture.update_to(content)
        assert picture.to_dict() == go.Figure(content).to_dict() | {"data": picture.to_dict()["data"]}
        assert [trace.name for trace in picture.data] == [trace["name"] for trace in content["data"]]


def test_a_picture_takes_traces_that_come_go_and_change() -> None:
    def content(*names: str, **more: Any) -> dict[str, Any]:
        traces = [{"type": "scatter", "x": np.arange(3.0), "y": np.arange(3.0), "name": name, **more} for name in names]
        return {"data": traces, "layout": {"title": {"text": " ".join(names)}}}

    picture = Picture(content("a", "b"))
    kept = picture.data[0]
    for wanted in (content("a"), content("a", "d", "e", line={"color": "red"}), content("a", "e")):
        picture.update_to(wanted)
        fresh = go.Figure(wanted)
        shown = [
            {key: value for key, value in trace.items() if key != "uid" and value != {}}
            for trace in picture.to_dict()["data"]
        ]
        assert shown == list(fresh.to_dict()["data"])
        assert picture.layout.title.text == fresh.layout.title.text
        assert picture.data[0] is kept
    picture.update_to({"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {}})
    assert [trace.type for trace in picture.data] == ["bar"]
    assert picture.layout.title.text is None


def test_a_figures_content_makes_the_same_figure() -> None:
    figure = go.Figure(go.Scatter(x=np.arange(3.0), y=[1, 2, 3]), layout={"title": {"text": "three"}})
    assert go.Figure(content_of(figure)) == figure


def test_points_inside_of_a_concave_outline_and_a_box() -> None:
    u_shape = {"type": "path", "path": "M0,0L6,0L6,6L4,6L4,2L2,2L2,6L0,6Z"}
    x, y = np.array([1.0, 3.0, 5.0, 3.0, 7.0]), np.array([5.0, 5.0, 5.0, 1.0, 1.0])
    assert points_inside(u_shape, x, y).tolist() == [True, False, True, True, False]
    box = {"type": "rect", "x0": 4, "x1": 0, "y0": 6, "y1": 4}
    assert points_inside(box, x, y).tolist() == [True, True, False, False, False]
