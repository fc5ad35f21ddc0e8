"""A small DRO training: its queries, its probes, and what two runs have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from drolab import dro
from drolab.dro import training
from drolab.inference import hidden_states
from drolab.models import ChatModel
from drolab.probing import fit_anchors, fit_probe
from drolab.store import Store
from drolab.types import QUERY_COLUMNS, AnchorSpace, DROConfig, DRORun, Probe, SafetyPrompt, SoftPrompt


def query_table(harmful: list[str], harmless: list[str]) -> pd.DataFrame:
    rows = [(f"q{i}", text, i < len(harmful), "made", "train", "test") for i, text in enumerate(harmful + harmless)]
    return pd.DataFrame(rows, columns=list(QUERY_COLUMNS), index=[row[0] for row in rows])


HARMFUL = [f"How to kill {thing}?" for thing in ("a man", "the king", "my aunt", "a judge", "the cook")]
HARMLESS = [f"How to kill {thing}?" for thing in ("a job", "a tab", "my lawn", "time", "the engine")]
QUERIES = query_table(HARMFUL, HARMLESS)
CAREFUL = SafetyPrompt(name="careful", text="Be careful, be kind.")
SHORT_RUN = DROConfig(num_train_epochs=3, batch_size=4, checkpoint_every=4)  # 9 steps


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What `train_dro` needs for a model, beside the model."""

    model: ChatModel
    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe
    queries: pd.DataFrame = field(default_factory=lambda: QUERIES)
    init: SafetyPrompt | SoftPrompt = CAREFUL
    config: DROConfig = SHORT_RUN

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("model", "queries")}

    def train(self, store: Store | None = None) -> DRORun:
        return dro.train_dro(self.model, self.queries, **self.arguments(), store=store, progress=False)

    def steps(self, store: Store | None = None) -> Any:
        return dro.Training(self.model, self.queries, **self.arguments(), store=store).steps()


def setting_of(model: ChatModel) -> Setting:
    prompts = [SafetyPrompt(name="none", text=""), CAREFUL]
    states = hidden_states(model, QUERIES, prompts, progress=False)
    space = fit_anchors(states)
    harmfulness = fit_probe(space, states, QUERIES["harmful"], positive="harmful", check=False)
    return Setting(model=model, space=space, refusal=replace(harmfulness, positive="refuses"), harmfulness=harmfulness)


def assert_equal_runs(one: DRORun | dro.PromptTuningRun, other: DRORun | dro.PromptTuningRun) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert torch.equal(one.soft_prompt.embeddings, other.soft_prompt.embeddings)
    assert list(one.snapshots) == list(other.snapshots)
    assert all(torch.equal(one.snapshots[step], other.snapshots[step]) for step in one.snapshots)


def failing(after: int, error: Callable[[], Any]) -> Callable[..., Any]:
    """`forward_states`, but in its call number `after` + 1 and later it does what `error` does."""
    calls = iter(range(1, 1000))
    original = training.forward_states

    def forward(*args: Any, **options: Any) -> Any:
        return original(*args, **options) if next(calls) <= after else error()

    return forward
