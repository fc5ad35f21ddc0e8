"""What a model can do here, and how long it will take, before anything long begins: `drolab check MODEL`.

In order: `check_model` and what it gives; where the files are; whether there is room; what the model can do; how fast
it is, tried on a few queries; and what follows for the notebooks, by `works`, which counts what each of them computes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from drolab.data import attacks, load_prompts, load_queries
from drolab.dro import Training
from drolab.errors import ChatTemplateError, DrolabError, shown
from drolab.inference import at_once, generate, hidden_states, reply_bytes, thinking_budget
from drolab.models import (
    DEMO,
    ChatModel,
    Source,
    audit,
    can_pack,
    can_read_in_place,
    can_share_prefix,
    check_trainable,
    encode,
    find_source,
    free_memory,
    load_model,
    loading,
    named_source,
    own_text,
    prefix_embeddings,
    run_prefix,
    token_bytes,
)
from drolab.probing import fit_anchors
from drolab.progress import in_words
from drolab.threads import threads_for
from drolab.types import DROConfig, Probe, SafetyPrompt

TRIED_S = 15.0
"""Seconds that one trial may take, as far as that is known before: a slow model gets smaller ones."""
LONG_S = 12 * 3600
"""Seconds of all notebooks above which fewer samples are advised."""
ROW_COLUMNS = ("asked", "status", "found", "do")
TIME_COLUMNS = ("notebook", "states", "edited", "steps", "tuning", "replies", "seconds")
BOARD = "10_contenders"
"""The notebook that only a full run has, see `reproduction`: it takes longer than all the others together."""
_LOOP_S = 0.005
"""What the loop in `_slowness` takes on the machine on which the seconds in `works` were measured, idle."""
_NEW_TOKENS = 64
"""How long replies are at most."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the notebooks are asked for: their parameters, as numbers."""

    anchors: int
    """Training queries."""
    heldout: int
    borderline: int
    prompts: int
    """Of the set PROMPTS, `none` included."""
    others: int = 3
    """Safety prompts beside them, in notebook 07."""
    n_samples: int = 10
    max_new_tokens: int = _NEW_TOKENS
    n_random: int = 20
    """Random directions."""
    board_samples: int = 5
    """Replies per query and contender in notebook 10, and their tokens."""
    board_tokens: int = 32


def usual_size(n_samples: int = 10, *, demo: bool = False) -> Size:
    """With the parameters that stand in the notebooks, but N_SAMPLES; `demo`: for the demo model."""
    sizes = {name: len(load_queries(name, demo=demo)) for name in ("anchors", "heldout", "borderline")}
    few = min(n_samples, Size.board_samples)
    return Size(**sizes, prompts=len(load_prompts()), n_samples=n_samples, board_samples=few)


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """What `check_model` found."""

    name: str
    rows: pd.DataFrame
    """ROW_COLUMNS: what was looked at; `ok`, `note` or `problem`; what was found; what to do about it, or ""."""
    times: pd.DataFrame
    """TIME_COLUMNS: chats whose states each notebook reads, chats whose next token it reads under edits, DRO steps,
    steps of prompt tuning, replies, and what that is expected to take; in order, one at a time, each going on with the
    store of those before it. Empty where nothing was measured."""
    replies: pd.DataFrame
    """What it wrote, as from `generate`."""
    advice: tuple[str, ...] = ()
    """Settings that it works with better, or at all."""
    refused: str = ""
    """Why it does not work; "" if it does."""
    measured: Measured | None = None
    """What times are computed from; None where nothing was measured."""

    @property
    def answer(self) -> str:
        if self.refused:
            return f"No: {self.refused}"
        if self.advice:
            return f"Yes, with these settings: {' '.join(self.advice)}"
        return "Yes."

    @property
    def seconds(self) -> dict[str, float]:
        """What each notebook is expected to take, by its name: `run_notebooks(…, expected=check.seconds)`."""
        return dict(zip(self.times["notebook"], self.times["seconds"], strict=True))

    def show(self) -> None:
        """Display both tables in a notebook."""
        from drolab import figures

        figures.show_table(self.rows, note=self.answer, asked="looked at", do="what to do")
        if len(self.times):
            figures.show_table(self._some_replies()[["text", "response"]])
            headings = {"states": "chats read", "edited": "chats edited", "steps": "DRO steps", "seconds": "expected"}
            words = self.times["seconds"].map(in_words)
            figures.show_table(self.times.assign(seconds=words), tuning="tuning steps", **headings)

    def _some_replies(self) -> pd.DataFrame:
        return self.replies.groupby("query_id", sort=False).head(1).head(2)

    def __str__(self) -> str:
        rows = [
            f"{row.status:>7}  {row.asked}: {row.found}" + (f"\n{'':9}{row.do}" if row.do else "")
            for row in _named(self.rows)
        ]
        if len(self.replies):
            rows += [f"{'':9}{shown(row.text)}: {shown(row.response)}" for row in _named(self._some_replies())]
        times = [f"{row.notebook:<28}{in_words(row.seconds):>14}  {_work_in_words(row)}" for row in _named(self.times)]
        total = [f"{'all, one after the other':<28}{in_words(self.times['seconds'].sum()):>14}"] if times else []
        return "\n".join([f"{self.name}", *rows, "", *times, *total, "", self.answer]).replace("\n\n\n", "\n\n")


def check_model(model: ChatModel | str | Path, *, load: Mapping[str, Any] | None = None, n_samples: int = 10) -> Check:
    """Whether a model works here, and how long the notebooks will take with it. A minute, and the loading.

    What is tried: a few queries through states, two steps of DRO, a few replies. Nothing is kept in a store.

    Args:
        model: a name, as for `load_model`, or a model that it loaded.
        load: options of `load_model`, such as `{"dtype": "bfloat16"}`.
        n_samples: what N_SAMPLES is to be in the notebooks.

    Raises:
        ModelError, ChatTemplateError: what `load_model` raises, before anything is tried.

    Examples:
        >>> import drolab
        >>> check = drolab.check_model("demo")
        >>> check.answer
        'Yes.'
        >>> list(check.seconds)[:2]
        ['01_what_the_model_reads', '02_hidden_states']
    """
    rows: list[_Row] = []
    load_s = 0.0
    if not isinstance(model, ChatModel):
        name, options = str(model), dict(load or {})
        rows += _where(name, options)
        if absent := [row for row in rows if row.status == "problem"]:  # they would have to be fetched
            return _check(name, rows, refused=" ".join(f"{row.found}. {row.do}" for row in absent))
        started = time.perf_counter()
        model = load_model(name, **options)
        load_s = time.perf_counter() - started
    rows.append(_Row("the model", "ok", repr(model)))
    return _tried(model, rows, load_s, n_samples)


def _tried(model: ChatModel, rows: list[_Row], load_s: float, n_samples: int) -> Check:
    """A check of a model that is loaded."""
    try:
        model, advice = _with_system(model)
        rows += _template(model)
        batch = _batch(model)
        with torch.no_grad(), threads_for(model.model):
            rows += _abilities(model, len(batch.chat(0)))
            rows += _room(model, batch)
        trains = all(row.status == "ok" for row in rows if row.asked == _TRAINS)
        speed, replies, tried = _try(model, trains)
    except Exception as error:  # whatever a model's own code raises: to find that out is what the trial is for
        said = str(error) if isinstance(error, DrolabError) else f"its own code fails: {error!r}"
        return _check(model.name, [*rows, _Row("a trial", "problem", said)], refused=said)
    rows += tried
    size = usual_size(n_samples, demo=model.is_demo)
    measured = _measured(model, speed, load_s)
    times = measured.times(size)
    advice += [f"{row.do} ({row.asked}: {row.found})" for row in rows if row.status == "problem" and row.do]
    advice += _faster(model, times, float(times["replies"].sum()) * speed.reply, n_samples)
    return _check(model.name, rows, times=times, replies=replies, advice=tuple(advice), measured=measured)


class _Row(NamedTuple):
    asked: str
    status: str
    found: str
    do: str = ""


def _check(name: str, rows: list[_Row], **found: Any) -> Check:
    empty = {"times": pd.DataFrame(columns=list(TIME_COLUMNS)), "replies": pd.DataFrame()}
    return Check(name=name, rows=pd.DataFrame(rows, columns=list(ROW_COLUMNS)), **empty | found)


def _named(table: pd.DataFrame) -> Iterator[Any]:
    return table.itertuples()


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


# --- where the files are -----------------------------------------------------------------------------------


def _where(name: str, options: Mapping[str, Any]) -> list[_Row]:
    """Access and size, without reading a weight. A row is a problem if its weights would have to be fetched."""
    if name == DEMO:
        return [_Row("files", "ok", "the demo model, which comes with drolab")]
    chosen = {key: options[key] for key in ("revision", "gguf_file", "base") if key in options}
    with loading(name):
        said = {key: value if value is None else str(value) for key, value in chosen.items()}
        source = named_source(name) or find_source(name, **said)
        rows = [_files(source)]
        while source.base is not None:
            source = source.base
            rows.append(_files(source)._replace(asked="files of its base"))
        return rows


def _files(source: Source) -> _Row:
    if source.adapter is not None:
        weights = Path(source.adapter.weights)  # which are here by now
        return _Row("files", "ok", f"an adapter in {weights.parent}, {_size(weights.stat().st_size)}")
    folder = source.folder
    if folder is None:
        return _on_the_hub(source.place, source.revision)
    files = [folder / source.gguf] if source.gguf else [*folder.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in files)
    return _Row("files", "ok", f"{len(files)} of weights in {folder}, {_size(size)}; no licence gate, no download")


def _on_the_hub(place: str, revision: str | None) -> _Row:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    cached = try_to_load_from_cache(place, "config.json", revision=revision)
    if isinstance(cached, str):
        files = [*Path(cached).parent.glob("*.safetensors"), *Path(cached).parent.glob("*.gguf")]
        if files:
            size = sum(file.stat().st_size for file in files)
            return _Row("files", "ok", f"{place}, {len(files)} of weights in the cache, {_size(size)}; no download")
    api = HfApi()
    about = api.model_info(place, revision=revision, files_metadata=True)
    api.auth_check(place)  # raises what `loading` explains, if a licence is to be accepted first
    sizes = [file.size or 0 for file in about.siblings or () if file.rfilename.endswith(".safetensors")]
    free = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
    gate = f"its licence gate ({about.gated}) is open to you" if about.gated else "no licence gate"
    fetch = f"Fetch it with `hf download {place}`, then check again."
    if sum(sizes) > free:
        fetch = f"The cache's disk has {_size(free)} free: set HF_HOME to a folder on a larger one. {fetch}"
    found = f"{place} is on the hub, not here: {len(sizes)} of weights, {_size(sum(sizes))}; {gate}"
    return _Row("files", "problem", found, fetch)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() or folder == folder.parent else _existing(folder.parent)


# --- its chats, what it can do, whether there is room ----------------------------------------------------------


def _with_system(model: ChatModel) -> tuple[ChatModel, list[str]]:
    """The model; where its template has no place for a prompt, the model with a prompt in the first user's message."""
    try:
        _batch(model, 1)
    except ChatTemplateError:
        other = replace(model, template=replace(model.template, system_as="first_user"))
        with suppress(ChatTemplateError):
            _batch(other, 1)
            return other, ["system_as='first_user' (its template has no place for a system message)."]
    return model, []


def _template(model: ChatModel) -> list[_Row]:
    table = audit(model)
    counts = table["status"].value_counts()
    said = ", ".join(f"{counts[status]} {status}" for status in ("ok", "note", "problem") if counts.get(status))
    worse = table[table["status"] != "ok"]
    rows = [
        _Row(f"template: {row.check}", row.status, f"{row.found} ({row.means})" if row.means else row.found, row.do)
        for row in _named(worse)
    ]
    return [_Row("chat template", "ok", f"{len(table)} checks: {said}"), *rows]


def _prompt() -> SafetyPrompt:
    """The longest of those that the notebooks compare."""
    return max(load_prompts().values(), key=lambda prompt: len(prompt.text))


def _batch(model: ChatModel, n: int | None = None) -> Any:
    queries = load_queries("anchors")
    return encode(model, queries["text"].head(n or len(queries)).tolist(), _prompt())


def _abilities(model: ChatModel, n_tokens: int) -> list[_Row]:
    found = {
        "runs a prompt once for all chats": can_share_prefix(model),
        "many chats in one row": can_pack(model, n_tokens),
        "replies that read the prompt where it is": can_read_in_place(model, n_tokens + _NEW_TOKENS),
    }
    slower = "no: another way with equal results, slower"
    rows = [_Row(asked, "ok" if able else "note", "yes" if able else slower) for asked, able in found.items()]
    try:
        check_trainable(model.model, model.name)
    except DrolabError as error:
        return [*rows, _Row(_TRAINS, "problem", str(error), _NO_TRAINING)]
    return [*rows, _Row(_TRAINS, "ok", "yes")]


_TRAINS = "trains a prompt"
_NO_TRAINING = "Leave notebook 05 out, and with it the trained prompt in 06 and 07."


def _room(model: ChatModel, batch: Any) -> list[_Row]:
    """The weights are there; what else is needed, computed from what one prompt's keys and values take."""
    weights = sum(part.numel() * part.element_size() for part in model.model.parameters())
    begun = run_prefix(model, prefix_embeddings(model, batch))
    token = token_bytes(model, begun.cache, len(batch.prefix))
    cache = token * len(batch.prefix)
    suffix = max(map(len, batch.suffixes))
    copied = not can_read_in_place(model, len(batch.chat(0)))
    own = (len(batch.chat(0)) if copied else suffix) + _NEW_TOKENS
    replies = at_once(model, own * token, copied=copied)
    parts = {
        "the prompt": cache,
        "a pass": 512 * 20 * model.hidden_size * 4.0,
        "a DRO step": 512 * 30 * model.num_hidden_layers * model.hidden_size * model.dtype.itemsize,
        f"{replies} replies": replies * reply_bytes(model, own * token),
    }
    needed, free = max(parts.values()) + cache, free_memory(model.device)
    words = ", ".join(f"{_size(size)} {what}" for what, size in parts.items())
    left = "what is free is not known" if free is None else f"{_size(free)} free on {model.device}"
    found = f"{_size(weights)} weights ({str(model.dtype).removeprefix('torch.')}); about {words}; {left}"
    if free is None or needed < free:
        return [_Row("memory", "ok", found)]
    return [
        _Row(
            "memory",
            "problem",
            found,
            "Write fewer replies at once (batch_size=32), load it with dtype='bfloat16', or spread it "
            "(device_map='auto').",
        )
    ]


# --- how fast it is ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds."""

    token: float
    """Of one token that is read, in a pass of many."""
    reply: float
    """Of one reply, many at once."""
    written: float
    """Of one token that is written."""
    step: float
    """Of one DRO step of 50 queries."""
    taught: float
    """What each token of a reply adds to that, in a step of prompt tuning."""
    chat_tokens: float
    """How many tokens pass for one chat."""
    slowness: float
    """Of what does not depend on the model: see `_slowness`."""
    lengths: tuple[int, ...] = (_NEW_TOKENS,)
    """Tokens of the answers that were tried, as far as that is known."""
    thought: int = 0
    """Tokens before the answer, at most."""

    def reply_of(self, max_new_tokens: int) -> float:
        """Of one reply, if answers have at most so many tokens."""
        asked = self.length_of(max_new_tokens) + self.thought
        return self.reply * asked / (sum(self.lengths) / len(self.lengths) + self.thought)

    def length_of(self, max_new_tokens: int) -> float:
        """Tokens of an answer in the mean, if they have at most so many."""
        cut = [max_new_tokens if n >= _NEW_TOKENS else min(n, max_new_tokens) for n in self.lengths]
        return sum(cut) / len(cut)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a model once it was tried, and what follows for any plan."""

    fingerprint: str
    num_hidden_layers: int
    speed: Speed
    load_s: float
    """Seconds to load it."""
    own_text: str = ""
    """The system text that `none` is for it, if there is one."""
    system_as: str | None = None
    """What it needs to be told where its template has no place for a system message."""
    trainable: bool = True

    def times(self, size: Size) -> pd.DataFrame:
        """TIME_COLUMNS, for notebooks that are asked for so much."""
        todo = works(size, num_hidden_layers=self.num_hidden_layers, has_own_text=bool(self.own_text))
        if not self.trainable:
            todo[BOARD] = todo[BOARD]._replace(steps=0, tuning=0)
        longest = {BOARD: size.board_tokens}
        table = [
            _timed(name, work, self.speed, longest.get(name, size.max_new_tokens), self.load_s)
            for name, work in todo.items()
        ]
        return pd.DataFrame(table, columns=list(TIME_COLUMNS))


def _measured(model: ChatModel, speed: Speed, load_s: float) -> Measured:
    return Measured(
        fingerprint=model.fingerprint,
        num_hidden_layers=model.num_hidden_layers,
        speed=speed,
        load_s=load_s,
        own_text=own_text(model),
        system_as=model.template.system_as,
        trainable=speed.step > 0,
    )


@contextmanager
def _timed_block() -> Iterator[list[float]]:
    found: list[float] = []
    started = time.perf_counter()
    yield found
    found.append(time.perf_counter() - started)


def _passed(model: ChatModel, batch: Any) -> int:
    """How many tokens pass for a batch."""
    whole = len(batch.prefix) + sum(map(len, batch.suffixes))
    return whole if can_share_prefix(model) else whole + len(batch.prefix) * (len(batch) - 1)


def _try(model: ChatModel, trains: bool) -> tuple[Speed, pd.DataFrame, list[_Row]]:
    queries, prompt, rows = load_queries("anchors"), _prompt(), []

    def states(n: int) -> tuple[float, Any]:
        with _timed_block() as took:
            found = hidden_states(model, queries.head(n), prompt, progress=False)
        return took[0] / _passed(model, _batch(model, n)), found

    token, found = states(4)
    if token * _passed(model, _batch(model, 32)) < TRIED_S:
        token, found = states(32)
    if not found.values.isfinite().all():
        rows.append(_Row("states", "problem", "not all are numbers", "Load it with dtype='bfloat16' or 'float32'."))
    batch = _batch(model)
    chat_tokens = (_passed(model, batch) - (len(batch.prefix) if can_share_prefix(model) else 0)) / len(batch)
    rows.append(_Row("states", "ok", f"{1 / (token * chat_tokens):,.1f} chats a second under the longest prompt"))
    step, said = _try_training(model, found, token) if trains else (0.0, _Row("a DRO step", "note", "not tried"))
    rows.append(said)
    reply, written, lengths, replies, said = _try_replies(model, token)
    speed = Speed(
        token=token,
        reply=reply,
        written=written,
        step=step,
        taught=step * _share_of_a_token(model),
        chat_tokens=chat_tokens,
        slowness=_slowness(),
        lengths=lengths,
        thought=thinking_budget(model) or 0,
    )
    return speed, replies, [*rows, said]


def _slowness() -> float:
    """How many times as long Python takes here as where `works` was measured, with all that runs beside it; 1 at least
    (a faster machine's kernels start no faster)."""
    with _timed_block() as took:
        for _ in range(50):
            sum(number * number for number in range(100_000))
    return max(1.0, took[0] / 50 / _LOOP_S)


def _share_of_a_token(model: ChatModel) -> float:
    """What one token more in each of its 50 chats, for which the head runs, too, adds to a DRO step."""
    config, size = model.model.config.get_text_config(), DROConfig().batch_size
    head = config.vocab_size * model.hidden_size
    blocks = sum(part.numel() for part in model.model.parameters()) - head * (1 if config.tie_word_embeddings else 2)
    return size * (1 + head / max(blocks, 1)) / _passed(model, _batch(model, size))


def _try_training(model: ChatModel, states: Any, token: float) -> tuple[float, _Row]:
    """Seconds of a step of 50 queries. Space and probes have no meaning here."""
    size = DROConfig().batch_size
    whole = _passed(model, _batch(model, size))
    n = next((n for n in (size, 16, 4) if 6 * token * _passed(model, _batch(model, n)) < TRIED_S), None)
    if n is None or len(states.values) < 5:
        return 3 * token * whole, _Row(
            "a DRO step", "note", f"{in_words(3 * token * whole)} (computed: three times as long as reading)"
        )
    space, direction = fit_anchors(states, n_components=4), torch.ones(4)
    probes = {name: Probe(coef=direction, intercept=0.0, positive=name) for name in ("refuses", "harmful")}
    config = DROConfig(num_train_epochs=2, batch_size=n)
    training = Training(
        model,
        load_queries("anchors").head(n),
        init=_prompt(),
        space=space,
        refusal=probes["refuses"],
        harmfulness=probes["harmful"],
        config=config,
    )
    steps = training.steps()
    next(steps)  # what comes before the first is no part of a step
    with _timed_block() as took:
        next(steps)
    steps.close()
    seconds = took[0] * whole / _passed(model, _batch(model, n))
    return seconds, _Row("a DRO step", "ok", f"{seconds:.1f} s for {size} queries (tried with {n})")


def _try_replies(model: ChatModel, token: float) -> tuple[float, float, tuple[int, ...], pd.DataFrame, _Row]:
    """Seconds of a reply and of a token, the lengths that count, and the replies. Whole thoughts are not waited for:
    they count as long as they may be."""
    thought = thinking_budget(model)
    sizes = ((128, _NEW_TOKENS), (32, _NEW_TOKENS), (16, _NEW_TOKENS), (16, 16), (4, 8), (1, 4))
    samples, length = next((pair for pair in sizes if 4 * pair[0] * pair[1] * token < TRIED_S), sizes[-1])
    queries = load_queries("anchors").groupby("harmful").head(2)
    with _timed_block() as took:
        replies = generate(
            model,
            queries,
            load_prompts()["none"],
            n_samples=samples,
            max_new_tokens=length,
            max_thinking_tokens=None if thought is None else length,
            progress=False,
        )
    written = took[0] / replies["n_tokens"].sum()
    whole = length == _NEW_TOKENS and thought is None
    reply = took[0] / len(replies) if whole else written * (_NEW_TOKENS + (thought or 0))
    cut = (replies["finish_reason"] == "length").mean()
    found = f"{1 / written:,.0f} tokens a second, {reply:.2f} s each, {len(replies)} at once"
    found += f"; {cut:.0%} are longer than {length} tokens"
    found += "" if thought is None else f"; before each it thinks, for {thought:,} tokens at most"
    status, do = (
        ("note", "Pass a larger max_new_tokens to read whole replies.")
        if cut > 0.5 and length == _NEW_TOKENS
        else ("ok", "")
    )
    lengths = tuple(map(int, replies["n_tokens"])) if whole else (_NEW_TOKENS,)
    return reply, written, lengths, replies, _Row("replies", status, found, do)


# --- what follows for the notebooks --------------------------------------------------------------------------


class Work(NamedTuple):
    """What a notebook computes."""

    states: int = 0
    """Chats that are read."""
    edited: int = 0
    """Chats of which only the last token runs again, under an edit."""
    steps: int = 0
    tuning: int = 0
    """Steps of prompt tuning, on replies of which each has as many tokens as in the mean."""
    replies: int = 0
    seconds: float = 0.0
    """What does not depend on the model: fits, intervals, figures, the kernel's start."""


def works(size: Size, *, num_hidden_layers: int, has_own_text: bool = False) -> dict[str, Work]:
    """By notebook, without what those before it have put into the store.

    The seconds are those of the demo model's notebooks from a full store, one at a time on two idle cores, and for 03
    and 07 what UMAP and `transfer` take the first time. Notebook 10 counts with all its contenders and templates.
    """
    anchors, heldout, random = size.anchors, size.heldout, size.n_random
    extra, new = int(has_own_text), heldout + size.borderline
    prompts = size.prompts + extra
    config = DROConfig()
    steps = config.num_train_epochs * -(-anchors // config.batch_size)
    layers, doses = min(num_hidden_layers + 1, 13), 7  # 02 takes what `spread_layers` gives
    # Edits of the last token; an ablation runs whole chats, which are among the states.
    edits = (1 + random) * (doses - 1) + 1 + 2 * (1 + 2 * random)
    return {
        "01_what_the_model_reads": Work(states=20, seconds=6),
        "02_hidden_states": Work(states=anchors * prompts, seconds=7 + 0.3 * layers * (2 + extra)),
        "03_what_safety_prompts_move": Work(
            states=anchors * (2 + prompts + 1), replies=anchors * (prompts + 1) * size.n_samples, seconds=27
        ),
        "04_refusal_direction": Work(
            states=anchors + heldout * (2 + 1 + random),
            edited=heldout * edits,
            replies=heldout * 2 * size.n_samples,
            seconds=11,
        ),
        "05_train_dro": Work(states=4 * (anchors + heldout), steps=steps, seconds=12),
        "06_responses": Work(
            states=(3 + extra) * new, replies=(new * (3 + extra) - heldout * 2) * size.n_samples, seconds=15
        ),
        # Beside the prompts of the set and the others a neutral one, random words (states only) and the trained one;
        # replies under three of them are there from 06.
        "07_beyond_the_paper": Work(
            states=heldout * (prompts + size.others + 3),
            replies=new * (size.prompts + size.others + 2 - 3) * size.n_samples,
            seconds=36,
        ),
        BOARD: _boards_work(size, prompts, steps),
    }


def _boards_work(size: Size, prompts: int, steps: int) -> Work:
    """Each contender is asked the new queries, and the harmful ones once more in each template. Its replies to
    harmless ones are read again, under what was before and under what is now, for three divergences."""
    trained, steered = 1 + 3 + 5, 3  # by DRO: whole, without a term, from less
    contenders = prompts + trained + 1 + steered
    asked = size.heldout + size.borderline + len(attacks.TEMPLATES) * (size.heldout // 2)
    reread = contenders * 6 * (size.heldout // 2)
    tried = 6 * 3 * 48  # strengths, layers and queries of steering
    opened = 2 * 20 * 150  # section 7: two classes, once for each token of a prompt, cut, moved and rounded
    return Work(
        states=2 * size.anchors * prompts + asked * (prompts + 2) + reread + tried + opened,
        steps=trained * steps,
        tuning=steps,
        replies=(size.anchors * prompts + asked * contenders) * size.board_samples,
        seconds=60,
    )


def _timed(name: str, work: Work, speed: Speed, max_new_tokens: int, load_s: float) -> tuple[Any, ...]:
    tuning = speed.step + speed.taught * speed.length_of(max_new_tokens)
    seconds = work.seconds * speed.slowness + load_s + work.states * speed.chat_tokens * speed.token
    seconds += work.edited * speed.written + work.steps * speed.step + work.tuning * tuning
    seconds += work.replies * speed.reply_of(max_new_tokens)
    return (name, *work[:-1], seconds)


def _work_in_words(row: Any) -> str:
    parts = {"chats read": row.states, "edited": row.edited, "DRO steps": row.steps, "tuning steps": row.tuning}
    parts["replies"] = row.replies
    return ", ".join(f"{n:,} {what}" for what, n in parts.items() if n)


def _faster(model: ChatModel, times: pd.DataFrame, replies_s: float, n_samples: int) -> list[str]:
    """What makes it faster."""
    found = []
    if torch.cuda.is_available() and model.device.type == "cpu" and not model.is_demo:
        found.append("device_map='cuda' puts it on the GPU.")
    total = float(times["seconds"].sum())
    if total > LONG_S and n_samples > 2:
        fewer = total - replies_s * (n_samples - 2) / n_samples
        found.append(f"N_SAMPLES = 2 in the notebooks takes {in_words(fewer)} instead of {in_words(total)}.")
    return found
