"""What every panel is made of: labelled controls, a figure that survives a page reload, work that can be stopped.

A panel works without a browser too: setting a control's `.value` or calling a button's `.click()` does what a
user's hand does.
"""

from __future__ import annotations

import atexit
import html
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ipywidgets as widgets
import traitlets
from IPython.core.getipython import get_ipython

from drolab.errors import DrolabError
from drolab.figures import PALETTE
from drolab.panels.controls import STYLE, button, row
from drolab.panels.kept import keep
from drolab.progress import in_words

T = TypeVar("T")

_RETRY_SECONDS = 1.0
_STOP_SECONDS = 20.0
_TURN_SECONDS = 0.1
_KEEP_SECONDS = 0.5  # Jupyter ends a kernel 2.5 seconds after it asked it to end
_BAR_SECONDS = 0.1  # between two movements of a bar: each is a message to the browser
_PAUSE = ("Pause", "pause", "Wait after the batch in flight, until you resume")
_RESUME = ("Resume", "play", "Go on")


class PanelError(DrolabError, ValueError):
    """A panel cannot be built from what it was given."""


class Stopped(Exception):  # noqa: N818 - not an error: the user pressed Stop
    """Raised inside a job's work once it was asked to stop."""


class Panel(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """Controls above what they show. Subclasses implement `draw`, and `result` or `selection`."""

    def __init__(self, controls: Mapping[str, widgets.Widget], body: Sequence[widgets.Widget]) -> None:
        self.controls = dict(controls)
        self.caution = widgets.HTML(layout=widgets.Layout(width="auto"))
        """What must be known of all that is shown here; it stays."""
        self.message = widgets.HTML(layout=widgets.Layout(width="auto"))
        self.lock = threading.RLock()
        """Held while a callback runs, so that a job's thread and the user's hand never draw at once."""
        self._filling = False
        super().__init__([row(*self.controls.values()), self.caution, self.message, *body])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        keep(self)
        return super()._repr_mimebundle_(**options)

    def values(self) -> dict[str, Any]:
        """The present value of each control that has one."""
        return {name: control.value for name, control in self.controls.items() if hasattr(control, "value")}

    def append(self, *below: widgets.Widget) -> None:
        """Add widgets at the lower end."""
        self.children: Any = [*self.children, *below]

    def draw(self) -> None:
        """Show what the controls ask for."""
        raise NotImplementedError

    def on_change(self, step: Callable[[], None], *names: str) -> None:
        """Do `step` when one of these controls changes (no names: any control with a value)."""
        for name in names or self.values():
            self.controls[name].observe(self.guarded(lambda _: step()), names="value")

    def on_click(self, name: str, step: Callable[[], None]) -> None:
        """Do `step` when this button is pressed."""
        self.controls[name].on_click(self.guarded(lambda _: step()))

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Inside of it no callback runs: what is set there is no choice of the user's."""
        with self.lock:
            before, self._filling = self._filling, True
            try:
                yield
            finally:
                self._filling = before

    def guarded(self, callback: Callable[..., None], *, keep_message: bool = False) -> Callable[..., None]:
        """The callback with its errors shown in words above the figure: in a browser they would be invisible.

        `keep_message`: the words that stand there stay, unless there is an error.
        """

        def call(*arguments: Any) -> None:
            with self.lock:
                if self._filling:
                    return
                if not keep_message:
                    self.message.value = ""
                try:
                    callback(*arguments)
                except Exception as error:
                    self.message.value = alert(error)

        return call

    def warn(self, *texts: str) -> str:
        """A line above the figure that stays, of all that is not empty, in plain text; returns the text."""
        text = " ".join(filter(None, dict.fromkeys(texts)))
        line = f'<div role="note" style="padding:4px 0"><b>Caution.</b> {html.escape(text)}</div>'
        self.caution.value = line if text else ""
        return text

    def say(self, text: str) -> None:
        """A line above the figure, in plain text."""
        self.message.value = f'<div role="status" style="padding:4px 0">{html.escape(text)}</div>'


def alert(error: Exception) -> str:
    """HTML for an error: drolab's own say what to do next; others name their place, for a bug report."""
    words = str(error)
    if not isinstance(error, DrolabError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = next(iter(words.strip().splitlines()), "")[:300]  # plotly's go on for pages
        words = f"{type(error).__name__}: {words} (in {last.name}, line {last.lineno})"
    return f'<div role="alert" style="color:{PALETTE[5]};padding:4px 0">Not done: {html.escape(words)}</div>'


class Job(widgets.HBox):  # type: ignore[misc]
    """Long work in a thread of its own, so that other cells run: a bar, words, a stop button, and one to pause."""

    state = traitlets.Enum(
        ("ready", "running", "pausing", "paused", "finished", "stopped", "failed"), default_value="ready"
    )
    """`pausing` until the step in flight has ended, `paused` from then on. May be observed; it changes in the job's
    thread, with the panel's lock held."""

    def __init__(self, panel: Panel, description: str, *, pausable: bool = False) -> None:
        self._panel = panel
        self._asked, self._go = threading.Event(), threading.Event()
        self._ended = threading.Event()
        self._ended.set()
        self._keep: Callable[[], object] = lambda: None
        self._progress, self._next_shown = (0, 0), 0.0
        self._since = (0.0, 0)  # when its pace was first known, and how much was done then
        self._paces: dict[str, float] = {}
        self.bar = widgets.IntProgress(value=0, max=1, description=description, style=STYLE)
        self.label = widgets.Label(layout={"min_width": "max-content"})
        self.pause_button = button(_PAUSE[0], _PAUSE[2], icon=_PAUSE[1])
        self.pause_button.on_click(lambda _: self.pause() if self.state == "running" else self.resume())
        self.stop_button = button("Stop", "Stop after the batch in flight; what is finished is kept", icon="stop")
        self.stop_button.on_click(lambda _: self.stop())
        super().__init__([self.bar, self.label, *([self.pause_button] if pausable else []), self.stop_button])
        self.observe(lambda _: self._show_state(), "state")
        self._show_state()

    @property
    def running(self) -> bool:
        """Whether there is work under way, paused or not."""
        return self.state in ("running", "pausing", "paused")

    def check_idle(self) -> None:
        """Raise PanelError while there is work under way."""
        if self.running:
            raise PanelError(f"{self.bar.description} is still running: wait, or stop it first.")

    def start(
        self,
        work: Callable[[Job], T],
        then: Callable[[T], None] = lambda _: None,
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        """Run `work(job)` in a thread, then `then(result)`; errors of both are shown in the panel.

        `work` passes `job.tick` as `progress=` to what it calls, or calls it itself: that moves the bar, waits while
        the job is paused, and raises Stopped once the user asked for it. An interrupt of the kernel asks too.
        `keep()` is called at the end of the kernel, from another thread, to keep what is finished by then: the kernel
        may be gone before a long step comes to its next `tick`.

        Raises:
            PanelError: it runs already.
        """
        with self._panel.lock:
            self.check_idle()
            self._asked.clear()
            self._go.set()
            self._keep = keep
            self._progress, self.bar.value, self.label.value = (0, 0), 0, ""
            self.state = "running"
            self._ended.clear()
            _running.add(self)
            on_interrupt(stop_jobs)
            threading.Thread(target=self._work, args=(work, then), daemon=True, name=self.bar.description).start()

    def tick(self, done: int, total: int) -> None:
        """Called by the work between two steps: `done` of `total` are finished.

        Raises:
            Stopped: the user asked for it.
        """
        before, self._progress = self._progress, (done, total)
        if total != before[1] or done < before[0]:  # another count begins
            self._since, self._next_shown = (time.monotonic(), done), 0.0
        elif done > self._since[1]:
            self._paces[self._kind] = (time.monotonic() - self._since[0]) / (done - self._since[1])
        if done == total or time.monotonic() >= self._next_shown:
            self._show_progress()
        if not self._go.is_set():
            with self._panel.lock:
                if self.state == "pausing":
                    self.state = "paused"
        self._go.wait()
        if self._asked.is_set():
            raise Stopped

    def pause(self) -> None:
        """Let the work wait at its next `tick`; the thread then sleeps."""
        with self._panel.lock:
            if self.state == "running":
                self._go.clear()
                self.state = "pausing"

    def resume(self) -> None:
        with self._panel.lock:
            if self.state in ("pausing", "paused"):
                self._since = (time.monotonic(), self._progress[0])
                self.state = "running"
                self._go.set()

    def stop(self) -> None:
        """Ask the work to stop at its next `tick`, also when it is paused."""
        self._asked.set()
        self._go.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came in time. Ctrl-C (interrupting the kernel) stops the work cleanly."""
        try:
            self._wait_in_turns(math.inf if timeout is None else timeout)
        except KeyboardInterrupt:
            self.stop()
            self._wait_in_turns(_STOP_SECONDS)
            raise
        return not self.running

    def _wait_in_turns(self, seconds: float) -> None:
        """An interrupt that comes just before a wait is heard only after it, so none is long.

        An event, because a thread whose `join` was interrupted looks ended to Python 3.11.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._ended.wait(min(left, _TURN_SECONDS)):
            pass

    def _work(self, work: Callable[[Job], T], then: Callable[[T], None]) -> None:
        end = "finished"
        try:
            found = work(self)
            self._panel.guarded(then)(found)
        except Stopped:
            end = "stopped"
        except Exception as error:
            end = "failed"
            self._panel.message.value = alert(error)
        finally:
            _running.discard(self)
            try:
                with self._panel.lock:
                    self.state = end
            finally:
                self._ended.set()

    def _show_progress(self) -> None:
        done, total = self._progress
        self._next_shown = time.monotonic() + _BAR_SECONDS
        self.bar.max, self.bar.value = max(1, total), done
        words = f"{self.state}: " if self.state in ("pausing", "paused", "stopped", "failed") else ""
        self.label.value = f"{words}{done} of {total}{self._left() if self.state == 'running' else ''}"

    def _left(self) -> str:
        """In words the time that is left, at the pace of this count; before its first step, at that of the last one of
        its kind."""
        done, total = self._progress
        left = self._paces.get(self._kind, 0.0) * (total - done)
        return f", about {in_words(left)} left" if left >= 1 else ""

    @property
    def _kind(self) -> str:
        return str(self.bar.description).partition(",")[0]

    def _show_state(self) -> None:
        pause = self.pause_button
        pause.description, pause.icon, pause.tooltip = _RESUME if self.state in ("pausing", "paused") else _PAUSE
        pause.disabled = self.stop_button.disabled = not self.running
        if self._progress[1]:
            self._show_progress()


_running: set[Job] = set()


def stop_jobs() -> None:
    """Ask every job that runs to stop."""
    for job in list(_running):
        job.stop()


@atexit.register
def _stop_jobs_and_wait() -> None:
    """On a kernel's restart or shutdown: let the jobs keep what they have finished."""
    jobs = list(_running)
    stop_jobs()
    for job in jobs:
        if not job.wait(_KEEP_SECONDS):
            job._keep()
    for job in jobs:
        job.wait(_STOP_SECONDS)


def on_interrupt(stop: Callable[[], None]) -> None:
    """Call `stop`, soon and in the main thread, at each interrupt of this kernel; outside of a kernel do nothing.

    May be called from any thread, and again.
    """
    shell = get_ipython()
    loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
    if shell is None or loop is None or loop in _heard:
        return
    _heard.append(loop)

    def after_cell(result: Any) -> None:
        # "Before" is also between two statements of a cell, where IPython compiles the second.
        errors = (getattr(result, f"error_{when}_exec", None) for when in ("before", "in"))
        if any(isinstance(error, KeyboardInterrupt) for error in errors):
            stop()

    def between_cells(*_: Any) -> None:
        # Not from inside a signal handler, where a lock may be held. tornado's own `add_callback` would not wake the
        # loop here: it takes this thread's loop to be awake.
        loop.asyncio_loop.call_soon_threadsafe(stop)

    def listen() -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, between_cells)
        else:  # an asynchronous cell is under way, with a handler of its own
            loop.call_later(_RETRY_SECONDS, listen)

    shell.events.register("post_run_cell", after_cell)
    loop.add_callback(listen)  # signals are set in the main thread, where this loop runs


_heard: list[Any] = []
