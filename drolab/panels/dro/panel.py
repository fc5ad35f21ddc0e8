"""The DRO panel: train a prompt while you watch, replay what it did to the queries, and compare runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from drolab import export, figures
from drolab.data import validate_queries
from drolab.dro import HISTORY_COLUMNS, MEASURED_COLUMNS, TRAINING, KeptRun, Training, compare, evenly_spaced
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel, Prompt
from drolab.panels.base import Job, Panel, PanelError, Stopped, alert, button
from drolab.panels.controls import named
from drolab.panels.dro.replay import Replay
from drolab.panels.dro.settings import LOOK, DROSettings
from drolab.panels.dro.shelf import Shelf, stacked
from drolab.panels.export_box import About, Takeaway
from drolab.panels.picture import Picture, placeholder
from drolab.store import Store
from drolab.types import AnchorSpace, DRORun, Probe, SafetyPrompt

_START_FROM = "The prompt whose tokens are trained, and from which movement is measured"
_NAME = "What to call the run; a number, if you give it no name"
_START = "Train with these settings; a run of these settings that was begun before goes on"
_DRAW_SECONDS = 0.5
_DRAW_SHARE = 0.05
"""Curves are drawn every _DRAW_SECONDS at most, and drawing takes at most this share of the time."""


class DROPanel(Panel):
    """See `dro`."""

    def __init__(
        self,
        model: ChatModel,
        queries: pd.DataFrame,
        prompts: Mapping[str, Prompt],
        probes: Mapping[str, Any],
        judge: FirstTokenJudge | None,
        query_sets: Mapping[str, pd.DataFrame],
        store: Store | None,
        theme: str,
        about: About | None,
    ) -> None:
        self._model, self._queries, self._prompts, self._probes = model, queries, prompts, probes
        self._judge, self._query_sets, self._store, self._theme = judge, query_sets, store, theme
        self._next_draw = 0.0
        self.settings = DROSettings()
        start = {
            "init": widgets.Dropdown(options=named(prompts), description="start from", tooltip=_START_FROM, **LOOK),
            "name": widgets.Text(description="run name", placeholder="run-1, run-2, …", tooltip=_NAME, **LOOK),
            "start": button("Start", _START, icon="play", style="success"),
        }
        self.job = Job(self, "Training", pausable=True)
        self._nothing = placeholder(
            "Losses, drift and first-token probabilities are drawn here, from the first steps on."
        )
        self.curves = Picture(self._nothing)
        super().__init__({**start, **self.settings.controls}, [])
        self.shelf = Shelf(self, model, self._chosen_changed)
        self.replay = Replay(self, model, queries, probes["space"], store, theme)
        self.controls |= {**self.shelf.controls, **self.replay.controls}
        takeaway = Takeaway(self.offer, about if about is not None else self._about)
        self.children[0].children = [self.settings.box(start["init"], start["name"])]
        begin = widgets.HBox([start["start"], self.job])
        self.children: Any = [*self.children, begin, self.shelf, self.curves, self.replay, takeaway]
        self.controls["start"].on_click(self.guarded(lambda _: self._start()))
        self.job.observe(lambda _: self._job_changed(), "state")
        self.guarded(self.draw)()

    # ------------------------------------------------------------ what it gives back

    def result(self) -> DRORun:
        """The chosen run, as far as it is.

        Raises:
            PanelError: there is none yet.
        """
        return self.shelf.chosen().run

    def runs(self) -> dict[str, DRORun]:
        """All runs by name, each as far as it is."""
        return {name: kept.run for name, kept in self.shelf.kept.items()}

    def history(self) -> pd.DataFrame:
        """The steps of all runs: `run`, then `dro.HISTORY_COLUMNS`."""
        return stacked({name: run.history for name, run in self.runs().items()}, HISTORY_COLUMNS)

    def measured(self) -> pd.DataFrame:
        """The first-token measurements of all runs: `run`, then `runs.MEASURED_COLUMNS`."""
        return stacked({name: kept.measured for name, kept in self.shelf.kept.items()}, MEASURED_COLUMNS)

    def offer(self) -> dict[str, tuple[go.Figure | None, pd.DataFrame]]:
        """What an export writes: the table of runs, the curves that are shown, and the movement."""
        if not self.shelf.kept:
            raise PanelError("There is no run to export: start or load one.")
        found: dict[str, tuple[go.Figure | None, pd.DataFrame]] = {"dro_runs": (None, compare(self.shelf.kept))}
        history, measured, look = self._shown()
        if len(history):
            found["dro_curves"] = figures.training_curves(history, **look), history
        if len(measured):
            found["dro_first_token"] = figures.first_token_curves(measured, **look), measured
        moved, content = self.replay.shown(), self.replay.content()
        if moved is not None:
            found["dro_movement"] = go.Figure(content), moved
        return found

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the training and the replay; whether they ended in time. Ctrl-C stops them cleanly."""
        return self.job.wait(timeout) and self.replay.job.wait(timeout)

    def _about(self) -> dict[str, Any]:
        configs = {name: asdict(run.config) for name, run in self.runs().items()}
        used = {name: run.soft_prompt for name, run in self.runs().items()}
        return export.about(self._model, used, self._queries, {"DRO": configs})

    # ------------------------------------------------------------ training

    def _start(self) -> None:
        if self.job.running:
            raise PanelError("The training is still running: wait, or stop it first.")
        kept, training = self._begin()
        self.job.start(
            lambda job: self._train(job, kept, training), lambda _: self.replay.start(kept), keep=training.save
        )

    def _begin(self) -> tuple[KeptRun, Training]:
        """The run that the controls ask for: a new one, or the one of the same settings, to go on with."""
        training = Training(
            self._model,
            self._queries,
            init=self._prompts[self.controls["init"].value],
            config=self.settings.config(),
            store=self._store,
            **self._probes,
        )
        for name, kept in self.shelf.kept.items():
            if kept.training is not None and kept.training.key == training.key:
                if kept.training.done.step > training.done.step:  # without a store it is here only
                    training.done = kept.training.done
                kept.training, kept.trouble = training, ""
                self.shelf.choose(name)
                return kept, training
        kept = KeptRun(training=training)
        self.shelf.add(kept, self.controls["name"].value)
        return kept, training

    def _train(self, job: Job, kept: KeptRun, training: Training) -> None:
        self.shelf.active = kept
        try:
            job.tick(training.done.step, training.n_steps)
            self._measure(job, kept, training)
            with closing(training.steps()) as steps:  # closing it keeps a checkpoint
                for step in steps:
                    self._measure(job, kept, training)
                    self._live()
                    job.tick(step.step, training.n_steps)
        except Exception as error:
            kept.trouble = "" if isinstance(error, Stopped) else f"failed: {error}"
            raise
        finally:
            self.shelf.active = None

    def _measure(self, job: Job, kept: KeptRun, training: Training) -> None:
        """Measure the steps that were kept since the last time."""
        if self._judge is not None:
            for step in kept.unmeasured():
                kept.measure(step, self._model, self._judge, self._query_sets)
                self._live()
                job.tick(training.done.step, training.n_steps)

    def _live(self) -> None:
        now = time.monotonic()
        if now >= self._next_draw or self.job.state == "paused":
            self._refresh()
            self._next_draw = now + max(_DRAW_SECONDS, (time.monotonic() - now) / _DRAW_SHARE)

    def _refresh(self) -> None:
        """Draw from the job's thread. Not guarded: a message above must outlive it."""
        with self.lock:
            try:
                self.draw()
            except Exception as error:
                self.message.value = alert(error)

    def _job_changed(self) -> None:
        self.controls["start"].disabled = self.job.running
        self._refresh()

    # ------------------------------------------------------------ drawing

    def draw(self) -> None:
        history, measured, look = self._shown()
        drawn = figures.training_curves(history, measured, **look) if len(history) else None
        self.curves.update_to(self._nothing if drawn is None else _content(drawn))
        self.shelf.draw(self.job.state if self.job.running else "")

    def _chosen_changed(self) -> None:
        self.replay.choose(self.shelf.chosen() if self.shelf.kept else None)
        self.draw()

    def _shown(self) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """The steps and the measurements of the runs that are shown, and how to draw them."""
        shown = self.shelf.shown()
        history, measured = (rows[rows["run"].isin(shown)] for rows in (self.history(), self.measured()))
        n_steps = max((kept.n_steps for kept in shown.values()), default=1)
        return history, measured, {"n_steps": n_steps, "theme": self._theme}


def _content(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data and layout, its arrays as arrays: `Picture.update_to` sends only those that changed."""
    return {
        "data": [trace.to_plotly_json() for trace in figure.data],
        "layout": figure.layout.to_plotly_json(),
    }


def dro(
    model: ChatModel,
    queries: pd.DataFrame,
    *,
    prompts: Mapping[str, Prompt],
    space: AnchorSpace,
    refusal: Probe,
    harmfulness: Probe,
    judge: FirstTokenJudge | None = None,
    test_queries: pd.DataFrame | None = None,
    store: Store | None = None,
    theme: str = "light",
    about: About | None = None,
) -> DROPanel:
    """Train prompts by DRO, watch the losses and what the model is about to say, replay and compare runs.

    Training runs in a thread of its own, so other cells run meanwhile. *Stop*, an interrupt of the kernel, its restart
    and its shutdown end it after the step in flight. With a store the same settings then go on from there, also in
    another kernel; a kernel that is killed loses at most `checkpoint_every` steps.

    Args:
        queries: the training queries, as in `train_dro`.
        prompts: to start from; those without a text are left out.
        space, refusal, harmfulness: as in `train_dro`.
        judge: measures, at each step that is kept, the first-token probability of refusal, compliance and neither, on
            at most 24 training queries and 24 test queries of each class. None measures nothing.
        test_queries: held-out queries for those measurements.
        store: keeps checkpoints and hidden states; None keeps runs only as long as the panel.
        about: for the manifest of an export, see `export.about`; None describes the model, queries and runs.

    Raises:
        PanelError: no prompt has a text.
        QueryError: the queries are malformed.
    """
    texts = {name: prompt for name, prompt in prompts.items() if not isinstance(prompt, SafetyPrompt) or prompt.text}
    if not texts:
        raise PanelError("None of the prompts has a text to start from: give one, such as load_prompts()['default'].")
    sets = {TRAINING: queries} if test_queries is None else {TRAINING: queries, "test": test_queries}
    sampled = {name: evenly_spaced(validate_queries(table)) for name, table in sets.items()}
    probes = {"space": space, "refusal": refusal, "harmfulness": harmfulness}
    return DROPanel(model, validate_queries(queries), texts, probes, judge, sampled, store, theme, about)
