"""Adapters of PEFT (LoRA and its kin): small weights that change a base model's, in a folder or on the hub.

An adapter is merged into its base: one set of weights, as fast as the base, and the fingerprint is that of what they
compute. Onto quantised weights it stays beside them, since merging would round it away.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from drolab.errors import ModelError

_log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_VIRTUAL_TOKENS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
)


@dataclass(frozen=True)
class Adapter:
    """An adapter that was found, and checked as far as that is possible without its base."""

    name: str
    """What was asked for."""
    place: str
    """A folder or a hub id."""
    revision: str | None
    weights: str
    """The path of its safetensors."""
    base: str
    """The name or path of the model that it was made for, as it says; may be empty."""
    base_revision: str | None
    has_tokenizer: bool


def find_adapter(name: str, place: str, revision: str | None) -> Adapter | None:
    """The adapter at a folder or hub id; None if there is none.

    Raises:
        ModelError: one that is damaged or pickled, or of a kind that makes no chat model; peft is missing.
    """
    found = find_adapter_config_file(place, revision=revision)
    if found is None:
        return None
    try:
        config = json.loads(Path(found).read_text(encoding="utf-8"))
        kind = str(config["peft_type"]).upper()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The {CONFIG} of {name!r} cannot be read ({error}): save or download the adapter again."
        ) from error
    _check_kind(name, kind, config)
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{name!r} is an adapter ({kind}), which needs the package peft: pip install peft. Or merge it into its "
            "base where that is installed (merge_and_unload), and load the whole."
        )
    return Adapter(
        name=name,
        place=place,
        revision=revision,
        weights=_weights(name, place, revision),
        base=str(config.get("base_model_name_or_path") or ""),
        base_revision=config.get("revision"),
        has_tokenizer=file_of(place, "tokenizer_config.json", revision) is not None,
    )


def _check_kind(name: str, kind: str, config: dict[str, Any]) -> None:
    if kind in _VIRTUAL_TOKENS:
        raise ModelError(
            f"{name!r} is prompt tuning ({kind}): vectors for a place in the input, and no change of the model. Load "
            "its base model; a prompt of that kind is a drolab.SoftPrompt, which train_dro makes, export.to_peft "
            "writes as such an adapter, and SoftPrompt.from_peft reads."
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{name!r} is an adapter for {config['task_type']}, which writes no replies: use one for CAUSAL_LM."
        )


def _weights(name: str, place: str, revision: str | None) -> str:
    found = file_of(place, WEIGHTS, revision)
    if found is not None:
        return found
    if file_of(place, "adapter_model.bin", revision) is None:
        raise ModelError(f"The adapter {name!r} has no weights ({WEIGHTS}): save or download it again.")
    raise ModelError(
        f"The adapter {name!r} has only pickled weights, which drolab never reads: convert it where you trust it, with "
        "model.save_pretrained(folder, safe_serialization=True) of peft."
    )


def file_of(place: str, file: str, revision: str | None) -> str | None:
    """The path of a file in a folder or, of a hub id, in the cache; None if it is not there."""
    if Path(place).is_dir():
        return str(Path(place) / file) if (Path(place) / file).is_file() else None
    found: str | None = cached_file(
        place,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Tensor → shape, from the head of the file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with safe_open(adapter.weights, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelError(
            f"The weights of adapter {adapter.name!r} are not readable: download or save it again. ({error})"
        ) from error


def check_fits_base(adapter: Adapter, base: PreTrainedModel) -> None:
    """Raise ModelError unless every tensor of the adapter has its place in a base, which may be without memory
    ("meta")."""
    from peft import PeftConfig, get_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(adapter.place, revision=adapter.revision)
        with torch.device("meta"):
            expected = get_peft_model_state_dict(_injected(base, config), save_embedding_layers=False)
    except Exception as error:  # what its library says of a base that it does not fit
        raise _misfit(adapter, base, str(error).strip().splitlines()[0]) from error
    found = shapes(adapter)
    wanted = {key: tuple(value.shape) for key, value in expected.items()}
    embeddings = {key for key in found if key not in wanted and ("embed" in key or "lm_head" in key)}
    wrong = [key for key in found.keys() - embeddings if wanted.get(key) != found[key]] + list(
        wanted.keys() - found.keys()
    )
    if wrong:
        first = min(wrong)
        raise _misfit(
            adapter, base, f"{first}: {found.get(first, 'missing')} here, {wanted.get(first, 'no place')} there"
        )


def _injected(base: PreTrainedModel, config: Any) -> Any:
    from peft import PeftModel

    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some ways to begin look at the weights; all are overwritten
    return PeftModel(base, config)


def _misfit(adapter: Adapter, base: PreTrainedModel, why: str) -> ModelError:
    said = f", it says for {adapter.base!r}" if adapter.base else ""
    return ModelError(
        f"The adapter {adapter.name!r} was made for another model{said}, and does not fit this "
        f"{base.config.model_type} ({why}): give the right one with base=…."
    )


def _embedding(base: PreTrainedModel) -> Any:
    return base.get_input_embeddings().weight


def with_adapter(base: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The base with its weights changed; quantised ones stay, with the adapter beside them.

    Raises:
        ModelError: the adapter does not fit.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(adapter.weights)
    rows = next((len(value) for key, value in weights.items() if key.endswith("embed_tokens.weight")), None)
    if rows not in (None, len(_embedding(base))):  # it was trained with more tokens, and brings them
        base.resize_token_embeddings(rows, mean_resizing=False)
    config = PeftConfig.from_pretrained(adapter.place, revision=adapter.revision)
    config.inference_mode = True
    model: Any = PeftModel(base, config, autocast_adapter_dtype=False)
    result: Any = set_peft_model_state_dict(model, weights)
    if result.unexpected_keys:
        raise _misfit(adapter, base, f"{result.unexpected_keys[0]} has no place")
    if getattr(base, "is_quantized", False):
        return model.get_base_model()
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    merged.__dict__.pop("peft_config", None)
    return merged
