"""A verdict per model: each claim of the paper with its number, interval, null, and what the data allow to say.

The rules (docs/evidence.md) were written down before the first verdict was computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from drolab.errors import QueryError, StatesError
from drolab.evidence.separability import auc_change, shuffled_aucs
from drolab.evidence.shift_products import Moments, mean_direction_cosine
from drolab.evidence.shifts import Shifts, null_directions, shifts, similarity
from drolab.intervals import FISHER, LOGIT, PLAIN, Scale, holm, interval, percentiles, unit
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

    def distance(self, value: float, error: float = 0.0) -> float:
        """How far a number lies on the claimed side, on the scale."""
        return self.side * (self.scale.to(self.scale.inside(value, error)) - self.scale.to(self.threshold))


SEPARABLE = Claim("queries are separable without a prompt", "AUC", 0.8, scale=LOGIT)
NOT_ENHANCED = Claim("safety prompts do not separate them better", "change of AUC", 0.02, side=-1)
ALIKE = Claim("safety prompts shift alike", "cosine", 0.5, scale=FISHER)
BEYOND = Claim("more alike than any system message", "difference of cosines", 0.0)
ALONG = Claim("the shift is along refusal", "cosine", 0.5, scale=FISHER)
HARMFUL = Claim("refusals rise for harmful queries", "change of refusal rate", 0.0)
HARMLESS = Claim("refusals rise for harmless queries, too", "change of refusal rate", 0.0)
APART = Claim("DRO moves the classes apart", "refusal logits", 0.0)

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"

FEWEST = 5
"""Queries that a power table asks for at least."""

COLUMNS = (
    *("claim", "estimate", "low", "high", "null_low", "null_high", "threshold", "side", "n", "unit"),
    *("p_support", "p_against", "verdict"),
)
"""Columns of the verdict. `side` is 1 if the claim says "above the threshold", -1 if it says "below"."""


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

    @property
    def scaled_error(self) -> float:
        scale = self.claim.scale
        return max(self.error * scale.slope(scale.inside(self.estimate, self.error)), 1e-12)

    def row(self, level: float) -> dict[str, object]:
        claim = self.claim
        limits = interval(self.estimate, self.error, self.n, level, claim.scale)
        p_support = p_against = 1.0
        if self.estimate == self.estimate:  # not NaN: a cosine of shifts that cannot be told from none says nothing
            ratio = claim.distance(self.estimate, self.error) / self.scaled_error
            p_support, p_against = stats.t.sf(ratio, self.n - 1), stats.t.cdf(ratio, self.n - 1)
        measured = (claim.text, *limits, *self.null, claim.threshold, claim.side, self.n, claim.unit)
        return dict(zip(COLUMNS, (*measured, p_support, p_against), strict=False))


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What the data say about the paper's claims."""

    table: pd.DataFrame
    """COLUMNS: one row per claim. p-values are corrected for the claims of the table (Holm)."""
    measured: tuple[Measured, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{row.verdict:>15}: {row.claim}: {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}] {row.unit}"
            for row in self.table.itertuples()
        )


def verdict(
    states: HiddenStates,
    scores: pd.DataFrame,
    *,
    safety: Sequence[str],
    space: AnchorSpace,
    refusal: Probe,
    controls: Sequence[str] = (),
    trained: Mapping[str, str] | None = None,
    baseline: str = NO_PROMPT,
    column: str = "refusal_rate",
    n_null: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> Verdict:
    """Measure every claim and decide by the rules of docs/evidence.md.

    Args:
        states: of queries of both classes on which neither `space` nor `refusal` was fitted, under the baseline and
            all prompts named below.
        scores: from `judge`, of the same queries under the baseline and the safety prompts.
        safety: the prompts that the claims are about, two at least.
        controls: system messages without a message of safety.
        trained: prompt trained by DRO → the prompt that it started from.
        column: of the scores: the rate of refusals.
        n_null: draws of each null.

    Raises:
        StatesError: fewer than 4 queries of a class; states or prompts are missing, see `shifts`,
            `shift_similarity` and `auc_change`.
        QueryError: a query or prompt without a score.

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
    moved = shifts(states, baseline=baseline, layer=space.layer)
    if unknown := sorted({*safety, *controls, *(trained or {}), *(trained or {}).values()} - set(moved.prompts)):
        raise StatesError(f"No states under {unknown}: compute them with hidden_states(model, queries, prompts).")
    if min((moved.queries["harmful"] == kind).sum() for kind in (True, False)) < 4:
        raise StatesError("A verdict needs at least 4 queries of each class: pass more queries.")
    compared = moved.select([*safety, *controls])
    moments = compared.moments(refusal.direction(space).double().numpy()[None])
    nulls = _Nulls(n=n_null, level=level, generator=np.random.default_rng(random_state))
    found = [
        *_separable(states, space, safety, baseline, random_state, nulls),
        *_alike(compared, moments, safety, controls, nulls),
        _along(compared, moments, safety, nulls),
        *_refusals(scores, column, moved, safety, baseline, nulls),
        *_apart(moved, refusal, space, trained or {}, nulls),
    ]
    table = pd.DataFrame([one.row(level) for one in found])
    return Verdict(table=_decided(table, 1 - level)[list(COLUMNS)], measured=tuple(found))


def power_table(
    result: Verdict, effects: Mapping[str, Sequence[float]] | None = None, *, power: float = 0.8, level: float = 0.95
) -> pd.DataFrame:
    """How many queries show that a claim holds, counted as `n` in the verdict: of one class where it is about one.

    Args:
        effects: claim → true values of its number, on the claimed side of its threshold. None asks for what was
            measured here, as far as it is on that side.

    Returns:
        `claim, effect, threshold, power, n`. From the spread measured here, by Student's t at the level that Holm's
        correction may ask for: (1 - level) / number of claims.

    Raises:
        StatesError: an unknown claim, or an effect on the wrong side of the threshold.
    """
    measured = {one.claim.text: one for one in result.measured}
    asked = effects or {text: [one.estimate] for text, one in measured.items() if one.claim.distance(one.estimate) > 0}
    rows = []
    for claim, values in asked.items():
        if claim not in measured:
            raise StatesError(f"No claim {claim!r} in this verdict: choose from {', '.join(map(repr, measured))}.")
        for effect in values:
            one = measured[claim]
            if one.claim.distance(effect) <= 0:
                side = "above" if one.claim.side > 0 else "below"
                raise StatesError(
                    f"An effect must lie {side} the threshold {one.claim.threshold} of {claim!r}, got {effect}."
                )
            n = _needed(one, effect, power, (1 - level) / len(result.measured))
            rows.append({"claim": claim, "effect": effect, "threshold": one.claim.threshold, "power": power, "n": n})
    return pd.DataFrame(rows)


def _needed(one: Measured, effect: float, power: float, alpha: float) -> int:
    """The smallest n whose one-sided t-test has the power. The spread per query stays as it is here."""
    from statsmodels.stats.power import TTestPower

    ratio = one.claim.distance(effect, one.error) / (one.scaled_error * np.sqrt(one.n))
    # Beyond 100 the noncentral t has no numbers; where the fewest are enough the solver finds no solution.
    test = {"effect_size": min(ratio, 100.0), "alpha": alpha, "alternative": "larger"}
    if TTestPower().power(nobs=FEWEST, **test) >= power:
        return FEWEST
    return math.ceil(TTestPower().solve_power(power=power, **test))


def _decided(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    for column in ("p_support", "p_against"):
        table[column] = holm(table[column].to_numpy(dtype=float))
    verdicts = np.where(table["p_against"] < alpha, NOT_SUPPORTED, TOO_LITTLE)
    return table.assign(verdict=np.where(table["p_support"] < alpha, SUPPORTED, verdicts))


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
        """Of a sum of means whose samples get random signs."""
        flips = (self.generator.integers(0, 2, size=(self.n, len(values))) * 2.0 - 1 for values in samples)
        means = [signs @ values / len(values) for signs, values in zip(flips, samples, strict=True)]
        return self.limits(np.sum(means, axis=0))


def _separable(
    states: HiddenStates, space: AnchorSpace, safety: Sequence[str], baseline: str, random_state: int, nulls: _Nulls
) -> list[Measured]:
    changes = auc_change(states, space, safety, baseline=baseline, random_state=random_state)
    mean = changes.iloc[-1]
    shuffled = shuffled_aucs(states.select(prompt=baseline), space, random_state=random_state)
    n, error = int(mean["n"]), float(mean["error"])
    unchanged = interval(0.0, error, n, nulls.level)[1:]  # what no change looks like, give or take its error
    return [
        Measured(SEPARABLE, mean["baseline_auc"], mean["baseline_error"], n, nulls.limits(shuffled)),
        Measured(NOT_ENHANCED, mean["change"], error, n, unchanged),
    ]


def _alike(
    moved: Shifts, moments: Moments, safety: Sequence[str], controls: Sequence[str], nulls: _Nulls
) -> list[Measured]:
    generator = np.random.default_rng(int(nulls.generator.integers(2**32)))
    table = similarity(
        moved, moments, safety, controls, n_directions=1, n_null=nulls.n, generator=generator, level=nulls.level
    )
    measured = table.set_index("measure")[["value", "error", "n", "null_low", "null_high"]].T.to_dict("list")
    claims = {"alike": ALIKE, "beyond the controls": BEYOND}
    found = {claim: measured[measure] for measure, claim in claims.items() if measure in measured}
    return [Measured(claim, value, se, int(n), (low, high)) for claim, (value, se, n, low, high) in found.items()]


def _along(moved: Shifts, moments: Moments, safety: Sequence[str], nulls: _Nulls) -> Measured:
    members = [place for place, (prompt, _) in enumerate(moved.groups()) if prompt in safety]
    value, *gradients = mean_direction_cosine(moments, members, 0)
    means = unit(np.stack([moments.parts[place].mean(axis=0) for place in members]))
    random = null_directions(moved.baseline, moved.queries["harmful"], nulls.n, nulls.generator)
    null = nulls.limits((random @ means.T).mean(axis=1))
    return Measured(ALONG, value, moments.standard_error(*gradients), moments.n_queries, null)


def _refusals(
    scores: pd.DataFrame, column: str, moved: Shifts, safety: Sequence[str], baseline: str, nulls: _Nulls
) -> list[Measured]:
    found = []
    for claim, harmful in ((HARMFUL, True), (HARMLESS, False)):
        queries = moved.queries.loc[moved.rows(harmful), "query_id"]
        rates = {prompt: _rates(scores, column, queries, prompt) for prompt in (baseline, *safety)}
        rises = np.mean([rates[prompt] for prompt in safety], axis=0) - rates[baseline]
        found.append(_mean(claim, [rises], nulls))
    return found


def _rates(scores: pd.DataFrame, column: str, queries: pd.Series, prompt: str) -> Array:
    wanted = pd.MultiIndex.from_product([queries, [prompt]])
    rates: Array = scores[column].reindex(wanted).to_numpy(dtype=np.float64)
    if np.isnan(rates).any():
        raise QueryError(
            f"{int(np.isnan(rates).sum())} queries have no {column} under {prompt!r} (first: "
            f"{queries[np.isnan(rates)].iloc[0]!r}): judge replies of the same queries under the same prompts."
        )
    return rates


def _apart(
    moved: Shifts, refusal: Probe, space: AnchorSpace, trained: Mapping[str, str], nulls: _Nulls
) -> list[Measured]:
    """One row per trained prompt."""
    slope = refusal.slope(space).numpy()
    found = []
    for prompt, init in trained.items():
        up, down = (
            (moved.get_group(prompt, harmful) - moved.get_group(init, harmful)).double().numpy() @ slope
            for harmful in (True, False)
        )
        claim = APART if len(trained) == 1 else replace(APART, text=f"{APART.text} ({prompt})")
        found.append(_mean(claim, [up, -down], nulls))
    return found


def _mean(claim: Claim, samples: Sequence[Array], nulls: _Nulls) -> Measured:
    """A claim about the sum of the means of independent samples."""
    error = float(np.sqrt(sum(stats.sem(values) ** 2 for values in samples)))
    estimate, n = float(sum(values.mean() for values in samples)), sum(map(len, samples))
    return Measured(claim, estimate, error, n, nulls.sign_flips(samples))
