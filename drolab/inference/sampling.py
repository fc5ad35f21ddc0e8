"""Which token comes next, and what ends a reply: the loop over tokens.

The loop is drolab's own, so that a reply is a function of the chat, the settings and the sample's number alone. Each
sample has its own stream of uniform numbers, which pick tokens by the inverse of the cumulative distribution. Batch
size, order and the other queries change a result by rounding errors at most. Only temperature and top_p shape the
distribution: other settings in a model's generation_config (top_k, repetition_penalty, …) are not applied.

Two things make it fast. What chats and samples share is read where it is and never copied (`models.kv_cache`). And
samples of a query that have said the same so far are one row of the batch: they part where their tokens first differ.

In order: the settings, how samples are put into batches, the loop, what ends a reply, the choice of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drolab.errors import QueryError
from drolab.models import ChatModel, Reader

_FEW = 64
"""How many of the most probable tokens are tried before the whole vocabulary is sorted."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How replies are written; see `generate`.

    Raises:
        QueryError: a value out of its range.
    """

    n_samples: int
    max_new_tokens: int
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    do_sample: bool
    temperature: float
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("n_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise QueryError(f"{name} must be at least 1, got {getattr(self, name)}.")
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
        if not self.do_sample and self.n_samples != 1:
            raise QueryError(
                f"Greedy replies are all equal, so n_samples={self.n_samples} makes no sense: "
                "pass n_samples=1 with do_sample=False, or do_sample=True."
            )

    def fields(self) -> dict[str, Any]:
        """What a reply depends on; for greedy replies that is less."""
        sampling = {"temperature": float(self.temperature), "top_p": float(self.top_p), "seed": self.seed}
        ends = {"min_new_tokens": self.min_new_tokens, "stop_strings": sorted(set(self.stop_strings))}
        return {
            "max_new_tokens": self.max_new_tokens,
            "sampling": sampling if self.do_sample else None,
            **{name: value for name, value in ends.items() if value},  # so that replies without them keep their keys
        }

    def end_of(self, text: str) -> int:
        """Where the first stop string begins; -1 if there is none."""
        return min((place for stop in self.stop_strings if (place := text.find(stop)) >= 0), default=-1)


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
    stopping: StoppingRule,
) -> list[list[int]]:
    """The token ids of each sample's reply, with the end token if there is one.

    Args:
        rows: [n] which of the suffixes each sample continues.
        uniforms: [n, max_new_tokens], or None for greedy replies.
    """
    written = torch.full((len(rows), settings.max_new_tokens), -1)
    live = torch.arange(len(rows))
    logits = reader.start(suffixes)
    for step in range(settings.max_new_tokens):
        drawn = None if uniforms is None else uniforms[live, step]
        chosen = _pick(stopping.allowed(logits, step), rows, drawn, settings)
        written[live, step] = chosen
        going = ~stopping.reached(written[live, : step + 1])
        live, rows, chosen = live[going], rows[going], chosen[going]
        if not len(live) or step + 1 == settings.max_new_tokens:
            break
        # Samples with the same beginning become one row: what differs is the row they come from and the new token.
        vocabulary = logits.shape[1]
        branches, rows = torch.unique(rows * vocabulary + chosen, return_inverse=True)
        logits = reader.step(branches // vocabulary, branches % vocabulary)
    lengths = (written >= 0).sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(written.tolist(), lengths, strict=True)]


# --- what ends a reply -------------------------------------------------------------------------------------


class StoppingRule:
    """What ends a reply: an end token or a stop string, and no end token before `min_new_tokens`."""

    def __init__(self, model: ChatModel, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self.ids = torch.tensor(sorted(stop_ids(model)), dtype=torch.long)
        # A token adds at least a byte, so a stop string that ends with the last token began within these. (One with a
        # special token inside is seen at the end only: the text is cut there all the same.)
        self._tail = max((len(text.encode()) for text in settings.stop_strings), default=0)

    def allowed(self, logits: Tensor, step: int) -> Tensor:
        """The logits, those of end tokens at minus infinity as long as no reply may end."""
        if step >= self._settings.min_new_tokens:
            return logits
        return logits.index_fill(1, self.ids.to(logits.device), -torch.inf)

    def reached(self, written: Tensor) -> Tensor:
        """[n] booleans: which of these replies, [n, tokens so far], have ended with their last token."""
        ended = torch.isin(written[:, -1], self.ids)
        if self._tail:
            texts = decoded_texts(self._model, written[:, -self._tail :].tolist())
            ended |= torch.tensor([self._settings.end_of(text) >= 0 for text in texts], dtype=torch.bool)
        return ended


def stop_ids(model: ChatModel) -> set[int]:
    """Every id that ends a reply: the generation config's and the tokenizer's."""
    config = model.model.generation_config
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in [*ids, model.tokenizer.eos_token_id] if token is not None}


def decoded_texts(model: ChatModel, ids: list[list[int]]) -> list[str]:
    return model.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


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
    probabilities, ids = _ranked((logits / settings.temperature).softmax(dim=-1), settings.top_p)
    cumulative = probabilities.double().cumsum(dim=-1)
    last = _in_nucleus(probabilities, settings.top_p).sum(dim=-1) - 1
    total = cumulative.gather(1, last[:, None]).squeeze(1)
    # One search over all rows: row r lies on [2r, 2r + 1].
    offsets = 2.0 * torch.arange(len(logits), device=logits.device, dtype=torch.float64)
    target = uniforms.to(logits.device) * total[rows] + offsets[rows]
    places = torch.searchsorted((cumulative + offsets[:, None]).flatten(), target, right=True)
    places = (places - rows * ids.shape[1]).minimum(last[rows])
    return ids[rows, places].cpu()


def _ranked(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities in descending order (ties: by id) and their ids, at least as far as `top_p` reaches.

    A full sort costs more than the forward pass of a small model, and few tokens usually suffice.
    """
    if top_p < 1 and probabilities.shape[1] > _FEW:
        top, ids = probabilities.topk(_FEW)
        # Tokens as probable as the last of the few may have been left out: none of them may be needed.
        if not (_in_nucleus(top, top_p) & (top == top[:, -1:])).any():
            ids, order = ids.sort(dim=-1)
            top, order = top.gather(1, order).sort(dim=-1, descending=True, stable=True)
            return top, ids.gather(1, order)
    return probabilities.sort(dim=-1, descending=True, stable=True)


def _in_nucleus(ranked: Tensor, top_p: float) -> Tensor:
    """Bool: the fewest tokens that together reach `top_p`."""
    before = ranked.double().cumsum(dim=-1) - ranked
    return (before < top_p) & (ranked > 0)
