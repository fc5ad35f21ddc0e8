"""Tables of hidden states: every query under every safety prompt, at chosen layers and positions, from the store first.

In order: `hidden_states`; a `_Task`, which is what is wanted under one prompt; the loop that completes all tasks. All
chats under one prompt share their first tokens (`models.passes`), and prompts that begin alike share those, too.
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
from drolab.inference.thinking import PlacedChats, place_chats
from drolab.models import (
    ChatModel,
    EncodedBatch,
    Prefix,
    Prompt,
    Prompts,
    as_prompts,
    can_share_prefix,
    check_edits,
    check_layers,
    check_positions,
    check_read_at,
    forward_states,
    prefix_embeddings,
    resolve_layers,
    run_prefix,
    states_by_pass,
)
from drolab.progress import Progress, found_in_words, resumable_bar
from drolab.store import Store, key
from drolab.threads import threads_for
from drolab.types import STATE_COLUMNS, HiddenStates, ReadAt

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
    prompts: Prompts,
    *,
    layers: Sequence[int] = (-1,),
    positions: Sequence[int] = (-1,),
    read_at: ReadAt = "reply",
    max_thinking_tokens: int | None = None,
    thinking_seed: int | None = None,
    store: Store | None = None,
    token_budget: int | None = None,
    progress: Progress = True,
) -> HiddenStates:
    """The hidden states of every query under every prompt.

    Rows: prompts in order, within each prompt the queries in order, within each query the positions.
    `states.index.attrs["summary"]` says what was done: "796 of 800 chats found in the store, 4 computed now".

    A model that thinks before it answers can be read at three places. "reply" is the end of the chat with the
    generation prompt, where its reply begins, thought and all. "answer" is after a thought that is closed and empty, as
    its template writes it when thinking is switched off, or as drolab does (see `chat.render`). "after_thinking" is
    where its answer begins after a thought of its own: one for each query and prompt, kept in the store. A model that
    does not think begins its answer with its reply: for it "answer" is the same place as "reply", with the same states,
    and "after_thinking" is an error. A chat whose answer has not begun within the budget has no state: it is left out,
    `states.missing` names it, and the summary counts it (`states.paired()` leaves its query out under all prompts).

    Args:
        queries: a query set, see `load_queries`.
        prompts: safety prompts and soft prompts; a mapping's keys name them.
        layers: in transformers' count, 0 to num_hidden_layers; negative ones count from the last.
        positions: negative, counted from the end of each chat.
        read_at: where the chats end: "reply", "answer" or "after_thinking".
        max_thinking_tokens: the budget of a thought. None is 1024, or a quarter of the model's context if that is less.
        thinking_seed: None writes the thoughts greedily, with the most probable token each time, which leads some
            models round in circles; a number samples them, as `generate` does its first sample with this seed.
        store: only what it lacks is computed. What is finished is kept in it every two seconds and whenever this
            ends, also by an error or Ctrl-C, so a crash loses two seconds and the pass in flight. None computes
            everything and keeps nothing.
        token_budget: tokens in one pass, without the shared prefix; bounds the memory. None takes 512 on a CPU and 4096
            elsewhere, and packed passes never have more. A pass that runs out of memory is divided, and so are later
            ones of this model.
        progress: show a bar; or a callable, see `drolab.progress`.

    Raises:
        QueryError: malformed queries, or one that makes a chat longer than the model's context.
        PromptError: no prompts, two of one name, a soft prompt of another model, or one too long for the context.
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        StatesError: layers, positions or a place that are not there, a model that does not think, no thought that
            ended, or a state that is not finite.
        ModelError: not even a single chat fits into the memory; or the model is being edited (see `steered`) and this
            is not what its context yielded; or the last layer is another state in transformers.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").head(3)
        >>> states = drolab.hidden_states(model, queries, prompts, layers=(2, -1), progress=False)
        >>> states.values.shape  # 4 prompts x 3 queries, 2 layers
        torch.Size([12, 2, 256])
        >>> states.index[["query_id", "prompt", "position"]].head(4)
               query_id   prompt  position
        0  anchors-0001     none        -1
        1  anchors-0002     none        -1
        2  anchors-0003     none        -1
        3  anchors-0001  default        -1
        >>> states.index.attrs["summary"]
        'all 12 chats computed now'
        >>> shift = states.select(prompt="default").matrix(-1) - states.select(prompt="none").matrix(-1)
    """
    check_edits(model)
    queries = validate_queries(queries)
    resolved = resolve_layers(model, layers)
    check_layers(model, resolved)
    check_positions(positions, limit=model.max_length)
    if token_budget is not None and token_budget < 1:
        raise StatesError(f"token_budget must be at least 1, got {token_budget}: None takes what suits the device.")
    check_read_at(read_at)
    places = tuple(dict.fromkeys(positions))
    wanted, texts = as_prompts(prompts), queries["text"].tolist()
    placed, found = place_chats(
        model,
        texts,
        wanted,
        read_at,
        min_suffix=-min(places),
        max_thinking_tokens=max_thinking_tokens,
        thinking_seed=thinking_seed,
        store=store,
        progress=progress,
    )
    sizes = [len(chats.rows) for _, chats in placed]
    shape = (sum(sizes), len(places), len(resolved), model.hidden_size)
    values = torch.empty(shape, dtype=model.dtype)  # filled in place: to put parts together would take twice the room
    tasks = [
        _Task.make(model, prompt, chats, queries, resolved, places, own)
        for (prompt, chats), own in zip(placed, values.split(sizes), strict=True)
    ]
    summary = _complete(model, tasks, store, token_budget, progress)
    index = pd.concat([_index(task.queries, task.prompt.name, places) for task in tasks], ignore_index=True)
    index.attrs["summary"] = summary + found
    return HiddenStates(
        values=values.flatten(0, 1),
        index=index,
        layers=resolved,
        num_hidden_layers=model.num_hidden_layers,
        model_fingerprint=model.fingerprint,
        read_at=read_at,
        missing=_missing(queries["query_id"], wanted, placed),
    )


def _missing(
    query_ids: pd.Series, prompts: Sequence[Prompt], placed: Sequence[tuple[Prompt, PlacedChats]]
) -> tuple[tuple[str, str], ...]:
    there = {prompt.name: set(chats.rows) for prompt, chats in placed}
    return tuple(
        (query_id, prompt.name)
        for prompt in prompts
        for row, query_id in enumerate(query_ids)
        if row not in there.get(prompt.name, ())
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
    queries: pd.DataFrame
    """Those that its chats are of, in order."""
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
        prompt: Prompt,
        chats: PlacedChats,
        queries: pd.DataFrame,
        layers: tuple[int, ...],
        positions: tuple[int, ...],
        values: Tensor,
    ) -> _Task:
        batch = chats.batch
        return cls(
            prompt=prompt,
            batch=batch,
            queries=queries.iloc[chats.rows],
            layers=layers,
            positions=positions,
            common=key(
                kind="hidden state",
                model=model.fingerprint,
                dtype=str(model.dtype),
                attention=model.model.config._attn_implementation,
                soft=batch.slots,
            ),
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

    def lacking_layers(self) -> list[int]:
        """Numbers of the layers at which any query lacks a state."""
        return (~self.done).flatten(0, 1).any(dim=0).nonzero().flatten().tolist()

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


# --- the loop over passes ----------------------------------------------------------------------------------


@torch.no_grad()
def _complete(
    model: ChatModel,
    tasks: Sequence[_Task],
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
    keeper = _Keeper(store=store, note=f"hidden states, {model.name}")
    bar = resumable_bar(progress, "hidden states", "chat", "chats", total=total, initial=hits, kept=store is not None)
    with bar as counted, threads_for(model.model):
        counted.note(f"{hits} from the store, 0 computed")
        try:
            for task, prefix in _with_prefixes(model, [task for task in tasks if task.missing()]):
                for n_chats in _compute(model, task, prefix, keeper, token_budget):
                    counted.note(f"{hits} from the store, {counted.done + n_chats - hits} computed")
                    counted.update(n_chats)
        finally:
            keeper.write()
    return found_in_words(hits, total, "chats", kept=store is not None)


def _with_prefixes(
    model: ChatModel, tasks: Sequence[_Task], shared: Prefix | None = None, depth: int = 0
) -> Iterator[tuple[_Task, Prefix]]:
    """Each task with its prefix, which has run; what several of them begin with ran once.

    Args:
        shared: what all the tasks begin with, `depth` tokens, after it has run.
    """
    if not tasks:
        return
    beginnings = {id(task): task.beginning() for task in tasks}
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*beginnings.values(), strict=False)))
    until = max(task.layers[column] for task in tasks for column in task.lacking_layers())
    embeddings = prefix_embeddings(model, tasks[0].batch)
    if all(len(tokens) == common for tokens in beginnings.values()):
        prefix = run_prefix(model, embeddings[depth:], after=shared, until=until)
        yield from ((task, prefix) for task in tasks)
        return
    if (common - depth) * (len(tasks) - 1) >= _WORTH_SHARING:
        shared, depth = run_prefix(model, embeddings[depth:common], after=shared, until=until), common

    def next_token(task: _Task) -> list[tuple]:
        return beginnings[id(task)][common : common + 1]

    for _, group in groupby(sorted(tasks, key=next_token), key=next_token):
        yield from _with_prefixes(model, list(group), shared, depth)


def _compute(
    model: ChatModel,
    task: _Task,
    prefix: Prefix,
    keeper: _Keeper,
    token_budget: int | None,
) -> Iterator[int]:
    """Pass by pass what a task lacks; yields the number of chats of each pass."""
    missing, columns = task.missing(), task.lacking_layers()
    suffixes, layers = [task.batch.suffixes[row] for row in missing], [task.layers[column] for column in columns]
    for numbers, states in _delivered(states_by_pass(model, prefix, suffixes, layers, task.positions, token_budget)):
        rows, finite = [missing[number] for number in numbers], _finite(states)
        if not finite.all() and len(rows) > 1:  # what one chat breaks, it breaks for those in its row, too
            alone = [
                forward_states(model, prefix, [suffixes[number]], layers=layers, positions=task.positions)
                for number in numbers
            ]
            states = torch.cat(alone).cpu()
            finite = _finite(states)
        good = finite.nonzero().flatten().tolist()
        check_edits(model)  # what is kept was computed by what its key says
        keeper.add(task.put([rows[i] for i in good], columns, states[good]))
        if len(good) < len(rows):
            bad = task.queries["query_id"].iloc[rows[int((~finite).nonzero()[0])]]
            raise StatesError(
                f"The hidden states of query {bad!r} under prompt {task.prompt.name!r} are not finite "
                f"({str(model.dtype).removeprefix('torch.')}): load the model with dtype='bfloat16' or 'float32'; "
                "float16 overflows in some families."
            )
        yield len(rows)


def _finite(states: Tensor) -> Tensor:
    """[B] bool."""
    return states.flatten(1).isfinite().all(dim=1)


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
