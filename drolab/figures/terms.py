"""Words that a reader may not know, each with one plain sentence: docs/glossary.md has these and more about each."""

from __future__ import annotations

import re

TERMS = {
    "Anchor space": "The few directions in which hidden states differ most between queries and prompts.",
    "Boundary": "The line at which a probe is undecided.",
    "Cosine": "How alike two directions are, whatever their lengths: 1 the same, 0 unrelated, -1 opposite.",
    "Dominated": "Another prompt is at least as safe and at least as helpful, and better in one of the two.",
    "Drift": "How far training moved the states out of the anchor space, in units of the anchors' distance from it.",
    "Interval": "A range that would hold the true number in 95 of 100 repetitions with other queries of the same kind.",
    "KL": "How much the probabilities of the first token have changed; 0 is no change.",
    "Neither and other": "The probability of first tokens that begin neither a refusal nor an answer.",
    "Not significant (n.s.)": "Not more than chance reaches.",
    "Null": "What a number would be if there were nothing to find.",
    "Refusal logit": "What the refusal probe says of a state: 0 is undecided, +2 a probability of .88, -2 one of .12.",
    "Refusal rate": "The share of a query's sampled replies that a judge calls refusals; of a class the mean of these.",
    "Shift": "How a prompt moves a query: the state under the prompt less the state without one.",
}
"""A heading of docs/glossary.md → its sentence, as tooltips show it."""

_WRITTEN = {
    "Interval": r"\[95 %\]",
    "Neither and other": r"\bneither\b",
    "Not significant (n.s.)": r"\bn\.s\.",
    "Shift": r"(?<!or )\bshift\b",
}
"""How a text writes the terms that it does not write as their headings are."""


def explained(text: str) -> str:
    """The sentences of all terms in a text, a line each; empty if there are none.

    Examples:
        >>> from drolab import figures
        >>> print(figures.explained("shift of the refusal logit [95 %]"))
        Interval: A range that would hold the true number in 95 of 100 repetitions with other queries of the same kind.
        Refusal logit: What the refusal probe says of a state: 0 is undecided, +2 a probability of .88, -2 one of .12.
        Shift: How a prompt moves a query: the state under the prompt less the state without one.
    """
    found = [term for term in TERMS if re.search(_WRITTEN.get(term, rf"\b{term}\b"), text, re.IGNORECASE)]
    return "\n".join(f"{term}: {TERMS[term]}" for term in found)
