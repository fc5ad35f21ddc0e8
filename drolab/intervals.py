"""Estimates and how sure they are: the one place for intervals, bootstraps over queries, AUCs and Holm's correction.

In order: what an interval is and on which scale it is made, rates and means, resampled queries, AUCs, corrected
p-values. The unit is the query: its samples are not independent.

An interval has a width, also where nothing that was seen varies: 0 refusals of 112 are no proof that there are none. A
proportion has Wilson's; a mean that hardly any query differs from has at least `_unseen_bound`; where there is no bound
for what was not seen, the limits are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from drolab.errors import StatesError, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


class Scale(NamedTuple):
    """A scale on which an estimate is nearly normal."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]
    """The derivative of `to`: it takes a standard error to the scale."""
    inside: Callable[[float, float], float]
    """(value, error) → the value, moved off the end of its range, where the scale has no number."""


def _bounded(low: float, high: float) -> Callable[[float, float], float]:
    """An estimate at the end of the range (or beyond, as unbiased ones may be) counts as half an error inside."""

    def inside(value: float, error: float) -> float:
        margin = max(min(error, high - low) / 2, 1e-9)
        return clip(value, low + margin, high - margin)

    return inside


def plain(low: float, high: float) -> Scale:
    """An estimate's own scale, for limits that stay in its range."""
    return Scale(lambda x: x, lambda x: clip(x, low, high), lambda x: 1.0, lambda x, error: x)


PLAIN = Scale(lambda x: x, lambda x: x, lambda x: 1.0, lambda x, error: x)
SHARE, CHANGE = plain(0.0, 1.0), plain(-1.0, 1.0)
"""Of shares of a whole, and of differences of rates or AUCs."""
FISHER = Scale(math.atanh, math.tanh, lambda x: 1 / (1 - x**2), _bounded(-1.0, 1.0))
"""Of cosines (Fisher's z)."""
LOGIT = Scale(
    lambda x: math.log(x / (1 - x)),
    lambda x: float(special.expit(x)),  # of any size
    lambda x: 1 / (x * (1 - x)),
    _bounded(0.0, 1.0),
)
"""Of AUCs and rates."""


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def check_settings(level: float, **counts: int) -> None:
    """What intervals are made with: their level, and numbers of draws by the names that the caller knows.

    Raises:
        StatesError: a level that is not between 0 and 1, or a number that is no whole one above 0.
    """
    if not (isinstance(level, Real) and 0 < level < 1):
        raise StatesError(f"level must lie between 0 and 1, such as 0.95, got {shown(level)}.")
    for name, count in counts.items():
        if not (isinstance(count, Integral) and count > 0):
            raise StatesError(f"{name} must be a whole number above 0, such as 1000, got {shown(count)}.")


def unit(vectors: Array) -> Array:
    """Scaled to length one along the last axis; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def interval(value: float, error: float, n: int, level: float, scale: Scale = PLAIN) -> Interval:
    """The interval of an estimate with a standard error, by Student's t with n - 1 degrees of freedom, on a scale s:
    s⁻¹(s(value) ± t · error · s'(value)).

    An estimate of NaN may be anything; an error of NaN gives no interval, and one of 0 no width: it is for what is the
    same whichever queries are left out, such as the cosine of a shift with itself.
    """
    check_settings(level)
    if math.isnan(error):
        return Interval(value, math.nan, math.nan)
    if math.isnan(value):
        return Interval(value, scale.back(-math.inf), scale.back(math.inf))
    inside = scale.inside(value, error)
    half = student(level, n) * error * scale.slope(inside)
    low, high = scale.back(scale.to(inside) - half), scale.back(scale.to(inside) + half)
    return Interval(value, min(low, value), max(high, value))


@cache
def student(level: float, n: int) -> float:
    """The quantile of Student's t for an interval from n values; one table asks for it thousands of times."""
    return float(stats.t.ppf((1 + level) / 2, n - 1))


def sample_interval(values: NDArray[np.floating], level: float) -> Interval:
    """Of the mean of independent values without bounds, by Student's t.

    Where all are equal the limits are NaN: there is no spread that could tell what other values might be.
    """
    equal = np.ptp(values) <= 1e-12 * np.abs(values).max()
    error = math.nan if equal else float(stats.sem(values))
    return interval(float(values.mean()), error, len(values), level)


def bounded_interval(values: NDArray[np.floating], level: float, scale: Scale) -> Interval:
    """Of the mean of independent values, by Student's t on a scale, to whose ends they are bound; as wide as that of
    `mean_interval` where hardly any value differs from the rest. NaN of one value."""
    n, mean, bounds = len(values), float(values.mean()), (scale.back(-math.inf), scale.back(math.inf))
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    least = unseen_interval(mean, n, level, bounds) if nearly_alike(values, level) else None
    return _around(interval(mean, error, n, level, scale), least)


# ---------------------------------------------------------------- rates and means


def rate_interval(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """A rate of independent trials with Wilson's interval.

    With k successes of n and z, the normal quantile of the level:
    (k + z²/2 ± z · √(k (n - k) / n + z²/4)) / (n + z²) (Wilson 1927, Journal of the American Statistical Association
    22). It has a width also where nothing, or everything, succeeds.

    Args:
        successes: may be a mean of several counts, such as of repeated cross-validation.

    Raises:
        StatesError: n is 0, `successes` is not between 0 and n, or `level` not between 0 and 1.

    Examples:
        >>> from drolab.evidence import rate_interval
        >>> value, low, high = rate_interval(0, 20)
        >>> print(f"{value:.2f}, may be as much as {high:.2f}")
        0.00, may be as much as 0.16
    """
    from statsmodels.stats.proportion import proportion_confint

    check_settings(level)
    if not 0 <= successes <= n or n == 0:
        raise StatesError(f"{successes:g} successes of {n} trials are no rate: pass counts, with at least one trial.")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    value = successes / n
    return Interval(value, min(float(low), value), max(float(high), value))  # at an end they differ by rounding


def mean_interval(
    values: Sequence[float] | pd.Series,
    groups: Sequence[Any] | pd.Series,
    *,
    bounds: tuple[float, float] | None = None,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean over groups (queries) of each group's mean value, with a bootstrap interval over groups.

    Draws of few queries, or of queries that are nearly all alike, hardly vary, and tell nothing of the queries that
    were not seen. Where at most 3 of n queries differ from the rest (at a level of .95; so for up to 4 queries whatever
    they are) the interval reaches at least to where the mean would be if a share of unseen queries had the least or the
    largest possible value: the share that may go unseen in n queries, Wilson's upper limit of 0 of n.

    Args:
        bounds: the least and the largest value that is possible: (0, 1) for rates, (-1, 1) for their differences. None
            takes (0, 1) if all values lie there, else there are none: then such intervals are at least Student's t, and
            the limits are NaN where all values are equal.

    Raises:
        StatesError: no values, NaN among them, another number of groups than of values, values beyond `bounds`; a
            `level` that is not between 0 and 1, `n_bootstrap` below 1.

    Examples:
        Ten replies to each of four queries are four queries, not forty replies:

        >>> from drolab.evidence import mean_interval
        >>> refused = [1] * 10 + [0] * 10 + [1] * 8 + [0] * 2 + [0] * 10
        >>> queries = ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 10
        >>> value, low, high = mean_interval(refused, queries)
        >>> print(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        0.45 [0.00, 1.00]
        >>> value, low, high = mean_interval(refused, range(40))
        >>> print(f"{value:.2f} [{low:.2f}, {high:.2f}]")  # as if they were forty
        0.45 [0.28, 0.62]

        Three queries with the same rate do not say that all queries have it:

        >>> value, low, high = mean_interval([0.05, 0.05, 0.05], ["a", "b", "c"])
        >>> print(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        0.05 [0.02, 0.58]
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0 or len(numbers) != len(groups) or np.isnan(numbers).any():
        raise StatesError(
            f"{len(numbers)} values (NaN: {int(np.isnan(numbers).sum())}) in {len(groups)} groups: pass at least one "
            "value, a group for each, and no NaN."
        )
    means = pd.Series(numbers).groupby(np.asarray(groups), sort=False).mean().to_numpy()
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "random_state": random_state, "level": level}
    return mean_intervals(means[:, None], bounds=bounds, **options)[0]


def mean_intervals(
    values: NDArray[np.floating],
    *,
    bounds: tuple[float, float] | None = None,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """The means of m numbers over n queries, `values` [n, m], as `mean_interval` has them; the m are drawn together."""
    check_settings(level, n_bootstrap=n_bootstrap)
    bounds = _checked_bounds(values, bounds)
    # Rates take few values, so a draw counts how often each comes, not each query: the same distribution, much faster.
    distinct, sizes = np.unique(values, axis=0, return_counts=True)
    generator, n = np.random.default_rng(random_state), len(values)
    draws = np.concatenate([counts @ distinct / n for counts in drawn_counts(sizes, n_bootstrap, generator)])
    limits = percentiles(draws, widened(level, n))
    found = [Interval(*map(float, one)) for one in zip(values.mean(axis=0).round(12), *limits, strict=True)]
    return [
        _around(one, _unseen_bound(column, level, bounds) if nearly_alike(column, level) else None)
        for one, column in zip(found, values.T, strict=True)
    ]


def _checked_bounds(values: NDArray[np.floating], bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    low, high = bounds or (0.0, 1.0)
    inside = not ((values < low - 1e-9) | (values > high + 1e-9)).any()
    if bounds is not None and not (low < high and inside):
        raise StatesError(
            f"Values from {values.min():g} to {values.max():g} do not lie within the bounds {bounds}: pass the least "
            "and the largest value that is possible, or bounds=None."
        )
    return (low, high) if inside else None


def nearly_alike(values: NDArray[np.floating], level: float) -> bool:
    """Whether so few of n queries differ from the rest that a bootstrap over them says nothing of its tails.

    A draw in which all queries have the commonest value, that of k, comes in (k / n)ⁿ of cases. The limits of an
    interval cannot be told from it if these are more than what is cut off at one end, (1 - level) / 2. At .95, where
    up to 3 queries differ from the rest.
    """
    n, most = len(values), np.unique(values.round(9), return_counts=True)[1].max()
    return bool((most / n) ** n > (1 - widened(level, n)) / 2)


@cache
def unseen_share(n: int, level: float) -> float:
    """How many of all queries may be of a kind that none of n has shown (Hanley and Lippman-Hand 1983, Journal of the
    American Medical Association 249, by Wilson's limit)."""
    return rate_interval(0, n, level=level).high


def _unseen_bound(values: NDArray[np.floating], level: float, bounds: tuple[float, float] | None) -> Interval:
    """What the interval of a mean of nearly equal values holds at least. Without bounds it is Student's t."""
    if bounds is None:
        return sample_interval(values, level)
    return unseen_interval(float(values.mean()), len(values), level, bounds)


def unseen_interval(value: float, n: int, level: float, bounds: tuple[float, float]) -> Interval:
    """How far a mean over n queries goes if the share of them that was not seen has any possible value (Manski 1989,
    Journal of Human Resources 24)."""
    (low, high), share = bounds, unseen_share(n, level)
    return Interval(value, value - share * (value - low), value + share * (high - value))


def _around(found: Interval, least: Interval | None) -> Interval:
    """An interval that holds its estimate, and another one."""
    lows, highs = zip(*(one[1:] for one in (found, least) if one is not None), strict=True)
    low, high = float(np.min([*lows, found.value])), float(np.max([*highs, found.value]))  # NaN if one of them is
    return Interval(found.value, round(low, 12), round(high, 12))


def rate_table(
    scores: pd.DataFrame, *, column: str = "refusal_rate", n_bootstrap: int = 1000, random_state: int = 0
) -> pd.DataFrame:
    """Mean rates per prompt and class, from the scores of `judge` (index: query_id, prompt).

    Returns:
        `prompt, harmful, n_queries, value, low, high`; the interval is that of `mean_interval`.

    Examples:
        >>> import pandas as pd
        >>> from drolab.evidence import rate_table
        >>> pairs = pd.MultiIndex.from_product([["a", "b", "c"], ["none", "long"]], names=["query_id", "prompt"])
        >>> rates = [0.2, 0.9, 0.4, 0.8, 0.0, 0.1]
        >>> scores = pd.DataFrame({"harmful": [True] * 4 + [False] * 2, "refusal_rate": rates}, index=pairs)
        >>> rate_table(scores)[["prompt", "harmful", "n_queries", "value"]].round(2)
          prompt  harmful  n_queries  value
        0   none     True          2   0.30
        1   long     True          2   0.85
        2   none    False          1   0.00
        3   long    False          1   0.10
    """
    flat = scores.reset_index()
    rows = []
    for (prompt, harmful), part in flat.groupby(["prompt", "harmful"], sort=False):
        interval = mean_interval(part[column], part["query_id"], n_bootstrap=n_bootstrap, random_state=random_state)
        rows.append(
            {"prompt": prompt, "harmful": harmful, "n_queries": part["query_id"].nunique()} | interval._asdict()
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- resampled queries

CHUNK_VALUES = 2**21
"""Numbers that one chunk of draws may hold: 16 MB."""


def chunk_sizes(n_draws: int, n_values: int) -> Iterator[int]:
    """How many draws, of `n_values` numbers each, to make at a time."""
    size = max(1, CHUNK_VALUES // n_values)
    for start in range(0, n_draws, size):
        yield min(size, n_draws - start)


def drawn_counts(
    sizes: Sequence[int] | NDArray[np.integer],
    n_draws: int,
    generator: np.random.Generator,
    n_values: int | None = None,
) -> Iterator[Array]:
    """A bootstrap over queries: chunks of [draws, k], how often each of k kinds comes when as many queries as there
    are get drawn with replacement.

    Args:
        sizes: [k], how many queries are of each kind: all 1 to count each query.
        n_values: for the size of the chunks, the numbers that are made of one draw; None is k.
    """
    n = int(np.sum(sizes))
    for size in chunk_sizes(n_draws, n_values or len(sizes)):
        yield generator.multinomial(n, np.asarray(sizes) / n, size=size).astype(np.float64)


def percentiles(draws: Array, level: float) -> tuple[Array, Array]:
    """The limits, [...] each, between which the share `level` of draws [n, ...] lies."""
    check_settings(level)
    if not len(draws):
        raise StatesError("An interval needs draws: n_bootstrap (n_null, n_shuffles) must be above 0, such as 1000.")
    # Rounded so that draws which all equal the estimate give an interval that contains it.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0).round(12)
    return low, high


@cache
def widened(level: float, n: int) -> float:
    """The level at which a bootstrap's percentiles are as wide as Student's t: few draws' spread is too small
    (Hesterberg 2015, The American Statistician 69)."""
    check_settings(level)
    if n < 2:
        return level
    half = np.sqrt(n / (n - 1)) * student(level, n)
    return min(float(2 * stats.norm.cdf(half) - 1), 1 - 1e-15)  # of 2 queries it would be 1, which is no level


def jackknife_error(values: Array) -> Array:
    """The standard error of a number from its values [g, ...] without each of g groups of queries: √((g - 1) · their
    variance) (Shao and Wu 1989, Annals of Statistics 17)."""
    return np.sqrt((len(values) - 1) * np.var(values, axis=0))


def crossval_interval(
    value: float, draws: Array, refits: Array, n_queries: int, level: float, bounds: tuple[float, float]
) -> Interval:
    """The interval of a cross-validated number: value ± √((limit of the bootstrap - value)² + (z · jackknife error)²).

    It depends on the queries that were tested and on those that were fitted on, see `drolab.probing.crossval`.

    Args:
        draws: the number in resampled held-out queries.
        refits: the number with each group left out of training; none gives an interval of the fits as they are.
        bounds: the range of the number. An estimate at its end, or one that is the same in all draws, has an interval
            with a width all the same: no draw can show otherwise, so half the queries count as trials of which none
            failed.
    """
    low, high = percentiles(draws, widened(level, n_queries))
    half = stats.norm.ppf((1 + level) / 2) * (jackknife_error(refits) if len(refits) else 0.0)
    low, high = value - np.hypot(value - low, half), value + np.hypot(high - value, half)
    unseen = 1 - ((1 - level) / 2) ** (2 / n_queries)
    still = high - low < 1e-9
    low = min(low, value - unseen * (value - bounds[0])) if still or value == bounds[1] else low
    high = max(high, value + unseen * (bounds[1] - value)) if still or value == bounds[0] else high
    return Interval(float(value), *(float(np.clip(end, *bounds).round(12)) for end in (low, high)))


# ---------------------------------------------------------------- AUCs


def weighted_labels(points: NDArray[np.floating], fractions: Array) -> tuple[NDArray[np.floating], Array, Array]:
    """Soft labels as scikit-learn takes them: points [k, ...], labels [k] and weights [k].

    Each of the n points comes as positive with the weight of its fraction p, and as negative with 1 - p; not at all
    with weight 0.
    """
    labels, weights = np.repeat([1.0, 0.0], len(fractions)), np.concatenate([fractions, 1 - fractions])
    used = weights > 0
    return np.concatenate([points, points])[used], labels[used], weights[used]


def auc(scores: NDArray[np.floating], fractions: Array) -> float:
    """How often a positive state scores above a negative one, with soft labels [n]; NaN if there is one class only.

    Where scores are equal they count half. scikit-learn's `roc_auc_score` with each state twice, as `weighted_labels`
    has it, says the same and takes ten times as long.
    """
    _, places = np.unique(scores, return_inverse=True)
    positive, negative = np.bincount(places, fractions), np.bincount(places, 1 - fractions)
    pairs = positive.sum() * negative.sum()
    return float(positive @ (np.cumsum(negative) - negative / 2) / pairs) if pairs > 0 else math.nan


def aucs(scores: Array, labels: Array) -> Array:
    """[k] from [k, n] and [k, n]: the same of many scores with labels 0 and 1, from the sum of ranks.

    For 200 targets at once: `roc_auc_score` takes 25 times as long.
    """
    ranks = stats.rankdata(scores, axis=1)
    positive = labels.sum(axis=1)
    wins = (ranks * labels).sum(axis=1) - positive * (positive + 1) / 2
    return wins / (positive * (labels.shape[1] - positive))


def _above(scores: Array, others: Array) -> Array:
    """[n, m]: 1 where a score is higher than the other, 0.5 where they are equal."""
    return np.greater.outer(scores, others) + 0.5 * np.equal.outer(scores, others)


@dataclass(frozen=True, eq=False)
class Placements:
    """Where each query's score lies among those of the other class, and what that says of their AUC.

    AUC = mean(positives) = mean(negatives), with DeLong's standard error √(var(positives) / n₊ + var(negatives) / n₋)
    (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44).
    """

    positives: Array
    """[n_positive]: the share of negative queries with a lower score; equal ones count half."""
    negatives: Array
    """[n_negative]: the share of positive queries with a higher score."""

    @classmethod
    def of(cls, scores: Array, labels: Array) -> Placements:
        """Of independent queries: scores [n] and labels [n], 0 or 1."""
        above = _above(scores[labels == 1], scores[labels == 0])
        return cls(above.mean(axis=1), above.mean(axis=0))

    @classmethod
    def mean(cls, several: Sequence[Placements]) -> Placements:
        """Of the same queries, averaged over several scores."""
        return cls(*(np.mean([getattr(one, side) for one in several], axis=0) for side in ("positives", "negatives")))

    @property
    def auc(self) -> float:
        return float(self.positives.mean())

    @property
    def least_error(self) -> float:
        """The standard error of half a comparison lost, which is what any AUC and any change of one has at least."""
        fewest, most = sorted((len(self.positives), len(self.negatives)))
        return float(np.sqrt(0.5 / (fewest * most) / fewest))

    @property
    def error(self) -> float:
        """DeLong's standard error, and not below `least_error`."""
        measured = np.sqrt(stats.sem(self.positives) ** 2 + stats.sem(self.negatives) ** 2)
        return float(max(measured, self.least_error))

    def interval(self, level: float) -> Interval:
        """Of the AUC, on the scale of a logit."""
        return interval(self.auc, self.error, len(self.positives) + len(self.negatives), level, LOGIT)


def pair_tables(scores: Array, fractions: Array, queries: NDArray[Any]) -> Array:
    """[2, k, k], over the pairs (positive state of one query, negative state of another): the weight of those in the
    right order, and of all. A tie counts half, as does a state against itself if its fraction is neither 0 nor 1."""
    codes, names = pd.factorize(queries)
    member = np.equal.outer(np.arange(len(names)), codes).astype(np.float64)
    positive, negative = member * fractions, member * (1 - fractions)
    right = positive @ _above(scores, scores) @ negative.T
    return np.stack([right, np.outer(positive.sum(axis=1), negative.sum(axis=1))])


def between_aucs(scores: Array, labels: Array, queries: NDArray[Any]) -> Array:
    """[k] from scores [n] and several labels [k, n], 0 or 1: the AUC over pairs of states of different queries; NaN
    without such a pair. Where a score belongs to the query, pairs of its own states would all be ties."""
    other = np.not_equal.outer(queries, queries)
    right, negative = _above(scores, scores) * other, 1 - labels
    compared = ((labels @ other) * negative).sum(axis=1)
    won = ((labels @ right) * negative).sum(axis=1)
    return np.divide(won, compared, out=np.full(len(labels), np.nan), where=compared > 0)


def auc_draws(tables: Sequence[Array], counts: Array) -> Array:
    """[draws]: the AUC of resampled queries, over the pairs within each of some `pair_tables`; NaN without a pair.

    Thousands of draws from one comparison of the states, and queries with several states of several fits, which
    scikit-learn's AUC cannot tell apart.

    Args:
        counts: [draws, n], how often each query is drawn, those of all tables one after the other.
    """
    edges = np.cumsum([table.shape[1] for table in tables])[:-1]
    right, compared = np.sum(
        [
            [_pair_sums(own, kind) for kind in table]
            for own, table in zip(np.split(counts, edges, axis=1), tables, strict=True)
        ],
        axis=0,
    )
    return np.divide(right, compared, out=np.full(len(counts), np.nan), where=compared > 0)


def _pair_sums(counts: Array, table: Array) -> Array:
    """[draws]: the sum of a table over pairs of drawn queries. A query drawn twice is compared twice with itself,
    not four times: else draws would hold more of these easy comparisons than the data."""
    return ((counts @ table) * counts).sum(axis=1) - (counts**2 - counts) @ table.diagonal()


# ---------------------------------------------------------------- corrected p-values


def holm(p: Array) -> Array:
    """p-values corrected for their number by Holm's method: the chance that any true null has one below .05 is at most
    .05."""
    # statsmodels' multipletests gives the same, but runs the garbage collector: .2 s in a panel with a model in memory.
    order, corrected = p.argsort(), np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return corrected
