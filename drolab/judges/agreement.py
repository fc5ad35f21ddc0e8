"""How far judges are of one opinion: Cohen's κ with intervals over queries, and confusion tables.

Source of κ: Cohen, Educational and Psychological Measurement 20 (1960).
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drolab.errors import QueryError
from drolab.intervals import check_settings, drawn_counts, nearly_alike, percentiles, rate_interval, unseen_share
from drolab.judges.base import FULL, VERDICTS, as_verdicts

if TYPE_CHECKING:
    from numpy.typing import NDArray


def disagreement(
    verdicts: pd.DataFrame,
    queries: pd.Series | None = None,
    *,
    n_bootstrap: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Each pair of judges, over the responses that both judged.

    Args:
        verdicts: one column per judge, as from `verdicts` or `opinions`; NA where a judge has no opinion.
        queries: the query of each row (such as `responses["query_id"]`), for intervals of κ: samples of one query are
            not independent, so the bootstrap draws queries.

    Returns:
        Columns a, b, n, both, only_a, only_b, neither (how many are full refusals by which), agreement (the share
        where they say the same) and kappa (Cohen's, over all that they say; NaN where chance alone would give full
        agreement); with `queries` also kappa_low and kappa_high: where the judges agree about nearly all queries, or
        there are hardly any, at least as far as κ would go if a share of unseen queries got any two verdicts (see
        `evidence.mean_interval`).

    Raises:
        QueryError: `queries` has other rows, or a value is no verdict.
        StatesError: a `level` that is not between 0 and 1, `n_bootstrap` below 1.

    Examples:
        >>> import pandas as pd
        >>> from drolab import judges
        >>> said = pd.DataFrame({"rule": [True, True, False, False], "person": [True, True, True, False]})
        >>> judges.disagreement(said)[["a", "b", "both", "only_a", "only_b", "neither", "agreement", "kappa"]]
              a       b  both  only_a  only_b  neither  agreement  kappa
        0  rule  person     2       0       1        1       0.75    0.5
    """
    check_settings(level, n_bootstrap=n_bootstrap)
    if queries is not None and not queries.index.equals(verdicts.index):
        raise QueryError(
            "The queries must have the index of the verdicts: pass responses['query_id'] of the same rows."
        )
    words = pd.DataFrame({name: as_verdicts(verdicts[name]) for name in verdicts}, index=verdicts.index)
    rows = []
    for a, b in combinations(words.columns, 2):
        known = words[[a, b]].notna().all(axis=1)
        first, second = _codes(words.loc[known, a]), _codes(words.loc[known, b])
        tables = _tables(first, second, np.zeros(len(first)) if queries is None else queries[known].to_numpy())
        row = {"a": a, "b": b, "n": len(first)} | _counts(tables.sum(axis=0))
        if queries is not None:
            low, high = _interval(tables, n_bootstrap, random_state, level)
            row |= {"kappa_low": low, "kappa_high": high}
        rows.append(row)
    columns = ["a", "b", "n", "both", "only_a", "only_b", "neither", "agreement", "kappa"]
    return pd.DataFrame(rows, columns=columns + (["kappa_low", "kappa_high"] if queries is not None else []))


def confusion(verdicts: pd.DataFrame, a: str, b: str, *, level: float = 0.95) -> pd.DataFrame:
    """What judge `b` says of the responses of which judge `a` says one thing.

    Args:
        verdicts: as in `disagreement`; `a` and `b` are two of its columns.

    Returns:
        One row per pair of verdicts that occur: a and b (what each says), n, of (all responses of which a says this
        and b anything), share = n / of, low and high (Wilson's interval, as if the responses were independent: with
        many samples of few queries it is too narrow).

    Raises:
        QueryError: a judge that the table lacks, or no response that both judged.
        StatesError: a `level` that is not between 0 and 1.

    Examples:
        >>> import pandas as pd
        >>> from drolab import judges
        >>> people = ["full_refusal", "full_refusal", "partial_refusal", "compliance"]
        >>> said = pd.DataFrame({"person": people, "rule": [True, False, False, False]})
        >>> judges.confusion(said, "person", "rule")[["a", "b", "n", "of", "share"]]
                         a             b  n  of  share
        0     full_refusal  full_refusal  1   2    0.5
        1     full_refusal    compliance  1   2    0.5
        2  partial_refusal  full_refusal  0   1    0.0
        3  partial_refusal    compliance  1   1    1.0
        4       compliance  full_refusal  0   1    0.0
        5       compliance    compliance  1   1    1.0
    """
    check_settings(level)
    if absent := [name for name in (a, b) if name not in verdicts.columns]:
        raise QueryError(f"No judge {', '.join(map(repr, absent))}: the verdicts have {list(verdicts.columns)}.")
    known = verdicts[[a, b]].notna().all(axis=1)
    if not known.any():
        raise QueryError(f"No response was judged by both {a!r} and {b!r}: give both the same ones.")
    first, second = (_codes(as_verdicts(verdicts.loc[known, name])) for name in (a, b))
    counts = _tables(first, second, np.zeros(len(first)))[0].astype(int)
    rows = []
    for i, j in product(np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))):
        n, of = int(counts[i, j]), int(counts[i].sum())
        share = rate_interval(n, of, level=level)
        cell = {"a": VERDICTS[i], "b": VERDICTS[j], "n": n, "of": of, "share": share.value}
        rows.append(cell | {"low": share.low, "high": share.high})
    return pd.DataFrame(rows)


def _codes(words: pd.Series) -> NDArray[np.intp]:
    """The numbers of the verdicts in VERDICTS."""
    return pd.Categorical(words, categories=VERDICTS).codes.astype(np.intp)


def _counts(table: NDArray[np.float64]) -> dict[str, float]:
    """What a [k, k] table of counts says of full refusals, and of all verdicts."""
    full, n = VERDICTS.index(FULL), table.sum()
    both, a, b = (int(cell) for cell in (table[full, full], table[full].sum(), table[:, full].sum()))
    counts = {"both": both, "only_a": a - both, "only_b": b - both, "neither": int(n) - a - b + both}
    agreement = float(np.trace(table) / n) if n else float("nan")
    return counts | {"agreement": agreement, "kappa": float(_kappa(table))}


def _tables(first: NDArray[np.intp], second: NDArray[np.intp], queries: NDArray[Any]) -> NDArray[np.float64]:
    """[n queries, k, k]: of each query's responses, how many each pair of verdicts has."""
    names, place = np.unique(queries, return_inverse=True)
    tables = np.zeros((len(names), len(VERDICTS), len(VERDICTS)))
    np.add.at(tables, (place, first, second), 1)
    return tables


def _kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """[…, k, k] counts → […]: Cohen's κ; NaN where nothing could disagree."""
    n = tables.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = np.trace(tables, axis1=-2, axis2=-1) / n
        chance = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / n**2
        # Rounded, so that full agreement by chance is exactly 1.
        return np.where(chance.round(12) < 1, (agreement - chance) / (1 - chance), np.nan)


def _interval(tables: NDArray[np.float64], n_bootstrap: int, random_state: int, level: float) -> tuple[float, float]:
    """Percentiles of κ over draws of queries, and `_unseen_kappas` where draws hardly vary; draws in which nothing
    could disagree are left out."""
    n, generator = len(tables), np.random.default_rng(random_state)
    if not n:
        return float("nan"), float("nan")
    kinds, sizes = np.unique(tables, axis=0, return_counts=True)
    chunks = drawn_counts(sizes, n_bootstrap, generator)
    kappas = np.concatenate([_kappa(np.tensordot(counts, kinds, axes=1)) for counts in chunks])
    kappas = kappas[~np.isnan(kappas)]
    if not len(kappas):
        return float("nan"), float("nan")
    limits = [*map(float, percentiles(kappas, level)), float(_kappa(tables.sum(axis=0)))]
    # κ is 0 in every draw if one judge always says the same, however often they disagree.
    same = np.trace(tables, axis1=1, axis2=2) / tables.sum(axis=(1, 2))
    if nearly_alike(same, level) or limits[0] == limits[1]:
        limits += _unseen_kappas(tables.sum(axis=0), unseen_share(n, level)).tolist()
    return float(np.nanmin(limits)), float(np.nanmax(limits))


def _unseen_kappas(table: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """[k · k]: κ if a share of all queries, none of which was seen, got one pair of verdicts, for each pair."""
    pairs = np.eye(table.size).reshape(-1, *table.shape)
    return _kappa((1 - share) * table / table.sum() + share * pairs)
