"""The fuzzer of benchmarks/fuzz.py, a few inputs to each reader; and readers at fault, which it must find out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmark import benchmark

fuzz = benchmark("fuzz")
INPUTS = {"the paper's release": 25, "XSTest": 50}
"""Where an input takes longer: a clone has many files."""


@pytest.mark.parametrize("name", fuzz.READERS)
def test_every_reader_reads_or_refuses(name: str) -> None:
    counts = fuzz.run(name, INPUTS.get(name, 100))
    assert counts.inputs == counts.refused + counts.read, "\n".join(counts.failures)
    assert counts.kept, "\n".join(counts.failures)
    assert counts.refused


def test_an_input_is_the_same_every_time() -> None:
    assert vars(fuzz.run("prompts json", 20, first=7)) == vars(fuzz.run("prompts json", 20, first=7))


def raw(value: Any) -> Any:
    raise KeyError("text")


def wrong(value: Any) -> Any:
    return value.assign(text="another text")


@pytest.mark.parametrize(("fault", "found"), [(raw, "raw"), (wrong, "wrong")])
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: Any, found: str) -> None:
    sound, reads = fuzz.READERS["queries txt"], iter(range(1000))

    def read(folder: Path) -> Any:
        value = sound.read(folder)
        return value if next(reads) < 2 else fault(value)  # the sound files are read twice before

    monkeypatch.setitem(fuzz.READERS, "queries txt", replace(sound, read=read))
    counts = fuzz.run("queries txt", 10)
    assert getattr(counts, found)
    assert not counts.kept
