"""A model on the CPU runs with one thread less than there are cores, and with no more than it can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from helpers.families import fresh
from helpers.planted import axis, planted_states
from helpers.replies import QUERIES
from helpers.steering import CARE, vector
from helpers.training import setting_of
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from drolab import evidence, threads
from drolab.evidence.causal import ablation
from drolab.inference import first_token_probabilities, generate, hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel
from drolab.probing import fit_anchors, fit_probe
from drolab.threads import n_threads, one_thread, threads_for

JUDGE = FirstTokenJudge(
    tokens=torch.arange(4, 200), refusal_rate=torch.linspace(0, 1, 196), counts=torch.ones(196, dtype=torch.int64)
)


def of_size(n_weights: int) -> nn.Module:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(1).expand(n_weights)))
    return model


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets how many cores there are, as torch begins with them."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def begin(n: int) -> None:
        monkeypatch.setattr(threads, "_BEGAN_WITH", n)
        torch.set_num_threads(n)

    yield begin
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_cores", "n_weights", "expected"),
    [(2, 3_000_000, 1), (2, 10**9, 1), (8, 3_000_000, 1), (8, 135_000_000, 4), (8, 10**9, 7), (1, 10**9, 1)],
)
def test_one_core_is_left_and_small_models_take_few(
    cores: Callable[[int], None], n_cores: int, n_weights: int, expected: int
) -> None:
    cores(n_cores)
    model = of_size(n_weights)
    assert n_threads(model) == expected
    with threads_for(model):
        assert torch.get_num_threads() == expected
        assert n_threads(model) == expected  # also within
    assert torch.get_num_threads() == n_cores


def test_what_the_user_chose_stays(cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8)
    for chosen in (3, 4):
        torch.set_num_threads(chosen)
        assert n_threads(of_size(10)) == chosen
    torch.set_num_threads(8)
    assert n_threads(of_size(10)) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert n_threads(of_size(10)) == 8


def test_models_that_run_elsewhere_are_left_alone(cores: Callable[[int], None]) -> None:
    cores(8)
    assert n_threads(nn.Linear(3, 3, device="meta")) == 8


def states(model: ChatModel) -> None:
    hidden_states(model, QUERIES, CARE, progress=False)


def replies(model: ChatModel) -> None:
    generate(model, QUERIES, CARE, n_samples=2, max_new_tokens=3, progress=False)


def first_tokens(model: ChatModel) -> None:
    first_token_probabilities(model, QUERIES, CARE)


def edits(model: ChatModel) -> None:
    ablation(model, QUERIES, CARE, JUDGE, {"one": vector(1)}, layer=1, n_random=1, progress=False)


def training(model: ChatModel) -> None:
    setting_of(model).train()


@pytest.mark.parametrize("work", [states, replies, first_tokens, edits, training])
def test_all_work_runs_the_model_so(cores: Callable[[int], None], work: Callable[[ChatModel], None]) -> None:
    cores(2)
    model, seen = fresh(), set()
    work(model)  # what is tried once for a model is done
    model.base_model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    work(model)
    assert seen == {1}
    assert torch.get_num_threads() == 2


# --- linear algebra ------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("said", ["", "OPENBLAS_NUM_THREADS"])
def test_small_fits_take_one_thread_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    for name in threads._SAID:
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv(said, "3")

    @one_thread
    def within() -> set[int]:
        with pytest.raises(ZeroDivisionError):
            one_thread(lambda: 1 / 0)()
        return blas_threads()

    with threadpool_limits(3, user_api="blas"):
        assert within() == ({3} if said else {1})
        assert blas_threads() == {3}


def test_what_fits_many_times_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads._SAID:
        monkeypatch.delenv(name, raising=False)
    seen: set[int] = set()
    fit = LogisticRegression.fit

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.update(blas_threads())
        return fit(*args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    states = planted_states({"long": axis(1)})
    with threadpool_limits(3, user_api="blas"):
        evidence.separability(states, n_splits=2, n_repeats=1)
        assert seen == {1}
        fit_probe(fit_anchors(states), states, states.index["harmful"].to_numpy(), positive="harmful")
        assert seen == {1}
        LogisticRegression().fit(states.matrix(-1).numpy(), states.index["harmful"])  # the control
        assert seen == {1, 3}


def test_fits_that_overlap_in_two_threads_leave_the_number_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads._SAID:
        monkeypatch.delenv(name, raising=False)
    inside, first_left = Event(), Event()

    @one_thread
    def second() -> None:
        inside.set()
        assert first_left.wait(60)

    @one_thread
    def first() -> Future[None]:
        later = pool.submit(second)
        assert inside.wait(60)
        return later

    with ThreadPoolExecutor(1) as pool, threadpool_limits(3, user_api="blas"):
        later = first()
        assert blas_threads() == {3}  # threadpoolctl from 3.8 on lets the thread decide that came first
        first_left.set()
        later.result()
        assert blas_threads() == {3}
