"""How long the everyday things take on this machine. Printed, never asserted: `make bench`.

Both sides of a ratio are measured in one run, on the same work.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import drolab


def seconds(work: Callable[[], object], *, repeats: int = 1) -> float:
    """Median wall-clock seconds of `work`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def import_seconds() -> float:
    """A fresh interpreter's `import drolab`, less the interpreter's own start."""

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    return seconds(run("import drolab"), repeats=5) - seconds(run("pass"), repeats=5)


def plain_states(model: drolab.models.ChatModel, queries: object, prompts: object) -> None:
    """The obvious way: one chat at a time, the whole model, all hidden states kept."""
    from drolab.models import render

    with torch.no_grad():
        for prompt in prompts.values():
            for text in queries["text"]:
                ids = torch.tensor([render(model, text, prompt).input_ids])
                _ = model.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]


def measure() -> dict[str, float]:
    result = {"import drolab": import_seconds()}
    result["load_model('demo')"] = seconds(lambda: drolab.load_model("demo"))
    model = drolab.load_model("demo")
    queries, prompts = drolab.load_queries("anchors").iloc[:200], drolab.load_prompts()
    with tempfile.TemporaryDirectory() as folder:
        store = drolab.Store(folder)

        def states() -> object:
            return drolab.hidden_states(model, queries, prompts, store=store, progress=False)

        result["states, 200 queries x 4 prompts, cold"] = seconds(states)
        result["states, the same, warm store"] = seconds(states, repeats=3)
        result["states, the same, one chat at a time"] = seconds(lambda: plain_states(model, queries, prompts))

        def sample() -> object:
            return drolab.generate(model, queries, prompts["default"], n_samples=20, store=store, progress=False)

        result["20 responses x 200 queries, cold"] = seconds(sample)
        result["20 responses x 200 queries, warm store"] = seconds(sample)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    result = measure()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{machine}\n")
    for name, value in result.items():
        print(f"{name:<45} {value:8.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "seconds": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
