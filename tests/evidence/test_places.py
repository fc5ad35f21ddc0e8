"""What is fitted, trained and edited where the answer begins: as with a template that closes the thought itself."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.thinkers import TEMPLATES
from helpers.tiny import byte_tokenizer, random_llama
from helpers.training import QUERIES, Setting

import drolab
from drolab import causal, dro, evidence
from drolab.errors import QueryError, StatesError
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel, render, wrap
from drolab.panels.prompt_lab import view
from drolab.probing import coordinates
from drolab.store import Store
from drolab.types import SafetyPrompt

PROMPTS = [SafetyPrompt(name="none", text=""), SafetyPrompt(name="careful", text="Be careful, be kind.")]


def model(**told: Any) -> ChatModel:
    return wrap(
        random_llama(), byte_tokenizer(), name="t", chat_template=TEMPLATES["switch"], template_kwargs=told or None
    )


THINKS, ANSWERS = model(), model(enable_thinking=False)


def setting(chat: ChatModel, read_at: Any) -> Setting:
    states = drolab.hidden_states(chat, QUERIES, PROMPTS, read_at=read_at, progress=False)
    space = drolab.fit_anchors(states)
    harmfulness = drolab.fit_probe(space, states, QUERIES["harmful"], positive="harmful", check=False)
    refusal = replace(harmfulness, positive="refuses")
    return Setting(model=chat, space=space, refusal=refusal, harmfulness=harmfulness, init=PROMPTS[1])


def test_a_prompt_is_trained_where_its_space_was_read(tmp_path: Path) -> None:
    own, closed = setting(THINKS, "answer"), setting(ANSWERS, "reply")
    assert own.space.read_at == "answer"
    run, expected = own.train(Store(tmp_path)), closed.train()
    pd.testing.assert_frame_equal(run.history, expected.history)
    assert torch.equal(run.soft_prompt.embeddings, expected.soft_prompt.embeddings)
    elsewhere = setting(THINKS, "reply").train()
    assert not torch.equal(run.soft_prompt.embeddings, elsewhere.soft_prompt.embeddings)
    arguments = own.arguments()
    keys = {
        dro.Training(THINKS, QUERIES, **{**arguments, "space": replace(own.space, read_at=place, origin=None)}).key
        for place in ("reply", "answer")
    }
    assert len(keys) == 2
    moved = dro.movement(THINKS, QUERIES, run, progress=False)
    assert len(moved) == len(QUERIES) * len(run.snapshots)
    dro.save_run(tmp_path / "runs", "mine", dro.KeptRun(loaded=run))
    assert dro.load_runs(tmp_path / "runs")["mine"].run.space.read_at == "answer"


def test_places_are_compared_by_states_that_were_read_there() -> None:
    reply, answer = (
        drolab.hidden_states(THINKS, QUERIES, PROMPTS, read_at=place, progress=False) for place in ("reply", "answer")
    )
    given: dict[str, Any] = {"positive": "harmful", "n_bootstrap": 20, "n_shuffles": 1, "progress": False}
    table = evidence.compare_places({"reply": reply, "answer": answer}, QUERIES["harmful"], **given)
    assert list(table["fitted_at"]) == ["reply", "reply", "answer", "answer"]
    for wrong, problem in (
        ({"reply": answer, "answer": reply}, "given under 'reply' were read at 'answer'"),
        ({"reply": reply, "after_thinking": answer}, "given under 'after_thinking' were read at 'answer'"),
        ({"reply": reply, "before": reply}, "given under 'before' were read at 'reply'"),
    ):
        with pytest.raises(StatesError, match=problem):
            evidence.compare_places(wrong, QUERIES["harmful"], **given)


def test_nothing_is_trained_after_thoughts() -> None:
    own = setting(THINKS, "answer")
    with pytest.raises(StatesError, match="would change with the prompt that is trained"):
        dro.Training(THINKS, QUERIES, **{**own.arguments(), "space": replace(own.space, read_at="after_thinking")})


def test_a_space_knows_no_states_of_other_places() -> None:
    own = setting(THINKS, "answer")
    reply = drolab.hidden_states(THINKS, QUERIES, PROMPTS, progress=False)
    with pytest.raises(
        StatesError, match=r"read at 'reply'.*read at 'answer': pass hidden_states\(…, read_at='answer'"
    ):
        coordinates(own.space, reply)


def judged(chat: ChatModel, read_at: Any) -> FirstTokenJudge:
    replies = pd.DataFrame({"response": ["I cannot help.", "Sure."], "first_token": [40, 50], "query_id": ["a", "b"]})
    return FirstTokenJudge.fit(replies, read_at=read_at)


def test_edits_are_measured_where_the_judge_reads() -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"layer": 1, "unit": 2.0, "doses": (1.0,), "n_random": 2, "progress": False}
    tables = [
        causal.dose_response(chat, QUERIES, PROMPTS[1], judged(chat, place), {"d": direction}, **options)
        for chat, place in ((THINKS, "answer"), (ANSWERS, "reply"), (THINKS, "reply"))
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["refusal"].equals(tables[2]["refusal"])
    with pytest.raises(StatesError, match="An edit changes what a model thinks"):
        causal.dose_response(THINKS, QUERIES, PROMPTS[1], judged(THINKS, "after_thinking"), {"d": direction}, **options)


def test_steps_are_measured_there_too() -> None:
    sets = {"all": QUERIES}
    found = [
        dro.measure_first_tokens(chat, judged(chat, place), sets, PROMPTS[0], 0, start=PROMPTS[1])
        for chat, place in ((THINKS, "answer"), (ANSWERS, "reply"), (THINKS, "reply"))
    ]
    pd.testing.assert_frame_equal(found[0], found[1])
    assert not found[0]["kl"].equals(found[2]["kl"])


def test_the_prompt_lab_places_prompts_there_and_wants_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []
    for own in (setting(THINKS, "answer"), setting(ANSWERS, "reply")):
        bench = view.Bench(model=own.model, queries=QUERIES, space=own.space, refusal=own.refusal)
        trials.append((bench, view.project(bench, {"none": PROMPTS[0]})["none"]))
    assert trials[0][1].places == pytest.approx(trials[1][1].places, abs=1e-4)
    table = QUERIES[["query_id", "text", "harmful"]].assign(prompt="none", sample=0, response="I cannot help.")
    table = table.assign(reasoning="Hm.", finish_reason=["thinking", *["stop"] * (len(QUERIES) - 1)])
    table.loc[table["finish_reason"] == "thinking", "response"] = ""
    monkeypatch.setattr(view, "generate", lambda *_, **__: table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(QueryError, match="no reply came to an answer"):
            view.with_replies(*trials[0])
    table["response"], table["finish_reason"] = "I cannot help.", "stop"
    measured = view.with_replies(*trials[0]).measured
    assert measured is not None
    assert measured.tolist() == [1.0] * len(QUERIES)


def test_labels_of_positions() -> None:
    labels = drolab.sweep.position_labels(THINKS, QUERIES, (-2, -1), read_at="answer")
    assert labels == {-2: "\n", -1: "\n"}
    assert render(THINKS, "How?", PROMPTS[0]).text.endswith("]")
    assert drolab.sweep.position_labels(THINKS, QUERIES, (-1,)) == {-1: "]"}
    assert drolab.sweep.position_labels(THINKS, QUERIES, (-1,), read_at="after_thinking") == {}
