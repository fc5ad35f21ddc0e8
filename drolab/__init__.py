"""drolab: see what safety prompts do inside a chat model, train better ones (DRO), and prove that they work.

The names below load their modules on first use, so that `import drolab` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drolab.types import (
    AnchorSpace,
    DROConfig,
    DRORun,
    DROStep,
    HiddenStates,
    Probe,
    SafetyPrompt,
    SoftPrompt,
)

if TYPE_CHECKING:
    import drolab.causal as causal
    import drolab.claims as claims
    import drolab.comparison as comparison
    import drolab.directions as directions
    import drolab.evidence as evidence
    import drolab.export as export
    import drolab.figures as figures
    import drolab.judges as judges
    import drolab.labels as labels
    import drolab.panels as panels
    import drolab.published as published
    import drolab.steering as steering
    import drolab.sweep as sweep
    from drolab.anchors import fit_anchors
    from drolab.data import load_queries
    from drolab.dro import train_dro
    from drolab.hidden import hidden_states
    from drolab.judges import judge
    from drolab.models import load_model
    from drolab.probes import fit_probe
    from drolab.prompts import load_prompts
    from drolab.responses import generate
    from drolab.store import Store

__version__ = "0.1.0"

_HOMES = {
    "load_model": "models",
    "load_queries": "data",
    "load_prompts": "prompts",
    "hidden_states": "hidden",
    "fit_anchors": "anchors",
    "fit_probe": "probes",
    "train_dro": "dro",
    "generate": "responses",
    "judge": "judges",
    "Store": "store",
}
_MODULES = frozenset(
    {
        *("causal", "claims", "comparison", "directions", "evidence", "export", "figures", "judges", "labels"),
        *("panels", "published", "steering", "sweep"),
    }
)

__all__ = [
    "AnchorSpace",
    "DROConfig",
    "DRORun",
    "DROStep",
    "HiddenStates",
    "Probe",
    "SafetyPrompt",
    "SoftPrompt",
    "Store",
    "causal",
    "claims",
    "comparison",
    "directions",
    "evidence",
    "export",
    "figures",
    "fit_anchors",
    "fit_probe",
    "generate",
    "hidden_states",
    "judge",
    "judges",
    "labels",
    "load_model",
    "load_prompts",
    "load_queries",
    "panels",
    "published",
    "steering",
    "sweep",
    "train_dro",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"drolab.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"drolab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'drolab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
