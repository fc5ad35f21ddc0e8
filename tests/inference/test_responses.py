"""Responses: equal to transformers' own decoding, samples from the right distribution, kept and resumed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.replies import CAREFUL, FAMILIES, NONE, QUERIES, greedy_by_transformers, queries, small, texts, writer
from helpers.tiny import byte_tokenizer, random_llama

from drolab.errors import PromptError, QueryError, StatesError
from drolab.inference import generate, responses
from drolab.models import ChatModel, encode, kv_cache, prompt_token_ids, wrap
from drolab.store import Store
from drolab.types import RESPONSE_COLUMNS, SoftPrompt


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ChatModel:
    return writer(request.param)


# Equal to transformers


def test_greedy_replies_equal_those_of_transformers(family: ChatModel) -> None:
    table = generate(family, QUERIES, [NONE, CAREFUL], n_samples=1, do_sample=False, max_new_tokens=24, progress=False)
    assert tuple(table.columns) == RESPONSE_COLUMNS
    assert list(table.prompt) == ["none"] * 5 + ["careful"] * 5
    for row in table.itertuples():
        written = greedy_by_transformers(family, row.text, NONE if row.prompt == "none" else CAREFUL)
        assert row.response == family.tokenizer.decode(written, skip_special_tokens=True)
        assert row.first_token == written[0]
        assert row.n_tokens == len(written)
        assert row.finish_reason == ("stop" if written[-1] == 2 else "length")


def test_without_a_shared_prefix_replies_are_equal(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = small(tiny_llama, QUERIES, [NONE, CAREFUL])
    monkeypatch.setattr(kv_cache, "can_share_prefix", lambda _: False)
    assert small(tiny_llama, QUERIES, [NONE, CAREFUL]).equals(shared)


# A reply depends on nothing but its chat, the settings and its number


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batch_size_changes_nothing(tiny_llama: ChatModel, batch_size: int) -> None:
    assert small(tiny_llama, QUERIES, [NONE, CAREFUL], batch_size=batch_size).equals(
        small(tiny_llama, QUERIES, [NONE, CAREFUL])
    )


@pytest.mark.parametrize("n_samples", [1, 8])
def test_what_is_written_at_once_fits_with_its_chats(
    tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch, n_samples: int
) -> None:
    sizes: list[tuple[int, int]] = []
    decode, asked = responses.decode, queries(*(f"How do I do thing {i}?" for i in range(40)))

    def watched(reader: Any, suffixes: Any, rows: torch.Tensor, *rest: Any) -> Any:
        sizes.append((len(suffixes), len(rows)))
        return decode(reader, suffixes, rows, *rest)

    monkeypatch.setattr(responses, "decode", watched)
    monkeypatch.setattr(responses, "_FEWEST", 1)
    monkeypatch.setattr(responses, "_BYTES", 400_000)
    small(tiny_llama, asked, NONE, n_samples=n_samples)
    longest = max(map(len, encode(tiny_llama, asked["text"].tolist(), NONE).suffixes))
    config = tiny_llama.model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    kept = [chats * longest * token + rows * (6 * token + 12 * len(tiny_llama.tokenizer)) for chats, rows in sizes]
    assert len(sizes) > 1
    cut = 2 * longest * token  # of the first chat and the last there may be a part only
    assert 200_000 < max(kept) <= 400_000 + cut


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # which copies the prompt for each row
def test_no_more_are_written_at_once_than_half_the_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    model, sizes, decode = (
        wrap(random_llama(), byte_tokenizer(), name="m", chat_template="chatml"),
        [],
        responses.decode,
    )
    model.model.set_attn_implementation(attention)
    asked = queries(*(f"How do I do thing {i}?" for i in range(10, 50)))
    whole = small(model, asked, NONE)

    def watched(reader: Any, suffixes: Any, rows: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(rows))
        return decode(reader, suffixes, rows, *rest)

    monkeypatch.setattr(responses, "decode", watched)
    monkeypatch.setattr(responses, "free_memory", lambda _: 400_000)
    assert texts(small(model, asked, NONE)) == texts(whole)
    assert 1 < max(sizes) < 40
    monkeypatch.setattr(responses, "free_memory", lambda _: None)
    small(model, asked, NONE)
    assert sizes[-1] >= 80


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


# The store


def test_a_second_call_generates_nothing(tiny_llama: ChatModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(tiny_llama, QUERIES, [NONE, CAREFUL], store=store)
    assert first.attrs["summary"] == "all 40 replies computed now; next time they come from the store"
    assert first.equals(small(tiny_llama, QUERIES, [NONE, CAREFUL]))
    more = small(tiny_llama, QUERIES, [NONE, CAREFUL], store=store, n_samples=6)
    assert more.attrs["summary"] == "40 of 60 replies found in the store, 20 computed now"
    assert more.equals(small(tiny_llama, QUERIES, [NONE, CAREFUL], n_samples=6))

    def forbidden(*_: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(responses, "reader_for", forbidden)
    again = small(tiny_llama, QUERIES[::-1], {"renamed": CAREFUL}, store=Store(store.folder), n_samples=5)
    assert again.attrs["summary"] == "all 25 replies found in the store"
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
    assert resumed.attrs["summary"] == "12 of 20 replies found in the store, 8 computed now"
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
    assert again.attrs["summary"] == "16 of 20 replies found in the store, 4 computed now"
    assert again.equals(first)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0: leave it out"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0: do_sample=False is greedy"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, got 0\.0: 1 keeps every token"),
        ({"top_p": 1.1}, r"top_p must be above 0 and at most 1, got 1\.1"),
        ({"top_k": -1}, "top_k must not be below 0, got -1: 0 keeps every token"),
        ({"do_sample": False}, r"n_samples=4 makes no sense: pass n_samples=1 with do_sample=False"),
        ({"max_new_tokens": 600}, r"leaves room for \d+ of 600 new tokens .* pass a smaller max_new_tokens"),
    ],
)
def test_settings_out_of_range(tiny_llama: ChatModel, settings: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        small(tiny_llama, QUERIES, NONE, **settings)


def test_no_queries_and_no_prompts(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError):
        small(tiny_llama, QUERIES[:0], NONE)
    with pytest.raises(PromptError, match="No prompts given"):
        small(tiny_llama, QUERIES, [])


def test_logits_that_are_not_numbers() -> None:
    model = random_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    broken = wrap(model, byte_tokenizer(), name="broken", chat_template="chatml")
    with pytest.raises(StatesError, match=r"computes logits that are not numbers \(float32\): load it with dtype="):
        small(broken, QUERIES, NONE)
