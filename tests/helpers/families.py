"""Tiny random models of many families, and what their states are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from drolab.models import ChatModel, can_share_prefix, forward_states, prompt_token_ids, wrap
from drolab.models.layers import has_blocks
from drolab.types import SafetyPrompt, SoftPrompt
from helpers.tiny import byte_tokenizer, random_llama

COMMON = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
SHORT, LONG = {"sliding_window": 5}, {"sliding_window": 64}
"""Windows shorter and longer than the prefix of 12 tokens."""
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 260, "initializer_range": 0.2}
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""A chat template that refuses a system message and trims what it writes, as that family's does."""
LAYERS, POSITIONS = (0, 1, 2), (-1, -3)
NONE = SafetyPrompt(name="none", text="")
CARE = SafetyPrompt(name="care", text="Be careful with what you say.")


def queries_of(texts: Sequence[str], harmful: Sequence[bool] | None = None) -> pd.DataFrame:
    names = [f"q{number}" for number in range(len(texts))]
    table = {
        "query_id": names,
        "text": list(texts),
        "harmful": list(harmful or [number % 2 == 0 for number in range(len(texts))]),
        "category": "test",
        "split": "train",
        "source": "test",
    }
    return pd.DataFrame(table, index=names)


QUERIES = queries_of(
    ["How to paint?", "How to paint a fence?", "Why?", "How to cook rice well?", "Where is it?", "So?"]
)


@contextmanager
def counted(model: ChatModel, *, interrupt_at: int | None = None) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the decoder's inputs, call by call; Ctrl-C before call number `interrupt_at`."""
    can_share_prefix(model)  # the trials are not what is counted
    has_blocks(model)
    calls: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        if len(calls) + 1 == interrupt_at:
            raise KeyboardInterrupt
        calls.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    hook = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {**COMMON, **GROUPED, "tie_word_embeddings": False}),
    "llama, tied": ("llama", {**COMMON, **GROUPED, "tie_word_embeddings": True}),
    "llama, all heads": ("llama", {**COMMON, "num_key_value_heads": 4}),
    "mistral, short window": ("mistral", {**COMMON, **GROUPED, **SHORT}),
    "mistral, long window": ("mistral", {**COMMON, **GROUPED, **LONG}),
    "mistral, no window": ("mistral", {**COMMON, **GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", {**COMMON, "num_key_value_heads": 2}),
    "qwen2, short window": (
        "qwen2",
        {**COMMON, "num_key_value_heads": 2, **SHORT, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**COMMON, **GROUPED}),
    "gemma2, short window": ("gemma2", {**COMMON, **GROUPED, **SHORT, **MIXED}),
    "gemma2, long window": ("gemma2", {**COMMON, **GROUPED, **LONG, **MIXED}),
    "gemma3, short window": ("gemma3_text", {**COMMON, **GROUPED, **SHORT, **MIXED}),
    "gemma3, long window": ("gemma3_text", {**COMMON, **GROUPED, **LONG, **MIXED}),
    "phi3, short window": ("phi3", {**COMMON, "num_key_value_heads": 2, **SHORT}),
    "phi3": ("phi3", {**COMMON, "num_key_value_heads": 2}),
    "olmo2": ("olmo2", {**COMMON, "num_key_value_heads": 2}),
    "gpt_neox": ("gpt_neox", COMMON),
    "gpt2": ("gpt2", GPT2),
    "mixtral, short window": ("mixtral", {**COMMON, **GROUPED, **MOE, **SHORT}),
    "mixtral": ("mixtral", {**COMMON, **GROUPED, **MOE, "sliding_window": None}),
}
UNSHARED: dict[str, tuple[str, dict]] = {
    "falcon_mamba": (
        "falcon_mamba",
        {
            "vocab_size": 260,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "expand": 2,
            "initializer_range": 0.2,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **COMMON,
            **GROUPED,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
}


def family(name: str, attention: str | None = None) -> ChatModel:
    model_type, options = {**FAMILIES, **UNSHARED}[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **options)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return wrap(model, byte_tokenizer(), name=name, chat_template="chatml")


PREFIX = list(range(100, 112))
SUFFIXES = [[10, 11, 12], [13, 14, 15, 16, 17, 18, 19], [20, 21, 22, 23], [24, 25, 26]]


def plain(model: ChatModel, prefix: Tensor) -> Tensor:
    """The whole causal model, one chat at a time, nothing shared, nothing padded."""
    chats = []
    for suffix in SUFFIXES:
        embedded = torch.cat([prefix, model.embed(torch.tensor(suffix))])[None]
        states = model.model(inputs_embeds=embedded, output_hidden_states=True, use_cache=False).hidden_states
        chats.append(torch.stack([torch.stack([states[layer][0, p] for layer in LAYERS]) for p in POSITIONS]))
    return torch.stack(chats)


def shared(model: ChatModel, prefix: Tensor) -> Tensor:
    return forward_states(model, prefix, SUFFIXES, layers=LAYERS, positions=POSITIONS)


def with_gradient(model: ChatModel, compute: Callable[[ChatModel, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """States, and the gradient of a random projection of them at the prefix. (Not of their squared norm:
    after a norm layer that is nearly constant, and its gradient rounding noise.)"""
    prefix = model.embed(torch.tensor(PREFIX)).requires_grad_()
    states = compute(model, prefix)
    projection = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * projection).sum().backward()
    assert prefix.grad is not None
    return states.detach(), prefix.grad


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def fresh(seed: int = 0) -> ChatModel:
    """A model of its own: what is found out by trying, and about memory, is remembered per model."""
    return wrap(random_llama(seed=seed), byte_tokenizer(), name="small", chat_template="chatml")


def as_soft(model: ChatModel, prompt: SafetyPrompt) -> SoftPrompt:
    """The embeddings of a prompt's own text."""
    vectors = model.embed(torch.tensor(prompt_token_ids(model, prompt.text))).float()
    return SoftPrompt(name=f"soft {prompt.name}", embeddings=vectors, model_fingerprint=model.fingerprint)
