"""Tiny models with quantised weights, saved by the libraries that make such, and what they are equal to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from drolab.models import chat_format
from helpers.tiny import WIDE, byte_tokenizer


def whole() -> LlamaForCausalLM:
    config = LlamaConfig(**WIDE, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def by_transformers(folder: Path, config: Any) -> None:
    """Quantised while it is loaded, then saved."""
    whole().save_pretrained(folder / "whole")
    model = AutoModelForCausalLM.from_pretrained(folder / "whole", quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)


def bits_and_bytes(**options: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        from transformers import BitsAndBytesConfig

        by_transformers(folder, BitsAndBytesConfig(**options))

    return save


def torch_ao(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        import torchao.quantization
        from transformers import TorchAoConfig

        by_transformers(folder, TorchAoConfig(getattr(torchao.quantization, name)()))

    return save


def compressed(form: str, **scheme: Any) -> Callable[[Path], None]:
    """By compressed-tensors, the format of llm-compressor and vLLM."""

    def save(folder: Path) -> None:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            QuantizationStatus,
            apply_quantization_config,
        )

        model = whole()
        arguments = QuantizationArgs(symmetric=True, **scheme)
        group = QuantizationScheme(targets=["Linear"], weights=arguments)
        config = QuantizationConfig(
            config_groups={"all": group}, ignore=["lm_head"], format=form, quantization_status="frozen"
        )
        apply_quantization_config(model, config)
        for module in model.modules():
            if isinstance(module, nn.Linear) and hasattr(module, "weight_scale"):
                rows = module.weight.data.abs().unflatten(1, (-1, arguments.group_size or module.weight.shape[1]))
                most = {"float": 448, "int": 2 ** (arguments.num_bits - 1) - 1}[arguments.type]
                module.weight_scale.data.copy_((rows.amax(dim=-1) / most).reshape(module.weight_scale.shape))
                module.quantization_status = QuantizationStatus.FROZEN
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(folder)

    return save


LIBRARIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "bitsandbytes, 8 bits": ("bitsandbytes", bits_and_bytes(load_in_8bit=True)),
    "bitsandbytes, 4 bits": (
        "bitsandbytes",
        bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    ),
    "bitsandbytes, 4 bits, scales in 8": (
        "bitsandbytes",
        bits_and_bytes(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32),
    ),
    "torchao, int8": ("torchao", torch_ao("Int8WeightOnlyConfig")),
    "torchao, float8": ("torchao", torch_ao("Float8WeightOnlyConfig")),
    "torchao, int8 also of what goes in": ("torchao", torch_ao("Int8DynamicActivationInt8WeightConfig")),
    "compressed-tensors, int8": (
        "compressed_tensors",
        compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    ),
    "compressed-tensors, int4": (
        "compressed_tensors",
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
    ),
    "compressed-tensors, float8": (
        "compressed_tensors",
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    ),
}


def save_quantised(folder: Path, kind: str) -> str:
    LIBRARIES[kind][1](folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def unpacked(model: PreTrainedModel) -> LlamaForCausalLM:
    """A plain model with the same weights: what a linear layer is, is what it makes of the identity."""
    plain = whole().requires_grad_(False)
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            quantised: Any = model.get_submodule(name)
            module.weight.copy_(quantised(torch.eye(module.in_features)).T)
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(model.get_input_embeddings().weight)
    return plain
