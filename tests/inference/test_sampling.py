"""Samples: the exact distribution, and what ends a reply."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.replies import CAREFUL, NONE, QUERIES, small
from scipy import stats
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from drolab.inference import generate, responses, sampling
from drolab.models import ChatModel, render


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
