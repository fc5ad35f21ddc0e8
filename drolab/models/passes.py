"""Passes of the decoder: the states of chats that begin alike, without running anything twice.

All chats under one prompt begin with the same tokens. That *prefix* runs once. What follows in each chat runs in
one row with what follows in others (packed), so there is no padding, and the prefix's keys and values are read where
they are instead of being copied for every chat; a mask keeps the chats apart. No block above the highest layer asked
for runs, and the language-model head never does. States, and gradients with respect to the prefix, equal those of the
plain computation up to rounding (DESIGN, section 4).

Whether a family allows this is found out by trying it. Where packing is not exact (an attention window shorter than
the chat, positions that the model counts itself) the prefix's cache is copied for each chat; where a cache cannot be
split at all (recurrent layers) chats run whole, in padded batches.

*Layers* count as in `layers`. *Positions* are negative: -1 is the last token of the chat with the generation prompt,
which is where the paper reads.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from drolab.errors import ModelError, PromptError, StatesError
from drolab.models.chat import EncodedBatch
from drolab.models.decoder import TRIAL_ERRORS, tolerance
from drolab.models.interventions import check_edits
from drolab.models.layers import block_names, check_layers, has_blocks, resolve_layers
from drolab.models.load import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
T = TypeVar("T")

_PASS_TOKENS = {"cpu": 512}
"""Tokens in one pass, by type of device. On a CPU more only fall out of its caches (benchmarks/speed.py)."""
_PASS_TOKENS_ELSEWHERE = 4096


# --- the prefix --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning that chats share, after it has run: see `run_prefix`."""

    embeddings: Tensor
    """[P, d]"""
    cache: DynamicCache | None
    """Its keys and values, batch size 1; None if P is 0, or if the family cannot share it."""


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


def run_prefix(model: ChatModel, embeddings: Tensor, *, after: Prefix | None = None, until: int = -1) -> Prefix:
    """Run a prefix [P, d] once, for many chats. With gradients enabled they flow back to it.

    Args:
        after: a prefix that has run, which this one continues; it stays as it is.
        until: the highest layer that the chats will be read at.

    Raises:
        ModelError: it does not fit into the memory.
    """
    if after is not None and not len(embeddings):
        return after
    whole = embeddings if after is None else torch.cat([after.embeddings, embeddings])
    if not len(whole) or not can_share_prefix(model):
        return Prefix(whole, None)
    try:
        return Prefix(whole, prefix_cache(model, embeddings, None if after is None else after.cache, until=until))
    except torch.OutOfMemoryError as error:
        raise _no_memory(model) from error


def prefix_cache(
    model: ChatModel, prefix: Tensor, after: DynamicCache | None = None, *, until: int = -1
) -> DynamicCache:
    """The keys and values of the tokens [P, d] or [B, P, d] (P may be 0), and of those in the cache before them."""
    cache = DynamicCache(config=model.model.config.get_text_config()) if after is None else copy_cache(after, 1)
    embeddings = prefix if prefix.ndim == 3 else prefix[None]
    if embeddings.shape[1]:
        inputs = {"inputs_embeds": embeddings, "past_key_values": cache, "use_cache": True}
        _run(model, inputs, resolve_layers(model, [until]), lambda layer, states: None)
    return cache


def token_bytes(model: ChatModel, cache: DynamicCache | None, n_tokens: int) -> float:
    """What the keys and values of one token take: going by a cache that has some, or else as much as without heads that
    share theirs."""
    tensors = [value for layer in getattr(cache, "layers", ()) for value in vars(layer).values()]
    kept = sum(value.numel() * value.element_size() for value in tensors if isinstance(value, Tensor))
    if kept and n_tokens:
        return kept / n_tokens
    return 2.0 * model.num_hidden_layers * model.hidden_size * model.dtype.itemsize


def copy_cache(cache: DynamicCache, n: int) -> DynamicCache:
    """A copy of a cache, each row `n` times. A forward pass changes the cache it uses; the original stays.

    Tensors are repeated, not deep-copied: gradients flow through, and layers replace them when they grow.
    """
    repeated = copy.copy(cache)
    repeated.layers = [_copied(layer) for layer in cache.layers]
    if n > 1:
        repeated.batch_repeat_interleave(n)
    return repeated


def _copied(layer: Any) -> Any:
    duplicate = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, (list, dict)):
            setattr(duplicate, name, copy.copy(value))
    return duplicate


@contextmanager
def accumulating_gradients(model: ChatModel, embeddings: Tensor, until: int = -1) -> Iterator[Prefix]:
    """A prefix that has run, for several backward passes: each may follow its forward pass, which frees the memory.

    Their gradients meet at the prefix's keys and values; when the context ends, the sum goes back through the
    prefix to `embeddings`, once.
    """
    begun = run_prefix(model, embeddings, until=until)
    if begun.cache is None:
        leaf = embeddings.detach().requires_grad_()
        yield Prefix(leaf, None)
        if leaf.grad is not None:
            embeddings.backward(leaf.grad)
        return
    cut, pairs = copy_cache(begun.cache, 1), []
    for layer in cut.layers:
        for name in ("keys", "values"):
            if isinstance(whole := getattr(layer, name, None), Tensor) and whole.requires_grad:
                setattr(layer, name, whole.detach().requires_grad_())
                pairs.append((whole, getattr(layer, name)))
    yield Prefix(embeddings.detach(), cut)
    reached = [(whole, leaf.grad) for whole, leaf in pairs if leaf.grad is not None]
    torch.autograd.backward([whole for whole, _ in reached], [grad for _, grad in reached])


# --- what a family allows ----------------------------------------------------------------------------------


class _Abilities(NamedTuple):
    shares: bool
    packs: bool


_abilities: WeakKeyDictionary[PreTrainedModel, _Abilities] = WeakKeyDictionary()


def can_share_prefix(model: ChatModel) -> bool:
    """Whether a cache of this family can be used by many chats, with equal results.

    Found out by trying it on eight tokens, once per model; families with recurrent or linear-attention
    layers usually cannot.
    """
    return _able(model).shares


def can_pack(model: ChatModel, n_tokens: int) -> bool:
    """Whether chats of this family may share a row, with equal results, if none is longer than `n_tokens`."""
    return n_tokens <= _window(model) and _able(model).packs


def _window(model: ChatModel) -> float:
    """How far every layer looks back at least; the mask of a packed row knows no windows."""
    config = model.model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=float("inf"))


def _able(model: ChatModel) -> _Abilities:
    if model.model not in _abilities:
        _abilities[model.model] = _try(model)
    return _abilities[model.model]


@torch.no_grad()
def _try(model: ChatModel) -> _Abilities:
    ids, layers = torch.arange(8) % len(model.tokenizer), (model.num_hidden_layers,)
    embeddings, suffixes = model.embed(ids[:5]), [ids[5:].tolist(), ids[6:].tolist()]
    plain = _states(model, _pad(model, Prefix(embeddings, None), suffixes, [-1]), layers)
    limit = tolerance(plain.dtype)

    def equal(place: Callable[..., _PassInputs]) -> bool:
        try:
            begun = Prefix(embeddings, prefix_cache(model, embeddings))
            for _ in range(2):  # a first use must not change the second
                found = _states(model, place(model, begun, suffixes, [-1]), layers)
        except torch.OutOfMemoryError:
            raise
        except TRIAL_ERRORS as error:
            _log.debug("%s: %r", place.__name__, error)
            return False
        return bool((plain - found).float().norm() <= limit * plain.float().norm())

    shares = equal(_pad)
    return _Abilities(shares, packs=shares and len(ids) <= _window(model) and equal(pack))


# --- passes ------------------------------------------------------------------------------------------------


def forward_states(
    model: ChatModel,
    prefix: Tensor | Prefix,
    suffixes: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (-1,),
    positions: Sequence[int] = (-1,),
) -> Tensor:
    """The states of chats that begin with one prefix, [B, n_positions, n_layers, d].

    Differentiable with respect to `prefix`; equal to running each chat by itself.

    Args:
        prefix: [P, d] embeddings of the shared tokens, see `prefix_embeddings` (P may be 0), or what
            `run_prefix` made of them.
        suffixes: the token ids of the rest of each chat.
        layers: in transformers' count; negative ones count from the last.
        positions: negative, counted from the end of each chat; inside every suffix.

    Raises:
        StatesError: a layer the model does not have, or a position outside a suffix.
        ModelError: the prefix alone does not fit into the memory; or the model is being edited (see `steered`) and this
            is not what its context yielded; or the last layer is another state in transformers.

    Examples:
        >>> import drolab
        >>> from drolab import chat, passes
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> batch = chat.encode(model, ["How do I boil an egg?", "How do I boil rice?"], prompts["short"])
        >>> prefix = passes.prefix_embeddings(model, batch).requires_grad_()
        >>> states = passes.forward_states(model, prefix, batch.suffixes, layers=(2, -1))
        >>> states.shape
        torch.Size([2, 1, 2, 256])
        >>> states[:, 0, -1].square().sum().backward()
        >>> prefix.grad.shape
        torch.Size([34, 256])
    """
    check_edits(model)
    resolved = resolve_layers(model, layers)
    check_layers(model, resolved)
    check_positions(positions, min(map(len, suffixes), default=0))
    begun = prefix if isinstance(prefix, Prefix) else run_prefix(model, prefix, until=max(resolved))
    passes = list(plan_passes(model, begun, [len(suffix) for suffix in suffixes]))
    parts = [_pass_states(model, begun, [suffixes[row] for row in rows], resolved, positions) for rows in passes]
    order = torch.tensor([row for rows in passes for row in rows]).argsort()
    return torch.cat(parts)[order.to(parts[0].device)]


def plan_passes(
    model: ChatModel, prefix: Prefix, lengths: Sequence[int], token_budget: int | None = None
) -> Iterator[list[int]]:
    """The rows of suffixes of these lengths, pass by pass, the longest first: if memory is short, that shows at once.

    The budget counts the tokens that pass, with padding; it is looked up anew for every pass, see `pass_tokens`.
    """
    todo = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while todo:
        longest, budget = lengths[todo[0]], pass_tokens(model, token_budget)
        if can_pack(model, len(prefix.embeddings) + longest):
            budget = min(budget, pass_tokens(model))  # the mask of a row grows with its square
            costs = [lengths[row] for row in todo[:budget]]
        else:
            costs = [longest + (len(prefix.embeddings) if prefix.cache is None else 0)] * min(budget, len(todo))
        size = max(1, sum(total <= budget for total in accumulate(costs)))
        yield todo[:size]
        del todo[:size]


_afforded: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def pass_tokens(model: ChatModel, token_budget: int | None = None) -> int:
    """How many tokens may pass at once: the budget, or what suits the device; no more than memory allowed before."""
    wanted = token_budget or _PASS_TOKENS.get(model.device.type, _PASS_TOKENS_ELSEWHERE)
    return min(wanted, _afforded.get(model.model, wanted))


def halve_pass_tokens(model: ChatModel, suffixes: Sequence[Sequence[int]]) -> None:
    """Remember that memory did not suffice for a pass with these suffixes: later ones have half its tokens.

    Raises:
        ModelError: it was a single chat.
    """
    if len(suffixes) == 1:
        raise _no_memory(model)
    _afforded[model.model] = sum(map(len, suffixes)) // 2
    _log.warning("Out of memory: %r runs at most %d tokens at once from now on.", model.name, _afforded[model.model])


def _no_memory(model: ChatModel) -> ModelError:
    return ModelError(
        f"{model.name!r} runs out of memory with a single chat: load it with dtype='bfloat16', spread it with "
        "device_map='auto', shorten the prompt, or free the memory that others use."
    )


def states_by_pass(
    model: ChatModel,
    prefix: Prefix,
    suffixes: Sequence[Sequence[int]],
    layers: Sequence[int],
    positions: Sequence[int],
    token_budget: int | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of the suffixes and their `forward_states`, where the model has them, pass by pass; nothing is checked.

    A pass that does not fit into the memory is divided, and so are later ones of this model.

    Raises:
        ModelError: not even a single chat fits into the memory.
    """

    def run(rows: list[int]) -> Tensor:
        return _pass_states(model, prefix, [suffixes[row] for row in rows], layers, positions)

    return by_pass(model, prefix, suffixes, run, token_budget)


def by_pass(
    model: ChatModel,
    prefix: Prefix,
    suffixes: Sequence[Sequence[int]],
    run: Callable[[list[int]], T],
    token_budget: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], T]]:
    """Rows of the suffixes (None: all), and what `run` makes of them, pass by pass. A pass that does not fit into the
    memory is divided, and so are later ones of this model.

    Raises:
        ModelError: not even a single chat fits into the memory.
    """
    rows = range(len(suffixes)) if rows is None else rows
    for places in plan_passes(model, prefix, [len(suffixes[row]) for row in rows], token_budget):
        some = [rows[place] for place in places]
        try:
            found = [run(some)]
        except torch.OutOfMemoryError:
            found = []
        if found:
            yield some, found[0]
        else:
            halve_pass_tokens(model, [suffixes[row] for row in some])  # only here is the failed pass's memory free
            yield from by_pass(model, prefix, suffixes, run, token_budget, some)


def _pass_states(
    model: ChatModel,
    prefix: Prefix,
    suffixes: Sequence[Sequence[int]],
    layers: Sequence[int],
    positions: Sequence[int],
) -> Tensor:
    place = pack if can_pack(model, len(prefix.embeddings) + max(map(len, suffixes))) else _pad
    return _states(model, place(model, prefix, suffixes, positions), layers)


class _PassInputs(NamedTuple):
    """What goes into a pass, and where in it the states are read."""

    inputs: dict[str, Any]
    rows: Tensor
    """[B, 1]"""
    columns: Tensor
    """[B, n_positions]"""


def pack(model: ChatModel, prefix: Prefix, suffixes: Sequence[Sequence[int]], positions: Sequence[int]) -> _PassInputs:
    """All suffixes one after the other in one row; each sees the prefix and itself."""
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=model.device)
    ends, n_prefix = lengths.cumsum(0), len(prefix.embeddings)
    place = torch.arange(int(ends[-1]), device=model.device)
    chat = torch.repeat_interleave(lengths)
    hidden = (chat[:, None] != chat) | (place[:, None] < place)
    mask = torch.zeros(1, 1, len(place), n_prefix + len(place), dtype=model.dtype, device=model.device)
    mask[..., n_prefix:].masked_fill_(hidden, float("-inf"))
    inputs = {
        "inputs_embeds": model.embed(torch.tensor([token for suffix in suffixes for token in suffix]))[None],
        "position_ids": (n_prefix + place - (ends - lengths)[chat])[None],
        "attention_mask": mask,
        **_cached(prefix, 1),
    }
    return _PassInputs(
        inputs, torch.zeros_like(ends)[:, None], ends[:, None] + torch.tensor(positions, device=ends.device)
    )


def _pad(model: ChatModel, prefix: Prefix, suffixes: Sequence[Sequence[int]], positions: Sequence[int]) -> _PassInputs:
    """A row for each suffix, after a copy of the prefix's cache, or, without one, of the prefix.

    Suffixes are padded on the right: in a causal model no token sees the padding behind it, so neither a
    mask nor a special padding token is needed, whatever side the tokenizer pads on.
    """
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    padded = torch.zeros(len(suffixes), int(lengths.max()), dtype=torch.long)
    for row, suffix in enumerate(suffixes):
        padded[row, : len(suffix)] = torch.tensor(suffix)
    embedded = model.embed(padded)
    if prefix.cache is None:
        embedded = torch.cat([prefix.embeddings.expand(len(suffixes), *prefix.embeddings.shape), embedded], dim=1)
        lengths = lengths + len(prefix.embeddings)
    inputs = {"inputs_embeds": embedded, **_cached(prefix, len(suffixes))}
    return _PassInputs(inputs, torch.arange(len(suffixes))[:, None], lengths[:, None] + torch.tensor(list(positions)))


def _cached(prefix: Prefix, n: int) -> dict[str, Any]:
    cache = None if prefix.cache is None else copy_cache(prefix.cache, n)
    return {"past_key_values": cache, "use_cache": cache is not None}


def _states(model: ChatModel, placed: _PassInputs, layers: Sequence[int]) -> Tensor:
    """[B, n_positions, n_layers, d], on the device of the last of the layers."""
    taken: dict[int, Tensor] = {}

    def take(layer: int, states: Tensor) -> None:
        taken[layer] = states[placed.rows.to(states.device), placed.columns.to(states.device)]

    _run(model, placed.inputs, layers, take)
    device = taken[layers[-1]].device
    return torch.stack([taken[layer].to(device) for layer in layers], dim=2)


class _Reached(Exception):  # noqa: N818 - it is no error
    """The highest layer asked for is there: nothing after it needs to run."""


def _run(model: ChatModel, inputs: dict[str, Any], layers: Sequence[int], take: Callable[[int, Tensor], None]) -> None:
    """One pass; `take` gets each layer's states [B, S, d]."""
    last = model.num_hidden_layers
    inner = sorted(set(layers) - {last})
    blocks = block_names(model)[1:] if inner and has_blocks(model) else []
    thread = threading.get_ident()  # others may run this model at the same time, for purposes of their own

    def listening(layer: int) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
            # Another thread may call it once more when it has just been removed, and then without kwargs.
            if threading.get_ident() == thread and kwargs is not None:
                take(layer, args[0] if args else kwargs["hidden_states"])
                if layer == max(layers):
                    raise _Reached

        return before

    with ExitStack() as stack:
        for layer in inner if blocks else []:
            block = model.base_model.get_submodule(blocks[layer])
            stack.callback(block.register_forward_pre_hook(listening(layer), with_kwargs=True).remove)
        stack.enter_context(suppress(_Reached))
        output = model.base_model(**inputs, output_hidden_states=bool(inner) and not blocks)
        if inner and not blocks:
            _take_all(model, output.hidden_states or (), inner, take)
        if last in layers:
            take(last, output.last_hidden_state)


def _take_all(
    model: ChatModel, states: Sequence[Tensor], layers: Sequence[int], take: Callable[[int, Tensor], None]
) -> None:
    """From what transformers kept, where the blocks cannot be listened to."""
    if len(states) != model.num_hidden_layers + 1:
        raise ModelError(
            f"{model.name!r} does not return the states of its {model.num_hidden_layers} layers: ask for layers=(-1,) "
            "only, or load it without custom code."
        )
    for layer in layers:
        take(layer, states[layer])


def last_logits(model: ChatModel, columns: Tensor | None = None, **inputs: Any) -> Tensor:
    """[rows, vocabulary] float32 at the last position, by the model's own head (with its scaling and caps).

    Args:
        columns: [n], for a single packed row: [n, vocabulary] at these positions instead.
    """
    found = _logits(model, inputs, 1 if columns is None else columns)
    logits = (found[:, -1] if columns is None else found[0]).float()
    check_logits(model, logits)
    return logits.cpu() if logits.device.type == "mps" else logits  # sampling needs float64, which mps lacks


def check_logits(model: ChatModel, logits: Tensor) -> None:
    """Raise StatesError if logits [n, vocabulary] are not numbers."""
    if logits.amax(dim=-1).isnan().any():  # of a few numbers only: the highest of a row with one that is none is none
        raise StatesError(
            f"{model.name!r} computes logits that are not numbers ({str(model.dtype).removeprefix('torch.')}): "
            "load it with dtype='bfloat16' or 'float32'; float16 overflows in some families."
        )


def label_logits(
    model: ChatModel, prefix: Prefix, suffixes: Sequence[Sequence[int]], n_labels: Sequence[int]
) -> Tensor:
    """What the model expects after each of the last `n_labels[i]` tokens of chat i, by its own head, which runs nowhere
    else. Differentiable with respect to what `prefix` was made from; one pass, so plan its size.

    Returns:
        [sum of n_labels, vocabulary], float32: chat by chat, token by token.

    Raises:
        ModelError: the model is being edited and this is not what `steered` yielded.
        StatesError: more labels than a chat has tokens outside the prefix, or none.

    Examples:
        >>> import drolab
        >>> from drolab.models import encode, label_logits, prefix_embeddings, run_prefix
        >>> model, none = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> batch = encode(model, ["How do I boil an egg?", "How do I boil rice?"], none)
        >>> prefix = run_prefix(model, prefix_embeddings(model, batch))
        >>> label_logits(model, prefix, batch.suffixes, [3, 1]).shape[0]
        4
    """
    check_edits(model)
    if any(not 1 <= n <= len(suffix) for n, suffix in zip(n_labels, suffixes, strict=True)):
        raise StatesError("Each chat needs a label at least, and no more than it has tokens outside the prefix.")
    packs = can_pack(model, len(prefix.embeddings) + max(map(len, suffixes)))
    placed = (pack if packs else _pad)(model, prefix, suffixes, (-1,))
    ends = placed.columns[:, 0].tolist()
    columns = torch.cat([torch.arange(end - n + 1, end + 1) for end, n in zip(ends, n_labels, strict=True)])
    columns = columns.to(model.device)
    if packs:
        return _logits(model, placed.inputs, columns)[0].float()
    rows = torch.arange(len(suffixes)).repeat_interleave(torch.tensor(n_labels)).to(model.device)
    first = int(columns.min())
    found = _logits(model, placed.inputs, placed.inputs["inputs_embeds"].shape[1] - first)
    return found[rows.to(found.device), (columns - first).to(found.device)].float()


def _logits(model: ChatModel, inputs: dict[str, Any], keep: int | Tensor) -> Tensor:
    """[rows, kept, vocabulary]: at the last `keep` positions, or at these of a single row."""
    inner: Any = getattr(model.model, "model", None)
    if getattr(inner, "rope_deltas", None) is not None:  # where an image of another chat has moved positions to
        inner.rope_deltas = None
    keeps = "logits_to_keep" in inspect.signature(model.model.forward).parameters
    logits: Tensor = model.model(**inputs, **({"logits_to_keep": keep} if keeps else {})).logits
    if keeps:
        return logits
    return logits[:, keep] if isinstance(keep, Tensor) else logits[:, -keep:]


def check_positions(positions: Sequence[int], limit: int) -> None:
    """Raise StatesError unless there are positions, all negative and at least -limit."""
    if not positions or any(position >= 0 for position in positions):
        raise StatesError(f"Positions count from the end of the chat: pass -1, -2, …, not {list(positions)}.")
    if min(positions) < -limit:
        raise StatesError(
            f"Position {min(positions)} lies outside a suffix of {limit} tokens: "
            f"encode(…, min_suffix={-min(positions)}) keeps enough tokens out of the shared prefix."
        )
