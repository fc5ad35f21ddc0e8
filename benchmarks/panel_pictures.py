"""The documentation's pictures of the panels and the README's film, from the app in a real browser, on the demo model,
with what `make docs` installs:

.venv/bin/python benchmarks/panel_pictures.py          # docs/panels/*.webp, a minute or two
.venv/bin/python benchmarks/panel_pictures.py --film   # docs/film.png
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import harness  # noqa: E402
from helpers.harness import button, until  # noqa: E402

TABS = {"projection": "Projection", "prompt_lab": "Prompt lab", "dro": "Train", "responses": "Read", "board": "Compare"}
MINE = "You are a careful assistant. Refuse whatever could hurt somebody."
HEIGHT = 1400  # pixels: what is further down is left out
FILM = (1000, 1080)  # pixels
TOKEN = "pictures"
_APP = (sys.executable, "-m", "drolab", "app")


@contextmanager
def app() -> Iterator[Any]:
    """A page with the app, as `make app` serves it."""
    port = harness.free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {"JUPYTER_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as scratch,  # with a store of its own: a training that is kept is no film
        harness.server(
            [*_APP, f"--port={port}", f"--store={scratch}"],
            f"{address}/voila/static/voila.js",
            Path(scratch) / "log",
            environment,
        ),
        harness.browser() as opened,
    ):
        page = harness.new_page(opened)
        page.goto(f"{address}/?token={TOKEN}")
        yield page


def opened(page: Any, name: str) -> Any:
    """The panel behind a tab."""
    page.get_by_role("tab", name=TABS[name], exact=True).click()
    page.get_by_text("Export", exact=True).locator("visible=true").first.wait_for()
    return page.locator(".jupyter-widget-TabPanel-tabContents, .widget-tab-contents").first


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


def picture(page: Any, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")


def draw_panels() -> None:
    with app() as page:
        page.set_viewport_size({"width": 1280, "height": HEIGHT})
        for name in TABS:
            panel = opened(page, name)
            use(name, panel)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # the last drawing, and what the mouse had called up
            path = ROOT / "docs" / "panels" / f"{name}.webp"
            path.parent.mkdir(exist_ok=True)
            picture(page, clip=panel.bounding_box()).save(path, quality=85, method=6)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def play() -> list[tuple[Image.Image, int]]:
    """The film's frames, each with its milliseconds: type a prompt, watch its arrow, train, watch the queries move."""
    frames: list[tuple[Image.Image, int]] = []
    with app() as page:
        page.set_viewport_size({"width": FILM[0], "height": FILM[1]})

        def shoot(milliseconds: int) -> None:
            frames.append((picture(page), milliseconds))

        def shoot_until(reached: Callable[[], Any], milliseconds: int, every: int) -> None:
            """Time that passes between two frames is shown shorter than it was."""
            while not reached():
                shoot(milliseconds)
                page.wait_for_timeout(every)

        lab = opened(page, "prompt_lab")
        lab.get_by_label("measure by sampling").uncheck()
        lab.get_by_label("name", exact=True).fill("mine")
        page.wait_for_timeout(1000)
        shoot(800)
        for start in range(0, len(MINE), 6):
            lab.get_by_label("safety prompt").press_sequentially(MINE[start : start + 6])
            shoot(120)
        button(lab, "Project").click()
        until(page, lambda: "Projected" in lab.inner_text())
        page.wait_for_timeout(1000)
        shoot(3500)

        train = opened(page, "dro")
        shoot(1200)
        button(train, "Start").click()
        measured = train.get_by_role("cell", name="200", exact=True).nth(1)
        shoot_until(measured.count, 150, 2000)
        shoot(2000)
        button(train, "Replay").click()
        until(page, lambda: re.search(r"Movement\s+(\d+) of \1\s", train.inner_text()))
        movement = train.locator(".js-plotly-plot:visible").nth(1)
        until(page, lambda: movement.bounding_box()["height"] > 300)
        page.mouse.wheel(0, 2000)
        page.wait_for_timeout(1000)
        rewind, start = train.locator(".widget-play button").nth(1), train.locator(".widget-play button").first
        rewind.click()
        shoot(800)
        start.click()
        for _ in range(24):
            shoot(150)
            page.wait_for_timeout(150)
        shoot(3500)
    return frames


def make_film() -> None:
    path = ROOT / "docs" / "film.png"
    images, times = zip(*play(), strict=True)
    strip = Image.new("RGB", (FILM[0], FILM[1] * len(images[::8])))  # the colours of all scenes
    for number, image in enumerate(images[::8]):
        strip.paste(image, (0, FILM[1] * number))
    palette = strip.quantize(160)
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=list(times), loop=0, optimize=True)
    print(f"{path}: {len(images)} frames, {sum(times) / 1000:.0f} s, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    make_film() if "--film" in sys.argv[1:] else draw_panels()
