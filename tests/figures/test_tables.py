"""Tables in words: one way to round, headings that say what stands below them, and nothing that runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from drolab import figures, tables

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAN = float("nan")
HOSTILE = "<script>alert(1)</script>\x00\u202eabc"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.99961, "1.00"),
        (9.996, "10.0"),
        (-31.84, "-31.8"),
        (1344.4, "1,344"),
        (np.float32(0.1), "0.100"),
        (-0.00042, "-0.0004"),
        (4.2e-7, "4e-07"),
        (-1e-17, "0.00"),
        (np.int64(12345), "12,345"),
        (np.bool_(False), "no"),
        (float("-inf"), "-∞"),
        (pd.NA, "–"),
        (None, "–"),
        ("", "–"),
    ],
)
def test_a_number_has_three_digits(value: object, words: str) -> None:
    assert tables.number_text(value) == words


def test_a_change_has_a_sign_and_an_unknown_interval_none() -> None:
    assert [tables.number_text(value, sign=True) for value in (0.5, -0.5, 0.0, 3)] == [
        "+0.500",
        "-0.500",
        "0.00",
        "+3",
    ]
    assert tables.interval_words(0.5, NAN, 1.0) == "0.500"
    assert tables.interval_words(NAN, 0.0, 1.0) == "–"


def test_intervals_join_their_estimates_and_others_become_ranges() -> None:
    row = {"harmful": True, "auc": 0.9, "auc_low": 0.8, "auc_high": 1.0, "null_low": 0.4, "null_high": 0.6}
    row |= {"logit_shift": 2.0, "logit_low": 1.0, "logit_high": 3.0, "difference": 0.1, "low": 0.0, "high": 0.2}
    assert tables.worded(pd.DataFrame([row | {"p_holm": 1e-5, "slow": 1}]), null="chance").iloc[0].to_dict() == {
        "class": "harmful",
        "AUC [95 %]": "0.900 [0.800, 1.00]",
        "chance": "0.400 to 0.600",
        "shift of the refusal logit [95 %]": "+2.00 [+1.00, +3.00]",
        "difference [95 %]": "+0.100 [0.00, +0.200]",
        "p (Holm)": "< 0.001",
        "slow": "1",
    }


def test_a_named_index_is_shown_and_the_table_itself_stays() -> None:
    table = pd.DataFrame({"rate": [0.12345]}, index=pd.Index(["q1"], name="query_id"))
    before = table.copy()
    assert list(tables.worded(table).columns) == ["query id", "rate"]
    pd.testing.assert_frame_equal(table, before)


def test_what_is_displayed_shows_hostile_texts_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figures.show_table(pd.DataFrame({HOSTILE: [HOSTILE, "long " * 100]}), note=HOSTILE)
    page = shown[0]["text/html"]
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert shown[0]["text/plain"].endswith(HOSTILE)
    assert not set("\x00\u202e") & set(page)
    assert "…</td>" in page


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_show_tables_in_words_and_end_with_what_they_saved(path: Path) -> None:
    """No cell ends with a table as pandas would show it: with a panel, a call, or nothing that is shown. The last one
    adds what the run found."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    last = [ast.parse(cell.source).body[-1] for cell in cells]
    shown = [ast.unparse(statement) for statement in last if isinstance(statement, ast.Expr)]
    assert [
        text
        for text in shown
        if not re.fullmatch(r"panel|lab|board|figures\.\w+\(.*\)|results\.add\(.*\)|print\(.*\)", text)
    ] == []
    assert shown[-1].startswith("results.add(findings=")
