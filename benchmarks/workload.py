"""What the benchmarks run: models of a known shape, and the peak of their memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import drolab
from drolab.models import ChatModel, wrap

SHAPES = {"random 85M": (768, 2048, 12, 12), "random 7B": (4096, 11008, 32, 32)}
"""Width, width of the feed-forward part, layers, heads."""
MODELS = ("demo", *SHAPES)


def load(name: str, device: str = "cpu") -> ChatModel:
    """The demo model, or one of the shapes with random weights, whose replies end at their full length."""
    demo = drolab.load_model("demo")
    if name == "demo":
        demo.model.to(device)
        return demo
    width, inner, layers, heads = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(demo.tokenizer) if name != "random 7B" else 32000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        eos_token_id=None,
        dtype="bfloat16" if device == "cuda" else "float32",
    )
    with torch.device(device):
        torch.set_default_dtype(config.dtype)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
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
