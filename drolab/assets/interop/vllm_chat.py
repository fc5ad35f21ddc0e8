"""Ask a model under the soft prompt in this folder, with vLLM: python chat.py [--request] MODEL "question"."""

import base64
import io
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

HERE = Path(__file__).parent


def embedded(messages):
    """[tokens, d]: a whole chat. The prompt's vectors begin it; this tokenizer's template writes the rest."""
    tokenizer, tensors = AutoTokenizer.from_pretrained(HERE), load_file(HERE / "prompt.safetensors")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return torch.cat([tensors["virtual_tokens"], tensors["embeddings"][ids]])


def request(model, vectors, **options):
    """The body of a request to /v1/completions of vLLM's server."""
    torch.save(vectors, buffer := io.BytesIO())
    content = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"model": model, "prompt_embeds": content, "max_tokens": 64, "temperature": 0, **options})


if __name__ == "__main__":
    *how, model, question = sys.argv[1:]
    vectors = embedded([{"role": "user", "content": question}])
    if how == ["--request"]:
        print(request(model, vectors))
    else:
        from vllm import LLM, SamplingParams

        llm = LLM(model=model, dtype=str(vectors.dtype).removeprefix("torch."), enable_prompt_embeds=True)
        print(llm.generate({"prompt_embeds": vectors}, SamplingParams(temperature=0, max_tokens=64))[0].outputs[0].text)
