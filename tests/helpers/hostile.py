"""Texts that try to become markup, and how to find them in a figure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def displayed_strings(value: object, key: str = "") -> Iterator[str]:
    """Every string of a figure that plotly may show."""
    if isinstance(value, str) and key not in ("legendgroup", "ids"):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from displayed_strings(item, name)
    elif isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from displayed_strings(item, key)


HOSTILE = '<script>alert("x")</script> $\\alpha$ %{x} & \x00 <b>{bold}</b>'


def raw_markup(figure: object) -> list[str]:
    strings = displayed_strings(figure.to_dict())
    return [text for text in strings if "<script" in text or "<b>{bold}" in text or "\x00" in text]
