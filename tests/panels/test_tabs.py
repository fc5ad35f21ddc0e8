"""Tabs: a panel is made when its tab is opened first, and an error stands in its tab."""

from __future__ import annotations

import ipywidgets as widgets

from drolab.panels import PanelError, tabs


def test_a_panel_is_made_once_when_its_tab_is_opened() -> None:
    calls: list[str] = []

    def maker(name: str) -> widgets.Label:
        calls.append(name)
        return widgets.Label(name)

    shown = tabs({"A": lambda: maker("a"), "B": lambda: maker("b")})
    assert calls == ["a"]
    assert shown.titles == ("A", "B")
    for index in (1, 0, 1):
        shown.selected_index = index
    assert calls == ["a", "b"]
    assert shown.children[1].children[0].value == "b"


def test_an_error_is_shown_in_words() -> None:
    def fails() -> widgets.Widget:
        raise PanelError("No <b>states</b>: compute some.")

    shown = tabs({"A": fails})
    assert "No &lt;b&gt;states&lt;/b&gt;: compute some." in shown.children[0].children[0].value
