"""Shared fixtures: the reference data, a tiny random chat model, the demo model, a fresh store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import drolab
from drolab.models import ChatModel, wrap

ROOT = Path(__file__).parents[1]

pytest.register_assert_rewrite("harness")  # of the browser tests: say what was found, not only that it was wrong


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


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and four special tokens: enough for any text, no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def random_llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers, d = 32, grouped-query attention; weights large enough that attention matters."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    torch.set_rng_state(generator_state)
    return model


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
