"""Terms are explained in one place, and the glossary has them all."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from drolab import figures
from drolab.panels.controls import choice

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_the_glossary_has_every_term() -> None:
    headings = set(re.findall(r"^## (.+)$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(figures.TERMS) <= headings


def test_only_terms_that_are_there_are_explained() -> None:
    assert figures.explained("prompt") == figures.explained("shifty, nullified") == ""
    assert figures.explained("range under the null") == f"Null: {figures.TERMS['Null']}"
    assert figures.explained("names; Ctrl or Shift for several") == ""
    assert "95 of 100" in figures.explained("AUC [95 %]")
    assert figures.explained("0.12 n.s.").startswith("Not significant")


def test_a_tables_heading_and_a_control_say_what_their_terms_mean() -> None:
    page = figures.tables.table_html(figures.tables.worded(pd.DataFrame({"refusal_logit": [1.0]})))
    assert f'title="Refusal logit: {figures.TERMS["Refusal logit"]}"' in page
    view = choice("components", [1, 2], "two of the anchor space")
    assert view.tooltip == f"two of the anchor space\nAnchor space: {figures.TERMS['Anchor space']}"
    assert choice("layer", [1], "where states are read").tooltip == "where states are read"
