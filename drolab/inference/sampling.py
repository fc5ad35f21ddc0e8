"""Which token comes next, and what ends a reply: the loop over tokens.

The loop is drolab's own, so that a reply is a function of the chat, the settings and the sample's number alone. Each
sample has its own stream of uniform numbers, which pick tokens by the inverse of the cumulative distribution. Batch
size, order and the other queries change a result by rounding errors at most. Only temperature, top_k, top_p and
forbidden words shape the distribution, each as in transformers: what a model's generation_config says of them, or of
others (repetition_penalty, …), is not applied.

Two things make it fast. What chats and samples share is read where it is and never copied (`models.kv_cache`). And
samples of a query that have said the same so far are one row of the batch: they part where their tokens first differ.

In order: the presets and the settings, how samples are put into batches, the loop, what may come next and what ends a
reply, the choice of a token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drolab.errors import QueryError
from drolab.inference.thoughts import Thoughts, decoded_texts
from drolab.models import ChatModel, Reader

_AT_ONCE, _AT_ONCE_ELSEWHERE = {"cpu": 2**19}, 2**24
"""Logits from which tokens are picked at once, by type of device. On a CPU more fall out of its caches."""

_LIST_NUMBER = re.compile(r"\d\.$")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {
        "max_new_tokens": 64,
        "min_new_tokens": 0,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "bad_words": (),
        "whole_paragraphs": False,
    },
    "paper": {
        "max_new_tokens": 300,
        "min_new_tokens": 10,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 50,
        "bad_words": ("\nHello", "\nHi", " ON", "' "),
        "whole_paragraphs": True,
    },
}
"""Name → settings of `generate`, which says where those of `paper` come from."""

_ANCHORS = ("a", "\n", ".")
"""A word's tokens are read off behind one of these: some tokenizers put a space before what a text begins with."""


def preset(name: str, **changed: Any) -> dict[str, Any]:
    """The settings of a preset; of those given, each that is not None stands in its place.

    Raises:
        QueryError: there is no such preset.
    """
    if name not in PRESETS:
        raise QueryError(f"There is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return {**PRESETS[name], **{setting: value for setting, value in changed.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How replies are written; see `generate`.

    Raises:
        QueryError: a value out of its range.
    """

    n_samples: int
    max_new_tokens: int
    """Of the answer, where the thought before it has a budget of its own; else of the whole reply."""
    max_thinking_tokens: int | None = None
    """None: there is no thought, or it counts like all the rest."""
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int = 0
    """0 keeps every token."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """The tokens of each forbidden word, see `word_ids`."""
    seed: int

    def __post_init__(self) -> None:
        for name in ("n_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise QueryError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_thinking_tokens is not None and self.max_thinking_tokens < 1:
            raise QueryError(
                f"max_thinking_tokens must be at least 1, got {self.max_thinking_tokens}: a model whose template has a "
                "switch does not think with load_model(…, template_kwargs={'enable_thinking': False})."
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise QueryError(
                f"min_new_tokens must be from 0 to max_new_tokens={self.max_new_tokens}, got {self.min_new_tokens}."
            )
        if not all(isinstance(text, str) and text for text in self.stop_strings):
            raise QueryError(f"stop_strings must be texts that are not empty, got {list(self.stop_strings)!r}.")
        if self.do_sample and not 0 < self.temperature < float("inf"):
            raise QueryError(f"temperature must be above 0, got {self.temperature}: do_sample=False is greedy.")
        if self.do_sample and not 0 < self.top_p <= 1:
            raise QueryError(f"top_p must be above 0 and at most 1, got {self.top_p}: 1 keeps every token.")
        if self.do_sample and self.top_k < 0:
            raise QueryError(f"top_k must not be below 0, got {self.top_k}: 0 keeps every token.")
        if not self.do_sample and self.n_samples != 1:
            raise QueryError(
                f"Greedy replies are all equal, so n_samples={self.n_samples} makes no sense: "
                "pass n_samples=1 with do_sample=False, or do_sample=True."
            )

    def fields(self) -> dict[str, Any]:
        """What a reply depends on; for greedy replies that is less."""
        sampling = {"temperature": float(self.temperature), "top_p": float(self.top_p), "seed": self.seed}
        sampling |= {"top_k": self.top_k} if self.top_k else {}
        optional = {
            "max_thinking_tokens": self.max_thinking_tokens,
            "min_new_tokens": self.min_new_tokens,
            "stop_strings": sorted(set(self.stop_strings)),
            "bad_words_ids": sorted(set(self.bad_words_ids)),
        }
        return {
            "max_new_tokens": self.max_new_tokens,
            "sampling": sampling if self.do_sample else None,
            **{name: value for name, value in optional.items() if value},  # replies without them keep their keys
        }

    @property
    def most_tokens(self) -> int:
        """Of a whole reply."""
        return self.max_new_tokens + (self.max_thinking_tokens or 0)

    def end_of(self, text: str, begin: int = 0) -> int:
        """Where the first stop string begins, from some place on; -1 if there is none."""
        return min((place for stop in self.stop_strings if (place := text.find(stop, begin)) >= 0), default=-1)


def batches(
    missing: Mapping[int, Sequence[int]], suffixes: Sequence[Sequence[int]], batch_size: int, mixed: bool
) -> Iterator[list[tuple[int, int]]]:
    """(query, sample) pairs, of chats of one length unless mixed; the longest first: if memory is short, that shows
    at once. Batches of about one size: a small last one would cost almost as much as a full one."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for row, samples in sorted(missing.items(), key=lambda item: -len(suffixes[item[0]])):
        groups.setdefault(0 if mixed else len(suffixes[row]), []).extend((row, sample) for sample in samples)
    for pairs in groups.values():
        size = -(-len(pairs) // -(-len(pairs) // batch_size))
        yield from (pairs[start : start + size] for start in range(0, len(pairs), size))


def decode(
    reader: Reader,
    suffixes: Sequence[Sequence[int]],
    rows: Tensor,
    uniforms: Tensor | None,
    settings: Settings,
    rules: ReplyRules,
    openings: Sequence[str] = (),
) -> list[list[int]]:
    """The token ids of each sample's reply, with the end token if there is one.

    Args:
        rows: [n] which of the suffixes each sample continues.
        uniforms: [n, most_tokens], or None for greedy replies.
        openings: of each suffix what of a thought is open at its end; () if nothing is.
    """
    written = torch.full((len(rows), settings.most_tokens), -1)
    thoughts = rules.thoughts([openings[row] if openings else "" for row in rows.tolist()])
    live = torch.arange(len(rows))
    ends = rules.ends_of_chats(suffixes)[rows]
    logits = reader.start(suffixes)
    for step in range(settings.most_tokens):
        drawn = None if uniforms is None else uniforms[live, step]
        said = torch.cat([ends[live], written[live, :step]], dim=1)
        said_in_row = said.new_empty(len(logits), said.shape[1])
        said_in_row[rows] = said  # samples of one row have said the same
        chosen = _pick(rules.allowed(logits, step, said_in_row), rows, drawn, settings)
        written[live, step] = chosen
        if thoughts is None:
            going = ~rules.reached(written[live, : step + 1])
        else:
            begins = thoughts.look(live.tolist(), written[live, : step + 1])
            going = ~(
                rules.reached(written[live, : step + 1], begins) | thoughts.spent(live.tolist(), begins, step + 1)
            )
        live, rows, chosen = live[going], rows[going], chosen[going]
        if not len(live) or step + 1 == settings.most_tokens:
            break
        # Samples with the same beginning become one row: what differs is the row they come from and the new token.
        vocabulary = logits.shape[1]
        branches, rows = torch.unique(rows * vocabulary + chosen, return_inverse=True)
        logits = reader.step(branches // vocabulary, branches % vocabulary)
    lengths = (written >= 0).sum(dim=1).tolist()
    replies = [ids[:length] for ids, length in zip(written.tolist(), lengths, strict=True)]
    return replies if thoughts is None else thoughts.cut(replies)


# --- what may come next, and what ends a reply ---------------------------------------------------------------


class ReplyRules:
    """What may come next (no end token before `min_new_tokens`, no forbidden word), and what ends a reply: an end
    token or a stop string."""

    def __init__(self, model: ChatModel, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self.ids = torch.tensor(sorted(stop_ids(model)), dtype=torch.long)
        # A token adds at least a byte, so a stop string that ends with the last token began within these. (One with a
        # special token inside is seen at the end only: the text is cut there all the same.)
        self._tail = max((len(text.encode()) for text in settings.stop_strings), default=0)
        self._memory = max((len(word) - 1 for word in settings.bad_words_ids), default=0)

    def ends_of_chats(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        """[n_chats, m]: the last tokens of each chat, which a forbidden word may begin with; -1 before a short one."""
        ends = torch.full((len(suffixes), self._memory), -1)
        for row, suffix in enumerate(suffixes):
            if last := list(suffix)[max(len(suffix) - self._memory, 0) :]:
                ends[row, self._memory - len(last) :] = torch.tensor(last)
        return ends

    def allowed(self, logits: Tensor, step: int, said: Tensor) -> Tensor:
        """The logits, minus infinity for end tokens as long as no reply may end, and for the last token of a forbidden
        word where `said`, [rows of logits, tokens so far], ends with the others."""
        if step < self._settings.min_new_tokens:
            logits = logits.index_fill(1, self.ids.to(logits.device), -torch.inf)
        for *first, last in self._settings.bad_words_ids:
            begun = (said[:, said.shape[1] - len(first) :] == torch.tensor(first, dtype=torch.long)).all(dim=1)
            if begun.any():
                column = logits[:, last].masked_fill(begun.to(logits.device), -torch.inf)
                logits = logits.index_copy(1, torch.tensor([last], device=logits.device), column[:, None])
        return logits

    def thoughts(self, openings: Sequence[str]) -> Thoughts | None:
        """What watches the budgets of replies, where thoughts have one of their own."""
        if self._settings.max_thinking_tokens is None:
            return None
        return Thoughts(
            self._model,
            openings,
            max_thinking_tokens=self._settings.max_thinking_tokens,
            max_new_tokens=self._settings.max_new_tokens,
        )

    def reached(self, written: Tensor, begins: Tensor | None = None) -> Tensor:
        """[n] booleans: which of these replies, [n, tokens so far], have ended with their last token.

        Args:
            begins: [n], the token at which each answer begins: no stop string before it counts.
        """
        ended = torch.isin(written[:, -1], self.ids)
        if self._tail:
            first = [0] * len(written) if begins is None else begins.tolist()
            since = [max(begin, written.shape[1] - self._tail) for begin in first]
            texts = decoded_texts(self._model, [ids[at:] for ids, at in zip(written.tolist(), since, strict=True)])
            ended |= torch.tensor([self._settings.end_of(text) >= 0 for text in texts], dtype=torch.bool)
        return ended


def stop_ids(model: ChatModel) -> set[int]:
    """Every id that ends a reply: the generation config's and the tokenizer's."""
    config = model.model.generation_config
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in [*ids, model.tokenizer.eos_token_id] if token is not None}


def whole_paragraphs(text: str) -> str:
    """A reply up to the last line that ends a sentence, as the paper's code ends replies, cut off or not: lines at its
    end that end in no `.`, `?` or `!`, or in the number of a list, are dropped. The first line stays, whatever it is.

    Examples:
        >>> from drolab.inference import whole_paragraphs
        >>> whole_paragraphs("Soak the beans.\\n\\nThen boil them in fresh wa")
        'Soak the beans.'
        >>> whole_paragraphs("You need:\\n1. Beans.\\n2.")
        'You need:\\n1. Beans.'
        >>> whole_paragraphs("Then boil them in fresh wa")
        'Then boil them in fresh wa'
    """
    text = text.strip()
    while "\n" in text and (text[-1] not in ".?!" or _LIST_NUMBER.search(text)):
        text = text.rpartition("\n")[0].strip()
    return text


def word_ids(model: ChatModel, word: str) -> tuple[int, ...]:
    """The tokens of a word within a text.

    Raises:
        QueryError: no text, an empty one, or one that the tokenizer does not keep apart from what stands before it.
    """
    if isinstance(word, str) and word:
        for anchor in _ANCHORS:
            before, both = (model.tokenizer.encode(text, add_special_tokens=False) for text in (anchor, anchor + word))
            if both[: len(before)] == before and len(both) > len(before):
                return tuple(both[len(before) :])
    raise QueryError(
        f"{word!r} cannot be forbidden: bad_words must be texts that the tokenizer has tokens of their own for."
    )


# --- the choice of a token ---------------------------------------------------------------------------------


def uniform_numbers(seed: int, chat: str, sample: int, n: int) -> np.ndarray:
    """[n] numbers in [0, 1): the stream of one sample. The beginning does not depend on `n`."""
    digest = hashlib.sha256(f"{seed}/{chat}/{sample}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(n)


def _pick(logits: Tensor, rows: Tensor, uniforms: Tensor | None, settings: Settings) -> Tensor:
    """[n] token ids on the CPU: for each sample the one that its uniform number points at in its row of logits.

    Tokens lie on the unit interval in the order of their probability (ties: by id), so that a rounding error
    in a logit moves a border by a rounding error.
    """
    rows = rows.to(logits.device)
    if uniforms is None:
        return logits.argmax(dim=-1)[rows].cpu()
    rows, order = rows.sort()
    uniforms = uniforms.to(logits.device)[order]
    chosen = torch.empty_like(rows)
    size = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE_ELSEWHERE) // logits.shape[1])
    for first in range(0, len(logits), size):
        some = slice(*torch.searchsorted(rows, torch.tensor([first, first + size], device=rows.device)).tolist())
        part = logits[first : first + size]
        part = part if settings.temperature == 1 else part / settings.temperature
        probabilities = _highest(part, settings.top_k).softmax(dim=-1)
        chosen[some] = _pointed_at(probabilities, rows[some] - first, uniforms[some], settings)
    return chosen[order.argsort()].cpu()


def _highest(logits: Tensor, k: int) -> Tensor:
    """The logits, minus infinity for all but the k highest and those that equal the last of these; 0 keeps all."""
    if not 0 < k < logits.shape[1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


def _pointed_at(probabilities: Tensor, rows: Tensor, uniforms: Tensor, settings: Settings) -> Tensor:
    """[n] ids: where uniform numbers point in the fewest tokens of their row that together reach `top_p`.

    Args:
        probabilities: [rows, vocabulary] float32.
        rows: [n] in order; each is there.
    """
    if settings.top_k:  # few are left
        left, ids, _ = _taken(probabilities, ~_equal(probabilities, torch.zeros(1, 1).to(probabilities)))
        return ids[rows].gather(1, _Bins(left).pick(rows, uniforms, settings.top_p)[:, None]).squeeze(1)
    return _Bins(probabilities).pick(rows, uniforms, settings.top_p)


class _Bins:
    """Finds places among tokens in the order of their probability without sorting them, which would cost as much as a
    small model does: those whose float32 has the same first bits share a bin, and only tokens of one bin are sorted.

    What the bins above it hold together is a sum, whose order does not matter: in float64 it is exact but for
    what is less probable than 1e-9. So the borders between tokens are those that a sort of all gives.
    """

    def __init__(self, probabilities: Tensor) -> None:
        self._probabilities = probabilities
        dropped = 17 if probabilities.shape[1] > 2**13 else 20  # 64 bins to each power of two, or 8
        self._bins = probabilities.view(torch.int32) >> dropped  # floats from 0 on have the order of their bits
        self._highest = int(torch.ones(1).view(torch.int32)) >> dropped
        mass = probabilities.new_zeros(len(probabilities), self._highest + 1, dtype=torch.float64)
        for in_row, bins, values in zip(mass, self._bins, probabilities, strict=True):  # wide copies of one at a time
            in_row.scatter_add_(0, bins.long(), values.double())
        self._reached = mass.flip(1).cumsum(dim=1)
        """[rows, bins], from the highest bin on: what it and those above it hold."""

    def pick(self, rows: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
        """See `_pointed_at`."""
        total, _ = self._find(None, self._reached[:, -1].clamp(max=top_p))
        total = total[rows]
        # Below it, always: no uniform number is 1, but a product may be rounded to the whole.
        values = (uniforms * total).minimum(total.nextafter(torch.zeros_like(total)))
        return self._find(rows if len(rows) > len(self._bins) else None, values, exceeds=True)[1]

    def _find(self, rows: Tensor | None, values: Tensor, exceeds: bool = False) -> tuple[Tensor, Tensor]:
        """The first token of each row (None: all once) with which the sum reaches (or exceeds) its value: the sum, and
        the token's id."""
        tables = (self._reached, self._bins, self._probabilities)
        reached, bins, probabilities = tables if rows is None else (table.index_select(0, rows) for table in tables)
        values = values[:, None]
        found = torch.searchsorted(reached, values, right=exceeds).clamp_(max=self._highest)
        before = torch.where(found > 0, reached.gather(1, (found - 1).clamp_(min=0)), 0.0)

        members, ids, counts = _taken(probabilities, _equal(bins, (self._highest - found).int()))
        members, order = members.sort(dim=1, descending=True, stable=True)
        sums = before + members.double().cumsum(dim=1)
        place = torch.searchsorted(sums, values, right=exceeds).minimum(counts[:, None] - 1)
        return sums.gather(1, place).squeeze(1), ids.gather(1, order.gather(1, place)).squeeze(1)


def _taken(table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the mask has of each row of [n, m]: the values and their columns, in order, [n, most] with zeros behind, and
    how many there are, [n]."""
    flat = mask.flatten()
    on_cpu = mask.device.type == "cpu"  # where numpy compares, and finds what is true, in a sixth of torch's time
    places = torch.from_numpy(np.flatnonzero(flat.numpy())) if on_cpu else flat.nonzero().squeeze(1)
    begins = torch.arange(len(mask) + 1, device=mask.device) * mask.shape[1]
    starts = torch.searchsorted(places, begins)
    counts = starts.diff()
    most = int(counts.max())
    shifts = torch.arange(len(mask), device=mask.device) * most - starts[:-1]
    targets = torch.arange(len(places), device=mask.device) + shifts.repeat_interleave(counts)
    values, columns = table.new_zeros(len(mask), most), places.new_zeros(len(mask), most)
    values.view(-1)[targets] = table.take(places)
    columns.view(-1)[targets] = places % mask.shape[1]
    return values, columns, counts


def _equal(table: Tensor, values: Tensor) -> Tensor:
    return torch.from_numpy(table.numpy() == values.numpy()) if table.device.type == "cpu" else table == values
