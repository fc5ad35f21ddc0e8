"""A real server, a real browser, and what a page asked for and complained about: shared by the browser tests."""

from __future__ import annotations

import inspect
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
TOKEN = "test-token"
CHROME = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
CHROME_ARGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # Chromium itself tries outside hosts otherwise, and a page's attempt would look like a network fault.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
VIEWPORT = {"width": 1280, "height": 900}  # a 13-inch screen
PATIENCE_S = 240.0  # how long a test waits for what must come; a busy machine is slow
SCREENSHOTS = Path(os.environ.get("DROLAB_SCREENSHOTS", ROOT / "out" / "screenshots"))

MARKS = [
    # In CI a missing browser is a failure, not a skip.
    pytest.mark.skipif(CHROME is None and not os.environ.get("CI"), reason="no chromium: make browser"),
    pytest.mark.filterwarnings("default"),  # the browser driver's own
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


GIVEN_UP = "[anywidget] Failed to initialize model."


class Watched:
    """A page, the hosts it asked, and its errors."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        # What a page says that was busy for two seconds: figures get over it (tests/browser/test_figures.py).
        self.known: tuple[str, ...] = (GIVEN_UP,)
        """Words of errors that are not drolab's."""
        self.dialogs: list[str] = []
        page.on("request", lambda request: self._seen(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", self._dismiss)

    def _seen(self, url: str) -> None:
        parts = urlparse(url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            self.hosts.add(parts.hostname or "")

    def _dismiss(self, dialog: Any) -> None:
        if dialog.type != "beforeunload":
            self.dialogs.append(dialog.message)
        dialog.dismiss() if dialog.type != "beforeunload" else dialog.accept()

    def screenshot(self, name: str) -> None:
        """Keep what the page shows, for a person to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of a fresh profile."""
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROME, args=CHROME_ARGS)
        yield opened
        opened.close()


def new_context(opened: Any) -> Any:
    """A user's profile: its pages share what they have loaded from a server."""
    context = opened.new_context(viewport=VIEWPORT)
    context.set_default_timeout(1000 * PATIENCE_S)
    return context


def new_page(opened: Any) -> Any:
    """A page of a context of its own."""
    return new_context(opened).new_page()


@contextmanager
def server(command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A server process, until it answers at `url`; ended with its children when the block is left."""
    with log.open("wb") as opened:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=opened, stderr=subprocess.STDOUT, cwd=log.parent
        )
        try:
            _wait_for(url, process, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(f"The server did not start:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"The server does not answer:\n{log.read_text()[-3000:]}")


# ---------------------------------------------------------------- JupyterLab


@contextmanager
def jupyterlab(folder: Path, work: Path, app: str = "jupyterlab") -> Iterator[str]:
    """JupyterLab (or `app`: "notebook", Notebook 7) on the folder `work`, with settings and a kernel of its own in
    `folder`; yields its address."""
    pages = folder / "config" / "labconfig"
    pages.mkdir(parents=True)
    silent = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (pages / "page_config.json").write_text(json.dumps(silent))
    kernel = folder / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    port = free_port()
    environment = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    lab = [
        *(sys.executable, "-m", app, "--no-browser", "--allow-root", f"--port={port}"),
        *(f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={work}"),
        *(f"--{name}.expose_app_in_browser=True" for name in ("LabApp", "JupyterNotebookApp")),
    ]
    with server(lab, f"http://127.0.0.1:{port}/api?token={TOKEN}", folder / "lab.log", environment):
        yield f"http://127.0.0.1:{port}"


def copy_notebook(source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    """The notebook with its parameters cell extended by those that it knows."""
    notebook = nbformat.read(source, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += "".join(
        f"\n{key} = {value!r}" for key, value in parameters.items() if f"\n{key} =" in "\n" + cell.source
    )
    nbformat.write(notebook, target)


@contextmanager
def notebook(
    context: Any, address: str, name: str, *, folder: str | None = None, timeout_s: int = 600
) -> Iterator[Watched]:
    """Open a notebook in a page of its own and run all its cells; when the block ends, the page must have been quiet,
    see `check_quiet`. The kernel is the last notebook's, without its names and widgets: imports are most of a start.

    Args:
        folder: where the address of a notebook begins on this server; None is a workspace of its own in JupyterLab.

    Raises (fails the test): a cell ends in an error, or the time is over.
    """
    _pass_kernel_on(address, name)
    page = context.new_page()
    watched = Watched(page)
    # A workspace of its own: JupyterLab would open again what was open in the last one.
    folder = folder or f"lab/workspaces/{Path(name).stem}/tree"
    page.goto(f"{address}/{folder}/{name}?token={TOKEN}")
    page.wait_for_selector(".jp-Notebook")
    wait_idle(page)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    for _ in range(timeout_s * 4):
        state = page.evaluate(_PROGRESS)
        if state["error"]:
            pytest.fail(f"{name}: {state['error'][:3000]}")
        if state["finished"]:
            break
        page.wait_for_timeout(250)
    else:
        pytest.fail(f"{name} did not finish in {timeout_s} s.")
    wait_idle(page)
    yield watched
    check_quiet(watched, hosts={"127.0.0.1"})
    # The kernel may also say that messages of the widgets which are gone will not be answered.
    assert "no names left" in python(
        page, "import ipywidgets; ipywidgets.Widget.close_all()\n%reset -sf\nprint('no names left')"
    )
    page.close()


def _pass_kernel_on(address: str, name: str) -> None:
    """Make this notebook the one that the running kernel belongs to, if there is one."""

    def asked(path: str, **request: Any) -> Any:
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers, **request)) as answer:
            return json.load(answer)

    for session in asked("/api/sessions"):
        content = json.dumps({"path": name, "name": name}).encode()
        asked(f"/api/sessions/{session['id']}", data=content, method="PATCH")


_PROGRESS = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === 'code');
  const outputs = cells.flatMap(cell => cell.model.sharedModel.getOutputs());
  const failed = outputs.find(output => output.output_type === 'error');
  const last = cells[cells.length - 1];
  return {error: failed ? `${failed.ename}: ${failed.evalue}` : '', finished: last.model.executionCount > 0};
}"""


def check_quiet(watched: Watched, *, hosts: set[str]) -> None:
    """No request to another host, no complaint, no dialog, and no button that would send a figure away."""
    titles = watched.page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(one => one.dataset.title)")
    assert not [title for title in titles if re.search("share|cloud|plotly", title or "", re.IGNORECASE)]
    assert watched.page.evaluate("() => window.hit") is None  # what hostile texts would set
    assert watched.page.locator("[role=alert]:visible").count() == 0  # an error in a panel, in words
    assert watched.hosts == hosts
    assert [error for error in watched.errors if not any(words in error for words in watched.known)] == []
    assert watched.dialogs == []


def wait_idle(page: Any) -> None:
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.kernelDisplayStatus === 'idle'"
    )


def cell(page: Any, text: str) -> Any:
    """The code cell whose source starts with `text`, in view, its widgets drawn."""
    found = page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=text)).first
    widget = found.locator(".jupyter-widgets.widget-vbox").first

    def in_view() -> bool:  # cells above that are drawn only now push it out of view again
        scroll_to_cell(page, text)
        return bool(widget.is_visible())

    until(page, in_view)
    return found


def until(page: Any, condition: Callable[[], Any]) -> Any:
    """Wait until `condition()` is true, and return it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        page.wait_for_timeout(100)
    return pytest.fail(f"Still false after {PATIENCE_S} s: {inspect.getsource(condition).strip()}")


def button(place: Any, words: str) -> Any:
    """A button by its words: to the browser the icon is part of its name."""
    return place.locator("button:visible", has_text=words)


def hover(page: Any, panel: Any) -> Any:
    """The text that is shown over a point; the mouse follows the point while the figure finds its place."""
    shown = panel.locator(".hovertext")

    def over_it() -> bool:
        page.mouse.move(*first_point(panel))
        return bool(shown.count())

    until(page, over_it)
    return shown.first


def first_point(panel: Any, *, apart: bool = False) -> tuple[float, float]:
    """Where a point of the first cloud is on the screen; `apart`: the point that is farthest to the right of all."""
    found = panel.locator(".js-plotly-plot").first.evaluate(
        """(figure, apart) => { const {xaxis, yaxis} = figure._fullLayout; const box = figure.getBoundingClientRect();
        let best = null;
        for (const trace of figure._fullData.filter(t => t.mode === 'markers' && t.visible === true && t.x?.length > 1))
          for (let i = 0; i < trace.x.length; i++)
            if (best === null || (apart && trace.x[i] > best[0])) best = [trace.x[i], trace.y[i]];
        return [box.left + xaxis._offset + xaxis.l2p(best[0]), box.top + yaxis._offset + yaxis.l2p(best[1])]; }""",
        apart,
    )
    return found[0], found[1]


def scroll_to_cell(page: Any, text: str) -> None:
    """Bring the code cell whose source starts with `text` into view: JupyterLab draws only the cells near the view."""
    found = page.evaluate(
        """async text => { const panel = window.jupyterapp.shell.currentWidget.content;
        const index = panel.widgets.findIndex(cell => cell.model.sharedModel.source.startsWith(text));
        if (index >= 0) await panel.scrollToItem(index, 'center'); return index; }""",
        text,
    )
    assert found >= 0, f"no cell starts with {text!r}"


def python(page: Any, code: str) -> str:
    """What `print`ing code in the open notebook's kernel prints: the Python side of a test."""
    return page.evaluate(
        """async code => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const future = kernel.requestExecute({code, store_history: false}); let text = '';
        future.onIOPub = message => {
          if (message.header.msg_type === 'stream') text += message.content.text;
          if (message.header.msg_type === 'error') text += message.content.ename + ': ' + message.content.evalue; };
        await future.done; return text.trim(); }""",
        code,
    )
