"""Queries, prompts and replies that try to be more than text, in every panel, in the report and in an exported page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import harness
from helpers.harness import Watched, button, cell, python, until

pytestmark = harness.MARKS

SETUP = """
import numpy as np, pandas as pd, torch, drolab
from pathlib import Path
from drolab import export, figures, panels, report
from drolab.types import STATE_COLUMNS, HiddenStates

BAD = ("<script>window.hit=1</script><img src=x onerror='window.hit=1'><a href='javascript:window.hit=1'>link</a>"
       "<b>bold</b> \\u202ethgir\\u202c \\x00 \\U0001f600 %{x} $\\\\LaTeX$ {{7*7}} ")
PROMPTS = ["none", BAD]
rows = [(f"q{i}", p, -1, f"{BAD} {i}" + "long " * (20_000 if i == 1 else 0), i % 2 == 0, BAD, "") for p in PROMPTS
        for i in range(40)]
index = pd.DataFrame(rows, columns=list(STATE_COLUMNS))
values = torch.tensor(np.random.default_rng(0).normal(size=(80, 1, 8)), dtype=torch.float32)
values[:, 0, 0] += torch.tensor(index["harmful"].to_numpy()) * 4
states = HiddenStates(values=values, index=index, layers=(1,), num_hidden_layers=1)
replies = index[["query_id", "prompt", "text", "harmful"]].merge(pd.DataFrame({"sample": [0, 1, 2]}), how="cross")
replies["response"] = [f"I cannot say {BAD}" + "more " * (20_000 if i % 5 == 0 else 0) for i in range(len(replies))]
scores = drolab.judge(replies)"""
PLANE = """plane = panels.projection(states, anchors=PROMPTS, scores=scores, replies=replies)
plane"""
READ = """read = panels.responses(replies, judges={BAD: lambda text: True, "none": lambda text: False})
read"""
BOARD = """board = panels.board({BAD: scores, "other": scores}, groups=dict.fromkeys(index["query_id"], BAD))
board"""
REPORT = """rates = scores.reset_index().assign(value=.5, group=BAD, low=.4, high=.6)
offered = {"figure": (figures.rate_bars(rates), replies)}
about = export.about(prompts={BAD: drolab.SafetyPrompt(name=BAD, text=BAD)}, settings={BAD: BAD})
export.bundle(offered, "exported", about=about, formats=["html", "csv"])
found = {"about": {"model": BAD}, BAD: BAD, f"table {BAD}": replies.head(3).assign(response=BAD, text=BAD)}
results = export.Results(".", "06", title=BAD)
results.add(figures={"rates": offered["figure"]}, captions={"rates": BAD}, numbers=found)
report.write_report(Path("."), report.collect(Path(".")))
print("written")"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Watched, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    work = folder / "work"
    work.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, PLANE, READ, BOARD, REPORT)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, work / "hostile.ipynb")
    with (
        harness.jupyterlab(folder, work) as address,
        harness.browser() as opened,
        harness.notebook(harness.new_context(opened), address, "hostile.ipynb") as watched,
    ):
        yield opened, watched, work


def check_is_text(page: Any, place: Any) -> None:
    """What is shown holds the script as text, and nothing of it became an element or ran."""
    assert "<script>" in place.inner_text()
    assert place.locator("img[src=x], a[href^=javascript]").count() == 0
    scripts = place.locator("script").evaluate_all("scripts => scripts.map(script => script.textContent)")
    assert "window.hit=1" not in scripts
    assert page.evaluate("() => window.hit") is None


def test_hover_shows_text(lab: tuple[Any, Watched, Path]) -> None:
    page = lab[1].page
    panel = cell(page, PLANE.splitlines()[0])
    panel.locator(".legend").first.wait_for()
    hover = harness.hover(page, panel)
    text = hover.text_content()
    assert "<script>window.hit=1</script>" in text
    assert not re.search("[\x00\u202e]", text)
    assert hover.locator("a").count() == 0
    lab[1].screenshot("hostile_hover")
    check_is_text(page, panel)


def test_the_table_of_chosen_points_shows_text(lab: tuple[Any, Watched, Path]) -> None:
    page = lab[1].page
    panel = cell(page, PLANE.splitlines()[0])
    panel.get_by_label("are refused more under").select_option(label="(not asked)")
    button(panel, "Find").click()
    until(page, lambda: panel.locator("td").count() > 0)
    check_is_text(page, panel)


def test_replies_of_100_kb_are_text_and_cut(lab: tuple[Any, Watched, Path]) -> None:
    page = lab[1].page
    panel = cell(page, READ.splitlines()[0])
    check_is_text(page, panel)
    panel.locator("summary", has_text="show all").first.click()
    until(page, lambda: "the whole text is in the data" in panel.inner_text())
    lab[1].screenshot("hostile_replies")
    check_is_text(page, panel)
    assert len(panel.inner_text()) < 500_000
    assert python(page, "print(read.selection()['response'].str.len().max() > 100_000)") == "True"


def test_the_board_shows_text(lab: tuple[Any, Watched, Path]) -> None:
    page = lab[1].page
    board = cell(page, BOARD.splitlines()[0])
    until(page, lambda: board.locator("td").count() > 0)
    check_is_text(page, board)
    lab[1].screenshot("hostile_board")


@pytest.mark.parametrize("name", ["report.html", "exported/figure.html"])
def test_written_pages_show_text(lab: tuple[Any, Watched, Path], name: str) -> None:
    opened, _, work = lab
    page = harness.new_page(opened)
    found = Watched(page)
    page.goto((work / name).as_uri())
    page.locator(".js-plotly-plot .xtick text").first.wait_for()
    found.screenshot(f"hostile_{Path(name).stem}")
    check_is_text(page, page.locator("body"))
    harness.check_quiet(found, hosts=set())
    page.context.close()


def test_the_manifest_holds_the_text_itself(lab: tuple[Any, Watched, Path]) -> None:
    manifest = (lab[2] / "exported" / "figure.manifest.json").read_text(encoding="utf-8")
    assert "<script>window.hit=1</script>" in manifest
    assert "\x00" not in manifest
    assert "\u202e" not in manifest
