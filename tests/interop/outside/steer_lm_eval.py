"""Logits of lm-eval's model "steered": steer_lm_eval.py BASE DIRECTIONS.safetensors STRENGTH IDS.json LOGITS; prints
{versions}. Its file is made as docs/howto/other_programs.md says."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from lm_eval.models.hf_steered import SteeredModel
from safetensors.torch import load_file, save_file

base, file, strength, chats, out = sys.argv[1:]
how = {"action": "add", "steering_coefficient": float(strength)}
vectors = {f"layers.{int(name[6:]) - 1}": how | {"steering_vector": v} for name, v in load_file(file).items()}
torch.save(vectors, Path(out).with_suffix(".pt"))

model = SteeredModel(base, str(Path(out).with_suffix(".pt")), device="cpu", dtype="float32", batch_size=1)
ids = [torch.tensor([one]) for one in json.loads(Path(chats).read_text())]
save_file({str(number): model._model_call(one)[0].contiguous() for number, one in enumerate(ids)}, out)
versions = {name: version(name) for name in ("lm-eval", "torch", "transformers")}
print("\n" + json.dumps({"versions": versions, "layers": list(vectors)}))
