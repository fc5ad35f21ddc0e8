"""A soft prompt in the form that other programs take: vectors before a chat, and a tokenizer for the rest of the chat.

PEFT can only put its vectors before what it is given, and whoever embeds a chat by hand does the same. So the vectors
are those of all that a chat begins with: BOS, role markers, and the soft prompt's own at the end. The tokenizer's
template writes what is left. It does so by writing the whole chat as before, with a word in the system text's place,
and leaving out everything up to that word: whatever the model's template does, it goes on doing.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from drolab.errors import ChatTemplateError
from drolab.models.chat import RenderedChat, render
from drolab.models.load import ChatModel
from drolab.models.markers import SYSTEM
from drolab.models.templates import BLANK_LINE, FIRST_USER, Span, Template
from drolab.types import SoftPrompt

_TRIED = (
    "How do I boil an egg?",
    " And what,\n\n if it is  old? ",
    "Ünïcödé 漢字 🙂 <|im_end|> [/INST] {{ messages }}",
    "1. a\n2. b\n",
    "?",
)
"""Queries of many kinds, among them what a template or a tokenizer may treat in its own way."""


@dataclass(frozen=True, eq=False)
class Prepended:
    """A soft prompt that is put before a chat."""

    ids: tuple[int, ...]
    """What every chat begins with, up to the soft prompt's end; those in `slot` are placeholders."""
    slot: Span
    """Which of them are the soft prompt's: [start, len(ids))."""
    vectors: Tensor
    """[len(ids), d], float32, on the CPU."""
    tokenizer: PreTrainedTokenizerBase
    """The model's, whose chat template writes the rest of a chat, and which adds no token of its own to a text."""


def prepended(model: ChatModel, soft: SoftPrompt) -> Prepended:
    """A soft prompt in the form in which it is put before a chat.

    Raises:
        ChatTemplateError: the model's template writes the query before the system text, or a text's beginning is
            tokenised in another way than its middle, so that there is nothing to put the vectors before.
        PromptError: it was made for another model.
    """
    chats = _chats(model, soft)
    first = next(iter(chats.values()))
    start, stop = first.prompt_span or (0, 0)
    ids = first.input_ids[:stop]
    if model.template.layout(with_system=True).query_first:
        raise ChatTemplateError(
            f"The chat template of {model.name!r} writes the system text behind the query, so the soft prompt "
            f"{soft.name!r} does not stand before it: pass load_model(…, chat_template=…) with one that begins with it."
        )
    tokenizer = _tokenizer_of_the_rest(model.template, {query: chat.input_ids[stop:] for query, chat in chats.items()})
    embedded = model.embed(torch.tensor(ids[:start], dtype=torch.long)).detach().to("cpu", torch.float32)
    vectors = torch.cat([embedded, soft.embeddings.detach().to("cpu", torch.float32)])
    return Prepended(ids, (start, stop), vectors, tokenizer)


def _chats(model: ChatModel, soft: SoftPrompt) -> dict[str, RenderedChat]:
    """Query → chat; without those queries that the template changes, which drolab refuses."""
    found, problem = {}, None
    for query in _TRIED:
        try:
            found[query] = render(model, query, soft)
        except ChatTemplateError as error:
            problem = problem or error
    if problem and _TRIED[0] not in found:
        raise problem
    return found


def _tokenizer_of_the_rest(template: Template, wanted: dict[str, tuple[int, ...]]) -> PreTrainedTokenizerBase:
    """The tokenizer, changed as little as is needed so that of each query it writes and reads the rest of the chat."""
    jinja = _rest_of(template)
    for content in _backends(template.tokenizer):
        tokenizer = _plain_tokenizer(template.tokenizer, content)
        tokenizer.chat_template = jinja
        if all(_rest_ids(tokenizer, query, template.in_parts[1]) == ids for query, ids in wanted.items()):
            return tokenizer
    raise ChatTemplateError(
        f"The tokenizer of {template.owner!r} reads the part of a chat behind the soft prompt in another way when it "
        "stands alone, so no other program would see the same chat: use the soft prompt in drolab."
    )


def _rest_ids(tokenizer: PreTrainedTokenizerBase, query: str, in_parts: bool) -> tuple[int, ...]:
    """The rest of a chat as another program gets it."""
    message: Any = {"role": "user", "content": [{"type": "text", "text": query}] if in_parts else query}
    written: Any = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(written)["input_ids"])


def _plain_tokenizer(own: PreTrainedTokenizerBase, content: dict[str, Any]) -> PreTrainedTokenizerBase:
    """One that is what its file says: a family's own class may build parts of itself anew when it is loaded."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=own.model_max_length,
        padding_side=own.padding_side,
        clean_up_tokenization_spaces=False,
        **own.special_tokens_map,
    )


def _backends(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """How the tokenizer works, without BOS and EOS around a text: as it is, and where a text begins like its middle.

    What comes behind the soft prompt is no beginning: a tokenizer that writes a blank before the first word of a text
    only (`prepend_scheme` "first" of SentencePiece's) must not write one there.
    """
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain |= {"post_processor": None, "padding": None, "truncation": None}
    inner = copy.deepcopy(plain)
    parts = inner["pre_tokenizer"] or {}
    for part in [parts, *parts.get("pretokenizers", [])]:
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return [plain, inner]


def _rest_of(template: Template) -> str:
    """Jinja text that writes what stands behind the system text in a chat."""
    told = "".join(
        f"{{% if {name} is not defined or {name} is none %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in template.kwargs.items()
    )
    refusal = "The system prompt is in the adapter: pass no system message, or load the base model's own tokenizer."
    check = f"{{% if messages[0]['role'] == 'system' %}}{{{{ raise_exception({refusal!r}) }}}}{{% endif %}}"
    in_parts, user_in_parts = template.in_parts
    if template.system_as == FIRST_USER:
        first = "messages[0]['content']"
        said = f"({first} if {first} is string else {first}[0]['text'])"
        opening = _message("user", f"{SYSTEM + BLANK_LINE!r} ~ {said}", user_in_parts)
        chat = f"[{opening}] + (messages | list)[1:]"
    else:
        chat = f"[{_message('system', repr(SYSTEM), in_parts)}] + (messages | list)"
    # The empty expressions keep Jinja from trimming what the template has at its ends.
    whole = f"{{% set drolab_whole %}}{{{{ '' }}}}{template.source.removesuffix(chr(10))}{{{{ '' }}}}{{% endset %}}"
    return f"{told}{check}{{% set messages = {chat} %}}{whole}{{{{ drolab_whole.split({SYSTEM!r}, 1)[1] }}}}"


def _message(role: str, content: str, in_parts: bool) -> str:
    """A message as Jinja writes it."""
    return f"{{'role': '{role}', 'content': {f'''[{{'type': 'text', 'text': {content}}}]''' if in_parts else content}}}"
