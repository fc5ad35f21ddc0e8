"""Other objectives over the same training: vanilla prompt tuning, the baseline that the paper trains beside DRO.

Where DRO moves hidden states, prompt tuning goes by replies: those that the model gave and a judge has read. The prompt
is trained to make refusals of harmful queries and answers to harmless ones likely, and the opposite unlikely (the
unlikelihood loss of Welleck et al. 2020, arXiv 1908.04319; paper, section 5, and `train_unlikelihood.py` of its code).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from drolab import store as stores
from drolab.data import validate_queries
from drolab.dro.training import PromptTraining, beginning, check_both_classes, train_to_the_end
from drolab.errors import ModelError, QueryError, TooFewError, TrainingError, shown
from drolab.inference import reply_tokens
from drolab.judges import AnyJudge, is_refusal, opinion
from drolab.models import ChatModel, EncodedBatch, Prefix, Prompt, encode, label_logits
from drolab.progress import Progress
from drolab.types import NO_PROMPT, REASONING_COLUMNS, ReadAt, SoftPrompt

REFUSED, ANSWERED = "full_refusal", "compliance"
"""The verdicts that replies are learned from. What a judge calls a partial refusal, or neither, teaches neither."""
SURELY = 1e-5
"""The least that 1 - p counts as in the unlikelihood of a token of probability p, as in the paper's code: a token that
is surer has no gradient."""
FEWEST_QUERIES = 10
"""So many queries at least must have shown what the prompt is to learn of their class, for the run to be trusted."""


@dataclass(frozen=True, kw_only=True)
class PromptTuningConfig:
    """Settings of prompt tuning. The defaults are those of the paper's code for all its models but two:
    `PromptTuningConfig.preset("paper llama-2")` is for Llama-2-chat and CodeLlama-Instruct."""

    learning_rate: float = 1e-3
    """AdamW's, with torch's other defaults."""
    num_train_epochs: int = 5
    batch_size: int = 50
    """Replies. What does not fill a batch at the end of an epoch is left out of it, unless it is all there is."""
    max_grad_norm: float = 1.0
    seed: int = 42
    """Seeds `random.Random`, which shuffles the index list once per epoch."""
    max_steps: int | None = None
    """End after so many steps, in whichever epoch that is, or go on for so many; None goes by epochs."""
    likelihood_weight: float = 1.0
    """Of the replies that are to become likely; 0 switches the term off."""
    unlikelihood_weight: float = 1.0
    """Of those that are to become unlikely; 0 switches the term off. The paper's code has 5 for the two above."""
    max_reply_tokens: int = 101
    """Of each reply, from its beginning, with its end token if there is one among them."""
    checkpoint_every: int = 20
    """Steps between checkpoints, when a store is given."""

    def __post_init__(self) -> None:
        positive = ("learning_rate", "num_train_epochs", "batch_size", "max_grad_norm", "max_reply_tokens")
        for name in (*positive, "checkpoint_every", *(["max_steps"] if self.max_steps is not None else [])):
            if not getattr(self, name) > 0:
                raise TrainingError(f"PromptTuningConfig.{name} must be above 0, got {getattr(self, name)}.")
        both = (self.likelihood_weight, self.unlikelihood_weight)
        if not all(weight >= 0 for weight in both) or not any(both):
            raise TrainingError(
                f"The weights of likelihood and unlikelihood must not be negative, and not both 0, got {both}."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PromptTuningConfig:
        """`paper` (the default), or `paper llama-2` (five times the unlikelihood), with any field changed.

        Examples:
            >>> from drolab.dro import PromptTuningConfig
            >>> PromptTuningConfig.preset("paper llama-2", seed=1).unlikelihood_weight
            5.0
        """
        presets: dict[str, dict[str, Any]] = {"paper": {}, "paper llama-2": {"unlikelihood_weight": 5.0}}
        if name not in presets:
            raise TrainingError(f"No preset {name!r} of prompt tuning: choose one of {sorted(presets)}.")
        return cls(**{**presets[name], **changes})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTuningStep:
    """One optimisation step of prompt tuning: the losses before the update, and the prompt after it."""

    step: int
    """From 1."""
    epoch: int
    """From 0."""
    likelihood_loss: float
    """Mean of -ln p over the tokens of the batch's replies that are to become likely; 0 if it has none."""
    unlikelihood_loss: float
    """Mean of -ln (1 - p) over those of the others; 0 if it has none."""
    loss: float
    """The weighted sum that was differentiated."""
    grad_norm: float
    """Before clipping."""
    embeddings: Tensor
    """[n_tokens, d], float32, on the CPU: the soft prompt after this step."""

    @property
    def in_words(self) -> str:
        """For beside a bar."""
        return f"likelihood {self.likelihood_loss:.4f}, unlikelihood {self.unlikelihood_loss:.4f}"


TUNING_COLUMNS = tuple(part.name for part in fields(PromptTuningStep) if part.name != "embeddings")
"""Columns of a tuning run's history."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTuningRun:
    """A finished (or stopped) run of prompt tuning."""

    soft_prompt: SoftPrompt
    history: pd.DataFrame
    """TUNING_COLUMNS, one row per step."""
    config: PromptTuningConfig
    snapshots: dict[int, Tensor]
    """Step → embeddings [n_tokens, d], at a few steps from 0 to the last."""
    learned: pd.DataFrame
    """What it was trained on: `harmful`, `verdict`, `likely` (whether those replies are to become so), `queries`,
    `replies`; one row for each kind, also if there are none."""
    seconds: float = math.nan
    """The time that its steps took, in all sessions: the training's alone, not that of sampling and judging replies."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run is not to be trusted, in plain words; none if nothing of that is known."""
        found = []
        for row in self.learned[self.learned["likely"]].to_dict("records"):
            if row["queries"] < FEWEST_QUERIES:
                kind, what = ("harmful", "refused") if row["harmful"] else ("harmless", "answered")
                found.append(
                    f"Prompt tuning learned from {row['queries']} {kind} queries that were {what} ({row['replies']} "
                    f"replies), and needs {FEWEST_QUERIES}: take more samples or queries, or start from a prompt under "
                    f"which more are {what}."
                )
        return tuple(found)


class TuningLosses(NamedTuple):
    """The two terms of the loss, each unweighted; scalars."""

    likelihood: Tensor
    unlikelihood: Tensor

    def total(self, config: PromptTuningConfig) -> Tensor:
        """The weighted sum. A term of weight 0 is left out altogether, whatever its value."""
        weights = (config.likelihood_weight, config.unlikelihood_weight)
        terms = [weight * term for weight, term in zip(weights, self, strict=True) if weight > 0]
        return torch.stack(terms).sum()


def unlikelihood_losses(logits: Tensor, labels: Tensor, likely: Tensor) -> TuningLosses:
    """The *sums* over tokens of -ln p of those that are to become likely, and of -ln (1 - p) of the others.

    The paper's code puts ln (1 - p) of all tokens of the vocabulary through one more softmax, which adds the logarithm
    of the vocabulary's size less one to every token's loss, and nothing to the gradient.

    Args:
        logits: [n, vocabulary].
        labels: [n], the tokens that came.
        likely: [n], bool.

    Examples:
        >>> import torch
        >>> from drolab.dro import unlikelihood_losses
        >>> even = torch.zeros(2, 4)  # four tokens, each of probability 1/4
        >>> both = unlikelihood_losses(even, torch.tensor([0, 3]), torch.tensor([True, False]))
        >>> [round(float(term), 3) for term in both]  # -ln 1/4 and -ln 3/4
        [1.386, 0.288]
    """
    said = logits.float().log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    unsaid = (1.0 - said.exp()).clamp(min=SURELY).log()
    return TuningLosses(-said[likely].sum(), -unsaid[~likely].sum())


class _Example(NamedTuple):
    query: str
    ids: tuple[int, ...]
    likely: bool


def train_prompt_tuning(
    model: ChatModel,
    queries: pd.DataFrame,
    *,
    init: Prompt,
    replies: pd.DataFrame,
    judge: AnyJudge = is_refusal,
    config: PromptTuningConfig | None = None,
    store: stores.Store | None = None,
    progress: Progress = True,
) -> PromptTuningRun:
    """Vanilla prompt tuning, the paper's baseline: train a soft prompt on replies that the model gave.

    As in the paper's code: of the replies under `init`, refusals of harmful queries and answers to harmless ones become
    likely, answers to harmful ones and refusals of harmless ones unlikely; of the replies without a prompt only the
    latter are taken. Each term is a mean over the tokens of its replies in the batch. Not as there: replies that a
    judge calls neither refused nor answered teach nothing (in the code they count as refused where the query is
    harmful); a reply that was cut off is not followed by an end token; what the template writes before a reply is not
    learned; and the vectors are float32 throughout.

    Args:
        queries: the training queries, of both classes.
        init: the human prompt to start from (a soft prompt goes on from itself).
        replies: from `generate`, to these queries under `init`, and under `none` for more of what is to become
            unlikely; other prompts and queries in it are left out. The order counts.
        judge: which replies are refusals, as for `judge`.
        config: None takes the defaults, which are the paper's for most models.
        store: keeps checkpoints and the result under the content of all the above. The same call resumes after an
            interruption, and returns a finished run at once.
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        The run; its prompt is called `vpt-{init.name}`. `run.problems` says why it is not to be trusted, if that is
        known, and a warning says the same.

    Raises:
        QueryError: a class is missing from the queries; no reply to them under `init`; or replies to queries of the
            same id with other texts.
        TooFewError: no reply is what is to become likely.
        PromptError: `init` has no text to start from, or is a soft prompt of another model.
        TrainingError: a loss or gradient is not finite (the last good step is kept in the store).
        ModelError: not even a single chat fits into the memory, or no gradient comes back through the head.
        KeyboardInterrupt: with a message on how to resume; nothing that was finished is lost with a store.

    Examples:
        >>> import drolab
        >>> from drolab import dro
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(3)
        >>> both = [prompts["none"], prompts["short"]]
        >>> replies = drolab.generate(model, queries, both, n_samples=2, max_new_tokens=12, progress=False)
        >>> run = dro.train_prompt_tuning(
        ...     model, queries, init=prompts["short"], replies=replies,
        ...     config=dro.PromptTuningConfig(num_train_epochs=3, learning_rate=1e-2), progress=False,
        ... )
        >>> run.soft_prompt.name, len(run.history)
        ('vpt-short', 3)
        >>> bool(run.history["loss"].is_monotonic_decreasing)
        True
    """
    training = PromptTuning(
        model, queries, init=init, replies=replies, judge=judge, config=config or PromptTuningConfig(), store=store
    )
    run: PromptTuningRun = train_to_the_end(training, progress)
    return run


@dataclass(eq=False)
class PromptTuning(PromptTraining):
    """One run of prompt tuning in progress, as `Training` is one of DRO.

    Raises:
        QueryError, PromptError: input that `train_prompt_tuning` would refuse.
    """

    kind = "vpt"
    title = "Prompt tuning"
    columns = TUNING_COLUMNS

    model: ChatModel
    queries: pd.DataFrame
    _: KW_ONLY
    init: Prompt
    replies: pd.DataFrame
    judge: AnyJudge = is_refusal
    config: PromptTuningConfig
    learned: pd.DataFrame = field(init=False)
    """See `PromptTuningRun.learned`."""
    _examples: list[_Example] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.queries = validate_queries(self.queries)
        check_both_classes(self.queries, "prompt tuning teaches refusals of the one and answers to the other")
        chosen = _taught(self.queries, self.replies, self.init.name, self.judge)
        self.learned = _counted(chosen)
        ids = reply_tokens(self.model, chosen, self.init, read_at=self.read_at)
        most = self.config.max_reply_tokens
        rows = zip(chosen["text"], ids, chosen["likely"], strict=True)
        self._examples = [_Example(str(text), reply[:most], bool(likely)) for text, reply, likely in rows if reply]
        self._take_up()

    def _key(self, first: Tensor) -> str:
        return stores.key(
            kind="prompt tuning",
            model=self.model.fingerprint,
            dtype=str(self.model.dtype),
            attention=str(self.model.model.config._attn_implementation),
            examples=[[text, list(ids), likely] for text, ids, likely in self._examples],
            init=beginning(self.init, first),
            config={name: value for name, value in asdict(self.config).items() if name != "checkpoint_every"},
            read_at=self.read_at,
        )

    @property
    def n_examples(self) -> int:
        return len(self._examples)

    @property
    def n_steps(self) -> int:
        full = max(1, self.n_examples // self.config.batch_size)
        return self.config.max_steps or self.config.num_train_epochs * full

    @property
    def read_at(self) -> ReadAt:
        """Where the replies begin: behind an empty thought, if the model was thinking when it gave them."""
        return "answer" if set(REASONING_COLUMNS) <= set(self.replies.columns) else "reply"

    @property
    def layer(self) -> int:
        return self.model.num_hidden_layers

    def run(self) -> PromptTuningRun:
        """What is finished, as a run of its own; the last step is among its snapshots."""
        return PromptTuningRun(learned=self.learned, **self._finished())

    def _step(self) -> PromptTuningStep:
        return PromptTuningStep(**self.done.history[-1], embeddings=self.done.embeddings)  # type: ignore[arg-type]

    def _batches(self, order: list[int]) -> Iterator[list[int]]:
        """An incomplete batch at the end of an epoch is left out, as in the paper's code."""
        size = self.config.batch_size
        for first in range(0, max(1, len(order) // size) * size, size):
            yield order[first : first + size]

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """Of each example the tokens of its reply."""
        return [example.ids for example in self._examples]

    @property
    def likely(self) -> list[bool]:
        """Of each example whether its reply is to become likely."""
        return [example.likely for example in self._examples]

    def _begin(self) -> EncodedBatch:
        return self.chats()

    def chats(self) -> EncodedBatch:
        """All chats with their replies but for the last token, which is only expected, never read; what would make a
        chat longer than the model's context is cut off its reply."""
        texts = list(dict.fromkeys(example.query for example in self._examples))
        chats = encode(self.model, texts, self._prompt(self.done), read_at=self.read_at)
        places = {text: place for place, text in enumerate(texts)}
        suffixes = []
        for number, example in enumerate(self._examples):
            before = chats.suffixes[places[example.query]]
            room = self.model.max_length - len(chats.prefix) - len(before) + 1
            ids = example.ids[: max(1, room)]
            self._examples[number] = example._replace(ids=ids)
            suffixes.append(before + ids[:-1])
        return replace(chats, suffixes=tuple(suffixes), openings=())

    def _pass(self, prefix: Prefix, batch: EncodedBatch, rows: list[int], of: list[int]) -> tuple[TuningLosses, float]:
        """Sums over the tokens of these rows, over the number of such tokens in the whole batch."""
        here = [self._examples[row] for row in rows]
        counts = [len(example.ids) for example in here]
        logits = label_logits(self.model, prefix, [batch.suffixes[row] for row in rows], counts)
        if not logits.requires_grad:
            raise ModelError(
                f"No gradient comes back through the head of {self.model.name!r}: load the model unquantised for "
                "prompt tuning, or train with DRO, which does without the head."
            )
        labels = torch.tensor([token for example in here for token in example.ids], device=logits.device)
        likely = torch.tensor([example.likely for example in here for _ in example.ids], device=logits.device)
        sums = unlikelihood_losses(logits, labels, likely)
        total = {True: 0, False: 0}
        for row in of:
            total[self._examples[row].likely] += len(self._examples[row].ids)
        means = (sum_ / max(1, total[kind]) for sum_, kind in zip(sums, (True, False), strict=True))
        return TuningLosses(*means), 1.0

    def _numbers(self, terms: TuningLosses) -> dict[str, float]:
        return {
            "likelihood_loss": float(terms.likelihood),
            "unlikelihood_loss": float(terms.unlikelihood),
            "loss": float(terms.total(self.config)),
        }


def _taught(queries: pd.DataFrame, replies: pd.DataFrame, init: str, judge: AnyJudge) -> pd.DataFrame:
    """The replies that teach something, with `verdict` and `likely`: harmful queries first, and of each class those
    under the prompt before those without one, as in the paper's code."""
    needed = ["query_id", "prompt", "text", "response"]
    if missing := [name for name in needed if name not in replies]:
        raise QueryError(f"The replies have no column {missing[0]!r}: pass the table of drolab.generate.")
    own = replies[replies["query_id"].isin(queries["query_id"]) & replies["prompt"].isin([init, NO_PROMPT])]
    if not own["prompt"].eq(init).any():
        raise QueryError(
            f"There is no reply to the training queries under prompt {init!r} (there are replies under "
            f"{shown(sorted(replies['prompt'].astype(str).unique()))}): generate them, drolab.generate(model, queries, "
            f"[prompts['none'], prompts[{init!r}]])."
        )
    asked = own["query_id"].map(queries.set_index("query_id")["text"])
    if (other := asked != own["text"]).any():
        raise QueryError(
            f"Query {own['query_id'][other].iloc[0]!r} has another text in the replies than in the training queries: "
            "generate replies to these queries."
        )
    harmful = own["query_id"].map(queries.set_index("query_id")["harmful"]).astype(bool)
    verdict = opinion(own, judge)
    likely = (verdict == REFUSED).fillna(False).astype(bool) == harmful
    known = verdict.isin([REFUSED, ANSWERED]).astype(bool) & (own["prompt"].eq(init) | ~likely)
    taught = own.assign(harmful=harmful, verdict=verdict, likely=likely)[known]
    if not taught["likely"].any():
        raise TooFewError(
            f"None of the {len(own):,} replies is a refusal of a harmful query or an answer to a harmless one under "
            f"prompt {init!r}, by this judge: take another prompt, more samples, or another judge."
        )
    prompts = dict.fromkeys([init, NO_PROMPT])
    places = [(harmful, prompt) for harmful in (True, False) for prompt in prompts]
    return pd.concat([taught[(taught["harmful"] == kind) & (taught["prompt"] == name)] for kind, name in places])


def _counted(taught: pd.DataFrame) -> pd.DataFrame:
    kinds: Sequence[tuple[bool, str]] = [(True, REFUSED), (True, ANSWERED), (False, ANSWERED), (False, REFUSED)]
    rows = []
    for harmful, verdict in kinds:
        found = taught[(taught["harmful"] == harmful) & (taught["verdict"] == verdict)]
        about = {"harmful": harmful, "verdict": verdict, "likely": (verdict == REFUSED) == harmful}
        rows.append({**about, "queries": found["query_id"].nunique(), "replies": len(found)})
    return pd.DataFrame(rows)
