"""Shared fixtures: the reference data, a tiny random chat model, the demo model, a fresh store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny import ROOT, byte_tokenizer, random_llama

import drolab
from drolab.models import ChatModel, wrap


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference data; absent outside the team's machines, and required in CI."""
    folder = Path(os.environ.get("DROLAB_REFERENCE", ROOT.parent / "shared" / "reference"))
    if not folder.is_dir():
        whose = "of the paper's authors and of XSTest"
        message = f"no reference data ({whose}) at {folder}: set DROLAB_REFERENCE to compare with it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def tiny_llama() -> ChatModel:
    return wrap(random_llama(), byte_tokenizer(), name="tiny-llama", chat_template="chatml")


@pytest.fixture(scope="session")
def demo() -> ChatModel:
    return drolab.load_model("demo")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in a fixed order, in other processes and on any number of cores: a long training amplifies rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def threads_stay() -> Iterator[None]:
    """No test leaves torch more threads than it found: all that come later would be many times slower."""
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


@pytest.fixture
def store(tmp_path: Path) -> drolab.Store:
    return drolab.Store(tmp_path / "store")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, a line for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
