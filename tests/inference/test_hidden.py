"""Hidden states: the paper's numbers, prefix sharing against the plain computation, the store, bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.families import CARE, NONE, QUERIES, as_soft, counted, family, fresh, queries_of, relative
from helpers.tiny import byte_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import drolab
from drolab import passes
from drolab.errors import PromptError, QueryError, StatesError
from drolab.inference import hidden_states
from drolab.models import ChatModel, can_share_prefix, encode, load_model, prompt_token_ids, render, wrap
from drolab.types import SafetyPrompt, SoftPrompt

KIND = SafetyPrompt(name="kind", text="Be kind.")


# --- the paper's numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("token_budget", "tolerance"), [(1, 2e-5), (None, 4e-5)])
def test_parity_with_the_papers_code(reference: Path, token_budget: int | None, tolerance: float) -> None:
    """One chat at a time, as that code ran, to the agreement that its README expects. Other orders of summation cost a
    little more: the numbers themselves are 6e-5 away from those in double precision."""
    folder = reference / "parity"
    model = load_model(folder / "model", chat_template="llama-2-chat", attn_implementation="eager")
    texts = {c: (folder / f"queries_{c}.txt").read_text().splitlines() for c in ("harmful", "harmless")}
    queries = queries_of([*texts["harmful"], *texts["harmless"]], [True] * 50 + [False] * 50)
    prompts = [NONE]
    for name, text in json.loads((folder / "prompts.json").read_text()).items():
        prompts.append(SafetyPrompt(name=name, text=text))
    assert can_share_prefix(model)
    states = hidden_states(model, queries, prompts, layers=(1, 2, 3), token_budget=token_budget, progress=False)
    for name, expected in load_file(folder / "states.safetensors").items():
        prompt, query_class = name.split(".")
        found = states.select(prompt=prompt, harmful=query_class == "harmful").values
        ulp = 2 * torch.finfo(torch.float32).eps * expected.abs()  # processors differ in how they sum
        assert ((found - expected).abs() < tolerance + ulp).all(), name
    other = states.select(prompt="short", harmful=True).values - states.select(prompt="none", harmful=True).values
    assert other.abs().max() > 1  # the prompts differ by far more than the tolerance


# --- soft prompts ------------------------------------------------------------------------------------------


def test_a_soft_prompt_of_the_texts_embeddings_gives_the_texts_states(tiny_llama: ChatModel) -> None:
    soft = as_soft(tiny_llama, CARE)
    states = hidden_states(tiny_llama, QUERIES, [CARE, soft, KIND], progress=False)
    text = states.select(prompt="care").values
    torch.testing.assert_close(states.select(prompt="soft care").values, text, rtol=0, atol=1e-5)
    assert relative(states.select(prompt="kind").values, text) > 1e-2


def test_a_soft_prompt_of_another_model(tiny_llama: ChatModel) -> None:
    other = SoftPrompt(name="foreign", embeddings=torch.zeros(2, 32), model_fingerprint="abc")
    with pytest.raises(PromptError, match="'foreign' was made for the model with fingerprint abc"):
        hidden_states(tiny_llama, QUERIES, other, progress=False)


# --- the table ---------------------------------------------------------------------------------------------


def test_rows_layers_and_positions(tiny_llama: ChatModel) -> None:
    states = hidden_states(tiny_llama, QUERIES, [NONE, CARE], layers=(-1, 0, 1), positions=(-2, -1), progress=False)
    assert states.values.shape == (2 * 6 * 2, 3, 32)
    assert (states.layers, states.num_hidden_layers) == ((2, 0, 1), 2)
    assert states.model_fingerprint == tiny_llama.fingerprint
    assert states.index.prompt.tolist() == ["none"] * 12 + ["care"] * 12
    assert states.index.query_id.tolist() == [name for name in QUERIES.index for _ in range(2)] * 2
    assert states.index.position.tolist() == [-2, -1] * 12
    assert states.index.harmful.dtype == bool
    row = states.index.query("query_id == 'q3' and prompt == 'care' and position == -2").index[0]
    ids = torch.tensor([render(tiny_llama, QUERIES.text["q3"], CARE).input_ids])
    expected = tiny_llama.model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(
        states.values[row], torch.stack([expected[k][0, -2] for k in (2, 0, 1)]), rtol=0, atol=1e-5
    )


def test_prompts_as_mapping_and_single(tiny_llama: ChatModel) -> None:
    named = hidden_states(tiny_llama, QUERIES, {"none": NONE, "mine": CARE}, progress=False)
    assert list(named.index.prompt.unique()) == ["none", "mine"]
    single = hidden_states(tiny_llama, QUERIES, CARE, progress=False)
    torch.testing.assert_close(single.values, named.select(prompt="mine").values, rtol=0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3000), st.permutations(list(QUERIES.index)))
def test_neither_batches_nor_order_matter(token_budget: int, order: list[str]) -> None:
    model = family("llama")
    expected = hidden_states(model, QUERIES, CARE, progress=False)
    found = hidden_states(model, QUERIES.loc[order], CARE, token_budget=token_budget, progress=False)
    rows = [order.index(name) for name in QUERIES.index]
    assert relative(found.values[rows], expected.values) < 1e-6


def test_the_token_budget_bounds_every_batch(tiny_llama: ChatModel) -> None:
    with counted(tiny_llama) as calls:
        hidden_states(tiny_llama, QUERIES, CARE, token_budget=100, progress=False)
    batch = encode(tiny_llama, QUERIES["text"].tolist(), CARE)
    assert calls[0] == (1, len(batch.prefix))
    assert sum(length for _, length in calls[1:]) == sum(map(len, batch.suffixes))  # each token once, no padding
    assert all(size == 1 and length <= 100 for size, length in calls[1:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_does_not_matter(tiny_llama: ChatModel, side: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = side
    model = wrap(random_llama(), tokenizer, name="m", chat_template="chatml")
    expected = hidden_states(tiny_llama, QUERIES, CARE, progress=False)
    torch.testing.assert_close(hidden_states(model, QUERIES, CARE, progress=False).values, expected.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype: torch.dtype, store: drolab.Store) -> None:
    model = wrap(random_llama().to(dtype), byte_tokenizer(), name="half", chat_template="chatml")
    states = hidden_states(model, QUERIES, [CARE, as_soft(model, KIND)], store=store, progress=False)
    assert states.values.dtype == dtype
    again = hidden_states(model, QUERIES, [CARE, as_soft(model, KIND)], store=store, progress=False)
    assert torch.equal(states.values, again.values)
    full = hidden_states(wrap(random_llama(), byte_tokenizer(), name="m", chat_template="chatml"), QUERIES, CARE)
    assert relative(states.select(prompt="care").values.float(), full.values) < 0.1


def test_a_family_that_cannot_share_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = family("falcon_mamba")
    with caplog.at_level(logging.INFO, logger="drolab"), counted(model) as calls:
        states = hidden_states(model, QUERIES, [NONE, CARE], progress=False)
    assert [record.getMessage() for record in caplog.records if record.name == "drolab.inference.hidden"] == [
        "'falcon_mamba' (falcon_mamba) cannot share a prefix between chats: plain batches, equal results, slower."
    ]
    assert sum(size for size, _ in calls) == 12  # every chat by itself
    for row, text in enumerate(QUERIES.text):
        ids = torch.tensor([render(model, text, CARE).input_ids])
        expected = model.base_model(ids).last_hidden_state[0, -1]
        assert relative(states.select(prompt="care").values[row, 0], expected) < 1e-5


# --- the store ---------------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing(tiny_llama: ChatModel, store: drolab.Store) -> None:
    with counted(tiny_llama) as calls:
        first = hidden_states(tiny_llama, QUERIES, [NONE, CARE], store=store, progress=False)
        assert len(calls) == 4  # a prefix and a batch for each prompt
        second = hidden_states(tiny_llama, QUERIES, [NONE, CARE], store=store, progress=False)
    assert len(calls) == 4
    assert torch.equal(first.values, second.values)
    assert first.index.attrs["summary"] == "all 12 chats computed now; next time they come from the store"
    assert second.index.attrs["summary"] == "all 12 chats found in the store"


def test_one_more_query_computes_one(tiny_llama: ChatModel, store: drolab.Store) -> None:
    hidden_states(tiny_llama, QUERIES.iloc[:5], [NONE, CARE], store=store, progress=False)
    with counted(tiny_llama) as calls:
        states = hidden_states(tiny_llama, QUERIES, [NONE, CARE], store=store, progress=False)
    assert [size for size, _ in calls] == [1, 1, 1, 1]
    assert states.index.attrs["summary"] == "10 of 12 chats found in the store, 2 computed now"
    expected = hidden_states(tiny_llama, QUERIES, [NONE, CARE], progress=False)
    torch.testing.assert_close(states.values, expected.values, rtol=0, atol=1e-5)


def test_another_layer_and_position_are_added(tiny_llama: ChatModel, store: drolab.Store) -> None:
    hidden_states(tiny_llama, QUERIES, CARE, store=store, progress=False)
    wider = {"layers": (0, 1, 2), "positions": (-1, -2)}
    states = hidden_states(tiny_llama, QUERIES, CARE, store=store, progress=False, **wider)
    assert states.index.attrs["summary"] == "all 6 chats computed now; next time they come from the store"
    expected = hidden_states(tiny_llama, QUERIES, CARE, progress=False, **wider)
    torch.testing.assert_close(states.values, expected.values, rtol=0, atol=1e-5)
    with counted(tiny_llama) as calls:
        again = hidden_states(tiny_llama, QUERIES, CARE, store=store, layers=(1,), positions=(-2,), progress=False)
    assert calls == []
    assert torch.equal(again.values, states.select(layer=1, position=-2).values)


def test_what_makes_another_entry(tiny_llama: ChatModel, store: drolab.Store) -> None:
    """Another model, prompt, soft prompt or attention: nothing is taken from what was stored before."""
    soft = as_soft(tiny_llama, CARE)
    nudged = SoftPrompt(name=soft.name, embeddings=soft.embeddings + 1e-3)
    eager = random_llama()
    eager.set_attn_implementation("eager")
    models = [
        tiny_llama,
        wrap(random_llama(seed=1), byte_tokenizer(), name="tiny-llama", chat_template="chatml"),
        wrap(random_llama(), byte_tokenizer(), name="tiny-llama", chat_template="vicuna"),
        wrap(eager, byte_tokenizer(), name="tiny-llama", chat_template="chatml"),
    ]
    asked = [(model, CARE) for model in models] + [(tiny_llama, KIND), (tiny_llama, soft), (tiny_llama, nudged)]
    for model, prompt in asked:
        states = hidden_states(model, QUERIES, prompt, store=store, progress=False)
        assert states.index.attrs["summary"] == "all 6 chats computed now; next time they come from the store", (
            model,
            prompt,
        )


def test_names_make_no_difference_to_the_store(tiny_llama: ChatModel, store: drolab.Store) -> None:
    hidden_states(tiny_llama, QUERIES, CARE, store=store, progress=False)
    renamed = QUERIES.assign(query_id=[f"other-{name}" for name in QUERIES.index]).set_index("query_id", drop=False)
    states = hidden_states(tiny_llama, renamed, {"mine": CARE}, store=store, progress=False)
    assert states.index.attrs["summary"] == "all 6 chats found in the store"


def test_an_interrupted_run_resumes(tiny_llama: ChatModel, store: drolab.Store) -> None:
    options = {"store": store, "token_budget": 1, "progress": False}
    again = r"4 of 6 chats are in the store: run the same call again to go on\."
    with counted(tiny_llama, interrupt_at=6), pytest.raises(KeyboardInterrupt, match=again):
        hidden_states(tiny_llama, QUERIES, CARE, **options)
    with counted(tiny_llama) as calls:
        states = hidden_states(tiny_llama, QUERIES, CARE, **options)
    assert len(calls) == 1 + 2
    assert states.index.attrs["summary"] == "4 of 6 chats found in the store, 2 computed now"


def test_an_interruption_without_a_store_says_what_is_lost(tiny_llama: ChatModel) -> None:
    with counted(tiny_llama, interrupt_at=3), pytest.raises(KeyboardInterrupt, match=r"1 of 6 .* pass store="):
        hidden_states(tiny_llama, QUERIES, CARE, token_budget=1, progress=False)


def test_states_that_are_not_finite_are_not_kept(store: drolab.Store) -> None:
    model = wrap(random_llama(), byte_tokenizer(), name="broken", chat_template="chatml")
    can_share_prefix(model)
    (letter,) = prompt_token_ids(model, "W")
    model.model.model.embed_tokens.weight[letter] = float("nan")  # "Why?" and "Where is it?"
    match = "query 'q4' under prompt 'care' are not finite .float32.: load the model with dtype='bfloat16'"
    with pytest.raises(StatesError, match=match):
        hidden_states(model, QUERIES, CARE, store=store, progress=False)
    kept = hidden_states(model, QUERIES.drop(["q2", "q4"]), CARE, store=store, progress=False)
    assert kept.index.attrs["summary"] == "all 4 chats found in the store"
    with pytest.raises(StatesError, match="query 'q2'"):
        hidden_states(model, QUERIES.drop("q4"), CARE, store=store, progress=False)


# --- bad input ---------------------------------------------------------------------------------------------


def test_bad_input(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError, match="load_queries"):
        hidden_states(tiny_llama, QUERIES.drop(columns="harmful"), CARE)
    with pytest.raises(PromptError, match="No prompts given"):
        hidden_states(tiny_llama, QUERIES, [])
    with pytest.raises(StatesError, match="token_budget must be at least 1, got 0"):
        hidden_states(tiny_llama, QUERIES, CARE, token_budget=0)
    with pytest.raises(StatesError, match=r"pass -1, -2, …, not \[3\]"):
        hidden_states(tiny_llama, QUERIES, CARE, positions=(3,))
    with pytest.raises(StatesError, match=r"no layers \[7\]"):
        hidden_states(tiny_llama, QUERIES, CARE, layers=(7,))
    with pytest.raises(StatesError, match=r"A chat has only .* tokens: ask for positions from"):
        hidden_states(tiny_llama, QUERIES, CARE, positions=(-500,))


def test_the_bar_says_what_was_computed(tiny_llama: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    hidden_states(tiny_llama, QUERIES, CARE)
    assert "0 from the store, 6 computed" in capsys.readouterr().err
    hidden_states(tiny_llama, QUERIES, CARE, progress=False)
    assert capsys.readouterr().err == ""


# --- beginnings that prompts share -------------------------------------------------------------------------


LONG = "You are a careful assistant who weighs every word and never helps anybody to do harm to others. "


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
