"""Figures of many results: every cell has its number, a missing one a dash, and texts from data stay text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from drolab import figures

HOSTILE = '<script>alert("x")</script> %{x} <b>{bold}</b> \x00'


@pytest.fixture
def rates() -> pd.DataFrame:
    rows = [("a", "none", 0.5, 0.4, 0.6), ("a", "default", 0.0, 0.0, 0.04), ("b", "none", np.nan, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["model", "prompt", "value", "low", "high"])


@pytest.fixture
def queries() -> pd.DataFrame:
    rows = [("a", "q1", 0.0), ("a", "q2", 1.0), ("b", "q1", 0.2), ("b", "q2", 0.4), ("b", "q3", 0.9)]
    return pd.DataFrame(rows, columns=["row", "query_id", "rate"]).assign(text="How do I do it?")


@pytest.fixture
def tokens() -> pd.DataFrame:
    columns = {"token": [0, 1], "norm": [1.0, 2.0], "drift": [0.5, 0.6], "cosine": [0.9, 0.8], "text": ["Be", " <i>"]}
    return pd.concat([pd.DataFrame({"prompt": name, "against": "default", **columns}) for name in ("dro", "vpt")])


def test_a_missing_cell_has_a_dash_and_a_zero_its_number(rates: pd.DataFrame) -> None:
    heat, dashes = figures.rate_grid(rates).data
    assert [list(row) for row in heat.text] == [["50.0", "0.0"], ["", ""]]
    np.testing.assert_array_equal(heat.z, [[0.5, 0.0], [np.nan, np.nan]])
    assert sorted(zip(dashes.x, dashes.y, strict=True)) == [(0, 1), (1, 1)]  # one NaN, one row that is not there
    assert heat.customdata[0][0] == "a, none<br>50.0 % [40.0, 60.0]"
    assert list(dashes.customdata) == ["b, none: missing", "b, default: missing"]


def test_scale_is_fixed_so_that_grids_compare(rates: pd.DataFrame) -> None:
    for table in (rates, rates[:1]):
        heat = figures.rate_grid(table, what="compliance").data[0]
        assert (heat.zmin, heat.zmax) == (0, 1)


def test_queries_are_sorted_by_their_mean(queries: pd.DataFrame) -> None:
    heat = figures.query_grid(queries).data[0]
    np.testing.assert_array_equal(heat.z, [[np.nan, 1.0, 0.0], [0.9, 0.4, 0.2]])
    assert heat.customdata[0][1] == "<b>a</b>: 1.00<br>q2<br>How do I do it?"
    assert figures.query_grid(queries.drop(columns="text")).data[0].customdata[1][0] == "<b>b</b>: 0.90<br>q3<br>"


def test_token_lines_tell_prompts_by_colour_and_symbol(tokens: pd.DataFrame) -> None:
    figure = figures.token_lines(tokens)
    assert [trace.name for trace in figure.data] == ["dro", "vpt"]
    assert (
        len({(trace.line.color) for trace in figure.data}) == len({trace.marker.symbol for trace in figure.data}) == 2
    )
    assert list(figure.data[0].y) == [1.0, 2.0]
    drift = figures.token_lines(tokens, measure="drift")
    assert drift.layout.yaxis.title.text == "distance from default"
    assert drift.data[0].customdata[0] == "dro, token 0 'Be'<br>drift 0.500 (against default)"


def test_texts_from_data_are_escaped(rates: pd.DataFrame, queries: pd.DataFrame, tokens: pd.DataFrame) -> None:
    drawn = [
        figures.rate_grid(rates.assign(model=HOSTILE, prompt=HOSTILE)[:1], what=HOSTILE, title=HOSTILE),
        figures.query_grid(queries.assign(row=HOSTILE, text=HOSTILE)[:1], what=HOSTILE, title=HOSTILE),
        figures.token_lines(tokens.assign(prompt=HOSTILE, against=HOSTILE, text=HOSTILE)[:2], title=HOSTILE),
    ]
    for figure in drawn:
        plain = str(figure.to_dict())
        assert "<script>" not in plain
        assert "<b>{bold}" not in plain
        assert "&lt;script&gt;" in plain


def test_tables_without_their_columns_are_refused(rates: pd.DataFrame) -> None:
    for draw in (figures.query_grid, figures.token_lines):
        with pytest.raises(figures.FigureError, match="lacks the columns"):
            draw(rates)
    with pytest.raises(figures.FigureError, match="has no rows"):
        figures.rate_grid(rates[:0])
