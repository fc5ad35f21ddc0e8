"""The layer × position sweep: what is planted is found where it is planted, and the controls fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import WIDTH, as_states, axis, planted_states, state_index
from helpers.tiny import byte_tokenizer, random_llama
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

import drolab
from drolab import figures, sweep
from drolab.errors import StatesError
from drolab.evidence import shift_cosines
from drolab.models import ChatModel, wrap
from drolab.probing import cross_validate
from drolab.probing.crossval import RIDGE
from drolab.types import QUERY_COLUMNS, DROConfig, DRORun, HiddenStates, SafetyPrompt

SAFETY, CONTROL = ("a", "b"), "neutral"
N = 40
"""Queries of each class."""


def planted_layers(seed: int = 0) -> tuple[HiddenStates, pd.Series]:
    """Layer 0: all equal. 1: harm on axis 0. 2: harm, refusal on axis 1, towards which safety prompts move.

    What decides on refusal beside harm is drawn per query, and lies in the states of layer 2 only. Each safety prompt
    has an axis of its own, too, and the control moves every layer but the first along axis 2.
    """
    rng = np.random.default_rng(seed)
    prompts = ["none", *SAFETY, CONTROL]
    index = state_index(prompts, N)
    harm = np.where(index["harmful"], 1.0, -1.0)
    temper = np.tile(rng.normal(size=2 * N), len(prompts))
    safe = index["prompt"].isin(SAFETY).to_numpy(float)
    lean = 2 * harm + temper + 1.5 * safe
    noise = 0.3 * rng.normal(size=(2, len(index), WIDTH)) + np.tile(rng.normal(size=(2 * N, WIDTH)), (len(prompts), 1))
    aside = np.outer(index["prompt"] == CONTROL, 2 * axis(2))
    first = 2 * np.outer(harm, axis(0)) + 2 * np.outer(safe, axis(3)) + aside + noise[0]
    own = sum(np.outer(index["prompt"] == name, axis(4 + number)) for number, name in enumerate(SAFETY))
    second = 2 * np.outer(harm, axis(0)) + 2 * np.outer(lean, axis(1)) + own + aside + noise[1]
    layers = [np.ones_like(first), first, second]
    states = HiddenStates(
        values=torch.tensor(np.stack(layers, axis=1), dtype=torch.float32), index=index, layers=(0, 1, 2),
        num_hidden_layers=2,
    )  # fmt: skip
    rate = pd.Series(1 / (1 + np.exp(-lean / 2)), index=pd.MultiIndex.from_frame(index[["query_id", "prompt"]]))
    return states, rate[index["prompt"].to_numpy() != CONTROL]


@pytest.fixture(scope="module")
def planted() -> pd.DataFrame:
    states, rate = planted_layers()
    return sweep.measure_sites(states, rate, controls=[CONTROL], tokens={-1: "\n"}, n_bootstrap=300)


def cell(table: pd.DataFrame, layer: int, measure: str) -> pd.Series:
    return table[(table["layer"] == layer) & (table["measure"] == measure)].squeeze()


# what is planted


def test_every_site_has_every_measure_and_its_control(planted: pd.DataFrame) -> None:
    assert tuple(planted.columns) == sweep.SWEEP_COLUMNS
    assert len(planted) == 3 * 2 * len(sweep.CONTROLS)
    assert set(planted["measure"]) == {*sweep.CONTROLS, *sweep.CONTROLS.values()}
    assert set(planted["token"]) == {"\n"}
    there = planted.dropna()
    assert ((there["low"] <= there["value"]) & (there["value"] <= there["high"])).all()


def test_harm_is_read_from_layer_1_and_refusal_beyond_it_from_layer_2_only(planted: pd.DataFrame) -> None:
    assert cell(planted, 1, "harmfulness")["low"] > 0.9
    assert cell(planted, 1, "refusal")["low"] > cell(planted, 1, "refusal, shuffled")["high"]  # through harm
    within, dealt = (cell(planted, 1, f"refusal within class{end}") for end in ("", ", shuffled"))
    assert within["low"] < dealt["high"]
    assert cell(planted, 2, "refusal within class")["low"] > 0.6


def test_shifts_turn_to_refusal_where_it_is_planted_and_the_control_does_not(planted: pd.DataFrame) -> None:
    assert cell(planted, 1, "refusal cosine")["high"] < 0.5
    assert cell(planted, 2, "refusal cosine")["low"] > 0.8
    assert cell(planted, 2, "refusal cosine, control")["high"] < 0.3
    assert cell(planted, 2, "shift cosine")["value"] == pytest.approx(9 / 10, abs=0.02)  # 3 in common, 1 apart
    assert cell(planted, 2, "shift cosine")["low"] > 0.8
    assert abs(cell(planted, 2, "shift cosine, control")["value"]) < 0.2
    start = planted_layers()[0].select(prompt="none").matrix(2).numpy()
    spread = np.sqrt(start.var(axis=0).sum())
    assert cell(planted, 2, "shift size, control")["value"] == pytest.approx(2 / spread, rel=0.05)


def test_shuffled_labels_are_at_chance(planted: pd.DataFrame) -> None:
    for layer in (1, 2):
        harm, within = (cell(planted, layer, f"{name}, shuffled") for name in ("harmfulness", "refusal within class"))
        assert harm["value"] == pytest.approx(0.5, abs=0.03)
        assert within["value"] == pytest.approx(0, abs=0.04)
        assert harm["low"] < 0.5 < harm["high"]
        assert within["low"] < 0 < within["high"]


def test_nothing_is_read_where_all_states_are_equal(planted: pd.DataFrame) -> None:
    flat = planted[planted["layer"] == 0].set_index("measure")[["value", "low", "high"]]
    for chance, name in ((0.5, "harmfulness"), (0, "refusal"), (0, "refusal within class")):
        assert (flat.loc[f"{name}, shuffled"] == chance).all()
        assert flat.loc[name, "value"] == chance
        assert flat.loc[name, "low"] < chance < flat.loc[name, "high"]
    assert flat.loc[["shift size", "shift cosine", "refusal cosine", "shift size, control"]].isna().all(axis=None)


def test_the_layer_to_try_is_where_refusal_stands_out_most(planted: pd.DataFrame) -> None:
    layer, why = sweep.choose_layer(planted)
    assert layer == 2
    assert why.startswith("of the layers 0, 1 and 2 the one where 'refusal' stands out most from its control (0.9")
    assert (
        sweep.choose_layer(planted, measure="harmfulness")[0]
        == sweep.sites(planted).query("measure == 'harmfulness' and site == 'clearest'")["layer"].item()
    )


def test_without_anything_to_read_the_layer_to_try_is_the_middle_one(planted: pd.DataFrame) -> None:
    flat = pd.concat([planted[planted["layer"] == 0].assign(layer=layer) for layer in (3, 7, 9)])
    why = "the middle one of the layers 3, 7 and 9, since 'refusal' stands out from its control at none"
    assert sweep.choose_layer(flat) == (7, why)
    few = planted.assign(note="Only 2 of 80 queries have anything of 'refuses'.")
    assert sweep.choose_layer(few)[1].endswith("at none: Only 2 of 80 queries have anything of 'refuses'")
    assert sweep.choose_layer(flat[flat["layer"] == 3])[1].startswith("the only one looked at, since")
    with pytest.raises(StatesError, match="no 'refusal' with its control at position -2"):
        sweep.choose_layer(pd.concat([flat, flat[flat["measure"] == "harmfulness"].assign(position=-2)]), position=-2)


def test_sites_names_the_first_layer_and_the_clearest(planted: pd.DataFrame) -> None:
    found = sweep.sites(planted).set_index(["measure", "site"])
    assert found.loc[("harmfulness", "first"), "layer"] == 1
    assert found.loc[("refusal within class", "first"), "layer"] == 2
    assert found.loc[("refusal cosine", "clearest"), "layer"] == 2
    assert found.loc[("refusal cosine", "clearest"), "low"] > found.loc[("refusal cosine", "clearest"), "control_high"]
    weak = planted.assign(high=planted["high"] + 10)
    assert sweep.sites(weak)["layer"].isna().all()
    with pytest.raises(StatesError, match="no measure with its control"):
        sweep.sites(planted[planted["measure"] == "refusal"])


# how it is measured


@pytest.mark.parametrize("width", [12, 90])  # fewer and more than the 60 rows
def test_one_fit_gives_the_predictions_of_a_fit_per_fold(width: int) -> None:
    rng = np.random.default_rng(0)
    grid = rng.uniform(size=(2, 30))
    points = rng.normal(size=(60, width)) * rng.uniform(0.1, 10, size=width)
    targets = sweep.Targets.make(grid, 5, 3, 0, grid)
    found, fewer = (part.reshape(-1, 60) for part in sweep.held_out(points, targets))
    scaled = (points - points.mean(axis=0)) / points.std(axis=0)
    flat = targets.values.reshape(4, 60)
    for fold in targets.folds:
        train = np.setdiff1d(np.arange(60), fold)
        for target, predicted in zip(flat, found, strict=True):
            model = Ridge(alpha=RIDGE * 60).fit(scaled[train], target[train])
            np.testing.assert_allclose(predicted[fold], model.predict(scaled[fold]) - target[train].mean(), atol=1e-9)
        for group, predicted in zip(targets.left_out, fewer, strict=True):
            kept = np.setdiff1d(train, group)
            # The penalty stays what it is for all rows, see _half_smoother.
            model = Ridge(alpha=RIDGE * 60).fit(scaled[kept], flat[0, kept])
            np.testing.assert_allclose(predicted[fold], model.predict(scaled[fold]) - flat[0, kept].mean(), atol=1e-9)


def test_a_query_is_never_in_both_train_and_test() -> None:
    """States and rates that belong to queries, and have nothing to do with each other: folds that split the queries
    read the rates, since they know each query from another prompt."""
    rng = np.random.default_rng(1)
    index = state_index(["none", *SAFETY], N)
    points = np.tile(rng.normal(size=(2 * N, 200)), (3, 1)) + 0.1 * rng.normal(size=(6 * N, 200))
    values = np.tile(rng.uniform(size=2 * N), 3)
    rate = pd.Series(values, index=pd.MultiIndex.from_frame(index[["query_id", "prompt"]]))
    table = sweep.measure_sites(as_states(points, index), rate, n_bootstrap=50)
    assert cell(table, 2, "refusal")["value"] < cell(table, 2, "refusal, shuffled")["high"]
    split = KFold(10, shuffle=True, random_state=0).split(points)
    leaky = np.concatenate(
        [[Ridge().fit(points[a], values[a]).predict(points[b]), values[b]] for a, b in split], axis=1
    )
    assert np.corrcoef(leaky)[0, 1] > 0.9


def test_cosines_are_those_of_evidence() -> None:
    states, rate = planted_layers()
    states = states.select(layer=2, prompt=["none", *SAFETY])
    told: list[tuple[int, int]] = []
    table = sweep.measure_sites(states, rate, n_bootstrap=50, progress=lambda *counts: told.append(counts))
    assert told[-1] == (len(states.layers), len(states.layers))
    space = drolab.fit_anchors(states, n_components=4)
    direction = drolab.fit_probe(space, states, rate, positive="refuses").direction(space)
    pairs = shift_cosines(states, {"refusal": direction})
    along = pairs.loc[pairs["b"] == "refusal", "cosine"].mean()
    assert cell(table, 2, "refusal cosine")["value"] == pytest.approx(along, abs=1e-6)
    between = pairs[(pairs["kind"] == "shifts") & (pairs["a"].str[0] != pairs["b"].str[0])]
    assert cell(table, 2, "shift cosine")["value"] == pytest.approx(between["cosine"].mean(), abs=1e-6)


def test_a_site_does_not_depend_on_the_others_nor_on_the_order_of_rows(planted: pd.DataFrame) -> None:
    states, rate = planted_layers()
    alone = sweep.measure_sites(states.select(layer=2), rate, controls=[CONTROL], tokens={-1: "\n"}, n_bootstrap=300)
    expected = planted[planted["layer"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)
    two = pd.concat([states.index.assign(position=-1), states.index.assign(position=-2)], ignore_index=True)
    both = replace(states, values=torch.cat([states.values, states.values]), index=two)
    found = sweep.measure_sites(both, rate, controls=[CONTROL], tokens={-1: "\n", -2: "\n"}, n_bootstrap=300)
    for position in (-1, -2):
        part = found[found["position"] == position].drop(columns="position").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, planted.drop(columns="position"))


def test_memory_does_not_grow_with_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    states, rate = planted_layers()
    whole = sweep.measure_sites(states.select(layer=2), rate, n_bootstrap=100)
    monkeypatch.setattr("drolab.intervals.CHUNK_VALUES", 3 * 2 * N * 7)
    plan = sweep.Plan.make(states.select(layer=2), rate, (), "none", 10, 5, 0)
    assert {len(weights) for weights in plan.weights(100)} == {7, 101 % 7}
    pd.testing.assert_frame_equal(sweep.measure_sites(states.select(layer=2), rate, n_bootstrap=100), whole)


def test_rates_of_the_baseline_alone_and_one_safety_prompt_are_enough() -> None:
    states, rate = planted_layers()
    table = sweep.measure_sites(states.select(prompt=["none", "a"]), rate[rate.index.get_level_values(1) == "none"])
    assert set(table["measure"]) == {*list(sweep.CONTROLS)[:3], *list(sweep.CONTROLS.values())[:3]} | {
        "shift size",
        "refusal cosine",
    }
    assert cell(table, 2, "refusal cosine")["low"] > 0.8


def test_no_shift_has_no_cosine() -> None:
    states = planted_states({"a": 0 * axis(1), "b": 0 * axis(1)}, noise=0.0)
    pairs = pd.MultiIndex.from_frame(states.index[["query_id", "prompt"]])
    rate = pd.Series(states.index["harmful"].to_numpy(float), index=pairs)
    table = sweep.measure_sites(states, rate, n_bootstrap=20)
    assert table.loc[table["measure"].isin(["shift cosine", "refusal cosine"]), "value"].isna().all()
    assert cell(table, 2, "harmfulness")["value"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controls": ["b", "x"]}, r"No states under the controls \['x'\]"),
        ({"controls": ["a", "b", CONTROL]}, "All prompts are controls"),
        ({"refusal_rate": pd.Series([0.5], index=["q0"])}, r"indexed by \(query_id, prompt\)"),
        ({"baseline": "zero"}, "under 'zero'"),
        ({"n_splits": 99}, "n_splits=99"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    states, rate = planted_layers()
    with pytest.raises(StatesError, match=message):
        sweep.measure_sites(states, **({"refusal_rate": rate} | change))


def test_missing_rates_and_a_missing_class_are_named() -> None:
    states, rate = planted_layers()
    with pytest.raises(StatesError, match=r"no value for 1 of 240 states: \(q0, none\)"):
        sweep.measure_sites(states, rate.iloc[1:])
    with pytest.raises(StatesError, match="No refusal rates for the prompts"):
        sweep.measure_sites(states, rate.rename({"none": "x", "a": "y", "b": "z"}, level=1))
    with pytest.raises(StatesError, match="harmful and of harmless"):
        sweep.measure_sites(states.select(harmful=True), rate)


# on models


def query_table() -> pd.DataFrame:
    harmful = ["a man", "the king", "my aunt", "a judge", "the cook", "a spy"]
    harmless = ["a job", "a tab", "my lawn", "time", "the engine", "a weed"]
    rows = [
        (f"q{i}", f"How to kill {thing}?", i < len(harmful), "made", "train", "test")
        for i, thing in enumerate(harmful + harmless)
    ]
    return pd.DataFrame(rows, columns=list(QUERY_COLUMNS), index=[row[0] for row in rows])


PROMPTS = [SafetyPrompt(name="none", text=""), *(SafetyPrompt(name=n, text=f"Be {n}.") for n in ("careful", "kind"))]


def test_position_labels_are_the_tokens_that_all_chats_share(tiny_llama: ChatModel) -> None:
    labels = sweep.position_labels(tiny_llama, query_table(), range(-44, 0))
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(labels[position] for position in range(-len(end), 0)) == end
    assert labels[-len(end) - 1] == "?"
    assert labels[-len(end) - 2] == "…"  # the queries differ here


def test_one_pass_over_a_model_gives_the_whole_sweep(tiny_llama: ChatModel) -> None:
    queries = query_table()
    states = drolab.hidden_states(tiny_llama, queries, PROMPTS, layers=range(3), positions=range(-3, 0), progress=False)
    rng = np.random.default_rng(0)
    rate = pd.Series(
        rng.uniform(size=36), index=pd.MultiIndex.from_product([["none", "careful", "kind"], queries.index])
    )
    table = sweep.measure_sites(states, rate.swaplevel(), n_splits=3, n_shuffles=20, n_bootstrap=20)
    assert table.groupby(["layer", "position"]).size().eq(9).all()
    flat = table[(table["layer"] == 0) & (table["measure"] == "harmfulness")]
    assert (flat["value"] == 0.5).all()  # embeddings of the template's tokens
    assert (table.loc[(table["layer"] > 0) & (table["measure"] == "shift size"), "value"] > 0).all()


def trained(model: ChatModel, states_of: ChatModel, layer: int) -> DRORun:
    """A few steps of DRO in a space of `layer`, with probes of that layer, fitted on the states of `states_of`."""
    queries = query_table()
    states = drolab.hidden_states(states_of, queries, PROMPTS, layers=(1, 2), progress=False)
    space = replace(drolab.fit_anchors(states, layer=layer), model_fingerprint="")
    harmfulness = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
    assert len(cross_validate(space, states, queries["harmful"], n_splits=3)) == 3
    config = DROConfig(num_train_epochs=2, batch_size=6)
    probes = {"refusal": replace(harmfulness, positive="refuses"), "harmfulness": harmfulness}
    return drolab.train_dro(model, queries, init=PROMPTS[1], space=space, **probes, config=config, progress=False)


def test_probes_and_dro_work_at_an_inner_layer_and_see_nothing_behind_it(tiny_llama: ChatModel) -> None:
    changed = random_llama()
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(-2)
    other = wrap(changed, byte_tokenizer(), name="changed", chat_template="chatml")
    inner = [trained(model, tiny_llama, 1).soft_prompt.embeddings for model in (tiny_llama, other)]
    last = [trained(model, tiny_llama, 2).soft_prompt.embeddings for model in (tiny_llama, other)]
    torch.testing.assert_close(*inner, rtol=0, atol=1e-5)
    assert not torch.allclose(*last, rtol=0, atol=1e-4)
    assert not torch.allclose(inner[0], last[0], rtol=0, atol=1e-4)


def test_a_turn_to_refusal_where_refusal_cannot_be_read_is_noted_and_not_counted(planted: pd.DataFrame) -> None:
    notes = planted[planted["measure"] == "refusal cosine"].set_index("layer")["note"]
    assert notes.to_dict() == {0: sweep.NO_REFUSAL, 1: "", 2: ""}  # at 1 through harm
    assert set(planted.loc[~planted["measure"].str.startswith("refusal cosine"), "note"]) == {""}
    states, rate = planted_layers()
    noise = pd.Series(np.random.default_rng(0).binomial(10, 0.05, len(rate)) / 10, index=rate.index)
    table = sweep.measure_sites(states, noise, controls=[CONTROL], n_bootstrap=100, n_shuffles=50)
    found = sweep.sites(table)
    assert found.loc[found["measure"] == "refusal cosine", "layer"].isna().all()
    assert set(found.loc[found["measure"] == "refusal cosine", "note"]) == {sweep.NO_REFUSAL}
    assert found.loc[found["measure"] == "harmfulness", "layer"].notna().all()


def test_one_refusal_is_too_few_and_the_rest_is_measured_all_the_same(planted: pd.DataFrame) -> None:
    states, rate = planted_layers()
    one = pd.Series(0.0, index=rate.index)
    one.iloc[5] = 0.1
    table = sweep.measure_sites(states, one, controls=[CONTROL], n_bootstrap=100, n_shuffles=50)
    notes = table.groupby("measure")["note"].first()
    assert "Only 1 of 80 queries" in notes["refusal"]
    assert notes["refusal"] == notes["refusal cosine"] == notes["refusal within class"]
    assert notes["harmfulness"] == notes["shift size"] == ""
    same = ["harmfulness", "shift size", "shift cosine"]
    for measure in same:
        assert cell(table, 2, measure)["value"] == cell(planted, 2, measure)["value"]


@pytest.mark.parametrize("refused", [0, 7])
def test_few_refusals_leave_what_needs_none(planted: pd.DataFrame, refused: int) -> None:
    states, rate = planted_layers()
    few = pd.Series(0.0, index=rate.index)
    few.iloc[:refused] = 0.1
    table = sweep.measure_sites(states, few, controls=[CONTROL], n_bootstrap=50, n_shuffles=20)
    for measure in ("harmfulness", "shift size", "shift cosine"):
        assert cell(table, 2, measure)["value"] == cell(planted, 2, measure)["value"]
    assert (table.loc[table["measure"] == "refusal cosine", "note"] != "").all()
    figures.layer_position_map(table, measure="refusal cosine")
