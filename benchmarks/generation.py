"""Sampling 25 replies per query: drolab's `generate` against the paper's way, one `model.generate` per query, and
against transformers' continuous batching.

Printed, never asserted. All sides in one run on the same work, in turn; the time is the median. Memory is the peak of
a process of its own above what it took before (Linux only). Random weights end no reply, so every reply has the full
length; the demo model's replies end where they end, and tokens per second count what was written.

Continuous batching sizes itself by a GPU's memory; the sizes given here were the best of a few tried on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import drolab
from drolab.chat import render
from drolab.models import ChatModel, wrap
from drolab.types import SafetyPrompt

N_SAMPLES, MAX_NEW_TOKENS, TOP_P = 25, 48, 0.9
MODELS = ("demo", "random 85M")


def load(name: str) -> ChatModel:
    demo = drolab.load_model("demo")
    if name == "demo":
        return demo
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(demo.tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    return wrap(model, demo.tokenizer, name=f"random {model.num_parameters() / 1e6:.0f}M")


def plain(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt) -> int:
    """The paper's way; returns the number of tokens written."""
    written = 0
    pad = model.tokenizer.pad_token_id
    for text in queries["text"]:
        ids = torch.tensor([render(model, text, prompt).input_ids])
        out = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=MAX_NEW_TOKENS,
            num_return_sequences=N_SAMPLES,
            pad_token_id=pad,
        )[:, ids.shape[1] :]
        written += int((out != pad).sum())
    return written


def shared(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt) -> int:
    table = drolab.generate(
        model, queries, prompt, n_samples=N_SAMPLES, max_new_tokens=MAX_NEW_TOKENS, top_p=TOP_P, progress=False
    )
    return int(table["n_tokens"].sum())


def batched(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt) -> int:
    """Continuous batching: a request per query, 25 sequences each, in pages that they share where they are full."""
    settings = GenerationConfig(
        do_sample=True,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        num_return_sequences=N_SAMPLES,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.model.generation_config.eos_token_id,
    )
    sizes = ContinuousBatchingConfig(page_size=16, num_blocks=300, max_batch_tokens=256)
    ids = [list(render(model, text, prompt).input_ids) for text in queries["text"]]
    found = model.model.generate_batch(ids, settings, sizes).values()
    if any(reply.error for reply in found) or len(found) != N_SAMPLES * len(ids):
        raise RuntimeError(f"{len(found)} replies; { ({reply.error for reply in found}) }")
    return sum(len(reply.generated_tokens) for reply in found)


SIDES: dict[str, Callable[[ChatModel, pd.DataFrame, SafetyPrompt], int]] = {
    "one model.generate per query": plain,
    "transformers' continuous batching": batched,
    "drolab.generate": shared,
}


def measure(name: str, n_queries: int, repeats: int) -> pd.DataFrame:
    """Tokens per second of all sides under the long prompt."""
    model, queries, prompt = load(name), drolab.load_queries("anchors").head(n_queries), long_prompt()
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(repeats + 1):  # the first warms up, on one query
        given = queries if number else queries.head(1)
        for side, work in SIDES.items():
            start = time.perf_counter()
            try:
                written = work(model, given, prompt)
            except Exception as error:  # printed: the other sides are measured all the same
                print(f"{name}, {side}: {error!r}")
                continue
            rates[side] += [written / (time.perf_counter() - start)] if number else []
    return pd.DataFrame(
        {"tokens/s": {side: statistics.median(values) if values else None for side, values in rates.items()}}
    )


def long_prompt() -> SafetyPrompt:
    return max(drolab.load_prompts().values(), key=lambda prompt: len(prompt.text))


def peak(name: str, side: str, n_queries: int) -> float | None:
    """MB above the loaded model, in a process of its own; None if the side does not run."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, side, n_queries))


def _peak(name: str, side: str, n_queries: int) -> float | None:
    model = load(name)
    queries, prompt = drolab.load_queries("anchors").head(n_queries), long_prompt()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    before = _status("VmRSS")
    try:
        SIDES[side](model, queries, prompt)
    except Exception:  # `measure` has printed why
        return None
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    """KB, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}; {arguments.queries} queries x {N_SAMPLES} replies of at most {MAX_NEW_TOKENS} tokens")
    found = {}
    for name in arguments.models:
        table = measure(name, arguments.queries, arguments.repeats)
        table["ratio"] = table["tokens/s"] / table["tokens/s"].iloc[0]
        table["peak MB"] = [peak(name, side, arguments.queries) for side in SIDES]
        print(f"\n{name}\n{table.round(1).to_string()}", flush=True)
        found[name] = table.to_dict("index")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "models": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
