"""Soft prompts taken apart: what is planted in one is found, and not in its control."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers.families import as_soft, queries_of
from helpers.tiny import WIDE, byte_tokenizer, random_llama
from transformers import LlamaConfig, LlamaForCausalLM

import drolab
from drolab import dro, judges
from drolab.errors import PromptError, StatesError
from drolab.models import ChatModel, encode, prefix_embeddings, render, wrap
from drolab.types import AnchorSpace, Probe, SafetyPrompt, SoftPrompt

CARE = SafetyPrompt(name="care", text="Be careful.")
QUERIES = queries_of(["How to paint?", "Why?", "How to cook rice well?", "So?", "What is it?", "Who?"])


def judge_of(token: int = 40) -> judges.FirstTokenJudge:
    """Calls what begins with the first of two halves of the vocabulary a refusal."""
    return judges.FirstTokenJudge(
        tokens=torch.arange(260), refusal_rate=(torch.arange(260) < token).float(), counts=torch.ones(260).long()
    )


@pytest.fixture
def meter(tiny_llama: ChatModel) -> dro.RefusalMeter:
    return dro.RefusalMeter(model=tiny_llama, queries=QUERIES, judge=judge_of(130))


@pytest.fixture
def soft(tiny_llama: ChatModel) -> SoftPrompt:
    return replace(as_soft(tiny_llama, CARE), name="soft", init_text=CARE.text)


# --- vectors -----------------------------------------------------------------------------------------------


def test_words_are_nearest_to_themselves(tiny_llama: ChatModel, soft: SoftPrompt) -> None:
    table = dro.nearest_tokens(tiny_llama, soft, k=2)
    best = table[table["rank"] == 1]
    for metric, value in (("cosine", 1.0), ("distance", 0.0)):
        rows = best[best["metric"] == metric]
        assert "".join(rows["text"]) == CARE.text == "".join(rows["began_as"])
        assert rows["value"].tolist() == pytest.approx([value] * len(CARE.text), abs=1e-5)
    assert table.loc[table["rank"] == 2, "value"].ne(best["value"].to_numpy()).all()
    assert best["token"].tolist() == [slot for slot in range(len(soft)) for _ in range(2)]


def test_nearest_by_hand_ties_and_norms(tiny_llama: ChatModel) -> None:
    model = wrap(random_llama(3), byte_tokenizer(), name="twins", chat_template="chatml")
    words = model.model.get_input_embeddings().weight
    with torch.no_grad():
        words[77] = words[200]  # two tokens with one vector
    far = SoftPrompt(name="far", embeddings=torch.stack([words[200] * 9, torch.full((32,), 0.01)]).detach())
    table = dro.nearest_tokens(model, far, k=2)
    first = table[(table["token"] == 0) & (table["metric"] == "cosine")]
    assert first["id"].tolist() == [77, 200]
    assert first["ties"].tolist() == [1, 1]
    for token in (0, 1):
        by_hand = (far.embeddings[token] - words[: len(model.tokenizer)]).norm(dim=1)
        row = table[(table["token"] == token) & (table["metric"] == "distance") & (table["rank"] == 1)].iloc[0]
        assert (row["id"], row["value"]) == (int(by_hand.argmin()), pytest.approx(float(by_hand.min()), rel=1e-4))
    shares = table.groupby("token")["norm_share"].first()
    assert shares.tolist() == pytest.approx([1.0, 1 / 260])  # longer than any word, and than the padding's zeros alone
    assert set(table["began_as"]) == {""}


def test_the_control_is_as_long_and_points_elsewhere(soft: SoftPrompt) -> None:
    control = dro.random_like(soft)
    torch.testing.assert_close(control.embeddings.norm(dim=1), soft.embeddings.norm(dim=1))
    assert torch.cosine_similarity(control.embeddings, soft.embeddings).abs().max() < 0.7
    assert control.sha256 == dro.random_like(soft).sha256 != dro.random_like(soft, 1).sha256


# --- variants ----------------------------------------------------------------------------------------------


def score(model: ChatModel, prompt: object, judge: judges.FirstTokenJudge) -> list[float]:
    """The score of each query, from a plain pass over its chat."""
    found = []
    for text in QUERIES["text"]:
        batch = encode(model, [text], prompt)  # type: ignore[arg-type]
        whole = torch.cat([prefix_embeddings(model, batch), model.embed(torch.tensor(batch.suffixes[0]))])
        with torch.no_grad():
            spoken = model.model(inputs_embeds=whole[None]).logits[0, -1].softmax(dim=-1)
        found.append(float(spoken[judge.tokens] @ judge.refusal_rate))
    return found


def mean_of(table: pd.DataFrame, variant: str, control: bool = False, column: str = "refusal") -> float:
    rows = table[(table["variant"] == variant) & (table["control"] == control)]
    assert len(rows) == 2, variant
    return float(rows[column].mean())  # both classes have as many queries


def test_each_token_is_taken_out(meter: dro.RefusalMeter, soft: SoftPrompt) -> None:
    short = replace(soft, embeddings=soft.embeddings[:3], init_text="Be ")
    table = dro.without_each_token(meter, short)
    assert table["variant"].unique().tolist() == ["whole", "none", "without 0", "without 1", "without 2"]
    assert table[~table["control"]].groupby("variant", sort=False)["token"].first().tolist() == [-1, -1, 0, 1, 2]
    assert table.loc[(table["token"] == 1) & ~table["control"], "text"].unique().tolist() == ["e"]
    whole = sum(score(meter.model, short, meter.judge)) / 6
    assert mean_of(table, "whole") == pytest.approx(whole, abs=1e-5)
    for slot in range(3):
        kept = [number for number in range(3) if number != slot]
        left = sum(score(meter.model, replace(short, embeddings=short.embeddings[kept]), meter.judge)) / 6
        assert mean_of(table, f"without {slot}") == pytest.approx(left, abs=1e-5)
        assert mean_of(table, f"without {slot}", column="change") == pytest.approx(left - whole, abs=1e-5)
    control = dro.random_like(short)
    expected = sum(score(meter.model, control, meter.judge)) / 6
    assert mean_of(table, "whole", control=True) == pytest.approx(expected, abs=1e-5)
    assert (table.loc[table["variant"] == "whole", ["change", "change_low", "change_high"]] == 0).all(axis=None)
    with pytest.raises(PromptError, match="one vector"):
        dro.without_each_token(meter, replace(soft, embeddings=soft.embeddings[:1]))


def test_a_prompt_of_words_is_the_same_when_rounded(meter: dro.RefusalMeter, soft: SoftPrompt) -> None:
    near = replace(soft, embeddings=soft.embeddings + 0.01)
    table = dro.rounded_to_text(meter, near, start=CARE)
    for metric in ("cosine", "distance"):
        assert mean_of(table, f"rounded ({metric})") == pytest.approx(mean_of(table, "start"), abs=1e-5)
        assert mean_of(table, f"text ({metric})") == pytest.approx(mean_of(table, "start"), abs=1e-5)
        assert set(table.loc[(table["variant"] == f"text ({metric})") & ~table["control"], "text"]) == {CARE.text}
    assert mean_of(table, "rounded (cosine)", control=True) != pytest.approx(mean_of(table, "start"), abs=1e-4)
    assert set(table.loc[(table["variant"] == "text (cosine)") & ~table["control"], "note"]) == {""}


def test_tokens_without_a_text_are_said(meter: dro.RefusalMeter, soft: SoftPrompt) -> None:
    space = meter.model.tokenizer(" ", add_special_tokens=False)["input_ids"]
    blank = replace(soft, embeddings=meter.model.embed(torch.tensor(space * 2)), init_text="")
    rows = dro.rounded_to_text(meter, blank).set_index(["variant", "control"]).loc[("text (cosine)", False)]
    assert set(rows["note"]) == {"Its tokens have no text."}
    assert rows["refusal"].isna().all()


def test_cut_short(meter: dro.RefusalMeter, soft: SoftPrompt) -> None:
    table = dro.cut_short(meter, soft, start=CARE, control=True)
    assert table["variant"].unique().tolist() == ["whole", "start", "none", *(f"first {n}" for n in (1, 2, 4, 5, 8))]
    expected = sum(score(meter.model, replace(soft, embeddings=soft.embeddings[:4]), meter.judge)) / 6
    assert mean_of(table, "first 4") == pytest.approx(expected, abs=1e-5)
    assert mean_of(table, "whole") == pytest.approx(mean_of(table, "start"), abs=1e-5)
    assert mean_of(table, "none", column="n_tokens") == 0
    with pytest.raises(PromptError, match="has 11 vectors: it cannot be cut to 12"):
        dro.cut_short(meter, soft, lengths=[3, 12])


def test_moved_before_the_query(meter: dro.RefusalMeter, soft: SoftPrompt) -> None:
    table = dro.moved(meter, soft)
    there = replace(meter.model, template=replace(meter.model.template, system_as="first_user"))
    assert render(there, "Why?", CARE).text != render(meter.model, "Why?", CARE).text
    expected = sum(score(there, soft, meter.judge)) / 6
    assert mean_of(table, "before the query") == pytest.approx(expected, abs=1e-5)
    assert mean_of(table, "system message") == pytest.approx(mean_of(table, "whole"), abs=1e-9)
    assert abs(mean_of(table, "before the query", column="change")) > 1e-4


def test_a_place_that_the_template_refuses_has_a_note() -> None:
    no_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0].content }}\nAnswer: "
    )
    model = wrap(random_llama(), byte_tokenizer(), name="plain", chat_template=no_system, system_as="first_user")
    meter = dro.RefusalMeter(model=model, queries=QUERIES, judge=judge_of(130))
    soft = replace(as_soft(model, CARE), name="soft")
    table = dro.moved(meter, soft)
    refused = table[table["variant"] == "system message"]
    assert refused["refusal"].isna().all()
    assert refused["note"].str.contains("rejects a system message").all()
    assert mean_of(table, "before the query") == pytest.approx(mean_of(table, "whole"), abs=1e-9)


def test_carried_to_a_sister(tiny_llama: ChatModel, soft: SoftPrompt) -> None:
    other = wrap(random_llama(7), byte_tokenizer(), name="sister", chat_template="chatml")
    owned = replace(soft, model_fingerprint=tiny_llama.fingerprint)
    sister = dro.RefusalMeter(model=other, queries=QUERIES, judge=judge_of(130))
    table = dro.carried(sister, owned, of=tiny_llama, start=CARE)
    assert table["variant"].unique().tolist() == ["whole", "start", "none", "random"]
    expected = sum(score(other, replace(soft, model_fingerprint=""), sister.judge)) / 6
    assert mean_of(table, "whole") == pytest.approx(expected, abs=1e-5)
    assert table["note"][0].endswith("of 11 vectors have the same nearest token in both models.")
    twin = wrap(random_llama(), byte_tokenizer(), name="twin", chat_template="chatml")
    same = dro.carried(replace(sister, model=twin), owned, of=tiny_llama, start=CARE)
    assert same["note"][0].startswith("11 of 11")
    assert mean_of(same, "whole") == pytest.approx(mean_of(same, "start"), abs=1e-5)  # it works there as here
    wide = wrap(LlamaForCausalLM(LlamaConfig(**WIDE)), byte_tokenizer(), name="wide", chat_template="chatml")
    with pytest.raises(PromptError, match="only a model of the same width"):
        dro.carried(replace(sister, model=wide), owned)
    with pytest.raises(PromptError, match="only a model of the same width"):
        dro.forensics(replace(sister, model=tiny_llama), soft, sister=replace(sister, model=wide))


def test_the_set_has_each_table_and_the_logit(tiny_llama: ChatModel) -> None:
    brief = SafetyPrompt(name="brief", text="No.")
    soft = as_soft(tiny_llama, brief)
    space = AnchorSpace(
        mean=torch.zeros(32),
        components=torch.eye(32)[:2],
        explained_variance_ratio=torch.ones(2) / 2,
        layer=2,
        residual_variance=1.0,
    )
    probe = Probe(coef=torch.tensor([1.0, -1.0]), intercept=0.5, positive="refuses")
    meter = dro.RefusalMeter(model=tiny_llama, queries=QUERIES, judge=judge_of(130), space=space, refusal=probe)
    tables = dro.forensics(meter, soft, start=brief, sister=meter)
    assert list(tables) == ["nearest", "drift", "tokens", "text", "length", "place", "sister"]
    states = drolab.hidden_states(tiny_llama, QUERIES, soft, layers=(2,), progress=False).matrix(2)
    expected = (states[:, 0] - states[:, 1] + 0.5).mean().item()
    for name in ("tokens", "text", "length", "place", "sister"):
        assert mean_of(tables[name], "whole", column="refusal_logit") == pytest.approx(expected, abs=1e-4), name
        assert tables[name]["control"].any(), name
    assert tables["tokens"].loc[tables["tokens"]["variant"] == "without 2", "logit_change"].ne(0).all()


def test_what_cannot_be_measured(tiny_llama: ChatModel, soft: SoftPrompt) -> None:
    with pytest.raises(StatesError, match="needs both"):
        dro.RefusalMeter(
            model=tiny_llama,
            queries=QUERIES,
            judge=judge_of(),
            refusal=Probe(coef=torch.zeros(2), intercept=0.0, positive="refuses"),
        )
    with pytest.raises(PromptError, match="has 11 vectors, but prompt 'long' has 3 tokens"):
        dro.nearest_tokens(tiny_llama, soft, start=SafetyPrompt(name="long", text="abc"))
    with pytest.raises(StatesError, match="k must be between 1 and 260"):
        dro.nearest_tokens(tiny_llama, soft, k=0)
