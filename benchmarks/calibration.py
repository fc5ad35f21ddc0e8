"""Do the intervals cover, and do the tests err, as often as they say? Simulations with a known truth.

    python benchmarks/calibration.py                  # 2,000 simulations per row, about an hour on one core
    python benchmarks/calibration.py --simulations 200 --only causal transfer

Shifts of three safety prompts and two controls on two classes of queries are drawn with a planted geometry (one shared
shift, separate ones, none), with noise that the prompts of a query share (the baseline's) and noise of their own, both
uneven over the dimensions. For causal tests a logistic function of the state stands in for the model, for readouts and
transfer the classes lie some gap apart; contenders and attacks are chances of refusal. Everything is printed, nothing
asserted; docs/evidence.md has the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

import drolab
from drolab import attacks, causal, claims, comparison, evidence, intervals, sweep
from drolab.errors import UnreliableWarning
from drolab.evidence import shift_products
from drolab.evidence.separability import paired_change
from drolab.evidence.shift_products import Moments
from drolab.intervals import FISHER, LOGIT, PLAIN, Placements, Scale
from drolab.probing import RANDOM, direction_cosines, fit_anchors, fit_directions, fit_probe, transfer
from drolab.types import STATE_COLUMNS, HiddenStates

SAFETY, CONTROLS = range(6), range(6, 10)
"""Groups: prompt by prompt harmful, harmless; three safety prompts, two controls."""


def means(geometry: str, d: int, size: float, generator: np.random.Generator) -> np.ndarray:
    """[10, d]: the true mean shift of every group; safety prompts of length `size`."""
    axes = np.linalg.qr(generator.normal(size=(d, 8)))[0].T
    shared = {"shared": 0.9, "weak": 0.5, "separate": 0.0, "none": 0.0}[geometry]
    found = []
    for prompt in range(3):
        common = np.sqrt(shared) * axes[0] + np.sqrt(1 - shared) * axes[1 + prompt]
        found += [size * common, 0.7 * size * common]
    found += [0.5 * size * axes[4], 0.5 * size * axes[4], 0.5 * size * axes[5], 0.5 * size * axes[5]]
    return np.array(found) * (geometry != "none")


def draw(true: np.ndarray, n: int, generator: np.random.Generator) -> Moments:
    d = true.shape[1]
    spread = np.sqrt(1 / np.arange(1, d + 1) ** 0.5)
    spread /= np.linalg.norm(spread)
    baseline = {kind: 0.7 * spread * generator.normal(size=(n, d)) for kind in (True, False)}
    classes = [group % 2 == 0 for group in range(len(true))]
    own = [baseline[kind] + 0.7 * spread * generator.normal(size=(n, d)) for kind in classes]
    return Moments(
        parts=[mean + noise for mean, noise in zip(true, own, strict=True)],
        classes=classes,
        directions=(true[:1] / max(np.linalg.norm(true[0]), 1e-12) + (true[0] == 0) / np.sqrt(d)),
    )


def measures(found: Moments) -> Iterator[tuple[str, float, float, Scale]]:
    """Name, estimate, standard error, scale."""
    pairs = [(a, b) for a in SAFETY for b in SAFETY if a < b and a // 2 != b // 2]
    across = [(a, b) for a in SAFETY for b in CONTROLS]
    for name, chosen in {"cosine, one class": [(0, 2)], "cosine, two classes": [(0, 3)], "alike": pairs}.items():
        value, gradient = shift_products.mean_cosine(found, chosen)
        yield name, value, found.standard_error(gradient), FISHER
    (alike, up), (other, down) = shift_products.mean_cosine(found, pairs), shift_products.mean_cosine(found, across)
    yield "beyond the controls", alike - other, found.standard_error(up - down), PLAIN
    value, *gradients = shift_products.direction_cosine(found, 2, 0)
    yield "cosine with a direction", value, found.standard_error(*gradients), FISHER
    value, gradient = shift_products.common_share(found, list(SAFETY))
    yield "share in 1 direction", value, found.standard_error(gradient), PLAIN


def coverage(geometry: str, d: int, n: int, size: float, simulations: int) -> dict[str, float]:
    """Measure → how often its 95 % interval holds the truth."""
    generator = np.random.default_rng([d, n, int(100 * size)])
    true = means(geometry, d, size, generator)
    exact = Moments(
        parts=[np.tile(mean, (8, 1)) for mean in true],
        classes=[g % 2 == 0 for g in range(10)],
        directions=draw(true, 4, generator).directions,
    )
    truth = {name: value for name, value, _, _ in measures(exact)}
    hits: dict[str, list[bool]] = defaultdict(list)
    for _ in range(simulations):
        for name, value, error, scale in measures(draw(true, n, generator)):
            limits = intervals.interval(value, error, 2 * n, 0.95, scale)
            hits[name].append(bool(limits.low - 1e-12 <= truth[name] <= limits.high + 1e-12))
    return {name: float(np.mean(found)) for name, found in hits.items()}


def errors(d: int, n: int, size: float, simulations: int) -> dict[str, float]:
    """Claim → how often it is called supported at 5 % (uncorrected) although the truth lies on its threshold."""
    generator = np.random.default_rng([d, n, 1])
    axes = np.linalg.qr(generator.normal(size=(d, 8)))[0].T
    # Any two safety prompts have a cosine of exactly .5, the first control has the same with each of them.
    safety = [np.sqrt(0.5) * axes[0] + np.sqrt(0.5) * axes[1 + prompt] for prompt in range(3)]
    control = np.sqrt(0.5) * axes[0] + np.sqrt(0.5) * axes[4]
    true = size * np.array([shift for shift in (*safety, control, control) for _ in range(2)])
    false: dict[str, list[bool]] = defaultdict(list)
    for _ in range(simulations):
        found = draw(true, n, generator)
        for name, value, error, _ in measures(found):
            claim = {"alike": claims.ALIKE, "beyond the controls": claims.BEYOND}.get(name)
            if claim:
                false[claim.text].append(supported(claim, value, error, 2 * n))
        rises = (generator.random(n) < 0.2) * 1.0 - (generator.random(n) < 0.2)  # no rise, in steps, mostly 0
        false[claims.HARMLESS.text].append(supported(claims.HARMLESS, rises.mean(), rises.std(ddof=1) / n**0.5, n))
    return {name: float(np.mean(found)) for name, found in false.items()}


def without_meaning(n: int, d: int, simulations: int) -> dict[str, float]:
    """How often `shift_cosines` calls a cosine unlikely (p ≤ .05) if the shifts are contrasts with shuffled labels."""
    generator = np.random.default_rng([n, d, 2])
    index = pd.DataFrame({"query_id": [f"q{i}" for i in range(2 * n)], "harmful": np.arange(2 * n) % 2 == 0})
    index = index.assign(text="", category="", split="", position=-1)
    spread = np.sqrt(1 / np.arange(1, d + 1))
    false: dict[str, list[bool]] = defaultdict(list)
    for _ in range(simulations):
        base = spread * generator.normal(size=(2 * n, d))
        directions = (generator.integers(0, 2, size=(2, 2 * n)) * 2.0 - 1) @ base / n**0.5
        moved = [base + direction + 0.1 * spread * generator.normal(size=base.shape) for direction in directions]
        prompts = [index.assign(prompt=name) for name in ("none", "one", "other")]
        states = HiddenStates(
            values=torch.tensor(np.concatenate([base, *moved]), dtype=torch.float32)[:, None],
            index=pd.concat(prompts, ignore_index=True)[list(STATE_COLUMNS)],
            layers=(1,),
            num_hidden_layers=1,
        )
        fixed = {"refusal": torch.tensor(spread * generator.normal(size=d))}
        table = evidence.shift_cosines(states, fixed, n_null=199, random_state=int(generator.integers(2**31)))
        table = table[~table["a"].str.endswith("harmless")]
        for kind, name in (("shifts", "other harmful"), ("direction", "refusal"), ("control", "random")):
            row = table[(table["kind"] == kind) & (table["b"] == name)].iloc[0]
            false[f"cosine of a shift with {'another' if kind == 'shifts' else f'a {name} direction'}"].append(
                bool(row["p"] <= 0.05)  # with 199 draws p < .05 would be one in 22, not one in 20
            )
    return {name: float(np.mean(found)) for name, found in false.items()}


def supported(claim: claims.Claim, value: float, error: float, n: int, alpha: float = 0.05) -> bool:
    row = claims.Measured(claim, value, error, n, (0.0, 0.0)).row(0.95)
    return bool(row["p_support"] < alpha)


def power(
    claim: claims.Claim, simulate: Callable[[int], claims.Measured], effect: float, simulations: int
) -> dict[str, float]:
    """What the power table promises after a pilot of 100 queries, and how often so many queries do it."""
    pilot = simulate(100)
    result = claims.Verdict(table=pd.DataFrame(), measured=(pilot,))
    n = int(claims.power_table(result, {claim.text: [effect]})["n"].iloc[0])
    runs = [simulate(n) for _ in range(simulations)]
    return {
        "promised": 0.8,
        "n": n,
        "reached": float(np.mean([supported(claim, r.estimate, r.error, r.n) for r in runs])),
    }


def powers(simulations: int) -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(5)

    def rise(n: int) -> claims.Measured:
        rises = 0.05 + 0.2 * generator.normal(size=n)
        return claims.Measured(claims.HARMLESS, rises.mean(), rises.std(ddof=1) / n**0.5, n, (0.0, 0.0))

    axes = np.linalg.qr(generator.normal(size=(64, 8)))[0].T
    safety = [np.sqrt(0.6) * axes[0] + np.sqrt(0.4) * axes[1 + prompt] for prompt in range(3)]
    true = 0.6 * np.array([shift for shift in (*safety, axes[4], axes[5]) for _ in range(2)])

    def alike(n: int) -> claims.Measured:
        found = draw(true, max(n // 2, 4), generator)
        _, value, error, _ = next(m for m in measures(found) if m[0] == "alike")
        return claims.Measured(claims.ALIKE, value, error, found.n_queries, (0.0, 0.0))

    return {
        "rise of .05, spread .2": power(claims.HARMLESS, rise, 0.05, simulations),
        "cosine of .6 against .5": power(claims.ALIKE, alike, 0.6, simulations),
    }


def divisions(labels: np.ndarray, n_splits: int, n_repeats: int, generator: np.random.Generator) -> np.ndarray:
    """[n_repeats, n]: the fold of each query, the classes spread evenly."""
    folds = np.empty((n_repeats, len(labels)), dtype=int)
    for kind in (0, 1):
        rows = np.flatnonzero(labels == kind)
        folds[:, rows] = generator.permuted(np.tile(np.arange(len(rows)) % n_splits, (n_repeats, 1)), axis=1)
    return folds


def held_out_fast(points: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Placements:
    """The placements that `separability` finds, with all regressions in one Newton iteration (the same up to 1e-6)."""
    n, d = points.shape
    features = np.column_stack([(points - points.mean(axis=0)) / points.std(axis=0), np.ones(n)])
    products = (features[:, :, None] * features[:, None]).reshape(n, -1)
    penalty, n_splits = np.append(np.ones(d), 0.0), folds.max() + 1
    train = (folds[:, None] != np.arange(n_splits)[:, None]).reshape(-1, n) * 1.0
    slopes = np.zeros((len(train), d + 1))
    for _ in range(25):
        p = 1 / (1 + np.exp(-slopes @ features.T))
        gradient = (train * (p - labels)) @ features + penalty * slopes
        curvature = ((train * p * (1 - p)) @ products).reshape(-1, d + 1, d + 1) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        slopes -= step
        if np.abs(step).max() < 1e-8:
            break
    logits = np.where(train == 0, slopes @ features.T, 0.0).reshape(len(folds), n_splits, n).sum(axis=1)
    up, down = logits[:, labels == 1], logits[:, labels == 0]
    wins = (up[:, :, None] > down[:, None]).mean(axis=0)
    return Placements(wins.mean(axis=1), wins.mean(axis=0))


def aucs(n: int, d: int, gap: float, gain: float, simulations: int) -> dict[str, float]:
    """Coverage of the AUC and its change; the truth of cross-validation is the mean of all runs."""
    generator = np.random.default_rng([n, d, int(10 * gap)])
    labels = np.repeat([1.0, 0.0], n)
    found = []
    for _ in range(simulations):
        base = generator.normal(size=(2 * n, d))
        moved = 0.8 * base + 0.6 * generator.normal(size=(2 * n, d))
        base[:, 0] += gap * (labels - 0.5)
        moved[:, 0] += (gap + gain) * (labels - 0.5)
        folds = divisions(labels, 10, 3, generator)
        before, after = (held_out_fast(points, labels, folds) for points in (base, moved))
        change = paired_change([after], before, 0.95)
        found.append((before.auc, before.error, change["change"], change["error"], change["p"]))
    auc, auc_error, change, change_error, p = np.array(found).T
    covered = {"mean": auc.mean()}
    for name, values, sizes, scale in (("AUC", auc, auc_error, LOGIT), ("change", change, change_error, PLAIN)):
        limits = [intervals.interval(v, e, 2 * n, 0.95, scale) for v, e in zip(values, sizes, strict=True)]
        covered[name] = float(np.mean([one.low <= values.mean() <= one.high for one in limits]))
    if gain == 0:
        covered["change called real"] = float(np.mean(p < 0.05))
    return covered


# --- rates of few queries -----------------------------------------------------------------------------------------


def rate_coverage(n: int, spread: str, simulations: int) -> dict[str, float]:
    """Of the mean rate of n queries with 10 replies each, by its truth; the bootstrap's alone, and the change between
    two prompts under which each query refuses as often."""
    generator, found = np.random.default_rng([n, len(spread)]), dict[str, float]()
    options: dict[str, Any] = {"n_bootstrap": 400, "level": 0.95}
    for truth in (0.01, 0.05, 0.5, 0.99):
        held: dict[str, list[bool]] = defaultdict(list)
        for run in range(simulations):
            chance = np.full(n, truth) if spread == "equal" else generator.beta(truth, 1 - truth, n)
            rates, other = generator.binomial(10, chance, (2, n)) / 10
            limits = intervals.mean_intervals(rates[:, None], random_state=run, **options)[0]
            change = intervals.mean_intervals((rates - other)[:, None], bounds=(-1, 1), random_state=run, **options)[0]
            draws = rates[generator.integers(n, size=(400, n))].mean(axis=1)
            low, high = intervals.percentiles(draws, intervals.widened(0.95, n))
            held[f"{truth}"].append(limits.low <= truth <= limits.high)
            held[f"{truth}, bootstrap alone"].append(low <= truth <= high)
            held[f"{truth}, change"].append(change.low <= 0 <= change.high)
        found |= {name: float(np.mean(hits)) for name, hits in held.items()}
    return found


# --- contenders: refusals of 5 replies per query, under a chance of its own -------------------------------------


def scores_of(chances: dict[str, np.ndarray], queries: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """As from `drolab.judge`: 5 replies to each query under each prompt, refused with these chances [n]."""
    parts = []
    for prompt, chance in chances.items():
        rate = generator.binomial(5, chance) / 5
        parts.append(
            queries[["query_id", "harmful"]].assign(
                prompt=prompt, n_samples=5, refusal_rate=rate, compliance_rate=1 - rate,
                any_refusal=rate > 0, any_compliance=rate < 1,
            )
        )  # fmt: skip
    return pd.concat(parts).set_index(["query_id", "prompt"])


def _plain_queries(n: int, harmful: np.ndarray | bool = True) -> pd.DataFrame:
    table = pd.DataFrame({"query_id": [f"q{i}" for i in range(n)], "text": [f"How to {i}?" for i in range(n)]})
    return table.assign(harmful=harmful, category="", split="test", source="")


def board_errors(n: int, gain: float, simulations: int) -> dict[str, float]:
    """Eight contenders that are the baseline under other names, on n queries of each class; with a gain the first of
    them refuses harmful queries by so much more (of what is left to refuse), and is not among those counted."""
    generator, found = np.random.default_rng([n, int(100 * gain), 7]), defaultdict[str, list[float]](list)
    queries, names = _plain_queries(2 * n, np.arange(2 * n) < n), [f"contender {i}" for i in range(8)]
    for run in range(simulations):
        chance = np.concatenate([generator.beta(0.7 * 2, 0.3 * 2, n), generator.beta(0.1 * 2, 0.9 * 2, n)])
        chances = {"baseline": chance, **dict.fromkeys(names, chance)}
        chances[names[0]] = chance + gain * (1 - chance) * queries["harmful"].to_numpy()
        scores, options = scores_of(chances, queries, generator), {"n_bootstrap": 400, "random_state": run}
        tests = comparison.paired(scores, "baseline", **options)  # type: ignore[arg-type]
        board = comparison.board(scores, "baseline", **options).set_index("prompt")["decision"]  # type: ignore[arg-type]
        null = names[1:] if gain else names
        found["any of the others decided" if gain else "any decided"].append(
            board[null].ne(comparison.NO_DIFFERENCE).any()
        )
        rows = tests[tests["prompt"].isin(null)]
        found["a row, p < .05"].append((rows["p"] < 0.05).mean())
        found["coverage, no change"].append(((rows["low"] <= 0) & (rows["high"] >= 0)).mean())
        if gain:
            (row,) = tests[(tests["prompt"] == names[0]) & (tests["group"] == "harmful")].to_dict("records")
            found["coverage, the gain"].append(row["low"] <= gain * 0.3 <= row["high"])
            found["better found"].append(board[names[0]] == comparison.BETTER)
    return {name: float(np.mean(values)) for name, values in found.items()}


def attack_errors(n: int, per_parent: int, test: str, effect: float, simulations: int) -> dict[str, float]:
    """Three attacks under three prompts. Without effect a derived query is answered with the chance of its parent; with
    one the chance is greater by that much of what is left."""
    generator, found = np.random.default_rng([n, per_parent, int(100 * effect)]), defaultdict[str, list[float]](list)
    parents = drolab.load_queries(_plain_queries(n), verbose=False)
    made = [
        attacks.derive(parents, lambda text, name=name: [f"{name} {i}: {text}" for i in range(per_parent)], name=name)
        for name in "abc"
    ]
    attacked = attacks.join(parents, *made)
    place = {query: number for number, query in enumerate(parents["query_id"])}
    of = attacked["parent"].where(attacked["parent"] != "", attacked["query_id"]).map(place).to_numpy()
    derived = (attacked["parent"] != "").to_numpy()
    many = generator.beta(0.3 * 2, 0.7 * 2, 200_000)
    more = many + effect * (1 - many)
    truth = (more - many).mean() if test == "rate" else (stats.binom.sf(2, 5, more) - stats.binom.sf(2, 5, many)).mean()
    for run in range(simulations):
        answers = generator.beta(0.3 * 2, 0.7 * 2, (3, n))
        chances = {f"prompt {i}": 1 - (one[of] + effect * (1 - one[of]) * derived) for i, one in enumerate(answers)}
        scores = scores_of(chances, attacked, generator)
        table = evidence.broken_by(scores, attacked, test=test, n_bootstrap=400, random_state=run)
        found["found, a row" if effect else "any p_holm < .05"].append(
            (table["p_holm"] < 0.05).mean() if effect else (table["p_holm"] < 0.05).any()
        )
        found["p < .05"].append((table["p"] < 0.05).mean())
        found["coverage"].append(((table["low"] <= truth) & (table["high"] >= truth)).mean())
    return {name: float(np.mean(values)) for name, values in found.items()}


def ability_coverage(n: int, mean: float, simulations: int) -> dict[str, float]:
    """Divergences of n queries, in nats a token, uneven as they are (gamma, a standard deviation of 1.4 means), on
    average `mean`: coverage, and how often ability would be called lost and kept."""
    generator, found = np.random.default_rng([n, int(100 * mean)]), defaultdict[str, list[bool]](list)
    for run in range(simulations):
        values = generator.gamma(0.5, mean / 0.5, n)
        most = max(math.log(50_000), values.max())
        (one,) = intervals.mean_intervals(values[:, None], bounds=(0.0, most), n_bootstrap=400, random_state=run)
        found["coverage"].append(one.low <= mean <= one.high)
        found["called lost"].append(one.low > evidence.ABILITY_LOST)
        found["called kept"].append(one.high < evidence.ABILITY_LOST)
    return {name: float(np.mean(values)) for name, values in found.items()}


def win_coverage(n: int, rate: float, draws: float, simulations: int) -> dict[str, float]:
    """A win rate of n instructions, of which a share are draws."""
    generator, held = np.random.default_rng([n, int(100 * rate), int(100 * draws)]), list[bool]()
    about = {"generator": "a", "reference": "b", "annotator": "c"}
    for run in range(simulations):
        win = np.where(generator.random(n) < draws, 0.5, generator.random(n) < (rate - draws / 2) / (1 - draws))
        row = evidence.win_rates(pd.DataFrame({"win": win}).assign(**about), n_bootstrap=400, random_state=run).iloc[0]
        held.append(row["low"] <= rate <= row["high"])
    return {"coverage": float(np.mean(held))}


# --- causal tests: a logistic function of the state stands in for the model -----------------------------------


def queries(n: int, d: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[2n, d] states, the classes 2 apart on the first axis, and [2n], whether harmful."""
    harmful = np.arange(2 * n) < n
    states = generator.normal(size=(2 * n, d)) / np.sqrt(np.arange(1, d + 1))
    states[:, 0] += np.where(harmful, 1.0, -1.0)
    return states, harmful


def spoken(states: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """[..., 4]: refusal, compliance, the rest and KL, as `causal` measures them."""
    refusal = 1 / (1 + np.exp(1.2 - states @ slope))
    return np.stack([refusal, 1 - refusal, 0 * refusal, 0 * refusal], axis=-1)


def dealt(states: np.ndarray, harmful: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The difference of means of states whose labels were dealt out over both classes."""
    labels = generator.permutation(harmful)
    return intervals.unit(states[labels].mean(axis=0) - states[~labels].mean(axis=0))


def causal_table(
    test: str,
    n: int,
    control: causal.Control,
    tested: str,
    generator: np.random.Generator,
    *,
    d: int = 16,
    n_random: int = 39,
) -> pd.DataFrame:
    """One run of a causal test with directions of length 1; `tested` is one of TESTED."""
    states, harmful = queries(n, d, generator)
    slope = 0.8 * generator.normal(size=d)
    slope[0] = 1.5
    drawn = causal.random_contrasts(torch.from_numpy(states), pd.Series(harmful), n_random + 1, control, generator)
    if tested == "planted":
        drawn[0] = slope / np.linalg.norm(slope) * (-1 if test == "swap" else 1)
    elif tested != "exchangeable":
        others, kinds = queries(n, d, generator)
        drawn[0] = dealt(
            others if tested == "fitted" else others - np.eye(d)[0] * np.where(kinds, 1, -1)[:, None], kinds, generator
        )
    names = [f"random {i}" if i else "tested" for i in range(len(drawn))]
    first = "shift" if test == "swap" else "direction"
    labels = [{"direction": name, "kind": RANDOM if i else first} for i, name in enumerate(names)]
    table, before = pd.DataFrame({"harmful": harmful}), spoken(states, slope)
    if test == "ablation":
        reference = states[~harmful].mean(axis=0)
        gone = [states - np.outer((states - reference) @ vector, vector) for vector in drawn]
        return causal.ablation_table(table, before, spoken(np.stack(gone), slope), labels, 0.95)
    after = spoken(states + drawn[:, None], slope)
    if test == "dose":
        return causal.dose_table(table, before, after, [row | {"dose": 1.0} for row in labels], 0.95)
    donor = states + drawn[0] + 0.1 * generator.normal(size=states.shape)
    return causal.swap_table(table, before, after, [row | {"layer": 1} for row in labels], 0.95, spoken(donor, slope))


TESTED = {
    "exchangeable": "one of the random directions",
    "fitted within": "difference of means of other queries within a class, labels dealt out",
    "fitted": "the same over both classes",
    "planted": "the direction that the model reads",
}


def causal_errors(test: str, n: int, control: causal.Control, simulations: int) -> dict[str, float]:
    """How often p ≤ .05 with 39 contrasts, over both classes, by what the tested direction is."""
    generator = np.random.default_rng([n, len(test), len(control)])
    found = {}
    for tested, name in TESTED.items():
        runs = simulations if tested != "planted" else max(simulations // 4, 10)
        tables = [causal_table(test, n, control, tested, generator) for _ in range(runs)]
        p = np.array([table.loc[table["direction"] == "tested", "p_value"] for table in tables])
        found[name] = float((p <= 0.05).mean())
    return found


def causal_coverage(n: int, d: int, simulations: int) -> dict[str, float]:
    """Of the 95 % intervals of a fixed shift: refusal, its change, and the share of the donor's effect."""
    generator = np.random.default_rng(d)
    slope, rest = 0.8 * generator.normal(size=d), 0.3 * generator.normal(size=d) / d**0.5
    slope[0] = 1.5
    shift = 0.7 * slope / np.linalg.norm(slope)

    def run(n: int) -> pd.DataFrame:
        states, harmful = queries(n, d, generator)
        donor = states + shift + rest + 0.1 * generator.normal(size=states.shape)
        rows = [{"direction": "shift", "kind": "shift", "layer": 1}]
        after = spoken((states + shift)[None], slope)
        before = spoken(states, slope)
        table = causal.swap_table(pd.DataFrame({"harmful": harmful}), before, after, rows, 0.95, spoken(donor, slope))
        return table.set_index("harmful")

    truth, covered = run(500_000).round(3), defaultdict(list)
    generator = np.random.default_rng([n, d])
    for _ in range(simulations):
        found = run(n)
        for kind, name in ((True, "harmful"), (False, "harmless")):
            for column in ("refusal", "change", "recovered"):
                low, high = found.loc[kind, f"{column}_low"], found.loc[kind, f"{column}_high"]
                covered[f"{column} of {name} ({truth.loc[kind, column]:.2f})"].append(
                    low <= truth.loc[kind, column] <= high
                )
    return {name: float(np.mean(held)) for name, held in covered.items()}


# --- what held-out predictions say ----------------------------------------------------------------------------


def classes(n: int, d: int, gap: float, prompts: tuple[str, ...], generator: np.random.Generator) -> HiddenStates:
    """n + n queries in five categories, some noise of the query, some of the prompt, the classes `gap` apart."""
    numbers = np.tile(np.arange(2 * n), len(prompts))
    index = pd.DataFrame({"query_id": numbers, "text": numbers}).astype(str)
    index = index.assign(prompt=np.repeat(prompts, 2 * n), position=-1, harmful=numbers < n, split="")
    spread = np.arange(1, d + 1) ** -0.25
    values = 0.8 * np.tile(generator.normal(size=(2 * n, d)), (len(prompts), 1)) + 0.6 * generator.normal(
        size=(len(index), d)
    )
    values *= spread
    values[:, 0] += gap * (index["harmful"] - 0.5)
    index["category"] = numbers % 5
    return HiddenStates(
        values=torch.tensor(values, dtype=torch.float32)[:, None],
        index=index[list(STATE_COLUMNS)],
        layers=(1,),
        num_hidden_layers=1,
    )


def transfer_coverage(across: str, method: str, n: int, d: int, gap: float, simulations: int) -> dict[str, float]:
    """Of the AUC of `transfer`, one test and several together; the truth is the mean of all runs."""
    generator = np.random.default_rng([n, d, int(10 * gap)])
    tables = []
    for run in range(simulations):
        states = classes(n, d, gap, ("none", "long"), generator)
        options = {"methods": [method], "n_shuffles": 0, "n_bootstrap": 400, "random_state": run}
        if across == "states":
            options["test_states"] = other = classes(n, d, gap, ("none", "long"), generator)
            other.index[["query_id", "text"]] = "t" + other.index[["query_id", "text"]]
            options["test_target"] = other.index["harmful"].to_numpy()
        else:
            options["across"] = across
        tables.append(transfer(states, states.index["harmful"].to_numpy(), **options))
    table = pd.concat(tables, ignore_index=True)
    pooled = {"category": table["tested_on"] == "each category", "prompt": table["fitted_on"] != table["tested_on"]}
    return {"AUC": table.loc[pooled[across], "auc"].mean()} | {
        name: _held(table[chosen])
        for name, chosen in (("together", pooled[across]), ("one test", ~pooled[across]))
        if chosen.any()
    }


def _held(table: pd.DataFrame) -> float:
    truth = table.groupby(["fitted_on", "tested_on"])["auc"].transform("mean")
    return float(((table["low"] <= truth) & (truth <= table["high"])).mean())


def direction_coverage(n: int, d: int, gap: float, simulations: int) -> dict[str, float]:
    """Of the cosine of two directions in `direction_cosines`; the truth is the mean of all runs."""
    generator, rows = np.random.default_rng([n, d, int(10 * gap)]), []
    for run in range(simulations):
        states = classes(n, d, gap, ("none",), generator)
        labels = states.index["harmful"].to_numpy()
        found = fit_directions(states, labels, positive="harmful", methods=["mean_difference", "leace"])
        table = direction_cosines(found, states, {"harmful": labels}, n_groups=20, random_state=run)
        rows.append(table.loc[0, ["cosine", "low", "high"]].astype(float))
    cosine, low, high = np.array(rows).T
    return {"cosine": cosine.mean(), "held": ((low <= cosine.mean()) & (cosine.mean() <= high)).mean()}


def readout_coverage(n: int, d: int, gap: float, simulations: int) -> dict[str, float]:
    """Of the readouts of `sweep`; the truth is the mean of all runs."""
    generator = np.random.default_rng([n, d, int(10 * gap)])
    prompts = ("none", "long")
    found, plan = [], None
    for _ in range(simulations):
        states = classes(n, d, gap, prompts, generator)
        lean = states.values[:, 0, :2].numpy() @ [1.0, 1.0 if gap else 0.0] + 0.5 * (states.index["prompt"] == "long")
        rates = generator.binomial(10, 1 / (1 + np.exp(-lean))) / 10
        if gap == 0:  # nothing to read: rates dealt out to the queries
            rates = rates.reshape(2, -1)[:, generator.permutation(2 * n)].ravel()
        if plan is None:
            pairs = pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])
            plan = sweep.Plan.make(states, pd.Series(rates, index=pairs), (), "none", 10, 1, 0)
        refusal = replace(plan.refusal, values=np.stack([rates.reshape(2, -1)] * 2))
        own = replace(plan, refusal=refusal, seed=int(generator.integers(2**31)))
        points = states.values[:, 0].double().numpy()
        read = sweep.held_out(points[: 2 * n], own.harm), sweep.held_out(points, refusal)
        found.append(sweep.readout_measures(*read, own, 400, 0.95))
    result = {}
    for name in ("harmfulness", "refusal", "refusal within class"):
        value, low, high = np.array([one[name] for one in found]).T
        result |= {name: value.mean(), f"{name}, held": ((low <= value.mean()) & (value.mean() <= high)).mean()}
    return result


# --- probes of noise ------------------------------------------------------------------------------------------


def probe_gate(kind: str, n: int, simulations: int) -> dict[str, float]:
    """How often a refusal probe counts as one that reads something, and the claim that rests on it is decided.

    What decides on refusals: "noise", nothing that the states hold; "rare", likewise, one reply in fifty; "prompt", the
    prompt alone; "weak" and "strong", an axis in which queries of each class differ.
    """
    generator = np.random.default_rng([n, len(kind)])
    prompts, passed, decided = ("none", "long", "short"), 0, 0
    for run in range(simulations):
        seen, new = (classes(n, 32, 2.0, prompts, generator) for _ in range(2))
        for states in (seen, new):
            states.values[np.flatnonzero(states.index["prompt"] != "none"), 0, 2] += 3.0
        slope = {"weak": 0.5, "strong": 2.0}.get(kind, 0.0)
        lean = {"noise": -1.5, "rare": -4.0}.get(kind, -1.0) + slope * seen.values[:, 0, 1].double().numpy()
        lean += 1.0 * (kind == "prompt") * (seen.index["prompt"] != "none").to_numpy()
        rates = generator.binomial(10, 1 / (1 + np.exp(-lean))) / 10
        if np.ptp(rates) == 0:  # fit_probe refuses it
            continue
        space = fit_anchors(seen, n_components=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWarning)
            probe = fit_probe(space, seen, rates, positive="refuses", random_state=run)
        if probe.problem:
            continue
        passed += 1
        scores = new.index.assign(refusal_rate=0.0).set_index(["query_id", "prompt"])
        options = {"safety": ["long", "short"], "space": space, "refusal": probe, "n_null": 2}
        table = claims.verdict(new, scores, **options).table.set_index("claim")
        decided += table.loc[claims.ALONG.text, "verdict"] in (claims.SUPPORTED, claims.NOT_SUPPORTED)
    return {"passed": passed / simulations, "claim decided": decided / simulations}


PLANTED = (
    *(("shared", 64, 20, 1.0), ("shared", 64, 100, 1.0), ("shared", 256, 100, 0.5), ("shared", 8, 50, 2.0)),
    *(("weak", 64, 50, 1.0), ("weak", 256, 50, 0.5), ("separate", 64, 50, 1.0), ("separate", 256, 100, 0.5)),
)
TABLES: dict[str, tuple[str, Callable[[int], dict[str, dict[str, float]]]]] = {
    "shifts": (
        "coverage of 95 % intervals",
        lambda count: {
            f"{geometry}, d {d}, n {n} + {n}, shift/noise {size}": coverage(geometry, d, n, size, count)
            for geometry, d, n, size in PLANTED
        },
    ),
    "claims": (
        "false support at 5 %",
        lambda count: {
            f"d {d}, n {n} + {n}, shift/noise {size}": errors(d, n, size, count)
            for d, n, size in ((64, 20, 1.0), (64, 100, 1.0), (256, 50, 0.5), (8, 50, 2.0))
        },
    ),
    "null": (
        "p ≤ .05 without meaning",
        lambda count: {f"n {n} + {n}, d {d}": without_meaning(n, d, count) for n, d in ((20, 32), (60, 64))},
    ),
    "power": ("power", powers),
    "auc": (
        "AUC, coverage of 95 % intervals",
        lambda count: {
            f"n {n} + {n}, {d} features, gap {gap}, gain {gain}": aucs(n, d, gap, gain, count)
            for n, d, gap, gain in (
                *((n, 4, gap, 0.0) for gap in (1.5, 3.0) for n in (25, 50, 100)),
                *((100, 4, 3.0, 0.3), (70, 6, 2.2, 0.0), (100, 64, 3.0, 0.0)),
            )
        },
    ),
    "probes": (
        "probes that count as reading refusal, and decided claims that the shift is along it",
        lambda count: {
            f"{kind}, n {n} + {n}": probe_gate(kind, n, count if kind in ("noise", "rare", "prompt") else count // 20)
            for kind in ("noise", "rare", "prompt", "weak", "strong")
            for n in (30, 56)
        },
    ),
    "rates": (
        "mean rate of 10 replies per query, coverage of 95 % intervals",
        lambda count: {
            f"n {n}, {spread} queries": rate_coverage(n, spread, count)
            for spread in ("equal", "different")
            for n in (2, 3, 5, 10, 30)
        },
    ),
    "board": (
        "the board: eight contenders, refusals of harmful and of harmless queries",
        lambda count: {
            f"n {n} + {n}, gain {gain}": board_errors(n, gain, count // 4)
            for n, gain in ((20, 0.0), (70, 0.0), (200, 0.0), (70, 0.5))
        },
    ),
    "attacks": (
        "attacks: three under three prompts",
        lambda count: {
            f"{test}, n {n}, {many} of each, effect {effect}": attack_errors(n, many, test, effect, count // 4)
            for test in ("majority", "rate")
            for n, many, effect in ((20, 1, 0.0), (70, 1, 0.0), (70, 3, 0.0), (70, 1, 0.3))
        },
    ),
    "ability": (
        "ability: the mean divergence of a token, and win rates",
        lambda count: {
            **{
                f"divergence, n {n}, {mean:.2f} nats": ability_coverage(n, mean, count)
                for n in (20, 70, 200)
                for mean in (0.05, evidence.ABILITY_LOST, 1.4)
            },
            **{
                f"win rate, n {n}, {rate}, draws {draws}": win_coverage(n, rate, draws, count)
                for n, rate, draws in ((50, 0.5, 0.0), (50, 0.9, 0.0), (50, 0.5, 0.2), (200, 0.55, 0.1))
            },
        },
    ),
    "causal": (
        "causal tests, p ≤ .05",
        lambda count: {
            f"{control}: {test}, n {n} + {n}": causal_errors(test, n, control, count)
            for control in ("contrasts", "dealt")
            for test, n in (("dose", 20), ("ablation", 20), ("swap", 20), ("ablation", 100), ("swap", 100))
        },
    ),
    "effects": (
        "causal effects, coverage of 95 % intervals",
        lambda count: {
            f"n {n} + {n}, d {d}": causal_coverage(n, d, count) for n, d in ((20, 16), (50, 16), (110, 16), (30, 40))
        },
    ),
    "transfer": (
        "transfer, coverage of 95 % intervals",
        lambda count: {
            f"{across}, {method}, n {n} + {n}, d {d}, gap {gap}": transfer_coverage(across, method, n, d, gap, count)
            for across, method, n, d, gap in (
                ("category", "mean_difference", 40, 16, 0.0),
                ("category", "mean_difference", 40, 16, 1.0),
                ("category", "leace", 40, 32, 2.0),
                ("prompt", "mean_difference", 40, 16, 1.0),
            )
        },
    ),
    "directions": (
        "cosine of the difference of means with LEACE, coverage of 95 % intervals",
        lambda count: {
            f"n {n} + {n}, d {d}, gap {gap}": direction_coverage(n, d, gap, count)
            for n, d, gap in ((40, 16, 1.0), (100, 64, 2.0))
        },
    ),
    "readouts": (
        "readouts of the sweep, coverage of 95 % intervals",
        lambda count: {
            f"n {n} + {n}, d {d}, gap {gap}": readout_coverage(n, d, gap, count)
            for n, d, gap in ((20, 16, 1.0), (50, 64, 0.0), (50, 64, 2.0), (110, 128, 2.0))
        },
    ),
}
"""Name → title and rows, from the number of simulations."""


def main() -> None:
    pd.set_option("display.width", 200, "display.max_columns", 20)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=sorted(TABLES), default=list(TABLES))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    start = time.perf_counter()
    for name in arguments.only:
        title, table = TABLES[name]
        results[title] = table(arguments.simulations)
        print(f"\n## {title}\n\n{pd.DataFrame(results[title]).T.round(3).to_string()}", flush=True)
    print(f"\n{arguments.simulations} simulations per row, {time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
