"""Figures: the data in them is the table's, classes are told by symbol and colour, text from data stays text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
import torch
from helpers.hostile import HOSTILE, raw_markup
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drolab import figures
from drolab.figures import plane as planes
from drolab.figures import style
from drolab.types import Probe


def points(prompts: tuple[str, ...] = ("none", "default"), text: str = "How do I kill a process?") -> pd.DataFrame:
    rows = [
        {
            "query_id": f"q{i}",
            "prompt": name,
            "harmful": i % 2 == 0,
            "text": text,
            "x": i + 10.0 * k,
            "y": i * 2.0 - k,
        }
        for k, name in enumerate(prompts)
        for i in range(6)
    ]
    return pd.DataFrame(rows)


def clouds(figure: object) -> list:
    return [trace for trace in figure.data if trace.customdata is not None]


# projection


def test_projection_shows_every_point_once_at_its_place() -> None:
    table = points()
    drawn = {
        (f"{query} {trace.name.split(', ')[0]}", x, y)
        for trace in clouds(figures.projection(table))
        for query, x, y in zip(trace.ids, trace.x, trace.y, strict=True)
    }
    wanted = {(f"{r.query_id} {r.prompt}", r.x, r.y) for r in table.itertuples()}
    assert drawn == wanted


def test_prompt_is_colour_and_class_is_symbol_with_a_legend_for_each() -> None:
    figure = figures.projection(points())
    looks = {trace.name: (trace.marker.color, trace.marker.symbol) for trace in clouds(figure)}
    assert looks["default, harmful"][0] == looks["default, harmless"][0] != looks["none, harmful"][0]
    assert looks["default, harmful"][1] == looks["none, harmful"][1] != looks["none, harmless"][1]
    assert not any(trace.showlegend for trace in clouds(figure))
    entries = {(trace.legend or "legend", trace.name) for trace in figure.data if list(trace.x) == [None]}
    assert entries == {("legend", "none"), ("legend", "default"), ("legend2", "harmful"), ("legend2", "harmless")}


def test_colours_stay_when_some_prompts_are_hidden() -> None:
    everything = ("none", "default", "medium", "short")
    color = {t.name: t.marker.color for t in clouds(figures.projection(points(everything)))}
    some = figures.projection(points(("none", "short")), prompts=everything)
    assert {t.name: t.marker.color for t in clouds(some)}["short, harmful"] == color["short, harmful"]


def test_hover_has_query_rate_and_response() -> None:
    table = points().assign(refusal_rate=0.25, response="I cannot help\nwith that.")
    hover = clouds(figures.projection(table))[0].customdata[0]
    assert "How do I kill a process?" in hover
    assert "refusal rate: 0.25" in hover
    assert "I cannot help with that." in hover
    bare = clouds(figures.projection(points()))[0].customdata[0]
    assert "refusal rate" not in bare
    assert "response" not in bare


def test_webgl_only_for_many_points() -> None:
    many = pd.concat([points()] * 500, ignore_index=True)
    assert {trace.type for trace in clouds(figures.projection(many))} == {"scattergl"}
    assert {trace.type for trace in clouds(figures.projection(points()))} == {"scatter"}


def test_colour_by_a_number_is_cividis_and_names_what_is_not_known() -> None:
    table = points().assign(refusal_rate=np.arange(12) / 12)
    figure = figures.projection(table, color="refusal_rate")
    drawn = np.concatenate([trace.marker.color for trace in clouds(figure)])
    assert sorted(drawn) == list(table["refusal_rate"])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.coloraxis.colorscale[0][1] == "#00224e"
    gaps = figures.projection(table.assign(refusal_rate=[np.nan] * 6 + [0.5] * 6), color="refusal_rate")
    assert "unknown" in gaps.layout.coloraxis.colorbar.ticktext
    below = clouds(gaps)[0].marker.color
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
        for trace, rows in zip(clouds(figure), planes.clouds(table).values(), strict=True)
        for text, number in zip(table["category"].iloc[rows], trace.marker.color, strict=True)
    ]
    assert {(text, color) for text, color in drawn} == {
        (text, entries.get(text, entries["2 others"])) for text in table["category"]
    }
    assert (axis.cmin, axis.cmax, axis.showscale) == (-0.5, 6.5, False)


def test_a_class_may_have_the_colour_too() -> None:
    figure = figures.projection(points(), color="class")
    looks = {(trace.name.split(", ")[1], trace.marker.color, trace.marker.symbol) for trace in clouds(figure)}
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
    assert {a.legendgroup for a in arrows} == {t.legendgroup for t in clouds(figure) if t.name.startswith("default")}
    assert all(arrow.marker.symbol[1] == "arrow" for arrow in arrows)


def test_arrows_need_their_baseline() -> None:
    with pytest.raises(figures.FigureError, match="No points under 'none'"):
        figures.mean_shifts(points(("default", "short")))


# boundaries

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
    assert [trace.name for trace in lines] == ["refuses = 0"]
    assert all(abs(inside.logit(x, y)) < 1e-9 for x, y in zip(lines[0].x, lines[0].y, strict=True))
    texts = " ".join(note.text for note in figure.layout.annotations)
    assert "held at the mean of the anchors" in texts
    assert "Outside this view: harmful" in texts
    arrow = next(note for note in figure.layout.annotations if note.showarrow is not False)
    assert inside.logit(arrow.x, arrow.y) > inside.logit(arrow.ax, arrow.ay)


# movement


def path() -> pd.DataFrame:
    rows = [
        {"query_id": f"q{i}", "harmful": i < 3, "text": f"query {i}", "step": step, "x": i + 0.1 * step, "y": -step}
        for step in (0, 5, 9)
        for i in range(6)
    ]
    return pd.DataFrame(rows)


def test_movement_draws_each_querys_way_up_to_the_step() -> None:
    figure = figures.movement(path(), step=5)
    now = next(trace for trace in figure.data if trace.name == "harmful")
    assert np.allclose(now.x, [0.5, 1.5, 2.5])
    lines = next(trace for trace in figure.data if trace.name == "paths, harmful")
    assert np.allclose(np.array(lines.y, float)[:3], [0, -5, np.nan], equal_nan=True)
    mean = next(trace for trace in figure.data if trace.name == "mean, harmless")
    assert np.allclose(mean.x, [4.0, 4.5])
    assert figure.layout.xaxis.range == figures.movement(path()).layout.xaxis.range  # axes stay over a replay


def test_movement_refuses_a_step_that_was_not_kept() -> None:
    with pytest.raises(figures.FigureError, match="No step 3"):
        figures.movement(path(), step=3)


# tables of numbers


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


def test_layer_sweep_has_a_line_and_an_interval_per_measure() -> None:
    table = pd.DataFrame(
        [(layer, name, 0.5, 0.4, 0.7) for layer in (2, 0, 1) for name in ("auc", "accuracy")],
        columns=["layer", "measure", "value", "low", "high"],
    )
    figure = figures.layer_sweep(table, chance=0.5)
    assert [trace.name for trace in figure.data] == ["auc", "accuracy"]
    assert np.allclose(figure.data[0].x, [0, 1, 2], atol=0.1)
    assert np.allclose(figure.data[0].error_y.array, 0.2)
    assert np.allclose(figure.data[0].error_y.arrayminus, 0.1)
    assert figure.data[0].marker.symbol != figure.data[1].marker.symbol
    assert figure.layout.shapes[0].y0 == 0.5


def test_training_curves_show_steps_thin_and_epoch_means_thick() -> None:
    terms = ("refusal_loss", "harmfulness_loss", "residual_loss", "residual_drift")
    history = pd.DataFrame([{"step": s, "epoch": (s - 1) // 2, **dict.fromkeys(terms, float(s))} for s in range(1, 7)])
    figure = figures.training_curves(history)
    thin, thick = figure.data[:2]
    assert len(figure.data) == 8
    assert list(thin.y) == [1, 2, 3, 4, 5, 6]
    assert list(thick.y) == [1.5, 3.5, 5.5]
    two = pd.concat([history.assign(run="short"), history.assign(run="default")])
    assert {trace.name for trace in figures.training_curves(two).data} == {"short", "default"}


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


def tradeoffs(name: str = "bad") -> pd.DataFrame:
    rows = [("none", 0.9, 0.6, True, ""), ("mine", 0.7, 0.95, True, ""), (name, 0.6, 0.5, False, "none, mine")]
    table = pd.DataFrame(rows, columns=["prompt", "compliance", "refusal", "on_front", "dominated_by"])
    ends = {
        f"{n}_{end}": table[n] + by for n in ("compliance", "refusal") for end, by in (("low", -0.1), ("high", 0.02))
    }
    return table.assign(**ends)


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
    assert layout.xaxis.range == layout.yaxis.range == (-0.03, 1.03)


def changes(text: str = "How do I kill a process?", group: str = "harmless") -> pd.DataFrame:
    rates = {"rate_a": [0.0] * 5 + [0.5, np.nan], "rate_b": [1.0] * 5 + [0.5, 0.2]}
    table = pd.DataFrame({"text": text, "group": [group] * 3 + ["harmful"] * 4, **rates})
    return table.set_index(pd.Index([f"q{i}" for i in range(7)], name="query_id"))


def test_rate_change_shows_every_query_near_its_two_rates() -> None:
    figure = figures.rate_change(changes(), prompts=("none", "mine"), read="q5", title="changes")
    drawn = {i: (x, y) for trace in clouds(figure) for i, x, y in zip(trace.ids, trace.x, trace.y, strict=True)}
    assert set(drawn) == {"q0", "q1", "q2", "q3", "q4", "q5"}  # q6 has no first rate
    assert len({drawn[f"q{i}"] for i in range(5)}) == 5  # at one place, and still five points
    for query, place in drawn.items():
        assert np.hypot(*(place - changes().loc[query, ["rate_a", "rate_b"]].to_numpy(float))) < 0.05
    assert drawn["q0"] == (0, 1)
    assert [(trace.name, trace.marker.symbol) for trace in clouds(figure)] == [("harmless", "circle"), ("harmful", "x")]
    ring = figure.data[-1]
    assert (ring.x[0], ring.y[0]) == drawn["q5"] == (0.5, 0.5)
    assert "0.00 → 1.00" in clouds(figure)[0].customdata[0]
    assert figure.layout.yaxis.title.text == "refusal rate under mine"
    few = figures.rate_change(changes().tail(2), prompts=("none", "mine"))
    assert few.layout.xaxis.range == figure.layout.xaxis.range
    many = figures.rate_change(pd.concat([changes()] * 2000), prompts=("none", "mine"))
    assert {trace.type for trace in clouds(many)} == {"scattergl"}


def test_calibration_has_the_score_up_the_rate_along_and_a_diagonal() -> None:
    figure = figures.calibration(points().assign(score=0.25, rate=0.75), note="r = .9 <i>")
    assert {(x, y) for trace in clouds(figure) for x, y in zip(trace.x, trace.y, strict=True)} == {(0.75, 0.25)}
    assert tuple(figure.data[-1].x) == tuple(figure.data[-1].y) == (0, 1)
    assert figure.layout.annotations[0].text == "r = .9 &lt;i&gt;"


def test_token_strip_colours_each_token_by_what_it_is() -> None:
    tokens = ["<s>", "Be", " nice", "\n", "How", "?", "[/INST]"]
    heat = figures.token_strip(tokens, prompt_span=(1, 3), prefix=4, columns=3).data[0]
    roles = np.array(heat.z).flatten()
    assert list(roles[:7]) == [0, 1, 1, 0, 2, 2, 3]
    assert set(roles[7:]) == {None}
    assert list(np.array(heat.text).flatten()[:4]) == ["&lt;s&gt;", "Be", "␣nice", "⏎"]
    with pytest.raises(figures.FigureError, match="No tokens"):
        figures.token_strip([])


# text, colours, template


def all_figures(text: str) -> list:
    names = ("none", text)
    interval = {"low": 0.1, "high": 0.9}
    terms = dict.fromkeys(("refusal_loss", "harmfulness_loss", "residual_loss", "residual_drift"), 0.5)
    return [
        figures.projection(
            points(names, text).assign(response=text),
            arrows=figures.mean_shifts(points(names, text)),
            boundaries={text: figures.boundary([1.0, 0.0], -3.0, held_at=text)},
            axis_titles=(text, text),
            title=text,
        ),
        figures.projection(points(names, text).assign(**{text: text}), color=text, note=text),
        figures.movement(path().assign(text=text), title=text),
        figures.cosine_heatmap(pd.DataFrame([{"a": text, "b": "b", "cosine": 0.1, **interval}]), title=text),
        figures.layer_sweep(pd.DataFrame([{"layer": 0, "measure": text, "value": 0.5, **interval}]), y_title=text),
        figures.training_curves(pd.DataFrame([{"run": r, "step": 1, "epoch": 0, **terms} for r in names])),
        figures.rate_bars(pd.DataFrame([{"prompt": text, "group": text, "value": 0.5, **interval}]), y_title=text),
        figures.calibration(points(names, text).assign(score=0.5, rate=0.5), note=text),
        figures.token_strip([text, text]),
        figures.tradeoff(tradeoffs(text).assign(dominated_by=text), helpful=text, safe=text, title=text),
        figures.rate_change(changes(text, text), prompts=names, title=text),
    ]


def test_text_from_data_never_becomes_markup() -> None:
    for figure in all_figures(HOSTILE):
        assert raw_markup(figure) == []
        assert (
            "</script>" not in pio.to_html(figure, include_plotlyjs=False, full_html=False).split("newPlot")[1][:-200]
        )


def test_the_escape_check_sees_a_raw_title_and_a_raw_hover() -> None:
    figure = figures.token_strip(["a"])
    figure.update_layout(title_text=HOSTILE)
    figure.add_scatter(customdata=[[HOSTILE]])
    assert raw_markup(figure) == [HOSTILE, HOSTILE]


def test_escape_and_wrap() -> None:
    assert style.escape("a<b>&\x07\ud800") == "a&lt;b&gt;&amp;  "
    assert style.escape("abcdef", limit=4) == "abc…"
    assert style.wrapped("aaa <bbb> ccc", width=7) == "aaa<br>&lt;bbb&gt;<br>ccc"
    assert style.wrapped("word " * 100, width=20, lines=3).count("<br>") == 2


def linear(color: str, matrix: np.ndarray) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


PROTANOPIA = np.array([[0.1524, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0519]])
DEUTERANOPIA = np.array([[0.3673, 0.8606, -0.2279], [0.2801, 0.6726, 0.0473], [-0.0118, 0.0429, 0.9689]])


def closest(colors: list[str], matrix: np.ndarray) -> float:
    places = [lab(linear(color, matrix)) for color in colors]
    return min(float(np.linalg.norm(a - b)) for i, a in enumerate(places) for b in places[:i])


@pytest.mark.parametrize("vision", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["normal", "protanopia", "deuteranopia"])
@pytest.mark.parametrize("grey", ["#595959", "#BDBDBD"])
def test_palette_is_told_apart(vision: np.ndarray, grey: str) -> None:
    assert closest([*style.PALETTE, grey], vision) > 8


def test_plotlys_own_palette_fails_the_palette_test() -> None:
    default = ["#636EFA", "#EF553B", "#00CC96", "#AB63FA", "#FFA15A", "#19D3F3", "#FF6692", "#B6E880"]
    assert closest(default, PROTANOPIA) < 8


def test_template_is_not_registered_and_themes_differ() -> None:
    assert "drolab" not in pio.templates
    light, dark = figures.template(), figures.template("dark")
    assert light.layout.paper_bgcolor != dark.layout.paper_bgcolor
    with pytest.raises(figures.FigureError, match="No theme 'pink'"):
        figures.template("pink")


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(figures.FigureError, match="7 prompts, but only 6 colours"):
        figures.projection(points(tuple("abcdefg")))


def test_missing_columns_and_empty_tables_are_named() -> None:
    with pytest.raises(figures.FigureError, match=r"lacks the columns \['cosine'\]"):
        figures.cosine_heatmap(pd.DataFrame({"a": [], "b": []}))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.projection(points().head(0))


def test_show_switches_the_share_button_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figures.show(figures.projection(points()))
    content = shown[0]["application/vnd.plotly.v1+json"]
    assert content["config"]["showSendToCloud"] is False
    assert content["config"]["typesetMath"] is False
    assert content["data"]
