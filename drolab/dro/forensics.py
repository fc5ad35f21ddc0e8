"""What is in a soft prompt, and which part of it does the work: vectors taken apart, and what is left of the effect.

In order: `nearest_tokens` (which words its vectors are near, and how long they are), `RefusalMeter` (what refusals do
under a prompt, without sampling), the tables of its variants (`without_each_token`, `rounded_to_text`, `cut_short`,
`moved`, `carried`), and `forensics`, which makes the set. How far training moved each vector says `drift_from_text`.

Beside each variant stands the same of a control, a random soft prompt whose vectors have the same norms
(`random_like`): what happens to that, too, says nothing about what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drolab.data import validate_queries
from drolab.dro.token_drift import drift_from_text
from drolab.errors import ChatTemplateError, PromptError, QueryError, StatesError
from drolab.inference import hidden_states
from drolab.intervals import CHANGE, LOGIT, bounded_interval, check_settings, sample_interval
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel, Prompt, check_fits, prompt_token_ids
from drolab.probing import coordinates
from drolab.progress import Progress
from drolab.store import Store
from drolab.types import NO_PROMPT, AnchorSpace, Probe, SafetyPrompt, SoftPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric = Literal["cosine", "distance"]
METRICS: tuple[Metric, ...] = ("cosine", "distance")
WHOLE, START = "whole", "start"
"""Variants: the prompt as it is, and the text that it was trained from."""
_TIE = 1e-6
_FIRST_USER = "first_user"


# --- vectors -----------------------------------------------------------------------------------------------


def nearest_tokens(
    model: ChatModel, prompt: SoftPrompt, k: int = 3, *, start: SafetyPrompt | None = None
) -> pd.DataFrame:
    """The tokens of the vocabulary that each vector of a soft prompt is nearest to, and how long it is beside them.

    Args:
        k: how many of each.
        start: the text that it was trained from, for `began_as`; None takes `prompt.init_text`, if that has as many
            tokens.

    Returns:
        For each vector (`token`, from 0) and each of the metrics "cosine" and "distance" (Euclidean) k rows: prompt,
        token, began_as (text of the token in its place in `start`; "" if not known), norm, `norm_share` (of the
        vocabulary whose vectors are shorter), metric, rank (from 1), id, text, value (the cosine or the distance),
        `ties` (other tokens that are as near; of those the ones with the lowest ids come first) and special (whether
        the token is one that no text is meant to have).

    Raises:
        PromptError: the soft prompt does not fit the model, or `start` has another number of tokens.
        StatesError: k below 1, or above the vocabulary.

    Examples:
        >>> import drolab
        >>> from drolab import dro
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> table = dro.nearest_tokens(model, dro.as_embeddings(model, prompts["short"]), k=1)
        >>> near = table[table["metric"] == "cosine"]
        >>> "".join(near["text"])[:24], near["value"].min().round(3)
        ('You are a careful and re', np.float64(1.0))
    """
    check_fits(model, prompt)
    size = _n_words(model)
    if not 1 <= k <= size:
        raise StatesError(f"k must be between 1 and {size}, the tokens of {model.name!r}, got {k}.")
    began = _began_as(model, prompt, start)
    found = _against_vocabulary(model, prompt.embeddings)
    lengths, norms = found.norms.sort().values, prompt.embeddings.double().norm(dim=1)
    shares = torch.searchsorted(lengths.double(), norms * (1 - _TIE)) / len(lengths)
    special = set(model.tokenizer.all_special_ids)
    parts = []
    for metric in METRICS:
        values = found.values[metric]
        order = values.sort(dim=1, descending=metric == "cosine", stable=True)
        near, ids = order.values[:, :k], order.indices[:, :k]
        limits = _TIE * near.abs().clamp(min=1.0)
        ties = torch.stack([((values - near[:, [j]]).abs() <= limits[:, [j]]).sum(dim=1) for j in range(k)], dim=1)
        slots = torch.arange(len(prompt)).repeat_interleave(k).tolist()
        flat = ids.flatten().tolist()
        parts.append(
            pd.DataFrame(
                {
                    "prompt": prompt.name,
                    "token": slots,
                    "began_as": [began[slot] for slot in slots],
                    "norm": norms[slots].tolist(),
                    "norm_share": shares[slots].tolist(),
                    "metric": metric,
                    "rank": list(range(1, k + 1)) * len(prompt),
                    "id": flat,
                    "text": model.tokenizer.batch_decode([[one] for one in flat], clean_up_tokenization_spaces=False),
                    "value": near.flatten().tolist(),
                    "ties": (ties - 1).flatten().tolist(),
                    "special": [one in special for one in flat],
                }
            )
        )
    return pd.concat(parts).sort_values("token", kind="stable").reset_index(drop=True)


class _Near(NamedTuple):
    values: dict[Metric, Tensor]
    """[L, V] each: cosines, and Euclidean distances."""
    norms: Tensor
    """[V]"""


def _n_words(model: ChatModel) -> int:
    """Tokens that the tokenizer has and the model reads."""
    table = model.model.get_input_embeddings()
    return min(len(model.tokenizer), int(getattr(table, "num_embeddings", len(model.tokenizer))))


@torch.no_grad()
def _against_vocabulary(model: ChatModel, vectors: Tensor) -> _Near:
    """How near vectors [L, d] are to what the model reads for each token, some tokens at a time: all are large."""
    own = vectors.float()
    unit = torch.nn.functional.normalize(own, dim=1)
    cosines, distances, norms = [], [], []
    for ids in torch.arange(_n_words(model)).split(8192):
        words = model.embed(ids).float().cpu()
        norms.append(words.norm(dim=1))
        cosines.append(unit @ torch.nn.functional.normalize(words, dim=1).T)
        distances.append(torch.cdist(own, words, compute_mode="donot_use_mm_for_euclid_dist"))
    return _Near({"cosine": torch.cat(cosines, dim=1), "distance": torch.cat(distances, dim=1)}, torch.cat(norms))


def _read(model: ChatModel, ids: Tensor) -> Tensor:
    """[L, d], float32, on the CPU: what the model reads for some tokens."""
    return model.embed(ids).detach().to("cpu", torch.float32)


def _began_as(model: ChatModel, prompt: SoftPrompt, start: SafetyPrompt | None) -> list[str]:
    ids = prompt_token_ids(model, prompt.init_text if start is None else start.text)
    if len(ids) != len(prompt):
        if start is None:
            return [""] * len(prompt)
        raise PromptError(
            f"Soft prompt {prompt.name!r} has {len(prompt)} vectors, but prompt {start.name!r} has {len(ids)} tokens "
            f"in {model.name!r}: give the prompt it was trained from."
        )
    return list(model.tokenizer.batch_decode([[one] for one in ids], clean_up_tokenization_spaces=False))


def random_like(prompt: SoftPrompt, random_state: int = 0) -> SoftPrompt:
    """The control: vectors in random directions (evenly drawn), as long as those of a soft prompt, each in its place.

    Examples:
        >>> import drolab
        >>> from drolab import dro
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> soft = dro.as_embeddings(model, prompts["short"])
        >>> random = dro.random_like(soft)
        >>> random.name, bool((random.embeddings.norm(dim=1) - soft.embeddings.norm(dim=1)).abs().max() < 1e-5)
        ('random (short)', True)
    """
    generator = np.random.default_rng(random_state)
    drawn = torch.from_numpy(generator.normal(size=tuple(prompt.embeddings.shape)))
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * prompt.embeddings.double().norm(dim=1, keepdim=True)
    return replace(prompt, name=f"random ({prompt.name})", embeddings=drawn.float(), init_text="")


# --- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalMeter:
    """What refusals do under a prompt, on queries that nothing was trained on: no reply is sampled.

    Examples:
        >>> import drolab
        >>> from drolab import dro, judges
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts("safety")
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(3)
        >>> replies = drolab.generate(model, queries, prompts["none"], n_samples=4, max_new_tokens=8, progress=False)
        >>> meter = dro.RefusalMeter(model=model, queries=queries, judge=judges.FirstTokenJudge.fit(replies))
        >>> table = dro.cut_short(meter, dro.as_embeddings(model, prompts["short"]), lengths=[1, 4])
        >>> table["variant"].unique().tolist()
        ['whole', 'none', 'first 1', 'first 4']
    """

    model: ChatModel
    queries: pd.DataFrame
    """Held-out ones, of one class or both."""
    judge: FirstTokenJudge
    """Fitted on replies of this model."""
    space: AnchorSpace | None = None
    refusal: Probe | None = None
    """With a space and its probe also the refusal logit is read."""
    level: float = 0.95
    store: Store | None = None
    progress: Progress = False

    def __post_init__(self) -> None:
        check_settings(self.level)
        if (self.space is None) != (self.refusal is None):
            raise StatesError("A refusal logit needs both, the anchor space and the probe: pass space and refusal.")

    @property
    def measures(self) -> tuple[str, ...]:
        return ("refusal", "other") if self.space is None else ("refusal", "other", "refusal_logit")

    def of(self, prompt: Prompt) -> NDArray[np.float64]:
        """[n queries, measures]: the first-token score, what lies outside refusals and answers, the refusal logit."""
        options: dict[str, Any] = {"store": self.store, "progress": self.progress}
        scores = self.judge.score(self.model, self.queries, prompt, **options)
        parts = [scores["refusal"].to_numpy(dtype=float), scores["other"].to_numpy(dtype=float)]
        if len(scores) != len(self.queries):
            raise QueryError("Some queries have no answer to read: use a judge that reads at 'reply' or 'answer'.")
        if self.space is not None and self.refusal is not None:
            read: dict[str, Any] = {"layers": (self.space.layer,), "read_at": self.space.read_at}
            states = hidden_states(self.model, self.queries, prompt, **read, **options)
            parts.append(self.refusal.decision_function(coordinates(self.space, states)).double().numpy())
        return np.stack(parts, axis=1)


class _Variant(NamedTuple):
    """What a prompt becomes, and what is to be said of it."""

    name: str
    prompt: Prompt | None
    """None: there is none, and `note` says why."""
    control: bool = False
    note: str = ""
    meter: RefusalMeter | None = None
    """Where it is measured; None: where the whole is."""
    about: Mapping[str, Any] | None = None
    """Further columns."""


def _table(
    meter: RefusalMeter, prompt: SoftPrompt, start: SafetyPrompt | None, variants: Sequence[_Variant]
) -> pd.DataFrame:
    """One row per variant and class; changes are against the whole prompt, those of the control against its own."""
    validate_queries(meter.queries)
    control = random_like(prompt)
    none = SafetyPrompt(name=NO_PROMPT, text="")
    first = [_Variant(WHOLE, prompt), *([] if start is None else [_Variant(START, start)]), _Variant(NO_PROMPT, none)]
    if any(one.control for one in variants):
        first.append(_Variant(WHOLE, control, control=True))
    wholes: dict[bool, NDArray[np.float64]] = {}
    rows = []
    for one in [*first, *variants]:
        found, note = _measured(one.meter or meter, one, must=one.name == WHOLE)
        if one.name == WHOLE:
            wholes[one.control] = found
        rows += _rows(meter, one, found, found - wholes[one.control], note)
    table = pd.DataFrame(rows)
    return table[[*table.columns.drop("note"), "note"]]


def _measured(meter: RefusalMeter, one: _Variant, must: bool) -> tuple[NDArray[np.float64], str]:
    if one.prompt is not None:
        try:
            return meter.of(one.prompt), one.note
        except (ChatTemplateError, PromptError) as error:  # a variant may be one that this model does not take
            if must:
                raise
            note = str(error)
    else:
        note = one.note
    return np.full((len(meter.queries), len(meter.measures)), np.nan), note


def _rows(
    meter: RefusalMeter, one: _Variant, found: NDArray[np.float64], change: NDArray[np.float64], note: str
) -> list[dict[str, Any]]:
    harmful = meter.queries["harmful"].to_numpy(dtype=bool)
    rows = []
    for kind in sorted(set(harmful), reverse=True):
        part, moved = found[harmful == kind], change[harmful == kind]
        row: dict[str, Any] = {"variant": one.name, "control": one.control, **(one.about or {})}
        row |= {"n_tokens": _n_tokens(meter.model, one.prompt), "harmful": bool(kind), "n_queries": len(part)}
        row |= _limits("refusal", part[:, 0], meter.level, LOGIT) | _limits("change", moved[:, 0], meter.level, CHANGE)
        row["other"] = float(part[:, 1].mean())
        if meter.space is not None:
            row |= _limits("refusal_logit", part[:, 2], meter.level) | _limits("logit_change", moved[:, 2], meter.level)
        rows.append(row | {"note": note})
    return rows


def _limits(name: str, values: NDArray[np.float64], level: float, scale: Any = None) -> dict[str, float]:
    if not np.isfinite(values).all():
        found: Sequence[float] = (np.nan, np.nan, np.nan)
    elif not values.any():
        found = (0.0, 0.0, 0.0)  # the same, whichever queries are asked
    else:
        found = sample_interval(values, level) if scale is None else bounded_interval(values, level, scale)
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, found), strict=True))


def _n_tokens(model: ChatModel, prompt: Prompt | None) -> int:
    if prompt is None:
        return 0
    return len(prompt) if isinstance(prompt, SoftPrompt) else len(prompt_token_ids(model, prompt.text))


def _with_control(prompt: SoftPrompt, make: Callable[[SoftPrompt], Sequence[_Variant]]) -> list[_Variant]:
    """The variants of a prompt, and of its control."""
    return [*make(prompt), *(one._replace(control=True) for one in make(random_like(prompt)))]


# --- the variants ------------------------------------------------------------------------------------------


def without_each_token(
    meter: RefusalMeter, prompt: SoftPrompt, *, start: SafetyPrompt | None = None, control: bool = True
) -> pd.DataFrame:
    """What each vector does: the prompt without it, the others moved together.

    Args:
        start: the text that it was trained from, as a row of its own and for the text of each token.
        control: also a random prompt without each of its vectors, which takes as long again.

    Returns:
        One row per variant and class of queries: `variant` ("whole", "start", "none", "without 0", …), control,
        token (its number; -1 in other rows), text (of the token that began in its place), n_tokens, harmful, n_queries;
        refusal (the first-token score), `change` of it against the whole prompt (the control's against the whole
        control), other; refusal_logit and logit_change if the meter reads it; each with `…_low` and `…_high` (over
        queries); `note`. A change below 0 without a token says that this token raises refusals.

    Raises:
        PromptError: a soft prompt of one vector, or that does not fit the model.
    """
    if len(prompt) < 2:
        raise PromptError(f"Soft prompt {prompt.name!r} has one vector: without it there is no prompt.")
    began = _began_as(meter.model, prompt, start)

    def make(own: SoftPrompt) -> list[_Variant]:
        found = []
        for slot in range(len(own)):
            left = torch.cat([own.embeddings[:slot], own.embeddings[slot + 1 :]])
            about = {"token": slot, "text": began[slot] if own is prompt else ""}
            found.append(_Variant(f"without {slot}", _named(own, f"without {slot}", left), about=about))
        return found

    table = _table(meter, prompt, start, _with_control(prompt, make) if control else make(prompt))
    return table.assign(token=table["token"].fillna(-1).astype(int), text=table["text"].fillna(""))


def rounded_to_text(meter: RefusalMeter, prompt: SoftPrompt, *, start: SafetyPrompt | None = None) -> pd.DataFrame:
    """Does it still work as words? Each vector becomes its nearest token, by cosine and by distance.

    "rounded (cosine)" has the vectors of those tokens in the slots; "text (cosine)" is their text in the chat, which
    the tokenizer may take apart in another way: `note` says so, and `text` has it. Special tokens are left out.

    Returns:
        As `without_each_token`, without `token`; `text` is that of the variant.
    """
    texts, size = meter.model.tokenizer, _n_words(meter.model)
    allowed = torch.ones(size, dtype=torch.bool)
    allowed[[one for one in texts.all_special_ids if one < size]] = False

    def make(own: SoftPrompt) -> list[_Variant]:
        found, near = [], _against_vocabulary(meter.model, own.embeddings).values
        for metric in METRICS:
            values = near[metric] * (1 if metric == "cosine" else -1)
            ids = values.masked_fill(~allowed, -torch.inf).argmax(dim=1)
            text = str(texts.decode(ids.tolist(), clean_up_tokenization_spaces=False))
            found.append(
                _Variant(f"rounded ({metric})", _named(own, "rounded", _read(meter.model, ids)), about={"text": text})
            )
            again = prompt_token_ids(meter.model, text)
            note = "" if again == ids.tolist() else f"Its text has {len(again)} tokens, not these {len(own)}."
            blank = not text.strip()
            words_of = None if blank else SafetyPrompt(name="text", text=text)
            said = "Its tokens have no text." if blank else note
            found.append(_Variant(f"text ({metric})", words_of, note=said, about={"text": text}))
        return found

    table = _table(meter, prompt, start, _with_control(prompt, make))
    return table.assign(text=table["text"].fillna(""))


def cut_short(
    meter: RefusalMeter,
    prompt: SoftPrompt,
    *,
    lengths: Sequence[int] | None = None,
    start: SafetyPrompt | None = None,
    control: bool = False,
) -> pd.DataFrame:
    """How many of its first vectors does it take?

    Args:
        lengths: how many are kept; None takes 1, 2, 4, … and half of all.

    Returns:
        As `without_each_token`, without `token` and `text`; variants "first 1", "first 2", ….

    Raises:
        PromptError: a length that the prompt does not have.
    """
    doubled = [2**power for power in range(16) if 2**power < len(prompt)]
    wanted = sorted(
        set(lengths if lengths is not None else [*doubled, *([len(prompt) // 2] if len(prompt) > 1 else [])])
    )
    if bad := [length for length in wanted if not 1 <= length <= len(prompt)]:
        raise PromptError(f"Soft prompt {prompt.name!r} has {len(prompt)} vectors: it cannot be cut to {bad[0]}.")

    def make(own: SoftPrompt) -> list[_Variant]:
        return [_Variant(f"first {n}", _named(own, f"first {n}", own.embeddings[:n])) for n in wanted]

    return _table(meter, prompt, start, _with_control(prompt, make) if control else make(prompt))


def moved(meter: RefusalMeter, prompt: SoftPrompt, *, start: SafetyPrompt | None = None) -> pd.DataFrame:
    """Does it work elsewhere? In the system message, and before the query in the user's: what the template allows.

    Returns:
        As `without_each_token`, without `token` and `text`; variants "system message" and "before the query", one of
        which is where the prompt stands now. A place that the template refuses has no numbers, and a note.
    """
    places = {"system message": None, "before the query": _FIRST_USER}

    def make(own: SoftPrompt) -> list[_Variant]:
        found = []
        for name, system_as in places.items():
            here = system_as == meter.model.template.system_as
            template = replace(meter.model.template, system_as=system_as)
            elsewhere = replace(meter, model=replace(meter.model, template=template))
            note = "This is where it stands." if here else ""
            found.append(_Variant(name, own, note=note, meter=meter if here else elsewhere))
        return found

    return _table(meter, prompt, start, _with_control(prompt, make))


def carried(
    sister: RefusalMeter, prompt: SoftPrompt, *, of: ChatModel | None = None, start: SafetyPrompt | None = None
) -> pd.DataFrame:
    """Does it work in another model of the same width? It may well fail: vectors are made for one model's weights.

    Args:
        sister: the other model, with queries and a judge fitted on its own replies.
        of: the model that the prompt was made for, if what it does there is to stand beside: not here, but as a note
            of how many vectors have the same nearest token (by cosine) in both.
        start: the text that it was trained from, which a model of the same kind understands.

    Returns:
        As `without_each_token`, without `token` and `text`: "whole" is the prompt in the sister, beside it the text and
        "none" in the sister, and the control. What it does at home is another call's table.

    Raises:
        PromptError: the models differ in width.
    """
    width = prompt.embeddings.shape[1]
    if width != sister.model.hidden_size:
        raise PromptError(
            f"Soft prompt {prompt.name!r} has vectors of width {width}, but {sister.model.name!r} has hidden size "
            f"{sister.model.hidden_size}: only a model of the same width can read them. Train a prompt for this one."
        )
    own = replace(prompt, model_fingerprint=sister.model.own_fingerprint)
    table = _table(sister, own, start, [_Variant("random", random_like(own), control=True)])
    table = table[~((table["variant"] == WHOLE) & table["control"])]
    if of is not None:
        models = (of, sister.model)
        both = [_against_vocabulary(model, prompt.embeddings).values["cosine"].argmax(dim=1) for model in models]
        here, there = (
            model.tokenizer.convert_ids_to_tokens(ids.tolist()) for model, ids in zip(models, both, strict=True)
        )
        same = sum(one == two for one, two in zip(here, there, strict=True))
        said = f"{same} of {len(prompt)} vectors have the same nearest token in both models."
        table = table.assign(note=table["note"].mask((table["variant"] == WHOLE), said))
    return table.reset_index(drop=True)


def _named(prompt: SoftPrompt, variant: str, embeddings: Tensor) -> SoftPrompt:
    return replace(prompt, name=f"{prompt.name}, {variant}", embeddings=embeddings.float(), init_text="")


# --- the set -----------------------------------------------------------------------------------------------


def forensics(
    meter: RefusalMeter,
    prompt: SoftPrompt,
    *,
    start: SafetyPrompt | None = None,
    sister: RefusalMeter | None = None,
    control: bool = True,
) -> dict[str, pd.DataFrame]:
    """All tables of a soft prompt by name: nearest (`nearest_tokens`), drift (`drift_from_text`), tokens
    (`without_each_token`), text (`rounded_to_text`), length (`cut_short`), place (`moved`), sister (`carried`).

    Args:
        start: the text that it was trained from; without it there is no table of drift.
        sister: another model of the same width; without it there is no table of it.
        control: whether each single token is also taken out of the control, which takes as long again.

    Raises:
        PromptError: the prompt does not fit the model, the start or the sister.

    Examples:
        >>> import drolab
        >>> from drolab import dro, judges
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts("safety")
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(3)
        >>> replies = drolab.generate(model, queries, prompts["none"], n_samples=4, max_new_tokens=8, progress=False)
        >>> meter = dro.RefusalMeter(model=model, queries=queries, judge=judges.FirstTokenJudge.fit(replies))
        >>> soft = dro.as_embeddings(model, drolab.SafetyPrompt(name="brief", text="Be safe."))
        >>> tables = dro.forensics(meter, soft, control=False)
        >>> list(tables)
        ['nearest', 'tokens', 'text', 'length', 'place']
        >>> whole = tables["text"][lambda rows: rows["variant"].isin(["whole", "rounded (cosine)"]) & ~rows["control"]]
        >>> bool(whole.groupby("harmful")["refusal"].agg(lambda both: abs(both.diff().iloc[1])).max() < 1e-4)
        True
    """
    check_fits(meter.model, prompt)
    _began_as(meter.model, prompt, start)
    if sister is not None and sister.model.hidden_size != prompt.embeddings.shape[1]:
        carried(sister, prompt)  # says so before anything long begins
    tables = {"nearest": nearest_tokens(meter.model, prompt, start=start)}
    if start is not None:
        tables["drift"] = drift_from_text(meter.model, prompt, start)
    tables["tokens"] = without_each_token(meter, prompt, start=start, control=control)
    tables["text"] = rounded_to_text(meter, prompt, start=start)
    tables["length"] = cut_short(meter, prompt, start=start, control=control)
    tables["place"] = moved(meter, prompt, start=start)
    if sister is not None:
        tables["sister"] = carried(sister, prompt, of=meter.model, start=start)
    return tables
