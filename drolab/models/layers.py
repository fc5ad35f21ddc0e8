"""Where in a decoder the hidden states are: its layers by number, and the modules that they come out of.

*Layers* count as in transformers' `hidden_states`: 0 is the embedding output, k the output of the k-th block,
and the last one (-1) is taken after the final norm in most families, so it differs from the raw output of the
last block. Where a configuration asks transformers for that raw output instead (`tie_last_hidden_states: false`), the
last layer is refused: see `check_layers`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from drolab.errors import ModelError, StatesError
from drolab.models.decoder import TRIAL_ERRORS
from drolab.models.load import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


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


def layers_at(model: ChatModel, layers: Sequence[int | float]) -> tuple[int, ...]:
    """Layer numbers at fractions of a model's depth, for settings that are to suit any model.

    Args:
        layers: fractions of the number of blocks, above 0 and at most 1, as floats: 1.0 is the last layer; layers whose
            states this model has none of are left out. Whole numbers are layers, as in `resolve_layers`.

    Raises:
        StatesError: none asked for, a fraction that is none, a layer that the model does not have, or none left.

    Examples:
        >>> import drolab
        >>> from drolab.models import layers_at
        >>> layers_at(drolab.load_model("demo"), (0.25, 0.5, 0.75, 1.0))
        (1, 2, 3, 4)
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise StatesError(f"{layers!r} is no list of layers: pass (1.0,) for the last one, (2,) for layer 2.")
    layers = list(layers)
    if wrong := [at for at in layers if not isinstance(at, Integral) and not (isinstance(at, Real) and 0 < at <= 1)]:
        raise StatesError(f"{wrong} are no fractions of a depth: pass 1.0 for the last layer, .5 for the middle one.")
    last, absent = model.num_hidden_layers, _absent(model)
    found: list[int] = []
    for at in layers:
        layer = int(at) if isinstance(at, Integral) else max(1, round(at * last))
        if isinstance(at, Integral) or layer not in absent:  # what is asked for by number is never left out
            found.append(layer)
    if layers and not found:
        raise StatesError(f"At {layers} of its depth {model.name!r} has no states to read: name other layers.")
    return resolve_layers(model, found)


def spread_layers(model: ChatModel, n: int = 13) -> tuple[int, ...]:
    """At most n layers, from the embeddings to the last one and evenly spaced; of a model with fewer, all. Layers whose
    states this model has none of are left out. Thirteen have the quarters of the depth among them, as `layers_at` does.

    Examples:
        >>> import drolab
        >>> from drolab.models import spread_layers
        >>> spread_layers(drolab.load_model("demo")), spread_layers(drolab.load_model("demo"), 3)
        ((0, 1, 2, 3, 4), (0, 2, 4))
    """
    last = model.num_hidden_layers
    n = min(n, last + 1)
    return tuple(layer for k in range(n) if (layer := round(last * k / (n - 1))) not in _absent(model))


def _absent(model: ChatModel) -> set[int]:
    """The layers that `check_layers` refuses."""
    last, found = model.num_hidden_layers, _found(model)
    return set(range(last)) if found.streams is not None else set() if found.last_is_final else {last}


class _Found(NamedTuple):
    """What a trial finds out about a model, once."""

    blocks: list[str]
    """See `block_names`; empty if they were not found."""
    last_is_final: bool
    """Transformers' last hidden state is the output of the decoder, as here; so it is said to be if there is none."""
    streams: tuple[int, ...] | None = None
    """The shape of an inner hidden state of one chat of four tokens, where that is not one state for each token."""


_known: WeakKeyDictionary[PreTrainedModel, _Found] = WeakKeyDictionary()


def check_layers(model: ChatModel, layers: Sequence[int]) -> None:
    """Raise unless the states of these layers, as `resolve_layers` gives them, are transformers' `hidden_states`.

    Those of the blocks were found by being equal to them, so it is the last layer that is in question. Where the inner
    ones are no states of single tokens (Gemma 3n), the last layer is what the head reads.

    Raises:
        ModelError: the last one is another state in transformers, or an inner one is more than one state for a token.
    """
    last = model.num_hidden_layers
    streams = _found(model).streams
    if streams is not None and set(layers) - {last}:
        raise ModelError(
            f"{model.name!r} ({model.model.config.model_type}) carries several streams through its blocks: its inner "
            f"hidden states have the shape {list(streams)} for four tokens, so no layer but the last has one state "
            "for a token. Ask for layers=(-1,)."
        )
    if last not in layers or _found(model).last_is_final:
        return
    asked = getattr(model.model.config.get_text_config(), "tie_last_hidden_states", None) is False
    why = "its configuration says `tie_last_hidden_states: false`" if asked else "its code returns another one"
    how = "load it without that entry" if asked else "load it without custom code"
    raise ModelError(
        f"Layer {last} (-1) of {model.name!r}, read after the final norm, is not transformers' hidden_states[-1]: "
        f"{why}. Ask for layers 0 to {last - 1}, or {how}."
    )


def has_blocks(model: ChatModel) -> bool:
    """Whether `block_names` finds them."""
    return bool(_found(model).blocks)


def block_names(model: ChatModel) -> list[str]:
    """Modules of the decoder: the first block (at whose input layer 0 is), every block, and the final norm if any.

    Raises:
        ModelError: they cannot be found.
    """
    if names := _found(model).blocks:
        return names
    raise ModelError(
        f"The {model.num_hidden_layers} blocks and the final norm of {model.name!r} ({model.model.config.model_type}) "
        "were not found, so its states cannot be edited: use a decoder-only model whose transformers class returns "
        "hidden states."
    )


def _found(model: ChatModel) -> _Found:
    if model.model not in _known:
        try:
            _known[model.model] = _find(model)
        except torch.OutOfMemoryError:
            raise
        except TRIAL_ERRORS as error:
            _log.debug("the trial of layers: %r", error)
            _known[model.model] = _Found([], last_is_final=True)
    return _known[model.model]


@torch.no_grad()
def _find(model: ChatModel) -> _Found:
    """By trying: the list of modules whose outputs are the hidden states, and the module with the last one's values."""
    decoder, n_blocks = model.base_model, model.num_hidden_layers
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    thread = threading.get_ident()

    def noting(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = None) -> None:
            if threading.get_ident() != thread:  # others may run this model at the same time
                return
            inputs[name] = args[0] if args else kwargs.get("hidden_states")
            outputs.pop(name, None)
            outputs[name] = output[0] if isinstance(output, (tuple, list)) else output  # the last called comes last

        return hook

    with ExitStack() as stack:
        for name, module in decoder.named_modules():
            stack.callback(module.register_forward_hook(noting(name), with_kwargs=True).remove)
        ids = torch.arange(4)[None] % len(model.tokenizer)
        seen = decoder(inputs_embeds=model.embed(ids), use_cache=False, output_hidden_states=True)
    states = seen.hidden_states or ()
    inner = next((tuple(own.shape) for own in states[:-1] if own.shape != seen.last_hidden_state.shape), None)
    if inner is not None:
        return _Found([], last_is_final=True, streams=inner)
    last_is_final = not states or _same_numbers(states[-1], seen.last_hidden_state)
    lists = [n for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_blocks]
    for blocks in [[f"{name}.{k}" for k in range(n_blocks)] for name in lists] if len(states) > n_blocks else []:
        found = [inputs.get(blocks[0]), *(outputs.get(name) for name in blocks[:-1])]
        if all(map(_same, found, states)):
            outer = [n for n in outputs if n and not any(n == block or n.startswith(block + ".") for block in blocks)]
            final = [n for n in outer if _same(outputs[n], seen.last_hidden_state)]
            if final or _same(outputs[blocks[-1]], seen.last_hidden_state):
                return _Found([blocks[0], *blocks, *final[-1:]], last_is_final)
    return _Found([], last_is_final)


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Also where they are not finite: that is said of the states themselves."""
    return a.shape == b.shape and torch.allclose(a.to(b), b, equal_nan=True)


def _same(a: object, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.equal(a.to(b.device), b)
