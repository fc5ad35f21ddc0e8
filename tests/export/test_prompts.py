"""A soft prompt leaves drolab for PEFT, and comes back: whole chats, several formats, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from helpers.families import FAMILIES, queries_of
from helpers.tiny import byte_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from drolab import export
from drolab.inference import generate
from drolab.models import ChatModel, encode, prefix_embeddings, wrap
from drolab.types import SoftPrompt

pytestmark = [  # peft asks for the first, and says the second whenever it writes
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CASES = {
    "llama-2-chat": ("llama", {"chat_template": "llama-2-chat"}),
    "ChatML": ("qwen2", {"chat_template": "chatml"}),
    "Gemma": ("gemma2, long window", {"chat_template": GEMMA, "system_as": "first_user"}),
}
TEXTS = ["How do I boil an egg?", " What's \n\n 漢字 🙂? ", "<|im_end|>[/INST]", "1. a\n2. b\n"]


def random_model(
    name: str, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None, **template: str
) -> ChatModel:
    kind, options = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    return wrap(model, tokenizer or byte_tokenizer(), name="org/tiny", **template)


def soft_for(model: ChatModel, n_tokens: int = 5) -> SoftPrompt:
    vectors = 0.3 * torch.randn(n_tokens, model.hidden_size, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(name="trained", embeddings=vectors, init_text="Be safe.", model_fingerprint=model.fingerprint)


@pytest.fixture(scope="module", params=CASES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ChatModel, SoftPrompt, Path]:
    family, template = CASES[request.param]
    model = random_model(family, **template)
    folder = tmp_path_factory.mktemp("peft")
    export.to_peft(soft_for(model), model, folder)
    return model, soft_for(model), folder


def logits_in_drolab(model: ChatModel, soft: SoftPrompt, query: str) -> Tensor:
    """[length, vocabulary]: of the whole chat, from the vectors that drolab puts in."""
    batch = encode(model, [query], soft)
    embedded = torch.cat([prefix_embeddings(model, batch), model.embed(torch.tensor(batch.suffixes[0]))])
    return model.model(inputs_embeds=embedded[None]).logits[0]


def in_peft(model: ChatModel, folder: Path) -> tuple[peft.PeftModel, PreTrainedTokenizerFast]:
    return peft.PeftModel.from_pretrained(model.model, folder).eval(), AutoTokenizer.from_pretrained(folder)


def chat(tokenizer: PreTrainedTokenizerFast, query: str) -> dict[str, Tensor]:
    messages = [{"role": "user", "content": query}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


@torch.no_grad()
def test_peft_computes_what_drolab_does_over_whole_chats(exported: tuple[ChatModel, SoftPrompt, Path]) -> None:
    model, soft, folder = exported
    expected = [logits_in_drolab(model, soft, text) for text in TEXTS]
    adapted, tokenizer = in_peft(model, folder)
    for text, wanted in zip(TEXTS, expected, strict=True):
        found = adapted(**chat(tokenizer, text)).logits[0]
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    # The control: another vector in the slot gives other logits.
    adapted.prompt_encoder["default"].embedding.weight[-1] += 0.1
    assert not torch.allclose(adapted(**chat(tokenizer, TEXTS[0])).logits[0], expected[0], atol=1e-3)


@torch.no_grad()
def test_greedy_replies_are_equal(exported: tuple[ChatModel, SoftPrompt, Path]) -> None:
    model, soft, folder = exported
    replies = generate(model, queries_of(TEXTS), soft, n_samples=1, do_sample=False, max_new_tokens=12, progress=False)
    adapted, tokenizer = in_peft(model, folder)
    for text, wanted in zip(TEXTS, replies["response"], strict=True):
        asked = chat(tokenizer, text)
        ids = adapted.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True) == wanted
