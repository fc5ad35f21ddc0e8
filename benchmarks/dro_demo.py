"""Does DRO work on the demo model? Trains from each prompt with several seeds and tests on held-out queries.

    .venv/bin/python benchmarks/dro_demo.py [--prompts default medium short] [--seeds 42 43 44] [--store DIR]

Printed per starting prompt and query group, under the human prompt and under its DRO prompts: the refusal rate of
sampled responses (mean over queries and seeds, bootstrap interval over queries) and the first-token mass that is
neither refusal nor compliance. The last rows are the control: DRO along a random direction instead of the probe's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd
import torch

import drolab
from drolab import evidence
from drolab.judges import FirstTokenJudge


def random_probe(refusal: drolab.Probe, seed: int) -> drolab.Probe:
    """A probe of the same steepness along a random direction of the anchor space."""
    direction = torch.randn(refusal.coef.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(refusal, coef=direction / direction.norm() * refusal.coef.norm())


def groups(queries: pd.DataFrame) -> pd.Series:
    """harmful, harmless, borderline: one name per query id."""
    return queries["harmful"].map({True: "harmful", False: "harmless"}).where(queries["split"] == "test", "borderline")


def summary(scores: pd.DataFrame, first: pd.DataFrame, queries: pd.DataFrame, names: list[str]) -> list[dict]:
    """One row per group: refusal rate and outside mass, averaged over the prompts `names` (seeds)."""
    group = groups(queries)
    flat = scores.reset_index()
    flat = flat[flat["prompt"].isin(names)]
    outside = first[first["prompt"].isin(names)]
    rows = []
    for name in ("harmful", "harmless", "borderline"):
        ids = group.index[group == name]
        part = flat[flat["query_id"].isin(ids)]
        rate, low, high = evidence.mean_interval(part["refusal_rate"], part["query_id"])
        mass = outside.loc[outside["query_id"].isin(ids), "other"].mean()
        rows.append({"group": name, "refusal": rate, "low": low, "high": high, "outside": mass})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", default=["default", "medium", "short"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--residual-weight", type=float, default=None, help="β; default: that of DROConfig")
    parser.add_argument("--preset", default="default", choices=["default", "paper"])
    parser.add_argument("--n-samples", type=int, default=10)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()

    store = drolab.Store(arguments.store)
    model = drolab.load_model("demo")
    anchors, prompts = drolab.load_queries("anchors"), drolab.load_prompts()
    test = pd.concat([drolab.load_queries("heldout"), drolab.load_queries("borderline")])
    states = drolab.hidden_states(model, anchors, prompts, store=store)
    replies = drolab.generate(model, anchors, prompts, n_samples=arguments.n_samples, store=store)
    space = drolab.fit_anchors(states)
    refusal = drolab.fit_probe(space, states, drolab.judge(replies).refusal_rate, positive="refuses")
    harmfulness = drolab.fit_probe(space, states, anchors.harmful, positive="harmful")
    judge = FirstTokenJudge.fit(replies)

    changes = {} if arguments.residual_weight is None else {"residual_weight": arguments.residual_weight}
    rows = []

    def train(init: str, seed: int, probe: drolab.Probe, label: str) -> drolab.SoftPrompt:
        config = drolab.DROConfig.preset(arguments.preset, seed=seed, **changes)
        run = drolab.train_dro(
            model,
            anchors,
            init=prompts[init],
            space=space,
            refusal=probe,
            harmfulness=harmfulness,
            config=config,
            store=store,
        )
        print(label, init, seed, run.history.iloc[-1].to_dict())
        return dataclasses.replace(run.soft_prompt, name=f"{label}-{init}-{seed}")

    def measure(label: str, tested: list) -> None:
        found = drolab.generate(model, test, tested, n_samples=arguments.n_samples, store=store)
        first = judge.score(model, test, tested)
        scored = summary(drolab.judge(found), first, test, [prompt.name for prompt in tested])
        rows.extend({"prompt": label, **row} for row in scored)
        print(pd.DataFrame(rows).tail(3).to_string(index=False, float_format="%.3f"), flush=True)

    measure("none", [prompts["none"]])
    for init in arguments.prompts:
        measure(init, [prompts[init]])
        measure(f"DRO {init}", [train(init, seed, refusal, "dro") for seed in arguments.seeds])
    control = [train("default", seed, random_probe(refusal, seed), "random") for seed in arguments.seeds]
    measure("random direction, default", control)

    table = pd.DataFrame(rows)
    print("\n" + table.to_string(index=False, float_format="%.3f"))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
