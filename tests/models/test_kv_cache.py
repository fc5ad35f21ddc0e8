"""Decoding: rows that share what is not theirs give the logits of whole chats, or are not used."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import pandas as pd
import pytest
import torch
from helpers.families import CARE, FAMILIES, NONE, PREFIX, UNSHARED, family, fresh, queries_of, relative
from helpers.tiny import byte_tokenizer, random_llama
from torch import Tensor

from drolab.inference import first_token_probabilities, generate
from drolab.models import Add, ChatModel, kv_cache, prefix_cache, prompt_token_ids, steered, wrap
from drolab.models.kv_cache import _InPlaceReader, _Keys, _Layer, _Rows, can_read_in_place
from drolab.types import SoftPrompt

QUERIES = queries_of(["How to paint?", "How to paint a fence?", "Why?", "How to cook rice well?", "So?"])
CHATS = [[10, 11, 12], [13, 14, 15, 16, 17, 18, 19], [20], [21, 22, 23]]
IN_PLACE = [name for name in FAMILIES if "short window" not in name and "gemma2" not in name]


def reader(model: ChatModel, prefix: Sequence[int] = PREFIX) -> _InPlaceReader:
    embedded = model.embed(torch.tensor(prefix, dtype=torch.long))
    return _InPlaceReader(model, embedded, prefix_cache(model, embedded))


def whole(model: ChatModel, chats: Sequence[Sequence[int]], prefix: Sequence[int] = PREFIX) -> Tensor:
    """Logits after whole chats, one at a time, nothing kept."""
    return torch.cat([model.model(torch.tensor([[*prefix, *chat]]), use_cache=False).logits[:, -1] for chat in chats])


def replies(model: ChatModel, prompts: object = (NONE, CARE), **settings: object) -> pd.DataFrame:
    given = {"n_samples": 6, "max_new_tokens": 24, "progress": False, **settings}
    return generate(model, QUERIES, prompts, **given)  # type: ignore[arg-type]


def same(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    """All replies but the odd one: tokens of almost equal probability may change places by a rounding error."""
    return bool((table.response == other.response).mean() > 0.95)


# --- equal to whole chats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, *UNSHARED])
def test_which_families_share(name: str) -> None:
    """All but those with a window shorter than the trial, with eager attention (gemma2's caps), or recurrent."""
    assert can_read_in_place(family(name), 19) == (name in IN_PLACE)


@pytest.mark.parametrize("name", IN_PLACE)
@torch.no_grad()
def test_rows_that_part_and_end_read_as_whole_chats(name: str) -> None:
    """Chats of unequal length in one batch, rows in any order, and more steps than the buffers have room for."""
    model, draw = family(name), random.Random(0)
    read, chats = reader(model), [list(chat) for chat in CHATS]
    assert relative(read.start(chats), whole(model, chats)) < 1e-5
    n_steps = 2 * kv_cache._ROOM + 3
    for step in range(n_steps):
        if step < 3:
            parents = [row for row in range(len(chats)) for _ in range(draw.randint(1, 2))]
        elif step % 7 == 0:
            parents = draw.sample(range(len(chats)), max(3, len(chats) - 2))  # some end, the others change places
        else:
            parents = list(range(len(chats)))
        tokens = [draw.randrange(4, 260) for _ in parents]
        chats = [[*chats[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        found = read.step(torch.tensor(parents), torch.tensor(tokens))
        if step % 7 == 0 or step == n_steps - 1:
            assert relative(found, whole(model, chats)) < 1e-5
    for layer in read._layers:  # what is kept per row is what it has written
        keys, _ = layer._own or (None, None)
        assert keys is not None
        assert keys.shape[0] == len(chats)
        assert n_steps <= keys.shape[2] < n_steps + kv_cache._ROOM


@torch.no_grad()
def test_chats_that_share_no_beginning() -> None:
    model, chats = fresh(), [list(chat) for chat in CHATS]
    read = reader(model, [])
    assert relative(read.start(chats), whole(model, chats, [])) < 1e-5
    chats = [[*chats[0], 7], [*chats[3], 8]]
    assert relative(read.step(torch.tensor([0, 3]), torch.tensor([7, 8])), whole(model, chats, [])) < 1e-5


@torch.no_grad()
def test_a_second_batch_begins_anew() -> None:
    model = fresh()
    read, first = reader(model), [list(chat) for chat in CHATS]
    expected = read.start(first)
    read.step(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 7]))
    assert torch.equal(read.start(first), expected)


def test_rows_of_a_chat_are_put_together_and_apart() -> None:
    values = torch.randn(7, 2, 3, 5)
    for chats in ([0, 0, 1, 1, 1, 3, 3], [3, 1, 0, 3, 1, 1, 0], [0, 1, 2, 3, 4, 5, 6], [0] * 7):
        rows = _Rows(torch.tensor(chats), 7)
        together = rows.by_chat(values)
        assert together.shape == (7, 2, 3 * max(map(chats.count, chats)), 5)
        assert torch.equal(rows.by_row(together), values)
        for chat in range(7):
            own = values[[row for row, c in enumerate(chats) if c == chat]].transpose(0, 1).flatten(1, 2)
            assert torch.equal(together[chat, :, : own.shape[1]], own)
            assert not together[chat, :, own.shape[1] :].any()


def test_half_precision_shares() -> None:
    model = wrap(random_llama().bfloat16(), byte_tokenizer(), name="half", chat_template="chatml")
    assert can_read_in_place(model, 19)


# --- the same replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3, long window", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": False, "n_samples": 1}], ids=["sampled", "greedy"])
def test_replies_are_those_of_copied_caches(
    name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family(name)
    settings = {"max_new_tokens": 8 if "window" in name else 24, **settings}
    shared = replies(model, **settings)
    monkeypatch.setattr(kv_cache, "can_read_in_place", lambda *_: False)
    assert same(replies(model, **settings), shared)
    if not settings.get("n_samples"):
        assert not same(replies(model, **settings, seed=1), shared)


def test_replies_to_soft_prompts_and_of_edited_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    embeddings = model.embed(torch.tensor(prompt_token_ids(model, CARE.text))).float()
    soft = SoftPrompt(name="soft", embeddings=embeddings + 0.1 * torch.randn(embeddings.shape))
    edit = Add(torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0)), layer=1)

    def both() -> tuple[pd.DataFrame, pd.DataFrame]:
        plain = replies(model, soft)
        with steered(model, edit) as edited:
            return plain, replies(edited, soft)

    plain, changed = both()
    assert not same(plain, changed)
    monkeypatch.setattr(kv_cache, "can_read_in_place", lambda *_: False)
    assert all(map(same, both(), (plain, changed)))


def test_first_tokens_of_mixed_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    _, shared = first_token_probabilities(model, QUERIES, CARE)
    monkeypatch.setattr(kv_cache, "can_read_in_place", lambda *_: False)
    torch.testing.assert_close(shared, first_token_probabilities(model, QUERIES, CARE)[1], rtol=1e-4, atol=1e-6)


def test_chats_longer_than_the_window_copy_their_caches() -> None:
    """The reply counts: it is what would leave the window."""
    model = family("mistral, long window")
    assert can_read_in_place(model, 64)
    assert not can_read_in_place(model, 65)


def test_others_may_run_the_model_at_the_same_time() -> None:
    """Ordinary passes with and without a cache, bit-equal to those alone, while this thread writes replies."""
    model, ids = fresh(), torch.arange(4, 44)[None]
    alone, stop, differ, n_passes = replies(model), threading.Event(), [], 0

    @torch.no_grad()
    def passes() -> list[Tensor]:
        begun = model.model(ids[:, :30], use_cache=True)
        after = model.model(ids[:, 30:31], past_key_values=begun.past_key_values)
        return [model.model(ids).logits, begun.logits, after.logits]

    expected = passes()

    def run() -> None:
        nonlocal n_passes
        while not stop.is_set() or not n_passes:
            differ.extend(1 for one, other in zip(passes(), expected, strict=True) if not torch.equal(one, other))
            n_passes += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        found = [replies(model) for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    assert all(table.equals(alone) for table in found)
    assert n_passes > 3
    assert not differ


# --- what is not exact is not used -------------------------------------------------------------------------


def wrong_mask(self: _Layer, query: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    return ATTEND(self, query, torch.zeros_like(mask), scale)


def wrong_scale(self: _Layer, query: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    return ATTEND(self, query, mask, 1.3 * (scale or query.shape[-1] ** -0.5))


def wrong_chat(self: _Layer, query: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    return ATTEND(self, query.roll(1, dims=0), mask, scale)


ATTEND = _Layer.attend


@pytest.mark.parametrize("wrong", [wrong_mask, wrong_scale, wrong_chat])
def test_a_wrong_attention_is_refused(wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = replies(fresh())
    monkeypatch.setattr(_Layer, "attend", wrong)
    model = fresh()
    assert not can_read_in_place(model, 19)
    assert same(replies(model), expected)
    monkeypatch.setattr(kv_cache, "_try", lambda _: True)
    assert not same(replies(fresh()), expected)  # without the trial it would have been used


def test_a_family_that_computes_attention_itself_is_refused_and_may_change() -> None:
    model = family("llama", attention="eager")
    assert not can_read_in_place(model, 19)
    expected = replies(model, do_sample=False, n_samples=1)
    model.model.set_attn_implementation("sdpa")
    assert can_read_in_place(model, 19)
    assert replies(model, do_sample=False, n_samples=1).equals(expected)


def test_the_keys_can_only_be_attended_to() -> None:
    keys = torch.zeros(2, 1, 1, 4).expand(-1, -1, 3, -1).as_subclass(_Keys)
    assert keys.shape == (2, 1, 3, 4)
    for use in (lambda: keys + 1, lambda: torch.zeros(2, 1, 1, 4) @ keys.mT, lambda: keys[0], lambda: keys.sum()):
        with pytest.raises(NotImplementedError, match="can be attended to and not be used otherwise"):
            use()
    with pytest.raises(NotImplementedError, match="one new token per row"):
        torch.nn.functional.scaled_dot_product_attention(torch.zeros(2, 1, 3, 4), keys, torch.zeros(2, 1, 3, 4))
