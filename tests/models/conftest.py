"""A saved model, for what loads one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import byte_tokenizer, random_llama

from drolab.models import chat_format


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model whose tokenizer has a chat template."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    random_llama().save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    tokenizer.save_pretrained(path)
    return path
