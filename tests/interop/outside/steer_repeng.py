"""Logits under a control vector in repeng: steer_repeng.py BASE VECTOR.gguf IDS.json LOGITS; prints {versions}."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from repeng import ControlModel, ControlVector
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, file, chats, out = sys.argv[1:]
vector = ControlVector.import_gguf(file)
model = ControlModel(AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32), list(vector.directions))
model.set_control(vector)
with torch.no_grad():
    ids = [torch.tensor([one]) for one in json.loads(Path(chats).read_text())]
    save_file({str(number): model(input_ids=one).logits[0].contiguous() for number, one in enumerate(ids)}, out)
versions = {name: version(name) for name in ("repeng", "gguf", "torch", "transformers")}
print("\n" + json.dumps({"versions": versions, "layers": list(vector.directions), "model": vector.model_type}))
