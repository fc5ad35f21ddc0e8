"""What a saved notebook shows where a panel was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from drolab import panels
from drolab.panels import kept


@pytest.fixture
def panel() -> panels.ExplorePanel:
    return panels.explore(lambda n: go.Figure(go.Bar(y=[n])), {"n": [1, 2]})


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The output beside the panel, as it was at first and after each update."""
    shown: list[str] = []

    def display(page: Any, display_id: bool) -> Any:
        assert display_id
        shown.append(page.data)
        return SimpleNamespace(update=lambda page: shown.append(page.data))

    monkeypatch.setattr(kept, "display", display)
    monkeypatch.setattr(kept, "get_ipython", lambda: SimpleNamespace(kernel="one"))
    return shown


def test_a_panel_that_is_displayed_leaves_words_and_then_its_picture(
    panel: panels.ExplorePanel, pages: list[str]
) -> None:
    assert panel.picture.get_state()["_keeps"] is False  # nobody asks the browser for pictures
    assert "application/vnd.jupyter.widget-view+json" in panel._repr_mimebundle_()
    assert "run the cells above" in pages[0]
    assert "<img" not in pages[0]
    assert panel.picture.get_state()["_keeps"] is True
    image = "data:image/webp;base64,UklGRg=="
    panel.picture.receive({"event": "kept", "image": image})
    assert f'<img src="{image}"' in pages[1]
    panel.picture.receive({"event": "kept", "image": image})
    assert len(pages) == 2
    panel.picture.receive({"event": "kept", "image": ""})  # too large now
    assert "<img" not in pages[2]


@pytest.mark.parametrize("image", ["javascript:1", 'data:image/png;base64,A"onerror="x', "data:text/html;base64,AAAA"])
def test_what_is_no_picture_is_not_kept(panel: panels.ExplorePanel, pages: list[str], image: str) -> None:
    panel._repr_mimebundle_()
    panel.picture.receive({"event": "kept", "image": image})
    assert len(pages) == 1


def test_without_a_kernel_nothing_is_displayed(panel: panels.ExplorePanel, capsys: pytest.CaptureFixture[str]) -> None:
    panel._repr_mimebundle_()
    assert capsys.readouterr().out == ""
