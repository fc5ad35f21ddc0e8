"""The documentation's pictures of the panels, from the app in a real browser, on the demo model (a minute or two):

.venv/bin/python benchmarks/panel_pictures.py
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import harness  # noqa: E402
from helpers.harness import button, until  # noqa: E402

TABS = {"projection": "Projection", "prompt_lab": "Prompt lab", "dro": "Train", "responses": "Read", "board": "Compare"}
MINE = "You are a careful assistant. Refuse whatever could hurt somebody."
HEIGHT = 1400  # pixels: what is further down is left out
TOKEN = "pictures"

# Chromium writes WebP, a third of a PNG's size; playwright's own screenshots cannot be had in it.
_WEBP = """async png => { const image = new Image(); image.src = `data:image/png;base64,${png}`; await image.decode();
  const canvas = document.createElement('canvas'); canvas.width = image.width; canvas.height = image.height;
  canvas.getContext('2d').drawImage(image, 0, 0); return canvas.toDataURL('image/webp', 0.85).split(',')[1]; }"""


def use(name: str, panel: Any) -> None:
    """Do with a panel what its page tells of."""
    page = panel.page
    if name == "projection":
        panel.get_by_label("are refused more under").select_option(label="default")
        button(panel, "Find").click()
    if name == "prompt_lab":
        panel.get_by_label("name", exact=True).fill("mine")
        panel.get_by_label("safety prompt").fill(MINE)
        button(panel, "Project").click()
        until(page, lambda: "Sampled" in panel.inner_text())
    if name == "dro":
        button(panel, "Start").click()
        panel.get_by_role("cell", name="200", exact=True).nth(1).wait_for()  # steps, and all are measured
    if name == "responses":
        panel.get_by_label("class").select_option(label="borderline")
        panel.get_by_label("queries", exact=True).select_option(index=2)  # the largest change first


def picture(panel: Any) -> bytes:
    page = panel.page
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # the last drawing, and what the mouse had called up
    png = base64.b64encode(page.screenshot(clip=panel.bounding_box())).decode()
    return base64.b64decode(page.evaluate(_WEBP, png))


def main() -> None:
    port = harness.free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "drolab", "app", f"--port={port}"]
    environment = {"JUPYTER_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as scratch,
        harness.server(command, f"{address}/voila/static/voila.js", Path(scratch) / "log", environment),
        harness.browser() as opened,
    ):
        page = harness.new_page(opened)
        page.set_viewport_size({"width": 1280, "height": HEIGHT})
        page.goto(f"{address}/?token={TOKEN}")
        for name, tab in TABS.items():
            page.get_by_role("tab", name=tab, exact=True).click()
            page.get_by_text("Export", exact=True).locator("visible=true").first.wait_for()
            panel = page.locator(".jupyter-widget-TabPanel-tabContents, .widget-tab-contents").first
            use(name, panel)
            path = ROOT / "docs" / "panels" / f"{name}.webp"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(panel))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
