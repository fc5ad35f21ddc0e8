"""How probable texts are: as in plain passes over whole chats; and how far next tokens are, by the plain formula."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import replies, thinkers
from helpers.families import as_soft
from helpers.memory import memory_for
from helpers.replies import CAREFUL, NONE, QUERIES
from helpers.steering import vector
from torch import Tensor

import drolab
from drolab.errors import ModelError, QueryError
from drolab.inference import TEXT_ALONE, likelihood, log_likelihoods, perplexity, reply_divergence
from drolab.models import Ablate, Add, ChatModel, prefix_embeddings, render, steered
from drolab.models.chat import encode

SAID = ["Boil it. Then eat it.", "Sing.", "Buy a map, and go.", "Swim in the sea, if it is warm.", "What?"]
REPLIES = QUERIES.assign(response=SAID)
SAME = drolab.SafetyPrompt(name="other name", text=CAREFUL.text)


@pytest.fixture(scope="module", params=replies.FAMILIES)
def writing(request: pytest.FixtureRequest) -> ChatModel:
    return replies.writer(request.param)


def plain(model: ChatModel, text: str, prompt: object, reply: str) -> Tensor:
    """[T, vocabulary]: log-probabilities at the tokens of a reply, in one pass of the whole chat; a byte is a token."""
    batch = encode(model, [text], prompt)  # type: ignore[arg-type]
    ids = torch.tensor([*batch.suffixes[0], *model.tokenizer(reply, add_special_tokens=False)["input_ids"]])
    whole = torch.cat([prefix_embeddings(model, batch), model.embed(ids)])
    with torch.no_grad():
        logits = model.model(inputs_embeds=whole[None]).logits[0]
    return logits[-len(reply.encode()) - 1 : -1].float().log_softmax(dim=-1)


def of_targets(spoken: Tensor, reply: str, model: ChatModel) -> Tensor:
    ids = torch.tensor(model.tokenizer(reply, add_special_tokens=False)["input_ids"])
    return spoken.gather(1, ids[:, None])[:, 0]


def test_likelihoods_equal_those_of_whole_chats(writing: ChatModel) -> None:
    prompts = {"none": NONE, "careful": CAREFUL, "soft": as_soft(writing, CAREFUL)}
    table = log_likelihoods(writing, REPLIES, prompts, per_token=True, token_budget=60, progress=False)
    assert list(table.columns) == ["query_id", "prompt", "harmful", "position", "token", "log_probability"]
    rows = iter(table.groupby(["prompt", "query_id"], sort=False))
    for name, prompt in prompts.items():
        for text, reply, query_id in zip(QUERIES.text, SAID, QUERIES.query_id, strict=True):
            place, part = next(rows)
            assert place == (name, query_id)
            assert "".join(part["token"]) == reply
            expected = of_targets(plain(writing, text, prompt, reply), reply, writing)
            torch.testing.assert_close(torch.tensor(part["log_probability"].tolist()), expected, rtol=1e-4, atol=1e-4)
    sums = log_likelihoods(writing, REPLIES, prompts, progress=False)
    by_hand = table.groupby(["prompt", "query_id"], sort=False)["log_probability"].sum()
    assert sums["log_likelihood"].tolist() == pytest.approx(by_hand.tolist(), rel=1e-4)
    assert sums.loc[0, "perplexity"] == pytest.approx(torch.tensor(-by_hand.iloc[0] / len(SAID[0])).exp().item(), 1e-3)


def test_divergences_are_those_of_the_formula(writing: ChatModel) -> None:
    soft = as_soft(writing, CAREFUL)
    table = reply_divergence(writing, REPLIES, soft, NONE, token_budget=60, progress=False)
    for row, (text, reply) in enumerate(zip(QUERIES.text, SAID, strict=True)):
        before, after = plain(writing, text, NONE, reply).double(), plain(writing, text, soft, reply).double()
        each = (before.exp() * (before - after)).sum(dim=1)
        assert table["kl"][row] == pytest.approx(each.mean().item(), rel=1e-2, abs=1e-5)
        assert table["kl_first"][row] == pytest.approx(each[0].item(), rel=1e-2, abs=1e-5)
        assert table["kl_most"][row] == pytest.approx(each.max().item(), rel=1e-2, abs=1e-5)
    assert (table["kl"] > 1e-3).all()


def test_no_change_is_exactly_none(tiny_llama: ChatModel) -> None:
    same = reply_divergence(tiny_llama, REPLIES, CAREFUL, SAME, progress=False)
    assert (same[["kl", "kl_first", "kl_most"]] == 0).all(axis=None)
    as_vectors = reply_divergence(tiny_llama, REPLIES, as_soft(tiny_llama, CAREFUL), CAREFUL, progress=False)
    assert as_vectors["kl"].max() < 1e-9  # other tokens in its slots, so it was computed
    assert "computed" in as_vectors.attrs["summary"]


@pytest.mark.parametrize("edit", [Add(vector(), 1), Ablate(vector())], ids=["add", "ablate"])
def test_edits_are_in_force_where_they_are_asked_for(tiny_llama: ChatModel, edit: Add | Ablate) -> None:
    table = reply_divergence(tiny_llama, REPLIES, CAREFUL, CAREFUL, edits=[edit], progress=False)
    back = reply_divergence(tiny_llama, REPLIES, CAREFUL, CAREFUL, reference_edits=[edit], progress=False)
    with steered(tiny_llama, edit) as edited:
        after = [plain(edited, text, CAREFUL, reply).double() for text, reply in zip(QUERIES.text, SAID, strict=True)]
        spoken = log_likelihoods(edited, REPLIES, CAREFUL, progress=False)
    for row, (text, reply) in enumerate(zip(QUERIES.text, SAID, strict=True)):
        before = plain(tiny_llama, text, CAREFUL, reply).double()
        there = (before.exp() * (before - after[row])).sum(dim=1).mean().item()
        other_way = (after[row].exp() * (after[row] - before)).sum(dim=1).mean().item()
        assert table["kl"][row] == pytest.approx(there, rel=1e-3)
        assert back["kl"][row] == pytest.approx(other_way, rel=1e-3)
        expected = of_targets(after[row], reply, tiny_llama).sum().item()
        assert spoken["log_likelihood"][row] == pytest.approx(expected, rel=1e-4)
    assert table["kl"].min() > 1e-3


def test_edits_at_the_read_position_have_no_meaning_here(tiny_llama: ChatModel) -> None:
    with steered(tiny_llama, Add(vector(), 1, "read")) as edited, pytest.raises(ModelError, match="read position"):
        log_likelihoods(edited, REPLIES, NONE, progress=False)
    with pytest.raises(ModelError, match="read position"):
        reply_divergence(tiny_llama, REPLIES, NONE, NONE, edits=[Add(vector(), 1, "read")], progress=False)


def test_what_is_kept_is_not_computed_again(tiny_llama: ChatModel, store: drolab.Store) -> None:
    twice = pd.concat([REPLIES, REPLIES.head(2)])
    first = log_likelihoods(tiny_llama, twice, NONE, store=store, progress=False)
    assert first.attrs["summary"] == "all 5 texts computed now; next time they come from the store"
    assert first["log_likelihood"].tolist()[-2:] == first["log_likelihood"].tolist()[:2]
    again = log_likelihoods(tiny_llama, REPLIES, [NONE, CAREFUL], store=store, progress=False)
    assert again.attrs["summary"] == "5 of 10 texts found in the store, 5 computed now"
    assert again["log_likelihood"].tolist()[:5] == first["log_likelihood"].tolist()[:5]
    for edits in ([Add(vector(), 1)], [Add(vector(1), 1)]):
        change = reply_divergence(tiny_llama, REPLIES, NONE, NONE, edits=edits, store=store, progress=False)
        assert "all 5 texts computed now" in change.attrs["summary"]


def test_a_pass_that_does_not_fit_is_divided() -> None:
    model = replies.writer("llama")
    expected = log_likelihoods(model, REPLIES, CAREFUL, progress=False)["log_likelihood"]
    other = replies.writer("llama")
    with memory_for(other, 110) as tried:
        found = log_likelihoods(other, REPLIES, CAREFUL, progress=False)["log_likelihood"]
    assert max(tried) > 110
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    with memory_for(other, 40), pytest.raises(ModelError, match="out of memory with a single chat"):
        log_likelihoods(other, REPLIES, NONE, progress=False)


def test_replies_without_an_answer_are_counted(tiny_llama: ChatModel) -> None:
    some = REPLIES.assign(response=[*SAID[:3], "", None], finish_reason=["stop"] * 3 + ["length", "thinking"])
    table = log_likelihoods(tiny_llama, some, NONE, progress=False)
    assert len(table) == 3
    assert table.attrs["summary"].endswith("; 2 of 5 replies without an answer left out")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (REPLIES.drop(columns="response"), "lack the columns"),
        (REPLIES.assign(response=3), "5 values of `response` are no texts"),
        (REPLIES.assign(response=" "), "None of 5 replies has a text"),
        (REPLIES.assign(response="long " * 100), "reads at most 512: shorten"),
    ],
)
def test_replies_that_are_none(tiny_llama: ChatModel, broken: pd.DataFrame, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        log_likelihoods(tiny_llama, broken, NONE, progress=False)


# --- texts -------------------------------------------------------------------------------------------------

TEXTS = ["A text of some words, all of them short.", "Another."]


def test_perplexity_in_a_chat_is_that_of_a_reply(tiny_llama: ChatModel) -> None:
    table = perplexity(tiny_llama, TEXTS, [NONE, CAREFUL], progress=False)
    asked = pd.DataFrame({"query_id": ["a", "b"], "text": likelihood.REQUEST, "response": TEXTS})
    expected = log_likelihoods(tiny_llama, asked, [NONE, CAREFUL], progress=False)
    assert table["log_likelihood"].tolist() == pytest.approx(expected["log_likelihood"].tolist(), rel=1e-5)
    assert table["n_tokens"].tolist() == [len(text) for text in TEXTS] * 2
    assert table["prompt"].tolist() == ["none"] * 2 + ["careful"] * 2
    other = perplexity(tiny_llama, TEXTS, [NONE], request="Why?", progress=False)
    assert other["perplexity"][0] != pytest.approx(table["perplexity"][0], rel=1e-3)


def test_a_text_alone_is_read_without_a_chat(tiny_llama: ChatModel) -> None:
    table = perplexity(tiny_llama, TEXTS, progress=False)
    assert set(table["prompt"]) == {TEXT_ALONE}
    ids = torch.tensor(tiny_llama.tokenizer(TEXTS[0])["input_ids"])
    with torch.no_grad():
        spoken = tiny_llama.model(ids[None]).logits[0, :-1].log_softmax(dim=-1)
    assert table["n_tokens"][0] == len(ids) - 1  # this tokenizer begins a text with nothing
    assert table["log_likelihood"][0] == pytest.approx(spoken.gather(1, ids[1:, None]).sum().item(), rel=1e-4)


def test_long_texts_are_read_in_windows_that_score_each_token_once(tiny_llama: ChatModel) -> None:
    text = "The quick brown fox jumps over the lazy dog; " * 3
    table = perplexity(tiny_llama, [text], progress=False, window=40)
    assert (table["n_tokens"][0], table["n_windows"][0]) == (len(text) - 1, 6)
    ids, total = torch.tensor(tiny_llama.tokenizer(text)["input_ids"]), 0.0
    for token in range(1, len(ids)):  # the token's window begins 20 before the first that no window before it has
        begin = 0 if token < 40 else 20 + (token - 40) // 20 * 20
        with torch.no_grad():
            spoken = tiny_llama.model(ids[None, begin:token]).logits[0, -1].log_softmax(dim=-1)
        total += spoken[ids[token]].item()
    assert table["log_likelihood"][0] == pytest.approx(total, rel=1e-4)
    in_chat = perplexity(tiny_llama, [text], [NONE], progress=False, window=40)
    assert in_chat["n_tokens"][0] == len(text)


def test_texts_from_files(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("First line.\n\nSecond line.\n", encoding="utf-8")
    (tmp_path / "two.csv").write_text("text\nFirst.\nSecond.\n", encoding="utf-8")
    (tmp_path / "no.csv").write_text("line\nFirst.\n", encoding="utf-8")
    assert likelihood.read_texts(tmp_path / "one.txt") == ["First line.\n\nSecond line.\n"]
    assert likelihood.read_texts(tmp_path / "two.csv") == ["First.", "Second."]
    for wrong, message in (
        (tmp_path / "no.csv", "no column `text`"),
        (tmp_path / "none.txt", "No file"),
        ([], "no texts"),
        (["a", " "], "Text 2 is ' '"),
    ):
        with pytest.raises(QueryError, match=message):
            likelihood.read_texts(wrong)


@pytest.mark.parametrize("window", [1, 500])
def test_a_window_that_cannot_be(tiny_llama: ChatModel, window: int) -> None:
    with pytest.raises(QueryError, match="cannot be read: pass 2 to"):
        perplexity(tiny_llama, TEXTS, [NONE], window=window, progress=False)
    with pytest.raises(QueryError, match="too few to score"):
        perplexity(tiny_llama, ["a"], progress=False)
    assert render(tiny_llama, likelihood.REQUEST, NONE).input_ids


# --- models that think -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "opened", "switch", "harmony"])
def test_an_answer_is_read_behind_an_empty_thought(kind: str) -> None:
    model = thinkers.thinker(kind)
    said = QUERIES.head(2).assign(response="I cannot.", finish_reason="stop", reasoning="Hm.", n_reasoning_tokens=3)
    table = log_likelihoods(model, said, [thinkers.NONE, thinkers.CARE], per_token=True, progress=False)
    for (name, _), part in table.groupby(["prompt", "query_id"], sort=False):
        prompt = thinkers.NONE if name == "none" else thinkers.CARE
        text = QUERIES["text"][part["query_id"].iloc[0]]
        chat = render(model, text, prompt, read_at="answer").input_ids
        ids = torch.tensor([*chat, *model.tokenizer("I cannot.")["input_ids"]])
        with torch.no_grad():
            spoken = model.model(ids[None]).logits[0].log_softmax(dim=-1)
        expected = spoken[len(chat) - 1 : -1].gather(1, ids[len(chat) :, None])[:, 0]
        assert "".join(part["token"][:9]) == "I cannot."
        assert len(part) == 10  # and what ended it
        assert part["log_probability"].tolist()[:9] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3)
