"""Where in a decoder the hidden states are: its layers by number, and the modules that they come out of.

*Layers* count as in transformers' `hidden_states`: 0 is the embedding output, k the output of the k-th block,
and the last one (-1) is taken after the final norm in most families, so it differs from the raw output of the
last block.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from drolab.errors import ModelError, StatesError
from drolab.models.load import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


_known: WeakKeyDictionary[PreTrainedModel, list[str]] = WeakKeyDictionary()


def has_blocks(model: ChatModel) -> bool:
    """Whether `block_names` finds them."""
    return bool(_blocks(model))


def block_names(model: ChatModel) -> list[str]:
    """Modules of the decoder: the first block (at whose input layer 0 is), every block, and the final norm if any.

    Raises:
        ModelError: they cannot be found.
    """
    if names := _blocks(model):
        return names
    raise ModelError(
        f"The {model.num_hidden_layers} blocks and the final norm of {model.name!r} ({model.model.config.model_type}) "
        "were not found, so its states cannot be edited: use a decoder-only model whose transformers class returns "
        "hidden states."
    )


def _blocks(model: ChatModel) -> list[str]:
    if model.model not in _known:
        _known[model.model] = _find(model)
    return _known[model.model]


@torch.no_grad()
def _find(model: ChatModel) -> list[str]:
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
    lists = [n for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_blocks]
    for blocks in [[f"{name}.{k}" for k in range(n_blocks)] for name in lists] if len(states) > n_blocks else []:
        found = [inputs.get(blocks[0]), *(outputs.get(name) for name in blocks[:-1])]
        if all(map(_same, found, states)):
            outer = [n for n in outputs if n and not any(n == block or n.startswith(block + ".") for block in blocks)]
            final = [n for n in outer if _same(outputs[n], seen.last_hidden_state)]
            if final or _same(outputs[blocks[-1]], seen.last_hidden_state):
                return [blocks[0], *blocks, *final[-1:]]
    return []


def _same(a: object, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.equal(a.to(b.device), b)
