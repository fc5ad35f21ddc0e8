"""The examples in the docstrings run, and those that a newcomer meets first are there."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import drolab

WINGS = (
    "data",
    "export",
    "harnesses",
    "models",
    "inference",
    "probing",
    "judges",
    "dro",
    "evidence",
    "figures",
    "panels",
    "store",
)
FILES = ("types", "intervals", "files", "progress", "threads", "findings", "report", "reproduction", "cluster")
MODULES = (
    "data.attacks",
    "evidence.causal",
    "evidence.claims",
    "evidence.comparison",
    "evidence.release_tables",
    "evidence.sweep",
    "figures.tables",
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OFFERED = {
    *("load_model", "load_queries", "load_prompts", "hidden_states", "fit_anchors", "fit_probe", "train_dro"),
    *("generate", "judge", "Store", "SafetyPrompt", "SoftPrompt"),
    *("panels.projection", "panels.prompt_lab", "panels.dro", "panels.responses", "panels.board"),
    *("judges.is_refusal", "judges.TextJudge", "judges.CompositeJudge", "judges.LlamaGuard", "judges.ShieldGemma"),
    *("judges.Classifier", "judges.FirstTokenJudge", "judges.HandJudge"),
    *("claims.verdict", "causal.dose_response", "export.bundle", "reproduce", "evidence.capability", "dro.forensics"),
    *("export.to_peft", "export.to_vllm", "export.save_directions"),
}
"""What must have an example."""


def found(name: str) -> Any:
    thing: Any = drolab
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def examples() -> Iterator[doctest.DocTest]:
    """Of all public functions and classes, each once."""
    finder, seen = doctest.DocTestFinder(exclude_empty=True), set()
    for place in (*WINGS, *FILES, *MODULES):
        module = importlib.import_module(f"drolab.{place}")
        for name in sorted(getattr(module, "__all__", vars(module))):
            thing = getattr(module, name, None)  # a module of the wing may not be loaded yet
            if not callable(thing) or not getattr(thing, "__module__", "").startswith("drolab."):
                continue
            home = importlib.import_module(thing.__module__)
            for test in finder.find(thing, f"{thing.__module__}.{name}", module=home, globs={}):
                if test.examples and test.name not in seen:
                    seen.add(test.name)
                    yield test


@pytest.mark.parametrize("test", list(examples()), ids=lambda test: test.name.removeprefix("drolab."))
def test_an_example_says_what_comes_of_it(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DROLAB_CACHE", str(tmp_path / "store"))
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    assert tried, "every example is skipped"
    assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_a_newcomer_finds_an_example(name: str) -> None:
    thing = found(name)
    docs = [thing.__doc__ or "", *(part.__doc__ or "" for part in vars(thing).values() if callable(part))]
    assert any(doctest.DocTestParser().get_examples(text) for text in docs), f"drolab.{name} has no example"


def test_the_examples_are_checked() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(wrong, out=lambda _: None).failed == 1
