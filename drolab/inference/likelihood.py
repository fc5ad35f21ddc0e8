"""How probable given texts are to a model: as replies under prompts, or on their own; and how its next tokens change.

In order: `log_likelihoods` (of replies, per text or per token), `reply_divergence` (the whole distribution of each next
token of a reply, under two prompts or with and without edits), `perplexity` (of a user's texts); what they have in
common. Nothing is sampled. What all chats under one prompt begin with runs once, and values are kept in the store under
all that they depend on, token by token.

A reply is read where it stands: behind the chat, and for a model that thinks before it answers behind a thought that is
closed and empty (`read_at="answer"`), since what is given is an answer. Its tokens are those of `reply_tokens`, the
same under all prompts, so that these are compared token by token. The token that ended it is one of them where a
column `finish_reason` says "stop".
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drolab.errors import QueryError, shown
from drolab.files import given_path, read_table, read_text
from drolab.inference.next_tokens import divergence
from drolab.inference.reply_tokens import reply_tokens
from drolab.models import (
    ChatModel,
    Edit,
    EncodedBatch,
    Prefix,
    Prompt,
    Prompts,
    as_prompts,
    by_pass,
    check_edits,
    check_logits,
    edited_fingerprint,
    encode,
    label_logits,
    prefix_embeddings,
    run_prefix,
    steered,
)
from drolab.progress import Progress, found_in_words, resumable_bar
from drolab.store import Store, key
from drolab.threads import threads_for
from drolab.types import UNFINISHED

TEXT_ALONE = "text alone"
"""What stands in the place of a prompt's name where a text was read without any chat."""
REQUEST = "Write a text."
"""What `perplexity` lets a user ask for, so that a text can be the reply."""
WINDOW = 1024
"""Tokens of a long text that are read together, if the context has room for them."""

_LOGIT_BYTES = 2**30
"""Of logits in one pass, with what is made of them while they are compared."""
_KEEP_EVERY = 2.0
_ROWS_AT_ONCE = 64
"""Distributions that are compared together: in float64 they are large."""


# --- replies -----------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihoods(
    model: ChatModel,
    replies: pd.DataFrame,
    prompts: Prompts,
    *,
    per_token: bool = False,
    store: Store | None = None,
    token_budget: int | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """How probable given replies are to the model under each prompt, by temperature 1 and without top_p.

    Args:
        replies: columns query_id, text (the query), response; such as from `generate`. Its columns harmful and sample
            are kept, and `prompt`, under which a reply was written, as `written_under`. Replies without an answer are
            left out and counted in `.attrs["summary"]`.
        prompts: texts, soft prompts, or "none": each reply is scored under each.
        per_token: one row per token instead of one per reply.
        store: only what it lacks is computed; finished passes are kept in it every two seconds.
        token_budget: tokens in one pass; bounds the memory, see `hidden_states`. Logits of a pass take at most a GiB,
            whatever it is.

    Returns:
        Prompts in order, within each the replies. query_id, prompt, written_under, sample, harmful (those there are),
        `n_tokens`, `log_likelihood` (nats, the sum over the reply's tokens) and `perplexity`,
        exp(-log_likelihood / n_tokens). Per token: position (from 0), token (its text) and log_probability instead.

    Raises:
        QueryError: columns that are missing, no reply with a text, or one for which the chat leaves no room.
        PromptError, ChatTemplateError: see `chat.encode`.
        StatesError: the model's logits are not numbers.
        ModelError: the model is being edited (see `steered`) and this is not what its context yielded, or edited at the
            read position; not even a single chat fits into the memory.

    Examples:
        >>> import drolab
        >>> from drolab.inference import log_likelihoods
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").head(2)  # one harmful, one harmless
        >>> said = queries.assign(response="I cannot help with that.")
        >>> table = log_likelihoods(model, said, [prompts["none"], prompts["default"]], progress=False)
        >>> table[["query_id", "prompt", "n_tokens", "perplexity"]].round(2)
               query_id   prompt  n_tokens  perplexity
        0  anchors-0001     none         6        1.55
        1  anchors-0002     none         6        3.13
        2  anchors-0001  default         6        1.40
        3  anchors-0002  default         6        2.53
    """
    check_edits(model)
    wanted = as_prompts(prompts)
    given = _Replies.make(model, replies, wanted[0])
    tasks = []
    for prompt in wanted:
        side = _Side.make(model, prompt, given)
        tasks.append(_Task.make([_likelihood_key(side, row) for row in range(len(given))], _scorer(side, token_budget)))
    summary = _complete(model, tasks, store, "likelihoods", progress)
    parts = []
    for prompt, task in zip(wanted, tasks, strict=True):
        values = [task.values[name] for name in task.keys]
        parts.append(given.per_token(model, prompt, values) if per_token else given.per_reply(prompt, values))
    table = pd.concat(parts, ignore_index=True)
    table.attrs["summary"] = summary + given.left_out
    return table


@torch.no_grad()
def reply_divergence(
    model: ChatModel,
    replies: pd.DataFrame,
    prompt: Prompt,
    reference: Prompt,
    *,
    edits: Sequence[Edit] = (),
    reference_edits: Sequence[Edit] = (),
    store: Store | None = None,
    token_budget: int | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """How far each next token of given replies is, under a prompt (or edits), from what it is under another.

    The Kullback-Leibler divergence KL(reference ‖ prompt), in nats, of the distribution of the next token at each
    position of a reply, the first token included. On replies that were sampled under the reference at temperature 1 its
    sum estimates the divergence of whole replies. It is 0, exactly, where both are the same model with the same chat.

    Args:
        replies: as in `log_likelihoods`; best those that the reference wrote.
        edits: what is done to the states under `prompt`, at all positions (see `steered`); `reference_edits` under the
            reference. The model itself is given unedited.
        store, token_budget: as in `log_likelihoods`.

    Returns:
        One row per reply: query_id, written_under, sample, harmful (those there are), n_tokens, `kl` (the mean over the
        reply's positions), `kl_first` (that of its first token) and `kl_most` (the largest of them).

    Raises:
        As `log_likelihoods`.

    Examples:
        >>> import drolab
        >>> from drolab.inference import reply_divergence
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors", nrows=8)
        >>> harmless, options = queries[~queries["harmful"]], {"max_new_tokens": 16, "progress": False}
        >>> replies = drolab.generate(model, harmless, prompts["none"], n_samples=1, **options)
        >>> table = reply_divergence(model, replies, prompts["default"], prompts["none"], progress=False)
        >>> bool((table["kl_first"] > table["kl"]).mean() > 0.5)  # whether to refuse is decided at the first token
        True
        >>> reply_divergence(model, replies, prompts["none"], prompts["none"], progress=False)["kl"].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    check_edits(model)
    for some in (edits, reference_edits):
        with steered(model, *some) as edited:
            check_edits(edited)  # none acts at the read position
    given = _Replies.make(model, replies, reference)
    own, other = _Side.make(model, prompt, given, edits), _Side.make(model, reference, given, reference_edits)
    keys = [_divergence_key(own, other, row) for row in range(len(given))]
    task = _Task.make(keys, _comparer(own, other, token_budget))
    for row, name in enumerate(keys):
        if own.identity(row) == other.identity(row):
            task.values[name] = [0.0] * len(given.tokens[row])
    summary = _complete(model, [task], store, "divergences", progress)
    values = [np.asarray(task.values[name]) for name in keys]
    table = given.rows.assign(
        n_tokens=[len(one) for one in values],
        kl=[float(one.mean()) for one in values],
        kl_first=[float(one[0]) for one in values],
        kl_most=[float(one.max()) for one in values],
    )
    table.attrs["summary"] = summary + given.left_out
    return table


@dataclass(frozen=True, kw_only=True, eq=False)
class _Replies:
    """Given replies as tokens."""

    rows: pd.DataFrame
    """What names each."""
    queries: list[str]
    """The different queries."""
    query: list[int]
    """Of each reply, the number of its query."""
    tokens: list[tuple[int, ...]]
    left_out: str = ""
    """How many had no answer, in words."""

    @classmethod
    def make(cls, model: ChatModel, replies: pd.DataFrame, prompt: Prompt) -> _Replies:
        needed = ("query_id", "text", "response")
        if missing := [name for name in needed if name not in replies.columns]:
            raise QueryError(f"The replies lack the columns {missing}: pass the table that drolab.generate returns.")
        for name in needed[1:]:
            unfinished = replies.get("finish_reason", pd.Series("", replies.index)).eq(UNFINISHED)
            if bad := replies[name][~replies[name].map(lambda text: isinstance(text, str)) & ~unfinished].tolist():
                raise QueryError(f"{len(bad)} values of `{name}` are no texts (first: {shown(bad[0])}): drop them.")
        said = replies["response"].map(lambda text: isinstance(text, str) and bool(text.strip()))
        kept = replies[said]
        if kept.empty:
            raise QueryError(f"None of {len(replies)} replies has a text: generate them with more new tokens.")
        queries = list(dict.fromkeys(kept["text"]))
        numbers = {text: number for number, text in enumerate(queries)}
        query = [numbers[text] for text in kept["text"]]
        ended = kept if "finish_reason" in kept else kept.assign(finish_reason="length")
        tokens = reply_tokens(model, ended, prompt, read_at="answer")
        rows = kept.rename(columns={"prompt": "written_under"})
        names = [name for name in ("query_id", "written_under", "sample", "harmful") if name in rows.columns]
        lost = len(replies) - len(kept)
        return cls(
            rows=rows[names].reset_index(drop=True),
            queries=queries,
            query=query,
            tokens=tokens,
            left_out=f"; {lost:,} of {len(replies):,} replies without an answer left out" if lost else "",
        )

    def __len__(self) -> int:
        return len(self.query)

    def per_reply(self, prompt: Prompt, values: Sequence[Sequence[float]]) -> pd.DataFrame:
        return _with_perplexity(
            self._named(prompt).assign(n_tokens=list(map(len, values)), log_likelihood=list(map(math.fsum, values)))
        )

    def per_token(self, model: ChatModel, prompt: Prompt, values: Sequence[Sequence[float]]) -> pd.DataFrame:
        sizes = list(map(len, values))
        rows = self._named(prompt)
        rows = rows.loc[rows.index.repeat(sizes)].reset_index(drop=True)
        ids = [token for tokens in self.tokens for token in tokens]
        return rows.assign(
            position=[place for size in sizes for place in range(size)],
            token=model.tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False),
            log_probability=[value for row in values for value in row],
        )

    def _named(self, prompt: Prompt) -> pd.DataFrame:
        rows = self.rows.assign(prompt=prompt.name)
        first = [name for name in ("query_id", "prompt") if name in rows]
        return rows[[*first, *(name for name in rows if name not in first)]]


def _with_perplexity(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(perplexity=np.exp(-table["log_likelihood"] / table["n_tokens"]))


# --- a user's texts ----------------------------------------------------------------------------------------


@torch.no_grad()
def perplexity(
    model: ChatModel,
    texts: str | Path | Sequence[str],
    prompts: Prompts | None = None,
    *,
    request: str = REQUEST,
    window: int | None = None,
    per_window: bool = False,
    store: Store | None = None,
    token_budget: int | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """The perplexity of texts of your own: exp of minus the mean log-probability of their tokens.

    A safety prompt is a part of a chat, so a text has a perplexity under a prompt only as a part of a chat: here it is
    the assistant's reply to a `request` that asks for nothing in particular, under each prompt. Those numbers compare
    prompts with each other and with "none", whose tokens are the same; they are no benchmark's. Without `prompts` the
    texts stand alone, without any chat and behind nothing but the token that the tokenizer begins texts with, if it has
    one: what benchmarks call perplexity. No prompt is in force then; it says what edits of the states (see `steered`)
    or other weights cost.

    A text that is longer than a window is read in windows that overlap by half: each token is scored once, in the first
    window that has it, so that all but the first half of a window have at least half a window of text before them. In
    a chat every window is the beginning of the reply. Without a first token the text's own first is not scored.

    Args:
        texts: a list of texts; or a file: `.txt` is one text, `.csv`, `.json`, `.jsonl` and `.parquet` have one in each
            row of their column `text`.
        request: what the user of the chat says.
        window: tokens of a window, at least 2; None takes 1024, or what the model's context has room for.
        per_window: one row per window, with its number, instead of one per text.
        store, token_budget: as in `log_likelihoods`.

    Returns:
        One row per text and prompt: `text` (its number, from 0), prompt ("text alone" without one), `n_tokens` that
        were scored, n_windows, log_likelihood (nats) and perplexity.

    Raises:
        QueryError: no texts, one that is none or blank or too short to score, a file that cannot be read, or a window
            for which a chat leaves no room.
        PromptError, ChatTemplateError, StatesError, ModelError: as `log_likelihoods`.

    Examples:
        >>> import drolab
        >>> from drolab.inference import perplexity
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> texts = ["Here is a plan. Set a goal and gather what you need.", "Need you what gather and goal a set."]
        >>> table = perplexity(model, texts, [prompts["none"], prompts["default"]], progress=False)
        >>> table[["text", "prompt", "n_tokens"]]
           text   prompt  n_tokens
        0     0     none        15
        1     1     none        12
        2     0  default        15
        3     1  default        12
        >>> bool(table["perplexity"][1] > 10 * table["perplexity"][0])
        True
        >>> perplexity(model, texts, progress=False)["prompt"].unique().tolist()
        ['text alone']
    """
    check_edits(model)
    found = read_texts(texts)
    wanted = None if prompts is None else as_prompts(prompts)
    names, tasks, places = [], [], []
    for name, side, pieces in _text_sides(model, found, wanted, request, window):
        names.append(name)
        places.append(pieces)
        tasks.append(
            _Task.make([_likelihood_key(side, row) for row in range(len(pieces))], _scorer(side, token_budget))
        )
    summary = _complete(model, tasks, store, "perplexity", progress)
    parts = []
    for name, task, pieces in zip(names, tasks, places, strict=True):
        values = [task.values[one] for one in task.keys]
        rows = pd.DataFrame({"text": pieces, "n_tokens": [len(one) for one in values], "log_likelihood": values})
        rows["log_likelihood"] = rows["log_likelihood"].map(math.fsum)
        parts.append(rows.assign(prompt=name, window=rows.groupby("text").cumcount(), n_windows=1))
    table = pd.concat(parts, ignore_index=True)
    if not per_window:
        table = table.groupby(["prompt", "text"], sort=False)[["n_tokens", "n_windows", "log_likelihood"]].sum()
    columns = ["text", "prompt", *(["window"] if per_window else []), "n_tokens", "n_windows", "log_likelihood"]
    table = _with_perplexity(table.reset_index()[columns])
    table.attrs["summary"] = summary
    return table


def read_texts(texts: str | Path | Sequence[str]) -> list[str]:
    """Texts as a list, from a list or a file, see `perplexity`.

    Raises:
        QueryError: none, one that is no text or blank, or a file that cannot be read.
    """
    if isinstance(texts, (str, Path)):
        path = given_path(texts, QueryError, "pass a list, ['…']")
        if not path.is_file():
            raise QueryError(f"No file {shown(str(texts))}: check the path; to use a text, pass a list, ['…'].")
        if path.suffix.lower() == ".txt":
            found: list[Any] = [read_text(path, QueryError)]
        else:
            table = read_table(path)
            if "text" not in table.columns:
                raise QueryError(f"{path} has no column `text` (it has {list(map(str, table.columns))}): rename one.")
            found = table["text"].tolist()
    else:
        found = list(texts)
    if not found:
        raise QueryError("There are no texts: pass at least one, ['…'].")
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"Text {number} is {shown(text)}: drop it, or give it words.")
    return found


def _text_sides(
    model: ChatModel, texts: Sequence[str], prompts: Sequence[Prompt] | None, request: str, window: int | None
) -> Iterator[tuple[str, _Side, list[int]]]:
    """Name, what is read, and of which text each window is."""
    if prompts is None:
        first = _first_tokens(model)
        tokens = [tuple(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        room = model.max_length - len(first)
        pieces = _windows(tokens, _checked_window(window, room, model), skip=0 if first else 1)
        ends = [before + scored for _, before, scored in pieces]
        batch = EncodedBatch(prefix=(), suffixes=tuple((*first, *one[:-1]) for one in ends), soft=None, span=None)
        side = _Side(model=model, batch=batch, targets=[scored for _, _, scored in pieces])
        yield TEXT_ALONE, side, [text for text, _, _ in pieces]
        return
    said = pd.DataFrame({"text": request, "response": texts, "finish_reason": "length"})
    tokens = reply_tokens(model, said, prompts[0], read_at="answer")
    batches = [encode(model, [request], prompt, read_at="answer") for prompt in prompts]
    room = model.max_length - max(len(batch.chat(0)) for batch in batches)
    pieces = _windows(tokens, _checked_window(window, room, model), skip=0)
    for prompt, batch in zip(prompts, batches, strict=True):
        suffixes = tuple((*batch.suffixes[0], *before, *scored)[:-1] for _, before, scored in pieces)
        side = _Side(model=model, batch=replace(batch, suffixes=suffixes), targets=[scored for _, _, scored in pieces])
        yield prompt.name, side, [text for text, _, _ in pieces]


def _first_tokens(model: ChatModel) -> tuple[int, ...]:
    """What the tokenizer puts before any text; none for many."""
    bare = model.tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = model.tokenizer("a")["input_ids"]
    place = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:place])


def _checked_window(window: int | None, room: int, model: ChatModel) -> int:
    if window is not None and (window < 2 or window > room):
        raise QueryError(
            f"A window of {window} tokens cannot be read: pass 2 to {max(room, 2):,}, what the context of "
            f"{model.name!r} ({model.max_length:,}) leaves room for."
        )
    if room < 2:
        raise QueryError(f"The chat leaves no room for a text in the context of {model.name!r}: shorten the prompt.")
    return window or min(WINDOW, room)


def _windows(
    texts: Sequence[tuple[int, ...]], window: int, skip: int
) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Number of the text, the tokens that are only read, and those that are scored, window by window."""
    found = []
    for number, tokens in enumerate(texts):
        if len(tokens) <= skip:
            raise QueryError(f"Text {number + 1} has {len(tokens)} tokens, too few to score: drop it, or join texts.")
        done = skip
        while done < len(tokens):
            begin = max(0, done - window // 2) if done > skip else 0
            end = min(len(tokens), begin + window)
            found.append((number, tokens[begin:done], tokens[done:end]))
            done = end
    return found


# --- what is read ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """A model, edited or not, as it reads chats up to the last token but one of what is scored."""

    model: ChatModel
    batch: EncodedBatch
    targets: Sequence[tuple[int, ...]]
    """The tokens that are scored, which each chat ends with, its own last token missing."""
    edits: Sequence[Edit] = ()
    _common: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, model: ChatModel, prompt: Prompt, given: _Replies, edits: Sequence[Edit] = ()) -> _Side:
        batch = encode(model, given.queries, prompt, read_at="answer")
        suffixes = []
        for number, tokens in zip(given.query, given.tokens, strict=True):
            if (length := len(batch.chat(number)) + len(tokens)) > model.max_length:
                raise QueryError(
                    f"The chat of query {shown(given.queries[number])} with its reply has {length} tokens, but "
                    f"{model.name!r} reads at most {model.max_length}: shorten the replies or the prompt."
                )
            suffixes.append((*batch.suffixes[number], *tokens[:-1]))
        return cls(model=model, batch=replace(batch, suffixes=tuple(suffixes)), targets=given.tokens, edits=edits)

    def identity(self, row: int) -> str:
        """A hash of all that the logits of one row depend on."""
        if not self._common:
            self._common.append(
                key(
                    model=edited_fingerprint(self.model, self.edits),
                    dtype=str(self.model.dtype),
                    attention=self.model.model.config._attn_implementation,
                    soft=self.batch.slots,
                )
            )
        return key(common=self._common[0], ids=list(self.batch.chat(row)), scored=list(self.targets[row]))

    def prefix(self) -> Prefix:
        with steered(self.model, *self.edits) as model:
            return run_prefix(model, prefix_embeddings(model, self.batch))

    def logits(self, prefix: Prefix, rows: Sequence[int]) -> Tensor:
        """[all targets of these rows, vocabulary]."""
        suffixes, counts = [self.batch.suffixes[row] for row in rows], [len(self.targets[row]) for row in rows]
        with steered(self.model, *self.edits) as model:
            logits = label_logits(model, prefix, suffixes, counts)
        check_logits(self.model, logits)
        logits = logits.cpu() if logits.device.type == "mps" else logits  # `divergence` needs float64, which mps lacks
        return logits.log_softmax(dim=-1)

    def budget(self, asked: int | None) -> int | None:
        """Tokens in a pass, so that its logits fit; None if any number that suits the device does."""
        vocabulary = int(self.model.model.config.get_text_config().vocab_size)
        most = max(1, _LOGIT_BYTES // (3 * torch.float32.itemsize * vocabulary))
        return min(asked, most) if asked else most

    def split(self, rows: Sequence[int], values: Tensor) -> dict[int, list[float]]:
        sizes = [len(self.targets[row]) for row in rows]
        return {row: part.tolist() for row, part in zip(rows, values.cpu().split(sizes), strict=True)}


_Compute = Callable[[list[int]], Iterator[dict[int, list[float]]]]
"""Rows → their values, pass by pass."""


def _likelihood_key(side: _Side, row: int) -> str:
    return key(kind="token log-probabilities", of=side.identity(row))


def _divergence_key(own: _Side, other: _Side, row: int) -> str:
    return key(kind="token divergences", of=own.identity(row), reference=other.identity(row))


def _scorer(side: _Side, token_budget: int | None) -> _Compute:
    """Log-probabilities of the targets."""

    def compute(rows: list[int]) -> Iterator[dict[int, list[float]]]:
        prefix = side.prefix()

        def run(some: list[int]) -> Tensor:
            spoken = side.logits(prefix, some)
            ids = torch.tensor([token for row in some for token in side.targets[row]], device=spoken.device)
            return spoken.gather(1, ids[:, None])[:, 0]

        for some, values in by_pass(side.model, prefix, side.batch.suffixes, run, side.budget(token_budget), rows):
            yield side.split(some, values)

    return compute


def _comparer(own: _Side, other: _Side, token_budget: int | None) -> _Compute:
    """KL(other ‖ own) at the targets."""

    def compute(rows: list[int]) -> Iterator[dict[int, list[float]]]:
        prefixes = own.prefix(), other.prefix()

        def run(some: list[int]) -> Tensor:
            spoken, before = own.logits(prefixes[0], some), other.logits(prefixes[1], some)
            parts = zip(before.split(_ROWS_AT_ONCE), spoken.split(_ROWS_AT_ONCE), strict=True)
            return torch.cat([divergence(one, two) for one, two in parts])

        longer = max((own, prefixes[0]), (other, prefixes[1]), key=lambda pair: len(pair[1].embeddings))
        suffixes = longer[0].batch.suffixes
        for some, values in by_pass(own.model, longer[1], suffixes, run, own.budget(token_budget), rows):
            yield own.split(some, values)

    return compute


# --- the loop over passes ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """The values of some rows, those that are there, and what computes the others."""

    keys: list[str]
    """Of each row; equal rows have equal keys and are computed once."""
    compute: _Compute
    values: dict[str, list[float]]

    @classmethod
    def make(cls, keys: list[str], compute: _Compute) -> _Task:
        return cls(keys=keys, compute=compute, values={})

    def missing(self) -> list[int]:
        """The first row of each key without values."""
        first = {name: row for row, name in reversed(list(enumerate(self.keys)))}
        return [row for name, row in sorted(first.items(), key=lambda item: item[1]) if name not in self.values]


def _complete(model: ChatModel, tasks: Sequence[_Task], store: Store | None, what: str, progress: Progress) -> str:
    """Complete every task, from the store first; returns the summary."""
    if store is not None:
        for task in tasks:
            found = store.get_texts([task.keys[row] for row in task.missing()])
            task.values.update({name: json.loads(text) for name, text in found.items()})
    total = sum(len(set(task.keys)) for task in tasks)
    hits = total - sum(len(task.missing()) for task in tasks)
    note, waiting, written = f"{what}, {model.name}", dict[str, str](), time.monotonic()
    shown_bar = resumable_bar(progress, what, "text", "texts", total=total, initial=hits, kept=store is not None)
    with shown_bar as counted, threads_for(model.model):
        try:
            for task in tasks:
                missing = task.missing()
                for new in task.compute(missing) if missing else ():
                    check_edits(model)  # what is kept was computed by what its key says
                    named = {task.keys[row]: values for row, values in new.items()}
                    task.values.update(named)
                    waiting.update({name: json.dumps(values) for name, values in named.items()})
                    if store is not None and time.monotonic() - written > _KEEP_EVERY:
                        store.put_texts(waiting, note=note)
                        waiting, written = {}, time.monotonic()
                    counted.update(len(new))
        finally:
            if store is not None and waiting:
                store.put_texts(waiting, note=note)
    return found_in_words(hits, total, "texts", kept=store is not None)
