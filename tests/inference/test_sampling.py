"""Samples: the exact distribution, and what ends a reply."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.replies import CAREFUL, NONE, QUERIES, greedy_by_transformers, small, texts
from helpers.tiny import random_llama
from scipy import stats
from tokenizers import Tokenizer, models, normalizers
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from drolab.errors import QueryError
from drolab.inference import generate, responses, sampling, whole_paragraphs
from drolab.models import ChatModel, render, wrap
from drolab.store import Store


def warped(logits: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """What transformers makes of logits, in its order."""
    logits = TemperatureLogitsWarper(temperature)(None, logits)
    logits = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    return TopPLogitsWarper(top_p)(None, logits).softmax(dim=-1).double()


def exact(model: ChatModel, ids: list[int], temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[:, -1]
    return warped(logits, temperature, top_p, top_k)[0]


def p_value(tokens: pd.Series, probabilities: Tensor) -> float:
    counts = np.bincount(tokens, minlength=len(probabilities)).astype(float)
    expected = (probabilities / probabilities.sum()).numpy() * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    large = expected >= 5
    parts = [np.append(part[large], part[~large].sum()) for part in (counts, expected)]
    filled = parts[1] > 0
    return float(stats.chisquare(parts[0][filled], parts[1][filled]).pvalue)


@pytest.mark.parametrize("settings", [(1.0, 0.9, 0), (0.7, 0.6, 0), (1.5, 1.0, 0), (1.5, 0.9, 20)], ids=str)
def test_samples_follow_the_exact_distribution(tiny_llama: ChatModel, settings: tuple[float, float, int]) -> None:
    given = dict(zip(("temperature", "top_p", "top_k"), settings, strict=True))
    table = small(tiny_llama, QUERIES[:1], NONE, n_samples=4000, max_new_tokens=1, seed=3, **given)
    ids = list(render(tiny_llama, QUERIES.text.iloc[0], NONE).input_ids)
    assert p_value(table.first_token, exact(tiny_llama, ids, *settings)) > 0.01
    for wrong in ({"temperature": settings[0] * 1.3}, {"top_p": settings[1] - 0.25}, {"top_k": 12}):
        assert p_value(table.first_token, exact(tiny_llama, ids, **given | wrong)) < 1e-4


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


def picked(logits: Tensor, places: np.ndarray, temperature: float, top_p: float, top_k: int) -> list[int]:
    """The tokens at these places of the unit interval, of one row of logits."""
    settings = sampling.Settings(
        n_samples=1, max_new_tokens=1, do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k, seed=0
    )
    return sampling._pick(
        logits, torch.zeros(len(places), dtype=torch.long), torch.from_numpy(places), settings
    ).tolist()


def agrees(probabilities: Tensor, logits: Tensor, temperature: float, top_p: float, top_k: int) -> bool:
    """Whether the tokens lie on the unit interval as the probabilities say: each as long as it is probable, in their
    order, and no others. Checked at both ends and in the middle of each."""
    ranked, ids = probabilities.sort(descending=True, stable=True)
    n = int((ranked > 1e-5).sum())
    ends = ranked.cumsum(0)[:n].numpy()
    starts = np.append(0.0, ends[:-1])
    inside = [starts + 1e-6, (starts + ends) / 2, ends - 1e-6]
    found = picked(logits, np.concatenate(inside), temperature, top_p, top_k)
    elsewhere = picked(logits, np.linspace(0, 1, 500, endpoint=False), temperature, top_p, top_k)
    return found == 3 * ids[:n].tolist() and {*elsewhere} <= {*ids[ranked > 0].tolist()}


def test_the_distribution_is_that_of_transformers_top_k_then_top_p() -> None:
    """On random logits; the control takes the nucleus first, and then the k highest of it."""
    generator = np.random.default_rng(0)
    differs = 0
    for _ in range(300):
        logits = torch.tensor(
            generator.normal(size=(1, generator.integers(3, 150))) * generator.uniform(0.5, 3)
        ).float()
        given = {"temperature": generator.uniform(0.5, 2), "top_p": generator.uniform(0.2, 0.99)}
        top_k = int(generator.integers(1, 60))
        assert agrees(warped(logits, **given, top_k=top_k)[0], logits, **given, top_k=top_k)
        nucleus = TopPLogitsWarper(given["top_p"])(None, logits / given["temperature"])
        other = TopKLogitsWarper(top_k)(None, nucleus).softmax(dim=-1).double()[0]
        differs += not agrees(other, logits, **given, top_k=top_k)
    assert differs > 30


def test_tokens_as_probable_as_the_last_of_the_highest_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert {*picked(logits, np.linspace(0, 1, 50, endpoint=False), 1.0, 1.0, top_k=2)} == {0, 1, 2, 3}
    assert agrees(warped(logits, 1.0, 1.0, top_k=2)[0], logits, 1.0, 1.0, 2)
    assert {*picked(logits, np.linspace(0, 1, 50, endpoint=False), 1.0, 1.0, top_k=1)} == {0}


def sorted_out(logits: Tensor, rows: Tensor, uniforms: Tensor, settings: sampling.Settings) -> Tensor:
    """What `_pick` is to pick, by a sort of the whole vocabulary."""
    kept = logits.masked_fill(logits < logits.topk(settings.top_k or 1).values[:, -1:], -torch.inf)
    ranked, ids = (kept if settings.top_k else logits).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    sums = ranked.double().cumsum(dim=-1)
    last = ((sums - ranked < settings.top_p) & (ranked > 0)).sum(dim=-1) - 1
    total = sums.gather(1, last[:, None])[rows]
    places = torch.searchsorted(sums[rows], uniforms[:, None] * total, right=True)
    return ids[rows].gather(1, places.minimum(last[rows][:, None])).squeeze(1)


@pytest.mark.parametrize("vocabulary", [50, 400, 9000])
@pytest.mark.parametrize("spread", [0.3, 3.0, 9.0])
def test_picks_are_those_of_a_sort_of_the_whole_vocabulary(
    vocabulary: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(30, vocabulary, generator=generator)
    logits[::2] = logits[::2].bfloat16().float()  # many equal logits
    logits[:, 7] = -torch.inf
    rows = torch.cat([torch.arange(30), torch.randint(0, 30, (500,), generator=generator)])
    uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    uniforms[:60] = torch.tensor([0.0, 1 - 1e-6], dtype=torch.float64).repeat(30)
    for top_p, top_k in ((0.1, 0), (0.9, 0), (0.999, 0), (1.0, 0), (0.9, 40), (1.0, 3)):
        given = {"do_sample": True, "temperature": 1.0, "top_p": top_p, "top_k": top_k, "seed": 0}
        settings = sampling.Settings(n_samples=1, max_new_tokens=1, **given)
        found = sampling._pick(logits, rows, uniforms, settings)
        assert torch.equal(found, sorted_out(logits, rows, uniforms, settings)), given
        with monkeypatch.context() as patched:
            patched.setattr(sampling, "_AT_ONCE", {"cpu": 1})  # a row at a time
            assert torch.equal(sampling._pick(logits, rows, uniforms, settings), found)


def test_the_ends_of_the_unit_interval_pick_possible_tokens() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 3.0, 1.0]] * 300)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64).repeat(300)
    rows = torch.arange(300).repeat_interleave(2)
    settings = sampling.Settings(n_samples=1, max_new_tokens=1, do_sample=True, temperature=1, top_p=1, seed=0)
    picked = sampling._pick(logits, rows, ends, settings).reshape(300, 2)
    assert (picked == torch.tensor([2, 0])).all()


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
    settings = {"stop_strings": [stop], "tokenizer": tiny_llama.tokenizer}
    written = greedy_by_transformers(tiny_llama, row.text, NONE, **settings)
    assert row.n_tokens == len(written)
    assert tiny_llama.tokenizer.decode(written, skip_special_tokens=True).startswith(row.response + stop)


def test_no_reply_is_shorter_than_min_new_tokens(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "stop_ids", lambda _: set(range(2, 60)))  # ends that come soon
    short = small(tiny_llama, QUERIES, NONE, n_samples=20, max_new_tokens=12)
    assert (short.n_tokens < 5).any()
    long = small(tiny_llama, QUERIES, NONE, n_samples=20, max_new_tokens=12, min_new_tokens=5)
    assert (long.n_tokens >= 5).all()
    assert (long.finish_reason == "stop").any()


# Forbidden words


def test_what_is_allowed_is_what_transformers_allows(tiny_llama: ChatModel) -> None:
    """Words of one to three tokens, begun in the reply or in the chat; the control forgets the chat."""
    generator = np.random.default_rng(0)
    differs = 0
    for _ in range(200):
        words = [generator.integers(10, 13, size=generator.integers(1, 4)).tolist() for _ in range(3)]
        chats = generator.integers(10, 13, size=(4, generator.integers(1, 5)))
        written = generator.integers(10, 13, size=(4, generator.integers(0, 4)))
        step, least = written.shape[1], int(generator.integers(0, 5))
        logits = torch.tensor(generator.normal(size=(4, 260))).float()
        ids = torch.tensor(np.concatenate([chats, written], axis=1))
        expected = NoBadWordsLogitsProcessor(words, eos_token_id=2)(ids, logits.clone())
        expected = MinNewTokensLengthLogitsProcessor(chats.shape[1], least, torch.tensor([2]))(ids, expected)
        settings = sampling.Settings(
            n_samples=1,
            max_new_tokens=9,
            min_new_tokens=least,
            bad_words_ids=tuple(map(tuple, words)),
            do_sample=False,
            temperature=1,
            top_p=1,
            seed=0,
        )
        rules = sampling.ReplyRules(tiny_llama, settings)
        read = rules.ends_of_chats(chats.tolist())
        found = rules.allowed(logits, step, torch.cat([read, torch.tensor(written)], dim=1))
        assert torch.equal(found, expected)
        without = rules.allowed(logits, step, torch.cat([torch.full_like(read, -1), torch.tensor(written)], dim=1))
        differs += not torch.equal(without, expected)
    assert differs > 20


def test_greedy_replies_without_forbidden_words_are_those_of_transformers(
    tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = {"n_samples": 1, "do_sample": False, "max_new_tokens": 24}
    free = small(tiny_llama, QUERIES, [NONE, CAREFUL], **greedy)
    pairs = [text[place : place + 2] for text in free.response for place in range(len(text) - 1)]
    words = ["*", *sorted({pair for pair in pairs if pair.isascii()})[::2]]
    stop = int(free.first_token.mode()[0])
    monkeypatch.setattr(tiny_llama.model.generation_config, "eos_token_id", [2, stop])
    table = small(tiny_llama, QUERIES, [NONE, CAREFUL], **greedy, bad_words=words, min_new_tokens=10)
    forbidden = [list(sampling.word_ids(tiny_llama, word)) for word in words]
    for row in table.itertuples():
        prompt = NONE if row.prompt == "none" else CAREFUL
        written = greedy_by_transformers(tiny_llama, row.text, prompt, min_new_tokens=10, bad_words_ids=forbidden)
        ended = int(written[-1]) in (2, stop)
        assert row.response == tiny_llama.tokenizer.decode(written[:-1] if ended else written, skip_special_tokens=True)
        assert row.n_tokens == len(written)
        assert not any(word in row.response for word in words)
    assert any(word in text for word in words for text in free.response)


def test_batches_change_nothing_about_forbidden_words(tiny_llama: ChatModel) -> None:
    """Samples of one row of the batch have said the same, so that the same is forbidden to them."""
    given = {"n_samples": 6, "max_new_tokens": 12, "top_k": 8}
    free = small(tiny_llama, QUERIES, [NONE, CAREFUL], **given)
    letters = pd.Series([letter for letter in "".join(free.response) if letter.isascii()]).value_counts().index
    given["bad_words"] = [letters[0], *(letters[1] + letter for letter in letters[2:6])]
    together = small(tiny_llama, QUERIES, [NONE, CAREFUL], **given)
    assert not together.response.equals(free.response)
    assert not any(word in text for word in given["bad_words"] for text in together.response)
    assert small(tiny_llama, QUERIES, [NONE, CAREFUL], **given, batch_size=1).equals(together)
    apart = small(tiny_llama, QUERIES[::-1], CAREFUL, **given, batch_size=5)
    assert texts(apart).items() <= texts(together).items()


def test_a_word_is_read_off_within_a_text() -> None:
    """Tokenizers such as Llama-2's put a space before a text. The paper's code drops the token that this makes."""
    letters = "\u2581a\n.ONHeloi'I"
    merges = [("O", "N"), ("\u2581", "ON"), ("\u2581", "I"), ("\u2581", "a")]
    pieces = [*letters, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    spaced = wrap(random_llama(), tokenizer, name="spaced", chat_template="chatml")
    listed = ["\nHello", "\nHi", " ON", "I' "]
    theirs = [tuple(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word)[1:])) for word in listed]
    assert [sampling.word_ids(spaced, word) for word in sampling.PRESETS["paper"]["bad_words"]] == theirs
    assert sampling.word_ids(spaced, "Hello") == theirs[0][1:], "without the space that is put before a text"


@pytest.mark.parametrize("words", [[""], [7], ["fine", ""]], ids=str)
def test_a_word_that_cannot_be_forbidden_is_refused(tiny_llama: ChatModel, words: list) -> None:
    with pytest.raises(QueryError, match="cannot be forbidden: bad_words must be texts"):
        small(tiny_llama, QUERIES, NONE, bad_words=words)


# Presets


def test_the_default_has_the_keys_that_it_had() -> None:
    """Or every stored reply would be lost."""
    plain = sampling.preset("default")
    assert not plain.pop("whole_paragraphs")
    assert plain.pop("bad_words") == ()
    fields = sampling.Settings(n_samples=20, do_sample=True, seed=0, **plain).fields()
    assert fields == {"max_new_tokens": 64, "sampling": {"temperature": 1.0, "top_p": 0.9, "seed": 0}}
    greedy = sampling.Settings(n_samples=1, do_sample=False, seed=0, **plain | {"top_k": 50}).fields()
    assert greedy == {"max_new_tokens": 64, "sampling": None}, "top_k says nothing about greedy replies"


def test_the_papers_preset_is_what_its_settings_say(tiny_llama: ChatModel, store: Store) -> None:
    said = {
        "max_new_tokens": 300,
        "min_new_tokens": 10,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.9,
        "bad_words": ["\nHello", "\nHi", " ON", "' "],
    }
    given = {"n_samples": 2, "store": store, "progress": False}
    raw = generate(tiny_llama, QUERIES, NONE, **given, **said)
    paper = generate(tiny_llama, QUERIES, NONE, **given, preset="paper")
    assert paper.attrs["summary"] == "all 10 replies found in the store"
    assert paper.response.tolist() == raw.response.map(whole_paragraphs).tolist()
    assert (paper.n_tokens >= 10).all()
    for changed in ({"top_k": 0}, {"bad_words": ()}, {"max_new_tokens": 200}, {"min_new_tokens": 0}):
        other = generate(tiny_llama, QUERIES, NONE, **given, preset="paper", **changed)
        assert other.attrs["summary"] == "all 10 replies computed now; next time they come from the store"
    whole = generate(tiny_llama, QUERIES, NONE, **given, preset="paper", whole_paragraphs=False)
    assert whole.equals(raw)


def test_a_preset_that_is_none(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError, match="no preset 'papers': choose one of default, paper"):
        small(tiny_llama, QUERIES, NONE, preset="papers")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Boil the rice. Then drain it", "Boil the rice. Then drain it"),  # one line stays, whatever it is
        ("Boil the rice.\nThen drain it", "Boil the rice."),
        ("Boil the rice.\n\n  Then drain it  \n", "Boil the rice."),
        ("Rice\n\nThen drain\nit", "Rice"),
        ("Two things.\n1. Boil it.\n2.", "Two things.\n1. Boil it."),
        ("Why not?\nBecause!\nAnd", "Why not?\nBecause!"),
        ("It takes 20.\nEnjoy :)", "It takes 20."),  # once one line is left, its number is no list's
        ("Wait.\nIt takes 20.", "Wait."),
        ("Done.\n.", "Done.\n."),
        ("  \n ", ""),
        ("", ""),
    ],
)
def test_cut_off_last_paragraphs_are_dropped(text: str, kept: str) -> None:
    assert whole_paragraphs(text) == kept
    assert whole_paragraphs(kept) == kept
