"""Mistral's tokenizers without Jinja (tekken.json): as a tokenizer that says where its tokens lie, with a template.

Their chats are written by the package mistral-common, in code. transformers converts the vocabulary; the template is
read off chats that mistral-common writes around two markers, and holds only if it gives mistral-common's own tokens.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from drolab.errors import ModelError
from drolab.models.markers import QUERY, SYSTEM

_TRIALS = (("Be kind.", "How do I boil rice?"), ("Be\n\n kind…", "  Zwei\tÄpfel,  2 + 2 = 4?\n"), (None, "And then?"))
"""System text and query of the chats that must have the same tokens."""
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def is_mistral_common(tokenizer: PreTrainedTokenizerBase) -> bool:
    return not hasattr(tokenizer, "is_fast") and hasattr(tokenizer, "apply_chat_template")


def from_mistral_common(
    tokenizer: PreTrainedTokenizerBase, source: str, name: str, **options: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer in `source` as a fast one, whose chats have the tokens that mistral-common gives them.

    Raises:
        ModelError: they have others.
    """
    fast: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(source, **options)
    for special in _SPECIAL:
        if getattr(fast, special, None) is None and getattr(tokenizer, special, None) is not None:
            setattr(fast, special, getattr(tokenizer, special))
    if fast.chat_template:  # the checkpoint has one, which is used where mistral-common is not installed as well
        return fast
    fast.chat_template = _template(tokenizer, fast)
    for system, query in _TRIALS:
        said = _messages(system, query)
        text = str(fast.apply_chat_template(said, tokenize=False))
        if fast(text, add_special_tokens=False)["input_ids"] != _ids(tokenizer, said):
            raise ModelError(
                f"The tokenizer of {name!r} is mistral-common's, and transformers' conversion of it gives other "
                "tokens: use a checkpoint that has a tokenizer.json."
            )
    return fast


def _template(tokenizer: PreTrainedTokenizerBase, fast: PreTrainedTokenizerBase) -> str:
    """Jinja text that writes what mistral-common does for a query, with a system message and without, and a reply."""
    said = {
        SYSTEM: "messages[0]['content']",
        QUERY: "(messages | selectattr('role', 'equalto', 'user') | list)[-1]['content']",
    }
    texts = []
    for system in (SYSTEM, None):
        ids = _ids(tokenizer, _messages(system, QUERY))
        text = json.dumps(fast.decode(ids, clean_up_tokenization_spaces=False))  # as Jinja writes texts, too
        for marker, value in said.items():
            text = text.replace(marker, f'" + {value} + "')
        texts.append(f"{{{{ {text} }}}}")
    return (
        f"{{% if messages[0]['role'] == 'system' %}}{texts[0]}{{% else %}}{texts[1]}{{% endif %}}"
        "{% if messages[-1]['role'] == 'assistant' %}{{ messages[-1]['content'] + eos_token }}{% endif %}"
    )


def _messages(system: str | None, query: str) -> list[dict[str, str]]:
    said = [("user", query)] if system is None else [("system", system), ("user", query)]
    return [{"role": role, "content": text} for role, text in said]


def _ids(tokenizer: PreTrainedTokenizerBase, said: list[dict[str, str]]) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(said, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])
