"""The comparison board: what its controls ask for is what its tables and figures show."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drolab import comparison, export, panels
from drolab.errors import QueryError

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> %{x} \x00 \u202eabc"
GROUPS = ("harmful", "harmless", "borderline")


def scores(prompts: tuple[str, ...] = ("none", "default", "mine"), *, n: int = 40, seed: int = 0) -> pd.DataFrame:
    """Each prompt refuses more than the one before, except the last, which refuses harmless queries less."""
    generator = np.random.default_rng(seed)
    parts = []
    for number, prompt in enumerate(prompts):
        for group, chance in zip(GROUPS, (0.6 + 0.1 * number, 0.15 + 0.1 * (number % 2), 0.4), strict=True):
            rates = generator.binomial(10, min(chance, 1), n) / 10
            columns = {"query_id": [f"{group} {i}" for i in range(n)], "prompt": prompt, "harmful": group == "harmful"}
            columns |= {"n_samples": 10, "refusal_rate": rates, "compliance_rate": 1 - rates}
            parts.append(pd.DataFrame(columns | {"any_refusal": rates > 0, "any_compliance": rates < 1}))
    return pd.concat(parts).set_index(["query_id", "prompt"])


def groups(table: pd.DataFrame) -> dict[str, str]:
    return {query: query.split()[0] for query in table.index.get_level_values("query_id")}


@pytest.fixture
def board() -> panels.Board:
    table = scores()
    return panels.board(table, groups=groups(table))


def test_its_tables_are_those_of_the_library(board: panels.Board) -> None:
    table = scores()
    assert board.message.value == ""
    rates = comparison.group_rates(table, groups(table))
    pd.testing.assert_frame_equal(board.result(), rates)
    pd.testing.assert_frame_equal(board.comparisons(), comparison.paired(table, "none", groups(table)))
    pd.testing.assert_frame_equal(board.front(), comparison.tradeoff(rates))
    assert {bar.name for bar in board.bars.data} == set(GROUPS)
    assert "0.1" in board.tests.value


def test_every_control_is_labelled_and_says_what_it_does(board: panels.Board) -> None:
    assert all(control.description and control.tooltip for control in board.controls.values())


def test_bars_show_refusal_or_compliance(board: panels.Board) -> None:
    refusal = {bar.name: np.array(bar.y) for bar in board.bars.data}
    ranges = board.bars.layout.yaxis.range
    board.controls["measure"].value = "compliance"
    for bar in board.bars.data:
        np.testing.assert_allclose(bar.y, 1 - refusal[bar.name])
    assert board.bars.layout.yaxis.title.text == "compliance rate"
    assert board.bars.layout.yaxis.range == ranges
    assert "Rates of compliance" in board.rates.value


def test_another_baseline_and_another_test(board: panels.Board) -> None:
    board.controls["baseline"].value = "mine"
    board.controls["test"].value = "majority"
    table = scores()
    wanted = comparison.paired(table, "mine", groups(table), test="majority")
    pd.testing.assert_frame_equal(board.comparisons(), wanted)
    assert "Each prompt against mine" in board.tests.value
    assert "McNemar, exact" in board.tests.value


def test_holm_corrects_for_the_comparisons_that_are_shown(board: panels.Board) -> None:
    everything = board.comparisons().set_index(["prompt", "group"])
    board.controls["prompts"].value = ("none", "mine")
    shown = board.comparisons().set_index(["prompt", "group"])
    assert set(shown.index) == {("mine", group) for group in GROUPS}
    assert shown["p"].equals(everything.loc[shown.index, "p"])
    assert (shown["p_holm"] <= everything.loc[shown.index, "p_holm"]).all()
    assert "corrected for these 3 comparisons" in board.tests.value
    assert set(board.result()["prompt"]) == {"none", "mine"}
    board.controls["prompts"].value = ("none",)
    assert "nothing to test" in board.tests.value
    assert board.comparisons().empty
    board.controls["prompts"].value = ()
    assert "choose at least one" in board.message.value


def test_the_plane_and_its_dominated_prompts_in_words() -> None:
    table = scores(("none", "default"))
    worse = table.xs("none", level="prompt", drop_level=False).rename({"none": "worse"}, level="prompt")
    harmful = worse["harmful"]
    worse["refusal_rate"] = np.where(harmful, worse["refusal_rate"] * 0.5, worse["refusal_rate"] * 0.5 + 0.5)
    worse["compliance_rate"] = 1 - worse["refusal_rate"]
    table = pd.concat([table, worse])
    board = panels.board(table, groups=groups(table))
    assert "worse is dominated by none, default." in board.words.value
    assert {trace.name for trace in board.plane.data} == {"Pareto front", "none", "default", "worse (dominated)"}
    board.controls["helpful"].value = "borderline"
    assert "borderline queries answered" in board.plane.layout.xaxis.title.text
    board.controls["prompts"].value = ("none", "default")
    assert "worse" not in board.words.value
    assert len(board.plane.data) == 3


def test_no_prompt_dominated_is_said_too(board: panels.Board) -> None:
    board.controls["prompts"].value = ("none", "default")
    assert "No prompt is dominated" in board.words.value


def test_several_judges() -> None:
    first, second = scores(), scores(seed=1)
    board = panels.board({"string rule": first, "hand": second.drop("mine", level="prompt")})
    assert [name for _, name in board.controls["judge"].options] == ["string rule", "hand"]
    board.controls["judge"].value = "hand"
    assert board.message.value == ""
    assert set(board.comparisons()["prompt"]) == {"default"}
    pd.testing.assert_frame_equal(board.result(), comparison.group_rates(second.drop("mine", level="prompt")))
    assert "judge" not in panels.board(first).controls


def test_a_test_that_cannot_be_done_says_why_and_leaves_no_old_one() -> None:
    table = scores()
    table.loc[(slice(None), "mine"), "n_samples"] = 5
    board = panels.board(table)
    board.controls["test"].value = "any"
    assert "draw equally many, or test the rate" in board.message.value
    assert board.comparisons().empty
    assert board.tests.value == ""
    board.controls["test"].value = "rate"
    assert board.message.value == ""
    assert len(board.comparisons()) == 4


def test_one_prompt_alone_has_rates_and_a_place() -> None:
    board = panels.board(scores(("none",)))
    assert len(board.front()) == 1
    assert "nothing to test" in board.tests.value
    assert board.message.value == ""


def test_more_prompts_than_colours_are_told_apart_by_symbol_and_colour() -> None:
    names = tuple(f"prompt {number}" for number in range(9))
    board = panels.board(scores(names))
    assert board.controls["prompts"].value == names
    assert board.message.value == ""
    drawn = [(trace.marker.symbol, trace.error_x.color) for trace in board.plane.data[1:]]
    assert len(drawn) == len(set(drawn)) == 9


def test_text_from_data_never_becomes_markup() -> None:
    table = scores(("none", HOSTILE))
    board = panels.board({HOSTILE: table, "other": table}, groups=dict.fromkeys(groups(table), HOSTILE))
    board.controls["baseline"].value = HOSTILE
    text = "".join((board.message.value, board.words.value, board.tests.value, board.rates.value))
    assert set(re.findall(r"<(\w+)", text)) <= {"div", "p", "table", "td", "th", "tr"}
    assert "&lt;script&gt;" in text
    assert not re.search("[\x00\u202e]", text)
    shown = str(board.bars.figure.to_dict()) + str(board.plane.figure.to_dict())
    assert "<script" not in shown


def test_what_it_offers_can_be_exported(board: panels.Board, tmp_path: Path) -> None:
    board.controls["prompts"].value = ("none", "mine")
    written = export.bundle(board.offer(), tmp_path, about=export.about(), formats=["html", "csv"])
    assert {"rates.html", "rates.csv", "tradeoff.csv", "comparisons.csv"} <= {path.name for path in written}
    assert set(pd.read_csv(tmp_path / "rates.csv")["prompt"]) == {"none", "mine"}


def test_what_is_no_table_of_scores_is_refused() -> None:
    with pytest.raises(QueryError, match="lack the columns"):
        panels.board(pd.DataFrame({"query_id": ["a"]}))
    with pytest.raises(panels.PanelError, match="No scores"):
        panels.board({})
