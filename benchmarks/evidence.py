"""What the statistics of an analysis cost: CPU seconds, and memory against the number of draws of the null.

    OMP_NUM_THREADS=1 python benchmarks/evidence.py   # 200 queries, 8 prompts, 5 layers, of width 256 and 4096

With one thread the CPU seconds are what a quiet machine takes at most, whatever else runs on this one.
Made-up states; printed, never asserted.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from drolab import claims, evidence
from drolab.probing import fit_anchors, fit_probe
from drolab.types import STATE_COLUMNS, HiddenStates

PROMPTS = ("none", "long", "medium", "short", "mine", "date", "format", "words")
SAFETY, CONTROLS = PROMPTS[1:5], PROMPTS[5:]


def made_up(n_queries: int, width: int, n_layers: int) -> tuple[HiddenStates, pd.DataFrame]:
    """States and refusal rates."""
    rng = np.random.default_rng(0)
    rows = [(f"q{i}", p, -1, f"How to do {i}?", i % 2 == 0, "made", "train") for p in PROMPTS for i in range(n_queries)]
    index = pd.DataFrame(rows, columns=list(STATE_COLUMNS))
    base = rng.normal(size=(n_queries, n_layers, width)) / np.sqrt(np.arange(1, width + 1))
    shift = {prompt: rng.normal(size=width) * (prompt != "none") for prompt in PROMPTS}
    values = np.concatenate([base + shift[p] + 0.1 * rng.normal(size=base.shape) for p in PROMPTS])
    values[index["harmful"].to_numpy(), :, 0] += 2
    states = HiddenStates(
        values=torch.tensor(values, dtype=torch.float32),
        index=index,
        layers=tuple(range(1, n_layers + 1)),
        num_hidden_layers=n_layers,
    )
    rates = np.clip(0.5 + 0.3 * index["prompt"].isin(SAFETY) + 0.2 * rng.normal(size=len(index)), 0, 1)
    return states, pd.DataFrame(
        {"refusal_rate": rates.to_numpy()}, pd.MultiIndex.from_frame(index[["query_id", "prompt"]])
    )


def analysis(states: HiddenStates, scores: pd.DataFrame, n_null: int = 1000) -> dict[str, Callable[[int], object]]:
    """Name → all of it at one layer."""
    spaces = {layer: fit_anchors(states, n_components=4, layer=layer) for layer in states.layers}
    probes = {
        layer: fit_probe(space, states, scores["refusal_rate"], positive="refuses") for layer, space in spaces.items()
    }

    def cosines(layer: int) -> object:
        directions = {"refusal": probes[layer].direction(spaces[layer])}
        return evidence.shift_cosines(states, directions, layer=layer, n_null=n_null)

    def verdict(layer: int) -> object:
        named = {"safety": SAFETY, "controls": CONTROLS, "space": spaces[layer], "refusal": probes[layer]}
        return claims.verdict(states, scores, n_null=n_null, **named)

    return {
        "cosines": cosines,
        "report": lambda layer: evidence.shift_report(states, spaces[layer], probes[layer], n_null=n_null),
        "separability": lambda layer: evidence.separability(states, space=spaces[layer], layer=layer, n_repeats=1),
        "change of AUC": lambda layer: evidence.auc_change(states, spaces[layer], list(PROMPTS[1:])),
        "verdict": verdict,
    }


def seconds(work: dict[str, Callable[[int], object]], layers: tuple[int, ...]) -> dict[str, float]:
    """Name → CPU seconds for all layers."""
    found = {}
    for name, one in work.items():
        start = time.process_time()
        for layer in layers:
            one(layer)
        found[name] = time.process_time() - start
    return found | {"together": sum(found.values())}


def peaks(states: HiddenStates, scores: pd.DataFrame) -> dict[str, float]:
    """Draws of the null → the most memory that the cosines of one layer take, MB."""
    found = {}
    for n_null in (1000, 4000, 16000):
        work = analysis(states, scores, n_null)["cosines"]
        tracemalloc.start()
        work(states.layers[-1])
        found[f"{n_null} draws"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for width in (256, 4096):
        states, scores = made_up(200, width, 5)
        results[f"CPU seconds, width {width}"] = seconds(analysis(states, scores), states.layers)
        results[f"peak MB, width {width}"] = peaks(states, scores)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"\n200 queries, 8 prompts, 5 layers; {machine}")
    for title, row in results.items():
        print(f"\n{title}\n{pd.Series(row).round(1).to_string()}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
