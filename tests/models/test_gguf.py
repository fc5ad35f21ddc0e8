"""GGUF files: unpacked weights, and what can be wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gguf_files import save_gguf
from transformers import AutoTokenizer

import drolab
from drolab.errors import ModelError
from drolab.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@torch.no_grad()
def test_a_gguf_file_is_its_unpacked_weights(tmp_path: Path) -> None:
    expected = save_gguf(tmp_path / "tiny.Q8_0.gguf")
    model = load_model(tmp_path / "tiny.Q8_0.gguf")
    ids = torch.tensor([[5, 60, 61, 62]])
    torch.testing.assert_close(model.model(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)
    for name, weight in expected.named_parameters():
        assert torch.equal(model.model.get_parameter(name), weight), name
    assert model.tokenizer("How?")["input_ids"] == [*[model.tokenizer.convert_tokens_to_ids(c) for c in "How?"]]
    for other in (load_model(tmp_path), load_model(tmp_path, gguf_file="tiny.Q8_0.gguf")):
        assert other.fingerprint == model.fingerprint
    queries = drolab.load_queries("anchors").head(2)
    states = drolab.hidden_states(model, queries, drolab.load_prompts()["short"], progress=False)
    assert states.values.isfinite().all()
    assert load_model(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_which_of_several_files(tmp_path: Path) -> None:
    save_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"several GGUF files \(other.gguf, tiny.gguf\): give the path of one"):
        load_model(tmp_path)
    assert load_model(tmp_path, gguf_file="tiny.gguf").num_hidden_layers == 2
    with pytest.raises(ModelError, match=r"There is no file .*nothing.gguf"):
        load_model(tmp_path, gguf_file="nothing.gguf")


def test_a_file_on_the_hub_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fail(*args: Any, **options: Any) -> None:
        asked.append((args, options))
        raise OSError("couldn't connect")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load_model("org/model-GGUF", gguf_file="model.Q4_K_M.gguf", revision="abc")
    options = {"revision": "abc", "trust_remote_code": False, "gguf_file": "model.Q4_K_M.gguf"}
    assert asked == [(("org/model-GGUF",), options)]


def test_an_unknown_architecture(tmp_path: Path) -> None:
    save_gguf(tmp_path / "new.gguf", architecture="qwen99")
    with pytest.raises(ModelError, match=r"of an architecture that this version .*qwen99.*in safetensors, or update"):
        load_model(tmp_path / "new.gguf")


@pytest.mark.parametrize("length", [4, 60, 3000, -20_000])
def test_a_file_that_was_cut_off(length: int, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    save_gguf(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"The GGUF file .* cannot be read: download it again if it was cut off"):
        load_model(path)
