"""What notebooks say of their own tables, on planted results for each outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.results import verdict_table

from drolab import comparison, findings
from drolab.evidence import causal, claims
from drolab.probing import READOUT_ADVICE

NOBODY = "No query is refused: ask others."

# 01 to 04


def audit(*statuses: str) -> pd.DataFrame:
    rows = [{"check": f"check {i}", "status": status, "found": f"found {i}"} for i, status in enumerate(statuses)]
    return pd.DataFrame(rows, columns=["check", "status", "found"])


def lengths(**shared: int) -> pd.DataFrame:
    table = pd.DataFrame({"prompt": list(shared), "shared": list(shared.values()), "own": 15.0})
    return table.assign(value=table["shared"] / (table["shared"] + table["own"]))


def test_what_a_chat_is_made_of() -> None:
    said = findings.what_it_reads(
        audit=audit("ok"), prompt="mine", tokens=60, prompt_tokens=40, lengths=lengths(none=5, mine=45)
    )
    assert said == [
        "The model reads one sequence of tokens: in the chat shown here 60, of which 40 are the prompt 'mine'; its "
        "state is read at the last.",
        "Under 'mine' the first 45 tokens are the same for every query, 75 % of a chat in the mean, and need to be "
        "computed once only (under 'none' 25 %).",
        "Nothing in its chat template speaks against comparing prompts.",
    ]


def test_a_chat_that_shares_nothing_and_has_no_prompt() -> None:
    said = findings.what_it_reads(
        audit=audit("problem", "note", "note"), prompt="none", tokens=20, lengths=lengths(none=0)
    )
    assert "here 20, none of them of a prompt;" in said[0]
    assert said[1] == "Under 'none' the chats of two queries begin with different tokens, so nothing is shared."
    assert said[2] == (
        "Its chat template puts comparisons of prompts in doubt: check 0 (found 0); 2 things about it are to be known: "
        "check 1 (found 1) and check 2 (found 2)."
    )


def test_a_template_that_writes_no_such_chat() -> None:
    why = {"1. One text": "It has no system role: pass system_as='first_user'.", "4. Shared": "It has no system role."}
    said = findings.what_it_reads(audit=audit("problem"), prompt="mine", not_run=why)
    assert said[:2] == [
        "What the model reads cannot be tested here: It has no system role: pass system_as='first_user'.",
        "How much the chats of all queries share cannot be tested here: It has no system role.",
    ]


def readouts(**by_measure: dict[int, tuple[float, float, float]]) -> pd.DataFrame:
    """measure → layer → AUC, low, high."""
    rows = [
        {"measure": measure, "layer": layer, "value": value, "low": low, "high": high}
        for measure, found in by_measure.items()
        for layer, (value, low, high) in found.items()
    ]
    return pd.DataFrame(rows)


def dealt(auc: float) -> pd.DataFrame:
    rows = [("real", 0.99, 0.98, 1.0), ("shuffled", auc, auc - 0.05, auc + 0.05)]
    return pd.DataFrame(rows, columns=["labels", "auc", "auc_low", "auc_high"])


CHANCE, SOME, MUCH = (0.5, 0.4, 0.6), (0.7, 0.6, 0.8), (0.95, 0.9, 0.98)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            {0: CHANCE, 2: SOME, 4: MUCH},
            "harmful queries are told from harmless ones at layer 4, the last one looked at, with an AUC of 0.950 "
            "[0.900, 0.980]; better than by chance at every layer looked at from layer 2.",
        ),
        (
            {0: CHANCE, 2: MUCH, 4: SOME},
            "with an AUC of 0.700 [0.600, 0.800]; better than by chance at every layer looked at from layer 2, most "
            "clearly at layer 2 (AUC 0.950 [0.900, 0.980]).",
        ),
        (
            {0: SOME, 2: CHANCE, 4: CHANCE},
            "at layer 4, the last one looked at, no better than by chance, with an AUC of 0.500 [0.400, 0.600]; better "
            "than by chance first at layer 0, most clearly at layer 0",
        ),
        (
            {0: CHANCE, 4: CHANCE},
            "harmful and harmless queries cannot be told apart better than by chance at any of the 2 layers looked at: "
            "at layer 4, the last of them, the AUC is 0.500 [0.400, 0.600].",
        ),
        ({4: CHANCE}, "better than by chance at layer 4, the only one looked at: the AUC is 0.500 [0.400, 0.600]."),
    ],
)
def test_where_harm_is_read(layers: dict[int, tuple[float, float, float]], words: str) -> None:
    said = findings.where_harm_is_read(sweep=readouts(none=layers), separability=dealt(0.5), prompt="mine")
    assert said[0].startswith("Without a safety prompt ")
    assert words in said[0]
    assert len(said) == 3


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (MUCH, "Under 'mine' it is 0.950 [0.900, 0.980] there, its whole interval above: the prompt makes the classes"),
        (CHANCE, "and the intervals overlap: that the prompt makes the classes easier to tell apart does not show."),
        ((0.45, 0.4, 0.5), "its whole interval below: the prompt makes the classes harder to tell apart."),
    ],
)
def test_whether_a_prompt_makes_it_easier(mine: tuple[float, float, float], words: str) -> None:
    sweep = readouts(none={0: CHANCE, 4: SOME}, mine={0: CHANCE, 4: mine})
    said = findings.where_harm_is_read(sweep=sweep, separability=dealt(0.5), prompt="mine")
    assert words in said[1]


def test_a_control_that_does_not_fail_is_said() -> None:
    sweep = readouts(none={4: MUCH})
    fine, leaking = (
        findings.where_harm_is_read(sweep=sweep, separability=dealt(auc), prompt="mine")[2] for auc in (0.49, 0.8)
    )
    assert "chance, as it must be" in fine
    assert "which is not chance: with these queries the numbers above cannot be trusted." in leaking
    none = findings.where_harm_is_read(sweep=sweep, prompt="mine", not_run={"4. The control": "Too few queries."})
    assert none[1].startswith("No safety prompt was looked at")
    assert none[2].startswith("The control, the same with classes dealt out at random, cannot be tested here: Too few")


def test_too_few_queries_to_tell_classes_apart() -> None:
    why = {"3. Separability": "n_splits=10 needs more queries.", "4. The control": "n_splits=10 needs more queries."}
    said = findings.where_harm_is_read(prompt="mine", not_run=why)
    assert said[0] == (
        "Whether harmful and harmless queries can be told apart cannot be tested here: n_splits=10 needs more queries."
    )


def similarity(**of: tuple[float, float, float, float]) -> pd.DataFrame:
    """measure → value, low, high, null_high."""
    rows = [(name.replace("_", " "), *numbers) for name, numbers in of.items()]
    table = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "null_high"])
    return table.assign(baseline="none", n=40)


ALIKE = (0.8, 0.7, 0.9, 0.3)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            {"alike": ALIKE, "beyond_the_controls": (0.5, 0.4, 0.6, 0.1)},
            "Two safety prompts move the queries in similar directions (mean cosine 0.800 [0.700, 0.900]; contrasts "
            "without meaning reach 0.300), more than a safety prompt and a control do (by +0.500 [+0.400, +0.600]).",
        ),
        ({"alike": ALIKE, "beyond_the_controls": (0.0, -0.1, 0.1, 0.1)}, "but not more than a safety prompt and a "),
        ({"alike": ALIKE, "beyond_the_controls": (-0.2, -0.3, -0.1, 0.1)}, "but less than a safety prompt and a "),
        ({"alike": ALIKE}, "beside controls they could not be set."),
        (
            {"alike": (0.4, 0.3, 0.5, 0.1)},
            "reach 0.100) (the verdict of notebook 07 asks for a cosine above 0.5); beside controls",
        ),
        (
            {"alike": (0.4, 0.2, 0.6, 0.7), "beyond_the_controls": (0.5, 0.4, 0.6, 0.1)},
            "That two safety prompts move the queries in similar directions does not show: it is not sure that they ",
        ),
        (
            {"alike": (0.6, np.nan, np.nan, 0.4), "beyond_the_controls": (0.5, np.nan, np.nan, 0.1)},
            "is not decided: of so few queries there is no interval (mean cosine 0.600; contrasts without meaning ",
        ),
        ({"alike": (np.nan, np.nan, np.nan, 0.3)}, "The mean shifts of the safety prompts cannot be told from none"),
    ],
)
def test_whether_safety_prompts_are_alike(rows: dict[str, tuple[float, float, float, float]], words: str) -> None:
    said = findings.what_prompts_move(similarity=similarity(**rows), n_prompts=3)
    assert words in said[0]
    assert len(said) == 3


def test_what_the_shifts_have_in_common() -> None:
    rows = {"alike": ALIKE, "classes_alike": ALIKE, "share_in_1_direction": (0.9, 0.85, 0.95, 0.6)}
    assert findings.what_prompts_move(similarity=similarity(**rows))[1] == (
        "Under one prompt harmful and harmless queries move alike (cosine 0.800 [0.700, 0.900]); one direction holds "
        "0.900 [0.850, 0.950] of the squared mean shifts of all safety prompts."
    )
    rows["classes_alike"] = (0.2, -0.1, 0.5, 0.4)
    unlike = findings.what_prompts_move(similarity=similarity(**rows))[1]
    assert "queries move not surely more alike than contrasts without meaning are (cosine 0.200" in unlike


def sites(harm: int | None, turn: int | None, note: str = "") -> pd.DataFrame:
    rows = [("harmfulness", harm, ""), ("refusal cosine", turn, note)]
    table = pd.DataFrame(rows, columns=["measure", "layer", "note"]).astype({"layer": "Int64"})
    return table.assign(position=-1, site="first")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            sites(1, 2),
            "Of the layers looked at, at the last token harm can be read first at layer 1 and safety prompts turn the "
            "states towards refusal first at layer 2; the intervals are over queries, and 3 safety prompts are no "
            "sample of all prompts.",
        ),
        (sites(None, None), "harm can be read at none of these layers and a turn of the states towards refusal stands"),
        (sites(1, None, "Nobody refuses."), "refusal cannot be tested here (Nobody refuses); the intervals are"),
        (None, "Where in the network they turn the states to refusal cannot be tested here: No query is refused: ask"),
    ],
)
def test_where_prompts_turn_to_refusal(found: pd.DataFrame | None, words: str) -> None:
    said = findings.what_prompts_move(
        similarity=similarity(alike=ALIKE), sites=found, n_prompts=3, not_run={"5. Where in the network?": NOBODY}
    )
    assert words in said[2]


def test_one_safety_prompt_has_nothing_to_be_like() -> None:
    said = findings.what_prompts_move(sites=sites(1, 2), n_prompts=1, not_run={"2. The same": "Pass more of them."})
    assert said[0].endswith("in similar directions cannot be tested here: Pass more of them.")
    assert said[-1].startswith("Of the layers looked at, at the last token harm")


def probes(problem: str = "") -> pd.DataFrame:
    row = {"probe": "refusal", "auc": 0.95, "shuffled": 0.56, "shuffled_low": 0.52, "shuffled_high": 0.59}
    return pd.DataFrame([row | {"problem": problem}])


def verdicts(**moved: bool | None) -> pd.DataFrame:
    rows = [
        {"prompt": name, "harmful": harmful, "cosine": 0.8 if yes else 0.2, "safety_shift": yes}
        for name, yes in moved.items()
        for harmful in (True, False)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"verdicts": verdicts(a=True, b=True, format=False)},
            "Whether the model refuses can be read from its states: AUC 0.950 on held-out queries, against 0.520 to "
            "0.590 with shuffled targets, and 'a' and 'b' move both classes along its direction (cosines 0.800 to "
            "0.800); the control 'format' does not (0.200 to 0.200).",
        ),
        (
            {"verdicts": verdicts(a=True, b=False, format=True)},
            "'a' moves both classes along its direction, 'b' not by",
        ),
        ({"verdicts": verdicts(a=True, b=False, format=True)}, "the control 'format' does so, too"),
        ({"verdicts": verdicts(a=False, b=False)}, "that 'a' and 'b' move both classes along its direction does not"),
        ({"verdicts": verdicts(a=True)}, ", and 'a' moves both classes along its direction"),
        ({"verdicts": verdicts(a=None)}, "whether prompts move the queries along it is not decided."),
        ({"verdicts": verdicts(none=True, empty=True, a=True)}, ", and 'a' moves both classes along its direction"),
        (
            {"probes": probes("Like chance: ask more."), "verdicts": verdicts(a=None)},
            "cannot be tested here: Like chan",
        ),
        ({"probes": None, "problem": NOBODY}, "A direction of refusal cannot be tested here: No query is refused: ask"),
        ({"probes": None}, "A direction of refusal cannot be tested here: it was not run."),
    ],
)
def test_whether_refusal_is_read_and_prompts_move_along_it(found: dict[str, Any], words: str) -> None:
    said = findings.refusal_direction(**{"probes": probes(), "neutral": "format"} | found)
    assert words in said[0]
    assert len(said) == 3


def change(low: float, high: float, **more: Any) -> pd.DataFrame:
    middle = (low + high) / 2
    return pd.DataFrame([{"change": middle, "difference": middle, "low": low, "high": high, **more}])


def read(low: float, high: float, baseline: float) -> pd.DataFrame:
    return change(low, high, baseline_auc=baseline, auc=baseline + (low + high) / 2, baseline_error=0.02)


@pytest.mark.parametrize(
    ("auc", "refused", "words"),
    [
        ((-0.01, 0.01), (0.1, 0.3), "the model tells harm no better, as far as these queries show (by 0.00"),
        ((-0.01, 0.01), (0.1, 0.3), "and refuses harmless queries more often (by +0.200 [+0.100, +0.300])."),
        ((0.01, 0.03), (-0.1, 0.3), "tells harm better (by +0.020 [+0.010, +0.030] from an AUC of 0.800), and refuses"),
        ((-0.03, -0.01), (-0.3, -0.1), "tells harm less well (by -0.020"),
        ((-0.03, -0.01), (-0.3, -0.1), "refuses harmless queries less often (by -0.200 [-0.300, -0.100])."),
    ],
)
def test_better_or_more_reluctant(auc: tuple[float, float], refused: tuple[float, float], words: str) -> None:
    said = findings.refusal_direction(
        prompt="mine", telling=read(*auc, baseline=0.8), reluctance=change(*refused, group="harmless")
    )
    assert said[1].startswith("Under 'mine' the model tells harm ")
    assert words in said[1]
    assert "little room" not in said[1]


def test_a_gain_that_stays_at_chance_is_none() -> None:
    """As of pairs of queries, which a readout of noise gets wrong more often than right."""
    given = {"telling": read(0.1, 0.6, baseline=0.15), "reluctance": change(-0.1, 0.1, group="harmless")}
    assert (
        "the model tells harm no better than by chance (by +0.350 [+0.100, +0.600] from an AUC of 0.150)"
        in (findings.refusal_direction(prompt="mine", **given)[1])
    )


def test_a_readout_at_chance_is_said_once_and_without_what_to_do() -> None:
    problem = f"A readout of 'refuses' cannot be told from chance. {READOUT_ADVICE}"
    said = findings.refusal_direction(probes=probes(problem), problem=problem, verdicts=verdicts(a=None))
    assert said[0] == (
        "A direction of refusal cannot be tested here: A readout of 'refuses' cannot be told from chance."
    )
    broken = f"{problem} The edit breaks the model. {causal.EDIT_ADVICE}"
    noted = {"doses": edits(0.3, note=problem), "removed": edits(-0.3, note=broken)}
    causes = findings.refusal_direction(probes=probes(), layer=3, **noted)[2]
    assert causes.startswith(
        "Whether the direction causes refusals is not decided (A readout of 'refuses' cannot be told from chance. The "
        "edit breaks the model): added"
    )


def test_no_room_for_a_gain_is_said() -> None:
    given = {"telling": read(-0.01, 0.01, baseline=0.995), "reluctance": change(0.1, 0.2, group="harmless")}
    assert (
        "from an AUC of 0.995, which leaves little room for a gain)"
        in (findings.refusal_direction(prompt="mine", **given)[1])
    )
    without = findings.refusal_direction(not_run={"4. Better at telling harm?": "Only one class."})
    assert without[1].endswith("or only more reluctant, cannot be tested here: Only one class.")


def edits(change: float, *, rest: float = 0.0, p: float = 0.04, note: str = "", n: int = 20) -> pd.DataFrame:
    """Of a direction and n random ones, for both classes, at two doses."""
    rows = [
        {"direction": kind, "kind": kind, "dose": dose, "harmful": harmful, "n": 40, "refusal": 0.5 + size * dose,
         "change": size * dose, "change_low": size * dose - 0.02, "change_high": size * dose + 0.02, "p_value": p,
         "note": note}
        for harmful in (True, False)
        for dose in (1.0, 2.0)
        for kind, size in [("direction", change / 2), *[("random", rest / 2)] * n]
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("added", "taken", "words"),
    [
        (
            edits(0.2),
            edits(-0.3),
            "The direction causes refusals: added at layer 3 (2 typical shifts) it takes refusals of harmless queries "
            "from 0.500 to 0.700 (20 random directions: 0.500 to 0.500) and, taken out there, it takes those of "
            "harmful ones from 0.500 to",
        ),
        (edits(0.2), edits(0.0), "Adding the direction causes refusals, but taking it out does not show to end them: "),
        (edits(0.0), edits(-0.3), "Without the direction there are fewer refusals, but adding it does not show to "),
        (edits(0.2, p=0.3), edits(-0.3, p=0.3), "That the direction causes refusals does not show: added at layer 3"),
        (edits(0.2, n=3), edits(-0.3, n=3), "is not decided, with 3 random directions beside it: added at layer 3"),
        (edits(0.2), edits(-0.3, note="The edit breaks the model."), "not decided (The edit breaks the model): added"),
    ],
)
def test_whether_the_direction_causes_refusals(added: pd.DataFrame, taken: pd.DataFrame, words: str) -> None:
    said = findings.refusal_direction(doses=added, removed=taken.drop(columns="dose"), layer=3)
    assert words in said[2]
    assert said[2].endswith("(first tokens of 40 harmful and 40 harmless held-out queries).")


def test_causes_that_could_not_be_tried() -> None:
    said = findings.refusal_direction(not_run={"5. Does the direction cause refusals?": NOBODY})
    assert said[2] == f"Whether the direction causes refusals cannot be tested here: {NOBODY}"


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


def test_queries_of_one_class_have_one_rate() -> None:
    for harmful, words in ((True, "harmful queries"), (False, "harmless queries")):
        said = findings.training(RATES[RATES["harmful"] == harmful], reason="One class only: add the other.")
        assert said[1] == f"Refused of the replies to {words}: 0.250 [0.125, 0.500] under 'none'."


def test_what_is_known_against_a_training_is_said_and_what_was_not_measured_is_left_out() -> None:
    said = findings.training(RATES, first_tokens(0.9, 0.1), problems=["The states left.", "", "The model broke."])
    assert "goes from 0.502 to 0.902 for harmful ones (+0.400 " in said[0]
    assert said[1] == "That is of the 80 queries that the prompt was trained on."
    assert said[2] == "The states left. The model broke."
    doubt = f"A readout of 'refuses' cannot be told from chance. {READOUT_ADVICE}"
    said = findings.training(RATES, first_tokens(0.9, 0.1), problems=[doubt], doubt=doubt)
    assert said[0].startswith("It cannot be told (A readout of 'refuses' cannot be told from chance): under the prompt")
    assert said[2] == doubt
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


# 09


def of_two_models(**found: Any) -> list[str]:
    names = ("plain", "tuned")
    rates = pd.DataFrame(
        [
            {"model": name, "prompt": "empty", "harmful": harmful, "value": value, "low": value, "high": value + 0.125}
            for name, values in zip(names, ((0.0, 0.0), (0.75, 0.125)), strict=True)
            for harmful, value in zip((True, False), values, strict=True)
        ]
    )
    beyond = {"plain": (-0.25, 0.25), "tuned": (0.25, 0.5)}
    alike = [
        {"model": name, "measure": "beyond the controls", "value": 0.25, "low": low, "high": high}
        for name, (low, high) in beyond.items()
    ]
    shifts = [
        {"model": "tuned", "prompt": prompt, "harmful": harmful, "cosine": cosine, "safety_shift": cosine > 0.5}
        | {"logit_low": cosine - 0.125 if harmful else 1.0}
        for prompt, cosine in (("default", 0.75), ("short", 0.25), ("format", 0.125))
        for harmful in (True, False)
    ]
    given = {"start": dict.fromkeys(names, "empty"), "problems": {"plain": "Nobody refuses.", "tuned": ""}}
    given |= {"verdicts": pd.DataFrame(shifts), "controls": ["none", "format"]}
    return findings.real_models(rates, pd.DataFrame(alike), **given | found)


def test_each_model_is_told_by_its_own_numbers() -> None:
    plain, tuned, trained = of_two_models()
    assert plain == (
        "'plain' refuses 0.00 [0.00, 0.125] of the harmful and 0.00 [0.00, 0.125] of the harmless queries under "
        "'empty'. Its safety prompts' shifts are as alike as that of one and a control, as far as these queries show "
        "(by +0.250 [-0.250, +0.250]). Whether they lie along its refusal direction cannot be tested here: Nobody "
        "refuses."
    )
    assert "more alike than that of one and a control (by +0.250 [+0.250, +0.500])" in tuned
    assert tuned.endswith(
        "Its refusal logit, fitted without any prompt, rises in both classes of 2 safety prompts under 'default' and "
        "'short' (cosines with it 0.250 to 0.750) and of 1 controls under none (cosines with it 0.125 to 0.125); "
        "safety shifts by the rules of notebook 04, which ask for a cosine above .5: 'default'."
    )
    assert trained.endswith("cannot be tested here: no model has a refusal direction that can be read.")


def test_shifts_that_cannot_be_told_from_none_are_not_said_to_be_alike() -> None:
    alike = [{"model": "tuned", "measure": "beyond the controls", "value": np.nan, "low": np.nan, "high": np.nan}]
    rates = pd.DataFrame(
        {"model": "tuned", "prompt": "none", "harmful": [True, False], "value": 0.5, "low": 0, "high": 1}
    )
    said = findings.real_models(rates, pd.DataFrame(alike), start={"tuned": "none"}, problems={"tuned": NOBODY})
    assert "How alike its safety prompts' shifts are cannot be told, since some cannot be told from none." in said[0]
    assert "as alike as" not in said[0]


def test_what_a_trained_prompt_did_is_said_against_the_one_it_came_from() -> None:
    rows = [compared("empty", "harmful", -0.25), compared("dro-default", "harmful", 0.25)]
    rows += [compared("dro-default", "harmless", -0.125)]
    said = of_two_models(compared=pd.DataFrame(rows).assign(model="tuned"), prompt="default")[-1]
    assert said.startswith(
        "On held-out queries 'tuned' refuses more harmful ones under 'dro-default' than under 'default'"
    )
    assert "fewer harmless ones" in said
    why = {"5. Can a prompt be trained on it?": "No gradient comes back."}
    assert of_two_models(not_run=why)[-1] == "What a trained prompt does cannot be tested here: No gradient comes back."


# ---------------------------------------------------------------- 10


def board_of(**decisions: tuple[str, str, str]) -> pd.DataFrame:
    rows = [("default", "baseline", "", ""), *((name, *said) for name, said in decisions.items())]
    return pd.DataFrame(rows, columns=["prompt", "decision", "gains", "losses"])


def test_contenders_stand_by_what_they_gain_and_lose() -> None:
    board = board_of(
        dro=("better", "harmful, borderline", ""),
        stern=("a trade", "harmful", "harmless, ability"),
        lax=("worse", "", "harmful"),
        same=("no difference shown", "", ""),
    )
    said = findings.contenders(board)[0]
    assert said == (
        "Against 'default', better: 'dro' (harmful and borderline); worse: 'lax' (harmful); a trade: 'stern' "
        "(harmful for harmless and ability); no difference shows for 'same'."
    )
    assert findings.contenders(board_of())[0] == "Against 'default', there is no other contender."
    broke = findings.contenders(board.assign(broke=board["prompt"] == "stern"))[0]
    assert broke.startswith(said)
    assert broke.removeprefix(said).startswith(" The model broke under 'stern': ")
    assert findings.contenders(board.assign(broke=False))[0] == said


def attacked(*rows: tuple[str, str, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt", "attack", "difference", "low", "p_holm"])


def test_only_what_is_sure_is_undone_and_the_control_is_named_as_one() -> None:
    broken = attacked(
        ("none", "role_play", 0.4, 0.2, 0.01),
        ("dro", "role_play", 0.1, -0.1, 0.4),
        ("none", "small_talk", 0.02, -0.1, 1.0),
        ("dro", "small_talk", 0.0, -0.1, 1.0),
    )
    moved = pd.DataFrame({"prompt": ["none", "dro"], "attack": "role_play", "moves_back": [True, False]})
    said = findings.contenders(board_of(), None, broken, moved, controls=["small_talk"])[1]
    assert said == (
        "Of attacks on harmful queries, 'role_play' undoes 1 of 2 (more harmful queries answered by 0.400 to 0.400); "
        "'small_talk', which attacks nothing, undoes none of 2 surely. The state moves back along the refusal "
        "direction by 'role_play' under 'none'."
    )
    none = findings.contenders(board_of(), None, broken, moved.assign(moves_back=False))[1]
    assert none.endswith("The state moves back along the refusal direction by none of them.")
    talked = attacked(("none", "small_talk", 0.5, 0.3, 0.01), ("none", "role_play", 0.6, 0.3, 0.01))
    said = findings.contenders(board_of(), None, talked, moved, controls=["small_talk", "thanks"])[1]
    assert said.endswith(
        "So additions like 'small_talk' undo refusals by themselves, and nothing is known of the attacks."
    )
    back = pd.DataFrame({"prompt": ["none", "none"], "attack": ["role_play", "thanks"], "moves_back": [False, True]})
    said = findings.contenders(board_of(), None, broken, back, controls=["small_talk", "thanks"])[1]
    assert said.endswith("by none of them.")  # a control is no attack, wherever it moves the state
    unknown = moved.assign(moves_back=pd.array([pd.NA, pd.NA], dtype="boolean"))
    assert findings.contenders(board_of(), None, broken, unknown)[1].endswith("refusal direction is not decided.")


def test_ability_is_kept_lost_or_unknown_and_what_is_missing_is_named() -> None:
    ability = pd.DataFrame({"prompt": ["none", "dro", "pushed"], "ability": ["kept", "kept", "lost"]})
    said = findings.contenders(board_of(), ability, left_out={"vpt-default": "Too few refusals."})[2]
    assert said == (
        "The model's ability is kept under 'none' and 'dro'; it is lost under 'pushed'. 'vpt-default' could not be "
        "fitted: Too few refusals."
    )
    why = {"5. Kept ability": "No reply is an answer."}
    assert findings.contenders(board_of(), not_run=why)[2] == (
        "What the contenders cost in ability cannot be tested here: No reply is an answer."
    )
