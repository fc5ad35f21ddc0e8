"""drolab: see what safety prompts do inside a chat model, train better ones (DRO), and prove that they work.

The names below load their modules on first use, so that `import drolab` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # the experiment in fifteen lines
    "load_model": "models",
    "load_queries": "data",
    "load_prompts": "data",
    "hidden_states": "inference",
    "fit_anchors": "probing",
    "fit_probe": "probing",
    "train_dro": "dro",
    "generate": "inference",
    "judge": "judges",
    "Store": "store",
    # what travels between the steps
    **dict.fromkeys(("SafetyPrompt", "SoftPrompt", "HiddenStates", "AnchorSpace", "Probe"), "types"),
    **dict.fromkeys(("DROConfig", "DROStep", "DRORun"), "types"),
    # wings
    **dict.fromkeys(("figures", "export", "judges", "dro", "evidence", "panels"), ""),
    # modules, each under the name that a reader of the field would ask for
    **dict.fromkeys(("prompts",), "data"),
    **dict.fromkeys(("chat", "passes"), "models"),
    "steering": "models.interventions",
    **dict.fromkeys(("anchors", "probes", "directions", "transfer"), "probing"),
    "labels": "judges.human_labels",
    **dict.fromkeys(("causal", "claims", "comparison", "sweep"), "evidence"),
    "published": "evidence.release_tables",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drolab' has no attribute {name!r}")
    home = importlib.import_module(".".join(filter(None, ("drolab", _HOMES[name]))))
    return home if _HOMES[name].endswith(f".{name}") else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
