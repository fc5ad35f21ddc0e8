"""Which families drolab reads rightly: each built tiny and random, saved, loaded, and compared with plain transformers.

    python benchmarks/families.py --only gemma    # families whose name holds this
    python benchmarks/families.py --write         # all of them, some minutes: the tables of docs/models.md

For each: the states of four chats at every layer, greedy replies of some tokens, and the gradient of one DRO step at
the soft prompt. *Plain* is the model as transformers built it, run on one whole chat at a time, with nothing shared.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import drolab
from drolab import dro
from drolab.errors import DrolabError, ModelError
from drolab.models import ChatModel, render
from drolab.models.kv_cache import can_read_in_place
from drolab.models.passes import can_pack, can_share_prefix
from drolab.types import SafetyPrompt

# --- tiny models -------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "padded_vocab_size"), 260),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "depth"), 2),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "hidden_size_per_layer_input"), 8
    ),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "attention_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "moe_topk", "top_k_experts", "moe_k"), 2),
    "rotary_dim": 4,
    "state_size": 4,
    "image_size": 28,
    "patch_size": 14,
    "mlp_ratio": 2,
    "num_channels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Field of a configuration → its value in a tiny model. What is not there keeps its default."""
IMAGE_TOKEN = 259
"""The last byte of the tokenizer, which no text has: what a configuration calls its image, video or audio tokens."""


def tiny_config(model_type: str) -> Any:
    cls = CONFIG_MAPPING[model_type]
    return cls(**_shrunk(cls, cls(), SPECIAL.get(model_type, {})))


def _shrunk(cls: type, default: Any, special: dict[str, Any]) -> dict[str, Any]:
    """The small values for a configuration and for those inside it; `special` ones last."""
    parts = getattr(cls, "sub_configs", None) or {}
    values: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if name in parts:
            part = getattr(default, name)
            kind = type(part) if part is not None else parts[name]
            if kind.__name__ == "AutoConfig":
                continue
            inner = special.get(name, {})
            values[name] = _shrunk(kind, part or kind(), inner) | (
                {"model_type": kind.model_type} if parts[name].__name__ == "AutoConfig" else {}
            )
        elif name in SIZES and isinstance(value, (int, float, list, tuple)):
            small = type(value)(SIZES[name]) if isinstance(value, (int, float)) else [SIZES[name]] * len(value)
            values[name] = small
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "mrope_section" in value:
            values[name] = value | {"mrope_section": [1, 1, 2]}
        elif name == "layer_types" and isinstance(value, list) and len(set(value)) > 1:
            values[name] = list(dict.fromkeys(value))[:2]
        elif value is None and name in ("head_dim", "num_key_value_heads"):
            values[name] = {"head_dim": 8, "num_key_value_heads": 4}[name]
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")):
            values[name] = IMAGE_TOKEN
    if "kv_lora_rank" in values:  # latent attention: keys and values for every head
        values["num_key_value_heads"] = 4
    return values | {name: value for name, value in special.items() if name not in parts}


MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
PART_MROPE = {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 1.0}}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
SHARED_LAYERS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
"""The last two layers attend to the keys of those before them."""
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {**SSM, "attn_layer_indices": [1]},
    "granitemoehybrid": {**SSM, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dots1": {"sliding_window": 64},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "hybrid_layer_ids": [1],
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "adapter_rank": 8,
        "kv_channels": 8,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "kimi_linear": {"num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 4},
    "mistral4": {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    "longcat_flash": {"zero_expert_num": 2, "expert_ffn_hidden_size": 16},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        },
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "axk1": {"n_group": 1, "topk_group": 1},
    "step3p7": {"text_config": {"sliding_window": 64, "layer_types": ["full_attention"] * 2}},
    "llama4": {"vision_config": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    "hunyuan_vl": {
        "text_config": {"rope_parameters": {"rope_type": "xdrope", "rope_theta": 1e4, "xdrope_section": [1, 1, 1, 1]}}
    },
    "granite4_vision": {"spatial_target_layers": [0, 1], "deepstack_layer_map": [[0, 0], [1, 1]]},
    "molmo2": {"adapter_config": {"vision_feature_layers": [0, 1], "vision_feature_layer": [0, 1]}},
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "head_dim": 0}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "muse_glimmer": {"projector_hidden_size": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    "qwen2_vl": {"text_config": MROPE},
    "qwen2_5_vl": {"text_config": MROPE},
    "paddleocr_vl": {"text_config": MROPE},
    "qwen2_5_omni_thinker": {"text_config": MROPE},
    "glm4v": {"text_config": PART_MROPE},
    "glm46v": {"text_config": PART_MROPE},
    "glmga": {"text_config": PART_MROPE},
    "glm_ocr": {"text_config": PART_MROPE},
    "glm4v_moe": {"text_config": PART_MROPE},
    "gemma3n_text": {**SHARED_LAYERS, "intermediate_size": 48, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {**SHARED_LAYERS, "hidden_size_per_layer_input": 8},
}


def tiny(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of this family, in float32 and eval mode."""
    config = tiny_config(model_type)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = _class(model_type)._from_config(config)
        for parameter in model.parameters():
            if parameter.std() == 0 and parameter.ndim == 1:  # norms and biases: let them matter
                parameter.data += 0.1 * torch.randn_like(parameter)
    finally:
        torch.set_rng_state(generator_state)
    return model.float().eval()


CLASSES: dict[str, str] = {
    **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    **getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}),
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}
"""Model type → the class of a whole checkpoint, towers for images and sound included."""


def class_of(model_type: str) -> str:
    return CLASSES[model_type]


def _class(model_type: str) -> Any:
    return getattr(transformers, class_of(model_type))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and four special tokens, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    found.chat_template = "{% for message in messages %}{{ message.content }}|{% endfor %}"
    return found


# --- what is compared --------------------------------------------------------------------------------------

N_NEW = 4
CARE = SafetyPrompt(name="care", text="Be careful.")
NONE = SafetyPrompt(name="none", text="")


@dataclass
class Outcome:
    """What was found of one family."""

    model_type: str
    refused: str = ""
    """The error of `load_model`, if that refuses it."""
    states: float = float("nan")
    """The largest relative difference of the states of a layer."""
    layers: str = "all"
    replies: bool = False
    gradient: float = float("nan")
    """The relative difference of a DRO step's gradient."""
    no_dro: str = ""
    """The error of `train_dro`, if that refuses it."""
    how: str = ""
    """How chats run together."""
    seconds: float = 0.0
    broken: str = ""
    """An error that is not drolab's."""
    untried: str = ""

    @property
    def kind(self) -> str:
        """right, part, refused, wrong or untried."""
        if self.untried or self.refused:
            return "untried" if self.untried else "refused"
        if self.broken or not (self.states < 2e-5 and self.replies and (self.gradient < 2e-4 or self.no_dro)):
            return "wrong"
        return "right" if self.layers == "all" and not self.no_dro else "part"


def queries() -> Any:
    import pandas as pd

    texts = ["How to kill?", "How to kill a tab?", "Why?", "Where is it now?"]
    table = {
        "query_id": list("abcd"),
        "text": texts,
        "harmful": [True, False, True, False],
        "category": "t",
        "split": "train",
        "source": "t",
    }
    return pd.DataFrame(table, index=list("abcd"))


@torch.no_grad()
def plain_states(model: PreTrainedModel, chats: list[list[int]]) -> list[list[Tensor]]:
    """Layer by layer, chat by chat: the state of the last token."""
    rows = [model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False) for ids in chats]
    return [[row.hidden_states[layer][0, -1] for row in rows] for layer in range(len(rows[0].hidden_states))]


def plain_replies(model: PreTrainedModel, chats: list[list[int]]) -> list[list[int]]:
    """Greedy, the whole chat again for every token."""
    replies = []
    with torch.no_grad():
        for ids in chats:
            own = list(ids)
            for _ in range(N_NEW):
                own.append(int(model(input_ids=torch.tensor([own]), use_cache=False).logits[0, -1].argmax()))
            replies.append(own[len(ids) :])
    return replies


def compare(model_type: str) -> Outcome:
    found = Outcome(model_type)
    plain = tiny(model_type)
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        try:
            model = drolab.load_model(folder)
        except DrolabError as error:
            found.refused = str(error).replace(folder, "…")
            return found
    _compare_states(found, model, plain)
    _compare_replies(found, model, plain)
    _compare_gradient(found, model, plain)
    found.how = (
        "in place"
        if can_read_in_place(model, 64)
        else "packed"
        if can_pack(model, 64)
        else "shared"
        if can_share_prefix(model)
        else "whole"
    )
    return found


def _chats(model: ChatModel, prompt: SafetyPrompt = CARE) -> list[list[int]]:
    return [list(render(model, text, prompt).input_ids) for text in queries()["text"]]


def _compare_states(found: Outcome, model: ChatModel, plain: PreTrainedModel) -> None:
    layers = list(range(model.num_hidden_layers + 1))
    worst = 0.0
    try:
        states = drolab.hidden_states(model, queries(), CARE, layers=layers, progress=False)
        expected = plain_states(plain, _chats(model))
    except ModelError:
        found.layers = "last"
        layers = layers[-1:]
        states = drolab.hidden_states(model, queries(), CARE, progress=False)
        expected = [[last_state(plain, ids) for ids in _chats(model)]] * (model.num_hidden_layers + 1)
    for layer in layers:
        right = torch.stack(expected[layer])
        worst = max(worst, float((states.matrix(layer) - right).norm() / right.norm()))
    found.states = worst


@contextmanager
def taking_last(plain: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the head reads, [1, S, d]."""
    taken: list[Tensor] = []
    hook = plain.get_output_embeddings().register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    try:
        yield taken
    finally:
        hook.remove()


@torch.no_grad()
def last_state(plain: PreTrainedModel, ids: list[int]) -> Tensor:
    """What the head reads at the last token."""
    with taking_last(plain) as taken:
        plain(input_ids=torch.tensor([ids]), use_cache=False)
    return taken[0][0, -1]


def _compare_replies(found: Outcome, model: ChatModel, plain: PreTrainedModel) -> None:
    replies = drolab.generate(
        model, queries(), CARE, n_samples=1, do_sample=False, max_new_tokens=N_NEW, progress=False
    )
    ends = {model.tokenizer.eos_token_id}
    expected = []
    for ids in plain_replies(plain, _chats(model)):
        stop = next((k for k, token in enumerate(ids) if token in ends), len(ids))
        expected.append(model.tokenizer.decode(ids[:stop], skip_special_tokens=True))
    found.replies = replies["response"].tolist() == expected


def _compare_gradient(found: Outcome, model: ChatModel, plain: PreTrainedModel) -> None:
    table = queries()
    states = drolab.hidden_states(model, table, [NONE, CARE], progress=False)
    space = drolab.fit_anchors(states, n_components=2)
    harm = drolab.fit_probe(space, states, table["harmful"], positive="harmful", check=False)
    refusal = drolab.fit_probe(space, states, table["harmful"] * 0.8 + 0.1, positive="refuses", check=False)
    try:
        training = dro.Training(
            model, table, init=CARE, space=space, refusal=refusal, harmfulness=harm, config=drolab.DROConfig()
        )
        batch, (soft, _) = training._begin(), training._resumed()
        soft.data += 0.05 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
        training._gradient(1, soft, batch, [0, 1, 2, 3])
    except DrolabError as error:
        found.no_dro = str(error)
        return
    assert soft.grad is not None
    again = soft.detach().clone().requires_grad_()
    plain.requires_grad_(False)
    rows, wholes = [], []
    for row in range(len(table)):
        embedded = plain.get_input_embeddings()(torch.tensor(batch.chat(row)))
        begin, end = batch.span or (0, 0)
        whole = torch.cat([embedded[:begin], again, embedded[end:]])[None]
        whole.retain_grad()
        wholes.append(whole)
        with taking_last(plain) as taken:
            states = plain(inputs_embeds=whole, use_cache=False, output_hidden_states=True).hidden_states
        rows.append(states[-1][0, -1] if found.layers == "all" else taken[0][0, -1])
    terms = dro.losses(
        space,
        refusal,
        harm,
        torch.stack(rows),
        training._start,
        torch.tensor(table["harmful"].to_numpy()),
        training.config,
    )
    terms.total(training.config).backward()
    assert again.grad is not None
    # Random recurrent layers forget, and leave a gradient of rounding noise at the prompt: then by that of the chat.
    most = max(float(whole.grad.norm()) for whole in wholes if whole.grad is not None)
    found.gradient = float((soft.grad - again.grad).norm()) / max(float(again.grad.norm()), 1e-3 * most)


# --- the table ---------------------------------------------------------------------------------------------

MOST_WEIGHTS = 30_000_000
LEFT_OUT = ("glm5_next", "shieldgemma2")
"""Minutes for a tiny one, since its code loops in Python; a classifier."""
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- benchmarks/families.py --write -->", "<!-- end -->"


def sweep(names: list[str]) -> Iterator[Outcome]:
    for name in names:
        yield outcome_of(name)
        gc.collect()


def outcome_of(name: str) -> Outcome:
    """What was found, or what kept us from trying."""
    started = time.perf_counter()
    try:
        with torch.device("meta"):
            weights = sum(part.numel() for part in _class(name)._from_config(tiny_config(name)).parameters())
    except Exception as error:
        return Outcome(name, untried=_in_short(error))
    if weights > MOST_WEIGHTS or name in LEFT_OUT:
        return Outcome(name, untried="cannot be made small" if weights > MOST_WEIGHTS else "left out")
    try:
        found = compare(name)
    except Exception as error:
        found = Outcome(name, broken=_in_short(error))
    found.seconds = time.perf_counter() - started
    return found


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def tables(outcomes: list[Outcome]) -> str:
    """The part of docs/models.md that a sweep writes."""
    right = [one for one in outcomes if one.kind == "right"]
    part = [one for one in outcomes if one.kind == "part"]
    refused = [one for one in outcomes if one.kind == "refused"]
    wrong = [one for one in outcomes if one.kind == "wrong"]
    untried = [one for one in outcomes if one.kind == "untried"]
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, float32, one thread: "
        f"{len(right)} families are right in all, {len(part)} in part, {len(refused)} are refused, "
        f"{len(wrong)} are wrong.",
        "",
        "| family | class | states | DRO step | chats run |",
        "|---|---|---|---|---|",
        *(
            f"| {one.model_type} | {class_of(one.model_type)} | {one.states:.0e} | {one.gradient:.0e} | {one.how} |"
            for one in right
        ),
        "",
        "Right in part:",
        "",
        "| family | class | states | DRO step | chats run |",
        "|---|---|---|---|---|",
        *(
            f"| {one.model_type} | {class_of(one.model_type)} | "
            f"{one.states:.0e}{'' if one.layers == 'all' else ', last layer only'} | "
            f"{'refused' if one.no_dro else f'{one.gradient:.0e}'} | {one.how} |"
            for one in part
        ),
        "",
        "Refused when they are loaded:",
        "",
        "| family | why |",
        "|---|---|",
        *(f"| {one.model_type} | {_cell(one.refused)} |" for one in refused),
        "",
        *(
            ["Wrong:", "", *(f"- {one.model_type}: {_cell(one.broken or repr(one))}" for one in wrong), ""]
            if wrong
            else []
        ),
        "Not tried, since no small model of them was built: " + ", ".join(one.model_type for one in untried) + ".",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("<", "").replace(">", "")


def page_with(text: str, outcomes: list[Outcome]) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(outcomes)}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families whose name holds one of these, with commas between")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/models.md")
    options = parser.parse_args()
    quiet()
    chosen = [name for name in CLASSES if any(part in name for part in options.only.split(","))]
    outcomes = []
    for outcome in sweep(chosen):
        outcomes.append(outcome)
        print(
            f"{len(outcomes)}/{len(chosen)} {outcome.model_type}: {outcome.kind}, {outcome.seconds:.1f} s", flush=True
        )
    print(tables(outcomes))
    if options.write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), outcomes), encoding="utf-8")


def quiet() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("drolab").setLevel(logging.ERROR)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
