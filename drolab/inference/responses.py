"""Responses: sampled or greedy replies to queries under text prompts and soft prompts.

The loop is drolab's own, so that a reply is a function of the chat, the settings and the sample's number
alone. Each sample has its own stream of uniform numbers, which pick tokens by the inverse of the cumulative
distribution. Batch size, order and the other queries change a result by rounding errors at most.

Two things make it fast. What chats and samples share is read where it is and never copied (`decoding`). And samples of
a query that have said the same so far are one row of the batch: they part where their tokens first differ.

transformers' continuous batching is not used: it takes token ids only (no soft prompts), has no stop strings and one
seed for all requests, which it sets globally. benchmarks/generation.py measures it.

Only temperature and top_p shape the distribution: other settings in a model's generation_config
(top_k, repetition_penalty, …) are not applied.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drolab.data.queries import validate_queries
from drolab.models.chat import EncodedBatch, Prompt, as_prompts, encode
from drolab.models.kv_cache import Reader, reader_for
from drolab.models.load import ChatModel, check_edits
from drolab.progress import Progress, bar
from drolab.store import Store, key
from drolab.types import RESPONSE_COLUMNS, QueryError

_FEW = 64
"""How many of the most probable tokens are tried before the whole vocabulary is sorted."""
Prompts = Mapping[str, Prompt] | Sequence[Prompt] | Prompt


class _Reply(NamedTuple):
    """What is kept of one sample, in the order of RESPONSE_COLUMNS."""

    response: str
    n_tokens: int
    finish_reason: str
    first_token: int


@dataclass(frozen=True, kw_only=True)
class _Settings:
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


def generate(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    n_samples: int = 20,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    stop_strings: str | Sequence[str] = (),
    do_sample: bool = True,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    batch_size: int = 128,
    store: Store | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """Replies of the model to every query under every prompt. The defaults are the paper's sampling.

    Args:
        queries: a query set, see `load_queries`.
        prompts: safety prompts and soft prompts; a mapping's keys name them.
        n_samples: replies per query and prompt; must be 1 with `do_sample=False`.
        max_new_tokens: a reply that is longer is cut, its finish_reason is then "length".
        min_new_tokens: until then no end token is written; a stop string ends a reply all the same.
        stop_strings: a reply ends before the first of these; its finish_reason is then "stop".
        do_sample: False takes the most probable token each time.
        temperature, top_p: as in transformers, applied in this order.
        seed: sample i of a chat is the same whatever else is asked for; another seed gives other samples.
        batch_size: the most replies written at once; bounds the memory, changes no result.
        store: only what it lacks is generated, and every finished batch is kept at once. A later call with
            a larger `n_samples` generates only the new ones.
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        RESPONSE_COLUMNS; prompts in order, within each the queries in order, within each the samples.
        `response` is without special tokens; `n_tokens` counts the end token or stop string; `finish_reason` is
        "stop" or "length"; `first_token` is a token id. `.attrs["summary"]` says what was done: "796 hits, 4 computed".

    Raises:
        QueryError: settings out of range, or a chat that leaves no room for the reply.
        QueryError, PromptError, ChatTemplateError: what is given cannot be rendered, see `chat.render`.
        StatesError: the model's logits are not numbers.
    """
    check_edits(model)
    queries = validate_queries(queries)
    settings = _Settings(
        n_samples=n_samples,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop_strings=(stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings),
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    if batch_size < 1:
        raise QueryError(f"batch_size must be at least 1, got {batch_size}: the default is 128.")
    found_prompts = as_prompts(prompts)
    tasks = [_Task.make(model, queries["text"].tolist(), prompt, settings) for prompt in found_prompts]
    summary = _fill(model, tasks, batch_size, store, progress)
    names = [prompt.name for prompt in found_prompts]
    table = pd.concat([_table(queries, *pair) for pair in zip(names, tasks, strict=True)], ignore_index=True)
    table.attrs["summary"] = summary
    return table


def _table(queries: pd.DataFrame, prompt: str, task: _Task) -> pd.DataFrame:
    n_samples = task.settings.n_samples
    rows = queries[["query_id", "text", "harmful"]].loc[queries.index.repeat(n_samples)].reset_index(drop=True)
    replies = pd.DataFrame([task.replies[name] for keys in task.keys for name in keys], columns=_Reply._fields)
    table = pd.concat([rows.assign(prompt=prompt, sample=list(range(n_samples)) * len(queries)), replies], axis=1)
    return table[list(RESPONSE_COLUMNS)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """The replies wanted under one prompt, and those that are there."""

    batch: EncodedBatch
    settings: _Settings
    chats: list[str]
    """Per query a hash of what the model reads."""
    keys: list[list[str]]
    """Store keys: queries x samples."""
    replies: dict[str, _Reply]

    @classmethod
    def make(cls, model: ChatModel, texts: Sequence[str], prompt: Prompt, settings: _Settings) -> _Task:
        batch = encode(model, texts, prompt)
        _check_room(model, batch, texts, settings.max_new_tokens)
        chats = _chat_hashes(batch)
        common = key(
            kind="reply",
            model=model.fingerprint,
            attention=model.model.config._attn_implementation,
            stop=sorted(_stop_ids(model)),
            **settings.fields(),
        )
        keys = [[key(common=common, chat=chat, sample=i) for i in range(settings.n_samples)] for chat in chats]
        return cls(batch=batch, settings=settings, chats=chats, keys=keys, replies={})

    def missing(self) -> dict[int, list[int]]:
        """Query → the samples that it lacks."""
        lacks = {
            row: [i for i, name in enumerate(keys) if name not in self.replies] for row, keys in enumerate(self.keys)
        }
        return {row: samples for row, samples in lacks.items() if samples}


def _chat_hashes(batch: EncodedBatch) -> list[str]:
    soft = None if batch.soft is None else [batch.soft.sha256, *(batch.span or ())]
    return [key(soft=soft, ids=list(batch.chat(row))) for row in range(len(batch))]


def _check_room(model: ChatModel, batch: EncodedBatch, texts: Sequence[str], max_new_tokens: int) -> None:
    longest = max(range(len(batch)), key=lambda row: len(batch.suffixes[row]))
    room = model.max_length - len(batch.chat(longest))
    if room < max_new_tokens:
        shown = texts[longest] if len(texts[longest]) <= 60 else texts[longest][:57] + "…"
        raise QueryError(
            f"The chat of query {shown!r} leaves room for {room} of {max_new_tokens} new tokens in the context of "
            f"{model.name!r} ({model.max_length}): pass a smaller max_new_tokens, or shorten query or prompt."
        )


def _stop_ids(model: ChatModel) -> set[int]:
    """Every id that ends a reply: the generation config's and the tokenizer's."""
    config = model.model.generation_config
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in [*ids, model.tokenizer.eos_token_id] if token is not None}


# --- the loop over batches ---------------------------------------------------------------------------------


def _fill(model: ChatModel, tasks: Sequence[_Task], batch_size: int, store: Store | None, progress: Progress) -> str:
    """Complete every task, from the store first; returns the summary."""
    total = sum(len(keys) for task in tasks for keys in task.keys)
    if store is not None:
        found = store.get_texts(list(dict.fromkeys(name for task in tasks for keys in task.keys for name in keys)))
        for task in tasks:
            wanted = (name for keys in task.keys for name in keys if name in found)
            task.replies.update({name: _Reply(*json.loads(found[name])) for name in wanted})
    hits = total - sum(len(samples) for task in tasks for samples in task.missing().values())
    computed = tokens = 0
    began = time.monotonic()
    with bar(progress, total=total, initial=hits, desc="responses", unit="reply") as counted:
        try:
            for replies in (new for task in tasks for new in _compute(model, task, batch_size, store)):
                computed += len(replies)
                tokens += sum(reply.n_tokens for reply in replies)
                rate = tokens / (time.monotonic() - began)
                counted.note(f"{hits} hits, {computed} computed, {rate:.0f} tokens/s")
                counted.update(len(replies))
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(_interrupted(hits + computed, total, store)) from interrupt
    return f"{hits} hits, {computed} computed"


def _interrupted(done: int, total: int, store: Store | None) -> str:
    if store is None:
        return f"{done} of {total} replies were done and none is kept: pass store=drolab.Store() to keep them."
    return f"{done} of {total} replies are in the store: run the same call again to generate the rest."


@torch.no_grad()
def _compute(model: ChatModel, task: _Task, batch_size: int, store: Store | None) -> Iterator[list[_Reply]]:
    """Batch by batch what a task lacks; yields the replies of each batch once they are kept."""
    missing = task.missing()
    if not missing:
        return
    reader = reader_for(model, task.batch, task.settings.max_new_tokens)
    for batch in _batches(missing, task.batch.suffixes, batch_size, reader.mixes_lengths):
        replies = _write(model, reader, task, batch)
        new = {task.keys[row][sample]: reply for (row, sample), reply in zip(batch, replies, strict=True)}
        if store is not None:
            texts = {name: json.dumps(reply) for name, reply in new.items()}
            store.put_texts(texts, note=f"replies, {model.name}")
        task.replies.update(new)
        yield replies


def _batches(
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


def _write(model: ChatModel, reader: Reader, task: _Task, batch: Sequence[tuple[int, int]]) -> list[_Reply]:
    rows = list(dict.fromkeys(row for row, _ in batch))
    places = {row: place for place, row in enumerate(rows)}
    settings = task.settings
    uniforms = None
    if settings.do_sample:
        streams = [_uniforms(settings.seed, task.chats[row], sample, settings.max_new_tokens) for row, sample in batch]
        uniforms = torch.from_numpy(np.stack(streams))
    tokens = _decode(
        reader,
        [task.batch.suffixes[row] for row in rows],
        torch.tensor([places[row] for row, _ in batch]),
        uniforms,
        settings,
        _Ends(model, settings),
    )
    return _replies(model, tokens, settings)


def _replies(model: ChatModel, written: Sequence[list[int]], settings: _Settings) -> list[_Reply]:
    stop = _stop_ids(model)
    stopped = [ids[-1] in stop for ids in written]
    bodies = [ids[:-1] if ended else ids for ids, ended in zip(written, stopped, strict=True)]
    replies = []
    for text, ids, ended in zip(_texts(model, bodies), written, stopped, strict=True):
        cut = settings.end_of(text)
        reason = "stop" if ended or cut >= 0 else "length"
        replies.append(_Reply(text if cut < 0 else text[:cut], len(ids), reason, ids[0]))
    return replies


def _texts(model: ChatModel, ids: list[list[int]]) -> list[str]:
    return model.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Ends:
    """What ends a reply: an end token, or a stop string."""

    def __init__(self, model: ChatModel, settings: _Settings) -> None:
        self._model, self._settings = model, settings
        self.ids = torch.tensor(sorted(_stop_ids(model)), dtype=torch.long)
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
            texts = _texts(self._model, written[:, -self._tail :].tolist())
            ended |= torch.tensor([self._settings.end_of(text) >= 0 for text in texts], dtype=torch.bool)
        return ended


def _uniforms(seed: int, chat: str, sample: int, n: int) -> np.ndarray:
    """[n] numbers in [0, 1): the stream of one sample. The beginning does not depend on `n`."""
    digest = hashlib.sha256(f"{seed}/{chat}/{sample}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(n)


# --- the loop over tokens ----------------------------------------------------------------------------------


def _decode(
    reader: Reader,
    suffixes: Sequence[Sequence[int]],
    rows: Tensor,
    uniforms: Tensor | None,
    settings: _Settings,
    ends: _Ends,
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
        chosen = _pick(ends.allowed(logits, step), rows, drawn, settings)
        written[live, step] = chosen
        going = ~ends.reached(written[live, : step + 1])
        live, rows, chosen = live[going], rows[going], chosen[going]
        if not len(live) or step + 1 == settings.max_new_tokens:
            break
        # Samples with the same beginning become one row: what differs is the row they come from and the new token.
        vocabulary = logits.shape[1]
        branches, rows = torch.unique(rows * vocabulary + chosen, return_inverse=True)
        logits = reader.step(branches // vocabulary, branches % vocabulary)
    lengths = (written >= 0).sum(dim=1).tolist()
    return [ids[:length] for ids, length in zip(written.tolist(), lengths, strict=True)]


def _pick(logits: Tensor, rows: Tensor, uniforms: Tensor | None, settings: _Settings) -> Tensor:
    """[n] token ids on the CPU: for each sample the one that its uniform number points at in its row of logits.

    Tokens lie on the unit interval in the order of their probability (ties: by id), so that a rounding error
    in a logit moves a border by a rounding error.
    """
    rows = rows.to(logits.device)
    if uniforms is None:
        return logits.argmax(dim=-1)[rows].cpu()
    probabilities, ids = _ranked((logits / settings.temperature).softmax(dim=-1), settings.top_p)
    cumulative = probabilities.double().cumsum(dim=-1)
    last = _kept(probabilities, settings.top_p).sum(dim=-1) - 1
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
        if not (_kept(top, top_p) & (top == top[:, -1:])).any():
            ids, order = ids.sort(dim=-1)
            top, order = top.gather(1, order).sort(dim=-1, descending=True, stable=True)
            return top, ids.gather(1, order)
    return probabilities.sort(dim=-1, descending=True, stable=True)


def _kept(ranked: Tensor, top_p: float) -> Tensor:
    """Bool: the fewest tokens that together reach `top_p`."""
    before = ranked.double().cumsum(dim=-1) - ranked
    return (before < top_p) & (ranked > 0)


# --- the first token ---------------------------------------------------------------------------------------


@torch.no_grad()
def first_token_probabilities(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    token_budget: int = 16384,
    progress: Progress = False,
) -> tuple[pd.DataFrame, Tensor]:
    """The distribution of a reply's first token (temperature 1, no top_p). Nothing is sampled.

    Args:
        token_budget: chats x tokens per chat in one batch; bounds the memory.

    Returns:
        A table query_id, prompt, harmful (prompts in order, within each the queries), and [n, vocabulary]
        float32 probabilities on the CPU with the same rows.

    Raises:
        QueryError, PromptError, ChatTemplateError, StatesError: as `generate`.
    """
    check_edits(model)
    queries = validate_queries(queries)
    if token_budget < 1:
        raise QueryError(f"token_budget must be at least 1, got {token_budget}: the default is 16384.")
    found, tables = as_prompts(prompts), []
    with bar(progress, total=len(found) * len(queries), desc="first tokens", unit="chat") as counted:
        for prompt in found:
            batch = encode(model, queries["text"].tolist(), prompt)
            rows: dict[int, Tensor] = {}
            for new in _first_tokens(model, batch, token_budget):
                rows.update(new)
                counted.update(len(new))
            tables.append(torch.stack([rows[row] for row in range(len(batch))]))
    columns = queries[["query_id", "harmful"]].reset_index(drop=True)
    index = pd.concat([columns.assign(prompt=prompt.name) for prompt in found], ignore_index=True)
    return index[["query_id", "prompt", "harmful"]], torch.cat(tables)


def _first_tokens(model: ChatModel, batch: EncodedBatch, token_budget: int) -> Iterator[dict[int, Tensor]]:
    reader = reader_for(model, batch, 1)
    longest = len(batch.prefix) + max(map(len, batch.suffixes))
    one_each = {row: [0] for row in range(len(batch))}
    for pairs in _batches(one_each, batch.suffixes, max(1, token_budget // longest), reader.mixes_lengths):
        rows = [row for row, _ in pairs]
        probabilities = reader.start([batch.suffixes[row] for row in rows]).softmax(dim=-1).cpu()
        yield dict(zip(rows, probabilities, strict=True))
