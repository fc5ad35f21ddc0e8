"""What a notebook's tables say, in three sentences of this run's own numbers: the answer to its question, what it rests
on, and what to be careful of.

One function for each notebook, in their order. Each takes the tables that the notebook shows and says no more than
they do: an effect is one only if its whole interval says so, and what could not be measured is said to be so. A table
that is missing belongs to a section that could not be run; `not_run` says why (heading → reason, as `export.Results`
keeps it).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from drolab.errors import listed, shown
from drolab.evidence import causal, claims, comparison, mean_interval
from drolab.figures import tables
from drolab.probing import READOUT_ADVICE
from drolab.types import EMPTY_PROMPT, NO_PROMPT

LEVEL = 0.05
"""A p-value above it decides nothing, nor does a corrected one."""

NotRun = Mapping[str, str]
Row = dict[str, Any]


# ---------------------------------------------------------------- words


def _why(not_run: NotRun | None, *sections: str) -> str:
    """Why the first of these sections (by number) that is among them could not be run."""
    for number in sections:
        for heading, reason in (not_run or {}).items():
            if heading.startswith(f"{number}."):
                return reason
    return "it was not run"


def _cannot(what: str, why: str) -> str:
    return f"{what} cannot be tested here: {why.rstrip('.')}."


def _records(table: pd.DataFrame) -> list[Row]:
    return table.to_dict("records")  # type: ignore[return-value]


def _by(table: pd.DataFrame, column: str) -> dict[str, Row]:
    return {row[column]: row for row in _records(table)}


def _estimate(row: Row, value: str, low: str = "low", high: str = "high", *, sign: bool = False) -> str:
    return tables.interval_words(row[value], row[low], row[high], sign=sign)


def _number(value: object, *, sign: bool = False) -> str:
    return tables.number_text(value, sign=sign)


def _plainly(*notes: str) -> str:
    """What notes say, each thing once, without advice, which stands elsewhere."""
    facts = [note.replace(READOUT_ADVICE, "").replace(causal.EDIT_ADVICE, "").strip() for note in notes]
    sentences = [sentence.strip().rstrip(".") for note in facts for sentence in note.split(". ")]
    return ". ".join(dict.fromkeys(filter(None, sentences)))


def _first_sentence(note: str) -> str:
    """Without what to do, which stands elsewhere."""
    return note.split(". ")[0].rstrip(".")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _span(values: pd.Series) -> str:
    return f"{_number(values.min())} to {_number(values.max())}"


# ---------------------------------------------------------------- 01 to 04


def what_it_reads(
    *,
    audit: pd.DataFrame,
    prompt: str,
    tokens: int | None = None,
    prompt_tokens: int = 0,
    lengths: pd.DataFrame | None = None,
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 01.

    Args:
        audit: of `chat.audit`.
        prompt: the name of the prompt that was looked at.
        tokens, prompt_tokens: of the chat that was shown, and of the prompt in it.
        lengths: `prompt, shared, own, value`: tokens that all chats under a prompt share, that a chat has for itself in
            the mean, and the share of the former.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> audit = pd.DataFrame({"check": ["date"], "status": ["note"], "found": ["it has one"]})
        >>> lengths = pd.DataFrame({"prompt": ["none", "mine"], "shared": [5, 45], "own": 15.0, "value": [0.25, 0.75]})
        >>> chat = {"tokens": 60, "prompt_tokens": 40, "lengths": lengths}
        >>> print(*findings.what_it_reads(audit=audit, prompt="mine", **chat), sep="\\n")
        The model reads one sequence of tokens: in the chat shown here 60, of which 40 are the prompt 'mine'; its state
        is read at the last.
        Under 'mine' the first 45 tokens are the same for every query, 75 % of a chat in the mean, and need to be
        computed once only (under 'none' 25 %).
        Nothing in its chat template speaks against comparing prompts; one thing about it is to be known: date (it has
        one).
    """
    if tokens is None:
        first = _cannot("What the model reads", _why(not_run, "1", "2"))
    else:
        own = f"of which {prompt_tokens} are the prompt '{prompt}'" if prompt_tokens else "none of them of a prompt"
        first = (
            f"The model reads one sequence of tokens: in the chat shown here {tokens}, {own}; its state is read at the "
            "last."
        )
    return [first, _shared(lengths, prompt, _why(not_run, "4")), _fit_for_comparing(audit)]


def _shared(lengths: pd.DataFrame | None, prompt: str, why: str) -> str:
    if lengths is None:
        return _cannot("How much the chats of all queries share", why)
    rows = _by(lengths, "prompt")
    own = rows.pop(prompt)
    least = min(rows.values(), key=lambda row: row["value"], default=None)
    beside = f" (under '{least['prompt']}' {_percent(least['value'])})" if least else ""
    if own["shared"] == 0:
        return f"Under '{prompt}' the chats of two queries begin with different tokens, so nothing is shared{beside}."
    return (
        f"Under '{prompt}' the first {own['shared']} tokens are the same for every query, {_percent(own['value'])} of "
        f"a chat in the mean, and need to be computed once only{beside}."
    )


def _fit_for_comparing(audit: pd.DataFrame) -> str:
    problems, notes = (audit[audit["status"] == status] for status in ("problem", "note"))
    named = {name: listed(f"{row.check} ({row.found})" for row in part.itertuples()) for name, part in
             (("problems", problems), ("notes", notes)) if len(part)}  # fmt: skip
    known = ("one thing about it is" if len(notes) == 1 else f"{len(notes)} things about it are") + " to be known"
    below = f"; {known}: {named['notes']}" if len(notes) else ""
    if problems.empty:
        return f"Nothing in its chat template speaks against comparing prompts{below}."
    return f"Its chat template puts comparisons of prompts in doubt: {named['problems']}{below}."


def where_harm_is_read(
    *,
    sweep: pd.DataFrame | None = None,
    separability: pd.DataFrame | None = None,
    prompt: str,
    baseline: str = NO_PROMPT,
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 02.

    Args:
        sweep: `measure, layer, value, low, high`: the AUC under each prompt (that is the measure), layer by layer.
        separability: of `evidence.separability` at the last layer, with `labels`: real and shuffled.
        prompt: the safety prompt that was looked at.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> sweep = pd.DataFrame({"measure": ["none", "none", "mine", "mine"], "layer": [0, 4, 0, 4],
        ...                       "value": [0.5, 0.9, 0.5, 0.92], "low": [0.4, 0.8, 0.4, 0.85],
        ...                       "high": [0.6, 0.95, 0.6, 0.97]})
        >>> dealt = pd.DataFrame({"labels": ["shuffled"], "auc": [0.49], "auc_low": [0.4], "auc_high": [0.6]})
        >>> said = findings.where_harm_is_read(sweep=sweep, separability=dealt, prompt="mine")
        >>> print(said[1])
        Under 'mine' it is 0.920 [0.850, 0.970] there, and the intervals overlap: that the prompt makes the classes
        easier to tell apart does not show.
    """
    if sweep is None:
        why = _why(not_run, "3")
        return [
            _cannot("Whether harmful and harmless queries can be told apart", why),
            *_control(separability, not_run),
        ]
    plain = _records(sweep[sweep["measure"] == baseline].sort_values("layer"))
    return [_told_apart(plain, baseline), _easier(sweep, plain[-1], prompt), *_control(separability, not_run)]


def _told_apart(plain: list[Row], baseline: str) -> str:
    last, better = plain[-1], [row for row in plain if row["low"] > 0.5]
    without = "Without a safety prompt" if baseline == NO_PROMPT else f"Under '{baseline}'"
    if not better:
        where = f"any of the {len(plain)} layers looked at: at layer {last['layer']}, the last of them, the"
        where = where if len(plain) > 1 else f"layer {last['layer']}, the only one looked at: the"
        return (
            f"{without} harmful and harmless queries cannot be told apart better than by chance at {where} AUC is "
            f"{_estimate(last, 'value')}."
        )
    first, best = better[0]["layer"], max(better, key=lambda row: row["value"])
    later = [row for row in plain if row["layer"] >= first]
    since = "at every layer looked at from" if len(later) == len(better) else "first at"
    clearest = f", most clearly at layer {best['layer']} (AUC {_estimate(best, 'value')})"
    clearest = clearest if best["value"] > last["value"] else ""
    at_last = "with" if last["low"] > 0.5 else "no better than by chance, with"
    return (
        f"{without} harmful queries are told from harmless ones at layer {last['layer']}, the last one looked at, "
        f"{at_last} an AUC of {_estimate(last, 'value')}; better than by chance {since} layer {first}{clearest}."
    )


def _easier(sweep: pd.DataFrame, plain: Row, prompt: str) -> str:
    own = _records(sweep[(sweep["measure"] == prompt) & (sweep["layer"] == plain["layer"])])
    if not own:
        return "No safety prompt was looked at, so whether one makes the classes easier to tell apart was not asked."
    row = own[0]
    found = f"Under '{prompt}' it is {_estimate(row, 'value')} there, "
    if row["low"] > plain["high"]:
        return f"{found}its whole interval above: the prompt makes the classes easier to tell apart."
    if row["high"] < plain["low"]:
        return f"{found}its whole interval below: the prompt makes the classes harder to tell apart."
    return f"{found}and the intervals overlap: that the prompt makes the classes easier to tell apart does not show."


def _control(separability: pd.DataFrame | None, not_run: NotRun | None) -> list[str]:
    if separability is None:
        return [_cannot("The control, the same with classes dealt out at random,", _why(not_run, "4"))]
    row = _by(separability, "labels")["shuffled"]
    found = f"With the classes dealt out at random the AUC is {_estimate(row, 'auc', 'auc_low', 'auc_high')}"
    if row["auc_low"] <= 0.5 <= row["auc_high"]:
        return [f"{found}, chance, as it must be; and what can be read from the states need not be used by the model."]
    return [f"{found}, which is not chance: with these queries the numbers above cannot be trusted."]


def what_prompts_move(
    *,
    similarity: pd.DataFrame | None = None,
    sites: pd.DataFrame | None = None,
    baseline: str = NO_PROMPT,
    n_prompts: int = 0,
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 03.

    Args:
        similarity: of `evidence.shift_similarity`, with `baseline`.
        sites: of `sweep.sites`.
        n_prompts: how many safety prompts there are.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> rows = [("alike", 0.8, 0.7, 0.9, 0.3), ("beyond the controls", 0.02, -0.01, 0.05, 0.1)]
        >>> similarity = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "null_high"])
        >>> said = findings.what_prompts_move(similarity=similarity.assign(baseline="none", n=20), n_prompts=3)
        >>> print(said[0])
        Two safety prompts move the queries in similar directions (mean cosine 0.800 [0.700, 0.900]; contrasts without
        meaning reach 0.300), but not more than a safety prompt and a control do, as far as these queries show
        (by +0.020 [-0.010, +0.050]).
    """
    if similarity is None:
        why = _why(not_run, "2")
        said = [_cannot("Whether safety prompts move the queries in similar directions", why)]
    else:
        rows = _by(similarity[similarity["baseline"] == baseline], "measure")
        said = [_alike(rows), _one_direction(rows)]
    return [*said, _where(sites, n_prompts, not_run)]


def _alike(rows: Mapping[str, Row]) -> str:
    alike, beyond = rows["alike"], rows.get("beyond the controls")
    if pd.isna(alike["value"]):
        return "The mean shifts of the safety prompts cannot be told from none, so neither can their directions."
    found = f"(mean cosine {_estimate(alike, 'value')}; contrasts without meaning reach {_number(alike['null_high'])})"
    if pd.isna(alike["low"]):
        return (
            "Whether two safety prompts move the queries in similar directions is not decided: of so few queries there "
            f"is no interval {found}."
        )
    if not alike["low"] > alike["null_high"]:
        return (
            "That two safety prompts move the queries in similar directions does not show: it is not sure that they "
            f"agree more than contrasts without meaning do {found}."
        )
    first = f"Two safety prompts move the queries in similar directions {found}"
    if not alike["low"] > claims.ALIKE.threshold:
        first += f" (the verdict of notebook 07 asks for a cosine above {claims.ALIKE.threshold:g})"
    if beyond is None or pd.isna(beyond["value"]):
        return f"{first}; beside controls they could not be set."
    by = f"(by {_estimate(beyond, 'value', sign=True)})"
    if beyond["low"] > 0:
        return f"{first}, more than a safety prompt and a control do {by}."
    if beyond["high"] < 0:
        return f"{first}, but less than a safety prompt and a control do {by}."
    return f"{first}, but not more than a safety prompt and a control do, as far as these queries show {by}."


def _one_direction(rows: Mapping[str, Row]) -> str:
    classes, shared = (rows.get(name) for name in ("classes alike", "share in 1 direction"))
    parts: list[str] = []
    if classes is not None and pd.notna(classes["value"]):
        sure = classes["low"] > classes["null_high"]
        how = "alike" if sure else "not surely more alike than contrasts without meaning are"
        parts.append(f"under one prompt harmful and harmless queries move {how} (cosine {_estimate(classes, 'value')})")
    if shared is not None and pd.notna(shared["value"]):
        share = _estimate(shared, "value")
        parts.append(f"one direction holds {share} of the squared mean shifts of all safety prompts")
    if not parts:
        return "What the shifts have in common cannot be told, either."
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def _where(sites: pd.DataFrame | None, n_prompts: int, not_run: NotRun | None) -> str:
    several = "one safety prompt is" if n_prompts == 1 else f"{n_prompts} safety prompts are"
    few = f"the intervals are over queries, and {several} no sample of all prompts"
    if sites is None:
        return f"{_cannot('Where in the network they turn the states to refusal', _why(not_run, '5'))[:-1]}; {few}."
    position = sites["position"].max()
    first = _by(sites[(sites["position"] == position) & (sites["site"] == "first")], "measure")
    parts = []
    if (harm := first.get("harmfulness")) is not None:
        there: str = "at none of these layers" if pd.isna(harm["layer"]) else f"first at layer {harm['layer']}"
        parts.append(f"harm can be read {there}")
    if (turn := first.get("refusal cosine")) is not None and pd.notna(turn["layer"]):
        parts.append(f"safety prompts turn the states towards refusal first at layer {turn['layer']}")
    elif turn is not None and turn["note"]:
        why = _first_sentence(turn["note"])
        parts.append(f"whether safety prompts turn the states towards refusal cannot be tested here ({why})")
    elif turn is not None:
        parts.append("a turn of the states towards refusal stands out at none of these layers")
    token = "the last token" if position == -1 else f"token {position}"
    return f"Of the layers looked at, at {token} {' and '.join(parts)}; {few}."


def refusal_direction(
    *,
    probes: pd.DataFrame | None = None,
    problem: str = "",
    verdicts: pd.DataFrame | None = None,
    neutral: str = "",
    prompt: str = "",
    telling: pd.DataFrame | None = None,
    reluctance: pd.DataFrame | None = None,
    doses: pd.DataFrame | None = None,
    removed: pd.DataFrame | None = None,
    layer: int | None = None,
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 04.

    Args:
        probes: of `probing.check_table`.
        problem: why there is no refusal probe.
        verdicts: of `evidence.shift_report`; no rows without a refusal probe.
        neutral: the name of the control among its prompts.
        prompt: the one of which `telling` (of `evidence.auc_change`) and `reluctance` (of `comparison.paired`) are.
        doses, removed: of `causal.dose_response` and `causal.ablation`, at `layer`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> telling = pd.DataFrame([{"change": 0.0, "low": -0.01, "high": 0.01, "auc": 0.8, "baseline_auc": 0.8,
        ...                          "baseline_error": 0.03}])
        >>> more = pd.DataFrame([{"group": "harmless", "difference": 0.2, "low": 0.1, "high": 0.3}])
        >>> found = {"problem": "No query is refused.", "prompt": "mine", "telling": telling, "reluctance": more}
        >>> print(*findings.refusal_direction(**found, not_run={"5. Causes": "No query is refused."}), sep="\\n")
        A direction of refusal cannot be tested here: No query is refused.
        Under 'mine' the model tells harm no better, as far as these queries show (by 0.00 [-0.010, +0.010] from an AUC
        of 0.800), and refuses harmless queries more often (by +0.200 [+0.100, +0.300]).
        Whether the direction causes refusals cannot be tested here: No query is refused.
    """
    causes = _causes(doses, removed, layer, _why(not_run, "5"))
    reads = _reads(probes, problem, _why(not_run, "2", "1"))
    known = verdicts is not None and len(verdicts) and not problem
    along = _along(verdicts, neutral) if known else ""  # type: ignore[arg-type]
    answer = reads if not along else f"{reads.rstrip('.')}, and {along}."
    return [answer, _reluctant(telling, reluctance, prompt, _why(not_run, "4", "1")), causes]


def _reads(probes: pd.DataFrame | None, problem: str, why: str) -> str:
    rows = None if probes is None else probes[probes["probe"] == "refusal"]
    if rows is None or rows.empty:
        return _cannot("A direction of refusal", _plainly(problem or why))
    row = _records(rows)[0]
    if row["problem"]:
        return _cannot("A direction of refusal", _plainly(row["problem"]))
    return (
        f"Whether the model refuses can be read from its states: AUC {_number(row['auc'])} on held-out queries, "
        f"against {_number(row['shuffled_low'])} to {_number(row['shuffled_high'])} with shuffled targets."
    )


def _along(verdicts: pd.DataFrame, neutral: str) -> str:
    """A clause: which prompts move the queries along the direction, and what the control does."""
    decided = verdicts[verdicts["safety_shift"].notna()]
    if decided.empty:
        return "whether prompts move the queries along it is not decided"
    yes = decided.groupby("prompt", sort=False)["safety_shift"].first().astype(bool)
    own, controls = yes.drop([neutral, NO_PROMPT, EMPTY_PROMPT], errors="ignore"), yes.get(neutral)
    cosines = decided[decided["prompt"].isin(own.index)]
    moved = own[own].index
    span = f"(cosines {_span(cosines['cosine'])})" if len(own) else ""
    if len(own) == 0:
        said = "no safety prompt was tried"
    elif len(moved) == 0:
        said = f"that {_along_it(own.index)} does not show {span}"
    else:
        others = own[~own].index
        said = f"{_along_it(moved)}{f', {_names(others)} not by these rules' if len(others) else ''} {span}"
    if controls is None:
        return said
    beside = _span(decided.loc[decided["prompt"] == neutral, "cosine"])
    return f"{said}; the control '{neutral}' does{' so, too' if controls else ' not'} ({beside})"


def _along_it(names: pd.Index) -> str:
    return f"{_names(names)} {'moves' if len(names) == 1 else 'move'} both classes along its direction"


def _sign(low: float, high: float) -> int:
    return 1 if low > 0 else -1 if high < 0 else 0


def _reluctant(telling: pd.DataFrame | None, reluctance: pd.DataFrame | None, prompt: str, why: str) -> str:
    if telling is None or reluctance is None or "harmless" not in set(reluctance["group"]):
        return _cannot("Whether a safety prompt makes the model better at telling harm, or only more reluctant,", why)
    seen, more = _records(telling)[0], _by(reluctance, "group")["harmless"]
    better = ("no better, as far as these queries show", "better", "less well")[_sign(seen["low"], seen["high"])]
    margin = max(seen["change"] - seen["low"], 2 * seen["baseline_error"])
    better = "no better than by chance" if max(seen["auc"], seen["baseline_auc"]) - margin < 0.5 else better
    often = ("no more often, as far as these queries show", "more often", "less often")[
        _sign(more["low"], more["high"])
    ]
    room = ", which leaves little room for a gain" if seen["baseline_auc"] > 0.98 else ""
    return (
        f"Under '{prompt}' the model tells harm {better} (by {_estimate(seen, 'change', sign=True)} from an AUC of "
        f"{_number(seen['baseline_auc'])}{room}), and refuses harmless queries {often} (by "
        f"{_estimate(more, 'difference', sign=True)})."
    )


def _causes(doses: pd.DataFrame | None, removed: pd.DataFrame | None, layer: int | None, why: str) -> str:
    if doses is None or removed is None:
        return _cannot("Whether the direction causes refusals", why)
    top = doses[(doses["dose"] == doses["dose"].max()) & ~doses["harmful"].astype(bool)]
    out = removed[removed["harmful"].astype(bool)]
    added, taken = (_records(part[part["kind"] == "direction"])[0] for part in (top, out))
    n = int((top["kind"] == "random").sum())
    tried = [
        (added["change_low"] > 0, added, f"added at layer {layer} ({added['dose']:g} typical shifts) it takes refusals "
         f"of harmless queries from {_number(added['refusal'] - added['change'])} to {_number(added['refusal'])}"
         + (f" ({n} random directions: {_span(top.loc[top['kind'] == 'random', 'refusal'])})" if n else "")),
        (taken["change_high"] < 0, taken, f"taken out there, it takes those of harmful ones from "
         f"{_number(taken['refusal'] - taken['change'])} to {_number(taken['refusal'])}"),
    ]  # fmt: skip
    notes = _plainly(*(row["note"] for _, row, _ in tried))
    shown = [bool(rises) and row["p_value"] <= LEVEL for rises, row, _ in tried]
    rests = f"(first tokens of {taken['n']} harmful and {added['n']} harmless held-out queries)"
    clauses = " and, ".join(words for _, _, words in tried) + f" {rests}"
    if notes:
        return f"Whether the direction causes refusals is not decided ({notes}): {clauses}."
    if n and 1 / (n + 1) > LEVEL:
        return f"Whether the direction causes refusals is not decided, with {n} random directions beside it: {clauses}."
    lead = {
        (True, True): "The direction causes refusals",
        (True, False): "Adding the direction causes refusals, but taking it out does not show to end them",
        (False, True): "Without the direction there are fewer refusals, but adding it does not show to cause any",
        (False, False): "That the direction causes refusals does not show",
    }[shown[0], shown[1]]
    return f"{lead}: {clauses}."


# ---------------------------------------------------------------- 05 to 08


def training(
    rates: pd.DataFrame,
    first_tokens: pd.DataFrame | None = None,
    moved: pd.DataFrame | None = None,
    *,
    problems: Sequence[str] = (),
    doubt: str = "",
    reason: str = "",
) -> list[str]:
    """Of notebook 05: did the trained prompt move the two classes apart, as far as the training queries tell?

    Args:
        rates: refusal rates under the human prompts, from `evidence.rate_table`.
        first_tokens: of each training query under the human prompt and then under the trained one, from
            `FirstTokenJudge.score`. None if nothing was trained.
        moved: where the queries' states were at each step, from `dro.movement`, if that is known.
        problems: what is known against the run.
        doubt: what is known against the refusal probe: then nothing is decided.
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
        asked = {True: "harmful queries", False: "harmless queries"}
        classes = [name for harmful, name in asked.items() if (rates["harmful"].astype(bool) == harmful).any()]
        which = classes[0] if len(classes) == 1 else "harmful queries and to harmless ones"
        return [
            f"Cannot be tested here: {reason}",
            f"Refused of the replies to {which}: {_rates_by_prompt(rates)}.",
            "What the human prompts do to other queries, notebooks 06 and 07 ask.",
        ]
    init, trained = first_tokens["prompt"].unique()
    wide = first_tokens.pivot(index=["query_id", "harmful"], columns="prompt", values="refusal")
    changes, steps = {}, []
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        part = wide.xs(harmful, level="harmful")
        changes[harmful] = mean_interval(part[trained] - part[init], range(len(part)), bounds=(-1, 1))
        then, now = (_number(float(part[prompt].mean())) for prompt in (init, trained))
        steps.append(f"from {then} to {now} for {name} ones ({tables.interval_words(*changes[harmful], sign=True)})")
    lead = f"It cannot be told ({_plainly(doubt)})" if doubt else _lead(changes[True], changes[False])
    return [
        f"{lead}: under the prompt that DRO trained from {shown(init)} the probability "
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
    shifts = (logits.iloc[:, -1] - logits.iloc[:, 0]).map(lambda value: _number(value, sign=True))
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
    own, human = _under(tests, trained), _turned(_under(tests, baseline))
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


def real_models(
    rates: pd.DataFrame,
    alike: pd.DataFrame,
    *,
    start: Mapping[str, str],
    problems: Mapping[str, str],
    verdicts: pd.DataFrame | None = None,
    controls: Sequence[str] = (),
    compared: pd.DataFrame | None = None,
    prompt: str = "",
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 09: one sentence for each model, and what a trained prompt did.

    Args:
        rates: `evidence.rate_table` of each `model`.
        alike: `evidence.shift_similarity` of each `model`.
        start: model → the prompt that its shifts start from.
        problems: model → what is known against its refusal probe, "" for nothing.
        verdicts: `evidence.shift_report` of each `model` that has a probe.
        controls: the prompts among them that are none of safety.
        compared: `comparison.paired` of each `model` with a trained prompt, against `prompt`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> rates = pd.DataFrame({"model": "mine", "prompt": "none", "harmful": [True, False], "value": [0.1, 0.0]})
        >>> alike = pd.DataFrame([{"model": "mine", "measure": "beyond the controls", "value": 0.3}])
        >>> limits = {"low": 0.0, "high": 0.4}
        >>> given = {"start": {"mine": "none"}, "problems": {"mine": "Hardly a query is refused."}}
        >>> print(*findings.real_models(rates.assign(**limits), alike.assign(low=0.2, high=0.4), **given), sep="\\n")
        'mine' refuses 0.100 [0.00, 0.400] of the harmful and 0.00 [0.00, 0.400] of the harmless queries under 'none'.
        Its safety prompts' shifts are more alike than that of one and a control (by +0.300 [+0.200, +0.400]). Whether
        they lie along its refusal direction cannot be tested here: Hardly a query is refused.
        What a trained prompt does cannot be tested here: no model has a refusal direction that can be read.
    """
    found = verdicts if verdicts is not None and len(verdicts) else pd.DataFrame(columns=["model", "prompt"])
    said = []
    for name, baseline in start.items():
        own = rates[(rates["model"] == name) & (rates["prompt"] == baseline)].set_index("harmful")
        each = [_estimate(dict(own.loc[harmful]), "value") for harmful in (True, False)]
        said.append(
            f"{shown(name)} refuses {each[0]} of the harmful and {each[1]} of the harmless queries under "
            f"{shown(baseline)}. {_beyond(alike[alike['model'] == name])} "
            f"{_moved_along(found[found['model'] == name], problems[name], controls)}"
        )
    return [*said, _trained(compared, prompt, _why(not_run, "5"))]


def _beyond(alike: pd.DataFrame) -> str:
    row = _by(alike, "measure").get("beyond the controls")
    if row is None:
        return "Its safety prompts' shifts are compared with no control."
    if pd.isna(row["value"]):
        return "How alike its safety prompts' shifts are cannot be told, since some cannot be told from none."
    how = ("as alike as", "more alike than", "less alike than")[_sign(row["low"], row["high"])]
    unsure = ", as far as these queries show" if _sign(row["low"], row["high"]) == 0 else ""
    by = _estimate(row, "value", sign=True)
    return f"Its safety prompts' shifts are {how} that of one and a control{unsure} (by {by})."


def _moved_along(verdicts: pd.DataFrame, problem: str, controls: Sequence[str]) -> str:
    if problem or verdicts.empty:
        return _cannot("Whether they lie along its refusal direction", problem or "there is no such direction")
    by_prompt = verdicts.groupby("prompt", sort=False)
    rises, shifts = by_prompt["logit_low"].min() > 0, by_prompt["safety_shift"].first().astype(bool)
    of_safety = {"safety prompts": ~rises.index.isin([*controls]), "controls": rises.index.isin([*controls])}
    parts = []
    for what, among in of_safety.items():
        if among.any():
            part = rises[among]
            names = _names(part[part].index) if part.any() else "none"
            cosines = _span(verdicts.loc[verdicts["prompt"].isin(part.index), "cosine"])
            parts.append(f"of {len(part)} {what} under {names} (cosines with it {cosines})")
    whole = _names(shifts[shifts].index) if shifts.any() else "none"
    return (
        "Its refusal logit, fitted without any prompt, rises in both classes "
        f"{' and '.join(parts)}; safety shifts by the rules of notebook 04, which ask for a cosine above .5: {whole}."
    )


def _trained(compared: pd.DataFrame | None, prompt: str, why: str) -> str:
    if compared is None or compared.empty:
        reason = why if why != "it was not run" else "no model has a refusal direction that can be read"
        return _cannot("What a trained prompt does", reason)
    said = []
    for name, part in compared.groupby("model", sort=False):
        trained = part.loc[~part["prompt"].isin([NO_PROMPT, EMPTY_PROMPT]), "prompt"].iloc[0]
        said.append(f"{shown(name)} refuses {_changes(_under(part, trained), trained, prompt)}")
    return f"On held-out queries {'; '.join(said)}."


def contenders(
    board: pd.DataFrame,
    ability: pd.DataFrame | None = None,
    broken: pd.DataFrame | None = None,
    moved: pd.DataFrame | None = None,
    *,
    controls: Collection[str] = (),
    left_out: Mapping[str, str] | None = None,
    not_run: NotRun | None = None,
) -> list[str]:
    """Of notebook 10: which safeguard is better than the one that it is compared with, what undoes it, what it costs?

    Args:
        board: of `comparison.board`; with a column `broke` (see `Contender.broke`) those that did are named.
        ability: of `evidence.capability`.
        broken: of `evidence.broken_by`, harmful queries.
        moved: of `evidence.attack_shifts`, harmful queries.
        controls: the attacks that are none.
        left_out: contender → why it could not be fitted.

    Examples:
        >>> import pandas as pd
        >>> from drolab import findings
        >>> rows = [("default", "baseline", "", ""), ("dro", "better", "harmful", ""), ("strong", "a trade", "harmful",
        ...         "harmless, ability")]
        >>> board = pd.DataFrame(rows, columns=["prompt", "decision", "gains", "losses"])
        >>> print(*findings.contenders(board, not_run={"3. Attacks": "No query."}), sep="\\n")
        Against 'default', better: 'dro' (harmful); a trade: 'strong' (harmful for harmless and ability).
        What attacks undo cannot be tested here: No query.
        What the contenders cost in ability cannot be tested here: it was not run.
    """
    return [_standing(board), _undone(broken, moved, controls, not_run), _cost(ability, left_out, not_run)]


def _standing(board: pd.DataFrame) -> str:
    start = board.loc[board["decision"] == comparison.BASELINE, "prompt"].iloc[0]
    said = []
    for decision in comparison.DECISIONS[1:]:
        found = board[board["decision"] == decision]
        if found.empty:
            continue
        if decision == comparison.NO_DIFFERENCE:
            said.append(f"no difference shows for {_names(found['prompt'])}")
            continue
        each = [f"{shown(row.prompt)} ({_what(row)})" for row in found.itertuples()]
        said.append(f"{decision}: {listed(each)}")
    broke = list(board.loc[board["broke"].astype(bool), "prompt"]) if "broke" in board else []
    flagged = (
        f" The model broke under {_names(broke)}: what that counts as refused or answered says nothing."
        if broke
        else ""
    )
    return f"Against {shown(start)}, {'; '.join(said) or 'there is no other contender'}.{flagged}"


def _what(row: Any) -> str:
    gains, losses = (listed(part.split(", ")) if part else "" for part in (row.gains, row.losses))
    return f"{gains} for {losses}" if gains and losses else gains or losses


def _undone(
    broken: pd.DataFrame | None, moved: pd.DataFrame | None, controls: Collection[str], not_run: NotRun | None
) -> str:
    if broken is None:
        return _cannot("What attacks undo", _why(not_run, "3"))
    sure = broken[(broken["p_holm"] < LEVEL) & (broken["low"] > 0)]
    said = []
    for attack, part in broken.groupby("attack", sort=False):
        own = sure[sure["attack"] == attack]
        name = f"{shown(attack)}, which attacks nothing," if attack in controls else shown(attack)
        if own.empty:
            said.append(f"{name} undoes none of {len(part)} surely")
            continue
        span = f"more harmful queries answered by {_number(own['difference'].min())} to "
        span += _number(own["difference"].max())
        said.append(f"{name} undoes {len(own)} of {len(part)} ({span})")
    harmless = [name for name in controls if name in set(sure["attack"])]
    told = ""
    if harmless:
        told = (
            f" So additions like {_names(harmless)} undo refusals by themselves, and nothing is known of the attacks."
        )
    elif moved is not None:
        told = _moved_back(moved[~moved["attack"].isin(list(controls))])
    return f"Of attacks on harmful queries, {'; '.join(said)}.{told}"


def _moved_back(moved: pd.DataFrame) -> str:
    known = moved[moved["moves_back"].notna()]
    if known.empty:
        return " Whether they move the state back along the refusal direction is not decided."
    each = [
        f"{shown(attack)} under {_names(part['prompt'])}"
        for attack, part in known[known["moves_back"].astype(bool)].groupby("attack", sort=False)
    ]
    return f" The state moves back along the refusal direction by {listed(each) if each else 'none of them'}."


def _cost(ability: pd.DataFrame | None, left_out: Mapping[str, str] | None, not_run: NotRun | None) -> str:
    missing = "".join(f" {shown(name)} could not be fitted: {why}" for name, why in (left_out or {}).items())
    if ability is None:
        return _cannot("What the contenders cost in ability", _why(not_run, "5")) + missing
    said = []
    for word, part in ((str(word), part) for word, part in ability.groupby("ability", sort=False)):
        verb = f"is {word}" if word in ("kept", "lost") else word
        said.append(f"{verb} under {_names(part['prompt'])}")
    return f"The model's ability {'; it '.join(said)}.{missing}"


def _any(averages: pd.DataFrame) -> str:
    said = []
    for (dataset, measure), part in averages.dropna(subset="any").groupby(["dataset", "measure"], sort=False):
        rows = part[["any", "any_low", "any_high", "prompt"]].itertuples(index=False, name=None)
        each = [f"{tables.interval_words(*row[:3])} under {shown(row[3])}" for row in rows]
        said.append(f"on {shown(dataset)} {measure} in any sample, {listed(each)}")
    return "; ".join(said) or "nothing under these prompts"


def _two_counts(counted: pd.DataFrame) -> str:
    wide = counted.pivot_table(index="model", columns="group", values="value", sort=False)
    if wide.shape[1] != 2:
        return "There is nothing to count in two ways here."
    place = int((wide.iloc[:, 0] - wide.iloc[:, 1]).abs().argmax())
    each = [f"{_number(value)} {group}" for group, value in wide.iloc[place].items()]
    model, prompt = shown(wide.index[place]), shown(counted["prompt"].iloc[0])
    return f"The two counts differ most for {model} (under {prompt}): {', '.join(each)}."


def _sure(tests: pd.DataFrame) -> str:
    sure, against = int((tests["p_holm"] < LEVEL).sum()), shown(tests["baseline"].iloc[0])
    are = "is" if sure == 1 else "are"
    return f"Of {_counted(len(tests), 'difference')} from {against}, {sure} {are} more than chance after correction."


def _lead(harmful: Any, harmless: Any) -> str:
    """Of the changes of both classes, with their limits (None is unknown): whether refusals rise for the one and fall
    for the other."""
    signs = [0 if one is None else _sign(one.low, one.high) for one in (harmful, harmless)]
    wanted = (signs[0] > 0) + (signs[1] < 0)
    if wanted:
        return "Yes" if wanted == 2 else "Only in part"
    return "No" if any(signs) else "It cannot be told from these data"


def _under(tests: pd.DataFrame, prompt: str) -> dict[str, Any]:
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
    each: list[str] = []
    under = f" under {shown(prompt)} than under {shown(other)}"
    for group, row in rows.items():
        change = ("neither surely more nor surely fewer", "more", "fewer")[_sign(row.low, row.high)]
        numbers = f"{_number(row.value)} against {_number(row.baseline_value)}, difference "
        numbers += tables.interval_words(row.difference, row.low, row.high, sign=True)
        each.append(f"{change} {group} ones{'' if each else under} ({numbers})")
    return listed(each)


def _rates_by_prompt(rates: pd.DataFrame) -> str:
    said = []
    for prompt, part in rates.sort_values("harmful", ascending=False, kind="stable").groupby("prompt", sort=False):
        each = [tables.interval_words(row.value, row.low, row.high) for row in part.itertuples()]
        said.append(f"{listed(each)} under {shown(prompt)}")
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
        said.append(f"{group} queries are refused {listed(each)}")
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
    others = "".join(f"; {decision}: {listed(texts)}" for decision, texts in found.items())
    return f"Of {n} claims of the verdict {supported} {'is' if supported == 1 else 'are'} supported{others}."


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _names(prompts: Iterable[object]) -> str:
    return listed([shown(prompt) for prompt in prompts])
