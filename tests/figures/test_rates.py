"""Figures of rates: bars, the safety-helpfulness plane, each query under two prompts, and the claims."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.tables import NAN, claims, drawn_points, margins, rate_changes, tradeoffs

from drolab import figures
from drolab.figures import VERDICT_LOOKS

THEMES = ("light", "dark")


def test_rate_bars_group_by_class_with_intervals() -> None:
    table = pd.DataFrame(
        [
            ("none", "harmful", 0.6, 0.5, 0.7),
            ("none", "harmless", 0.1, 0.0, 0.2),
            ("<b>mine</b>", "harmful", 0.9, 0.8, 1.0),
        ],
        columns=["prompt", "group", "value", "low", "high"],
    )
    harmful, harmless = figures.rate_bars(table).data
    assert list(harmful.y) == [0.6, 0.9]
    assert list(harmful.x) == ["none", "&lt;b&gt;mine&lt;/b&gt;"]
    assert np.allclose(harmful.error_y.array, 0.1)
    assert harmful.marker.color != harmless.marker.color
    assert harmful.marker.pattern.shape != harmless.marker.pattern.shape
    assert figures.rate_bars(table).layout.yaxis.range == (0, 1.02)
    of_evidence = table.drop(columns="group").assign(harmful=[True, False, True])
    assert [bar.name for bar in figures.rate_bars(of_evidence).data] == ["harmful", "harmless"]


def test_the_safety_helpfulness_plane_has_intervals_and_a_front_through_its_members() -> None:
    front, *prompts = figures.tradeoff(tradeoffs(), helpful="borderline").data
    assert (list(front.x), list(front.y)) == ([0.7, 0.9], [0.95, 0.6])
    assert {(trace.name, *trace.x, *trace.y) for trace in prompts} == {
        ("none", 0.9, 0.6),
        ("mine", 0.7, 0.95),
        ("bad (dominated)", 0.6, 0.5),
    }
    for trace in prompts:
        np.testing.assert_allclose([*trace.error_x.array, *trace.error_y.array], 0.02)
        np.testing.assert_allclose([*trace.error_x.arrayminus, *trace.error_y.arrayminus], 0.1)
    assert "dominated by none, mine" in prompts[2].customdata[0]
    assert prompts[2].marker.color == figures.template().layout.paper_bgcolor  # an outline
    assert len({trace.marker.symbol for trace in prompts}) == 3
    layout = figures.tradeoff(tradeoffs(), helpful="borderline").layout
    assert "borderline" in layout.xaxis.title.text
    for axis, low, high in (
        (layout.xaxis, 0.5, 0.92),
        (layout.yaxis, 0.4, 0.97),
    ):  # as far as the intervals, and little more
        assert low - 0.15 < axis.range[0] < low
        assert high < axis.range[1] < high + 0.15
    alone = figures.tradeoff(
        tradeoffs().head(1)[["prompt", "compliance", "refusal", "on_front", "dominated_by"]]
    ).layout
    assert alone.xaxis.range[1] - alone.xaxis.range[0] >= 0.1


def test_rate_change_shows_every_query_near_its_two_rates() -> None:
    figure = figures.rate_change(rate_changes(), prompts=("none", "mine"), read="q5", title="changes")
    drawn = {i: (x, y) for trace in drawn_points(figure) for i, x, y in zip(trace.ids, trace.x, trace.y, strict=True)}
    assert set(drawn) == {"q0", "q1", "q2", "q3", "q4", "q5"}  # q6 has no first rate
    assert len({drawn[f"q{i}"] for i in range(5)}) == 5  # at one place, and still five points
    for query, place in drawn.items():
        assert np.hypot(*(place - rate_changes().loc[query, ["rate_a", "rate_b"]].to_numpy(float))) < 0.05
    assert drawn["q0"] == (0, 1)
    assert [(trace.name, trace.marker.symbol) for trace in drawn_points(figure)] == [
        ("harmless", "circle"),
        ("harmful", "x"),
    ]
    ring = figure.data[-1]
    assert (ring.x[0], ring.y[0]) == drawn["q5"] == (0.5, 0.5)
    assert "0.00 → 1.00" in drawn_points(figure)[0].customdata[0]
    assert figure.layout.yaxis.title.text == "refusal rate under mine"
    few = figures.rate_change(rate_changes().tail(2), prompts=("none", "mine"))
    assert few.layout.xaxis.range == figure.layout.xaxis.range
    many = figures.rate_change(pd.concat([rate_changes()] * 2000), prompts=("none", "mine"))
    assert {trace.type for trace in drawn_points(many)} == {"scattergl"}


def test_margins_have_a_facet_per_prompt_and_a_symbol_per_outcome() -> None:
    figure = figures.attack_margins(margins("other"), title="margins")
    drawn = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    assert len(drawn) == 2 * 2 * 3
    assert sum(len(trace.x) for trace in drawn) == len(margins())
    assert {trace.marker.symbol for trace in drawn} == {"x", "circle", "diamond-open"}
    assert {trace.xaxis for trace in drawn} == {"x", "x2"}
    assert drawn[0].customdata[0].endswith("suffix: broken<br>refusal logit 2.00 → -1.00")
    assert [trace.name for trace in figure.data if trace.name] == ["suffix", "other", "broken", "held", "answered"]
    bare = figures.attack_margins(margins().drop(columns="outcome"))
    assert {trace.marker.symbol for trace in bare.data if trace.customdata is not None} == {"circle-open"}


def test_margins_that_cannot_be_drawn_say_so() -> None:
    with pytest.raises(figures.FigureError, match=r"No outcome is called \['won'\]"):
        figures.attack_margins(margins().assign(outcome="won"))
    many = pd.concat([margins().head(1).assign(prompt=f"p{number}") for number in range(7)])
    with pytest.raises(figures.FigureError, match="7 prompts, but only 6 have room"):
        figures.attack_margins(many)
    with pytest.raises(figures.FigureError, match="lacks the columns"):
        figures.attack_margins(margins().drop(columns="parent_logit"))


@pytest.mark.parametrize("theme", THEMES)
def test_a_forest_has_a_row_per_claim_with_interval_null_and_words(theme: str) -> None:
    figure = figures.forest(claims(), theme=theme)
    rows = [trace for trace in figure.data if trace.customdata is not None]
    assert [trace.x[0] for trace in rows[:3]] == [0.98, 0.5, 0.0004]
    np.testing.assert_allclose([rows[0].error_x.array[0], rows[0].error_x.arrayminus[0]], [0.01, 0.02])
    words = [note.text for note in figure.layout.annotations]
    assert words[0] == "Separable<br><b>supported</b>: AUC 0.98 [0.96, 0.99], null [0.42, 0.58], n = 224"
    assert "0.0004 [-0.0010, 0.0020], null [0.0000, 0.0000], n = 1,224" in words[2]
    assert words[3] == "DRO moves<br><b>too little data</b>: no estimate, n = 0"
    bands = [(shape.x0, shape.x1, shape.xref) for shape in figure.layout.shapes]
    assert bands == [(0.42, 0.58, "x"), (0.42, 0.58, "x2"), (0.0, 0.0, "x3")]


def test_rows_of_one_unit_share_their_scale_and_others_do_not() -> None:
    layout = figures.forest(claims()).layout
    assert layout.xaxis.range == layout.xaxis2.range
    assert layout.xaxis.range[0] < 0.4
    assert layout.xaxis.range[1] > 0.99
    assert layout.xaxis3.range[1] < 0.01
    assert layout.xaxis4.visible is False  # no estimate, no axis


def test_a_threshold_has_a_line_in_its_row_and_is_in_the_range() -> None:
    figure = figures.forest(claims().assign(threshold=[0.2, 0.2, 0.0, NAN]))
    lines = [(shape.x0, shape.x1, shape.xref) for shape in figure.layout.shapes if shape.type == "line"]
    assert lines == [(0.2, 0.2, "x"), (0.2, 0.2, "x2"), (0.0, 0.0, "x3")]
    assert figure.layout.xaxis.range[0] < 0.2
    assert "threshold" in {trace.name for trace in figure.data}


@pytest.mark.parametrize("theme", THEMES)
def test_a_verdict_is_told_by_symbol_and_by_colour(theme: str) -> None:
    table = pd.concat([claims().head(1).assign(verdict=name) for name in VERDICT_LOOKS])
    figure = figures.forest(table, theme=theme)
    rows = [trace for trace in figure.data if trace.customdata is not None]
    looks = {(trace.marker.symbol, trace.marker.color) for trace in rows}
    assert len({symbol for symbol, _ in looks}) == len(VERDICT_LOOKS)
    assert len({color for _, color in looks}) == 3  # what is decided has a colour of its own, the rest is grey
    legend = {trace.name for trace in figure.data if trace.showlegend is not False}
    assert legend == {*VERDICT_LOOKS, "range under the null"}


def test_what_a_claim_depends_on_and_why_it_cannot_be_tested_is_said() -> None:
    table = claims().head(2).assign(under=["", "text <judge>"], reason=["", "Only 1 of 96 queries was ever refused."])
    figure = figures.forest(table.assign(verdict=["supported", "cannot be tested here"]))
    first, second = (trace.customdata[0] for trace in figure.data if trace.customdata is not None)
    assert "(" not in first.split("<br>")[0]
    assert second.startswith("Separable as well (text &lt;judge&gt;)<br><b>cannot be tested here</b>")
    assert second.endswith("Only 1 of 96 queries was ever refused.")
    assert "(text &lt;judge&gt;)" in figure.layout.annotations[1].text
    of_file = figures.forest(table.replace("", NAN).assign(verdict="supported"))  # pandas reads an empty text as NaN
    assert next(trace.customdata[0] for trace in of_file.data if trace.customdata is not None) == first


def test_a_forest_of_one_claim_without_a_null_is_drawn() -> None:
    figure = figures.forest(claims().head(1).assign(null_low=NAN, null_high=NAN))
    assert len(figure.layout.shapes) == 0
    assert "null" not in figure.layout.annotations[0].text


def test_an_unknown_verdict_and_an_empty_table_are_refused() -> None:
    with pytest.raises(figures.FigureError, match=r"No verdict is called \['maybe'\]: use \['supported'"):
        figures.forest(claims().assign(verdict="maybe"))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.forest(claims().head(0))
