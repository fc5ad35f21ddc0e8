"""What stands in a panel's place once its kernel is gone, as in a saved notebook: its last pictures, and what to run.

It is an output of its own before the panel's. In JupyterLab and Notebook 7 one of the two is hidden; elsewhere it is a
closed line above the panel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from drolab.panels.picture import Picture

_WORDS = "No panel here? It needs its kernel: run the cells above and this one."
_STYLE = """<style>
.jp-OutputArea-child:has(.drolab-kept):has(+ .jp-OutputArea-child .widget-vbox),
.jp-OutputArea-child:has(.drolab-kept) + .jp-OutputArea-child:not(:has(.widget-vbox)) { display: none; }
.jp-OutputArea .drolab-kept { animation: drolab-kept 2s step-end; }
.jp-OutputArea .drolab-kept > summary { list-style: none; }
.jp-OutputArea .drolab-kept::details-content { content-visibility: visible; }
@keyframes drolab-kept { from { visibility: hidden; } }
</style>"""  # the animation: a panel takes a moment to come up


def keep(panel: widgets.Widget) -> None:
    """Called when the panel is displayed in a notebook: put its output beside it, and bring it up to date whenever a
    picture of it has changed and then was quiet."""
    if not hasattr(get_ipython(), "kernel"):
        return
    pictures = list(_pictures(panel))
    handle = display(_page(pictures), display_id=True)
    for picture in pictures:
        picture.on_kept(lambda: handle.update(_page(pictures)))


def _page(pictures: Sequence[Picture]) -> HTML:
    images = "".join(f'<img src="{picture.kept}" style="max-width:100%">' for picture in pictures if picture.kept)
    words = f"{_WORDS} This is how it looked last:" if images else _WORDS
    return HTML(f'<details class="drolab-kept"><summary>{words}</summary>{images}</details>{_STYLE}')


def _pictures(widget: widgets.Widget) -> Iterator[Picture]:
    if isinstance(widget, Picture):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from _pictures(child)
