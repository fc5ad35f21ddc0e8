"""Quantised weights: the same states and replies as in transformers, gradients, fingerprints, what can be wrong."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.families import PREFIX, QUERIES, SUFFIXES, relative
from helpers.quantised import LIBRARIES, save_quantised, unpacked, whole
from helpers.training import setting_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import drolab
from drolab.errors import ModelError
from drolab.models import ChatModel, forward_states, load_model, render
from drolab.models.load import _let_gradients_through
from drolab.types import SafetyPrompt

CARE = SafetyPrompt(name="care", text="Be careful with what you say.")
TOLERANCE = {"bitsandbytes, 8 bits": 0.02, "torchao, int8 also of what goes in": 0.02}
"""Where what goes in is quantised as well, tokens that run together have some influence on each other's rounding."""
GRADIENT = {"bitsandbytes, 8 bits": 0.05}
NO_GRADIENT = ("torchao, int8 also of what goes in",)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what the libraries use of torch
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", params=LIBRARIES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param][0], reason="not installed: pip install drolab[quantised]")
    return str(request.param)


@pytest.fixture(scope="module")
def place(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_quantised(tmp_path_factory.mktemp("quantised") / "model", kind)


@pytest.fixture(scope="module")
def model(place: str) -> ChatModel:
    return load_model(place)


def test_its_weights_are_quantised(model: ChatModel) -> None:
    assert relative(unpacked(model.model).lm_head.weight, whole().lm_head.weight) < 0.2
    inner = "model.layers.0.mlp.up_proj"
    found = unpacked(model.model).get_submodule(inner).weight
    assert 1e-3 < relative(found, whole().get_submodule(inner).weight) < 0.2


@torch.no_grad()
def test_states_and_replies_are_transformers(kind: str, place: str, model: ChatModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(place).eval()
    _let_gradients_through(plain)  # or it rounds differently on some CPUs
    states = drolab.hidden_states(model, QUERIES, CARE, layers=(0, 1, 2), progress=False)
    chats = [torch.tensor([render(model, text, CARE).input_ids]) for text in QUERIES["text"]]
    for layer in (0, 1, 2):
        expected = torch.stack([plain(ids, output_hidden_states=True).hidden_states[layer][0, -1] for ids in chats])
        assert relative(states.matrix(layer), expected) < TOLERANCE.get(kind, 2e-5), layer
    if kind in TOLERANCE:
        return
    replies = drolab.generate(model, QUERIES, CARE, n_samples=1, do_sample=False, max_new_tokens=3, progress=False)
    for ids, reply in zip(chats, replies["response"], strict=True):
        new = plain.generate(ids, do_sample=False, max_new_tokens=3)[0, ids.shape[1] :]
        assert reply == model.tokenizer.decode(new, skip_special_tokens=True)


def test_the_gradient_of_dro_is_that_of_the_unpacked_weights_or_refused(kind: str, place: str) -> None:
    model = load_model(place)
    setting = setting_of(model)
    if kind in NO_GRADIENT:
        with pytest.raises(ModelError, match=r"No gradient comes back through the quantised weights .*for DRO"):
            next(setting.steps())
        return
    next(setting.steps())
    prefix = model.embed(torch.tensor(PREFIX)).detach().requires_grad_()
    states = forward_states(model, prefix, SUFFIXES)[:, 0, 0]
    projection = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * projection).sum().backward()
    plain, again = unpacked(model.model), prefix.detach().clone().requires_grad_()
    rows = []
    for suffix in SUFFIXES:
        embedded = torch.cat([again, plain.get_input_embeddings()(torch.tensor(suffix))])[None]
        rows.append(plain(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-1][0, -1])
    (torch.stack(rows) * projection).sum().backward()
    assert prefix.grad is not None
    assert again.grad is not None
    assert relative(prefix.grad, again.grad) < GRADIENT.get(kind, 1e-4)


def test_the_fingerprint_is_stable_and_changes_with_a_scale(place: str, model: ChatModel, tmp_path: Path) -> None:
    assert load_model(place).fingerprint == model.fingerprint
    shutil.copytree(place, tmp_path / "scaled")
    path = tmp_path / "scaled" / "model.safetensors"
    weights = load_file(path)
    marks = ("absmax", "SCB", "scale")
    name = next(key for key in sorted(weights) if any(mark in key for mark in marks) and "nested" not in key)
    value = weights[name].view(-1)
    value[0] = value[0] * 2 if value.is_floating_point() else (int(value[0]) + 1) % 256
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(weights, path, metadata=metadata)
    assert load_model(tmp_path / "scaled").fingerprint != model.fingerprint


def test_quantised_while_it_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="not installed: pip install drolab[quantised]")
    folder = save_quantised(tmp_path, "bitsandbytes, 4 bits")
    source = tmp_path / "whole"
    for file in tmp_path.glob("tokenizer*"):
        shutil.copy(file, source)
    shutil.copy(Path(folder) / "chat_template.jinja", source)
    options: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    found = load_model(source, quantization_config=options)
    assert type(found.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert found.fingerprint != load_model(source).fingerprint


def test_an_adapter_stays_beside_quantised_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="not installed: pip install drolab[quantised]")
    base = save_quantised(tmp_path / "base", "bitsandbytes, 4 bits")
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    prints, logits, ids = set(), [], torch.tensor([[5, 60, 61, 62]])
    for alpha in (8, 32):
        torch.manual_seed(1)
        model = peft.get_peft_model(whole(), peft.LoraConfig(lora_alpha=alpha, **options))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(tmp_path / str(alpha))
        found = load_model(tmp_path / str(alpha))
        prints |= {found.fingerprint, load_model(tmp_path / str(alpha)).fingerprint}
        logits.append(found.model(ids).logits)
        quantised = AutoModelForCausalLM.from_pretrained(base)
        _let_gradients_through(quantised)
        expected = peft.PeftModel.from_pretrained(quantised, tmp_path / str(alpha))
        assert relative(logits[-1], expected(ids).logits) < 1e-5
        next(setting_of(found).steps())
    assert len(prints) == 2
    assert relative(logits[0], logits[1]) > 0.01


# --- what can be wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quant_method": "no-such"}, r"none that transformers knows \(Unknown quantization type"),
        ({"bits": 4}, r"none that transformers knows .*BitsAndBytesConfig"),
        ("4bit", r"it is a str.*BitsAndBytesConfig\(load_in_4bit=True\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": "yes"}, "none that transformers knows"),
    ],
)
def test_a_wrong_configuration(config: Any, match: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=match):
        load_model(folder, quantization_config=config)


def with_method(folder: Path, target: Path, **options: Any) -> Path:
    """A copy whose configuration says how its weights are quantised."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | {"quantization_config": options}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_method_that_nobody_knows(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantised by 'novel', which this version .*update transformers"):
        load_model(with_method(folder, tmp_path / "novel", quant_method="novel"))


@pytest.mark.parametrize(("method", "package"), [("aqlm", "aqlm"), ("gptq", "optimum"), ("quanto", "optimum-quanto")])
def test_a_method_whose_library_is_missing(method: str, package: str, folder: Path, tmp_path: Path) -> None:
    options = {"gptq": {"bits": 4}, "quanto": {"weights": "int8"}}.get(method, {})
    with pytest.raises(ModelError, match=f"needs (a|the) package .*pip install {package}"):
        load_model(with_method(folder, tmp_path / method, quant_method=method, **options))


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("bnb_4bit", "bnb_8bit"):
        module = importlib.import_module(f"transformers.quantizers.quantizer_{method}")
        monkeypatch.setattr(module, "is_bitsandbytes_available", lambda: False)
    for bits in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(
            ModelError, match=r"needs a package that is missing or too old: .*pip install -U bitsandbytes"
        ):
            load_model(folder, quantization_config={"quant_method": "bitsandbytes", bits: True})
