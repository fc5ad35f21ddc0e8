"""Hidden states, DRO steps and steps of prompt tuning: drolab against the paper's way, other libraries, and the limit.

    python benchmarks/speed.py                              # 64 queries, the 116-token prompt, a random model of 85M
    python benchmarks/speed.py --models demo "random 85M" --prompt-tokens 0 23 54 116 --queries 200
    python benchmarks/speed.py --models "random 7B" --device cuda --queries 200 --prompt-tokens 0 23 54 116

All sides do the same work in one process, in turn; times are medians. nnsight, TransformerLens and PEFT are measured
where they are installed (pip install nnsight transformer-lens peft). The *limit* is the fewest tokens that must pass
(the prompt once, then what follows in each chat) x 2 x parameters of the blocks (x 4 for a training step: the weights
need no gradient), over the rate of the model's own largest matrix product, measured in between; GFLOP/s are this
work over the time. In a step of prompt tuning what follows the prompt is a query and a reply, and the head's weights
count, too, at the reply's tokens; its time over its limit, divided by that of a DRO step, says whether both go equally
well. Memory is the peak of a process of its own above the loaded model. Printed, never asserted.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from workload import MODELS, load, peak_of, synchronised

import drolab
from drolab.dro import PromptTuning, PromptTuningConfig, Training, losses, unlikelihood_losses
from drolab.models import ChatModel, EncodedBatch, encode, prefix_embeddings, prompt_token_ids, render
from drolab.probing import fit_anchors
from drolab.types import DROConfig, HiddenStates, Probe, SafetyPrompt

PLAIN_BATCH = 32
Side = Callable[[], object]


# --- what is run -------------------------------------------------------------------------------------------


def prompt_of(model: ChatModel, n_tokens: int) -> SafetyPrompt:
    """The demo's safety sentences, cut and filled up to so many tokens."""
    if n_tokens == 0:
        return SafetyPrompt(name="none", text="")
    words = " ".join(prompt.text for prompt in drolab.load_prompts().values()).split() * 20
    text = ""
    for word in words:
        longer = f"{text} {word}".strip()
        if len(prompt_token_ids(model, longer)) > n_tokens:
            break
        text = longer
    while len(prompt_token_ids(model, text)) < n_tokens:
        text += " a" if text else "a"
    return SafetyPrompt(name=f"{len(prompt_token_ids(model, text))} tokens", text=text)


def block_parameters(model: ChatModel) -> int:
    """Weights that every token is multiplied with: neither the embedding nor the head."""
    names = model.base_model.named_parameters()
    return sum(weights.numel() for name, weights in names if weights.dim() == 2 and "embed" not in name)


def matrix_rate(model: ChatModel, n_tokens: int = 512) -> float:
    """FLOP per second of the model's largest matrix product."""
    linear = max(
        (m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)), key=lambda m: m.weight.numel()
    )
    n_tokens = n_tokens if model.device.type == "cpu" else 8192
    rows = torch.randn(n_tokens, linear.in_features, dtype=model.dtype, device=model.device)
    times = []
    with torch.no_grad():
        for _ in range(20):
            synchronised(model)
            start = time.perf_counter()
            linear(rows)
            synchronised(model)
            times.append(time.perf_counter() - start)
    return 2 * n_tokens * linear.weight.numel() / statistics.median(times)


def fewest_tokens(batch: EncodedBatch) -> int:
    return len(batch.prefix) + sum(map(len, batch.suffixes))


# --- hidden states -----------------------------------------------------------------------------------------


def one_by_one(model: ChatModel, chats: list[list[int]]) -> Tensor:
    """The paper's way: one chat at a time, the head runs, all layers' states of all tokens are kept to the end."""
    with torch.no_grad():
        kept = [
            model.model(torch.tensor([chat], device=model.device), output_hidden_states=True).hidden_states
            for chat in chats
        ]
    return torch.stack([states[-1][0, -1] for states in kept]).cpu()


def padded(model: ChatModel, chats: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and mask of batches, padded on the left."""
    for first in range(0, len(chats), PLAIN_BATCH):
        part = chats[first : first + PLAIN_BATCH]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(chat)) + chat for chat in part], device=model.device)
        mask = torch.tensor([[0] * (longest - len(chat)) + [1] * len(chat) for chat in part], device=model.device)
        yield ids, mask


def plain_batch(model: ChatModel, chats: list[list[int]]) -> Tensor:
    """The decoder without its head, padded batches."""
    with torch.no_grad():
        parts = [
            model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
            for ids, mask in padded(model, chats)
        ]
    return torch.cat(parts).cpu()


def with_nnsight(model: ChatModel, chats: list[list[int]]) -> Callable[[], Tensor]:
    from nnsight.modeling.transformers import TransformersModel

    traced = TransformersModel(copy.deepcopy(model.model), task="text-generation", tokenizer=model.tokenizer)

    def work() -> Tensor:
        parts = []
        for ids, mask in padded(model, chats):
            with torch.no_grad(), traced.trace({"input_ids": ids, "attention_mask": mask}) as tracer:
                states = traced.model.norm.output[:, -1].save()
                tracer.stop()
            parts.append(states)
        return torch.cat(parts).cpu()

    return work


def with_transformer_lens(model: ChatModel, chats: list[list[int]]) -> Callable[[], Tensor]:
    from transformer_lens.model_bridge import TransformerBridge

    own = copy.deepcopy(model.model)  # the bridge changes the modules
    bridge: Any = TransformerBridge.boot_transformers("drolab/random", hf_model=own, tokenizer=model.tokenizer)
    name, norm = f"blocks.{model.num_hidden_layers - 1}.hook_out", model.base_model.get_submodule("norm")

    def work() -> Tensor:
        parts = []
        for ids, mask in padded(model, chats):
            with torch.no_grad():
                _, cache = bridge.run_with_cache(
                    ids, attention_mask=mask, names_filter=name, stop_at_layer=model.num_hidden_layers
                )
                parts.append(norm(cache[name][:, -1]))
        return torch.cat(parts).cpu()

    return work


def state_sides(model: ChatModel, queries: pd.DataFrame, prompts: list[SafetyPrompt]) -> dict[str, Side]:
    chats = [list(render(model, text, prompt).input_ids) for prompt in prompts for text in queries["text"]]
    sides: dict[str, Side] = {
        "the paper's way": lambda: one_by_one(model, chats),
        "plain padded batch": lambda: plain_batch(model, chats),
    }
    for name, make in (("nnsight", with_nnsight), ("TransformerLens", with_transformer_lens)):
        with suppress(ImportError):
            package = {"nnsight": "nnsight", "TransformerLens": "transformer-lens"}[name]
            sides[f"{name} {importlib.metadata.version(package)}"] = make(model, chats)
    sides["drolab"] = lambda: drolab.hidden_states(model, queries, prompts, progress=False).values[:, 0]
    return sides


# --- DRO steps ---------------------------------------------------------------------------------------------


def training_of(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt) -> Training:
    """A run whose space and probes have no meaning: only the time counts."""
    states = drolab.hidden_states(model, queries, prompt, progress=False)
    space = fit_anchors(states, n_components=4)
    direction = torch.ones(4)
    return Training(
        model,
        queries,
        init=prompt,
        space=space,
        refusal=Probe(coef=direction, intercept=0.0, positive="refuses"),
        harmfulness=Probe(coef=direction, intercept=0.0, positive="harmful"),
        config=DROConfig(num_train_epochs=1000, batch_size=len(queries)),
    )


def _loss(training: Training, states: Tensor, start: Tensor) -> Tensor:
    harmful = torch.tensor(training.queries["harmful"].to_numpy(dtype=bool).copy())
    terms = losses(
        training.space,
        training.refusal,
        training.harmfulness,
        states,
        start.to(states.device),
        harmful,
        training.config,
    )
    return terms.total(training.config)


def step_sides(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt) -> dict[str, Side]:
    training = training_of(model, queries, prompt)
    start = drolab.hidden_states(model, queries, prompt, progress=False).values[:, 0]
    steps = training.steps()
    sides: dict[str, Side] = {"the paper's way": paper_step(model, training, start)}
    with suppress(ImportError):
        sides[f"PEFT {importlib.metadata.version('peft')}"] = peft_step(model, training, start)
    sides["drolab"] = lambda: next(steps)
    return sides


def _step(parameter: Tensor, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    optimizer.step()


def paper_step(model: ChatModel, training: Training, start: Tensor) -> Side:
    """Whole chats in one padded batch with their embeddings, the head runs, all layers' states are returned."""
    soft = training.done.embeddings.to(model.device, copy=True).requires_grad_()
    optimizer = torch.optim.AdamW([soft], lr=1e-3)
    batch = encode(model, training.queries["text"].tolist(), training.run().soft_prompt)
    lengths = torch.tensor([len(suffix) for suffix in batch.suffixes])
    ids = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.long)
    for row, suffix in enumerate(batch.suffixes):
        ids[row, : len(suffix)] = torch.tensor(suffix)
    last = (len(batch.prefix) + lengths - 1).to(model.device)

    def work() -> None:
        with torch.enable_grad():
            prefix = prefix_embeddings(model, batch, soft).expand(len(lengths), -1, -1)
            whole = torch.cat([prefix, model.embed(ids)], dim=1)
            states = model.model(inputs_embeds=whole, output_hidden_states=True, use_cache=False).hidden_states[-1]
            _step(soft, optimizer, _loss(training, states[torch.arange(len(last)), last], start))
        synchronised(model)

    return work


def peft_step(model: ChatModel, training: Training, start: Tensor) -> Side:
    """PEFT's prompt tuning with as many virtual tokens as the prompt has, before the chats."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    n_tokens = len(training.done.embeddings)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=n_tokens, tokenizer_name_or_path=None)
    tuned = get_peft_model(model.model, config)
    soft = next(parameter for parameter in tuned.parameters() if parameter.requires_grad)
    optimizer = torch.optim.AdamW([soft], lr=1e-3)
    none = SafetyPrompt(name="none", text="")
    chats = [list(render(model, text, none).input_ids) for text in training.queries["text"]]
    longest = max(map(len, chats))
    ids = torch.tensor([[0] * (longest - len(chat)) + chat for chat in chats], device=model.device)
    mask = torch.tensor([[0] * (longest - len(chat)) + [1] * len(chat) for chat in chats], device=model.device)

    def work() -> None:
        with torch.enable_grad():
            output = tuned(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            _step(soft, optimizer, _loss(training, output.hidden_states[-1][:, -1], start))
        synchronised(model)

    return work


# --- steps of prompt tuning --------------------------------------------------------------------------------


def tuning_of(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt, n_tokens: int) -> PromptTuning:
    """A run on a reply of so many tokens to each query, every other one of which is to become unlikely."""
    filler = " ".join(one.text for one in drolab.load_prompts().values() if one.text) + " "
    replies = queries[["query_id", "text", "harmful"]].assign(prompt=prompt.name)
    wanted = [number % 2 == 0 for number in range(len(queries))]
    refused = [bool(harmful) == likely for harmful, likely in zip(replies["harmful"], wanted, strict=True)]
    begins = ["No: " if no else "Yes: " for no in refused]
    config = PromptTuningConfig(max_steps=10**6, batch_size=len(queries), max_reply_tokens=n_tokens)
    return PromptTuning(
        model,
        queries,
        init=prompt,
        replies=replies.assign(response=[begin + filler * n_tokens for begin in begins]),
        judge=lambda response: response.startswith("No"),
        config=config,
    )


def fewest_tuning_tokens(tuning: PromptTuning) -> tuple[int, int]:
    """(tokens that must pass, tokens that the head must be asked for): a reply's last token is only expected."""
    chats, labels = tuning.chats(), sum(len(ids) for ids in tuning.labels)
    return fewest_tokens(chats), labels


def tuning_sides(model: ChatModel, tuning: PromptTuning) -> dict[str, Side]:
    steps = tuning.steps()
    return {"the paper's way": paper_tuning_step(model, tuning), "drolab": lambda: next(steps)}


def paper_tuning_step(model: ChatModel, tuning: PromptTuning) -> Side:
    """Whole chats with their replies in one padded batch, the head runs at every token."""
    soft = tuning.done.embeddings.to(model.device, copy=True).requires_grad_()
    optimizer = torch.optim.AdamW([soft], lr=1e-3)
    batch, labels = tuning.chats(), tuning.labels
    lengths = torch.tensor([len(suffix) for suffix in batch.suffixes])
    ids = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.long)
    target = torch.full((len(lengths), len(batch.prefix) + int(lengths.max())), -100)
    for row, (suffix, wanted) in enumerate(zip(batch.suffixes, labels, strict=True)):
        ids[row, : len(suffix)] = torch.tensor(suffix)
        end = len(batch.prefix) + len(suffix)
        target[row, end - len(wanted) : end] = torch.tensor(wanted)
    target = target.to(model.device)
    likely = torch.tensor(tuning.likely, device=model.device)[:, None].expand_as(target)
    said = target >= 0

    def work() -> None:
        with torch.enable_grad():
            prefix = prefix_embeddings(model, batch, soft).expand(len(lengths), -1, -1)
            logits = model.model(inputs_embeds=torch.cat([prefix, model.embed(ids)], dim=1), use_cache=False).logits
            sums = unlikelihood_losses(logits[said], target[said], likely[said])
            _step(soft, optimizer, (sums.likelihood + sums.unlikelihood) / said.sum())
        synchronised(model)

    return work


# --- measuring ---------------------------------------------------------------------------------------------


def in_turn(model: ChatModel, sides: dict[str, Side], repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each side, all sides in every round, and the matrix rate of the same time."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    rates = []
    for number in range(repeats + 1):  # the first round warms up
        rates.append(matrix_rate(model))
        for name, work in sides.items():
            synchronised(model)
            start = time.perf_counter()
            work()
            synchronised(model)
            times[name] += [time.perf_counter() - start] if number else []
    return {name: statistics.median(found) for name, found in times.items()}, statistics.median(rates)


def table_of(seconds: dict[str, float], work: float, rate: float) -> pd.DataFrame:
    """Of the sides that do so much necessary work, in FLOP, on a machine of this matrix rate, in FLOP per second."""
    table = pd.DataFrame({"seconds": {**seconds, "limit": work / rate}})
    table["x drolab"] = table["seconds"] / seconds["drolab"]
    table["x limit"] = table["seconds"] * rate / work
    table["GFLOP/s"] = work / table["seconds"] / 1e9
    return table


def states_table(model: ChatModel, queries: pd.DataFrame, prompts: list[SafetyPrompt], repeats: int) -> pd.DataFrame:
    sides = state_sides(model, queries, prompts)
    _check_equal(sides)
    seconds, rate = in_turn(model, sides, repeats)
    tokens = sum(fewest_tokens(encode(model, queries["text"].tolist(), prompt)) for prompt in prompts)
    return table_of(seconds, 2 * block_parameters(model) * tokens, rate)


def _check_equal(sides: dict[str, Side]) -> None:
    """All sides must read the same states."""
    wanted: Any = sides["the paper's way"]()
    for name, work in sides.items():
        found: Any = work()
        error = float((found - wanted).float().norm() / wanted.float().norm())
        if error > (0.05 if wanted.dtype == torch.bfloat16 else 1e-4):
            raise SystemExit(f"{name} reads other states: relative difference {error:.1e}.")


def steps_table(model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt, repeats: int) -> pd.DataFrame:
    seconds, rate = in_turn(model, step_sides(model, queries, prompt), repeats)
    tokens = fewest_tokens(encode(model, queries["text"].tolist(), prompt))
    return table_of(seconds, 4 * block_parameters(model) * tokens, rate)


def tuning_table(
    model: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt, n_tokens: int, repeats: int
) -> pd.DataFrame:
    tuning = tuning_of(model, queries, prompt, n_tokens)
    seconds, rate = in_turn(model, tuning_sides(model, tuning), repeats)
    tokens, labels = fewest_tuning_tokens(tuning)
    head: Any = model.model.get_output_embeddings()
    return table_of(seconds, 4 * (block_parameters(model) * tokens + head.weight.numel() * labels), rate)


def compiled_table(model: ChatModel, twin: ChatModel, queries: pd.DataFrame, prompt: SafetyPrompt, repeats: int) -> Any:
    """drolab with and without torch.compile of norms and feed-forward parts. (Of whole blocks dynamo compiles only the
    first eight: what each reads of the cache is another object.)"""
    for module in twin.base_model.modules():
        if type(module).__name__.endswith(("MLP", "RMSNorm")):
            module.compile(dynamic=True)
    rows = {}
    for work, sides in {"states": state_sides, "a DRO step": step_sides}.items():
        both = {
            name: sides(own, queries, [prompt] if work == "states" else prompt)["drolab"]
            for name, own in (("as it is", model), ("compiled", twin))
        }
        rows[work] = in_turn(model, both, repeats)[0]
    return pd.DataFrame(rows).T.assign(ratio=lambda table: table["as it is"] / table["compiled"])


def peak(name: str, device: str, side: str, n_queries: int, lengths: list[int]) -> float:
    """MB above the loaded model, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, device, side, n_queries, lengths))


def _peak(name: str, device: str, side: str, n_queries: int, lengths: list[int]) -> float:
    model = load(name, device)
    queries = drolab.load_queries("anchors").head(n_queries)
    chats_of = state_sides(model, queries, [prompt_of(model, length) for length in lengths])
    drolab.hidden_states(model, queries.head(1), prompt_of(model, 4), progress=False)
    return peak_of(chats_of[side], device)


def growth(device: str, sizes: list[int]) -> pd.DataFrame:
    """The demo model on more and more queries, each size in a process of its own."""
    rows = {}
    for size in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[size] = pool.apply(_grow, (device, size))
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["ms a query", "ms of the processor", "peak MB", "result MB"]
    )


def _grow(device: str, size: int) -> tuple[float, float, float, float]:
    model, seed = load("demo", device), drolab.load_queries("anchors")
    rows = seed.iloc[[number % len(seed) for number in range(size)]]
    names = [f"q{number}" for number in range(size)]
    texts = [f"{text} ({number})" for number, text in enumerate(rows["text"])]
    queries = rows.assign(query_id=names, text=texts).set_index("query_id", drop=False)
    prompt = prompt_of(model, 116)
    drolab.hidden_states(model, queries.head(8), prompt, progress=False)
    found: list[HiddenStates] = []
    start, start_processor = time.perf_counter(), time.process_time()
    highest = peak_of(lambda: found.append(drolab.hidden_states(model, queries, prompt, progress=False)), device)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    result = found[0].values.nbytes + found[0].index.memory_usage(deep=True).sum()
    return 1000 * seconds / size, 1000 * processor / size, highest, result / 2**20


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["random 85M"], choices=MODELS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[116])
    parser.add_argument("--batch", type=int, default=50, help="queries of a DRO step")
    parser.add_argument("--reply-tokens", type=int, default=64, help="of each reply in a step of prompt tuning")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-queries", type=int, default=0, help="also the peak memory, with so many queries")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[], help="numbers of queries, such as 1000 10000 100000"
    )
    parser.add_argument("--compile", action="store_true", help="also drolab with torch.compile")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.device}"
    print(machine)
    found: dict[str, Any] = {}
    for name in given.models:
        model = load(name, given.device)
        queries = drolab.load_queries("anchors").groupby("harmful").head(max(given.queries, given.batch) // 2)
        prompts = [prompt_of(model, length) for length in given.prompt_tokens]
        work = f"{name}, {block_parameters(model) / 1e6:.0f} M weights in the blocks"
        batch = queries.sample(given.batch, random_state=0)
        step = f"{given.batch} queries, {given.prompt_tokens[-1]} tokens"
        tables = {
            f"{work}: states of {given.queries} queries x prompts of {given.prompt_tokens} tokens": states_table(
                model, queries.head(given.queries), prompts, given.repeats
            ),
            f"{work}: a DRO step, {step}": steps_table(model, batch, prompts[-1], given.repeats),
            f"{work}: a step of prompt tuning, {step}, replies of {given.reply_tokens}": tuning_table(
                model, batch, prompts[-1], given.reply_tokens, given.repeats
            ),
        }
        _, step_table, tuning = tables.values()
        ratio = tuning["x limit"]["drolab"] / step_table["x limit"]["drolab"]
        for title, table in tables.items():
            print(f"\n{title}\n{table.round(2).to_string()}", flush=True)
            found[title] = table.to_dict("index")
        print(
            f"\nA step of prompt tuning is {ratio:.2f} x as far from its limit as a DRO step (1.3 at most).", flush=True
        )
        if given.compile:
            some, twin = queries.head(given.queries), load(name, given.device)
            table = compiled_table(model, twin, some, prompts[-1], given.repeats)
            print(f"\n{work}: torch.compile, seconds\n{table.round(2).to_string()}", flush=True)
            found[f"{work}: torch.compile"] = table.to_dict("index")
        if given.memory_queries:
            peaks = {
                side: peak(name, given.device, side, given.memory_queries, given.prompt_tokens)
                for side in ("the paper's way", "plain padded batch", "drolab")
            }
            print(f"\n{work}: peak memory, MB, {given.memory_queries} queries\n{pd.Series(peaks).round(0).to_string()}")
            found[f"{work}: memory"] = peaks
    if given.growth:
        table = growth(given.device, given.growth)
        print(f"\ndemo model, 116-token prompt\n{table.round(2).to_string()}")
        found["growth"] = table.to_dict("index")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
