"""Loading models, the errors of loading, the five chat formats."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import ROOT, byte_tokenizer, random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import drolab
from drolab.errors import ChatTemplateError, ModelError
from drolab.models import CHAT_FORMATS, ChatModel, chat_format, load_model, sources, wrap


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A saved tiny model without a chat template."""
    random_llama().save_pretrained(tmp_path / "bare")
    byte_tokenizer().save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


# --- loading -----------------------------------------------------------------------------------------------


def test_a_local_folder(folder: Path) -> None:
    model = load_model(folder)
    assert model.name == str(folder)
    assert (model.hidden_size, model.num_hidden_layers, model.max_length) == (32, 2, 512)
    assert model.device.type == "cpu"
    assert not model.is_demo
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert repr(model) == f"ChatModel({str(folder)!r}, llama, d=32, layers=2, float32, cpu)"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), ("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype(folder: Path, dtype: str | torch.dtype | None, expected: torch.dtype) -> None:
    assert load_model(folder, dtype=dtype).dtype == expected


def test_none_takes_the_checkpoints_own_dtype(folder: Path, tmp_path: Path) -> None:
    load_model(folder, dtype="bfloat16").model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16


def test_the_attention_implementation_is_passed_on(folder: Path) -> None:
    assert load_model(folder, attn_implementation="eager").model.config._attn_implementation == "eager"


def test_embed_and_base_model_skip_nothing_but_the_head(tiny_llama: ChatModel) -> None:
    ids = torch.tensor([[1, 50, 60]])
    embedded = tiny_llama.embed(ids)
    assert embedded.shape == (1, 3, 32)
    states = tiny_llama.base_model(inputs_embeds=embedded).last_hidden_state
    full = tiny_llama.model(ids, output_hidden_states=True)
    torch.testing.assert_close(states, full.hidden_states[-1], rtol=0, atol=0)
    torch.testing.assert_close(tiny_llama.model.lm_head(states), full.logits, rtol=0, atol=0)


def test_the_demo_model_runs_in_float32(demo: ChatModel) -> None:
    assert demo.is_demo
    assert demo.dtype == torch.float32
    assert demo.fingerprint == drolab.load_model("demo").fingerprint


def test_a_template_in_a_file_of_its_own(bare: Path) -> None:
    """As older checkpoints that also see images have it."""
    (bare / "chat_template.json").write_text(json.dumps({"chat_template": chat_format("chatml")}))
    assert load_model(bare).tokenizer.chat_template == chat_format("chatml")


# --- what can be wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./no/such/folder", "not a name", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match=r"There is no folder .* give an existing folder, a hub id .* or 'demo'\."):
        load_model(name)


def test_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"hub cannot be reached.*existing folder.*'demo'.*works offline"):
        load_model("no-such-org/no-such-model")


def test_a_hub_that_does_not_answer_is_asked_for_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(sources, "getproxies", dict)
        asked: list[str] = []
        monkeypatch.setattr(sources, "find_adapter", lambda name, *_: asked.append(name))
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("it is looked for"))
        with pytest.raises(ModelError, match=r"'org/model' is not a folder here, and the hub cannot be reached"):
            load_model("org/model")
        assert asked == []
        (tmp_path / "models--org--model" / "snapshots").mkdir(parents=True)  # some of it is here: it is tried
        with pytest.raises(pytest.fail.Exception, match="it is looked for"):
            load_model("org/model")
        assert asked == ["org/model"]


@pytest.mark.parametrize(
    ("raised", "match"),
    [
        (OSError("You are trying to access a gated repo."), "'org/model' is gated: accept its licence.*HF_TOKEN"),
        (
            OSError("org/model is not a local folder and is not a valid model identifier"),
            "check the spelling.*HF_TOKEN",
        ),
        (ValueError("Please pass the argument `trust_remote_code=True`"), "read it, then pass trust_remote_code=True"),
        (OSError("org/model does not appear to have a file named model.safetensors"), "never reads pickled ones"),
        (ValueError("Unrecognized model\nmore lines"), "cannot be loaded: Unrecognized model. Check the name"),
    ],
)
def test_errors_of_the_hub(monkeypatch: pytest.MonkeyPatch, raised: Exception, match: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=match):
        load_model("org/model")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json: point to a folder of save_pretrained"):
        load_model(tmp_path)


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"has no weights \(\*\.safetensors\): save or download"):
        load_model(tmp_path)


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ModelError, match="only pickled weights, which drolab never reads: convert them"):
        load_model(tmp_path)


def test_a_damaged_weights_file(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="is not readable: download or save it again"):
        load_model(tmp_path)


def test_a_checkpoint_that_lacks_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights \(first: model\.norm\.weight\).*merge an adapter"):
        load_model(tmp_path)


def test_no_chat_template(bare: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"no chat template.*chat_template=…, one of .*llama-2-chat"):
        load_model(bare)
    assert load_model(bare, chat_template="vicuna").tokenizer.chat_template == chat_format("vicuna")


def test_an_unknown_chat_format(folder: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"No chat format is called 'no-such'.*pass one of .*llama-2-chat"):
        load_model(folder, chat_template="no-such")


@pytest.mark.parametrize("dtype", ["int8", "float", "bfloat", "nn"])
def test_an_unknown_dtype(folder: Path, dtype: str) -> None:
    if dtype == "float":  # torch.float is float32's other name
        assert load_model(folder, dtype=dtype).dtype == torch.float32
        return
    with pytest.raises(ModelError, match=f"dtype '{dtype}': pass 'float32', 'bfloat16'"):
        load_model(folder, dtype=dtype)


def test_a_slow_tokenizer() -> None:
    class Slow:
        is_fast = False
        chat_template = "{{ messages }}"

    with pytest.raises(ModelError, match=r"slow one.*use a checkpoint that has a tokenizer\.json"):
        wrap(random_llama(), Slow(), name="slow")  # type: ignore[arg-type]


def test_wrap_leaves_the_tokenizer_alone() -> None:
    tokenizer = byte_tokenizer()
    model = wrap(random_llama(), tokenizer, name="m", chat_template="{{ messages[0].content }}")
    assert tokenizer.chat_template is None
    assert model.tokenizer.chat_template == "{{ messages[0].content }}"


# --- chat formats ------------------------------------------------------------------------------------------


def rendered(tokenizer: PreTrainedTokenizerBase, name: str, case: dict) -> str:
    return tokenizer.apply_chat_template(
        case["messages"],
        tokenize=False,
        add_generation_prompt=case["add_generation_prompt"],
        chat_template=chat_format(name),
    )


def golden_renderings(reference: Path) -> dict[str, Any]:
    """Those of the paper's formats, and those of formats that were added since."""
    files = [reference / "templates" / "golden_renderings.json", ROOT / "tests" / "samples" / "renderings.json"]
    return {name: golden for file in files for name, golden in json.loads(file.read_text()).items()}


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_golden_renderings(reference: Path, name: str) -> None:
    golden = golden_renderings(reference)[name]
    tokenizer = byte_tokenizer()
    assert (tokenizer.bos_token, tokenizer.eos_token) == (golden["bos_token"], golden["eos_token"])
    for case in golden["cases"]:
        assert rendered(tokenizer, name, case) == case["text"], case["name"]


def test_every_format_has_golden_renderings(reference: Path) -> None:
    assert set(golden_renderings(reference)) == set(CHAT_FORMATS)


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_formats_render_without_bos_and_reject_unknown_roles(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    chat = {"messages": [{"role": "user", "content": "Hi."}], "add_generation_prompt": True}
    assert "None" not in rendered(tokenizer, name, chat)
    chat["messages"][0]["role"] = "tool"
    with pytest.raises(Exception, match="the roles are system, user and assistant"):
        rendered(tokenizer, name, chat)


# --- GGUF --------------------------------------------------------------------------------------------------


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "model.Q4_0.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    for place in (path, tmp_path):
        with pytest.raises(ModelError, match=r"needs the package gguf: pip install gguf. Or .* in safetensors"):
            load_model(place)
    (tmp_path / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"several GGUF files \(model.Q4_0.gguf, other.gguf\): give the path of one"):
        load_model(tmp_path)


def test_a_file_that_only_has_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="does not begin as a GGUF file does"):
        load_model(path)
    with pytest.raises(ModelError, match="is a file: give the folder that it is in"):
        load_model(path.rename(tmp_path / "model.safetensors"))
