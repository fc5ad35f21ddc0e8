"""Responses: equal to transformers' own decoding, samples from the right distribution, kept and resumed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from scipy import stats
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from drolab.errors import PromptError, QueryError, StatesError
from drolab.inference import first_token_probabilities, generate, responses, sampling
from drolab.models import ChatModel, kv_cache, prompt_token_ids, render, wrap
from drolab.store import Store
from drolab.types import RESPONSE_COLUMNS, SafetyPrompt, SoftPrompt

NONE = SafetyPrompt(name="none", text="")
CAREFUL = SafetyPrompt(name="careful", text="Be careful.")
SHAPE = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.25}
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": random_llama,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**WIDTH, **SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**WIDTH, **SHAPE, num_key_value_heads=2, sliding_window=48)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **SHAPE)),
}


def queries(*texts: str) -> pd.DataFrame:
    ids = [f"q{number}" for number in range(len(texts))]
    table = pd.DataFrame({"query_id": ids, "text": texts, "harmful": [n % 2 == 1 for n in range(len(texts))]})
    return table.assign(category="any", split="test", source="test").set_axis(ids)


QUERIES = queries("How to boil an egg?", "How to sing?", "How to plan a trip?", "How to swim?", "What?")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ChatModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FAMILIES[request.param]()
    return wrap(model, byte_tokenizer(), name=request.param, chat_template="chatml")


def texts(table: pd.DataFrame) -> dict[tuple[str, str, int], str]:
    index = zip(table.query_id, table.prompt, table["sample"], strict=True)
    return dict(zip(index, table.response, strict=True))


def small(model: ChatModel, table: pd.DataFrame, prompts: object, **settings: object) -> pd.DataFrame:
    given = {"n_samples": 4, "max_new_tokens": 6, "progress": False, **settings}
    return generate(model, table, prompts, **given)  # type: ignore[arg-type]


# Equal to transformers


def test_greedy_replies_equal_those_of_transformers(family: ChatModel) -> None:
    table = generate(family, QUERIES, [NONE, CAREFUL], n_samples=1, do_sample=False, max_new_tokens=24, progress=False)
    assert tuple(table.columns) == RESPONSE_COLUMNS
    assert list(table.prompt) == ["none"] * 5 + ["careful"] * 5
    for row in table.itertuples():
        prompt = NONE if row.prompt == "none" else CAREFUL
        ids = torch.tensor([render(family, row.text, prompt).input_ids])
        written = family.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )[0, ids.shape[1] :]
        assert row.response == family.tokenizer.decode(written, skip_special_tokens=True)
        assert row.first_token == written[0]
        assert row.n_tokens == len(written)
        assert row.finish_reason == ("stop" if written[-1] == 2 else "length")


def test_without_a_shared_prefix_replies_are_equal(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = small(tiny_llama, QUERIES, [NONE, CAREFUL])
    monkeypatch.setattr(kv_cache, "can_share_prefix", lambda _: False)
    assert small(tiny_llama, QUERIES, [NONE, CAREFUL]).equals(shared)


def test_first_token_probabilities_equal_the_plain_ones(family: ChatModel) -> None:
    index, probabilities = first_token_probabilities(family, QUERIES, [NONE, CAREFUL], token_budget=100)
    assert list(index.columns) == ["query_id", "prompt", "harmful"]
    assert list(index.query_id) == [*QUERIES.query_id] * 2
    assert probabilities.dtype == torch.float32
    for row, (text, prompt) in enumerate((text, prompt) for prompt in (NONE, CAREFUL) for text in QUERIES.text):
        ids = torch.tensor([render(family, text, prompt).input_ids])
        with torch.no_grad():
            plain = family.model(ids).logits[0, -1].softmax(dim=-1)
        torch.testing.assert_close(probabilities[row], plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(probabilities[0], probabilities[1], atol=1e-3)


# The distribution


def exact(model: ChatModel, ids: list[int], temperature: float, top_p: float) -> Tensor:
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[:, -1]
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))
    return warped.softmax(dim=-1)[0].double()


def p_value(tokens: pd.Series, probabilities: Tensor) -> float:
    counts = np.bincount(tokens, minlength=len(probabilities)).astype(float)
    expected = (probabilities / probabilities.sum()).numpy() * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    large = expected >= 5
    parts = [np.append(part[large], part[~large].sum()) for part in (counts, expected)]
    filled = parts[1] > 0
    return float(stats.chisquare(parts[0][filled], parts[1][filled]).pvalue)


@pytest.mark.parametrize("settings", [(1.0, 0.9), (0.7, 0.6), (1.5, 1.0)], ids=str)
def test_samples_follow_the_exact_distribution(tiny_llama: ChatModel, settings: tuple[float, float]) -> None:
    temperature, top_p = settings
    table = small(
        tiny_llama, QUERIES[:1], NONE, n_samples=4000, max_new_tokens=1, temperature=temperature, top_p=top_p, seed=3
    )
    ids = list(render(tiny_llama, QUERIES.text.iloc[0], NONE).input_ids)
    assert p_value(table.first_token, exact(tiny_llama, ids, temperature, top_p)) > 0.01
    for wrong in ((temperature * 1.3, top_p), (temperature, top_p - 0.25)):
        assert p_value(table.first_token, exact(tiny_llama, ids, *wrong)) < 1e-4


def test_second_tokens_follow_the_exact_distribution(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples part at the first token: each must go on from its own."""
    written: list[list[int]] = []
    decode = sampling.decode
    monkeypatch.setattr(responses, "decode", lambda *given: written.extend(found := decode(*given)) or found)
    small(tiny_llama, QUERIES[:1], NONE, n_samples=4000, max_new_tokens=2, top_p=0.5, seed=5)
    ids = list(render(tiny_llama, QUERIES.text.iloc[0], NONE).input_ids)
    firsts = exact(tiny_llama, ids, 1.0, 0.5)
    joint = torch.zeros(260, 260, dtype=torch.float64)
    for token in firsts.nonzero().flatten().tolist():
        joint[token] = firsts[token] * exact(tiny_llama, [*ids, token], 1.0, 0.5)
    pairs = pd.Series([first * 260 + second for first, second in written])
    assert p_value(pairs, joint.flatten()) > 0.01
    independent = joint.sum(dim=1)[:, None] * joint.sum(dim=0)
    assert p_value(pairs, independent.flatten()) < 1e-4


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_the_short_ranking_picks_what_the_full_one_does(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(50, 400, generator=generator)).bfloat16().float()  # bfloat16: many equal logits
    rows = torch.randint(0, 50, (3000,), generator=generator)
    uniforms = torch.rand(3000, generator=generator, dtype=torch.float64)
    settings = sampling.Settings(n_samples=1, max_new_tokens=1, do_sample=True, temperature=1, top_p=top_p, seed=0)
    short = sampling._pick(logits, rows, uniforms, settings)
    monkeypatch.setattr(sampling, "_FEW", 10_000)
    assert torch.equal(short, sampling._pick(logits, rows, uniforms, settings))


def test_the_ends_of_the_unit_interval_pick_possible_tokens() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 3.0, 1.0]] * 300)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64).repeat(300)
    rows = torch.arange(300).repeat_interleave(2)
    settings = sampling.Settings(n_samples=1, max_new_tokens=1, do_sample=True, temperature=1, top_p=1, seed=0)
    picked = sampling._pick(logits, rows, ends, settings).reshape(300, 2)
    assert (picked == torch.tensor([2, 0])).all()


# A reply depends on nothing but its chat, the settings and its number


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_changes_nothing(tiny_llama: ChatModel, batch_size: int) -> None:
    assert small(tiny_llama, QUERIES, [NONE, CAREFUL], batch_size=batch_size).equals(
        small(tiny_llama, QUERIES, [NONE, CAREFUL])
    )


def test_order_and_the_other_queries_change_nothing(tiny_llama: ChatModel) -> None:
    all_texts = texts(small(tiny_llama, QUERIES, [NONE, CAREFUL]))
    assert texts(small(tiny_llama, QUERIES[::-1], [CAREFUL, NONE])) == all_texts
    alone = texts(small(tiny_llama, QUERIES[2:3], CAREFUL))
    assert alone.items() <= all_texts.items()
    longer = small(tiny_llama, QUERIES, [NONE, CAREFUL], max_new_tokens=9)
    longer_texts = texts(longer)
    assert all(longer_texts[place].startswith(text.rstrip("\ufffd")) for place, text in all_texts.items())


def test_seeds_samples_and_prompts_differ(tiny_llama: ChatModel) -> None:
    first = small(tiny_llama, QUERIES, [NONE, CAREFUL])
    assert not small(tiny_llama, QUERIES, [NONE, CAREFUL], seed=1).response.equals(first.response)
    assert first.response.nunique() > len(first) / 2
    assert (first.groupby(["query_id", "prompt"]).response.nunique() > 1).all()


def test_soft_prompt_of_a_texts_own_embeddings_gives_its_replies(tiny_llama: ChatModel) -> None:
    ids = torch.tensor(prompt_token_ids(tiny_llama, CAREFUL.text))
    soft = SoftPrompt(name="careful", embeddings=tiny_llama.embed(ids).float(), init_text=CAREFUL.text)
    greedy = {"n_samples": 1, "do_sample": False, "max_new_tokens": 16}
    by_text = small(tiny_llama, QUERIES, CAREFUL, **greedy)
    assert small(tiny_llama, QUERIES, soft, **greedy).equals(by_text)
    moved = SoftPrompt(name="careful", embeddings=soft.embeddings + 1)
    assert not small(tiny_llama, QUERIES, moved, **greedy).equals(by_text)


def test_every_end_token_ends_a_reply(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"n_samples": 20, "max_new_tokens": 8}
    plain = small(tiny_llama, QUERIES, NONE, **settings)
    stop = int(plain.first_token.mode()[0])
    monkeypatch.setattr(tiny_llama.model.generation_config, "eos_token_id", [2, stop])
    ended = small(tiny_llama, QUERIES, NONE, **settings)
    at_once = ended[ended.first_token == stop]
    assert len(at_once) > 0
    assert (at_once.response == "").all()
    assert (at_once.n_tokens == 1).all()
    assert (at_once.finish_reason == "stop").all()
    assert (ended.n_tokens[ended.finish_reason == "length"] == 8).all()
    assert ended.first_token.equals(plain.first_token)


def test_hostile_queries_pass_through(tiny_llama: ChatModel) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "</s><s>",
        "\0\x07",
        "{{ 7 * 7 }}",
        "../../x",
        "🙂\u202e\u2028",
        "<|im_end|>",
    ]
    table = small(tiny_llama, queries(*hostile), CAREFUL)
    assert list(table.text.unique()) == hostile
    assert table.response.map(lambda value: isinstance(value, str)).all()


# Ends


def test_a_stop_string_ends_the_reply_that_is_otherwise_the_same(tiny_llama: ChatModel) -> None:
    """Cutting while writing gives what cutting afterwards gives, and writes less."""
    whole = small(tiny_llama, QUERIES, [NONE, CAREFUL], max_new_tokens=40)
    letters = pd.Series([letter for letter in "".join(whole.response) if letter.isascii()]).value_counts()
    stops = [letters.index[0], letters.index[5] + letters.index[1], "never said"]
    cut = small(tiny_llama, QUERIES, [NONE, CAREFUL], max_new_tokens=40, stop_strings=stops)
    assert not cut.response.equals(whole.response)
    for before, after in zip(whole.itertuples(), cut.itertuples(), strict=True):
        places = [place for stop in stops if (place := before.response.find(stop)) >= 0]
        assert after.response == before.response[: min(places, default=None)]
        assert after.n_tokens <= before.n_tokens
        assert after.finish_reason == ("stop" if places else before.finish_reason)
    assert cut.n_tokens.sum() < whole.n_tokens.sum()


def test_a_stop_string_is_where_transformers_stops(tiny_llama: ChatModel) -> None:
    whole = generate(tiny_llama, QUERIES, NONE, n_samples=1, do_sample=False, max_new_tokens=24, progress=False)
    place, stop = next(
        (place, letter)
        for place, text in enumerate(whole.response)
        for letter in text[1:]
        if letter.isascii() and letter.isalnum()
    )
    cut = generate(
        tiny_llama, QUERIES, NONE, n_samples=1, do_sample=False, max_new_tokens=24, stop_strings=stop, progress=False
    )
    row = cut.iloc[place]
    ids = torch.tensor([render(tiny_llama, row.text, NONE).input_ids])
    written = tiny_llama.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=24,
        pad_token_id=0,
        stop_strings=[stop],
        tokenizer=tiny_llama.tokenizer,
    )[0, ids.shape[1] :]
    assert row.n_tokens == len(written)
    assert tiny_llama.tokenizer.decode(written, skip_special_tokens=True).startswith(row.response + stop)


def test_no_reply_is_shorter_than_min_new_tokens(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "stop_ids", lambda _: set(range(2, 60)))  # ends that come soon
    short = small(tiny_llama, QUERIES, NONE, n_samples=20, max_new_tokens=12)
    assert (short.n_tokens < 5).any()
    long = small(tiny_llama, QUERIES, NONE, n_samples=20, max_new_tokens=12, min_new_tokens=5)
    assert (long.n_tokens >= 5).all()
    assert (long.finish_reason == "stop").any()


# The store


def test_a_second_call_generates_nothing(tiny_llama: ChatModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(tiny_llama, QUERIES, [NONE, CAREFUL], store=store)
    assert first.attrs["summary"] == "0 hits, 40 computed"
    assert first.equals(small(tiny_llama, QUERIES, [NONE, CAREFUL]))
    more = small(tiny_llama, QUERIES, [NONE, CAREFUL], store=store, n_samples=6)
    assert more.attrs["summary"] == "40 hits, 20 computed"
    assert more.equals(small(tiny_llama, QUERIES, [NONE, CAREFUL], n_samples=6))

    def forbidden(*_: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(responses, "reader_for", forbidden)
    again = small(tiny_llama, QUERIES[::-1], {"renamed": CAREFUL}, store=Store(store.folder), n_samples=5)
    assert again.attrs["summary"] == "25 hits, 0 computed"
    assert set(again.prompt) == {"renamed"}
    for changed in ({"seed": 1}, {"top_p": 0.8}, {"temperature": 0.9}, {"max_new_tokens": 7}):
        with pytest.raises(AssertionError, match="the model ran"):
            small(tiny_llama, QUERIES, NONE, store=store, **changed)


def test_an_interrupted_run_goes_on(tiny_llama: ChatModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = responses._compute

    def interrupted(*given: object) -> Iterator[object]:
        for number, replies in enumerate(compute(*given)):  # type: ignore[arg-type]
            yield replies
            if number == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(responses, "_compute", interrupted)
        with pytest.raises(KeyboardInterrupt, match="12 of 20 replies are in the store: run the same call again"):
            small(tiny_llama, QUERIES, NONE, store=store, batch_size=4)
        with pytest.raises(KeyboardInterrupt, match=r"12 of 20 replies were done and none is kept: pass store="):
            small(tiny_llama, QUERIES, NONE, batch_size=4)
    resumed = small(tiny_llama, QUERIES, NONE, store=store)
    assert resumed.attrs["summary"] == "12 hits, 8 computed"
    assert resumed.equals(small(tiny_llama, QUERIES, NONE))


def test_killed_at_any_moment_it_goes_on_and_pays_nothing_twice(tiny_llama: ChatModel, tmp_path: Path) -> None:
    """Ten times kill -9, each time within the first batches; then a last run to the end."""
    batch, asked = 8, queries(*(f"{text} ({i})" for text in QUERIES.text for i in range(8)))
    paid, write = tmp_path / "paid", responses._write
    moments = random.Random(0)

    def run() -> pd.DataFrame:
        def written(model: ChatModel, reader: object, task: object, pairs: list[tuple[int, int]]) -> object:
            with paid.open("a") as log:
                log.write(f"{len(pairs)}\n")
            return write(model, reader, task, pairs)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(responses, "_write", written)
            store = Store(tmp_path / "store")
            return small(tiny_llama, asked, [NONE, CAREFUL], store=store, batch_size=batch, max_new_tokens=24)

    fork = multiprocessing.get_context("fork")
    for _ in range(10):
        begun = len(paid.read_text()) if paid.exists() else 0
        child = fork.Process(target=run)
        child.start()
        while child.is_alive() and (not paid.exists() or len(paid.read_text()) < begun + 2 * moments.randint(1, 3)):
            time.sleep(0.001)
        time.sleep(moments.random() * 0.03)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    killed = sum(map(int, paid.read_text().split()))
    table = run()
    assert table.equals(small(tiny_llama, asked, [NONE, CAREFUL], max_new_tokens=24))
    assert 0 < killed < len(table)
    assert len(table) <= sum(map(int, paid.read_text().split())) <= len(table) + 10 * batch


def test_a_damaged_store_file_is_generated_again(tiny_llama: ChatModel, store: Store) -> None:
    first = small(tiny_llama, QUERIES, NONE, store=store, batch_size=4)
    files = sorted((store.folder / "v2" / "texts").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-4])
    again = small(tiny_llama, QUERIES, NONE, store=Store(store.folder), batch_size=4)
    assert again.attrs["summary"] == "16 hits, 4 computed"
    assert again.equals(first)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0: the default is 128"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0: do_sample=False is greedy"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0: 1 keeps every token"),
        ({"top_p": 1.1}, r"top_p must be above 0 and at most 1, got 1\.1"),
        ({"do_sample": False}, r"n_samples=4 makes no sense: pass n_samples=1 with do_sample=False"),
        ({"max_new_tokens": 600}, r"leaves room for \d+ of 600 new tokens .* pass a smaller max_new_tokens"),
    ],
)
def test_settings_out_of_range(tiny_llama: ChatModel, settings: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        small(tiny_llama, QUERIES, NONE, **settings)


def test_no_queries_no_prompts_and_a_budget_of_nothing(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError):
        small(tiny_llama, QUERIES[:0], NONE)
    with pytest.raises(PromptError, match="No prompts given"):
        small(tiny_llama, QUERIES, [])
    with pytest.raises(QueryError, match="token_budget must be at least 1, got 0"):
        first_token_probabilities(tiny_llama, QUERIES, NONE, token_budget=0)


def test_logits_that_are_not_numbers() -> None:
    model = random_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    broken = wrap(model, byte_tokenizer(), name="broken", chat_template="chatml")
    with pytest.raises(StatesError, match=r"computes logits that are not numbers \(float32\): load it with dtype="):
        small(broken, QUERIES, NONE)
