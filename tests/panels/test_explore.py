"""Any figure, and any panels behind tabs: controls redraw without a browser, errors are shown in words."""

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


def test_controls_are_labelled_and_of_the_right_kind(panel: panels.ExplorePanel) -> None:
    kinds = {name: type(control) for name, control in panel.controls.items()}
    assert kinds == {
        "prompts": widgets.SelectMultiple,
        "layer": widgets.SelectionSlider,
        "height": widgets.Dropdown,
    }
    assert all(control.description and control.tooltip for control in panel.controls.values())


def test_changing_a_control_redraws_and_a_page_that_opens_gets_the_present_figure(panel: panels.ExplorePanel) -> None:
    figure = panel.picture
    panel.controls["prompts"].value = ("none", "default")
    panel.controls["layer"].value = 3
    assert [trace.name for trace in figure.data] == ["none", "default"]
    assert figure.layout.title.text == "layer 3"
    state = figure.get_state()["_state"]["content"]
    assert [trace["name"] for trace in state["data"]] == ["none", "default"]
    assert state["layout"]["title"]["text"] == "layer 3"
    values, drawn = panel.result()
    assert values == {"prompts": ("none", "default"), "layer": 3, "height": "small"}
    assert drawn.data[1].y == (0, 3)


def test_errors_are_shown_and_the_figure_stays(panel: panels.ExplorePanel) -> None:
    panel.controls["prompts"].value = ()
    assert "Nothing chosen: choose a prompt." in panel.message.value
    assert len(panel.picture.data) == 1
    panel.controls["prompts"].value = ("none",)
    assert panel.message.value == ""
    panel.controls["height"].value = "bad"
    assert "ZeroDivisionError: a &lt;b&gt;bug&lt;/b&gt;" in panel.message.value


def test_a_control_without_choices_is_refused() -> None:
    with pytest.raises(panels.PanelError, match="'layer' offers nothing"):
        panels.explore(draw, {"layer": []})


# Tabs


def test_a_panel_is_made_once_when_its_tab_is_opened() -> None:
    calls: list[str] = []

    def maker(name: str) -> widgets.Label:
        calls.append(name)
        return widgets.Label(name)

    shown = panels.tabs({"A": lambda: maker("a"), "B": lambda: maker("b")})
    assert calls == ["a"]
    assert shown.titles == ("A", "B")
    for index in (1, 0, 1):
        shown.selected_index = index
    assert calls == ["a", "b"]
    assert shown.children[1].children[0].value == "b"


def test_an_error_is_shown_in_words() -> None:
    def fails() -> widgets.Widget:
        raise panels.PanelError("No <b>states</b>: compute some.")

    shown = panels.tabs({"A": fails})
    assert "No &lt;b&gt;states&lt;/b&gt;: compute some." in shown.children[0].children[0].value
