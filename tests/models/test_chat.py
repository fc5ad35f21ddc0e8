"""Rendering: the text, the tokens, the prompt's span, soft slots, and everything that can be wrong with a template."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab.errors import ChatTemplateError, PromptError, QueryError, StatesError
from drolab.models import CHAT_FORMATS, ChatModel, as_prompts, audit, check_fits, encode, prompt_token_ids, render, wrap
from drolab.types import SafetyPrompt, SoftPrompt

MODELS = {name: wrap(random_llama(), byte_tokenizer(), name=name, chat_template=name) for name in CHAT_FORMATS}
NONE = SafetyPrompt(name="none", text="")
CARE = SafetyPrompt(name="care", text="Be careful.")


def soft(n_tokens: int = 4, width: int = 32, fingerprint: str = "") -> SoftPrompt:
    return SoftPrompt(name="trained", embeddings=torch.zeros(n_tokens, width), model_fingerprint=fingerprint)


def templated(jinja: str) -> ChatModel:
    return wrap(random_llama(), byte_tokenizer(), name="odd", chat_template=jinja)


def decoded(model: ChatModel, ids: tuple[int, ...]) -> str:
    return model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# --- rendering ---------------------------------------------------------------------------------------------


def test_the_text_is_the_templates(tiny_llama: ChatModel) -> None:
    chat = render(tiny_llama, "Hello?", CARE)
    assert chat.text == (
        "<s><|im_start|>system\nBe careful.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decoded(tiny_llama, chat.input_ids) == chat.text
    assert chat.prompt_span is not None
    assert decoded(tiny_llama, chat.input_ids[slice(*chat.prompt_span)]) == "Be careful."
    assert chat.input_ids[0] == tiny_llama.tokenizer.bos_token_id


def test_without_a_prompt_there_is_no_system_message(tiny_llama: ChatModel) -> None:
    chat = render(tiny_llama, "Hello?", NONE)
    assert "system" not in chat.text
    assert chat.prompt_span is None


FRAGMENTS = (
    "</s>",
    "<s>",
    "DROLAB0SLOT",
    "{{ messages }}",
    "{% raw %}",
    "[/INST]",
    "<|im_end|>",
    "Be careful.",
    "\n",
    " ",
)
hostile = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CHAT_FORMATS), hostile, hostile.filter(str.strip))
def test_hostile_texts_do_not_move_the_span(name: str, query: str, text: str) -> None:
    model = MODELS[name]
    chat = render(model, query, SafetyPrompt(name="p", text=text))
    assert chat.prompt_span is not None
    assert list(chat.input_ids) == model.tokenizer(chat.text, add_special_tokens=False)["input_ids"]
    start, stop = chat.prompt_span
    assert list(chat.input_ids[start:stop]) == prompt_token_ids(model, text.strip())
    assert start == len(render(model, query, soft()).text.partition("</s>" * 4)[0].encode()) - len("<s>") + 1


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CHAT_FORMATS), hostile, st.integers(1, 9))
def test_soft_slots_are_exactly_the_placeholders(name: str, query: str, n_tokens: int) -> None:
    model = MODELS[name]
    chat = render(model, query, soft(n_tokens))
    text = render(model, query, SafetyPrompt(name="p", text="x" * n_tokens))  # one token per byte as well
    assert chat.prompt_span == text.prompt_span
    start, stop = chat.prompt_span
    assert stop - start == n_tokens
    assert set(chat.input_ids[start:stop]) == {model.tokenizer.eos_token_id}
    assert (*chat.input_ids[:start], *chat.input_ids[stop:]) == (*text.input_ids[:start], *text.input_ids[stop:])


def test_a_special_token_in_a_query_is_that_token(tiny_llama: ChatModel) -> None:
    ids = render(tiny_llama, "a</s>b", NONE).input_ids
    assert ids.count(tiny_llama.tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_eos_uses_another_special_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    model = wrap(random_llama(), tokenizer, name="m", chat_template="chatml")
    chat = render(model, "Hi.", soft())
    assert chat.prompt_span is not None
    assert len(set(chat.input_ids[slice(*chat.prompt_span)])) == 1


# --- encoding ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CHAT_FORMATS),
    st.lists(hostile, min_size=1, max_size=5),
    st.sampled_from([NONE, CARE, soft()]),
    st.integers(1, 4),
)
def test_prefix_and_suffix_are_the_chat(
    name: str, queries: list[str], prompt: SafetyPrompt | SoftPrompt, min_suffix: int
) -> None:
    model = MODELS[name]
    batch = encode(model, queries, prompt, min_suffix=min_suffix)
    chats = [render(model, query, prompt) for query in queries]
    assert [batch.chat(row) for row in range(len(batch))] == [chat.input_ids for chat in chats]
    assert min(map(len, batch.suffixes)) >= min_suffix
    next_tokens = {suffix[0] for suffix in batch.suffixes}
    assert len(next_tokens) > 1 or min(map(len, batch.suffixes)) == min_suffix  # nothing more could be shared
    if isinstance(prompt, SoftPrompt):
        assert batch.soft is prompt
        assert batch.span == chats[0].prompt_span


def test_one_query_shares_all_but_the_last_tokens(tiny_llama: ChatModel) -> None:
    batch = encode(tiny_llama, ["Hello?"], CARE, min_suffix=3)
    assert [len(suffix) for suffix in batch.suffixes] == [3]


def test_positions_beyond_the_chat_and_into_the_soft_prompt(tiny_llama: ChatModel) -> None:
    length = len(render(tiny_llama, "Hi.", NONE).input_ids)
    with pytest.raises(StatesError, match=rf"only {length} tokens: ask for positions from -{length} to -1"):
        encode(tiny_llama, ["Hi."], NONE, min_suffix=length + 1)
    with pytest.raises(StatesError, match="before the end of soft prompt 'trained': ask for later positions"):
        encode(tiny_llama, ["Hi."], soft(), min_suffix=80)


def test_no_queries(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError, match="No queries given: pass at least one"):
        encode(tiny_llama, [], CARE)


def test_prompt_token_ids_have_no_bos(tiny_llama: ChatModel) -> None:
    ids = prompt_token_ids(tiny_llama, "Be careful.")
    assert len(ids) == len("Be careful.")
    assert tiny_llama.tokenizer.bos_token_id not in ids


def test_a_query_longer_than_the_context(tiny_llama: ChatModel) -> None:
    query = "How long? " * 60
    with pytest.raises(QueryError, match=r"query 'How long\? .*…' under prompt 'none' has \d+ tokens, .* at most 512"):
        encode(tiny_llama, ["short", query], NONE)


def test_a_prompt_longer_than_the_context(tiny_llama: ChatModel) -> None:
    with pytest.raises(PromptError, match=r"Prompt 'long' has 600 tokens, .* at most 512 in a whole chat: shorten"):
        render(tiny_llama, "Hi.", SafetyPrompt(name="long", text="x" * 600))
    with pytest.raises(PromptError, match="Prompt 'trained' has 600 tokens"):
        render(tiny_llama, "Hi.", soft(600))


def test_text_that_is_no_unicode(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError, match=r"query 'a\\ud800b' holds half a character .*: load the text again"):
        render(tiny_llama, "a\ud800b", CARE)


# --- prompts that do not fit -------------------------------------------------------------------------------


def test_a_soft_prompt_of_another_width(tiny_llama: ChatModel) -> None:
    with pytest.raises(PromptError, match="'trained' has vectors of width 48, but 'tiny-llama' has hidden size 32"):
        render(tiny_llama, "Hi.", soft(width=48))


def test_a_soft_prompt_of_another_model(tiny_llama: ChatModel) -> None:
    with pytest.raises(
        PromptError, match=f"'trained' .* fingerprint abc, but 'tiny-llama' has {tiny_llama.fingerprint}"
    ):
        encode(tiny_llama, ["Hi."], soft(fingerprint="abc"))
    check_fits(tiny_llama, soft(fingerprint=tiny_llama.fingerprint))
    check_fits(tiny_llama, soft())  # a released prompt, whose model is not known


def test_a_blank_prompt(tiny_llama: ChatModel) -> None:
    with pytest.raises(PromptError, match="'blank' is blank: give it a text, or use the prompt 'none'"):
        render(tiny_llama, "Hi.", SafetyPrompt(name="blank", text=" \n"))


def test_as_prompts() -> None:
    assert as_prompts(CARE) == [CARE]
    assert as_prompts([NONE, CARE]) == [NONE, CARE]
    assert [prompt.name for prompt in as_prompts({"none": NONE, "mine": CARE})] == ["none", "mine"]


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([], r"No prompts given: pass at least one, .*load_prompts"),
        ([CARE, CARE], "More than one prompt is called 'care': give each its own name"),
        ("Be careful.", r"got str: wrap a text as SafetyPrompt\("),
        ({"mine": "Be careful."}, r"got str: wrap a text as SafetyPrompt\("),
        (3, r"got int: wrap a text"),
    ],
)
def test_what_is_no_prompt(prompts: object, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        as_prompts(prompts)  # type: ignore[arg-type]


# --- templates ---------------------------------------------------------------------------------------------

USERS = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
REJECTS = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + USERS


def test_a_template_that_rejects_the_system_role() -> None:
    model = templated(REJECTS)
    with pytest.raises(
        ChatTemplateError,
        match=r"rejects a system message \(System role not supported\): pass .*system_as='first_user'.*one of .*llama-",
    ):
        render(model, "Hi.", CARE)
    assert render(model, "Hi.", NONE).text == "[Hi.]"


def test_a_template_that_drops_the_system_message() -> None:
    with pytest.raises(ChatTemplateError, match="drops the system message, so no safety prompt can arrive: pass"):
        render(templated(USERS), "Hi.", CARE)


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('e', 'E') }}{% endfor %}",
        "{{ messages[0].content }} {{ messages[0].content }} {{ messages[-1].content }}",
        "{{ messages[0].content[:9] }}{{ messages[-1].content }}",
        "{{ messages[0].content | length }}{{ messages[0].content }}{{ messages[-1].content }}",
    ],
)
def test_a_template_that_rewrites_the_system_message(jinja: str) -> None:
    with pytest.raises(
        ChatTemplateError,
        match=r"(changes|repeats|drops) the (query|system message)|changes or repeats the text of prompt 'p'.*: write",
    ):
        render(templated(jinja), "Hi.", SafetyPrompt(name="p", text="Be careful, please."))


def test_a_template_that_cannot_render() -> None:
    with pytest.raises(ChatTemplateError, match=r"cannot render a user message .*: pass"):
        render(templated("{{ messages[0].content + 3 }}"), "Hi.", NONE)


def test_a_soft_prompt_after_the_query_cannot_be_shared() -> None:
    model = templated("{{ messages[-1].content }} {{ messages[0].content }}.")
    with pytest.raises(StatesError, match="use a template with the system text first"):
        encode(model, ["one", "two"], soft())


# --- the audit ---------------------------------------------------------------------------------------------


def problems(model: ChatModel) -> dict[str, str]:
    table = audit(model)
    assert list(table.columns) == ["check", "status", "found", "means", "do"]
    return dict(table.loc[table["status"] == "problem", ["check", "found"]].itertuples(index=False))


def test_the_audit_passes_a_good_template() -> None:
    assert problems(MODELS["vicuna"]) == {}


def test_the_audit_finds_markers_that_are_not_tokens() -> None:
    assert problems(MODELS["chatml"]) == {"special tokens": "split into several: <|im_end|>, <|im_start|>"}


PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content if part.type == 'text' %}{{ part.text }}"
    "{% endfor %}{% endfor %}<assistant>"
)
"""As templates of models that also see images have it: a content that is a text has no parts."""


@pytest.mark.parametrize("prompt", [NONE, CARE, soft()])
def test_a_template_of_parts_has_the_query(prompt: SafetyPrompt | SoftPrompt) -> None:
    model = templated(PARTS)
    chats = [render(model, query, prompt) for query in ("How do I bake bread?", "user")]
    assert "<user>How do I bake bread?<assistant>" in chats[0].text
    assert "<user>user<assistant>" in chats[1].text
    assert ("<system>" in chats[0].text) == (prompt is not NONE)
    assert "system kept verbatim" not in problems(model)


@pytest.mark.parametrize("query", ["How do I bake bread?", "user"])
@pytest.mark.parametrize(
    ("jinja", "problem"),
    [
        ("{% for m in messages %}<{{ m.role }}>{% endfor %}", "drops the query"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }} {{ m.content }}{% endfor %}", "repeats the query"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content[0] }}{% endfor %}", "drops the query"),
    ],
)
def test_no_chat_is_without_its_query(jinja: str, problem: str, query: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"{problem}: pass"):
        render(templated(jinja), query, NONE)


def test_a_query_that_a_template_changes() -> None:
    model = templated("{% for m in messages %}{{ m.content.split('|')[-1] }}{% endfor %}")
    assert render(model, "How?", NONE).text == "How?"
    with pytest.raises(
        ChatTemplateError, match=r"changes or repeats the query 'This.that', or .*: leave it out, or pass"
    ):
        render(model, "This|that", NONE)


def test_half_a_character_in_a_prompt_is_the_prompts(tiny_llama: ChatModel) -> None:
    with pytest.raises(PromptError, match="The text of prompt 'p' holds half a character"):
        render(tiny_llama, "Hi.", SafetyPrompt(name="p", text="Be kind \ud83d."))
