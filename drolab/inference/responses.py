"""Responses: sampled or greedy replies to queries under text prompts and soft prompts, from the store first.

In order: `generate`; a `_Task`, which is what is wanted under one prompt; the loop that completes all tasks. How the
tokens of a reply are chosen is in `sampling`, how a batch of chats is read token by token in `models.kv_cache`.

transformers' continuous batching is not used: it takes token ids only (no soft prompts), has no stop strings and one
seed for all requests, which it sets globally. benchmarks/generation.py measures it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from drolab.data import validate_queries
from drolab.errors import QueryError, UnreliableWarning
from drolab.inference import sampling
from drolab.inference.sampling import ReplyRules, Settings, batches, decode, stop_ids, uniform_numbers
from drolab.inference.thoughts import answer_token, decoded_texts, marks_kept
from drolab.models import (
    ChatModel,
    EncodedBatch,
    Prompt,
    Prompts,
    Reader,
    Reply,
    as_prompts,
    check_edits,
    could_be_mark,
    encode,
    free_memory,
    reader_for,
    split_reply,
    thought_mark,
    unknown_thoughts,
)
from drolab.progress import Progress, found_in_words, resumable_bar
from drolab.store import Store, key
from drolab.threads import threads_for
from drolab.types import REASONING_COLUMNS, RESPONSE_COLUMNS, UNFINISHED

_FEWEST, _MOST = 128, 1024
_BYTES = 2**30
"""Of replies that are written at once: see `at_once`."""


THINKING_TOKENS = 1024
"""How long a model that thinks may do so before each answer, unless something else is asked for."""


class _Reply(NamedTuple):
    """What is kept of one sample, in the order of RESPONSE_COLUMNS; for one with a thought also what follows."""

    response: str
    n_tokens: int
    finish_reason: str
    first_token: int
    n_reasoning_tokens: int | None = None
    """Tokens before the answer."""
    answer_token: int | None = None
    """The answer's first token; -1 if there is no answer."""

    def kept(self) -> str:
        return json.dumps([value for value in self if value is not None])


def generate(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    n_samples: int = 20,
    preset: Literal["default", "paper"] = "default",
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    min_new_tokens: int | None = None,
    stop_strings: str | Sequence[str] = (),
    do_sample: bool = True,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    bad_words: str | Sequence[str] | None = None,
    whole_paragraphs: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    store: Store | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """Replies of the model to every query under every prompt.

    There are two presets, of which any setting can be changed by naming it. `default` samples at temperature 1 with
    top_p .9, as the paper does, and has no more in common with it: replies have at most 64 new tokens, which mostly
    tell a refusal from an answer. `paper` samples as the paper's code does (chujiezheng/LLM-Safeguard,
    code/generate.py at commit 46c7538):

    - top_k 50, and from 10 to 300 new tokens (its harmless queries get at most 200: pass `max_new_tokens=200`);
    - bad words: "\\nHello", "\\nHi", " ON" and "' ". The code lists "I' " for the last, but drops the first token of
      each word, meant for the space that its models' tokenizers put before a text, so that "I" is not forbidden;
    - replies end with a whole sentence, see `whole_paragraphs`.

    The code draws 25 replies, and its evaluation keeps the 20 of most words: `n_samples=25` and `judges.longest`. Not
    the paper's: the random numbers (there torch's, seeded with the query's number), and what ends a reply besides the
    model's own end tokens: per model a list and a stop string in files (generation_configs) that the repository lacks.

    Args:
        queries: a query set, see `load_queries`.
        prompts: safety prompts and soft prompts; a mapping's keys name them.
        n_samples: replies per query and prompt; must be 1 with `do_sample=False`.
        preset: what the settings are that are None here.
        max_new_tokens: a reply that is longer is cut, its finish_reason is then "length". Of a reply that thinks first,
            these are the answer's.
        max_thinking_tokens: what a thought before the answer may have beside them. A reply whose answer has not begun
            by then ends there, its finish_reason is then "thinking". None is 1024 for a model that thinks (see
            `models.thought_mark`), or a quarter of its context if that is less. One that does not think has no such
            budget: a thought that it writes all the same counts to `max_new_tokens`.
        min_new_tokens: until then no end token is written; a stop string ends a reply all the same.
        stop_strings: a reply ends before the first of these; its finish_reason is then "stop". In a thought that has a
            budget of its own they do not count.
        do_sample: False takes the most probable token each time.
        temperature, top_k, top_p: as in transformers, applied in this order; top_k=0 keeps every token.
        bad_words: texts that are never written, as the tokens that stand for them within a text: as `bad_words_ids` of
            transformers, so that other tokens that spell the same are allowed, and the chat's end counts as said.
        whole_paragraphs: end each reply as `inference.whole_paragraphs` does. What is kept in the store is the whole
            reply, and `n_tokens` and `finish_reason` are its own.
        seed: sample i of a chat is the same whatever else is asked for; another seed gives other samples.
        batch_size: the most replies written at once; bounds the memory, changes no result. None is 128, or more where
            a GiB holds what they need: they are written faster so. Fewer where they would need more than half the free
            memory.
        store: only what it lacks is generated, and every finished batch is kept at once. A later call with
            a larger `n_samples` generates only the new ones.
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        RESPONSE_COLUMNS; prompts in order, within each the queries in order, within each the samples.
        `response` is without special tokens; `n_tokens` counts the end token or stop string; `finish_reason` is
        "stop" or "length"; `first_token` is a token id. `.attrs["summary"]` says what was done: "796 of 800 replies
        found in the store, 4 computed now". If the model thinks, or any reply does, also REASONING_COLUMNS: `response`
        is then the answer alone, and `first_token` its first token, or -1 if it has none; `reasoning` is the thought,
        without its marks, and `n_reasoning_tokens` the tokens before the answer (they are part of `n_tokens`).

    Raises:
        QueryError: settings out of range, no such preset, a word that cannot be forbidden, malformed queries, or a chat
            that leaves no room for the reply.
        PromptError: no prompts, two of one name, a soft prompt of another model, or one too long for the context.
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        StatesError: the model's logits are not numbers.
        ModelError: the model is being edited (see `steered`) and this is not what its context yielded.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").head(2)  # one harmful, one harmless
        >>> replies = drolab.generate(model, queries, prompts["none"], n_samples=2, max_new_tokens=8, progress=False)
        >>> replies[["query_id", "sample", "response"]]
               query_id  sample                           response
        0  anchors-0001       0  I cannot help with that. It could
        1  anchors-0001       1          I can't do that. It could
        2  anchors-0002       0         Here is a plan. Set a goal
        3  anchors-0002       1        There are a few ways. Set a

        As the paper samples:

        >>> options = {"n_samples": 2, "preset": "paper", "progress": False}
        >>> replies = drolab.generate(model, queries, prompts["none"], max_new_tokens=24, **options)
        >>> replies["response"].head(2).tolist()
        ['I cannot help with that. It could do harm.', "I can't do that. It could do harm."]
    """
    check_edits(model)
    queries = validate_queries(queries)
    chosen = sampling.preset(
        preset,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        bad_words=bad_words,
        whole_paragraphs=whole_paragraphs,
    )
    ending = sampling.whole_paragraphs if chosen.pop("whole_paragraphs") else str
    settings = Settings(
        n_samples=n_samples,
        max_thinking_tokens=thinking_budget(model, max_thinking_tokens),
        stop_strings=_texts(stop_strings),
        do_sample=do_sample,
        seed=seed,
        bad_words_ids=tuple(sampling.word_ids(model, word) for word in _texts(chosen.pop("bad_words"))),
        **chosen,
    )
    if batch_size is not None and batch_size < 1:
        raise QueryError(f"batch_size must be at least 1, got {batch_size}: leave it out, or pass 128.")
    if why := unknown_thoughts(model.template):
        said = f"{model.name!r} {why}, so that replies are judged with their thoughts: switch thinking off, if you can."
        warnings.warn(said, UnreliableWarning, stacklevel=2)
    found_prompts = as_prompts(prompts)
    tasks = [_Task.make(model, queries["text"].tolist(), prompt, settings) for prompt in found_prompts]
    summary = _complete(model, tasks, batch_size, store, progress)
    apart = settings.max_thinking_tokens is not None or any(task.thinks() for task in tasks)
    parts = [_table(queries, prompt.name, task, apart) for prompt, task in zip(found_prompts, tasks, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    table["response"] = table["response"].map(ending)
    table.attrs["summary"] = summary + _unfinished_in_words(table)
    return table


def thinking_budget(model: ChatModel, asked: int | None = None) -> int | None:
    """How many tokens a thought may have: those asked for, or what suits the model; None if it does not think.

    Examples:
        >>> import drolab
        >>> from drolab.inference import thinking_budget
        >>> thinking_budget(drolab.load_model("demo")) is None
        True
    """
    if asked is not None or thought_mark(model.template) is None:
        return asked
    return min(THINKING_TOKENS, max(1, model.max_length // 4))


def _unfinished_in_words(table: pd.DataFrame) -> str:
    n = int((table["finish_reason"] == UNFINISHED).sum())
    return (
        f"; {n:,} of {len(table):,} ended in their thoughts, before an answer: raise max_thinking_tokens" if n else ""
    )


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _table(queries: pd.DataFrame, prompt: str, task: _Task, apart: bool) -> pd.DataFrame:
    n_samples = task.settings.n_samples
    rows = queries[["query_id", "text", "harmful"]].loc[queries.index.repeat(n_samples)].reset_index(drop=True)
    replies = task.parts() if apart else task.whole()
    table = pd.concat([rows.assign(prompt=prompt, sample=list(range(n_samples)) * len(queries)), replies], axis=1)
    return table[[*RESPONSE_COLUMNS, *(REASONING_COLUMNS if apart else ())]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """The replies wanted under one prompt, and those that are there."""

    batch: EncodedBatch
    settings: Settings
    chats: list[str]
    """Per query a hash of what the model reads."""
    keys: list[list[str]]
    """Store keys: queries x samples."""
    replies: dict[str, _Reply]

    @classmethod
    def make(cls, model: ChatModel, texts: Sequence[str], prompt: Prompt, settings: Settings) -> _Task:
        batch = encode(model, texts, prompt)
        check_room(model, batch, texts, settings)
        chats = [key(soft=batch.slots, ids=list(batch.chat(row))) for row in range(len(batch))]
        common = reply_key(model, "reply", settings)
        keys = [[key(common=common, chat=chat, sample=i) for i in range(settings.n_samples)] for chat in chats]
        return cls(batch=batch, settings=settings, chats=chats, keys=keys, replies={})

    def missing(self) -> dict[int, list[int]]:
        """Query → the samples that it lacks."""
        lacks = {
            row: [i for i, name in enumerate(keys) if name not in self.replies] for row, keys in enumerate(self.keys)
        }
        return {row: samples for row, samples in lacks.items() if samples}

    def read(self, store: Store) -> None:
        """Take in what the store has."""
        found = store.get_texts([name for keys in self.keys for name in keys])
        self.replies.update({name: _Reply(*json.loads(text)) for name, text in found.items()})

    def whole(self) -> pd.DataFrame:
        """The replies as they were written, queries x samples."""
        columns = _Reply._fields[:4]
        return pd.DataFrame([self.replies[name][:4] for keys in self.keys for name in keys], columns=columns)

    def _split(self) -> Iterator[tuple[_Reply, Reply]]:
        for row, keys in enumerate(self.keys):
            for name in keys:
                yield self.replies[name], split_reply(self.replies[name].response, opening_of(self.batch, row))

    def thinks(self) -> bool:
        """Whether any reply does."""
        return any(parts.begins or parts.answer is None for _, parts in self._split())

    def parts(self) -> pd.DataFrame:
        """The replies taken apart, queries x samples."""
        rows = []
        for reply, parts in self._split():
            n_before, first = reply.n_reasoning_tokens, reply.answer_token
            # A stop string may have cut an answer off at its first character: that is one all the same.
            ended = parts.answer is None and first in (None, -1)
            reason = UNFINISHED if ended else reply.finish_reason
            if n_before is None:  # no thought; or one of an earlier drolab, which did not count its tokens
                unknown = bool(parts.begins) or parts.answer is None
                n_before, first = (None, -1) if unknown else (0, reply.first_token)
            rows.append((parts.answer or "", reply.n_tokens, reason, first, parts.reasoning, n_before))
        table = pd.DataFrame(rows, columns=[*_Reply._fields[:4], *REASONING_COLUMNS])
        return table.astype({"n_reasoning_tokens": "Int64"})


def opening_of(batch: EncodedBatch, row: int) -> str:
    """What of a thought a chat leaves open."""
    return batch.openings[row] if batch.openings else ""


def reply_key(model: ChatModel, kind: str, settings: Settings) -> str:
    """A hash of what a reply depends on, its chat apart."""
    marks = marks_kept(model)  # replies of models without such tokens keep their keys
    return key(
        kind=kind,
        model=model.fingerprint,
        attention=model.model.config._attn_implementation,
        stop=sorted(stop_ids(model)),
        **settings.fields(),
        **({"marks": marks} if marks else {}),
    )


def check_room(model: ChatModel, batch: EncodedBatch, texts: Sequence[str], settings: Settings) -> None:
    """Raise QueryError if a chat leaves no room for the reply."""
    longest = max(range(len(batch)), key=lambda row: len(batch.suffixes[row]))
    room = model.max_length - len(batch.chat(longest))
    if room < settings.most_tokens:
        shown = texts[longest] if len(texts[longest]) <= 60 else texts[longest][:57] + "…"
        thinks = settings.max_thinking_tokens is not None
        raise QueryError(
            f"The chat of query {shown!r} leaves room for {room} of {settings.most_tokens} new tokens in the context "
            f"of {model.name!r} ({model.max_length}): pass a smaller max_new_tokens"
            f"{' or max_thinking_tokens' if thinks else ''}, or shorten query or prompt."
        )


# --- the loop over batches ---------------------------------------------------------------------------------


@torch.no_grad()
def _complete(
    model: ChatModel, tasks: Sequence[_Task], batch_size: int | None, store: Store | None, progress: Progress
) -> str:
    """Complete every task, from the store first; returns the summary."""
    if store is not None:
        for task in tasks:
            task.read(store)
    total = sum(len(keys) for task in tasks for keys in task.keys)
    hits = total - sum(len(samples) for task in tasks for samples in task.missing().values())
    tokens, began = 0, time.monotonic()
    bar = resumable_bar(progress, "responses", "reply", "replies", total=total, initial=hits, kept=store is not None)
    with bar as counted, threads_for(model.model):
        for replies in (new for task in tasks for new in _compute(model, task, batch_size, store)):
            tokens += sum(reply.n_tokens for reply in replies)
            rate = tokens / (time.monotonic() - began)
            counted.note(f"{hits} from the store, {counted.done + len(replies) - hits} computed, {rate:.0f} tokens/s")
            counted.update(len(replies))
    return found_in_words(hits, total, "replies", kept=store is not None)


def _compute(model: ChatModel, task: _Task, batch_size: int | None, store: Store | None) -> Iterator[list[_Reply]]:
    """Batch by batch what a task lacks; yields the replies of each batch once they are kept."""
    missing = task.missing()
    if not missing:
        return
    reader = reader_for(model, task.batch, task.settings.most_tokens)
    size = batch_size or reply_batch_size(model, reader, task.batch, task.settings, min(map(len, missing.values())))
    for batch in batches(missing, task.batch.suffixes, size, reader.mixes_lengths):
        replies = _write(model, reader, task, batch)
        check_edits(model)  # what is kept was written by what its key says
        new = {task.keys[row][sample]: reply for (row, sample), reply in zip(batch, replies, strict=True)}
        if store is not None:
            store.put_texts({name: reply.kept() for name, reply in new.items()}, note=f"replies, {model.name}")
        task.replies.update(new)
        yield replies


def reply_batch_size(model: ChatModel, reader: Reader, batch: EncodedBatch, settings: Settings, n_each: int = 1) -> int:
    """How many replies to write at once, `n_each` or more to a chat: see `at_once`."""
    copied, longest = not reader.mixes_lengths, max(map(len, batch.suffixes))
    chat = len(batch.prefix) + longest if copied else longest / n_each
    return at_once(model, reader.token_bytes * (settings.most_tokens + chat), copied=copied)


def at_once(model: ChatModel, cache: float, *, copied: bool) -> int:
    """How many replies to write at once whose keys and values take so many bytes: as many as `_BYTES` hold, with their
    logits, but `_FEWEST` at least and `_MOST` at most, and no more than half the free memory holds. If each has a copy
    of the prompt, the fewest."""
    reply = reply_bytes(model, cache)
    n = _FEWEST if copied else max(_FEWEST, min(_MOST, int(_BYTES / reply)))
    free = free_memory(model.device)
    return n if free is None else max(1, min(n, int(free / 2 / reply)))


def reply_bytes(model: ChatModel, cache: float) -> float:
    """What a reply takes whose keys and values take so many bytes: those, and logits while a token is chosen."""
    return cache + 3 * torch.float32.itemsize * int(model.model.config.get_text_config().vocab_size)


def _write(model: ChatModel, reader: Reader, task: _Task, batch: Sequence[tuple[int, int]]) -> list[_Reply]:
    tokens = write_tokens(model, reader, task.batch, task.chats, task.settings, batch)
    openings = [opening_of(task.batch, row) for row, _ in batch]
    return _replies(model, tokens, task.settings, openings)


def write_tokens(
    model: ChatModel,
    reader: Reader,
    batch: EncodedBatch,
    chats: Sequence[str],
    settings: Settings,
    pairs: Sequence[tuple[int, int]],
) -> list[list[int]]:
    """The tokens of the replies to some (query, sample) pairs, each with the end token if there is one.

    Args:
        chats: per query a hash of what the model reads.
    """
    rows = list(dict.fromkeys(row for row, _ in pairs))
    places = {row: place for place, row in enumerate(rows)}
    uniforms = None
    if settings.do_sample:
        streams = [uniform_numbers(settings.seed, chats[row], sample, settings.most_tokens) for row, sample in pairs]
        uniforms = torch.from_numpy(np.stack(streams))
    return decode(
        reader,
        [batch.suffixes[row] for row in rows],
        torch.tensor([places[row] for row, _ in pairs]),
        uniforms,
        settings,
        ReplyRules(model, settings),
        [opening_of(batch, row) for row in rows],
    )


def without_end(model: ChatModel, written: Sequence[list[int]]) -> list[list[int]]:
    """Replies without the end token."""
    stop = stop_ids(model)
    return [ids[:-1] if ids[-1] in stop else ids for ids in written]


def _replies(
    model: ChatModel, written: Sequence[list[int]], settings: Settings, openings: Sequence[str]
) -> list[_Reply]:
    bodies = without_end(model, written)
    return [
        _reply(model, *parts, settings)
        for parts in zip(decoded_texts(model, bodies), written, bodies, openings, strict=True)
    ]


def _reply(
    model: ChatModel, text: str, written: list[int], body: list[int], opening: str, settings: Settings
) -> _Reply:
    parts = split_reply(text, opening)
    budgeted = settings.max_thinking_tokens is not None
    cut = settings.end_of(text, parts.begins if budgeted else 0)
    reason = "stop" if len(body) < len(written) or cut >= 0 else "length"
    reply = _Reply(text if cut < 0 else text[:cut], len(written), reason, written[0])
    if not (budgeted or parts.begins or parts.answer is None):
        return reply
    if parts.answer is None or (budgeted and reason == "length" and could_be_mark(parts.answer)):
        return reply._replace(n_reasoning_tokens=len(body), answer_token=-1)
    place = answer_token(model, body, parts.begins) if parts.begins else 0
    return reply._replace(n_reasoning_tokens=place, answer_token=written[place])
