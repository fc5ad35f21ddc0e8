"""How sure a cross-validated number is: it depends on the queries that were tested and on those that were fitted on.

A bootstrap over the held-out queries shows the first part only. Where there is little to read the second is as large,
and the bootstrap alone covers in 80 to 90 % of cases, not 95 %. The second comes from a jackknife (Shao and Wu 1989,
Annals of Statistics 17): one group of queries at a time is left out of every training part, while all queries are
tested as before.

What single tested queries owe to single queries of the training part is in both variances (for AUCs, Yousef, Wagner and
Loew 2006, IEEE TPAMI 28, take such a variance to pieces). So each refit is also tested without each of the groups: the
part of the training variance that belongs to such pairs is left out, but for as far as the pairs are symmetric. Two
queries that stand in each other's training part help or harm each other alike, and what they do then counts twice.
A jackknife errs to the wide side where more than pairs matter (Efron and Stein 1981, Annals of Statistics 9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from drolab.probes import grouped_folds
from drolab.rates import percentiles, widened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

N_GROUPS = 10
"""Groups of queries that are left out in turn; fewer where a class has fewer."""


def query_groups(fractions: Array, queries: NDArray[Any], random_state: int) -> list[NDArray[np.intp]]:
    """The rows of each group that is left out in turn, the classes spread evenly."""
    sizes = np.unique(fractions >= 0.5, return_counts=True)[1]
    n_groups = min(N_GROUPS, len(np.unique(queries)), *sizes)
    return [rows for _, rows in grouped_folds(fractions, queries, n_groups, random_state)]


def without_each(rows: NDArray[np.intp], groups: Sequence[NDArray[np.intp]]) -> Array:
    """[1 + n_groups, k]: which of k rows are tested: all, then those outside of each group."""
    return np.stack([np.ones(len(rows)), *(~np.isin(rows, group) * 1.0 for group in groups)])


def limits(
    value: float, draws: Array, refits: Array, n_queries: int, level: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval of a cross-validated number.

    Args:
        draws: the number in resampled held-out queries.
        refits: [1 + n_groups, 1 + n_groups]: the number with no group or each group left out of training, and no group
            or each left out of the test. [1, 1] gives an interval of the fits as they are.
        bounds: the range of the number.
    """
    low, high = percentiles(draws, widened(level, n_queries))
    half = np.sqrt(training_variance(refits)) * stats.t.ppf((1 + level) / 2, max(len(refits) - 2, 1))
    low, high = value - np.hypot(value - low, half), value + np.hypot(high - value, half)
    return float(np.clip(low, *bounds).round(12)), float(np.clip(high, *bounds).round(12))


def training_variance(refits: Array) -> float:
    """What other training queries would add to the variance over test queries, from the table of `limits`."""
    if (n := len(refits) - 1) < 2:
        return 0.0
    jackknife = (n - 1) * np.var(refits[1:, 0])
    both = refits[1:, 1:] - refits[1:, :1] - refits[:1, 1:] + refits[0, 0]
    both = np.nan_to_num(both[~np.eye(n, dtype=bool)]), np.nan_to_num(both.T[~np.eye(n, dtype=bool)])
    pairs, odd = ((n - 1) ** 2 * np.mean(part**2) for part in (both[0], (both[0] - both[1]) / np.sqrt(2)))
    # Numbers that go in steps (AUCs) show more of pairs in small groups than there is: no more than all of it.
    return float(jackknife * max(1 - odd / max(pairs, jackknife), 0.0)) if jackknife > 0 else 0.0
