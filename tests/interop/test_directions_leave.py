"""Control vectors in the released repeng, which puts them where llama.cpp does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import FAMILIES, QUERIES
from helpers.outside import outside
from helpers.tiny import byte_tokenizer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from drolab import export
from drolab.models import Add, load_model, render, steered
from drolab.probing import Direction
from drolab.types import SafetyPrompt


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@torch.no_grad()
def test_repeng(kind: str, tmp_path: Path, record: Any) -> None:
    options = {**FAMILIES[kind][1], "num_hidden_layers": 5}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", chat_template="chatml")
    given = []
    for layer in (2, 4):
        vector = torch.randn(32, generator=torch.Generator().manual_seed(layer))
        numbers = {"threshold": 0.0, "scale": 1.0, "setting": math.nan, "layer": layer}
        given.append(Direction(method="random", positive="random", vector=vector / vector.norm(), **numbers))
    export.save_directions(given, model, tmp_path / "export", strength=3.0)
    chats = [render(model, text, SafetyPrompt(name="none", text="")).input_ids for text in QUERIES["text"]]
    (tmp_path / "ids.json").write_text(json.dumps(chats))
    file = tmp_path / "export" / "control_vector.gguf"
    found = outside("repeng", "steer_repeng.py", tmp_path / "base", file, tmp_path / "ids.json", tmp_path / "logits")
    assert (found["layers"], found["model"]) == ([1, 3], kind)
    theirs, worst = load_file(tmp_path / "logits"), 0.0
    with steered(model, *(Add(3.0 * one.vector, layer=one.layer) for one in given)) as pushed:
        for number, ids in enumerate(chats):
            wanted = pushed.model(torch.tensor([ids])).logits[0]
            worst = max(worst, float((theirs[str(number)] - wanted).abs().max()))
    assert worst <= 2e-5
    plain = model.model(torch.tensor([chats[0]])).logits[0]
    moved = float((theirs["0"] - plain).abs().max())
    assert moved > 1e-1  # the control: it does something
    said = f"largest difference of a logit {worst:.1e}, where they move one by up to {moved:.1f}"
    record("repeng", f"directions of two layers in a random {kind}", said, found["versions"])
