"""One protocol for all contenders: the same training queries, the same judged replies, the same number of steps.

`fit_contenders` fits, on one set of queries and the replies that the model gave to them:

- `none` and the human prompts, with which nothing is done;
- DRO (paper, section 4), and vanilla prompt tuning (`train_prompt_tuning`) over as many steps of as many examples;
- DRO without one of its terms. Without the refusal term the harmfulness term has weight 1, as in the paper's code:
  with its own, .01, hardly anything would be left;
- DRO from less: fewer anchors of each class (space, probes and training all see those alone), training on harmful
  queries alone, a space and probes of all prompts but the one that is trained;
- steering: the difference of the means of the states that were refused and of those that were answered, added at one
  layer at all tokens; as its opposite, the same direction taken out there, so that along it every state is as the
  answered ones are in the mean, which should end refusals; and a random direction of the same length, which should do
  nothing.

**How the strength is chosen.** On training queries only, at most 24 of each class (`evenly_spaced`): of all STRENGTHS,
in lengths of the difference of means, at all layers that were asked for, by the greatest sum of the first-token scores
for refusal of harmful and for compliance with harmless queries; of equals the smallest. Those that break the model
(`damage`) do not count, unless all do: then the best of them is taken, and its `problems` say so. What was tried is in
`contender.about["tried"]`, with a note at each strength that breaks the model.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from drolab import store as stores
from drolab.data import validate_queries
from drolab.dro.baselines import PromptTuningConfig, train_prompt_tuning
from drolab.dro.contenders import Contender, Contenders, Kind, Look, text_contender
from drolab.dro.runs import evenly_spaced
from drolab.dro.training import check_both_classes, train_dro
from drolab.errors import PromptError, QueryError, StatesError, TooFewError, UnreliableWarning, listed, shown
from drolab.inference import hidden_states
from drolab.judges import AnyJudge, FirstTokenJudge, is_refusal
from drolab.judges import judge as judged
from drolab.models import Ablate, Add, ChatModel, Prompt, Prompts, as_prompts, layers_at
from drolab.probing import fit_anchors, fit_directions, fit_probe, try_probe
from drolab.progress import Progress, bar
from drolab.types import (
    NO_PROMPT,
    REASONING_COLUMNS,
    AnchorSpace,
    DROConfig,
    DRORun,
    HiddenStates,
    Probe,
    ReadAt,
    SafetyPrompt,
)

GROUPS = ("text", "dro", "prompt tuning", "terms", "anchors", "steering")
"""What `fit_contenders` fits: human prompts; DRO; prompt tuning; DRO without a term; DRO from less; steering."""
STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Tried when steering: lengths of what is added, in lengths of the difference of means."""
DEPTHS = (0.25, 0.5, 0.75)
"""Layers that are tried when steering, as fractions of the depth."""
_DAMAGE_QUERIES = 8
"""Of each class, to which a greedy reply is written to see whether a contender broke the model."""


def fit_contenders(
    model: ChatModel,
    queries: pd.DataFrame,
    *,
    prompts: Prompts,
    init: str,
    replies: pd.DataFrame,
    judge: AnyJudge = is_refusal,
    groups: Sequence[str] = GROUPS,
    config: DROConfig | None = None,
    tuning: PromptTuningConfig | None = None,
    anchors: Sequence[int] = (10, 20, 50),
    layers: Sequence[int | float] = DEPTHS,
    strengths: Sequence[float] = STRENGTHS,
    read_at: ReadAt | None = None,
    seed: int | None = None,
    store: stores.Store | None = None,
    progress: Progress = True,
) -> Contenders:
    """Fit DRO, its rivals, and what is left of it when something is taken away, on the same queries and budget.

    Args:
        queries: the training queries, of both classes. Nothing else is looked at.
        prompts: the human prompts, whose states are the anchors; `none` is added if it is not there.
        init: the name of the prompt that is trained.
        replies: of `generate`, to all these queries under all these prompts.
        judge: which replies are refusals, as for `judge`.
        groups: which to fit, of GROUPS; `none` is always there.
        config: of DRO; None takes the defaults. Its number of steps is the budget of all that is trained: where fewer
            queries make an epoch shorter, there are more of them.
        tuning: of prompt tuning; None takes the paper's settings, with the batch size, the seed and as many steps as
            DRO's. One that is given is taken as it is.
        anchors: how many of each class, for DRO from fewer; numbers that leave nothing out are passed over.
        layers: where steering is tried, as for `layers_at`; the last layer, which is after the final norm, only if it
            is asked for by number.
        strengths: to try there. One layer and one strength are taken as they are, and flagged if they break the model.
        read_at: where states are read, as for `hidden_states`. None is "reply", or "answer" where the replies have
            thoughts before them.
        seed: of training and of the random direction; None leaves the seeds of the settings.
        store: keeps runs, states and replies; the same call takes them up again.
        progress: show bars; or a callable, see `drolab.progress`.

    Returns:
        Name → contender: `none`, the prompts' names, `dro-X`, `vpt-X`, `dro-X without refusal` (harmfulness, residual),
        `dro-X 10 anchors`, `dro-X without harmless`, `dro-X other anchors`, `steered`, `ablated`, `random`.
        `left_out` has those that this model's replies leave nothing to fit with, and why. Each contender's `problems`
        are what is known of its training and what `damage` finds on some of the training queries, and
        `about["damage"]` is that table.

    Raises:
        QueryError: a class is missing, or a reply to one of the queries under one of the prompts.
        PromptError: no such prompt, or one without a text.
        StatesError: no such group or layer; numbers of anchors below 2; strengths that are not above 0.
        TrainingError: a loss or gradient is not finite.
        KeyboardInterrupt: with a message on how to resume; nothing that was finished is lost with a store.

    Examples:
        >>> import drolab
        >>> from drolab import dro
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> few, queries = [prompts["none"], prompts["short"]], drolab.load_queries("anchors")
        >>> queries = queries.groupby("harmful").head(12)
        >>> replies = drolab.generate(model, queries, few, n_samples=4, max_new_tokens=8, progress=False)
        >>> field = dro.fit_contenders(
        ...     model, queries, prompts=few, init="short", replies=replies, groups=("text", "dro", "steering"),
        ...     config=drolab.DROConfig(num_train_epochs=2), layers=(2,), strengths=(1.0,), progress=False,
        ... )
        >>> list(field)
        ['none', 'short', 'dro-short', 'steered', 'ablated', 'random']
        >>> field["steered"].about["layer"], field["steered"].about["strength"]
        (2, 1.0)
    """
    queries = validate_queries(queries)
    check_both_classes(queries, "the contenders are to tell the two classes apart")
    chosen: dict[str, Prompt] = {NO_PROMPT: SafetyPrompt(name=NO_PROMPT, text="")}
    chosen |= {prompt.name: prompt for prompt in as_prompts(prompts)}
    if init not in chosen or not getattr(chosen[init], "text", ""):
        raise PromptError(f"There is no prompt {init!r} with a text to train: choose one of {_with_text(chosen)}.")
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise StatesError(f"There are no contenders {unknown}: groups are some of {listed(GROUPS)}.")
    if wrong := [n for n in anchors if n < 2]:
        raise StatesError(f"{wrong} anchors of each class are too few to fit on: pass 2 or more.")
    if wrong_strengths := [one for one in strengths if not (np.isfinite(one) and one > 0)] or not len(strengths):
        raise StatesError(f"Strengths are lengths above 0, such as {STRENGTHS}; got {wrong_strengths or 'none'}.")
    _check_replies(queries, chosen, replies)
    config = config or DROConfig()
    if seed is not None:
        config = replace(config, seed=seed)
        tuning = None if tuning is None else replace(tuning, seed=seed)
    thinks = set(REASONING_COLUMNS) <= set(replies.columns)
    fit = _Fit(
        model=model,
        queries=queries,
        prompts=chosen,
        init=init,
        replies=replies[replies["query_id"].isin(queries["query_id"]) & replies["prompt"].isin(list(chosen))],
        judge=judge,
        config=config,
        tuning=tuning or _same_budget(config, len(queries)),
        anchors=anchors,
        layers=_inner(model, layers) if "steering" in groups else (),
        strengths=sorted(strengths),
        read_at=read_at or ("answer" if thinks else "reply"),
        store=store,
        progress=progress,
    )
    return fit.all(groups)


def _with_text(prompts: dict[str, Prompt]) -> str:
    return listed(name for name, prompt in prompts.items() if getattr(prompt, "text", ""))


def _check_replies(queries: pd.DataFrame, prompts: dict[str, Prompt], replies: pd.DataFrame) -> None:
    if missing := [name for name in ("query_id", "prompt", "text", "response", "first_token") if name not in replies]:
        raise QueryError(f"The replies have no column {missing[0]!r}: pass the table of drolab.generate.")
    there = set(zip(replies["query_id"], replies["prompt"], strict=True))
    for name in prompts:
        lacking = [query for query in queries["query_id"] if (query, name) not in there]
        if lacking:
            raise QueryError(
                f"{len(lacking)} of {len(queries)} training queries have no reply under prompt {name!r} (first: "
                f"{shown(lacking[0])}): generate them, drolab.generate(model, queries, prompts), with `none` among the "
                "prompts."
            )


def _inner(model: ChatModel, layers: Sequence[int | float]) -> tuple[int, ...]:
    """Without the last, unless it is asked for by number; the embedding's output if there is nothing else."""
    asked = {int(at) for at in layers if isinstance(at, int)}
    found = tuple(at for at in layers_at(model, layers) if at < model.num_hidden_layers or at in asked)
    return found or (0,)


def _n_steps(config: DROConfig, n: int) -> int:
    return config.num_train_epochs * -(-n // config.batch_size)


def _same_budget(config: DROConfig, n: int) -> PromptTuningConfig:
    """The paper's settings of prompt tuning, over as many steps of as many examples as DRO has."""
    return PromptTuningConfig(
        max_steps=_n_steps(config, n),
        batch_size=config.batch_size,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Probes:
    """What DRO is trained with."""

    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """What all contenders are fitted on."""

    model: ChatModel
    queries: pd.DataFrame
    prompts: dict[str, Prompt]
    init: str
    replies: pd.DataFrame
    judge: AnyJudge
    config: DROConfig
    tuning: PromptTuningConfig
    anchors: Sequence[int]
    layers: tuple[int, ...]
    strengths: Sequence[float]
    read_at: ReadAt
    store: stores.Store | None
    progress: Progress
    left_out: dict[str, str] = field(default_factory=dict)

    def all(self, groups: Sequence[str]) -> Contenders:
        made: dict[str, Callable[[], Iterator[Contender]]] = {
            "text": self._texts,
            "dro": self._dro,
            "prompt tuning": self._tuned,
            "terms": self._without_terms,
            "anchors": self._from_less,
            "steering": self._steered,
        }
        found = [text_contender(self.model, self.prompts[NO_PROMPT])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWarning)  # the contenders carry on what it says
            for group in (name for name in GROUPS if name in groups):
                found += [self._looked_at(contender) for contender in made[group]()]
        return Contenders(found, left_out=self.left_out)

    def _looked_at(self, contender: Contender) -> Contender:
        """With what `damage` finds, where something was done to the model."""
        if contender.kind in ("none", "text"):
            return contender
        start = None if contender.edits else self._text(self.init)
        table = self._look.at(contender, start, replies=True)
        notes = [note for note in dict.fromkeys(table["note"]) if note and note not in contender.problems]
        return replace(contender, problems=(*contender.problems, *notes), about={**contender.about, "damage": table})

    # --- what is shared --------------------------------------------------------------------------------------

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return judged(self.replies, self.judge)

    @cached_property
    def _quick(self) -> FirstTokenJudge:
        return FirstTokenJudge.fit(self.replies, self.judge, read_at=self.read_at)

    @cached_property
    def _look(self) -> Look:
        few = evenly_spaced(self.queries, _DAMAGE_QUERIES)
        return Look(self.model, few, self._quick, store=self.store, progress=False)

    @cached_property
    def _anchors(self) -> HiddenStates:
        return self._states((-1,))

    def _states(self, layers: Sequence[int]) -> HiddenStates:
        states = hidden_states(
            self.model,
            self.queries,
            self.prompts,
            layers=layers,
            read_at=self.read_at,
            store=self.store,
            progress=self.progress,
        )
        return states.paired(self._scores)

    @cached_property
    def _all_probes(self) -> _Probes:
        return self._probes(self._anchors)

    def _probes(self, states: HiddenStates) -> _Probes:
        space = fit_anchors(states, n_components=min(4, len(states) - 1))
        refusal, problem = try_probe(space, states, self._scores["refusal_rate"], positive="refuses")
        if refusal is None:
            raise TooFewError(problem)
        harm = self.queries["harmful"]
        return _Probes(space=space, refusal=refusal, harmfulness=fit_probe(space, states, harm, positive="harmful"))

    # --- prompts -----------------------------------------------------------------------------------------------

    def _text(self, name: str) -> Contender:
        return text_contender(self.model, self.prompts[name])

    def _texts(self) -> Iterator[Contender]:
        yield from (self._text(name) for name in self.prompts if name != NO_PROMPT)

    def _dro(self) -> Iterator[Contender]:
        yield from self._trained(f"dro-{self.init}", "dro")

    def _without_terms(self) -> Iterator[Contender]:
        for term in ("refusal", "harmfulness", "residual"):
            changed: dict[str, Any] = {f"{term}_weight": 0.0}
            if term == "refusal":
                changed["harmfulness_weight"] = 1.0
            yield from self._trained(f"dro-{self.init} without {term}", config=replace(self.config, **changed))

    def _from_less(self) -> Iterator[Contender]:
        harmful = self.queries["harmful"].to_numpy(dtype=bool)
        for n in [n for n in self.anchors if n < max(harmful.sum(), (~harmful).sum())]:
            few = evenly_spaced(self.queries, n)
            yield from self._trained(f"dro-{self.init} {n} anchors", queries=few, states=partial(self._of, few))
        yield from self._trained(f"dro-{self.init} without harmless", queries=self.queries[harmful])
        yield from self._trained(f"dro-{self.init} other anchors", states=self._of_other_prompts)

    def _of(self, queries: pd.DataFrame) -> HiddenStates:
        return _rows(self._anchors, self._anchors.index["query_id"].isin(queries["query_id"]).to_numpy())

    def _of_other_prompts(self) -> HiddenStates:
        others = (self._anchors.index["prompt"] != self.init).to_numpy()
        if not any(getattr(prompt, "text", "") for name, prompt in self.prompts.items() if name != self.init):
            raise TooFewError(f"There is no other prompt than {self.init!r} to take anchors from: pass more prompts.")
        return _rows(self._anchors, others)

    def _trained(
        self,
        name: str,
        kind: Kind = "ablation",
        *,
        config: DROConfig | None = None,
        queries: pd.DataFrame | None = None,
        states: Callable[[], HiddenStates] | None = None,
    ) -> Iterator[Contender]:
        """By DRO, in as many steps as all the others, whatever was left out; nothing if that cannot be fitted."""
        queries = self.queries if queries is None else queries
        config = self._lengthened(config or self.config, len(queries))
        try:
            probes = self._all_probes if states is None else self._probes(states())
        except TooFewError as error:
            self.left_out[name] = str(error)
            return
        run: DRORun = train_dro(
            self.model,
            queries,
            init=self.prompts[self.init],
            **vars(probes),
            config=config,
            one_class=queries["harmful"].astype(bool).nunique() == 1,
            store=self.store,
            progress=self.progress,
        )
        yield text_contender(
            self.model,
            replace(run.soft_prompt, name=name),
            kind=kind,
            seconds=run.seconds,
            n_steps=len(run.history),
            n_queries=len(queries),
            problems=run.problems,
            about={"config": config, "run": run},
            model_fingerprint=self.model.own_fingerprint,
        )

    def _lengthened(self, config: DROConfig, n: int) -> DROConfig:
        per_epoch = -(-n // config.batch_size)
        return replace(config, num_train_epochs=-(-_n_steps(config, len(self.queries)) // per_epoch))

    def _tuned(self) -> Iterator[Contender]:
        name = f"vpt-{self.init}"
        try:
            run = train_prompt_tuning(
                self.model,
                self.queries,
                init=self.prompts[self.init],
                replies=self.replies,
                judge=self.judge,
                config=self.tuning,
                store=self.store,
                progress=self.progress,
            )
        except TooFewError as error:
            self.left_out[name] = str(error)
            return
        yield text_contender(
            self.model,
            run.soft_prompt,
            kind="prompt tuning",
            seconds=run.seconds,
            n_steps=len(run.history),
            n_queries=len(self.queries),
            problems=run.problems,
            about={"config": self.tuning, "run": run},
            model_fingerprint=self.model.own_fingerprint,
        )

    # --- steering ----------------------------------------------------------------------------------------------

    def _steered(self) -> Iterator[Contender]:
        begun = time.perf_counter()
        try:
            tried = self._tries()
        except TooFewError as error:
            self.left_out.update(dict.fromkeys(("steered", "ablated", "random"), str(error)))
            return
        best = self._best(tried)
        chosen = {"layer": best.layer, "strength": best.strength, "norm": float(best.vector.norm())}
        table = pd.DataFrame([one.row() for one in tried])
        about: dict[str, Any] = {"n_queries": len(self.queries), "model_fingerprint": self.model.own_fingerprint}
        problems = tuple(filter(None, (best.problem, self._quick.problem)))
        yield Contender(
            name="steered",
            kind="steering",
            edits=best.contender.edits,
            seconds=time.perf_counter() - begun,
            n_steps=len(tried),
            problems=problems,
            about={**chosen, "tried": table},
            **about,
        )
        yield Contender(
            name="ablated",
            kind="steering",
            edits=(Ablate(best.vector, [best.layer], best.answered),),
            problems=tuple(filter(None, (best.problem,))),
            about={"layer": best.layer},
            **about,
        )
        yield Contender(
            name="random", kind="control", edits=(Add(self._random(best), best.layer),), about=chosen, **about
        )

    def _random(self, best: _Try) -> torch.Tensor:
        """As long as what is added when steering."""
        generator = torch.Generator().manual_seed(self.config.seed)
        vector = torch.randn(len(best.vector), generator=generator)
        return vector * (best.vector.norm() / vector.norm())

    def _tries(self) -> list[_Try]:
        """All strengths at all layers, and what the model is then about to say."""
        states, rate = self._states(self.layers), self._scores["refusal_rate"]
        look = Look(self.model, evenly_spaced(self.queries), self._quick, store=self.store)
        found = []
        total = len(self.layers) * len(self.strengths)
        with bar(self.progress, total=total, desc="steering", unit="strength") as counted:
            for layer in self.layers:
                fitted = fit_directions(states, rate, positive="refuses", methods=["mean_difference"], layer=layer)
                direction = fitted["mean_difference"]
                refused, answered = _means(states.matrix(layer), states, rate)
                length = float((refused - answered) @ direction.vector)
                for strength in self.strengths:
                    vector = strength * length * direction.vector
                    edits = (Add(vector, layer),)
                    contender = Contender(name=f"{layer} {strength}", kind="steering", edits=edits)
                    table = look.at(contender, replies=False)
                    found.append(_Try(layer, strength, vector, answered, direction.problem, contender, table))
                    counted.update()
        return found

    def _best(self, tried: Sequence[_Try]) -> _Try:
        """The best that leaves the model whole, by its replies, too; or the best."""
        ranked = sorted(tried, key=lambda one: (-one.score, one.strength))
        whole = [one for one in ranked if not one.note]
        return next((one for one in whole if not self._broken(one)), ranked[0])

    def _broken(self, one: _Try) -> bool:
        return bool(self._look.at(one.contender, replies=True)["note"].any())


@dataclass(frozen=True)
class _Try:
    """One strength at one layer."""

    layer: int
    strength: float
    vector: torch.Tensor
    answered: torch.Tensor
    """The mean of the states that were answered."""
    problem: str
    """Of the direction."""
    contender: Contender
    table: pd.DataFrame
    """Of `damage`."""

    @property
    def note(self) -> str:
        return str(self.table["note"].iloc[-1])

    @property
    def _now(self) -> pd.DataFrame:
        return self.table[self.table["contender"] == self.contender.name].set_index("harmful")

    @property
    def score(self) -> float:
        """Refusal of harmful and compliance with harmless queries; nothing where there is nothing to measure."""
        found = float(self._now["refusal"][True]) + float(self._now["compliance"][False])
        return found if np.isfinite(found) else -np.inf

    def row(self) -> dict[str, Any]:
        now = self._now
        measures = {
            f"{measure} {kind}": float(now[measure][harmful])
            for measure in ("refusal", "compliance", "other", "kl")
            for kind, harmful in (("harmful", True), ("harmless", False))
        }
        norm = float(self.vector.norm())
        return {
            "layer": self.layer,
            "strength": self.strength,
            "norm": norm,
            **measures,
            "score": self.score,
            "note": self.note,
        }


def _rows(states: HiddenStates, kept: np.ndarray) -> HiddenStates:
    """The states of some rows."""
    rows = np.flatnonzero(kept)
    return replace(states, values=states.values[rows], index=states.index.iloc[rows].reset_index(drop=True))


def _means(matrix: torch.Tensor, states: HiddenStates, rate: pd.Series) -> tuple[torch.Tensor, torch.Tensor]:
    """The means, [d] each, of the states that were refused and of those that were answered, weighted by how often."""
    chats = list(zip(states.index["query_id"], states.index["prompt"], strict=True))
    refused = torch.tensor(rate.loc[chats].to_numpy(dtype=float))
    means = [(weights @ matrix.double()) / weights.sum() for weights in (refused, 1 - refused)]
    return means[0].float(), means[1].float()
