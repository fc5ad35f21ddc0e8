"""Tokenizers that mistral-common reads: as fast ones with a template, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import byte_tokenizer, random_llama
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from drolab.errors import ModelError
from drolab.models import audit, load_model, render
from drolab.models.tekken import from_mistral_common, is_mistral_common
from drolab.types import SafetyPrompt

NONE, CARE = SafetyPrompt(name="none", text=""), SafetyPrompt(name="care", text='Be "careful".\n')


class Common:
    """What transformers gives for a tekken.json: chats in code, no template, nothing of offsets."""

    bos_token, eos_token = "<s>", "</s>"

    def __init__(self, blank: str = " ") -> None:
        self.fast, self.blank = byte_tokenizer(), blank

    def apply_chat_template(self, said: list[dict[str, str]], **options: Any) -> dict[str, list[int]]:
        assert options == {"tokenize": True, "return_dict": True}
        system = f"[SYS]{said[0]['content']}[/SYS]\n" if len(said) == 2 else ""
        text = f"<s>{system}[INST]{self.blank}{said[-1]['content']}[/INST]"
        return {"input_ids": self.fast(text, add_special_tokens=False)["input_ids"]}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    random_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_its_chats_are_written_by_a_template(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Common())
    model = load_model(folder)
    assert render(model, 'What "is" \\ {{ this }}?', NONE).text == '<s>[INST] What "is" \\ {{ this }}?[/INST]'
    chat = render(model, "Why?", CARE)
    assert chat.text == '<s>[SYS]Be "careful".\n[/SYS]\n[INST] Why?[/INST]'
    assert chat.prompt_span is not None
    assert model.tokenizer.decode(chat.input_ids[slice(*chat.prompt_span)]) == CARE.text
    assert audit(model).set_index("check").loc["generation prompt", "status"] == "ok"


def test_other_tokens_are_an_error(folder: str) -> None:
    class Odd(Common):
        def apply_chat_template(self, said: list[dict[str, str]], **options: Any) -> dict[str, list[int]]:
            ids = super().apply_chat_template(said, **options)["input_ids"]
            return {"input_ids": ids + ids[:1] * ("rice" in said[-1]["content"])}

    odd: Any = Odd()
    assert is_mistral_common(odd)
    assert not is_mistral_common(byte_tokenizer())
    with pytest.raises(ModelError, match=r"'mine' is mistral-common's, .* gives other tokens: use a checkpoint"):
        from_mistral_common(odd, folder, "mine")


def test_a_template_of_its_own_is_used(folder: str) -> None:
    own = byte_tokenizer()
    own.chat_template = "{{ messages[-1].content }}:"
    own.save_pretrained(folder)
    common: Any = Common()
    assert from_mistral_common(common, folder, "mine").chat_template == own.chat_template


def test_without_mistral_common(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any, **__: Any) -> None:
        raise ImportError("\nMistralConverter requires the mistral-common library but it was not found.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lacks)
    with pytest.raises(ModelError, match="needs the package mistral-common: pip install mistral-common"):
        load_model(folder)


def test_a_tekken_file_for_real(tmp_path: Path) -> None:
    common = pytest.importorskip("mistral_common", reason="mistral-common is not installed: pip install mistral-common")
    shutil.copy(Path(common.__file__).parent / "data" / "tekken_240911.json", tmp_path / "tekken.json")
    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    MistralForCausalLM(MistralConfig(vocab_size=131072, num_key_value_heads=1, **size)).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    said = [{"role": "system", "content": "Be careful."}, {"role": "user", "content": "How do I boil rice?"}]
    theirs = AutoTokenizer.from_pretrained(str(tmp_path)).apply_chat_template(said, tokenize=True, return_dict=True)
    chat = render(model, said[1]["content"], SafetyPrompt(name="p", text=said[0]["content"]))
    assert list(chat.input_ids) == list(theirs["input_ids"])
    assert chat.prompt_span is not None
