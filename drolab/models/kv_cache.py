"""Decoding: the logits of the next token of many chats at once, step by step, with nothing that is shared copied.

The reader for most families keeps three blocks of keys and values: those of the tokens that all chats begin with, those
of the rest of each chat, and those that each row has written itself. A row is a branch: one or more samples of a chat
that have said the same so far. The first two blocks are written once and read where they are, so that a row costs only
its own words. One softmax runs over the scores with all three.

For that the model must hand us its attention. The keys that our cache returns are a tensor of a type of its own, which
answers `scaled_dot_product_attention` and refuses everything else. Nothing global is set or replaced: whoever runs the
same model at the same time, in another thread, is not concerned. Whether a family allows this is found out by trying it
once. Where it does not (eager attention, attention windows shorter than the chat), a cache is copied for each row;
where a cache cannot be split at all (recurrent layers), whole chats run again for each token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from drolab.models.chat import EncodedBatch
from drolab.models.decoder import TRIAL_ERRORS, tolerance
from drolab.models.load import ChatModel
from drolab.models.passes import (
    Prefix,
    can_pack,
    can_share_prefix,
    copy_cache,
    last_logits,
    pack,
    plan_passes,
    prefix_cache,
    prefix_embeddings,
    token_bytes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

_ROOM = 16
"""By how many tokens the buffers of rows grow at a time."""


class Reader(Protocol):
    """Runs chats; float32 logits [rows, vocabulary] at the last position."""

    mixes_lengths: bool
    """Whether chats of unequal length may run together."""
    token_bytes: float
    """What a row keeps of each token of its own: what it has written, and its whole chat too if rows copy that."""

    def start(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        """A row for each chat, given what follows the prefix."""

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Row i becomes the old row parents[i] with tokens[i] appended."""


def reader_for(model: ChatModel, batch: EncodedBatch, n_new: int) -> Reader:
    """The best reader that this model allows for the chats of a batch and `n_new` - 1 more tokens."""
    prefix = prefix_embeddings(model, batch)
    if not can_share_prefix(model):
        return _PlainReader(model, prefix)
    cache = prefix_cache(model, prefix)
    if can_read_in_place(model, len(prefix) + max(map(len, batch.suffixes)) + n_new):
        return _InPlaceReader(model, prefix, cache)
    return _CachedReader(model, cache, len(prefix))


# --- what is kept ------------------------------------------------------------------------------------------


class _Rows:
    """Which chat each row belongs to; and a way to put the rows of a chat next to each other."""

    def __init__(self, chats: Tensor, n_chats: int) -> None:
        self.chats, self.n_chats = chats, n_chats
        counts = chats.bincount(minlength=n_chats)
        self.most = int(counts.max())
        order = chats.argsort(stable=True)
        place = torch.empty_like(chats)
        place[order] = torch.arange(len(chats)) - (counts.cumsum(0) - counts)[chats[order]]
        self._place = place + chats * self.most
        self._full = torch.equal(self._place, torch.arange(n_chats * self.most))
        self._places: dict[torch.device, Tensor] = {}

    def _on(self, device: torch.device) -> Tensor:
        """The places, moved to each device once and not once per layer."""
        if device not in self._places:
            self._places[device] = self._place.to(device)
        return self._places[device]

    def by_chat(self, values: Tensor) -> Tensor:
        """[rows, H, G, x] → [chats, H, most rows of a chat x G, x]; what no row fills is 0."""
        if not self._full:
            padded = values.new_zeros(self.n_chats * self.most, *values.shape[1:])
            values = padded.index_copy_(0, self._on(values.device), values)
        return values.unflatten(0, (self.n_chats, self.most)).transpose(1, 2).flatten(2, 3)

    def by_row(self, values: Tensor) -> Tensor:
        """The inverse of `by_chat`."""
        values = values.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)
        return values if self._full else values.index_select(0, self._on(values.device))


class _Block(NamedTuple):
    """Keys or values of one layer, in three parts."""

    prefix: Tensor
    """[H, P, d]"""
    chats: Tensor
    """[chats, H, L, d]: what follows in each chat, with zeros after the end."""
    own: Tensor
    """[rows, H, T, d]: what each row has written."""


class _Layer(DynamicLayer):
    """The keys and values of one layer. It is written by a model's attention, and does what that asks for."""

    def __init__(self, prefix: tuple[Tensor, Tensor], chats: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._prefix, self._chats = prefix, chats
        self._own: tuple[Tensor, Tensor] | None = None
        self._n_own = 0
        self.rows: _Rows

    def get_seq_length(self) -> int:
        return self._prefix[0].shape[1] + self._chats[0].shape[2] + self._n_own

    def pick(self, parents: Tensor) -> None:
        """Row i becomes the old row parents[i]. Only what rows have written themselves moves."""
        if self._own is not None:
            keys, values = self._own
            places = parents.to(keys.device)
            self._own = (keys.index_select(0, places), values.index_select(0, places))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep one more token of each row, [rows, H, 1, d]; the keys returned attend to everything that is kept."""
        self._make_room(key_states, value_states)
        for own, new in zip(cast(tuple[Tensor, Tensor], self._own), (key_states, value_states), strict=True):
            own[:, :, self._n_own : self._n_own + 1] = new
        self._n_own += 1
        keys = key_states.expand(-1, -1, self.get_seq_length(), -1).as_subclass(_Keys)  # the shape that a model expects
        keys.layer = self
        return keys, value_states

    def _make_room(self, *new: Tensor) -> None:
        if self._own is None or self._n_own == self._own[0].shape[2]:
            room = [states.new_empty(*states.shape[:2], self._n_own + _ROOM, states.shape[3]) for states in new]
            for wider, old in zip(room, self._own or (), strict=False):
                wider[:, :, : self._n_own] = old
            self._own = (room[0], room[1])

    def attend(self, query: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        """What attention reads, with the shape of the query: [rows, heads, 1, d], or heads grouped by their keys."""
        keys, values = self._block(0), self._block(1)
        grouped = query.reshape(len(query), keys.prefix.shape[0], -1, query.shape[-1])
        grouped = grouped * (query.shape[-1] ** -0.5 if scale is None else scale)
        scores = torch.cat(
            [
                _over_rows(grouped, keys.prefix.mT),
                self.rows.by_row(self.rows.by_chat(grouped) @ keys.chats.mT),
                grouped @ keys.own.mT,
            ],
            dim=-1,
        )
        weights = (scores + mask).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        on_prefix, on_chats, on_own = weights.split([keys.prefix.shape[1], keys.chats.shape[2], self._n_own], dim=-1)
        read = _over_rows(on_prefix, values.prefix) + on_own @ values.own
        read += self.rows.by_row(self.rows.by_chat(on_chats) @ values.chats)
        return read.reshape(*query.shape[:-1], -1)

    def _block(self, part: int) -> _Block:
        own = cast(tuple[Tensor, Tensor], self._own)[part]
        return _Block(self._prefix[part], self._chats[part], own[:, :, : self._n_own])


def _over_rows(values: Tensor, shared: Tensor) -> Tensor:
    """[rows, H, G, x] times [H, x, y]: one product for all rows."""
    product = values.transpose(0, 1).flatten(1, 2) @ shared
    return product.unflatten(1, (len(values), -1)).transpose(0, 1)


class _Keys(Tensor):
    """The keys of all tokens that a row sees, for `scaled_dot_product_attention` only: they are never in one place."""

    layer: _Layer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attended(*args, **(kwargs or {}))
        if func in _DESCRIBING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise NotImplementedError(f"These keys can be attended to and not be used otherwise ({func}).")


_DESCRIBING = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
    Tensor.size,
    Tensor.dim,
}


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not isinstance(key, _Keys) or attn_mask is None or value.shape[-2] != 1 or dropout_p or is_causal:
        raise NotImplementedError("Only the attention of one new token per row, with our mask, is computed here.")
    return key.layer.attend(query, attn_mask, scale)


# --- the readers -------------------------------------------------------------------------------------------


class _InPlaceReader:
    """The prefix ran once, and the rest of each chat runs once; each step runs one token per row."""

    mixes_lengths = True

    def __init__(self, model: ChatModel, prefix: Tensor, cache: DynamicCache) -> None:
        self._model = model
        # Without a config: no layer of it forgets what lies outside a window, in a row that is longer than any chat.
        layers: list[Any] = list(cache.layers) if len(prefix) else []
        self.token_bytes = token_bytes(model, cache, len(prefix))
        pairs = [(layer.keys, layer.values) for layer in layers]
        self._prefix = Prefix(prefix, DynamicCache(pairs or None))
        self._layers: list[_Layer] = []
        self._lengths = torch.empty(0, dtype=torch.long)
        self._rows, self._n_own = _Rows(torch.zeros(1, dtype=torch.long), 1), 0

    def start(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        self._lengths = torch.tensor([len(suffix) for suffix in suffixes])
        self._rows, self._n_own = _Rows(torch.arange(len(suffixes)), len(suffixes)), 0
        self._layers = []  # the memory of the last batch
        found: list[tuple[list[int], Tensor, Cache]] = []
        for rows in plan_passes(self._model, self._prefix, self._lengths.tolist()):
            placed = pack(self._model, self._prefix, [suffixes[row] for row in rows], [-1])
            logits = last_logits(self._model, placed.columns[:, 0], **placed.inputs)
            found.append((rows, logits, placed.inputs["past_key_values"]))
        self._layers = [
            self._layer([(rows, cache.layers[i]) for rows, _, cache in found]) for i in range(len(found[0][2].layers))
        ]
        order = torch.tensor([row for rows, _, _ in found for row in rows]).argsort()
        logits = torch.cat([logits for _, logits, _ in found])
        return logits[order.to(logits.device)]

    def _layer(self, passed: Sequence[tuple[list[int], Any]]) -> _Layer:
        """What packed passes have computed of one layer, each chat in a place of its own."""
        n_prefix = len(self._prefix.embeddings)
        first = passed[0][1]
        prefix = (first.keys[0, :, :n_prefix].clone(), first.values[0, :, :n_prefix].clone())
        chats = []
        for name in ("keys", "values"):
            example = getattr(first, name)
            block = example.new_zeros(len(self._lengths), int(self._lengths.max()), *example.shape[1::2])
            for rows, layer in passed:
                lengths = self._lengths[rows]
                chat = torch.tensor(rows).repeat_interleave(lengths)
                token = torch.arange(len(chat)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
                states = getattr(layer, name)[0, :, n_prefix:]
                block[chat.to(block.device), token.to(block.device)] = states.transpose(0, 1)
            chats.append(block.transpose(1, 2).contiguous())
        return _Layer(prefix, (chats[0], chats[1]))

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        device = self._model.device
        if not torch.equal(parents, torch.arange(len(self._rows.chats))):
            self._rows = _Rows(self._rows.chats[parents], self._rows.n_chats)
            moved = parents.to(device)
            for layer in self._layers:
                layer.pick(moved)
        positions = len(self._prefix.embeddings) + self._lengths[self._rows.chats] + self._n_own
        self._n_own += 1
        for layer in self._layers:
            layer.rows = self._rows
        return last_logits(
            self._model,
            input_ids=tokens[:, None].to(device),
            position_ids=positions[:, None].to(device),
            attention_mask=self._mask().to(device),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )

    def _mask(self) -> Tensor:
        """[rows, 1, 1, keys]: hides what is behind the end of each chat."""
        places = torch.arange(int(self._lengths.max()))
        hidden = places >= self._lengths[self._rows.chats][:, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype).masked_fill_(hidden, float("-inf"))
        return functional.pad(mask, (len(self._prefix.embeddings), self._n_own))[:, None, None]


class _CachedReader:
    """The prefix ran once; each step runs one token per row, after a cache of all its tokens."""

    mixes_lengths = False

    def __init__(self, model: ChatModel, prefix: DynamicCache, n_prefix: int) -> None:
        self._model, self._prefix = model, prefix
        self.token_bytes = token_bytes(model, prefix, n_prefix)
        self._cache, self._n_rows = prefix, 1

    def start(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        self._n_rows = len(suffixes)
        self._cache = copy_cache(self._prefix, self._n_rows)
        return self._run(torch.tensor(suffixes))

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        if not torch.equal(parents, torch.arange(self._n_rows)):
            # The beam search's name for picking rows; three times as fast as batch_select_indices.
            self._cache.reorder_cache(cast(torch.LongTensor, parents))
            self._n_rows = len(parents)
        return self._run(tokens[:, None])

    def _run(self, ids: Tensor) -> Tensor:
        return last_logits(
            self._model, input_ids=ids.to(self._model.device), past_key_values=self._cache, use_cache=True
        )


class _PlainReader:
    """For families whose cache cannot be split: each step runs the whole chats again."""

    mixes_lengths = False
    token_bytes = 0.0

    def __init__(self, model: ChatModel, prefix: Tensor) -> None:
        self._model, self._prefix = model, prefix
        self._ids = torch.empty(0, 0, dtype=torch.long)

    def start(self, suffixes: Sequence[Sequence[int]]) -> Tensor:
        self._ids = torch.tensor(suffixes)
        return self._run()

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids[parents], tokens[:, None]], dim=1)
        return self._run()

    def _run(self) -> Tensor:
        prefix = self._prefix.expand(len(self._ids), *self._prefix.shape)
        embedded = torch.cat([prefix, self._model.embed(self._ids)], dim=1)
        return last_logits(self._model, inputs_embeds=embedded, use_cache=False)


# --- what a family allows ----------------------------------------------------------------------------------

_in_place: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()
"""By the attention implementation, which a user can change."""


def can_read_in_place(model: ChatModel, n_tokens: int) -> bool:
    """Whether rows may share what is not theirs, with equal results, if no chat and reply is longer than `n_tokens`."""
    if not can_pack(model, n_tokens):
        return False
    found, attention = _in_place.setdefault(model.model, {}), str(model.model.config._attn_implementation)
    if attention not in found:
        found[attention] = _try(model)
    return found[attention]


@torch.no_grad()
def _try(model: ChatModel) -> bool:
    """Chats of unequal length, rows that part and rows that end, against whole chats one at a time."""
    ids = torch.arange(8) % len(model.tokenizer)
    prefix, chats = model.embed(ids[:4]), [ids[4:7].tolist(), ids[6:].tolist()]

    def plain() -> Tensor:
        return torch.cat([_PlainReader(model, prefix).start([chat]) for chat in chats])

    try:
        tried = _InPlaceReader(model, prefix, prefix_cache(model, prefix))
        pairs = [(plain(), tried.start(chats))]
        for parents, tokens in (([0, 0, 1], [1, 2, 3]), ([0, 2], [4, 5])):
            chats = [[*chats[parent], int(ids[token])] for parent, token in zip(parents, tokens, strict=True)]
            pairs.append((plain(), tried.step(torch.tensor(parents), ids[tokens])))
    except torch.OutOfMemoryError:
        raise
    except TRIAL_ERRORS as error:
        _log.debug("rows that share: %r", error)
        return False
    limit = tolerance(model.dtype)
    return all(bool((expected - found).norm() <= limit * expected.norm()) for expected, found in pairs)
