"""Names beside the points of a figure: no two overlap, and the frame cuts none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FONT_SIZE = 12

_PLACES = {
    "top right": (1, 1), "bottom right": (1, -1), "top left": (-1, 1), "bottom left": (-1, -1),
    "top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0), "middle left": (-1, 0),
}  # fmt: skip
"""plotly's `textposition`s and their sides, the best first: in the corners there are no error bars."""
_PLOTS = np.array([(320.0, 260.0), (720.0, 400.0)])
"""Pixels of the smallest and the largest plot that names are placed for: in half a panel, and in a notebook."""
_LETTER = 0.6 * FONT_SIZE
"""Pixels of a letter: rather too many than too few."""


def text_places(names: Sequence[str], points: np.ndarray, ranges: np.ndarray, *, size: float) -> list[str]:
    """plotly's `textposition` of each name, and "" for one that finds no place.

    Args:
        names: [n], in FONT_SIZE.
        points: [n, 3, 2]: x and y of each point's estimate, of its intervals' lower ends, and of their upper ends.
        ranges: [2, 2]: the least x and y of the axes, and the greatest.
        size: of the markers, in pixels.
    """
    n, sides = len(names), np.array(list(_PLACES.values()))
    places = (points - ranges[0]) / (ranges[1] - ranges[0])
    at, low, high = (places[:, part] * _PLOTS[:, None] for part in range(3))
    texts = _text_boxes(names, at, sides, size)
    outside = ((texts[..., 0, :] < 0) | (texts[..., 1, :] > _PLOTS[:, None, None])).any(axis=(0, -1))
    cost = 0.1 * np.arange(len(sides)) + 1000.0 * outside
    bars = [np.stack([np.where(axis, low, at - 1), np.where(axis, high, at + 1)], axis=2) for axis in np.eye(2)]
    markers = np.stack([at - size / 2, at + size / 2], axis=2)
    for weight, boxes in ((10.0, markers), (1.0, bars[0]), (1.0, bars[1])):
        cost += weight * _overlap(texts[:, :, :, None], boxes[:, None, None]).sum(axis=-1)
    clash = _overlap(texts[:, :, :, None, None], texts[:, None, None])
    clash[np.arange(n), :, np.arange(n)] = False
    chosen, order = np.zeros(n, dtype=int), np.argsort(-points[:, 0, 1], kind="stable")
    for turn in range(10):  # at first beside those above it, then beside all
        for rank, i in enumerate(order):
            others = order[: n if turn else rank]
            chosen[i] = (cost[i] + 100.0 * clash[i][:, others, chosen[others]].sum(axis=1)).argmin()
    shown: list[int] = []
    for i in range(n):
        if cost[i, chosen[i]] < 1000 and not clash[i, chosen[i], shown, chosen[shown]].any():
            shown.append(i)
    return [list(_PLACES)[chosen[i]] if i in shown else "" for i in range(n)]


def _text_boxes(names: Sequence[str], at: np.ndarray, sides: np.ndarray, size: float) -> np.ndarray:
    """[plots, n, sides, 2, 2]: the lower left and the upper right corner of each name at each side, where plotly puts
    it."""
    text = np.array([(_LETTER * len(name), 1.2 * FONT_SIZE) for name in names])[:, None]
    away = size / 1.6 + 1  # from the point
    lower = at[:, :, None] + sides * away + (sides - 1) * text / 2
    return np.stack([lower, lower + text], axis=3)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether boxes overlap in any plot between the smallest and the largest: along an axis they never do if one is
    before the other in both."""
    along = (a[..., 0, :] < b[..., 1, :]).any(axis=0) & (b[..., 0, :] < a[..., 1, :]).any(axis=0)
    return np.all(along, axis=-1)
