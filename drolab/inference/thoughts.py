"""Thoughts in replies that are being written: where the answer begins, and whose budget is spent.

What a thought is says `models.split_reply`, which reads whole texts. Here it is asked as rarely as will do: as long as
a reply is in the middle of a thought, only its last few tokens are looked at, for a mark that could end it.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from drolab.models import THOUGHT_MARKS, ChatModel, could_be_mark, marks_among, split_reply

_TAIL = max(len(mark.encode()) for mark in THOUGHT_MARKS)
"""A token adds at least a byte, so a mark that ends with the last token began within these."""
_LOWERED = tuple(mark.lower() for mark in THOUGHT_MARKS)


def _has_mark(text: str) -> bool:
    lowered = text.lower()
    return any(mark in lowered for mark in _LOWERED)


def decoded_texts(model: ChatModel, ids: list[list[int]]) -> list[str]:
    """Without special tokens, but with those that mark thoughts."""
    dropped = _dropped(model)
    if dropped is None:
        return model.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    kept = [[token for token in row if token not in dropped] for row in ids]
    return model.tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


_DROPPED: WeakKeyDictionary[ChatModel, frozenset[int] | None] = WeakKeyDictionary()


def _dropped(model: ChatModel) -> frozenset[int] | None:
    """Special tokens that are no marks; None if no mark is a special token."""
    if model not in _DROPPED:
        special = _special(model)
        marks = marks_among(special.values())
        _DROPPED[model] = frozenset(number for number, text in special.items() if text not in marks) if marks else None
    return _DROPPED[model]


def _special(model: ChatModel) -> dict[int, str]:
    added = model.tokenizer.added_tokens_decoder
    return {number: token.content for number, token in added.items() if token.special}


def marks_kept(model: ChatModel) -> list[int]:
    """The special tokens that a decoded reply keeps, ascending: for store keys."""
    dropped = _dropped(model)
    return [] if dropped is None else sorted(set(_special(model)) - dropped)


def answer_token(model: ChatModel, ids: Sequence[int], begins: int) -> int:
    """Which token has the character of the decoded text at which the answer begins; their number if there is none."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decoded_texts(model, [list(ids[: middle + 1])])[0]) > begins:
            high = middle
        else:
            low = middle + 1
    return low


class Thoughts:
    """Of several replies, as they grow: where the answer begins, and whether the budget of thought or answer is spent.

    Args:
        openings: what of a thought the chat of each reply leaves open.
    """

    def __init__(
        self, model: ChatModel, openings: Sequence[str], *, max_thinking_tokens: int, max_new_tokens: int
    ) -> None:
        self._model, self._openings = model, openings
        self._most_thinking, self._most_new = max_thinking_tokens, max_new_tokens
        self._begins: dict[int, int] = {}
        """The token at which an answer begins."""
        self._settled: set[int] = set()
        """Those whose answer has begun for good: its first characters are not those of a mark."""
        self._deep: set[int] = set()
        """Those in the middle of a thought."""

    def look(self, live: Sequence[int], written: Tensor) -> Tensor:
        """[n] token numbers at which the answers of the replies `live` begin, all of whose tokens so far are `written`,
        [n, tokens so far]; where none has begun, as many as there are tokens."""
        tokens = written.shape[1]
        unsettled = [row for row in range(len(live)) if live[row] not in self._settled]
        deep = [row for row in unsettled if live[row] in self._deep]
        tails = decoded_texts(self._model, written[deep, -_TAIL:].tolist()) if deep else []
        still = {row for row, tail in zip(deep, tails, strict=True) if not _has_mark(tail)}
        asked = [row for row in unsettled if row not in still]
        texts = decoded_texts(self._model, written[asked].tolist()) if asked else []
        for row, text in zip(asked, texts, strict=True):
            self._read(live[row], text, written[row].tolist())
        return torch.tensor([self._begins.get(number, tokens) for number in live])

    def spent(self, live: Sequence[int], begins: Tensor, tokens: int) -> Tensor:
        """[n] booleans: whether the replies `live` must end after so many tokens; `begins` is what `look` gave."""
        deep = torch.tensor([number in self._deep for number in live])
        settled = torch.tensor([number in self._settled for number in live])
        thought = (tokens >= self._most_thinking) & deep | (tokens > self._most_thinking)
        return torch.where(begins < tokens, (tokens - begins >= self._most_new) & settled, thought)

    def cut(self, written: Sequence[list[int]]) -> list[list[int]]:
        """Whole replies, without what was written beyond their budgets before it was clear that it was an answer."""
        return [ids[: self._begins.get(number, len(ids)) + self._most_new] for number, ids in enumerate(written)]

    def _read(self, number: int, text: str, ids: list[int]) -> None:
        opening = self._openings[number]
        reply = split_reply(text, opening)
        self._deep.discard(number)
        if reply.answer:
            self._begins[number] = answer_token(self._model, ids, reply.begins)
            if not could_be_mark(reply.answer):
                self._settled.add(number)
            return
        self._begins.pop(number, None)
        if not split_reply(text + "a", opening).answer:
            self._deep.add(number)
