"""What the prompt lab shows: one safety prompt against another, or against none. No widgets here.

Where does a prompt move the queries, and what does it do to their refusal? The anchor space and the probe stay as they
are: a new prompt's states are placed into the space, and the refusal rate that the probe predicts for them stands
beside the one that sampled replies show.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch

from drolab import figures
from drolab.data import validate_queries
from drolab.errors import PromptError, QueryError, StatesError
from drolab.evidence import shift_cosines
from drolab.figures import plane as planes
from drolab.figures import tables
from drolab.inference import generate, hidden_states
from drolab.intervals import Interval, mean_interval
from drolab.judges import AnyJudge, is_refusal, judge
from drolab.models import ChatModel, Prompt, prompt_token_ids
from drolab.panels.markup import label, share_of, visible
from drolab.panels.projection.view import axis_title
from drolab.probing import coordinates
from drolab.progress import Progress
from drolab.store import Store
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates, Probe, SafetyPrompt, SoftPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

NAME_LIMIT = 60
"""Characters of a prompt's name on a shelf: more would fit no legend and no table."""
N_EXAMPLES = 5
"""Queries listed for one prompt before "show all"."""

_CLASSES = {True: "✖ harmful", False: "● harmless"}  # the symbols of the figure
_FAINT = 0.25
_COLUMNS = {
    "predicted": "predicted refusal",
    "predicted_change": "predicted change",
    "measured": "measured refusal",
    "measured_change": "measured change",
    "cosine": "cosine with refusal",
}
_UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What every prompt is measured with."""

    model: ChatModel
    queries: pd.DataFrame
    space: AnchorSpace
    refusal: Probe | None
    """Positive for "refuses"; without one nothing is predicted, and there is no direction of refusal."""
    store: Store | None = None
    """Only what it lacks is computed; None keeps nothing."""
    n_samples: int = 10
    """Replies per query and prompt."""
    max_new_tokens: int | None = None
    """See `generate`."""
    judge: AnyJudge = is_refusal
    """Of the replies."""
    seed: int = 0
    """Of the sampling and the bootstrap."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", validate_queries(self.queries))
        if self.refusal is not None and self.refusal.positive != "refuses":
            raise StatesError(
                f"The refusal probe is positive for {self.refusal.positive!r}: fit it with positive='refuses'."
            )

    @property
    def classes(self) -> tuple[bool, ...]:
        """Those of the queries, harmful first."""
        return tuple(kind for kind in (True, False) if (self.queries["harmful"] == kind).any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What is known of one prompt. n is the number of queries, in the bench's order."""

    prompt: Prompt
    base: str
    """The name of the prompt that it is measured against; its own name: against nothing."""
    states: HiddenStates
    """n states, at the space's layer."""
    places: Array
    """[n, m]: coordinates in the anchor space."""
    predicted: Array
    """[n]: probability of a refusal by the probe; NaN without one."""
    n_tokens: int
    """Of the prompt's text on its own."""
    measured: Array | None = None
    """[n]: share of the sampled replies that refuse."""

    @property
    def name(self) -> str:
        return self.prompt.name

    def renamed(self, names: Mapping[str, str]) -> Trial:
        """With the prompt and its base called by their new names, old → new; the same object if neither has one."""
        name, base = (names.get(old, old) for old in (self.name, self.base))
        if (name, base) == (self.name, self.base):
            return self
        states = replace(self.states, index=self.states.index.assign(prompt=name))
        return replace(self, prompt=replace(self.prompt, name=name), base=base, states=states)

    def scored(self, scores: pd.DataFrame) -> Trial:
        """With the rates of this prompt in a table of `judge`; unchanged if it lacks the prompt or a query."""
        wanted = pd.MultiIndex.from_frame(self.states.index[["query_id", "prompt"]])
        rates = scores["refusal_rate"].reindex(wanted).to_numpy(dtype=np.float64)
        return self if np.isnan(rates).any() else replace(self, measured=rates)


def project(
    bench: Bench, prompts: Mapping[str, Prompt], *, base: str = NO_PROMPT, progress: Progress = False
) -> dict[str, Trial]:
    """Place prompts into the bench's anchor space. Nothing is sampled, and the space does not change.

    Raises:
        PromptError: a prompt that is too long, or a soft prompt of another model.
        ChatTemplateError: the model's chat template rejects a prompt.
        StatesError: a space of another model, or of states after thoughts, where one did not end.
    """
    states = hidden_states(
        bench.model,
        bench.queries,
        prompts,
        layers=(bench.space.layer,),
        read_at=bench.space.read_at,
        store=bench.store,
        progress=progress,
    )
    if states.missing:
        raise StatesError(
            f"{len(states.missing)} chats have no state, since their thoughts did not end: fit the space on "
            "hidden_states(…, read_at='answer') or 'reply'."
        )
    trials = {}
    for name, prompt in prompts.items():
        own = states.select(prompt=name)
        places = coordinates(bench.space, own)
        trials[name] = Trial(
            prompt=replace(prompt, name=name),
            base=base,
            states=own,
            places=places.double().numpy(),
            predicted=_predicted(bench.refusal, places),
            n_tokens=len(prompt) if isinstance(prompt, SoftPrompt) else len(prompt_token_ids(bench.model, prompt.text)),
        )
    return trials


def _predicted(refusal: Probe | None, places: Tensor) -> Array:
    if refusal is None:
        return np.full(len(places), np.nan)
    return torch.sigmoid(refusal.decision_function(places).double()).numpy()


def with_replies(bench: Bench, trial: Trial, *, progress: Progress = False) -> Trial:
    """The trial with measured refusal rates: replies are sampled and judged.

    Raises:
        PromptError: a prompt that leaves no room for a reply.
        QueryError: no reply to one of the queries came to an answer.
    """
    replies = generate(
        bench.model,
        bench.queries,
        trial.prompt,
        n_samples=bench.n_samples,
        max_new_tokens=bench.max_new_tokens,
        seed=bench.seed,
        store=bench.store,
        progress=progress,
    )
    measured = trial.scored(judge(replies, judge=bench.judge))
    if measured.measured is None:
        raise QueryError(
            f"No rate under {trial.name!r}: of some queries no reply came to an answer before its thought was cut off. "
            "Use a prompt or queries with shorter thoughts, or load the model without thinking (template_kwargs=…)."
        )
    return measured


def effects(bench: Bench, trial: Trial, base: Trial) -> pd.DataFrame:
    """One row per class of queries: a trial's rates, and how they and the states differ from those of its base.

    Every interval is a 95 % one over queries (see `mean_interval`); changes are paired, query by query. The probe and
    its direction are taken as given, and predictions on queries that the probe was fitted on are better than on others.

    Args:
        base: the trial called `trial.base`; the trial itself if it has none: then there are no changes.

    Returns:
        Columns prompt, base (None without one), harmful, n_queries, n_tokens, and five with their intervals in
        `…_low` and `…_high`, NaN where it is not known: predicted and measured (refusal rates), predicted_change,
        measured_change, and cosine (of the mean shift with the direction of refusal).
    """
    alone = base.name == trial.name
    cosines = {} if alone else _cosines(bench, trial, base)
    rows = []
    for harmful in bench.classes:
        chosen = (bench.queries["harmful"] == harmful).to_numpy()
        found = {
            "predicted": trial.predicted,
            "predicted_change": None if alone else trial.predicted - base.predicted,
            "measured": trial.measured,
            "measured_change": None if alone else _difference(trial.measured, base.measured),
        }
        ranges = {name: (-1.0, 1.0) if name.endswith("change") else (0.0, 1.0) for name in found}
        intervals = {name: _mean(bench, values, chosen, ranges[name]) for name, values in found.items()}
        names = {"prompt": trial.name, "base": None if alone else base.name, "harmful": harmful}
        counts = {"n_queries": int(chosen.sum()), "n_tokens": trial.n_tokens}
        rows.append(names | counts | _columns(intervals | {"cosine": cosines.get(harmful, _UNKNOWN)}))
    return pd.DataFrame(rows)


def _difference(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else a - b


def _mean(bench: Bench, values: Array | None, chosen: NDArray[np.bool_], bounds: tuple[float, float]) -> Interval:
    if values is None or np.isnan(values).any():
        return _UNKNOWN
    own = pd.Series(values[chosen]), bench.queries["query_id"][chosen]
    return mean_interval(*own, bounds=bounds, random_state=bench.seed)


def _cosines(bench: Bench, trial: Trial, base: Trial) -> dict[bool, Interval]:
    """Per class, of the mean shift from the base with the direction of refusal, if there is one."""
    if bench.refusal is None:
        return {}
    both = replace(
        base.states,
        values=torch.cat([base.states.values, trial.states.values]),
        index=pd.concat([base.states.index, trial.states.index], ignore_index=True),
    )
    direction = {"refusal": bench.refusal.direction(bench.space)}
    found = shift_cosines(both, direction, baseline=base.name, layer=bench.space.layer, random_state=bench.seed)
    rows = found.loc[found["kind"] == "direction", ["cosine", "low", "high"]].itertuples(index=False)
    return {harmful: Interval(*row) for harmful, row in zip(bench.classes, rows, strict=True)}


def _columns(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        column: value
        for name, interval in intervals.items()
        for column, value in zip((name, f"{name}_low", f"{name}_high"), interval, strict=True)
    }


def per_query(bench: Bench, trial: Trial, base: Trial) -> pd.DataFrame:
    """Each query's refusal rates under a trial's prompt and their change against its base, the largest rise first.

    Returns:
        Columns query_id, text, harmful, predicted, predicted_change, measured, measured_change; the last two are NaN
        if either prompt was not sampled. Ordered by the measured change, if there is one, else by the predicted.
    """
    change = _difference(trial.measured, base.measured)
    found = bench.queries[["query_id", "text", "harmful"]].assign(
        predicted=trial.predicted,
        predicted_change=trial.predicted - base.predicted,
        measured=np.nan if trial.measured is None else trial.measured,
        measured_change=np.nan if change is None else change,
    )
    return found.sort_values(["measured_change", "predicted_change"], ascending=False, ignore_index=True)


def trial_points(trial: Trial) -> pd.DataFrame:
    """The trial's states as points: query_id, prompt, harmful, text, refusal_rate (measured, or NaN), and
    component_1 to component_m."""
    return trial.states.index[["query_id", "prompt", "harmful", "text"]].assign(
        refusal_rate=np.nan if trial.measured is None else trial.measured,
        **{f"component_{number}": column for number, column in enumerate(trial.places.T, start=1)},
    )


class PromptShelf:
    """Prompts on trial, by name, with their measurements: those given at first, which stay, and those put later."""

    def __init__(self, bench: Bench, given: Mapping[str, Trial]) -> None:
        self.bench = bench
        self.trials: dict[str, Trial] = dict(given)
        self.given = tuple(given)
        self._measured: dict[str, tuple[Trial, Trial, pd.DataFrame]] = {}

    def base(self, name: str) -> Trial:
        return self.trials[self.trials[name].base]

    def own(self) -> dict[str, SafetyPrompt]:
        """The prompts put here later."""
        later = (trial.prompt for name, trial in self.trials.items() if name not in self.given)
        return {prompt.name: prompt for prompt in later if isinstance(prompt, SafetyPrompt)}

    def check_name(self, name: str) -> None:
        """Raise PromptError if no new prompt may be called so."""
        if not name.strip():
            raise PromptError("The prompt has no name: give it one.")
        if name == NO_PROMPT:
            raise PromptError(f"{NO_PROMPT!r} is the name of the absence of a prompt: choose another.")
        if len(name) > NAME_LIMIT:
            raise PromptError(f"The name has {len(name)} characters: choose one of at most {NAME_LIMIT}.")
        if name in self.trials:
            raise PromptError(f"There is a prompt {name!r} already: choose another name, or remove or rename that one.")

    def free_name(self, name: str) -> str:
        """The name itself, or the first of `name 2`, `name 3`, … that is free."""
        stem = re.sub(r" \d+$", "", name)[: NAME_LIMIT - 5]
        numbered = (f"{stem} {number}" for number in itertools.count(2))
        return next(free for free in itertools.chain([name], numbered) if free not in self.trials)

    def put(self, trials: Mapping[str, Trial]) -> None:
        """Add trials, or replace those of the same name by ones that know more."""
        self.trials = {**self.trials, **trials}  # a new dictionary: other threads may be reading the old one

    def rename(self, old: str, new: str) -> None:
        """Raises PromptError for a prompt that was given, or a name that cannot be taken."""
        self._check_own(old)
        self.check_name(new)
        renamed = [trial.renamed({old: new}) for trial in self.trials.values()]
        self.trials = {trial.name: trial for trial in renamed}

    def remove(self, name: str) -> None:
        """Raises PromptError for a prompt that was given, or that others are measured against."""
        self._check_own(name)
        if users := [other for other, trial in self.trials.items() if trial.base == name]:
            raise PromptError(f"{name!r} is the base of {users[0]!r}: remove that one first.")
        self.trials = {other: trial for other, trial in self.trials.items() if other != name}

    def _check_own(self, name: str) -> None:
        if name in self.given:
            raise PromptError(f"{name!r} was here from the start and stays: choose one of {list(self.own())}.")

    def unsampled(self, names: Iterable[str]) -> list[str]:
        """Those without measured rates, and then those of their bases, which a change needs."""
        wanted = [*names]
        wanted += [self.trials[name].base for name in wanted]
        return [name for name in dict.fromkeys(wanted) if self.trials[name].measured is None]

    def table(self, names: Iterable[str]) -> pd.DataFrame:
        """The rows of `effects` for these prompts; measured once."""
        return pd.concat([self._rows(name) for name in names], ignore_index=True)

    def _rows(self, name: str) -> pd.DataFrame:
        trial, base = self.trials[name], self.base(name)
        if (known := self._measured.get(name)) and known[0] is trial and known[1] is base:
            return known[2]
        rows = effects(self.bench, trial, base)
        self._measured[name] = (trial, base, rows)
        return rows


class LabView:
    """The prompts of a shelf in a plane of their anchor space."""

    def __init__(self, shelf: PromptShelf, probes: Sequence[Probe], theme: str) -> None:
        self._shelf, self._probes, self._theme = shelf, probes, theme
        self._points: WeakKeyDictionary[Trial, pd.DataFrame] = WeakKeyDictionary()

    def points(self, plane: tuple[int, int]) -> pd.DataFrame:
        """All prompts' points: the columns of `trial_points`, `hover`, and x and y, the components of the plane
        (counted from 1)."""
        parts = pd.concat([self._own_points(trial) for trial in self._shelf.trials.values()], ignore_index=True)
        x, y = (parts[f"component_{number}"] for number in plane)
        return parts.assign(x=x, y=y)

    def _own_points(self, trial: Trial) -> pd.DataFrame:
        if trial not in self._points:
            made = trial_points(trial)
            self._points[trial] = made.assign(hover=planes.hover_texts(made))
        return self._points[trial]

    def content(self, plane: tuple[int, int], chosen: Sequence[str]) -> planes.Content:
        """The figure: an arrow from each chosen prompt's base, and their points, those of the given ones faint.

        The axes hold the points of all prompts, chosen or not.
        """
        points, space = self.points(plane), self._shelf.bench.space
        content = planes.projection_content(
            points,
            figures.PlaneLook(
                boundaries=figures.probe_boundaries(*self._probes, plane=(plane[0] - 1, plane[1] - 1)),
                axis_titles=(axis_title(space, plane[0]), axis_title(space, plane[1])),
                note="The plane is that of the anchors: a new prompt is placed into it and does not change it.",
                theme=self._theme,
            ),
            arrows=self._arrows(points),
            prompts=list(self._shelf.trials),
            shown=chosen,
        )
        for trace, (prompt, _) in zip(content["data"], planes.clouds(points), strict=False):
            if prompt in self._shelf.given:
                trace["marker"] = {**trace["marker"], "opacity": _FAINT}
        return content

    def _arrows(self, points: pd.DataFrame) -> pd.DataFrame | None:
        moved: dict[str, list[str]] = {}
        for name, trial in self._shelf.trials.items():
            if trial.base != name:
                moved.setdefault(trial.base, []).append(name)
        arrows = [
            planes.mean_shifts(points[points["prompt"].isin([base, *names])], baseline=base)
            for base, names in moved.items()
        ]
        return pd.concat(arrows, ignore_index=True) if arrows else None


def best_known(measured: pd.Series, predicted: pd.Series) -> str:
    """Which rates to show: the measured ones, if all of these are known, or if nothing is predicted."""
    return "predicted" if measured.isna().any() and predicted.notna().any() else "measured"


def effects_as_html(found: pd.DataFrame) -> str:
    """The table of `effects` as a person reads it."""
    shown = found.assign(harmful=found["harmful"].map(_CLASSES))
    measured = [f"{name}{end}" for name in _COLUMNS for end in ("", "_low", "_high")]
    headings = {"base": "against", "n_tokens": "tokens", **_COLUMNS}
    return tables.table_html(tables.worded(shown[["prompt", "base", "n_tokens", "harmful", *measured]], **headings))


RISE = 0.1
"""Of a refusal rate: what counts as refused more. A predicted rate rises by a little for nearly every query."""


def raised_as_html(shelf: PromptShelf, name: str) -> str:
    """The harmless queries whose refusal one prompt raises most against its base."""
    trial, base = shelf.trials[name], shelf.base(name)
    if trial is base:
        return ""
    queries = per_query(shelf.bench, trial, base)
    measure = best_known(queries["measured_change"], queries["predicted_change"])
    after, change = queries[measure], queries[f"{measure}_change"]
    known, risen = ~queries["harmful"] & change.notna(), ~queries["harmful"] & (change >= RISE - 1e-9)
    shown = pd.DataFrame({"query": queries["text"], "before": after - change, "after": after})[risen]
    names = [label(prompt, NAME_LIMIT) for prompt in (name, base.name)]
    words = f"Harmless queries that {names[0]!r} makes refused more than {names[1]!r}, by {RISE} or more ({measure}): "
    if change.isna().all():
        return f"<p>{visible(words)}not known before its replies, and those under its base, are sampled.</p>"
    if shown.empty:
        return f"<p>{visible(words)}none.</p>"
    head = f"<p><b>{visible(words)}{share_of(len(shown), int(known.sum()))}</b></p>"
    more = f"<details><summary>show all {len(shown):,}</summary>{tables.table_html(shown[N_EXAMPLES:])}</details>"
    return head + tables.table_html(shown[:N_EXAMPLES]) + (more if len(shown) > N_EXAMPLES else "")
