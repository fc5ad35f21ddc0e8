"""Runs of DRO and of prompt tuning side by side: what the model is about to say under each, how they differ, where they
moved the states.

In order: `KeptRun`, which is one of them; what is measured of it in passing, and whether the model is still itself; how
runs compare; where a run's snapshots moved the states; the files that keep runs.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from drolab import store as stores
from drolab.data import validate_queries
from drolab.dro.baselines import TUNING_COLUMNS, PromptTuning, PromptTuningConfig, PromptTuningRun
from drolab.dro.training import HISTORY_COLUMNS, Training
from drolab.errors import DrolabError, QueryError, StatesError, TrainingError
from drolab.files import file_sha256, plain_name, read_csv, read_json, write_file
from drolab.inference import divergence, first_token_probabilities, hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel, Prompt
from drolab.probing import coordinates
from drolab.progress import Progress
from drolab.types import AnchorSpace, DROConfig, DRORun, FitCheck, Probe, ReadAt, SoftPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

TRAINING = "training"
"""What the training queries are called among the query sets."""
MEASURES = ("refusal", "compliance", "other", "kl")
MEASURED_COLUMNS = ("step", "queries", "harmful", *MEASURES)
"""Columns of `measure_first_tokens`: `queries` names the query set; measures are means over its queries of a class.
`other` is the probability of first tokens that no sampled reply began with. `kl` is the Kullback-Leibler divergence of
the first token's distribution from that before training, KL(before ‖ now), in nats: what the model's own next token
costs it now. Harmful queries are meant to change; on harmless ones it should stay small. It is NaN if it was not
measured, as in files of earlier versions."""
MOST_UNSEEN = 0.1
"""A rise of `other` by more says that the model broke: every tenth reply then begins as no reply did before."""
MOST_KL = 1.0
"""`kl` of harmless queries by more says that the model broke, without the part that their change of refusal explains:
the first tokens that it would have said became e times rarer in the (geometric) mean, though it refuses as it did."""
MOVEMENT_COLUMNS = ("query_id", "harmful", "step", "x", "y", "refusal_logit", "harmfulness_logit", "residual_drift")
"""Columns of `movement`."""
_TERMS = [
    "residual_drift",
    *dict.fromkeys(name for name in (*HISTORY_COLUMNS, *TUNING_COLUMNS) if name.endswith("loss")),
]
_KINDS: dict[str, Callable[[str], Any]] = {
    "step": int,
    "epoch": int,
    "queries": str,
    "harmful": {"True": True, "False": False}.__getitem__,
}
"""How columns are read from a file; the others are numbers, read exactly, as pandas did not before version 3."""
_ABOUT, _SUMS = "run.json", "SHA256SUMS"
_FILES = ("state.safetensors", "history.csv", "measured.csv", "soft_prompt.safetensors", _ABOUT)
_EARLIER = "take an earlier snapshot (dro.snapshot)"
_SPACE = ("mean", "components", "explained_variance_ratio")
_SPACE_NUMBERS = ("layer", "residual_variance", "residual_spread", "model_fingerprint", "read_at")
_PROBES = ("refusal", "harmfulness")
_READ_ERRORS = (OSError, SafetensorError, KeyError, TypeError, ValueError, DrolabError)


@dataclass(kw_only=True, eq=False)
class KeptRun:
    """One of several runs: in training, ended, or loaded, with what was measured of it."""

    training: Training | PromptTuning | None = None
    loaded: DRORun | PromptTuningRun | None = None
    """Of the two there is one."""
    measured: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(MEASURED_COLUMNS)))
    trouble: str = ""
    """Why the training failed, in words."""
    _start: dict[tuple[Any, ...], tuple[pd.DataFrame, Tensor]] = field(default_factory=dict, init=False, repr=False)
    """Model and queries → the first tokens before training, as long as there are steps to measure."""

    @property
    def run(self) -> DRORun | PromptTuningRun:
        """What is finished of it."""
        if self.training is not None:
            return self.training.run()
        if self.loaded is None:
            raise TrainingError("This run has neither a training nor a loaded run: give KeptRun one of them.")
        return self.loaded

    @property
    def n_steps(self) -> int:
        """Steps of the whole training, where it is known; else those of the run."""
        return len(self.run.history) if self.training is None else self.training.n_steps

    @property
    def status(self) -> str:
        steps = len(self.run.history)
        return self.trouble or ("finished" if steps == self.n_steps else f"stopped at {steps} of {self.n_steps}")

    @property
    def problems(self) -> tuple[str, ...]:
        """The run's own, and what the last measurement says of the model itself; none if nothing is known."""
        run = self.run
        if isinstance(run, PromptTuningRun):
            return (*run.problems, *signs_of_damage(self.measured, advice=f"{_EARLIER.capitalize()}."))
        return (*run.problems, *signs_of_damage(self.measured))

    @property
    def unseen(self) -> str:
        """How much of the first-token probability no sampled reply began with, in words; "" if it was not measured.

        What the text prompt has of it already is simply unseen; only the rise is the training's.
        """
        both = _then_and_now(self.measured).groupby("queries", sort=False)[["other_then", "other"]].mean()
        found = [
            f"{row.other_then:.2f} before training, {row.other:.2f} now ({row.Index})" for row in both.itertuples()
        ]
        return f"Unseen first tokens: {'; '.join(found)}." if found else ""

    def unmeasured(self) -> list[int]:
        """The steps that a training has kept and nobody measured, such as those of an earlier session."""
        kept = self.training.done.snapshots if self.training is not None else {}
        return sorted(set(kept) - set(self.measured["step"]))

    def measure(
        self,
        step: int,
        model: ChatModel,
        judge: FirstTokenJudge,
        queries: Mapping[str, pd.DataFrame],
        *,
        progress: Progress = False,
    ) -> None:
        """Measure a kept step on each of the query sets, and step 0 if that is not, and add it to `measured`.

        Args:
            progress: show a bar of chats for each pass; or a callable, see `drolab.progress`.

        Raises:
            QueryError: no query set, or one that is none.
        """
        if not queries:
            raise QueryError(
                "There are no queries to measure on: pass query sets by name, as in {'held out': queries}."
            )
        found = [] if self.measured.empty else [self.measured]
        for number in dict.fromkeys([step] if (self.measured["step"] == 0).any() else [0, step]):
            for name, rows in queries.items():
                index, now = self._first_tokens(model, rows, number, judge.read_at, progress)
                means = first_token_means(
                    judge, index, now, self._first_tokens(model, rows, 0, judge.read_at, progress)[1]
                )
                found.append(means.assign(step=number, queries=name)[list(MEASURED_COLUMNS)])
        self.measured = pd.concat(found).sort_values("step", kind="stable")
        if step == self.n_steps:
            self._start.clear()  # with a large vocabulary many MB for each run

    def _first_tokens(
        self, model: ChatModel, queries: pd.DataFrame, step: int, read_at: ReadAt, progress: Progress
    ) -> tuple[pd.DataFrame, Tensor]:
        """As from `first_token_probabilities`; the prompt before training is run once for all steps."""
        how: dict[str, Any] = {"read_at": read_at, "progress": progress}
        if step:
            return first_token_probabilities(model, queries, snapshot(self.run, step), **how)
        asked = validate_queries(queries)[["query_id", "text", "harmful"]]
        key = (model.fingerprint, read_at, *asked.itertuples(index=False, name=None))
        if key not in self._start:
            self._start[key] = first_token_probabilities(model, queries, snapshot(self.run, 0), **how)
        return self._start[key]


def evenly_spaced(queries: pd.DataFrame, most: int = 24) -> pd.DataFrame:
    """At most `most` queries of each class, evenly spaced in the table's order: to measure in passing."""
    numbers = np.arange(len(queries))
    harmful = queries["harmful"].to_numpy(dtype=bool)
    classes = [numbers[harmful], numbers[~harmful]]
    chosen = [rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] for rows in classes]
    return queries.iloc[np.sort(np.concatenate(chosen))]


def measure_first_tokens(
    model: ChatModel,
    judge: FirstTokenJudge,
    queries: Mapping[str, pd.DataFrame],
    prompt: Prompt,
    step: int,
    *,
    start: Prompt | None = None,
) -> pd.DataFrame:
    """What the model is about to say under a prompt: MEASURED_COLUMNS, one row per query set and class.

    Args:
        start: the prompt before training, which `kl` is measured from; None leaves it NaN.
    """
    parts = []
    for name, rows in queries.items():
        place = judge.read_at
        before = None if start is None else first_token_probabilities(model, rows, start, read_at=place)[1]
        means = first_token_means(judge, *first_token_probabilities(model, rows, prompt, read_at=place), before)
        parts.append(means.assign(step=step, queries=name))
    return pd.concat(parts, ignore_index=True)[list(MEASURED_COLUMNS)]


def first_token_means(judge: FirstTokenJudge, index: pd.DataFrame, now: Tensor, before: Tensor | None) -> pd.DataFrame:
    """`harmful` and MEASURES, one row per class, from what `first_token_probabilities` gives.

    Args:
        before: the same before whatever was done, for `kl`; None leaves it NaN.
    """
    measures: dict[str, Any] = {measure: mass.numpy() for measure, mass in judge.masses(now).items()}
    measures["kl"] = np.nan if before is None else _divergence(before, now)
    return index.assign(**measures).groupby("harmful")[list(MEASURES)].mean().reset_index()


def _divergence(before: Tensor, now: Tensor) -> NDArray[np.float64]:
    """[n, vocabulary] probabilities twice → [n]; what is too small for a float costs 87 nats, not infinitely many."""
    least = torch.finfo(torch.float32).tiny
    return divergence(before.clamp(min=least).log(), now.clamp(min=least).log()).numpy()


# --- whether the model is still itself ---------------------------------------------------------------------


def _then_and_now(measured: pd.DataFrame) -> pd.DataFrame:
    """What was measured last, beside the same (`…_then`) before training; no rows if one of them was not."""
    first, last = (measured[measured["step"] == step] for step in (0, measured["step"].max()))
    return last.merge(first, on=["queries", "harmful"], suffixes=("", "_then"))


def signs_of_damage(
    measured: pd.DataFrame,
    when: str = " by step {step}",
    advice: str = f"Raise residual_weight, or {_EARLIER}.",
) -> list[str]:
    """A sentence for each sign that the model broke, of the query set and class where it is plainest.

    Args:
        when, advice: what the sentence says of when it did, and what to do.
    """
    both = _then_and_now(measured)
    found = []
    rise = both["other"] - both["other_then"]
    if (rise > MOST_UNSEEN).any():
        row = both.iloc[int(rise.argmax())]
        found.append(
            f"The model broke{when.format(**row)}: for {_class(row)} queries ({row['queries']}), {row['other']:.0%} of "
            f"the first-token probability is on tokens that no reply began with, {row['other_then']:.0%} before"
            f"{' training' if when else ''}. {advice}"
        )
    harmless = both[~both["harmful"].astype(bool)]
    costs = harmless["kl"] - _cost_of_refusals(harmless["refusal_then"], harmless["refusal"])
    if (costs > MOST_KL).any():
        row = harmless.iloc[int(costs.argmax())]
        found.append(
            f"The model broke{when.format(**row)}: on harmless queries ({row['queries']}) the first token is "
            f"{row['kl']:.2g} nats (KL) from what it was before{' training' if when else ''}, which no change of "
            f"refusals explains. {advice}"
        )
    return found


def _class(row: Mapping[str, Any] | pd.Series) -> str:
    return "harmful" if row["harmful"] else "harmless"


def _cost_of_refusals(then: pd.Series, now: pd.Series) -> pd.Series:
    """The divergence of refusing or not: what of `kl` a change of the refusal rate brings with it, at least."""
    (then, now) = (rate.astype(float).clip(1e-6, 1 - 1e-6) for rate in (then, now))
    return then * np.log(then / now) + (1 - then) * np.log((1 - then) / (1 - now))


# --- how runs compare --------------------------------------------------------------------------------------


def compare(kept: Mapping[str, KeptRun]) -> pd.DataFrame:
    """One row per run: where the runs differ (`prompt` and settings), its steps, what was measured last, at step
    `measured_at`, in columns such as `refusal harmful` (query sets other than "training" have their name before it),
    with `other before training` beside `other`, the means of the last epoch's drift and losses, and `note`: why the run
    is not to be trusted, "" if nothing of that is known."""
    found = {name: one.run for name, one in kept.items()}
    made = [{"prompt": run.soft_prompt.name, **asdict(run.config)} for run in found.values()]
    settings = pd.DataFrame(made, index=list(found))
    differing = [name for name in settings.columns if settings[name].nunique() > 1]
    rows = []
    for name, run in found.items():
        epoch = run.history[run.history["epoch"] == run.history["epoch"].max()]
        about = {"run": name, **settings.loc[name, differing], "steps": len(run.history)}
        terms = epoch[[term for term in _TERMS if term in epoch]].astype(float).mean()
        rows.append({**about, **_last(kept[name].measured), **terms, "note": " ".join(kept[name].problems)})
    return pd.DataFrame(rows)


def _last(measured: pd.DataFrame) -> dict[str, Any]:
    if measured.empty:
        return {}
    found: dict[str, Any] = {"measured_at": int(measured["step"].max())}
    for column, step in [(name, found["measured_at"]) for name in MEASURES] + [("other before training", 0)]:
        for row in measured[measured["step"] == step].to_dict("records"):
            place = "" if row["queries"] == TRAINING else f"{row['queries']} "
            found[f"{place}{column} {_class(row)}"] = row[column.split()[0]]
    return found


# --- where the states went ---------------------------------------------------------------------------------


def movement(
    model: ChatModel,
    queries: pd.DataFrame,
    run: DRORun,
    *,
    plane: tuple[int, int] = (0, 1),
    steps: Sequence[int] | None = None,
    store: stores.Store | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """Where each query's state lies in one plane of the anchor space at the run's snapshots: see `trajectories`.

    Args:
        plane: the two components, counted from 0, that become `x` and `y`.

    Returns:
        MOVEMENT_COLUMNS, one row per step and query.

    Raises:
        StatesError: components that the space does not have.
        TrainingError: steps without a snapshot.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(3)
        >>> states = drolab.hidden_states(model, queries, [prompts["none"], prompts["short"]], progress=False)
        >>> space = drolab.fit_anchors(states, n_components=2)
        >>> harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> refusal = drolab.fit_probe(space, states, 0.8 * queries["harmful"] + 0.1, positive="refuses")
        >>> run = drolab.train_dro(
        ...     model, queries, init=prompts["short"], space=space, refusal=refusal, harmfulness=harm,
        ...     config=drolab.DROConfig(num_train_epochs=3, learning_rate=1e-2), progress=False,
        ... )
        >>> moved = drolab.dro.movement(model, queries, run, progress=False)
        >>> moved.groupby(["harmful", "step"])["refusal_logit"].mean().round(1).unstack()
        step       0    3
        harmful
        False   -1.8 -2.6
        True     2.2  3.1
    """
    m = len(run.space.components)
    if not all(0 <= axis < m for axis in plane):
        raise StatesError(f"The anchor space has components 0 to {m - 1}, so there is no plane {plane}.")
    table = trajectories(model, queries, run, steps=steps, store=store, progress=progress)
    x, y = (table[f"component_{axis + 1}"] for axis in plane)
    return table.assign(x=x, y=y)[list(MOVEMENT_COLUMNS)]


def trajectories(
    model: ChatModel,
    queries: pd.DataFrame,
    run: DRORun,
    *,
    steps: Sequence[int] | None = None,
    store: stores.Store | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """Where each query's state lies in the anchor space at the run's snapshots, from step 0 on.

    Step 0 is the human prompt (its embeddings in the soft prompt's slots). The queries may be others than the
    training queries.

    Args:
        steps: which snapshots; None takes all. Step 0 is always read, since drift is measured from it.

    Returns:
        query_id, harmful, step, component_1 to component_m, refusal_logit, harmfulness_logit, residual_drift; one
        row per step and query. `residual_drift` is the squared movement outside the anchor space over the anchors'
        residual variance.

    Raises:
        TrainingError: steps without a snapshot.
    """
    shown = sorted(run.snapshots) if steps is None else list(dict.fromkeys(steps))
    if absent := [step for step in shown if step not in run.snapshots]:
        raise TrainingError(f"No snapshots at steps {absent}: this run kept {sorted(run.snapshots)}.")
    prompts = {str(step): snapshot(run, step) for step in sorted({0, *shown})}
    layers, read_at = (run.space.layer,), run.space.read_at
    states = hidden_states(model, queries, prompts, layers=layers, read_at=read_at, store=store, progress=progress)
    matrix = states.matrix(run.space.layer)
    origin = matrix[: len(queries)].repeat(len(prompts), 1)
    drift = run.space.residual(matrix - origin).square().sum(dim=1) / run.space.residual_variance
    places = coordinates(run.space, states)
    table = states.index[["query_id", "harmful"]].assign(
        step=states.index["prompt"].astype(int),
        **{f"component_{number}": column.numpy() for number, column in enumerate(places.T, start=1)},
        refusal_logit=run.refusal.decision_function(places).numpy(),
        harmfulness_logit=run.harmfulness.decision_function(places).numpy(),
        residual_drift=drift.numpy(),
    )
    return table[table["step"].isin(shown)].reset_index(drop=True)


def snapshot(run: DRORun | PromptTuningRun, step: int) -> SoftPrompt:
    """The soft prompt as it was after a step that has a snapshot; 0 is the human prompt."""
    prompt = run.soft_prompt
    return SoftPrompt(
        name=f"{prompt.name}@{step}",
        embeddings=run.snapshots[step],
        init_text=prompt.init_text,
        model_fingerprint=prompt.model_fingerprint,
    )


# --- files -------------------------------------------------------------------------------------------------


def save_run(folder: str | Path, name: str, kept: KeptRun) -> Path:
    """Write a run into a folder of its own inside `folder`, and return that: `soft_prompt.safetensors` (see
    `SoftPrompt.save_pretrained`), `state.safetensors` (snapshots, anchor space, probes), `history.csv`,
    `measured.csv`, `run.json`, and `SHA256SUMS` of all these (`sha256sum -c SHA256SUMS` checks them). A run of this
    name that is there already is replaced.

    Raises:
        ExportError: the folder cannot be written.
    """
    place, run = Path(folder) / plain_name(name), kept.run
    about: dict[str, Any] = {
        "name": name,
        "steps": len(run.history),
        "seconds": None if math.isnan(run.seconds) else run.seconds,
        "config": asdict(run.config),
        "snapshots": list(run.snapshots),
    }
    if isinstance(run, PromptTuningRun):
        about["learned"] = run.learned.to_dict("records")
    else:
        about["space"] = {key: getattr(run.space, key) for key in _SPACE_NUMBERS}
        about["probes"] = {key: _about(getattr(run, key)) for key in _PROBES}
    write_file(place / "state.safetensors", save(_state(run)))
    write_file(place / "history.csv", run.history.to_csv(index=False))
    write_file(place / "measured.csv", kept.measured.to_csv(index=False, na_rep="nan"))
    run.soft_prompt.save_pretrained(place)
    write_file(place / _ABOUT, json.dumps(about, indent=2) + "\n")
    write_file(place / _SUMS, _checksums(place))
    return place


def _checksums(place: Path) -> str:
    return "".join(f"{file_sha256(place / name)}  {name}\n" for name in _FILES)


def load_runs(folder: str | Path) -> dict[str, KeptRun]:
    """Name → run, of all runs that `save_run` wrote into `folder` (or into a run's own folder).

    What is read is what was saved: the checksums must match. A warning says so if a run has none, because an earlier
    drolab wrote it.

    Raises:
        TrainingError: there is none, or one cannot be read.
    """
    root = Path(folder)
    places = [path.parent for path in (*root.glob(_ABOUT), *sorted(root.glob(f"*/{_ABOUT}")))]
    if not places:
        raise TrainingError(f"No DRO run in {root}: give the folder that runs were saved to.")
    found = {}
    for place in places:
        try:
            name, kept = _load(place)
        except _READ_ERRORS as error:
            raise TrainingError(f"The run in {place} cannot be read ({error}): save it again, or move it.") from error
        found[name] = kept
    return found


def _load(place: Path) -> tuple[str, KeptRun]:
    if not (place / _SUMS).exists():
        _log.warning("%s has no %s, as an earlier drolab wrote it: look at the run and save it again.", place, _SUMS)
    elif (place / _SUMS).read_bytes() != _checksums(place).encode():
        raise ValueError(f"it is not as it was saved, or {_SUMS} was written again: see `sha256sum -c {_SUMS}`")
    about = read_json(place / _ABOUT, TrainingError)
    state = load_file(place / "state.safetensors")
    tuned = "learned" in about
    history = _read_columns(place / "history.csv", TUNING_COLUMNS if tuned else HISTORY_COLUMNS)
    measured = _read_columns(place / "measured.csv", [name for name in MEASURED_COLUMNS if name != "kl"])
    if "kl" not in measured:  # of an earlier version
        measured["kl"] = np.nan
    if len(history) != about["steps"]:
        raise ValueError(f"its history has {len(history)} steps, not {about['steps']}")
    common: dict[str, Any] = {
        "soft_prompt": SoftPrompt.from_pretrained(place),
        "history": history,
        "seconds": float("nan") if about.get("seconds") is None else float(about["seconds"]),
        "snapshots": {step: state[f"snapshot.{step}"] for step in about["snapshots"]},
    }
    run = (_tuning_run if tuned else _dro_run)(about, state, common)
    return str(about["name"]), KeptRun(loaded=run, measured=measured)


def _tuning_run(about: Mapping[str, Any], _: Mapping[str, Tensor], common: dict[str, Any]) -> PromptTuningRun:
    return PromptTuningRun(
        config=PromptTuningConfig(**about["config"]), learned=pd.DataFrame(about["learned"]), **common
    )


def _dro_run(about: Mapping[str, Any], state: Mapping[str, Tensor], common: dict[str, Any]) -> DRORun:
    spread = about["space"].get("residual_spread")
    space = {**about["space"], "residual_spread": None if spread is None else float(spread)}
    return DRORun(
        config=DROConfig(**about["config"]),
        space=AnchorSpace(**{**space, **{name: state[f"space.{name}"] for name in _SPACE}}),
        refusal=_probe(state, "refusal", **about["probes"]["refusal"]),
        harmfulness=_probe(state, "harmfulness", **about["probes"]["harmfulness"]),
        **common,
    )


def _about(probe: Probe) -> dict[str, Any]:
    """What is kept of a probe beside its coefficients."""
    check = {} if probe.check is None else {"check": asdict(probe.check)}
    return {"intercept": probe.intercept, "positive": probe.positive, **check}


def _probe(state: Mapping[str, Tensor], name: str, *, check: Mapping[str, Any] | None = None, **about: Any) -> Probe:
    coef, refits = state[f"probe.{name}"], state.get(f"refits.{name}")
    found = None if check is None else FitCheck(**{**check, "null": tuple(check["null"])})
    return Probe(coef=coef, refits=refits, check=found, **about)


def _read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_csv(path, TrainingError, columns)
    return pd.DataFrame({str(name): list(map(_KINDS.get(str(name), float), table[name])) for name in table.columns})


def _state(run: DRORun | PromptTuningRun) -> dict[str, Tensor]:
    tensors = {f"snapshot.{step}": value for step, value in run.snapshots.items()}
    if isinstance(run, DRORun):
        tensors |= {f"space.{name}": getattr(run.space, name) for name in _SPACE}
        tensors |= {f"probe.{name}": getattr(run, name).coef for name in _PROBES}
        tensors |= {f"refits.{name}": refits for name in _PROBES if (refits := getattr(run, name).refits) is not None}
    return {name: value.clone().contiguous() for name, value in tensors.items()}  # safetensors takes no shared memory
