r"""What a response says in the model's own voice, sentence by sentence.

What it quotes stands as \x00 there, what it writes as code as \x01, what it thinks between `<think>` marks as blanks;
quotation marks are plain, and emphasis and doubled blanks are gone. Every character knows its place in the response.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

_READ = 8000
"""Characters that are read: what a response does is shown long before, and a megabyte costs no more."""
Span = tuple[int, int]
_CODE = "\x01"

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("’‘ʼ´‛′＇", "'"),
        **dict.fromkeys("“”„«»‟＂", '"'),
        **dict.fromkeys("–—‐‑", "-"),
        **dict.fromkeys("•●·", "*"),
        **dict.fromkeys("\u00a0\u202f\u2009\t", " "),
        "\r": "\n",
    }
)
_UNSEEN = "\u200b\u2060\ufeff\u00ad"
_MAY_BE_LOOSE = ("  ", "*", "_", *_UNSEEN)
_LOOSE = re.compile(  # blanks after a blank, marks of emphasis at a word, characters that nobody sees
    r" (?<=  ) *|\*\*+|\*(?=\w)|\*(?<=[\w.!?,:;]\*)|_(?<!\w_)_*(?=\w)|_(?<=[\w.!?,:;]_)_*(?!\w)"
    rf"|[{_UNSEEN}]+"
)
_END_OF_THOUGHT = "</think>"
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_TICKED = re.compile(r"`[^`\n]{1,200}`")
_QUOTED = re.compile(
    r'"[^"\n]{1,600}"'
    r"|(?<![\w.,;:!?)])'(?:[^'\n]|(?<=\w)'(?=\w)){1,400}'(?!\w)"
    r"|^ *>[^\n]*"
    r"|^ *(?:dear (?!user|friend)[^\n]{1,60}$|subject:)[^\n]*(?:\n[^\n]*)*",  # a letter to somebody else, to its end
    re.MULTILINE | re.IGNORECASE,
)
_SPEAKER = re.compile(  # a line of a dialogue
    r"^ *(?!(?:answer|response|assistant|ai|note|warning|important)\b)[a-z][\w.']{0,20}: [^\n]*",
    re.MULTILINE | re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_LINE = re.compile(r"[^\n]+")
_BREAK = re.compile(  # after a full stop that ends no abbreviation, before what begins like a sentence
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bSt\.)"
    r"[\"')*\x00]*\s+(?=[\"'(*\x00A-Z\d])"
)
_ITEM = re.compile(r"\s*(?:\d{1,2}\s?[.):]|[-*+]|[a-hA-H][.)]|[Ss][Tt][Ee][Pp] \d+:?)\s+(?=\S)")
_NOTHING = " \x00*#_-"
_TAILS = ("ing", "ies", "ed", "es", "er", "ly", "s", "y", "e")
_STEM = 6


@dataclass(frozen=True, eq=False)
class Sentence:
    start: int
    """In the voice's texts; so is the end."""
    end: int
    text: str
    """Lower-case."""
    n: int
    """Words."""
    listed: bool
    """Part of a list."""
    opens_item: bool

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(map(stem, words(self.text)))

    @cached_property
    def announces(self) -> bool:
        """Ends with a colon."""
        return self.text.rstrip(" *\x00").endswith(":")


@dataclass(frozen=True, eq=False)
class Voice:
    """A response as it is read; its texts and places are of one length."""

    said: str
    """Without its thoughts, lower-case."""
    own: str
    """Without its thoughts, its code and its quotations."""
    places: Sequence[int]
    """Where each character stands in the response."""

    @cached_property
    def lower(self) -> str:
        return lower(self.own)

    @cached_property
    def sentences(self) -> list[Sentence]:
        return list(_sentences(self.own, self.lower))

    def in_response(self, spans: Sequence[Span]) -> list[Span]:
        """Spans of the texts as spans of the response."""
        return [(self.places[start], self.places[end - 1] + 1) for start, end in spans]

    @cached_property
    def has_code(self) -> bool:
        return _CODE in self.own

    @cached_property
    def length(self) -> int:
        """Of its sentences, in words; at least 1."""
        return sum(sentence.n for sentence in self.sentences) or 1


def listen(response: str) -> Voice:
    """The response after its last thought."""
    thought = response.rfind(_END_OF_THOUGHT)
    begin = 0 if thought < 0 else thought + len(_END_OF_THOUGHT)
    text, places = _tightened(plain(response[begin : begin + _READ]), begin)
    said = _covered(text, _THOUGHT, " ")
    own = _covered(_covered(said, _FENCED, _CODE), _TICKED, "\x00")
    if not _all_in_quotes(own.strip()):
        own = _covered(own, _QUOTED, "\x00")
    if len(_SPEAKER.findall(own)) > 1:
        own = _covered(own, _SPEAKER, "\x00")
    return Voice(lower(said), own, places)


def plain(text: str) -> str:
    """With plain quotation marks, dashes and blanks; every character keeps its place."""
    return text.translate(_PLAIN)


def lower(text: str) -> str:
    """In lower case, at the same length: a letter that would become two stays as it is."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def words(text: str) -> list[str]:
    return _WORD.findall(text)


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """The beginning of a lower-case word, without its ending."""
    word = word.removesuffix("'s")
    for tail in _TAILS:
        if word.endswith(tail) and len(word) - len(tail) >= 3:
            return word[: -len(tail)][:_STEM]
    return word[:_STEM]


def _tightened(text: str, begin: int) -> tuple[str, Sequence[int]]:
    """Without emphasis, doubled blanks and what nobody sees; and where the rest stands."""
    if not any(mark in text for mark in _MAY_BE_LOOSE):
        return text, range(begin, begin + len(text))
    loose = {place for match in _LOOSE.finditer(text) for place in range(*match.span())}
    places = [place for place in range(len(text)) if place not in loose]
    return "".join(map(text.__getitem__, places)), [begin + place for place in places]


def _covered(text: str, pattern: re.Pattern[str], mark: str) -> str:
    return pattern.sub(lambda match: re.sub(r"[^\n]", mark, match.group()), text)


def _all_in_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2


def _sentences(text: str, low: str) -> Iterator[Sentence]:
    for line in _LINE.finditer(text):
        start, stop = line.span()
        item = _ITEM.match(text, start, stop)
        start = item.end() if item else start
        opens = bool(item)
        for end, following in _breaks(text, start, stop):
            if text[start:end].strip(_NOTHING):
                said = low[start:end]
                yield Sentence(start, end, said, len(words(said)), bool(item), opens)
                opens = False
            start = following


def _breaks(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where each sentence of a line ends and where the next one starts."""
    yield from (match.span() for match in _BREAK.finditer(text, start, stop))
    yield stop, stop
