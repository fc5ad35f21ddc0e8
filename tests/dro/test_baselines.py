"""Prompt tuning: the loss step by step against plain transformers, resuming to the last bit, what it is taught."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import pytest
import torch
from helpers.families import family
from helpers.memory import memory_for
from helpers.thinkers import TEMPLATES
from helpers.tiny import byte_tokenizer, random_llama
from helpers.training import CAREFUL, QUERIES
from torch import Tensor

from drolab import dro, passes
from drolab.dro import PromptTuningConfig, PromptTuningRun, baselines
from drolab.errors import DrolabError, PromptError, QueryError, TooFewError, TrainingError
from drolab.judges import is_refusal
from drolab.models import ChatModel, render, wrap
from drolab.store import Store
from drolab.types import SafetyPrompt

pytestmark = pytest.mark.usefixtures("one_thread")

REFUSALS = ("I cannot help with that.", "I'm sorry, no.")
ANSWERS = ("Here is a plan.", "Ask a friend first.")
SHORT_RUN = PromptTuningConfig(num_train_epochs=2, batch_size=7, checkpoint_every=3)  # 8 steps, 2 replies left out


def replies_to(queries: pd.DataFrame, prompts: tuple[str, ...] = ("careful", "none")) -> pd.DataFrame:
    """Two refusals or answers to every query under every prompt, taking turns; the second is cut off."""
    rows = []
    for name in prompts:
        for place, query in enumerate(queries.to_dict("records")):
            for sample, reason in enumerate(("stop", "length")):
                kind = (REFUSALS, ANSWERS)[(place + sample + (name == "none")) % 2]
                about = {key: query[key] for key in ("query_id", "text", "harmful")}
                rows.append({**about, "prompt": name, "response": kind[sample], "finish_reason": reason})
    return pd.DataFrame(rows)


REPLIES = replies_to(QUERIES)  # 10 queries: 20 under the prompt, of 20 without one half are to become unlikely


def tune(model: ChatModel, store: Store | None = None, **changes: Any) -> PromptTuningRun:
    given = {"init": CAREFUL, "replies": REPLIES, "config": SHORT_RUN, "store": store, "progress": False}
    return dro.train_prompt_tuning(model, **{"queries": QUERIES, **given, **changes})


@pytest.fixture(scope="module")
def finished(tiny_llama: ChatModel) -> PromptTuningRun:
    return tune(tiny_llama)


# --- against plain transformers ----------------------------------------------------------------------------


def taught() -> list[tuple[str, str, bool, bool]]:
    """(query, reply, ended, likely) in the order of the paper's code, from the made-up table."""
    found = []
    for harmful in (True, False):
        for name in ("careful", "none"):
            for row in REPLIES[(REPLIES["harmful"] == harmful) & (REPLIES["prompt"] == name)].to_dict("records"):
                likely = (row["response"] in REFUSALS) == harmful
                if name == "careful" or not likely:
                    found.append((row["text"], row["response"], row["finish_reason"] == "stop", likely))
    return found


def chat_of(model: ChatModel, soft: Tensor, query: str, reply: str, ended: bool) -> tuple[Tensor, list[int]]:
    """The embeddings of a whole chat with its reply, and the reply's tokens."""
    before, after = render(model, query, CAREFUL).text.split(CAREFUL.text)
    head, tail, labels = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after, reply)
    )
    labels = labels + [model.tokenizer.eos_token_id] * ended
    return torch.cat([model.embed(torch.tensor(head)), soft, model.embed(torch.tensor(tail + labels))]), labels


def plain_losses(
    model: ChatModel, soft: Tensor, batch: list[tuple[str, str, bool, bool]], papers: bool
) -> list[Tensor]:
    """One chat at a time, nothing shared; `papers`: the softmax over ln (1 - p) of the paper's code as well."""
    likely, unlikely = [], []
    for query, reply, ended, wanted in batch:
        embedded, labels = chat_of(model, soft, query, reply, ended)
        logits = model.model(inputs_embeds=embedded[None], use_cache=False).logits[0, -len(labels) - 1 : -1]
        target = torch.tensor(labels)
        if wanted:
            likely.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
            continue
        unsaid = (1 - logits.softmax(-1)).clamp(min=1e-5).log()
        if papers:
            unlikely.append(torch.nn.functional.cross_entropy(unsaid, target, reduction="none"))
        else:
            unlikely.append(-unsaid[range(len(labels)), labels])
    return [torch.cat(parts).mean() if parts else torch.zeros(()) for parts in (likely, unlikely)]


def plain_run(model: ChatModel, config: PromptTuningConfig, *, papers: bool = False) -> tuple[Tensor, Tensor]:
    """([steps, 2] losses, the trained prompt), with a training loop of a few lines."""
    soft = model.embed(torch.tensor(model.tokenizer(CAREFUL.text, add_special_tokens=False)["input_ids"]))
    soft = soft.detach().clone().requires_grad_()
    optimizer, generator = torch.optim.AdamW([soft], lr=config.learning_rate), random.Random(config.seed)
    examples, found = taught(), []
    order = list(range(len(examples)))
    for _ in range(config.num_train_epochs):
        generator.shuffle(order)
        for place in range(len(order) // config.batch_size):
            rows = order[place * config.batch_size : (place + 1) * config.batch_size]
            optimizer.zero_grad()
            with torch.enable_grad():
                one, other = plain_losses(model, soft, [examples[row] for row in rows], papers)
                (config.likelihood_weight * one + config.unlikelihood_weight * other).backward()
            torch.nn.utils.clip_grad_norm_([soft], config.max_grad_norm)
            optimizer.step()
            found.append([float(one.detach()), float(other.detach())])
    return torch.tensor(found), soft.detach()


LOSSES = ["likelihood_loss", "unlikelihood_loss"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2, short window", "qwen3, weight 5"])
def test_every_step_is_that_of_plain_transformers(name: str) -> None:
    """Packed rows, copied caches, windows shorter than the chat, capped logits: the same losses, the same prompt."""
    kind, _, weighted = name.partition(", weight")
    config = replace(SHORT_RUN, unlikelihood_weight=5.0 if weighted else 1.0, learning_rate=1e-2)
    model = family(kind)
    run = tune(model, config=config)
    expected, prompt = plain_run(model, config)
    assert len(run.history) == len(expected) == 8
    found = torch.tensor(run.history[LOSSES].to_numpy(), dtype=torch.float32)
    print(f"\n{name}: losses within {(found - expected).abs().max():.1e}")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    moved = (prompt - run.snapshots[0]).norm()
    assert moved > 0.05
    assert (run.soft_prompt.embeddings - prompt).norm() < 1e-3 * moved
    assert (expected[0] - expected[-1]).abs().max() > 1e-3  # a run that stood still would agree as well


def test_the_papers_formula_differs_by_a_constant(tiny_llama: ChatModel) -> None:
    """ln (1 - p) goes through one more softmax there: ln (V - 1) on top, and the same prompt."""
    run, (papers, prompt) = tune(tiny_llama), plain_run(tiny_llama, SHORT_RUN, papers=True)
    excess = papers[:, 1] - torch.tensor(run.history["unlikelihood_loss"].to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(excess, torch.full_like(excess, 259.0).log(), rtol=0, atol=1e-4)
    assert (run.soft_prompt.embeddings - prompt).norm() < 1e-3 * (prompt - run.snapshots[0]).norm()


def test_another_weight_is_another_run(tiny_llama: ChatModel, finished: PromptTuningRun) -> None:
    """The control for the tests above."""
    other = tune(tiny_llama, config=replace(SHORT_RUN, likelihood_weight=0.0))
    moved = (finished.soft_prompt.embeddings - finished.snapshots[0]).norm()
    assert (other.soft_prompt.embeddings - finished.soft_prompt.embeddings).norm() > 0.05 * moved


def test_passes_that_do_not_fit_are_divided_with_equal_results(
    tiny_llama: ChatModel, finished: PromptTuningRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_afforded", WeakKeyDictionary())  # the model is not ours alone
    with memory_for(tiny_llama, 150) as tried:
        run = tune(tiny_llama)
    assert any(size > 150 for size in tried)
    torch.testing.assert_close(run.soft_prompt.embeddings, finished.soft_prompt.embeddings, rtol=0, atol=1e-5)


# --- what a run holds --------------------------------------------------------------------------------------


def test_what_a_run_holds(tiny_llama: ChatModel, finished: PromptTuningRun) -> None:
    assert finished.history.columns.tolist() == list(dro.TUNING_COLUMNS)
    assert finished.history["epoch"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    prompt = finished.soft_prompt
    assert (prompt.name, prompt.init_text, prompt.model_fingerprint) == (
        "vpt-careful",
        CAREFUL.text,
        tiny_llama.fingerprint,
    )
    assert list(finished.snapshots) == [0, 3, 6, 8]
    assert finished.seconds > 0
    counts = finished.learned.set_index(["harmful", "verdict"])["replies"]
    assert counts.to_dict() == {
        (True, "full_refusal"): 5,
        (True, "compliance"): 10,
        (False, "compliance"): 5,
        (False, "full_refusal"): 10,
    }
    assert "learned from 5 harmful queries that were refused (5 replies), and needs 10" in finished.problems[0]
    assert "5 harmless queries that were answered" in finished.problems[1]


def test_more_steps_than_epochs_and_fewer(tiny_llama: ChatModel, finished: PromptTuningRun) -> None:
    for most in (2, 10):
        history = tune(tiny_llama, config=replace(SHORT_RUN, max_steps=most)).history
        assert len(history) == most
        shared = min(most, 8)
        pd.testing.assert_frame_equal(history.head(shared), finished.history.head(shared), check_exact=True)
    assert history["epoch"].tolist()[-2:] == [2, 2]


def test_what_is_refused_becomes_likelier_on_harmful_queries_and_with_swapped_verdicts_the_other_way(
    tiny_llama: ChatModel,
) -> None:
    config = replace(SHORT_RUN, max_steps=12, learning_rate=5e-2)
    true = tune(tiny_llama, config=config)
    swapped = tune(tiny_llama, config=config, judge=lambda response: not is_refusal(response))

    def margin(soft: Tensor, harmful: bool) -> float:
        """How much likelier a token of a refusal is than one of an answer, in nats."""
        means = []
        for kind in (REFUSALS, ANSWERS):
            said = []
            for query in QUERIES[QUERIES["harmful"] == harmful]["text"]:
                embedded, labels = chat_of(tiny_llama, soft, query, kind[0], ended=True)
                with torch.no_grad():
                    logits = tiny_llama.model(inputs_embeds=embedded[None]).logits[0, -len(labels) - 1 : -1]
                said.append(logits.log_softmax(-1)[range(len(labels)), labels].mean())
            means.append(torch.stack(said).mean())
        return float(means[0] - means[1])

    start = true.snapshots[0]
    rise = {
        run: [margin(soft, harmful) - margin(start, harmful) for harmful in (True, False)]
        for run, soft in (("true", true.soft_prompt.embeddings), ("swapped", swapped.soft_prompt.embeddings))
    }
    print(f"\nrise of the margin (harmful, harmless): {rise}")
    assert rise["true"][0] - rise["true"][1] > 0.02
    assert rise["swapped"][0] - rise["swapped"][1] < -0.02


def test_replies_that_were_neither_refused_nor_answered_teach_nothing(
    tiny_llama: ChatModel, finished: PromptTuningRun
) -> None:
    extra = REPLIES.head(4).assign(response="Hm.")
    said = {**dict.fromkeys(REFUSALS, "full_refusal"), **dict.fromkeys(ANSWERS, "compliance"), "Hm.": "neither"}
    run = tune(tiny_llama, replies=pd.concat([REPLIES, extra], ignore_index=True), judge=said.__getitem__)
    assert torch.equal(run.soft_prompt.embeddings, finished.soft_prompt.embeddings)


# --- going on ----------------------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


def failing(after: int, error: Callable[[], Any]) -> Callable[..., Any]:
    calls, original = iter(range(1, 1000)), baselines.label_logits
    return lambda *given: original(*given) if next(calls) <= after else error()


def assert_equal(one: PromptTuningRun, other: PromptTuningRun) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert torch.equal(one.soft_prompt.embeddings, other.soft_prompt.embeddings)
    assert list(one.snapshots) == list(other.snapshots)


@pytest.mark.parametrize("done", [0, 6])
def test_an_interrupted_run_goes_on_to_the_last_bit(
    tiny_llama: ChatModel, finished: PromptTuningRun, store: Store, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "label_logits", failing(done, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"{done} of 8 steps are in the store: run the same call again"):
            tune(tiny_llama, store)
    patched = failing(8 - done, interrupt)  # not one step more than what was left
    monkeypatch.setattr(baselines, "label_logits", patched)
    assert_equal(tune(tiny_llama, store), finished)


@pytest.fixture(scope="module")
def kept(tiny_llama: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """It has the run."""
    folder = Store(tmp_path_factory.mktemp("kept"))
    tune(tiny_llama, folder)
    return folder


def test_a_finished_run_loads_without_the_model_running_with_its_time(
    tiny_llama: ChatModel, finished: PromptTuningRun, kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "label_logits", failing(0, interrupt))
    again = tune(tiny_llama, kept)
    assert_equal(again, finished)
    assert again.seconds == tune(tiny_llama, kept).seconds > 0
    assert again.seconds != finished.seconds  # that of the run that was kept
    pd.testing.assert_frame_equal(again.learned, finished.learned)
    assert len(tune(tiny_llama, kept, config=replace(SHORT_RUN, checkpoint_every=7)).history) == 8


@pytest.mark.parametrize(
    "changed",
    [
        {"config": replace(SHORT_RUN, seed=1)},
        {"init": SafetyPrompt(name="careful", text="Be careful, be kind!")},
        {"replies": REPLIES.iloc[::-1]},
        {"judge": lambda response: not is_refusal(response)},
    ],
    ids=["seed", "init", "order", "judge"],
)
def test_another_run_is_not_mistaken_for_it(
    tiny_llama: ChatModel, kept: Store, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(baselines, "label_logits", failing(0, interrupt))
    with pytest.raises(KeyboardInterrupt, match="0 of"):
        tune(tiny_llama, kept, **changed)


# --- bad input ---------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[DrolabError], str]] = {
    "one class": ({"queries": QUERIES.head(5)}, QueryError, "All 5 training queries are harmful.*add harmless"),
    "no such replies": (
        {"replies": replies_to(QUERIES, ("none",))},
        QueryError,
        r"no reply to the training queries under prompt 'careful' \(there are replies under \['none'\]\): generate",
    ),
    "other queries": ({"replies": REPLIES.assign(query_id="x")}, QueryError, "no reply to the training queries"),
    "other texts": ({"replies": REPLIES.assign(text="How?")}, QueryError, "'q0' has another text in the replies"),
    "no column": ({"replies": REPLIES.drop(columns="response")}, QueryError, "no column 'response': pass the table"),
    "nothing to learn": (
        {"replies": REPLIES.assign(response=REPLIES["harmful"].map({True: ANSWERS[0], False: REFUSALS[0]}))},
        TooFewError,
        "None of the 40 replies is a refusal of a harmful query or an answer to a harmless one",
    ),
    "no text": ({"init": SafetyPrompt(name="none", text="")}, PromptError, "Prompt tuning starts from the text"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_input_is_refused_before_the_first_step(
    tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes, error, message = WRONG[case]
    monkeypatch.setattr(baselines, "label_logits", failing(0, interrupt))
    with pytest.raises(error, match=message):
        tune(tiny_llama, **changes)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"max_steps": 0}, {"likelihood_weight": -1.0}, {"max_reply_tokens": 0}, {"batch_size": 0}],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="must"):
        PromptTuningConfig(**wrong)


def test_a_loss_that_is_not_finite(tiny_llama: ChatModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ChatModel, prefix: Any, suffixes: Any, counts: list[int]) -> Tensor:
        return baselines.torch.full((sum(counts), 260), float("nan")).requires_grad_()

    monkeypatch.setattr(baselines, "label_logits", broken)
    with pytest.raises(TrainingError, match=r"Prompt tuning step 1: the likelihood term is nan.*Lower learning_rate"):
        tune(tiny_llama, store)


# --- a model that thinks first -----------------------------------------------------------------------------


def test_answers_of_a_model_that_thinks_are_learned_behind_an_empty_thought() -> None:
    """The same run as with thinking switched off, whose chats end there by themselves."""

    def model(**told: bool) -> ChatModel:
        switch = TEMPLATES["switch"]
        return wrap(random_llama(), byte_tokenizer(), name="t", chat_template=switch, template_kwargs=told or None)

    apart = REPLIES.assign(reasoning="Hm.", n_reasoning_tokens=9)
    thinks = tune(model(), replies=apart, config=replace(SHORT_RUN, max_steps=2))
    answers = tune(model(enable_thinking=False), config=replace(SHORT_RUN, max_steps=2))
    assert torch.equal(thinks.soft_prompt.embeddings, answers.soft_prompt.embeddings)
    elsewhere = tune(model(), config=replace(SHORT_RUN, max_steps=2))
    assert not torch.equal(thinks.soft_prompt.embeddings, elsewhere.soft_prompt.embeddings)
