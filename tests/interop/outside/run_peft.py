"""Logits and greedy replies of PEFT: run_peft.py BASE ADAPTER CHATS.json LOGITS; prints {versions, replies}."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base, folder, chats, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
logits, replies = {}, []
for number, messages in enumerate(json.loads(Path(chats).read_text())):
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits[str(number)] = model(**asked).logits[0].contiguous()
    written = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    replies.append(tokenizer.decode(written, skip_special_tokens=True))
save_file(logits, out)
versions = {name: version(name) for name in ("peft", "torch", "transformers")}
print("\n" + json.dumps({"versions": versions, "replies": replies}))
