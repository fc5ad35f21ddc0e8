"""Drift of a soft prompt's tokens, and the paper's human prompts read from its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import drolab
from drolab import dro, published
from drolab.data import CODE_CLONE, load_prompts
from drolab.errors import PromptError, QueryError
from drolab.models import ChatModel, wrap
from drolab.types import SafetyPrompt, SoftPrompt

CODE = '''
import os
os.remove("/this/must/never/run")

PCA_DIM = 4
DEFAULT_SYSTEM_PROMPT = """You are careful. "Always".

Second paragraph: \\u00fc."""
SHORT_SYSTEM_PROMPT = ("Be " "brief.")
MISTRAL_SYSTEM_PROMPT = "Be fair."
'''


def soft(model: ChatModel, text: str, moved: float = 0.0, name: str = "trained") -> SoftPrompt:
    start = dro.as_embeddings(model, SafetyPrompt(name="start", text=text))
    return SoftPrompt(name=name, embeddings=start.embeddings + moved)


# Tokens


def test_drift_is_the_distance_that_each_token_went(tiny_llama: ChatModel) -> None:
    table = dro.drift_from_text(
        tiny_llama, soft(tiny_llama, "Be safe.", 0.5), SafetyPrompt(name="short", text="Be safe.")
    )
    assert table["drift"].to_numpy() == pytest.approx(0.5 * 32**0.5)
    assert "".join(table["text"]) == "Be safe."
    assert list(table["token"]) == list(range(8))
    assert set(table["against"]) == {"short"}
    still = dro.drift_from_text(tiny_llama, soft(tiny_llama, "Be safe."), SafetyPrompt(name="short", text="Be safe."))
    assert (still["drift"] == 0).all()
    assert still["cosine"].to_numpy() == pytest.approx(1)
    other = SoftPrompt(name="other", embeddings=torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    foreign = dro.drift_from_text(tiny_llama, other, SafetyPrompt(name="short", text="Be safe."))
    assert abs(foreign["cosine"].mean()) < 0.3  # made for other weights


def test_prompts_that_do_not_fit_are_both_named(tiny_llama: ChatModel) -> None:
    trained = soft(tiny_llama, "Be safe.")
    with pytest.raises(PromptError, match="'trained' has 8 vectors, but prompt 'long' has 13 tokens in 'tiny-llama'"):
        dro.drift_from_text(tiny_llama, trained, SafetyPrompt(name="long", text="Be very safe."))
    with pytest.raises(PromptError, match="'trained' has 8 vectors of width 32, but 'b' has 3 of width 4"):
        dro.token_drift(trained, SoftPrompt(name="b", embeddings=torch.zeros(3, 4)))
    with pytest.raises(PromptError, match="'none' has no text"):
        dro.as_embeddings(tiny_llama, SafetyPrompt(name="none", text=""))


def test_released_prompts_against_the_model_they_were_trained_on(tmp_path: Path, tiny_llama: ChatModel) -> None:
    """With the model there, each training is compared with the human prompt it began with."""
    named = wrap(tiny_llama.model, tiny_llama.tokenizer, name="owner/Tiny-7b", chat_template="chatml")
    for folder, file, moved in (
        ("trained_prompts", "type.all_length", 0.1),
        ("trained_prompts_unlikelihood", "length", 0.4),
    ):
        path = tmp_path / folder / "Tiny-7b" / f"{file}.short.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"soft_prompt": soft(named, "Be brief.", moved).embeddings.bfloat16()}, path)
    release = published.load(tmp_path)
    inits = {"short": SafetyPrompt(name="short", text="Be brief.")}
    table = published.trained_tokens(release, chat_model=named, inits=inits)
    mean = table.groupby("prompt")["drift"].mean()
    assert mean["dro-short"] == pytest.approx(0.1 * 32**0.5, rel=0.05)
    assert mean["vpt-short"] == pytest.approx(0.4 * 32**0.5, rel=0.05)
    assert set(table["against"]) == {"short"}
    assert len(release.soft_prompt("Tiny-7b", "dro-short", chat_model=named)) == 9
    with pytest.raises(PromptError, match="`inits` lacks the human prompt 'short'"):
        published.trained_tokens(release, chat_model=named)
    with pytest.raises(QueryError, match=r"No soft prompts of tiny-llama: there are some of \['Tiny-7b'\]"):
        published.trained_tokens(release, chat_model=tiny_llama, inits=inits)


def test_one_training_alone_has_norms_and_no_drift(tmp_path: Path) -> None:
    path = tmp_path / "trained_prompts" / "M" / "type.all_length.default.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"soft_prompt": torch.ones(2, 4)}, path)
    table = published.trained_tokens(published.load(tmp_path))
    assert list(table["norm"]) == [2, 2]
    assert table[["drift", "cosine"]].isna().all(axis=None)


# The paper's human prompts


@pytest.mark.parametrize("place", ["code/utils.py", "utils.py"])
def test_the_papers_prompts_are_parsed_never_run(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(CODE, encoding="utf-8-sig")
    prompts = load_prompts(tmp_path)
    assert {name: prompt.text for name, prompt in prompts.items()} == {
        "none": "",
        "default": 'You are careful. "Always".\n\nSecond paragraph: ü.',
        "short": "Be brief.",
        "mistral": "Be fair.",
    }
    assert drolab.load_prompts(str(tmp_path)) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (", "is no Python code"),
        ("x = '\0'", "NUL characters"),
        ("(" * 10_000, "is no Python code"),
        ("PCA_DIM = 4", "assigns no text to a name like DEFAULT_SYSTEM_PROMPT"),
        ("DEFAULT_SYSTEM_PROMPT = open('x').read()", r"computes the prompts \['default'\], and it is not run"),
        ("DEFAULT_SYSTEM_PROMPT = f'{1}'", r"computes the prompts \['default'\]"),
        ("DEFAULT_SYSTEM_PROMPT = 4", "text of prompt 'default' must be a string"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_code_that_holds_no_prompts_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "utils.py").write_text(content)
    with pytest.raises(PromptError, match=message):
        load_prompts(tmp_path)


def test_another_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=re.escape(CODE_CLONE)):
        load_prompts(tmp_path)
