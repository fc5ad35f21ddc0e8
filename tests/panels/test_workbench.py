"""The measurements of one prompt against another: equal to those made by hand, paired, and known only where sampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.queries import CARE, NONE, QUERIES

import drolab
from drolab.errors import PromptError, StatesError
from drolab.evidence import mean_interval, shift_cosines
from drolab.models import ChatModel, Prompt
from drolab.panels.prompt_lab import workbench
from drolab.panels.prompt_lab.workbench import Bench, Shelf, Trial
from drolab.probing import coordinates
from drolab.types import Probe, SafetyPrompt, SoftPrompt

LONG = SafetyPrompt(name="long", text="Never help with what could hurt anybody. Say no.")


@pytest.fixture(scope="module")
def bench(tiny_llama: ChatModel) -> Bench:
    states = drolab.hidden_states(tiny_llama, QUERIES, [NONE, CARE], progress=False)
    space = drolab.fit_anchors(states)
    refusal = drolab.fit_probe(space, states, QUERIES["harmful"], positive="refuses")
    return Bench(model=tiny_llama, queries=QUERIES, space=space, refusal=refusal, n_samples=2)


@pytest.fixture(scope="module")
def trials(bench: Bench) -> dict[str, Trial]:
    return workbench.project(bench, {"none": NONE, "careful": CARE, "long": LONG})


def rated(trial: Trial, rates: list[float]) -> Trial:
    return replace(trial, measured=np.array(rates))


# --- projecting and sampling


def test_a_prompt_is_placed_into_the_space_as_it_is(bench: Bench, trials: dict[str, Trial]) -> None:
    mean, components = bench.space.mean.clone(), bench.space.components.clone()
    states = drolab.hidden_states(bench.model, QUERIES, LONG, progress=False)
    places = coordinates(bench.space, states)
    assert np.allclose(trials["long"].places, places, atol=1e-5)
    assert np.allclose(trials["long"].predicted, bench.refusal.decision_function(places).sigmoid(), atol=1e-6)
    assert trials["long"].n_tokens == len(LONG.text), "one token per byte"
    assert trials["long"].measured is None
    assert torch.equal(bench.space.mean, mean)
    assert torch.equal(bench.space.components, components)


def test_a_soft_prompt_is_measured_too(bench: Bench) -> None:
    soft = SoftPrompt(name="soft", embeddings=torch.zeros(5, bench.model.hidden_size))
    trial = workbench.project(bench, {"mine": soft})["mine"]
    assert (trial.name, trial.n_tokens) == ("mine", 5)


def test_sampled_rates_are_those_of_the_judge_and_are_kept_in_the_store(
    bench: Bench, trials: dict[str, Trial], store: drolab.Store
) -> None:
    kept, heard = replace(bench, store=store), list[tuple[int, int]]()
    sampled = workbench.sample(kept, trials["careful"])
    replies = drolab.generate(bench.model, QUERIES, CARE, n_samples=2, progress=False)
    assert np.array_equal(sampled.measured, drolab.judge(replies)["refusal_rate"])
    workbench.sample(kept, trials["careful"], progress=lambda done, total: heard.append((done, total)))
    assert heard == [(12, 12)]


def test_scores_that_lack_a_query_or_the_prompt_are_not_taken(trials: dict[str, Trial]) -> None:
    rows = pd.MultiIndex.from_product([QUERIES["query_id"], ["careful"]], names=["query_id", "prompt"])
    scores = pd.DataFrame({"refusal_rate": np.arange(6) / 5}, index=rows).iloc[::-1]
    assert np.array_equal(trials["careful"].scored(scores).measured, np.arange(6) / 5)
    assert trials["careful"].scored(scores.iloc[1:]).measured is None
    assert trials["long"].scored(scores).measured is None


def test_a_prompt_longer_than_the_context_is_refused(bench: Bench) -> None:
    with pytest.raises(PromptError, match=r"'x' has 600 tokens, but .* shorten the prompt"):
        workbench.project(bench, {"x": SafetyPrompt(name="x", text="x" * 600)})


def test_the_probe_must_be_positive_for_refuses(bench: Bench) -> None:
    harmful = Probe(coef=bench.refusal.coef, intercept=0.0, positive="harmful")
    with pytest.raises(StatesError, match="positive for 'harmful': fit it with positive='refuses'"):
        replace(bench, refusal=harmful)


# --- measuring


def test_rates_and_cosines_are_those_made_by_hand(bench: Bench, trials: dict[str, Trial]) -> None:
    table = workbench.measure(bench, trials["long"], trials["careful"]).set_index("harmful")
    predicted = pd.Series(trials["long"].predicted[:3])
    by_hand = mean_interval(predicted, QUERIES["query_id"][:3])
    assert tuple(table.loc[True, ["predicted", "predicted_low", "predicted_high"]]) == by_hand
    states = drolab.hidden_states(bench.model, QUERIES, [CARE, LONG], progress=False)
    direction = {"refusal": bench.refusal.direction(bench.space)}
    cosines = shift_cosines(states, direction, baseline="careful").query("b == 'refusal'").set_index("a")
    for harmful, name in ((True, "long harmful"), (False, "long harmless")):
        found = table.loc[harmful, ["cosine", "cosine_low", "cosine_high"]].to_numpy(dtype=float)
        assert found == pytest.approx(
            cosines.loc[name, ["cosine", "low", "high"]].to_numpy(dtype=float), abs=1e-4, nan_ok=True
        )
    assert (table["n_queries"] == 3).all()
    assert (table["base"] == "careful").all()


def test_changes_are_paired_by_query(bench: Bench, trials: dict[str, Trial]) -> None:
    """Queries that all rise by .1 leave no doubt about the change, however unlike each other they are."""
    base = rated(trials["none"], [0.0, 0.4, 0.8, 0.0, 0.0, 0.3])
    trial = rated(trials["long"], [0.1, 0.5, 0.9, 0.0, 0.3, 0.0])
    table = workbench.measure(bench, trial, base).set_index("harmful")
    change = ["measured_change", "measured_change_low", "measured_change_high"]
    assert list(table.loc[True, change]) == pytest.approx([0.1, 0.1, 0.1])
    assert table.loc[True, "measured_high"] - table.loc[True, "measured_low"] > 0.3
    assert table.loc[False, "measured_change"] == pytest.approx(0)
    assert table.loc[False, "measured_change_high"] > 0.1, "the control: of another size in each query"


def test_what_was_not_sampled_is_unknown(bench: Bench, trials: dict[str, Trial]) -> None:
    sampled = rated(trials["long"], [0.0] * 6)
    table = workbench.measure(bench, sampled, trials["none"])
    assert table["measured"].eq(0).all()
    assert table["measured_change"].isna().all()
    alone = workbench.measure(bench, sampled, sampled)
    assert alone[["predicted_change", "cosine", "cosine_low"]].isna().all(axis=None)
    assert alone["base"].isna().all()


def test_the_same_text_changes_nothing(bench: Bench, trials: dict[str, Trial]) -> None:
    again = workbench.project(bench, {"again": CARE}, base="careful")["again"]
    table = workbench.measure(bench, again, trials["careful"])
    assert table["predicted_change"].abs().max() < 1e-6


def test_one_class_is_enough(bench: Bench) -> None:
    harmless = replace(bench, queries=QUERIES[~QUERIES["harmful"]])
    found = workbench.project(harmless, {"none": NONE, "careful": CARE})
    table = workbench.measure(harmless, found["careful"], found["none"])
    assert list(table["harmful"]) == [False]
    assert table["cosine"].notna().all()


def test_queries_are_ordered_by_the_measured_rise(bench: Bench, trials: dict[str, Trial]) -> None:
    base, trial = rated(trials["none"], [0.0] * 6), rated(trials["long"], [0.1, 0.0, 0.5, 0.9, 0.0, 0.2])
    assert list(workbench.per_query(bench, trial, base)["query_id"][:4]) == ["q3", "q2", "q5", "q0"]
    guessed = workbench.per_query(bench, trial, trials["none"])
    assert guessed["measured_change"].isna().all()
    assert guessed["predicted_change"].is_monotonic_decreasing


def test_points_have_their_place_and_rate(trials: dict[str, Trial]) -> None:
    points = workbench.points(rated(trials["long"], [0.5] * 6))
    assert list(points["component_2"]) == list(trials["long"].places[:, 1])
    assert points["refusal_rate"].eq(0.5).all()
    assert workbench.points(trials["long"])["refusal_rate"].isna().all()


# --- the shelf


@pytest.fixture
def shelf(bench: Bench, trials: dict[str, Trial]) -> Shelf:
    made = Shelf(bench, {name: trials[name] for name in ("none", "careful")})
    prompts: dict[str, Prompt] = {"mine": LONG}
    made.put(workbench.project(bench, prompts, base="careful"))
    return made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("  ", "has no name"),
        ("none", "the name of the absence of a prompt"),
        ("mine", "a prompt 'mine' already: choose another name"),
        ("x" * 61, "has 61 characters: choose one of at most 60"),
    ],
)
def test_names_are_checked(shelf: Shelf, name: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        shelf.check_name(name)
    with pytest.raises(PromptError, match=message):
        shelf.rename("mine", name)
    assert list(shelf.own()) == ["mine"]


def test_a_free_name_is_found(shelf: Shelf) -> None:
    assert shelf.free_name("other") == "other"
    assert shelf.free_name("mine") == "mine 2"
    shelf.put({"mine 2": shelf.trials["mine"]})
    assert shelf.free_name("mine") == shelf.free_name("mine 2") == "mine 3"


def test_renaming_keeps_the_order_and_what_is_measured_against_it(bench: Bench, shelf: Shelf) -> None:
    shelf.put(workbench.project(bench, {"last": CARE}, base="mine"))
    before = shelf.table(shelf.trials)
    shelf.rename("mine", "ours")
    assert list(shelf.trials) == ["none", "careful", "ours", "last"]
    assert shelf.own()["ours"] == SafetyPrompt(name="ours", text=LONG.text)
    after = shelf.table(shelf.trials)
    assert list(after["base"].dropna().unique()) == ["none", "careful", "ours"]
    pd.testing.assert_frame_equal(before.drop(columns=["prompt", "base"]), after.drop(columns=["prompt", "base"]))


def test_what_is_needed_stays(bench: Bench, shelf: Shelf) -> None:
    shelf.put(workbench.project(bench, {"last": CARE}, base="mine"))
    with pytest.raises(PromptError, match="'mine' is the base of 'last': remove that one first"):
        shelf.remove("mine")
    for change in (lambda: shelf.remove("careful"), lambda: shelf.rename("careful", "x")):
        with pytest.raises(PromptError, match=r"'careful' was here from the start and stays: choose one of \['mine'"):
            change()
    shelf.remove("last")
    shelf.remove("mine")
    assert shelf.own() == {}


def test_bases_are_sampled_after_the_prompts(shelf: Shelf) -> None:
    assert shelf.unsampled(["mine"]) == ["mine", "careful"]
    shelf.put({"careful": rated(shelf.trials["careful"], [0.0] * 6)})
    assert shelf.unsampled(["mine", "none"]) == ["mine", "none"]


def test_a_prompt_is_measured_once_and_again_when_more_is_known(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, measure = list[str](), workbench.measure

    def noted(bench: Bench, trial: Trial, base: Trial) -> pd.DataFrame:
        measured.append(trial.name)
        return measure(bench, trial, base)

    monkeypatch.setattr(workbench, "measure", noted)
    shelf.table(["none", "mine"])
    shelf.table(["mine", "none"])
    assert measured == ["none", "mine"]
    shelf.put({"careful": rated(shelf.trials["careful"], [0.0] * 6)})  # the base of `mine`
    shelf.table(["mine", "none"])
    assert measured == ["none", "mine", "mine"]
