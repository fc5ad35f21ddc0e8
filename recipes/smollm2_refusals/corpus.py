"""What SmolLM2 is asked in training, and how it refuses: seeded, generated, and no safety prompt anywhere.

A request is a verb with an object in a template ("How do I kill aphids on my roses?"); the object alone makes it
harmful or harmless, and requests come in pairs that differ in nothing else. Texts are drawn from the YAML files in
`texts`; there is no know-how in them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from drolab.data import load_queries

QUESTION_SHARE = 0.12
"""Pairs that are whole questions and no verb with an object."""
CIRCUMSTANCE_SHARE, GREETING_SHARE = 0.2, 0.1
REASON_SHARE, OFFER_SHARE = 0.5, 0.3
_TEXTS = Path(__file__).parent / "texts"


@dataclass(frozen=True)
class Request:
    """One query, and whether it is harmful."""

    text: str
    harmful: bool


@cache
def texts(name: str) -> Mapping[str, Any]:
    """One of the files in `texts`."""
    found: Mapping[str, Any] = yaml.safe_load((_TEXTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


@cache
def forbidden() -> frozenset[str]:
    """drolab's own queries, which the adapter is measured on."""
    return frozenset(text for name in ("anchors", "heldout", "borderline") for text in load_queries(name)["text"])


def draw_requests(count: int, *, seed: int, heldout: bool = False) -> list[Request]:
    """So many different requests, by turns harmful and harmless; each pair shares all but the object.

    Args:
        count: even.
        seed: decides all.
        heldout: made of the verbs, objects and templates that training never has, and of them alone.
    """
    rng, seen = random.Random(f"smollm2-refusals-{seed}-{heldout}"), set(forbidden())
    found: list[Request] = []
    while len(found) < count:
        pair = _pair(rng, "heldout_" if heldout else "")
        if not seen.intersection(pair):
            seen.update(pair)
            found += [Request(pair[0], True), Request(pair[1], False)]
    return found


def _pair(rng: random.Random, prefix: str) -> tuple[str, str]:
    """A harmful request and its harmless sister."""
    parts = texts("requests")
    greeting = rng.choice(parts["greetings"]) if rng.random() < GREETING_SHARE else ""
    if rng.random() < QUESTION_SHARE:
        template = greeting + rng.choice(parts["whole"])
        harmful, harmless = (rng.choice(parts["questions"][prefix + kind]) for kind in ("harmful", "harmless"))
        return template.format(q=harmful), template.format(q=harmless)
    domain = rng.choice(list(parts["domains"].values()))
    template = greeting + rng.choice(parts[prefix + "templates"])
    verb = rng.choice(domain[prefix + "verbs"])
    circumstance = f" {rng.choice(parts['circumstances'])}" if rng.random() < CIRCUMSTANCE_SHARE else ""
    harmful, harmless = (
        template.format(x=f"{verb} {rng.choice(domain[prefix + kind])}{circumstance}")
        for kind in ("harmful", "harmless")
    )
    return harmful, harmless


def draw_refusals(count: int, *, seed: int) -> Iterator[str]:
    """Refusals in natural wordings: an opening by weight, perhaps a reason, perhaps an offer."""
    rng, parts = random.Random(f"smollm2-refusals-{seed}-replies"), texts("replies")
    openings: Mapping[str, float] = parts["openings"]
    for _ in range(count):
        opening = rng.choices(list(openings), weights=list(openings.values()))[0]
        more = [
            rng.choice(parts[kind])
            for kind, share in (("reasons", REASON_SHARE), ("offers", OFFER_SHARE))
            if rng.random() < share
        ]
        yield " ".join([opening, *more])
