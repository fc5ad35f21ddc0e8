"""The report in a browser: short and offline as it opens, whole when unfolded, light and dark, and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdf
import pytest
from helpers.harness import MARKS, Watched, browser, check_quiet, new_page, until
from helpers.results import HOSTILE, save_run, verdict_table

from drolab import report

pytestmark = MARKS

DARK, LIGHT = "rgb(22, 22, 22)", "rgb(255, 255, 255)"
BACKGROUNDS = """() => [getComputedStyle(document.body).backgroundColor,
  ...[...document.querySelectorAll('.js-plotly-plot svg.main-svg:first-of-type')].map(svg => svg.style.background)]"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("run")
    save_run(out, verdict_table(), HOSTILE)
    with browser() as opened:
        page = new_page(opened)
        found = Watched(page)
        page.goto(report.write_report(out, report.collect(out)).as_uri())
        page.locator(".xtick text").first.wait_for()
        yield page
        check_quiet(found, hosts=set())


def folded(page: Any) -> Any:
    """The notebook's section with a figure that does not stand at the top."""
    return page.locator('details[id="06"]')


def test_it_opens_short_and_nothing_overlaps_the_page(page: Any) -> None:
    assert page.viewport_size["width"] == 1280
    assert page.evaluate("document.documentElement.scrollHeight") <= 3000
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.locator(".js-plotly-plot").count() == 3
    assert folded(page).locator(".js-plotly-plot").count() == 0


def test_a_section_shows_its_figures_when_it_is_opened(page: Any) -> None:
    page.evaluate("location.hash = '06'")  # a link to it
    folded(page).locator(".xtick text").first.wait_for()
    drawn, section = folded(page).locator(".main-svg").first.bounding_box(), folded(page).bounding_box()
    assert drawn["height"] > 300
    assert drawn["width"] == pytest.approx(section["width"], abs=2)


def test_figures_follow_the_systems_scheme(page: Any) -> None:
    assert set(page.evaluate(BACKGROUNDS)) == {LIGHT}
    page.emulate_media(color_scheme="dark")
    until(page, lambda: set(page.evaluate(BACKGROUNDS)) == {DARK})
    assert page.locator(".xtick text").first.evaluate("text => text.style.fill") == "rgb(230, 230, 230)"
    page.emulate_media(color_scheme="light")
    until(page, lambda: set(page.evaluate(BACKGROUNDS)) == {LIGHT})


def test_on_paper_it_is_light_and_has_what_was_opened(page: Any, tmp_path: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = ({BACKGROUNDS})(); }})")
    page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert set(page.evaluate("printed.slice(1)")) == {LIGHT}  # the figures'
    pages = [leaf.extract_text() for leaf in pypdf.PdfReader(tmp_path / "report.pdf").pages]
    assert 2 <= len(pages) <= 6
    assert all(pages)
    text = " ".join(pages)
    assert "Safety prompts move the states along the direction of refusal" in text
    assert "Does it refuse?" in text
    assert "What is read?" not in text  # it is folded
    assert "harmless" in text  # of a figure's legend
    until(page, lambda: set(page.evaluate(BACKGROUNDS)) == {DARK})  # as before
    page.emulate_media(color_scheme="light")
