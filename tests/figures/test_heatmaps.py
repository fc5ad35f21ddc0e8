"""Figures of evidence: their values, intervals and texts, in both themes, and clear errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.hostile import HOSTILE, raw_markup

from drolab import figures
from drolab.figures import VERDICTS

NAN = float("nan")
THEMES = ("light", "dark")


def sweep_table(token: str = "\n", control: bool = True) -> pd.DataFrame:
    """Two layers and positions: layer 0 has no value at position -1, layer 1 stands out at -1 only."""
    rows = [
        (0, -2, "?", "refusal cosine", 0.2, 0.1, 0.3),
        (0, -1, token, "refusal cosine", NAN, NAN, NAN),
        (1, -2, "?", "refusal cosine", 0.25, 0.15, 0.35),
        (1, -1, token, "refusal cosine", 0.9, 0.8, 0.95),
    ]
    if control:
        rows += [(layer, p, text, "refusal cosine, control", 0.3, 0.2, 0.4) for layer, p, text, *_ in rows]
    return pd.DataFrame(rows, columns=["layer", "position", "token", "measure", "value", "low", "high"])


# layer × position


@pytest.mark.parametrize("theme", THEMES)
def test_a_map_has_a_cell_per_site_with_interval_and_control(theme: str) -> None:
    figure = figures.layer_position_map(sweep_table(), measure="refusal cosine", theme=theme)
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
    figure = figures.layer_position_map(sweep_table(control=False), measure="refusal cosine")
    assert figure.data[0].text[0][0] == "0.20"
    assert "n.s." not in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("measure", "scale"),
    [("harmfulness", (0, 0.5, 1)), ("refusal within class", (-1, 0, 1)), ("refusal cosine, control", (-1, 0, 1))],
)
def test_chance_is_in_the_middle_of_the_scale(measure: str, scale: tuple[float, ...]) -> None:
    heat = figures.layer_position_map(sweep_table(control=False).assign(measure=measure), measure=measure).data[0]
    assert (heat.zmin, heat.zmid, heat.zmax) == scale


def test_a_measure_without_a_middle_goes_from_zero_to_its_largest() -> None:
    heat = figures.layer_position_map(sweep_table(control=False).assign(measure="shift size"), measure="shift size")
    assert (heat.data[0].zmin, heat.data[0].zmid, heat.data[0].zmax) == (0, None, 0.9)
    flat = sweep_table(control=False).assign(measure="mine", value=0.0)
    assert figures.layer_position_map(flat, measure="mine").data[0].zmax == 1


def test_a_map_of_one_site_and_without_intervals_is_drawn() -> None:
    table = pd.DataFrame([(3, -1, "mine", 2.0)], columns=["layer", "position", "measure", "value"])
    heat = figures.layer_position_map(table, measure="mine").data[0]
    assert heat.customdata[0][0] == "layer 3, position -1<br>mine: 2.000"


def test_a_measure_that_is_not_there_is_named() -> None:
    with pytest.raises(figures.FigureError, match=r"no values of 'harm'.*\['refusal cosine'\]"):
        figures.layer_position_map(sweep_table(control=False), measure="harm")
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.layer_position_map(sweep_table().head(0), measure="refusal cosine")


# the verdict


def verdict_table(text: str = "DRO moves") -> pd.DataFrame:
    rows = [
        ("Separable", 0.98, 0.96, 0.99, 0.42, 0.58, 224, "AUC", "supported"),
        ("Separable as well", 0.5, 0.4, 0.6, 0.42, 0.58, 224, "AUC", "not supported"),
        ("Refusals rise", 0.0004, -0.001, 0.002, 0.0, 0.0, 1224, text, "too little data"),
        (text, NAN, NAN, NAN, NAN, NAN, 0, "logits", "too little data"),
    ]
    columns = ["claim", "estimate", "low", "high", "null_low", "null_high", "n", "unit", "verdict"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("theme", THEMES)
def test_a_forest_has_a_row_per_claim_with_interval_null_and_words(theme: str) -> None:
    figure = figures.forest(verdict_table(), theme=theme)
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
    layout = figures.forest(verdict_table()).layout
    assert layout.xaxis.range == layout.xaxis2.range
    assert layout.xaxis.range[0] < 0.4
    assert layout.xaxis.range[1] > 0.99
    assert layout.xaxis3.range[1] < 0.01
    assert layout.xaxis4.visible is False  # no estimate, no axis


def test_a_threshold_has_a_line_in_its_row_and_is_in_the_range() -> None:
    figure = figures.forest(verdict_table().assign(threshold=[0.2, 0.2, 0.0, NAN]))
    lines = [(shape.x0, shape.x1, shape.xref) for shape in figure.layout.shapes if shape.type == "line"]
    assert lines == [(0.2, 0.2, "x"), (0.2, 0.2, "x2"), (0.0, 0.0, "x3")]
    assert figure.layout.xaxis.range[0] < 0.2
    assert "threshold" in {trace.name for trace in figure.data}


@pytest.mark.parametrize("theme", THEMES)
def test_a_verdict_is_told_by_symbol_and_by_colour(theme: str) -> None:
    figure = figures.forest(verdict_table(), theme=theme)
    rows = [trace for trace in figure.data if trace.customdata is not None]
    looks = {(trace.marker.symbol, trace.marker.color) for trace in rows}
    assert len({symbol for symbol, _ in looks}) == len({color for _, color in looks}) == len(VERDICTS)
    legend = {trace.name for trace in figure.data if trace.showlegend is not False}
    assert legend == {*VERDICTS, "range under the null"}


def test_a_forest_of_one_claim_without_a_null_is_drawn() -> None:
    figure = figures.forest(verdict_table().head(1).assign(null_low=NAN, null_high=NAN))
    assert len(figure.layout.shapes) == 0
    assert "null" not in figure.layout.annotations[0].text


def test_an_unknown_verdict_and_an_empty_table_are_refused() -> None:
    with pytest.raises(figures.FigureError, match=r"No verdict is called \['maybe'\]: use \['supported'"):
        figures.forest(verdict_table().assign(verdict="maybe"))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.forest(verdict_table().head(0))


# dose and response


def dose_table(name: str = "probe") -> pd.DataFrame:
    rows = []
    for direction, kind, slope in ((name, "direction", 0.2), ("r1", "random", 0.01), ("r2", "random", -0.01)):
        for harmful in (True, False):
            for dose in (1.0, -1.0, 0.0):
                refusal = 0.5 + slope * dose
                ends = {"refusal_low": refusal - 0.1, "refusal_high": refusal + 0.1, "compliance": 0.9 - refusal}
                row = {"direction": direction, "kind": kind, "dose": dose, "harmful": harmful, "refusal": refusal}
                rows.append({**row, **ends, "other": 0.1, "kl": NAN if harmful else 0.3 * dose**2})
    return pd.DataFrame(rows)


def named(figure: object, name: str, axis: str) -> list:
    return [trace for trace in figure.data if trace.name == name and trace.xaxis == axis]


@pytest.mark.parametrize("theme", THEMES)
def test_curves_per_class_have_bands_and_random_directions_a_range(theme: str) -> None:
    figure = figures.dose_response(dose_table(), theme=theme)
    for axis in ("x", "x2"):  # harmful, harmless
        (line,) = named(figure, "probe, refusal", axis)
        np.testing.assert_allclose([line.x, line.y], [[-1, 0, 1], [0.3, 0.5, 0.7]])
        (dotted,) = named(figure, "probe, compliance", axis)
        np.testing.assert_allclose(dotted.y, [0.6, 0.4, 0.2])
        assert dotted.line.dash == "dot"
        random_low, random_high, low, high = (
            t for t in figure.data if t.mode == "lines" and t.xaxis == axis and t.x[0]
        )
        np.testing.assert_allclose([random_low.y, random_high.y], [[0.49, 0.5, 0.49], [0.51, 0.5, 0.51]])
        np.testing.assert_allclose([low.y, high.y], [[0.2, 0.4, 0.6], [0.4, 0.6, 0.8]])
        assert random_high.fillcolor != high.fillcolor
        assert (random_high.fill, high.fill) == ("tonexty", "tonexty")
    assert (
        named(figure, "probe, refusal", "x2")[0].customdata[2]
        == "probe<br>dose 1, harmless<br>refusal: 0.700 [0.60, 0.80]"
    )
    assert {note.text for note in figure.layout.annotations} == {"harmful queries", "harmless queries"}


def test_the_lower_panel_shows_the_check_that_was_asked_for() -> None:
    other, kl = (figures.dose_response(dose_table(), check=check) for check in ("other", "kl"))
    np.testing.assert_allclose(named(other, "probe, other", "x4")[0].y, 0.1)
    np.testing.assert_allclose(named(kl, "probe, kl", "x4")[0].y, [0.3, 0, 0.3])
    assert kl.layout.yaxis3.title.text == "KL (nats)"
    with pytest.raises(figures.FigureError, match=r"No check is called 'l2': choose one of \['other', 'kl'\]"):
        figures.dose_response(dose_table(), check="l2")


def test_one_class_and_no_random_directions_are_drawn() -> None:
    table = dose_table().query("harmful and kind == 'direction'")
    figure = figures.dose_response(table)
    assert [note.text for note in figure.layout.annotations] == ["harmful queries"]
    assert not [trace for trace in figure.data if "random" in (trace.name or "")]


def test_a_single_dose_is_no_curve() -> None:
    with pytest.raises(figures.FigureError, match=r"needs two doses of a direction, these have \[1.0\]: steer at more"):
        figures.dose_response(dose_table().head(1))
    with pytest.raises(figures.FigureError, match=r"these have \[\]"):
        figures.dose_response(dose_table().query("kind == 'random'"))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.dose_response(dose_table().head(0))


# text


def test_text_from_data_never_becomes_markup() -> None:
    table = sweep_table(token=HOSTILE).replace(
        {"refusal cosine": HOSTILE, "refusal cosine, control": f"{HOSTILE}, control"}
    )
    for figure in (
        figures.layer_position_map(table, measure=HOSTILE),
        figures.layer_position_map(table, measure=HOSTILE, title=HOSTILE),
        figures.forest(verdict_table(HOSTILE), title=HOSTILE),
        figures.dose_response(dose_table(HOSTILE), title=HOSTILE),
    ):
        assert raw_markup(figure) == []
