"""What notebooks save, made up: a verdict of any outcome, and a small run for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drolab import export, figures
from drolab.evidence import claims

CLAIMS = (
    *(claims.SEPARABLE, claims.NOT_ENHANCED, claims.ALIKE, claims.BEYOND, claims.ALONG),
    *(claims.HARMFUL, claims.HARMLESS, claims.APART, claims.LOGIT_APART),
)
HOSTILE = "<script>window.hit=1</script><img src=x onerror=window.hit=1> \u202e</script>"


def verdict_row(claim: claims.Claim, decision: str, under: str = "", reason: str = "") -> dict[str, Any]:
    """A number beyond the threshold on the side that the decision says."""
    known = decision != claims.CANNOT
    side = claim.side * (-1 if decision == claims.NOT_SUPPORTED else 1)
    estimate = claim.threshold + 0.25 * side if known else np.nan
    numbers = (estimate, estimate - 0.125, estimate + 0.125, -0.1, 0.1, claim.threshold, claim.side, 20)
    row = (claim.text, under, *numbers, claim.unit, 0.01, 0.99, decision, reason)
    return dict(zip(claims.COLUMNS, row, strict=True))


def verdict_table(decision: str = claims.SUPPORTED, **of: str) -> pd.DataFrame:
    """A row for each claim, with this decision, or that of its name: `ALONG="not supported"`."""
    named = {getattr(claims, name): found for name, found in of.items()}
    decided = {claim: named.get(claim, decision) for claim in CLAIMS[:-1]} | {claims.LOGIT_APART: claims.BY_DESIGN}
    reasons = {claims.CANNOT: "Nobody refuses."}
    return pd.DataFrame([verdict_row(claim, found, "", reasons.get(found, "")) for claim, found in decided.items()])


def save_run(out: Path, verdict: pd.DataFrame | None = None, prompt: str = "default", **more: str) -> None:
    """What notebooks 01, 04, 06 and 07 would have saved."""
    about = {"model": "demo", "fingerprint": "abc", "seed": 7, "prompts": {prompt: "Be <b>kind</b>."}, **more}
    export.Results(out, "01", title="What is read?", about=about).add(numbers={"tokens": 1234})
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"query_id": [f"q{i}" for i in range(10)] * 2, "prompt": ["none"] * 10 + [prompt] * 10})
    points = points.assign(harmful=[True, False] * 10, text="How?", x=rng.normal(size=20), y=rng.normal(size=20))
    projection = {"projection": (figures.projection(points, title="Shifts"), points)}
    export.Results(out, "04", title="Which direction?").add(figures=projection, captions={"projection": "It moves."})
    rates = pd.DataFrame({"prompt": ["none", prompt], "group": "harmful", "value": [0.25, 0.5]})
    rates = rates.assign(low=rates["value"] - 0.1, high=rates["value"] + 0.1)
    long = pd.DataFrame({"place": range(31), "note": ""})
    export.Results(out, "06", title=f"Does it refuse? {prompt}").add(
        figures={"rates": (figures.rate_bars(rates, title="Rates"), rates), "again": (figures.rate_bars(rates), rates)},
        tables={"replies": pd.DataFrame({"response": [prompt]})},
        numbers={"gain": 0.25, "refusal rates": rates, "all the places": long},
        captions={"refusal rates": f"More is refused. {prompt}"},
    )
    if verdict is not None:
        plane = rates.assign(compliance=0.5, refusal=rates["value"], on_front=True, dominated_by="")
        ends = {f"{name}_{end}": plane[name] for name in ("compliance", "refusal") for end in ("low", "high")}
        drawn = {"tradeoff": (figures.tradeoff(plane.assign(**ends)), plane), "forest": figures.forest(verdict)}
        short = verdict[["claim", "estimate", "verdict"]]
        numbers = {"verdict": short, "differences": rates.drop(columns="group")}
        tables = {"verdict": verdict}
        results = export.Results(out, "07", title="Which is worth it?")
        results.add(figures=drawn, tables=tables, numbers=numbers)
