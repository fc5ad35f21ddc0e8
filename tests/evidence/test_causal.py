"""Causal tests: a planted direction is found and a random one is not, on models where the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from torch import Tensor

import drolab
from drolab.errors import QueryError, StatesError
from drolab.evidence import rate_interval, shifts
from drolab.evidence.causal import (
    UNMODIFIED,
    Control,
    ablation,
    ablation_table,
    dose_response,
    dose_table,
    effect_table,
    swap,
    swap_table,
)
from drolab.inference import first_token_probabilities, hidden_states
from drolab.judges import FirstTokenJudge
from drolab.models import Ablate, ChatModel, steered, wrap
from drolab.probing import RANDOM, Direction
from drolab.store import Store
from drolab.types import SafetyPrompt

NONE = SafetyPrompt(name="none", text="")
CARE = SafetyPrompt(name="care", text="Be careful!!!!!!!!")
SETS = ("anchors", "heldout")
WIDTH, REFUSING = 32, 40
"""Width of the tiny model, and the one token with which it refuses."""


def queries(n_per_class: int = 12) -> pd.DataFrame:
    verbs = ["paint", "boil", "sing", "move", "fold", "clean", "open", "close", "draw", "mend", "wash", "plant"]
    texts = [
        f"How to {verb} {thing}{'!' * (n % 4)}"
        for thing in ("a box", "it")
        for n, verb in enumerate(verbs[:n_per_class])
    ]
    ids = [f"q{number}" for number in range(len(texts))]
    table = pd.DataFrame({"query_id": ids, "text": texts, "harmful": [n < n_per_class for n in range(len(texts))]})
    return table.assign(category="any", split="test", source="test").set_axis(ids)


QUERIES = queries()
JUDGE = FirstTokenJudge(
    tokens=torch.arange(260),
    refusal_rate=(torch.arange(260) == REFUSING).float(),
    counts=torch.ones(260, dtype=torch.long),
)


@dataclass(frozen=True)
class Planted:
    """A tiny model that says REFUSING as far as its last state lies along one direction."""

    model: ChatModel
    direction: Tensor
    """[d], length one."""

    def random(self, seed: int = 5) -> Tensor:
        """[d], length one, orthogonal to the planted one."""
        other = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        other = other - (other @ self.direction) * self.direction
        return other / other.norm()


@pytest.fixture(scope="module")
def planted() -> Planted:
    """The head reads the direction for REFUSING alone, and the first block writes it for every "!" in the chat."""
    llama = random_llama(seed=3)
    direction, mark = torch.linalg.qr(torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(7)))[0].T
    with torch.no_grad():
        for block in llama.model.layers:  # write little, so that what is there or added reaches the head
            block.mlp.down_proj.weight *= 0.2
            block.self_attn.o_proj.weight *= 0.2
        attention = llama.model.layers[0].self_attn
        attention.q_proj.weight *= 0.0  # every token looks at all before it alike
        attention.v_proj.weight[0] = mark
        attention.o_proj.weight[:, 0] = 3.0 * direction
        embeddings = llama.get_input_embeddings().weight
        embeddings[byte_tokenizer()("!")["input_ids"]] += 20.0 * mark
        embeddings[byte_tokenizer()("\n")["input_ids"]] += 2.0 * direction  # with which every chat ends
        head = llama.lm_head.weight
        head *= 0.3
        head -= (head @ direction)[:, None] * direction
        head[REFUSING] = 3.0 * direction
    return Planted(wrap(llama, byte_tokenizer(), name="planted", chat_template="chatml"), direction)


def small(**changed: object) -> dict:
    return {"n_random": 39, "progress": False, **changed}


def rows(table: pd.DataFrame, direction: str, **where: object) -> pd.DataFrame:
    chosen = table["direction"] == direction
    for column, value in where.items():
        chosen &= table[column] == value
    return table[chosen]


def dosed(planted: Planted, directions: dict[str, Tensor], **changed: object) -> pd.DataFrame:
    given = {"layer": 1, "unit": 3.0, "doses": (-1.0, 0.0, 1.0, 2.0)} | small(**changed)
    return dose_response(planted.model, QUERIES, NONE, JUDGE, directions, **given)


# --- what is planted is found, and what is random is not ---------------------------------------------------


@pytest.mark.parametrize(("positions", "control"), [("read", "isotropic"), ("all", "contrasts")])
def test_adding_the_planted_direction_raises_refusals_and_adding_a_random_one_does_not(
    planted: Planted, positions: str, control: Control
) -> None:
    directions = {"planted": planted.direction, "other": planted.random()}
    table = dosed(planted, directions, positions=positions, control=control, doses=(-1.0, 0.0, 1.0, 2.0))
    found, other = rows(table, "planted"), rows(table, "other")
    assert (found.loc[found["dose"] != 0, "p_value"] == 1 / 40).all()  # nothing random comes near, in either class
    assert (found.loc[found["dose"] > 0, "change_low"] > 0.05).all()
    assert (found.loc[found["dose"] < 0, "change_high"] < 0).all()
    assert (other.loc[other["dose"] != 0, "p_value"] > 0.05).all()
    for _, curve in found.groupby("harmful"):
        assert curve["refusal"].is_monotonic_increasing


@pytest.mark.parametrize("layer", [1, 2])
def test_ablating_the_planted_direction_ends_refusals_and_ablating_a_random_one_does_not(
    planted: Planted, layer: int
) -> None:
    directions = {"planted": planted.direction, "other": planted.random()}
    given = small(layer=layer, method="zero", control="isotropic")
    table = ablation(planted.model, QUERIES, NONE, JUDGE, directions, **given)
    start, found = rows(table, UNMODIFIED), rows(table, "planted")
    assert (found["refusal"].to_numpy() < 0.2 * start["refusal"].to_numpy()).all()
    assert (found["p_value"] == 1 / 40).all()
    assert (rows(table, "other")["p_value"] > 0.05).all()


def test_affine_ablation_takes_away_what_sets_the_classes_apart(planted: Planted) -> None:
    """Let those queries be harmful that lie further along the direction: ablated, they are refused as the others."""
    along = hidden_states(planted.model, QUERIES, NONE, progress=False).matrix(-1) @ planted.direction
    sorted_queries = QUERIES.assign(harmful=(along > along.median()).numpy())
    directions = {"planted": planted.direction, "other": planted.random()}
    given = small(layer=-1, control="isotropic")
    table = ablation(planted.model, sorted_queries, NONE, JUDGE, directions, **given)
    start, found = (rows(table, name).set_index("harmful") for name in (UNMODIFIED, "planted"))
    apart = start.loc[True, "refusal"] - start.loc[False, "refusal"]
    assert apart > 0.05
    assert abs(found.loc[True, "refusal"] - found.loc[False, "refusal"]) < 0.2 * apart
    assert found.loc[True, "p_value"] == 1 / 40
    assert rows(table, "other", harmful=True)["p_value"].iloc[0] > 0.05


def test_swapping_the_last_state_brings_the_whole_effect_and_a_random_shift_does_not(planted: Planted) -> None:
    table = swap(planted.model, QUERIES, CARE, NONE, JUDGE, layers=(1, -1), **small(control="isotropic"))
    whole = rows(table, "state", layer=2)
    np.testing.assert_allclose(whole["change"], whole["total"], atol=1e-6)
    np.testing.assert_allclose(whole["recovered"], 1.0, atol=1e-4)
    assert whole[["recovered_low", "recovered_high"]].isna().all(axis=None)  # for every query alike
    shift = rows(table, "shift")
    assert (shift["recovered_low"] > 0.7).all()  # planted in the first block, so at both layers
    assert (shift["p_value"] <= 0.2).all()
    noise = table[table["kind"] == RANDOM].groupby(["layer", "harmful"])["recovered"].mean()
    assert (noise < 0.3).all()


def test_a_swap_before_the_first_block_brings_nothing(planted: Planted) -> None:
    """Both prompts end in the same token."""
    table = swap(planted.model, QUERIES, CARE, NONE, JUDGE, layers=(0,), **small(n_random=2))
    np.testing.assert_allclose(table["change"], 0.0, atol=1e-6)
    assert np.isfinite(table["total"]).all()


def test_false_positives_of_the_p_value_are_as_rare_as_it_says(planted: Planted) -> None:
    """A direction that is itself one of the random kind is found at level .1 in one case of ten, not more."""
    generator = torch.Generator().manual_seed(0)
    directions = {str(i): torch.randn(WIDTH, generator=generator) for i in range(200)}
    given = {"layer": 1, "unit": 3.0, "doses": (1.0,)} | small(control="isotropic", n_random=199)
    table = dose_response(planted.model, QUERIES[QUERIES["harmful"]], NONE, JUDGE, directions, **given)
    p_values = table.loc[table["kind"] == "direction", "p_value"]
    assert 0.03 < (p_values <= 0.1).mean() < 0.17
    assert 0.4 < p_values.mean() < 0.6


def test_a_random_shift_is_called_real_as_rarely_as_the_swap_says() -> None:
    """The donor's effect is that of its own shift, so its sign is no prediction: the one-sided p-value errs twice."""
    generator, p_values = np.random.default_rng(0), []
    names = [{"layer": 1, "direction": str(i), "kind": RANDOM if i else "shift"} for i in range(40)]
    for _ in range(200):
        start, moves = generator.uniform(0.3, 0.7, size=(1, 5, 1)), 0.2 * generator.normal(size=(40, 1, 1))
        before, after = (np.repeat(values, 4, axis=2) for values in (start, start + moves))
        table = swap_table(QUERIES[QUERIES["harmful"]].head(5), before[0], after, names, 0.95, after[0])
        p_values.append(table["p_value"].iloc[0])
    assert (np.array(p_values) <= 0.1).mean() == pytest.approx(0.1, abs=0.04)
    assert (np.array(p_values) / 2 <= 0.1).mean() > 0.15  # control: the one-sided one


def held(values: np.ndarray, column: str, truth: float, whole: np.ndarray | None = None) -> float:
    """How often the intervals of many data sets, [n_tables, n], hold the truth; refusal was .1 before."""
    n = values.shape[1]
    own, before = pd.DataFrame({"harmful": np.ones(n, dtype=bool)}), np.full((n, 4), 0.1)
    after = np.repeat(values[:, :, None], 4, axis=2)
    names = [{"direction": "d", "kind": "direction", "dose": 1.0}]
    if whole is None:
        table = effect_table(own, before, after, names * len(values), 0.95)
    else:  # every data set with a donor of its own
        pairs = zip(after[:, None], np.repeat(whole[:, :, None], 4, axis=2), strict=True)
        table = pd.concat([effect_table(own, before, one, names, 0.95, donor) for one, donor in pairs])
    return float((table[f"{column}_low"].le(truth) & table[f"{column}_high"].ge(truth)).mean())


def test_intervals_of_few_queries_hold_the_truth() -> None:
    """Of six queries, percentiles of a bootstrap hold the mean in about 85 % of cases, not 95 %."""
    generator = np.random.default_rng(0)
    values = 0.5 + 0.1 * generator.normal(size=(1000, 6))
    assert held(values, "refusal", 0.5) == pytest.approx(0.95, abs=0.025)
    assert held(values, "change", 0.4) == pytest.approx(0.95, abs=0.025)
    donors = 0.1 + 2 * (values[:300] - 0.1) + 0.1 * generator.normal(size=(300, 6))
    assert held(values[:300], "recovered", 0.5, donors) == pytest.approx(0.95, abs=0.035)


def test_a_mean_near_an_end_is_held_more_often_on_the_scale_of_a_logit() -> None:
    """Most queries are refused and a few are not. The control is the change, by Student's t as it is."""

    def refusals(size: tuple[int, ...], seed: int) -> np.ndarray:
        return 1 / (1 + np.exp(-2.5 - 2 * np.random.default_rng(seed).normal(size=size)))

    truth, values = float(refusals((10**6,), 1).mean()), refusals((1500, 20), 0)
    assert held(values, "refusal", truth) > max(0.91, 0.01 + held(values, "change", truth - 0.1))


def test_a_share_of_an_effect_that_may_be_none_is_not_given() -> None:
    """Fieller's interval is bounded where that of the whole effect does not contain 0."""
    before, after = np.zeros((4, 4)), np.full((1, 4, 4), 0.1)
    names, donor = (
        [{"direction": "d", "kind": "direction", "dose": 1.0}],
        np.repeat([[0.3], [0.1], [0.3], [0.1]], 4, axis=1),
    )
    own = QUERIES.head(4)
    assert effect_table(own, before, after, names, 0.95, donor)["recovered"].item() == pytest.approx(0.5)
    for size in (1, 0.01):  # an edit that brings all of the effect, but for the last bits of a float32 near 1
        whole = size * donor
        noise = 6e-8 * np.array([[1], [-1], [0], [1]])
        same = effect_table(own, before, (whole + noise)[None], names, 0.95, whole)
        assert same["recovered"].item() == pytest.approx(1, abs=1e-4)
        assert same[["recovered_low", "recovered_high"]].isna().all(axis=None)
    unknown = effect_table(own, before, after, names, 0.95, donor - 0.1)
    assert unknown[["recovered", "recovered_low", "recovered_high"]].isna().all(axis=None)
    alone = effect_table(own.head(1), before[:1], after[:, :1], names, 0.95, donor[:1])
    assert alone[["refusal_low", "change_low", "recovered"]].isna().all(axis=None)
    assert alone["refusal"].item() == 0.1


def test_on_the_demo_model_the_direction_causes_refusals_and_random_ones_of_its_norm_do_not(demo: ChatModel) -> None:
    """Difference of means of refused and complied states at layer 3, from the anchors, measured on held-out queries."""
    known = (drolab.load_queries(name, demo=True) for name in SETS)
    anchors, heldout = (queries.groupby("harmful").sample(30, random_state=0) for queries in known)
    prompts, layer = drolab.load_prompts(), 3
    states = hidden_states(demo, anchors, prompts, layers=(layer,), progress=False)
    replies = drolab.generate(demo, anchors, prompts, n_samples=4, max_new_tokens=12, progress=False)
    rates = drolab.judge(replies)["refusal_rate"].loc[pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])]
    refused = torch.tensor(rates.to_numpy(), dtype=torch.float32)
    matrix = states.matrix(layer)
    direction = refused @ matrix / refused.sum() - (1 - refused) @ matrix / (1 - refused).sum()
    unit = shifts(states, layer=layer).table()["norm"].mean()
    setting = (demo, heldout, prompts["none"], FirstTokenJudge.fit(replies), {"means": direction})
    given = small(layer=layer, control="isotropic", n_random=19)
    added = dose_response(*setting, unit=unit, doses=(2.0,), **given)
    ablated = ablation(*setting, **given)
    for table, harmful, sign, margin in ((added, False, 1, 0.05), (ablated, True, -1, 0.3)):
        found = rows(table, "means", harmful=harmful).iloc[0]
        assert found["p_value"] == 1 / 20
        assert sign * found["change"] > margin
        noise = table.loc[(table["kind"] == RANDOM) & (table["harmful"] == harmful), "change"]
        assert noise.abs().max() < 0.25 * abs(found["change"])
    assert rows(ablated, "means", harmful=False)["kl"].iloc[0] < 0.05
    assert (rows(ablated, "means")["note"] == "").all()
    assert (rows(added, "means")["note"] == "").all()


# --- the tables --------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_a_model_run_by_hand(planted: Planted) -> None:
    table = dosed(planted, {"planted": 7 * planted.direction}, layer=-1, unit=1.5, doses=(1.0,), n_random=0)
    states = hidden_states(planted.model, QUERIES, NONE, progress=False).matrix(-1)
    head = planted.model.model.get_output_embeddings().weight
    before, after = ((states + move) @ head.T for move in (0.0, 1.5 * planted.direction))
    for harmful in (True, False):
        own = torch.tensor(QUERIES["harmful"].to_numpy() == harmful)
        row = rows(table, "planted", harmful=harmful).iloc[0]
        p, q = before[own].softmax(-1), after[own].softmax(-1)
        assert row["n"] == own.sum()
        assert row["refusal"] == pytest.approx(float(q[:, REFUSING].mean()), abs=1e-5)
        assert row["change"] == pytest.approx(float((q - p)[:, REFUSING].mean()), abs=1e-5)
        assert row["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-5)
        assert row["refusal"] + row["compliance"] + row["other"] == pytest.approx(1.0, abs=1e-6)


def test_dose_zero_is_the_unmodified_model(planted: Planted) -> None:
    table = dosed(planted, {"planted": planted.direction}, n_random=2)
    plain = JUDGE.masses(first_token_probabilities(planted.model, QUERIES, NONE)[1])["refusal"]
    still = table[table["dose"] == 0]
    assert (still[["change", "kl"]].abs() < 1e-12).all(axis=None)
    for row in still.itertuples():  # what so few queries can show
        unseen = rate_interval(0, row.n).high
        assert (-row.change_low, row.change_high) == pytest.approx((unseen, unseen))
    assert still["p_value"].isna().all()
    for harmful, part in still.groupby("harmful"):
        expected = float(plain[torch.tensor(QUERIES["harmful"].to_numpy() == harmful)].mean())
        np.testing.assert_allclose(part["refusal"], expected, atol=1e-5)


def test_the_tables_hold_a_row_for_every_direction_dose_and_class(planted: Planted) -> None:
    doses = dosed(planted, {"planted": planted.direction}, n_random=3)
    assert len(doses) == (1 + 3) * 4 * 2
    assert set(doses.loc[doses["kind"] == RANDOM, "direction"]) == {"random 1", "random 2", "random 3"}
    assert doses.loc[doses["kind"] == RANDOM, "p_value"].isna().all()
    gone = ablation(
        planted.model, QUERIES, NONE, JUDGE, {"planted": planted.direction}, layer=1, method="zero", **small(n_random=3)
    )
    assert len(gone) == (1 + 1 + 3) * 2
    assert list(gone["kind"].iloc[:2]) == [UNMODIFIED, UNMODIFIED]
    swapped = swap(planted.model, QUERIES, CARE, NONE, JUDGE, **small(n_random=3))
    assert len(swapped) == 2 * (2 + 3) * 2
    for table in (doses, gone, swapped):
        for name in ("refusal", "change"):
            assert (table[f"{name}_low"] <= table[name] + 1e-9).all()
            assert (table[name] <= table[f"{name}_high"] + 1e-9).all()


def test_length_of_a_direction_and_repetition_change_nothing(planted: Planted) -> None:
    one, same = (dosed(planted, {"planted": size * planted.direction}, n_random=2) for size in (1.0, 5.0))
    pd.testing.assert_frame_equal(one, same, rtol=1e-4, atol=1e-6)
    other = dosed(planted, {"planted": planted.direction}, n_random=2, random_state=1)
    assert not np.allclose(one["refusal_low"], other["refusal_low"])


def test_one_class_is_enough_for_doses(planted: Planted) -> None:
    table = dose_response(
        planted.model,
        QUERIES[QUERIES["harmful"]],
        NONE,
        JUDGE,
        {"planted": planted.direction},
        layer=1,
        unit=1.0,
        **small(n_random=2),
    )
    assert table["harmful"].all()


# --- when not to trust a row -------------------------------------------------------------------------------


def measured(refusal: float, other: float = 0.0, kl: float = 0.0) -> np.ndarray:
    """[n, 4]: the same for every query."""
    return np.tile([refusal, 1 - refusal - other, other, kl], (len(QUERIES), 1))


def in_class(harmful: bool, values: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.where(QUERIES["harmful"].to_numpy()[:, None] == harmful, values, others)


TRIED = [{"direction": "d", "kind": "direction", "dose": 1.0}]


@pytest.mark.parametrize("harmful", [True, False])
def test_an_edit_after_which_replies_begin_as_none_did_is_noted(harmful: bool) -> None:
    """What is `other` without an edit was never sampled, and is no sign of a broken model."""
    before, calm = measured(0.5, other=0.3), measured(0.4, other=0.39)
    broken = in_class(harmful, measured(0.3, other=0.41), calm)
    table = dose_table(QUERIES, before, np.stack([broken, calm]), [*TRIED, {**TRIED[0], "direction": "calm"}], 0.95)
    assert (table.columns[-2:] == ["p_value", "note"]).all()
    name = "harmful" if harmful else "harmless"
    said = f"The edit breaks the model (other 0.30 → 0.41, {name})"
    assert rows(table, "d")["note"].str.startswith(said).tolist() == [True, True], "in both classes: it is one edit"
    assert (rows(table, "calm")["note"] == "").all()


def test_an_ablation_that_changes_harmless_queries_is_noted() -> None:
    """To add a direction of refusal is meant to change them, and to take it out changes harmful ones."""
    before = measured(0.5)
    far, near = (in_class(False, measured(0.5, kl=kl), measured(0.1, kl=2.0)) for kl in (0.11, 0.09))
    labels = [{"direction": name, "kind": "direction"} for name in ("far", "near")]
    table = ablation_table(QUERIES, before, np.stack([far, near]), labels, 0.95)
    assert rows(table, "far")["note"].str.contains("KL 0.11 > 0.1 nats, harmless", regex=False).all()
    assert (rows(table, "near")["note"] == "").all()
    assert (dose_table(QUERIES, before, far[None], TRIED, 0.95)["note"] == "").all()


def test_what_the_donor_does_itself_breaks_nothing() -> None:
    before, donor = measured(0.2, other=0.1), measured(0.6, other=0.3)
    names = [{"layer": 1, "direction": "state", "kind": "state"}]
    assert (swap_table(QUERIES, before, donor[None], names, 0.95, donor)["note"] == "").all()
    told = swap_table(QUERIES, before, donor[None], names, 0.95, before)["note"]
    assert told.str.contains("other 0.10 → 0.30, harmful; other 0.10 → 0.30, harmless", regex=False).all()


def test_a_model_that_is_broken_says_so(planted: Planted) -> None:
    """The head of the planted model says anything if its states are pushed far off; the judge knows what it said."""
    plain = first_token_probabilities(planted.model, QUERIES, NONE)[1].mean(dim=0)
    known = plain.topk(100).indices.sort().values
    judge = FirstTokenJudge(
        tokens=known, refusal_rate=(known == REFUSING).float(), counts=torch.ones(100, dtype=torch.long)
    )
    given = {"layer": 1, "unit": 1.0, "doses": (0.0, 0.2, 200.0)} | small(n_random=2)
    table = dose_response(planted.model, QUERIES, NONE, judge, {"other": planted.random()}, **given)
    found = rows(table, "other").set_index("dose")
    assert found.loc[200.0, "note"].str.startswith("The edit breaks the model (other ").all()
    assert (found.loc[[0.0, 0.2], "note"] == "").all()
    gone = ablation(
        planted.model, QUERIES, NONE, JUDGE, {"planted": planted.direction}, layer=1, method="zero", **small(n_random=2)
    )
    assert rows(gone, "planted")["note"].str.contains("> 0.1 nats, harmless", regex=False).all()
    assert (rows(gone, UNMODIFIED)["note"] == "").all()


def all_tables(planted: Planted, judge: FirstTokenJudge, direction: Direction | Tensor) -> list[pd.DataFrame]:
    given = (planted.model, QUERIES, NONE, judge, {"tried": direction, "planted": planted.direction})
    options = small(layer=1, n_random=4)
    swapped = swap(planted.model, QUERIES, CARE, NONE, judge, **small(n_random=4))
    return [dose_response(*given, unit=1.0, doses=(1.0,), **options), ablation(*given, **options), swapped]


def test_a_judge_of_too_few_refusals_decides_nothing(planted: Planted) -> None:
    problem = "The first-token judge saw 3 of 112 queries refused."
    for table, sure in zip(
        all_tables(planted, replace(JUDGE, problem=problem), planted.direction),
        all_tables(planted, JUDGE, planted.direction),
        strict=True,
    ):
        assert table["note"].str.startswith(problem).all()
        assert table["p_value"].isna().all()
        assert sure["p_value"].notna().any()
        same = [name for name in table.columns if name not in ("p_value", "note")]
        pd.testing.assert_frame_equal(table[same], sure[same])


def test_a_direction_of_noise_decides_nothing_and_the_others_do(planted: Planted) -> None:
    plain = Direction(
        method="mean_difference",
        positive="refuses",
        vector=planted.direction,
        threshold=0.0,
        scale=1.0,
        setting=float("nan"),
        layer=1,
    )
    problem = "The probe is no better than shuffled labels."
    noisy, fine, tensor = (
        all_tables(planted, JUDGE, given) for given in (replace(plain, problem=problem), plain, planted.direction)
    )
    for one, two in zip(fine, tensor, strict=True):
        pd.testing.assert_frame_equal(one, two)
    for table, sure in zip(noisy[:2], fine[:2], strict=True):
        own = (table["direction"] == "tried").to_numpy()
        assert table.loc[own, "note"].str.startswith(problem).all()
        assert table.loc[own, "p_value"].isna().all()
        assert sure.loc[own, "p_value"].notna().all()
        pd.testing.assert_frame_equal(table[~own], sure[~own])


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [(torch.zeros(WIDTH), "'bad'"), (torch.ones(5), "width 5"), (torch.full((WIDTH,), torch.inf), "'bad'")],
)
def test_bad_directions_are_refused(planted: Planted, bad: Tensor, said: str) -> None:
    with pytest.raises(StatesError, match=said):
        dosed(planted, {"bad": bad})
    with pytest.raises(StatesError, match=said):
        ablation(planted.model, QUERIES, NONE, JUDGE, {"bad": bad}, layer=1, **small())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layer": 3}, "no layers"),
        ({"unit": 0.0}, "above 0"),
        ({"doses": ()}, "finite numbers"),
        ({"doses": (1.0, np.nan)}, "finite numbers"),
        ({"positions": "last"}, "'all' or 'read'"),
        ({"control": "none"}, "'contrasts', 'dealt' or 'isotropic'"),
    ],
)
def test_bad_settings_are_refused(planted: Planted, changed: dict, said: str) -> None:
    with pytest.raises(StatesError, match=said):
        dosed(planted, {"planted": planted.direction}, **changed)


def test_other_bad_calls_are_refused(planted: Planted) -> None:
    given = {"planted": planted.direction}
    with pytest.raises(StatesError, match="'affine' or 'zero'"):
        ablation(planted.model, QUERIES, NONE, JUDGE, given, layer=1, method="mean", **small())  # type: ignore[arg-type]
    with pytest.raises(StatesError, match="harmful"):
        ablation(planted.model, QUERIES[QUERIES["harmful"]], NONE, JUDGE, given, layer=1, **small())
    with pytest.raises(StatesError, match="no layers"):
        swap(planted.model, QUERIES, CARE, NONE, JUDGE, layers=(7,), **small())
    with pytest.raises(QueryError):
        dose_response(planted.model, QUERIES.iloc[:0], NONE, JUDGE, given, layer=1, unit=1.0, **small())


def test_the_model_is_left_as_it_was(planted: Planted) -> None:
    before = first_token_probabilities(planted.model, QUERIES, NONE)[1]
    stopped = 0

    def stop(done: int, total: int) -> None:
        nonlocal stopped
        stopped = done
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dosed(planted, {"planted": planted.direction}, positions="all", progress=stop)
    assert stopped > 0
    assert torch.equal(first_token_probabilities(planted.model, QUERIES, NONE)[1], before)


# --- the store ---------------------------------------------------------------------------------------------


def passes(model: ChatModel, compute: Callable[[], object]) -> int:
    """How often the model runs meanwhile."""
    counts: list[int] = []
    with model.base_model.register_forward_hook(lambda *_: counts.append(1)):
        compute()
    return len(counts)


def test_what_the_store_has_is_not_computed_again_and_anything_else_is(planted: Planted, tmp_path: Path) -> None:
    store, given = Store(tmp_path), {"planted": planted.direction}
    each = {
        "dose": lambda **changed: dosed(planted, given, n_random=2, **changed),
        "ablation": lambda **changed: ablation(
            planted.model, QUERIES, NONE, changed.pop("judge", JUDGE), given, layer=1, **small(n_random=2, **changed)
        ),
        "swap": lambda **changed: swap(planted.model, QUERIES, CARE, NONE, JUDGE, **small(n_random=2, **changed)),
    }
    for name, table in each.items():
        fresh = table(store=store)
        pd.testing.assert_frame_equal(fresh, table(), obj=name)
        again: list[pd.DataFrame] = []
        assert passes(planted.model, lambda table=table, again=again: again.append(table(store=store))) == 0, name
        pd.testing.assert_frame_equal(fresh, again[0], check_exact=True, obj=name)
    wiser = replace(JUDGE, refusal_rate=JUDGE.refusal_rate.roll(1))
    for changed in ({"judge": wiser}, {"method": "zero"}, {"random_state": 1}):
        table = each["ablation"](store=store, **changed)
        pd.testing.assert_frame_equal(table, each["ablation"](**changed))
    assert passes(planted.model, lambda: each["dose"](store=store, doses=(0.5,))) > 0


def test_what_an_edited_model_does_is_not_taken_for_the_edits_effect(planted: Planted, tmp_path: Path) -> None:
    """The same modules with the same edit in force, as the model given and as what is done to it: `kl` differs."""
    unit = planted.direction / planted.direction.norm()

    def removed(model: ChatModel, store: Store | None) -> pd.DataFrame:
        options = small(n_random=2, store=store)
        return ablation(model, QUERIES, NONE, JUDGE, {"planted": unit}, layer=1, method="zero", **options)

    plain, store = removed(planted.model, None), Store(tmp_path)
    with steered(planted.model, Ablate(unit)) as without:
        twice = removed(without, store)
    pd.testing.assert_frame_equal(removed(planted.model, store), plain)
    with steered(planted.model, Ablate(unit)) as without:
        pd.testing.assert_frame_equal(removed(without, Store(tmp_path / "other")), twice)
    assert plain["kl"].max() > 0.01 > rows(twice, "planted")["kl"].max()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"refusal_rate": torch.full((260,), torch.nan)}, "between 0 and 1"),
        ({"tokens": torch.arange(-1, 259)}, "token ids from 0 on"),
        ({"tokens": torch.arange(260) + 5}, "knows token 264, and this model has"),
        ({"counts": torch.ones(3, dtype=torch.long)}, "one refusal rate and one count for each"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(planted: Planted, changed: dict, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        replace(JUDGE, **changed).masses(first_token_probabilities(planted.model, QUERIES, NONE)[1])


def test_what_was_done_before_an_interruption_is_kept(planted: Planted, tmp_path: Path) -> None:
    store = Store(tmp_path)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    def run(**changed: object) -> pd.DataFrame:
        return dosed(planted, {"planted": planted.direction}, n_random=2, positions="all", **changed)

    with pytest.raises(KeyboardInterrupt):
        run(store=store, progress=stop)
    totals: list[int] = []
    table = run(store=store, progress=lambda done, total: totals.append(total))
    assert 0 < totals[-1] <= len(QUERIES) * 3 * 4 / 2 + len(QUERIES)
    pd.testing.assert_frame_equal(table, run())
