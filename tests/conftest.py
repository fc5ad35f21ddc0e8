"""Shared fixtures: the reference data, a tiny random chat model, the demo model, a fresh store."""

from __future__ import annotations

import os
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
        message = f"no reference data at {folder}: set DROLAB_REFERENCE"
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


@pytest.fixture
def store(tmp_path: Path) -> drolab.Store:
    return drolab.Store(tmp_path / "store")
