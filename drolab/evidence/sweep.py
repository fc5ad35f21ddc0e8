"""The layer × position sweep: where in the network harm and refusal can be read, and where safety prompts act.

One pass gives the states of all layers and of the last positions of every chat, see `hidden_states`; here each
place (a *site*: one layer at one position) gets the same measures, with the same controls. The unit of every interval
is the query, with all its prompts; every site sees the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drolab.errors import StatesError, listed
from drolab.evidence.shift_products import mean_cosine, mean_direction_cosine
from drolab.evidence.shifts import shifts
from drolab.intervals import (
    FISHER,
    Interval,
    auc_draws,
    aucs,
    check_settings,
    crossval_interval,
    drawn_counts,
    interval,
    pair_tables,
    percentiles,
)
from drolab.models import encode
from drolab.probing import (
    FLAT,
    align_target,
    check_readout,
    coordinates,
    fit_anchors,
    fit_probe,
    grouped_folds,
    left_out_groups,
    n_of_rarer_kind,
    ridge_predictions,
    root_mean_square,
    too_few,
)
from drolab.progress import Progress, bar
from drolab.threads import one_thread
from drolab.types import NO_PROMPT, HiddenStates, ReadAt, SafetyPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drolab.evidence.shift_products import Moments
    from drolab.evidence.shifts import Shifts
    from drolab.models import ChatModel

    Array = NDArray[np.float64]

SWEEP_COLUMNS = ("layer", "position", "token", "measure", "value", "low", "high", "note")
"""Columns of `measure_sites`."""

CONTROLS = {
    "harmfulness": "harmfulness, shuffled",
    "refusal": "refusal, shuffled",
    "refusal within class": "refusal within class, shuffled",
    "shift size": "shift size, control",
    "shift cosine": "shift cosine, control",
    "refusal cosine": "refusal cosine, control",
}
"""Each measure and its control; see `measure_sites`."""

N_COMPONENTS = 4
"""Of the anchor space in which a site's refusal direction is fitted, as in the paper."""


NO_REFUSAL = "refusal cannot be read here in four components"
"""The note on what rests on a site's refusal direction, where there is none."""


def position_labels(
    model: ChatModel, queries: pd.DataFrame, positions: Sequence[int], *, read_at: ReadAt = "reply"
) -> dict[int, str]:
    """The text of the token at each read position, "…" where it differs between the queries.

    Args:
        positions: negative, counted from the end of each chat.
        read_at: where the chats end, as in `hidden_states`; after a thought of the model's own there are no labels.

    Raises:
        StatesError: a position before the start of a chat.
    """
    if read_at == "after_thinking":
        return {}
    none = SafetyPrompt(name=NO_PROMPT, text="")
    texts = queries["text"].tolist()
    suffixes = encode(model, texts, none, min_suffix=-min(positions), read_at=read_at).suffixes
    found = {position: {suffix[position] for suffix in suffixes} for position in positions}
    return {p: "…" if len(ids) > 1 else str(model.tokenizer.decode(list(ids))) for p, ids in found.items()}


@one_thread
def measure_sites(
    states: HiddenStates,
    refusal_rate: pd.Series,
    *,
    controls: Sequence[str] = (),
    tokens: Mapping[int, str] | None = None,
    baseline: str = NO_PROMPT,
    n_splits: int = 10,
    n_shuffles: int = 200,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
    progress: Progress = True,
) -> pd.DataFrame:
    """The measures of every layer and position in `states`.

    - `harmfulness`: AUC with which a ridge readout tells harmful from harmless queries without a prompt (.5: chance).
    - `refusal`: correlation of a ridge readout with the refusal rate, over queries and prompts (0: chance).
      `refusal within class`: the same after taking the mean of each class under each prompt from both, so that
      neither harm nor the prompt as such can be what is read.
    - `shift size`: length of the mean shift under a safety prompt, over the root mean squared distance of the states
      without a prompt from their mean (mean over prompts and classes).
    - `shift cosine`: mean cosine between the mean shifts of two safety prompts, of the same or of different classes.
    - `refusal cosine`: mean cosine of the safety prompts' mean shifts with the site's own refusal direction: the
      paper's probe (`fit_probe` in four components), fitted on the states that have a rate. With rates under
      the safety prompts it is in part made of their shifts; rates of the baseline alone give one that is not.

    Each has a control, see CONTROLS. `shuffled`: the same readout when the queries swap their labels, or their
    rates under all prompts (mean and percentiles of the shuffles). `control`: the same for the prompts named
    in `controls`; for `shift cosine` their cosines with the safety prompts' shifts.

    The readouts are cross-validated in folds grouped by query. Their intervals are of what a readout of as many other
    queries reads: a bootstrap over the held-out queries of each class, widened by how far the value depends on the
    queries that the readouts were fitted on (see `drolab.probing.crossval`). Shifts are measured without the bias of
    noise, and their intervals leave out one query at a time, with all its prompts (see
    `drolab.evidence.shift_products`); the direction is taken as given. Where all states are equal (layer 0 at a token
    of the template), readouts are at chance, give or take what so few queries can show, and shifts are NaN.

    Args:
        refusal_rate: by (query_id, prompt), such as `judge(…)["refusal_rate"]`: all queries, under any of the prompts.
        controls: prompts that ask for no caution, such as those of `load_prompts("neutral")`; all others but the
            baseline count as safety prompts.
        tokens: the text of each position, see `position_labels`.
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        SWEEP_COLUMNS, one row per layer, position and measure. `note` says of the measures of refusal that refusals (or
        answers) are too few, or of a `refusal cosine` that refusal cannot be read in the site's four components, so
        that its direction is one of noise; `sites` counts no row with a note. Without `controls` their rows are not
        there, with one safety prompt no `shift cosine`.

    Raises:
        StatesError: no rates, a rate that is missing, a control without states, no safety prompt, or as in `shifts`,
            `fit_probe` and `grouped_folds`.
    """
    check_settings(level, n_bootstrap=n_bootstrap)
    rows: list[dict[str, Any]] = []
    positions = states.index["position"].unique()
    with bar(progress, total=len(positions) * len(states.layers), desc="sites", unit="site") as counted:
        for position in positions:
            part = states.select(position=int(position))
            plan = Plan.make(part, refusal_rate, controls, baseline, n_splits, n_shuffles, random_state)
            for layer in states.layers:
                site = {"layer": layer, "position": int(position), "token": (tokens or {}).get(int(position), "")}
                measured, unread = _measures(part.select(layer=layer), plan, n_bootstrap, level)
                for name, (value, low, high) in measured.items():
                    on_direction = name.startswith("refusal cosine")
                    note = (plan.few or (unread if on_direction else "")) if name.startswith("refusal") else ""
                    rows.append({**site, "measure": name, "value": value, "low": low, "high": high, "note": note})
                counted.update()
    return pd.DataFrame(rows, columns=list(SWEEP_COLUMNS))


def sites(table: pd.DataFrame) -> pd.DataFrame:
    """Where each measure first stands out from its control, and where it does so most clearly, at every position.

    It stands out where its whole interval lies above the control's. That is a description of the sweep, not a test of
    its claims: it looks at every layer and takes the first.

    Args:
        table: of `measure_sites`.

    Returns:
        One row per measure, position and site (`first`, `clearest`): `measure, position, token, site, layer, value,
        low, high, control_high, note`. The layer is NA where the measure stands out nowhere; the note then says why, if
        the measures do.

    Raises:
        StatesError: the table has no measure with its control.
    """
    keys = ["layer", "position"]
    rows: list[dict[str, Any]] = []
    for measure, control in CONTROLS.items():
        own, other = (table[table["measure"] == name] for name in (measure, control))
        if own.empty or other.empty:
            continue
        joined = own.merge(other[[*keys, "high"]].rename(columns={"high": "control_high"}), on=keys)
        joined.loc[joined["note"].fillna("") != "", ["low", "control_high"]] = np.nan
        for _, line in joined.groupby("position", sort=False):
            rows += _first_and_clearest(line.sort_values("layer"))
    if not rows:
        raise StatesError("The table holds no measure with its control: pass a table of measure_sites, with controls.")
    columns = ["measure", "position", "token", "site", "layer", "value", "low", "high", "control_high", "note"]
    return pd.DataFrame(rows)[columns].astype({"layer": "Int64"})


def choose_layer(table: pd.DataFrame, *, measure: str = "refusal", position: int = -1) -> tuple[int, str]:
    """The layer of a sweep at which to try what a direction does, and in words why that one.

    It is the layer where the measure stands out most from its control: where the low end of its interval lies furthest
    above the high end of the control's (the clearest of `sites`). Where it stands out at none, it is the middle one:
    nothing speaks for another, and a direction that is fitted there says itself that it is one of noise.

    Try it on other queries than those of the sweep: the best of several layers looks better than it is.

    Args:
        table: of `measure_sites`, of the layers in question.
        measure: one of CONTROLS.

    Raises:
        StatesError: the table has no such measure with its control at this position.

    Examples:
        >>> import pandas as pd
        >>> from drolab import sweep
        >>> found = {"position": -1, "token": "", "note": ""}
        >>> rows = [{"layer": 2, "measure": "refusal", "value": 0.6, "low": 0.5, "high": 0.7, **found},
        ...         {"layer": 4, "measure": "refusal", "value": 0.8, "low": 0.7, "high": 0.9, **found}]
        >>> rows += [row | {"measure": "refusal, shuffled", "value": 0.0, "low": -0.1, "high": 0.1} for row in rows]
        >>> print(*sweep.choose_layer(pd.DataFrame(rows)), sep=", ")
        4, of the layers 2 and 4 the one where 'refusal' stands out most from its control
        (0.80 [0.70, 0.90] against at most 0.10)
    """
    part = table[(table["position"] == position) & table["measure"].isin([measure, CONTROLS.get(measure)])]
    if part["measure"].nunique() < 2:
        raise StatesError(f"The table has no {measure!r} with its control at position {position}: sweep that, too.")
    layers = sorted(int(layer) for layer in part["layer"].unique())
    row = sites(part).set_index("site").loc["clearest"]
    tried = f"the layers {listed(layers)}" if len(layers) > 1 else f"layer {layers[0]} alone"
    if pd.isna(row["layer"]):
        which = f"the middle one of {tried}" if len(layers) > 1 else "the only one looked at"
        why = f": {row['note'].rstrip('.')}" if row["note"] else ""
        return layers[len(layers) // 2], f"{which}, since {measure!r} stands out from its control at none{why}"
    numbers = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] against at most {row['control_high']:.2f}"
    return int(row["layer"]), f"of {tried} the one where {measure!r} stands out most from its control ({numbers})"


def _first_and_clearest(line: pd.DataFrame) -> list[dict[str, Any]]:
    margin = (line["low"] - line["control_high"]).to_numpy()
    records: list[dict[str, Any]] = line.to_dict("records")  # type: ignore[assignment]
    if not (margin > 0).any():
        nowhere = dict.fromkeys(("value", "low", "high", "control_high"), np.nan) | {"layer": pd.NA}
        why = "; ".join(dict.fromkeys(filter(None, line["note"].fillna(""))))
        return [records[0] | nowhere | {"site": name, "note": why} for name in ("first", "clearest")]
    places = {"first": int(np.argmax(margin > 0)), "clearest": int(np.nanargmax(margin))}
    return [records[place] | {"site": name} for name, place in places.items()]


# --- what does not depend on the layer ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The queries, prompts, targets and seeds of one position, the same at every layer."""

    rates: pd.Series
    scored: list[str]
    safety: list[str]
    controls: list[str]
    baseline: str
    few: str
    """In words, if hardly any query is ever refused, or hardly any ever answered."""
    classes: list[NDArray[np.intp]]
    """The queries of each class, harmful first."""
    harm: Targets
    refusal: Targets
    seed: int

    @classmethod
    def make(
        cls,
        states: HiddenStates,
        rates: pd.Series,
        controls: Sequence[str],
        baseline: str,
        n_splits: int,
        n_shuffles: int,
        seed: int,
    ) -> Plan:
        moved = shifts(states, baseline=baseline, layer=states.layers[0])
        if len(moved.classes) < 2:
            raise StatesError("A sweep reads harm: pass states of harmful and of harmless queries.")
        safety, scored = _roles(moved.prompts, rates, controls, baseline)
        known = states.select(prompt=scored).index.assign(rate=align_target(states.select(prompt=scored), rates))
        grid = known.pivot(index="prompt", columns="query_id", values="rate")
        ordered = grid.reindex(index=scored, columns=moved.queries["query_id"].tolist()).to_numpy()
        labels = moved.queries["harmful"].to_numpy(dtype=np.float64)[None]
        few = too_few(known["rate"].to_numpy(), known["query_id"].to_numpy(), "refuses")
        by_class = few or n_of_rarer_kind(ordered) < n_splits
        strata = np.repeat(labels, len(ordered), axis=0) if by_class else ordered
        return cls(
            few=few, rates=rates, scored=scored, safety=safety, controls=list(controls), baseline=baseline, seed=seed,
            classes=[moved.rows(harmful) for harmful in moved.classes],
            harm=Targets.make(labels, n_splits, n_shuffles, seed, labels),
            refusal=Targets.make(ordered, n_splits, n_shuffles, seed, strata),
        )  # fmt: skip

    def weights(self, n_draws: int) -> Iterator[Array]:
        """Chunks of [draws, n_queries]: how often each query is drawn, over the size of its class; the same draws at
        every site. The first row is the plain mean."""
        streams = np.random.default_rng(self.seed).spawn(len(self.classes))  # so that chunks of any size draw the same
        n = sum(map(len, self.classes))
        by_class = (
            drawn_counts(np.ones(len(rows), dtype=int), 1 + n_draws, stream, n_values=len(self.scored) * n)
            for rows, stream in zip(self.classes, streams, strict=True)
        )
        for number, drawn in enumerate(zip(*by_class, strict=True)):
            weights = np.empty((len(drawn[0]), n))
            for rows, counts in zip(self.classes, drawn, strict=True):
                weights[:, rows] = counts / len(rows)
                weights[: number == 0, rows] = 1 / len(rows)
            yield weights


def _roles(
    prompts: Sequence[str], rates: pd.Series, controls: Sequence[str], baseline: str
) -> tuple[list[str], list[str]]:
    """The safety prompts, and the prompts that have rates."""
    if absent := [name for name in controls if name not in prompts]:
        raise StatesError(f"No states under the controls {absent}: these have {list(prompts)}; compute them too.")
    safety = [name for name in prompts if name not in controls]
    if not safety:
        raise StatesError("All prompts are controls: pass states under at least one safety prompt.")
    if rates.index.nlevels != 2:
        raise StatesError("The refusal rates must be indexed by (query_id, prompt): pass judge(…)['refusal_rate'].")
    present = set(rates.index.get_level_values(1))
    scored = [name for name in (baseline, *prompts) if name in present]
    if not scored:
        raise StatesError(f"No refusal rates for the prompts {[baseline, *prompts]}: score responses under these.")
    return safety, scored


# --- the measures of one site ------------------------------------------------------------------------------

_NOTHING = Interval(np.nan, np.nan, np.nan)


def _measures(site: HiddenStates, plan: Plan, n_bootstrap: int, level: float) -> tuple[dict[str, Interval], str]:
    """Measure → its interval, and what is wrong with the refusal direction."""
    moved = shifts(site, baseline=plan.baseline, layer=site.layers[0])
    start, deltas = moved.baseline.double().numpy(), moved.deltas.double().numpy()
    places = {name: start + deltas[row] for row, name in enumerate(moved.prompts)} | {plan.baseline: start}
    scored = np.concatenate([places[name] for name in plan.scored])
    read = readout_measures(held_out(start, plan.harm), held_out(scored, plan.refusal), plan, n_bootstrap, level)
    direction, problem = _refusal_direction(site, plan, scored)
    return read | _shift_measures(moved, direction, plan, level), problem


def readout_measures(
    harm: tuple[Array, Array], refusal: tuple[Array, Array], plan: Plan, n_bootstrap: int, level: float
) -> dict[str, Interval]:
    """From the held-out predictions of the class and of the refusal rate, see `held_out`."""
    n_queries = sum(map(len, plan.classes))
    pairs = pair_tables(harm[0][0, 0], plan.harm.values[0, 0], np.arange(n_queries))
    draws = [
        [
            auc_draws([pairs], weights).round(12),
            *(drawn[0] for drawn in correlations(refusal[0][:1], plan.refusal.values[:1], weights, plan.classes)),
        ]
        for weights in plan.weights(n_bootstrap)
    ]
    shuffled = _plain_values(harm[0][1:], refusal[0][1:], plan, slice(1, None))
    refitted = _plain_values(harm[1], refusal[1], plan, slice(1))
    measured = {}
    for (name, bounds), parts, values, refits in zip(
        _BOUNDS.items(), zip(*draws, strict=True), shuffled, refitted, strict=True
    ):
        estimate, *drawn = np.concatenate(parts)
        measured[name] = crossval_interval(estimate, np.array(drawn), refits, n_queries, level, bounds)
        low, high = percentiles(values, level)
        measured[CONTROLS[name]] = Interval(float(values.mean()), float(low), float(high))
    return measured


_BOUNDS = {"harmfulness": (0.0, 1.0), "refusal": (-1.0, 1.0), "refusal within class": (-1.0, 1.0)}


def _plain_values(harm: Array, refusal: Array, plan: Plan, own: slice) -> list[Array]:
    """The three measures over the queries as they are, [k] each; `own`: which of the targets are predicted."""
    rates = np.broadcast_to(plan.refusal.values[own], refusal.shape)
    found = correlations(refusal, rates, next(plan.weights(0)), plan.classes)
    return [aucs(harm[:, 0], plan.harm.values[own, 0]), *(drawn[:, 0] for drawn in found)]


def _refusal_direction(site: HiddenStates, plan: Plan, scored: Array) -> tuple[Array, str]:
    """[d], unit norm, or NaN where all states or all rates are equal; and why it is none."""
    flat = np.ptp(scored, axis=0).max() <= FLAT * root_mean_square(scored)
    if flat or np.ptp(plan.refusal.values[0]) < 1e-9:
        return np.full(scored.shape[1], np.nan), NO_REFUSAL
    rated, layer = site.select(prompt=plan.scored), site.layers[0]
    n_components = min(N_COMPONENTS, *(length - 1 for length in scored.shape))
    space = fit_anchors(rated, n_components=n_components, layer=layer, spread=False)
    probe = fit_probe(space, rated, plan.rates, positive="refuses", check=False)
    points, fractions = coordinates(space, rated).double().numpy(), align_target(rated, plan.rates)
    found = check_readout(points, rated.index, fractions, "refuses", random_state=plan.seed)
    return probe.direction(space).double().numpy(), NO_REFUSAL if found.problem else ""


def _shift_measures(moved: Shifts, direction: Array, plan: Plan, level: float) -> dict[str, Interval]:
    start = moved.baseline.double().numpy()
    floor, spread = FLAT * root_mean_square(start), root_mean_square(start - start.mean(axis=0))
    still = root_mean_square(moved.deltas.double().numpy()) <= floor
    nowhere = np.isnan(direction).any()
    moments, groups = moved.moments(direction[None]), moved.groups()
    own, other = ([i for i, (name, _) in enumerate(groups) if name in names] for names in (plan.safety, plan.controls))
    measured: dict[str, Interval] = {}
    for suffix, members in (("", own), (", control", other)):
        pairs = [(a, b) for a in members for b in own if groups[a][0] != groups[b][0]]
        if members:
            unit = spread * np.sqrt(start.shape[1])
            measured[f"shift size{suffix}"] = (
                _NOTHING if still or spread <= floor else _length(moments, members, unit, level)
            )
        if pairs:
            measured[f"shift cosine{suffix}"] = _NOTHING if still else _cosine(moments, pairs, level)
        if members:
            measured[f"refusal cosine{suffix}"] = (
                _NOTHING if still or nowhere else _direction_cosine(moments, members, level)
            )
    return measured


def _length(moments: Moments, members: Sequence[int], unit: float, level: float) -> Interval:
    """The mean length of some groups' mean shifts; NaN if one cannot be told from none."""
    squares = np.diag(moments.products)[members]
    if min(squares) <= 0:
        return _NOTHING
    scale = len(members) * unit
    gradient = np.zeros_like(moments.products)
    gradient[members, members] = 0.5 / np.sqrt(squares) / scale
    value = float(np.sqrt(squares).sum() / scale)
    return interval(value, moments.standard_error(gradient), moments.n_queries, level)


def _cosine(moments: Moments, pairs: Sequence[tuple[int, int]], level: float) -> Interval:
    """The mean cosine of some pairs of groups' mean shifts."""
    value, gradient = mean_cosine(moments, pairs)
    return interval(value, moments.standard_error(gradient), moments.n_queries, level, FISHER)


def _direction_cosine(moments: Moments, members: Sequence[int], level: float) -> Interval:
    """The mean cosine of some groups' mean shifts with the direction."""
    value, *gradients = mean_direction_cosine(moments, members, 0)
    return interval(value, moments.standard_error(*gradients), moments.n_queries, level, FISHER)


# --- held-out readouts -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What a readout is to predict, and its shuffled copies."""

    values: Array
    """[1 + n_shuffles, n_prompts, n_queries]: the targets themselves first."""
    folds: list[NDArray[np.intp]]
    """The rows (prompts × queries, prompts first) that each fold holds out."""
    left_out: list[NDArray[np.intp]]
    """The rows of each group of queries that is left out in turn, see `drolab.probing.crossval`."""

    @classmethod
    def make(cls, grid: Array, n_splits: int, n_shuffles: int, seed: int, strata: Array) -> Targets:
        """From [n_prompts, n_queries]; `strata` of this shape are spread evenly over the folds."""
        n_prompts, n_queries = grid.shape
        queries = np.tile(np.arange(n_queries), n_prompts)
        folds = [test for _, test in grouped_folds(strata.ravel(), queries, n_splits, seed)]
        left_out = left_out_groups(strata.ravel(), queries, seed)
        generator = np.random.default_rng(seed)
        order = np.tile(np.arange(n_queries), (1 + n_shuffles, 1))
        order[1:] = generator.permuted(order[1:], axis=1)
        return cls(values=grid[:, order].transpose(1, 0, 2), folds=folds, left_out=left_out)


def held_out(points: Array, targets: Targets) -> tuple[Array, Array]:
    """`ridge_predictions` of points [n_prompts · n_queries, d], in the shape of the targets."""
    flat = targets.values.reshape(len(targets.values), -1)
    shape = targets.values.shape[1:]
    found = ridge_predictions(points, flat, targets.folds, targets.left_out)
    return found[0].reshape(-1, *shape), found[1].reshape(-1, *shape)


def correlations(a: Array, b: Array, weights: Array, classes: Sequence[NDArray[np.intp]]) -> tuple[Array, Array]:
    """Two [k, draws]: correlations of a and b [k, n_prompts, n_queries] over all rows, and within class and prompt."""
    n = weights.shape[1]
    products = np.stack([a, b, a * a, b * b, a * b])
    cells = np.stack([products[..., rows] @ weights[:, rows].T for rows in classes])  # class, moment, k, prompt, draw
    shares = np.array([len(rows) / n for rows in classes])
    pooled = np.tensordot(shares, cells, 1).mean(axis=2)
    within = np.tensordot(shares, _covariances(cells.swapaxes(0, 1)).swapaxes(0, 1), 1).mean(axis=2)
    return _correlation(_covariances(pooled)), _correlation(within)


def _covariances(moments: Array) -> Array:
    """[3, …]: variance of a, of b, and their covariance, from their means and those of aa, bb and ab."""
    a, b, aa, bb, ab = moments
    return np.stack([aa - a * a, bb - b * b, ab - a * b])


def _correlation(covariances: Array) -> Array:
    """Zero where a side is constant: nothing is read there."""
    a, b, ab = covariances
    scale = np.sqrt(np.clip(a, 0, None) * np.clip(b, 0, None))
    return np.divide(ab, scale, out=np.zeros_like(ab), where=scale > 1e-12)
