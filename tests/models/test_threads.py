"""Edits act in the thread that entered them: what another thread computes and keeps meanwhile is the model's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pandas as pd
import pytest
import torch
from helpers.dro_panel import panel_of
from helpers.families import fresh
from helpers.kernel import SECONDS
from helpers.replies import QUERIES
from helpers.steering import CARE, LAST, all_states, hooks, vector
from helpers.training import SHORT_RUN, Setting, setting_of

from drolab.errors import ModelError
from drolab.evidence.causal import dose_response
from drolab.inference import generate, hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import Add, ChatModel, interventions, steered
from drolab.models.interventions import active_edits
from drolab.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

PUSH = Add(vector(norm=9.0), 1)
JUDGE = FirstTokenJudge(
    tokens=torch.arange(4, 200), refusal_rate=torch.linspace(0, 1, 196), counts=torch.ones(196, dtype=torch.int64)
)
SETTINGS = {"n_samples": 4, "max_new_tokens": 4, "progress": False}
FAST = replace(SHORT_RUN, num_train_epochs=2)


@contextmanager
def steered_elsewhere(model: ChatModel, *, at_once: bool = True) -> Iterator[None]:
    """From the first pass in the block on, until it ends, the model is edited by a thread of its own.

    That thread enters its context when the pass has begun, and the pass goes on when the context is in force. It runs
    the edited model before that and, `at_once`, beside the pass as well.
    """
    begun, entered, done = threading.Event(), threading.Event(), threading.Event()
    found: list[torch.Tensor] = []

    def steer() -> None:
        assert begun.wait(SECONDS)
        with steered(model, PUSH) as changed:
            found.append(all_states(changed))
            entered.set()
            if at_once:
                found.append(all_states(changed))
            done.wait(SECONDS)

    other = threading.Thread(target=steer)

    def begin(*_: object) -> None:
        if threading.current_thread() is not other:
            begun.set()
            assert entered.wait(SECONDS)

    hook = model.base_model.register_forward_pre_hook(begin)
    other.start()
    try:
        yield
        assert entered.is_set()
    finally:
        begun.set()
        done.set()
        other.join(SECONDS)
        hook.remove()
    assert len(found) == 1 + at_once
    for own in found:
        assert not torch.allclose(own, all_states(model), atol=0.1)
    assert hooks(model) == 0


class Kind(NamedTuple):
    """Something that computes and keeps."""

    work: Callable[[ChatModel, Store], Any]
    equal: Callable[[Any, Any], None]


def states(model: ChatModel, store: Store) -> torch.Tensor:
    layers = range(LAST + 1)
    return hidden_states(model, QUERIES, CARE, layers=layers, store=store, progress=False).values


def replies(model: ChatModel, store: Store) -> pd.DataFrame:
    return generate(model, QUERIES, CARE, store=store, **SETTINGS)


def effects(model: ChatModel, store: Store) -> pd.DataFrame:
    options = {"layer": 1, "unit": 3.0, "doses": (1.0, -1.0), "n_random": 2, "progress": False}
    return dose_response(model, QUERIES, CARE, JUDGE, {"one": vector(1)}, **options)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return replace(setting_of(fresh()), config=FAST)


def run_of(setting: Setting) -> Callable[[ChatModel, Store], Any]:
    return lambda model, store: replace(setting, model=model).train(store).soft_prompt.embeddings


def job_of(setting: Setting) -> Callable[[ChatModel, Store], Any]:
    def work(model: ChatModel, store: Store) -> torch.Tensor:
        panel = panel_of(replace(setting, model=model), store, config=FAST)
        panel.controls["start"].click()
        assert panel.wait(SECONDS)
        assert panel.message.value == ""
        return panel.result().soft_prompt.embeddings

    return work


def same_numbers(one: torch.Tensor, other: torch.Tensor) -> None:
    assert torch.equal(one, other)


@pytest.fixture(params=["states", "replies", "effects", "training", "panel"])
def kind(request: pytest.FixtureRequest, setting: Setting) -> Kind:
    return {
        "states": Kind(states, same_numbers),
        "replies": Kind(replies, pd.testing.assert_frame_equal),
        "effects": Kind(effects, pd.testing.assert_frame_equal),
        "training": Kind(run_of(setting), same_numbers),
        "panel": Kind(job_of(setting), same_numbers),
    }[request.param]


def meanwhile(kind: Kind, store: Store, alone: Store, *, at_once: bool = True) -> tuple[Any, Any, Any]:
    """What is computed while another thread steers, the same from the store afterwards, and as it is without others."""
    model = fresh()
    expected = kind.work(fresh(), alone)
    with steered_elsewhere(model, at_once=at_once):
        found = kind.work(model, store)
    return found, kind.work(model, store), expected


def test_what_is_kept_while_another_thread_steers_is_the_models_own(kind: Kind, store: Store, tmp_path: Any) -> None:
    found, kept, expected = meanwhile(kind, store, Store(tmp_path / "alone"))
    kind.equal(found, expected)
    kind.equal(kept, expected)


def test_edits_of_all_threads_would_be_found_out(
    kind: Kind, store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: edits that act on whoever runs the model, as they once did, and nobody who looks again.

    The other thread runs the model only while this one waits: here a pass of each would undo the other's edits.
    """
    monkeypatch.setattr(
        interventions, "_here", SimpleNamespace(active=WeakKeyDictionary(), entering=WeakKeyDictionary())
    )
    for place in ("inference.hidden", "inference.responses", "inference.next_tokens", "models.passes"):
        monkeypatch.setattr(import_module(f"drolab.{place}"), "check_edits", lambda model: None)
    monkeypatch.setattr(interventions, "check_edits", lambda model, **_: None)
    found, _, expected = meanwhile(kind, store, Store(tmp_path / "alone"), at_once=False)
    with pytest.raises(AssertionError):
        kind.equal(found, expected)


def in_a_thread(work: Callable[[], object]) -> object:
    """What it returns, or the error that ended it."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except ModelError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SECONDS)
    return found[0]


def test_a_thread_that_is_started_inside_inherits_no_edits(tiny_llama: ChatModel) -> None:
    plain = all_states(tiny_llama)
    with steered(tiny_llama, PUSH) as changed:
        own = in_a_thread(lambda: all_states(tiny_llama))
        refused = in_a_thread(lambda: all_states(changed))
        assert not in_a_thread(lambda: active_edits(tiny_llama))

        def again() -> torch.Tensor:
            with steered(tiny_llama, PUSH) as mine:
                return all_states(mine)

        edited = in_a_thread(again)
        assert torch.equal(edited, all_states(changed))
    assert torch.equal(own, plain)
    assert isinstance(refused, ModelError)
    assert "in the thread that entered it" in str(refused)
    assert hooks(tiny_llama) == 0


def test_a_context_may_end_in_another_thread(tiny_llama: ChatModel) -> None:
    plain, context = all_states(tiny_llama), steered(tiny_llama, PUSH)
    context.__enter__()
    in_a_thread(lambda: context.__exit__(None, None, None))
    assert torch.equal(all_states(tiny_llama), plain)
    assert hooks(tiny_llama) == 0


def test_edits_that_come_between_two_passes_are_seen(tiny_llama: ChatModel, store: Store) -> None:
    """In the thread itself, too: a progress callback that enters a context and leaves it open."""
    context = steered(tiny_llama, PUSH)

    def enter(done: int, total: int) -> None:
        if done == 1:
            context.__enter__()

    try:
        with pytest.raises(ModelError, match="being edited"):
            hidden_states(tiny_llama, QUERIES, CARE, store=store, token_budget=1, progress=enter)
    finally:
        context.__exit__(None, None, None)
    kept = hidden_states(tiny_llama, QUERIES, CARE, store=store, progress=False)
    assert kept.index.attrs["summary"] == "1 of 5 chats found in the store, 4 computed now"
    alone = hidden_states(tiny_llama, QUERIES, CARE, progress=False)
    torch.testing.assert_close(kept.values, alone.values, rtol=0, atol=1e-5)
