"""Figures of something against something: lines, bands and points are the table's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.tables import doses, drawn_points, points, tokens

from drolab import figures

THEMES = ("light", "dark")


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


def test_token_lines_tell_prompts_by_colour_and_symbol() -> None:
    figure = figures.token_lines(tokens())
    assert [trace.name for trace in figure.data] == ["dro", "vpt"]
    assert (
        len({(trace.line.color) for trace in figure.data}) == len({trace.marker.symbol for trace in figure.data}) == 2
    )
    assert list(figure.data[0].y) == [1.0, 2.0]
    drift = figures.token_lines(tokens(), measure="drift")
    assert drift.layout.yaxis.title.text == "distance from default"
    assert drift.data[0].customdata[0] == "dro, token 0 'Be'<br>drift 0.500 (against default)"


def test_calibration_has_the_score_up_the_rate_along_and_a_diagonal() -> None:
    figure = figures.calibration(points().assign(score=0.25, rate=0.75), note="r = .9 <i>")
    assert {(x, y) for trace in drawn_points(figure) for x, y in zip(trace.x, trace.y, strict=True)} == {(0.75, 0.25)}
    assert tuple(figure.data[-1].x) == tuple(figure.data[-1].y) == (0, 1)
    assert "r = .9 &lt;i&gt;" in figure.layout.xaxis.title.text


def named(figure: object, name: str, axis: str) -> list:
    return [trace for trace in figure.data if trace.name == name and trace.xaxis == axis]


@pytest.mark.parametrize("theme", THEMES)
def test_curves_per_class_have_bands_and_random_directions_a_range(theme: str) -> None:
    figure = figures.dose_response(doses(), theme=theme)
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
    other, kl = (figures.dose_response(doses(), check=check) for check in ("other", "kl"))
    np.testing.assert_allclose(named(other, "probe, other", "x4")[0].y, 0.1)
    np.testing.assert_allclose(named(kl, "probe, kl", "x4")[0].y, [0.3, 0, 0.3])
    assert kl.layout.yaxis3.title.text == "KL (nats)"
    with pytest.raises(figures.FigureError, match=r"No check is called 'l2': choose one of \['other', 'kl'\]"):
        figures.dose_response(doses(), check="l2")


def test_one_class_and_no_random_directions_are_drawn() -> None:
    table = doses().query("harmful and kind == 'direction'")
    figure = figures.dose_response(table)
    assert [note.text for note in figure.layout.annotations] == ["harmful queries"]
    assert not [trace for trace in figure.data if "random" in (trace.name or "")]


def test_a_single_dose_is_no_curve() -> None:
    with pytest.raises(figures.FigureError, match=r"needs two doses of a direction, these have \[1.0\]: steer at more"):
        figures.dose_response(doses().head(1))
    with pytest.raises(figures.FigureError, match=r"these have \[\]"):
        figures.dose_response(doses().query("kind == 'random'"))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.dose_response(doses().head(0))


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


def test_the_level_of_the_drift_is_a_line_in_its_curve() -> None:
    terms = ("refusal_loss", "harmfulness_loss", "residual_loss", "residual_drift")
    history = pd.DataFrame([{"step": s, "epoch": 0, **dict.fromkeys(terms, 1.0)} for s in range(1, 4)])
    plain, drawn = figures.training_curves(history), figures.training_curves(history, drift_level=3.9)
    assert len(drawn.data) == len(plain.data) + 1
    line = drawn.data[-1]
    assert (list(line.x), list(line.y)) == ([1, 3], [3.9, 3.9])
    drift = drawn.data[len(plain.data) - 1]
    assert (line.xaxis, line.yaxis) == (drift.xaxis, drift.yaxis)
