"""Layers by number, and the modules that they come out of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.replies import QUERIES
from helpers.steering import CARE, ENDS, FAMILIES, LAST, WIDTH, hooks, vector
from helpers.tiny import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drolab.errors import ModelError, StatesError
from drolab.inference import generate, hidden_states
from drolab.models import (
    Ablate,
    Add,
    ChatModel,
    forward_states,
    layers_at,
    render,
    resolve_layers,
    spread_layers,
    steered,
    wrap,
)
from drolab.store import Store


def test_layers_that_are_not_there(tiny_llama: ChatModel) -> None:
    with pytest.raises(StatesError, match=r"no layers \[3, -4\]: choose from 0 \(embeddings\) to 2, or -1"):
        resolve_layers(tiny_llama, (1, 3, -4))
    with pytest.raises(StatesError, match="No layers asked for"):
        resolve_layers(tiny_llama, ())
    assert resolve_layers(tiny_llama, (-1, 0, 2, -3)) == (2, 0)


def test_a_model_whose_states_are_not_the_outputs_of_its_blocks_is_refused() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=WIDTH, num_hidden_layers=2, state_size=4, vocab_size=260, **ENDS)
    model = wrap(AutoModelForCausalLM.from_config(config), byte_tokenizer(), name="mamba", chat_template="chatml")
    with pytest.raises(ModelError, match="cannot be edited"), steered(model, Ablate(vector())):
        pass
    assert hooks(model) == 0


def raw_at_the_end() -> ChatModel:
    """A model whose configuration asks transformers for the last block's raw output as the last hidden state."""
    config = AutoConfig.for_model("llama", **FAMILIES["llama"], tie_last_hidden_states=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return wrap(model, byte_tokenizer(), name="raw", chat_template="chatml")


@torch.no_grad()
def transformers_states(model: ChatModel) -> torch.Tensor:
    """[n_queries, n_layers, d]: what transformers calls the hidden states, at the last token of each chat."""
    rows = []
    for text in QUERIES["text"]:
        ids = torch.tensor([render(model, text, CARE).input_ids])
        rows.append(torch.stack([own[0, -1] for own in model.model(ids, output_hidden_states=True).hidden_states]))
    return torch.stack(rows)


def test_a_last_layer_that_is_another_in_transformers_is_refused(store: Store) -> None:
    model = raw_at_the_end()
    for call in (
        lambda: hidden_states(model, QUERIES, CARE, store=store, progress=False),
        lambda: hidden_states(model, QUERIES, CARE, layers=(0, LAST), progress=False),
        lambda: forward_states(model, model.embed(torch.tensor([5, 6])), [[7, 8]]),
        lambda: steered(model, Add(vector(), -1)).__enter__(),
    ):
        with pytest.raises(
            ModelError, match=r"Layer 2 \(-1\) of 'raw', .*tie_last_hidden_states: false.*layers 0 to 1"
        ):
            call()
    assert not len(store.files())
    assert len(generate(model, QUERIES, CARE, n_samples=1, max_new_tokens=2, progress=False)) == len(QUERIES)


def test_the_other_layers_are_transformers_layers() -> None:
    model = raw_at_the_end()
    found = hidden_states(model, QUERIES, CARE, layers=(0, 1), progress=False).values
    torch.testing.assert_close(found, transformers_states(model)[:, :-1], rtol=0, atol=1e-4)


def test_fractions_of_the_depth_are_layers_that_the_model_has() -> None:
    model = raw_at_the_end()
    assert layers_at(model, (0.25, 0.5, 1.0)) == (1,)  # of two layers the last is another state in transformers
    assert layers_at(model, (1, 0.5, 2)) == (1, 2)  # what is asked for by number is never left out
    usual = raw_at_the_end()
    usual.model.config.tie_last_hidden_states = True
    assert layers_at(usual, (0.25, 0.5, 0.75, 1.0)) == (1, 2)
    for wrong in ((0.0,), (1.5,), (3,), (), (1.0,)):  # of the last there are no states, and nothing else is asked for
        with pytest.raises(StatesError):
            layers_at(model, wrong)


@pytest.mark.parametrize("wrong", [0.5, 2, "0.5", ("1",), (None,)])
def test_what_is_no_list_of_layers_is_said_to_be_none(wrong: Any) -> None:
    with pytest.raises(StatesError, match="pass "):
        layers_at(raw_at_the_end(), wrong)


def test_fractions_and_numbers_of_numpy_are_taken_for_what_they_are() -> None:
    found = layers_at(raw_at_the_end(), (np.float32(0.5), np.int64(2)))
    assert found == (1, 2)
    assert {type(layer) for layer in found} == {int}


def test_layers_are_spread_over_the_depth_of_a_deep_model() -> None:
    assert spread_layers(raw_at_the_end()) == (0, 1)  # the last is another state in transformers
    torch.manual_seed(0)
    options = {"vocab_size": 260, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    deep = LlamaForCausalLM(LlamaConfig(num_hidden_layers=30, **options))
    model = wrap(deep, byte_tokenizer(), name="deep", chat_template="chatml")
    assert spread_layers(model) == (0, 2, 5, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30)
    assert set(layers_at(model, (0.25, 0.5, 0.75, 1.0))) < set(spread_layers(model))
    assert spread_layers(model, 100) == tuple(range(31))


@pytest.mark.parametrize("entry", [None, True])
def test_the_last_layer_is_the_one_of_transformers(entry: bool | None) -> None:
    """The control: only where the entry says so is anything refused."""
    model = raw_at_the_end()
    away = (transformers_states(model)[:, -1].norm(dim=-1)).clone()
    model.model.config.tie_last_hidden_states = entry
    found = hidden_states(model, QUERIES, CARE, layers=(-1,), progress=False).values[:, 0]
    torch.testing.assert_close(found, transformers_states(model)[:, -1], rtol=0, atol=1e-4)
    assert not torch.allclose(found.norm(dim=-1), away, rtol=0.1)


def test_it_is_found_out_once_per_model(tiny_llama: ChatModel) -> None:
    hidden_states(tiny_llama, QUERIES, CARE, progress=False)
    passes: list[object] = []
    handle = tiny_llama.base_model.register_forward_pre_hook(lambda *_: passes.append(_))
    try:
        forward_states(tiny_llama, tiny_llama.embed(torch.tensor([5, 6])), [[7, 8]])
    finally:
        handle.remove()
    assert len(passes) == 2  # the prefix and the rest
