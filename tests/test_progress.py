"""Progress of long work: who is told what, and that an exception of the listener ends the work with all of it kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import drolab
from drolab.models import ChatModel
from drolab.progress import Progress, bar
from drolab.types import QUERY_COLUMNS, DROConfig, SafetyPrompt

TEXTS = ["How to paint?", "How to kill a man?", "Why?", "How to hurt my aunt?", "How to cook rice well?", "So?"]
ROWS = [
    (f"q{number}", text, "to" in text and number % 2 == 1, "made", "train", "test") for number, text in enumerate(TEXTS)
]
QUERIES = pd.DataFrame(ROWS, columns=list(QUERY_COLUMNS), index=[row[0] for row in ROWS])
CARE = SafetyPrompt(name="careful", text="Be careful, be kind.")

Work = Callable[[drolab.Store | None, Progress], str | None]
"""Runs something long with a store and a progress; returns its summary, if it has one."""


class Ended(Exception):  # noqa: N818 - as a stop button does
    pass


class Listener:
    """Notes each call; raises in call number `end_at`."""

    def __init__(self, *, end_at: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self._end_at = end_at

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if len(self.calls) == self._end_at:
            raise Ended


def states_of(model: ChatModel) -> Work:
    def work(store: drolab.Store | None, progress: Progress) -> str:
        found = drolab.hidden_states(model, QUERIES, CARE, store=store, token_budget=1, progress=progress)
        return str(found.index.attrs["summary"])

    return work


def replies_of(model: ChatModel) -> Work:
    def work(store: drolab.Store | None, progress: Progress) -> str:
        options: dict[str, Any] = {"n_samples": 2, "max_new_tokens": 3, "batch_size": 2}
        found = drolab.generate(model, QUERIES, CARE, **options, store=store, progress=progress)
        return str(found.attrs["summary"])

    return work


def training_of(model: ChatModel) -> Work:
    prompts = [SafetyPrompt(name="none", text=""), CARE]
    states = drolab.hidden_states(model, QUERIES, prompts, progress=False)
    space = drolab.fit_anchors(states)
    harmful = drolab.fit_probe(space, states, QUERIES["harmful"], positive="harmful")
    probes = {"refusal": replace(harmful, positive="refuses"), "harmfulness": harmful}
    config = DROConfig(num_train_epochs=2, batch_size=2, checkpoint_every=100)  # 6 steps

    def work(store: drolab.Store | None, progress: Progress) -> None:
        drolab.train_dro(
            model, QUERIES, init=CARE, space=space, **probes, config=config, store=store, progress=progress
        )

    return work


@pytest.fixture(params=[states_of, replies_of, training_of])
def work(request: pytest.FixtureRequest, tiny_llama: ChatModel) -> Work:
    return request.param(tiny_llama)


def test_a_callable_hears_the_start_and_every_batch(work: Work, store: drolab.Store) -> None:
    heard = Listener()
    work(store, heard)
    done, totals = zip(*heard.calls, strict=True)
    assert len(set(totals)) == 1
    assert done == tuple(range(0, totals[0] + 1, totals[0] // 6))  # six batches of one or two


def test_what_is_done_already_counts_from_the_start(work: Work, store: drolab.Store) -> None:
    work(store, False)
    heard = Listener()
    work(store, heard)
    ((done, total),) = heard.calls
    assert done == total


def test_an_exception_ends_the_work_and_all_that_was_finished_is_kept(work: Work, store: drolab.Store) -> None:
    with pytest.raises(Ended) as held:  # with the frames of its traceback: nothing may wait for their end
        work(store, stopped := Listener(end_at=4))
    done, total = stopped.calls[-1]
    assert done == total // 2
    summary = work(store, again := Listener())
    assert again.calls[0] == (done, total)
    assert len(again.calls) == 4
    assert summary is None or re.fullmatch(
        f"{done} of {total} .* found in the store, {total - done} computed now", summary
    )
    del held


def test_an_exception_at_the_start_ends_it_before_any_work(work: Work, store: drolab.Store) -> None:
    with pytest.raises(Ended):
        work(store, Listener(end_at=1))
    work(store, again := Listener())
    assert again.calls[0][0] == 0


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drolab.progress._SHOWN_AFTER", 0.0)


@pytest.mark.usefixtures("at_once")
def test_false_shows_nothing_and_true_a_bar(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    work(None, False)
    assert capsys.readouterr() == ("", "")
    work(None, True)
    assert "100%" in capsys.readouterr().err


def test_what_is_done_soon_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(True, total=2, desc="work", unit="piece") as counted:
        counted.update(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_a_note_stands_beside_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(True, total=2, initial=1, desc="work", unit="piece") as counted:
        counted.note("half")
        counted.update()
    shown = capsys.readouterr().err
    assert "work" in shown
    assert "half" in shown
    assert "2/2" in shown
