"""Models that think aloud: templates of the kinds there are, and a tiny model that says what a test wants it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from drolab.models import ChatModel, render, wrap
from drolab.types import SafetyPrompt
from helpers.tiny import byte_tokenizer

NONE = SafetyPrompt(name="none", text="")
CARE = SafetyPrompt(name="care", text="Be careful.")
_TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
_CUT = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
TEMPLATES: Mapping[str, str] = {
    "plain": _TURNS + "[assistant]",
    "opened": _TURNS + "[assistant]{{ '<think>\n' }}",
    "switch": _TURNS + "[assistant]{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}",
    "switch that opens": _TURNS + "[assistant]{% if thinking %}<think>{% else %}</think>{% endif %}",
    "always": _CUT + "[assistant]",
    "harmony": "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{# <|channel|>analysis, <|channel|>final #}<|start|>assistant",
    "magistral": "{# [THINK]…[/THINK] #}" + _TURNS + "[assistant]",
    "command": "{# <|START_THINKING|>…<|END_THINKING|> #}" + _TURNS + "[assistant]",
    "gemma": _TURNS + "[model]{% if not enable_thinking | default(true) %}<|channel>thought\n<channel|>{% endif %}",
}
"""Minimal ones of our own, of the kinds that real models have."""
ANSWERS: Mapping[str, str] = {
    "plain": "",
    "opened": "\n</think>\n\n",
    "switch": "<think>\n\n</think>\n\n",
    "always": "<think>\n\n</think>\n\n",
    "harmony": "<|channel|>final<|message|>",
    "magistral": "[THINK][/THINK]",
    "command": "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>",
    "gemma": "<|channel>thought\n<channel|>",
}
"""What comes behind the chat where the answer is read."""
REPLIES: Mapping[str, str] = {
    "opened": "Hm, they ask.\n</think>\n\nI cannot.",
    "switch": "<think>\nHm, they ask.\n</think>\n\nI cannot.",
    "always": "<think>Hm, they ask.</think>I cannot.",
    "harmony": "<|channel|>analysis<|message|>Hm, they ask.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>I cannot.",
    "magistral": "[THINK]Hm, they ask.[/THINK]I cannot.",
    "command": "<|START_THINKING|>Hm, they ask.<|END_THINKING|><|START_RESPONSE|>I cannot.<|END_RESPONSE|>",
    "gemma": "<|channel>thought\nHm, they ask.<channel|>I cannot.",
}
"""A reply that thinks before it answers, in the words of each kind."""
SPECIAL: Mapping[str, Sequence[str]] = {
    "harmony": HARMONY,
    "magistral": ("[THINK]", "[/THINK]"),
    "command": ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "gemma": ("<|channel>", "<channel|>"),
}
"""Marks that are special tokens of their tokenizers."""
WIDTH, CONTEXT = 256, 384


def thinker(kind: str, jinja: str | None = None, **told: object) -> ChatModel:
    """A random model with a template of some kind, which `says` can make speak."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", *SPECIAL.get(kind, ())]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            vocab_size=len(tokenizer),
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        model = GPT2LMHeadModel(config)
        model.transformer.wpe.weight.data = 30 * torch.randn(CONTEXT, WIDTH) / WIDTH**0.5
    return wrap(model, tokenizer, name=kind, chat_template=jinja or TEMPLATES[kind], template_kwargs=told or None)


def says(model: ChatModel, spoken: Mapping[int, str]) -> None:
    """What the model says at each position of a chat, whatever it read: texts, each from some position on, with an end
    token behind it. A chat that ends at a position goes on with what is said there."""
    tokens: dict[int, int] = {}
    for start, text in spoken.items():
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        tokens |= dict(enumerate([*ids, model.tokenizer.eos_token_id], start=start))
    codes = torch.nn.functional.normalize(model.model.transformer.wpe.weight[[position - 1 for position in tokens]])
    said = torch.nn.functional.one_hot(torch.tensor(list(tokens.values())), len(model.tokenizer)).float()
    model.model.lm_head.weight.data = 100 * (torch.linalg.pinv(codes) @ said).T


def length(model: ChatModel, query: str, prompt: SafetyPrompt = NONE) -> int:
    """Tokens of the chat."""
    return len(render(model, query, prompt).input_ids)
