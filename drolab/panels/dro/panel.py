"""The DRO panel: train a prompt, by DRO or by prompt tuning, while you watch, replay what it did to the queries, and
compare runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import combinations, count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import traitlets

from drolab import export, figures
from drolab.data import validate_queries
from drolab.dro import (
    HISTORY_COLUMNS,
    MEASURED_COLUMNS,
    TRAINING,
    TUNING_COLUMNS,
    KeptRun,
    PromptTuning,
    PromptTuningRun,
    Training,
    check_probes,
    compare,
    evenly_spaced,
    load_runs,
    save_run,
    trajectories,
)
from drolab.judges import AnyJudge, FirstTokenJudge, is_refusal
from drolab.models import ChatModel, Prompt
from drolab.panels.base import Job, Panel, PanelError, Stopped
from drolab.panels.controls import button, choice, labelled, named
from drolab.panels.dro import view
from drolab.panels.dro.settings import LOOK, DROSettings
from drolab.panels.dro.take_away import TakeAway
from drolab.panels.export_box import About, ExportBox, Offered, completed
from drolab.panels.markup import label
from drolab.panels.picture import Picture, content_of, placeholder
from drolab.store import Store
from drolab.types import AnchorSpace, DROConfig, DRORun, Probe, SafetyPrompt

_START_FROM = "The prompt whose tokens are trained, and from which movement is measured"
_NAME = "What to call the run; a number, if you give it no name"
_START = "Train with these settings; a run of these settings that was begun before goes on"
_SHOWN = "The runs whose curves are drawn; Ctrl or Shift for several"
_NAME_LENGTH = 60
_FRAME_MS = 400
_DRAW_SECONDS = 0.5
_DRAW_SHARE = 0.05
"""Curves are drawn every _DRAW_SECONDS at most, and drawing takes at most this share of the time."""


_panels: WeakSet[DROPanel] = WeakSet()
"""Those of this kernel."""


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
        taught: tuple[pd.DataFrame, AnyJudge] | None,
    ) -> None:
        self._taught = taught
        self._model, self._queries, self._prompts, self._probes = model, queries, prompts, probes
        self._judge, self._query_sets, self._store, self._theme = judge, query_sets, store, theme
        self._next_draw = 0.0
        self.settings = DROSettings(tuning=taught is not None)
        start = {
            "init": labelled(widgets.Dropdown, "start from", _START_FROM, options=named(prompts), **LOOK),
            "name": labelled(widgets.Text, "run name", _NAME, placeholder="run-1, run-2, …", **LOOK),
            "start": button("Start", _START, icon="play", style="success"),
        }
        super().__init__(start | self.settings.controls, [])
        self.job = Job(self, "Training", pausable=True)
        self._nothing = placeholder(
            "Losses, drift and first-token probabilities are drawn here, from the first steps on."
        )
        self.curves = Picture(self._nothing)
        self.shelf = RunShelf(self, model, self._chosen_changed)
        self.replay = Replay(self, model, queries, probes, store, theme)
        box = ExportBox(self.offer, completed(about, self._known))
        self.children[0].children = [self.settings.box(start["init"], start["name"])]
        self.take_away = TakeAway(self, model, queries, self.shelf.named)
        self.append(widgets.HBox([start["start"], self.job]), self.shelf, self.take_away, self.curves, self.replay, box)
        self.warn(probes["refusal"].problem, probes["harmfulness"].problem, judge.problem if judge else "")
        self.on_click("start", self._start)
        self.job.observe(lambda _: self._job_changed(), "state")
        self.guarded(self.draw)()
        self._offer_running()
        _panels.add(self)

    def _offer_running(self) -> None:
        """A cell that is run again makes a new panel, and the training of the one before goes on."""
        running = [panel for panel in _panels if panel.job.running]
        if running:
            many = f"{len(running)} trainings are" if len(running) > 1 else "1 training is"
            self.controls["running"] = button("Show it", "Put the panel of the training here", icon="eye")
            words = widgets.Label(f"{many} running in a panel that was made before.")
            self.children = [widgets.HBox([words, self.controls["running"]]), *self.children]
            self.on_click("running", lambda: self._become(running[0]))

    def _become(self, other: DROPanel) -> None:
        """Show another panel, and give back what it gives."""
        self.job, self.shelf, self.curves, self.replay = other.job, other.shelf, other.curves, other.replay
        self.take_away = other.take_away
        self.controls, self.children = other.controls, [other]

    # ------------------------------------------------------------ what it gives back

    def result(self) -> DRORun | PromptTuningRun:
        """The chosen run, as far as it is.

        Raises:
            PanelError: there is none yet.
        """
        return self.shelf.chosen().run

    def runs(self) -> dict[str, DRORun | PromptTuningRun]:
        """All runs by name, each as far as it is."""
        return {name: kept.run for name, kept in self.shelf.kept.items()}

    def history(self) -> pd.DataFrame:
        """The steps of all runs: `run`, then `dro.HISTORY_COLUMNS`, and what else `dro.TUNING_COLUMNS` has if there is
        a run of prompt tuning; NaN in what a run has not."""
        found = {name: run.history for name, run in self.runs().items()}
        tuned = any(isinstance(run, PromptTuningRun) for run in self.runs().values())
        return view.stacked(found, list(dict.fromkeys((*HISTORY_COLUMNS, *(TUNING_COLUMNS if tuned else ())))))

    def measured(self) -> pd.DataFrame:
        """The first-token measurements of all runs: `run`, then `dro.MEASURED_COLUMNS`."""
        return view.stacked({name: kept.measured for name, kept in self.shelf.kept.items()}, MEASURED_COLUMNS)

    def offer(self) -> Offered:
        """What an export writes: the table of runs, the curves that are shown, and the movement."""
        if not self.shelf.kept:
            raise PanelError("There is no run to export: start or load one.")
        found: Offered = {"dro_runs": (None, compare(self.shelf.kept))}
        history, measured, look = self._shown()
        if len(history):
            found["dro_curves"] = figures.training_curves(history, **look, drift_level=self._drift_level()), history
        if len(measured):
            found["dro_first_token"] = figures.first_token_curves(measured, **look), measured
        moved = self.replay.shown()
        if moved is not None:
            found["dro_movement"] = go.Figure(self.replay.content()), moved
        return found

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the training and the replay; whether they ended in time. Ctrl-C stops them cleanly."""
        return self.job.wait(timeout) and self.replay.job.wait(timeout)

    def _known(self) -> dict[str, Any]:
        configs: dict[str, dict[str, Any]] = {}
        for name, run in self.runs().items():
            method = "prompt tuning" if isinstance(run, PromptTuningRun) else "DRO"
            configs.setdefault(method, {})[name] = asdict(run.config)
        used = {name: run.soft_prompt for name, run in self.runs().items()}
        return export.about(self._model, used, self._queries, configs or {"DRO": {}})

    # ------------------------------------------------------------ training

    def _start(self) -> None:
        self.job.check_idle()
        kept, training = self._begin()
        self.job.start(
            lambda job: self._train(job, kept, training), lambda _: self.replay.start(kept), keep=training.save
        )

    def _training(self) -> Training | PromptTuning:
        init, store = self._prompts[self.controls["init"].value], self._store
        if self._taught is not None and self.settings.tunes:
            replies, judge = self._taught
            tuning = self.settings.tuning_config(len(self._queries))
            given: dict[str, Any] = {"init": init, "config": tuning, "store": store}
            return PromptTuning(self._model, self._queries, replies=replies, judge=judge, **given)
        given = {"init": init, "config": self.settings.config(), "store": store}
        return Training(self._model, self._queries, **given, **self._probes)

    def _begin(self) -> tuple[KeptRun, Training | PromptTuning]:
        """The run that the controls ask for: a new one, or the one of the same settings, to go on with."""
        training = self._training()
        for name, kept in self.shelf.kept.items():
            if kept.training is not None and kept.training.key == training.key:
                if kept.training.done.step > training.done.step:  # without a store it is here only
                    training.done = kept.training.done
                kept.training, kept.trouble = training, ""
                self.shelf.active = kept
                self.shelf.choose(name)
                return kept, training
        kept = KeptRun(training=training)
        self.shelf.active = kept
        self.shelf.add(kept, self.controls["name"].value)
        return kept, training

    def _train(self, job: Job, kept: KeptRun, training: Training | PromptTuning) -> None:
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

    def _measure(self, job: Job, kept: KeptRun, training: Training | PromptTuning) -> None:
        """Measure the steps that were kept since the last time."""
        if self._judge is not None:
            for step in kept.unmeasured():
                kept.measure(step, self._model, self._judge, self._query_sets)
                self._live()
                job.tick(training.done.step, training.n_steps)

    def _live(self) -> None:
        now = time.monotonic()
        if now >= self._next_draw:
            self._refresh()
            self._next_draw = now + max(_DRAW_SECONDS, (time.monotonic() - now) / _DRAW_SHARE)

    def _refresh(self) -> None:
        """Draw from the job's thread: a message above must outlive it."""
        self.guarded(self.draw, keep_message=True)()

    def _job_changed(self) -> None:
        self.controls["start"].disabled = self.job.running
        self._refresh()

    # ------------------------------------------------------------ drawing

    def draw(self) -> None:
        history, measured, look = self._shown()
        if len(history):
            drawn = figures.training_curves(history, measured, **look, drift_level=self._drift_level())
            self.curves.update_to(content_of(drawn))
        else:
            self.curves.update_to(self._nothing)
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

    def _drift_level(self) -> float | None:
        """Beyond which drift the states left the anchor data, if that is the same for all runs that are shown."""
        runs = [kept.run for kept in self.shelf.shown().values()]
        levels = {run.space.residual_spread for run in runs if isinstance(run, DRORun)}
        return levels.pop() if len(levels) == 1 else None


class RunShelf(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """Runs by name, their table, and what can be done with them."""

    def __init__(self, panel: Panel, model: ChatModel, changed: Callable[[], None]) -> None:
        self._panel, self._model, self._changed = panel, model, changed
        self.kept: dict[str, KeptRun] = {}
        self.active: KeptRun | None = None
        """The run that is in training, if there is one."""
        self.controls = {
            "run": choice("run", [], "The run that is replayed, and that result() gives back"),
            "shown": labelled(widgets.SelectMultiple, "curves of", _SHOWN, rows=4),
            "folder": widgets.Text(
                "out/dro_runs", description="folder", tooltip="Where runs are saved, and loaded from"
            ),
            "save": button("Save", "Write every run into the folder, each as far as it is", icon="save"),
            "load": button("Load", "Read all runs that were saved in the folder", icon="folder-open"),
            "remove": button("Remove", "Take the chosen run out of this panel; files and the store stay", icon="trash"),
        }
        self.table, self.note = widgets.HTML(), widgets.HTML()
        panel.controls |= self.controls
        for name, action in (("save", self._save), ("load", self._load), ("remove", self._remove)):
            panel.on_click(name, action)
        panel.on_change(changed, "run", "shown")
        rows = [
            [self.controls[name] for name in names]
            for names in (("run", "remove", "shown"), ("folder", "save", "load"))
        ]
        super().__init__([*map(widgets.HBox, rows), self.note, widgets.Box([self.table], layout={"overflow": "auto"})])

    def chosen(self) -> KeptRun:
        """The chosen run.

        Raises:
            PanelError: there is none.
        """
        if not self.kept:
            raise PanelError("There is no run yet: start or load one.")
        return self.kept[self.controls["run"].value]

    def named(self) -> tuple[str, KeptRun]:
        """The chosen run's name, and the run; raises as `chosen`."""
        kept = self.chosen()
        return self.controls["run"].value, kept

    def shown(self) -> dict[str, KeptRun]:
        """The runs whose curves are drawn."""
        return {name: self.kept[name] for name in self.controls["shown"].value}

    def add(self, kept: KeptRun, name: str = "") -> None:
        """Keep a run and choose it; one without a name is numbered, a long name is cut.

        Raises:
            PanelError: another run has this name.
        """
        name = label(name, _NAME_LENGTH).strip() or self._free("run")
        if name in self.kept:
            raise PanelError(f"There is a run called {name!r} already: give this one another name, or remove that one.")
        self.kept[name] = kept
        self.choose(name)

    def choose(self, name: str | None) -> None:
        """Choose a run (None: the last) and draw its curves, beside as many others as there are colours for."""
        name = name or next(reversed(self.kept), None)
        others = [other for other in self.controls["shown"].value if other in self.kept and other != name]
        with self._panel.filling():
            for control in ("run", "shown"):
                self.controls[control].options = named(self.kept)
            if name is not None:
                self.controls["run"].value = name
                self.controls["shown"].value = (*others[1 - len(figures.PALETTE) :], name)
        self._changed()

    def draw(self, state: str) -> None:
        """Fill the table, and say what is wrong with the chosen run; `state` is that of the run in training."""
        states = [(state or "starting") if kept is self.active else kept.status for kept in self.kept.values()]
        self.table.value = view.runs_as_html(self.kept, states) if self.kept else ""
        self.note.value = view.notes_as_html(self.chosen()) if self.kept else ""

    def _save(self) -> None:
        if not self.kept:
            raise PanelError("There is no run to save: start one.")
        folder = Path(self.controls["folder"].value)
        for name, kept in self.kept.items():
            save_run(folder, name, kept)
        self._panel.say(f"Saved to {folder.resolve()}: {', '.join(self.kept)}.")

    def _load(self) -> None:
        found = load_runs(self.controls["folder"].value)
        for name, kept in found.items():
            made_with = getattr(kept.run, "space", kept.run.soft_prompt).model_fingerprint
            if made_with not in ("", self._model.fingerprint):
                raise PanelError(f"The run {name!r} is of another model: load it into a panel of that model.")
        before = set(self.kept)
        for name, kept in found.items():
            short = label(name, _NAME_LENGTH // 2).strip()
            self.add(kept, self._free(f"{short}-loaded") if short in self.kept else short)
        self._panel.say(f"Loaded: {', '.join(name for name in self.kept if name not in before)}.")

    def _free(self, stem: str) -> str:
        return next(name for number in count(1) if (name := f"{stem}-{number}") not in self.kept)

    def _remove(self) -> None:
        kept = self.chosen()
        if kept is self.active:
            raise PanelError("This run is in training: stop it first.")
        del self.kept[self.controls["run"].value]
        self.choose(None)


class Replay(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """A step slider with a play button over the queries' movement in one plane of the frozen anchor space.

    Coordinates are computed once per run, from a button; after that a step is only redrawn.
    """

    def __init__(
        self,
        panel: Panel,
        model: ChatModel,
        queries: pd.DataFrame,
        probes: Mapping[str, Any],
        store: Store | None,
        theme: str,
    ) -> None:
        self._panel, self._probes = panel, probes
        self._model, self._queries, self._store, self._theme = model, queries, store, theme
        self._kept: KeptRun | None = None
        self._paths: WeakKeyDictionary[KeptRun, pd.DataFrame] = WeakKeyDictionary()
        self.job = Job(panel, "Movement")
        self._nothing = placeholder("The movement of the queries is drawn here: press Replay to compute it.")
        self.picture = Picture(self._nothing)
        pairs = [(f"{a + 1} and {b + 1}", (a, b)) for a, b in combinations(range(len(probes["space"].components)), 2)]
        self.controls = {
            "replay": button("Replay", "Compute where each kept step of the chosen run moved the queries", icon="film"),
            "plane": choice("components", pairs, "The two components of the anchor space that are the axes"),
            "play": widgets.Play(value=0, max=0, interval=_FRAME_MS, tooltip="Play the steps one after the other"),
            "step": widgets.SelectionSlider(options=[0], description="step", tooltip="How far the training is shown"),
        }
        traitlets.link((self.controls["play"], "value"), (self.controls["step"], "index"))
        panel.controls |= self.controls
        panel.on_click("replay", self.start)
        panel.on_change(self.draw, "plane", "step")
        super().__init__([widgets.HBox(list(self.controls.values())), self.job, self.picture])

    def choose(self, kept: KeptRun | None) -> None:
        """Show this run, if its coordinates are known."""
        self._kept = kept
        table = self._table()
        steps = [0] if table is None else sorted(int(step) for step in table["step"].unique())
        with self._panel.filling():
            if steps != list(self.controls["step"].options):
                self.controls["play"].max = len(steps) - 1
                self.controls["step"].options = steps
            self.controls["step"].value = steps[-1]
        self.draw()

    def start(self, kept: KeptRun | None = None) -> None:
        """Compute the coordinates of all steps that a run (None: the chosen one) has kept."""
        kept = kept or self._kept
        if kept is None:
            raise PanelError("There is no run to replay: start or load one.")
        run = self._in_space(kept.run)
        self.job.start(lambda job: self._compute(run, job), lambda table: self._computed(kept, table))

    def _in_space(self, run: DRORun | PromptTuningRun) -> DRORun:
        """Prompt tuning has no space and no probes: its queries are shown in those of this panel."""
        if isinstance(run, DRORun):
            return run
        history = pd.DataFrame(columns=list(HISTORY_COLUMNS))
        shown = {"soft_prompt": run.soft_prompt, "snapshots": run.snapshots}
        return DRORun(history=history, config=DROConfig(), **shown, **self._probes)  # type: ignore[arg-type]

    def _compute(self, run: DRORun, job: Job) -> pd.DataFrame:
        table = trajectories(self._model, self._queries, run, store=self._store, progress=job.tick)
        return table.assign(text=table["query_id"].map(self._queries["text"]))

    def _computed(self, kept: KeptRun, table: pd.DataFrame) -> None:
        self._paths[kept] = table
        if kept is self._kept:
            self.choose(kept)

    def shown(self) -> pd.DataFrame | None:
        """The chosen run's movement in the chosen plane: `dro.trajectories`, with x, y and the queries' texts."""
        table = self._table()
        return None if table is None else view.moved_in(table, self.controls["plane"].value)

    def content(self) -> dict[str, Any] | None:
        """The figure as plain data and layout; None as long as there is nothing to show."""
        moved = self.shown()
        if moved is None or self._kept is None:
            return None
        plane, step = self.controls["plane"].value, self.controls["step"].value
        return view.movement(moved, self._in_space(self._kept.run), plane, step, self._theme)

    def draw(self) -> None:
        self.picture.update_to(self.content() or self._nothing)

    def _table(self) -> pd.DataFrame | None:
        return None if self._kept is None else self._paths.get(self._kept)


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
    replies: pd.DataFrame | None = None,
    reply_judge: AnyJudge = is_refusal,
    store: Store | None = None,
    theme: str = "light",
    about: About | None = None,
) -> DROPanel:
    """Train prompts by DRO, or by vanilla prompt tuning, the paper's baseline, watch the losses and what the model is
    about to say, replay and compare runs.

    Training runs in a thread of its own, so other cells run meanwhile. *Stop*, an interrupt of the kernel, its restart
    and its shutdown end it after the step in flight. With a store the same settings then go on from there, also in
    another kernel; a kernel that is killed loses at most `checkpoint_every` steps.

    Args:
        model: the model that is to be steered; it stays as it is.
        queries: the training queries, of both classes.
        prompts: to start from; those without a text are left out.
        space: the anchor space, fitted with this model.
        refusal: a probe in that space, positive for "refuses".
        harmfulness: a probe in that space, positive for "harmful".
        judge: measures, at each step that is kept, the first-token probability of refusal, compliance and neither, on
            at most 24 training queries and 24 test queries of each class. None measures nothing.
        test_queries: held-out queries for those measurements.
        replies: of `generate`, to the training queries under `none` and the prompts to start from: prompt tuning learns
            from them, and a choice of the method is shown; it has as many steps as DRO with the same epochs and batch
            size. None offers DRO alone.
        reply_judge: which of them are refusals, as for `judge`.
        store: keeps checkpoints and hidden states; None keeps runs only as long as the panel.
        about: for the manifest of an export, see `export.about`; what this panel knows is added: its model and queries,
            and the prompts that were trained here.

    Raises:
        PanelError: no prompt has a text.
        QueryError: the queries are malformed.

    Examples:
        Two epochs on a few queries of the demo model. Setting a control's value does what a hand does:

        >>> import drolab
        >>> from drolab import panels
        >>> model, default = drolab.load_model("demo"), drolab.load_prompts()["default"]
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(4)
        >>> states = drolab.hidden_states(model, queries, [default], progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> refused = queries["harmful"]  # in place of rates that `drolab.judge` found
        >>> refusal = drolab.fit_probe(space, states, refused, positive="refuses")
        >>> harmfulness = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> probes = {"space": space, "refusal": refusal, "harmfulness": harmfulness}
        >>> panel = panels.dro(model, queries, prompts={"default": default}, **probes)
        >>> panel.controls["num_train_epochs"].value, panel.controls["batch_size"].value = 2, 8
        >>> panel.controls["start"].click()
        >>> panel.wait(60)
        True
        >>> panel.history()[["run", "step", "epoch"]]
             run  step  epoch
        0  run-1     1      0
        1  run-1     2      1
        >>> panel.result().soft_prompt.name
        'dro-default'
    """
    check_probes(space, refusal, harmfulness)
    texts = {name: prompt for name, prompt in prompts.items() if not isinstance(prompt, SafetyPrompt) or prompt.text}
    if not texts:
        raise PanelError("None of the prompts has a text to start from: give one, such as load_prompts()['default'].")
    sets = {TRAINING: queries} if test_queries is None else {TRAINING: queries, "test": test_queries}
    sampled = {name: evenly_spaced(validate_queries(table)) for name, table in sets.items()}
    probes = {"space": space, "refusal": refusal, "harmfulness": harmfulness}
    taught = None if replies is None else (replies, reply_judge)
    return DROPanel(model, validate_queries(queries), texts, probes, judge, sampled, store, theme, about, taught)
