"""Panels: controls redraw without a browser, errors are shown in words, text from data stays text."""

from __future__ import annotations

import ipywidgets as widgets
import plotly.graph_objects as go
import pytest

from drolab import panels
from drolab.errors import StatesError


def draw(prompts: tuple[str, ...], layer: int, height: str) -> go.Figure:
    if not prompts:
        raise StatesError("Nothing chosen: choose a prompt.")
    if height == "bad":
        raise ZeroDivisionError("a <b>bug</b>")
    traces = [go.Scatter(x=[0, 1], y=[0, layer], name=name) for name in prompts]
    return go.Figure(traces, layout={"title": {"text": f"layer {layer}"}})


@pytest.fixture
def panel() -> panels.ExplorePanel:
    choices = {"prompts": (["none", "default"], ["none"]), "layer": [1, 2, 3, 4], "height": ["small", "bad"]}
    return panels.explore(draw, choices)


def shown(panel: panels.ExplorePanel) -> panels.Picture:
    return panel.picture


def test_controls_are_labelled_and_of_the_right_kind(panel: panels.ExplorePanel) -> None:
    kinds = {name: type(control) for name, control in panel.controls.items()}
    assert kinds == {
        "prompts": widgets.SelectMultiple,
        "layer": widgets.SelectionSlider,
        "height": widgets.Dropdown,
    }
    assert all(control.description and control.tooltip for control in panel.controls.values())


def test_changing_a_control_redraws_and_refreshes_the_synced_state(panel: panels.ExplorePanel) -> None:
    figure = shown(panel)
    panel.controls["prompts"].value = ("none", "default")
    panel.controls["layer"].value = 3
    assert [trace.name for trace in figure.data] == ["none", "default"]
    assert figure.layout.title.text == "layer 3"
    # what a view made after a page reload gets
    state = figure.get_state()
    assert [trace["name"] for trace in state["_widget_data"]] == ["none", "default"]
    assert state["_widget_layout"]["title"]["text"] == "layer 3"
    values, drawn = panel.result()
    assert values == {"prompts": ("none", "default"), "layer": 3, "height": "small"}
    assert drawn.data[1].y == (0, 3)


def test_a_layout_property_of_the_last_figure_does_not_linger() -> None:
    def with_or_without(title: str) -> go.Figure:
        return go.Figure(layout={"title": {"text": "there"}} if title == "yes" else {})

    panel = panels.explore(with_or_without, {"title": ["yes", "no"]})
    panel.controls["title"].value = "no"
    assert shown(panel).layout.title.text is None
    assert "title" not in shown(panel).get_state()["_widget_layout"]


def test_no_share_button_in_panels(panel: panels.ExplorePanel) -> None:
    assert shown(panel)._config["showSendToCloud"] is False
    assert shown(panel)._config["displaylogo"] is False


def test_errors_are_shown_and_the_figure_stays(panel: panels.ExplorePanel) -> None:
    panel.controls["prompts"].value = ()
    assert "Nothing chosen: choose a prompt." in panel.message.value
    assert len(shown(panel).data) == 1
    panel.controls["prompts"].value = ("none",)
    assert panel.message.value == ""
    panel.controls["height"].value = "bad"
    assert "ZeroDivisionError: a &lt;b&gt;bug&lt;/b&gt;" in panel.message.value


def test_a_control_without_choices_is_refused() -> None:
    with pytest.raises(panels.PanelError, match="'layer' offers nothing"):
        panels.explore(draw, {"layer": []})


def test_a_figure_may_get_another_subplot() -> None:
    """As the curves do when a training that goes on from the store is measured for the first time."""
    line = {"type": "scatter", "x": [0, 1], "y": [0, 1]}
    one = {"data": [{**line, "name": "a"}], "layout": {"xaxis": {"title": {"text": "step"}}}}
    more = {
        "data": [*one["data"], {**line, "name": "b", "xaxis": "x2", "legend": "legend2"}],
        "layout": {**one["layout"], "xaxis2": {"anchor": "y"}, "legend2": {"y": 0.2}},
    }
    picture = panels.Picture(one)
    for content in (more, one, more):
        picture.update_to(content)
        assert picture.to_dict() == go.Figure(content).to_dict() | {"data": picture.to_dict()["data"]}
        assert [trace.name for trace in picture.data] == [trace["name"] for trace in content["data"]]
