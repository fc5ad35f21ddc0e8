"""Inner products of mean shifts without the bias of noise, and the standard error of what is computed from them.

A mean over n queries carries noise, and the squared length of noise grows with the width of the model: taken from
the means themselves, lengths come out too large and cosines too small (or too large, where two prompts share the
noise of the baseline). Products of *different* queries' shifts have no such bias. Their mean over all pairs is a
U-statistic (Hoeffding 1948, Annals of Mathematical Statistics 19), and of its smooth functions the standard error
comes from leaving out one query at a time, with all its prompts: the jackknife (Arvesen 1969, ibid. 40). Where the
shifts are small against their noise the jackknife counts the second-order part of the variance twice; the surplus
is estimated and taken off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Moments:
    """The products of the mean shifts of several groups of queries, with fixed directions beside them."""

    parts: Sequence[Array]
    """Per group [n_queries of its class, d]: the shifts of its queries. Row i of two groups of one class is the
    same query."""
    classes: Sequence[bool]
    """Per group the class of its queries; queries of different classes are independent."""
    directions: Array
    """[n_directions, d], unit vectors that are taken as given."""

    @cached_property
    def products(self) -> Array:
        """[groups, groups]: the inner product of each two groups' mean shifts, unbiased."""
        return np.array([[self._product(a, b) for b in range(len(self.parts))] for a in range(len(self.parts))])

    @cached_property
    def along(self) -> Array:
        """[groups, directions]: the mean shifts' products with the directions."""
        return np.stack([part.mean(axis=0) @ self.directions.T for part in self.parts])

    def _product(self, a: int, b: int) -> float:
        first, second = self.parts[a], self.parts[b]
        total, n = first.sum(axis=0) @ second.sum(axis=0), len(first)
        if self.classes[a] != self.classes[b]:
            return float(total / (n * len(second)))
        return float((total - (first * second).sum()) / (n * (n - 1)))

    @property
    def n_queries(self) -> int:
        return sum({kind: len(part) for kind, part in zip(self.classes, self.parts, strict=True)}.values())

    def halves(self, generator: np.random.Generator) -> tuple[Moments, Moments]:
        """The same from two random halves of each class's queries."""
        sizes = {kind: len(part) for kind, part in zip(self.classes, self.parts, strict=True)}
        order = {kind: generator.permutation(n) for kind, n in sorted(sizes.items())}
        cuts = [
            [part[order[kind][half::2]] for kind, part in zip(self.classes, self.parts, strict=True)] for half in (0, 1)
        ]
        first, second = (Moments(parts=parts, classes=self.classes, directions=self.directions) for parts in cuts)
        return first, second

    def standard_error(self, gradient: Array, gradient_along: Array | None = None) -> float:
        """Of a smooth function of `products` and `along`; the arguments are those of `influences`."""
        found = self.influences(gradient, gradient_along)
        jackknife = _jackknife(found)
        return float(np.sqrt(max(jackknife - self._surplus(list(found), gradient), jackknife / 2)))

    def influences(self, gradient: Array, gradient_along: Array | None = None) -> dict[bool, Array]:
        """Per class [n], of mean 0: how much each query moves a smooth function, by the jackknife, to first order.

        Args:
            gradient: [groups, groups], symmetric: the derivative with respect to each product.
            gradient_along: [groups, directions]: the same for `along`.
        """
        found = {}
        for kind in self._members(gradient, gradient_along):
            own = self._groups(kind)
            n = len(self.parts[own[0]])
            rows = _without_diagonal(self._kernel(own, own, gradient)).sum(axis=1) / (n - 1)
            single = 2 * self._kernel(own, self._groups(not kind), gradient).mean(axis=1)
            if gradient_along is not None:
                single = single + sum(self.parts[a] @ (gradient_along[a] @ self.directions) for a in own)
            found[kind] = 2 * (n - 1) / (n - 2) * (rows - rows.mean()) + single - single.mean()
        return found

    def _surplus(self, kinds: Sequence[bool], gradient: Array) -> float:
        """What the jackknife counts twice: the variance of what the queries' products have in common only in pairs."""
        total = 0.0
        for own in map(self._groups, kinds):
            rest = _without_diagonal(_centred(_without_diagonal(self._kernel(own, own, gradient))))
            n = len(rest)
            total += 2 * (rest**2).sum() / (n**2 * (n - 1) * max(n - 3, 1))
        if len(kinds) == 2:
            between = 2 * self._kernel(self._groups(kinds[0]), self._groups(kinds[1]), gradient)
            rest = between - between.mean(axis=0) - between.mean(axis=1, keepdims=True) + between.mean()
            total += (rest**2).sum() / ((rest.shape[0] - 1) * (rest.shape[1] - 1) * rest.size)
        return total

    def _members(self, gradient: Array, gradient_along: Array | None) -> list[bool]:
        """The classes that a function depends on."""
        both = gradient if gradient_along is None else np.hstack([gradient, gradient_along])
        return list(dict.fromkeys(kind for kind, row in zip(self.classes, both, strict=True) if row.any()))

    def _groups(self, kind: bool) -> list[int]:
        return [a for a, other in enumerate(self.classes) if other == kind]

    def _kernel(self, rows: Sequence[int], columns: Sequence[int], gradient: Array) -> Array:
        """[n, m]: the products of single queries' shifts, weighted by the gradient; [n, 1] without columns."""
        total = np.zeros((len(self.parts[rows[0]]), len(self.parts[columns[0]]) if columns else 1))
        for a in rows:
            if used := [b for b in columns if gradient[a, b]]:
                total = total + self.parts[a] @ sum(gradient[a, b] * self.parts[b] for b in used).T
        return total


def _jackknife(influences: Mapping[bool, Array]) -> float:
    """The variance of an estimate from its queries' influences."""
    return float(sum(values @ values / (len(values) * (len(values) - 1)) for values in influences.values()))


def _without_diagonal(kernel: Array) -> Array:
    return kernel - np.diag(np.diag(kernel)) if kernel.shape[0] == kernel.shape[1] else kernel


def _centred(kernel: Array) -> Array:
    """What the row means of a symmetric kernel without its diagonal leave."""
    rows = kernel.sum(axis=1) / (len(kernel) - 1)
    return kernel - rows[:, None] - rows + rows.mean()


def cosine(moments: Moments, a: int, b: int) -> tuple[float, Array]:
    """The cosine of two groups' mean shifts, and its gradient with respect to the products.

    NaN (and a gradient of zeros) if a mean shift cannot be told from none: its squared length comes out negative.
    """
    products, gradient = moments.products, np.zeros_like(moments.products)
    lengths = products[a, a] * products[b, b]
    if min(products[a, a], products[b, b]) <= 0:
        return float("nan"), gradient
    value = _clip(products[a, b] / np.sqrt(lengths), -1.0, 1.0)
    gradient[a, b] = gradient[b, a] = 0.5 / np.sqrt(lengths)
    gradient[a, a] -= value / 2 / products[a, a]
    gradient[b, b] -= value / 2 / products[b, b]
    return float(value), gradient


def direction_cosine(moments: Moments, a: int, direction: int) -> tuple[float, Array, Array]:
    """The cosine of a group's mean shift with a direction, and its two gradients (NaN as in `cosine`)."""
    gradient, along = np.zeros_like(moments.products), np.zeros_like(moments.along)
    square = moments.products[a, a]
    if square <= 0:
        return float("nan"), gradient, along
    value = _clip(moments.along[a, direction] / np.sqrt(square), -1.0, 1.0)
    gradient[a, a], along[a, direction] = -value / 2 / square, 1 / np.sqrt(square)
    return float(value), gradient, along


def mean_cosine(moments: Moments, pairs: Sequence[tuple[int, int]]) -> tuple[float, Array]:
    """The mean of the cosines of several pairs of groups, and its gradient (NaN as in `cosine`)."""
    values, gradients = zip(*(cosine(moments, a, b) for a, b in pairs), strict=True)
    return float(np.mean(values)), np.mean(gradients, axis=0)


def common_share(moments: Moments, groups: Sequence[int]) -> tuple[float, Array]:
    """How much of the squared length of some mean shifts lies along their common mean, and its gradient.

    1 if all point the same way; 1 / number of groups if they are orthogonal and of one length.
    """
    inner = moments.products[np.ix_(groups, groups)]
    sums, total, trace = inner.sum(axis=1), inner.sum(), np.trace(inner)
    value = sums @ sums / (total * trace)
    own = (sums[:, None] + sums) / (total * trace) - value / total - value * np.eye(len(groups)) / trace
    gradient = np.zeros_like(moments.products)
    gradient[np.ix_(groups, groups)] = own
    return float(value), gradient


def leading_share(
    moments: Moments, groups: Sequence[int], k: int, generator: np.random.Generator
) -> tuple[float, Array]:
    """How much of their squared length lies in the best k directions, and its gradient.

    The directions are found on one half of the queries and measured on the other, both ways: on the same queries
    the best of several equal directions would look better than it is.
    """
    halves = moments.halves(generator)
    captured = total = 0.0
    for found, measured in (halves, halves[::-1]):
        vectors = np.linalg.eigh(found.products[np.ix_(groups, groups)])[1][:, -k:]
        inner = measured.products[np.ix_(groups, groups)]
        captured, total = captured + np.trace(vectors.T @ inner @ vectors), total + np.trace(inner)
    inner = moments.products[np.ix_(groups, groups)]
    vectors = np.linalg.eigh(inner)[1][:, -k:]
    gradient = np.zeros_like(moments.products)
    value = captured / total
    gradient[np.ix_(groups, groups)] = (vectors @ vectors.T - value * np.eye(len(groups))) / np.trace(inner)
    return float(value), gradient


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
        return _clip(value, low + margin, high - margin)

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


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def interval(value: float, error: float, n: int, level: float, scale: Scale = PLAIN) -> Interval:
    """Student's t with n - 1 degrees of freedom, on a scale; of NaN: NaN, without limits."""
    if math.isnan(value):
        return Interval(value, scale.back(-math.inf), scale.back(math.inf))
    inside = scale.inside(value, error)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error * scale.slope(inside)
    low, high = scale.back(scale.to(inside) - half), scale.back(scale.to(inside) + half)
    return Interval(value, min(low, value), max(high, value))


def sample_interval(values: Array, level: float) -> Interval:
    return interval(float(values.mean()), float(stats.sem(values)), len(values), level)
