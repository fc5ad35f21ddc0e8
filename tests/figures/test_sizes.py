"""Figures on paper and on slides: nothing is cut off or covered, measured in a browser; dark becomes light."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from helpers.tables import claims, doses, queries

from drolab import figures
from drolab.export import render_images
from drolab.figures import Sheet, sizes

CHROME = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
LONG = "a_name_of_a_prompt_that_is_long"
PROMPTS = ("none", "default", "medium", "short", "mine", LONG, "another")
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> \x00 \u202e 😀"
PAGES = [("print", "single"), ("print", "double"), ("slide", "double")]


def points(prompts: tuple[str, ...] = PROMPTS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(f"q{i}", prompt, i % 2 == 0, HOSTILE) for prompt in prompts for i in range(8)]
    table = pd.DataFrame(rows, columns=["query_id", "prompt", "harmful", "text"])
    numbers = {name: rng.random(len(rows)) for name in ("x", "y", "score", "rate")}
    return table.assign(step=[i % 4 for i in range(len(rows))], **numbers)


def history() -> pd.DataFrame:
    terms = ("refusal_loss", "harmfulness_loss", "residual_loss", "residual_drift")
    table = pd.DataFrame({"step": range(40), "epoch": np.arange(40) // 5, "run": [LONG] * 20 + ["other"] * 20})
    return table.assign(**dict.fromkeys(terms, np.linspace(2, 1, 40)))


def drawings(theme: str = "light") -> dict[str, go.Figure]:
    look = {"theme": theme, "title": f"A title that goes on and on, for longer than a line on a slide {HOSTILE}"}
    lines = {"refuses": figures.boundary([1, 1], -1), "harmful": figures.boundary([1, -0.2], -0.4)}
    rates = [(prompt, kind, 0.5, 0.4, 0.6) for prompt in PROMPTS for kind in ("harmful", "harmless", "borderline")]
    cosines = [(a, b, 0.5) for i, a in enumerate(PROMPTS) for b in PROMPTS[i:]]
    layers = [(layer, name, 0.1 * layer) for layer in range(5) for name in ("refusal", LONG)]
    arrows = figures.mean_shifts(points())
    tokens = ["You", "are", "help", "ful"] * 8
    words = claims().assign(claim=f"Safety prompts move all queries along the refusal direction of {LONG}")
    return {
        "projection": figures.projection(points(), arrows=arrows, boundaries=lines, **look),
        "calibration": figures.calibration(points(), note="Spearman's correlation 0.83 over 120 queries. " * 3, **look),
        "rates": figures.rate_bars(pd.DataFrame(rates, columns=["prompt", "group", "value", "low", "high"]), **look),
        "cosines": figures.cosine_heatmap(pd.DataFrame(cosines, columns=["a", "b", "cosine"]), **look),
        "layers": figures.layer_sweep(
            pd.DataFrame(layers, columns=["layer", "measure", "value"]),
            y_title="accuracy, grouped by query " * 2,
            **look,
        ),
        "training": figures.training_curves(history(), **look),
        "claims": figures.forest(words, **look),
        "doses": figures.dose_response(doses(), **look),
        "queries": figures.query_grid(queries().replace({"row": {"a": LONG}}), **look),
        "tokens": figures.token_strip(tokens, prompt_span=(2, 9), prefix=12, **look),
    }


# ---------------------------------------------------------------- measured in a browser

# Boxes of what must not leave the picture, and of what must not cover each other.
MEASURE = """() => {
  const box = node => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const shown = nodes => nodes.filter(node => node.textContent.trim() && node.getBoundingClientRect().width);
  const all = selector => [...document.querySelectorAll(selector)];
  const legends = all('.legend, .legend2').map(legend => ({
    box: box(legend.querySelector('rect.bg')), texts: shown([...legend.querySelectorAll('text')]).map(box)}));
  return {
    page: box(document.querySelector('svg')),
    texts: shown(all('text')).map(node => [node.textContent, box(node)]),
    sizes: shown(all('text')).map(node => parseFloat(getComputedStyle(node).fontSize)),
    apart: [...shown(all('.gtitle, .xtitle, .ytitle, .annotation text')),
            ...all('.legend rect.bg, .legend2 rect.bg')].map(box),
    ticks: shown(all('.xtick text, .ytick text')).map(box), legends};
}"""


@pytest.fixture(scope="module")
def sheets() -> dict[tuple[str, str, str], Sheet]:
    """(Figure, style, width) → that figure, laid out."""
    pages = itertools.product(drawings().items(), PAGES)
    return {(name, *page): sizes.sheet(figure, style=page[0], width=page[1]) for (name, figure), page in pages}


@pytest.fixture(scope="module")
def measured(sheets: dict[tuple[str, str, str], Sheet]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(Figure, style, width) → where everything stands, in pixels."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROME is None:
        pytest.skip("no chromium: make browser")
    images = render_images({"|".join(key): page for key, page in sheets.items()}, ["svg"])
    found = {}
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 2000, "height": 2000})
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        for key in sheets:
            page.set_content(f"<body style='margin:0'>{images['|'.join(key), 'svg'].decode()}</body>")
            found[key] = page.evaluate(MEASURE)
        browser.close()
    return found


def inside(box: list[float], page: list[float]) -> bool:
    left, top, right, bottom = box
    return left >= page[0] and top >= page[1] and right <= page[2] + 0.5 and bottom <= page[3] + 0.5


def overlap(a: list[float], b: list[float]) -> float:
    """Pixels by which two boxes cover each other in the direction in which it is less."""
    return min(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.filterwarnings("default")  # the browser driver's
def test_nothing_is_cut_off(measured: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    lost = [(key, text) for key, at in measured.items() for text, box in at["texts"] if not inside(box, at["page"])]
    assert lost == []
    for key, at in measured.items():
        for legend in at["legends"]:
            assert all(inside(box, legend["box"]) for box in legend["texts"]), key
    assert sum(len(at["legends"]) for at in measured.values()) > 20


@pytest.mark.filterwarnings("default")
def test_nothing_is_covered(measured: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    for key, at in measured.items():
        pairs = [(a, b) for i, a in enumerate(at["apart"]) for b in [*at["apart"][i + 1 :], *at["ticks"]]]
        assert [pair for pair in pairs if overlap(*pair) > 2] == [], key


@pytest.mark.filterwarnings("default")
def test_text_has_its_size_on_paper_and_the_legend_is_below(
    measured: dict[tuple[str, str, str], dict[str, Any]], sheets: dict[tuple[str, str, str], Sheet]
) -> None:
    for key, at in measured.items():
        points = [size * sheets[key].page_scale * 72 / 96 for size in at["sizes"]]
        low, high = (6.95, 9.05) if key[1] == "print" else (10, 20)
        assert low <= min(points), key
        assert max(points) <= high, key
        ticks = [bottom for *_, bottom in at["ticks"]]
        assert all(legend["box"][1] >= max(ticks) for legend in at["legends"] if ticks), key


def test_the_measures_see_what_is_cut_off_or_covered() -> None:
    assert not inside([10, 10, 101, 20], [0, 0, 100, 100])
    assert overlap([0, 0, 10, 10], [5, 5, 20, 20]) == 5
    assert overlap([0, 0, 10, 10], [11, 0, 20, 10]) < 0


# ---------------------------------------------------------------- without a browser


def strings(node: Any) -> set[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return {node} if isinstance(node, str) else set().union(*map(strings, children))


def test_print_is_light_and_a_slide_keeps_its_theme() -> None:
    dark, light = set(figures_colors("dark")), set(figures_colors("light"))
    for name, figure in drawings("dark").items():
        printed = strings(sizes.sheet(figure, width="single").figure)
        assert not printed & (dark - light), name
        assert printed & light
        assert strings(sizes.sheet(figure, style="slide").figure) & dark
        assert strings(figure.to_dict()) & dark  # the figure itself is left alone


def figures_colors(theme: str) -> list[str]:
    from drolab.figures import THEMES

    return list(THEMES[theme].values())


def test_print_leaves_the_title_to_the_caption() -> None:
    figure = drawings()["calibration"]
    words = sizes.caption(figure)
    assert words.startswith("A title that goes on")
    assert "<script>alert(1)</script>" in words
    assert "Spearman's correlation" in words
    layout = sizes.sheet(figure).figure["layout"]
    assert "title" not in layout
    assert "Spearman" in layout["xaxis"]["title"]["text"]  # the small print stays below the plot
    assert "A title" in sizes.sheet(figure, style="slide").figure["layout"]["title"]["text"]


def test_shown_is_as_on_the_screen() -> None:
    figure = drawings()["rates"]
    page = sizes.sheet(figure, style="shown")
    assert (page.width, page.height) == (900, 480)
    assert page.figure["layout"]["title"] == figure.to_dict()["layout"]["title"]
    assert page.raster_scale == pytest.approx(2)


def test_slides_are_16_to_9_however_long_the_legend() -> None:
    many = go.Figure([go.Scatter(x=[0], y=[0], name=f"{LONG} {number}") for number in range(60)])
    page = sizes.sheet(many, style="slide")
    assert page.width / page.height == pytest.approx(16 / 9, abs=0.01)
    assert page.height > 450
    assert page.width * page.raster_scale == pytest.approx(1920)


def test_unknown_styles_are_refused() -> None:
    with pytest.raises(figures.FigureError, match="No style 'poster'"):
        sizes.sheet(go.Figure(), style="poster")
    with pytest.raises(figures.FigureError, match="width 'triple'"):
        sizes.sheet(go.Figure(), width="triple")
