"""Figures made of cells: each at its place with its number, what is missing has a dash, what is weak says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.tables import grid, queries, sites

from drolab import figures

THEMES = ("light", "dark")


def test_cosine_heatmap_is_symmetric_with_intervals_on_hover() -> None:
    table = pd.DataFrame(
        [("a", "b", 0.9, 0.8, 0.95), ("a", "c", -0.1, -0.3, 0.2), ("b", "c", 0.5, 0.4, 0.6)],
        columns=["a", "b", "cosine", "low", "high"],
    )
    heat = figures.cosine_heatmap(table).data[0]
    assert heat.z[0][1] == heat.z[1][0] == 0.9
    assert heat.text[2][0] == "-0.10"
    assert heat.text[1][1] == ""
    assert "[0.80, 0.95]" in heat.customdata[1][0]
    assert (heat.zmin, heat.zmax) == (-1, 1)


def test_cosines_across_two_sets_make_a_rectangle() -> None:
    table = pd.DataFrame([("a", "x", 0.9), ("b", "x", -0.1), ("c", "x", 0.2)], columns=["a", "b", "cosine"])
    heat = figures.cosine_heatmap(table).data[0]
    assert [list(line) for line in heat.z] == [[0.9], [-0.1], [0.2]]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cosines_that_are_not_significant_say_so_and_the_hover_has_p(theme: str) -> None:
    rows = [("a", "b", 0.9, 0.0001, True), ("a", "c", -0.001, 0.4, False), ("b", "c", 0.5, np.nan, True)]
    table = pd.DataFrame(rows, columns=["a", "b", "cosine", "p", "significant"])
    figure = figures.cosine_heatmap(table, theme=theme)
    heat = figure.data[0]
    assert [list(line) for line in heat.text] == [
        ["", "0.90", "0.00<br>n.s."],
        ["0.90", "", "0.50"],
        ["0.00<br>n.s.", "0.50", ""],
    ]
    assert heat.customdata[0][1] == "cos(a, b)<br>0.900<br>p < 0.001"
    assert heat.customdata[2][0] == "cos(a, c)<br>-0.001<br>p = 0.400<br>n.s. after correction"
    assert heat.customdata[1][2] == "cos(b, c)<br>0.500"
    assert "not significant" in figure.layout.xaxis.title.text
    untested = figures.cosine_heatmap(table.drop(columns=["p", "significant"]), theme=theme)
    assert "n.s." not in str(untested.to_dict())


def test_the_hover_says_why_a_large_cosine_is_not_significant() -> None:
    rows = [("a", "b", 0.73, 0.06, False), ("a", "c", 0.82, 0.04, False), ("b", "c", 0.9, 0.001, True)]
    table = pd.DataFrame(rows, columns=["a", "b", "cosine", "p", "significant"]).assign(null_low=-0.81, null_high=0.79)
    hover = figures.cosine_heatmap(table).data[0].customdata
    null = "the null reaches from -0.81 to 0.79"
    assert hover[0][1] == f"cos(a, b)<br>0.730<br>p = 0.060<br>{null}<br>n.s. after correction: the null reaches as far"
    assert hover[0][2].endswith(f"{null}<br>n.s. after correction: too close to the null for so many cells")
    assert hover[1][2] == f"cos(b, c)<br>0.900<br>p = 0.001<br>{null}"


@pytest.mark.parametrize("theme", THEMES)
def test_a_map_has_a_cell_per_site_with_interval_and_control(theme: str) -> None:
    figure = figures.layer_position_map(sites(), measure="refusal cosine", theme=theme)
    heat, dashes = figure.data
    np.testing.assert_array_equal(heat.z, [[0.2, np.nan], [0.25, 0.9]])
    assert [list(line) for line in heat.text] == [["0.20<br>n.s.", ""], ["0.25<br>n.s.", "0.90"]]
    expected = (
        "layer 1, position -1 ⏎<br>refusal cosine: 0.900 [0.80, 0.95]<br>refusal cosine, control: 0.300 [0.20, 0.40]"
    )
    assert heat.customdata[1][1] == expected
    assert (list(dashes.x), list(dashes.y)) == ([1], [0])
    assert "do not differ" in dashes.customdata[0]
    assert list(figure.layout.xaxis.ticktext) == ["−2<br>?", "−1<br>⏎"]
    assert "refusal cosine, control" in figure.layout.xaxis.title.text


def test_without_a_control_nothing_is_marked() -> None:
    figure = figures.layer_position_map(sites(control=False), measure="refusal cosine")
    assert figure.data[0].text[0][0] == "0.20"
    assert "n.s." not in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("measure", "scale"),
    [("harmfulness", (0, 0.5, 1)), ("refusal within class", (-1, 0, 1)), ("refusal cosine, control", (-1, 0, 1))],
)
def test_chance_is_in_the_middle_of_the_scale(measure: str, scale: tuple[float, ...]) -> None:
    heat = figures.layer_position_map(sites(control=False).assign(measure=measure), measure=measure).data[0]
    assert (heat.zmin, heat.zmid, heat.zmax) == scale


def test_a_measure_without_a_middle_goes_from_zero_to_its_largest() -> None:
    heat = figures.layer_position_map(sites(control=False).assign(measure="shift size"), measure="shift size")
    assert (heat.data[0].zmin, heat.data[0].zmid, heat.data[0].zmax) == (0, None, 0.9)
    flat = sites(control=False).assign(measure="mine", value=0.0)
    assert figures.layer_position_map(flat, measure="mine").data[0].zmax == 1


def test_a_map_of_one_site_and_without_intervals_is_drawn() -> None:
    table = pd.DataFrame([(3, -1, "mine", 2.0)], columns=["layer", "position", "measure", "value"])
    heat = figures.layer_position_map(table, measure="mine").data[0]
    assert heat.customdata[0][0] == "layer 3, position -1<br>mine: 2.000"


def test_a_measure_that_is_not_there_is_named() -> None:
    with pytest.raises(figures.FigureError, match=r"no values of 'harm'.*\['refusal cosine'\]"):
        figures.layer_position_map(sites(control=False), measure="harm")
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.layer_position_map(sites().head(0), measure="refusal cosine")


def test_a_missing_cell_has_a_dash_and_a_zero_its_number() -> None:
    heat, dashes = figures.rate_grid(grid()).data
    assert [list(row) for row in heat.text] == [["50.0", "0.0"], ["", ""]]
    np.testing.assert_array_equal(heat.z, [[0.5, 0.0], [np.nan, np.nan]])
    assert sorted(zip(dashes.x, dashes.y, strict=True)) == [(0, 1), (1, 1)]  # one NaN, one row that is not there
    assert heat.customdata[0][0] == "a, none<br>50.0 % [40.0, 60.0]"
    assert list(dashes.customdata) == ["b, none: missing", "b, default: missing"]


def test_scale_is_fixed_so_that_grids_compare() -> None:
    for table in (grid(), grid()[:1]):
        heat = figures.rate_grid(table, what="compliance").data[0]
        assert (heat.zmin, heat.zmax) == (0, 1)


def test_queries_are_sorted_by_their_mean() -> None:
    heat = figures.query_grid(queries()).data[0]
    np.testing.assert_array_equal(heat.z, [[np.nan, 1.0, 0.0], [0.9, 0.4, 0.2]])
    assert heat.customdata[0][1] == "<b>a</b>: 1.00<br>q2<br>How do I do it?"
    assert figures.query_grid(queries().drop(columns="text")).data[0].customdata[1][0] == "<b>b</b>: 0.90<br>q3<br>"


def test_token_strip_colours_each_token_by_what_it_is() -> None:
    tokens = ["<s>", "Be", " nice", "\n", "How", "?", "[/INST]"]
    heat = figures.token_strip(tokens, prompt_span=(1, 3), prefix=4, columns=3).data[0]
    roles = np.array(heat.z).flatten()
    assert list(roles[:7]) == [0, 1, 1, 0, 2, 2, 3]
    assert set(roles[7:]) == {None}
    assert list(np.array(heat.text).flatten()[:4]) == ["&lt;s&gt;", "Be", "␣nice", "⏎"]
    with pytest.raises(figures.FigureError, match="No tokens"):
        figures.token_strip([])
