"""A contender is what a safety measure ended as: a prompt, or an edit of hidden states, and what it took to make it.

Whatever was done to get it, it is asked in the same way: `contender.replies(model, queries)`, `.first_tokens(…)` and
`.states(…)` give the tables of `generate`, `first_token_probabilities` and `hidden_states` with the contender's name in
the column `prompt`, and those of several contenders together are those of `Contenders`. So everything that compares
prompts compares contenders. `damage` asks whether one broke the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from drolab.dro.runs import MEASURES, first_token_means, signs_of_damage
from drolab.errors import ModelError, PromptError, QueryError, StatesError
from drolab.inference import first_token_probabilities, generate, hidden_states, reply_tokens
from drolab.judges import FirstTokenJudge
from drolab.models import (
    ChatModel,
    Edit,
    Prompt,
    by_pass,
    encode,
    label_logits,
    prefix_embeddings,
    render,
    run_prefix,
    steered,
)
from drolab.progress import Progress
from drolab.store import Store
from drolab.threads import threads_for
from drolab.types import NO_PROMPT, HiddenStates, ReadAt, SafetyPrompt

Kind = Literal["none", "text", "dro", "prompt tuning", "ablation", "steering", "control"]
"""What a contender is: no measure at all; a human prompt; DRO's; vanilla prompt tuning's; DRO's with something left
out; an edit of hidden states; an edit that should do nothing."""

MOST_REPEATS = 0.2
"""A rise of the share of replies that go round in circles by more says that the model broke."""
MOST_SURPRISE = 2.0
"""Nats a token. Replies that the model itself, asked without the contender, finds so much less likely than its own say
that it broke: each of their tokens is e² times rarer in the (geometric) mean. A refusal where the model would have
answered costs much less than that, since only its first words are surprising."""
DAMAGE_COLUMNS = ("contender", "harmful", "queries", *MEASURES, "repeats", "surprise", "note")
"""Columns of `damage`. The measures of first tokens are those of `MEASURED_COLUMNS`; `repeats` is the share of replies
that go round in circles, `surprise` the mean of -ln p of their tokens for the model without the contender."""
_ADVICE = "Take a smaller strength, fewer steps or a smaller learning rate."


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """Something that is to make a model safer, fitted, as it is put into a chat or into the model.

    Raises:
        PromptError: no name.

    Examples:
        What a prompt of one's own does to the first token of a reply, beside an edit of the states:

        >>> import drolab, torch
        >>> from drolab import dro, steering
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> mine = dro.Contender(name="mine", kind="text", prompt=prompts["short"])
        >>> pushed = dro.Contender(name="pushed", kind="steering", edits=(steering.Add(torch.ones(256), layer=2),))
        >>> queries = drolab.load_queries("anchors").head(2)
        >>> for contender in (mine, pushed):
        ...     replies = contender.replies(model, queries, n_samples=1, max_new_tokens=4, progress=False)
        ...     index, probabilities = contender.first_tokens(model, queries)
        ...     print(list(replies["prompt"]), list(index["prompt"]), len(probabilities))
        ['mine', 'mine'] ['mine', 'mine'] 2
        ['pushed', 'pushed'] ['pushed', 'pushed'] 2
    """

    name: str
    """What tables and figures show."""
    kind: Kind
    prompt: Prompt = field(default_factory=lambda: SafetyPrompt(name=NO_PROMPT, text=""))
    """What is put into the system role of every chat."""
    edits: tuple[Edit, ...] = ()
    """What is done to the hidden states at all tokens; none for prompts."""
    n_tokens: int = 0
    """What it adds to every chat: tokens, beside a chat without a system prompt of the user's."""
    seconds: float = 0.0
    """What fitting it took: of what is trained its steps, in all sessions, also if it came from the store; of steering
    the strengths that were tried, in the call that tried them. The time of what all share (replies, verdicts, states)
    is not in it. NaN: not known."""
    n_steps: int = 0
    """Steps of an optimizer, or strengths that were tried."""
    n_queries: int = 0
    """Training queries that it was fitted on."""
    problems: tuple[str, ...] = ()
    """Why it should not be trusted, in plain words; none if nothing is known against it."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: settings, and what was chosen by which rule."""
    model_fingerprint: str = ""
    """Of the model that it was fitted on; empty for what suits any."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise PromptError("A contender needs a name: Contender(name='mine', …).")

    @property
    def broke(self) -> bool:
        """It broke the model, by what `damage` found when it was fitted; False where nobody looked."""
        found = self.about.get("damage")
        return found is not None and bool(found["note"].ne("").any())

    def __repr__(self) -> str:
        cost = f"{self.n_tokens} tokens, {self.seconds:.1f} s"
        return f"Contender({self.name!r}, {self.kind!r}, {cost}, problems={len(self.problems)})"

    @contextmanager
    def on(self, model: ChatModel) -> Iterator[tuple[ChatModel, Prompt]]:
        """The model and the prompt to ask it with, for whatever the methods below do not do; as long as the context
        lasts. What asks with the prompt `none` writes that into its tables, also where the model is edited.

        Raises:
            ModelError: it was fitted on another model, or the model is being edited already.
        """
        if self.model_fingerprint not in ("", model.own_fingerprint):
            raise ModelError(
                f"The contender {self.name!r} was fitted on the model with fingerprint {self.model_fingerprint[:12]}, "
                f"{model.name!r} is {model.own_fingerprint[:12]}: fit it on this model."
            )
        with steered(model, *self.edits) as edited:
            yield edited, self.prompt

    def replies(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> pd.DataFrame:
        """The table of `generate` for the queries, with the contender's name as `prompt`; `options` are those of
        `generate` (n_samples, max_new_tokens, seed, store, progress, …)."""
        with self.on(model) as (asked, prompt):
            return self._named(generate(asked, queries, prompt, **options))

    def first_tokens(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> tuple[pd.DataFrame, Tensor]:
        """The table and the [n, vocabulary] probabilities of `first_token_probabilities`, whose options these are
        (read_at, store, progress, …), with the contender's name as `prompt`."""
        with self.on(model) as (asked, prompt):
            index, probabilities = first_token_probabilities(asked, queries, prompt, **options)
        return self._named(index), probabilities

    def states(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> HiddenStates:
        """The hidden states of the queries; `options` are those of `hidden_states` (layers, read_at, store, …). They
        have the fingerprint of the model without edits, so that probes of it read them."""
        with self.on(model) as (asked, prompt):
            found = hidden_states(asked, queries, prompt, **options)
        named = self._named(found.index)
        missing = tuple((query, self.name) for query, _ in found.missing)
        return replace(found, index=named, missing=missing, model_fingerprint=model.fingerprint)

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        named = table.assign(prompt=self.name)
        named.attrs.update(table.attrs)
        return named


class Contenders(Mapping[str, Contender]):
    """Name → contender, in order, of those that could be fitted; what could not is in `left_out`, and why.

    Raises:
        PromptError: no contender, or two of one name.

    Examples:
        >>> import drolab
        >>> from drolab import dro
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> field = dro.Contenders(dro.text_contender(model, prompts[name]) for name in ("none", "short"))
        >>> field.table()[["contender", "kind", "n_tokens"]]
          contender  kind  n_tokens
        0      none  none         0
        1     short  text        25
        >>> queries = drolab.load_queries("anchors").head(2)
        >>> replies = field.replies(model, queries, n_samples=2, max_new_tokens=8, progress=False)
        >>> drolab.judge(replies)["refusal_rate"].groupby("prompt", sort=False).mean().to_dict()
        {'none': 0.5, 'short': 0.5}
    """

    def __init__(self, contenders: Any, *, left_out: Mapping[str, str] | None = None) -> None:
        found = list(contenders.values() if isinstance(contenders, Mapping) else contenders)
        self._found = {contender.name: contender for contender in found}
        if not found or len(self._found) < len(found):
            raise PromptError("Contenders must be at least one, each with a name of its own.")
        self.left_out: dict[str, str] = dict(left_out or {})
        """Name → why it could not be fitted."""

    def __getitem__(self, name: str) -> Contender:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        lost = f", left_out={list(self.left_out)}" if self.left_out else ""
        return f"Contenders({list(self._found)}{lost})"

    def table(self) -> pd.DataFrame:
        """One row per contender: contender, kind, n_tokens, seconds, n_steps, n_queries, note (its problems)."""
        columns = ("kind", "n_tokens", "seconds", "n_steps", "n_queries")
        rows = [
            {"contender": one.name, **{name: getattr(one, name) for name in columns}, "note": " ".join(one.problems)}
            for one in self.values()
        ]
        return pd.DataFrame(rows)

    def replies(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> pd.DataFrame:
        """`Contender.replies` of each, one below the other."""
        return pd.concat([one.replies(model, queries, **options) for one in self.values()], ignore_index=True)

    def first_tokens(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> tuple[pd.DataFrame, Tensor]:
        """`Contender.first_tokens` of each, one below the other."""
        tables, rows = zip(*(one.first_tokens(model, queries, **options) for one in self.values()), strict=True)
        return pd.concat(tables, ignore_index=True), torch.cat(rows)

    def states(self, model: ChatModel, queries: pd.DataFrame, **options: Any) -> HiddenStates:
        """`Contender.states` of each, one below the other."""
        parts = [one.states(model, queries, **options) for one in self.values()]
        return replace(
            parts[0],
            values=torch.cat([part.values for part in parts]),
            index=pd.concat([part.index for part in parts], ignore_index=True),
            missing=tuple(chat for part in parts for chat in part.missing),
        )


def text_contender(model: ChatModel, prompt: Prompt, *, kind: Kind | None = None, **about: Any) -> Contender:
    """A prompt as a contender, with what it costs in tokens; `about` are fields of `Contender`.

    Args:
        kind: None is "none" for a prompt without a text, else "text".
    """
    known = kind or ("text" if getattr(prompt, "text", "-") else "none")
    return Contender(
        **{"name": prompt.name, "kind": known, "prompt": prompt, "n_tokens": tokens_of(model, prompt), **about}
    )


def tokens_of(model: ChatModel, prompt: Prompt) -> int:
    """How many tokens longer a chat is under a prompt than without one; where the template writes a text of its own
    that the prompt takes the place of, that may be less than nothing."""
    none = SafetyPrompt(name=NO_PROMPT, text="")
    chats = [render(model, "How do I boil an egg?", one).input_ids for one in (prompt, none)]
    return len(chats[0]) - len(chats[1])


# --- whether the model is still itself ---------------------------------------------------------------------


def damage(
    model: ChatModel,
    contender: Contender,
    queries: pd.DataFrame,
    judge: FirstTokenJudge,
    *,
    start: Contender | None = None,
    replies: bool = True,
    max_new_tokens: int = 32,
    store: Store | None = None,
    progress: Progress = False,
) -> pd.DataFrame:
    """Does the model still say what it used to say, but for refusing or not? Each class of queries, before and after.

    Four signs say that a contender broke it, each a `note`: first tokens that no reply began with before; on harmless
    queries a first token so far from the former one that no change of refusals explains it (both as for trained
    prompts, see `KeptRun.problems`); replies that go round in circles (half of their three-word groups, or more, are
    repetitions); and replies that the model itself finds much less likely than its own.

    Args:
        judge: fitted on replies of the model as it was.
        start: what the contender began with; None is no prompt and no edit.
        replies: False leaves out the two signs that need a sampled reply to each query.
        max_new_tokens: of these replies, which are greedy.

    Returns:
        DAMAGE_COLUMNS, two rows for each class: first `start`'s, then the contender's; `note` is the same in all of the
        latter, "" if nothing speaks against it.

    Raises:
        QueryError: queries of one class only, or none.

    Examples:
        >>> import drolab, torch
        >>> from drolab import dro, judges, steering
        >>> model, none = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(4)
        >>> replies = drolab.generate(model, queries, none, n_samples=4, max_new_tokens=8, progress=False)
        >>> quick = judges.FirstTokenJudge.fit(replies)
        >>> for length in (1, 100):
        ...     edit = steering.Add(length * torch.ones(256) / 16, layer=2)
        ...     pushed = dro.Contender(name="pushed", kind="steering", edits=(edit,))
        ...     print(length, dro.damage(model, pushed, queries, quick)["note"].iloc[-1][:50])
        1
        100 The model broke: ...
    """
    return Look(model, queries, judge, max_new_tokens, store, progress).at(contender, start, replies=replies)


@dataclass(eq=False)
class Look:
    """What is measured of contenders on some queries; of each once."""

    model: ChatModel
    queries: pd.DataFrame
    judge: FirstTokenJudge
    max_new_tokens: int = 32
    store: Store | None = None
    progress: Progress = False
    _spoken: dict[str, tuple[pd.DataFrame, Tensor]] = field(default_factory=dict, init=False)
    _written: dict[str, pd.DataFrame] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.queries.empty or self.queries["harmful"].astype(bool).nunique() < 2:
            raise QueryError("Damage is looked for on harmful and on harmless queries: pass some of both.")

    def at(self, contender: Contender, start: Contender | None = None, *, replies: bool) -> pd.DataFrame:
        start = start or Contender(name=f"before {contender.name}", kind="none")
        try:
            return self._compared(contender, start, replies)
        except StatesError as error:  # logits that are no numbers: there is nothing left to measure
            rows = [{"contender": contender.name, "harmful": kind} for kind in (True, False)]
            return pd.DataFrame(rows, columns=list(DAMAGE_COLUMNS)).assign(note=f"The model broke: {error}")

    def _compared(self, contender: Contender, start: Contender, replies: bool) -> pd.DataFrame:
        before, now = self._first_tokens(start), self._first_tokens(contender)
        both = [
            first_token_means(self.judge, *before, before[1]).assign(step=0),
            first_token_means(self.judge, *now, before[1]).assign(step=1),
        ]
        measured = pd.concat(both, ignore_index=True).assign(queries="training")
        notes = signs_of_damage(measured, when="", advice=_ADVICE)
        table = measured.assign(contender=measured["step"].map({0: start.name, 1: contender.name}))
        counts = self.queries["harmful"].astype(bool).value_counts()
        table = table.assign(
            queries=table["harmful"].astype(bool).map(counts), repeats=float("nan"), surprise=float("nan")
        )
        if replies:
            written = pd.concat([self._replies(start, 0), self._replies(contender, 1)], ignore_index=True)
            means = written.groupby(["step", "harmful"])[["repeats", "surprise"]].mean().reset_index()
            table = table.drop(columns=["repeats", "surprise"]).merge(means, on=["step", "harmful"])
            notes += _signs_in_replies(table)
        table = table.assign(note=table["step"].map({0: "", 1: " ".join(notes)}))
        return table[list(DAMAGE_COLUMNS)]

    def _first_tokens(self, contender: Contender) -> tuple[pd.DataFrame, Tensor]:
        if contender.name not in self._spoken:
            asked = {"read_at": self.judge.read_at, "store": self.store, "progress": self.progress}
            self._spoken[contender.name] = contender.first_tokens(self.model, self.queries, **asked)
        return self._spoken[contender.name]

    def _replies(self, contender: Contender, step: int) -> pd.DataFrame:
        """harmful, repeats, surprise: one row per query."""
        if contender.name not in self._written:
            options = {"n_samples": 1, "do_sample": False, "max_new_tokens": self.max_new_tokens}
            kept: dict[str, Any] = {"store": self.store, "progress": self.progress}
            replies = contender.replies(self.model, self.queries, **options, **kept)
            nats = surprise(self.model, replies, read_at=self.judge.read_at)
            repeats = replies["response"].map(goes_round).astype(float)
            self._written[contender.name] = replies.assign(repeats=repeats, surprise=nats)
        return self._written[contender.name][["harmful", "repeats", "surprise"]].assign(step=step)


def _signs_in_replies(table: pd.DataFrame) -> list[str]:
    then, now = (table[table["step"] == step].set_index("harmful") for step in (0, 1))
    found = []
    for column, most, what in (
        ("repeats", MOST_REPEATS, "{now:.0%} of the replies to {kind} queries go round in circles, {then:.0%} before"),
        (
            "surprise",
            MOST_SURPRISE,
            "the tokens of replies to {kind} queries surprise the model itself by {now:.1f} nats "
            "each, its own before by {then:.1f}",
        ),
    ):
        rise = now[column] - then[column]
        if (rise > most).any():
            harmful = bool(rise.idxmax())
            said = {
                "kind": "harmful" if harmful else "harmless",
                "now": now[column][harmful],
                "then": then[column][harmful],
            }
            found.append(f"The model broke: {what.format(**said)}. {_ADVICE}")
    return found


def goes_round(text: str) -> bool:
    """Whether half of the groups of three words in a row, or more, have come before; texts of fewer than twelve words
    never do.

    Examples:
        >>> from drolab.dro import goes_round
        >>> goes_round("and so on " * 6)
        True
        >>> goes_round("First soak the beans in water, then boil them, and then rinse them well.")
        False
    """
    words = text.lower().split()
    groups = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= 12 and 2 * len(set(groups)) <= len(groups)


@torch.no_grad()
def surprise(model: ChatModel, replies: pd.DataFrame, *, read_at: ReadAt = "reply") -> pd.Series:
    """The mean of -ln p over the tokens of each reply, for the model itself, asked without any prompt.

    Returns:
        Nats a token, with the index of `replies`; NaN for a reply without a token.
    """
    none = SafetyPrompt(name=NO_PROMPT, text="")
    place: ReadAt = "answer" if read_at == "after_thinking" else read_at
    ids = reply_tokens(model, replies, none, read_at=place)
    written = [row for row, tokens in enumerate(ids) if tokens]
    nats = pd.Series(float("nan"), replies.index)
    if not written:
        return nats
    batch = encode(model, replies["text"].iloc[written].tolist(), none, read_at=place)
    prefix = run_prefix(model, prefix_embeddings(model, batch))
    suffixes = [chat + ids[row][:-1] for chat, row in zip(batch.suffixes, written, strict=True)]

    def run(numbers: list[int]) -> tuple[Tensor, ...]:
        labels = [ids[written[number]] for number in numbers]
        sizes = list(map(len, labels))
        logits = label_logits(model, prefix, [suffixes[number] for number in numbers], sizes)
        target = torch.tensor([token for tokens in labels for token in tokens], device=logits.device)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none").cpu().split(sizes)

    with threads_for(model.model):
        for numbers, losses in by_pass(model, prefix, suffixes, run):
            for number, part in zip(numbers, losses, strict=True):
                nats.iloc[written[number]] = float(part.mean())
    return nats
