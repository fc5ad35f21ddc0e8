"""drolab: see what safety prompts do inside a chat model, train better ones (DRO), and prove that they work.

The names below load their modules on first use, so that `import drolab` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "types": ("SafetyPrompt", "SoftPrompt", "HiddenStates", "AnchorSpace", "Probe", "DROConfig", "DROStep", "DRORun"),
    "store": ("Store",),
    "data": ("load_queries", "load_prompts"),
    "models": ("load_model", "layers_at"),
    "inference": ("hidden_states", "generate"),
    "probing": ("fit_anchors", "fit_probe"),
    "judges": ("judge",),
    "dro": ("train_dro",),
    "check": ("check_model",),
    "reproduction": ("reproduce",),
}
"""Wing → what it gives to everyone."""
_MODULES = {
    **{name: name for name in ("figures", "export", "judges", "dro", "evidence", "panels", "cluster")},
    "attacks": "data.attacks",
    "prompts": "data.prompts",
    "chat": "models.chat",
    "passes": "models.passes",
    "steering": "models.interventions",
    **{name: f"probing.{name}" for name in ("anchors", "probes", "directions", "transfer")},
    "labels": "judges.human_labels",
    **{name: f"evidence.{name}" for name in ("causal", "claims", "comparison", "sweep")},
    "published": "evidence.release_tables",
    "tables": "figures.tables",
}
"""Public name of a module → where it lies."""
_WINGS = {name: wing for wing, names in _NAMES.items() for name in names}

__all__ = sorted([*_WINGS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"drolab.{_MODULES[name]}")
    if name in _WINGS:
        return getattr(importlib.import_module(f"drolab.{_WINGS[name]}"), name)
    raise AttributeError(f"module 'drolab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
