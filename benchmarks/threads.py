"""What a number of threads costs and brings, on an idle machine and beside busy processes (docs/performance.md).

    python benchmarks/threads.py                     # the demo model
    python benchmarks/threads.py --model FOLDER --queries 8

Each row is the same work on the same model: states of queries under a prompt, replies, steps of DRO. `drolab` is the
number that it chooses by itself (`threads.n_threads`). Leave OMP_NUM_THREADS unset.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import torch

import drolab
from drolab import threads
from drolab.models import ChatModel
from drolab.threads import n_threads


def busy() -> None:
    while True:
        pass


@contextmanager
def beside(n: int) -> Iterator[None]:
    """With so many processes that never rest."""
    others = [multiprocessing.get_context("spawn").Process(target=busy, daemon=True) for _ in range(n)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def works(model: ChatModel, n_queries: int) -> dict[str, Callable[[], object]]:
    queries = drolab.load_queries("anchors").groupby("harmful").head(n_queries // 2)
    prompts = drolab.load_prompts()
    prompt = prompts["default"]
    states = drolab.hidden_states(model, queries, [prompts["none"], prompt], progress=False)
    space = drolab.fit_anchors(states, spread=False)
    harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful", check=False)
    probes = {"space": space, "refusal": replace(harm, positive="refuses"), "harmfulness": harm, "progress": False}
    config = drolab.DROConfig(num_train_epochs=3, batch_size=n_queries)
    return {
        "states": lambda: drolab.hidden_states(model, queries, prompt, progress=False),
        "replies": lambda: drolab.generate(model, queries, prompt, n_samples=2, max_new_tokens=16, progress=False),
        "3 DRO steps": lambda: drolab.train_dro(model, queries, init=prompt, config=config, **probes),
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(model: ChatModel, n_queries: int, others: list[int], repeats: int) -> pd.DataFrame:
    """Seconds: the fastest of `repeats`, all numbers of threads in turn."""
    cores, todo, rows = torch.get_num_threads(), works(model, n_queries), []
    choices = {"1 thread": 1, f"{cores} threads": cores, "drolab": n_threads(model.model)}
    own = threads.n_threads
    for n in others:
        with beside(n):
            for name, work in todo.items():
                best = dict.fromkeys(choices, float("inf"))
                for _ in range(repeats):
                    for choice, number in choices.items():
                        threads.n_threads = lambda _, number=number: number
                        best[choice] = min(best[choice], seconds(work))
                rows.append({"busy processes beside it": n, "work": name, **best})
    threads.n_threads = own
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if "OMP_NUM_THREADS" in os.environ:
        raise SystemExit("Leave OMP_NUM_THREADS unset: it would decide in drolab's place.")
    model = drolab.load_model(options.model)
    print(f"{model!r}, {torch.get_num_threads()} threads to begin with, drolab takes {n_threads(model.model)}")
    print(measured(model, options.queries, options.beside, options.repeats).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
