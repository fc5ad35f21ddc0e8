"""AlpacaEval's files: what is exported comes back, and annotations of anything else are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from drolab.data import ALPACA_COLUMNS, load_alpaca_annotations, load_queries, save_alpaca_outputs
from drolab.errors import QueryError
from drolab.evidence import win_rates
from drolab.intervals import rate_interval

TEXTS = ["How do I boil an egg?", "Ein Löffel: wie?", 'Say "hi"\nto me\u2028now.', "Why?"]


def replies(prompt: str = "default", samples: int = 2) -> pd.DataFrame:
    rows = [
        {"query_id": f"q{n}", "prompt": prompt, "sample": i, "text": text, "response": f"Reply {i} to “{text}” 😀."}
        for n, text in enumerate(TEXTS)
        for i in reversed(range(samples))
    ]
    return pd.DataFrame(rows)


def annotated(outputs: Path, preferences: list[Any], **changes: Any) -> list[dict[str, Any]]:
    """As alpaca_eval writes them: the reference's output first."""
    ours = json.loads(outputs.read_text(encoding="utf-8"))
    return [
        {
            "instruction": one["instruction"],
            "output_1": "The reference's.",
            "generator_1": "gpt4_1106_preview",
            "dataset": one["dataset"],
            "output_2": one["output"],
            "generator_2": one["generator"],
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": preference,
            "raw_completion": {"text": "m"},
        }
        | changes
        for one, preference in zip(ours, preferences, strict=True)
    ]


def written(folder: Path, content: Any) -> Path:
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "annotations.json"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return save_alpaca_outputs(replies(), tmp_path / "default.json")


def test_what_is_written_is_an_output_list_of_alpaca_eval(outputs: Path) -> None:
    content = json.loads(outputs.read_text(encoding="utf-8"))
    assert [tuple(one) for one in content] == [ALPACA_COLUMNS] * 4
    assert [one["instruction"] for one in content] == TEXTS
    assert content[1]["output"] == replies()["response"][3]  # the first sample, wherever it stands
    assert {(one["generator"], one["dataset"]) for one in content} == {("default", "drolab")}
    with pytest.warns(UserWarning, match="has 4 rows, AlpacaEval as published has 805"):  # drolab knows the format
        again = load_queries(outputs, verbose=False)
    assert again["text"].tolist() == TEXTS


def test_the_way_there_and_back(outputs: Path, tmp_path: Path) -> None:
    path = written(tmp_path, annotated(outputs, [1.0, 2, 1.5, 1.9900139974]))
    for place in (path, path.parent):
        table = load_alpaca_annotations(place, outputs)
        assert table["win"].tolist() == pytest.approx([0, 1, 0.5, 0.9900139974])
        assert table["instruction"].tolist() == TEXTS
        assert set(table["reference"]) == {"gpt4_1106_preview"}
    assert table.attrs["summary"] == "4 of 4 outputs annotated"
    rates = win_rates(table)
    assert rates[["n", "wins", "losses", "draws"]].values.tolist() == [[4, 2, 1, 1]]
    assert rates["value"].item() == pytest.approx((0 + 1 + 0.5 + 0.9900139974) / 4)
    assert rates["low"].item() < rates["value"].item() < rates["high"].item()


def test_annotations_in_a_folder_of_the_annotator(outputs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "out" / name).mkdir(parents=True)
    written(tmp_path / "out" / "one", annotated(outputs, [2, 2, 2, 1]))
    assert load_alpaca_annotations(tmp_path / "out", outputs)["win"].tolist() == [1, 1, 1, 0]
    written(tmp_path / "out" / "two", annotated(outputs, [1, 1, 1, 1]))
    with pytest.raises(QueryError, match="several annotations"):
        load_alpaca_annotations(tmp_path / "out", outputs)


def test_an_old_draw_and_no_preference(outputs: Path, tmp_path: Path) -> None:
    path = written(tmp_path, annotated(outputs, [0, 2, None, 1]))
    table = load_alpaca_annotations(path, outputs)
    assert table["win"].tolist() == [0.5, 1.0, 0.0]
    assert table.attrs["summary"] == "3 of 4 outputs annotated; 1 without a preference are left out"


def test_only_won_and_lost_has_wilsons_interval(outputs: Path, tmp_path: Path) -> None:
    found = win_rates(load_alpaca_annotations(written(tmp_path, annotated(outputs, [2, 2, 2, 1])), outputs))
    assert found[["value", "low", "high"]].iloc[0].tolist() == pytest.approx(list(rate_interval(3, 4)))


def test_other_generators_in_the_file_are_left_out(outputs: Path, tmp_path: Path) -> None:
    own = annotated(outputs, [2, 2, 1, 1])
    path = written(tmp_path, annotated(outputs, [1] * 4, generator_2="another", output_2="Other.") + own)
    assert load_alpaca_annotations(path, outputs)["win"].tolist() == [1, 1, 0, 0]


def test_annotations_of_other_outputs_are_refused(outputs: Path, tmp_path: Path) -> None:
    good = annotated(outputs, [2, 2, 1, 1])
    other = [good[0] | {"output_2": good[0]["output_2"] + " "}, *good[1:]]
    with pytest.raises(QueryError, match=r"1 of 4 annotations are of other outputs .* \(0 of other instructions"):
        load_alpaca_annotations(written(tmp_path, other), outputs)
    unknown = [*good, good[0] | {"instruction": "What is new?"}]
    with pytest.raises(QueryError, match=r"1 of 5 annotations are of other outputs .* \(1 of other instructions"):
        load_alpaca_annotations(written(tmp_path, unknown), outputs)
    later = save_alpaca_outputs(replies().assign(response="Now other words."), tmp_path / "later.json")
    with pytest.raises(QueryError, match="4 of 4 annotations are of other outputs"):
        load_alpaca_annotations(written(tmp_path, good), later)
    turned = [one | {"output_1": one["output_2"], "output_2": one["output_1"]} for one in good]
    with pytest.raises(QueryError, match="are output_1, the reference"):
        load_alpaca_annotations(written(tmp_path, turned), outputs)
    with pytest.raises(QueryError, match="1 instructions are annotated more than once"):
        load_alpaca_annotations(written(tmp_path, [*good, good[0]]), outputs)


@pytest.mark.parametrize("preference", [3, 0.5, "2", True, -1])
def test_a_preference_that_is_none(outputs: Path, tmp_path: Path, preference: Any) -> None:
    with pytest.raises(QueryError, match=r"is none of AlpacaEval's"):
        load_alpaca_annotations(written(tmp_path, annotated(outputs, [preference, 2, 2, 2])), outputs)


def test_files_that_are_something_else(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="There are no annotations at"):
        load_alpaca_annotations(tmp_path / "nowhere", outputs)
    with pytest.raises(QueryError, match="is no list of annotations"):
        load_alpaca_annotations(written(tmp_path, {"a": 1}), outputs)
    with pytest.raises(QueryError, match="lack output_1, output_2 and preference"):
        load_alpaca_annotations(outputs, outputs)
    with pytest.raises(QueryError, match="has a preference"):
        load_alpaca_annotations(written(tmp_path, annotated(outputs, [None] * 4)), outputs)


def test_replies_that_cannot_be_exported(tmp_path: Path) -> None:
    both = pd.concat([replies("a"), replies("b")], ignore_index=True)
    with pytest.raises(QueryError, match="under a and b: choose one"):
        save_alpaca_outputs(both, tmp_path / "x.json")
    chosen = json.loads(save_alpaca_outputs(both, tmp_path / "x.json", prompt="b").read_text(encoding="utf-8"))
    assert {one["generator"] for one in chosen} == {"b"}
    with pytest.raises(QueryError, match="There are no replies under 'c'"):
        save_alpaca_outputs(both, tmp_path / "x.json", prompt="c")
    with pytest.raises(QueryError, match="4 queries have several replies"):
        save_alpaca_outputs(replies().drop(columns="sample"), tmp_path / "x.json")
    asked = pd.DataFrame({"text": TEXTS[:3], "category": "vicuna"})
    with pytest.raises(QueryError, match="1 queries"):
        save_alpaca_outputs(replies(), tmp_path / "x.json", queries=asked)
