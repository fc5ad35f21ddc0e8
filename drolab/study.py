"""The experiment on one model, from queries to probes, in one call: what the dashboard's panels show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.data.prompts import load_prompts
from drolab.data.queries import load_queries
from drolab.evidence.comparison import query_groups
from drolab.export import about
from drolab.inference.hidden import hidden_states
from drolab.inference.responses import generate
from drolab.judges import judge
from drolab.models.load import ChatModel, load_model
from drolab.probing.anchors import fit_anchors
from drolab.probing.probes import fit_probe
from drolab.store import Store
from drolab.types import AnchorSpace, HiddenStates, Probe, SafetyPrompt

_MOST_LAYERS = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """The experiment that the dashboard's panels show."""

    model: ChatModel
    store: Store
    queries: pd.DataFrame
    """The query set of the states, the probes and the training."""
    prompts: dict[str, SafetyPrompt]
    states: HiddenStates
    """Of `queries`, at up to nine layers, the last one among them."""
    replies: pd.DataFrame
    """RESPONSE_COLUMNS: to `queries` and to the borderline ones."""
    scores: pd.DataFrame
    """What `judge` says of the replies."""
    groups: pd.Series
    """Query id → harmful, harmless or borderline."""
    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe
    about: dict[str, Any]
    """For the manifests of exports."""


def study(
    model: str = "demo",
    *,
    queries: str = "anchors",
    prompts: str = "safety",
    store: str | Path | None = None,
    n_samples: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """The whole experiment on one model. Only what the store lacks is computed.

    Args:
        model, queries, prompts: as `load_model`, `load_queries` and `load_prompts` take them.
        n_samples: replies per query and prompt.
    """
    chat, kept = load_model(model), Store(store)
    asked, named = load_queries(queries), load_prompts(prompts)
    everything = pd.concat([asked, load_queries("borderline")]).drop_duplicates("query_id")
    layers = _spread(chat.num_hidden_layers)
    states = hidden_states(chat, asked, named, layers=layers, store=kept, progress=progress)
    replies = generate(chat, everything, named, n_samples=n_samples, seed=seed, store=kept, progress=progress)
    scores, space = judge(replies), fit_anchors(states, n_components=4)
    settings = {"n_samples": n_samples, "layer": space.layer}
    return Study(
        model=chat,
        store=kept,
        queries=asked,
        prompts=named,
        states=states,
        replies=replies,
        scores=scores,
        groups=query_groups(everything),
        space=space,
        refusal=fit_probe(space, states, scores["refusal_rate"], positive="refuses"),
        harmfulness=fit_probe(space, states, asked["harmful"], positive="harmful"),
        about=about(chat, named, asked, settings, seed),
    )


def _spread(last: int) -> list[int]:
    """Layers from the embeddings (0) to the last, all of them or as many as a drop-down can take."""
    steps = min(last, _MOST_LAYERS - 1)
    return sorted({round(last * step / steps) for step in range(steps + 1)})
