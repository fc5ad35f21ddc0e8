"""Tiny models that write replies, and the queries they are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from drolab.inference import generate
from drolab.models import ChatModel, render, wrap
from drolab.types import SafetyPrompt
from helpers.tiny import byte_tokenizer, random_llama

NONE = SafetyPrompt(name="none", text="")
CAREFUL = SafetyPrompt(name="careful", text="Be careful.")
SHAPE = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.25}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": random_llama,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**WIDTH, **SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**WIDTH, **SHAPE, num_key_value_heads=2, sliding_window=48)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SHAPE)),
}


def queries(*texts: str) -> pd.DataFrame:
    ids = [f"q{number}" for number in range(len(texts))]
    table = pd.DataFrame({"query_id": ids, "text": texts, "harmful": [n % 2 == 1 for n in range(len(texts))]})
    return table.assign(category="any", split="test", source="test").set_axis(ids)


QUERIES = queries("How to boil an egg?", "How to sing?", "How to plan a trip?", "How to swim?", "What?")


def greedy_by_transformers(model: ChatModel, text: str, prompt: SafetyPrompt, **settings: Any) -> torch.Tensor:
    """[n]: the tokens of the greedy reply to one query, as transformers' own loop writes them."""
    ids = torch.tensor([render(model, text, prompt).input_ids])
    written = model.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0, **settings
    )
    reply: torch.Tensor = written[0, ids.shape[1] :]
    return reply


def texts(table: pd.DataFrame) -> dict[tuple[str, str, int], str]:
    index = zip(table.query_id, table.prompt, table["sample"], strict=True)
    return dict(zip(index, table.response, strict=True))


def small(model: ChatModel, table: pd.DataFrame, prompts: object, **settings: object) -> pd.DataFrame:
    given = {"n_samples": 4, "max_new_tokens": 6, "progress": False, **settings}
    return generate(model, table, prompts, **given)  # type: ignore[arg-type]


def writer(name: str) -> ChatModel:
    """A random model of one of the FAMILIES."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FAMILIES[name]()
    return wrap(model, byte_tokenizer(), name=name, chat_template="chatml")
