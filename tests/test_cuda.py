"""A GPU computes what the CPU computes. Collected where there is one; drolab's own CI has none."""

from __future__ import annotations

import copy

import torch
from helpers.families import CARE, PREFIX, QUERIES, SUFFIXES, relative, with_gradient
from helpers.tiny import byte_tokenizer, random_llama

from drolab.inference import hidden_states, sampling
from drolab.models import ChatModel, forward_states, wrap

if torch.cuda.is_available():

    def both() -> tuple[ChatModel, ChatModel]:
        model = random_llama()
        return tuple(
            wrap(copy.deepcopy(model).to(device), byte_tokenizer(), name=device, chat_template="chatml")
            for device in ("cpu", "cuda")
        )

    def test_states() -> None:
        here, there = both()
        expected = hidden_states(here, QUERIES, CARE, layers=(0, 1, 2), progress=False)
        found = hidden_states(there, QUERIES, CARE, layers=(0, 1, 2), token_budget=40, progress=False)
        assert found.values.device.type == "cpu"
        assert relative(found.values, expected.values) < 1e-4

    def test_gradients() -> None:
        here, there = both()

        def states(model: ChatModel, prefix: torch.Tensor) -> torch.Tensor:
            return forward_states(model, prefix, SUFFIXES).cpu()

        _, expected = with_gradient(here, states)
        _, found = with_gradient(there, states)
        assert len(PREFIX) == len(found)
        assert relative(found.cpu(), expected) < 1e-3

    def test_the_same_tokens_are_chosen() -> None:
        probabilities = (3 * torch.randn(20, 9000)).softmax(dim=-1)
        rows, uniforms = torch.arange(20).repeat_interleave(30), torch.rand(600, dtype=torch.float64)
        for top_k in (0, 40):
            settings = sampling.Settings(
                n_samples=1, max_new_tokens=1, do_sample=True, temperature=1, top_p=0.9, top_k=top_k, seed=0
            )
            expected = sampling._pointed_at(probabilities, rows, uniforms, settings)
            found = sampling._pointed_at(probabilities.cuda(), rows.cuda(), uniforms.cuda(), settings)
            assert torch.equal(found.cpu(), expected)
