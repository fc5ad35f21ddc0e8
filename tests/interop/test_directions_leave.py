"""Directions in the released repeng, which puts them where llama.cpp does, and in lm-eval's model `steered`."""

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
from drolab.models import Add, ChatModel, load_model, render, steered
from drolab.probing import Direction
from drolab.types import SafetyPrompt

STRENGTH = 3.0


def leave(kind: str, folder: Path) -> tuple[ChatModel, list[Direction], list[tuple[int, ...]]]:
    """A random model in `folder / "base"`, two directions in `folder / "export"`, and chats, also in "ids.json"."""
    options = {**FAMILIES[kind][1], "num_hidden_layers": 5}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model = load_model(folder / "base", chat_template="chatml")
    given = []
    for layer in (2, 4):
        vector = torch.randn(32, generator=torch.Generator().manual_seed(layer))
        numbers = {"threshold": 0.0, "scale": 1.0, "setting": math.nan, "layer": layer}
        given.append(Direction(method="random", positive="random", vector=vector / vector.norm(), **numbers))
    export.save_directions(given, model, folder / "export", strength=STRENGTH)
    chats = [render(model, text, SafetyPrompt(name="none", text="")).input_ids for text in QUERIES["text"]]
    (folder / "ids.json").write_text(json.dumps(chats))
    return model, given, chats


def agreement(model: ChatModel, given: list[Direction], chats: list[tuple[int, ...]], file: Path) -> str:
    """How close the logits in a file are to those of drolab's steering."""
    theirs, worst = load_file(file), 0.0
    with steered(model, *(Add(STRENGTH * one.vector, layer=one.layer) for one in given)) as pushed:
        for number, ids in enumerate(chats):
            wanted = pushed.model(torch.tensor([ids])).logits[0]
            worst = max(worst, float((theirs[str(number)] - wanted).abs().max()))
    assert worst <= 2e-5
    plain = model.model(torch.tensor([chats[0]])).logits[0]
    moved = float((theirs["0"] - plain).abs().max())
    assert moved > 1e-1  # the control: it does something
    return f"largest difference of a logit {worst:.1e}, where they move one by up to {moved:.1f}"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@torch.no_grad()
def test_repeng(kind: str, tmp_path: Path, record: Any) -> None:
    model, given, chats = leave(kind, tmp_path)
    file = tmp_path / "export" / "control_vector.gguf"
    found = outside("repeng", "steer_repeng.py", tmp_path / "base", file, tmp_path / "ids.json", tmp_path / "logits")
    assert (found["layers"], found["model"]) == ([1, 3], kind)
    said = agreement(model, given, chats, tmp_path / "logits")
    record("repeng", f"directions of two layers in a random {kind}", said, found["versions"])


@torch.no_grad()
def test_lm_eval_s_steered_model(tmp_path: Path, record: Any) -> None:
    model, given, chats = leave("llama", tmp_path)
    file, out = tmp_path / "export" / "directions.safetensors", tmp_path / "logits.safetensors"
    found = outside("tools", "steer_lm_eval.py", tmp_path / "base", file, STRENGTH, tmp_path / "ids.json", out)
    assert found["layers"] == ["layers.1", "layers.3"]
    said = agreement(model, given, chats, out)
    record("lm-eval, `steered`", "directions of two layers in a random llama", said, found["versions"])
