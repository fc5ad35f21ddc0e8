"""What notebooks say of their own tables, on planted results for each outcome."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from helpers.results import verdict_table

from drolab import comparison, findings
from drolab.evidence import claims

# 05 to 08


def first_tokens(harmful: float, harmless: float, n: int = 40) -> pd.DataFrame:
    """Of n queries of each class, which begin with a refusal at .5, and then at these rates, each a little apart."""
    rows = [
        {"query_id": f"{kind}{i}", "harmful": kind == "bad", "prompt": prompt, "refusal": rate + 0.001 * (i % 5)}
        for prompt, rates in (("default", (0.5, 0.5)), ("dro-default", (harmful, harmless)))
        for kind, rate in zip(("bad", "good"), rates, strict=True)
        for i in range(n)
    ]
    return pd.DataFrame(rows)


MOVED = pd.DataFrame(
    {"step": [0, 0, 9, 9], "harmful": [True, False] * 2, "refusal_logit": [1.0, -1.0, 3.0, -2.5], "query_id": "q"}
)
RATES = pd.DataFrame({"prompt": "none", "harmful": [True, False], "value": 0.25, "low": 0.125, "high": 0.5})


@pytest.mark.parametrize(
    ("harmful", "harmless", "lead"),
    [
        (0.9, 0.1, "Yes"),
        (0.9, 0.5, "Only in part"),
        (0.9, 0.9, "Only in part"),
        (0.1, 0.1, "Only in part"),
        (0.5, 0.5, "It cannot be told from these data"),
        (0.1, 0.5, "No"),
        (0.1, 0.9, "No"),
    ],
)
def test_a_training_has_moved_the_classes_apart_or_not(harmful: float, harmless: float, lead: str) -> None:
    said = findings.training(RATES, first_tokens(harmful, harmless), MOVED)
    assert said[0].startswith(f"{lead}: under the prompt that DRO trained from 'default' the probability ")
    assert "of the 80 queries that the prompt was trained on" in said[1]
    assert "changed by +2.00 for harmful ones and by -1.50 for harmless ones." in said[1]
    assert said[2].startswith("Nothing is known against this run; ")


def test_what_is_known_against_a_training_is_said_and_what_was_not_measured_is_left_out() -> None:
    said = findings.training(RATES, first_tokens(0.9, 0.1), problems=["The states left.", "", "The model broke."])
    assert "goes from 0.502 to 0.902 for harmful ones (+0.400 " in said[0]
    assert said[1] == "That is of the 80 queries that the prompt was trained on."
    assert said[2] == "The states left. The model broke."
    said = findings.training(RATES, None, MOVED, reason="Nobody refuses: ask others.")
    assert said[0] == "Cannot be tested here: Nobody refuses: ask others."
    assert "0.250 [0.125, 0.500] and 0.250 [0.125, 0.500] under 'none'" in said[1]
    assert len(said) == 3


def compared(prompt: str, group: str, difference: float, error: float = 0.05, p: float = 0.001) -> dict[str, Any]:
    limits = {"low": difference - error, "high": difference + error}
    values = {"value": 0.5 + difference, "baseline_value": 0.5, "difference": difference}
    return {"prompt": prompt, "baseline": "default", "group": group, "n_queries": 40, **values, **limits, "p_holm": p}


def agreement(kappa: float = 0.75, agreed: float = 0.875) -> pd.DataFrame:
    limits = {"kappa_low": kappa - 0.125, "kappa_high": kappa + 0.125}
    return pd.DataFrame(
        [{"a": "string rule", "b": "text judge", "n": 1600, "agreement": agreed, "kappa": kappa} | limits]
    )


def replied(harmful: float, harmless: float, **given: Any) -> list[str]:
    rows = [compared("dro-default", "harmful", harmful), compared("dro-default", "harmless", harmless)]
    rows += [compared("none", "harmful", -0.25), compared("none", "harmless", 0.01)]
    return findings.responses(pd.DataFrame(rows), agreement(), baseline="none", judge="text judge", **given)


@pytest.mark.parametrize(
    ("harmful", "harmless", "lead", "change"),
    [
        (0.2, -0.2, "Yes", "more harmful ones under 'dro-default' than under 'default' (0.700 against 0.500, "),
        (0.2, 0.01, "Only in part", "and neither surely more nor surely fewer harmless ones (0.510 against 0.500, "),
        (0.2, 0.2, "Only in part", "and more harmless ones (0.700 against 0.500, difference +0.200 [+0.150, +0.250])."),
        (-0.2, 0.01, "No", "fewer harmful ones under 'dro-default'"),
        (0.01, 0.2, "No", "and more harmless ones"),
        (0.01, 0.01, "It cannot be told from these data", "neither surely more nor surely fewer harmful ones under "),
    ],
)
def test_a_trained_prompt_works_on_other_queries_or_not(
    harmful: float, harmless: float, lead: str, change: str
) -> None:
    said = replied(harmful, harmless, trained="dro-default")
    assert said[0].startswith(f"{lead}: of queries that no prompt was trained on, the model refuses ")
    assert change in said[0]
    assert said[2] == "It is one training with one seed, and a reply that is no refusal need not be an answer."


def test_without_a_trained_prompt_the_human_one_is_set_beside_none() -> None:
    said = replied(0.2, 0.2, reason="Nobody refuses.")
    assert said[0] == "Cannot be tested here: there is no trained prompt. Nobody refuses."
    more = "The human prompt: the model refuses more harmful ones under 'default' than under 'none' "
    assert said[1].startswith(f"{more}(0.500 against 0.250, difference +0.250 [+0.200, +0.300]) and neither surely ")
    judged = (
        "Refusals are what the text judge takes for one; string rule and text judge agree on 87.5% of 1,600 replies"
    )
    assert said[1].endswith(f"{judged}, κ 0.750 [0.625, 0.875].")
    assert replied(0.2, 0.2, problems=["Few refuse.", ""])[2] == "Few refuse."


def test_a_baseline_that_was_not_asked_and_a_kappa_that_there_is_not_are_left_out() -> None:
    tests = pd.DataFrame([compared("dro-default", "harmful", 0.2)])
    said = findings.responses(tests, agreement(float("nan"), 1.0), baseline="none", judge="j", trained="dro-default")
    assert said[0].startswith("Only in part: ")
    assert said[1].startswith("Refusals are what the j takes for one; ")
    assert said[1].endswith("agree on 100.0% of 1,600 replies; there is no κ, since they see one kind of reply alone.")


def front(**prompts: tuple[float, float]) -> pd.DataFrame:
    rows = [{"prompt": name, "compliance": a, "refusal": b} for name, (a, b) in prompts.items()]
    return comparison.pareto_front(pd.DataFrame(rows))


TESTS = pd.DataFrame(
    [
        compared("none", "harmful", -0.2),
        compared("dro", "harmful", 0.2),
        compared("soft", "harmful", 0.3),
        compared("dro", "harmless", -0.2),
        compared("none", "harmless", 0.1, p=0.2),
        compared("soft", "harmless", 0.1, error=0.2),
    ]
)


def test_prompts_are_weighed() -> None:
    said = findings.prices(TESTS, front(none=(1.0, 0.3), default=(0.8, 0.5), dro=(0.9, 0.7)), verdict_table())
    both = "refusals of harmful queries and answers to harmless ones"
    assert (
        said[0] == f"By the estimates no prompt beats 'none' and 'dro' in {both}; dominated by one of them: 'default'."
    )
    assert said[1] == (
        "Against 'default' and after correction for 6 comparisons, harmful queries are refused more often under 'dro' "
        "and 'soft' and less often under 'none'; harmless queries are refused less often under 'dro'."
    )
    assert said[2] == "Of 8 claims of the verdict 8 are supported."


def test_prompts_that_do_not_differ_cannot_be_weighed() -> None:
    said = findings.prices(
        TESTS.assign(p_holm=1.0), front(none=(1.0, 0.0), default=(1.0, 0.0)), None, reason="Ask more."
    )
    assert said[0].startswith("It cannot be told: no prompt differs from another in ")
    assert said[1].endswith("after correction for 6 comparisons, no difference is more than chance.")
    assert said[2] == "The paper's claims cannot be tested here: Ask more."


def test_claims_that_do_not_hold_are_named_with_their_decisions() -> None:
    of = {"ALONG": claims.CANNOT, "HARMLESS": claims.TOO_LITTLE, "ALIKE": claims.NOT_SUPPORTED, "APART": claims.CANNOT}
    verdict = verdict_table(**of)
    other = verdict[verdict["claim"] == claims.BEYOND.text].assign(verdict=claims.NOT_SUPPORTED, under="words")
    (said,) = findings.prices(TESTS, front(a=(0, 0)), pd.concat([verdict, other]), untrained="Nobody refuses.")[2:]
    assert said.startswith("Of 8 claims of the verdict 3 are supported; not supported: “safety prompts shift alike”; ")
    assert "it depends on the judge or the controls: “more alike than these controls”" in said
    assert f"{claims.CANNOT}: “{claims.ALONG.text}” and “{claims.APART.text}”" in said
    assert f"{claims.TOO_LITTLE}: “{claims.HARMLESS.text}”" in said
    assert said.endswith(". There is no trained prompt among these: Nobody refuses.")


def averages(n_models: int, **rates: float) -> pd.DataFrame:
    place = {"dataset": "malicious", "measure": "compliance", "n_models": n_models, "any_low": 0.0, "any_high": 1.0}
    return pd.DataFrame([place | {"prompt": prompt, "any": rate} for prompt, rate in rates.items()])


def test_published_models_and_ones_own_are_told() -> None:
    counted = pd.DataFrame({"model": ["a", "b", "a", "b"], "prompt": "none", "value": [0.5, 0.25, 0.375, 0.125]})
    counted["group"] = ["in any sample"] * 2 + ["per sample"] * 2
    own, tests = averages(1, none=0.75, default=float("nan")), TESTS.assign(p_holm=[0.001, 0.2, 0.3, 0.4, 1.0, 1.0])
    said = findings.published(averages(8, none=0.5, default=0.125), own, counted, tests)
    both = "0.500 [0.00, 1.00] under 'none' and 0.125 [0.00, 1.00] under 'default'"
    assert said[0] == f"Over 8 published models, in the mean: on 'malicious' compliance in any sample, {both}."
    assert said[1] == "Your model: on 'malicious' compliance in any sample, 0.750 [0.00, 1.00] under 'none'."
    assert said[2].startswith(
        "The two counts differ most for 'a' (under 'none'): 0.500 in any sample, 0.375 per sample."
    )
    assert said[2].endswith("Of 6 differences from 'default', 1 is more than chance after correction.")
    assert findings.published(None, own, counted.head(2), tests)[0].endswith("there is no clone of their results.")


def test_names_of_prompts_are_shown_in_one_line_and_whole_texts_are_not() -> None:
    name = "line\nbreak" + "x" * 5000
    said = findings.prices(TESTS.assign(prompt=name), front(**{name: (0.5, 0.5), "b": (0.6, 0.4)}), verdict_table())
    assert all("\n" not in sentence and len(sentence) < 600 for sentence in said)
