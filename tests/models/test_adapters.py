"""Adapters of PEFT: merged into their base, beside quantised weights, and what can be wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from transformers import LlamaConfig, LlamaForCausalLM

import drolab
from drolab.errors import ModelError, UnreliableWarning
from drolab.models import chat_format, load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
IDS = torch.tensor([[5, 60, 61, 62, 63]])
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "rank-stabilised, all layers": lambda: peft.LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "a head of its own": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=4, target_modules=["v_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]),
}


def save_adapter(folder: Path, base: str | None, config: Any = None, seed: int = 1, **options: Any) -> Any:
    """A random adapter in a folder, and the model that it makes, not merged."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = peft.get_peft_model(random_llama(), config or KINDS["lora"]())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    torch.set_rng_state(generator_state)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, **{"save_embedding_layers": False, **options})
    return model.eval()


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", str(folder))
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_adapter_is_merged_into_its_base(kind: str, folder: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "adapter", str(folder), KINDS[kind]())(IDS).logits
    model = load_model(tmp_path / "adapter")
    assert type(model.model) is LlamaForCausalLM
    assert not any("lora" in name or "base_layer" in name for name, _ in model.model.named_modules())
    torch.testing.assert_close(model.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    plain = load_model(folder)
    assert (model.model(IDS).logits - plain.model(IDS).logits).norm() > 0.1 * expected.norm() ** 0.5
    assert model.fingerprint != plain.fingerprint
    assert model.fingerprint == load_model(tmp_path / "adapter").fingerprint


def test_another_adapter_has_another_fingerprint_and_one_without_effect_its_bases(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        save_adapter(tmp_path / str(seed), str(folder), seed=seed)
    stronger = json.loads((tmp_path / "1" / "adapter_config.json").read_text()) | {"lora_alpha": 32}
    shutil.copytree(tmp_path / "1", tmp_path / "stronger")
    (tmp_path / "stronger" / "adapter_config.json").write_text(json.dumps(stronger))
    prints = {load_model(tmp_path / name).fingerprint for name in ("1", "2", "stronger")}
    assert len({*prints, load_model(folder).fingerprint}) == 4
    peft.get_peft_model(random_llama(), KINDS["lora"]()).save_pretrained(tmp_path / "new")  # its B is 0
    assert load_model(tmp_path / "new", base=folder).fingerprint == load_model(folder).fingerprint


def test_an_adapter_takes_the_dtype_and_works_in_all_of_drolab(adapter: Path) -> None:
    assert load_model(adapter, dtype="bfloat16").dtype == torch.bfloat16
    model, prompts = load_model(adapter), drolab.load_prompts()
    queries = drolab.load_queries("anchors").head(2)
    states = drolab.hidden_states(model, queries, prompts["none"], layers=(0, 1, 2), progress=False)
    assert states.values.isfinite().all()
    assert len(drolab.generate(model, queries, prompts["none"], n_samples=1, max_new_tokens=2, progress=False)) == 2


def test_an_adapters_own_tokenizer_is_used(adapter: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("llama-2-chat")
    tokenizer.save_pretrained(adapter)
    assert load_model(adapter).tokenizer.chat_template == chat_format("llama-2-chat")


def test_an_adapter_with_tokens_of_its_own(folder: Path, tmp_path: Path) -> None:
    base = random_llama()
    base.resize_token_embeddings(264, mean_resizing=False)
    model = peft.get_peft_model(base, KINDS["lora"]())
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = load_model(tmp_path, base=folder)
    assert torch.equal(loaded.model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert loaded.model.get_output_embeddings().weight.shape == (264, 32)


def test_an_adapter_on_an_adapter(adapter: Path, folder: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "second", str(adapter), seed=3)
    assert len({load_model(path).fingerprint for path in (folder, adapter, tmp_path / "second")}) == 3


# --- what can be wrong -------------------------------------------------------------------------------------


def test_the_base_is_not_there(folder: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "lost", "/no/such/folder")
    with pytest.raises(
        ModelError, match=r"made for '/no/such/folder', which cannot be loaded: give that model with base="
    ):
        load_model(tmp_path / "lost")
    with pytest.warns(UnreliableWarning, match="says that it was made for '/no/such/folder', and goes onto"):
        assert load_model(tmp_path / "lost", base=folder).num_hidden_layers == 2
    for base in (None, str(tmp_path / "silent")):
        save_adapter(tmp_path / "silent", base)
        with pytest.raises(ModelError, match="does not say what it was made for: give its model with base="):
            load_model(tmp_path / "silent")


def save_base(folder: Path, **sizes: int) -> Path:
    defaults = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    config = LlamaConfig(**{"vocab_size": 260, "num_hidden_layers": 2, **defaults, **sizes})
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sizes", [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"intermediate_size": 32}])
def test_an_adapter_of_another_base(sizes: dict[str, int], adapter: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", **sizes)
    (other / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"was made for another model, it says for .*does not fit this llama .*base=…"):
        load_model(adapter, base=other)


def test_an_adapter_with_more_layers_than_its_base_lacks_none(adapter: Path, tmp_path: Path) -> None:
    """A base with a layer more than the adapter has weights for is another base, too."""
    with pytest.raises(ModelError, match=r"missing here"):
        load_model(adapter, base=save_base(tmp_path / "deeper", num_hidden_layers=3))


def test_an_adapter_of_another_family(adapter: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = save_base(tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=260)).save_pretrained(base)
    with pytest.raises(ModelError, match=r"was made for another model.*does not fit this gpt2"):
        load_model(adapter, base=base)


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="only pickled weights, which drolab never reads"):
        load_model(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no weights \(adapter_model.safetensors\)"):
        load_model(adapter)


def test_a_damaged_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="not readable: download or save it again"):
        load_model(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json of .* cannot be read"):
        load_model(adapter)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_prompt_tuning_is_no_chat_model(config: Any, folder: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(random_llama(), config)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ModelError, match=r"is prompt tuning \(.*no change of the model.*SoftPrompt"):
        load_model(tmp_path / "tuned")


def test_an_adapter_that_classifies_is_no_chat_model(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ModelError, match="adapter for SEQ_CLS, which writes no replies"):
        load_model(adapter)


def test_peft_is_missing(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package peft: pip install peft"):
        load_model(adapter)


def test_an_adapter_beside_a_whole_model_is_not_guessed_about(adapter: Path, folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", adapter)
    with pytest.raises(ModelError, match="does not say which of the two you mean"):
        load_model(adapter)


def test_a_base_for_no_adapter(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is no adapter.*leave base=… out"):
        load_model(folder, base=folder)
