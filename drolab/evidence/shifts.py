"""The statistics: how each prompt shifts the states, how sure that is, and the controls beside it.

Paper, section 3: safety prompts move all queries in similar directions, and these have to do with refusal. The
unit of every interval is the query: a query comes and goes with all its prompts, within its class, because states
of the same query under several prompts are not independent. How well the intervals cover and how often the tests
err was measured by simulation: docs/evidence.md, `benchmarks/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from drolab.errors import StatesError
from drolab.evidence.shift_products import (
    Moments,
    common_share,
    cosine,
    direction_cosine,
    leading_share,
    mean_cosine,
    mean_direction_cosine,
)
from drolab.intervals import (
    FISHER,
    PLAIN,
    SHARE,
    Interval,
    Scale,
    check_settings,
    chunk_sizes,
    interval,
    jackknife_error,
    percentiles,
    sample_interval,
    unit,
)
from drolab.probing import RANDOM, Directions, anchor_matrix, one_position, taken_apart
from drolab.threads import one_thread
from drolab.types import NO_PROMPT, AnchorSpace, HiddenStates, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shifts:
    """How each prompt moves each query, against the states of the same query under the baseline."""

    deltas: Tensor
    """[n_prompts, n_queries, d], float32: state under the prompt minus state under the baseline."""
    baseline: Tensor
    """[n_queries, d], float32: the states under the baseline itself."""
    prompts: tuple[str, ...]
    queries: pd.DataFrame
    """n_queries rows: query_id, harmful."""

    @property
    def classes(self) -> tuple[bool, ...]:
        """The classes present, harmful first."""
        return tuple(kind for kind in (True, False) if (self.queries["harmful"] == kind).any())

    def select(self, prompts: Collection[str]) -> Shifts:
        """Those under some prompts."""
        keep = [place for place, prompt in enumerate(self.prompts) if prompt in prompts]
        return replace(self, deltas=self.deltas[keep], prompts=tuple(self.prompts[place] for place in keep))

    def rows(self, harmful: bool) -> NDArray[np.intp]:
        return np.flatnonzero(self.queries["harmful"].to_numpy() == harmful)

    def get_group(self, prompt: str, harmful: bool) -> Tensor:
        """[n, d]: the shifts of a class's queries under a prompt."""
        return self.deltas[self.prompts.index(prompt), torch.from_numpy(self.rows(harmful))]

    def mean(self, prompt: str, harmful: bool) -> Tensor:
        """[d]: the mean shift of one class under one prompt."""
        return self.get_group(prompt, harmful).mean(dim=0)

    def table(self) -> pd.DataFrame:
        """One row per prompt and class: `prompt, harmful, n, norm` (length of the mean shift)
        and `mean_norm` (mean length of the queries' own shifts)."""
        rows = []
        for prompt, harmful in self.groups():
            own = self.get_group(prompt, harmful)
            norms = {"norm": float(own.mean(dim=0).norm()), "mean_norm": float(own.norm(dim=1).mean())}
            rows.append({"prompt": prompt, "harmful": harmful, "n": len(own), **norms})
        return pd.DataFrame(rows)

    def moments(self, directions: Array | None = None) -> Moments:
        """Of all groups, in their order. `directions`: [n, d]."""
        parts = [self.get_group(prompt, harmful).double().numpy() for prompt, harmful in self.groups()]
        fixed = np.zeros((0, self.deltas.shape[2])) if directions is None else directions
        return Moments(parts=parts, classes=[harmful for _, harmful in self.groups()], directions=fixed)

    def groups(self) -> list[tuple[str, bool]]:
        """(prompt, class), in the order of every table here."""
        return [(prompt, harmful) for prompt in self.prompts for harmful in self.classes]


def shifts(states: HiddenStates, *, baseline: str = NO_PROMPT, layer: int = -1) -> Shifts:
    """Every query's movement from `baseline` to each other prompt, at one layer.

    Raises:
        StatesError: no states under the baseline, no other prompt, or a query that some prompt lacks.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab import evidence
        >>> moved = evidence.shifts(states)
        >>> moved.prompts
        ('default', 'medium', 'short')
        >>> moved.table()[["prompt", "harmful", "n"]].head(2)
            prompt  harmful  n
        0  default     True  8
        1  default    False  8
        >>> list(moved.mean("default", harmful=True).shape)
        [256]
    """
    matrix = one_position(states).matrix(layer)
    places = _places(states.index, baseline)
    by_prompt = {prompt: matrix[torch.from_numpy(rows)] for prompt, rows in places.items()}
    start = by_prompt.pop(baseline)
    first = states.index.iloc[places[baseline]]
    return Shifts(
        deltas=torch.stack([moved - start for moved in by_prompt.values()]),
        baseline=start,
        prompts=tuple(by_prompt),
        queries=first[["query_id", "harmful"]].reset_index(drop=True),
    )


@one_thread
def shift_cosines(
    states: HiddenStates,
    directions: Directions | None = None,
    *,
    baseline: str = NO_PROMPT,
    layer: int = -1,
    n_null: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Cosines between the mean shifts of all prompts and classes, and between them and given directions.

    The estimates are free of the noise in the means (see `drolab.evidence.shift_products`); the intervals leave out one
    query at a time, with all its prompts. The null is that shifts mean nothing: each is replaced by a contrast of the
    baseline states with shuffled labels (see `null_directions`). It says how alike directions are only because the
    model's states vary in few of them; that a cosine is not exactly 0 would be too easy to show.

    Args:
        directions: name → `Direction`, such as `{"refusal": as_direction(refusal, space)}`, or a vector [d]. They are
            taken as given: fit them on other queries, their own uncertainty is not in the intervals. A direction drawn
            at random in d dimensions is always added under the name `random`, as the control.
        n_null: shuffles.

    Returns:
        One row per pair: `a, b, kind` (`shifts`, `direction` or `control`), `cosine, low, high`; `null_low, null_high`,
        where the cosines of shifts without meaning lie; `p` (two-sided); `significant`, with at most 1 - level of such
        rows expected to be false (Benjamini and Hochberg 1995, Journal of the Royal Statistical Society B 57); `note`,
        what is wrong with the direction (see `Direction.problem`), in which case nothing is significant. Shifts are
        called `{prompt} harmful` and `{prompt} harmless`. A cosine is NaN where a mean shift cannot be told from none,
        its limits with fewer than 4 queries of a class. The interval of what no query changes, such as the cosine of
        the same shift under two names, has no width.

    Raises:
        StatesError: as in `shifts`; a direction of another width, not finite, zero, or called `random`; a `level` that
            is not between 0 and 1, `n_null` below 1.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab import evidence
        >>> table = evidence.shift_cosines(states, n_null=200)
        >>> table["kind"].value_counts().to_dict()
        {'shifts': 15, 'control': 6}
        >>> row = table.set_index(["a", "b"]).loc[("default harmful", "medium harmful")]
        >>> bool(row["low"] > row["null_high"])  # more alike than directions without meaning
        True
    """
    check_settings(level, n_null=n_null)
    moved = shifts(states, baseline=baseline, layer=layer)
    width = moved.deltas.shape[2]
    vectors, problems = taken_apart(directions or {})
    named = _checked_directions(vectors, width)
    generator = np.random.default_rng(random_state)
    moments = moved.moments(np.stack([*named.values(), unit(generator.normal(size=width))]))
    names = [*(_label(prompt, harmful) for prompt, harmful in moved.groups()), *named, RANDOM]
    pairs = _pairs(len(moments.parts), [*named, RANDOM])
    rows = [(names[a], names[b], kind, *_pair_cosine(moments, a, b, level)) for a, b, kind in pairs]
    table = pd.DataFrame(rows, columns=["a", "b", "kind", "cosine", "low", "high"])
    first, second, _ = zip(*pairs, strict=True)
    chunks = [part[:, first, second] for part in _null_products(moved, moments.directions, n_null, generator)]
    table = table.assign(**_against(table["cosine"].to_numpy(), np.concatenate(chunks), level))
    table["note"] = [problems.get(b, "") if kind == "direction" else "" for b, kind in table[["b", "kind"]].to_numpy()]
    return table.assign(significant=table["significant"] & (table["note"] == ""))


def _pair_cosine(moments: Moments, a: int, b: int, level: float) -> Interval:
    """Of two shifts, or (b counts on from the shifts) of a shift and a direction."""
    if b < len(moments.parts):
        value, gradient = cosine(moments, a, b)
        return interval(value, moments.standard_error(gradient), moments.n_queries, level, FISHER)
    value, *gradients = direction_cosine(moments, a, b - len(moments.parts))
    return interval(value, moments.standard_error(*gradients), moments.n_queries, level, FISHER)


def _null_products(moved: Shifts, directions: Array, n: int, generator: np.random.Generator) -> Iterator[Array]:
    """Chunks of [draws, groups, groups + directions]: the cosines if every shift were a contrast without meaning.

    The contrasts themselves (see `null_directions`) are not needed, only the products of what they are made of.
    """
    count, centred = len(moved.groups()), _centred(moved.baseline, moved.queries["harmful"])
    products, along = centred @ centred.T, centred @ directions.T
    for size in chunk_sizes(n, 2 * count * len(centred)):
        signs = _signs(generator, (size, count, len(centred)))
        inner = (signs @ products) @ signs.transpose(0, 2, 1)
        squares = np.diagonal(inner, axis1=1, axis2=2)
        # Equal signs within the classes make no contrast, but for rounding: such a one is like nothing.
        real = squares > 1e-10 * np.trace(products)
        scale = np.where(real, 1 / np.sqrt(np.where(real, squares, 1.0)), 0.0)[:, :, None]
        yield np.concatenate([scale * inner * scale.transpose(0, 2, 1), scale * (signs @ along)], axis=2)


def _against(cosines: Array, null: Array, level: float) -> dict[str, Array]:
    """The columns that compare with the null."""
    from statsmodels.stats.multitest import multipletests

    low, high = percentiles(null, level)
    p = np.where(np.isnan(cosines), 1.0, (1 + (abs(null) >= abs(cosines)).sum(axis=0)) / (1 + len(null)))
    significant = multipletests(p, alpha=1 - level, method="fdr_bh")[0]
    return {"null_low": low, "null_high": high, "p": p, "significant": significant}


@one_thread
def shift_similarity(
    states: HiddenStates,
    safety: Sequence[str],
    controls: Sequence[str] = (),
    *,
    baseline: str = NO_PROMPT,
    layer: int = -1,
    n_directions: int = 3,
    n_null: int = 1000,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Do safety prompts share one shift, and is it more than what the controls do?

    Args:
        safety: the prompts that should be alike.
        controls: prompts without a message of safety, such as neutral ones and `prompts.random_words`.
        n_directions: up to how many directions the shares are given for.

    Returns:
        One row per measure: `measure, value, low, high, error` (standard), `null_low, null_high` (if every shift were a
        contrast without meaning, see `null_directions`), `n` (queries). `alike`: the mean cosine of the mean shifts of
        two different safety prompts, in all four combinations of the classes. `classes alike`: of one safety prompt,
        between its classes. `like a control`: of a safety prompt and a control. `beyond the controls`: the first less
        the third. `share in 1 direction`: how much of the safety prompts' squared mean shifts lies along their common
        mean; `share in k directions`: in the best k, without an interval (where several directions are equally good
        there is no honest one). A share is at most 1, where the unbiased estimate from few queries would be more, and
        NaN where the shifts cannot be told from none. Rows whose prompts are not there are left out.

    Raises:
        StatesError: as in `shifts`; fewer than two safety prompts, a prompt without states, one class only; a `level`
            that is not between 0 and 1, `n_null` below 1.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts() | drolab.load_prompts("neutral")
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab import evidence
        >>> table = evidence.shift_similarity(states, ["default", "medium"], controls=["format"], n_null=200)
        >>> list(table["measure"])[:4]
        ['alike', 'classes alike', 'like a control', 'beyond the controls']
        >>> bool(table.set_index("measure").loc["beyond the controls", "low"] > 0)
        True
    """
    check_settings(level, n_null=n_null)
    wanted = list(dict.fromkeys([baseline, *safety, *controls]))
    moved = shifts(states.select(prompt=wanted, layer=layer), baseline=baseline, layer=layer)
    generator = np.random.default_rng(random_state)
    moments = moved.moments()
    return similarity(
        moved, moments, safety, controls, n_directions=n_directions, n_null=n_null, generator=generator, level=level
    )


def similarity(
    moved: Shifts,
    moments: Moments,
    safety: Sequence[str],
    controls: Sequence[str],
    *,
    n_directions: int,
    n_null: int,
    generator: np.random.Generator,
    level: float,
) -> pd.DataFrame:
    """`shift_similarity` of shifts under the safety prompts and controls alone, with their moments."""
    if len(moved.classes) < 2 or len(safety) < 2:
        raise StatesError("Similarity needs two safety prompts and queries of both classes: pass more of them.")
    groups = moved.groups()
    null = np.concatenate(list(_null_products(moved, moments.directions, n_null, generator)))
    pairs = {
        "alike": _group_pairs(groups, safety, safety),
        "classes alike": [
            (a, b) for a, b in _all_pairs(groups) if groups[a][0] == groups[b][0] and groups[a][0] in safety
        ],
        "like a control": _group_pairs(groups, safety, controls),
    }
    found: dict[str, tuple[float, Array | None, Array, Scale]] = {
        name: (*mean_cosine(moments, chosen), null[:, *np.array(chosen).T].mean(axis=1), FISHER)
        for name, chosen in pairs.items()
        if chosen
    }
    if controls:
        within, across = (mean_cosine(moments, pairs[name]) for name in ("alike", "like a control"))
        drawn = found["alike"][2] - found["like a control"][2]
        found["beyond the controls"] = within[0] - across[0], within[1] - across[1], drawn, PLAIN
    members = [place for place, (prompt, _) in enumerate(groups) if prompt in safety]
    shares = np.linalg.eigvalsh(null[:, members][:, :, members])[:, ::-1].cumsum(axis=1) / len(members)
    found["share in 1 direction"] = (*common_share(moments, members), shares[:, 0], SHARE)
    for k in range(2, min(n_directions, len(members) - 1) + 1):
        found[f"share in {k} directions"] = leading_share(moments, members, k, generator), None, shares[:, k - 1], SHARE
    return pd.DataFrame([_similarity_row(moments, name, *one, level) for name, one in found.items()])


def _similarity_row(
    moments: Moments, measure: str, value: float, gradient: Array | None, null: Array, scale: Scale, level: float
) -> dict[str, Any]:
    error = float("nan") if gradient is None else moments.standard_error(gradient)
    limits = interval(value, error, moments.n_queries, level, scale)
    null_low, null_high = percentiles(null, level)
    row = {"measure": measure, **limits._asdict(), "error": error, "null_low": null_low, "null_high": null_high}
    return row | {"n": moments.n_queries}


def _all_pairs(groups: Sequence[tuple[str, bool]]) -> list[tuple[int, int]]:
    return [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups))]


def _group_pairs(
    groups: Sequence[tuple[str, bool]], first: Sequence[str], second: Sequence[str]
) -> list[tuple[int, int]]:
    """Pairs of groups of different prompts, one of `first` and one of `second`."""
    names = [prompt for prompt, _ in groups]
    return [
        (a, b)
        for a, b in _all_pairs(groups)
        if names[a] != names[b]
        and ((names[a] in first and names[b] in second) or (names[b] in first and names[a] in second))
    ]


@one_thread
def shift_report(
    states: HiddenStates,
    space: AnchorSpace,
    refusal: Probe,
    *,
    baseline: str = NO_PROMPT,
    n_null: int = 1000,
    min_cosine: float = 0.5,
    random_state: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Does each prompt move the queries as a safety prompt does: towards refusal, and not just somewhere?

    A prompt is reported as a safety shift if in both classes (1) the refusal logit rises, with its whole
    interval, and (2) the cosine of the mean shift with the refusal direction lies, with its whole interval,
    above what directions without meaning reach and above `min_cosine`. The last is a bar for the size of the
    effect beside the one for its significance: with a hundred queries, a neutral prompt that moves the states
    somewhat towards refusal (as any system message may) is significant, too.

    Directions without meaning are contrasts of the baseline states with shuffled labels (see
    `null_directions`): they have no more to do with refusal than chance allows, and yet lie where this model's
    states vary. Directions drawn evenly in all d dimensions would be too easy to beat (their cosines shrink as
    1/√d with anything), and evenly in the m dimensions of the anchor space too hard (with m = 4, one in twenty
    of them has a cosine above .88 with any vector of the space).

    The cosine's interval counts both what other queries would give for the shift and what others would have given for
    the direction, as far as the probe knows that (`Probe.refits`). Noise in the direction pulls its cosine towards 0:
    with few queries it comes out too small, never too large.

    Returns:
        One row per prompt and class: `prompt, harmful, n, norm, logit_shift, logit_low, logit_high, cosine,
        cosine_low, cosine_high, null_quantile, safety_shift` (the same for both classes of a prompt; NA if the probe
        has a problem, which `note` tells). `null_quantile`: the `level` quantile of null directions' cosines, in size.
        The limits of the logit are NaN, and there is no safety shift, where all queries move by exactly the same: that
        tells nothing of others.

    Raises:
        StatesError: as in `shifts` and `coordinates`, or only one class is present; a `level` that is not between 0 and
            1, `n_null` below 1.
    """
    check_settings(level, n_null=n_null)
    anchor_matrix(space, states)
    moved = shifts(states, baseline=baseline, layer=space.layer)
    if len(moved.classes) < 2:
        raise StatesError("A safety shift concerns harmful and harmless queries: pass states of both classes.")
    generator = np.random.default_rng(random_state)
    slope = refusal.slope(space).numpy()
    moments = moved.moments(probe_directions(space, refusal))
    cosines, logits = [], []
    for a, part in enumerate(moments.parts):
        cosines.append(interval(*cosine_along(moments, [a]), moments.n_queries, level, FISHER))
        logits.append(sample_interval(part @ slope, level))
    means = np.stack([part.mean(axis=0) for part in moments.parts])
    null = np.abs(null_directions(moved.baseline, moved.queries["harmful"], n_null, generator) @ unit(means).T)
    table = moved.table().drop(columns="mean_norm")
    table[["logit_shift", "logit_low", "logit_high"]] = logits
    table[["cosine", "cosine_low", "cosine_high"]] = cosines
    table = table.assign(null_quantile=np.quantile(null, level, axis=0))
    passes = (table["logit_low"] > 0) & (table["cosine_low"] > table["null_quantile"].clip(lower=min_cosine))
    shifted = passes.groupby(table["prompt"]).transform("all").astype("boolean")
    undecided = pd.Series(bool(refusal.problem), index=table.index)
    return table.assign(safety_shift=shifted.mask(undecided), note=refusal.problem)


def probe_directions(space: AnchorSpace, probe: Probe) -> Array:
    """[1 + n_refits, d], unit norm: the probe's direction, then those without each group of queries."""
    refits = [] if probe.refits is None else list(probe.refits)
    return unit(np.stack([replace(probe, coef=coef).slope(space).numpy() for coef in (probe.coef, *refits)]))


def cosine_along(moments: Moments, groups: Sequence[int]) -> tuple[float, float]:
    """The mean cosine of some groups' mean shifts with the first direction, and its standard error.

    The others are the first one without each group of the queries that it was fitted on. These are not the queries of
    the shifts, so the variances add: of the shifts with the direction as given, and of the direction (a jackknife).
    """
    value, *gradients = mean_direction_cosine(moments, groups, 0)
    refits = [mean_direction_cosine(moments, groups, k)[0] for k in range(1, len(moments.directions))]
    direction = float(jackknife_error(np.array(refits))) if refits else 0.0
    return value, float(np.hypot(moments.standard_error(*gradients), direction))


def null_directions(baseline: Tensor, harmful: pd.Series, n: int, generator: np.random.Generator) -> Array:
    """[n, d], unit norm: contrasts of the baseline states with shuffled labels.

    Each is the difference of the states of two random halves of the queries, centred within each class, so it follows
    the states' own covariance within a class, and knows neither the classes nor the prompts.

    Args:
        baseline: [n_queries, d].
        harmful: [n_queries], the class of each.
    """
    return unit(_signs(generator, (n, len(baseline))) @ _centred(baseline, harmful))


def _signs(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    signs: Array = generator.integers(0, 2, size=shape).astype(np.float64) * 2 - 1
    return signs


def _centred(baseline: Tensor, harmful: pd.Series) -> Array:
    """[n_queries, d]: the states less the mean of their class."""
    centred = baseline.double().numpy().copy()
    kinds = harmful.to_numpy(dtype=bool)
    for kind in (True, False):
        if (kinds == kind).any():
            centred[kinds == kind] -= centred[kinds == kind].mean(axis=0)
    return centred


def _places(index: pd.DataFrame, baseline: str) -> dict[str, NDArray[np.intp]]:
    """Prompt → row numbers of its states, in the order of the baseline's queries; the baseline first."""
    present = list(index["prompt"].unique())
    if baseline not in present or len(present) < 2:
        raise StatesError(
            f"Shifts need states under {baseline!r} and under another prompt, these have {present}: compute them with "
            "hidden_states(model, queries, prompts), or name another baseline."
        )
    names = [baseline, *(prompt for prompt in present if prompt != baseline)]
    rows = {prompt: np.flatnonzero(index["prompt"] == prompt) for prompt in names}
    order = pd.Index(index["query_id"].to_numpy()[rows[baseline]])
    return {prompt: own[_match(order, index["query_id"].to_numpy()[own], prompt)] for prompt, own in rows.items()}


def _match(order: pd.Index, queries: NDArray[Any], prompt: str) -> NDArray[np.intp]:
    here = pd.Index(queries)
    if here.has_duplicates or len(here) != len(order) or not order.isin(here).all():
        odd = list(here[here.duplicated()]) + list(order.symmetric_difference(here))
        raise StatesError(
            f"Under prompt {prompt!r} the queries differ from the baseline's (first: {odd[0]!r}): compute the same "
            "queries, once each, under every prompt."
        )
    return here.get_indexer(order)


def _label(prompt: str, harmful: bool) -> str:
    return f"{prompt} {'harmful' if harmful else 'harmless'}"


def _pairs(count: int, directions: Sequence[str]) -> list[tuple[int, int, str]]:
    """(row, row, kind) of every pair of `count` shifts, and of every shift with every direction."""
    between = [(a, b, "shifts") for a in range(count) for b in range(a + 1, count)]
    across = [
        (a, count + b, "control" if direction == RANDOM else "direction")
        for a in range(count)
        for b, direction in enumerate(directions)
    ]
    return between + across


def _checked_directions(directions: Mapping[str, Tensor], width: int) -> dict[str, Array]:
    if RANDOM in directions:
        raise StatesError(f"A direction called {RANDOM!r} is added as the control: give yours another name.")
    checked = {}
    for name, direction in directions.items():
        vector = torch.as_tensor(direction).double().numpy()
        if vector.shape != (width,) or not np.isfinite(vector).all() or not vector.any():
            raise StatesError(
                f"Direction {name!r} must be a finite vector of width {width} that is not zero, got shape "
                f"{list(vector.shape)}: use probe.direction(space) of the same model and layer."
            )
        checked[name] = unit(vector)
    return checked
