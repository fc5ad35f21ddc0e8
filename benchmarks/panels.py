"""How long the kernel's side of a panel's updates takes: what stands between a control and the message to the browser.

Printed, never asserted. The points are made up: of 200 (10,000) queries under five prompts, in 64 dimensions.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from drolab import panels
from drolab.types import STATE_COLUMNS, HiddenStates

PROMPTS = ("none", "default", "medium", "short", "mine")
WIDTH = 64


def made_up(n_queries: int) -> dict[str, Any]:
    """States of two layers, scores and replies, as `panels.projection` takes them."""
    rng = np.random.default_rng(0)
    rows = [
        (
            f"q{i}",
            prompt,
            -1,
            f"How do I do thing number {i}, which takes a line to ask for?",
            i % 2 == 0,
            f"c{i % 9}",
            "",
        )
        for prompt in PROMPTS
        for i in range(n_queries)
    ]
    index = pd.DataFrame(rows, columns=list(STATE_COLUMNS))
    values = rng.normal(size=(len(rows), WIDTH)).astype(np.float32)
    values[:, 0] += 4 * index["harmful"].to_numpy()
    values[:, 1] += index["prompt"].map({prompt: i for i, prompt in enumerate(PROMPTS)}).to_numpy()
    pairs = index[["query_id", "prompt"]]
    rates = np.where(index["harmful"], 0.7, 0.2) * rng.random(len(rows))
    return {
        "states": HiddenStates(
            values=torch.from_numpy(np.stack([values, -values], axis=1)),
            index=index,
            layers=(1, 2),
            num_hidden_layers=2,
        ),
        "scores": pairs.assign(refusal_rate=rates).set_index(["query_id", "prompt"]),
        "replies": pairs.assign(sample=0, response=[f"I cannot help with request {i}." for i in range(len(rows))]),
    }


def updates(panel: panels.ProjectionPanel) -> dict[str, list[Callable[[], object]]]:
    """Name → the update and the one that takes it back."""
    controls = panel.controls

    def values(name: str, *wanted: Any) -> list[Callable[[], object]]:
        return [lambda value=value: setattr(controls[name], "value", value) for value in wanted]

    def event(name: str) -> Callable[[], object]:
        return lambda: panel.picture.receive({"event": name, "points": [(0, 3)]})

    outline = {"type": "path", "path": "M0,2L3,2L3,-1L0,-1Z"}
    message = {"event": "edit", "edits": [(("layout", "selections"), [outline])]}
    return {
        "prompts": values("prompts", ("none", "mine"), PROMPTS),
        "colour": values("color", "refusal_rate", "category", "prompt"),
        "component": values("x", 3, 1),
        "layer": values("layer", 1, 2),
        "arrows": values("arrows", False, True),
        "theme": values("theme", "dark", "light"),
        "hover": [event("hover"), event("unhover")],
        "lasso": [lambda: panel.picture.receive(message), event("deselect")],
        "find": [controls["find"].click, controls["clear"].click],
    }


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def measure(n_queries: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each kind of update, after a first round (a layer's first is its fit)."""
    panel: Any = None

    def construct() -> None:
        nonlocal panel
        panel = panels.projection(anchors=PROMPTS[:4], **made)

    made = made_up(n_queries)
    result = {"construct": milliseconds(construct)}
    for name, steps in updates(panel).items():
        first, *rounds = [[milliseconds(step) for step in steps] for _ in range(repeats + 1)]
        result |= {"layer, first time": max(first)} if name == "layer" else {}
        result[name] = statistics.median(value for times in rounds for value in times)
    return result | {"board": board(n_queries, repeats)}


def board(n_queries: int, repeats: int) -> float:
    """Median milliseconds until the board shows another choice of prompts."""
    index = pd.MultiIndex.from_product([range(n_queries), PROMPTS], names=["query_id", "prompt"])
    rates = np.random.default_rng(0).random(len(index))
    columns = {"refusal_rate": rates, "compliance_rate": 1 - rates, "harmful": index.get_level_values(0) % 2 == 0}
    columns |= {"n_samples": 10, "any_refusal": rates > 0, "any_compliance": rates < 1}
    control = panels.board(pd.DataFrame(columns, index=index)).controls["prompts"]
    choices = [("none", "short"), ("none", "default", "mine")] * repeats
    return statistics.median(
        milliseconds(lambda choice=choice: setattr(control, "value", choice)) for choice in choices
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = {5 * n_queries: measure(n_queries, arguments.repeats) for n_queries in (200, 10_000)}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{machine}; kernel side, ms\n\n{pd.DataFrame(results).round(1).to_string()}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
