"""A tiny model as a GGUF file, its linear weights in blocks of 8 bits."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from drolab.models import chat_format
from helpers.tiny import WIDE, byte_tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_qwen() -> Qwen2ForCausalLM:
    config = Qwen2Config(**WIDE, tie_word_embeddings=False, rms_norm_eps=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


def save_gguf(path: Path, architecture: str = "qwen2") -> Qwen2ForCausalLM:
    """Write the file; the model that it then is, unpacked."""
    model, tokenizer = tiny_qwen(), byte_tokenizer()
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens[3] = "ab"  # a file must have a merge
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 3 else 1 for number in range(len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(chat_format("chatml"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            place, _, part = name.rpartition(".")
            layer = place.removeprefix("model.layers.").split(".")[0]
            own = place.removeprefix(f"model.layers.{layer}.")
            short = f"blk.{layer}.{NAMES[own]}" if own != place else NAMES[place]
            values = weight.numpy()
            if values.ndim == 2:
                packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)))
                writer.add_tensor(f"{short}.{part}", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(f"{short}.{part}", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
