"""The prompt lab: type a safety prompt, see where it moves the queries and what it does to refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from drolab import export, figures
from drolab.data import load_prompts, save_prompts
from drolab.figures import PALETTE
from drolab.judges import AnyJudge, is_refusal
from drolab.models import ChatModel, Prompt, as_prompts
from drolab.panels.base import Job, Panel, PanelError
from drolab.panels.controls import Controls, button, labelled, named, refill, row
from drolab.panels.export_box import About, ExportBox, Offered, completed
from drolab.panels.markup import label
from drolab.panels.picture import Picture
from drolab.panels.prompt_lab import view
from drolab.panels.prompt_lab.view import NAME_LIMIT, Bench, LabView, PromptShelf
from drolab.store import Store
from drolab.types import NO_PROMPT, AnchorSpace, Probe, SafetyPrompt

_PROJECT = {True: "Project, then sample", False: "Project"}
"""What the button does, by "measure by sampling"."""


class PromptLab(Panel):
    """See `prompt_lab`."""

    def __init__(
        self,
        shelf: PromptShelf,
        probes: Sequence[Probe],
        problem: str,
        theme: str,
        about: About | None,
        keep: Path | None,
    ) -> None:
        self.shelf, self._keep = shelf, keep
        self._view, self._theme = LabView(shelf, probes, theme), theme
        self.picture, self.table, self.examples = Picture(), widgets.HTML(), widgets.HTML()
        super().__init__(_controls(shelf), [])
        self.job = Job(self, "Project")
        self._about = completed(about, self._known)
        self.export_box = ExportBox(self.offer, self.about)
        self.children = self._arranged()
        for name, action in self._actions().items():
            self.on_click(name, action)
        self.on_change(self.draw, "compare", "x", "y")
        self.on_change(self._draw_examples, "prompt")
        self.controls["measure"].observe(self._name_project, "value")
        self._choose(shelf.trials)
        self._caution = self.warn(problem, *(probe.problem for probe in probes))
        self.guarded(self.draw)()
        self.guarded(self._take_up)()

    # --- what it gives back

    def result(self) -> pd.DataFrame:
        """The measurements of all prompts: see `view.effects`."""
        return self.shelf.table(self.shelf.trials)

    def selection(self) -> pd.DataFrame:
        """The measurements of the prompts chosen in "compare".

        Raises:
            PanelError: none is chosen.
        """
        return self.shelf.table(self._chosen())

    def prompts(self) -> dict[str, SafetyPrompt]:
        """The prompts that were typed or loaded here, by name."""
        return self.shelf.own()

    def per_query(self, name: str) -> pd.DataFrame:
        """How each query's refusal changes under one prompt: see `view.per_query`.

        Raises:
            PanelError: no prompt of that name here.
        """
        if name not in self.shelf.trials:
            raise PanelError(f"There is no prompt {name!r} here: choose one of {list(self.shelf.trials)}.")
        return view.per_query(self.shelf.bench, self.shelf.trials[name], self.shelf.base(name))

    def offer(self) -> Offered:
        """What is shown, for export: name → figure and its table."""
        with self.lock:
            chosen, points = self.selection(), self._view.points(self._plane())
            picture = go.Figure(self._view.content(self._plane(), self._chosen()))
        measure = view.best_known(chosen["measured"], chosen["predicted"])
        rates = chosen.rename(columns={measure: "value", f"{measure}_low": "low", f"{measure}_high": "high"})
        bars = figures.rate_bars(rates, y_title=f"{measure} refusal rate", theme=self._theme)
        shown = points[points["prompt"].isin(chosen["prompt"])].drop(columns="hover")
        return {"prompt_lab_projection": (picture, shown), "prompt_lab_refusal": (bars, chosen)}

    def about(self) -> dict[str, Any]:
        """What made the results, for the export's manifest: every prompt that is here, with its text."""
        return self._about()

    def _known(self) -> dict[str, Any]:
        bench, trials = self.shelf.bench, self.shelf.trials
        prompts = {name: trial.prompt for name, trial in trials.items()}
        settings = {"bases": {name: trial.base for name, trial in trials.items()}, "n_samples": bench.n_samples}
        settings |= {"caution": self._caution} if self._caution else {}
        return export.about(bench.model, prompts, bench.queries, settings=settings, seed=bench.seed)

    # --- what the buttons do

    def _actions(self) -> dict[str, Callable[[], None]]:
        return {
            "project": self._project,
            "sample": lambda: self._start({}, self._chosen(), "Sample"),
            "copy": self._copy,
            "rename": self._rename,
            "remove": self._remove,
            "save": self._save,
            "load": self._load,
        }

    def _project(self) -> None:
        text, name = self.controls["text"].value, self.controls["name"].value.strip()
        if not text.strip():
            raise PanelError("There is no prompt to project: type or paste one.")
        self.shelf.check_name(name)
        self._start({name: SafetyPrompt(name=name, text=text)}, self._measured([name]), "Project")

    def _measured(self, names: Iterable[str]) -> list[str]:
        return list(names) if self.controls["measure"].value else []

    def _start(self, new: Mapping[str, Prompt], names: Sequence[str], what: str) -> None:
        """In a thread: place new prompts and show them; then sample replies for those of these names that lack them."""
        self._check_idle()
        base = self.controls["base"].value

        def work(job: Job) -> str:
            placed = self._place(new, base, job) if new else ""
            return f"{placed} {self._sample(names, job) if names else ''}"

        self.job.bar.description = what
        self.job.start(work, self.say)

    def _place(self, new: Mapping[str, Prompt], base: str, job: Job) -> str:
        trials = view.project(self.shelf.bench, new, base=base, progress=job.tick)
        with self.lock:
            self.shelf.put(trials)
            self._note(new)
            self._choose([*self._chosen_names(), *trials])
            with self.filling():
                self.controls["prompt"].value = shown = list(trials)[-1]
            if (name := self.controls["name"].value.strip()) in trials:
                self.controls["name"].value = self.shelf.free_name(name)  # ready for the next attempt
            self.draw()
            words = f"Projected: {_listed(trials)} ({trials[shown].states.index.attrs['summary']})."
            self.say(words)
        return words

    def _sample(self, names: Sequence[str], job: Job) -> str:
        """Each prompt's rates are shown as soon as they are there; the bases come last."""
        lacking = self.shelf.unsampled(names)
        for number, name in enumerate(lacking):
            job.bar.description = f"Sample, prompt {number + 1} of {len(lacking)}"
            trial = view.with_replies(self.shelf.bench, self.shelf.trials[name], progress=job.tick)
            with self.lock:
                self.shelf.put({name: trial})
                self.draw()
        return f"Sampled: {_listed(lacking) or 'nothing was missing'}."

    def _copy(self) -> None:
        prompt = self.shelf.trials[self.controls["prompt"].value].prompt
        if not isinstance(prompt, SafetyPrompt):
            raise PanelError("A soft prompt has no text to copy: choose another prompt.")
        self.controls["text"].value = prompt.text
        self.controls["name"].value = self.shelf.free_name("mine" if prompt.name == NO_PROMPT else prompt.name)

    def _rename(self) -> None:
        self._check_idle()
        old, new = self.controls["prompt"].value, self.controls["name"].value.strip()
        chosen = [new if name == old else name for name in self._chosen_names()]
        self.shelf.rename(old, new)
        self._note({new: self.shelf.trials[new].prompt}, without=old)
        self._choose(chosen)
        with self.filling():
            self.controls["prompt"].value = new
        self.draw()

    def _remove(self) -> None:
        self._check_idle()
        name = self.controls["prompt"].value
        self.shelf.remove(name)
        self._note({}, without=name)
        self._choose(self._chosen_names())
        self.draw()

    def _save(self) -> None:
        prompts = self.prompts()
        path = save_prompts(prompts, self._path(), overwrite=self.controls["overwrite"].value)
        self.say(f"Saved to {path}: {_listed(prompts)}. drolab.load_prompts reads it.")

    def _load(self) -> None:
        here = {name: trial.prompt for name, trial in self.shelf.trials.items()}
        new = {name: prompt for name, prompt in load_prompts(self._path()).items() if here.get(name) != prompt}
        for name in new:
            self.shelf.check_name(name)
        if not new:
            raise PanelError("Every prompt of that file is here already: there is nothing to load.")
        self._start(new, self._measured(new), "Load")

    def _take_up(self) -> None:
        """Project what an earlier panel kept."""
        new = {name: prompt for name, prompt in self._noted().items() if name not in self.shelf.trials}
        if new:
            self._start(new, [], "Load")

    def _noted(self) -> dict[str, SafetyPrompt]:
        return load_prompts(self._keep) if self._keep is not None and self._keep.exists() else {}

    def _note(self, new: Mapping[str, Prompt], *, without: str | None = None) -> None:
        """Bring the file of kept prompts up to date. Other panels may share it: only what changed here is changed."""
        if self._keep is None:
            return
        kept = {name: prompt for name, prompt in self._noted().items() if name != without}
        kept |= {name: prompt for name, prompt in new.items() if isinstance(prompt, SafetyPrompt)}
        if kept:
            save_prompts(kept, self._keep, overwrite=True)
        else:
            self._keep.unlink(missing_ok=True)

    def _name_project(self, change: Any) -> None:
        self.controls["project"].description = _PROJECT[change["new"]]

    def _path(self) -> str:
        if path := self.controls["path"].value.strip():
            return os.path.expanduser(path)
        raise PanelError("There is no path: type one, like prompts/mine.yaml.")

    def _check_idle(self) -> None:
        if self.job.running:
            raise PanelError("Work is under way: wait, or stop it first.")

    # --- what is chosen

    def _plane(self) -> tuple[int, int]:
        return self.controls["x"].value, self.controls["y"].value

    def _chosen_names(self) -> list[str]:
        return [name for name in self.shelf.trials if name in self.controls["compare"].value]

    def _chosen(self) -> list[str]:
        if names := self._chosen_names():
            return names
        raise PanelError("No prompt is chosen: choose some to compare.")

    def _choose(self, names: Iterable[str]) -> None:
        """Offer all prompts that there are, and compare these: the last ones, if they are more than the colours."""
        wanted = list(names)
        coloured = [name for name in wanted if name != NO_PROMPT][-len(PALETTE) :]
        options = named(self.shelf.trials, NAME_LIMIT)
        compare = self.controls["compare"]
        with self.filling():
            for name in ("base", "prompt"):
                refill(self.controls[name], options)
            compare.value = ()  # the browser looks up what is chosen in the new options, before it hears of less
            compare.options = options
            compare.value = tuple(name for name in wanted if name == NO_PROMPT or name in coloured)

    # --- what is shown

    def draw(self) -> None:
        chosen = self._chosen()
        self.picture.update_to(self._view.content(self._plane(), chosen))
        self.table.value = view.effects_as_html(self.shelf.table(chosen))
        self._draw_examples()

    def _draw_examples(self) -> None:
        self.examples.value = view.raised_as_html(self.shelf, self.controls["prompt"].value)

    def _arranged(self) -> list[widgets.Widget]:
        def line(*names: str) -> widgets.HBox:
            return row(*(self.controls[name] for name in names))

        def column(*rows: widgets.Widget, **layout: str) -> widgets.VBox:
            return widgets.VBox(rows, layout=layout)

        side = column(line("name", "base"), line("measure"), line("project"), flex="1 1 320px")
        editor = row(column(self.controls["text"], flex="3 1 480px"), side)
        buttons = line("copy", "rename", "remove", "sample")
        choices = column(line("x", "y", "prompt"), buttons, line("path", "overwrite", "save", "load"))
        compared = row(self.controls["compare"], choices)
        return [
            editor,
            compared,
            self.job,
            self.caution,
            self.message,
            self.picture,
            self.table,
            self.examples,
            self.export_box,
        ]


def prompt_lab(
    model: ChatModel,
    queries: pd.DataFrame,
    *,
    prompts: Mapping[str, Prompt] | Sequence[Prompt],
    space: AnchorSpace,
    refusal: Probe | None,
    harmfulness: Probe | None = None,
    problem: str = "",
    scores: pd.DataFrame | None = None,
    n_samples: int = 10,
    max_new_tokens: int | None = None,
    judge: AnyJudge = is_refusal,
    store: Store | None = None,
    seed: int = 0,
    theme: str = "light",
    about: About | None = None,
    keep: str | Path | None = None,
) -> PromptLab:
    """Type a safety prompt, and see where it moves the queries and what it does to their refusal.

    A new prompt is projected into the anchor space, which stays as it is; against its base it gets, per class of
    queries, the predicted and the measured refusal rate, their changes, and the cosine of its mean shift with the
    refusal direction, all with 95 % intervals over queries. Work runs in a thread: other cells stay usable.

    Args:
        queries: a query set, see `load_queries`.
        prompts: those to compare with, soft prompts too; `none` is added. Their states are computed before this
            returns, unless the store has them.
        space: the anchor space in which the probes were fitted.
        refusal: positive for "refuses". None where none could be fitted (see `probing.try_probe`): then nothing is
            predicted and there is no cosine; shifts are drawn and replies sampled all the same.
        harmfulness: its boundary is drawn too.
        problem: why there is no refusal probe; stands above the figure.
        scores: of `judge`: measured refusal rates of `prompts`, which need not be sampled here then.
        n_samples: replies per query and prompt, where refusal is measured.
        max_new_tokens: of a reply, see `generate`.
        judge: of the replies; the one of `scores`.
        store: only what it lacks is computed. None computes everything, and keeps it in the panel only.
        seed: of sampling and bootstrap.
        about: for the export's manifest; what this panel knows is added, such as the prompts that were typed here.
        keep: a YAML file. Prompts that are made here are written to it at once, and a later panel begins with them.

    Raises:
        QueryError: the queries are malformed.
        PromptError: a prompt that is too long for the model, or a soft prompt of another model.
        ChatTemplateError: the model's chat template rejects a prompt.
        StatesError: a space of another model, or a refusal probe that is positive for something else.
        PanelError: `scores` is no table of `judge`, or the space has no plane.

    Examples:
        Type a prompt, press Project, and wait for it. Setting a control's value does what a hand does:

        >>> import drolab
        >>> from drolab import panels
        >>> model, default = drolab.load_model("demo"), drolab.load_prompts()["default"]
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(4)
        >>> states = drolab.hidden_states(model, queries, [default], progress=False)
        >>> space = drolab.fit_anchors(states)
        >>> refused = queries["harmful"]  # in place of rates that `drolab.judge` found
        >>> refusal = drolab.fit_probe(space, states, refused, positive="refuses")
        >>> lab = panels.prompt_lab(model, queries, prompts=[default], space=space, refusal=refusal)
        >>> lab.controls["text"].value, lab.controls["measure"].value = "Refuse what could do harm.", False
        >>> lab.controls["project"].click()
        >>> lab.job.wait(60)
        True
        >>> lab.prompts()
        {'mine': SafetyPrompt(name='mine', text='Refuse what could do harm.', kind='safety')}
        >>> rows = lab.result()
        >>> rows.loc[rows["prompt"] == "mine", ["base", "harmful", "predicted", "predicted_change", "cosine"]].round(1)
           base  harmful  predicted  predicted_change  cosine
        4  none     True        0.8               0.1     0.6
        5  none    False        0.0               0.0     0.4
    """
    if scores is not None and ("refusal_rate" not in scores or list(scores.index.names) != ["query_id", "prompt"]):
        raise PanelError("`scores` must be what drolab.judge returned: rates indexed by (query_id, prompt).")
    if len(space.components) < 2:
        raise PanelError("An anchor space of one component has no plane: fit_anchors(states, n_components=2) or more.")
    bench = Bench(
        model=model,
        queries=queries,
        space=space,
        refusal=refusal,
        store=store,
        n_samples=n_samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        judge=judge,
    )
    everything: dict[str, Prompt] = {NO_PROMPT: SafetyPrompt(name=NO_PROMPT, text="")}
    given = view.project(bench, everything | {prompt.name: prompt for prompt in as_prompts(prompts)})
    if scores is not None:
        given = {name: trial.scored(scores) for name, trial in given.items()}
    probes = [probe for probe in (refusal, harmfulness) if probe is not None]
    lacking = f"There is no refusal probe, so no refusal is predicted. {problem}" if refusal is None else ""
    return PromptLab(PromptShelf(bench, given), probes, lacking, theme, about, None if keep is None else Path(keep))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(label(name, NAME_LIMIT) for name in names)


def _controls(shelf: PromptShelf) -> Controls:
    tick = {"indent": False, "layout": {"width": "auto"}}
    paragraph = {"placeholder": "Type or paste a safety prompt.", "layout": {"width": "auto", "height": "9em"}}
    axis = {"options": range(1, len(shelf.bench.space.components) + 1), "layout": {"width": "7em"}}
    replies = f"then sample {shelf.bench.n_samples} replies per query and judge them; the projection is shown first"
    return {
        "text": labelled(
            widgets.Textarea, "safety prompt", "what goes into the system role of every chat", **paragraph
        ),
        "name": labelled(
            widgets.Text, "name", "what figures and tables call the prompt", value=shelf.free_name("mine")
        ),
        "base": labelled(widgets.Dropdown, "base", "measure against this prompt: the arrow starts at its mean"),
        "measure": labelled(widgets.Checkbox, "measure by sampling", replies, value=True, **tick),
        "project": button(_PROJECT[True], "Show where the prompt moves the queries", icon="play", style="primary"),
        "compare": labelled(
            widgets.SelectMultiple, "compare", "the prompts to show: Ctrl or Shift for several", rows=6
        ),
        "x": labelled(widgets.Dropdown, "x", "component on the horizontal axis", value=1, **axis),
        "y": labelled(widgets.Dropdown, "y", "component on the vertical axis", value=2, **axis),
        "prompt": labelled(widgets.Dropdown, "prompt", "list its refused queries, or use it with the buttons below"),
        "copy": button("Copy", "Put its text into the editor, under a new name", icon="copy"),
        "rename": button("Rename", "Give it the name in the field at the top", icon="pencil"),
        "remove": button("Remove", "Take it out of this panel; what was computed stays in the store", icon="trash"),
        "sample": button("Sample", "Sample replies for the compared prompts that lack measured rates", icon="flask"),
        "path": labelled(
            widgets.Text, "file", "a YAML file of prompts", value="prompts/mine.yaml", layout={"width": "24em"}
        ),
        "overwrite": labelled(widgets.Checkbox, "overwrite", "replace the file if it is there", value=False, **tick),
        "save": button("Save", "Write the prompts made here to the file", icon="save"),
        "load": button("Load", "Project the prompts of the file against the base", icon="folder-open"),
    }
