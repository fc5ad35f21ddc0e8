"""What a notebook's tables say, in three sentences of this run's own numbers: the answer to its question, what it rests
on, and what to be careful of.

One function for each notebook, in their order. Each takes the tables that the notebook shows and says no more than they
do: an effect is one only if its whole interval says so, and what could not be measured is said to be so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from drolab.errors import shown
from drolab.evidence import claims, mean_interval
from drolab.figures import tables

LEVEL = 0.05
"""A corrected p below it is a difference."""

# ---------------------------------------------------------------- 05 to 08


def training(
    rates: pd.DataFrame,
    first_tokens: pd.DataFrame | None = None,
    moved: pd.DataFrame | None = None,
    *,
    problems: Sequence[str] = (),
    reason: str = "",
) -> list[str]:
    """Of notebook 05: did the trained prompt move the two classes apart, as far as the training queries tell?

    Args:
        rates: refusal rates under the human prompts, from `evidence.rate_table`.
        first_tokens: of each training query under the human prompt and then under the trained one, from
            `FirstTokenJudge.score`. None if nothing was trained.
        moved: where the queries' states were at each step, from `dro.movement`, if that is known.
        problems: what is known against the run.
        reason: why not.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> rates = pd.DataFrame({"prompt": "none", "harmful": [True, False], "value": 0.0, "low": 0.0, "high": 0.03})
        >>> print(*findings.training(rates, reason="Nobody refuses: ask others."), sep="\\n")
        Cannot be tested here: Nobody refuses: ask others.
        Refused of the replies to harmful queries and to harmless ones: 0.00 [0.00, 0.030] and 0.00 [0.00, 0.030] ...
        What the human prompts do to other queries, notebooks 06 and 07 ask.
    """
    if first_tokens is None:
        return [
            f"Cannot be tested here: {reason}",
            f"Refused of the replies to harmful queries and to harmless ones: {_rates_by_prompt(rates)}.",
            "What the human prompts do to other queries, notebooks 06 and 07 ask.",
        ]
    init, trained = first_tokens["prompt"].unique()
    wide = first_tokens.pivot(index=["query_id", "harmful"], columns="prompt", values="refusal")
    changes, steps = {}, []
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        part = wide.xs(harmful, level="harmful")
        changes[harmful] = mean_interval(part[trained] - part[init], range(len(part)), bounds=(-1, 1))
        then, now = (tables.number_text(float(part[prompt].mean())) for prompt in (init, trained))
        steps.append(f"from {then} to {now} for {name} ones ({tables.interval_words(*changes[harmful], sign=True)})")
    return [
        f"{_lead(changes[True], changes[False])}: under the prompt that DRO trained from {shown(init)} the probability "
        f"that the reply to a training query begins with a refusal goes {steps[0]} and {steps[1]}.",
        f"That is of the {len(wide)} queries that the prompt was trained on.{_logits(moved)}",
        _cautions(
            problems, "Nothing is known against this run; what its prompt does to other queries, notebook 06 asks."
        ),
    ]


def _logits(moved: pd.DataFrame | None) -> str:
    if moved is None:
        return ""
    logits = moved.groupby(["harmful", "step"])["refusal_logit"].mean().unstack()
    shifts = (logits.iloc[:, -1] - logits.iloc[:, 0]).map(lambda value: tables.number_text(value, sign=True))
    return (
        f" What training works on, the logit of the refusal probe, changed by {shifts[True]} for harmful ones and by "
        f"{shifts[False]} for harmless ones."
    )


def responses(
    tests: pd.DataFrame,
    kappa: pd.DataFrame,
    *,
    baseline: str,
    judge: str,
    trained: str = "",
    reason: str = "",
    problems: Sequence[str] = (),
) -> list[str]:
    """Of notebook 06: does the trained prompt work on queries that it was not trained on?

    Args:
        tests: other prompts against the human one from which training began, from `comparison.paired`.
        kappa: how two judges agree, from `judges.disagreement`.
        baseline: the prompt that the human one is compared with.
        judge: the name of the judge whose refusals these are.
        trained: the prompt that DRO trained; "" if there is none.
        reason: why there is none.
        problems: what is known against the run and the quick score.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> said = {"prompt": "dro-default", "baseline": "default", "value": 0.5, "n_queries": 40, "p_holm": 0.001}
        >>> more = {"group": "harmful", "baseline_value": 0.3, "difference": 0.2, "low": 0.1, "high": 0.3}
        >>> same = {"group": "harmless", "baseline_value": 0.6, "difference": -0.1, "low": -0.3, "high": 0.1}
        >>> tests = pd.DataFrame([said | more, said | same])
        >>> kappa = pd.DataFrame([{"a": "one", "b": "other", "n": 160, "agreement": 0.9, "kappa": 0.8}])
        >>> kappa = kappa.assign(kappa_low=0.7, kappa_high=0.9)
        >>> print(findings.responses(tests, kappa, baseline="none", judge="one", trained="dro-default")[0])
        Only in part: of queries that no prompt was trained on, the model refuses more harmful ones under 'dro-d...
    """
    init = str(tests["baseline"].iloc[0])
    own, human = _rows(tests, trained), _turned(_rows(tests, baseline))
    if own:
        answer = f"{_lead(own.get('harmful'), own.get('harmless'))}: of queries that no prompt was trained on, "
        answer += f"the model refuses {_changes(own, trained, init)}."
    else:
        answer = f"Cannot be tested here: there is no trained prompt. {reason}".strip()
    rests = [f"The human prompt: the model refuses {_changes(human, init, baseline)}."] if human else []
    caution = "It is one training with one seed, and a reply that is no refusal need not be an answer."
    return [answer, " ".join([*rests, _judged(judge, kappa)]), _cautions(problems, caution)]


def prices(
    tests: pd.DataFrame,
    trade: pd.DataFrame,
    verdict: pd.DataFrame | None,
    *,
    reason: str = "",
    untrained: str = "",
) -> list[str]:
    """Of notebook 07: which prompt is worth its price, and which of the paper's claims hold?

    Args:
        tests: the other prompts against the one from which training began, from `comparison.paired`.
        trade: from `comparison.tradeoff`.
        verdict: the table of `claims.verdict`; None if there is none.
        reason: why there is none.
        untrained: why there is no trained prompt.

    Examples:
        >>> import pandas as pd
        >>> from drolab import comparison, findings
        >>> row = {"prompt": "none", "baseline": "default", "group": "harmful", "difference": -0.2, "p_holm": 0.01}
        >>> tests = pd.DataFrame([row | {"low": -0.3, "high": -0.1}])
        >>> trade = pd.DataFrame({"prompt": ["none", "default"], "compliance": [0.9, 0.9], "refusal": [0.6, 0.8]})
        >>> front = comparison.pareto_front(trade)
        >>> print(*findings.prices(tests, front, None, reason="Ask four queries of each class."), sep="\\n")
        By the estimates no prompt beats 'default' in refusals of harmful queries and answers to harmless ones; ...
        Against 'default' and after correction for 1 comparison, harmful queries are refused less often under 'none'.
        The paper's claims cannot be tested here: Ask four queries of each class.
    """
    claimed = f"The paper's claims cannot be tested here: {reason}" if verdict is None else _decided(verdict)
    missing = [f"There is no trained prompt among these: {untrained}"] if untrained else []
    return [_front(trade), _differences(tests), " ".join([claimed, *missing])]


def published(
    released: pd.DataFrame | None, own: pd.DataFrame, counted: pd.DataFrame, tests: pd.DataFrame
) -> list[str]:
    """Of notebook 08: what safety prompts did in published models, and in one's own.

    Args:
        released: from `release_tables.averages`, the rows to tell; None if there is no release here.
        own: the same of one's own model alone.
        counted: from `release_tables.two_counts`, under one prompt.
        tests: other prompts against one, from `release_tables.differences`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> rate = {"dataset": "mine", "measure": "compliance", "n_models": 1, "any_low": 0.2, "any_high": 0.6}
        >>> own = pd.DataFrame([rate | {"prompt": "none", "any": 0.4}, rate | {"prompt": "default", "any": 0.3}])
        >>> counts = {"model": "demo", "prompt": "none", "group": ["in any sample", "per sample"], "value": [0.4, 0.2]}
        >>> tests = pd.DataFrame([{"baseline": "default", "prompt": "none", "difference": 0.1, "p_holm": 0.2}])
        >>> print(*findings.published(None, own, pd.DataFrame(counts), tests), sep="\\n")
        What the published models did cannot be told here: there is no clone of their results.
        Your model: on 'mine' compliance in any sample, 0.400 [0.200, 0.600] under 'none' and 0.300 [0.200, 0.600] ...
        The two counts differ most for 'demo' (under 'none'): 0.400 in any sample, 0.200 per sample. Of 1 difference ...
    """
    first = "What the published models did cannot be told here: there is no clone of their results."
    if released is not None:
        first = f"Over {_counted(int(released['n_models'].max()), 'published model')}, in the mean: {_any(released)}."
    return [first, f"Your model: {_any(own)}.", f"{_two_counts(counted)} {_sure(tests)}"]


def _any(averages: pd.DataFrame) -> str:
    said = []
    for (dataset, measure), part in averages.dropna(subset="any").groupby(["dataset", "measure"], sort=False):
        rows = part[["any", "any_low", "any_high", "prompt"]].itertuples(index=False, name=None)
        each = [f"{tables.interval_words(*row[:3])} under {shown(row[3])}" for row in rows]
        said.append(f"on {shown(dataset)} {measure} in any sample, {_listed(each)}")
    return "; ".join(said) or "nothing under these prompts"


def _two_counts(counted: pd.DataFrame) -> str:
    wide = counted.pivot_table(index="model", columns="group", values="value", sort=False)
    if wide.shape[1] != 2:
        return "There is nothing to count in two ways here."
    model = (wide.iloc[:, 0] - wide.iloc[:, 1]).abs().idxmax()
    each = [f"{tables.number_text(value)} {group}" for group, value in wide.loc[model].items()]
    prompt = shown(counted["prompt"].iloc[0])
    return f"The two counts differ most for {shown(model)} (under {prompt}): {', '.join(each)}."


def _sure(tests: pd.DataFrame) -> str:
    sure, against = int((tests["p_holm"] < LEVEL).sum()), shown(tests["baseline"].iloc[0])
    are = "is" if sure == 1 else "are"
    return f"Of {_counted(len(tests), 'difference')} from {against}, {sure} {are} more than chance after correction."


def _lead(harmful: Any, harmless: Any) -> str:
    """Of the changes of both classes, with their limits (None is unknown): whether refusals rise for the one and fall
    for the other."""
    signs = [0 if one is None else (one.low > 0) - (one.high < 0) for one in (harmful, harmless)]
    wanted = (signs[0] > 0) + (signs[1] < 0)
    if wanted:
        return "Yes" if wanted == 2 else "Only in part"
    return "No" if any(signs) else "It cannot be told from these data"


def _rows(tests: pd.DataFrame, prompt: str) -> dict[str, Any]:
    """Group → the row of a prompt."""
    return {str(row.group): row for row in tests[tests["prompt"] == prompt].itertuples()}


def _turned(rows: dict[str, Any]) -> dict[str, Any]:
    """The same comparisons, seen from the other prompt."""
    return {
        group: row._replace(
            value=row.baseline_value, baseline_value=row.value, difference=-row.difference, low=-row.high, high=-row.low
        )
        for group, row in rows.items()
    }


def _changes(rows: dict[str, Any], prompt: str, other: str) -> str:
    each, under = [], f" under {shown(prompt)} than under {shown(other)}"
    for group, row in rows.items():
        change = "more" if row.low > 0 else "fewer" if row.high < 0 else "neither surely more nor surely fewer"
        numbers = f"{tables.number_text(row.value)} against {tables.number_text(row.baseline_value)}, difference "
        numbers += tables.interval_words(row.difference, row.low, row.high, sign=True)
        each.append(f"{change} {group} ones{'' if each else under} ({numbers})")
    return _listed(each)


def _rates_by_prompt(rates: pd.DataFrame) -> str:
    said = []
    for prompt, part in rates.sort_values("harmful", ascending=False, kind="stable").groupby("prompt", sort=False):
        each = [tables.interval_words(row.value, row.low, row.high) for row in part.itertuples()]
        said.append(f"{_listed(each)} under {shown(prompt)}")
    return "; ".join(said)


def _judged(judge: str, kappa: pd.DataFrame) -> str:
    row = kappa.iloc[0]
    found = tables.interval_words(row["kappa"], row["kappa_low"], row["kappa_high"])
    beyond = f", κ {found}" if found != tables.MISSING else "; there is no κ, since they see one kind of reply alone"
    agreed = f"{row['a']} and {row['b']} agree on {row['agreement']:.1%} of {row['n']:,} replies{beyond}"
    return f"Refusals are what the {judge} takes for one; {agreed}."


def _cautions(problems: Sequence[str], otherwise: str) -> str:
    return " ".join(problem for problem in problems if problem) or otherwise


def _front(trade: pd.DataFrame) -> str:
    both = "refusals of harmful queries and answers to harmless ones"
    if len(trade) == 1 or not trade[["compliance", "refusal"]].round(9).nunique().gt(1).any():
        return f"It cannot be told: no prompt differs from another in {both}."
    best, others = (trade.loc[trade["on_front"] == on, "prompt"] for on in (True, False))
    dominated = f"; dominated by one of them: {_names(others)}" if len(others) else ""
    return f"By the estimates no prompt beats {_names(best)} in {both}{dominated}."


def _differences(tests: pd.DataFrame) -> str:
    sure = tests[(tests["p_holm"] < LEVEL) & ((tests["low"] > 0) | (tests["high"] < 0))]
    said = []
    for group, part in sure.groupby("group", sort=False):
        ways = {"more often": part[part["difference"] > 0], "less often": part[part["difference"] < 0]}
        each = [f"{way} under {_names(found['prompt'])}" for way, found in ways.items() if len(found)]
        said.append(f"{group} queries are refused {_listed(each)}")
    start = (
        f"Against {shown(tests['baseline'].iloc[0])} and after correction for {_counted(len(tests), 'comparison')}, "
    )
    return f"{start}{'; '.join(said) or 'no difference is more than chance'}."


def _decided(verdict: pd.DataFrame) -> str:
    """How many claims hold, and of the others each with its decision."""
    found: dict[str, list[str]] = {}
    asked = verdict[verdict["verdict"] != claims.BY_DESIGN]
    for claim, part in asked.groupby("claim", sort=False):
        one = part["verdict"].nunique() == 1
        found.setdefault(part["verdict"].iloc[0] if one else "it depends on the judge or the controls", []).append(
            f"“{claim}”"
        )
    n, supported = asked["claim"].nunique(), len(found.pop(claims.SUPPORTED, []))
    others = "".join(f"; {decision}: {_listed(texts)}" for decision, texts in found.items())
    return f"Of {n} claims of the verdict {supported} {'is' if supported == 1 else 'are'} supported{others}."


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _names(prompts: Iterable[object]) -> str:
    return _listed([shown(prompt) for prompt in prompts])


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
