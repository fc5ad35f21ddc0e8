"""Would another adapter say the same? `python -m recipes.smollm2_refusals.seeds --out FOLDER`.

Trains the adapter with two more seeds, and the control: one whose refusals were dealt to harmful and harmless requests
at random. Then notebook 09 asks its question of them and of the one that ships. What is there is gone on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from drolab.notebooks import notebooks_folder, run_notebooks
from drolab.report import collect
from recipes.smollm2_refusals.train import CHECKPOINT, Recipe, train

SEEDS = (1, 2)


def adapters(out: Path) -> dict[str, str]:
    """What each is called → what to load; trained now, where that is not done."""
    wanted = {f"seed {seed}": Recipe(seed=seed) for seed in SEEDS} | {"shuffled": Recipe(shuffle=True)}
    found = {"seed 0": "smollm2-refuses"}
    for name, recipe in wanted.items():
        folder = out / name.replace(" ", "-")
        if not (folder / "adapter_config.json").is_file() or (folder / CHECKPOINT).is_file():
            train(recipe, folder)
        found[name] = str(folder.resolve())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smollm2_refusals.seeds", description="Ask notebook 09's question of other adapters."
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for adapters and results")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    parameters = {"MODELS": adapters(out), "OUT": str(out)}
    run_notebooks([notebooks_folder() / "09_a_real_model.ipynb"], out, parameters=parameters, timeout=None)
    print(*collect(out)["09"]["findings"], sep="\n\n")


if __name__ == "__main__":
    main()
