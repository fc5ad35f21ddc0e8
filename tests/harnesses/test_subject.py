"""Who is asked by a harness: the same replies and likelihoods as in drolab itself, under each kind of prompt."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

import drolab
from drolab import export
from drolab.errors import PromptError, QueryError, StatesError
from drolab.harnesses import Subject
from drolab.harnesses.subject import only_question
from drolab.inference import generate, log_likelihoods
from drolab.models import Add, ChatModel, embed_text, steered
from drolab.probing import Direction
from drolab.types import SoftPrompt

GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return drolab.load_model("demo")


@pytest.fixture(scope="module")
def queries() -> pd.DataFrame:
    return drolab.load_queries("anchors").head(4)


@pytest.fixture(scope="module")
def soft(model: ChatModel) -> SoftPrompt:
    vectors = embed_text(model, "Refuse what could hurt somebody.") + 0.1
    return SoftPrompt(name="mine", embeddings=vectors, model_fingerprint=model.fingerprint)


def test_a_text_prompt_and_a_soft_one(
    model: ChatModel, queries: pd.DataFrame, soft: SoftPrompt, tmp_path: Path
) -> None:
    export.to_peft(soft, model, tmp_path / "peft")
    kept = soft.save_pretrained(tmp_path / "kept")
    default = drolab.load_prompts()["default"]
    for name, prompt in {"default": default, str(kept.parent): soft, str(tmp_path / "peft"): soft}.items():
        found = Subject.load("demo", prompt=name).replies(queries["text"].tolist(), **GREEDY)
        wanted = generate(model, queries, prompt, n_samples=1, progress=False, **GREEDY)
        assert found["response"].tolist() == wanted["response"].tolist()
        assert found["text"].tolist() == queries["text"].tolist()


def test_a_direction(model: ChatModel, queries: pd.DataFrame, tmp_path: Path) -> None:
    vector = torch.randn(256, generator=torch.Generator().manual_seed(0))
    direction = Direction(
        method="mean_difference",
        positive="refuses",
        vector=vector / vector.norm(),
        threshold=0.0,
        scale=1.0,
        setting=math.nan,
        layer=2,
        model_fingerprint=model.fingerprint,
    )
    export.save_directions(direction, model, tmp_path)
    subject = Subject.load("demo", direction=str(tmp_path), strength=40)
    assert subject.name == "demo under 'none', steered at layer 2"
    found = subject.replies(queries["text"].tolist(), **GREEDY)["response"].tolist()
    none = drolab.load_prompts()["none"]
    with steered(model, Add(40 * direction.vector, layer=2)) as pushed:
        wanted = generate(pushed, queries, none, n_samples=1, progress=False, **GREEDY)["response"].tolist()
    plain = generate(model, queries, none, n_samples=1, progress=False, **GREEDY)["response"].tolist()
    assert found == wanted != plain


def test_a_question_that_is_asked_twice_has_a_sample_each_time(queries: pd.DataFrame) -> None:
    one, other = queries["text"].iloc[:2]
    subject = Subject.load("demo")
    found = subject.replies([one, other, one], max_new_tokens=16)["response"].tolist()
    assert found[0] != found[2]
    again = subject.replies([one, other, one], **GREEDY)["response"].tolist()
    assert again[0] == again[2] != again[1]


def test_likelihoods_are_those_of_drolab(model: ChatModel, queries: pd.DataFrame) -> None:
    questions, answers = queries["text"].tolist()[:2] * 2, ["I cannot.", "Sure.", " ", "I cannot."]
    found = Subject.load("demo", prompt="short").log_likelihoods(questions, answers)
    asked = pd.DataFrame({"query_id": list("abcd"), "text": questions, "response": answers})
    wanted = log_likelihoods(model, asked.drop(2), drolab.load_prompts()["short"], progress=False)
    assert found[2] == -math.inf
    assert [found[0], found[1], found[3]] == pytest.approx(wanted["log_likelihood"].tolist(), abs=1e-4)
    assert Subject.load("demo").log_likelihoods(questions, answers)[0] != pytest.approx(found[0], abs=1e-2)


def test_who_is_not_there_is_an_error(model: ChatModel, soft: SoftPrompt, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"'polite' is no soft prompt's folder, and no prompt of 'safety'"):
        Subject.load("demo", prompt="polite")
    with pytest.raises(StatesError, match="Cannot read"):
        Subject.load("demo", direction=str(tmp_path / "none"))
    other = SoftPrompt(name="other", embeddings=soft.embeddings, model_fingerprint="f" * 32)
    place = other.save_pretrained(tmp_path)
    with pytest.raises(PromptError, match="f" * 32):
        Subject.load("demo", prompt=str(place)).replies(["Why?"], **GREEDY)


def test_only_single_questions_are_asked() -> None:
    assert only_question([("user", "Why?")]) == "Why?"
    for talk in ([("system", "Be nice."), ("user", "Why?")], [("assistant", "Yes.")], []):
        with pytest.raises(QueryError, match="asks single questions"):
            only_question(talk)
