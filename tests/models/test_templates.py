"""Oddities of chat templates: each with what is written, or why it is refused, and what the audit says of it.

The templates are ours and minimal; what they do was seen in templates of real models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from drolab import export, load_model
from drolab.errors import ChatTemplateError, ModelError, PromptError
from drolab.models import ChatModel, about_none, audit, baselines, encode, own_text, prepended, render, wrap
from drolab.models.templates import DATE, open_template
from drolab.types import SafetyPrompt, SoftPrompt

QUERY, TEXT = "How do I mend a fence?", "Be careful."
NONE, EMPTY, OWN = (SafetyPrompt(name=name, text="") for name in ("none", "empty", "own"))
CARE = SafetyPrompt(name="care", text=TEXT)
LLAMA = random_llama()

TURN = "<{{ m.role }}>{{ m.content }}<end>"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<assistant>{% endif %}"
U = f"<user>{QUERY}<end>"
S = f"<system>{TEXT}<end>"
DEFAULT = "{% if messages[0].role != 'system' %}<system>You are Rosa, made by Botanics.<end>{% endif %}" + TURNS + BEGIN
"""With a system text of its own where none is given."""
ROSA = "<system>You are Rosa, made by Botanics.<end>"
FALSY = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "<system>{{ system or 'You are Rosa, made by Botanics.' }}<end>"
    "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + BEGIN
)
"""An empty system text counts as none."""
SWITCH = TURNS + (
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template, what it is told, and what must come of it."""

    jinja: str
    none: str | None = U + "<assistant>"
    """The chat without a prompt; None where there is none."""
    care: str | None = S + U + "<assistant>"
    """The chat under a prompt."""
    refused: str = ""
    """What the error says where there is no chat."""
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Check → its status, and what is found (a pattern)."""
    told: dict[str, Any] = field(default_factory=dict)
    """For `wrap`."""


ROLES = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
CASES = {
    # --- the system text
    "plain": Case(TURNS + BEGIN, rows={"own system text": ("ok", "^none"), "system kept verbatim": ("ok", "kept")}),
    "own text": Case(
        DEFAULT,
        none=ROSA + U + "<assistant>",
        rows={"own system text": ("note", '^without a prompt: "You are Rosa, made by Botanics."$')},
    ),
    "own text that asks for safety": Case(
        DEFAULT.replace("made by Botanics", "and decline what is harmful"),
        none=ROSA.replace("made by Botanics", "and decline what is harmful") + U + "<assistant>",
        rows={"own system text": ("problem", "decline what is harmful")},
    ),
    "own text of one word": Case(
        DEFAULT.replace("You are Rosa, made by Botanics.", "Assist"),
        none=f"<system>Assist<end>{U}<assistant>",
        rows={"own system text": ("note", '^without a prompt: "Assist"$')},
    ),
    "own text of another script": Case(
        DEFAULT.replace("You are Rosa, made by Botanics.", "你是一个园艺助手。"),
        none=f"<system>你是一个园艺助手。<end>{U}<assistant>",
        rows={"own system text": ("note", "你是一个园艺助手")},
    ),
    "own text, also for an empty one": Case(
        FALSY,
        none=ROSA + U + "<assistant>",
        rows={"own system text": ("note", "^without"), "empty system text": ("ok", "left empty by drolab")},
    ),
    "own text in every chat": Case(
        "Knowledge ends in May 2023.\n" + TURNS + BEGIN,
        none=f"Knowledge ends in May 2023.\n{U}<assistant>",
        care=f"Knowledge ends in May 2023.\n{S}{U}<assistant>",
        rows={"own system text": ("note", '^in every chat: "Knowledge ends in May 2023."$')},
    ),
    "own text before the prompt's": Case(
        "<system>Knowledge ends in May 2023.\n\n{% if messages[0].role == 'system' %}{{ messages[0].content }}"
        "{% endif %}<end>{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + BEGIN,
        none=f"<system>Knowledge ends in May 2023.\n\n<end>{U}<assistant>",
        care=f"<system>Knowledge ends in May 2023.\n\n{TEXT}<end>{U}<assistant>",
        rows={"own system text": ("note", "^in every chat")},
    ),
    "own text with a prompt only": Case(
        "{% if messages[0].role == 'system' %}You have been given these rules.\n{% endif %}" + TURNS + BEGIN,
        care=f"You have been given these rules.\n{S}{U}<assistant>",
        rows={"own system text": ("note", "^with any prompt: .*these rules")},
    ),
    "own text as well as replaced text": Case(
        "Knowledge ends in May 2023.\n" + DEFAULT,
        none=f"Knowledge ends in May 2023.\n{ROSA}{U}<assistant>",
        care=f"Knowledge ends in May 2023.\n{S}{U}<assistant>",
        rows={"own system text": ("note", "^without a prompt: .*Rosa.*; in every chat: .*May")},
    ),
    "own text without marks": Case(
        "{{ 'A chat with Rosa, who gardens.' if messages[0].role != 'system' else messages[0].content }}\n"
        "{% for m in messages if m.role == 'user' %}USER: {{ m.content }}\n{% endfor %}ASSISTANT:",
        none=f"A chat with Rosa, who gardens.\nUSER: {QUERY}\nASSISTANT:",
        care=f"{TEXT}\nUSER: {QUERY}\nASSISTANT:",
        rows={
            "own system text": ("note", "^without a prompt: .A chat with Rosa, who gardens"),
            "thinking": ("ok", "no sign"),
        },
    ),
    "own text that no prompt replaces": Case(
        "<system>You are Rosa, made by Botanics.<end>{% for m in messages if m.role == 'user' %}"
        + TURN
        + "{% endfor %}"
        + BEGIN,
        none=ROSA + U + "<assistant>",
        care=None,
        refused="drops the system message, so no safety prompt can arrive: pass load_model.*system_as='first_user'",
        rows={
            "system kept verbatim": ("problem", "it drops the system message"),
            "own system text": ("note", "^in every chat: .*Rosa"),
            "empty system text": ("problem", "cannot be left out"),
        },
    ),
    "empty system turn in any case": Case(
        "{% if messages[0].role != 'system' %}<system><end>{% endif %}" + TURNS + BEGIN,
        none=f"<system><end>{U}<assistant>",
        rows={"own system text": ("ok", "^none"), "empty system text": ("ok", "the same chat as without a prompt")},
    ),
    "system text in the user's turn": Case(
        "{% set s = namespace(t='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set s.t = m.content + '\\n' %}{% else %}"
        "<user>{{ s.t }}{{ m.content }}<end>{% endif %}{% endfor %}" + BEGIN,
        care=f"<user>{TEXT}\n{QUERY}<end><assistant>",
        rows={"system kept verbatim": ("note", "in the user's turn, with nothing but blanks")},
    ),
    "system text behind the query": Case(
        "{% for m in messages if m.role == 'user' %}" + TURN + "{% endfor %}"
        "{% for m in messages if m.role == 'system' %}" + TURN + "{% endfor %}" + BEGIN,
        care=U + S + "<assistant>",
        rows={"prefix shared": ("problem", "the query comes before the prompt")},
    ),
    "system text in the user's turn, behind the query": Case(
        "<user>{{ messages[-1].content }}{% if messages[0].role == 'system' %}"
        "{{ '\\n\\n(' + messages[0].content + ')' }}{% endif %}<end>" + BEGIN,
        care=f"<user>{QUERY}\n\n({TEXT})<end><assistant>",
        rows={"prefix shared": ("problem", "the query comes before")},
    ),
    "system role of another name": Case(
        TURNS.replace("m.role", "{'system': 'developer'}.get(m.role, m.role)") + BEGIN,
        care=f"<developer>{TEXT}<end>{U}<assistant>",
    ),
    "no system role": Case(
        ROLES + TURN + "{% endfor %}" + BEGIN,
        care=None,
        refused=r"rejects a system message \(no system role\): pass load_model\(…, system_as='first_user'\)",
        rows={
            "system kept verbatim": ("problem", "rejects a system message"),
            "empty system text": ("ok", "the same chat as without a prompt"),
        },
    ),
    "no system role, put before the query": Case(
        ROLES + TURN + "{% endfor %}" + BEGIN,
        care=f"<user>{TEXT}\n\n{QUERY}<end><assistant>",
        told={"system_as": "first_user"},
        rows={"system kept verbatim": ("note", "in the user's turn, with nothing but blanks before the query")},
    ),
    "roles must alternate": Case(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}" + TURN + "{% endfor %}" + BEGIN,
        care=None,
        refused="rejects a system message .roles must alternate",
        rows={"system kept verbatim": ("problem", "roles must alternate")},
    ),
    "a system message must be there": Case(
        "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
        + TURNS
        + BEGIN,
        none=None,
        refused="cannot render a user message .begin with a system message",
        rows={
            "system kept verbatim": ("problem", "without one it cannot render .* .begin with a system message"),
            "empty system text": ("ok", "as the template writes it"),
            "generation prompt": ("ok", "<assistant>"),
        },
    ),
    "drops the system message": Case(
        "{% for m in messages if m.role == 'user' %}" + TURN + "{% endfor %}" + BEGIN,
        care=None,
        refused="drops the system message",
        rows={"system kept verbatim": ("problem", "drops"), "prefix shared": ("ok", "share the")},
    ),
    "drops the system message, told to put it first": Case(
        "{% for m in messages if m.role == 'user' %}" + TURN + "{% endfor %}" + BEGIN,
        care=f"<user>{TEXT}\n\n{QUERY}<end><assistant>",
        told={"system_as": "first_user"},
    ),
    "repeats the system message": Case(
        TURNS + "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + BEGIN,
        care=None,
        refused="repeats the system message",
        rows={"system kept verbatim": ("problem", "repeats")},
    ),
    "cuts the system message": Case(
        TURNS.replace("m.content", "m.content[:40]") + BEGIN,
        rows={"system kept verbatim": ("problem", "changes or repeats the text")},
    ),
    "cuts it to a word": Case(
        "{% for m in messages %}<{{ m.role }}>{{ m.content[:3] if m.role == 'system' else m.content }}<end>{% endfor %}"
        + BEGIN,
        care=None,
        refused="drops the system message",
    ),
    "its length beside it": Case(
        "{% if messages[0].role == 'system' %}({{ messages[0].content | length }}){% endif %}" + TURNS + BEGIN,
        care=None,
        refused="changes or repeats the text of prompt 'care'",
        rows={"system kept verbatim": ("problem", "changes")},
    ),
    # --- the texts
    "trims": Case(
        TURNS.replace("m.content", "m.content | trim") + BEGIN,
        rows={"query kept verbatim": ("ok", "around it are trimmed")},
    ),
    "upper case": Case(
        TURNS.replace("m.content", "m.content | upper") + BEGIN, None, None, refused="changes the query: pass"
    ),
    "capitalises the query": Case(
        "{% for m in messages %}<{{ m.role }}>{{ m.content | capitalize if m.role == 'user' else m.content }}<end>"
        "{% endfor %}" + BEGIN,
        None,
        None,
        refused="changes the query",
    ),
    "one blank for several": Case(
        TURNS.replace("m.content", "m.content.split() | join(' ')") + BEGIN,
        rows={"query kept verbatim": ("problem", "blanks in it"), "system kept verbatim": ("problem", "blanks in it")},
    ),
    "HTML escapes": Case(
        TURNS.replace("m.content", "m.content | e") + BEGIN,
        rows={"query kept verbatim": ("problem", "signs such as <")},
    ),
    "JSON": Case(
        TURNS.replace("m.content", "m.content | tojson") + BEGIN,
        none=f'<user>"{QUERY}"<end><assistant>',
        care=f'<system>"{TEXT}"<end><user>"{QUERY}"<end><assistant>',
        rows={"query kept verbatim": ("problem", "blanks in it, signs")},
    ),
    "ASCII": Case(
        TURNS.replace("m.content", "(m.content | urlencode).replace('%20', ' ').replace('%3F', '?')") + BEGIN,
        rows={"query kept verbatim": ("problem", "other scripts")},
    ),
    "truncates": Case(
        TURNS.replace("m.content", "m.content | truncate(4000)") + BEGIN,
        rows={"query kept verbatim": ("problem", "if there is in it: twenty thousand letters$")},
    ),
    "the query twice": Case(
        TURNS + "{{ messages[-1].content }}" + BEGIN, None, None, refused="repeats the query: pass"
    ),
    "no query": Case(
        "{% for m in messages if m.role == 'system' %}" + TURN + "{% endfor %}" + BEGIN,
        None,
        None,
        refused="drops the query",
    ),
    "parts, which a text has not": Case(
        TURNS.replace("{{ m.content }}", "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}") + BEGIN
    ),
    "parts of the user's only": Case(
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'system' %}{{ m.content + '' }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}<end>{% endfor %}" + BEGIN
    ),
    "the first part only": Case(TURNS.replace("m.content", "m.content[0].text") + BEGIN),
    "parts or texts": Case(
        TURNS.replace(
            "{{ m.content }}",
            "{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
        )
        + BEGIN
    ),
    # --- switches in the text
    "/no_think in the text": Case(
        "{% set ns = namespace(off=false) %}{% for m in messages %}{% if '/no_think' in m.content %}"
        "{% set ns.off = true %}{% endif %}"
        "<{{ m.role }}>{{ m.content.replace('/no_think', '').strip() }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% if ns.off %}<think></think>{% endif %}{% endif %}",
        rows={
            "query kept verbatim": ("note", "if there is in it: /no_think$"),
            "system kept verbatim": ("note", "/no_think"),
            "thinking": ("note", "words in the text"),
        },
    ),
    "a switch that stays in the text": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>{% if '/think' in messages[-1].content %}<think>{% endif %}"
        "{% endif %}",
        rows={"query kept verbatim": ("note", "if there is in it: /think$")},
    ),
    # --- thinking
    "thinking by a switch": Case(
        SWITCH,
        rows={
            "thinking": ("note", "^optional; off by template_kwargs={'enable_thinking': False}"),
            "last token": ("note", "perhaps with a thought"),
        },
    ),
    "thinking switched off": Case(
        SWITCH,
        none=U + "<assistant><think>\n\n</think>",
        care=S + U + "<assistant><think>\n\n</think>",
        told={"template_kwargs": {"enable_thinking": False}},
        rows={
            "thinking": (
                "note",
                "^optional; the chat has an empty thought.*on by template_kwargs={'enable_thinking': True}",
            ),
            "last token": ("ok", "the answer begins behind it"),
            "template_kwargs": ("ok", "enable_thinking=False"),
        },
    ),
    "thinking always": Case(
        TURNS + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}",
        none=U + "<assistant><think>\n",
        care=S + U + "<assistant><think>\n",
        rows={
            "thinking": ("note", '^always; the chat opens a thought: "<think>'),
            "last token": ("note", "inside a thought"),
        },
    ),
    "thinking on unless switched off": Case(
        TURNS + "{% if add_generation_prompt %}<assistant><think>{% if thinking is defined and not thinking %}"
        "</think>{% endif %}{% endif %}",
        none=U + "<assistant><think>",
        care=S + U + "<assistant><think>",
        rows={"thinking": ("note", "^optional; the chat opens.*off by template_kwargs={'thinking': False}")},
    ),
    "thinking off unless switched on": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>{{ '<think>' if thinking else '</think>' }}{% endif %}",
        none=U + "<assistant></think>",
        care=S + U + "<assistant></think>",
        rows={"thinking": ("note", "^optional; the chat has.*on by template_kwargs={'thinking': True}")},
    ),
    "thinking in steps": Case(
        "{% if effort_of_reasoning == 'high' %}Think long and hard.\n{% endif %}" + TURNS + BEGIN,
        rows={"thinking": ("note", "on by template_kwargs={'effort_of_reasoning': 'high'}")},
    ),
    "thinking by a budget": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>{% if thinking_budget is defined and thinking_budget == 0 %}"
        "<seed:think></seed:think>{% endif %}{% endif %}",
        rows={"thinking": ("note", "off by template_kwargs={'thinking_budget': 0}")},
    ),
    "thinking in words": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>\nHere are my reasoning steps:\n{% endif %}",
        none=U + "<assistant>\nHere are my reasoning steps:\n",
        care=S + U + "<assistant>\nHere are my reasoning steps:\n",
        rows={"thinking": ("note", "opens a thought: .*reasoning steps"), "last token": ("note", "inside")},
    ),
    "thinking that only past replies show": Case(
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<end>{% endfor %}" + BEGIN,
        rows={"thinking": ("note", "may begin a thought itself"), "last token": ("note", "perhaps with a thought")},
    ),
    "marks of an unknown family": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>[DEEP_THINKING]{% endif %}",
        none=U + "<assistant>[DEEP_THINKING]",
        care=S + U + "<assistant>[DEEP_THINKING]",
        rows={"thinking": ("problem", "^always"), "last token": ("note", "inside a thought")},
    ),
    "channels": Case(
        TURNS.replace("<{{ m.role }}>", "<|start|>{{ m.role }}<|message|>").replace("<end>", "<|end|>")
        + "{% if m is defined %}<|channel|>final{% endif %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        none=f"<|start|>user<|message|>{QUERY}<|end|><|start|>assistant",
        care=f"<|start|>system<|message|>{TEXT}<|end|><|start|>user<|message|>{QUERY}<|end|><|start|>assistant",
        rows={"thinking": ("note", "^always"), "last token": ("note", "names a channel next")},
    ),
    # --- the beginning and the end
    "BOS twice": Case(
        "{{ bos_token }}{{ bos_token }}" + TURNS + BEGIN,
        none=f"<s><s>{U}<assistant>",
        care=f"<s><s>{S}{U}<assistant>",
        rows={"BOS once": ("problem", "^2 times")},
    ),
    "BOS once": Case(
        "{{ bos_token }}" + TURNS + BEGIN,
        none=f"<s>{U}<assistant>",
        care=f"<s>{S}{U}<assistant>",
        rows={"BOS once": ("ok", "^once, <s>")},
    ),
    "BOS opens every turn": Case(
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
        none=f"<s>user\n{QUERY}<end><s>assistant\n",
        care=f"<s>system\n{TEXT}<end><s>user\n{QUERY}<end><s>assistant\n",
        rows={"BOS once": ("ok", "what a turn begins with")},
    ),
    "BOS in the middle": Case(
        "{% for m in messages %}{{ bos_token if m.role == 'user' }}" + TURN + "{% endfor %}" + BEGIN,
        none=f"<s>{U}<assistant>",
        care=f"{S}<s>{U}<assistant>",
        rows={"BOS once": ("problem", "not first")},
    ),
    "no generation prompt": Case(
        TURNS, none=U, care=S + U, rows={"generation prompt": ("problem", "nothing begins the reply")}
    ),
    "the switch of the generation prompt is ignored": Case(
        TURNS + "<assistant>", rows={"generation prompt": ("ok", "no switch for it")}
    ),
    "the reply follows the user's turn": Case(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% else %}[INST] {{ m.content }} [/INST]"
        "{% endif %}{% endfor %}",
        none=f"[INST] {QUERY} [/INST]",
        care=f"[INST] {TEXT} [/INST][INST] {QUERY} [/INST]",
        rows={"generation prompt": ("ok", "no switch for it")},
    ),
    "ends with EOS": Case(
        TURNS + "{{ eos_token }}",
        none=U + "</s>",
        care=S + U + "</s>",
        rows={"generation prompt": ("problem", "the chat ends with </s>")},
    ),
    "EOS unless the reply begins": Case(
        TURNS + "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}",
        rows={"generation prompt": ("ok", '^"<assistant>"$')},
    ),
    "another header than in replies": Case(
        TURNS + "{% if add_generation_prompt %}<model>{% endif %}",
        none=U + "<model>",
        care=S + U + "<model>",
        rows={"generation prompt": ("note", "a reply is written behind .*<assistant>")},
    ),
    # --- dates and other things that are read
    "today's date": Case(
        "{{ strftime_now('%d %b %Y') }}\n" + TURNS + BEGIN,
        none=f"26 Jul 2024\n{U}<assistant>",
        care=f"26 Jul 2024\n{S}{U}<assistant>",
        rows={"date": ("note", "told 26 July 2024 on every day")},
    ),
    "another date": Case(
        "{{ strftime_now('%A, %-d.%m.%y (%j) 100 %%') }}\n" + TURNS + BEGIN,
        none=f"Sunday, 5.01.25 (005) 100 %\n{U}<assistant>",
        care=f"Sunday, 5.01.25 (005) 100 %\n{S}{U}<assistant>",
        told={"date": "2025-01-05"},
        rows={"date": ("ok", "told 05 January 2025")},
    ),
    "yesterday": Case(
        "{{ (strftime_now('%d') | int) - 1 }}.\n" + TURNS + BEGIN,
        none=f"25.\n{U}<assistant>",
        care=f"25.\n{S}{U}<assistant>",
    ),
    "a date that can be told": Case(
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}\n" + TURNS + BEGIN,
        none=f"1 May\n{U}<assistant>",
        care=f"1 May\n{S}{U}<assistant>",
        told={"template_kwargs": {"date_string": "1 May"}},
        rows={"date": ("ok", "template_kwargs may give date_string"), "template_kwargs": ("ok", "date_string='1 May'")},
    ),
    "a part in the template's own words": Case(
        "Answer with {'type': 'text', 'text': '…'}.\n" + TURNS + BEGIN,
        none="Answer with {'type': 'text', 'text': '…'}.\n" + U + "<assistant>",
        care="Answer with {'type': 'text', 'text': '…'}.\n" + S + U + "<assistant>",
    ),
    "tools that must be there": Case(
        "{% for t in tools %}{{ t }}{% endfor %}" + TURNS + BEGIN,
        None,
        None,
        refused=r"cannot render a user message .*wants template_kwargs=\{'tools': \[\]\}",
    ),
    "no tools, said": Case(
        "{% for t in tools %}{{ t }}{% endfor %}" + TURNS + BEGIN, told={"template_kwargs": {"tools": []}}
    ),
    "another text each time": Case(
        "{{ range(10 ** 9) | random if false else lipsum(n=1, min=5, max=9) }}" + TURNS + BEGIN,
        None,
        None,
        refused="changes or repeats the query",
    ),
}


def model_of(case: Case) -> ChatModel:
    return wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=case.jinja, **case.told)


def written(model: ChatModel, prompt: SafetyPrompt, expected: str | None, refused: str) -> None:
    """The chat is as expected, with the prompt in its span and the query in it once; or it is refused."""
    if expected is None:
        with pytest.raises(ChatTemplateError, match=refused):
            render(model, QUERY, prompt)
        return
    chat = render(model, QUERY, prompt)
    assert chat.text == expected
    assert chat.text.count(QUERY) == 1
    assert (chat.prompt_span is None) == (prompt is NONE)
    if chat.prompt_span is not None:
        assert model.tokenizer.decode(chat.input_ids[slice(*chat.prompt_span)]) == TEXT


@pytest.mark.parametrize("name", CASES)
def test_an_oddity_is_written_right_or_refused(name: str) -> None:
    case = CASES[name]
    model = model_of(case)
    written(model, NONE, case.none, case.refused)
    written(model, CARE, case.care, case.refused)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rows])
def test_the_audit_says_so(name: str) -> None:
    case = CASES[name]
    table = audit(model_of(case)).set_index("check")
    assert set(table["status"]) <= {"ok", "note", "problem"}
    for check, (status, found) in case.rows.items():
        row = table.loc[check]
        assert (row.status, re.search(found, row.found) is not None) == (status, True), row.found
        assert row.means or status == "ok"  # a note says what it means


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights cannot be read: a template that is refused is refused before that."""
    path = tmp_path_factory.mktemp("odd")
    LLAMA.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    (path / "model.safetensors").write_bytes(b"nothing")
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_template_that_writes_no_chat_at_all_is_found_out_at_load(name: str, folder: Path) -> None:
    case = CASES[name]
    expected = "weights file" if case.none or case.care else case.refused.replace(" or repeats the query", "")
    with pytest.raises(ModelError, match=expected) as caught:
        load_model(folder, chat_template=case.jinja, **case.told)
    assert isinstance(caught.value, ChatTemplateError) == (case.none is None and case.care is None)
    if case.none or case.care:
        return
    assert ": pass load_model(…, chat_template=…)" in str(caught.value)
    with pytest.raises(ModelError, match="weights file"):
        load_model(folder, chat_template=case.jinja, chats=False, **case.told)


NOT_BEFORE = {
    "system text behind the query": "writes the system text behind the query",
    "system text in the user's turn, behind the query": "writes the system text behind the query",
    "HTML escapes": "changes .* the text of prompt 'soft'",
    "ASCII": "changes .* the text of prompt 'soft'",
}
"""Those under which no soft prompt stands before a chat."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.care])
def test_a_tokenizer_for_the_rest_writes_what_the_oddity_writes(name: str) -> None:
    model, soft = model_of(CASES[name]), SoftPrompt(name="soft", embeddings=torch.zeros(3, 32))
    if name in NOT_BEFORE:
        with pytest.raises(ChatTemplateError, match=NOT_BEFORE[name]):
            prepended(model, soft)
        return
    chat, form = render(model, QUERY, soft), prepended(model, soft)
    asked = [{"type": "text", "text": QUERY}] if model.template.in_parts[1] else QUERY
    text = form.tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
    )
    assert form.ids + tuple(form.tokenizer(text)["input_ids"]) == chat.input_ids
    assert form.slot == chat.prompt_span


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


# --- baselines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "empty"),
    [
        (DEFAULT, f"<system><end>{U}<assistant>"),  # as the template writes it
        (FALSY, f"<system><end>{U}<assistant>"),  # cut out: the template would write its own
        (TURNS + BEGIN, f"<system><end>{U}<assistant>"),
        (CASES["no system role"].jinja, f"{U}<assistant>"),  # there is none that could be empty
    ],
)
def test_an_empty_system_text(jinja: str, empty: str) -> None:
    chat = render(wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=jinja), QUERY, EMPTY)
    assert (chat.text, chat.prompt_span) == (empty, None)


@pytest.mark.parametrize("jinja", [DEFAULT, FALSY])
def test_the_own_text_is_a_prompt(jinja: str) -> None:
    model = wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=jinja)
    own, none = render(model, QUERY, OWN), render(model, QUERY, NONE)
    assert (own.text, own.input_ids) == (none.text, none.input_ids)
    assert own.prompt_span is not None
    assert none.prompt_span is None
    assert model.tokenizer.decode(own.input_ids[slice(*own.prompt_span)]) == own_text(model)
    assert own_text(model) == "You are Rosa, made by Botanics."
    said = SafetyPrompt(name="said", text=own_text(model))
    assert render(model, QUERY, said).text == none.text


def test_no_own_text(tiny_llama: ChatModel) -> None:
    with pytest.raises(
        PromptError, match="writes no system text of its own in a prompt's place: leave the prompt 'own'"
    ):
        render(tiny_llama, QUERY, OWN)


def test_an_own_text_that_cannot_be_left_out() -> None:
    with pytest.raises(ChatTemplateError, match="drops the system message"):
        render(model_of(CASES["own text that no prompt replaces"]), QUERY, EMPTY)


def test_baselines_and_what_is_said_of_none(tiny_llama: ChatModel) -> None:
    assert (list(baselines(tiny_llama)), about_none(tiny_llama)) == (["none"], "")
    model = model_of(CASES["own text as well as replaced text"])
    assert baselines(model) == {"none": NONE, "empty": EMPTY}
    assert about_none(model) == (
        "`none` is the model's own system text, “You are Rosa, made by Botanics.”; a prompt takes its place. "
        "Beside every prompt the chat has “Knowledge ends in May 2023.”."
    )
    described = export.about(model)["model"]
    assert described["own_system_text"] == "You are Rosa, made by Botanics."
    assert "template" not in described
    told = export.about(model_of(CASES["thinking switched off"]))["model"]
    assert told["template"] == {"enable_thinking": False}


def test_a_soft_prompt_before_the_query() -> None:
    soft = SoftPrompt(name="soft", embeddings=torch.zeros(3, 32))
    model = model_of(CASES["no system role, put before the query"])
    chat = render(model, QUERY, soft)
    assert chat.text == f"<user></s></s></s>\n\n{QUERY}<end><assistant>"
    assert chat.prompt_span == (6, 9)
    assert encode(model, [QUERY, "Why?"], soft).span == (6, 9)


# --- what is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "told", "problem"),
    [
        (SWITCH, {"template_kwargs": {"thinking": False}}, "never reads 'thinking': .* it reads enable_thinking"),
        (SWITCH, {"template_kwargs": {"messages": []}}, "never reads 'messages'"),
        (SWITCH, {"template_kwargs": {"tokenize": True}}, "never reads 'tokenize'"),
        (SWITCH, {"template_kwargs": {"enable_thinking": object()}}, "must be what JSON can hold"),
        (TURNS, {"template_kwargs": {"m": 1}}, "never reads 'm': .* it reads nothing"),
        (TURNS, {"date": "2025-01-31"}, "does not ask for today's date"),
        (TURNS, {"date": "31 January"}, "'31 January' is no date: write it as '2025-01-31'"),
        (TURNS, {"system_as": "user"}, "None or 'first_user', got 'user'"),
        (
            "{% set role = 'x' %}" + TURNS + "{{ role }}",
            {"template_kwargs": {"role": "y"}},
            "never reads 'role'",
        ),
        (
            TURNS + "{% if enable_thinking %}{% endif %}<think>",
            {"template_kwargs": {"enable_thinking": False}},
            "cannot be switched off so: .* reads 'enable_thinking', but opens a thought all the same",
        ),
        (
            TURNS + "{% if enable_thinking %}{% endif %}",
            {"template_kwargs": {"enable_thinking": False}},
            "but writes the same chat whatever it is",
        ),
        (
            "{% if effort not in ['low', 'high'] %}{{ raise_exception('no such effort') }}{% endif %}" + TURNS,
            {"template_kwargs": {"effort": "much"}},
            r"no such effort; template_kwargs=\{'effort': 'much'\}",
        ),
        (
            CASES["thinking always"].jinja,
            {"template_kwargs": {"enable_thinking": False}},
            "never reads 'enable_thinking': .* It has thinking always on, without a switch",
        ),
        ("{% for m in messages %}{{ m.content }", {}, r"cannot be read: .*line 1.*: ?|cannot be read"),
        ("{{ messages | nonsense }}", {}, "cannot be read: No filter named 'nonsense'"),
    ],
)
def test_what_is_told_is_checked_at_load(jinja: str, told: dict[str, Any], problem: str) -> None:
    with pytest.raises(ChatTemplateError, match=problem):
        wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=jinja, **told)


def test_what_is_told_is_part_of_the_fingerprint() -> None:
    dated = "{{ strftime_now('%Y') }}" + SWITCH
    told = [
        {},
        {"template_kwargs": {"enable_thinking": False}},
        {"template_kwargs": {"enable_thinking": True}},
        {"system_as": "first_user"},
        {"date": "2025-01-31"},
        {"date": "2025-01-30"},
    ]
    prints = [wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=dated, **each).fingerprint for each in told]
    assert len(set(prints)) == len(told)
    again = wrap(LLAMA, byte_tokenizer(), name="odd", chat_template=dated, template_kwargs={}, system_as=None)
    assert again.fingerprint == prints[0]


def test_the_clock_is_not_asked() -> None:
    chat = render(model_of(CASES["today's date"]), QUERY, NONE)
    assert chat.text.startswith(f"{DATE:%d %b %Y}")


def test_templates_are_chosen_by_name() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": TURNS + BEGIN, "short": "{{ messages[-1].content }}:", "chatml": TURNS}
    assert render(wrap(LLAMA, tokenizer, name="m"), QUERY, NONE).text == U + "<assistant>"
    assert render(wrap(LLAMA, tokenizer, name="m", chat_template="short"), QUERY, NONE).text == QUERY + ":"
    assert render(wrap(LLAMA, tokenizer, name="m", chat_template="chatml"), QUERY, NONE).text == U  # its own first
    assert isinstance(tokenizer.chat_template, dict)
    with pytest.raises(ChatTemplateError, match="No chat format is called 'long'"):
        wrap(LLAMA, tokenizer, name="m", chat_template="long")
    tokenizer.chat_template = {"rag": TURNS, "tool_use": TURNS}
    with pytest.raises(
        ChatTemplateError, match=r"several chat templates and none .* default: pass .* one of rag, tool_use"
    ):
        wrap(LLAMA, tokenizer, name="m")


# --- a law -------------------------------------------------------------------------------------------------

CONTENTS = (
    "m.content",
    "m.content | trim",
    "m.content | upper",
    "m.content | e",
    "m.content | truncate(12)",
    "m.content.replace('e', 'e')",
    "m.content.split('a')[0]",
    "m.content + m.content",
    "m.content | tojson",
    "m.content | replace('/no_think', '')",
    "m.content | string | reverse",
    "m.content[:-1]",
    "''",
)
contents = st.sampled_from(CONTENTS)
literals = st.sampled_from(["", "<s>", "\n", "be ", "Be careful.", "fence?", "Rosa says: ", "[INST]", "dRolab0Query"])


@st.composite
def templates(draw: st.DrawFn) -> str:
    """What stands around system text and query, what is made of them, which comes first, and a default."""
    a, b, c, d = (draw(literals) for _ in range(4))
    turn = {role: f"{draw(literals)}{{{{ {draw(contents)} }}}}{draw(literals)}" for role in ("system", "user")}
    roles = draw(st.permutations(["system", "user"]))
    loops = [f"{{% for m in messages if m.role == '{role}' %}}{turn[role]}{{% endfor %}}" for role in roles]
    default = f"{{% if messages[0].role != 'system' %}}{b}{{% endif %}}"
    switch = "{% if 'a' in messages[-1].content %}" + draw(literals) + "{% endif %}"
    return a + default + c.join(loops) + draw(st.sampled_from(["", switch])) + d


texts = st.sampled_from(
    [QUERY, TEXT, "e", "be ", " Be careful. ", "a /no_think", "<b>", "Rosa", "x\n\ny", "INST", "aaa"]
)


@settings(max_examples=400, deadline=None)
@given(templates(), texts, texts, st.sampled_from([None, "first_user"]))
def test_both_texts_stand_in_their_places_or_it_is_an_error(
    jinja: str, query: str, text: str, system_as: str | None
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = jinja
    template = open_template(tokenizer, "odd", system_as=system_as)
    raw = tokenizer.apply_chat_template
    said = [{"role": "system", "content": text}, {"role": "user", "content": query}]
    if system_as:
        said = [{"role": "user", "content": f"{text}\n\n{query}"}]
    try:
        chat, place, span = template.chat(query, text, "p")
    except ChatTemplateError:
        return
    assert chat == raw(said, tokenize=False, add_generation_prompt=True)  # nothing is made up
    assert place is not None
    assert chat[slice(*place)].strip() == text.strip()
    assert chat[slice(*span)].strip() == query.strip()
    assert place[1] <= span[0] or span[1] <= place[0]
    # The rest is the same whatever the two texts are: neither is in it a second time, nor anything made of them.
    first, last = sorted([place, span])
    try:
        other, *spans = template.chat("Why?", "Think.", "p")
    except ChatTemplateError:
        return
    parts = sorted(spans)
    assert [chat[: first[0]], chat[first[1] : last[0]].strip(), chat[last[1] :].strip()] == [
        other[: parts[0][0]],
        other[parts[0][1] : parts[1][0]].strip(),
        other[parts[1][1] :].strip(),
    ]
