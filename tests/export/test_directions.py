"""Directions leave drolab as a control vector and as safetensors, and come back; they act where drolab adds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, QUERIES
from helpers.tiny import byte_tokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from drolab import export
from drolab.errors import ExportError, StatesError
from drolab.inference import hidden_states
from drolab.models import Add, ChatModel, steered, wrap
from drolab.probing import Direction
from drolab.types import SafetyPrompt

NONE = SafetyPrompt(name="none", text="")


def deep(name: str = "llama", seed: int = 0) -> ChatModel:
    """Five blocks, so that some layers can leave."""
    kind, options = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**options, "num_hidden_layers": 5, "layer_types": None})
        return wrap(AutoModelForCausalLM.from_config(config), byte_tokenizer(), name="org/deep", chat_template="chatml")


MODEL = deep()


def direction(layer: int, model: ChatModel = MODEL, seed: int = 0) -> Direction:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Direction(
        method="mean_difference",
        positive="refuses",
        vector=vector / vector.norm(),
        threshold=0.25,
        scale=1.5,
        setting=math.nan,
        layer=layer,
        model_fingerprint=model.fingerprint,
        problem="Hardly any query was refused.",
    )


@pytest.mark.parametrize("strength", [1.0, -4.0])
@pytest.mark.parametrize("file", ["directions.safetensors", "control_vector.gguf"])
def test_what_left_comes_back(file: str, strength: float, tmp_path: Path) -> None:
    given = [direction(2), direction(4, seed=1)]
    export.save_directions(given[::-1], MODEL, tmp_path, strength=strength)
    back = export.load_directions(tmp_path / file, MODEL)
    for found, wanted in zip(back, given, strict=True):
        torch.testing.assert_close(found.vector, wanted.vector, rtol=0, atol=1e-7)
        about = {"vector": wanted.vector, "setting": 0.0}
        assert repr(replace(found, **about)) == repr(replace(wanted, **about))
        assert (found.threshold, found.scale, found.problem) == (0.25, 1.5, wanted.problem)
        assert math.isnan(found.setting)


def test_the_control_vector_is_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    export.save_directions(direction(3), MODEL, tmp_path, strength=2.0, formats=["gguf"])
    reader = gguf.GGUFReader(tmp_path / "control_vector.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said["general.architecture"] == "controlvector"
    assert (said["controlvector.model_hint"], said["controlvector.layer_count"]) == ("llama", 1)
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type, list(tensor.shape)) == ("direction.2", gguf.GGMLQuantizationType.F32, [32])
    np.testing.assert_array_equal(tensor.data, 2 * direction(3).vector.numpy())
    assert not (tmp_path / "directions.safetensors").exists()


def added_to_block(model: ChatModel, block: int, vector: Tensor) -> Tensor:
    """States with a vector added to the output of a block, counted from 0: what llama.cpp and repeng do."""
    layers = model.base_model.get_submodule("layers")
    hook = layers[block].register_forward_hook(
        lambda module, args, output: (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector
    )
    try:
        return hidden_states(model, QUERIES, NONE, progress=False).values
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2, long window"])
def test_it_acts_where_drolab_adds(name: str, tmp_path: Path) -> None:
    model = deep(name)
    export.save_directions(direction(3, model), model, tmp_path, strength=3.0)
    (tensor,) = gguf.GGUFReader(tmp_path / "control_vector.gguf").tensors
    block, vector = int(tensor.name.removeprefix("direction.")), torch.tensor(tensor.data.copy())
    with steered(model, Add(3.0 * direction(3).vector, layer=3)) as pushed:
        wanted = hidden_states(pushed, QUERIES, NONE, progress=False).values
    torch.testing.assert_close(added_to_block(model, block, vector), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(added_to_block(model, block + 1, vector), wanted, atol=1e-2)  # the control


@pytest.mark.parametrize("layer", [0, 1, 5])
def test_a_layer_that_no_control_vector_reaches_is_refused(layer: int, tmp_path: Path) -> None:
    with pytest.raises(StatesError, match=f"reaches layer {layer} of 'org/deep': .* layers 2 to 4 "):
        export.save_directions(direction(layer), MODEL, tmp_path)
    assert not list(tmp_path.iterdir())
    export.save_directions(direction(layer), MODEL, tmp_path, formats=["safetensors"])
    assert export.load_directions(tmp_path, MODEL)[0].layer == layer


def test_another_model_is_an_error_that_names_both(tmp_path: Path) -> None:
    other = deep(seed=1)
    with pytest.raises(StatesError, match=f"{MODEL.fingerprint}, but 'org/deep' has {other.fingerprint}"):
        export.save_directions(direction(3), other, tmp_path)
    export.save_directions(direction(3), MODEL, tmp_path)
    both = f"'org/deep' with fingerprint {MODEL.fingerprint}, but 'org/deep' has {other.fingerprint}"
    for file in ("directions.safetensors", "control_vector.gguf"):
        with pytest.raises(StatesError, match=both):
            export.load_directions(tmp_path / file, other)


@pytest.mark.parametrize(
    ("given", "options", "error", "expected"),
    [
        ([], {}, StatesError, "no direction to export"),
        ([direction(3), direction(3, seed=1)], {}, StatesError, "Two directions are of one layer"),
        (replace(direction(3), vector=torch.zeros(32)), {}, StatesError, "zero or not finite"),
        (replace(direction(3), vector=torch.ones(8)), {}, StatesError, "width 8, but 'org/deep' has 32"),
        (direction(3), {"strength": 0.0}, StatesError, "steers nowhere"),
        (direction(3), {"formats": ["pt"]}, ExportError, r"No format \['pt'\]"),
    ],
)
def test_what_cannot_leave_is_refused(
    given: object, options: dict, error: type[Exception], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=expected):
        export.save_directions(given, MODEL, tmp_path, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    export.save_directions(direction(3), MODEL, tmp_path)
    path = tmp_path / "directions.safetensors"
    with safe_open(path, framework="pt") as file:
        said, vector = file.metadata(), file.get_tensor("layer.3")
    save_file({"layer.3": vector + 1e-6}, path, metadata=said)
    with pytest.raises(StatesError, match="checksum does not match"):
        export.load_directions(tmp_path, MODEL)
    save_file({"layer.3": vector}, path)
    with pytest.raises(StatesError, match="was not made by drolab"):
        export.load_directions(tmp_path, MODEL)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StatesError, match="not a readable safetensors file"):
        export.load_directions(tmp_path, MODEL)
    (tmp_path / "control_vector.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(StatesError, match="not a readable GGUF file"):
        export.load_directions(tmp_path / "control_vector.gguf", MODEL)
    with pytest.raises(StatesError, match="Cannot read"):
        export.load_directions(tmp_path / "none", MODEL)


def test_the_card_tells_how_and_what_to_doubt(tmp_path: Path) -> None:
    export.save_directions(direction(3), MODEL, tmp_path, queries=QUERIES)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for said in ("base_model: org/deep", "refuses", "Hardly any query was refused.", "--control-vector", "layer.K"):
        assert said in text, said
