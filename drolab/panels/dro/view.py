"""What the DRO panel shows of runs: tables side by side, curves, and the queries' movement. No widgets here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from drolab.dro import KeptRun, compare
from drolab.figures import PALETTE, PlaneLook, movement_content, plane, probe_boundaries, tables
from drolab.panels.markup import paragraph
from drolab.types import DRORun


def stacked(tables: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The tables of several runs below each other, with the run's name before."""
    parts = [rows.assign(run=name) for name, rows in tables.items() if len(rows)]
    wanted = ["run", *columns]
    return pd.concat(parts, ignore_index=True).reindex(columns=wanted) if parts else pd.DataFrame(columns=wanted)


def runs_as_html(kept: Mapping[str, KeptRun], states: Sequence[str]) -> str:
    """`dro.compare` as a person reads it: one column for both classes, numbers rounded. `states`: one per run."""
    found = compare(kept)
    notes = found.pop("note")  # that of the chosen run stands above, see `notes_as_html`
    found.insert(1, "status", [f"{s}, with a caution" if n else s for s, n in zip(states, notes, strict=True)])
    shown: dict[str, Any] = {}
    for name in found.columns:
        stem, _, kind = name.rpartition(" ")
        if kind in ("harmful", "harmless"):
            both = found.reindex(columns=[f"{stem} harmful", f"{stem} harmless"]).itertuples(index=False)
            cells = [" / ".join(map(tables.number_text, pair)) for pair in both]
            shown[f"{_heading(stem)} harmful/harmless"] = cells
        else:
            shown[name.replace("_", " ")] = found[name]
    return tables.table_html(pd.DataFrame(shown))


def notes_as_html(kept: KeptRun) -> str:
    """Why a run is not to be trusted, and how much of what it says is unseen."""
    problems = "".join(map(paragraph, kept.problems))
    warning = f'<div style="border-left:4px solid {PALETTE[5]};padding-left:8px">{problems}</div>' if problems else ""
    return warning + (paragraph(kept.unseen) if kept.unseen else "")


def _heading(stem: str) -> str:
    return stem.replace("other", "neither").replace("kl", "KL")


def moved_in(paths: pd.DataFrame, components: tuple[int, int]) -> pd.DataFrame:
    """A table of `dro.trajectories` with x and y, the places in the plane of two components (counted from 0)."""
    x, y = (paths[f"component_{number + 1}"] for number in components)
    return paths.assign(x=x, y=y)


def movement(moved: pd.DataFrame, run: DRORun, components: tuple[int, int], step: int, theme: str) -> plane.Content:
    """The figure of a table of `moved_in` up to a step, for `Picture.update_to`."""
    shares = run.space.explained_variance_ratio.tolist()
    x, y = (f"component {number + 1} ({shares[number]:.0%} of the anchors' variance)" for number in components)
    lines = probe_boundaries(run.refusal, run.harmfulness, plane=components)
    return movement_content(moved, PlaneLook(boundaries=lines, axis_titles=(x, y), theme=theme), step=step)
