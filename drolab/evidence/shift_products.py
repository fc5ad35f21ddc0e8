"""Inner products of mean shifts without the bias of noise, and the standard error of what is computed from them.

A mean over n queries carries noise, and the squared length of noise grows with the width of the model: taken from
the means themselves, lengths come out too large and cosines too small (or too large, where two prompts share the
noise of the baseline). Products of *different* queries' shifts have no such bias. With the shifts aᵢ and bᵢ of query i
under two prompts, their mean over all pairs is a U-statistic (Hoeffding 1948, Annals of Mathematical Statistics 19):

    ⟨a, b⟩ = Σ_{i≠j} aᵢ·bⱼ / (n (n - 1))    within a class,    Σᵢⱼ aᵢ·bⱼ / (n m)    between two classes.

Of a smooth function θ of such products the standard error comes from leaving out one query at a time, with all its
prompts: the jackknife, (n - 1)/n Σᵢ (θ₋ᵢ - mean)² (Arvesen 1969, ibid. 40), here to first order in θ's gradient. Where
the shifts are small against their noise it counts twice what pairs of queries have for themselves; this surplus is
estimated and taken off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from drolab.intervals import clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


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
    def inner(self) -> Mapping[tuple[int, int], Array]:
        """(group, group) → [n, m]: the products of their queries' shifts, all that is needed of d dimensions. Memory:
        8 bytes times the square of the number of shifts in all groups."""
        rows = np.concatenate(self.parts)
        ends = np.cumsum([len(part) for part in self.parts])
        blocks = [np.split(strip, ends[:-1], axis=1) for strip in np.split(rows @ rows.T, ends[:-1])]
        return {(a, b): block for a, strip in enumerate(blocks) for b, block in enumerate(strip)}

    @cached_property
    def products(self) -> Array:
        """[groups, groups]: the inner product of each two groups' mean shifts, unbiased."""
        return self._products(dict.fromkeys(self.classes, slice(None)))

    @cached_property
    def projections(self) -> Array:
        """[groups, directions]: the mean shifts' inner products with the directions."""
        return np.stack([part.mean(axis=0) @ self.directions.T for part in self.parts])

    def _products(self, queries: Mapping[bool, NDArray[np.intp] | slice]) -> Array:
        """`products` of some queries of each class."""
        groups = range(len(self.parts))
        return np.array([[self._product(a, b, queries) for b in groups] for a in groups])

    def _product(self, a: int, b: int, queries: Mapping[bool, NDArray[np.intp] | slice]) -> float:
        first, second = self.classes[a], self.classes[b]
        block = self.inner[a, b][queries[first]][:, queries[second]]
        if first != second:
            return float(block.mean())
        n = len(block)
        return float((block.sum() - np.trace(block)) / (n * (n - 1))) if n > 1 else math.nan

    @property
    def n_queries(self) -> int:
        return sum({kind: len(part) for kind, part in zip(self.classes, self.parts, strict=True)}.values())

    def halves(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """`products` of two random halves of each class's queries."""
        sizes = {kind: len(part) for kind, part in zip(self.classes, self.parts, strict=True)}
        order = {kind: generator.permutation(n) for kind, n in sorted(sizes.items())}
        first, second = (self._products({kind: rows[half::2] for kind, rows in order.items()}) for half in (0, 1))
        return first, second

    def standard_error(self, gradient: Array, gradient_projections: Array | None = None) -> float:
        """Of a smooth function of `products` and `projections`, by the jackknife over queries, to first order; NaN with
        fewer than 4 queries of a class.

        Args:
            gradient: [groups, groups], symmetric: the derivative with respect to each product.
            gradient_projections: [groups, directions]: the same for `projections`.
        """
        both = gradient if gradient_projections is None else np.hstack([gradient, gradient_projections])
        used = [int(a) for a in np.flatnonzero(both.any(axis=1))]
        members = {kind: [a for a in used if self.classes[a] == kind] for kind in {self.classes[a] for a in used}}
        between = self._between(members, gradient)
        variance, surplus = 0.0, 0.0 if between is None else _pairs_alone(between)
        for side, groups in enumerate(members.values()):
            kernel = self._kernel(groups, groups, gradient)
            np.fill_diagonal(kernel, 0.0)
            if (n := len(kernel)) < 4:
                return math.nan
            rows, single = kernel.sum(axis=1) / (n - 1), np.zeros(n)
            if between is not None:
                single += between.mean(axis=1 - side)
            if gradient_projections is not None:
                single += sum(self.parts[a] @ (gradient_projections[a] @ self.directions) for a in groups)
            influence = 2 * (n - 1) / (n - 2) * (rows - rows.mean()) + single - single.mean()
            variance += influence @ influence / (n * (n - 1))
            rest = kernel - rows[:, None] - rows + rows.mean()
            np.fill_diagonal(rest, 0.0)
            surplus += 2 * (rest**2).sum() / (n**2 * (n - 1) * max(n - 3, 1))
        return float(np.sqrt(max(variance - surplus, variance / 2)))

    def _between(self, members: Mapping[bool, list[int]], gradient: Array) -> Array | None:
        """[n, m]: the kernel between the queries of the two classes, if the function mixes them."""
        if len(members) < 2:
            return None
        first, second = members.values()
        return 2 * self._kernel(first, second, gradient) if gradient[np.ix_(first, second)].any() else None

    def _kernel(self, rows: Sequence[int], columns: Sequence[int], gradient: Array) -> Array:
        """[n, m]: the products of single queries' shifts, weighted by the gradient."""
        kernel: Array = np.sum([gradient[a, b] * self.inner[a, b] for a in rows for b in columns], axis=0)
        return kernel


def _pairs_alone(kernel: Array) -> float:
    """The variance of what a kernel between independent queries leaves to the single pair."""
    rest = kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()
    return float((rest**2).sum() / ((kernel.shape[0] - 1) * (kernel.shape[1] - 1) * kernel.size))


def cosine(moments: Moments, a: int, b: int) -> tuple[float, Array]:
    """The cosine of two groups' mean shifts, and its gradient with respect to the products.

    NaN (and a gradient of zeros) if a mean shift cannot be told from none: its squared length comes out negative.
    """
    products, gradient = moments.products, np.zeros_like(moments.products)
    lengths = products[a, a] * products[b, b]
    if not min(products[a, a], products[b, b]) > 0:
        return float("nan"), gradient
    value = clip(products[a, b] / np.sqrt(lengths), -1.0, 1.0)
    gradient[a, b] = gradient[b, a] = 0.5 / np.sqrt(lengths)
    gradient[a, a] -= value / 2 / products[a, a]
    gradient[b, b] -= value / 2 / products[b, b]
    return float(value), gradient


def direction_cosine(moments: Moments, a: int, direction: int) -> tuple[float, Array, Array]:
    """The cosine of a group's mean shift with a direction, and its two gradients (NaN as in `cosine`)."""
    gradient, projections = np.zeros_like(moments.products), np.zeros_like(moments.projections)
    square = moments.products[a, a]
    if not square > 0:
        return float("nan"), gradient, projections
    value = clip(moments.projections[a, direction] / np.sqrt(square), -1.0, 1.0)
    gradient[a, a], projections[a, direction] = -value / 2 / square, 1 / np.sqrt(square)
    return float(value), gradient, projections


def mean_cosine(moments: Moments, pairs: Sequence[tuple[int, int]]) -> tuple[float, Array]:
    """The mean of the cosines of several pairs of groups, and its gradient (NaN as in `cosine`)."""
    values, gradients = zip(*(cosine(moments, a, b) for a, b in pairs), strict=True)
    return float(np.mean(values)), np.mean(gradients, axis=0)


def mean_direction_cosine(moments: Moments, groups: Sequence[int], direction: int) -> tuple[float, Array, Array]:
    """The mean of several groups' cosines with a direction, and its two gradients (NaN as in `cosine`)."""
    values, products, projections = zip(*(direction_cosine(moments, a, direction) for a in groups), strict=True)
    return float(np.mean(values)), np.mean(products, axis=0), np.mean(projections, axis=0)


def common_share(moments: Moments, groups: Sequence[int]) -> tuple[float, Array]:
    """How much of the squared length of some mean shifts lies along their common mean, and its gradient.

    1 if all point the same way; 1 / number of groups if they are orthogonal and of one length. The unbiased products of
    few queries can make it more than 1, as no share is: then it is 1. NaN (and a gradient of zeros) where the mean
    shifts cannot be told from none.
    """
    inner, gradient = moments.products[np.ix_(groups, groups)], np.zeros_like(moments.products)
    sums, total, trace = inner.sum(axis=1), inner.sum(), np.trace(inner)
    if not min(total, trace) > 0:
        return math.nan, gradient
    value = clip(sums @ sums / (total * trace), 0.0, 1.0)
    own = (sums[:, None] + sums) / (total * trace) - value / total - value * np.eye(len(groups)) / trace
    gradient[np.ix_(groups, groups)] = own
    return float(value), gradient


def leading_share(moments: Moments, groups: Sequence[int], k: int, generator: np.random.Generator) -> float:
    """How much of their squared length lies in the best k directions.

    The directions are found on one half of the queries and measured on the other, both ways: on the same queries
    the best of several equal directions would look better than it is. For the same reason there is no gradient. As in
    `common_share`, an estimate beyond 1 is 1, and NaN where there is no shift to speak of, or fewer than 4 queries of a
    class, since nothing is known without the bias of noise from a half with one.
    """
    if min(map(len, moments.parts)) < 4:
        return math.nan
    halves = moments.halves(generator)
    captured = total = 0.0
    for found, measured in (halves, halves[::-1]):
        vectors = np.linalg.eigh(found[np.ix_(groups, groups)])[1][:, -k:]
        inner = measured[np.ix_(groups, groups)]
        captured, total = captured + np.trace(vectors.T @ inner @ vectors), total + np.trace(inner)
    return clip(float(captured / total), 0.0, 1.0) if total > 0 else math.nan
