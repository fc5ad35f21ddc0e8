"""How sure a cross-validated number is: it depends on the queries that were tested and on those that were fitted on.

A bootstrap over the held-out queries shows the first part only. Where there is little to read the second is as large,
and the bootstrap alone covers in 80 to 90 % of cases, not 95 %. The variances of the two parts add (Fukunaga and Hayes
1989, IEEE TPAMI 11; for AUCs Yousef, Wagner and Loew 2006, IEEE TPAMI 28). The second comes from a delete-a-group
jackknife (Shao and Wu 1989, Annals of Statistics 17): one group of queries at a time is left out of every training
part, while all queries are tested as before. A jackknife errs to the wide side (Efron and Stein 1981, ibid. 9), most
where there are hardly more queries than dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from drolab.intervals import Interval, jackknife_error, percentiles, widened
from drolab.probing.probes import grouped_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

N_GROUPS = 10
"""Groups of queries that are left out in turn; fewer where a class has fewer."""


def left_out_groups(fractions: Array, queries: NDArray[Any], random_state: int) -> list[NDArray[np.intp]]:
    """The rows of each group that is left out in turn, the classes spread evenly."""
    sizes = np.unique(fractions >= 0.5, return_counts=True)[1]
    n_groups = min(N_GROUPS, len(np.unique(queries)), *sizes)
    return [rows for _, rows in grouped_folds(fractions, queries, n_groups, random_state)]


def crossval_interval(
    value: float, draws: Array, refits: Array, n_queries: int, level: float, bounds: tuple[float, float]
) -> Interval:
    """The interval of a cross-validated number: value ± √((limit of the bootstrap - value)² + (z · jackknife error)²).

    Args:
        draws: the number in resampled held-out queries.
        refits: the number with each group left out of training; none gives an interval of the fits as they are.
        bounds: the range of the number.
    """
    low, high = percentiles(draws, widened(level, n_queries))
    half = stats.norm.ppf((1 + level) / 2) * (jackknife_error(refits) if len(refits) else 0.0)
    low, high = value - np.hypot(value - low, half), value + np.hypot(high - value, half)
    return Interval(float(value), *(float(np.clip(end, *bounds).round(12)) for end in (low, high)))
