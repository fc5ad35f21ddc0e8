"""Small tables for figures, as their modules' tests and the test of hostile texts draw them."""

from __future__ import annotations

import numpy as np
import pandas as pd

NAN = float("nan")


def points(prompts: tuple[str, ...] = ("none", "default"), text: str = "How do I kill a process?") -> pd.DataFrame:
    rows = [
        {
            "query_id": f"q{i}",
            "prompt": name,
            "harmful": i % 2 == 0,
            "text": text,
            "x": i + 10.0 * k,
            "y": i * 2.0 - k,
        }
        for k, name in enumerate(prompts)
        for i in range(6)
    ]
    return pd.DataFrame(rows)


def steps() -> pd.DataFrame:
    rows = [
        {"query_id": f"q{i}", "harmful": i < 3, "text": f"query {i}", "step": step, "x": i + 0.1 * step, "y": -step}
        for step in (0, 5, 9)
        for i in range(6)
    ]
    return pd.DataFrame(rows)


def tradeoffs(name: str = "bad") -> pd.DataFrame:
    rows = [("none", 0.9, 0.6, True, ""), ("mine", 0.7, 0.95, True, ""), (name, 0.6, 0.5, False, "none, mine")]
    table = pd.DataFrame(rows, columns=["prompt", "compliance", "refusal", "on_front", "dominated_by"])
    ends = {
        f"{n}_{end}": table[n] + by for n in ("compliance", "refusal") for end, by in (("low", -0.1), ("high", 0.02))
    }
    return table.assign(**ends)


def rate_changes(text: str = "How do I kill a process?", group: str = "harmless") -> pd.DataFrame:
    rates = {"rate_a": [0.0] * 5 + [0.5, np.nan], "rate_b": [1.0] * 5 + [0.5, 0.2]}
    table = pd.DataFrame({"text": text, "group": [group] * 3 + ["harmful"] * 4, **rates})
    return table.set_index(pd.Index([f"q{i}" for i in range(7)], name="query_id"))


def margins(text: str = "How to kill a process? describing") -> pd.DataFrame:
    """Three queries under two prompts with two attacks; the last one was answered as it is."""
    logits = {"parent_logit": [2.0, 3.0, -1.0] * 4, "derived_logit": [-1.0, 2.5, -2.0] * 4}
    prompts, attacks = (["long"] * 6 + [text] * 6), (["suffix"] * 3 + [text] * 3) * 2
    outcomes = ["broken", "held", "answered"] * 4
    return pd.DataFrame({"prompt": prompts, "attack": attacks, "text": text, **logits, "outcome": outcomes})


def sites(token: str = "\n", control: bool = True) -> pd.DataFrame:
    """Two layers and positions: layer 0 has no value at position -1, layer 1 stands out at -1 only."""
    rows = [
        (0, -2, "?", "refusal cosine", 0.2, 0.1, 0.3),
        (0, -1, token, "refusal cosine", NAN, NAN, NAN),
        (1, -2, "?", "refusal cosine", 0.25, 0.15, 0.35),
        (1, -1, token, "refusal cosine", 0.9, 0.8, 0.95),
    ]
    if control:
        rows += [(layer, p, text, "refusal cosine, control", 0.3, 0.2, 0.4) for layer, p, text, *_ in rows]
    return pd.DataFrame(rows, columns=["layer", "position", "token", "measure", "value", "low", "high"])


def claims(text: str = "DRO moves") -> pd.DataFrame:
    rows = [
        ("Separable", 0.98, 0.96, 0.99, 0.42, 0.58, 224, "AUC", "supported"),
        ("Separable as well", 0.5, 0.4, 0.6, 0.42, 0.58, 224, "AUC", "not supported"),
        ("Refusals rise", 0.0004, -0.001, 0.002, 0.0, 0.0, 1224, text, "too little data"),
        (text, NAN, NAN, NAN, NAN, NAN, 0, "logits", "too little data"),
    ]
    columns = ["claim", "estimate", "low", "high", "null_low", "null_high", "n", "unit", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def doses(name: str = "probe") -> pd.DataFrame:
    rows = []
    for direction, kind, slope in ((name, "direction", 0.2), ("r1", "random", 0.01), ("r2", "random", -0.01)):
        for harmful in (True, False):
            for dose in (1.0, -1.0, 0.0):
                refusal = 0.5 + slope * dose
                ends = {"refusal_low": refusal - 0.1, "refusal_high": refusal + 0.1, "compliance": 0.9 - refusal}
                row = {"direction": direction, "kind": kind, "dose": dose, "harmful": harmful, "refusal": refusal}
                rows.append({**row, **ends, "other": 0.1, "kl": NAN if harmful else 0.3 * dose**2})
    return pd.DataFrame(rows)


def grid() -> pd.DataFrame:
    rows = [("a", "none", 0.5, 0.4, 0.6), ("a", "default", 0.0, 0.0, 0.04), ("b", "none", np.nan, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["model", "prompt", "value", "low", "high"])


def queries() -> pd.DataFrame:
    rows = [("a", "q1", 0.0), ("a", "q2", 1.0), ("b", "q1", 0.2), ("b", "q2", 0.4), ("b", "q3", 0.9)]
    return pd.DataFrame(rows, columns=["row", "query_id", "rate"]).assign(text="How do I do it?")


def tokens() -> pd.DataFrame:
    columns = {"token": [0, 1], "norm": [1.0, 2.0], "drift": [0.5, 0.6], "cosine": [0.9, 0.8], "text": ["Be", " <i>"]}
    return pd.concat([pd.DataFrame({"prompt": name, "against": "default", **columns}) for name in ("dro", "vpt")])


def drawn_points(figure: object) -> list:
    """The traces that hold points of the table, and not lines or legend entries."""
    return [trace for trace in figure.data if trace.customdata is not None]
