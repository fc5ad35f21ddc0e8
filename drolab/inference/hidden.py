"""Tables of hidden states: every query under every safety prompt, at chosen layers and positions, from the store first.

`passes` says how states are computed, `blocks` what the layers are. Prompts that begin alike share that beginning, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile

import pandas as pd
import torch
from torch import Tensor

from drolab.data import validate_queries
from drolab.errors import StatesError
from drolab.models import (
    ChatModel,
    EncodedBatch,
    Prefix,
    Prompt,
    as_prompts,
    back_off,
    begin,
    can_share_prefix,
    check_edits,
    check_positions,
    encode,
    pass_states,
    passes_of,
    prefix_embeddings,
    resolve_layers,
)
from drolab.progress import Progress, bar
from drolab.store import Store, key
from drolab.types import STATE_COLUMNS, HiddenStates

_log = logging.getLogger(__name__)

_KEEP_EVERY = 2.0
"""Seconds of work that a crash may cost, beside the pass in flight: a write for every pass would cost more."""
_READ_AT_ONCE = 1024
"""Queries whose states are taken from the store together."""
_WORTH_SHARING = 64
"""Tokens that must be saved before prompts share a beginning: it costs a pass of its own."""


def hidden_states(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Mapping[str, Prompt] | Sequence[Prompt] | Prompt,
    *,
    layers: Sequence[int] = (-1,),
    positions: Sequence[int] = (-1,),
    store: Store | None = None,
    token_budget: int | None = None,
    progress: Progress = True,
) -> HiddenStates:
    """The hidden states of every query under every prompt.

    Rows: prompts in order, within each prompt the queries in order, within each query the positions.
    `states.index.attrs["summary"]` says what was done: "796 hits, 4 computed" (chats).

    Args:
        queries: a query set, see `load_queries`.
        prompts: safety prompts and soft prompts; a mapping's keys name them.
        layers: in transformers' count, 0 to num_hidden_layers; negative ones count from the last.
        positions: negative, counted from the end of each chat.
        store: only what it lacks is computed. What is finished is kept in it every two seconds and whenever this
            ends, also by an error or Ctrl-C, so a crash loses two seconds and the pass in flight. None computes
            everything and keeps nothing.
        token_budget: tokens in one pass, without the shared prefix; bounds the memory. None takes 512 on a CPU and 4096
            elsewhere, and packed passes never have more. A pass that runs out of memory is divided, and so are later
            ones of this model.
        progress: show a bar; or a callable, see `drolab.progress`.

    Raises:
        QueryError, PromptError, ChatTemplateError: what is given cannot be rendered, see `chat.render`.
        StatesError: layers or positions that are not there, or a state that is not finite.
        ModelError: not even a single chat fits into the memory.
    """
    check_edits(model)
    queries = validate_queries(queries)
    resolved = resolve_layers(model, layers)
    check_positions(positions, limit=model.max_length)
    if token_budget is not None and token_budget < 1:
        raise StatesError(f"token_budget must be at least 1, got {token_budget}: None takes what suits the device.")
    places = tuple(dict.fromkeys(positions))
    wanted = as_prompts(prompts)
    shape = (len(wanted), len(queries), len(places), len(resolved), model.hidden_size)
    values = torch.empty(shape, dtype=model.dtype)  # filled in place: to put parts together would take twice the room
    tasks = [
        _Task.make(model, queries["text"].tolist(), prompt, resolved, places, own)
        for prompt, own in zip(wanted, values, strict=True)
    ]
    summary = _fill(model, tasks, queries["query_id"], store, token_budget, progress)
    index = pd.concat([_index(queries, task.prompt.name, places) for task in tasks], ignore_index=True)
    index.attrs["summary"] = summary
    return HiddenStates(
        values=values.flatten(0, 2),
        index=index,
        layers=resolved,
        num_hidden_layers=model.num_hidden_layers,
        model_fingerprint=model.fingerprint,
    )


def _index(queries: pd.DataFrame, prompt: str, positions: Sequence[int]) -> pd.DataFrame:
    rows = queries.loc[queries.index.repeat(len(positions))].reset_index(drop=True)
    rows = rows.assign(prompt=prompt, position=list(positions) * len(queries))
    return rows[list(STATE_COLUMNS)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What is wanted under one prompt, and what is there of it."""

    prompt: Prompt
    batch: EncodedBatch
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    common: str
    """A hash of what all states of this task depend on, their chat apart."""
    values: Tensor
    """[n_queries, n_positions, n_layers, d], filled in place."""
    done: Tensor
    """[n_queries, n_positions, n_layers] bool."""

    @classmethod
    def make(
        cls,
        model: ChatModel,
        texts: Sequence[str],
        prompt: Prompt,
        layers: tuple[int, ...],
        positions: tuple[int, ...],
        values: Tensor,
    ) -> _Task:
        batch = encode(model, texts, prompt, min_suffix=-min(positions))
        return cls(
            prompt=prompt,
            batch=batch,
            layers=layers,
            positions=positions,
            common=_common(model, batch),
            values=values,
            done=torch.zeros(values.shape[:-1], dtype=torch.bool),
        )

    def keys(self, row: int) -> list[str]:
        """The store keys of one query's states, positions x layers. Made when they are needed: all together are large.

        Everything a state depends on is in them. Not the batch: it changes a state by rounding only.
        """
        chat = key(common=self.common, ids=list(self.batch.chat(row)))
        return [key(chat=chat, position=p, layer=layer) for p in self.positions for layer in self.layers]

    def missing(self) -> list[int]:
        """The queries that lack a state."""
        return (~self.done.flatten(1).all(dim=1)).nonzero().flatten().tolist()

    def read(self, store: Store) -> None:
        """Take in what the store has, some queries at a time: nothing large is held twice."""
        for first in range(0, len(self.batch), _READ_AT_ONCE):
            some = {row: self.keys(row) for row in range(first, min(first + _READ_AT_ONCE, len(self.batch)))}
            found = store.get_tensors([name for keys in some.values() for name in keys])
            for row, keys in some.items():
                for number, name in enumerate(keys):
                    if name in found:
                        place = (row, *divmod(number, len(self.layers)))
                        self.values[place] = found[name]
                        self.done[place] = True

    def lacks(self) -> tuple[list[int], list[int]]:
        """The queries that lack a state, and the numbers of the layers at which any does."""
        return self.missing(), (~self.done).flatten(0, 1).any(dim=0).nonzero().flatten().tolist()

    def put(self, rows: Sequence[int], columns: Sequence[int], computed: Tensor) -> dict[str, Tensor]:
        """Take in [rows, positions, columns, d] where nothing was; returns what is new, by its key."""
        new = {}
        for row, states in zip(rows, computed, strict=True):
            keys = self.keys(row)
            for place in range(len(self.positions)):
                for column, state in zip(columns, states[place], strict=True):
                    if not self.done[row, place, column]:
                        self.values[row, place, column] = state
                        self.done[row, place, column] = True
                        new[keys[place * len(self.layers) + column]] = state
        return new

    def beginning(self) -> list[tuple]:
        """What each token of the prefix is; equal beginnings have equal states."""
        tokens: list[tuple] = [(token,) for token in self.batch.prefix]
        if self.batch.soft is not None:
            start, stop = self.batch.span or (0, 0)
            tokens[start:stop] = [(-1, self.batch.soft.sha256, slot) for slot in range(stop - start)]
        return tokens


@dataclass(kw_only=True, eq=False)
class _Keeper:
    """Writes finished states to the store, many at a time."""

    store: Store | None
    note: str
    waiting: dict[str, Tensor] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)

    def add(self, new: Mapping[str, Tensor]) -> None:
        if self.store is not None:
            self.waiting.update(new)
            if time.monotonic() - self.written > _KEEP_EVERY:
                self.write()

    def write(self) -> None:
        if self.store is not None and self.waiting:
            self.store.put_tensors(list(self.waiting), torch.stack(list(self.waiting.values())), note=self.note)
        self.waiting, self.written = {}, time.monotonic()


def _common(model: ChatModel, batch: EncodedBatch) -> str:
    soft = None if batch.soft is None else [batch.soft.sha256, *(batch.span or ())]
    return key(
        kind="hidden state",
        model=model.fingerprint,
        dtype=str(model.dtype),
        attention=model.model.config._attn_implementation,
        soft=soft,
    )


def _fill(
    model: ChatModel,
    tasks: Sequence[_Task],
    query_ids: pd.Series,
    store: Store | None,
    token_budget: int | None,
    progress: Progress,
) -> str:
    """Complete every task, from the store first; returns the summary."""
    if store is not None:
        for task in tasks:
            task.read(store)
    total = sum(len(task.batch) for task in tasks)
    hits = total - sum(len(task.missing()) for task in tasks)
    if hits < total and not can_share_prefix(model):
        _log.warning(
            "%r (%s) cannot share a prefix between chats: plain batches, equal results, slower.",
            model.name,
            model.model.config.model_type,
        )
    computed, keeper = 0, _Keeper(store=store, note=f"hidden states, {model.name}")
    with bar(progress, total=total, initial=hits, desc="hidden states", unit="chat") as counted:
        counted.note(f"{hits} hits, {computed} computed")
        try:
            lacking = [task for task in tasks if task.missing()]
            for task, prefix in _begun(model, lacking) if lacking else ():
                for count in _compute(model, task, prefix, query_ids, keeper, token_budget):
                    computed += count
                    counted.note(f"{hits} hits, {computed} computed")
                    counted.update(count)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(_interrupted(hits + computed, total, store)) from interrupt
        finally:
            keeper.write()
    return f"{hits} hits, {computed} computed"


def _interrupted(done: int, total: int, store: Store | None) -> str:
    if store is None:
        return f"{done} of {total} chats were done and none is kept: pass store=drolab.Store() to keep them."
    return f"{done} of {total} chats are in the store: run the same call again to compute the rest."


@torch.no_grad()
def _begun(
    model: ChatModel, tasks: Sequence[_Task], begun: Prefix | None = None, depth: int = 0
) -> Iterator[tuple[_Task, Prefix]]:
    """Each task with its prefix, which has run; what several of them begin with ran once.

    Args:
        begun: what all the tasks begin with, `depth` tokens.
    """
    beginnings = {id(task): task.beginning() for task in tasks}
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*beginnings.values(), strict=False)))
    until = max(task.layers[column] for task in tasks for column in task.lacks()[1])
    embeddings = prefix_embeddings(model, tasks[0].batch)
    if all(len(tokens) == common for tokens in beginnings.values()):
        begun = begin(model, embeddings[depth:], after=begun, until=until)
        yield from ((task, begun) for task in tasks)
        return
    if (common - depth) * (len(tasks) - 1) >= _WORTH_SHARING:
        begun, depth = begin(model, embeddings[depth:common], after=begun, until=until), common

    def parting(task: _Task) -> list[tuple]:
        return beginnings[id(task)][common : common + 1]

    for _, group in groupby(sorted(tasks, key=parting), key=parting):
        yield from _begun(model, list(group), begun, depth)


@torch.no_grad()
def _compute(
    model: ChatModel,
    task: _Task,
    prefix: Prefix,
    query_ids: pd.Series,
    keeper: _Keeper,
    token_budget: int | None,
) -> Iterator[int]:
    """Pass by pass what a task lacks; yields the number of chats of each pass."""
    missing, columns = task.lacks()
    layers = [task.layers[column] for column in columns]
    for numbers, states in _delivered(_passes(model, task, prefix, missing, layers, token_budget)):
        finite = states.flatten(1).isfinite().all(dim=1)
        if not finite.all() and len(numbers) > 1:  # what one chat breaks, it breaks for those in its row, too
            alone = [pass_states(model, prefix, [task.batch.suffixes[n]], layers, task.positions) for n in numbers]
            states = torch.cat(alone).cpu()
            finite = states.flatten(1).isfinite().all(dim=1)
        good = finite.nonzero().flatten().tolist()
        keeper.add(task.put([numbers[i] for i in good], columns, states[good]))
        if len(good) < len(numbers):
            bad = query_ids.iloc[numbers[int((~finite).nonzero()[0])]]
            raise StatesError(
                f"The hidden states of query {bad!r} under prompt {task.prompt.name!r} are not finite "
                f"({str(model.dtype).removeprefix('torch.')}): load the model with dtype='bfloat16' or 'float32'; "
                "float16 overflows in some families."
            )
        yield len(numbers)


def _passes(
    model: ChatModel,
    task: _Task,
    prefix: Prefix,
    numbers: Sequence[int],
    layers: Sequence[int],
    token_budget: int | None,
) -> Iterator[tuple[list[int], Tensor]]:
    """The states of these chats, where the model has them; a pass that does not fit into the memory is divided."""
    for rows in passes_of(model, prefix, [len(task.batch.suffixes[number]) for number in numbers], token_budget):
        chats = [numbers[row] for row in rows]
        suffixes = [task.batch.suffixes[chat] for chat in chats]
        try:
            states = pass_states(model, prefix, suffixes, layers, task.positions)
        except torch.OutOfMemoryError:
            states = None
        if states is None:  # only here is the failed pass's memory free
            back_off(model, suffixes)
            yield from _passes(model, task, prefix, chats, layers, token_budget)
        else:
            yield chats, states


def _delivered(passes: Iterator[tuple[list[int], Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    """On the CPU; a GPU is busy with the next pass by the time its states arrive."""
    waiting: list[tuple[list[int], Tensor, torch.cuda.Event]] = []
    for numbers, states in passes:
        if states.is_cuda:
            copied = states.to("cpu", non_blocking=True)
            waiting.append((numbers, copied, torch.cuda.current_stream(states.device).record_event()))
        else:
            yield numbers, states.cpu()
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0))
    yield from (_arrived(*one) for one in waiting)


def _arrived(numbers: list[int], states: Tensor, event: torch.cuda.Event) -> tuple[list[int], Tensor]:
    event.synchronize()
    return numbers, states
