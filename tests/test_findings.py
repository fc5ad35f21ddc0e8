"""What notebooks say of their own tables, on planted results for each outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from drolab import findings

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
            {"alike": (0.4, 0.2, 0.6, 0.7), "beyond_the_controls": (0.5, 0.4, 0.6, 0.1)},
            "That two safety prompts move the queries in similar directions does not show: they agree no more than ",
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
    assert "queries move no more alike than contrasts without meaning are (cosine 0.200" in unlike


def sites(harm: int | None, turn: int | None, note: str = "") -> pd.DataFrame:
    rows = [("harmfulness", harm, ""), ("refusal cosine", turn, note)]
    table = pd.DataFrame(rows, columns=["measure", "layer", "note"]).astype({"layer": "Int64"})
    return table.assign(position=-1, site="first")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            sites(1, 2),
            "At the last token harm can be read first at layer 1 and safety prompts turn the states towards refusal "
            "first at layer 2; the intervals are over queries, and 3 safety prompts are no sample of all prompts.",
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
    assert said[-1].startswith("At the last token harm")


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


@pytest.mark.parametrize(
    ("auc", "refused", "words"),
    [
        ((-0.01, 0.01), (0.1, 0.3), "the model tells harm no better, as far as these queries show (AUC 0.00"),
        ((-0.01, 0.01), (0.1, 0.3), "and refuses harmless queries more often (by +0.200 [+0.100, +0.300])."),
        ((0.01, 0.03), (-0.1, 0.3), "tells harm better (AUC +0.020 [+0.010, +0.030]), and refuses harmless queries no"),
        ((-0.03, -0.01), (-0.3, -0.1), "tells harm less well (AUC -0.020"),
        ((-0.03, -0.01), (-0.3, -0.1), "refuses harmless queries less often (by -0.200 [-0.300, -0.100])."),
    ],
)
def test_better_or_more_reluctant(auc: tuple[float, float], refused: tuple[float, float], words: str) -> None:
    said = findings.refusal_direction(
        prompt="mine", telling=change(*auc, baseline_auc=0.8), reluctance=change(*refused, group="harmless")
    )
    assert said[1].startswith("Under 'mine' the model tells harm ")
    assert words in said[1]
    assert "already" not in said[1]


def test_no_room_for_a_gain_is_said() -> None:
    given = {"telling": change(-0.01, 0.01, baseline_auc=0.995), "reluctance": change(0.1, 0.2, group="harmless")}
    assert "; without it that AUC is 0.995 already)" in findings.refusal_direction(prompt="mine", **given)[1]
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
