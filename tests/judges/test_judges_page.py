"""The page of judges: its figures are those of a run, and every judge that it names is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from drolab import judges

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llama2new", "llama2orig"])
def test_the_tables_are_those_of_the_benchmark(reference: Path, name: str) -> None:
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "judges.py"))
    table = benchmark["completions"](reference / "xstest" / f"xstest_v2_completions_{name}.csv")
    assert benchmark["agreement_tables"](table) in PAGE


def test_the_page_names_every_judge_and_no_other() -> None:
    table = PAGE.split("## Which judge for what")[1].split("##")[0]
    named = set(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)) - {"judge", "---"}
    names = {name for cell in named for name in re.findall(r"`(\w+)`|`(\w+)\(", cell) for name in name if name}
    assert names >= {"is_refusal", "TextJudge", "LlamaGuard", "ShieldGemma", "Classifier", "CompositeJudge"}
    assert all(hasattr(judges, name) for name in names)
