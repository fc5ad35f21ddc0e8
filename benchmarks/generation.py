"""Sampling 25 replies per query: drolab's `generate` against the paper's way, one `model.generate` per query, and
against transformers' continuous batching; and how much of drolab's time is the choice of tokens.

    python benchmarks/generation.py --queries 20
    OMP_NUM_THREADS=1 python benchmarks/generation.py --models "random 135M, 49k tied" --queries 4 --repeats 1
    python benchmarks/generation.py --models "random 7B" --device cuda --queries 200 --max-new-tokens 100 --repeats 1

Printed, never asserted. All sides in one run on the same work, in turn; the time is the median. With one thread on a
CPU it is the processor's, so that other work beside it counts for little. Memory is the peak of a process of its own
above what it took before (Linux only). Random weights end no reply, so every reply has the full length; the demo
model's replies end where they end, and tokens per second count what was written.

Continuous batching sizes itself by a GPU's memory; the sizes given here were the best of a few tried on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from workload import MODELS, load, peak_of, synchronised

import drolab
from drolab.inference import sampling
from drolab.models import ChatModel, render
from drolab.types import SafetyPrompt

N_SAMPLES, TOP_P = 25, 0.9


@dataclass(frozen=True)
class Work:
    """What all sides do."""

    model: ChatModel
    queries: pd.DataFrame
    prompt: SafetyPrompt
    max_new_tokens: int

    @classmethod
    def make(cls, name: str, device: str, n_queries: int, max_new_tokens: int) -> Work:
        """Under the long prompt."""
        prompt = max(drolab.load_prompts().values(), key=lambda prompt: len(prompt.text))
        return cls(load(name, device), drolab.load_queries("anchors").head(n_queries), prompt, max_new_tokens)

    def chats(self) -> list[list[int]]:
        return [list(render(self.model, text, self.prompt).input_ids) for text in self.queries["text"]]

    def settings(self) -> dict[str, Any]:
        return {
            "do_sample": True,
            "top_p": TOP_P,
            "top_k": 0,
            "max_new_tokens": self.max_new_tokens,
            "num_return_sequences": N_SAMPLES,
            "pad_token_id": self.model.tokenizer.pad_token_id,
        }


def plain(work: Work) -> int:
    """The paper's way; returns the number of tokens written."""
    written = 0
    for chat in work.chats():
        ids = torch.tensor([chat], device=work.model.device)
        out = work.model.model.generate(ids, attention_mask=torch.ones_like(ids), **work.settings())
        written += int((out[:, len(chat) :] != work.model.tokenizer.pad_token_id).sum())
    return written


def shared(work: Work) -> int:
    table = drolab.generate(
        work.model,
        work.queries,
        work.prompt,
        n_samples=N_SAMPLES,
        max_new_tokens=work.max_new_tokens,
        top_p=TOP_P,
        progress=False,
    )
    return int(table["n_tokens"].sum())


def batched(work: Work) -> int:
    """Continuous batching: a request per query, 25 sequences each, in pages that they share where they are full."""
    settings = GenerationConfig(eos_token_id=work.model.model.generation_config.eos_token_id, **work.settings())
    on_a_cpu = ContinuousBatchingConfig(page_size=16, num_blocks=300, max_batch_tokens=256)
    sizes = on_a_cpu if work.model.device.type == "cpu" else None
    found = work.model.model.generate_batch(work.chats(), settings, sizes).values()
    if any(reply.error for reply in found) or len(found) != N_SAMPLES * len(work.queries):
        raise RuntimeError(f"{len(found)} replies; { ({reply.error for reply in found}) }")
    return sum(len(reply.generated_tokens) for reply in found)


SIDES: dict[str, Callable[[Work], int]] = {
    "one model.generate per query": plain,
    "transformers' continuous batching": batched,
    "drolab.generate": shared,
}


@contextmanager
def timed_choices(model: ChatModel) -> Iterator[list[float]]:
    """The seconds of each choice of drolab's, from logits to tokens."""
    seconds: list[float] = []
    choose, now = sampling._pick, clock(model)

    def timed(*args: Any) -> torch.Tensor:
        synchronised(model)
        start = now()
        chosen = choose(*args)
        seconds.append(now() - start)
        return chosen

    with patch.object(sampling, "_pick", timed):
        yield seconds


def clock(model: ChatModel) -> Callable[[], float]:
    """What counts seconds: the processor's where one thread does all the work."""
    alone = torch.get_num_threads() == 1 and model.device.type == "cpu"
    return time.process_time if alone else time.perf_counter


def measure(work: Work, repeats: int) -> pd.DataFrame:
    """Tokens per second of all sides, and the share of the time in which tokens are chosen (drolab only)."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    shares: dict[str, list[float]] = {side: [] for side in SIDES}
    first, now = replace(work, queries=work.queries.head(1)), clock(work.model)
    for number in range(repeats + 1):  # the first warms up, on one query
        for side, run in SIDES.items():
            start = now()
            try:
                with timed_choices(work.model) as choices:
                    written = run(work if number else first)
            except Exception as error:  # printed: the other sides are measured all the same
                print(f"{work.model.name}, {side}: {error!r}")
                continue
            synchronised(work.model)
            if number:
                took = now() - start
                rates[side].append(written / took)
                shares[side].append(100 * sum(choices) / took)
    columns = {"tokens/s": rates, "choosing %": shares}
    table = pd.DataFrame(
        {
            name: pd.Series(values).map(lambda some: statistics.median(some) if some else None)
            for name, values in columns.items()
        }
    )
    return table.astype(float).mask(table == 0)


def peak(side: str, *work: Any) -> float | None:
    """MB above the loaded model, in a process of its own; None if the side does not run."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (side, work))


def _peak(side: str, given: tuple[str, str, int, int]) -> float | None:
    work = Work.make(*given)
    try:
        return peak_of(lambda: SIDES[side](work), given[1])
    except Exception:  # `measure` has printed why
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--models", nargs="+", default=["demo", "random 85M"], choices=MODELS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}"
    print(f"{machine}; {arguments.queries} queries x {N_SAMPLES} replies of at most {arguments.max_new_tokens} tokens")
    found = {}
    for name in arguments.models:
        given = (name, arguments.device, arguments.queries, arguments.max_new_tokens)
        table = measure(Work.make(*given), arguments.repeats)
        table["ratio"] = table["tokens/s"] / table["tokens/s"].iloc[0]
        table["peak MB"] = [peak(side, *given) for side in SIDES]
        print(f"\n{name}\n{table.round(1).to_string()}", flush=True)
        found[name] = table.to_dict("index")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "models": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
