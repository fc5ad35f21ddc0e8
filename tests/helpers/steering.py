"""Models of several families under edits of their states, and what they then say, two ways."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from drolab.inference import hidden_states, next_tokens
from drolab.models import ChatModel, Edit, Patch, encode, render, steered, wrap
from drolab.types import SafetyPrompt
from helpers.families import UNSHARED
from helpers.replies import QUERIES
from helpers.tiny import byte_tokenizer

CARE = SafetyPrompt(name="care", text="Be careful.")
WIDTH, LAST = 32, 2
COMMON = {
    "vocab_size": 260,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAST,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZED = {**COMMON, "intermediate_size": 48, "max_position_embeddings": 512, "pad_token_id": 0}
GPT2 = {"n_embd": WIDTH, "n_layer": LAST, "n_head": 4, "n_positions": 512, "vocab_size": 260, "initializer_range": 0.2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, dict] = {
    "llama": {**SIZED, "num_key_value_heads": 2},
    "gpt2": {**GPT2, **ENDS},
    "gpt_neox": SIZED,
    "gemma2": {**SIZED, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "falcon": COMMON,  # its blocks return tuples, and its own loop notes the states
    "openai-gpt": {**GPT2, **ENDS},  # no final norm
    "qwen3_next": UNSHARED["qwen3_next"][1],  # no prefix can be shared
}


def made(name: str) -> ChatModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **FAMILIES[name]))
    return wrap(model, byte_tokenizer(), name=name, chat_template="chatml")


def vector(seed: int = 0, norm: float = 3.0) -> Tensor:
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return norm * direction / direction.norm()


def all_states(model: ChatModel) -> Tensor:
    """[n_queries, n_layers, d] at the read position."""
    return hidden_states(model, QUERIES, CARE, layers=range(LAST + 1), progress=False).values


def next_log_probabilities(model: ChatModel, *edits: Edit) -> Tensor:
    """[n_queries, vocabulary] log-probabilities."""
    batch = encode(model, QUERIES["text"].tolist(), CARE)
    found = {
        row: own for _, rows, part in next_tokens(model, batch, [edits]) for row, own in zip(rows, part, strict=True)
    }
    return torch.stack([found[row] for row in range(len(batch))])


def one_by_one(model: ChatModel, *edits: Edit) -> Tensor:
    """The same with a plain pass for every chat."""
    rows = []
    for row, text in enumerate(QUERIES["text"]):
        own = [Patch(edit.states[row : row + 1], edit.layer) if isinstance(edit, Patch) else edit for edit in edits]
        with steered(model, *own) as changed, torch.no_grad():
            logits = changed.model(torch.tensor([render(model, text, CARE).input_ids])).logits[0, -1]
        rows.append(logits.log_softmax(dim=-1))
    return torch.stack(rows)


def hooks(model: ChatModel) -> int:
    """All hooks but those that transformers itself leaves at the blocks to collect hidden states."""
    found = [
        hook for m in model.model.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
    ]
    return sum(not hook.__module__.startswith("transformers.") for hook in found)
