"""XSTest's completions in a clone, whole or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.small_xstest import HEADER, NO, PARTLY, YES, write

from drolab.data import XSTEST_CLONE, XSTEST_COLUMNS, load_xstest
from drolab.errors import CloneError


def test_both_layouts_and_all_models(tmp_path: Path) -> None:
    clone = tmp_path / "model_completions"
    clone.mkdir()
    for name in ("mistralguard", "mistralinstruct", "gpt4", "mine"):
        write(clone, name, [YES, NO, PARTLY, NO])
    (clone / "xstest_v2_completions_gpt4_gpteval.csv").write_text("something else")
    found = load_xstest(tmp_path)
    assert tuple(found.columns) == XSTEST_COLUMNS
    assert found.drop_duplicates("release")[["model", "prompt"]].to_numpy().tolist() == [
        ["Mistral-7B-Instruct", "none"],
        ["Mistral-7B-Instruct", "safety"],
        ["GPT-4", "none"],
        ["mine", "as released"],
    ]
    assert list(found["label"][:4]) == ["compliance", "full_refusal", "partial_refusal", "full_refusal"]
    assert list(found["group"][:2]) == ["safe", "unsafe"]
    assert found["response"][0] == 'Well,\n"so" it is'
    assert load_xstest(clone).equals(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "v2-1,homonyms,a,b,maybe,maybe,TRUE,maybe\n", "'v2-1' has no known label"),
        (HEADER + 2 * f"v2-1,homonyms,a,b,{YES},{YES},TRUE,{YES}\n", "'v2-1' .* is there twice"),
        (HEADER + "v2-1,homonyms,a\n", "'v2-1' has no known label"),
        ("id,prompt\n1,a\n", "is it the right file"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "xstest_v2_completions_gpt4.csv").write_text(content)
    with pytest.raises(CloneError, match=message):
        load_xstest(tmp_path)


def test_a_folder_without_completions_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CloneError, match=re.escape(XSTEST_CLONE)):
        load_xstest(tmp_path)
