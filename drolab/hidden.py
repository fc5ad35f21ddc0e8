"""Hidden states of queries under safety prompts, at chosen layers and positions.

All chats under one prompt begin with the same tokens. That prefix runs once; its keys and values are then
repeated over each batch and only the rest of each chat runs. The language-model head never runs. States, and
gradients with respect to the prefix, equal those of the plain computation up to rounding (DESIGN, section 4).

*Layers* count as in transformers' `hidden_states`: 0 is the embedding output, k the output of the k-th block,
and the last one (-1) is taken after the final norm in most families, so it differs from the raw output of the
last block. *Positions* are negative: -1 is the last token of the chat with the generation prompt, which is
where the paper reads.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache

from drolab.chat import EncodedBatch, Prompt, as_prompts, encode
from drolab.data import validate_queries
from drolab.models import ChatModel, check_edits
from drolab.progress import Progress, bar
from drolab.store import Store, key
from drolab.types import STATE_COLUMNS, HiddenStates, ModelError, PromptError, StatesError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_shares: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


# --- the prefix --------------------------------------------------------------------------------------------


def prefix_embeddings(model: ChatModel, batch: EncodedBatch, soft: Tensor | None = None) -> Tensor:
    """[P, d]: the input embeddings of a batch's shared prefix, in the model's dtype.

    Args:
        soft: [L, d], the soft prompt's vectors; gradients flow to them. None takes those of `batch.soft`.

    Raises:
        PromptError: vectors for a batch without slots, or of another shape than the slots.
    """
    embedded = model.embed(torch.tensor(batch.prefix, dtype=torch.long))
    if soft is None and batch.soft is not None:
        soft = batch.soft.embeddings
    if soft is None:
        return embedded
    start, stop = batch.span or (0, 0)
    if soft.shape != (stop - start, model.hidden_size):
        raise PromptError(
            f"The soft prompt has shape {list(soft.shape)}, but the chats have {stop - start} slots of width "
            f"{model.hidden_size}: encode the queries with a SoftPrompt of that shape."
        )
    return torch.cat([embedded[:start], soft.to(embedded), embedded[stop:]])


def prefix_cache(model: ChatModel, prefix: Tensor) -> DynamicCache:
    """Run the decoder over a prefix [P, d] once; the keys and values of its tokens, batch size 1.

    With gradients enabled they flow from the cache back to `prefix`.
    """
    cache = DynamicCache(config=model.model.config.get_text_config())
    model.base_model(inputs_embeds=prefix[None], past_key_values=cache, use_cache=True)
    return cache


def expanded(cache: DynamicCache, n: int) -> DynamicCache:
    """A copy of a prefix's cache for a batch of `n`. A forward pass changes the cache it uses; the original stays.

    Tensors are repeated, not deep-copied: gradients flow through, and layers replace them when they grow.
    """
    repeated = copy.copy(cache)
    repeated.layers = [_copied(layer) for layer in cache.layers]
    repeated.batch_repeat_interleave(n)
    return repeated


def _copied(layer: Any) -> Any:
    duplicate = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, (list, dict)):
            setattr(duplicate, name, copy.copy(value))
    return duplicate


def can_share_prefix(model: ChatModel) -> bool:
    """Whether the cache of this family can be repeated over a batch, with equal results.

    Found out by trying it on eight tokens, once per model; families with recurrent or linear-attention
    layers usually cannot.
    """
    if model.model not in _shares:
        _shares[model.model] = _try_sharing(model)
    return _shares[model.model]


@torch.no_grad()
def _try_sharing(model: ChatModel) -> bool:
    ids = torch.arange(8) % len(model.tokenizer)
    prefix, suffixes, layers = model.embed(ids[:5]), [ids[5:].tolist(), ids[6:].tolist()], [model.num_hidden_layers]
    plain = _suffix_states(model, prefix, None, suffixes, layers, [-1])
    try:
        cache = prefix_cache(model, prefix)
        _suffix_states(model, prefix, cache, suffixes, layers, [-1])  # a first use must not change the second
        shared = _suffix_states(model, prefix, cache, suffixes, layers, [-1])
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        _log.debug("no prefix sharing: %r", error)
        return False
    tolerance = 2**3 * torch.finfo(plain.dtype).eps ** 0.75
    return bool((plain - shared).float().norm() <= tolerance * plain.float().norm())


# --- the states --------------------------------------------------------------------------------------------


def forward_states(
    model: ChatModel,
    prefix: Tensor,
    suffixes: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (-1,),
    positions: Sequence[int] = (-1,),
) -> Tensor:
    """[B, n_positions, n_layers, d]: states of chats that begin with one prefix.

    Differentiable with respect to `prefix`; equal to running each chat by itself.

    Args:
        prefix: [P, d] embeddings of the shared tokens, see `prefix_embeddings`; P may be 0.
        suffixes: the token ids of the rest of each chat.
        layers: in transformers' count; negative ones count from the last.
        positions: negative, counted from the end of each chat; inside every suffix.

    Raises:
        StatesError: a layer the model does not have, or a position outside a suffix.
    """
    check_edits(model)
    resolved = resolve_layers(model, layers)
    _check_positions(positions, min(map(len, suffixes), default=0))
    cache = prefix_cache(model, prefix) if len(prefix) and can_share_prefix(model) else None
    return _suffix_states(model, prefix, cache, suffixes, resolved, positions)


def resolve_layers(model: ChatModel, layers: Sequence[int]) -> tuple[int, ...]:
    """Layer numbers from 0 to num_hidden_layers, in the order asked for, each once.

    Raises:
        StatesError: none asked for, or one that the model does not have.
    """
    last = model.num_hidden_layers
    if absent := [layer for layer in layers if not -last - 1 <= layer <= last]:
        raise StatesError(f"{model.name!r} has no layers {absent}: choose from 0 (embeddings) to {last}, or -1.")
    if not layers:
        raise StatesError("No layers asked for: pass layers=(-1,) for the last one.")
    return tuple(dict.fromkeys(layer % (last + 1) for layer in layers))


def _check_positions(positions: Sequence[int], limit: int) -> None:
    if not positions or any(position >= 0 for position in positions):
        raise StatesError(f"Positions count from the end of the chat: pass -1, -2, …, not {list(positions)}.")
    if min(positions) < -limit:
        raise StatesError(
            f"Position {min(positions)} lies outside a suffix of {limit} tokens: "
            f"encode(…, min_suffix={-min(positions)}) keeps enough tokens out of the shared prefix."
        )


def _suffix_states(
    model: ChatModel,
    prefix: Tensor,
    cache: DynamicCache | None,
    suffixes: Sequence[Sequence[int]],
    layers: Sequence[int],
    positions: Sequence[int],
) -> Tensor:
    """`forward_states` after a prefix that has run already, or, without a cache, together with it.

    Suffixes are padded on the right: in a causal model no token sees the padding behind it, so neither a
    mask nor a special padding token is needed, whatever side the tokenizer pads on.
    """
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    padded = torch.zeros(len(suffixes), int(lengths.max()), dtype=torch.long)
    for row, suffix in enumerate(suffixes):
        padded[row, : len(suffix)] = torch.tensor(suffix)
    embedded = model.embed(padded)
    if cache is None:
        embedded = torch.cat([prefix.expand(len(suffixes), *prefix.shape), embedded], dim=1)
        lengths = lengths + len(prefix)
    else:
        cache = expanded(cache, len(suffixes))
    read = lengths[:, None] + torch.tensor(list(positions))
    rows = torch.arange(len(suffixes))[:, None]
    states = _layer_outputs(model, embedded, cache, layers)
    device = states[-1].device
    return torch.stack([layer[rows.to(layer.device), read.to(layer.device)].to(device) for layer in states], dim=2)


def _layer_outputs(
    model: ChatModel, embedded: Tensor, cache: DynamicCache | None, layers: Sequence[int]
) -> list[Tensor]:
    """One [B, S, d] per layer. Inner layers are kept by transformers only when one is asked for."""
    last = model.num_hidden_layers
    inner = any(layer != last for layer in layers)
    output = model.base_model(
        inputs_embeds=embedded, past_key_values=cache, use_cache=cache is not None, output_hidden_states=inner
    )
    if inner and len(output.hidden_states or ()) != last + 1:
        raise ModelError(
            f"{model.name!r} does not return the states of its {last} layers: ask for layers=(-1,) only, "
            "or load it without custom code."
        )
    return [output.last_hidden_state if layer == last else output.hidden_states[layer] for layer in layers]


def last_logits(model: ChatModel, **inputs: Any) -> Tensor:
    """[rows, vocabulary] float32 at the last position, by the model's own head (with its scaling and caps)."""
    if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
        inputs["logits_to_keep"] = 1
    logits: Tensor = model.model(**inputs).logits[:, -1].float()
    if logits.isnan().any():
        raise StatesError(
            f"{model.name!r} computes logits that are not numbers ({str(model.dtype).removeprefix('torch.')}): "
            "load it with dtype='bfloat16' or 'float32'; float16 overflows in some families."
        )
    return logits.cpu() if logits.device.type == "mps" else logits  # sampling needs float64, which mps lacks


# --- tables of states --------------------------------------------------------------------------------------


def hidden_states(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Mapping[str, Prompt] | Sequence[Prompt] | Prompt,
    *,
    layers: Sequence[int] = (-1,),
    positions: Sequence[int] = (-1,),
    store: Store | None = None,
    token_budget: int = 16384,
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
        store: only what it lacks is computed, and every finished batch is kept in it at once, so an
            interruption loses at most the batch in flight. None computes everything and keeps nothing.
        token_budget: chats x tokens per chat (with prefix and padding) in one batch; bounds the memory.
        progress: show a bar; or a callable, see `drolab.progress`.

    Raises:
        QueryError, PromptError, ChatTemplateError: what is given cannot be rendered, see `chat.render`.
        StatesError: layers or positions that are not there, or a state that is not finite.
    """
    check_edits(model)
    queries = validate_queries(queries)
    resolved = resolve_layers(model, layers)
    _check_positions(positions, limit=model.max_length)
    if token_budget < 1:
        raise StatesError(f"token_budget must be at least 1, got {token_budget}: the default is 16384.")
    places = tuple(dict.fromkeys(positions))
    texts = queries["text"].tolist()
    tasks = [
        _Task.make(model, prompt, encode(model, texts, prompt, min_suffix=-min(places)), resolved, places)
        for prompt in as_prompts(prompts)
    ]
    summary = _fill(model, tasks, queries["query_id"].tolist(), store, token_budget, progress)
    index = pd.concat([_index(queries, task.prompt.name, places) for task in tasks], ignore_index=True)
    index.attrs["summary"] = summary
    return HiddenStates(
        values=torch.cat([task.values for task in tasks]).flatten(0, 1),
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
    keys: list[list[str]]
    """Per query the store keys of its states, positions x layers."""
    values: Tensor
    """[n_queries, n_positions, n_layers, d], filled in place."""
    done: Tensor
    """[n_queries, n_positions, n_layers] bool."""

    @classmethod
    def make(
        cls,
        model: ChatModel,
        prompt: Prompt,
        batch: EncodedBatch,
        layers: tuple[int, ...],
        positions: tuple[int, ...],
    ) -> _Task:
        shape = (len(batch), len(positions), len(layers))
        return cls(
            prompt=prompt,
            batch=batch,
            layers=layers,
            positions=positions,
            keys=_keys(model, batch, layers, positions),
            values=torch.empty(*shape, model.hidden_size, dtype=model.dtype),
            done=torch.zeros(shape, dtype=torch.bool),
        )

    def missing(self) -> list[int]:
        """The queries that lack a state."""
        return (~self.done.flatten(1).all(dim=1)).nonzero().flatten().tolist()

    def read(self, found: Mapping[str, Tensor]) -> None:
        for row, keys in enumerate(self.keys):
            for number, name in enumerate(keys):
                if name in found:
                    place = (row, *divmod(number, len(self.layers)))
                    self.values[place] = found[name]
                    self.done[place] = True

    def put(self, rows: list[int], columns: list[int], computed: Tensor, store: Store | None) -> None:
        """Take in [rows, positions, columns, d] where nothing was; keep it in the store."""
        new = {}
        for row, states in zip(rows, computed, strict=True):
            for place in range(len(self.positions)):
                for column, state in zip(columns, states[place], strict=True):
                    if not self.done[row, place, column]:
                        self.values[row, place, column] = state
                        self.done[row, place, column] = True
                        new[self.keys[row][place * len(self.layers) + column]] = state
        if store is not None and new:
            store.put_tensors(list(new), torch.stack(list(new.values())))


def _keys(model: ChatModel, batch: EncodedBatch, layers: Sequence[int], positions: Sequence[int]) -> list[list[str]]:
    """Everything a state depends on. Not the batch: it changes a state by rounding only."""
    soft = None if batch.soft is None else [batch.soft.sha256, *(batch.span or ())]
    common = key(
        kind="hidden state",
        model=model.fingerprint,
        dtype=str(model.dtype),
        attention=model.model.config._attn_implementation,
        soft=soft,
    )
    chats = [key(common=common, ids=list(batch.chat(row))) for row in range(len(batch))]
    return [[key(chat=chat, position=p, layer=layer) for p in positions for layer in layers] for chat in chats]


def _fill(
    model: ChatModel,
    tasks: Sequence[_Task],
    query_ids: Sequence[str],
    store: Store | None,
    token_budget: int,
    progress: Progress,
) -> str:
    """Complete every task, from the store first; returns the summary."""
    if store is not None:
        found = store.get_tensors([name for task in tasks for keys in task.keys for name in keys])
        for task in tasks:
            task.read(found)
    total = sum(len(task.batch) for task in tasks)
    hits = total - sum(len(task.missing()) for task in tasks)
    if hits < total and not can_share_prefix(model):
        _log.warning(
            "%r (%s) cannot share a prefix between chats: plain batches, equal results, slower.",
            model.name,
            model.model.config.model_type,
        )
    computed = 0
    with bar(progress, total=total, initial=hits, desc="hidden states", unit="chat") as counted:
        counted.note(f"{hits} hits, {computed} computed")
        try:
            for count in (n for task in tasks for n in _compute(model, task, query_ids, store, token_budget)):
                computed += count
                counted.note(f"{hits} hits, {computed} computed")
                counted.update(count)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(_interrupted(hits + computed, total, store)) from interrupt
    return f"{hits} hits, {computed} computed"


def _interrupted(done: int, total: int, store: Store | None) -> str:
    if store is None:
        return f"{done} of {total} chats were done and none is kept: pass store=drolab.Store() to keep them."
    return f"{done} of {total} chats are in the store: run the same call again to compute the rest."


@torch.no_grad()
def _compute(
    model: ChatModel, task: _Task, query_ids: Sequence[str], store: Store | None, token_budget: int
) -> Iterator[int]:
    """Batch by batch what a task lacks; yields the number of chats of each batch once it is kept."""
    rows = task.missing()
    if not rows:
        return
    columns = (~task.done).flatten(0, 1).any(dim=0).nonzero().flatten().tolist()
    layers = [task.layers[column] for column in columns]
    prefix = prefix_embeddings(model, task.batch)
    cache = prefix_cache(model, prefix) if len(prefix) and can_share_prefix(model) else None
    for batch in _batches(rows, [len(suffix) for suffix in task.batch.suffixes], len(prefix), token_budget):
        suffixes = [task.batch.suffixes[row] for row in batch]
        states = _suffix_states(model, prefix, cache, suffixes, layers, task.positions).cpu()
        finite = states.flatten(1).isfinite().all(dim=1)
        good = finite.nonzero().flatten().tolist()
        task.put([batch[i] for i in good], columns, states[good], store)
        if len(good) < len(batch):
            bad = query_ids[batch[int((~finite).nonzero()[0])]]
            raise StatesError(
                f"The hidden states of query {bad!r} under prompt {task.prompt.name!r} are not finite "
                f"({str(model.dtype).removeprefix('torch.')}): load the model with dtype='bfloat16' or 'float32'; "
                "float16 overflows in some families."
            )
        yield len(batch)


def _batches(rows: Sequence[int], lengths: Sequence[int], prefix: int, token_budget: int) -> Iterator[list[int]]:
    """Rows of similar length together, the longest first: if memory does not suffice, that shows at once."""
    batch: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * (prefix + lengths[batch[0]]) > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
