"""Contenders: asked alike whatever they are, and flagged when they break the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers.training import CAREFUL, QUERIES
from torch import Tensor

import drolab
from drolab import dro
from drolab.dro import Contender, Contenders, contenders
from drolab.errors import ModelError, PromptError, QueryError, StatesError
from drolab.inference import first_token_probabilities, generate, hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import Ablate, Add, ChatModel, render, steered
from drolab.store import Store
from drolab.types import SafetyPrompt

pytestmark = pytest.mark.usefixtures("one_thread")

NONE = SafetyPrompt(name="none", text="")
SHORT = {"n_samples": 2, "max_new_tokens": 3, "progress": False}


def push(length: float, layer: int = 1, width: int = 32) -> Add:
    return Add(length * torch.ones(width) / width**0.5, layer)


@pytest.fixture(scope="module")
def field(tiny_llama: ChatModel) -> Contenders:
    pushed = Contender(name="pushed", kind="steering", edits=(push(3.0),), model_fingerprint=tiny_llama.own_fingerprint)
    return Contenders([dro.text_contender(tiny_llama, NONE), dro.text_contender(tiny_llama, CAREFUL), pushed])


# --- asked alike -------------------------------------------------------------------------------------------


def test_a_contender_is_asked_as_its_prompt_or_its_edit_would_be(tiny_llama: ChatModel, field: Contenders) -> None:
    replies = field.replies(tiny_llama, QUERIES, **SHORT)
    index, probabilities = field.first_tokens(tiny_llama, QUERIES)
    states = field.states(tiny_llama, QUERIES, layers=(1, 2), progress=False)
    for table in (replies, index, states.index):
        assert list(table["prompt"].unique()) == ["none", "careful", "pushed"]
    assert states.model_fingerprint == tiny_llama.fingerprint
    for name, prompt, edits in (("careful", CAREFUL, ()), ("pushed", NONE, (push(3.0),))):
        with steered(tiny_llama, *edits) as asked:
            written = generate(asked, QUERIES, prompt, **SHORT)["response"].tolist()
            spoken = first_token_probabilities(asked, QUERIES, prompt)[1]
            read = hidden_states(asked, QUERIES, prompt, layers=(1, 2), progress=False).values
        assert replies[replies["prompt"] == name]["response"].tolist() == written
        torch.testing.assert_close(probabilities[(index["prompt"] == name).tolist()], spoken)
        torch.testing.assert_close(states.select(prompt=name).values, read)
    plain, pushed = (replies[replies["prompt"] == name]["response"].tolist() for name in ("none", "pushed"))
    assert plain != pushed


def test_nothing_edited_is_kept_under_the_plain_models_name(
    tiny_llama: ChatModel, field: Contenders, store: Store
) -> None:
    before = generate(tiny_llama, QUERIES, NONE, **SHORT)["response"].tolist()
    field["pushed"].replies(tiny_llama, QUERIES, **SHORT, store=store)
    assert generate(tiny_llama, QUERIES, NONE, **SHORT, store=store)["response"].tolist() == before
    again = field["pushed"].replies(tiny_llama, QUERIES, **SHORT, store=store)
    assert again.attrs["summary"] == "all 20 replies found in the store"


def test_what_it_costs(tiny_llama: ChatModel, field: Contenders) -> None:
    table = field.table().set_index("contender")
    longer = [len(render(tiny_llama, "Why?", prompt).input_ids) for prompt in (CAREFUL, NONE)]
    assert table["n_tokens"].to_dict() == {"none": 0, "careful": longer[0] - longer[1], "pushed": 0}
    assert table["kind"].tolist() == ["none", "text", "steering"]


def test_it_goes_to_no_other_model(tiny_llama: ChatModel, field: Contenders) -> None:
    foreign = replace(field["pushed"], model_fingerprint="other")
    with pytest.raises(ModelError, match=r"'pushed' was fitted on the model with fingerprint other.*fit it on this"):
        foreign.replies(tiny_llama, QUERIES, **SHORT)


def test_names(field: Contenders) -> None:
    with pytest.raises(PromptError, match="needs a name"):
        Contender(name=" ", kind="text")
    for wrong in ([], [field["none"], field["none"]]):
        with pytest.raises(PromptError, match="at least one, each with a name of its own"):
            Contenders(wrong)


# --- whether the model broke -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some() -> pd.DataFrame:
    return drolab.load_queries("anchors").groupby("harmful").head(5)


@pytest.fixture(scope="module")
def quick(demo: ChatModel, some: pd.DataFrame) -> FirstTokenJudge:
    prompts = [NONE, drolab.load_prompts()["default"]]
    return FirstTokenJudge.fit(generate(demo, some, prompts, n_samples=8, max_new_tokens=8, progress=False))


@pytest.fixture(scope="module")
def look(demo: ChatModel, some: pd.DataFrame, quick: FirstTokenJudge) -> Callable[[Contender], pd.DataFrame]:
    seen = contenders.Look(demo, some, quick, max_new_tokens=16)
    return lambda contender: seen.at(contender, dro.text_contender(demo, NONE), replies=True)


def steering(length: float, name: str) -> Contender:
    return Contender(name=name, kind="steering", edits=(push(length, layer=2, width=256),))


def test_what_does_nothing_breaks_nothing(
    demo: ChatModel, some: pd.DataFrame, quick: FirstTokenJudge, look: Callable[[Contender], pd.DataFrame]
) -> None:
    for contender in (Contender(name="still", kind="none"), steering(0.1, "weak")):
        table = look(contender)
        assert table.columns.tolist() == list(dro.DAMAGE_COLUMNS)
        assert table["contender"].tolist() == ["none", "none", contender.name, contender.name]
        assert not table["note"].any()
        assert table["kl"].max() < 0.01
        assert table["queries"].tolist() == [5, 5, 5, 5]
    same = dro.damage(demo, Contender(name="still", kind="none"), some, quick, replies=False)
    assert same["repeats"].isna().all()


def test_a_strength_that_breaks_the_model_is_said(look: Callable[[Contender], pd.DataFrame]) -> None:
    """The same direction, which was harmless in the test above."""
    table = look(steering(200.0, "strong"))
    note = table["note"].iloc[-1]
    assert "The model broke: for" in note or "The model broke: on harmless queries" in note
    assert "surprise the model itself" in note
    assert "Take a smaller strength" in note
    assert not table["note"].iloc[0]
    assert table["surprise"].iloc[-1] > 2 + table["surprise"].iloc[0]


def test_a_prompt_that_makes_it_refuse_is_no_damage(demo: ChatModel, look: Callable[[Contender], pd.DataFrame]) -> None:
    assert not look(dro.text_contender(demo, drolab.load_prompts()["default"]))["note"].any()


def test_logits_that_are_no_numbers_are_said(
    demo: ChatModel, some: pd.DataFrame, quick: FirstTokenJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = contenders.first_token_probabilities

    def overflowing(model: ChatModel, *given: object, **options: object) -> object:
        if "+" in model.fingerprint:
            raise StatesError("'demo' computes logits that are not numbers.")
        return real(model, *given, **options)

    monkeypatch.setattr(contenders, "first_token_probabilities", overflowing)
    found = dro.damage(demo, steering(0.1, "weak"), some, quick)
    assert found["note"].tolist() == ["The model broke: 'demo' computes logits that are not numbers."] * 2
    assert found["contender"].tolist() == ["weak", "weak"]


def test_going_round_is_planted(
    demo: ChatModel, some: pd.DataFrame, quick: FirstTokenJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other signs are good: only the texts repeat themselves."""
    real = contenders.generate

    def repeating(model: ChatModel, *given: object, **options: object) -> pd.DataFrame:
        table = real(model, *given, **options)
        edited = "+" in model.fingerprint
        return table.assign(response="Here is a plan. " * 6) if edited else table

    monkeypatch.setattr(contenders, "generate", repeating)
    monkeypatch.setattr(contenders, "surprise", lambda model, replies, **options: pd.Series(1.0, replies.index))
    note = dro.damage(demo, steering(0.1, "weak"), some, quick)["note"].iloc[-1]
    assert note.startswith("The model broke: 100% of the replies to ")
    assert "go round in circles, 0% before" in note


def test_damage_needs_both_classes(demo: ChatModel, some: pd.DataFrame, quick: FirstTokenJudge) -> None:
    with pytest.raises(QueryError, match="pass some of both"):
        dro.damage(demo, Contender(name="still", kind="none"), some[some["harmful"]], quick)


@pytest.mark.parametrize(
    ("text", "goes"),
    [("no " * 11, False), ("no " * 12, True), ("", False), (" ".join(map(str, range(30))), False)],
)
def test_texts_that_go_round(text: str, goes: bool) -> None:
    assert dro.goes_round(text) is goes


def test_surprise_is_that_of_plain_transformers(tiny_llama: ChatModel) -> None:
    table = pd.DataFrame(
        {
            "text": ["Why?", "How so?", "Why?"],
            "response": ["No.", "Well, it depends.", ""],
            "finish_reason": ["stop", "length", "length"],
        },
        index=[5, 7, 9],
    )
    found = dro.surprise(tiny_llama, table)

    def plain(query: str, reply: str, ended: bool) -> Tensor:
        ids = list(render(tiny_llama, query, NONE).input_ids)
        labels = tiny_llama.tokenizer(reply)["input_ids"] + [tiny_llama.tokenizer.eos_token_id] * ended
        with torch.no_grad():
            logits = tiny_llama.model(torch.tensor([ids + labels])).logits[0, len(ids) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))

    assert found.index.tolist() == [5, 7, 9]
    assert found[5] == pytest.approx(float(plain("Why?", "No.", True)), abs=1e-5)
    assert found[7] == pytest.approx(float(plain("How so?", "Well, it depends.", False)), abs=1e-5)
    assert pd.isna(found[9])


def test_ablations_are_asked_as_well(tiny_llama: ChatModel) -> None:
    ablated = Contender(name="ablated", kind="steering", edits=(Ablate(torch.ones(32)),))
    states = ablated.states(tiny_llama, QUERIES, layers=(1,), progress=False).matrix(1)
    assert (states @ torch.ones(32)).abs().max() < 1e-3
