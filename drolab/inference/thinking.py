"""Chats that go on to where the model's answer begins, after a thought of its own: one thought per query and prompt.

A thought is written as a reply is, greedily or with a seed, until its answer has begun; its tokens are kept in the
store. Where no answer has begun within the budget there is no such place, and the chat is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from drolab.errors import StatesError
from drolab.inference.responses import (
    check_room,
    opening_of,
    reply_batch_size,
    reply_key,
    thinking_budget,
    without_end,
    write_tokens,
)
from drolab.inference.sampling import PRESETS, Settings, batches
from drolab.inference.thoughts import answer_token, decoded_texts
from drolab.models import (
    ChatModel,
    EncodedBatch,
    Prompt,
    check_answers_known,
    check_edits,
    encode,
    reader_for,
    render,
    split_reply,
    thought_mark,
)
from drolab.progress import Progress, resumable_bar
from drolab.store import Store, key
from drolab.threads import threads_for
from drolab.types import ReadAt

_LOOK_AHEAD = 24
"""Tokens of an answer that are written so that it is sure to be one: what begins like a mark may be one."""


@dataclass(frozen=True, eq=False)
class PlacedChats:
    """Chats under one prompt, up to where they are read."""

    batch: EncodedBatch
    rows: list[int]
    """Which of the queries they are of; those that are missing have a thought that did not end."""


def place_chats(
    model: ChatModel,
    texts: Sequence[str],
    prompts: Sequence[Prompt],
    read_at: ReadAt,
    *,
    min_suffix: int = 1,
    max_thinking_tokens: int | None = None,
    thinking_seed: int | None = None,
    store: Store | None = None,
    progress: Progress = True,
) -> tuple[list[tuple[Prompt, PlacedChats]], str]:
    """The chats of the queries under each prompt, up to where they are read, and what is to be said of their thoughts.

    A prompt under which no thought ended is left out.

    Raises:
        StatesError: there is no such place, the model does not think in these chats, or no thought ended.
        QueryError: no budget, or a chat that leaves no room for it. See also `encode`.
    """
    if read_at != "after_thinking":
        everything = list(range(len(texts)))
        chats = [encode(model, texts, prompt, min_suffix=min_suffix, read_at=read_at) for prompt in prompts]
        return [(prompt, PlacedChats(one, everything)) for prompt, one in zip(prompts, chats, strict=True)], ""
    check_answers_known(model.template)
    if thought_mark(model.template) is None:
        raise StatesError(f"There is nothing to read after a thought: {_why_not(model)}")
    settings = thought_settings(model, max_thinking_tokens, thinking_seed)
    tasks = []
    for prompt in prompts:
        batch = encode(model, texts, prompt, min_suffix=min_suffix)
        check_room(model, batch, texts, settings)
        tasks.append(_Task.make(model, batch, settings))
    _complete(model, tasks, store, progress)
    thoughts = [ids for task in tasks for ids in task.thoughts.values()]
    if all(ids is None for ids in thoughts):
        raise StatesError(
            f"No thought of {len(thoughts)} ended within {settings.max_thinking_tokens} tokens: raise "
            "max_thinking_tokens, or pass a thinking_seed where greedy thoughts go round in circles."
        )
    placed = [(prompt, task.placed()) for prompt, task in zip(prompts, tasks, strict=True) if not task.empty]
    return placed, _in_words(thoughts, settings)


def _in_words(thoughts: Sequence[list[int] | None], settings: Settings) -> str:
    """What is to be said of thoughts that are not as expected."""
    lost, none = sum(ids is None for ids in thoughts), sum(ids == [] for ids in thoughts)
    of, budget = f"of {len(thoughts):,}", f"{settings.max_thinking_tokens:,} tokens"
    return "".join(
        [
            f"; no state for {lost:,} {of}, whose thoughts did not end within {budget}" if lost else "",
            f"; {none:,} {of} were answered without a thought" if none else "",
        ]
    )


def thought_settings(model: ChatModel, max_thinking_tokens: int | None, seed: int | None) -> Settings:
    """How a thought is written: greedily, or, with a seed, as the first sample of `generate` with this seed."""
    usual: Mapping[str, Any] = PRESETS["default"]
    return Settings(
        n_samples=1,
        max_new_tokens=_LOOK_AHEAD,
        max_thinking_tokens=thinking_budget(model, max_thinking_tokens),
        do_sample=seed is not None,
        temperature=usual["temperature"],
        top_p=usual["top_p"],
        seed=seed or 0,
    )


def _why_not(model: ChatModel) -> str:
    on = model.template.thinking.on
    if on:
        return (
            f"{model.name!r} has its thinking switched off in these chats. Load it with template_kwargs={dict(on)}, or "
            "read at 'reply'."
        )
    return (
        f"the chats of {model.name!r} leave no room for one, so that its answer begins where its reply does: read at "
        "'reply'. If it does think, pass load_model(…, chat_template=…), a template that knows its thoughts."
    )


def reading_places(
    model: ChatModel,
    query: str,
    prompt: Prompt,
    *,
    max_thinking_tokens: int | None = None,
    thinking_seed: int | None = None,
    store: Store | None = None,
) -> pd.DataFrame:
    """The places at which one chat can be read (see `hidden_states`), and what they are for this model, in words.

    Returns:
        One row per place: `read_at`; `tokens`, how many the chat has up to there; `adds`, the text that stands between
        the end of the chat and this place; `last`, the token that is read; `note`. Where there is no such place the
        number is missing and the texts are empty.

    Raises:
        See `render`; a thought that does not end is no error, but a note.

    Examples:
        >>> import drolab
        >>> from drolab.inference import reading_places
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> table = reading_places(model, "How do I boil an egg?", prompts["none"])
        >>> table[["read_at", "tokens", "note"]]
                  read_at  tokens                                                note
        0           reply      19              the end of the chat: its answer begins
        1          answer      19  it does not think: the same place as 'reply', ...
        2  after_thinking    <NA>                      it does not think: no such ...
    """
    chats = {place: render(model, query, prompt, read_at=place) for place in _KNOWN}
    end, thinks = chats["reply"], thought_mark(model.template) is not None
    rows: list[tuple[str, int | None, str, str, str]] = []

    def row(place: str, ids: Sequence[int], adds: str, note: str) -> None:
        rows.append((place, len(ids), adds, str(model.tokenizer.decode(list(ids[-1:]))), note))

    begins = "its reply begins, in a thought" if end.opening else "its reply begins" if thinks else "its answer begins"
    row("reply", end.input_ids, "", f"the end of the chat: {begins}")
    answer = chats["answer"]
    if not thinks:
        row("answer", answer.input_ids, "", "it does not think: the same place as 'reply', with the same states")
        rows.append(("after_thinking", None, "", "", "it does not think: no such place"))
        return _places_table(rows)
    longer = answer.text.startswith(end.text)
    written = "behind an empty thought" + ("" if longer else ", as the template writes it with its switch off")
    row("answer", answer.input_ids, answer.text[len(end.text) :] if longer else answer.text[-80:], written)
    try:
        (placed,), _ = place_chats(
            model,
            [query],
            [prompt],
            "after_thinking",
            max_thinking_tokens=max_thinking_tokens,
            thinking_seed=thinking_seed,
            store=store,
            progress=False,
        )
    except StatesError as error:
        rows.append(("after_thinking", None, "", "", str(error)))
        return _places_table(rows)
    ids = placed[1].batch.chat(0)
    thought = decoded_texts(model, [list(ids[len(end.input_ids) :])])[0]
    row("after_thinking", ids, thought, "behind a thought of its own" if thought else "it answered without a thought")
    return _places_table(rows)


_KNOWN: tuple[ReadAt, ...] = ("reply", "answer")
"""The places that are known before anything is thought."""


def _places_table(rows: Sequence[tuple[str, int | None, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["read_at", "tokens", "adds", "last", "note"]).astype({"tokens": "Int64"})


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """The thoughts wanted under one prompt, and those that are there."""

    batch: EncodedBatch
    settings: Settings
    chats: list[str]
    """Per query a hash of what the model reads."""
    keys: list[str]
    thoughts: dict[int, list[int] | None]
    """Row → the tokens before the answer; None if it did not begin."""

    @classmethod
    def make(cls, model: ChatModel, batch: EncodedBatch, settings: Settings) -> _Task:
        chats = [key(soft=batch.slots, ids=list(batch.chat(row))) for row in range(len(batch))]
        common = reply_key(model, "thought", settings)
        keys = [key(common=common, chat=chat) for chat in chats]
        return cls(batch=batch, settings=settings, chats=chats, keys=keys, thoughts={})

    def read(self, store: Store) -> None:
        found = store.get_texts(self.keys)
        self.thoughts.update({row: json.loads(found[name]) for row, name in enumerate(self.keys) if name in found})

    def missing(self) -> dict[int, list[int]]:
        return {row: [0] for row in range(len(self.keys)) if row not in self.thoughts}

    @property
    def empty(self) -> bool:
        """Whether no thought ended."""
        return all(ids is None for ids in self.thoughts.values())

    def placed(self) -> PlacedChats:
        said = {row: ids for row, ids in sorted(self.thoughts.items()) if ids is not None}
        suffixes = tuple((*self.batch.suffixes[row], *ids) for row, ids in said.items())
        return PlacedChats(replace(self.batch, suffixes=suffixes, openings=()), list(said))


@torch.no_grad()
def _complete(model: ChatModel, tasks: Sequence[_Task], store: Store | None, progress: Progress) -> None:
    if store is not None:
        for task in tasks:
            task.read(store)
    total = sum(len(task.keys) for task in tasks)
    hits = sum(len(task.thoughts) for task in tasks)
    if hits == total:
        return
    bar = resumable_bar(progress, "thoughts", "thought", "thoughts", total=total, initial=hits, kept=store is not None)
    with bar as counted, threads_for(model.model):
        counted.note(f"{hits} from the store, 0 computed")
        for new in (found for task in tasks for found in _compute(model, task, store)):
            counted.note(f"{hits} from the store, {counted.done + new - hits} computed")
            counted.update(new)


def _compute(model: ChatModel, task: _Task, store: Store | None) -> Iterator[int]:
    """Batch by batch what a task lacks; yields how many thoughts each batch had, once they are kept."""
    missing = task.missing()
    if not missing:
        return
    reader = reader_for(model, task.batch, task.settings.most_tokens)
    size = reply_batch_size(model, reader, task.batch, task.settings)
    for pairs in batches(missing, task.batch.suffixes, size, reader.mixes_lengths):
        written = write_tokens(model, reader, task.batch, task.chats, task.settings, pairs)
        check_edits(model)  # what is kept was written by what its key says
        openings = [opening_of(task.batch, row) for row, _ in pairs]
        found = dict(zip([row for row, _ in pairs], _before_answers(model, written, openings), strict=True))
        if store is not None:
            texts = {task.keys[row]: json.dumps(ids) for row, ids in found.items()}
            store.put_texts(texts, note=f"thoughts, {model.name}")
        task.thoughts.update(found)
        yield len(found)


def _before_answers(
    model: ChatModel, written: Sequence[list[int]], openings: Sequence[str]
) -> Iterator[list[int] | None]:
    bodies = without_end(model, written)
    for text, ids, opening in zip(decoded_texts(model, bodies), bodies, openings, strict=True):
        reply = split_reply(text, opening)
        yield ids[: answer_token(model, ids, reply.begins)] if reply.answer else None
