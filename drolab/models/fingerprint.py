"""The fingerprint of a model: a hash of its weights, its configuration, its tokenizer and its chat template.

Stored results and soft prompts are tied to it. Settings that change no result, such as the path, do not count.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHUNK = 2**18


_VOLATILE = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Configuration fields that say how a model was stored or is run, not what it is."""


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, told: Mapping[str, Any] | None = None
) -> str:
    """A hash of every weight, the configuration, the tokenizer, the chat template and what that is told.

    Each weight enters bit by bit and with its place, so that one changed weight or two swapped ones give
    another fingerprint; device, file layout and name do not matter. The dtype does: a model in bfloat16
    computes something else than the same one in float32.

    Args:
        told: what a user tells the template beside the messages (`Template.told`); nothing changes nothing.
    """
    digest = hashlib.sha256()
    for name, tensor in _weights(model):
        header = json.dumps([name, list(tensor.shape), str(tensor.dtype)])
        digest.update(header.encode())
        for part in _parts(tensor):
            digest.update(_checksums(part))
    if beside := getattr(model, "peft_config", None):  # adapters that are not merged: how strongly they act
        digest.update(json.dumps(_adapters(beside), sort_keys=True, default=str).encode())
    digest.update(json.dumps(_stable(model.config.to_diff_dict()), sort_keys=True, default=str).encode())
    digest.update(_vocabulary(tokenizer).encode())
    digest.update(json.dumps(tokenizer.chat_template).encode())
    if told:
        digest.update(json.dumps(dict(told), sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer once, by name; tied ones at their first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        own = {name: tensor for name, tensor in {**module._parameters, **buffers}.items() if tensor is not None}
        new = [name for name, tensor in own.items() if id(tensor) not in seen]
        seen.update(map(id, own.values()))
        with _on_device(module):
            for name in new:
                yield f"{prefix}.{name}", getattr(module, name).detach()
            for name, tensor in _beside(module):
                yield f"{prefix}.{name}", tensor


def _beside(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a module saves that is neither parameter nor buffer: the scales of bitsandbytes' weights."""
    if not any(hasattr(weight, "quant_state") or hasattr(weight, "SCB") for weight in module._parameters.values()):
        return
    named = {*module._parameters, *module._buffers}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and name not in named:
            yield name, value.detach()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that it consists of: a quantised weight may be several that look like one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in sorted(names):
        yield from _parts(getattr(tensor, name))


def _adapters(configs: Any) -> Any:
    """Settings of adapters, without where they came from."""
    paths = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"}
    return {
        name: {
            key: value if not isinstance(value, set) else sorted(value)
            for key, value in config.to_dict().items()
            if key not in paths
        }
        for name, config in configs.items()
    }


def _on_device(module: nn.Module) -> Any:
    """Weights that accelerate keeps on the disk or in CPU memory are brought in for a moment."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


@functools.cache
def _places() -> Tensor:
    """[_CHUNK] int64, one odd factor per place.

    The lower half, 2i + 1, differs between any two places by less than 2³², and so do any two values of
    at most 32 bits: the product of two such differences is never 0 modulo 2⁶⁴. The upper half is a fixed
    pseudo-random number (splitmix64), against coincidences among many changes.
    """
    import numpy as np

    place = np.arange(_CHUNK, dtype=np.uint64)
    mixed = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    factors = (mixed << np.uint64(32)) | (np.uint64(2) * place + np.uint64(1))
    return torch.from_numpy(factors.view(np.int64))


@torch.no_grad()
def _checksums(tensor: Tensor) -> bytes:
    """The place-weighted sums modulo 2⁶⁴ of the bits of each chunk, exact on every device."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = flat.contiguous().reshape(-1).view(integers[flat.element_size()])
    places = _places().to(bits.device)
    products = torch.empty_like(places)
    sums = []
    for chunk in bits.split(_CHUNK):
        part = products[: len(chunk)]
        sums.append(torch.mul(chunk, places[: len(chunk)], out=part).sum())
    return torch.stack(sums).cpu().numpy().tobytes() if sums else b""


def _stable(config: Any) -> Any:
    if isinstance(config, dict):
        return {str(key): _stable(value) for key, value in config.items() if key not in _VOLATILE}
    return config


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer as JSON, without the padding and truncation that its last call left in it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("padding", None)
    content.pop("truncation", None)
    return json.dumps([content, tokenizer.special_tokens_map], sort_keys=True, default=str)
