"""A report: texts, figures and tables as one HTML file that shows everything offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drolab.export import write_atomically
from drolab.figures.style import CONFIG

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def section(
    title: str,
    *,
    text: Sequence[str] = (),
    figures: Mapping[str, go.Figure] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """One section of a `report`: paragraphs, then figures and tables under their captions."""
    drawn = [
        {"caption": caption, "html": figure.to_html(config=CONFIG, include_plotlyjs=False, full_html=False)}
        for caption, figure in (figures or {}).items()
    ]
    shown = [
        {
            "caption": caption,
            "columns": list(table.columns),
            "rows": [list(map(_cell, row)) for row in table.to_numpy()],
        }
        for caption, table in (tables or {}).items()
    ]
    return {"title": title, "text": list(text), "figures": drawn, "tables": shown}


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def report(path: str | Path, sections: Sequence[Mapping[str, Any]], *, title: str = "drolab report") -> Path:
    """Write sections as one HTML file that shows everything offline: plotly.js is in it once, texts are escaped."""
    import jinja2
    from plotly.offline import get_plotlyjs

    template = (resources.files("drolab") / "assets" / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(title=title, sections=sections, plotlyjs=get_plotlyjs())
    return write_atomically(Path(path), page)
