"""Figures stay, static ones and those of panels, in JupyterLab and Notebook 7, whatever is done to the page.

The tests of one front-end follow each other in one page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from helpers import harness
from helpers.harness import Watched, python, until

from drolab.figures import THEMES

pytestmark = harness.MARKS

CELLS = [
    """import plotly.graph_objects as go
from drolab import figures, panels
def bars(*heights):
    looks = {"height": 200 + 10 * len(heights), "template": figures.template_content("light")}
    return go.Figure(go.Bar(y=heights), layout=looks)""",
    "figures.show(bars(1))",
    "panel = panels.explore(lambda last: bars(1, last), {'last': [2, 3]})\npanel",
]
HEIGHTS = [210, 220]
FOLDERS = {"jupyterlab": "lab/tree", "notebook": "notebooks"}
DEAD = ".drolab-kept:visible"
IMPATIENT = "const timeout = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = () => timeout(0);"
"""As if the page was busy for as long as anywidget waits."""


@pytest.fixture(scope="module", params=FOLDERS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp(request.param)
    work = folder / "work"
    work.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "figures.ipynb")
    with (
        harness.jupyterlab(folder, work, request.param) as address,
        harness.browser() as opened,
        harness.notebook(harness.new_context(opened), address, "figures.ipynb", folder=FOLDERS[request.param]) as found,
    ):
        # Notebook 7.6's with any notebook, that of a dead widget, and JupyterLab's of a kernel that ended.
        found.known += ("reading 'schema'", "widget model not found", "restore the debugger state")
        until(found.page, lambda: heights(found.page) == HEIGHTS)
        yield found.page


def sizes(page: Any) -> list[list[int]]:
    """Width and height of each figure that is seen, as it is drawn. A saved static one is an image at first."""
    return page.locator(".js-plotly-plot:visible .main-svg:first-child, .plot-img:visible").evaluate_all(
        "figures => figures.map(one => one.getBoundingClientRect())"
        ".map(box => [Math.round(box.width), Math.round(box.height)])"
    )


def heights(page: Any) -> list[int]:
    return [height for _, height in sizes(page)]


def command(page: Any, name: str, **options: Any) -> None:
    page.evaluate("([name, options]) => window.jupyterapp.commands.execute(name, options)", [name, options])


def test_a_lower_window_leaves_figures_as_they_are(page: Any) -> None:
    before = sizes(page)
    page.set_viewport_size({**harness.VIEWPORT, "height": 813})
    page.evaluate("() => new Promise(done => setTimeout(done, 200))")  # plotly.js follows a window after 100 ms
    assert sizes(page) == before


def test_a_narrower_window_makes_figures_narrower(page: Any) -> None:
    (static, _), (panel, _) = sizes(page)
    page.set_viewport_size({"width": 1000, "height": 813})
    until(page, lambda: all(now < was for (now, _), was in zip(sizes(page), (static, panel), strict=True)))
    assert heights(page) == HEIGHTS
    page.set_viewport_size(harness.VIEWPORT)
    until(page, lambda: sizes(page) == [[static, HEIGHTS[0]], [panel, HEIGHTS[1]]])


def paper(page: Any) -> str:
    return page.locator(".jupyter-widgets .js-plotly-plot").evaluate(
        "figure => figure.layout.template.layout.paper_bgcolor"
    )


def static_look(page: Any) -> str:
    return page.locator(".jp-RenderedPlotly").first.evaluate("figure => getComputedStyle(figure).filter")


def test_figures_follow_the_theme(page: Any) -> None:
    """The page says of what kind its theme is in an attribute of its own."""
    light, dark = (theme["paper"] for theme in THEMES.values())
    assert page.evaluate("() => document.body.dataset.jpThemeLight") == "true"
    assert (paper(page), static_look(page)) == (light, "none")
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'false'; }")
    until(page, lambda: paper(page) == dark)
    assert static_look(page).startswith("invert(")
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'true'; }")
    until(page, lambda: (paper(page), static_look(page)) == (light, "none"))


def test_figures_are_there_after_another_tab(page: Any) -> None:
    before = sizes(page)
    if "/lab/" in page.url:
        mine = page.evaluate("() => window.jupyterapp.shell.currentWidget.id")
        command(page, "launcher:create")
        until(page, lambda: sizes(page) == [])
        page.set_viewport_size({**harness.VIEWPORT, "height": 850})
        page.evaluate("id => window.jupyterapp.shell.activateById(id)", mine)
    else:
        other = page.context.new_page()
        page.set_viewport_size({**harness.VIEWPORT, "height": 850})
        other.close()
    until(page, lambda: sizes(page) == before)


def test_figures_are_there_after_their_outputs_were_folded(page: Any) -> None:
    before = sizes(page)
    command(page, "notebook:hide-all-cell-outputs")
    until(page, lambda: sizes(page) == [])
    command(page, "notebook:show-all-cell-outputs")
    until(page, lambda: sizes(page) == before)


def test_a_reload_shows_the_panel_as_it_is(page: Any) -> None:
    kept = until(page, lambda: python(page, "print(panel.picture.kept)"))
    page.get_by_label("last", exact=True).select_option("3")
    until(page, lambda: python(page, "print(panel.picture.kept)") != kept)
    assert page.locator(DEAD).count() == 0
    command(page, "docmanager:save")
    page.reload()
    until(page, lambda: heights(page) == HEIGHTS)
    assert last_bar(page) == 3
    assert page.locator(DEAD).count() == 0


def test_a_page_that_was_busy_follows_the_kernel_all_the_same(page: Any) -> None:
    page.add_init_script(IMPATIENT)
    seen = Watched(page)
    page.reload()
    until(page, lambda: heights(page) == HEIGHTS)
    page.get_by_label("last", exact=True).select_option("2")
    until(page, lambda: last_bar(page) == 2)
    assert any(harness.GIVEN_UP in error for error in seen.errors)


def last_bar(page: Any) -> int:
    return page.locator(".jupyter-widgets .js-plotly-plot").evaluate("figure => figure.data[0].y[1]")


def test_without_its_kernel_a_panel_shows_its_last_picture(page: Any) -> None:
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.reload()
    shown = page.locator(DEAD)
    shown.wait_for()
    assert "run the cells above and this one" in shown.text_content()
    until(page, lambda: shown.locator("img").is_visible())
    assert 0.9 * HEIGHTS[1] < shown.locator("img").bounding_box()["height"] <= HEIGHTS[1]
    assert heights(page) == HEIGHTS[:1]
    assert not page.get_by_text("Error displaying widget").is_visible()
    harness.wait_idle(page)
    Watched(page).screenshot(f"figures_{'lab' if '/lab/' in page.url else 'notebook'}")
