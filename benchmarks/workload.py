"""What the benchmarks run: models of a known shape, and the peak of their memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import drolab
from drolab.models import ChatModel, wrap


@dataclass(frozen=True)
class Shape:
    """Of a random Llama."""

    width: int
    inner: int
    """Of the feed-forward part."""
    layers: int
    heads: int
    key_heads: int
    vocabulary: int | None = None
    """None is the demo model's."""
    tied: bool = False
    sharpness: float = 1.0
    """What the states are multiplied with before the head. With 1, all tokens are about equally probable."""


SMOL = Shape(width=576, inner=1536, layers=30, heads=9, key_heads=3, sharpness=10.5)
"""SmolLM2-135M, whose vocabulary is 49k and tied, and as uncertain as it (see `docs/performance.md`)."""
SHAPES = {
    "random 85M": Shape(width=768, inner=2048, layers=12, heads=12, key_heads=12),
    **{
        f"random 135M, {vocabulary // 1000}k{' tied' if tied else ''}": replace(SMOL, vocabulary=vocabulary, tied=tied)
        for vocabulary in (49_152, 128_256, 256_000)
        for tied in (True, False)
    },
    "random 135M, 49k flat": replace(SMOL, vocabulary=49_152, tied=True, sharpness=1.0),
    "random 7B": Shape(width=4096, inner=11008, layers=32, heads=32, key_heads=32, vocabulary=32_000),
}
MODELS = ("demo", *SHAPES)


def load(name: str, device: str = "cpu") -> ChatModel:
    """The demo model, or one of the shapes with random weights, whose replies end at their full length."""
    demo = drolab.load_model("demo")
    if name == "demo":
        demo.model.to(device)
        return demo
    shape = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary or len(demo.tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        eos_token_id=None,
        dtype="bfloat16" if device == "cuda" else "float32",
    )
    with torch.device(device):
        torch.set_default_dtype(config.dtype)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(shape.sharpness)
    return wrap(model, demo.tokenizer, name=name)


def synchronised(model: ChatModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def peak_of(work: Callable[[], object], device: str) -> float:
    """MB that the work takes at most, above what is taken before it. On a CPU in a process of its own, on Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024 - resident
