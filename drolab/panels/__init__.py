"""Panels: controls beside a figure or a table, each one call in a notebook. The only room that imports ipywidgets.

A panel computes nothing by itself: it calls library functions with the values of its controls and shows what comes
back. It works without a browser too.
"""

from drolab.panels.base import Job, Panel, PanelError, Stopped
from drolab.panels.board import Board, board
from drolab.panels.dro.panel import DROPanel, dro
from drolab.panels.explore import ExplorePanel, Tabs, explore, tabs
from drolab.panels.export_box import Takeaway
from drolab.panels.picture import Picture
from drolab.panels.projection.panel import ProjectionPanel, projection
from drolab.panels.prompt_lab.panel import PromptLab, prompt_lab
from drolab.panels.responses.panel import ResponsePanel, responses

__all__ = [
    "Board",
    "DROPanel",
    "ExplorePanel",
    "Job",
    "Panel",
    "PanelError",
    "Picture",
    "ProjectionPanel",
    "PromptLab",
    "ResponsePanel",
    "Stopped",
    "Tabs",
    "Takeaway",
    "board",
    "dro",
    "explore",
    "projection",
    "prompt_lab",
    "responses",
    "tabs",
]
