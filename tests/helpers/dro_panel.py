"""The DRO panel on a small training."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from drolab import panels
from drolab.panels import DROPanel
from drolab.store import Store
from drolab.types import DROConfig, SafetyPrompt
from helpers.training import CAREFUL, SHORT_RUN, Setting

PROMPTS = {"none": SafetyPrompt(name="none", text=""), "careful": CAREFUL}


def panel_of(
    setting: Setting, store: Store | None = None, *, config: DROConfig = SHORT_RUN, **options: Any
) -> DROPanel:
    """A panel set to a run; the short one has 9 steps, kept at 4, 8 and 9."""
    probes = {name: getattr(setting, name) for name in ("space", "refusal", "harmfulness")}
    panel = panels.dro(setting.model, setting.queries, prompts=PROMPTS, store=store, **probes, **options)
    for part in fields(DROConfig):
        panel.controls[part.name].value = getattr(config, part.name)
    return panel


LONG_RUN = replace(SHORT_RUN, num_train_epochs=60, checkpoint_every=5)  # 180 steps
