"""Sheets become PNG, SVG and PDF: rendered by a Chrome that opens nothing but the figure."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drolab.figures.templates import Sheet
from drolab.progress import Progress, bar

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that no XML file may hold, and no text needs: controls and halves of surrogate pairs."""


def render_images(
    sheets: Mapping[str, Sheet], kinds: Sequence[str], *, progress: Progress = False
) -> dict[tuple[str, str], bytes]:
    """(Name, format) → the image's bytes, all from one start of the browser, without a request to any host."""
    import kaleido

    # kaleido's one-shot call starts a browser per image and asks a CDN for MathJax; the object does neither.
    async def render() -> dict[tuple[str, str], bytes]:
        images = {}
        with bar(progress, total=len(sheets) * len(kinds), desc="Images", unit="image") as shown:
            async with kaleido.Kaleido(n=1, mathjax=False) as browser:
                for name, page in sheets.items():
                    for kind in kinds:
                        content = await browser.calc_fig(page.figure, opts=_render_options(page, kind))
                        images[name, kind] = _finish(content, page, kind)
                        shown.update()
        return images

    return _run_apart(render)


def _render_options(page: Sheet, kind: str) -> dict[str, Any]:
    scales = {"svg": 1.0, "pdf": page.page_scale}
    return {"format": kind, "width": page.width, "height": page.height, "scale": scales.get(kind, page.raster_scale)}


def _finish(content: bytes, page: Sheet, kind: str) -> bytes:
    """Say in the file how large the picture is on paper (a PDF's page does already)."""
    if kind == "svg":
        size = f'width="{page.width_mm:.2f}mm" height="{page.width_mm * page.height / page.width:.2f}mm"'
        text = re.sub(r'width="[\d.]+" height="[\d.]+"', size, content.decode("utf-8"), count=1)
        return CONTROL.sub(" ", text).encode("utf-8")
    if kind == "png":
        per_metre = round(page.dpi / 0.0254)
        chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
        header = 8 + 25  # the signature and the first chunk, which must come first
        return content[:header] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[header:]
    return content


def _run_apart(render: Callable[[], Any]) -> Any:
    """Run a coroutine in a thread of its own: in a notebook this thread has a running loop already."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(render())).result()
