"""One family of each kind, tiny and random, saved and loaded, against plain transformers; docs/models.md has them
all."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.benchmark import benchmark
from helpers.tiny import ROOT, byte_tokenizer, random_llama
from torch import nn

import drolab
from drolab.errors import ModelError
from drolab.models import wrap

families = benchmark("families")
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")

KINDS = {
    # also sees or hears, under classes that AutoModelForCausalLM does not know
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava", "internvl", "voxtral"), "right"),
    # also sees, where AutoModelForCausalLM knows the whole or loads the text alone
    **dict.fromkeys(("gemma3", "llama4", "mllama", "qwen3_5"), "right"),
    # the decoder is somewhere else
    **dict.fromkeys(("llama4_text", "modernbert-decoder", "gptj", "deepseek_v3"), "right"),
    # embeddings by token id, several streams
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma3n_text", "hy_v4"), "part"),
    # encoder and decoder, sees ahead, needs an image
    **dict.fromkeys(("t5gemma2", "bert", "paligemma", "blip-2"), "refused"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_a_family(name: str) -> None:
    found = families.outcome_of(name)
    assert found.kind == KINDS[name], found
    assert (found.layers == "last") == (name in ("gemma3n_text", "hy_v4"))
    assert bool(found.no_dro) == (name in ("gemma4", "gemma4_text", "gemma3n_text"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gemma_4_without_embeddings_by_token_id_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger ones have none."""
    special = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    monkeypatch.setitem(families.SPECIAL, "gemma4_text", special)
    assert families.outcome_of("gemma4_text").kind == "right"


def test_where_an_image_of_another_chat_has_moved_positions_to_is_forgotten() -> None:
    model = families.tiny("qwen2_vl")
    model.set_attn_implementation("eager")  # which reads a cache for each row
    chat_model = wrap(model, families.byte_tokenizer(), name="seen", chat_template="chatml")
    options = {"n_samples": 1, "do_sample": False, "max_new_tokens": 4, "progress": False}
    before = drolab.generate(chat_model, families.queries(), families.CARE, **options)["response"].tolist()
    model.model.rope_deltas = torch.tensor([[-7]])
    assert drolab.generate(chat_model, families.queries(), families.CARE, **options)["response"].tolist() == before
    model.model.rope_deltas = torch.zeros(3, 1, dtype=torch.long)
    assert drolab.generate(chat_model, families.queries(), families.CARE, **options)["response"].tolist() == before


def rows(title: str) -> dict[str, str]:
    """Family → its row, in the table of the page below this text."""
    part = PAGE[PAGE.index(title) :].split("\n\n")[1]
    return {
        match[1]: match[0] for match in re.finditer(r"^\| ([\w.-]+) \|.*$", part, re.MULTILINE) if match[1] != "family"
    }


def test_the_page_is_a_sweep() -> None:
    right, part, refused = rows("families are right in all"), rows("Right in part:"), rows("Refused when they")
    assert len(right) >= 70
    assert (
        f"{len(right)} families are right in all, {len(part)} in part, {len(refused)} are refused, 0 are wrong." in PAGE
    )
    for name, kind in KINDS.items():
        assert name in {"right": right, "part": part, "refused": refused}[kind], name
    images = set(families.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert len(images & set(right)) >= 30


# --- controls: what the check at loading must find out -----------------------------------------------------


def test_a_decoder_that_computes_something_else_inside_the_model_is_refused() -> None:
    model = random_llama()
    inner = model.model.forward
    model.model.forward = lambda *args, input_ids=None, inputs_embeds=None, **options: inner(  # type: ignore[method-assign]
        inputs_embeds=1.01 * model.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds,
        **options,
    )
    with pytest.raises(ModelError, match="computes other states by itself than inside the model"):
        wrap(model, byte_tokenizer(), name="other", chat_template="chatml")


def test_a_decoder_that_sees_ahead_is_refused() -> None:
    model = random_llama()
    norm = model.model.norm.forward
    model.model.norm.forward = lambda states: norm(states + states.flip(1))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"tokens see those that come after them.*use a decoder-only chat model"):
        wrap(model, byte_tokenizer(), name="ahead", chat_template="chatml")


def test_a_layer_that_loses_the_gradient_is_refused_for_dro_alone() -> None:
    from drolab.models import check_trainable, forward_states

    model = random_llama()

    class Cut(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states).detach()

    down = model.model.layers[1].mlp.down_proj
    cut = Cut(down.in_features, down.out_features, bias=False)
    cut.weight = down.weight
    chat_model = wrap(model, byte_tokenizer(), name="fine", chat_template="chatml")
    check_trainable(chat_model.model, "fine")
    model.model.layers[1].mlp.down_proj = cut
    with pytest.raises(ModelError, match=r"No gradient comes back through .*'cut' \(Cut of Parameter, 1 of them\)"):
        check_trainable(chat_model.model, "cut")
    assert forward_states(chat_model, chat_model.embed(torch.tensor([5, 6])), [[7, 8]]).isfinite().all()
