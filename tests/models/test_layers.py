"""Layers by number, and the modules that they come out of."""

from __future__ import annotations

import pytest
from helpers.steering import ENDS, WIDTH, hooks, vector
from helpers.tiny import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from drolab.errors import ModelError, StatesError
from drolab.models import Ablate, ChatModel, resolve_layers, steered, wrap


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
