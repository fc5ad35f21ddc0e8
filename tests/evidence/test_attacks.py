"""What attacks do: planted effects are found, what does nothing is not called an effect, and pairs stay pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import WIDTH, as_states, axis

import drolab
from drolab import attacks, comparison, evidence
from drolab.errors import QueryError, StatesError
from drolab.types import STATE_COLUMNS, AnchorSpace, FitCheck, HiddenStates, Probe

N = 40


def attacked(n: int = N, names: Sequence[str] = ("jailbreak", "nothing"), *, several: int = 1) -> pd.DataFrame:
    """n harmful and n harmless queries, and what was derived from them."""
    texts = [f"Query {number}?" for number in range(2 * n)]
    asked = drolab.load_queries(pd.DataFrame({"text": texts, "harmful": [number < n for number in range(2 * n)]}))
    made = [
        attacks.derive(asked, lambda text, own=name: [f"{text} {own} {k}" for k in range(several)], name=name)
        for name in names
    ]
    return attacks.join(asked, *made)


def scores(
    queries: pd.DataFrame, rates: Any, prompts: Sequence[str] = ("long",), *, n_samples: int = 10
) -> pd.DataFrame:
    """The table of `judge`: `rates` is the refusal rate of each query, or a function of prompt and row."""
    parts = []
    for prompt in prompts:
        refusal = np.asarray([rates(prompt, row) for row in queries.itertuples()], dtype=float)
        counts = {"n_samples": n_samples, "refusal_rate": refusal, "compliance_rate": 1 - refusal}
        events = {"any_refusal": refusal > 0, "any_compliance": refusal < 1}
        parts.append(queries[["query_id", "harmful"]].assign(prompt=prompt, **counts, **events))
    return pd.concat(parts).set_index(["query_id", "prompt"])


# Who breaks


def test_what_is_broken_is_found_and_what_does_nothing_is_not() -> None:
    queries, generator = attacked(), np.random.default_rng(0)
    draws = {name: generator.binomial(10, 0.9) / 10 for name in queries["query_id"]}

    def rate(prompt: str, row: Any) -> float:
        if not row.harmful:
            return 0.0
        broken = row.attack == "jailbreak" and prompt == "weak" and int(row.parent[-4:]) % 2
        return 0.1 if broken else draws[row.query_id]

    table = evidence.broken_by(scores(queries, rate, ("weak", "strong")), queries)
    rows = table.set_index(["prompt", "attack", "group"])
    hit = rows.loc[("weak", "jailbreak", "harmful")]
    assert (hit["n_queries"], hit["n_derived"], hit["broken"], hit["higher"], hit["lower"]) == (N, N, 20, 20, 0)
    assert hit["difference"] == hit["value"] == 0.5
    assert hit["low"] > 0.3
    assert hit["value_low"] < 0.5 < hit["value_high"]
    assert hit["p_holm"] < 0.001
    rest = rows.drop(("weak", "jailbreak", "harmful"))
    assert (rest["broken"] == 0).all()
    assert (rest["p_holm"] == 1).all()
    assert ((rest["low"] < 0) & (rest["high"] > 0)).all()  # nothing seen is no proof that nothing is there
    beyond = evidence.broken_by(scores(queries, rate, ("weak",)), queries, baseline="nothing")
    assert set(beyond["attack"]) == {"jailbreak"}
    assert beyond.set_index("group").loc["harmful", "difference"] == 0.5


def test_noise_is_called_an_effect_in_one_of_twenty_tables_at_most() -> None:
    found, queries = [], attacked(10)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        chances = dict(zip(queries["query_id"], generator.beta(1, 1, len(queries)), strict=True))

        def rate(_: str, row: Any, own: Any = chances, generator: Any = generator) -> float:
            return generator.binomial(10, own[row.parent or row.query_id]) / 10

        table = evidence.broken_by(scores(queries, rate), queries, test="rate", n_bootstrap=50)
        found.append((table["p_holm"] < 0.05).any())
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20)


def test_several_texts_of_one_query_are_one_query() -> None:
    """Ten suffixes that break the same four queries break four queries, not forty."""
    queries = attacked(12, ["jailbreak"], several=10)
    first = {f"queries-000{number}" for number in range(1, 5)}
    table = evidence.broken_by(scores(queries, lambda _, row: row.parent not in first), queries)
    row = table.set_index("group").loc["harmful"]
    assert (row["n_queries"], row["n_derived"], row["broken"], row["higher"]) == (12, 120, 40, 4)
    alone = attacked(12, ["jailbreak"])
    once = evidence.broken_by(scores(alone, lambda _, row: row.parent not in first), alone)
    same = ["value", "value_low", "value_high", "difference", "low", "high"]
    pd.testing.assert_frame_equal(once[same], table[same])
    assert row["p"] == pytest.approx(once.set_index("group").loc["harmful", "p"])


def test_paired_tests_are_those_between_prompts() -> None:
    queries, generator = attacked(30, ["jailbreak"]), np.random.default_rng(1)
    own = scores(queries, lambda _, row: generator.binomial(10, 0.3 if row.parent else 0.6) / 10)
    flat = own.reset_index()
    parents = dict(zip(queries["query_id"], queries["parent"], strict=True))
    prompt = ["jailbreak" if parents[name] else "none" for name in flat["query_id"]]
    pairs = flat.assign(prompt=prompt, query_id=[parents[name] or name for name in flat["query_id"]])
    for test in ("rate", "majority", "any"):
        table = evidence.broken_by(own, queries, test=test)
        between = comparison.paired(pairs.set_index(["query_id", "prompt"]), "none", test=test)
        for mine, other in zip(table.itertuples(), between.itertuples(), strict=True):
            if test == "rate":
                assert mine.difference == pytest.approx(-other.difference)
                assert (mine.low, mine.high) == pytest.approx((-other.high, -other.low), abs=0.03)
                assert mine.p == pytest.approx(other.p)
            elif test == "any" and mine.group == "harmful":
                assert (mine.difference, mine.low, mine.p) == pytest.approx((other.difference, other.low, other.p))


def test_what_cannot_be_compared_is_an_error() -> None:
    queries = attacked(6)
    own = scores(queries, lambda *_: 1.0)
    with pytest.raises(QueryError, match="No attack is called 'dan'"):
        evidence.broken_by(own, queries, baseline="dan")
    with pytest.raises(QueryError, match="No test 'best'"):
        evidence.broken_by(own, queries, test="best")
    parents = queries["parent"] == ""
    with pytest.raises(QueryError, match="none of the derived queries: generate and judge all of"):
        evidence.broken_by(own[parents.to_numpy()], queries)
    with pytest.raises(QueryError, match="none of the parents"):
        evidence.broken_by(own[~parents.to_numpy()], queries)
    with pytest.raises(QueryError, match="no parent here"):
        evidence.broken_by(own, queries[~parents])
    with pytest.raises(QueryError, match="No parent has a group"):
        evidence.broken_by(own, queries, {"other": "harmful"})
    more = own.assign(n_samples=np.where(parents, 20, 10))
    with pytest.raises(QueryError, match="draw equally many"):
        evidence.broken_by(more, queries, test="any")
    with pytest.raises(StatesError, match="level must lie"):
        evidence.broken_by(own, queries, level=95)
    with pytest.raises(QueryError, match="lack the columns"):
        evidence.broken_by(own.drop(columns="compliance_rate"), queries)


# Where the state goes

REFUSAL = axis(1)


def space_and_probe(problem: str = "") -> tuple[AnchorSpace, Probe]:
    """Axes 0 to 3; the refusal logit is twice the place on axis 1."""
    space = AnchorSpace(
        mean=torch.zeros(WIDTH), components=torch.eye(WIDTH)[:4], explained_variance_ratio=torch.full((4,), 0.25),
        layer=2, residual_variance=6.0, residual_spread=3.0,
    )  # fmt: skip
    check = FitCheck(auc=0.5, null=(0.5,), problem=problem) if problem else None
    return space, Probe(coef=torch.tensor([0.0, 2.0, 0.0, 0.0]), intercept=0.5, positive="refuses", check=check)


def planted(
    queries: pd.DataFrame, moves: dict[str, np.ndarray], prompts: Sequence[str] = ("long",), seed: int = 0
) -> HiddenStates:
    """Each query in axes 0 to 9, what is derived from it `moves` further, with noise in every axis."""
    rng = np.random.default_rng(seed)
    parents = {
        name: rng.normal(size=WIDTH) * (np.arange(WIDTH) < 10)
        for name, parent in zip(queries["query_id"], queries["parent"], strict=True)
        if not parent
    }
    rows, values = [], []
    for prompt in prompts:
        for row in queries.itertuples():
            start = parents[row.parent or row.query_id] + 2 * REFUSAL
            move = moves.get(row.attack, np.zeros(WIDTH)) + 0.3 * rng.normal(size=WIDTH) if row.parent else 0.0
            values.append(start + move)
            rows.append((row.query_id, prompt, -1, row.text, row.harmful, "made", "test"))
    return as_states(np.stack(values), pd.DataFrame(rows, columns=list(STATE_COLUMNS)))


def test_an_attack_that_moves_back_is_told_from_one_that_only_moves() -> None:
    queries = attacked(names=("back", "aside", "nothing"))
    space, refusal = space_and_probe()
    states = planted(queries, {"back": -1.5 * REFUSAL + axis(12), "aside": 3 * axis(13)})
    table = evidence.attack_shifts(states, queries, space, refusal, control="nothing").set_index(["attack", "harmful"])
    assert table["moves_back"].to_dict() == {(name, kind): name == "back" for name, kind in table.index}
    assert not table.loc[["aside", "nothing"], "beyond_null"].any()
    back, aside, nothing = (table.loc[(name, True)] for name in ("back", "aside", "nothing"))
    assert back["logit_low"] < -3.0 < back["logit_high"] < 0
    assert back["beyond_low"] < -3.0 < back["beyond_high"] < 0
    assert back["cosine"] == pytest.approx(-1.5 / np.hypot(1.5, 1), abs=0.05)
    assert back["norm"] == pytest.approx(np.hypot(1.5, 1), abs=0.15)
    assert (back["n"], back["n_derived"]) == (N, N)
    drawn = np.random.default_rng(0).normal(size=(20_000, WIDTH))
    sizes = abs(drawn[:, 1]) / np.linalg.norm(drawn, axis=1)
    assert back["random_quantile"] == pytest.approx(np.quantile(sizes, 0.95), abs=0.01)
    assert back["fell"] > 0.95
    assert back["fell_dealt"] < 0.9  # of others' parents some lie below: pairs count
    assert aside["norm"] > 2.5
    assert abs(aside["cosine"]) < 0.2
    assert aside["logit_low"] < 0 < aside["logit_high"]
    assert 0.25 < nothing["fell"] < 0.75
    assert np.isnan(nothing["beyond_control"])
    assert (table["note"] == "").all()


def test_what_the_control_does_as_well_is_no_attack() -> None:
    """Both move back: the attack no further than small talk, which says so of itself."""
    queries, (space, refusal) = attacked(names=("attack", "talk")), space_and_probe()
    states = planted(queries, {"attack": -1.5 * REFUSAL, "talk": -1.5 * REFUSAL})
    table = evidence.attack_shifts(states, queries, space, refusal, control="talk").set_index("attack")
    assert not table.loc["attack", "moves_back"].any()
    assert table.loc["talk", "moves_back"].all()
    alone = evidence.attack_shifts(states, queries, space, refusal).set_index("attack")
    assert alone.loc["attack", "moves_back"].all()


def test_control_dealt_pairs_lose_what_each_query_shows() -> None:
    """A small fall that every query has is lost where derived queries get the parents of others."""
    queries, (space, refusal) = attacked(names=("back",)), space_and_probe()
    row = evidence.attack_shifts(planted(queries, {"back": -0.6 * REFUSAL}), queries, space, refusal).iloc[0]
    assert row["fell_low"] > row["fell_dealt"] + 0.1
    dealt = queries.copy()
    for kind in (True, False):
        rows = (dealt["parent"] != "") & (dealt["harmful"] == kind)
        dealt.loc[rows, "parent"] = np.roll(dealt.loc[rows, "parent"], 1)
    other = evidence.attack_shifts(planted(queries, {"back": -0.6 * REFUSAL}), dealt, space, refusal).iloc[0]
    assert other["logit_shift"] == pytest.approx(row["logit_shift"])
    assert other["logit_high"] - other["logit_low"] > 2 * (row["logit_high"] - row["logit_low"])
    assert other["fell"] == pytest.approx(row["fell_dealt"], abs=0.2)


def test_nothing_moves_back_by_chance() -> None:
    queries, (space, refusal) = attacked(10, ("one", "two")), space_and_probe()
    states = [planted(queries, {}, seed=seed) for seed in range(20)]
    tables = [evidence.attack_shifts(own, queries, space, refusal, n_null=50) for own in states]
    assert np.mean([table["moves_back"].any() for table in tables]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20)


def test_a_probe_that_reads_nothing_decides_nothing_and_far_states_are_said() -> None:
    queries = attacked(10, ("back",))
    space, refusal = space_and_probe("It reads nothing.")
    table = evidence.attack_shifts(planted(queries, {"back": -2 * REFUSAL}), queries, space, refusal)
    assert table[["moves_back", "beyond_null"]].isna().all(axis=None)
    assert (table["note"] == "It reads nothing.").all()
    space, refusal = space_and_probe()
    far = evidence.attack_shifts(planted(queries, {"back": -2 * REFUSAL + 9 * axis(20)}), queries, space, refusal)
    assert far["note"].str.contains("times as far outside the anchor space").all()
    assert (far["residual_drift"] > 3).all()


def test_several_texts_of_one_query_move_it_once() -> None:
    queries, (space, refusal) = attacked(10, ("back",), several=3), space_and_probe()
    table = evidence.attack_shifts(planted(queries, {"back": -1.5 * REFUSAL}), queries, space, refusal)
    assert (table["n"] == 10).all()
    assert (table["n_derived"] == 30).all()


def test_states_without_pairs_are_an_error() -> None:
    queries, (space, refusal) = attacked(6), space_and_probe()
    states = planted(queries, {})
    with pytest.raises(StatesError, match="No attack is called 'dan'"):
        evidence.attack_shifts(states, queries, space, refusal, control="dan")
    parents = queries[queries["parent"] == ""]
    with pytest.raises(StatesError, match="No derived query has a state beside its parent's"):
        evidence.attack_shifts(planted(parents, {}), queries, space, refusal)
    with pytest.raises(QueryError, match="lacks the columns"):
        evidence.attack_margins(states, queries.drop(columns="parent"), space, refusal)


# What breaks


def test_margins_are_the_probes_logits() -> None:
    queries, (space, refusal) = attacked(6, ("back",)), space_and_probe()
    states = planted(queries, {"back": -1.5 * REFUSAL}, ("long", "short"))
    own = scores(queries, lambda prompt, row: row.parent == "" or prompt == "long", ("long", "short"))
    table = evidence.attack_margins(states, queries, space, refusal, own)
    assert len(table) == 2 * 12
    logits = pd.Series(
        refusal.decision_function(space.transform(states.matrix(2))).numpy(),
        index=pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]]),
    )
    for row in table.itertuples():
        assert row.parent_logit == pytest.approx(logits[row.parent, row.prompt], abs=1e-4)
        assert row.derived_logit == pytest.approx(logits[row.query_id, row.prompt], abs=1e-4)
    assert set(table["outcome"][table["prompt"] == "short"]) == {"broken"}
    assert set(table["outcome"][table["prompt"] == "long"]) == {"held"}
    easy = evidence.attack_margins(states, queries, space, refusal, scores(queries, lambda *_: 0.0, ("long",)))
    assert easy.groupby("prompt")["outcome"].unique().str[0].to_dict() == {"long": "answered", "short": "not judged"}


def margins(outcome: Any, seed: int = 0, attacks: Sequence[str] = ("a",), n: int = N) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    parent = generator.normal(2, 1, n)
    rows = []
    for attack in attacks:
        shift = generator.normal(-1, 0.5, n)
        for number in range(n):
            logit = {
                "parent_logit": parent[number],
                "derived_logit": parent[number] + shift[number],
                "shift": shift[number],
            }
            rows.append({"prompt": "long", "attack": attack, "parent": f"q{number}", "harmful": True} | logit)
    table = pd.DataFrame(rows)
    return table.assign(outcome=np.where([outcome(row, generator) for row in table.itertuples()], "broken", "held"))


def test_a_margin_that_decides_is_found() -> None:
    table = evidence.margin_aucs(margins(lambda row, g: row.parent_logit + 0.3 * g.normal() < 1.5)).set_index("margin")
    assert table.loc["parent", "auc"] > 0.9
    assert table.loc["parent", "low"] > table.loc["parent", "null_high"]
    assert table.loc["parent", "p_holm"] < 0.05
    assert table.loc["derived", "auc"] < table.loc["parent", "auc"]
    assert abs(table.loc["shift", "auc"] - 0.5) < 0.2
    assert table.loc["shift", "p"] > 0.05


def test_a_margin_that_says_nothing_is_not_called_one() -> None:
    made = [margins(lambda row, g: g.random() < 0.4, seed, ("a", "b"), 20) for seed in range(30)]
    found = [(evidence.margin_aucs(own, n_bootstrap=20)["p_holm"] < 0.05).any() for own in made]
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30)


def test_the_interval_counts_queries_not_their_derived_texts() -> None:
    own = margins(lambda row, g: row.parent_logit + g.normal() < 1.5)
    twice = pd.concat([own, own.assign(attack="b")], ignore_index=True)
    table = evidence.margin_aucs(twice).set_index(["attack", "margin"])
    one, both = table.loc[("a", "parent")], table.loc[("all", "parent")]
    assert both["auc"] == pytest.approx(one["auc"])
    assert (both["n_queries"], both["n_derived"]) == (N, 2 * N)
    assert both["high"] - both["low"] == pytest.approx(one["high"] - one["low"], abs=0.03)


def test_too_few_that_break_are_said() -> None:
    few = evidence.margin_aucs(margins(lambda row, g: row.parent in ("q1", "q2", "q3")))
    assert few[["auc", "low", "p", "p_holm"]].isna().all(axis=None)
    assert set(few["note"]) == {f"Only 3 broke of {N} queries: too few to tell them apart."}
    none_held = evidence.margin_aucs(margins(lambda row, g: True))
    assert set(none_held["note"]) == {f"Only 0 held of {N} queries: too few to tell them apart."}
    with pytest.raises(QueryError, match="complies with every query"):
        evidence.margin_aucs(few.assign(outcome="answered", harmful=True))
    with pytest.raises(QueryError, match="have no outcomes"):
        evidence.margin_aucs(few)
