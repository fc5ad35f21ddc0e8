"""Unbiased products of mean shifts, and standard errors: against plain formulas and against simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from drolab.evidence.shift_products import Moments, common_share, cosine, direction_cosine, leading_share, mean_cosine
from drolab.intervals import FISHER, PLAIN, SHARE, interval


def drawn(
    means: np.ndarray, n: int, rng: np.random.Generator, *, noise: float = 1.0, classes: tuple[bool, ...] | None = None
) -> Moments:
    """Groups around given mean shifts [groups, d]; prompts of one class share half of each query's noise."""
    d = means.shape[1]
    kinds = classes or (True,) * len(means)
    baseline = {kind: rng.normal(size=(n + 5 * (not kind), d)) for kind in (True, False)}
    parts = [
        mean + noise * (baseline[kind] + rng.normal(size=baseline[kind].shape)) / math.sqrt(2 * d)
        for mean, kind in zip(means, kinds, strict=True)
    ]
    return Moments(parts=parts, classes=kinds, directions=np.eye(d)[:1])


def axes(*numbers: int, d: int = 40) -> np.ndarray:
    return np.eye(d)[list(numbers)]


def test_products_are_those_of_different_queries() -> None:
    found = drawn(axes(0, 1, 2), 6, np.random.default_rng(0), classes=(True, True, False))
    first, second, third = found.parts
    pairs = [first[i] @ second[j] for i in range(6) for j in range(6) if i != j]
    assert found.products[0, 1] == pytest.approx(np.mean(pairs))
    assert found.products[0, 2] == pytest.approx(np.mean([a @ c for a in first for c in third]))
    np.testing.assert_allclose(found.products, found.products.T)
    np.testing.assert_allclose(found.projections[:, 0], [part[:, 0].mean() for part in found.parts])


def test_lengths_and_cosines_are_not_those_of_the_noise() -> None:
    """Ten queries in 400 dimensions: the means' noise is as long as the shift, and half of it is shared."""
    rng, means = np.random.default_rng(1), axes(0, 1, d=400)
    squares, plain, unbiased = [], [], []
    for _ in range(300):
        found = drawn(means, 10, rng, noise=3.0)
        squares.append(found.products[0, 0])
        unbiased.append(found.products[0, 1])
        plain.append(found.parts[0].mean(axis=0) @ found.parts[1].mean(axis=0))
    error = np.std(unbiased) / math.sqrt(300)
    assert np.mean(squares) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(unbiased)) < 4 * error
    assert np.mean(plain) > 0.3  # the control: the plain means look alike, because they share the baseline's noise


def of_cosine(found: Moments) -> tuple[float, np.ndarray, np.ndarray | None]:
    return *cosine(found, 0, 1), None


def of_mixed(found: Moments) -> tuple[float, np.ndarray, np.ndarray | None]:
    return *mean_cosine(found, [(0, 1), (0, 2), (1, 2)]), None


def of_direction(found: Moments) -> tuple[float, np.ndarray, np.ndarray | None]:
    return direction_cosine(found, 1, 0)


def of_share(found: Moments) -> tuple[float, np.ndarray, np.ndarray | None]:
    return *common_share(found, [0, 1, 2]), None


STATISTICS = [of_cosine, of_mixed, of_direction, of_share]
Statistic = Callable[[Moments], tuple[float, np.ndarray, np.ndarray | None]]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_gradients_are_the_derivatives(statistic: Statistic) -> None:
    means = np.random.default_rng(2).normal(size=(3, 40))
    found = drawn(means, 30, np.random.default_rng(3), classes=(True, True, False))
    value, gradient, along = statistic(found)
    step = 1e-6
    for a, b in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]:
        moved = Moments(parts=found.parts, classes=found.classes, directions=found.directions)
        products = found.products.copy()
        products[a, b] += step
        products[b, a] = products[a, b]
        moved.__dict__["products"] = products
        change = (statistic(moved)[0] - value) / step
        assert change == pytest.approx(gradient[a, b] + (gradient[b, a] if a != b else 0), abs=1e-4)
    if along is not None:
        moved = Moments(parts=found.parts, classes=found.classes, directions=found.directions)
        moved.__dict__["projections"] = found.projections + step * (np.arange(3)[:, None] == 1)
        assert (statistic(moved)[0] - value) / step == pytest.approx(along[1, 0], abs=1e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_standard_errors_are_those_of_leaving_out_each_query(statistic: Statistic) -> None:
    means = np.random.default_rng(4).normal(size=(3, 40))
    found = drawn(means, 60, np.random.default_rng(5), noise=2.0, classes=(True, True, False))
    variance = 0.0
    for kind in (True, False):
        n = 60 + 5 * (not kind)
        without = []
        for query in range(n):
            parts = [
                np.delete(part, query, axis=0) if own == kind else part
                for part, own in zip(found.parts, found.classes, strict=True)
            ]
            without.append(statistic(Moments(parts=parts, classes=found.classes, directions=found.directions))[0])
        variance += (n - 1) ** 2 / n * np.var(without, ddof=1)
    assert found.standard_error(*statistic(found)[1:]) == pytest.approx(math.sqrt(variance), rel=0.05)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("noise", [1.0, 6.0])
def test_intervals_cover(statistic: Statistic, noise: float) -> None:
    """95 % intervals of 30 queries, also where the noise is longer than the shift; the full table: calibration.py."""
    rng = np.random.default_rng(6)
    means = np.stack([axes(0)[0] + axes(1)[0], axes(0)[0] + axes(2)[0], axes(0)[0] + axes(1)[0] - axes(3)[0]])
    kinds = (True, True, False)
    exact = Moments(parts=[np.tile(mean, (6, 1)) for mean in means], classes=kinds, directions=axes(0))
    truth, scale = statistic(exact)[0], PLAIN if statistic is of_share else FISHER
    hits = narrow = 0
    for _ in range(400):
        found = drawn(means, 30, rng, noise=noise, classes=kinds)
        value, *gradients = statistic(found)
        limits = interval(value, found.standard_error(*gradients), 65, 0.95, scale)
        hits += limits.low <= truth <= limits.high
        narrow += abs(value - truth) <= (limits.high - limits.low) / 8
    assert 0.92 <= hits / 400 <= 0.98
    assert narrow / 400 < 0.6  # the control: a quarter of the width does not cover


def test_a_shift_that_is_none_has_no_cosine() -> None:
    rng = np.random.default_rng(7)
    values = [cosine(drawn(np.zeros((2, 40)), 20, rng), 0, 1)[0] for _ in range(40)]
    assert np.isnan(values).mean() > 0.4
    assert interval(math.nan, 0.1, 20, 0.95, FISHER)[1:] == (-1.0, 1.0)


def test_few_queries_give_an_estimate_but_no_interval() -> None:
    rng = np.random.default_rng(9)
    value, gradient = cosine(drawn(axes(0, 0), 3, rng, noise=0.1), 0, 1)
    assert value == pytest.approx(1, abs=0.05)
    assert math.isnan(drawn(axes(0, 0), 3, rng).standard_error(gradient))
    assert math.isnan(cosine(drawn(axes(0, 0), 1, rng), 0, 1)[0])
    for n in (1, 2, 3):  # a half of them may have one, or none
        assert math.isnan(leading_share(drawn(axes(0, 0, 1), n, rng), [0, 1, 2], 2, rng))
    assert leading_share(drawn(axes(0, 0, 1), 4, rng, noise=0.1), [0, 1, 2], 2, rng) == pytest.approx(1, abs=0.1)


def test_shares() -> None:
    same = Moments(parts=[np.tile(axes(0), (8, 1))] * 3, classes=[True] * 3, directions=axes(0))
    apart = Moments(parts=[np.tile(axes(a), (8, 1)) for a in range(3)], classes=[True] * 3, directions=axes(0))
    rng = np.random.default_rng(8)
    assert common_share(same, [0, 1, 2])[0] == pytest.approx(1)
    assert common_share(apart, [0, 1, 2])[0] == pytest.approx(1 / 3)
    assert leading_share(same, [0, 1, 2], 1, rng) == pytest.approx(1)
    assert leading_share(apart, [0, 1, 2], 2, rng) == pytest.approx(2 / 3)
    # With noise, the best of equal directions must not look better than it is.
    noisy = [leading_share(drawn(axes(0, 1, 2), 20, rng, noise=2.0), [0, 1, 2], 1, rng) for _ in range(200)]
    assert np.mean(noisy) == pytest.approx(1 / 3, abs=4 * np.std(noisy) / math.sqrt(200))


def test_a_share_is_at_most_one() -> None:
    """Of four queries: the control is that an estimate was beyond 1 and had to be bounded."""
    rng, shares = np.random.default_rng(10), []
    for _ in range(200):
        found = drawn(axes(0, 0, 1), 4, rng)
        shares.append((common_share(found, [0, 1, 2])[0], leading_share(found, [0, 1, 2], 2, rng)))
    assert np.nanmin(shares) >= 0
    assert np.nanmax(shares) <= 1
    assert (np.array(shares) == 1).any()
    none = [common_share(drawn(np.zeros((3, 40)), 20, rng), [0, 1, 2])[0] for _ in range(40)]
    assert np.isnan(none).any()
    assert interval(math.nan, 0.0, 20, 0.95, SHARE)[1:] == (0.0, 1.0)
