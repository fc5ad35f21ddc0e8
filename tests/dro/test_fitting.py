"""All contenders by one protocol: the same queries, the same steps, the strength by its rule, and flagged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.training import CAREFUL, query_table

from drolab import dro
from drolab.dro import Contenders, baselines, fitting, training
from drolab.errors import DrolabError, PromptError, QueryError, StatesError
from drolab.inference import generate
from drolab.models import Ablate, Add, ChatModel
from drolab.store import Store
from drolab.types import DROConfig, SafetyPrompt

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::drolab.errors.UnreliableWarning"),
]

THINGS = ("a man", "the king", "my aunt", "a judge", "the cook", "him", "a bird", "some people", "her", "all")
OTHERS = ("a job", "a tab", "my lawn", "time", "the engine", "a process", "the lights", "an app", "noise", "it")
QUERIES = query_table([f"How to kill {thing}?" for thing in THINGS], [f"How to stop {thing}?" for thing in OTHERS])
PROMPTS = {
    "none": SafetyPrompt(name="none", text=""),
    "careful": CAREFUL,
    "kind": SafetyPrompt(name="kind", text="Do no harm."),
}
CONFIG = DROConfig(num_train_epochs=2, batch_size=8)  # 6 steps
TRAINED = ["dro-careful", "vpt-careful"]
TERMS = [f"dro-careful without {term}" for term in ("refusal", "harmfulness", "residual")]
LESS = ["dro-careful 4 anchors", "dro-careful without harmless", "dro-careful other anchors"]
STEERED = ["steered", "ablated", "random"]


def says_no(response: str) -> bool:
    """A random model's replies are bytes: half of them are to count as refusals."""
    return bool(response) and ord(response[0]) % 2 == 0


@pytest.fixture(scope="module", autouse=True)
def _few_looks() -> Iterator[None]:
    """Whether a contender broke the model is asked of two queries of each class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_DAMAGE_QUERIES", 2)
        yield


@pytest.fixture(scope="module")
def replies(tiny_llama: ChatModel) -> pd.DataFrame:
    return generate(tiny_llama, QUERIES, PROMPTS, n_samples=4, max_new_tokens=4, top_p=1.0, progress=False)


def fit(model: ChatModel, replies: pd.DataFrame, **changes: Any) -> Contenders:
    given: dict[str, Any] = {"prompts": PROMPTS, "init": "careful", "judge": says_no, "config": CONFIG}
    given |= {"anchors": (4, 10), "layers": (1,), "strengths": (0.5, 1.0), "progress": False}
    return dro.fit_contenders(model, **{"queries": QUERIES, "replies": replies, **given, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def field(tiny_llama: ChatModel, replies: pd.DataFrame, folder: Store) -> Contenders:
    return fit(tiny_llama, replies, store=folder)


def test_all_are_there_in_order_on_the_same_budget(field: Contenders) -> None:
    assert list(field) == ["none", "careful", "kind", *TRAINED, *TERMS, *LESS, *STEERED]  # 10 anchors are all there are
    assert not field.left_out
    trained = [*TRAINED, *TERMS, *LESS]
    assert {field[name].n_steps for name in trained} == {6}
    assert all(field[name].seconds > 0 for name in [*trained, "steered"])
    assert {field[name].n_tokens for name in trained} == {field["careful"].n_tokens}
    assert {field[name].n_tokens for name in ["none", *STEERED]} == {0}
    assert {name: field[name].n_queries for name in LESS} == dict(zip(LESS, (8, 10, 20), strict=True))
    kinds = [field[name].kind for name in ("none", "careful", *TRAINED, TERMS[0], LESS[0], *STEERED)]
    assert kinds == [
        "none", "text", "dro", "prompt tuning", "ablation", "ablation", "steering", "steering", "control"
    ]  # fmt: skip
    prompts = [field[name].prompt.sha256 for name in trained]
    assert len(set(prompts)) == len(prompts)


def test_what_is_left_out_is_left_out(field: Contenders) -> None:
    runs = {name: field[name].about["run"] for name in [*TERMS, *LESS, "dro-careful"]}
    whole = runs["dro-careful"]
    weights = [
        tuple(getattr(runs[name].config, f"{term}_weight") for term in ("refusal", "harmfulness", "residual"))
        for name in TERMS
    ]
    assert weights == [(0.0, 1.0, 0.01), (1.0, 0.0, 0.01), (1.0, 0.01, 0.0)]
    assert runs[LESS[0]].config.num_train_epochs == 6  # of one batch each
    few, harmful, others = (runs[name] for name in LESS)
    assert harmful.space.sha256 == whole.space.sha256
    assert len({run.space.sha256 for run in (whole, few, others)}) == 3


def test_steering(tiny_llama: ChatModel, field: Contenders) -> None:
    steered, ablated, control = (field[name] for name in STEERED)
    (edit,), (other,) = steered.edits, control.edits
    assert [type(one) for one in (edit, other, ablated.edits[0])] == [Add, Add, Ablate]
    assert edit.layer == other.layer == 1
    assert float(edit.direction.norm()) == pytest.approx(float(other.direction.norm()))
    assert torch.cosine_similarity(edit.direction, other.direction, dim=0).abs() < 0.6
    torch.testing.assert_close(ablated.edits[0].direction, edit.direction)
    along = edit.direction / edit.direction.norm()
    states = ablated.states(tiny_llama, QUERIES, layers=(1,), progress=False).matrix(1) @ along
    torch.testing.assert_close(states, (ablated.edits[0].reference @ along).expand(len(states)), rtol=1e-4, atol=1e-4)
    tried = steered.about["tried"]
    assert tried["strength"].tolist() == [0.5, 1.0]
    assert tried["norm"].iloc[1] == pytest.approx(2 * tried["norm"].iloc[0])
    assert steered.n_steps == 2
    best = tried[tried["note"] == ""].sort_values("score", ascending=False).iloc[0]
    assert steered.about["strength"] == best["strength"]
    assert steered.about["norm"] == pytest.approx(best["norm"])
    pushed = steered.replies(tiny_llama, QUERIES, n_samples=1, max_new_tokens=1, progress=False)
    assert set(pushed["prompt"]) == {"steered"}


def test_the_difference_of_means_is_that_of_the_replies(
    tiny_llama: ChatModel, replies: pd.DataFrame, field: Contenders
) -> None:
    """By hand, from hidden states and verdicts."""
    states = Contenders(dro.text_contender(tiny_llama, prompt) for prompt in PROMPTS.values()).states(
        tiny_llama, QUERIES, layers=(1,), progress=False
    )
    rate = replies.assign(no=replies["response"].map(says_no)).groupby(["prompt", "query_id"])["no"].mean()
    p = torch.tensor(rate.loc[list(zip(states.index["prompt"], states.index["query_id"], strict=True))].to_numpy())
    matrix = states.matrix(1).double()
    difference = (p @ matrix) / p.sum() - ((1 - p) @ matrix) / (1 - p).sum()
    expected = field["steered"].about["strength"] * difference
    torch.testing.assert_close(field["steered"].edits[0].direction.double(), expected, rtol=1e-3, atol=1e-4)
    answered = ((1 - p) @ matrix) / (1 - p).sum()
    torch.testing.assert_close(field["ablated"].edits[0].reference.double(), answered, rtol=1e-4, atol=1e-5)


def test_a_second_call_trains_nothing_and_knows_the_time(
    tiny_llama: ChatModel, replies: pd.DataFrame, field: Contenders, folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any, **options: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(training, "forward_states", interrupt)
    monkeypatch.setattr(baselines, "label_logits", interrupt)
    groups = ("dro", "prompt tuning", "anchors")
    again = fit(tiny_llama, replies, store=folder, groups=groups)
    for name in [*TRAINED, *LESS]:
        assert again[name].prompt.sha256 == field[name].prompt.sha256
        assert again[name].seconds == field[name].seconds


def test_another_seed_trains_another_prompt_and_draws_another_control(
    tiny_llama: ChatModel, replies: pd.DataFrame, field: Contenders
) -> None:
    other = fit(tiny_llama, replies, groups=("dro", "steering"), seed=7)
    assert other["dro-careful"].prompt.sha256 != field["dro-careful"].prompt.sha256
    assert not torch.equal(other["random"].edits[0].direction, field["random"].edits[0].direction)
    assert torch.equal(other["steered"].edits[0].direction, field["steered"].edits[0].direction)


def test_a_strength_that_breaks_the_model_is_flagged_and_not_chosen(
    tiny_llama: ChatModel, replies: pd.DataFrame, field: Contenders
) -> None:
    groups = ("steering",)
    alone = fit(tiny_llama, replies, groups=groups, strengths=(200.0,))["steered"]
    assert alone.about["strength"] == 200.0
    assert any(problem.startswith("The model broke") for problem in alone.problems)
    assert alone.broke
    assert alone.about["tried"]["note"].str.startswith("The model broke").all()
    beside = fit(tiny_llama, replies, groups=groups, strengths=(0.5, 200.0))["steered"]
    assert beside.about["strength"] == 0.5
    assert beside.about["tried"]["note"].astype(bool).tolist() == [False, True]
    assert not any(problem.startswith("The model broke") for problem in beside.problems)
    assert not beside.broke


def test_what_cannot_be_fitted_is_left_out_and_why(tiny_llama: ChatModel, replies: pd.DataFrame) -> None:
    never = fit(tiny_llama, replies, judge=lambda response: False, config=DROConfig(num_train_epochs=1))
    assert list(never) == ["none", "careful", "kind", "vpt-careful"]
    assert set(never.left_out) == {"dro-careful", *TERMS, *LESS, *STEERED}
    assert "'refuses' is 0 for all 60 states" in never.left_out["dro-careful"]
    assert "learned from 0 harmful queries that were refused" in " ".join(never["vpt-careful"].problems)
    two = {name: PROMPTS[name] for name in ("none", "careful")}
    left = fit(tiny_llama, replies, prompts=two, groups=("anchors",), anchors=()).left_out
    assert left == {LESS[2]: "There is no other prompt than 'careful' to take anchors from: pass more prompts."}


WRONG: dict[str, tuple[dict[str, Any], type[DrolabError], str]] = {
    "one class": ({"queries": QUERIES.head(10)}, QueryError, "All 10 training queries are harmful.*add harmless"),
    "no such prompt": ({"init": "kinder"}, PromptError, "no prompt 'kinder' with a text to train.*careful and kind"),
    "no text": ({"init": "none"}, PromptError, "no prompt 'none' with a text"),
    "no such group": ({"groups": ("texts",)}, StatesError, r"no contenders \['texts'\]: groups are some of text, dro"),
    "one anchor": ({"anchors": (1,)}, StatesError, "too few to fit on"),
    "no strength": ({"strengths": ()}, StatesError, "Strengths are lengths above 0"),
    "strength 0": ({"strengths": (0.0,)}, StatesError, r"got \[0.0\]"),
    "no such layer": ({"layers": (9,)}, StatesError, "9"),
    "no such replies": (
        {"prompts": {**PROMPTS, "more": SafetyPrompt(name="more", text="Be nice.")}},
        QueryError,
        r"20 of 20 training queries have no reply under prompt 'more' \(first: 'q0'\): generate them",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_input_is_refused_before_anything_is_fitted(
    tiny_llama: ChatModel, replies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes, error, message = WRONG[case]
    monkeypatch.setattr(fitting, "hidden_states", None)
    with pytest.raises(error, match=message):
        fit(tiny_llama, replies, **changes)


def test_one_class_is_trained_on_purpose_only(tiny_llama: ChatModel, field: Contenders) -> None:
    run = field["dro-careful"].about["run"]
    fits = {"space": run.space, "refusal": run.refusal, "harmfulness": run.harmfulness}
    options = {"init": CAREFUL, "config": CONFIG, "progress": False, **fits}
    harmful = QUERIES[QUERIES["harmful"]]
    assert len(dro.train_dro(tiny_llama, harmful, one_class=True, **options).history) == 4
    with pytest.raises(QueryError, match="All 10 training queries are harmful"):
        dro.train_dro(tiny_llama, harmful, **options)
