"""Names beside points: whatever the points and the size of the plot, no two names overlap and none is cut."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from drolab import figures

DEMO = {
    "none": (0.982, 0.634), "default": (0.923, 0.889), "medium": (0.938, 0.838), "short": (0.971, 0.754),
    "guardian": (0.911, 0.896), "lawful": (0.932, 0.863), "cautious": (0.950, 0.781), "format": (0.982, 0.629),
    "dro-default": (0.988, 0.971),
}  # fmt: skip
"""Compliance with harmless and refusal of harmful queries in notebook 07 of `python -m drolab demo`."""
SIDES = {"left": -1, "center": 0, "right": 1, "bottom": -1, "middle": 0, "top": 1}
LETTER, LINE, AWAY = 7, 14, 9  # pixels, as a browser has them: of a letter, of a line, between a point and its name


def plane(prompts: dict[str, tuple[float, float]]) -> dict:
    rows = [(name, *place, name == "dro-default", "") for name, place in prompts.items()]
    table = pd.DataFrame(rows, columns=["prompt", "compliance", "refusal", "on_front", "dominated_by"])
    for name in ("compliance", "refusal"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.02, table[name] + 0.02
    return figures.tradeoff_content(table)


def boxes(content: dict, width: float, height: float) -> dict[str, tuple[float, float, float, float]]:
    """Name → left, right, low, high in pixels, of those that are shown."""
    (left, right), (low, high) = (content["layout"][axis]["range"] for axis in ("xaxis", "yaxis"))
    found = {}
    for trace in content["data"]:
        if trace["mode"] == "markers+text":
            up, across = (SIDES[word] for word in trace["textposition"].split())
            x = (trace["x"][0] - left) / (right - left) * width + across * AWAY
            y = (trace["y"][0] - low) / (high - low) * height + up * AWAY
            text = LETTER * len(trace["text"][0])
            x, y = x + (across - 1) * text / 2, y + (up - 1) * LINE / 2
            found[trace["text"][0]] = (x, x + text, y, y + LINE)
    return found


def check(content: dict) -> None:
    for width in (330, 400, 500, 600, 700):
        for height in (270, 290, 350, 380):
            shown = boxes(content, width, height)
            for left, right, low, high in shown.values():
                assert left >= 0
                assert right <= width
                assert low >= 0
                assert high <= height
            for (one, a), (other, b) in combinations(shown.items(), 2):
                apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
                assert apart, (one, other, width, height)


def test_the_nine_prompts_of_the_demo_all_have_a_name() -> None:
    content = plane(DEMO)
    check(content)
    assert set(boxes(content, 330, 270)) == set(DEMO)


@pytest.mark.parametrize("seed", range(20))
def test_names_of_any_points_are_apart(seed: int) -> None:
    generator = np.random.default_rng(seed)
    spread = generator.choice([0.0, 0.01, 0.1, 1.0], size=2)
    places = np.clip(generator.random(2) + spread * (generator.random((9, 2)) - 0.5), 0, 1)
    content = plane({f"{'prompt ' * (i % 3)}{i}": tuple(place) for i, place in enumerate(places)})
    check(content)
    assert len(boxes(content, 330, 270)) >= 4


def test_a_name_without_room_is_left_to_the_hover() -> None:
    content = plane({f"prompt {number}": (0.5, 0.5) for number in range(30)})
    check(content)
    assert 4 <= len(boxes(content, 330, 270)) < 30
    assert all("prompt" in trace["customdata"][0] for trace in content["data"][1:])


def test_the_check_sees_an_overlap() -> None:
    content = plane(DEMO)
    for trace in content["data"][1:]:
        trace |= {"mode": "markers+text", "textposition": "top center"}
    with pytest.raises(AssertionError, match="none"):
        check(content)
