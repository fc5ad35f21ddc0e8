"""The dashboard as `make app` serves it: a real Voila, a real browser, the export of what a panel shows."""

from __future__ import annotations

import base64
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.harness import MARKS, ROOT, Watched, browser, check_quiet, free_port, new_page, server, until

from drolab import export

pytest.importorskip("voila")
pytestmark = MARKS

TABS = ["Projection", "Prompt lab", "Train", "Read", "Compare"]
TOKEN = "a-token-of-the-test"
ENTRIES = "text[class^=legend][class$=text]"  # of a legend, or of a second one
HOSTILE = "<script>window.hit=1</script><img src=x onerror=window.hit=1> \u202e😀"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder that it was started in. Few queries, some of them hostile."""
    import drolab

    folder = tmp_path_factory.mktemp("app")
    queries = drolab.load_queries("anchors").groupby("harmful").head(20).reset_index(drop=True)
    queries.loc[0, "text"] += HOSTILE
    queries.to_csv(folder / "few.csv", index=False)
    (folder / "prompts.yaml").write_text("none: ''\ndefault: Refuse what could do harm.\n'<b>bold</b>': Be careful.\n")
    port = free_port()
    command = [
        *(sys.executable, "-m", "drolab", "app", f"--port={port}", "--samples=2", "--store=store"),
        *("--queries=few.csv", "--prompts=prompts.yaml"),
    ]
    environment = {"JUPYTER_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    address = f"http://127.0.0.1:{port}"
    with server(command, f"{address}/voila/static/voila.js", folder / "app.log", environment):
        yield address, folder


@pytest.fixture(scope="module")
def watched(app: tuple[str, Path]) -> Iterator[Watched]:
    with browser() as opened:
        page = new_page(opened)
        found = Watched(page)
        page.goto(f"{app[0]}/?token={TOKEN}", timeout=180_000)
        page.wait_for_selector(".js-plotly-plot .legend")
        yield found


def legend(page: Any) -> list[str]:
    """The entries of the figure that is shown."""
    return page.locator(f".js-plotly-plot:visible {ENTRIES}").all_text_contents()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_the_first_view_shows_the_first_panel(watched: Watched) -> None:
    page = watched.page
    assert page.get_by_role("tab").all_text_contents() == TABS
    page.locator(ENTRIES, has_text="harmless").first.wait_for()
    assert {"none", "default", "<b>bold</b>", "harmful", "harmless"} <= set(legend(page))
    watched.screenshot("app_projection")


def test_the_page_says_what_it_is_about_and_what_it_does(watched: Watched) -> None:
    page = watched.page
    assert page.title() == "drolab: demo"
    page.get_by_role("heading", name="drolab: demo").wait_for()
    page.get_by_text("What can I do here?").click()
    told = page.locator("details[open] li b").all_text_contents()
    assert told == TABS
    page.get_by_text("What can I do here?").click()


def test_a_dark_system_gets_a_dark_page(watched: Watched) -> None:
    page = watched.page

    def grounds() -> list[str]:
        return page.evaluate(
            """() => ["body", ".js-plotly-plot .main-svg"].map(one => getComputedStyle(document.querySelector(one)))
            .map(style => style.backgroundColor)"""
        )

    assert grounds() == ["rgb(255, 255, 255)"] * 2
    page.emulate_media(color_scheme="dark")
    until(page, lambda: grounds() == ["rgb(22, 22, 22)"] * 2)
    watched.screenshot("app_dark")
    page.emulate_media(color_scheme="light")
    until(page, lambda: grounds() == ["rgb(255, 255, 255)"] * 2)


def test_a_control_reacts(watched: Watched) -> None:
    page = watched.page
    prompts = page.get_by_label("prompts").first
    prompts.select_option(["none", "default"])
    page.locator(ENTRIES, has_text="<b>bold</b>").first.wait_for(state="detached")
    assert {"none", "default"} <= set(legend(page))


def test_what_is_shown_is_exported(watched: Watched, app: tuple[str, Path]) -> None:
    page, folder = watched.page, app[1]
    page.get_by_text("Export", exact=True).first.click()
    formats = page.get_by_label("formats")
    formats.select_option(label=formats.locator("option").all_text_contents())
    page.locator("button:visible", has_text="Export").click()
    page.get_by_text("projection.manifest.json").wait_for()
    watched.screenshot("app_export")
    files = {path.suffix: path for path in (folder / "out" / "export").glob("projection.*")}
    assert set(files) == {*(f".{kind}" for kind in export.BUNDLE_FORMATS), ".json"}
    found = json.loads(files[".json"].read_text(encoding="utf-8"))
    assert set(found["settings"]["prompts"]) >= {"none", "default"}
    assert files[".pdf"].read_bytes().startswith(b"%PDF-")
    assert b"/FontFile2" in files[".pdf"].read_bytes()
    assert "<text" in files[".svg"].read_text(encoding="utf-8")
    assert colours(page, files[".png"]) > 20
    assert "harmful" in (folder / "out" / "export" / "projection.csv").read_text(encoding="utf-8")


def colours(page: Any, png: Path) -> int:
    """How many colours a picture has, counted at every hundredth point."""
    return page.evaluate(
        """async data => { const image = new Image(); image.src = data; await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height); const pen = canvas.getContext('2d');
        pen.drawImage(image, 0, 0);
        const points = new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer);
        return new Set(points.filter((_, i) => i % 100 === 0)).size; }""",
        f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}",
    )


def test_an_exported_page_works_offline_and_runs_nothing(watched: Watched, app: tuple[str, Path]) -> None:
    page = watched.page.context.new_page()
    found = Watched(page)
    page.goto((app[1] / "out" / "export" / "projection.html").as_uri())
    page.locator(ENTRIES, has_text="harmless").first.wait_for()
    assert page.evaluate("() => window.hit") is None
    page.locator(".js-plotly-plot").hover()
    check_quiet(found, hosts=set())
    page.close()


@pytest.mark.parametrize("name", TABS[1:])
def test_every_tab_opens(watched: Watched, name: str) -> None:
    page = watched.page
    open_tab(page, name)
    page.get_by_text("Export", exact=True).locator("visible=true").first.wait_for()
    assert page.locator("[role=alert]:visible").count() == 0
    until(page, lambda: fills_its_place(page))
    watched.screenshot(f"app_{name.lower().replace(' ', '_')}")


def fills_its_place(page: Any) -> bool:
    """Whether each figure is as wide as there is room for it."""
    shares = page.locator(".js-plotly-plot:visible").evaluate_all(
        "figures => figures.map(one => one._fullLayout.width / one.closest('.widget-vbox').clientWidth)"
    )
    return all(0.9 < share <= 1.001 for share in shares)


def test_hostile_queries_are_text(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Read")
    assert page.get_by_text("<script>window.hit=1</script>").count() > 0
    assert page.evaluate("() => window.hit") is None


def test_a_typed_prompt_is_there_after_a_reload(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Prompt lab")
    page.get_by_label("safety prompt").fill("Refuse what could hurt anybody.")
    page.get_by_label("measure by sampling").uncheck()
    page.locator("button:visible", has_text="Project").click()
    until(page, lambda: "mine" in legend(page))
    page.reload(timeout=180_000)
    page.get_by_role("tab", name="Prompt lab").wait_for()
    open_tab(page, "Prompt lab")
    until(page, lambda: "mine" in legend(page))


def test_nothing_leaves_the_machine_and_nothing_goes_wrong(watched: Watched) -> None:
    watched.page.locator(".js-plotly-plot:visible").first.hover()
    watched.page.locator(".modebar-btn[data-title^=Zoom]:visible").first.wait_for()
    check_quiet(watched, hosts={"127.0.0.1"})


def test_who_has_no_token_gets_no_kernel(app: tuple[str, Path]) -> None:
    before = kernels()
    with urllib.request.urlopen(app[0], timeout=30) as answer:
        assert answer.url == f"{app[0]}/login?next=%2F"
    assert kernels() == before


def kernels() -> set[int]:
    """Those of this process's children."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ipykernel_launcher" in " ".join(child.cmdline())}


def test_closing_the_page_ends_its_kernel(watched: Watched) -> None:
    assert len(kernels()) == 1
    (kernel,) = (psutil.Process(pid) for pid in kernels())
    watched.page.goto("about:blank")
    psutil.wait_procs([kernel], timeout=60)
    assert not kernel.is_running()
