"""Rates and means over queries, with intervals. The unit is the query: its samples are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from drolab.errors import StatesError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def unit(vectors: Array) -> Array:
    """Scaled to length one along the last axis; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


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


PLAIN = Scale(lambda x: x, lambda x: x, lambda x: 1.0, lambda x, error: x)


FISHER = Scale(math.atanh, math.tanh, lambda x: 1 / (1 - x**2), _bounded(-1.0, 1.0))
"""Of cosines (Fisher's z)."""


LOGIT = Scale(
    lambda x: math.log(x / (1 - x)),
    lambda x: 1 / (1 + math.exp(-x)),
    lambda x: 1 / (x * (1 - x)),
    _bounded(0.0, 1.0),
)
"""Of AUCs."""


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def interval(value: float, error: float, n: int, level: float, scale: Scale = PLAIN) -> Interval:
    """Student's t with n - 1 degrees of freedom, on a scale. An estimate of NaN may be anything; an error of NaN gives
    no interval."""
    if math.isnan(error):
        return Interval(value, math.nan, math.nan)
    if math.isnan(value):
        return Interval(value, scale.back(-math.inf), scale.back(math.inf))
    inside = scale.inside(value, error)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error * scale.slope(inside)
    low, high = scale.back(scale.to(inside) - half), scale.back(scale.to(inside) + half)
    return Interval(value, min(low, value), max(high, value))


def sample_interval(values: Array, level: float) -> Interval:
    return interval(float(values.mean()), float(stats.sem(values)), len(values), level)


CHUNK_VALUES = 2**24
"""Numbers that one chunk of bootstrap draws may hold: 128 MB."""


def rate_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """A rate of independent trials with Wilson's interval.

    Raises:
        StatesError: n is 0, or `successes` is not between 0 and n.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= n or n == 0:
        raise StatesError(f"{successes} successes of {n} trials are no rate: pass counts, with at least one trial.")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return Interval(successes / n, float(low), float(high))


def mean_interval(
    values: Sequence[float] | pd.Series,
    groups: Sequence[Any] | pd.Series,
    *,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean over groups (queries) of each group's mean value, with a bootstrap interval over groups.

    Raises:
        StatesError: no values, NaN among them, or another number of groups than of values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0 or len(numbers) != len(groups) or np.isnan(numbers).any():
        raise StatesError(
            f"{len(numbers)} values (NaN: {int(np.isnan(numbers).sum())}) in {len(groups)} groups: pass at least one "
            "value, a group for each, and no NaN."
        )
    means = pd.Series(numbers).groupby(np.asarray(groups), sort=False).mean().to_numpy()
    return mean_intervals(means[:, None], n_bootstrap=n_bootstrap, random_state=random_state, level=level)[0]


def mean_intervals(
    values: NDArray[np.floating], *, n_bootstrap: int = 1000, random_state: int = 0, level: float = 0.95
) -> list[Interval]:
    """The means of m numbers over n queries, `values` [n, m], with bootstrap intervals over queries."""
    # Rates take few values, so a draw counts how often each comes, not each query: the same distribution, much faster.
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    generator = np.random.default_rng(random_state)
    draws = np.concatenate([weights @ distinct for weights in drawn_weights(counts, n_bootstrap, generator)])
    limits = percentiles(draws, widened(level, len(values)))
    return [Interval(*map(float, one)) for one in zip(values.mean(axis=0).round(12), *limits, strict=True)]


def rate_table(
    scores: pd.DataFrame, *, column: str = "refusal_rate", n_bootstrap: int = 1000, random_state: int = 0
) -> pd.DataFrame:
    """Mean rates per prompt and class, from the scores of `judge` (index: query_id, prompt).

    Returns:
        `prompt, harmful, n_queries, value, low, high`; the interval is a bootstrap over queries.
    """
    flat = scores.reset_index()
    rows = []
    for (prompt, harmful), part in flat.groupby(["prompt", "harmful"], sort=False):
        interval = mean_interval(part[column], part["query_id"], n_bootstrap=n_bootstrap, random_state=random_state)
        rows.append(
            {"prompt": prompt, "harmful": harmful, "n_queries": part["query_id"].nunique()} | interval._asdict()
        )
    return pd.DataFrame(rows)


def percentiles(draws: Array, level: float) -> tuple[Array, Array]:
    """The limits, [...] each, between which the share `level` of draws [n, ...] lies."""
    # Rounded so that draws which all equal the estimate give an interval that contains it.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0).round(12)
    return low, high


def widened(level: float, n: int) -> float:
    """The level at which a bootstrap's percentiles are as wide as Student's t: few draws' spread is too small
    (Hesterberg 2015, The American Statistician 69)."""
    if n < 2:
        return level
    half = np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)
    return float(2 * stats.norm.cdf(half) - 1)


def drawn_weights(
    counts: Sequence[int] | NDArray[np.integer], n_draws: int, generator: np.random.Generator
) -> Iterator[Array]:
    """Chunks of [draws, k]: as many queries as there are, drawn with replacement: the share of each of k kinds.

    Args:
        counts: [k], how many queries are of each kind: all 1 for the share of each query.
    """
    n, chunk = int(np.sum(counts)), max(1, CHUNK_VALUES // len(counts))
    for start in range(0, n_draws, chunk):
        yield generator.multinomial(n, np.asarray(counts) / n, size=min(chunk, n_draws - start)) / n
