"""Write `drolab/assets/paper_results.csv`: what the paper released of its eight models, as shares.

    python -m recipes.paper_results.make LLM-Safeguard_data   # a clone of the release

A row for each model, data set and prompt: the share of queries with the event (compliance with a harmful query,
refusal of a harmless one) in any of 20 replies, and the share of replies. Numbers alone: no query and no reply.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from drolab import published
from drolab.data import PAPER_RESULTS
from drolab.files import write_file

DATASETS = ("malicious", "advbench", "gcg", "custom", "testset", "custom-harmless")
"""Without AlpacaEval, of which wins are counted."""
_HUMAN = ("default", "mistral", "short")
PROMPTS = ("none", *_HUMAN, *(f"{method}-{name}" for method in ("dro", "vpt") for name in _HUMAN))
COLUMNS = ("model", "dataset", "measure", "prompt", "any", "per_sample")


def released(folder: Path) -> pd.DataFrame:
    """COLUMNS, from a clone of the release; what it lacks has no row."""
    release, place = published.load(folder), ["model", "dataset", "prompt"]
    shares = release.queries.assign(per_sample=release.queries["events"] / release.queries["n_samples"])
    means = shares.groupby(place, as_index=False)["per_sample"].mean().astype({"per_sample": float})
    counts = release.counts.assign(any=release.counts["count"] / release.counts["n_queries"])
    table = counts[counts["dataset"].isin(DATASETS) & counts["prompt"].isin(PROMPTS)].merge(means, on=place, how="left")
    return table[list(COLUMNS)].round(4)


def main(arguments: Sequence[str] | None = None) -> None:
    (folder,) = sys.argv[1:] if arguments is None else arguments
    table = released(Path(folder))
    write_file(PAPER_RESULTS, str(table.to_csv(index=False)))
    print(f"{PAPER_RESULTS}: {len(table)} rows of {table['model'].nunique()} models")


if __name__ == "__main__":
    main()
