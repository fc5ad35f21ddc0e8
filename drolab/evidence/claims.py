"""A verdict per model: each claim of the paper with its number, interval, null, and what the data allow to say.

The rules (docs/evidence.md) were written down before the first verdict was computed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from drolab.errors import QueryError, StatesError, shown
from drolab.evidence.separability import auc_change, shuffled_aucs
from drolab.evidence.shifts import Shifts, cosine_along, null_directions, probe_directions, shifts, similarity
from drolab.intervals import FISHER, LOGIT, PLAIN, Scale, check_settings, holm, interval, percentiles, plain, unit
from drolab.progress import Progress, bar
from drolab.threads import one_thread
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """What the paper says, as a number and a threshold."""

    text: str
    unit: str
    threshold: float
    side: int = 1
    """1 if the number should lie above the threshold, -1 if below."""
    scale: Scale = PLAIN
    """On which tests and power work."""
    trained_for: bool = False
    """It is what training aimed at, so that it is no finding."""

    def distance(self, value: float, error: float = 0.0) -> float:
        """How far a number lies on the claimed side, on the scale."""
        return self.side * (self.scale.to(self.scale.inside(value, error)) - self.scale.to(self.threshold))


SEPARABLE = Claim("queries are separable without a prompt", "AUC", 0.8, scale=LOGIT)
NOT_ENHANCED = Claim("safety prompts do not separate them better", "change of AUC", 0.02, side=-1)
ALIKE = Claim("safety prompts shift alike", "cosine", 0.5, scale=FISHER)
BEYOND = Claim("more alike than these controls", "difference of cosines", 0.0, scale=plain(-2.0, 2.0))
ALONG = Claim("the shift is along refusal", "cosine", 0.5, scale=FISHER)
HARMFUL = Claim("refusals rise for harmful queries", "change of refusal rate", 0.0)
HARMLESS = Claim("refusals rise for harmless queries, too", "change of refusal rate", 0.0)
APART = Claim("DRO moves the classes apart", "change of refusal rate", 0.0)
LOGIT_APART = Claim("DRO moves the probe's logits apart", "refusal logits", 0.0, trained_for=True)
"""What DRO minimises is made of these logits: it stands beside APART and is not decided."""

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"
CANNOT, BY_DESIGN = "cannot be tested here", "what DRO trains"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, TOO_LITTLE, CANNOT, BY_DESIGN)

FEWEST = 5
"""Queries that a power table asks for at least."""
FEWEST_OF_A_CLASS = 4
"""Queries that a claim about a class rests on at least."""

COLUMNS = (
    *("claim", "under", "estimate", "low", "high", "null_low", "null_high", "threshold", "side", "n", "unit"),
    *("p_support", "p_against", "verdict", "reason"),
)
"""Columns of the verdict. `under`: which judge or which controls, where there are several or it matters; `side` is 1 if
the claim says "above the threshold", -1 if it says "below"; `reason`: why a claim cannot be tested."""


@dataclass(frozen=True)
class Measured:
    """What was measured for one claim."""

    claim: Claim
    estimate: float
    error: float
    """Standard error, on the estimate's own scale."""
    n: int
    """Queries."""
    null: tuple[float, float]
    under: str = ""
    """Which judge or controls."""
    reason: str = ""
    """Why nothing can be decided, whatever the number."""

    @property
    def testable(self) -> bool:
        return not self.reason and not self.claim.trained_for

    @property
    def scaled_error(self) -> float:
        scale = self.claim.scale
        return max(self.error * scale.slope(scale.inside(self.estimate, self.error)), 1e-12)

    def row(self, level: float) -> dict[str, object]:
        claim = self.claim
        limits = interval(self.estimate, self.error, self.n, level, claim.scale)
        p_support = p_against = 1.0 if self.testable else math.nan
        # A cosine of shifts that cannot be told from none is NaN, and says nothing.
        if self.testable and not math.isnan(self.estimate):
            ratio = claim.distance(self.estimate, self.error) / self.scaled_error
            p_support, p_against = stats.t.sf(ratio, self.n - 1), stats.t.cdf(ratio, self.n - 1)
        measured = (claim.text, self.under, *limits, *self.null, claim.threshold, claim.side, self.n, claim.unit)
        undecided = CANNOT if self.reason else BY_DESIGN if claim.trained_for else ""
        return dict(zip(COLUMNS, (*measured, p_support, p_against, undecided, self.reason), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What the data say about the paper's claims."""

    table: pd.DataFrame
    """COLUMNS: one row per claim, and per judge or control set that it depends on. p-values are corrected for the rows
    that are decided (Holm)."""
    measured: tuple[Measured, ...]

    def __str__(self) -> str:
        return "\n".join(map(_in_words, self.table.to_dict("records")))

    def summary(self) -> pd.DataFrame:
        """`claim, verdict`, one row per claim: the verdict, or under which judges and controls it is which."""
        rows = []
        for claim, part in self.table.groupby("claim", sort=False):
            said = [f"{row.verdict} ({row.under})" for row in part.itertuples()]
            rows.append((claim, part["verdict"].iloc[0] if part["verdict"].nunique() == 1 else "; ".join(said)))
        return pd.DataFrame(rows, columns=["claim", "verdict"])


def _in_words(row: Mapping[Hashable, Any]) -> str:
    under = f" ({row['under']})" if row["under"] else ""
    found = f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}] {row['unit']}"
    found = "no estimate" if math.isnan(row["estimate"]) else found
    return f"{row['verdict']:>21}: {row['claim']}{under}: {found}" + (f". {row['reason']}" if row["reason"] else "")


@one_thread
def verdict(
    states: HiddenStates,
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    safety: Sequence[str],
    space: AnchorSpace,
    refusal: Probe | Mapping[str, Probe | None] | None,
    problem: str = "",
    controls: Sequence[str] | Mapping[str, Sequence[str]] = (),
    trained: Mapping[str, str] | None = None,
    untrained: str = "",
    baseline: str = NO_PROMPT,
    column: str = "refusal_rate",
    n_null: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
    progress: Progress = True,
) -> Verdict:
    """Measure every claim and decide by the rules of docs/evidence.md.

    Args:
        states: of queries of both classes on which neither `space` nor `refusal` was fitted, under the baseline and
            all prompts named below.
        scores: from `judge`, of the same queries under the baseline, the safety prompts and the trained ones. Several
            judges as name → scores: each claim about refusals then has a row for each. A claim rests on the queries
            that the judge has an opinion of under all prompts which the claim compares (`n` says how many): others
            are missing from its scores, or have a rate of NaN.
        safety: the prompts that the claims are about, two at least.
        refusal: the probe; or name → probe, such as one fitted with each judge. None where none could be fitted, see
            `probing.try_probe`.
        problem: why there is none: the reason that stands beside the claims that need it.
        controls: system messages without a message of safety; or name → such a set.
        trained: prompt trained by DRO → the prompt that it started from. Whether it moves the classes apart is judged
            by their refusals. The probe's logit, which DRO trains, stands beside them and is not decided.
        untrained: why there is none: the reason that stands beside the claim that needs one.
        column: of the scores: the rate of refusals.
        n_null: draws of each null.
        progress: show a bar; or a callable, see `drolab.progress`.

    A claim cannot be tested here, and is not, if it rests on a probe that has a problem (see `fit_probe`) or is not
    there, on rates that are the same for all queries under all prompts, or on fewer than 4 queries of a class with an
    opinion of the judge.

    Raises:
        StatesError: fewer than 4 queries of a class; states or prompts are missing, see `shifts`,
            `shift_similarity` and `auc_change`.
        QueryError: no scores, or no probe; a query and prompt with two scores of one judge.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(10)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> import numpy as np
        >>> from drolab import claims
        >>> likely = 0.3 + 0.4 * states.index["harmful"] + 0.2 * (states.index["prompt"] != "none")
        >>> rates = np.random.default_rng(0).binomial(10, likely) / 10  # made up: see drolab.judge
        >>> scores = states.index.assign(refusal_rate=rates).set_index(["query_id", "prompt"])
        >>> space = drolab.fit_anchors(states)
        >>> refusal = drolab.fit_probe(space, states, scores["refusal_rate"], positive="refuses")
        >>> options = {"space": space, "refusal": refusal, "n_null": 100}
        >>> found = claims.verdict(states, scores, safety=["default", "medium"], **options)
        >>> rows = found.table.set_index("claim")
        >>> str(rows.loc["safety prompts shift alike", "verdict"])
        'supported'
        >>> str(rows.loc["queries are separable without a prompt", "verdict"])  # of 20 queries that is hard to say
        'too little data'
    """
    check_settings(level, n_null=n_null)
    moved = shifts(states, baseline=baseline, layer=space.layer)
    judged, probes, control_sets = _by_name(scores), _by_name(refusal), _control_sets(controls)
    if not judged or not probes:
        raise QueryError(
            "A verdict needs the scores of a judge and a refusal probe (None if there is none): pass both."
        )
    lacking = f"There is no refusal probe here. {problem}".strip()
    for name, probe in probes.items():
        if not isinstance(probe, Probe | None):
            raise StatesError(f"The refusal probe {name!r} is {shown(probe)}: pass what fit_probe returns, or None.")
    named = {*safety, *(name for _, chosen in control_sets for name in chosen), *(trained or {})}
    if unknown := sorted((named | {*(trained or {}).values()}) - {*moved.prompts, baseline}):
        raise StatesError(f"No states under {unknown}: compute them with hidden_states(model, queries, prompts).")
    if min(len(moved.rows(kind)) for kind in (True, False)) < FEWEST_OF_A_CLASS:
        raise StatesError(f"A verdict needs at least {FEWEST_OF_A_CLASS} queries of each class: pass more queries.")
    nulls = _Nulls(n=n_null, level=level, generator=np.random.default_rng(random_state))
    total = 2 + 2 * len(probes) + len(judged)
    with bar(progress, total=total, desc="verdict", unit="part") as counted:
        found = _separable(states, space, safety, baseline, random_state, nulls)
        counted.update()
        found += _alike(moved, safety, control_sets, nulls)
        counted.update()
        for name, probe in probes.items():
            found += _under(name, [_along(moved.select(safety), space, lacking if probe is None else probe, nulls)])
            counted.update()
        for name, rates in judged.items():
            read = _Rates(rates, column, moved)
            read.check([baseline, *safety, *chain.from_iterable((trained or {}).items())])
            apart = _apart(read, trained or {}, nulls)
            if untrained and not trained:
                apart = [_unmeasured(APART, len(moved.queries), f"There is no trained prompt. {untrained}")]
            found += _under(name, [*_refusals(read, safety, baseline, nulls), *apart])
            counted.update()
        for name, probe in probes.items():
            apart = _logits_apart(moved, lacking if probe is None else probe, space, trained or {}, nulls)
            found += _under(name, apart)
            counted.update()
    table = pd.DataFrame([one.row(level) for one in found])
    return Verdict(table=_decided(table, 1 - level)[list(COLUMNS)], measured=tuple(found))


def _under(name: str, found: Sequence[Measured]) -> list[Measured]:
    return [replace(one, under=name) for one in found]


def _by_name(given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {"": given}


def _control_sets(controls: Sequence[str] | Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """(what it is called, its prompts) of each set; one without prompts if there is none."""
    if not isinstance(controls, Mapping):
        return [(", ".join(controls), list(controls))]
    return [(f"{name}: {', '.join(chosen)}", list(chosen)) for name, chosen in controls.items()] or [("", [])]


def power_table(
    result: Verdict, effects: Mapping[str, Sequence[float]] | None = None, *, power: float = 0.8, level: float = 0.95
) -> pd.DataFrame:
    """How many queries show that a claim holds, counted as `n` in the verdict: of one class where it is about one.

    Args:
        effects: claim → true values of its number, on the claimed side of its threshold. None asks for what was
            measured here, as far as it is on that side.

    Returns:
        `claim, under, effect, threshold, power, n`, but of no claim that cannot be tested here. From the spread
        measured here, by Student's t at the level that Holm's correction may ask for: (1 - level) / number of claims.
        `n` is NaN where the spread among so few queries is too wide to tell.

    Raises:
        StatesError: an unknown claim, or an effect on the wrong side of the threshold.
    """
    for share in (power, level):
        check_settings(share)
    tested = [one for one in result.measured if one.testable]
    texts = list(dict.fromkeys(one.claim.text for one in result.measured))
    if unknown := [claim for claim in effects or {} if claim not in texts]:
        raise StatesError(f"No claim {unknown[0]!r} in this verdict: choose from {', '.join(map(repr, texts))}.")
    rows = []
    for one in tested:
        measured = [one.estimate] if one.claim.distance(one.estimate) > 0 else []
        for effect in measured if effects is None else effects.get(one.claim.text, []):
            if one.claim.distance(effect) <= 0:
                side = "above" if one.claim.side > 0 else "below"
                limit = f"{side} the threshold {one.claim.threshold} of {one.claim.text!r}"
                raise StatesError(f"An effect must lie {limit}, got {effect}.")
            about = {"claim": one.claim.text, "under": one.under, "effect": effect, "threshold": one.claim.threshold}
            rows.append({**about, "power": power, "n": _needed(one, effect, power, (1 - level) / len(tested))})
    return pd.DataFrame(rows)


def _needed(one: Measured, effect: float, power: float, alpha: float) -> float:
    """The smallest n whose one-sided t-test has the power. The spread per query stays as it is here; NaN where that is
    too wide to tell."""
    from statsmodels.stats.power import TTestPower

    ratio = one.claim.distance(effect, one.error) / (one.scaled_error * np.sqrt(one.n))
    if not ratio > 0:  # an effect counts as at least half an error off the end of its range: beyond the threshold
        return math.nan
    # Beyond 100 the noncentral t has no numbers; where the fewest are enough the solver finds no solution.
    test = {"effect_size": min(ratio, 100.0), "alpha": alpha, "alternative": "larger"}
    if TTestPower().power(nobs=FEWEST, **test) >= power:
        return FEWEST
    return math.ceil(TTestPower().solve_power(power=power, **test))


def _decided(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    tested = table["p_support"].notna().to_numpy()
    for column in ("p_support", "p_against"):
        table.loc[tested, column] = holm(table.loc[tested, column].to_numpy(dtype=float))
    verdicts = np.where(table["p_against"] < alpha, NOT_SUPPORTED, TOO_LITTLE)
    verdicts = np.where(table["p_support"] < alpha, SUPPORTED, verdicts)
    return table.assign(verdict=np.where(tested, verdicts, table["verdict"]))


@dataclass(frozen=True, kw_only=True)
class _Nulls:
    """Where numbers lie if there is nothing to find."""

    n: int
    level: float
    generator: np.random.Generator

    def limits(self, draws: Array) -> tuple[float, float]:
        low, high = percentiles(draws, self.level)
        return float(low), float(high)

    def sign_flips(self, samples: Sequence[Array]) -> tuple[float, float]:
        """Of a sum of means whose samples get random signs. A value of NaN gets one, too, and counts for nothing: what
        is drawn for other judges does not depend on what this one has an opinion of."""
        flips = (self.generator.integers(0, 2, size=(self.n, len(values))) * 2.0 - 1 for values in samples)
        known = [max(np.isfinite(values).sum(), 1) for values in samples]
        means = [signs @ np.nan_to_num(own) / n for signs, own, n in zip(flips, samples, known, strict=True)]
        return self.limits(np.sum(means, axis=0))


def _separable(
    states: HiddenStates, space: AnchorSpace, safety: Sequence[str], baseline: str, random_state: int, nulls: _Nulls
) -> list[Measured]:
    start = states.select(prompt=baseline)
    folds = {"n_splits": min(10, *start.index["harmful"].value_counts()), "random_state": random_state}
    mean = auc_change(states, space, safety, baseline=baseline, **folds).iloc[-1]
    shuffled = shuffled_aucs(start, space, **folds)
    n, error = int(mean["n"]), float(mean["error"])
    unchanged = interval(0.0, error, n, nulls.level)[1:]  # what no change looks like, give or take its error
    return [
        Measured(SEPARABLE, mean["baseline_auc"], mean["baseline_error"], n, nulls.limits(shuffled)),
        Measured(NOT_ENHANCED, mean["change"], error, n, unchanged),
    ]


def _alike(
    moved: Shifts, safety: Sequence[str], control_sets: Sequence[tuple[str, list[str]]], nulls: _Nulls
) -> list[Measured]:
    found: list[Measured] = []
    for name, controls in control_sets:
        compared = moved.select([*safety, *controls])
        generator = np.random.default_rng(int(nulls.generator.integers(2**32)))
        table = similarity(
            compared,
            compared.moments(),
            safety,
            controls,
            n_directions=1,
            n_null=nulls.n,
            generator=generator,
            level=nulls.level,
        )
        measured = table.set_index("measure")[["value", "error", "n", "null_low", "null_high"]].T.to_dict("list")
        for claim, measure, under in ((ALIKE, "alike", ""), (BEYOND, "beyond the controls", name)):
            if measure in measured and (claim is BEYOND or not found):  # the first claim is about no controls
                value, error, n, low, high = measured[measure]
                found.append(Measured(claim, value, error, int(n), (low, high), under))
    return found


def _along(moved: Shifts, space: AnchorSpace, refusal: Probe | str, nulls: _Nulls) -> Measured:
    """`refusal`: the probe, or why there is none. A cosine with a direction that reads nothing would look like one."""
    if isinstance(refusal, str):
        return _unmeasured(ALONG, len(moved.queries), refusal)
    if refusal.problem:
        return _unmeasured(ALONG, len(moved.queries), refusal.problem)
    moments = moved.moments(probe_directions(space, refusal))
    value, error = cosine_along(moments, range(len(moments.parts)))
    means = unit(np.stack([part.mean(axis=0) for part in moments.parts]))
    random = null_directions(moved.baseline, moved.queries["harmful"], nulls.n, nulls.generator)
    null = nulls.limits((random @ means.T).mean(axis=1))
    return Measured(ALONG, value, error, moments.n_queries, null)


@dataclass(frozen=True, eq=False)
class _Rates:
    """What one judge says of the queries."""

    scores: pd.DataFrame
    column: str
    moved: Shifts

    def check(self, prompts: Iterable[str]) -> None:
        """Raise QueryError if they are of other queries, lack a prompt (that is no lack of opinions), or repeat one."""
        if not self.scores.index.is_unique:
            first = self.scores.index[self.scores.index.duplicated()][0]
            raise QueryError(f"The scores have {first} twice: pass each judge's once, several judges by name.")
        known = self.scores[self.scores.index.isin(self.moved.queries["query_id"], level="query_id")]
        if lost := sorted(set(prompts) - set(known.index.get_level_values("prompt"))):
            raise QueryError(f"The scores have none of these queries under {lost}: judge the replies to them.")

    def of(self, harmful: bool, prompts: Sequence[str]) -> Array:
        """[n_prompts, n]: the rates of a class's queries; NaN under all prompts if there is no opinion under one."""
        queries = self.moved.queries.loc[self.moved.rows(harmful), "query_id"]
        wanted = pd.MultiIndex.from_product([prompts, queries]).swaplevel()
        found = self.scores[self.column].reindex(wanted).to_numpy(dtype=np.float64, na_value=np.nan)
        rates: Array = found.reshape(len(prompts), -1)
        return np.where(np.isnan(rates).any(axis=0), np.nan, rates)


def _refusals(rates: _Rates, safety: Sequence[str], baseline: str, nulls: _Nulls) -> list[Measured]:
    found = []
    for claim, harmful in ((HARMFUL, True), (HARMLESS, False)):
        own = rates.of(harmful, [baseline, *safety])
        found.append(_mean(claim, [own[1:].mean(axis=0) - own[0]], nulls, _all_alike(own)))
    return found


def _apart(rates: _Rates, trained: Mapping[str, str], nulls: _Nulls) -> list[Measured]:
    """Per trained prompt, by what DRO did not train: the refusals of harmful queries less those of harmless ones."""
    found = []
    for prompt, init in trained.items():
        both = [rates.of(harmful, [prompt, init]) for harmful in (True, False)]
        up, down = (after - before for after, before in both)
        found.append(_mean(_of(APART, prompt, trained), [up, -down], nulls, _all_alike(*both)))
    return found


def _all_alike(*rates: Array) -> str:
    """In words, if there is nothing to compare."""
    found = np.unique(np.concatenate(rates, axis=None).round(12))
    if len(known := found[~np.isnan(found)]) != 1:
        return ""
    return (
        f"The rate is {known[0]:g} for every query under every prompt: take queries that the model treats differently, "
        "more samples, or another judge."
    )


def _logits_apart(
    moved: Shifts, refusal: Probe | str, space: AnchorSpace, trained: Mapping[str, str], nulls: _Nulls
) -> list[Measured]:
    if isinstance(refusal, str):
        return [_unmeasured(_of(LOGIT_APART, prompt, trained), len(moved.queries), refusal) for prompt in trained]
    slope = refusal.slope(space).numpy()
    found = []
    for prompt, init in trained.items():
        up, down = (
            (moved.get_group(prompt, harmful) - (moved.get_group(init, harmful) if init in moved.prompts else 0))
            .double()
            .numpy()
            @ slope
            for harmful in (True, False)
        )
        found.append(_mean(_of(LOGIT_APART, prompt, trained), [up, -down], nulls))
    return found


def _unmeasured(claim: Claim, n: int, reason: str) -> Measured:
    return Measured(claim, math.nan, math.nan, n, (math.nan, math.nan), reason=reason)


def _of(claim: Claim, prompt: str, trained: Mapping[str, str]) -> Claim:
    return claim if len(trained) == 1 else replace(claim, text=f"{claim.text} ({prompt})")


def _mean(claim: Claim, samples: Sequence[Array], nulls: _Nulls, reason: str = "") -> Measured:
    """A claim about the sum of the means of independent samples; NaN is no value."""
    samples = [values.round(12) for values in samples]  # differences of equal fractions must be equal numbers
    null = nulls.sign_flips(samples)
    samples = [values[~np.isnan(values)] for values in samples]
    n = sum(map(len, samples))
    if (fewest := min(map(len, samples))) < FEWEST_OF_A_CLASS:
        reason = (
            f"The judge has an opinion of {fewest} queries of a class under all prompts compared, and "
            f"{FEWEST_OF_A_CLASS} are needed: sample more or longer replies, or take another judge."
        )
        return _unmeasured(claim, n, reason)
    error = float(np.sqrt(sum(_error(values) ** 2 for values in samples)))
    return Measured(claim, float(sum(values.mean() for values in samples)), error, n, null, reason=reason)


def _error(values: Array) -> float:
    """The standard error of a mean; of equal values that of one among them which is half off, as others may be."""
    return float(stats.sem(values)) if np.ptp(values) > 0 else 0.5 / len(values)
