"""Notebook 03 in a real JupyterLab: it runs, its panel answers, survives a reload, and nothing leaves the machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
NOTEBOOK = "03_what_safety_prompts_move.ipynb"
TOKEN = "test-token"
CHROME = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)

pytestmark = [
    # In CI a missing browser is a failure, not a skip.
    pytest.mark.skipif(CHROME is None and not os.environ.get("CI"), reason="no chromium: make browser"),
    pytest.mark.filterwarnings("default"),  # the browser driver's own
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(folder: Path) -> None:
    """The notebook with parameters for a quick run, and a Jupyter of its own settings and kernel."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    settings = {"OUT": str(folder / "out"), "STORE": str(folder / "store"), "MY_PROMPT": "Refuse what could do harm."}
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    (folder / "work").mkdir()
    nbformat.write(notebook, folder / "work" / NOTEBOOK)
    pages = folder / "config" / "labconfig"
    pages.mkdir(parents=True)
    silent = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (pages / "page_config.json").write_text(json.dumps(silent))
    kernel = folder / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("lab")
    prepare(folder)
    port = free_port()
    own = {name: str(folder / name.split("_")[1].lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    environment = {**os.environ, **own, "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "HF_HUB_OFFLINE": "1"}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *(f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={folder / 'work'}"),
        "--LabApp.expose_app_in_browser=True",
    ]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, folder / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={TOKEN}", folder
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


class Watched:
    """A page, what it asked for and what it complained about."""

    def __init__(self, page: playwright.Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        page.on("request", lambda request: self._seen(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def _seen(self, url: str) -> None:
        parts = urlparse(url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            self.hosts.add(parts.hostname or "")


@pytest.fixture(scope="module")
def watched(lab: tuple[str, Path]) -> Iterator[Watched]:
    """The notebook opened and run to its end."""
    with playwright.sync_playwright() as driver:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
        browser = driver.chromium.launch(executable_path=CHROME, args=["--no-sandbox", rules])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        found = Watched(page)
        page.goto(lab[0])
        page.wait_for_selector(".jp-Notebook", timeout=60_000)
        wait_idle(page)
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        page.wait_for_function("() => document.querySelectorAll('.jp-InputPrompt').length > 0")
        wait_done(page, lab[1])
        yield found
        browser.close()


def wait_idle(page: playwright.Page) -> None:
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for(timeout=90_000)


def wait_done(page: playwright.Page, folder: Path) -> None:
    """The last cell writes its results: they are the sign that every cell ran."""
    for _ in range(600):
        if (folder / "out" / "numbers" / "03.json").is_file():
            return wait_idle(page)
        if page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count():
            pytest.fail(page.locator(".jp-OutputArea-output >> text=Error").first.inner_text()[-3000:])
        page.wait_for_timeout(500)
    return pytest.fail("The notebook did not finish in five minutes.")


PANEL = ".jupyter-widgets.widget-vbox"


def panel_names(page: playwright.Page) -> list[str]:
    """Legend entries of the panel's figure, as drawn."""
    return page.locator(f"{PANEL} .legend .legendtext").all_text_contents()


def scroll_to_panel(page: playwright.Page) -> None:
    """JupyterLab draws only the cells near the view."""
    page.evaluate(
        "() => { const panel = window.jupyterapp.shell.currentWidget.content;"
        " panel.scrollToItem(panel.widgets.length - 3, 'center'); }"
    )
    page.wait_for_selector(f"{PANEL} .legend .legendtext", timeout=60_000)


def test_own_prompt_is_in_the_static_figure_and_in_the_panel(watched: Watched, lab: tuple[str, Path]) -> None:
    scroll_to_panel(watched.page)
    assert "mine" in panel_names(watched.page)
    saved = json.loads((lab[1] / "out" / "figures" / "03_projection.json").read_text())
    assert "shift: mine, harmful" in {trace.get("name") for trace in saved["data"]}


def test_panel_answers_a_control(watched: Watched) -> None:
    page = watched.page
    scroll_to_panel(page)
    box = page.locator(f"{PANEL} select[multiple]").first
    box.select_option(["default"])
    page.wait_for_function(
        "selector => { const names = [...document.querySelectorAll(selector)].map(text => text.textContent);"
        " return names.includes('default') && !names.includes('mine'); }",
        arg=f"{PANEL} .legend .legendtext",
    )
    assert {"none", "default"} <= set(panel_names(page))


def test_no_share_button_anywhere(watched: Watched) -> None:
    page = watched.page
    page.locator(f"{PANEL} .js-plotly-plot").first.hover()
    titles = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(button => button.dataset.title)")
    assert any("Zoom" in (title or "") for title in titles)
    assert not [title for title in titles if re.search("share|cloud|plotly", title or "", re.IGNORECASE)]


def test_nothing_leaves_the_machine_and_nothing_goes_wrong(watched: Watched) -> None:
    assert watched.hosts == {"127.0.0.1"}
    assert watched.errors == []


def test_a_second_view_shows_the_present_figure(watched: Watched) -> None:
    """What a page reload shows: FigureWidget alone would go back to its first figure."""
    page = watched.page
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")  # resolves when it is saved
    page.reload()
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    wait_idle(page)
    scroll_to_panel(page)
    names = panel_names(page)
    assert "default" in names
    assert "mine" not in names
