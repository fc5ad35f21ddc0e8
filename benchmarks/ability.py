"""What a loss of ability looks like: replies of a model that is pushed further and further, beside what that costs.

    .venv/bin/python benchmarks/ability.py [MODEL]

Prints, for each safety prompt, a soft prompt of noise and pushes of a middle layer's states along the difference of the
classes and along a random direction: `kl` (next tokens of replies to harmless queries, KL(before ‖ now), nats per
token), `kl_own` (KL(now ‖ before) over what is said now), and how a reply begins. docs/howto/ability.md quotes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
import torch

import drolab
from drolab import dro, steering
from drolab.inference import reply_divergence
from drolab.models import ChatModel, Edit, Prompt

N_QUERIES = 5
STRENGTHS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0)
SAMPLING = {"n_samples": 1, "max_new_tokens": 20, "progress": False}


def row(model: ChatModel, queries: pd.DataFrame, before: pd.DataFrame, prompt: Prompt, edits: Sequence[Edit]) -> dict:
    none = drolab.SafetyPrompt(name="none", text="")
    with steering.steered(model, *edits) as edited:
        said = drolab.generate(edited, queries, prompt, **SAMPLING)
    kl = reply_divergence(model, before, prompt, none, edits=edits, progress=False)["kl"].mean()
    own = reply_divergence(model, said, none, prompt, reference_edits=edits, progress=False)["kl"].mean()
    return {"kl": kl, "kl_own": own, "reply": said["response"].iloc[2][:60]}


def main(name: str) -> None:
    model, prompts, heldout = drolab.load_model(name), drolab.load_prompts(), drolab.load_queries("heldout")
    queries, none = heldout[~heldout["harmful"]].head(N_QUERIES), prompts["none"]
    before = drolab.generate(model, queries, none, **SAMPLING)
    layer = model.num_hidden_layers // 2
    some = heldout.groupby("harmful").head(8)
    states = drolab.hidden_states(model, some, none, layers=(layer,), progress=False)
    classes = states.select(harmful=True).matrix(layer).mean(0) - states.select(harmful=False).matrix(layer).mean(0)
    chance = torch.randn(classes.shape, generator=torch.Generator().manual_seed(1))
    noise = dro.random_like(dro.as_embeddings(model, prompts["short"]))
    asked: list[tuple[str, Prompt, list[Edit]]] = [(one.name, one, []) for one in (*prompts.values(), noise)]
    for label, direction in (("classes", classes), ("random", chance / chance.norm() * classes.norm())):
        asked += [(f"{label} x {s:g}", none, [steering.Add(s * direction, layer)]) for s in STRENGTHS]
    for label, prompt, edits in asked:
        found = row(model, queries, before, prompt, edits)
        print(f"{label:20} kl {found['kl']:.2f}  kl_own {found['kl_own']:.2f}  {found['reply']!r}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
