"""The projection panel, without a browser: its controls answer questions about planted states with known answers."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from helpers.planted import as_states, axis, planted_states

from drolab import panels, tables
from drolab.errors import StatesError
from drolab.evidence import rate_interval
from drolab.figures import THEMES
from drolab.panels import ProjectionPanel
from drolab.panels.projection import view
from drolab.panels.projection.view import FrozenSpaces, point_table, refusal_changes, sample_queries
from drolab.types import HiddenStates

HOSTILE = '<script>alert("x")</script> %{x} \x00‮ <b>{bold}</b> & ' + "x" * 100_000
ANCHORS = ["none", "default"]
WAIT = 120


@pytest.fixture(scope="module")
def states() -> HiddenStates:
    """30 harmful and 30 harmless queries under the anchors and a later prompt; two layers, the first mirrored."""
    last = planted_states({"default": 2 * axis(0), "mine": 4 * axis(1)}, noise=0.05)
    return HiddenStates(
        values=torch.cat([-last.values, last.values], dim=1),
        index=last.index,
        layers=(1, 2),
        num_hidden_layers=2,
        model_fingerprint="planted",
    )


@pytest.fixture(scope="module")
def scores(states: HiddenStates) -> pd.DataFrame:
    """Harmful queries are refused half the time; `mine` makes the model refuse the harmless q40, q41 and q42 too."""
    rows = states.index[["query_id", "prompt", "harmful"]]
    rate = np.where(rows["harmful"], 0.5, 0.05)
    over = rows["prompt"].eq("mine") & rows["query_id"].isin(["q40", "q41", "q42"])
    rate = np.where(over, rows["query_id"].map({"q40": 0.35, "q41": 0.95, "q42": 0.6}), rate)
    return rows.assign(refusal_rate=rate).set_index(["query_id", "prompt"])


@pytest.fixture(scope="module")
def replies(states: HiddenStates) -> pd.DataFrame:
    rows = states.index[["query_id", "prompt"]].loc[states.index.index.repeat(2)].reset_index(drop=True)
    sample = np.tile([0, 1], len(states))
    return rows.assign(
        sample=sample, response=[f"reply {i} to {q}" for i, q in zip(sample, rows["query_id"], strict=True)]
    )


@pytest.fixture
def panel(states: HiddenStates, scores: pd.DataFrame, replies: pd.DataFrame) -> ProjectionPanel:
    return panels.projection(states, anchors=ANCHORS, scores=scores, replies=replies)


def clouds(picture: go.Figure) -> list[Any]:
    return [trace for trace in picture.data if trace.ids is not None]


def shapes(panel: ProjectionPanel) -> tuple[Any, ...]:
    return panel.picture.layout.shapes


def touch(panel: ProjectionPanel, event: str, *points: tuple[int, int]) -> None:
    """What the browser sends when points, as (trace, point), are hovered or clicked."""
    panel.picture.receive({"event": event, "points": points})


def lasso(panel: ProjectionPanel, left: float, right: float, low: float, high: float) -> None:
    """What it sends when an outline was drawn."""
    path = f"M{left},{low}L{right},{low}L{right},{high}L{left},{high}Z"
    outline = {"xref": "x", "yref": "y", "type": "path", "path": path}
    panel.picture.receive({"event": "edit", "edits": [(["layout", "selections"], [outline])]})


# what is shown


def test_every_state_is_drawn_at_its_place_in_the_space_of_the_anchors(
    panel: ProjectionPanel, states: HiddenStates
) -> None:
    space = panel.view.spaces.placed(2).space
    xy = space.transform(states.matrix(2)).numpy()
    wanted = {(q, p): tuple(at) for q, p, at in zip(states.index.query_id, states.index.prompt, xy[:, :2], strict=True)}
    drawn = {
        (query, trace.name.split(", ")[0]): (x, y)
        for trace in clouds(panel.picture)
        for query, x, y in zip(trace.ids, trace.x, trace.y, strict=True)
    }
    assert drawn.keys() == wanted.keys()
    assert all(np.allclose(drawn[name], wanted[name]) for name in wanted)


def test_a_later_prompt_does_not_bend_the_space(states: HiddenStates) -> None:
    without = panels.projection(states.select(prompt=ANCHORS), anchors=ANCHORS)
    later = panels.projection(states, anchors=ANCHORS)
    refitted = panels.projection(states, anchors=[*ANCHORS, "mine"])
    component = [each.view.spaces.placed(2).space.components for each in (without, later, refitted)]
    assert torch.equal(component[0], component[1])
    assert not torch.allclose(component[0], component[2], atol=1e-3)  # the control: it would bend


def test_toggling_prompts_and_colours_moves_no_axis_and_no_point(panel: ProjectionPanel) -> None:
    def places() -> list[Any]:
        ranges = [panel.picture.layout.xaxis.range, panel.picture.layout.yaxis.range]
        return [*ranges, *[(list(t.x), list(t.y)) for t in clouds(panel.picture)]]

    before = places()
    panel.controls["prompts"].value = ("none", "mine")
    assert [t.visible for t in clouds(panel.picture)] == [True, True, False, False, True, True]
    for color in ("class", "refusal_rate", "prompt"):
        panel.controls["color"].value = color
    panel.controls["arrows"].value = False
    assert places() == before
    panel.controls["x"].value = 3
    assert places() != before


def test_only_differences_are_sent_and_zoom_stays(panel: ProjectionPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    panel.picture.relayout({"xaxis.range": [0, 1]})  # the user zooms
    monkeypatch.setattr(panel.picture, "send", lambda message, buffers: sent.append(message))
    panel.controls["prompts"].value = ("none",)
    assert {path[-1] for message in sent for path, *_ in message["changes"]} == {"visible"}
    assert tuple(panel.picture.layout.xaxis.range) == (0, 1)
    panel.controls["x"].value = 3
    assert tuple(panel.picture.layout.xaxis.range) != (0, 1)


def test_equal_axes_trade_places(panel: ProjectionPanel) -> None:
    panel.controls["x"].value = 2
    assert (panel.controls["x"].value, panel.controls["y"].value) == (2, 1)
    assert panel.picture.layout.xaxis.title.text.startswith("component 2 (")
    panel.controls["y"].value = 4
    assert (panel.controls["x"].value, panel.controls["y"].value) == (2, 4)


def test_another_layer_shows_other_points_in_its_own_space(panel: ProjectionPanel, states: HiddenStates) -> None:
    panel.controls["layer"].value = 1
    space = panel.view.spaces.placed(1).space
    x = space.transform(states.select(prompt="none", harmful=True).matrix(1))[:, 0]
    assert np.allclose(clouds(panel.picture)[0].x, x)
    assert panel.view.spaces.placed(1) is panel.view.spaces.placed(1)  # fitted once


def test_class_is_told_by_symbol_whatever_the_colour_means(panel: ProjectionPanel) -> None:
    for color in ("prompt", "class", "refusal_rate"):
        panel.controls["color"].value = color
        symbols = {t.name.split(", ")[1]: t.marker.symbol for t in clouds(panel.picture)}
        assert symbols == {"harmful": "x", "harmless": "circle"}
    shown = np.concatenate([t.marker.color for t in sorted_clouds(panel, "mine")])
    assert set(np.round(shown.astype(float), 2)) == {0.05, 0.35, 0.5, 0.6, 0.95}
    assert panel.picture.layout.coloraxis.cmax == 1


def sorted_clouds(panel: ProjectionPanel, prompt: str) -> list[Any]:
    return [trace for trace in clouds(panel.picture) if trace.name.startswith(f"{prompt},")]


def test_boundaries_are_the_probes_of_the_anchors(panel: ProjectionPanel) -> None:
    names = {trace.name for trace in panel.picture.data}
    assert {"harm boundary", "refusal boundary"} <= names
    panel.controls["boundaries"].value = False
    assert not {"harm boundary", "refusal boundary"} & {trace.name for trace in panel.picture.data}


def test_a_boundary_that_cannot_be_fitted_is_named_and_the_rest_is_drawn(states: HiddenStates) -> None:
    index = pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])
    never = pd.DataFrame({"refusal_rate": 0.0}, index=index)
    panel = panels.projection(states, anchors=ANCHORS, scores=never)
    assert "harm boundary" in {trace.name for trace in panel.picture.data}
    words = panel.picture.layout.xaxis.title.text.replace("<br>", " ")
    assert "No boundary of 'refuses': The target of the probe 'refuses' is 0 for all" in words


def test_a_boundary_that_says_nothing_is_drawn_and_named(states: HiddenStates) -> None:
    index = pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])
    noise = pd.DataFrame({"refusal_rate": np.random.default_rng(0).binomial(10, 0.1, len(index)) / 10}, index=index)
    panel = panels.projection(states, anchors=ANCHORS, scores=noise)
    assert "refusal boundary" in {trace.name for trace in panel.picture.data}
    words = panel.picture.layout.xaxis.title.text.replace("<br>", " ")
    assert "A readout of 'refuses' cannot be told from chance" in words


def test_hover_shows_rate_and_first_response(panel: ProjectionPanel) -> None:
    (text,) = [t for c in sorted_clouds(panel, "mine") for i, t in zip(c.ids, c.customdata, strict=True) if i == "q41"]
    assert "refusal rate: 0.95" in text
    assert "reply 0 to q41" in text


def test_dark_theme(panel: ProjectionPanel) -> None:
    panel.controls["theme"].value = "dark"
    assert panel.picture.layout.template.layout.paper_bgcolor == THEMES["dark"]["paper"]
    assert panel.message.value == ""


# the mouse


def test_hovering_draws_the_query_under_every_prompt_that_is_shown(panel: ProjectionPanel) -> None:
    touch(panel, "hover", (0, 3))
    rows = panel.result().query("query_id == 'q3'").set_index("prompt")
    rings = {(shape.xanchor, shape.yanchor) for shape in shapes(panel) if shape.type == "circle"}
    assert rings == set(zip(rows["x"], rows["y"], strict=True))
    lines = {shape.label.text: shape for shape in shapes(panel) if shape.type == "line"}
    assert set(lines) == {"default", "mine"}
    assert (lines["mine"].x0, lines["mine"].x1) == (rows["x"]["none"], rows["x"]["mine"])
    touch(panel, "unhover", (0, 3))
    assert shapes(panel) == ()
    panel.controls["prompts"].value = ("none", "mine")
    touch(panel, "hover", (0, 3))
    assert len(shapes(panel)) == 3
    panel.controls["arrows"].value = False  # what is redrawn has no path
    assert shapes(panel) == ()


def test_a_lasso_selects_what_is_inside_and_shown(panel: ProjectionPanel) -> None:
    panel.controls["prompts"].value = ("none", "mine")
    shown = panel.result()
    left, low = shown["x"].median(), shown["y"].median()
    lasso(panel, left, 99, low, 99)
    inside = shown[(shown["x"] > left) & (shown["y"] > low)]
    assert 0 < len(inside) < len(shown)
    chosen = panel.selection()
    pd.testing.assert_frame_equal(
        chosen.sort_values(["query_id", "prompt"]).reset_index(drop=True),
        inside.sort_values(["query_id", "prompt"]).reset_index(drop=True),
    )
    columns = ["query_id", "prompt", "harmful", "text", "category", "refusal_rate", "response", "x", "y"]
    assert list(chosen.columns) == columns
    assert f"{len(inside)} points chosen" in panel.table.value
    assert sum(len(t.selectedpoints) for t in clouds(panel.picture)) == len(inside)


def test_an_empty_lasso_selects_nothing_and_its_outline_goes_with_its_plane(panel: ProjectionPanel) -> None:
    lasso(panel, -99, 99, -99, 99)
    panel.controls["prompts"].value = ("none",)
    assert len(panel.picture.layout.selections) == 1
    panel.controls["x"].value = 3
    assert panel.picture.layout.selections == ()
    assert len(panel.selection()) == 180
    lasso(panel, 98, 99, 98, 99)
    assert panel.selection().empty


def test_a_click_selects_a_point_and_a_double_click_none(panel: ProjectionPanel) -> None:
    touch(panel, "click", (1, 0))
    assert panel.selection()[["query_id", "prompt"]].to_numpy().tolist() == [["q30", "none"]]
    touch(panel, "deselect")
    assert panel.selection().empty
    assert panel.table.value == ""
    assert {trace.selectedpoints for trace in clouds(panel.picture)} == {None}


def test_a_selection_stays_in_another_plane(panel: ProjectionPanel) -> None:
    touch(panel, "click", (1, 0))
    before = panel.selection()
    panel.controls["layer"].value = 1
    after = panel.selection()
    assert after["query_id"].tolist() == before["query_id"].tolist()
    assert after["x"][0] == clouds(panel.picture)[1].x[0] != before["x"][0]


# the question


def test_which_harmless_queries_does_my_prompt_make_the_model_refuse(panel: ProjectionPanel) -> None:
    assert panel.controls["prompt"].value == "mine"  # the defaults ask just that
    panel.controls["find"].click()
    found = panel.selection()
    assert found["query_id"].tolist() == ["q41", "q42", "q40"]
    assert np.allclose(found["change"], [0.9, 0.55, 0.3])  # .35 - .05 is less than .3 in floating point
    assert set(found["prompt"]) == {"mine"}
    assert panel.table.value.index("reply 0 to q41") < panel.table.value.index("reply 0 to q40")
    n = len(panel.result().query("prompt == 'mine' and not harmful").dropna(subset="refusal_rate"))
    _, low, high = rate_interval(3, n)
    assert f"3 of {n} harmless queries ({tables.interval_words(3 / n, low, high)}) refused more" in panel.table.value
    panel.controls["at_least"].value = 0.6
    panel.controls["find"].click()
    assert panel.selection()["query_id"].tolist() == ["q41"]


def test_when_nothing_is_found_the_panel_says_how_far_it_was(panel: ProjectionPanel) -> None:
    panel.controls["kind"].value = "harmful"
    panel.controls["find"].click()
    assert panel.selection().empty
    assert "the largest change is 0.00" in panel.table.value


def test_all_replies_to_what_is_chosen_are_in_reach(panel: ProjectionPanel) -> None:
    read = panel.controls["read"]
    assert (read.layout.display, panel.replies.value) == ("none", "")
    panel.controls["find"].click()
    assert "below the figure" in panel.message.value
    assert [query for _, query in read.options] == ["q41", "q42", "q40"]
    assert panel.replies.value.count("reply 1 to q41") == 2, "under the two prompts that were compared"
    assert [name in panel.replies.value for name in ("mine", "none", "default")] == [True, True, False]
    read.value = "q40"
    assert "reply 1 to q40" in panel.replies.value
    touch(panel, "click", (1, 0))
    assert panel.replies.value.count("reply 0 to q30") == 3, "under all prompts that are shown"
    panel.controls["clear"].click()
    assert (read.layout.display, panel.replies.value) == ("none", "")


def test_find_by_text(panel: ProjectionPanel) -> None:
    panel.controls["prompt"].value = ""
    panel.controls["contains"].value = "DO 4"  # Enter
    assert set(panel.selection()["query_id"]) == {f"q{i}" for i in range(40, 50)}
    assert len(panel.selection()) == 30
    panel.controls["clear"].click()
    assert panel.selection().empty
    assert panel.controls["contains"].value == ""


def test_without_scores_there_is_no_such_question(states: HiddenStates) -> None:
    panel = panels.projection(states, anchors=ANCHORS)
    assert panel.controls["at_least"].layout.display == "none"
    assert "refusal_rate" not in dict(panel.controls["color"].options).values()
    panel.controls["find"].click()
    assert len(panel.selection()) == 90
    assert "refusal boundary" not in {trace.name for trace in panel.picture.data}


# judges, UMAP, size


def test_judges_are_told_apart(states: HiddenStates, scores: pd.DataFrame) -> None:
    strict = scores.assign(refusal_rate=scores["refusal_rate"].clip(lower=0.4))
    panel = panels.projection(states, anchors=ANCHORS, scores={"rule": scores, "strict": strict})
    assert panel.result()["refusal_rate"].min() == 0.05
    panel.controls["judge"].value = "strict"
    assert panel.result()["refusal_rate"].min() == 0.4
    panel.controls["color"].value = "disagreement"
    shown = np.concatenate([trace.marker.color for trace in clouds(panel.picture)])
    assert np.allclose(sorted(set(shown.round(2))), [0.0, 0.05, 0.35])


def test_umap_is_made_once_when_asked_for_and_says_what_it_is(
    panel: ProjectionPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def quick(anchors: HiddenStates, *, extra: HiddenStates, **settings: Any) -> pd.DataFrame:
        calls.append(settings)
        xy = torch.cat([anchors.matrix(-1), extra.matrix(-1)])[:, :2].numpy()
        return pd.DataFrame(xy, columns=["x", "y"])

    monkeypatch.setattr(view, "umap_view", quick)
    panel.controls["view"].value = "UMAP"
    assert panel.job.wait(WAIT)
    title = panel.picture.layout.xaxis.title.text
    assert title.startswith("UMAP 1<br>")
    assert "for looking only" in title
    assert not [trace for trace in panel.picture.data if trace.name.startswith(("shift", "refuses"))]
    assert panel.controls["x"].disabled
    panel.controls["view"].value = "PCA"
    panel.controls["view"].value = "UMAP"
    assert not panel.job.running
    assert panel.picture.layout.xaxis.title.text == title
    assert len(calls) == 1


def test_umap_that_fails_or_is_stopped_gives_the_components_back(
    states: HiddenStates, panel: ProjectionPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = states.select(split="train", prompt="none", harmful=True)
    small = panels.projection(few, anchors=["none"], n_components=2)
    monkeypatch.setattr(view, "umap_view", lambda *_, **__: (_ for _ in ()).throw(StatesError("no map")))
    small.controls["view"].value = "UMAP"
    assert small.job.wait(WAIT)
    assert small.controls["view"].value == "PCA"
    assert "no map" in small.message.value

    def stop(*_: Any, **__: Any) -> np.ndarray:
        panel.job.stop()
        return np.zeros((len(states), 2))

    monkeypatch.setattr(panel.view.spaces, "umap", stop)
    panel.controls["view"].value = "UMAP"
    assert panel.job.wait(WAIT)
    assert panel.controls["view"].value == "PCA"
    assert not panel.controls["layer"].disabled


def test_above_the_limit_whole_queries_are_drawn_at_random_and_the_panel_says_so(
    states: HiddenStates, scores: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = states.index["query_id"]
    rows = sample_queries(ids, most=40)
    assert list(rows) == list(sample_queries(ids, most=40))
    assert ids.iloc[rows].value_counts().tolist() == [3] * 13
    monkeypatch.setattr(view, "sample_queries", lambda ids: sample_queries(ids, most=40))
    panel = panels.projection(states, anchors=ANCHORS, scores=scores)
    assert len(panel.result()) == 39
    assert "13 of 60 queries are drawn" in panel.picture.layout.xaxis.title.text
    whole = panels.projection(states, anchors=ANCHORS, scores=scores)
    monkeypatch.undo()
    assert panel.picture.layout.xaxis.range == whole.picture.layout.xaxis.range
    panel.controls["find"].click()
    assert len(panel.selection()) == 3  # of all queries, drawn or not


def test_more_prompts_than_colours_can_be_looked_at_in_turn() -> None:
    many = planted_states({f"p{i}": i * axis(1) for i in range(8)}, n_per_class=4)
    panel = panels.projection(many, anchors=["none"], n_components=2)
    assert len(panel.controls["prompts"].value) == 7
    panel.controls["prompts"].value = ("none", "p6", "p7")
    assert panel.message.value == ""
    panel.controls["prompts"].value = panel.controls["prompts"].options and tuple(
        v for _, v in panel.controls["prompts"].options
    )
    assert "show fewer prompts at once" in panel.message.value
    panel.controls["color"].value = "class"
    assert panel.message.value == ""


# text, export, errors


def test_text_from_data_stays_text(states: HiddenStates) -> None:
    hostile = HiddenStates(
        values=states.values,
        index=states.index.assign(
            text=HOSTILE, category=HOSTILE, prompt=states.index["prompt"].replace("mine", HOSTILE)
        ),
        layers=states.layers,
        num_hidden_layers=2,
    )
    replies = hostile.index[["query_id", "prompt"]].assign(sample=0, response=HOSTILE)
    panel = panels.projection(hostile, anchors=ANCHORS, replies=replies)
    touch(panel, "hover", (0, 0))
    lasso(panel, -99, 99, -99, 99)
    seen = [t for c in clouds(panel.picture) for t in [*c.customdata, c.name]]
    seen += [trace.hovertext or "" for trace in panel.picture.data if trace.type == "scatter"]
    seen += [shape.label.text or "" for shape in shapes(panel)] + [panel.table.value, panel.replies.value]
    assert not [text for text in seen if "<script" in text or "<b>{bold}" in text or "\x00" in text]
    assert all(len(text) < 2000 for text in seen[:-2])
    assert html.escape("<script>", quote=False) in panel.table.value
    assert len(panel.table.value) < 500_000
    assert html.escape("<script>", quote=False) in panel.replies.value
    assert "alert" not in panel.message.value


def test_the_table_is_cut_and_says_so(panel: ProjectionPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "MOST_ROWS", 5)
    lasso(panel, -99, 99, -99, 99)
    assert panel.table.value.count("<tr>") == 6
    assert "180 points chosen; the first 5 are shown here" in panel.table.value


def test_offer_is_what_is_seen(panel: ProjectionPanel) -> None:
    panel.controls["prompts"].value = ("none", "mine")
    panel.picture.relayout({"xaxis.range": [0, 1]})
    touch(panel, "hover", (0, 0))
    offered = panel.offer()
    figure, table = offered["projection"]
    assert set(offered) == {"projection"}
    assert figure.layout.xaxis.range == (0, 1)
    assert figure.layout.shapes == ()
    assert {name.split(", ")[0] for trace in figure.data if (name := trace.name) and trace.ids is not None} == {
        "none",
        "mine",
    }
    assert len(table) == 120
    touch(panel, "click", (0, 0))
    assert len(panel.offer()["selection"][1]) == 1


def test_what_cannot_be_shown_is_refused_in_words(states: HiddenStates, scores: pd.DataFrame) -> None:
    with pytest.raises(panels.PanelError, match="at least 2"):
        panels.projection(states, anchors=ANCHORS, n_components=1)
    with pytest.raises(panels.PanelError, match="names no judge"):
        panels.projection(states, anchors=ANCHORS, scores={})
    with pytest.raises(StatesError, match="theirs"):
        panels.projection(states, anchors=["theirs"])
    with pytest.raises(StatesError, match="must be a table of"):
        panels.projection(states, anchors=ANCHORS, scores=scores.reset_index())
    with pytest.raises(StatesError, match="twice"):
        panels.projection(states, anchors=ANCHORS, scores=pd.concat([scores, scores]))


# the parts


def test_states_that_were_not_scored_or_answered_have_gaps(states: HiddenStates, scores: pd.DataFrame) -> None:
    table = point_table(states, scores=scores.xs("none", level="prompt", drop_level=False))
    assert table.groupby("prompt")["refusal_rate"].count().to_dict() == {"default": 0, "mine": 0, "none": 60}
    assert table["response"].isna().all()
    assert refusal_changes(table, "mine", "none").empty


def test_a_probe_is_fitted_on_scored_anchors_only(states: HiddenStates, scores: pd.DataFrame) -> None:
    rates = point_table(states, scores=scores)["refusal_rate"].to_numpy()
    other = np.where(states.index["prompt"] == "mine", 1 - rates, rates)
    spaces = FrozenSpaces(states, ANCHORS)
    probe = spaces.probe(2, "a", rates, positive="refuses")
    assert torch.equal(probe.coef, spaces.probe(2, "b", other, positive="refuses").coef)
    half = np.where(states.index["prompt"] == "none", rates, np.nan)
    assert not torch.equal(probe.coef, spaces.probe(2, "c", half, positive="refuses").coef)
    with pytest.raises(StatesError, match="No score of a state under the anchor prompts"):
        spaces.probe(2, "d", np.full(len(rates), np.nan), positive="refuses")


def test_a_map_keeps_the_order_of_the_states(states: HiddenStates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors and others are mixed in the table, the map gives the anchors first."""
    order = np.random.default_rng(0).permutation(len(states))
    mixed = as_states(states.matrix(2).numpy()[order], states.index.iloc[order].reset_index(drop=True))

    def first_two(anchors: HiddenStates, *, extra: HiddenStates, **_: Any) -> pd.DataFrame:
        xy = torch.cat([anchors.matrix(2), extra.matrix(2)])[:, :2].numpy()
        return pd.DataFrame(xy, columns=["x", "y"])

    monkeypatch.setattr(view, "umap_view", first_two)
    assert np.allclose(FrozenSpaces(mixed, ANCHORS).umap(2), mixed.matrix(2)[:, :2])
