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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from drolab.errors import ChatTemplateError, DrolabError, PromptError, QueryError, StatesError
from drolab.models.decoder import check_takes_vectors
from drolab.models.load import ChatModel
from drolab.models.templates import Span
from drolab.types import NO_PROMPT, SafetyPrompt, SoftPrompt

Prompt = SafetyPrompt | SoftPrompt
Prompts = Mapping[str, Prompt] | Sequence[Prompt] | Prompt
"""What takes several prompts takes one, too; a mapping's keys name them."""
_HALF_A_CHARACTER = (
    "holds half a character (a lone surrogate), which no tokenizer reads: load the text again with the right encoding."
)
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


def render(model: ChatModel, query: str, prompt: Prompt) -> RenderedChat:
    """The chat of one query under one prompt, with the generation prompt.

    A soft prompt takes as many copies of a special token in the system text's place as it has vectors.

    Raises:
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        PromptError: a soft prompt that was made for another model, or a blank text.
        QueryError, PromptError: the query or the prompt makes the chat longer than the model's context.

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
    return next(_rendered(model, [query], prompt))


def encode(model: ChatModel, texts: Sequence[str], prompt: Prompt, *, min_suffix: int = 1) -> EncodedBatch:
    """The chats of several queries under one prompt, split at their longest common beginning.

    Args:
        texts: the queries.
        min_suffix: how many tokens stay outside the shared prefix at least: the deepest position read.

    Raises:
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        PromptError: a soft prompt that was made for another model, or a blank text.
        QueryError: no texts; half a character (a lone surrogate) in one.
        QueryError, PromptError: a query or the prompt makes a chat longer than the model's context.
        StatesError: a chat is shorter than `min_suffix`, or its last `min_suffix` tokens reach into the soft prompt.

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
    chats = _rendered(model, texts, prompt)
    first = next(chats)
    shared = shortest = len(first.input_ids)
    tails: list[tuple[int, tuple[int, ...]]] = []  # of each chat from where it parts: all of them whole would be large
    known: dict[int, int] = {}  # one object for each id: a number of its own for every token would be large, too
    for chat in itertools.chain([first], chats):
        shared = _common_length(first.input_ids[:shared], chat.input_ids)
        shortest = min(shortest, len(chat.input_ids))
        tail = chat.input_ids[shared:]
        tails.append((shared, tuple(map(known.setdefault, tail, tail))))
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
    return EncodedBatch(prefix=first.input_ids[:shared], suffixes=suffixes, soft=soft, span=span)


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many first elements they share."""
    if one == other[: len(one)]:
        return len(one)
    return next(place for place, (a, b) in enumerate(itertools.zip_longest(one, other)) if a != b)


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


def _rendered(model: ChatModel, queries: Sequence[str], prompt: Prompt) -> Iterator[RenderedChat]:
    system = _system_text(model, prompt)
    for begin in range(0, len(queries), _AT_ONCE):
        yield from _render_some(model, queries[begin : begin + _AT_ONCE], prompt, system)


def _render_some(
    model: ChatModel, queries: Sequence[str], prompt: Prompt, system: str | None
) -> Iterator[RenderedChat]:
    if broken := next((query for query in queries if not _is_unicode(query)), None):
        raise QueryError(f"The query {broken[:60]!r} {_HALF_A_CHARACTER}")
    chats = [model.template.chat(query, system, prompt.name) for query in queries]
    tokens = model.tokenizer(
        [text for text, _, _ in chats], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for query, (text, span, _), ids, offsets in zip(
        queries, chats, tokens["input_ids"], tokens["offset_mapping"], strict=True
    ):
        token_span = None if span is None else _token_span(offsets, span)
        if isinstance(prompt, SoftPrompt):
            _check_slots(prompt, ids, token_span)
        if len(ids) > model.max_length:
            raise _too_long(model, query, prompt, len(ids), token_span)
        yield RenderedChat(text=text, input_ids=tuple(ids), prompt_span=token_span)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _system_text(model: ChatModel, prompt: Prompt) -> str | None:
    """What goes into the system's place; None if there is no system message."""
    if isinstance(prompt, SoftPrompt):
        check_fits(model, prompt)
        return _placeholder(model) * len(prompt)
    if prompt.name == NO_PROMPT:
        return None
    if prompt.text and not prompt.text.strip():
        raise PromptError(f"Prompt {prompt.name!r} is blank: give it a text, or use the prompt 'none'.")
    if not _is_unicode(prompt.text):
        raise PromptError(f"The text of prompt {prompt.name!r} {_HALF_A_CHARACTER}")
    return prompt.text


def _placeholder(model: ChatModel) -> str:
    """The text of a special token, which no neighbour can merge with; EOS as in the paper's code."""
    special: Sequence[str] = model.tokenizer.all_special_tokens
    if not special:
        raise ChatTemplateError(
            f"The tokenizer of {model.name!r} has no special token to hold a soft prompt's place: "
            "add one with tokenizer.add_special_tokens({'eos_token': …})."
        )
    return model.tokenizer.eos_token or special[0]


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


# --- the audit ---------------------------------------------------------------------------------------------

_AUDIT_SYSTEM = "You answer questions about gardens. Keep it short."
_AUDIT_QUERY = "How to paint a wooden fence?"


def audit(model: ChatModel) -> pd.DataFrame:
    """What the chat template does with a chat: one row per check, with columns check, ok, detail.

    A failed check is no error: it says what to know before trusting comparisons between prompts.

    Raises:
        ChatTemplateError: the template renders no chat at all, not even without a system message.

    Examples:
        >>> import drolab
        >>> drolab.chat.audit(drolab.load_model("demo"))[["check", "ok"]]
                                      check    ok
        0              system role accepted  True
        1      system text arrives verbatim  True
        2    prompt tokenises as on its own  True
        3                  BOS exactly once  True
        4  generation prompt adds something  True
        5     special tokens are single ids  True
        6            same text on every day  True
    """
    prompt = SafetyPrompt(name="audit", text=_AUDIT_SYSTEM)
    try:
        chat = render(model, _AUDIT_QUERY, prompt)
    except ChatTemplateError as error:
        rows = [("system role accepted", False, str(error))]
        chat = render(model, _AUDIT_QUERY, SafetyPrompt(name="none", text=""))
    else:
        rows = [("system role accepted", True, ""), _audit_verbatim(model), _audit_span(model, chat)]
    rows += [_audit_bos(model, chat), _audit_generation(model), _audit_markers(model, chat), _audit_date(model)]
    return pd.DataFrame(rows, columns=["check", "ok", "detail"])


def _audit_verbatim(model: ChatModel) -> tuple[str, bool, str]:
    spaced = f" {_AUDIT_SYSTEM}\n\nBe kind. "
    text, span, _ = model.template.chat(_AUDIT_QUERY, spaced, "audit")
    arrived = text[slice(*(span or (0, 0)))]
    detail = "" if arrived == spaced else "blanks around it are trimmed"
    return "system text arrives verbatim", arrived.strip() == spaced.strip(), detail


def _audit_span(model: ChatModel, chat: RenderedChat) -> tuple[str, bool, str]:
    start, stop = chat.prompt_span or (0, 0)
    own, here = prompt_token_ids(model, _AUDIT_SYSTEM), list(chat.input_ids[start:stop])
    detail = "" if own == here else f"{len(own)} tokens alone, {len(here)} in the chat: it merges with its neighbours"
    return "prompt tokenises as on its own", own == here, detail


def _audit_bos(model: ChatModel, chat: RenderedChat) -> tuple[str, bool, str]:
    bos = model.tokenizer.bos_token_id
    count = chat.input_ids.count(bos)
    added = bos is not None and bos in model.tokenizer("a")["input_ids"]
    if not count and not added:
        return "BOS exactly once", True, "this tokenizer uses none"
    detail = "" if count == 1 else f"{count} times"
    if not count:
        detail = "the tokenizer would add one, the template does not; drolab follows the template"
    return "BOS exactly once", count == 1, detail


def _audit_generation(model: ChatModel) -> tuple[str, bool, str]:
    added = model.template.generation_prompt
    detail = repr(added) if added else "the last token belongs to the user's turn"
    return "generation prompt adds something", bool(added), detail


def _audit_markers(model: ChatModel, chat: RenderedChat) -> tuple[str, bool, str]:
    markers = {*re.findall(r"<\|[^|<>\s]+\|>", chat.text), *model.tokenizer.all_special_tokens}
    split = sorted(marker for marker in markers if len(prompt_token_ids(model, marker)) != 1)
    detail = f"split into several: {', '.join(split)}" if split else f"{len(markers)} markers"
    return "special tokens are single ids", not split, detail


def _audit_date(model: ChatModel) -> tuple[str, bool, str]:
    dated = "strftime_now" in model.tokenizer.get_chat_template()
    detail = "it writes today's date: pass chat_template=… with a fixed one, or states change daily" if dated else ""
    return "same text on every day", not dated, detail
