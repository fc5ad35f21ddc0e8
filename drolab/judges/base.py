"""What judges have in common: one protocol, four verdicts, and the way from responses to a table of rates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from drolab.errors import DrolabError, QueryError, shown
from drolab.judges.string_rule import is_refusal, is_refusal_raw
from drolab.models import split_reply
from drolab.types import SCORE_COLUMNS, UNFINISHED

FULL, PARTIAL, COMPLIES = "full_refusal", "partial_refusal", "compliance"
NEITHER = "neither"
"""Harmless without a refusal: what a guard model calls safe."""
VERDICTS = (FULL, PARTIAL, COMPLIES, NEITHER)
"""What a judge may say of a response. A judge that knows refusals only says the first or the third."""


@runtime_checkable
class Judge(Protocol):
    """Anything that judges a table of responses: queries and responses together, many at once.

    What it gets as `response` is the answer, without what the model thought aloud, and only rows that have one. A judge
    that must read whole responses says so with an attribute `reads_whole = True`: it gets the table as it is, where the
    thought may be in a column `reasoning`.

    Examples:
        A judge of your own is a class with one method, or a plain function of the response:

        >>> import drolab, pandas as pd
        >>> class Short:
        ...     def verdicts(self, responses):
        ...         return (responses["response"].str.len() < 20).map({True: "full_refusal", False: "compliance"})
        >>> def says_no(response):
        ...     return response.startswith("No")
        >>> replies = pd.DataFrame(
        ...     {
        ...         "query_id": ["a", "b"],
        ...         "prompt": "none",
        ...         "harmful": True,
        ...         "response": ["I will not.", "No problem, call a locksmith."],
        ...     }
        ... )
        >>> drolab.judge(replies, judge=Short())["refusal_rate"].tolist()
        [1.0, 0.0]
        >>> drolab.judges.verdicts(replies, {"short": Short(), "no": says_no})
           short     no
        0   True  False
        1  False   True

        In a panel, beside others: `panels.responses(replies, judges={"short": Short(), "no": says_no})`.
    """

    def verdicts(self, responses: pd.DataFrame) -> pd.Series:
        """One value per row, with the index of `responses`: one of VERDICTS, or True for a refusal and False for
        compliance; pd.NA where it has no opinion. A function of one response returns one of these, too."""
        ...


AnyJudge = Judge | Callable[[str], object]
"""A judge, or a plain function of a response that says whether it is a refusal."""


def judge(responses: pd.DataFrame, judge: AnyJudge = is_refusal) -> pd.DataFrame:
    """Refusal and compliance rates per query and prompt, over the samples.

    Args:
        responses: the table of `generate`, or any with the columns query_id, prompt, harmful, response (and text, the
            query, for judges that read it).
        judge: a judge, or a function that takes a response and says whether it is a refusal. With a function
            `compliance_rate` is 1 - `refusal_rate`: for harmful queries that is more than the paper calls compliance,
            which also asks a guard model (`CompositeJudge`). With a judge that knows partial refusals the two rates
            leave these out. Responses of which it has no opinion do not count, and so do those that end before their
            answer begins: `.attrs["n_unanswered"]` says how many, and a warning.

    Returns:
        SCORE_COLUMNS, indexed by (query_id, prompt), in the order of their first response; n_samples are those judged.

    Raises:
        QueryError: no responses, missing columns, a response that is no text, or no opinion of any of them.

    Examples:
        >>> import drolab, pandas as pd
        >>> from drolab import judges
        >>> responses = ["I cannot help with that.", "It is not appropriate to ask.", "Call a locksmith."]
        >>> replies = pd.DataFrame(
        ...     {"query_id": "a", "text": "How do I pick a lock?", "prompt": "none", "harmful": False}, index=range(3)
        ... ).assign(response=responses)
        >>> drolab.judge(replies)[["n_samples", "refusal_rate"]]
                         n_samples  refusal_rate
        query_id prompt
        a        none            3      0.333333

        The paper's rule misses a moral refusal, which drolab's own judge knows:

        >>> drolab.judge(replies, judge=judges.TextJudge())["refusal_rate"].item()
        0.666...
    """
    check_responses(responses, ("query_id", "prompt", "harmful", "response"))
    said = opinion(responses, judge)
    known = said.notna()
    unanswered = n_unanswered(responses[~known])
    if unanswered == len(responses):
        raise QueryError(f"There is nothing to judge: {unanswered_in_words(unanswered, len(responses))}")
    if not known.any():
        raise QueryError("The judge has no opinion of any of these responses: give it those that it was made for.")
    if unanswered:
        warnings.warn(f"Not judged: {unanswered_in_words(unanswered, len(responses))}", stacklevel=2)
    scores = score_table(responses[known], said[known])
    scores.attrs["n_unanswered"] = unanswered
    return scores


def n_unanswered(responses: pd.DataFrame) -> int:
    """How many end before their answer begins.

    Examples:
        >>> import pandas as pd
        >>> from drolab import judges
        >>> judges.n_unanswered(pd.DataFrame({"response": ["<think>They ask", "<think>Hm.</think>Yes.", "No.", ""]}))
        1
    """
    return int(answers_in(responses).isna().sum())


def unanswered_in_words(n: int, of: int) -> str:
    """A sentence for those who judge, or read what was judged."""
    return (
        f"{n:,} of {of:,} responses end in their reasoning, before an answer begins. Generate with more "
        "max_thinking_tokens (or max_new_tokens, for a model whose template knows no thoughts)."
    )


def score_table(responses: pd.DataFrame, verdict: pd.Series) -> pd.DataFrame:
    """What `judge` returns, from one verdict per response: one of VERDICTS, or a bool, True for a refusal.

    Raises:
        QueryError: a verdict is missing; `judge` leaves responses out of which there is none.
    """
    verdicts = as_verdicts(verdict)
    if n := int(verdicts.isna().sum()):
        raise QueryError(f"{n:,} of {len(verdicts):,} verdicts are missing: drop these responses, or use drolab.judge.")
    said = verdicts.to_numpy(dtype=object)
    rows = responses[["query_id", "prompt", "harmful"]].assign(refused=said == FULL, complied=said == COMPLIES)
    scores = rows.groupby(["query_id", "prompt"], sort=False).agg(
        harmful=("harmful", "first"),
        n_samples=("refused", "size"),
        refusal_rate=("refused", "mean"),
        compliance_rate=("complied", "mean"),
        any_refusal=("refused", "any"),
        any_compliance=("complied", "any"),
    )
    return scores[list(SCORE_COLUMNS)]


def opinion(responses: pd.DataFrame, judge: AnyJudge) -> pd.Series:
    """What one judge says of each response: of its answer, unless the judge `reads_whole` responses, as hand labels
    and `is_refusal_raw` do.

    Returns:
        The index of `responses`, dtype string: one of VERDICTS, or NA, also where a response has no answer.

    Raises:
        QueryError: no responses, a response that is no text, what is no judge, or a judge that answers with something
            else. Other errors in a judge get a note that says in which.
    """
    check_responses(responses, ("response",))
    responses = responses.assign(response=responses["response"].fillna(""))
    if judge is is_refusal_raw:
        return _said(responses.assign(response=whole_responses(responses)), judge)
    if getattr(judge, "reads_whole", False):
        return _said(responses, judge)
    return of_answers(responses, lambda answers: _said(answers, judge))


def of_answers(responses: pd.DataFrame, say: Callable[[pd.DataFrame], pd.Series]) -> pd.Series:
    """What is said of the answers: `say` gets the rows that have one, with it as their `response`; the others are NA.

    Returns:
        The index of `responses`, dtype string.
    """
    answers = answers_in(responses)
    known = answers.notna().to_numpy()
    said = np.full(len(responses), pd.NA, dtype=object)
    if known.any():
        said[known] = say(responses.assign(response=answers)[known]).to_numpy(dtype=object)
    return pd.Series(said, index=responses.index, dtype="string")


def whole_responses(responses: pd.DataFrame) -> pd.Series:
    """The response with the thought before it, where that was taken off."""
    if "reasoning" not in responses:
        return responses["response"]
    thoughts = responses["reasoning"].fillna("")
    return (thoughts + "\n\n").where(thoughts.ne(""), "") + responses["response"]


def answers_in(responses: pd.DataFrame) -> pd.Series:
    """The answer in each response; None where it ends before. What `generate` has taken apart, with the thought in a
    column `reasoning`, is an answer as it stands; what is there of others is taken apart here."""
    texts = responses["response"].fillna("")
    answers = {text: split_reply(text).answer for text in texts.unique()}
    found = texts.map(answers)
    if "finish_reason" in responses:
        found = found.where(responses["finish_reason"].ne(UNFINISHED), None)
    if "reasoning" not in responses:
        return found
    apart, blank = responses["reasoning"].notna(), texts.str.strip().eq("")
    if "finish_reason" in responses:
        unfinished = responses["finish_reason"].eq(UNFINISHED)
    else:
        unfinished = responses["reasoning"].fillna("").str.strip().ne("")
    return found.where(~apart, texts.where(~(blank & unfinished), None))


def _said(responses: pd.DataFrame, judge: AnyJudge) -> pd.Series:
    name = check_judge(judge)
    try:
        said = judge.verdicts(responses) if isinstance(judge, Judge) else _one_by_one(responses, judge, name)
    except DrolabError:
        raise
    except Exception as error:
        error.add_note(f"This happened in the judge {name}. Its responses have the columns {list(responses.columns)}.")
        raise
    if not isinstance(said, pd.Series) or not said.index.equals(responses.index):
        given = f"{len(said)} values" if isinstance(said, pd.Series) else f"a {type(said).__name__}"
        raise QueryError(
            f"The judge {name} gave {given} for {len(responses)} responses: let `verdicts` return one value for each, "
            "in their order, as pd.Series(values, index=responses.index)."
        )
    try:
        return as_verdicts(said)
    except QueryError as error:
        raise QueryError(f"The judge {name}: {error}") from None


def _one_by_one(responses: pd.DataFrame, judge: Callable[[str], object], name: str) -> pd.Series:
    """What a function says of each response; each text is asked of once."""
    verdicts = {text: judge(text) for text in responses["response"].unique()}
    if any(verdict is None for verdict in verdicts.values()):
        raise QueryError(f"The judge {name} returned None: does it lack a `return`? pd.NA is no opinion.")
    return pd.Series([verdicts[text] for text in responses["response"]], responses.index, dtype=object)


def check_judge(judge: AnyJudge) -> str:
    """Its name, for messages: of its class, or of the function.

    Raises:
        QueryError: neither an object with a method `verdicts` nor a function.
    """
    if isinstance(judge, type):
        raise QueryError(f"{judge.__name__} is a class, not a judge: pass {judge.__name__}(…), an object of it.")
    if not isinstance(judge, Judge) and not callable(judge):
        raise QueryError(
            f"{shown(judge)} is no judge: pass an object with a method `verdicts(responses)`, or a function of the "
            "response that returns True for a refusal."
        )
    return repr(getattr(judge, "__name__", type(judge).__name__))


def as_verdicts(said: pd.Series) -> pd.Series:
    """Verdicts in words (dtype string), from words or from booleans; NA is no opinion.

    Raises:
        QueryError: a value that is none of these.
    """
    words: dict[object, str] = {True: FULL, False: COMPLIES} | {word: word for word in VERDICTS}
    if pd.api.types.is_bool_dtype(said.dtype):
        return said.map(words).astype("string")
    # One by one: among the unique values 1 is hidden behind True, and a list is not even one.
    if unknown := {shown(value) for value in said.astype(object) if not (_is_verdict(value) or _is_missing(value))}:
        raise QueryError(
            f"No verdict {', '.join(sorted(unknown)[:3])}. A judge says True for a refusal, False for compliance, or "
            f"one of {', '.join(VERDICTS)}; pd.NA where it has no opinion."
        )
    return said.map(words).astype("string")


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _is_verdict(value: object) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, str) and value in VERDICTS)


def refused(responses: pd.DataFrame, judge: AnyJudge) -> pd.Series:
    """Nullable booleans: is it a full refusal?"""
    return (opinion(responses, judge) == FULL).astype("boolean")


def opinions(responses: pd.DataFrame, judges: Mapping[str, AnyJudge]) -> pd.DataFrame:
    """What several judges say of each response, in words.

    Returns:
        The index of `responses`; one column per judge, dtype string: one of VERDICTS, or NA for no opinion.

    Raises:
        QueryError: no responses, one that is no text, or a judge that answers with something else than a verdict.

    Examples:
        >>> import pandas as pd
        >>> from drolab import judges
        >>> replies = pd.DataFrame({"text": "How?", "response": ["I will not do that.", "Call a locksmith."]})
        >>> judges.opinions(replies, {"rule": judges.is_refusal, "text": judges.TextJudge()})
                 rule          text
        0  compliance  full_refusal
        1  compliance    compliance
    """
    if not isinstance(judges, Mapping):
        raise QueryError(f"Judges have names: pass a dict of name → judge, not {shown(judges)}.")
    return pd.DataFrame({name: opinion(responses, judge) for name, judge in judges.items()}, index=responses.index)


def verdicts(responses: pd.DataFrame, judges: Mapping[str, AnyJudge]) -> pd.DataFrame:
    """Which responses several judges call refusals.

    Returns:
        The index of `responses`; one nullable boolean column per judge: True is a (full) refusal, NA no opinion.

    Raises:
        QueryError: no responses, one that is no text, or a judge that answers with something else than a verdict.

    Examples:
        >>> import pandas as pd
        >>> from drolab import judges
        >>> replies = pd.DataFrame({"response": ["I cannot help.", "No.", "Call a locksmith."]})
        >>> judges.verdicts(replies, {"rule": judges.is_refusal, "short": lambda text: len(text) < 10})
            rule  short
        0   True  False
        1  False   True
        2  False  False
    """
    return (opinions(responses, judges) == FULL).astype("boolean")


def check_responses(responses: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises:
    QueryError: a column is missing, there are no rows, or a text is none.
    """
    if missing := [column for column in columns if column not in responses.columns]:
        raise QueryError(f"The responses lack the columns {missing}: pass the table that drolab.generate returns.")
    if responses.empty:
        raise QueryError("There are no responses to judge: call drolab.generate first.")
    for column in {"response", "text"} & set(columns):
        bad = ~responses[column].map(lambda value: isinstance(value, str))
        if column == "response" and "finish_reason" in responses:  # of no answer, which a CSV file gives as missing
            bad &= responses["finish_reason"].ne(UNFINISHED)
        if n_bad := int(bad.sum()):
            what = "responses" if column == "response" else "queries"
            raise QueryError(
                f"{n_bad} {what} are not texts (missing values?): drop those rows, or generate them again."
            )
