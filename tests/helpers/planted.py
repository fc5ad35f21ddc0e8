"""Hidden states with a known geometry, made without a model, for the tests of anchors, probes and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from drolab.types import STATE_COLUMNS, HiddenStates

WIDTH = 24


def state_index(prompts: list[str], n_per_class: int) -> pd.DataFrame:
    """STATE_COLUMNS for every prompt, and within each the harmful, then the harmless queries."""
    rows = [
        (f"q{number}", prompt, -1, f"How to do {number}?", number < n_per_class, "made", "train")
        for prompt in prompts
        for number in range(2 * n_per_class)
    ]
    return pd.DataFrame(rows, columns=list(STATE_COLUMNS))


def as_states(values: np.ndarray, index: pd.DataFrame, fingerprint: str = "planted") -> HiddenStates:
    """One layer, called 2 of 2."""
    return HiddenStates(
        values=torch.tensor(values, dtype=torch.float32)[:, None],
        index=index,
        layers=(2,),
        num_hidden_layers=2,
        model_fingerprint=fingerprint,
    )


def axis(number: int) -> np.ndarray:
    return np.eye(WIDTH)[number]


def planted_states(
    shifts: Mapping[str, np.ndarray], *, n_per_class: int = 30, gap: float = 3.0, noise: float = 0.3, seed: int = 0
) -> HiddenStates:
    """Queries spread in axes 2 to 9, their classes lie `gap` apart on axis 0, prompt p moves each by shifts[p].

    `noise` is what a shift differs by from query to query, in every axis.
    """
    rng = np.random.default_rng(seed)
    index = state_index(["none", *shifts], n_per_class)
    queries = rng.normal(size=(2 * n_per_class, WIDTH)) * (np.arange(WIDTH) < 10) * (np.arange(WIDTH) > 1)
    queries[:n_per_class] += gap / 2 * axis(0)
    queries[n_per_class:] -= gap / 2 * axis(0)
    moved = [queries + shift + noise * rng.normal(size=queries.shape) for shift in shifts.values()]
    return as_states(np.concatenate([queries, *moved]), index)


def parity_states(reference: Path) -> HiddenStates:
    """The reference states (paper's code), in the reference's order: harmless, then harmful, each by prompt."""
    from safetensors.torch import load_file

    stored = load_file(reference / "parity" / "states.safetensors")
    keys = [(kind, prompt) for kind in ("harmless", "harmful") for prompt in ("none", "default", "short", "mistral")]
    rows = [
        (f"{kind}-{number}", prompt, -1, f"{kind} {number}", kind == "harmful", "made", "train")
        for kind, prompt in keys
        for number in range(50)
    ]
    return HiddenStates(
        values=torch.cat([stored[f"{prompt}.{kind}"] for kind, prompt in keys]),
        index=pd.DataFrame(rows, columns=list(STATE_COLUMNS)),
        layers=(1, 2, 3),
        num_hidden_layers=3,
    )
