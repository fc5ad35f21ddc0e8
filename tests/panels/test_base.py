"""Panels and jobs: no error is lost; work in a thread can pause, resume and stop, and ends cleanly with its kernel."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.kernel import SECONDS, Kernel

from drolab.errors import StatesError
from drolab.panels import Job, Panel, PanelError, base
from drolab.panels.controls import button, pick


@pytest.fixture
def panel() -> Panel:
    return Panel({}, [])


# --- callbacks


def test_a_callbacks_error_is_shown_in_words_and_goes_with_the_next(panel: Panel) -> None:
    def fail(error: Exception) -> None:
        raise error

    panel.guarded(fail)(StatesError("Too <few>: add some."))
    assert 'role="alert"' in panel.message.value
    assert "Not done: Too &lt;few&gt;: add some." in panel.message.value
    panel.guarded(fail)(ZeroDivisionError("a <b>bug</b>\nand more"))
    assert "ZeroDivisionError: a &lt;b&gt;bug&lt;/b&gt; (in fail, line" in panel.message.value
    panel.guarded(lambda: None, keep_message=True)()
    assert "ZeroDivisionError" in panel.message.value
    panel.guarded(lambda: None)()
    assert panel.message.value == ""


def test_callbacks_follow_the_user_and_not_the_filling_of_controls() -> None:
    panel, heard = Panel({"n": pick("n", [1, 2], "a number"), "go": button("Go", "go")}, []), list[str]()
    panel.on_change(lambda: heard.append("change"))
    panel.on_click("go", lambda: heard.append("click"))
    panel.controls["n"].value = 2
    panel.controls["go"].click()
    with panel.filling():
        panel.controls["n"].value = 1
    assert heard == ["change", "click"]
    assert panel.values() == {"n": 1}


# --- jobs


class Steps:
    """Work that does one step each time it is let, and notes which."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.let, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.closed = False

    def __call__(self, job: Job) -> int:
        try:
            while self.done < self.total:
                self.done += 1
                self.arrived.release()
                assert self.let.acquire(timeout=SECONDS)
                job.tick(self.done, self.total)
        finally:
            self.closed = True
        return self.done


def started(panel: Panel, total: int = 3) -> tuple[Job, Steps, list[int]]:
    job, work, found = Job(panel, "steps", pausable=True), Steps(total), []
    job.start(work, found.append)
    assert work.arrived.acquire(timeout=SECONDS)
    return job, work, found


def test_a_job_runs_beside_and_hands_its_result_over(panel: Panel) -> None:
    job, work, found = started(panel)
    assert job.running
    assert (job.state, job.stop_button.disabled, job.pause_button.disabled) == ("running", False, False)
    with pytest.raises(PanelError, match="steps is still running: wait, or stop it first"):
        job.start(lambda _: None)
    work.let.release(3)
    assert job.wait(SECONDS)
    assert found == [3]
    assert (job.state, job.bar.value, job.bar.max, job.label.value) == ("finished", 3, 3, "3 of 3")
    assert job.stop_button.disabled
    assert job.pause_button.disabled


def test_a_paused_job_stands_still_until_it_is_resumed(panel: Panel) -> None:
    job, work, found = started(panel)
    paused = threading.Event()
    job.observe(lambda change: paused.set() if change["new"] == "paused" else None, "state")
    job.pause_button.click()
    assert (job.state, job.pause_button.description) == ("pausing", "Resume")
    work.let.release(3)
    assert paused.wait(SECONDS)
    assert not work.arrived.acquire(blocking=False), "a second step was begun"
    assert (work.done, job.label.value) == (1, "paused: 1 of 3")
    assert not job.wait(timeout=0)
    job.pause_button.click()
    assert job.wait(SECONDS)
    assert found == [3]
    assert job.pause_button.description == "Pause"


@pytest.mark.parametrize("paused", [False, True])
def test_a_stop_ends_the_work_after_the_step_in_flight(panel: Panel, paused: bool) -> None:
    job, work, found = started(panel)
    if paused:
        job.pause()
        work.let.release()
    job.stop_button.click()
    work.let.release()
    assert job.wait(SECONDS)
    assert (job.state, job.label.value, work.done, work.closed) == ("stopped", "stopped: 1 of 3", 1, True)
    assert found == []
    job.start(lambda job: job.tick(1, 1))  # it can start again, not paused and not stopped
    assert job.wait(SECONDS)
    assert job.state == "finished"


def test_errors_of_the_work_and_of_what_follows_are_shown(panel: Panel) -> None:
    def fail(_: Any) -> None:
        raise StatesError("Too <few>: add some.")

    job = Job(panel, "work")
    job.start(fail)
    assert job.wait(SECONDS)
    assert job.state == "failed"
    assert "Too &lt;few&gt;: add some." in panel.message.value
    panel.message.value = ""
    job.start(lambda _: 1, fail)
    assert job.wait(SECONDS)
    assert "Too &lt;few&gt;" in panel.message.value


def test_fast_work_moves_the_bar_seldom_and_ends_at_the_full_count(panel: Panel) -> None:
    job, values = Job(panel, "fast"), []
    job.bar.observe(lambda change: values.append(change["new"]), "value")

    def work(job: Job) -> None:
        for done in range(1, 1001):
            job.tick(done, 1000)

    job.start(work)
    assert job.wait(SECONDS)
    assert values[-1] == 1000
    assert len(values) < 100


def test_a_job_says_how_long_it_will_take_yet(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    job, clock, seen = Job(panel, "Sample", pausable=True), [0.0], list[str]()
    monkeypatch.setattr(base.time, "monotonic", lambda: clock[0])
    job.label.observe(lambda change: seen.append(change["new"]), "value")

    def work(job: Job) -> None:
        job.tick(20, 120)  # from the store
        clock[0] += 30
        job.tick(30, 120)
        clock[0] += 10
        job.tick(70, 120)
        clock[0] += 20
        job.tick(120, 120)
        job.bar.description = "Sample, prompt 2 of 2"
        job.tick(0, 50)  # at the pace of the one before
        job.bar.description = "Train"
        clock[0] += 1
        job.tick(0, 10)

    job.start(work)
    assert job.wait(SECONDS)
    left = ["20 of 120", "30 of 120, about 4 min left", "70 of 120, about 40 s left", "120 of 120"]
    assert seen == [*left, "0 of 50, about 30 s left", "0 of 10"]


def test_a_pause_counts_for_nothing(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(base.time, "monotonic", lambda: clock[0])
    job, work, _ = started(panel, total=4)
    work.done = 0
    paused = threading.Event()
    job.observe(lambda change: paused.set() if change["new"] == "paused" else None, "state")
    job.tick(0, 4)
    clock[0] = 10.0
    job.pause()
    work.done = 1
    work.let.release()
    assert paused.wait(SECONDS)
    assert job.label.value == "paused: 1 of 4"
    clock[0] = 5000.0
    job.resume()
    assert work.arrived.acquire(timeout=SECONDS)
    assert job.label.value == "1 of 4, about 30 s left"
    clock[0] = 5020.0
    work.let.release()
    assert work.arrived.acquire(timeout=SECONDS)
    assert job.label.value == "2 of 4, about 40 s left"
    work.let.release(2)
    assert job.wait(SECONDS)


def test_an_interrupt_that_does_not_wake_the_waiting_thread_is_heard(
    panel: Panel, request: pytest.FixtureRequest
) -> None:
    """As one that comes just before the wait begins: here another thread gets the signal while this one waits."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    main = threading.main_thread().ident or 0

    def waits() -> bool:
        stack = traceback.extract_stack(sys._current_frames()[main])
        return any(frame.name == "wait" and frame.filename == base.__file__ for frame in stack)

    def work(job: Job) -> None:
        while not waits():
            job.tick(0, 1)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        for _ in range(1000):  # without the wait's short turns it would wait for the end of this
            job.tick(0, 1)
            time.sleep(0.01)

    job = Job(panel, "count")
    job.start(work)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert job.state == "stopped"


def test_a_job_without_pause_offers_none(panel: Panel) -> None:
    job = Job(panel, "short")
    assert job.pause_button not in job.children
    assert job.stop_button in job.children


def test_a_long_step_does_not_lose_what_is_finished_at_the_kernels_end(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_KEEP_SECONDS", "_STOP_SECONDS"):
        monkeypatch.setattr(base, name, 0.01)
    kept: list[int] = []
    job, work = Job(panel, "long"), Steps(3)
    job.start(work, keep=lambda: kept.append(work.done))
    assert work.arrived.acquire(timeout=SECONDS)
    base._stop_jobs_and_wait()
    assert kept == [1]
    work.let.release()
    assert job.wait(SECONDS)
    assert job.state == "stopped"


# --- in a real kernel ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    opened = Kernel(tmp_path_factory.mktemp("kernel"))
    yield opened
    opened.close()


COUNTING = """
import time
from pathlib import Path
from drolab.panels import Job, Panel

def work(job):
    done = 0
    Path("kept").unlink(missing_ok=True)
    try:
        while True:
            done += 1
            job.tick(done, 10**9)
            time.sleep(0.01)
    finally:
        Path("kept").write_text(str(done))

job = Job(Panel({}, []), "count", pausable=True)
job.start(work)
print("started")
"""


IS_STOPPED = f"print(job.wait({SECONDS}), job.state, Path('kept').exists())"


def test_a_line_that_comes_in_pieces_is_read_whole(kernel: Kernel) -> None:
    """A kernel sends what is printed when it comes to it, also between the words of one call."""
    assert kernel.run("print('False', end=' ', flush=True)\nprint('running')") == "False running"


def test_an_idle_kernels_interrupt_stops_the_job(kernel: Kernel) -> None:
    assert kernel.run(COUNTING) == "started"
    assert kernel.run("print(job.state)") == "running"
    kernel.interrupt()
    kernel.heard(lambda m: "stopped" in str(m["content"].get("data")))  # before another message wakes the kernel
    assert kernel.run(IS_STOPPED) == "True stopped True"


SLEEPING = "while True: time.sleep(0.01)"
"""Not one long sleep: Python hears an interrupt that comes just before a sleep only after it."""


@pytest.mark.parametrize("cell", [SLEEPING, "job.wait()"])
def test_a_running_cells_interrupt_stops_the_job(kernel: Kernel, cell: str) -> None:
    assert kernel.run(COUNTING) == "started"
    assert kernel.interrupted(f"print('busy', flush=True)\n{cell}") == "KeyboardInterrupt"
    assert kernel.run(IS_STOPPED) == "True stopped True"


BETWEEN_STATEMENTS = """
compiler = type(get_ipython().compile)

def interrupted(*_):
    del compiler.__call__
    raise KeyboardInterrupt

compiler.__call__ = interrupted
print('never reached')
"""


def test_an_interrupt_between_two_statements_stops_the_job(kernel: Kernel) -> None:
    assert kernel.run(COUNTING) == "started"
    assert kernel.run(BETWEEN_STATEMENTS) == "KeyboardInterrupt"
    assert kernel.run(IS_STOPPED) == "True stopped True"


def test_cells_are_interrupted_as_before(kernel: Kernel) -> None:
    waiting = "import asyncio; print('busy', flush=True); [await asyncio.sleep(0.01) for _ in range(6000)]"
    assert kernel.interrupted(waiting) == "CancelledError"
    assert kernel.interrupted(f"print('busy', flush=True)\n{SLEEPING}") == "KeyboardInterrupt"
    kernel.interrupt()
    assert kernel.run("print('alive')") == "alive"


def test_an_error_in_a_cell_is_no_interrupt(kernel: Kernel) -> None:
    assert kernel.run(COUNTING) == "started"
    assert kernel.run("1 / 0") == "ZeroDivisionError"
    assert kernel.run("print(job.wait(0.1), job.state)") == "False running"
    assert kernel.run("job.pause()\nwhile job.state == 'pausing': time.sleep(0.001)\nprint(job.state)") == "paused"


def test_the_end_of_a_kernel_lets_a_job_keep_what_it_has(kernel: Kernel) -> None:
    """The last test of this kernel: the job of the one before is still there, paused."""
    kept = kernel.folder / "kept"
    assert not kept.exists()
    assert kernel.run("print(job.state)") == "paused"
    kernel.manager.shutdown_kernel(now=False)
    assert int(kept.read_text()) > 0
