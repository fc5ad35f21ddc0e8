"""Passes of the decoder: packed rows, the layers that run, shared beginnings, memory that does not suffice, threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from helpers.families import (
    CARE,
    FAMILIES,
    LAYERS,
    PREFIX,
    QUERIES,
    SUFFIXES,
    UNSHARED,
    as_soft,
    family,
    fresh,
    plain,
    queries_of,
    relative,
    shared,
    with_gradient,
)
from helpers.memory import memory_for
from helpers.tiny import byte_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from drolab import passes
from drolab.errors import ModelError, PromptError, StatesError
from drolab.inference import hidden_states
from drolab.models import (
    ChatModel,
    accumulating_gradients,
    can_share_prefix,
    copy_cache,
    encode,
    forward_states,
    plan_passes,
    prefix_cache,
    prefix_embeddings,
    run_prefix,
    wrap,
)
from drolab.models.layers import block_names
from drolab.models.passes import _abilities, can_pack
from drolab.types import SafetyPrompt

# --- packed rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_which_families_are_packed(name: str) -> None:
    """All but those whose window is shorter than what the trial needs."""
    assert can_pack(family(name), 19) == ("short window" not in name)


def test_a_chat_longer_than_the_window_is_not_packed() -> None:
    model = family("mistral, long window")
    assert can_pack(model, 64)
    assert not can_pack(model, 65)
    long, suffixes = model.embed(torch.arange(100, 162)), [[10, 11, 12], [13, 14]]
    found = forward_states(model, long, suffixes)[:, 0, 0]
    for row, suffix in enumerate(suffixes):
        whole = torch.cat([long, model.embed(torch.tensor(suffix))])[None]
        assert relative(found[row], model.base_model(inputs_embeds=whole).last_hidden_state[0, -1]) < 1e-5


def test_a_family_with_its_own_positions_is_not_packed_and_still_exact() -> None:
    """Its attention is biased by distance, which it counts along the row."""
    options = {"vocab_size": 260, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bare = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **options))
    model = wrap(bare, byte_tokenizer(), name="bloom", chat_template="chatml")
    assert not can_pack(model, 19)
    prefix = model.embed(torch.tensor(PREFIX))
    found, expected = shared(model, prefix), plain(model, prefix)
    assert relative(found[:, :, 1:], expected[:, :, 1:]) < 1e-5


def test_chats_in_a_row_do_not_see_each_other(tiny_llama: ChatModel) -> None:
    prefix = tiny_llama.embed(torch.tensor(PREFIX))
    together = forward_states(tiny_llama, prefix, SUFFIXES)
    changed = forward_states(tiny_llama, prefix, [*SUFFIXES[:1], [200, 201, 202], *SUFFIXES[2:]])
    kept = [0, 2, 3]
    assert relative(changed[kept], together[kept]) < 1e-6
    assert relative(changed[1], together[1]) > 1e-3


def test_every_chat_is_in_one_pass_and_no_pass_is_too_long(tiny_llama: ChatModel) -> None:
    begun = run_prefix(tiny_llama, tiny_llama.embed(torch.tensor(PREFIX)))
    lengths = [3, 9, 1, 4, 4, 30, 2]
    for budget in (1, 5, 12, 1000):
        found = list(plan_passes(tiny_llama, begun, lengths, budget))
        assert sorted(row for rows in found for row in rows) == list(range(7))
        assert all(len(rows) == 1 or sum(lengths[row] for row in rows) <= budget for rows in found)
        assert found[0][0] == 5  # the longest first
    assert len(found) == 1


def test_a_large_budget_makes_no_long_row(tiny_llama: ChatModel) -> None:
    """Its mask would grow with the square."""
    begun = run_prefix(tiny_llama, tiny_llama.embed(torch.tensor(PREFIX)))
    found = list(plan_passes(tiny_llama, begun, [20] * 100, 10**6))
    assert max(map(len, found)) * 20 <= passes.pass_tokens(tiny_llama) < 2000


# --- what runs ---------------------------------------------------------------------------------------------


@contextmanager
def blocks_run(model: ChatModel) -> Iterator[list[int]]:
    names, ran = block_names(model)[1 : model.num_hidden_layers + 1], []
    hooks = [
        model.base_model.get_submodule(name).register_forward_hook(lambda *_, k=k: ran.append(k))
        for k, name in enumerate(names, start=1)
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("layers", "expected"), [((0,), set()), ((1,), {1}), ((0, 1), {1}), ((-1,), {1, 2})])
def test_no_block_above_the_highest_layer_runs(layers: Sequence[int], expected: set[int]) -> None:
    model = fresh()
    can_share_prefix(model)
    with blocks_run(model) as ran:
        states = hidden_states(model, QUERIES, CARE, layers=layers, progress=False)
    assert set(ran) == expected
    every = hidden_states(model, QUERIES, CARE, layers=(0, 1, 2), progress=False)
    for layer in layers:
        assert relative(states.matrix(layer), every.matrix(layer)) < 1e-6


def test_threads_may_read_one_model_at_different_layers() -> None:
    model, found = fresh(), {}
    expected = {
        layer: hidden_states(model, QUERIES, CARE, layers=(layer,), progress=False).values for layer in (0, 1, 2)
    }

    def read(layer: int) -> None:
        for _ in range(20):
            found[layer] = hidden_states(model, QUERIES, CARE, layers=(layer,), progress=False).values

    threads = [threading.Thread(target=read, args=(layer,)) for layer in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0, 1, 2}
    assert all(relative(found[layer], values) < 1e-5 for layer, values in expected.items())


# --- memory ------------------------------------------------------------------------------------------------


def test_a_pass_that_does_not_fit_is_divided_and_that_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    model = fresh()
    queries = queries_of([f"What is {number} and why?" for number in range(12)])
    expected = hidden_states(model, queries, CARE, progress=False)
    with memory_for(model, 130) as tried, caplog.at_level(logging.WARNING, logger="drolab"):
        found = hidden_states(model, queries, CARE, progress=False)
        n_refused = sum(size > 130 for size in tried)
        assert n_refused > 0
        hidden_states(model, queries, CARE, progress=False)
    assert relative(found.values, expected.values) < 1e-5
    assert found.index.attrs["summary"] == "all 12 chats computed now"
    assert sum(size > 130 for size in tried) == n_refused  # the second call did not try again
    assert "tokens at once from now on" in caplog.text


@pytest.mark.parametrize("n_tokens", [10, 60])  # not enough for the prefix; for the prefix, but for no suffix
def test_memory_for_not_even_one_chat(n_tokens: int) -> None:
    model, none = fresh(), SafetyPrompt(name="none", text="")
    queries = queries_of([f"{start} must one explain why the sea is blue and the sky as well?" for start in "ABCD"])
    can_share_prefix(model)
    with (
        memory_for(model, n_tokens) as tried,
        pytest.raises(ModelError, match="with a single chat: load it with dtype="),
    ):
        hidden_states(model, queries, none, progress=False)
    assert len(tried) == (1 if n_tokens == 10 else 4)  # the prefix, then four chats, two, one


def test_gradients_of_several_passes_meet(tiny_llama: ChatModel) -> None:
    """As if all had been one pass; and what one pass alone gives is not that."""
    prefix = tiny_llama.embed(torch.tensor(PREFIX))

    def gradient(parts: Sequence[Sequence[list[int]]]) -> Tensor:
        leaf = prefix.clone().requires_grad_()
        with accumulating_gradients(tiny_llama, leaf) as begun:
            for part in parts:
                forward_states(tiny_llama, begun, part)[..., :7].sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    whole = gradient([SUFFIXES])
    assert relative(gradient([SUFFIXES[:1], SUFFIXES[1:3], SUFFIXES[3:]]), whole) < 1e-5
    assert relative(gradient([SUFFIXES[:2]]), whole) > 1e-2


# --- prefix sharing is exact -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, *UNSHARED])
def test_states_and_gradients_equal_the_plain_computation(name: str) -> None:
    model = family(name)
    assert can_share_prefix(model) == (name in FAMILIES)
    expected, expected_gradient = with_gradient(model, plain)
    found, gradient = with_gradient(model, shared)
    for layer in range(len(LAYERS)):
        assert relative(found[:, :, layer], expected[:, :, layer]) < 1e-5
    assert relative(gradient, expected_gradient) < 1e-5
    # The control: what the prefix holds matters, and far more than the tolerance.
    other = shared(model, model.embed(torch.tensor(PREFIX[::-1])))
    assert relative(other[:, :, 1:], expected[:, :, 1:]) > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral, short window", "gemma2, short window"])
def test_eager_attention_is_exact_too(name: str) -> None:
    model = family(name, attention="eager")
    assert (
        relative(shared(model, model.embed(torch.tensor(PREFIX))), plain(model, model.embed(torch.tensor(PREFIX))))
        < 1e-5
    )


def test_windows_are_felt() -> None:
    """A control for the tests above: the short window changes the states, so it was really on."""
    one, other = family("mistral, short window"), family("mistral, long window")
    prefix = one.embed(torch.tensor(PREFIX))
    assert torch.equal(prefix, other.embed(torch.tensor(PREFIX)))
    assert relative(shared(one, prefix), shared(other, prefix)) > 1e-3


def test_no_prefix_at_all(tiny_llama: ChatModel) -> None:
    found = forward_states(tiny_llama, tiny_llama.embed(torch.tensor([], dtype=torch.long)), SUFFIXES)
    expected = [tiny_llama.base_model(torch.tensor([suffix])).last_hidden_state[0, -1] for suffix in SUFFIXES]
    assert relative(found[:, 0, 0], torch.stack(expected)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2, short window", "qwen2"])
def test_a_cache_can_be_used_again(name: str) -> None:
    model = family(name)
    prefix, suffix = model.embed(torch.tensor(PREFIX)), torch.tensor([SUFFIXES[0]] * 3)
    cache = prefix_cache(model, prefix)
    first = model.base_model(suffix, past_key_values=copy_cache(cache, 3)).last_hidden_state
    assert cache.get_seq_length() == len(PREFIX)
    again = model.base_model(suffix, past_key_values=copy_cache(cache, 3)).last_hidden_state
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    spoilt = model.base_model(suffix[:1], past_key_values=cache).last_hidden_state
    assert cache.get_seq_length() > len(PREFIX)  # the control: without the copy it is used up
    torch.testing.assert_close(spoilt, first[:1])


def test_sharing_is_tried_once_per_model() -> None:
    model = family("llama")
    assert model.model not in _abilities
    assert can_pack(model, 8)
    assert _abilities[model.model] == (True, True)


def test_positions_and_layers_that_are_not_there(tiny_llama: ChatModel) -> None:
    prefix = tiny_llama.embed(torch.tensor(PREFIX))
    with pytest.raises(StatesError, match=r"no layers \[3, -4\]: choose from 0 \(embeddings\) to 2, or -1"):
        forward_states(tiny_llama, prefix, SUFFIXES, layers=(1, 3, -4))
    with pytest.raises(StatesError, match=r"count from the end of the chat: pass -1, -2, …, not \[0\]"):
        forward_states(tiny_llama, prefix, SUFFIXES, positions=(0,))
    with pytest.raises(StatesError, match=r"Position -4 lies outside a suffix of 3 tokens: encode\(…, min_suffix=4\)"):
        forward_states(tiny_llama, prefix, SUFFIXES, positions=(-4,))


# --- soft prompts ------------------------------------------------------------------------------------------


def test_gradients_reach_the_soft_prompt_only_in_its_slots(tiny_llama: ChatModel) -> None:
    soft = as_soft(tiny_llama, CARE)
    batch = encode(tiny_llama, QUERIES.text.tolist(), soft)
    vectors = soft.embeddings.clone().requires_grad_()
    embedded = prefix_embeddings(tiny_llama, batch, vectors)
    assert torch.equal(embedded, prefix_embeddings(tiny_llama, batch))
    forward_states(tiny_llama, embedded, batch.suffixes).sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in tiny_llama.model.parameters())


def test_vectors_that_do_not_fit_the_slots(tiny_llama: ChatModel) -> None:
    short = SafetyPrompt(name="kind", text="Be kind.")
    batch = encode(tiny_llama, ["Hi."], as_soft(tiny_llama, short))
    with pytest.raises(PromptError, match=r"shape \[3, 32\], but the chats have 8 slots of width 32: encode"):
        prefix_embeddings(tiny_llama, batch, torch.zeros(3, 32))
    with pytest.raises(PromptError, match="the chats have 0 slots"):
        prefix_embeddings(tiny_llama, encode(tiny_llama, ["Hi."], short), torch.zeros(8, 32))
