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
    PREFIX,
    QUERIES,
    SUFFIXES,
    counted,
    family,
    plain,
    queries_of,
    relative,
    shared,
)
from helpers.memory import memory_for
from helpers.tiny import byte_tokenizer, random_llama
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import drolab
from drolab import passes
from drolab.errors import ModelError
from drolab.inference import hidden_states
from drolab.models import (
    ChatModel,
    accumulating_gradients,
    block_names,
    can_share_prefix,
    forward_states,
    plan_passes,
    run_prefix,
    wrap,
)
from drolab.models.passes import can_pack
from drolab.types import SafetyPrompt

LONG = "You are a careful assistant who weighs every word and never helps anybody to do harm to others. "


def fresh(seed: int = 0) -> ChatModel:
    """A model of its own: what is remembered about memory is remembered per model."""
    return wrap(random_llama(seed=seed), byte_tokenizer(), name="small", chat_template="chatml")


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


def test_prompts_share_what_they_begin_with() -> None:
    model = fresh()
    prompts = [SafetyPrompt(name=str(n), text=LONG + end) for n, end in enumerate(["", "Be kind.", "Be kind. Please."])]
    with counted(model) as calls:
        states = hidden_states(model, QUERIES, prompts, progress=False)
    prefixes = [len(passes.prefix_embeddings(model, drolab.chat.encode(model, ["Why?"], p))) for p in prompts]
    ran = sum(rows * length for rows, length in calls)
    alone = 0
    for prompt in prompts:
        with counted(model) as calls:
            expected = hidden_states(model, QUERIES, prompt, progress=False)
        assert relative(states.select(prompt=prompt.name).values, expected.values) < 1e-5
        alone += sum(rows * length for rows, length in calls)
    assert alone - ran >= 2 * len(LONG)  # a token is a byte: the beginning ran once instead of three times
    assert min(prefixes) > len(LONG)


def test_prompts_that_share_little_run_by_themselves() -> None:
    model = fresh()
    with counted(model) as calls:
        hidden_states(model, QUERIES, [CARE, SafetyPrompt(name="kind", text="Do it.")], progress=False)
    assert len(calls) == 4  # two prefixes, each followed by one pass


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
    assert found.index.attrs["summary"] == "0 hits, 12 computed"
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
