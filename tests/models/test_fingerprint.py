"""The fingerprint: every bit of every weight is in it, and how a model is stored or run is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from drolab.models import fingerprint, load_model
from drolab.models.fingerprint import _CHUNK, _checksums

MODEL, TOKENIZER = random_llama(), byte_tokenizer()
BEFORE = fingerprint(MODEL, TOKENIZER)
N_WEIGHTS = sum(parameter.numel() for parameter in MODEL.parameters())


def weight(number: int) -> tuple[torch.Tensor, int]:
    """The parameter and the place in it of the model's weight `number`."""
    for parameter in MODEL.parameters():
        if number < parameter.numel():
            return parameter.data.view(-1), number
        number -= parameter.numel()
    raise IndexError(number)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, N_WEIGHTS - 1), st.sampled_from([-1, 1, 2**20, -(2**31)]))
def test_any_changed_weight_shows(number: int, change: int) -> None:
    values, place = weight(number)
    bits = values.view(torch.int32)
    old = bits[place].clone()
    bits[place] += change  # down to the last bit
    after = fingerprint(MODEL, TOKENIZER)
    bits[place] = old
    assert after != BEFORE
    assert fingerprint(MODEL, TOKENIZER) == BEFORE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, N_WEIGHTS - 1), st.integers(0, N_WEIGHTS - 1))
def test_any_two_swapped_weights_show(one: int, other: int) -> None:
    (a, i), (b, j) = weight(one), weight(other)
    x, y = a[i].clone(), b[j].clone()
    a[i], b[j] = y, x
    after = fingerprint(MODEL, TOKENIZER)
    a[i], b[j] = x, y
    assert (after != BEFORE) == (x.item() != y.item())


def test_swapped_places_show_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3 * _CHUNK + 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    swapped = values.clone()
    swapped[[0, _CHUNK]] = values[[_CHUNK, 0]]
    assert values[0] != values[_CHUNK]
    assert _checksums(values) != _checksums(swapped)
    assert _checksums(values) == _checksums(values.clone())


def test_the_fingerprint_survives_the_disk_and_the_file_layout(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    in_memory = fingerprint(random_llama(), tokenizer)
    assert load_model(folder).fingerprint == in_memory
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer) == in_memory


def test_tied_weights(tmp_path: Path) -> None:
    config = random_llama().config
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path), TOKENIZER) == fingerprint(model, TOKENIZER)
    assert load_model(tmp_path, chat_template="chatml").model.lm_head.weight.shape == (260, 32)


def test_using_the_tokenizer_does_not_change_the_fingerprint() -> None:
    tokenizer = byte_tokenizer()
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=4)
    tokenizer.padding_side = "left"
    assert fingerprint(MODEL, tokenizer) == BEFORE


def test_what_else_is_in_the_fingerprint() -> None:
    other = random_llama()
    other.config.rms_norm_eps = 1e-3
    templated = byte_tokenizer()
    templated.chat_template = "{{ messages }}"
    more_tokens = byte_tokenizer()
    more_tokens.add_tokens(["<new>"])
    changed = [
        fingerprint(other, TOKENIZER),
        fingerprint(random_llama().bfloat16(), TOKENIZER),
        fingerprint(MODEL, templated),
        fingerprint(MODEL, more_tokens),
    ]
    assert len({BEFORE, *changed}) == 5


def test_how_a_model_is_run_is_not_in_the_fingerprint() -> None:
    other = random_llama()
    other.set_attn_implementation("eager")
    other.config.use_cache = False
    assert fingerprint(other, TOKENIZER) == BEFORE
