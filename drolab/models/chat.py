"""From a query and a safety prompt to token ids: what the model reads, and where in it the prompt lies.

The chat template decides the text, completely: it is rendered to text with the generation prompt, and the
text is tokenised as it stands, all at once. So a BOS is there if and only if the template writes one
(`audit` says so), and a special token's text inside a query becomes that special token, as it would in a
chat that any other program renders with this template.

The prompt's place in the text is found by rendering the same chat with a marker in its place, and its place
among the tokens by their offsets in the text; neither the text nor the ids are searched for the prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from drolab.errors import ChatTemplateError, DrolabError, PromptError, QueryError, StatesError
from drolab.models.decoder import check_takes_vectors
from drolab.models.load import ChatModel
from drolab.models.places import answering, check_read_at, ending_of
from drolab.models.reasoning import open_thought
from drolab.models.templates import Span
from drolab.types import EMPTY_PROMPT, NO_PROMPT, OWN_PROMPT, ReadAt, SafetyPrompt, SoftPrompt

Prompt = SafetyPrompt | SoftPrompt
Prompts = Mapping[str, Prompt] | Sequence[Prompt] | Prompt
"""What takes several prompts takes one, too; a mapping's keys name them."""
_HALF_A_CHARACTER = (
    "holds half a character (a lone surrogate), which no tokenizer reads: load the text again with the right encoding."
)
_Written = tuple[str, Span | None, Span]
"""A chat, and where in it the prompt's text and the query are."""
_AT_ONCE = 256
"""Chats that are tokenised together; where each token lies in the text takes 20 kB a chat."""


@dataclass(frozen=True)
class RenderedChat:
    """One chat as the model reads it; the read position -1 is its last token."""

    text: str
    input_ids: tuple[int, ...]
    prompt_span: Span | None
    """Token range [start, stop) of the safety prompt: for a soft prompt exactly its slots, for a text every
    token that has a character of it (a token at the border may have a neighbour's too); None without a prompt."""
    opening: str = ""
    """What of the text's end stands in a thought that is not closed: the reply goes on with it."""


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Chats under one prompt, split into the tokens that all share and the rest of each."""

    prefix: tuple[int, ...]
    """Token ids that all chats begin with; may be empty."""
    suffixes: tuple[tuple[int, ...], ...]
    """The rest of each chat, in the order of the queries, at least `min_suffix` tokens."""
    soft: SoftPrompt | None
    span: Span | None
    """Where in `prefix` the soft prompt's embeddings go; None for a text prompt."""
    openings: tuple[str, ...] = ()
    """Of each chat what its text leaves open of a thought, see `RenderedChat.opening`; () if none does."""

    def __len__(self) -> int:
        return len(self.suffixes)

    def chat(self, row: int) -> tuple[int, ...]:
        """All token ids of one chat; those in `span` are placeholders."""
        return self.prefix + self.suffixes[row]

    @property
    def slots(self) -> list[Any] | None:
        """Which vectors stand in the place of which tokens, for store keys; None for a text prompt."""
        return None if self.soft is None else [self.soft.sha256, *(self.span or ())]


def as_prompts(prompts: Prompts) -> list[Prompt]:
    """The prompts in order, each under the name it has in a mapping.

    Raises:
        PromptError: none given, something else than a prompt, or two of one name.
    """
    if isinstance(prompts, Mapping):
        found = [p if p.name == name else replace(p, name=name) for name, p in prompts.items() if _is_prompt(p)]
    else:
        several = prompts if isinstance(prompts, Sequence) and not isinstance(prompts, str) else [prompts]
        found = [prompt for prompt in several if _is_prompt(prompt)]
    if not found:
        raise PromptError("No prompts given: pass at least one, for example drolab.load_prompts().")
    names = [prompt.name for prompt in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise PromptError(f"More than one prompt is called {repeated[0]!r}: give each its own name.")
    return found


def _is_prompt(prompt: object) -> bool:
    if not isinstance(prompt, Prompt):
        raise PromptError(
            f"A prompt must be a SafetyPrompt or a SoftPrompt, got {type(prompt).__name__}: "
            "wrap a text as SafetyPrompt(name='mine', text='…')."
        )
    return True


def render(model: ChatModel, query: str, prompt: Prompt, *, read_at: ReadAt = "reply") -> RenderedChat:
    """The chat of one query under one prompt, with the generation prompt.

    A soft prompt takes as many copies of a special token in the system text's place as it has vectors.

    Args:
        read_at: "answer" takes the chat on to where the answer begins, behind a thought that is closed and empty: all
            of it as the template writes it with its own switch off, or, where that closes none, with what
            `models.to_answer` gives. The same as "reply" for a model that does not think.

    Raises:
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        PromptError: a soft prompt that was made for another model, or a blank text.
        QueryError, PromptError: the query or the prompt makes the chat longer than the model's context.
        StatesError: another place, or one after a thought, which nobody knows before it was thought.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> chat = drolab.chat.render(model, "How do I boil an egg?", prompts["short"])
        >>> print(chat.text)
        <|bos|><|im_start|>system
        You are a careful and respectful assistant. Be as helpful as you can while you keep people safe.<|im_end|>
        <|im_start|>user
        How do I boil an egg?<|im_end|>
        <|im_start|>assistant
        >>> start, stop = chat.prompt_span
        >>> model.tokenizer.decode(chat.input_ids[start:stop])[:24]
        'You are a careful and re'
    """
    return next(_rendered(model, [query], prompt, read_at))


def encode(
    model: ChatModel, texts: Sequence[str], prompt: Prompt, *, min_suffix: int = 1, read_at: ReadAt = "reply"
) -> EncodedBatch:
    """The chats of several queries under one prompt, split at their longest common beginning.

    Args:
        texts: the queries.
        min_suffix: how many tokens stay outside the shared prefix at least: the deepest position read.
        read_at: where the chats end, see `render`.

    Raises:
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        PromptError: a soft prompt that was made for another model, or a blank text.
        QueryError: no texts; half a character (a lone surrogate) in one.
        QueryError, PromptError: a query or the prompt makes a chat longer than the model's context.
        StatesError: a chat is shorter than `min_suffix`, or its last `min_suffix` tokens reach into the soft prompt; or
            they cannot end there, see `render`.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> batch = drolab.chat.encode(model, ["How do I boil an egg?", "How do I boil rice?"], prompts["short"])
        >>> len(batch.prefix), [len(suffix) for suffix in batch.suffixes]
        (34, [10, 8])
        >>> model.tokenizer.decode(batch.suffixes[1][:2])
        ' rice'
    """
    if not texts:
        raise QueryError("No queries given: pass at least one.")
    chats = _rendered(model, texts, prompt, read_at)
    first = next(chats)
    shared = shortest = len(first.input_ids)
    tails: list[tuple[int, tuple[int, ...]]] = []  # of each chat from where it parts: all of them whole would be large
    openings: list[str] = []
    known: dict[int, int] = {}  # one object for each id: a number of its own for every token would be large, too
    for chat in itertools.chain([first], chats):
        shared = _common_length(first.input_ids[:shared], chat.input_ids)
        shortest = min(shortest, len(chat.input_ids))
        tail = chat.input_ids[shared:]
        tails.append((shared, tuple(map(known.setdefault, tail, tail))))
        openings.append(chat.opening)
    if shortest < min_suffix:
        raise StatesError(f"A chat has only {shortest} tokens: ask for positions from -{shortest} to -1.")
    shared = min(shared, shortest - min_suffix)
    soft = prompt if isinstance(prompt, SoftPrompt) else None
    span = first.prompt_span if soft else None
    if span is not None and span[1] > shared:
        raise StatesError(
            f"The last {min_suffix} tokens of a chat, or its query, come before the end of soft prompt "
            f"{prompt.name!r}: ask for later positions, or use a template with the system text first."
        )
    suffixes = tuple(first.input_ids[shared:start] + tail for start, tail in tails)
    return EncodedBatch(
        prefix=first.input_ids[:shared],
        suffixes=suffixes,
        soft=soft,
        span=span,
        openings=tuple(openings) if any(openings) else (),
    )


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many first elements they share."""
    if one == other[: len(one)]:
        return len(one)
    return next(place for place, (a, b) in enumerate(itertools.zip_longest(one, other)) if a != b)


def own_text(model: ChatModel) -> str:
    """The system text that a model's template writes where none is given, and that a prompt takes the place of; "" if
    there is none. It is what the prompt `own` says, and what `none` is for this model.

    Examples:
        >>> import drolab
        >>> drolab.chat.own_text(drolab.load_model("demo"))
        ''
    """
    return model.template.own.replaced


def about_none(model: ChatModel) -> str:
    """What `none` is for a model whose template writes words of its own, in a sentence for beside results; "" for one
    that writes none.

    Examples:
        >>> import drolab
        >>> polite = "{{ messages[0].content if messages[0].role == 'system' else 'You are Rosa.' }} "
        >>> model = drolab.load_model("demo", chat_template=polite + "{{ messages[-1].content }}:")
        >>> drolab.chat.about_none(model)
        "`none` is the model's own system text, “You are Rosa.”; a prompt takes its place."
    """
    own = model.template.own
    beside = " ".join(filter(None, [*own.kept.split("\n"), *own.added.split("\n")]))
    replaced = f"`none` is the model's own system text, {_quoted(own.replaced)}; a prompt takes its place."
    said = [replaced] * bool(own.replaced) + [f"Beside every prompt the chat has {_quoted(beside)}."] * bool(beside)
    return " ".join(said)


def _quoted(text: str) -> str:
    return f"“{text if len(text) <= 300 else text[:150] + ' … ' + text[-140:]}”"


def baselines(model: ChatModel) -> dict[str, SafetyPrompt]:
    """What prompts are compared with: `none`, and, where the model's template then writes a system text of its own,
    also `empty`.

    Examples:
        >>> import drolab
        >>> list(drolab.chat.baselines(drolab.load_model("demo")))
        ['none']
    """
    names = [NO_PROMPT, *([EMPTY_PROMPT] * bool(own_text(model)))]
    return {name: SafetyPrompt(name=name, text="") for name in names}


def prompt_token_ids(model: ChatModel, text: str) -> list[int]:
    """The tokens of a prompt's text on its own, without BOS: what a soft prompt starts from."""
    ids: list[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def embed_text(model: ChatModel, text: str) -> Tensor:
    """[L, d], float32, on the CPU: the embeddings of a prompt's text on its own, where a soft prompt starts."""
    ids = torch.tensor(prompt_token_ids(model, text), dtype=torch.long)
    return model.embed(ids).detach().to("cpu", torch.float32)


def check_fits(model: ChatModel, soft: SoftPrompt) -> None:
    """Raise PromptError if a soft prompt was made for another model, ModelError if this one takes none."""
    check_takes_vectors(model.model, model.name)
    width = soft.embeddings.shape[1]
    if width != model.hidden_size:
        raise PromptError(
            f"Soft prompt {soft.name!r} has vectors of width {width}, but {model.name!r} has hidden size "
            f"{model.hidden_size}: load the model it was trained on, or train a prompt for this one."
        )
    if soft.model_fingerprint not in ("", model.fingerprint, model.own_fingerprint):
        raise PromptError(
            f"Soft prompt {soft.name!r} was made for the model with fingerprint {soft.model_fingerprint}, but "
            f"{model.name!r} has {model.fingerprint} (other weights, dtype, tokenizer or chat template): "
            "load that model as it was, or train a prompt for this one."
        )


# --- text --------------------------------------------------------------------------------------------------


def _rendered(model: ChatModel, queries: Sequence[str], prompt: Prompt, read_at: ReadAt) -> Iterator[RenderedChat]:
    check_read_at(read_at, known=True)
    model = model if read_at == "reply" else replace(model, template=answering(model.template))
    write = _writer(model, prompt)
    for begin in range(0, len(queries), _AT_ONCE):
        yield from _render_some(model, queries[begin : begin + _AT_ONCE], prompt, write, read_at)


def _render_some(
    model: ChatModel, queries: Sequence[str], prompt: Prompt, write: Callable[[str], _Written], read_at: ReadAt
) -> Iterator[RenderedChat]:
    if broken := next((query for query in queries if not _is_unicode(query)), None):
        raise QueryError(f"The query {broken[:60]!r} {_HALF_A_CHARACTER}")
    chats = [write(query) for query in queries]
    if read_at == "answer":
        chats = [(text + ending_of(model.template, text[asked[1] :]), span, asked) for text, span, asked in chats]
    tokens = model.tokenizer(
        [text for text, _, _ in chats], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for query, (text, span, asked), ids, offsets in zip(
        queries, chats, tokens["input_ids"], tokens["offset_mapping"], strict=True
    ):
        token_span = None if span is None else _token_span(offsets, span)
        if isinstance(prompt, SoftPrompt):
            _check_slots(prompt, ids, token_span)
        if len(ids) > model.max_length:
            raise _too_long(model, query, prompt, len(ids), token_span)
        opening = open_thought(text[asked[1] :])
        yield RenderedChat(text=text, input_ids=tuple(ids), prompt_span=token_span, opening=opening)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _writer(model: ChatModel, prompt: Prompt) -> Callable[[str], _Written]:
    if prompt.name == EMPTY_PROMPT:
        return lambda query: model.template.empty_chat(query, prompt.name)
    if prompt.name == OWN_PROMPT and isinstance(prompt, SafetyPrompt) and not prompt.text:
        if not own_text(model):
            raise PromptError(
                f"The chat template of {model.name!r} writes no system text of its own in a prompt's place: leave the "
                f"prompt {prompt.name!r} out."
            )
        return lambda query: model.template.own_chat(query, prompt.name)
    system = None if prompt.name == NO_PROMPT else _system_text(model, prompt)
    return lambda query: model.template.chat(query, system, prompt.name)


def _system_text(model: ChatModel, prompt: Prompt) -> str:
    if isinstance(prompt, SoftPrompt):
        check_fits(model, prompt)
        return _placeholder(model) * len(prompt)
    text = prompt.text
    if not text.strip():
        raise PromptError(f"Prompt {prompt.name!r} is blank: give it a text, or use the prompt 'none'.")
    if not _is_unicode(text):
        raise PromptError(f"The text of prompt {prompt.name!r} {_HALF_A_CHARACTER}")
    return text


def _placeholder(model: ChatModel) -> str:
    """The text of a special token, which no neighbour can merge with; EOS as in the paper's code."""
    special: Sequence[str] = model.tokenizer.all_special_tokens
    if not special:
        raise ChatTemplateError(
            f"The tokenizer of {model.name!r} has no special token to hold a soft prompt's place: "
            "add one with tokenizer.add_special_tokens({'eos_token': …})."
        )
    return model.tokenizer.eos_token or special[0]


def audit(model: ChatModel) -> pd.DataFrame:
    """What the chat template does with a chat: one row per check, all in words.

    Columns: check; status (`ok`, `note`: to be known, `problem`: comparisons are in doubt, or some are refused); found;
    means, what that means for comparisons between prompts; do, what can be done. Nothing of it is an error.

    Raises:
        ChatTemplateError: the template renders no chat at all, not even without a system message.

    Examples:
        >>> import drolab
        >>> table = drolab.chat.audit(drolab.load_model("demo"))
        >>> print(table[["check", "status", "found"]].to_string(index=False))  # doctest: +NORMALIZE_WHITESPACE
                                check status                                                         found
                 system kept verbatim     ok                                                 kept as it is
                  query kept verbatim     ok                                                 kept as it is
                      own system text     ok                none: without a prompt there is no system text
                    empty system text     ok                                     as the template writes it
                                 date     ok                                              no date of today
                             BOS once     ok                                                 once, <|bos|>
                    generation prompt     ok                                      "<|im_start|>assistant↵"
                             thinking     ok                                           none: no sign of it
                           last token     ok                              "↵": the answer begins behind it
        prompt tokens as on their own     ok                                      the same as on their own
                       special tokens     ok                                            one token each (4)
                        prefix shared     ok all chats under a prompt share the 19 tokens before the query
    """
    from drolab.models.template_audit import Row, audit_rows  # it renders chats

    return pd.DataFrame(audit_rows(model), columns=list(Row._fields))


# --- tokens ------------------------------------------------------------------------------------------------


def _token_span(offsets: Sequence[Span], span: Span) -> Span:
    """The range of the tokens that have a character of `span`."""
    inside = [i for i, (start, stop) in enumerate(offsets) if start < span[1] and stop > span[0]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _check_slots(prompt: SoftPrompt, ids: Sequence[int], span: Span | None) -> None:
    start, stop = span or (0, 0)
    if stop - start != len(prompt) or len(set(ids[start:stop])) != 1:
        raise ChatTemplateError(
            f"The place of soft prompt {prompt.name!r} was tokenised into {stop - start} tokens instead of "
            f"{len(prompt)}: this tokenizer splits its own special tokens; load its tokenizer.json unchanged."
        )


def _too_long(model: ChatModel, query: str, prompt: Prompt, length: int, span: Span | None) -> DrolabError:
    limit = model.max_length
    start, stop = span or (0, 0)
    if stop - start >= limit:
        return PromptError(
            f"Prompt {prompt.name!r} has {stop - start} tokens, but {model.name!r} reads at most {limit} "
            "in a whole chat: shorten the prompt."
        )
    shown = query if len(query) <= 60 else query[:57] + "…"
    return QueryError(
        f"The chat of query {shown!r} under prompt {prompt.name!r} has {length} tokens, but {model.name!r} "
        f"reads at most {limit}: shorten the query or drop it."
    )
