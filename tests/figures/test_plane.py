"""Projections and movement: every point at its place, classes by symbol, boundaries where the probe is zero."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tables import drawn_points, points, steps
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drolab import figures
from drolab.figures import plane as planes
from drolab.figures import style
from drolab.types import Probe


def test_projection_shows_every_point_once_at_its_place() -> None:
    table = points()
    drawn = {
        (f"{query} {trace.name.split(', ')[0]}", x, y)
        for trace in drawn_points(figures.projection(table))
        for query, x, y in zip(trace.ids, trace.x, trace.y, strict=True)
    }
    wanted = {(f"{r.query_id} {r.prompt}", r.x, r.y) for r in table.itertuples()}
    assert drawn == wanted


def test_prompt_is_colour_and_class_is_symbol_with_a_legend_for_each() -> None:
    figure = figures.projection(points())
    looks = {trace.name: (trace.marker.color, trace.marker.symbol) for trace in drawn_points(figure)}
    assert looks["default, harmful"][0] == looks["default, harmless"][0] != looks["none, harmful"][0]
    assert looks["default, harmful"][1] == looks["none, harmful"][1] != looks["none, harmless"][1]
    assert not any(trace.showlegend for trace in drawn_points(figure))
    entries = {(trace.legend or "legend", trace.name) for trace in figure.data if list(trace.x) == [None]}
    assert entries == {("legend", "none"), ("legend", "default"), ("legend2", "harmful"), ("legend2", "harmless")}


def test_colours_stay_when_some_prompts_are_hidden() -> None:
    everything = ("none", "default", "medium", "short")
    color = {t.name: t.marker.color for t in drawn_points(figures.projection(points(everything)))}
    some = figures.projection(points(("none", "short")), prompts=everything)
    assert {t.name: t.marker.color for t in drawn_points(some)}["short, harmful"] == color["short, harmful"]


def test_hover_has_query_rate_and_response() -> None:
    table = points().assign(refusal_rate=0.25, response="I cannot help\nwith that.")
    hover = drawn_points(figures.projection(table))[0].customdata[0]
    assert "How do I kill a process?" in hover
    assert "refusal rate: 0.25" in hover
    assert "I cannot help with that." in hover
    bare = drawn_points(figures.projection(points()))[0].customdata[0]
    assert "refusal rate" not in bare
    assert "response" not in bare


def test_webgl_only_for_many_points() -> None:
    many = pd.concat([points()] * 500, ignore_index=True)
    assert {trace.type for trace in drawn_points(figures.projection(many))} == {"scattergl"}
    assert {trace.type for trace in drawn_points(figures.projection(points()))} == {"scatter"}


def test_colour_by_a_number_is_cividis_and_names_what_is_not_known() -> None:
    table = points().assign(refusal_rate=np.arange(12) / 12)
    figure = figures.projection(table, color="refusal_rate")
    drawn = np.concatenate([trace.marker.color for trace in drawn_points(figure)])
    assert sorted(drawn) == list(table["refusal_rate"])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.coloraxis.colorscale[0][1] == "#00224e"
    gaps = figures.projection(table.assign(refusal_rate=[np.nan] * 6 + [0.5] * 6), color="refusal_rate")
    assert "unknown" in gaps.layout.coloraxis.colorbar.ticktext
    below = drawn_points(gaps)[0].marker.color
    assert (below == gaps.layout.coloraxis.cmin).all()
    assert gaps.layout.coloraxis.colorscale[1][1] == style.THEMES["light"]["grey"]


def test_colour_by_another_column_gives_the_frequent_values_colours_and_the_rest_one_grey() -> None:
    table = points(("none",)).sample(40, replace=True, random_state=0).reset_index(drop=True)
    table["category"] = [f"c{min(i, 7)}" for i in range(8)] * 5
    table.loc[:3, "category"] = "c7"  # the most frequent
    figure = figures.projection(table, color="category")
    entries = {t.name: t.marker.color for t in figure.data if list(t.x) == [None] and t.visible is not False}
    assert list(entries)[2:] == ["c7", "c4", "c5", "c6", "c0", "c1", "2 others"]
    scale, axis = figure.layout.coloraxis.colorscale, figure.layout.coloraxis
    drawn = [
        (text, scale[2 * int(number)][1])
        for trace, rows in zip(drawn_points(figure), planes.clouds(table).values(), strict=True)
        for text, number in zip(table["category"].iloc[rows], trace.marker.color, strict=True)
    ]
    assert {(text, color) for text, color in drawn} == {
        (text, entries.get(text, entries["2 others"])) for text in table["category"]
    }
    assert (axis.cmin, axis.cmax, axis.showscale) == (-0.5, 6.5, False)


def test_a_class_may_have_the_colour_too() -> None:
    figure = figures.projection(points(), color="class")
    looks = {(trace.name.split(", ")[1], trace.marker.color, trace.marker.symbol) for trace in drawn_points(figure)}
    assert looks == {(name, style.CLASS_COLORS[name], style.CLASS_SYMBOLS[name]) for name in ("harmful", "harmless")}


def test_colour_needs_its_column() -> None:
    with pytest.raises(figures.FigureError, match=r"lacks the columns \['mood'\]"):
        figures.projection(points(), color="mood")


def test_hidden_prompts_keep_their_traces_and_the_axes() -> None:
    everything = planes.projection_content(points(), arrows=figures.mean_shifts(points()))
    some = planes.projection_content(points(), arrows=figures.mean_shifts(points()), shown=["none"])
    named = [trace["name"] for trace in some["data"]]
    assert named == [trace["name"] for trace in everything["data"]]
    assert named[:4] == ["none, harmful", "none, harmless", "default, harmful", "default, harmless"]
    unseen = {trace["name"] for trace in some["data"] if trace.get("visible") is False}
    assert unseen == {name for name in named if "default" in name}
    assert some["layout"]["xaxis"] == everything["layout"]["xaxis"]


def test_selected_points_stand_out() -> None:
    table = points()
    content = planes.projection_content(table, selected=table["query_id"].isin(["q0", "q3"]).to_numpy())
    assert [list(trace["selectedpoints"]) for trace in content["data"][:4]] == [[0], [1], [0], [1]]
    assert "selectedpoints" not in planes.projection_content(table)["data"][0]


def test_fixed_ranges() -> None:
    figure = figures.projection(points(), ranges=((-1, 1), (-2, 2)))
    assert figure.layout.xaxis.range == (-1, 1)
    assert figure.layout.yaxis.range == (-2, 2)


def test_mean_shifts_go_from_the_baseline_mean_to_the_prompts() -> None:
    shift = figures.mean_shifts(points(("none", "default", "short")))
    assert list(shift.columns) == ["prompt", "harmful", "x", "y", "to_x", "to_y"]
    assert set(shift["prompt"]) == {"default", "short"}
    assert np.allclose(shift["to_x"] - shift["x"], [10, 10, 20, 20])
    assert np.allclose(shift["to_y"] - shift["y"], [-1, -1, -2, -2])


def test_arrows_are_drawn_and_hide_with_their_prompt() -> None:
    table = points()
    shift = figures.mean_shifts(table)
    figure = figures.projection(table, arrows=shift)
    arrows = [trace for trace in figure.data if trace.name.startswith("shift: default")]
    assert {(a.x[1], a.y[1]) for a in arrows} == set(zip(shift["to_x"], shift["to_y"], strict=True))
    assert {a.legendgroup for a in arrows} == {
        t.legendgroup for t in drawn_points(figure) if t.name.startswith("default")
    }
    assert all(arrow.marker.symbol[1] == "arrow" for arrow in arrows)


def test_arrows_need_their_baseline() -> None:
    with pytest.raises(figures.FigureError, match="No points under 'none'"):
        figures.mean_shifts(points(("default", "short")))


finite = st.floats(-5, 5, allow_nan=False)


@given(
    coef=arrays(float, 4, elements=finite),
    intercept=finite,
    held=arrays(float, 4, elements=finite),
    plane=st.permutations(range(4)).map(lambda p: (p[0], p[1])),
)
def test_on_the_boundary_the_full_probes_logit_is_zero(coef, intercept, held, plane) -> None:  # type: ignore[no-untyped-def]
    if np.hypot(*coef[list(plane)]) < 1e-3:
        return
    line = figures.boundary(coef, intercept, plane=plane, held=held, held_at="a point")
    ends = line.segment((-1e5, 1e5), (-1e5, 1e5))
    if ends is None:
        return
    for x, y in ends:
        full = held.copy()
        full[list(plane)] = x, y
        scale = 1 + np.abs(coef * full).sum() + abs(intercept)
        assert abs(coef @ full + intercept) < 1e-6 * scale
        assert max(abs(x), abs(y)) <= 1e5 * (1 + 1e-9)


def test_where_the_other_components_are_held_moves_the_line() -> None:
    coef = [1.0, 1.0, 2.0]
    at_mean = figures.boundary(coef, 0.0)
    elsewhere = figures.boundary(coef, 0.0, held=[9.0, 9.0, 1.5], held_at="the mean of the shown points")
    assert at_mean.logit(1.0, -1.0) == 0
    assert elsewhere.logit(1.0, -1.0) == 3.0  # only the component outside the plane counts
    assert at_mean.held == "the mean of the anchors"


def test_boundaries_of_probes_go_by_their_positive_class() -> None:
    probe = Probe(coef=torch.tensor([1.0, 2.0, 0.0]), intercept=-1.0, positive="refuses")
    lines = figures.probe_boundaries(probe, plane=(1, 0))
    assert lines["refuses"].logit(0.5, 0.0) == 0


def test_a_line_outside_the_box_has_no_segment() -> None:
    line = figures.boundary([1.0, 0.0], -10.0)
    assert line.segment((0, 5), (0, 5)) is None
    assert np.allclose(sorted(line.segment((0, 20), (0, 5)).tolist()), [[10, 0], [10, 5]])


def test_a_boundary_is_refused_when_it_cannot_be_a_line() -> None:
    with pytest.raises(figures.FigureError, match="does not depend on components"):
        figures.boundary([0.0, 0.0, 1.0], 1.0)
    with pytest.raises(figures.FigureError, match="two different components below 3"):
        figures.boundary([1.0, 1.0, 1.0], 1.0, plane=(0, 3))
    with pytest.raises(figures.FigureError, match=r"held has shape \[2\]"):
        figures.boundary([1.0, 1.0, 1.0], 1.0, held=[0.0, 0.0])


def test_projection_draws_boundaries_and_says_how_they_are_held() -> None:
    inside = figures.boundary([1.0, 0.1, 3.0], -5.0)
    outside = figures.boundary([1.0, 0.0, 3.0], -500.0)
    figure = figures.projection(points(), boundaries={"refuses": inside, "harmful": outside})
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.visible]
    assert [trace.name for trace in lines] == ["refusal boundary"]
    assert all(abs(inside.logit(x, y)) < 1e-9 for x, y in zip(lines[0].x, lines[0].y, strict=True))
    texts = figure.layout.xaxis.title.text
    assert "held at the mean of the anchors" in texts
    assert "Outside this view: harm boundary" in texts
    arrow = next(note for note in figure.layout.annotations if note.showarrow is not False)
    assert inside.logit(arrow.x, arrow.y) > inside.logit(arrow.ax, arrow.ay)


def test_movement_draws_each_querys_way_up_to_the_step() -> None:
    figure = figures.movement(steps(), step=5)
    now = next(trace for trace in figure.data if trace.name == "harmful")
    assert np.allclose(now.x, [0.5, 1.5, 2.5])
    lines = next(trace for trace in figure.data if trace.name == "paths, harmful")
    assert np.allclose(np.array(lines.y, float)[:3], [0, -5, np.nan], equal_nan=True)
    mean = next(trace for trace in figure.data if trace.name == "mean, harmless")
    assert np.allclose(mean.x, [4.0, 4.5])
    assert figure.layout.xaxis.range == figures.movement(steps()).layout.xaxis.range  # axes stay over a replay


def test_movement_refuses_a_step_that_was_not_kept() -> None:
    with pytest.raises(figures.FigureError, match="No step 3"):
        figures.movement(steps(), step=3)
