"""Does a direction cause refusals? Edit the states, see what the reply's first token becomes, against random edits.

Each test edits the hidden states (`steering`), runs every query once, and reads refusal, compliance and the mass
outside both from the distribution of the first token with a `FirstTokenJudge`. The judge was fitted on replies of the
unedited model: check a large effect with `generate` inside `steered`.

Beside every real direction stand random ones of the same norm, of one of three kinds of `control`. "contrasts" are
random contrasts of this model's own states within a class (`evidence.null_directions`): they lie where the states vary,
so some of them point along refusal themselves where queries of one class differ in it. To stand out among them is more
than to stand out among "isotropic" ones, drawn evenly in all d dimensions, most of which the model hardly reads.
"dealt" ones are contrasts of all states with labels dealt out over both classes: what a direction fitted on labels
would be if these told nothing. They hold some of the difference of the classes by chance, and are the hardest to beat.
The p-value is as rare as it says for a direction that is drawn as its control is, so the control is the null. The
p-value is (1 + the random directions that change refusal at least as far the expected way) / (1 + their number)
(Phipson & Smyth 2010); with 20 of them it cannot fall below .048. It is not corrected for the number of rows read.
Where the queries themselves say which way is expected (`swap`), the p-value is twice that.

`kl` is the Kullback-Leibler divergence of the edited from the unmodified distribution, KL(unmodified ‖ edited), in
nats, mean over queries: what the unmodified model's own next token costs the edited one more. It grows without bound
where the edited model has forgotten what it would have said, and is the form used to choose ablations (Arditi et al.
2024, appendix C). On harmless queries it should stay small.

Columns of every table: `harmful, n` (queries), `refusal, refusal_low, refusal_high, change, change_low, change_high,
compliance, other, kl`; `change` is the refusal under the edit minus that of the same queries without it. Intervals are
over queries, the edits as given: Student's t, for `refusal` on the scale of a logit, on which a mean near an end has
its longer side inwards. docs/evidence.md has the simulations of both. Where hardly any query differs from the rest,
also where nothing is edited, they allow for queries that were not seen, as `evidence.mean_interval` does.

First tokens and states are those of the place at which the judge reads (`FirstTokenJudge.read_at`): of a model that
thinks before it answers, the answer's, behind an empty thought.

The last column, `note`, says why a row should not be trusted; it is empty if nothing speaks against it. An edit breaks
the model where `other` rises by more than BROKEN_OTHER, and an ablation also where the `kl` of harmless queries is
above BROKEN_KL; what it breaks for one class is said in the rows of both. Where the judge or a direction has a
`problem`, the note is that, and there is no p-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drolab.data import validate_queries
from drolab.errors import StatesError
from drolab.evidence.shifts import null_directions
from drolab.inference import divergence, hidden_states, next_tokens
from drolab.intervals import CHANGE, LOGIT, Scale, bounded_interval, check_settings, student
from drolab.judges import FirstTokenJudge
from drolab.models import (
    Ablate,
    Add,
    ChatModel,
    Edit,
    EncodedBatch,
    Patch,
    Positions,
    Prompt,
    check_direction,
    check_edits,
    edited_fingerprint,
    encode,
    resolve_layers,
)
from drolab.probing import RANDOM, Directions, taken_apart
from drolab.progress import Progress, bar
from drolab.store import Store, key
from drolab.threads import threads_for
from drolab.types import HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

UNMODIFIED = "unmodified"
"""Direction and kind of the row without an edit."""

Control = Literal["contrasts", "dealt", "isotropic"]

BROKEN_KL = 0.1
"""Nats. Arditi et al. (2024, appendix C) discard directions whose ablation changes the next token of harmless queries
by more. Of ablations only: to add a direction of refusal is meant to change what harmless queries get."""

BROKEN_OTHER = 0.1
"""How far `other` may rise. One reply in ten then begins as none did of those that the judge was fitted on, and a
change of refusal by as much may be nothing but that. What is `other` without an edit, tokens never seen, does not
count."""


def dose_response(
    model: ChatModel,
    queries: pd.DataFrame,
    prompt: Prompt,
    judge: FirstTokenJudge,
    directions: Directions,
    *,
    layer: int,
    unit: float,
    doses: Sequence[float] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
    positions: Positions = "read",
    n_random: int = 20,
    control: Control = "contrasts",
    random_state: int = 0,
    level: float = 0.95,
    store: Store | None = None,
    token_budget: int = 16384,
    progress: Progress = True,
) -> pd.DataFrame:
    """Refusal when a direction is added to the states of one layer, by strength.

    Args:
        directions: name → `Direction` or [d]; their length does not matter, their sign does: along refusal, say.
        layer: where it is added, and whose states the random directions are drawn from.
        unit: the norm of dose 1, best that of a typical shift at this layer: the mean of
            `evidence.shifts(states, layer=layer).table()["norm"]`.
        doses: in units of `unit`; negative ones subtract.
        positions: add at the "read" token only, where typical shifts are measured, or at "all" tokens of the chat,
            which takes about ten times as long.
        n_random, control: the random directions, see the top of this module.
        store: states and measures that it has are not computed again.

    Returns:
        One row per direction, dose and class: `direction, kind` ("direction" or "random"), `dose`, the columns named
        at the top of this module, `p_value`: of a change of refusal towards the dose's sign; NaN in random rows and
        at dose 0; and `note`.

    Raises:
        StatesError: a direction that is zero, not finite or of another width; a layer that is not there; `unit` or a
            dose that is no number; an unknown control or positions.
        QueryError: no queries, or a table of another form.
        ModelError: the model cannot be edited, see `steering.steered`.

    Examples:
        Adding the difference of the classes' states to harmful and harmless queries:

        >>> import drolab
        >>> from drolab import causal, judges
        >>> model, none = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("heldout").groupby("harmful").head(4)
        >>> states = drolab.hidden_states(model, queries, [none], layers=(3,), progress=False)
        >>> harm = states.select(harmful=True).matrix(3).mean(0) - states.select(harmful=False).matrix(3).mean(0)
        >>> replies = drolab.generate(model, queries, [none], n_samples=2, progress=False)
        >>> options = {"layer": 3, "unit": float(harm.norm()), "doses": (1.0,), "n_random": 2, "progress": False}
        >>> judge = judges.FirstTokenJudge.fit(replies)
        >>> table = causal.dose_response(model, queries, none, judge, {"harm": harm}, **options)
        >>> table.loc[table["kind"] == "direction", ["direction", "dose", "harmful", "n"]]
          direction  dose  harmful  n
        0      harm   1.0     True  4
        1      harm   1.0    False  4
        >>> bool((table.loc[table["kind"] == "direction", "change"] > 0).all())
        True
    """
    check_settings(level)
    if not unit > 0 or not np.isfinite([unit, *doses]).all() or len(doses) == 0:
        raise StatesError(f"unit must be above 0 and doses finite numbers, got unit={unit}, doses={list(doses)}.")
    chats = _Chats.make(model, queries, prompt, judge, store, token_budget)
    null = _RandomDirections(n=n_random, control=control, generator=np.random.default_rng(random_state))
    plans: list[Sequence[Edit]] = []
    labels = []
    for kind, name, vector in _with_random(chats, directions, layer, null):
        plans += [_adding(dose * unit * vector, layer, positions) for dose in doses]
        labels += [{"direction": name, "kind": kind, "dose": float(dose)} for dose in doses]
    before, after = chats.run(plans, progress)
    return _with_problems(dose_table(chats.queries, before, after, labels, level), judge, directions)


def ablation(
    model: ChatModel,
    queries: pd.DataFrame,
    prompt: Prompt,
    judge: FirstTokenJudge,
    directions: Directions,
    *,
    layer: int,
    method: Literal["affine", "zero"] = "affine",
    n_random: int = 20,
    control: Control = "contrasts",
    random_state: int = 0,
    level: float = 0.95,
    store: Store | None = None,
    token_budget: int = 16384,
    progress: Progress = True,
) -> pd.DataFrame:
    """Refusal when a direction is taken out of the states, at one layer or at all of them, always at all positions.

    Args:
        directions: name → `Direction` or [d]; neither length nor sign matters.
        layer: where the directions come from, and whose states the random ones are drawn from.
        method: "affine": at `layer` alone, the state of every token gets the component that harmless queries' states
            have in the mean at the read position; later layers can write it anew. "zero": at the embeddings and after
            every block, the component of every token's state is set to 0. Zero is often no neutral value: where the
            states' mean lies off zero, this moves both classes to the same place, and a fall of harmful refusals comes
            with a rise of harmless ones.
        n_random, control: the random directions, see the top of this module.
        store: states and measures that it has are not computed again.

    Returns:
        One row per direction and class, the first without an edit: `direction, kind` ("unmodified", "direction" or
        "random"), the columns named at the top of this module, `p_value`: of a fall of refusal, and `note`.

    Raises:
        StatesError: a direction that is zero, not finite or of another width; a layer that is not there; an unknown
            method or control; "affine" without harmless queries.
        QueryError: no queries, or a table of another form.
        ModelError: the model cannot be edited, see `steering.steered`.
    """
    check_settings(level)
    chats = _Chats.make(model, queries, prompt, judge, store, token_budget)
    null = _RandomDirections(n=n_random, control=control, generator=np.random.default_rng(random_state))
    named = _with_random(chats, directions, layer, null)
    if method == "affine":
        reference = chats.states((layer,)).select(harmful=False).matrix(layer).mean(dim=0)
        plans = [[Ablate(vector, (layer,), reference)] for _, _, vector in named]
    elif method == "zero":
        plans = [[Ablate(vector)] for _, _, vector in named]
    else:
        raise StatesError(f"method must be 'affine' or 'zero', got {method!r}.")
    before, after = chats.run(plans, progress)
    names = [(UNMODIFIED, UNMODIFIED), *((kind, name) for kind, name, _ in named)]
    labels = [{"direction": name, "kind": kind} for kind, name in names]
    table = ablation_table(chats.queries, before, np.stack([before, *after]), labels, level)
    return _with_problems(table, judge, directions)


def swap(
    model: ChatModel,
    queries: pd.DataFrame,
    donor: Prompt,
    recipient: Prompt,
    judge: FirstTokenJudge,
    *,
    layers: Sequence[int] | None = None,
    n_random: int = 40,
    control: Control = "contrasts",
    random_state: int = 0,
    level: float = 0.95,
    store: Store | None = None,
    token_budget: int = 16384,
    progress: Progress = True,
) -> pd.DataFrame:
    """How much of one prompt's effect on refusal comes across with the state at the read position, layer by layer.

    The chats are those under `recipient`. At one layer and the read position, each gets (1) the state of the same query
    under `donor`, kind "state", or (2) the mean shift from recipient to donor over all queries added, kind "shift", or
    (3) random directions of the mean shift's norm added, kind "random". After the final norm (1) brings everything
    across by construction, and before the first block nothing: both prompts end in the same token.

    Args:
        layers: None takes every layer but the embeddings.
        store: states and measures that it has are not computed again.

    Returns:
        One row per layer, patch and class: `layer, direction, kind`, the columns named at the top of this module (all
        against the recipient), `p_value` of a shift's change towards the donor's (two-sided: above .05 with less than
        39 random directions), `total` (the donor's refusal minus the recipient's), `recovered, recovered_low,
        recovered_high`: change / total, NaN where the interval of the total contains 0, and without limits where every
        query has the same share; and `note`.

    Raises:
        StatesError: a layer that is not there; an unknown control.
        QueryError: no queries, or a table of another form.
        ModelError: the model cannot be edited, see `steering.steered`.
    """
    check_settings(level)
    where = resolve_layers(model, range(1, model.num_hidden_layers + 1) if layers is None else layers)
    chats = _Chats.make(model, queries, recipient, judge, store, token_budget)
    source = _Chats.make(model, queries, donor, judge, store, token_budget)
    null = _RandomDirections(n=n_random, control=control, generator=np.random.default_rng(random_state))
    own, given = chats.states(where), source.states(where)
    plans: list[Sequence[Edit]] = []
    labels: list[dict[str, object]] = []
    for number in where:
        shift = (given.matrix(number) - own.matrix(number)).mean(dim=0)
        noise = [shift.norm() * unit for unit in null.draw(own, number)]
        plans += [[Patch(given.matrix(number), number)], *(_adding(v, number, "read") for v in [shift, *noise])]
        names = [("state", "state"), ("shift", "shift"), *((RANDOM, f"{RANDOM} {i + 1}") for i in range(n_random))]
        labels += [{"layer": number, "direction": name, "kind": kind} for kind, name in names]
    before, after = chats.run(plans, progress)
    table = swap_table(chats.queries, before, after, labels, level, source.run([], False)[0])
    return _with_problems(table, judge, {})


# --- one run over all queries ------------------------------------------------------------------------------

_MEASURES = ("refusal", "compliance", "other", "kl")
_OTHER = _MEASURES.index("other")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chats:
    """The chats of all queries under one prompt, and what scores the first tokens of their replies."""

    model: ChatModel
    queries: pd.DataFrame
    prompt: Prompt
    judge: FirstTokenJudge
    batch: EncodedBatch
    store: Store | None
    token_budget: int

    @classmethod
    def make(
        cls,
        model: ChatModel,
        queries: pd.DataFrame,
        prompt: Prompt,
        judge: FirstTokenJudge,
        store: Store | None,
        token_budget: int,
    ) -> _Chats:
        queries = validate_queries(queries)
        if judge.read_at == "after_thinking":
            raise StatesError(
                "An edit changes what a model thinks, so that its effect on the answer cannot be read after one "
                "thought: fit the judge with FirstTokenJudge.fit(…, read_at='answer')."
            )
        batch = encode(model, queries["text"].tolist(), prompt, read_at=judge.read_at)
        return cls(
            model=model,
            queries=queries,
            prompt=prompt,
            judge=judge,
            batch=batch,
            store=store,
            token_budget=token_budget,
        )

    def states(self, layers: Sequence[int]) -> HiddenStates:
        return hidden_states(
            self.model,
            self.queries,
            self.prompt,
            layers=layers,
            read_at=self.judge.read_at,
            store=self.store,
            progress=False,
        )

    def run(self, plans: Sequence[Sequence[Edit]], progress: Progress) -> tuple[Array, Array]:
        """[n, 4] without an edit and [n_plans, n, 4] under each plan: _MEASURES of every query, store first."""
        check_edits(self.model)
        common, all_plans = self._key(), [(), *plans]
        names = [key(common=common, edited=edited_fingerprint(self.model, plan)) for plan in all_plans]
        kept = {} if self.store is None else self.store.get_tensors(list(set(names)))
        missing = {name: plan for name, plan in zip(names, all_plans, strict=True) if name not in kept}
        if missing:
            kept |= self._measure(missing, progress)
        found = torch.stack([kept[name] for name in names]).numpy()
        return found[0], found[1:]

    def _key(self) -> str:
        """A hash of what the measures depend on, the edits apart. `kl` is from this model as it is, edited or not."""
        chats = [list(self.batch.chat(row)) for row in range(len(self.batch))]
        return key(
            kind="first tokens judged",
            model=self.model.fingerprint,
            dtype=str(self.model.dtype),
            attention=self.model.model.config._attn_implementation,
            chats=chats,
            soft=self.batch.slots,
            judge=[self.judge.tokens.tolist(), self.judge.refusal_rate.tolist()],
        )

    def _measure(self, plans: Mapping[str, Sequence[Edit]], progress: Progress) -> dict[str, Tensor]:
        """[n, 4] float64 for each plan. Those that are whole when this ends, also by an error or Ctrl-C, are kept."""
        values = torch.full((len(plans), len(self.queries), len(_MEASURES)), torch.nan, dtype=torch.float64)
        reference: dict[int, Tensor] = {}
        counting = bar(progress, total=values.shape[0] * values.shape[1], desc="edited chats", unit="chat")
        passes = next_tokens(self.model, self.batch, [(), *plans.values()], token_budget=self.token_budget)
        try:
            with counting as counted, threads_for(self.model.model):
                for number, rows, spoken in passes:
                    if number == 0:
                        reference.update(zip(rows, spoken, strict=True))
                        continue
                    masses = self.judge.masses(spoken.exp())
                    masses["kl"] = divergence(torch.stack([reference[row] for row in rows]), spoken)
                    values[number - 1, rows] = torch.stack([masses[name] for name in _MEASURES], dim=1)
                    counted.update(len(rows))
        finally:
            if self.store is not None:
                whole = {name: own for name, own in zip(plans, values, strict=True) if not own.isnan().any()}
                if whole:
                    note = f"first tokens under edits, {self.model.name}"
                    self.store.put_tensors(list(whole), torch.stack(list(whole.values())), note=note)
        return dict(zip(plans, values, strict=True))


# --- directions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _RandomDirections:
    """The null: how many random directions stand beside the real ones, of which kind, and from which stream."""

    n: int
    control: Control
    generator: np.random.Generator

    def draw(self, states: HiddenStates, layer: int) -> Tensor:
        """[n, d], length one, of one layer's states."""
        baseline = states.matrix(layer)
        if self.control == "isotropic":
            drawn = torch.from_numpy(self.generator.normal(size=(self.n, baseline.shape[1]))).float()
            return drawn / drawn.norm(dim=1, keepdim=True)
        contrasts = random_contrasts(baseline, states.index["harmful"], self.n, self.control, self.generator)
        return torch.from_numpy(contrasts).float()


def _with_random(
    chats: _Chats, directions: Directions, layer: int, null: _RandomDirections
) -> list[tuple[str, str, Tensor]]:
    """(kind, name, [d] of length one): the directions given, then random ones of the layer."""
    width = chats.model.hidden_size
    given = [("direction", name, _checked(one, name, width)) for name, one in taken_apart(directions)[0].items()]
    drawn = null.draw(chats.states((layer,)), layer)
    return given + [(RANDOM, f"{RANDOM} {i + 1}", vector) for i, vector in enumerate(drawn)]


def _checked(direction: Tensor, name: str, width: int) -> Tensor:
    check_direction(direction, f"Direction {name!r}")
    if len(direction) != width:
        raise StatesError(
            f"Direction {name!r} has width {len(direction)}, but the model has hidden size {width}: use one of its own."
        )
    return direction.float() / direction.float().norm()


def random_contrasts(
    baseline: Tensor, harmful: pd.Series, n: int, control: Control, generator: np.random.Generator
) -> Array:
    """[n, d], length one: contrasts within the classes, or of labels that are dealt out over both."""
    if control not in ("contrasts", "dealt"):
        raise StatesError(f"control must be 'contrasts', 'dealt' or 'isotropic', got {control!r}.")
    return null_directions(baseline, harmful if control == "contrasts" else harmful | True, n, generator)


def _adding(vector: Tensor, layer: int, positions: Positions) -> list[Edit]:
    """No edit at all where there is nothing to add."""
    return [Add(vector, layer, positions)] if vector.any() else []


# --- tables ------------------------------------------------------------------------------------------------

_Labels = Sequence[Mapping[str, object]]


def dose_table(queries: pd.DataFrame, before: Array, after: Array, labels: _Labels, level: float) -> pd.DataFrame:
    table = effect_table(queries, before, after, labels, level)
    p_values = _p_values(table, "direction", ["dose", "harmful"], np.sign(table["dose"]))
    return _noted_last(table.assign(p_value=p_values))


def ablation_table(queries: pd.DataFrame, before: Array, after: Array, labels: _Labels, level: float) -> pd.DataFrame:
    table = effect_table(queries, before, after, labels, level, kl_limit=BROKEN_KL)
    p_values = _p_values(table, "direction", ["harmful"], pd.Series(-1.0, table.index))
    return _noted_last(table.assign(p_value=p_values))


def swap_table(
    queries: pd.DataFrame, before: Array, after: Array, labels: _Labels, level: float, whole: Array
) -> pd.DataFrame:
    table = effect_table(queries, before, after, labels, level, whole)
    # The sign is that of the donor's effect, which the shift is a part of: also a random shift mostly has this sign.
    one_sided = _p_values(table, "shift", ["layer", "harmful"], np.sign(table["total"]))
    return _noted_last(table.assign(p_value=np.minimum(2 * one_sided, 1.0)))


def effect_table(
    queries: pd.DataFrame,
    before: Array,
    after: Array,
    labels: _Labels,
    level: float,
    whole: Array | None = None,
    kl_limit: float = np.inf,
) -> pd.DataFrame:
    """One row per plan (`after`, [n_plans, n, 4], with a label each) and class; `before` and `whole` are [n, 4].

    With `whole`, also which share of it a plan recovers. `note` says where a plan broke the model.
    """
    harmful = queries["harmful"].to_numpy(dtype=bool)
    parts, broken = [], []
    for kind in sorted(set(harmful), reverse=True):
        rows = np.flatnonzero(harmful == kind)
        change = after[:, rows, 0] - before[rows, 0]
        columns = _with_interval("refusal", after[:, rows, 0], level, LOGIT)
        columns |= _with_interval("change", change, level, CHANGE)
        columns |= dict(zip(_MEASURES[1:], after[:, rows, 1:].mean(axis=1).T, strict=True))
        start = before[rows, _OTHER].mean()
        if whole is not None:
            columns |= _recovered(change, whole[rows, 0] - before[rows, 0], level)
            start = max(start, whole[rows, _OTHER].mean())  # what the donor does is no fault of its states
        parts.append(pd.DataFrame(labels).assign(harmful=kind, n=len(rows), **columns))
        broken.append(_broken(parts[-1], start, np.inf if kind else kl_limit))
    table = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    notes = [_in_words("; ".join(filter(None, reasons))) for reasons in zip(*broken, strict=True)]
    return table.assign(note=np.repeat(np.array(notes, dtype=object), len(parts)))  # both classes: it is one edit


def _broken(part: pd.DataFrame, start: float, kl_limit: float) -> list[str]:
    """What speaks for a broken model in the rows of one class; `start` is `other` without an edit."""
    name = "harmful" if part["harmful"].iloc[0] else "harmless"
    found = []
    for other, kl in zip(part["other"], part["kl"], strict=True):
        rise = f"other {start:.2f} → {other:.2f}, {name}" if other - start > BROKEN_OTHER else ""
        far = f"KL {kl:.2f} > {kl_limit:g} nats, {name}" if kl > kl_limit else ""
        found.append("; ".join(filter(None, (rise, far))))
    return found


def _in_words(reasons: str) -> str:
    if not reasons:
        return ""
    return f"The edit breaks the model ({reasons}): its change is not of refusal alone. {EDIT_ADVICE}"


EDIT_ADVICE = "Edit less, or at another layer."
"""What to do about an edit that breaks the model."""


def _noted_last(table: pd.DataFrame) -> pd.DataFrame:
    return table[[*table.columns.drop("note"), "note"]]


def _with_problems(table: pd.DataFrame, judge: FirstTokenJudge, directions: Directions) -> pd.DataFrame:
    """The problems of the judge, and of a direction in its own rows, before what else is noted; no p-value there."""
    problems = taken_apart(directions)[1]
    wrong = [
        " ".join(filter(None, (judge.problem, problems.get(name, "") if kind == "direction" else "")))
        for name, kind in zip(table["direction"], table["kind"], strict=True)
    ]
    notes = [" ".join(filter(None, both)) for both in zip(wrong, table["note"], strict=True)]
    return table.assign(p_value=table["p_value"].mask(np.array(wrong) != ""), note=notes)


def _with_interval(name: str, values: Array, level: float, scale: Scale) -> dict[str, Array]:
    """Columns of the means of values, [n_plans, n], and of their limits."""
    found = np.array([bounded_interval(row, level, scale) for row in values]).reshape(-1, 3).T.round(12)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _recovered(change: Array, total: Array, level: float) -> dict[str, Any]:
    """The mean of `change`, [n_plans, n], as a share ρ of that of `total`, [n], with Fieller's interval (1954, Journal
    of the Royal Statistical Society B 16): the shares for which the mean of change - ρ · total may be 0,

        (c - ρ t)² ≤ q² (s²_c - 2 ρ s_ct + ρ² s²_t) / n,    with means c, t, (co)variances s, and Student's quantile q.

    It is bounded where the interval of the total does not contain 0. A share that is the same for every query has no
    limits: nothing tells what it would be for others.
    """
    n, top, bottom = len(total), change.mean(axis=1), total.mean()
    columns = dict.fromkeys(("recovered", "recovered_low", "recovered_high"), np.nan)
    if n > 1:
        reach = student(level, n) ** 2 / n
        spread = np.var(total, ddof=1)
        own = np.var(change, axis=1, ddof=1)
        both = (change - top[:, None]) @ (total - bottom) / (n - 1)
        if (square := bottom**2 - reach * spread) > 0:
            middle, last = top * bottom - reach * both, top**2 - reach * own
            half = np.sqrt(np.clip(middle**2 - square * last, 0, None))
            apart = np.ptp(change - np.outer(top / bottom, total), axis=1)
            half[apart < max(1e-5 * np.abs(total).max(), 1e-6)] = np.nan  # of probabilities in float32
            found = top / bottom, (middle - half) / square, (middle + half) / square
            columns = dict(zip(columns, (values.round(12) for values in found), strict=True))
    return {"total": bottom, **columns}


def _p_values(table: pd.DataFrame, kind: str, by: Sequence[str], sign: pd.Series) -> Array:
    """Of the rows of one kind among the random ones of the same `by`: of a change with the expected sign."""
    expected = (table["change"] * sign).to_numpy()
    p_values = np.full(len(table), np.nan)
    for _, part in table[sign != 0].groupby(list(by)):
        rows, kinds = part.index.to_numpy(), part["kind"].to_numpy()
        random, real = expected[rows[kinds == RANDOM]], rows[kinds == kind]
        p_values[real] = [(1 + (random >= value).sum()) / (1 + len(random)) for value in expected[real]]
    return p_values
