"""What all figures share: text from data stays text, colours are told apart, clear errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
from helpers.hostile import HOSTILE, raw_markup
from helpers.tables import claims, doses, grid, margins, points, queries, rate_changes, sites, steps, tokens, tradeoffs

from drolab import figures
from drolab.figures import style


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
        figures.movement(steps().assign(text=text), title=text),
        figures.cosine_heatmap(pd.DataFrame([{"a": text, "b": "b", "cosine": 0.1, **interval}]), title=text),
        figures.layer_sweep(pd.DataFrame([{"layer": 0, "measure": text, "value": 0.5, **interval}]), y_title=text),
        figures.training_curves(pd.DataFrame([{"run": r, "step": 1, "epoch": 0, **terms} for r in names])),
        figures.rate_bars(pd.DataFrame([{"prompt": text, "group": text, "value": 0.5, **interval}]), y_title=text),
        figures.calibration(points(names, text).assign(score=0.5, rate=0.5), note=text),
        figures.token_strip([text, text]),
        figures.layer_position_map(
            sites(token=text).replace({"refusal cosine": text, "refusal cosine, control": f"{text}, control"}),
            measure=text,
        ),
        figures.forest(claims(text), title=text),
        figures.dose_response(doses(text), title=text),
        figures.rate_grid(grid().assign(model=text, prompt=text)[:1], what=text, title=text),
        figures.query_grid(queries().assign(row=text, text=text)[:1], what=text, title=text),
        figures.token_lines(tokens().assign(prompt=text, against=text, text=text)[:2], title=text),
        figures.tradeoff(tradeoffs(text).assign(dominated_by=text), helpful=text, safe=text, title=text),
        figures.rate_change(rate_changes(text, text), prompts=names, title=text),
        figures.attack_margins(margins(text), title=text),
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
@pytest.mark.parametrize("grey", [colors["grey"] for colors in style.THEMES.values()])
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
    with pytest.raises(
        figures.FigureError, match=f"{len(style.PALETTE) + 1} prompts, but only {len(style.PALETTE)} colours"
    ):
        figures.projection(points(tuple("abcdefghijklmnopqrstuvwxyz"[: len(style.PALETTE) + 1])))


def test_missing_columns_and_empty_tables_are_named() -> None:
    with pytest.raises(figures.FigureError, match=r"lacks the columns \['cosine'\]"):
        figures.cosine_heatmap(pd.DataFrame({"a": [], "b": []}))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.projection(points().head(0))
    with pytest.raises(figures.FigureError, match="no rows"):
        figures.rate_grid(grid()[:0])
    for draw in (figures.query_grid, figures.token_lines):
        with pytest.raises(figures.FigureError, match="lacks the columns"):
            draw(grid())


def test_show_switches_the_share_button_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw=False: shown.append(bundle))
    figures.show(figures.projection(points()))
    figures.show(figures.projection(points(), theme="dark"))
    style, light, _ = shown  # a dark figure is dark everywhere
    assert 'class="drolab-light"' in style.data
    content = light["application/vnd.plotly.v1+json"]
    assert content["config"]["showSendToCloud"] is False
    assert content["config"]["typesetMath"] is False
    assert content["data"]
