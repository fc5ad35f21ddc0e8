"""Does DRO work on the demo model? Trains from each prompt with several seeds and tests on held-out queries.

    .venv/bin/python benchmarks/dro_demo.py [--prompts default medium short] [--seeds 42 43 44] [--store DIR]

Printed per starting prompt and query group, under the human prompt and under its DRO prompts: the refusal rate of
sampled responses (mean over queries and seeds, bootstrap interval over queries) and the first-token mass that is
neither refusal nor compliance. The last rows are the control: DRO along random directions of the hidden space instead
of the refusal probe's, and without the harmfulness term, which moves the classes apart by itself.
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


def random_direction(
    space: drolab.AnchorSpace, refusal: drolab.Probe, seed: int
) -> tuple[drolab.AnchorSpace, drolab.Probe]:
    """The control: the same steepness along a random direction of the hidden space.

    Not of the anchor space: that has few dimensions, the first of which is mostly refusal, so that a random
    direction in it is half a refusal direction.
    """
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(space.components.T.shape, generator=generator))
    coef = torch.zeros_like(refusal.coef)
    coef[0] = refusal.coef.norm()
    return dataclasses.replace(space, components=basis.T.contiguous()), dataclasses.replace(refusal, coef=coef)


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
    anchors, prompts = drolab.load_queries("anchors", demo=True), drolab.load_prompts()
    test = pd.concat(drolab.load_queries(name, demo=True) for name in ("heldout", "borderline"))
    states = drolab.hidden_states(model, anchors, prompts, store=store)
    replies = drolab.generate(model, anchors, prompts, n_samples=arguments.n_samples, store=store)
    space = drolab.fit_anchors(states)
    refusal = drolab.fit_probe(space, states, drolab.judge(replies).refusal_rate, positive="refuses")
    harmfulness = drolab.fit_probe(space, states, anchors.harmful, positive="harmful")
    judge = FirstTokenJudge.fit(replies)

    changes = {} if arguments.residual_weight is None else {"residual_weight": arguments.residual_weight}
    rows = []

    def train(init: str, seed: int, *, control: bool = False) -> drolab.SoftPrompt:
        moved_in, along = random_direction(space, refusal, seed) if control else (space, refusal)
        weights = changes | ({"harmfulness_weight": 0.0} if control else {})
        run = drolab.train_dro(
            model,
            anchors,
            init=prompts[init],
            space=moved_in,
            refusal=along,
            harmfulness=harmfulness,
            config=drolab.DROConfig.preset(arguments.preset, seed=seed, **weights),
            store=store,
        )
        last = run.history.iloc[-1]
        label = "random" if control else "dro"
        print(f"{label} {init} {seed}: refusal loss {last.refusal_loss:.3f}, drift {last.residual_drift:.3f}")
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
        measure(f"DRO {init}", [train(init, seed) for seed in arguments.seeds])
    control = [train("default", seed, control=True) for seed in arguments.seeds]
    measure("random direction, default", control)

    table = pd.DataFrame(rows)
    print("\n" + table.to_string(index=False, float_format="%.3f"))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
