"""DRO, Directed Representation Optimization (paper, section 4): train a safety prompt as continuous embeddings.

The prompt moves the states of harmful queries along the refusal direction and those of harmless ones against
it, keeps their harmfulness readable, and keeps all of them near the anchor data. The movement is measured from
x0, the state under the human prompt that the embeddings started from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch
from torch import Tensor

from drolab import store as stores
from drolab.data import validate_queries
from drolab.dro.objective import Losses, losses, weights
from drolab.errors import PromptError, QueryError, StatesError, TrainingError
from drolab.inference import hidden_states
from drolab.models import (
    ChatModel,
    EncodedBatch,
    Prefix,
    Prompt,
    accumulating_gradients,
    check_fits,
    check_trainable,
    embed_text,
    encode,
    forward_states,
    halve_pass_tokens,
    plan_passes,
    prefix_embeddings,
)
from drolab.progress import Progress, resumable_bar
from drolab.threads import threads_for
from drolab.types import AnchorSpace, DROConfig, DRORun, DROStep, Probe, ReadAt, SafetyPrompt, SoftPrompt

_log = logging.getLogger(__name__)

HISTORY_COLUMNS = tuple(part.name for part in fields(DROStep) if part.name != "embeddings")
"""Columns of a run's history."""


def train_dro(
    model: ChatModel,
    queries: pd.DataFrame,
    *,
    init: Prompt,
    space: AnchorSpace,
    refusal: Probe,
    harmfulness: Probe,
    config: DROConfig | None = None,
    one_class: bool = False,
    store: stores.Store | None = None,
    progress: Progress = True,
) -> DRORun:
    """Train a soft prompt by DRO: harmful queries are to move along the refusal direction, harmless ones against it.

    The loss of a batch is L_refusal + 0.01 L_harmfulness + β L_residual with the default weights (paper, eqs. 3 to 5):
    L_refusal is the binary cross-entropy of the change of the refusal probe's logit against x0, the state under `init`;
    L_harmfulness the same for the harmfulness probe; L_residual the squared movement outside the anchor space.

    Args:
        queries: the training queries, of both classes. Their order counts: each epoch shuffles it, seeded.
        init: the human prompt to start from and to measure movement from (a soft prompt goes on from itself).
        space: the anchor space of this model; its layer is where states are read, at the last token of chats that end
            where those of its states do: where the reply begins, or the answer after an empty thought. (After a thought
            of the model's own nothing can be trained: the prompt would change the thought as well.)
        refusal: positive for "refuses".
        harmfulness: positive for "harmful".
        config: None takes the scale-free defaults; `DROConfig.preset("paper")` is the paper's.
        one_class: allow queries of one class only. Nothing then says where the other should go: it is for asking what
            each class does for the result (see `fit_contenders`), and by accident it would spoil a prompt.
        store: keeps checkpoints and the result under the content of all the above. The same call resumes
            after an interruption, and returns a finished run at once.
        progress: show a bar; or a callable, see `drolab.progress`.

    Returns:
        The run; its prompt is called `dro-{init.name}`. `run.problems` says why it is not to be trusted, if that is
        known, and a warning says the same.

    Raises:
        QueryError: a class is missing from the queries, or they are malformed.
        StatesError: the space is of another model, of states after thoughts, or has no residual variance; a probe does
            not fit the space or is positive for something else.
        PromptError: `init` has no text to start from, or is a soft prompt of another model.
        TrainingError: a loss or gradient is not finite (the last good step is kept in the store).
        ModelError: not even a single chat fits into the memory.
        KeyboardInterrupt: with a message on how to resume; nothing that was finished is lost with a store.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(3)
        >>> states = drolab.hidden_states(model, queries, [prompts["none"], prompts["short"]], progress=False)
        >>> space = drolab.fit_anchors(states, n_components=2)
        >>> harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
        >>> rates = 0.8 * queries["harmful"] + 0.1  # of judged replies in earnest
        >>> refusal = drolab.fit_probe(space, states, rates, positive="refuses")
        >>> config = drolab.DROConfig(num_train_epochs=3, learning_rate=1e-2)
        >>> run = drolab.train_dro(
        ...     model, queries, init=prompts["short"], space=space, refusal=refusal, harmfulness=harm,
        ...     config=config, progress=False,
        ... )
        >>> run.soft_prompt.name, len(run.history), list(run.snapshots)
        ('dro-short', 3, [0, 3])
        >>> run.history[["step", "refusal_loss", "residual_drift"]].round(2)
           step  refusal_loss  residual_drift
        0     1          0.69            0.00
        1     2          0.58            0.32
        2     3          0.48            1.63
    """
    training = Training(
        model,
        queries,
        init=init,
        space=space,
        refusal=refusal,
        harmfulness=harmfulness,
        config=config or DROConfig(),
        one_class=one_class,
        store=store,
    )
    run: DRORun = train_to_the_end(training, progress)
    return run


class _PassTooLargeError(Exception):
    """A pass did not fit into the memory; the next ones will be smaller."""


@dataclass(kw_only=True)
class _Done:
    """What is finished: everything after the last completed step. Replaced as a whole, so never half-updated."""

    step: int
    embeddings: Tensor
    """[L, d], float32, on the CPU."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """AdamW's `step`, `exp_avg`, `exp_avg_sq`; empty before the first step."""
    history: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    """The time that the steps took, in all sessions; NaN if an earlier version kept it without."""


class Terms(Protocol):
    """What an objective consists of for a batch: a named tuple of scalars, and their weighted sum."""

    def __iter__(self) -> Iterator[Tensor]: ...

    def _asdict(self) -> dict[str, Tensor]: ...

    def total(self, config: Any) -> Tensor: ...


@dataclass(eq=False, kw_only=True)
class PromptTraining(ABC):
    """A soft prompt in training, whatever for: what it is made of, what is done of it, and where that is kept.

    An objective says what a batch of examples is (`_begin`) and what is minimised on some of them (`_pass`); all else
    is here: the epochs, the shared prefix and the gradient through it, memory, AdamW, checkpoints, going on.
    """

    kind: ClassVar[str]
    """How its checkpoints and, with the prompt's name behind it, its soft prompt are called."""
    title: ClassVar[str]
    """How messages call it."""

    model: ChatModel
    init: Prompt
    config: Any
    """Has learning_rate, num_train_epochs, batch_size, max_grad_norm, seed, checkpoint_every and `to_json`."""
    store: stores.Store | None = None
    key: str = field(init=False)
    """Under which the store has it."""
    done: _Done = field(init=False)

    @property
    @abstractmethod
    def n_examples(self) -> int:
        """Of them an epoch is made."""

    @property
    def n_steps(self) -> int:
        return int(self.config.num_train_epochs * -(-self.n_examples // self.config.batch_size))

    @property
    @abstractmethod
    def read_at(self) -> ReadAt:
        """Where the chats end before which the prompt stands."""

    @property
    @abstractmethod
    def layer(self) -> int:
        """The highest that must run."""

    @abstractmethod
    def run(self) -> Any:
        """What is finished, as a run of its own; the last step is among its snapshots."""

    @abstractmethod
    def _key(self, first: Tensor) -> str:
        """Everything that the numbers depend on; how often they are kept is not part of it."""

    @abstractmethod
    def _begin(self) -> EncodedBatch:
        """What must be there before the first step: all examples, with the prompt's slots, in order."""

    @abstractmethod
    def _pass(self, prefix: Prefix, batch: EncodedBatch, rows: list[int], of: list[int]) -> tuple[Terms, float]:
        """The terms for some rows of a batch, and the share with which they add up to the terms of all of them.

        Raises:
            torch.OutOfMemoryError: the pass was too large; it is tried again with fewer rows.
        """

    @abstractmethod
    def _numbers(self, terms: Any) -> dict[str, float]:
        """The terms of a step, as its history has them."""

    @abstractmethod
    def _step(self) -> Any:
        """The step that is done, as `steps` yields it."""

    def _take_up(self) -> None:
        """Begin with the text's embeddings, or where the store has this run."""
        first = _initial_embeddings(self.model, self.init, self.title)
        self.key = self._key(first)
        self.done = _load(self.store, self.key) or _Done(step=0, embeddings=first, snapshots={0: first.clone()})

    def _prompt(self, done: _Done) -> SoftPrompt:
        return SoftPrompt(
            name=f"{self.kind}-{self.init.name}",
            embeddings=done.embeddings,
            init_text=self.init.init_text if isinstance(self.init, SoftPrompt) else self.init.text,
            model_fingerprint=self.model.fingerprint,
        )

    def _finished(self) -> dict[str, Any]:
        """What every run has of what is finished."""
        done = self.done  # replaced as a whole by each step, while the list of numbers grows before it
        return {
            "soft_prompt": self._prompt(done),
            "history": pd.DataFrame(done.history[: done.step], columns=list(self.columns)),
            "config": self.config,
            "snapshots": {**done.snapshots, done.step: done.embeddings},
            "seconds": done.seconds,
        }

    columns: ClassVar[tuple[str, ...]]
    """Of the history."""

    def steps(self) -> Generator[Any]:
        """The steps still to do, after the last that is finished; none if the run is.

        With a store, a checkpoint is kept every `config.checkpoint_every` steps and whenever the iteration stops: at
        its end, on an error, Ctrl-C, or when the iterator is closed. A run that goes on from one has numbers that are
        equal to the last bit (on one machine's CPU).

        Raises:
            TrainingError: a loss or gradient is not finite; the step before is kept.
            ModelError: not even a single chat fits into the memory.
        """
        if self.done.step == self.n_steps:
            return
        saved, begun = self.done.step, time.perf_counter()
        with threads_for(self.model.model):
            try:
                batch = self._begin()
                soft, optimizer = self._resumed()
                for step, epoch, rows in self._schedule():
                    numbers = self._update(step, soft, optimizer, batch, rows)
                    done = self._after(step, epoch, soft, optimizer, numbers)
                    self.done = replace(done, seconds=self.done.seconds + time.perf_counter() - begun)
                    if step % self.config.checkpoint_every == 0:
                        self.save()
                        saved = step
                    yield self._step()
                    begun = time.perf_counter()  # what was done with the step is no training
            finally:
                if self.done.step > saved:
                    self.save()

    def _resumed(self) -> tuple[Tensor, torch.optim.AdamW]:
        """The trained embeddings, float32 whatever the model's dtype, and their optimizer."""
        soft = self.done.embeddings.to(self.model.device, copy=True).requires_grad_()
        optimizer = torch.optim.AdamW([soft], lr=self.config.learning_rate)
        if self.done.optimizer:
            # torch keeps the step count on the CPU and moves the moments to the parameter's device.
            state = {name: value.clone() for name, value in self.done.optimizer.items()}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: state}})
        return soft, optimizer

    def _schedule(self) -> Iterator[tuple[int, int, list[int]]]:
        """(step, epoch, rows) of the steps to come. The shuffles of the steps already done are repeated, since
        each one shuffles the list that the one before left (as in the paper's code)."""
        order = list(range(self.n_examples))
        generator = random.Random(self.config.seed)
        step = 0
        for epoch in itertools.count():
            generator.shuffle(order)
            for rows in self._batches(order):
                step += 1
                if step > self.n_steps:
                    return
                if step > self.done.step:
                    yield step, epoch, rows

    def _batches(self, order: list[int]) -> Iterator[list[int]]:
        """An epoch's, from its shuffled examples."""
        for first in range(0, len(order), self.config.batch_size):
            yield order[first : first + self.config.batch_size]

    def _update(
        self, step: int, soft: Tensor, optimizer: torch.optim.AdamW, batch: EncodedBatch, rows: list[int]
    ) -> dict[str, float]:
        """One optimizer step on these examples; the numbers before it."""
        terms = self._gradient(step, soft, batch, rows)
        norm = torch.nn.utils.clip_grad_norm_([soft], self.config.max_grad_norm)
        if not norm.isfinite():
            raise self._broken(step, "gradient", float(norm))
        optimizer.step()
        return {**self._numbers(terms), "grad_norm": float(norm)}

    def _gradient(self, step: int, soft: Tensor, batch: EncodedBatch, rows: list[int]) -> Any:
        """Fill `soft.grad`; in smaller passes if memory asks for it, with equal results up to rounding."""
        while True:
            soft.grad = None
            try:
                return self._backward(step, soft, batch, rows)
            except _PassTooLargeError:
                continue

    def _backward(self, step: int, soft: Tensor, batch: EncodedBatch, rows: list[int]) -> Any:
        """Pass by pass, each with its share of the terms."""
        parts: list[Tensor] = []
        kind: Any = None
        with (
            torch.enable_grad(),
            accumulating_gradients(self.model, prefix_embeddings(self.model, batch, soft), self.layer) as prefix,
        ):
            for numbers in plan_passes(self.model, prefix, [len(batch.suffixes[row]) for row in rows]):
                here = [rows[number] for number in numbers]
                try:
                    terms, share = self._pass(prefix, batch, here, rows)
                    self._check_finite(step, terms)
                    (terms.total(self.config) * share).backward()
                except torch.OutOfMemoryError as error:
                    halve_pass_tokens(self.model, [batch.suffixes[row] for row in here])
                    raise _PassTooLargeError from error
                kind = type(terms)
                parts.append(torch.stack([term.detach() for term in terms]) * share)
        return kind(*torch.stack(parts).sum(dim=0))

    def _after(
        self, step: int, epoch: int, soft: Tensor, optimizer: torch.optim.AdamW, numbers: Mapping[str, float]
    ) -> _Done:
        embeddings = soft.detach().to("cpu", copy=True)
        snapshots = self.done.snapshots
        if step % self.config.checkpoint_every == 0 or step == self.n_steps:
            snapshots = {**snapshots, step: embeddings.clone()}
        # One list grows through the run; a step that was cut off has not touched it yet.
        self.done.history.append({"step": step, "epoch": epoch, **numbers})
        return _Done(
            step=step,
            embeddings=embeddings,
            optimizer={name: value.detach().to("cpu", copy=True) for name, value in optimizer.state[soft].items()},
            history=self.done.history,
            snapshots=snapshots,
        )

    def save(self) -> None:
        """Keep a checkpoint of what is finished; may be called from any thread."""
        if self.store is None:
            return
        done = self.done
        tensors = {
            "embeddings": done.embeddings,
            **{f"optimizer.{name}": value for name, value in done.optimizer.items()},
            **{f"snapshot.{step}": value for step, value in done.snapshots.items()},
        }
        metadata = {
            "kind": self.kind,
            "step": str(done.step),
            "name": self._prompt(done).name,
            "config": self.config.to_json(),
            "model_fingerprint": self.model.fingerprint,
            "history": json.dumps(done.history[: done.step]),
            "seconds": repr(done.seconds),
        }
        self.store.save_run(self.key, tensors, metadata)

    def _check_finite(self, step: int, terms: Terms) -> None:
        for name, value in terms._asdict().items():
            if not value.isfinite():
                raise self._broken(step, f"{name} term", float(value.detach()))

    def _broken(self, step: int, what: str, value: float) -> TrainingError:
        kept = f"The prompt after step {step - 1} is kept in the store. " if self.store and step > 1 else ""
        return TrainingError(
            f"{self.title} step {step}: the {what} is {value}, so the prompt would be lost with this step. {kept}"
            "Lower learning_rate, or load the model with dtype='bfloat16' or 'float32'."
        )


def train_to_the_end(training: PromptTraining, progress: Progress) -> Any:
    """All steps of a training that are left, and its run; a warning for each of the run's problems."""
    n_done, kept = training.done.step, training.store is not None
    counting = resumable_bar(
        progress, training.title, "step", "steps", total=training.n_steps, initial=n_done, kept=kept
    )
    with counting as counted:
        for step in training.steps():
            counted.note(step.in_words)
            counted.update()
    run = training.run()
    for problem in run.problems:
        _log.warning("%s: %s", run.soft_prompt.name, problem)
    return run


@dataclass(eq=False)
class Training(PromptTraining):
    """One DRO run in progress: what it is made of, what is done of it, and where that is kept.

    Making one checks the input and takes up what the store has of this run. `train_dro` drives it to its end, the panel
    step by step. `run()` may be asked at any time, from any thread, also while `steps()` is being iterated.

    Raises:
        QueryError, StatesError, PromptError, TrainingError: input that `train_dro` would refuse.
    """

    kind = "dro"
    title = "DRO"
    columns = HISTORY_COLUMNS

    model: ChatModel
    queries: pd.DataFrame
    _: KW_ONLY
    init: Prompt
    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe
    config: DROConfig
    one_class: bool = False
    _start: Tensor = field(init=False, repr=False)
    """[n, d]: x0, the states under `init`, in the order of the queries; there once the steps have begun."""

    def __post_init__(self) -> None:
        self.queries = validate_queries(self.queries)
        if not self.one_class:
            check_both_classes(self.queries, "DRO moves the two classes apart")
        _check_space(self.model, self.space)
        check_probes(self.space, self.refusal, self.harmfulness)
        if not any(weights(self.config).values()):
            raise TrainingError("All three terms of the loss have weight 0: give one of them a weight.")
        self._take_up()

    def _key(self, first: Tensor) -> str:
        """Space and probes enter by what they were fitted on: their last bits differ with the number of threads."""
        settings = {name: value for name, value in asdict(self.config).items() if name != "checkpoint_every"}
        queries = self.queries[["text", "harmful"]]
        return stores.key(
            kind="dro",
            model=self.model.fingerprint,
            dtype=str(self.model.dtype),
            attention=str(self.model.model.config._attn_implementation),
            queries=[[str(text), bool(harmful)] for text, harmful in queries.itertuples(index=False)],
            init=beginning(self.init, first),
            space=self.space.identity,
            probes=[self.refusal.identity, self.harmfulness.identity],
            config=settings,
            **({} if self.space.read_at == "reply" else {"read_at": self.space.read_at}),
        )

    @property
    def n_examples(self) -> int:
        return len(self.queries)

    @property
    def read_at(self) -> ReadAt:
        return self.space.read_at

    @property
    def layer(self) -> int:
        return self.space.layer

    def run(self) -> DRORun:
        """What is finished, as a run of its own; the last step is among its snapshots."""
        return DRORun(space=self.space, refusal=self.refusal, harmfulness=self.harmfulness, **self._finished())

    def _step(self) -> DROStep:
        return DROStep(**self.done.history[-1], embeddings=self.done.embeddings)  # type: ignore[arg-type]

    def _begin(self) -> EncodedBatch:
        self._start = self._start_states()
        return encode(self.model, self.queries["text"].tolist(), self._prompt(self.done), read_at=self.read_at)

    def _start_states(self) -> Tensor:
        states = hidden_states(
            self.model,
            self.queries,
            self.init,
            layers=(self.space.layer,),
            read_at=self.space.read_at,
            store=self.store,
            progress=False,
        )
        return states.matrix(self.space.layer)

    def _pass(self, prefix: Prefix, batch: EncodedBatch, rows: list[int], of: list[int]) -> tuple[Losses, float]:
        """All terms are means over queries, so each pass counts by its number of queries."""
        suffixes = [batch.suffixes[row] for row in rows]
        states = forward_states(self.model, prefix, suffixes, layers=(self.layer,))[:, 0, 0]
        harmful = torch.tensor(self.queries["harmful"].to_numpy(dtype=bool)[rows])
        start = self._start[rows].to(states.device)
        terms = losses(self.space, self.refusal, self.harmfulness, states, start, harmful, self.config)
        return terms, len(rows) / len(of)

    def _numbers(self, terms: Losses) -> dict[str, float]:
        return {
            "refusal_loss": float(terms.refusal),
            "harmfulness_loss": float(terms.harmfulness),
            "residual_loss": float(terms.residual),
            "loss": float(terms.total(self.config)),
            "residual_drift": float(terms.drift),
        }


def _load(store: stores.Store | None, run_key: str) -> _Done | None:
    """What the store has of this run, if anything."""
    found = store.load_run(run_key) if store is not None else None
    if found is None:
        return None
    tensors, metadata = found
    parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "snapshot": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if rest:
            parts[kind][rest] = value
    return _Done(
        step=int(metadata["step"]),
        embeddings=tensors["embeddings"],
        optimizer=parts["optimizer"],
        history=json.loads(metadata["history"]),
        snapshots={int(step): value for step, value in sorted(parts["snapshot"].items(), key=lambda kv: int(kv[0]))},
        seconds=float(metadata.get("seconds", "nan")),
    )


def beginning(init: Prompt, first: Tensor) -> list[Any]:
    """What a run starts from, for its key."""
    return [init.text if isinstance(init, SafetyPrompt) else None, _digest(first)]


def _initial_embeddings(model: ChatModel, init: Prompt, title: str) -> Tensor:
    """[L, d], float32, on the CPU."""
    check_trainable(model.model, model.name)
    if isinstance(init, SoftPrompt):
        check_fits(model, init)
        return init.embeddings.detach().to("cpu", torch.float32, copy=True)
    if not isinstance(init, SafetyPrompt) or not init.text.strip():
        raise PromptError(
            f"{title} starts from the text of a prompt, and {getattr(init, 'name', init)!r} has none: pass a prompt "
            "with a text, such as init=prompts['default']."
        )
    return embed_text(model, init.text)


def check_both_classes(queries: pd.DataFrame, why: str) -> None:
    """Raise QueryError unless there are harmful and harmless queries."""
    harmful = queries["harmful"].astype(bool)
    if harmful.all() or not harmful.any():
        here, missing = ("harmful", "harmless") if harmful.all() else ("harmless", "harmful")
        raise QueryError(
            f"All {len(queries)} training queries are {here}, and {why}: "
            f"add {missing} queries, such as those of load_queries('anchors')."
        )


def _check_space(model: ChatModel, space: AnchorSpace) -> None:
    if space.model_fingerprint and space.model_fingerprint != model.fingerprint:
        raise StatesError(
            f"The anchor space is of model {space.model_fingerprint[:12]}, {model.name!r} is {model.fingerprint[:12]}: "
            "fit the space on this model's states with fit_anchors."
        )
    if len(space.mean) != model.hidden_size or space.layer > model.num_hidden_layers:
        raise StatesError(
            f"The anchor space is of layer {space.layer} and width {len(space.mean)}, {model.name!r} has "
            f"{model.num_hidden_layers} layers of width {model.hidden_size}: fit the space on this model's states."
        )
    if space.read_at == "after_thinking":
        raise StatesError(
            "The anchor space is of states after thoughts, which would change with the prompt that is trained: fit it "
            "on hidden_states(…, read_at='answer') or 'reply'."
        )
    if not space.residual_variance > 0:
        raise StatesError(
            f"The anchor space leaves a residual variance of {space.residual_variance:g}, so the movement outside it "
            "has no scale: fit it on more queries, or with fewer components."
        )


def check_probes(space: AnchorSpace, refusal: Probe | None, harmfulness: Probe | None) -> None:
    """Raise StatesError unless these are probes of the space for "refuses" and "harmful"."""
    _check_probe(space, refusal, "refusal", "refuses")
    _check_probe(space, harmfulness, "harmfulness", "harmful")


def _check_probe(space: AnchorSpace, probe: Probe | None, name: str, positive: str) -> None:
    if probe is None:
        raise StatesError(f"There is no {name} probe, so nothing can be trained: fit_probe says why.")
    if len(probe.coef) != len(space.components):
        raise StatesError(
            f"The {name} probe has {len(probe.coef)} coefficients, the anchor space has {len(space.components)} "
            "components: fit the probe in this space with fit_probe."
        )
    if probe.positive != positive:
        raise StatesError(
            f"The {name} probe is positive for {probe.positive!r}, and must be for {positive!r}: "
            f"fit it with fit_probe(…, positive={positive!r}) and a target that is 1 for that class."
        )


def _digest(tensor: Tensor) -> list[Any]:
    raw = tensor.detach().float().contiguous().cpu().numpy().tobytes()
    return [list(tensor.shape), hashlib.sha256(raw).hexdigest()]
