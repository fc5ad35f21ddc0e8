"""Controls and places that panels share: labelled choices among names that come from data (shown short, harmless and on
one line; their value is the name), and a share of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets as widgets

from drolab.panels.markup import label

STYLE = {"description_width": "initial"}


def named(names: Iterable[str], limit: int = 40) -> list[tuple[str, str]]:
    """Options (label of at most `limit` characters, name), each name once."""
    return [(label(name, limit), name) for name in dict.fromkeys(names)]


def choice(description: str, options: Sequence[Any], tooltip: str, wanted: Any = "") -> widgets.Dropdown:
    """One of `options` (values, or pairs of label and value): `wanted` if it is there, the first otherwise."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    return widgets.Dropdown(
        options=options,
        value=wanted if wanted in values else next(iter(values), None),
        description=description,
        tooltip=tooltip,
        style=STYLE,
        layout={"width": "max-content", "max_width": "360px"},
    )


def several(description: str, names: Iterable[str], chosen: Iterable[str], tooltip: str) -> widgets.SelectMultiple:
    options = named(names)
    return widgets.SelectMultiple(
        options=options,
        value=tuple(chosen),
        rows=min(5, len(options)),
        description=description,
        tooltip=f"{tooltip}; Ctrl or Shift for several",
        style=STYLE,
    )


def share(widget: widgets.Widget, width: str) -> widgets.VBox:
    """The widget in a share of a row. A VBox, since in a row itself a figure would never become narrower."""
    return widgets.VBox([widget], layout={"width": width, "min_width": "0"})
