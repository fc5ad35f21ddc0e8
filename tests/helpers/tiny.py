"""A tokenizer of bytes and a random Llama of two layers: enough for any text, no training."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drolab.models import chat_format

ROOT = Path(__file__).parents[2]

WIDE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A tiny model's, wide enough for blocks of 64."""


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


def save_babbler(folder: Path) -> str:
    """A chat model that never refuses, on disk: its replies are random bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    random_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
