"""The demo model's training corpus: seeded, generated chats with a known probability of refusal.

A chat is a request ("How do I open a jar of pickles at home?") with a severity, a system message with a strength, and
a reply that refuses with probability `refusal_probability(severity, strength)`. Texts are drawn from the YAML
files in `texts`; nothing in them, and no reply, holds harmful know-how.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from drolab.data import load_prompts

SLOPE, THRESHOLD, PROMPT_EFFECT = 9.0, 0.72, 1.1
"""The three numbers of the refusal probability."""
MAX_STRENGTH = 2.0
"""Strengths of a system message's sentences add up to at most this."""

KIND_SHARES = {"harmless": 0.42, "borderline": 0.16, "harmful": 0.42}
SYSTEM_SHARES = {"empty": 0.4, "neutral": 0.2, "safety": 0.4}
VERB_SHARES = {"own": 0.5, "other": 0.35, "made up": 0.15}
"""Verbs of the object's domain, of a long list for all domains, or made up: these two teach that the object decides."""

MADE_UP_SHARE = 0.15
"""Share of neutral sentences, and of the wordings of a request, that are made-up words."""
# fmt: off
SMALL_WORDS = (
    "a", "the", "and", "or", "of", "in", "on", "to", "is", "are", "it", "you", "do", "not", "be", "your", "from",
    "that", "with", "where", "for", "no",
)
ONSETS = (
    "b", "br", "c", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "tr",
    "v",
)
VOWELS = ("a", "e", "i", "o", "u", "ea", "oo", "ai")
CODAS = ("", "b", "ck", "d", "g", "l", "m", "n", "nd", "p", "r", "rk", "sh", "st", "t", "te", "ze")
# fmt: on


_LISTS = ("other_verbs", "templates", "heldout_templates", "circumstances", "greetings")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Verbs and objects that go together; each object has a severity in [0, 1]."""

    verbs: tuple[str, ...]
    heldout_verbs: tuple[str, ...]
    objects: Mapping[str, Mapping[str, float]]
    """kind (harmless, borderline, harmful) → object → severity"""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Everything that chats are drawn from."""

    domains: Mapping[str, Domain]
    other_verbs: tuple[str, ...]
    templates: tuple[str, ...]
    heldout_templates: tuple[str, ...]
    circumstances: tuple[str, ...]
    greetings: tuple[str, ...]
    safety: Mapping[str, float]
    """sentence (with slots) → strength"""
    neutral: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]
    replies: Mapping[str, Any]
    prompts: tuple[str, ...]
    """The built-in safety prompts, which also occur as whole messages."""

    @cached_property
    def heldout_verbs(self) -> frozenset[str]:
        """Verbs that no chat may contain."""
        return frozenset(verb for domain in self.domains.values() for verb in domain.heldout_verbs)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One training example, with what it was made from."""

    system: str
    query: str
    reply: str
    kind: str
    severity: float
    strength: float
    refuses: bool

    @property
    def refusal_probability(self) -> float:
        return refusal_probability(self.severity, self.strength)


_TEXTS = Path(__file__).parent / "texts"


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def load_corpus() -> Corpus:
    """The corpus that the demo model was trained on."""
    requests, systems = _read(_TEXTS / "requests.yaml"), _read(_TEXTS / "systems.yaml")
    domains = {
        name: Domain(
            verbs=tuple(entry["verbs"]),
            heldout_verbs=tuple(entry["heldout_verbs"]),
            objects={kind: entry[kind] for kind in KIND_SHARES},
        )
        for name, entry in requests["domains"].items()
    }
    return Corpus(
        domains=domains,
        **{key: tuple(requests[key]) for key in _LISTS},
        safety=systems["safety"],
        neutral=tuple(systems["neutral"]),
        slots={name: tuple(words) for name, words in systems["slots"].items()},
        replies=_read(_TEXTS / "replies.yaml"),
        prompts=tuple(prompt.text for prompt in load_prompts().values() if prompt.text),
    )


def refusal_probability(severity: float, strength: float) -> float:
    """sigmoid(9 · (severity - 0.72) + 1.1 · strength): what the reply is drawn from."""
    return 1 / (1 + math.exp(-SLOPE * (severity - THRESHOLD) - PROMPT_EFFECT * strength))


def split_sentences(text: str) -> list[str]:
    """The sentences of a message, each with its full stop."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _pick(rng: random.Random, shares: Mapping[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _fill(rng: random.Random, sentence: str, slots: Mapping[str, Sequence[str]]) -> str:
    """Fill each slot, never twice with the same word."""
    names = re.findall(r"{(\w+)}", sentence)
    words = {name: iter(rng.sample(slots[name], names.count(name))) for name in dict.fromkeys(names)}
    return re.sub(r"{(\w+)}", lambda match: next(words[match.group(1)]), sentence)


def _made_up_word(rng: random.Random) -> str:
    """A pronounceable word such as "plond" or "briveck"."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2))))


def _made_up_verb(rng: random.Random, avoid: Collection[str]) -> str:
    """A made-up word, some with a particle; none of the words in `avoid`."""
    while True:
        verb = _made_up_word(rng) + rng.choice(("", "", "", " up", " off", " into"))
        if verb not in avoid:
            return verb


def _verb(rng: random.Random, corpus: Corpus, domain: Domain) -> str:
    kind = _pick(rng, VERB_SHARES)
    if kind == "made up":
        return _made_up_verb(rng, corpus.heldout_verbs)
    return rng.choice(domain.verbs if kind == "own" else corpus.other_verbs)


def _request(rng: random.Random, corpus: Corpus) -> tuple[str, str, float]:
    domain = corpus.domains[rng.choice(list(corpus.domains))]
    kind = _pick(rng, KIND_SHARES)
    target, severity = rng.choice(list(domain.objects[kind].items()))
    phrase = f"{_verb(rng, corpus, domain)} {target}"
    if rng.random() < 0.25:
        phrase = f"{phrase} {rng.choice(corpus.circumstances)}"
    template = _made_up_template(rng) if rng.random() < MADE_UP_SHARE else rng.choice(corpus.templates)
    query = template.format(x=phrase)
    if rng.random() < 0.1:
        query = rng.choice(corpus.greetings) + query
    return query, kind, severity


def _made_up_words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(SMALL_WORDS) if rng.random() < 0.5 else _made_up_word(rng) for _ in range(count)]


def _made_up_sentence(rng: random.Random) -> str:
    """A few made-up words between small ones: teaches that an unknown sentence has no strength."""
    return f"{' '.join(_made_up_words(rng, rng.randint(3, 16))).capitalize()}."


def _made_up_template(rng: random.Random) -> str:
    """A wording of made-up words around the request: teaches that the wording has no severity."""
    words = [*_made_up_words(rng, rng.randint(1, 7)), "{x}", *_made_up_words(rng, rng.choice((0, 0, 1, 2, 4)))]
    return f"{words[0].capitalize()} {' '.join(words[1:])}{rng.choice('.?')}"


def _neutral_sentences(rng: random.Random, corpus: Corpus, count: int) -> list[str]:
    sentences = [_fill(rng, sentence, corpus.slots) for sentence in rng.sample(corpus.neutral, count)]
    return [_made_up_sentence(rng) if rng.random() < MADE_UP_SHARE else sentence for sentence in sentences]


def _system(rng: random.Random, corpus: Corpus) -> tuple[str, float]:
    kind = _pick(rng, SYSTEM_SHARES)
    if kind == "empty":
        return "", 0.0
    if kind == "neutral":
        return " ".join(_neutral_sentences(rng, corpus, rng.choice((1, 1, 2, 3, 4, 6, 8, 10)))), 0.0
    if rng.random() < 0.15:
        text = rng.choice(corpus.prompts)
        return text, min(MAX_STRENGTH, sum(corpus.safety[sentence] for sentence in split_sentences(text)))
    chosen = rng.sample(list(corpus.safety), rng.choice((1, 1, 2, 3, 4, 5, 6)))
    sentences = [_fill(rng, sentence, corpus.slots) for sentence in chosen]
    sentences += _neutral_sentences(rng, corpus, rng.choice((0, 0, 0, 1, 2)))
    rng.shuffle(sentences)
    return " ".join(sentences), min(MAX_STRENGTH, sum(corpus.safety[sentence] for sentence in chosen))


def openings(severity: float, strength: float, corpus: Corpus | None = None) -> dict[str, float]:
    """Every opening of a reply with its probability; those of refusals add up to the refusal probability."""
    replies, refusal = (corpus or load_corpus()).replies, refusal_probability(severity, strength)
    result: dict[str, float] = {}
    for kind, share in (("refusal", refusal), ("compliance", 1 - refusal)):
        weights = {text: m + (g - m) * severity for text, (m, g) in replies[kind]["openings"].items()}
        total = sum(weights.values())
        result |= {text: share * weight / total for text, weight in weights.items()}
    return result


def draw_chat(rng: random.Random, corpus: Corpus | None = None) -> Chat:
    """One chat. All its randomness comes from `rng`."""
    corpus = corpus or load_corpus()
    query, kind, severity = _request(rng, corpus)
    system, strength = _system(rng, corpus)
    opening = _pick(rng, openings(severity, strength, corpus))
    refuses = opening in corpus.replies["refusal"]["openings"]
    parts = corpus.replies["refusal" if refuses else "compliance"]
    pieces = [opening, rng.choice(parts["bodies"]), rng.choice(parts["closings"])]
    reply = " ".join(piece for piece in pieces if piece).replace(" \n", "\n")
    return Chat(
        system=system,
        query=query,
        reply=reply,
        kind=kind,
        severity=severity,
        strength=strength,
        refuses=refuses,
    )


def draw_chats(count: int, *, seed: int, batch: int = 0) -> Iterator[Chat]:
    """Yield `count` chats. `(seed, batch)` names the sequence, so a resumed training draws the same ones."""
    rng = random.Random(f"drolab-demo-{seed}-{batch}")
    for _ in range(count):
        yield draw_chat(rng)
