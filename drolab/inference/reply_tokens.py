"""Replies as the tokens that the model wrote, from the text that was kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pandas as pd

from drolab.errors import ChatTemplateError
from drolab.inference.sampling import stop_ids
from drolab.models import ChatModel, Prompt, render
from drolab.types import ReadAt

_REPLY = "Certainly."


def reply_tokens(
    model: ChatModel, replies: pd.DataFrame, prompt: Prompt, *, read_at: ReadAt = "reply"
) -> list[tuple[int, ...]]:
    """The token ids of each reply, behind a chat that ends at `read_at`, with the token that ended it.

    A text can be tokenised in several ways, and how it is depends on what stands before it. Of the ways that are tried
    (in the chat, in the chat after a space, alone) that one is taken whose first token is the reply's `first_token`,
    and the first if none is, or if there is no such column. A reply that was cut off (its `finish_reason` is not
    "stop") has no end token; without this column every reply has.

    Args:
        replies: as from `generate`; only `response` and `text` must be there.
        prompt: any that the chats may have; only what comes after the query matters.

    Raises:
        ChatTemplateError, PromptError, QueryError: the first chat cannot be written.

    Examples:
        >>> import drolab
        >>> from drolab.inference import reply_tokens
        >>> model, none = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("anchors").head(1)
        >>> replies = drolab.generate(model, queries, none, n_samples=1, max_new_tokens=8, progress=False)
        >>> ids = reply_tokens(model, replies, none)[0]
        >>> model.tokenizer.decode(ids) == replies["response"].item()  # cut off after 8 tokens
        True
    """
    if replies.empty:
        return []
    query = str(replies["text"].iloc[0])
    before = render(model, query, prompt, read_at=read_at).text.rpartition(query.strip())[2]
    texts = replies["response"].fillna("").astype(str).tolist()
    firsts = replies["first_token"].tolist() if "first_token" in replies else [None] * len(texts)
    ended = replies["finish_reason"].eq("stop") if "finish_reason" in replies else pd.Series(True, replies.index)
    end = _end_token(model)
    return [
        ids + ((end,) if closed and end is not None else ())
        for ids, closed in zip(_as_written(model, before, texts, firsts), ended, strict=True)
    ]


def _as_written(
    model: ChatModel, before: str, texts: Sequence[str], firsts: Sequence[int | None]
) -> list[tuple[int, ...]]:
    in_chat = _behind(model, before, texts)
    found = [ids if _begins(ids, first) else None for ids, first in zip(in_chat, firsts, strict=True)]
    for other in (lambda some: _behind(model, before, [f" {text}" for text in some]), lambda some: _ids(model, some)):
        left = [row for row, ids in enumerate(found) if ids is None]
        for row, ids in zip(left, other([texts[row] for row in left]) if left else [], strict=True):
            found[row] = ids if _begins(ids, firsts[row]) else None
    return [
        ids if ids is not None else spare if spare is not None else alone
        for ids, spare, alone in zip(found, in_chat, _ids(model, texts), strict=True)
    ]


def _begins(ids: tuple[int, ...] | None, first: int | None) -> bool:
    """A reply without a text begins with its end."""
    return ids is not None and (first is None or not ids or ids[0] == first)


def _behind(model: ChatModel, before: str, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
    """None where the text's beginning changes the tokens before it."""
    head = _ids(model, [before])[0] if before else ()
    whole = _ids(model, [before + text for text in texts])
    return [ids[len(head) :] if ids[: len(head)] == head else None for ids in whole]


def _ids(model: ChatModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def _end_token(model: ChatModel) -> int | None:
    """What the template writes behind a reply, if that ends one; else the tokenizer's own."""
    stop = stop_ids(model)
    with suppress(ChatTemplateError):
        behind = model.template.sample(reply=_REPLY, begin=False).rpartition(_REPLY)[2]
        if found := next((token for token in _ids(model, [behind])[0] if token in stop), None):
            return found
    eos: int | None = model.tokenizer.eos_token_id
    return eos if eos is not None else min(stop, default=None)
