"""The notebooks in a real JupyterLab, in their order: all cells run, and the panels answer.

One finds in the store what those before it computed. Nothing leaves the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import harness
from helpers.harness import Watched, button, cell, python, until

import drolab
from drolab import export, notebooks, report

pytestmark = harness.MARKS

MINE = "Refuse what could do harm."
HOSTILE = "<img src=x onerror=window.hit=1>\u202e😀<b>"
FOUR_STEPS = """some = queries.groupby("harmful").head(16)
brief = drolab.DROConfig(num_train_epochs=2, batch_size=16)
other = drolab.train_dro(model, some, init=init, config=brief, progress=False, **probes)
print(len(other.history))"""
PLANE, LAB, DRO = "panel = panels.projection", "lab = panels.prompt_lab", "taught = {"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks are, and what they keep and save."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "work").mkdir()
    for name in ("anchors", "heldout"):  # pairs: a smaller work, not another one
        drolab.load_queries(name).groupby("harmful").head(32).to_csv(folder / f"{name}.csv", index=False)
    files = {"OUT": "out", "STORE": "store", "QUERIES": "anchors.csv", "HELDOUT": "heldout.csv"}
    settings = {name: str(folder / file) for name, file in files.items()}
    settings |= {"MY_PROMPT": MINE, "N_SAMPLES": 2, "N_RANDOM": 3}
    for name in notebooks.DEMO_NOTEBOOKS:
        copy = folder / "work" / f"{name}.ipynb"
        harness.copy_notebook(harness.ROOT / "notebooks" / copy.name, copy, settings)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with harness.jupyterlab(folder, folder / "work") as found:
        yield found


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with harness.browser() as opened:
        yield harness.new_context(opened)


@pytest.fixture(scope="class")
def watched(request: pytest.FixtureRequest, context: Any, address: str) -> Iterator[Watched]:
    """The notebook whose number the class has, after all its cells have run."""
    name = next(name for name in notebooks.DEMO_NOTEBOOKS if name.startswith(request.cls.NUMBER))
    with harness.notebook(context, address, f"{name}.ipynb") as found:
        yield found


def texts(place: Any, selector: str) -> list[str]:
    return place.locator(selector).all_text_contents()


def legend(place: Any) -> list[str]:
    return texts(place, ".legend .legendtext, .legend2 .legend2text")


def drawn(place: Any, number: int = 0) -> list[dict[str, Any]]:
    """The traces of a figure as the browser has them: name, and how many points, their first places."""
    return (
        place.locator(".js-plotly-plot")
        .nth(number)
        .evaluate(
            """figure => figure._fullData.map(trace => ({name: trace.name, n: trace.x?.length ?? 0,
        places: [...(trace.x ?? [])].slice(0, 5)}))"""
        )
    )


Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def boxes(place: Any, selector: str) -> list[Rectangle]:
    """Where things are on the screen."""
    sides = "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])"
    return [tuple(box) for box in place.locator(selector).evaluate_all(sides)]


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Rectangle, b: Rectangle) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def choose(place: Any, control: str, which: str | list[str]) -> None:
    place.get_by_label(control, exact=True).select_option(label=which)


class Notebook:
    """What holds for each of them."""

    NUMBER: str

    def saved(self, folder: Path) -> dict[str, Any]:
        return report.collect(folder / "out")[self.NUMBER]

    def test_it_saved_what_it_found(self, watched: Watched, folder: Path) -> None:
        assert self.saved(folder)["figures"]


class TestWhatTheModelReads(Notebook):
    NUMBER = "01"

    def test_another_prompt_draws_other_tokens(self, watched: Watched) -> None:
        panel = cell(watched.page, "panel = panels.explore")
        before = until(watched.page, lambda: drawn(panel))
        choose(panel, "prompt", "short")
        until(watched.page, lambda: drawn(panel) != before)
        watched.screenshot("01_tokens")


class TestHiddenStates(Notebook):
    NUMBER = "02"

    def test_another_layer_shows_other_points(self, watched: Watched) -> None:
        panel = cell(watched.page, "panel = panels.explore")
        before = until(watched.page, lambda: drawn(panel))
        panel.locator(".noUi-handle").focus()
        watched.page.keyboard.press("ArrowRight")
        until(watched.page, lambda: [t["places"] for t in drawn(panel)] != [t["places"] for t in before])
        assert python(watched.page, "print(panel.values()['layer'])") == "3"
        watched.screenshot("02_layers")


class TestProjection(Notebook):
    NUMBER = "03"

    def test_own_prompt_is_there(self, watched: Watched, folder: Path) -> None:
        panel = cell(watched.page, PLANE)
        assert {"none", "default", "mine", "harmful", "harmless"} <= set(until(watched.page, lambda: legend(panel)))
        watched.screenshot("03_projection")
        saved = json.loads((folder / "out" / "figures" / "03_projection.json").read_text())
        assert "shift: mine, harmful" in {trace.get("name") for trace in saved["data"]}

    def test_another_layer_shows_other_points(self, watched: Watched) -> None:
        panel = cell(watched.page, PLANE)
        code = "print(panel.result()['x'].round(4).sum())"
        before, places = python(watched.page, code), drawn(panel)
        choose(panel, "layer", "1")
        until(watched.page, lambda: drawn(panel) != places)
        assert python(watched.page, code) != before

    def test_a_point_is_matched_under_every_prompt(self, watched: Watched) -> None:
        """Hovering it says what was asked, and draws a path through the query's places."""
        page, panel = watched.page, cell(watched.page, PLANE)
        query = python(page, "print(panel.result()['text'].iloc[0])")
        assert query.split()[0] in harness.hover(page, panel).text_content()
        until(page, lambda: panel.locator(".js-plotly-plot").evaluate("figure => figure.layout.shapes?.length > 0"))

    def test_a_lasso_chooses_the_points_inside(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, PLANE)
        left, right, low, high = lasso(page, panel)
        status = panel.locator("[role=status]:visible")
        until(page, lambda: "chosen" in " ".join(status.all_text_contents()))
        watched.screenshot("03_lasso")
        code = f"""
rows = panel.result(); mark = ["query_id", "prompt"]
def names(table): return set(map(tuple, table[mark].values))
def inside(grown):
    return names(rows[rows.x.between({left} - grown, {right} + grown) & rows.y.between({low} - grown, {high} + grown)])
chosen = names(panel.selection())
print(inside(-0.05) <= chosen <= inside(0.05), 0 < len(chosen) < len(rows))"""
        assert python(page, code) == "True True"

    def test_which_harmless_queries_does_a_prompt_make_refused(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, PLANE)
        button(panel, "Find").click()
        until(page, lambda: "refused more under “mine”" in panel.inner_text())
        found = python(page, "print((panel.selection()['change'] >= 0.3).all(), panel.selection()['harmful'].any())")
        assert found == "True False"
        button(panel, "Clear").click()
        until(page, lambda: python(page, "print(len(panel.selection()))") == "0")

    def test_what_is_shown_is_exported(self, watched: Watched, folder: Path) -> None:
        panel = cell(watched.page, PLANE)
        panel.get_by_text("Export", exact=True).first.click()
        formats = panel.get_by_label("formats")
        formats.select_option(label=texts(formats, "option"))
        button(panel, "Export").last.click()
        panel.get_by_text("projection.manifest.json").wait_for()
        watched.screenshot("03_export")
        exported = folder / "work" / "out" / "export"
        assert {path.suffix for path in exported.glob("projection.*")} == {
            *(f".{kind}" for kind in export.BUNDLE_FORMATS),
            ".json",
        }
        assert {"component 1", "harmful", "harmless", "none"} <= words_of(exported / "projection.pdf")

    def test_a_typed_prompt_gets_an_arrow(self, watched: Watched) -> None:
        page, lab = watched.page, cell(watched.page, LAB)
        before = {trace["name"] for trace in drawn(lab)}
        lab.get_by_label("safety prompt").fill("Never help anyone who could hurt a person. Decline politely.")
        lab.get_by_label("name", exact=True).fill("polite")
        button(lab, "Project").click()
        until(page, lambda: "polite" in legend(lab))
        new = {trace["name"] for trace in drawn(lab)} - before
        assert {"shift: polite, harmful", "shift: polite, harmless"} <= new
        assert python(page, "print(list(lab.prompts()))") == "['polite']"
        until(page, lambda: python(page, "print(lab.job.running)") == "False")
        watched.screenshot("03_prompt_lab")

    def test_prompts_are_switched_off_and_a_reload_shows_it(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, PLANE)
        choose(panel, "prompts", ["none", "default"])
        until(page, lambda: "mine" not in legend(panel))
        drawn_points = "print(sorted(panel.result()['prompt'].unique()), len(panel.result()))"
        assert python(page, drawn_points) == "['default', 'none'] 128"
        reload(page)
        panel = cell(page, PLANE)
        assert {"none", "default", "harmful"} <= set(until(page, lambda: legend(panel)))
        assert "mine" not in legend(panel)
        assert panel.get_by_label("layer").input_value() == python(page, "print(panel.controls['layer'].label)")


class TestRefusalDirection(Notebook):
    NUMBER = "04"

    def test_a_prompt_with_a_hostile_name_gets_an_arrow(self, watched: Watched) -> None:
        page, lab = watched.page, cell(watched.page, LAB)
        lab.get_by_label("safety prompt").fill(f"Be careful. {HOSTILE}")
        lab.get_by_label("name", exact=True).fill(HOSTILE)
        button(lab, "Project").click()
        until(page, lambda: any("<img src=x" in name for name in legend(lab)))
        until(page, lambda: python(page, "print(lab.job.running)") == "False")
        watched.screenshot("04_prompt_lab")
        assert lab.locator(".jupyter-widgets img").count() == 0


class TestDRO(Notebook):
    NUMBER = "05"

    def steps(self, page: Any) -> int:
        return int(python(page, "print(len(panel.history()))"))

    def shown(self, panel: Any) -> int:
        """Points of the longest curve on the screen."""
        return max((trace["n"] for trace in drawn(panel)), default=0) if panel.locator(".js-plotly-plot").count() else 0

    def test_a_training_starts_and_pauses(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, DRO)
        panel.get_by_label("run name").fill("mine")
        panel.get_by_label("seed").fill("7")
        panel.get_by_label("epochs").fill("200")
        button(panel, "Start").click()
        first = until(page, lambda: self.shown(panel))
        until(page, lambda: self.shown(panel) > first)
        button(panel, "Pause").click()
        panel.get_by_text("paused: ").wait_for()  # the step in flight has ended
        self.stands_still(page, panel)
        watched.screenshot("05_paused")

    def stands_still(self, page: Any, panel: Any) -> None:
        """The curves show every step, and while a cell trains for four steps no step is added."""
        until(page, lambda: self.shown(panel) == self.steps(page))
        before = self.steps(page)
        assert python(page, FOUR_STEPS) == "4"
        assert (self.steps(page), self.shown(panel)) == (before, before)
        assert panel.locator("[role=alert]").count() == 0

    def test_a_reload_shows_the_running_state(self, watched: Watched) -> None:
        page, before = watched.page, self.shown(cell(watched.page, DRO))
        reload(page)
        panel = cell(page, DRO)
        until(page, lambda: self.shown(panel) == before)
        assert button(panel, "Resume").count() == 1
        button(panel, "Resume").click()
        until(page, lambda: self.shown(panel) > before)

    def test_other_cells_run_meanwhile_and_stop_stops(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, DRO)
        assert python(page, "print(panel.job.running, 6 * 7)") == "True 42"
        button(panel, "Stop").first.click()
        until(page, lambda: "stopped at" in panel.inner_text())
        self.stands_still(page, panel)
        watched.screenshot("05_stopped")
        assert 0 < self.steps(page) < 400

    def test_the_movement_is_replayed(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, DRO)
        button(panel, "Replay").click()
        until(page, lambda: len(panel.locator(".js-plotly-plot").all()) == 2)
        before = until(page, lambda: drawn(panel, 1))
        panel.locator(".widget-play button").first.click()
        until(page, lambda: drawn(panel, 1) != before)
        watched.screenshot("05_replay")


class TestResponses(Notebook):
    NUMBER = "06"

    def test_another_row_shows_its_responses(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, "about = export.about")
        before = texts(panel, "td")
        panel.locator(".widget-select:not(.widget-select-multiple) select").select_option(index=5)
        until(page, lambda: texts(panel, "td") != before)
        query = python(page, "print(panel.selection()['text'].iloc[0])")
        assert query in panel.inner_text()
        watched.screenshot("06_responses")

    def test_a_click_on_a_point_shows_its_query(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, "about = export.about")
        code = "print(panel.selection()['query_id'].iloc[0])"
        before = python(page, code)
        panel.locator(".js-plotly-plot").scroll_into_view_if_needed()
        page.mouse.click(*harness.first_point(panel, apart=True))
        until(page, lambda: python(page, code) != before)
        assert python(page, "print(panel.selection()['text'].iloc[0])") in panel.inner_text()

    def test_a_label_by_hand_is_kept(self, watched: Watched) -> None:
        page, panel = watched.page, cell(watched.page, "about = export.about")
        button(panel, "Refusal").click()
        until(page, lambda: "Labels by hand: 1" in panel.inner_text())
        page.keyboard.press("c")  # for JupyterLab the command to copy a cell
        until(page, lambda: "Labels by hand: 2" in panel.inner_text())
        assert python(page, "print(panel.result()['label'].tolist())") == "['refusal', 'compliance']"
        assert "out/hand_labels.csv" in panel.inner_text()

    def test_the_board_compares_the_prompts(self, watched: Watched) -> None:
        board = cell(watched.page, "board = panels.board")
        watched.screenshot("06_board")
        assert "dro-default" in board.inner_text()


class TestBoard(Notebook):
    NUMBER = "07"

    def test_the_prompts_are_compared(self, watched: Watched, folder: Path) -> None:
        front = self.saved(folder)["numbers"]["trade-off"]
        assert {row["prompt"] for row in front} >= {"none", "default", "dro-default"}
        assert any(row["on_front"] for row in front)

    def test_another_baseline_makes_other_tests(self, watched: Watched) -> None:
        page, board = watched.page, cell(watched.page, "about = export.about")
        assert "Each prompt against none" in board.inner_text()
        choose(board, "baseline", "default")
        until(page, lambda: "Each prompt against default" in board.inner_text())
        assert python(page, "print('default' in set(board.comparisons()['prompt']))") == "False"
        watched.screenshot("07_board")

    def test_names_in_the_plane_are_whole_and_apart_and_the_mode_bar_covers_nothing(self, watched: Watched) -> None:
        page, board = watched.page, cell(watched.page, "about = export.about")
        places = "print([trace.text[0] for trace in board.plane.data if 'text' in trace.mode])"
        plane = board.locator(".js-plotly-plot").nth(1)
        until(page, lambda: str(texts(plane, ".textpoint text")) == python(page, places))
        bar = plane.locator(".modebar-group").first
        for mouse, seen in (((0, 0), "0"), (None, "1")):
            page.mouse.move(*mouse) if mouse else plane.hover()
            until(page, lambda seen=seen: bar.evaluate("bar => getComputedStyle(bar).opacity") == seen)
        frame, names = boxes(plane, ".nsewdrag"), boxes(plane, ".textpoint text")
        others = boxes(plane, ".xtitle, .ytitle") + boxes(plane, ".xtick text, .ytick text")
        assert len(names) >= 5
        assert all(inside(name, frame[0]) for name in names)
        assert all(inside(text, boxes(board, ".js-plotly-plot")[1]) for text in others)
        assert not [pair for pair in combinations(names + boxes(plane, ".modebar"), 2) if overlap(*pair)]
        watched.screenshot("07_plane")


# ---------------------------------------------------------------- what a hand does


def lasso(page: Any, panel: Any) -> tuple[float, float, float, float]:
    """Draw one around the middle of the figure; returns left, right, low, high of it in the figure's own units."""
    panel.locator(".js-plotly-plot").hover()
    panel.locator(".modebar-btn[data-title^=Lasso]").click()
    # What the mouse passed over is answered and drawn before the mouse draws: a figure being drawn would lose it.
    assert python(page, "print('answered')") == "answered"
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    corners = panel.locator(".js-plotly-plot").evaluate(
        """figure => { const {xaxis, yaxis} = figure._fullLayout; const box = figure.getBoundingClientRect();
        const place = (axis, share) => axis._offset + axis._length * share;
        const [left, right, top, bottom] =
          [place(xaxis, 0.05), place(xaxis, 0.5), place(yaxis, 0.2), place(yaxis, 0.9)];
        return {pixels: [box.left + left, box.left + right, box.top + top, box.top + bottom],
                units: [xaxis.p2l(left - xaxis._offset), xaxis.p2l(right - xaxis._offset),
                        yaxis.p2l(bottom - yaxis._offset), yaxis.p2l(top - yaxis._offset)]}; }"""
    )
    left, right, top, bottom = corners["pixels"]
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    return tuple(corners["units"])


def reload(page: Any) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")  # resolves when it is saved
    page.reload()
    page.wait_for_selector(".jp-Notebook")
    harness.wait_idle(page)


def words_of(pdf: Path) -> set[str]:
    """The words in a PDF, single and in pairs."""
    import pypdf

    words = pypdf.PdfReader(pdf).pages[0].extract_text().split()
    return {*words, *map(" ".join, pairwise(words))}
