"""The rest of a chat, written and read by another tokenizer: conversations, kinds of tokenizers, what must not be."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.families import family
from helpers.tiny import byte_tokenizer, random_llama
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from drolab.errors import ChatTemplateError, PromptError
from drolab.models import CHAT_FORMATS, ChatModel, prepended, render, wrap
from drolab.types import SoftPrompt

SOFT = SoftPrompt(name="soft", embeddings=torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
TALK = [
    {"role": "user", "content": "How do I boil an egg?"},
    {"role": "assistant", "content": "In water."},
    {"role": "user", "content": "How long?"},
]


def blanks_before_words(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind, a token for each character and each byte; `scheme` says where it writes a
    blank that is not there."""
    letters = {chr(code): 0 for code in range(33, 127)}
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "▁", *(f"<0x{code:02X}>" for code in range(256)), *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def random_model(tokenizer: PreTrainedTokenizerFast, **template: Any) -> ChatModel:
    model = random_llama()
    model.resize_token_embeddings(len(tokenizer))
    return wrap(model, tokenizer, name="tiny", **template)


def written(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_a_conversation_goes_on_as_the_model_s_own(name: str) -> None:
    model = wrap(random_llama(), byte_tokenizer(), name="tiny", chat_template=name)
    form = prepended(model, SOFT)
    whole = written(model.tokenizer, [{"role": "system", "content": "SYSTEM"}, *TALK])
    assert written(form.tokenizer, TALK) == whole.partition("SYSTEM")[2]
    unended = form.tokenizer.apply_chat_template(TALK[:2], tokenize=False)
    assert written(form.tokenizer, TALK).startswith(unended)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("name", ["llama-2-chat", "vicuna"])
def test_no_blank_is_written_where_the_rest_begins(name: str, scheme: str) -> None:
    model = random_model(blanks_before_words(scheme), chat_template=name)
    form = prepended(model, SOFT)
    for query in ("Why?", "  two blanks", "漢字", "What is dRolab0System?"):
        ids = form.tokenizer(written(form.tokenizer, [{"role": "user", "content": query}]))["input_ids"]
        assert form.ids + tuple(ids) == render(model, query, SOFT).input_ids


def test_a_blank_would_have_been_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the tokenizer as it is the chat would be another, and that is found out."""
    from drolab.models import interop

    as_it_is = interop._backends
    monkeypatch.setattr(interop, "_backends", lambda tokenizer: as_it_is(tokenizer)[:1])
    with pytest.raises(ChatTemplateError, match="in another way when it stands alone"):
        prepended(random_model(blanks_before_words("first"), chat_template="llama-2-chat"), SOFT)
    prepended(random_model(blanks_before_words("always"), chat_template="llama-2-chat"), SOFT)


def test_a_tokenizer_that_begins_every_text_with_bos_does_not() -> None:
    model = random_model(blanks_before_words("always"), chat_template="chatml")
    assert model.tokenizer("Why?")["input_ids"][0] == 1
    assert prepended(model, SOFT).tokenizer("Why?")["input_ids"][0] != 1


def test_the_vectors_are_the_chat_s_beginning_and_the_prompt() -> None:
    model = family("gemma3, long window")  # whose embeddings are scaled
    form = prepended(model, SOFT)
    start, stop = form.slot
    assert form.vectors.shape == (len(form.ids), 32)
    assert stop == len(form.ids) == start + len(SOFT)
    assert torch.equal(form.vectors[start:], SOFT.embeddings)
    assert torch.equal(form.vectors[:start], model.embed(torch.tensor(form.ids[:start])))
    assert not torch.equal(form.vectors[:start], model.model.get_input_embeddings().weight[list(form.ids[:start])])


def test_what_a_template_was_told_holds_unless_it_is_told_otherwise() -> None:
    switch = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    model = wrap(
        random_llama(),
        byte_tokenizer(),
        name="tiny",
        chat_template=switch,
        template_kwargs={"enable_thinking": False},
    )
    rest = prepended(model, SOFT).tokenizer
    assert written(rest, TALK[:1]).endswith("</think>\n\n")
    assert written(rest, TALK[:1], enable_thinking=True).endswith("[assistant]")


def test_a_template_that_changes_its_messages() -> None:
    shifts = (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
        "{% else %}{% set system = 'Assist.' %}{% endif %}"
        "{% macro turn(m) %}[{{ m.role }}]{{ m.content }}{% endmacro %}"
        "<<{{ system }}>>{% for m in messages %}{{ turn(m) }}{% endfor %}[assistant]\n  "
    )
    model = wrap(random_llama(), byte_tokenizer(), name="tiny", chat_template=shifts)
    assert written(prepended(model, SOFT).tokenizer, TALK[:1]) == ">>[user]How do I boil an egg?[assistant]\n  "


def test_a_system_message_is_refused(tiny_llama: ChatModel) -> None:
    rest = prepended(tiny_llama, SOFT).tokenizer
    with pytest.raises(TemplateError, match="system prompt is in the adapter"):
        written(rest, [{"role": "system", "content": "Be nice."}, *TALK])


def test_a_prompt_of_another_model_is_refused(tiny_llama: ChatModel) -> None:
    other = SoftPrompt(name="other", embeddings=torch.zeros(2, 32), model_fingerprint="f" * 32)
    with pytest.raises(PromptError, match=f"{'f' * 32}, but .* has {tiny_llama.fingerprint}"):
        prepended(tiny_llama, other)
    with pytest.raises(PromptError, match="width 8"):
        prepended(tiny_llama, SoftPrompt(name="thin", embeddings=torch.zeros(2, 8)))


def test_the_model_s_own_tokenizer_stays_as_it_was(tiny_llama: ChatModel) -> None:
    before = json.loads(tiny_llama.tokenizer.backend_tokenizer.to_str()), tiny_llama.tokenizer.chat_template
    prepended(tiny_llama, SOFT)
    assert before == (json.loads(tiny_llama.tokenizer.backend_tokenizer.to_str()), tiny_llama.tokenizer.chat_template)
