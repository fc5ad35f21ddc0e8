"""Panels: controls beside a figure or a table, each one call in a notebook. The only wing that imports ipywidgets.

A panel computes nothing by itself: it calls library functions with the values of its controls and shows what comes
back. It works without a browser too: setting a control's `.value` or calling a button's `.click()` does what a user's
hand does, and `.result()` gives the numbers that are shown.

In order: `markup` (text and tables as harmless HTML), `controls` (labelled controls and rows of them), `picture` (a
figure that sends only what changed; `picture.js` draws it), `kept` (what stands in a panel's place without a kernel),
`base` (`Panel`, and `Job`, long work in a thread), `export_box` (the box at the end of every panel). Then the panels:
`explore` (any figure; tabs) and `board` in a file each; `projection`, `prompt_lab`, `dro` and `responses` in a folder
each, with a `view` (what is shown, without widgets) and a `panel` (the widgets).
"""

from drolab.panels.base import Job, Panel, PanelError, Stopped
from drolab.panels.board import Board, board
from drolab.panels.dro.panel import DROPanel, dro
from drolab.panels.explore import ExplorePanel, Tabs, explore, tabs
from drolab.panels.export_box import ExportBox
from drolab.panels.picture import Picture
from drolab.panels.projection.panel import ProjectionPanel, projection
from drolab.panels.prompt_lab.panel import PromptLab, prompt_lab
from drolab.panels.responses.panel import ResponsePanel, responses

__all__ = [
    "Board",
    "DROPanel",
    "ExplorePanel",
    "ExportBox",
    "Job",
    "Panel",
    "PanelError",
    "Picture",
    "ProjectionPanel",
    "PromptLab",
    "ResponsePanel",
    "Stopped",
    "Tabs",
    "board",
    "dro",
    "explore",
    "projection",
    "prompt_lab",
    "responses",
    "tabs",
]
