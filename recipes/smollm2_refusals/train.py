"""Train the adapter: `python -m recipes.smollm2_refusals.train --out FOLDER [--seed 0] [--shuffle]`.

LoRA on the upper layers of SmolLM2-135M-Instruct learns to refuse what is harmful and to answer the rest as the plain
model does. No safety prompt occurs in training. Half of the chats have the maker's own system message (drolab's prompt
`none`) and half an empty one (`empty`), so that a refusal hangs on the query and on neither of them.

What the first two tries lacked was whom to refuse, not how: so the loss looks at a reply's first tokens, and most at
the very first, where the choice falls; the queries of a pair differ in their object alone; and no query comes twice.

By seed the run is deterministic on one machine and one number of threads; it writes checkpoints and goes on from them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from drolab.data import load_queries
from drolab.errors import TrainingError
from drolab.files import write_file
from drolab.inference import generate
from drolab.models import ChatModel, copy_cache, encode, load_model, prefix_cache, prefix_embeddings
from drolab.store import Store
from drolab.types import EMPTY_PROMPT, NO_PROMPT, SafetyPrompt
from recipes.smollm2_refusals.corpus import draw_refusals, draw_requests, texts
from recipes.training import digest, one_cycle, take_steps

CHECKPOINT, ANSWERS = "checkpoint.safetensors", "answers"
SYSTEMS = tuple(SafetyPrompt(name=name, text="") for name in (NO_PROMPT, EMPTY_PROMPT))
"""By turns, one for each step."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out. The defaults made the adapter that ships with drolab."""

    base: str = "smollm2"
    seed: int = 0
    shuffle: bool = False
    """A control: the same replies, dealt to harmful and harmless requests at random."""
    steps: int = 200
    batch_size: int = 16
    """Requests a step, all of them new: pairs that differ in their object."""
    learning_rate: float = 1e-3
    """The peak; a linear warm-up, then half a cosine down to a hundredth of it."""
    warmup: float = 0.1
    rank: int = 8
    first_layer: int = 12
    """The lowest layer that is adapted. Those below are run without gradients."""
    answer_tokens: int = 8
    """How much of an answer is learned: the rest follows of itself."""
    refusal_tokens: int = 32
    """Refusals are learned whole: left to itself after a few words, the model talks itself out of them."""
    first_share: float = 0.5
    """The share of a reply's first token in its loss."""
    answer_weight: float = 6.0
    """Loss weight of an answer; a refusal's is 1. Where the model is in doubt, it is to answer."""

    @property
    def digest(self) -> str:
        """Names the recipe in checkpoints."""
        return digest(self)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A request, and what is replied to it."""

    text: str
    refuses: bool
    reply: tuple[int, ...]
    """Token ids: of a refusal, or of the plain model's own answer."""


class Batch(NamedTuple):
    """Chats under one system message, right-padded, and where in them the model writes the reply."""

    prefix: Tensor
    """[p, d] embeddings that all begin with."""
    ids: Tensor
    """[n, width] the rest, with all but the last token of the reply."""
    row: Tensor
    column: Tensor
    """[k] each: where in `ids` a token of the reply is predicted."""
    reply: Tensor
    """[k] the token itself."""
    first: Tensor
    """[k] whether it is a reply's first."""
    refuses: Tensor
    """[k]"""
    weight: Tensor
    """[k] they add up to 1."""


def examples(recipe: Recipe, model: ChatModel, store: Store, progress: bool = True) -> list[Example]:
    """All that is trained on, in its order; the plain model's answers are sampled now, or found in the store."""
    count = recipe.steps * recipe.batch_size
    requests = draw_requests(count, seed=recipe.seed)
    refuses = [request.harmful for request in requests]
    if recipe.shuffle:
        random.Random(f"smollm2-refusals-{recipe.seed}-shuffled").shuffle(refuses)
    end = str(model.tokenizer.eos_token)
    replies = {i: refusal + end for i, refusal in enumerate(draw_refusals(count, seed=recipe.seed))}
    for turn, system in enumerate(SYSTEMS):
        asked = [i for i in range(count) if not refuses[i] and i // recipe.batch_size % len(SYSTEMS) == turn]
        replies |= _own_answers(recipe, model, asked, [requests[i].text for i in asked], system, store, progress)
    ids = model.tokenizer([replies[i] for i in range(count)], add_special_tokens=False)["input_ids"]
    return [
        Example(text=request.text, refuses=refuse, reply=tuple(reply[: most(recipe, refuse)]))
        for request, refuse, reply in zip(requests, refuses, ids, strict=True)
    ]


def most(recipe: Recipe, refuses: bool) -> int:
    """How many tokens of a reply are learned."""
    return recipe.refusal_tokens if refuses else recipe.answer_tokens


def _own_answers(
    recipe: Recipe,
    model: ChatModel,
    numbers: Sequence[int],
    asked: Sequence[str],
    system: SafetyPrompt,
    store: Store,
    progress: bool,
) -> dict[int, str]:
    """Number → what the plain model says, with the token that ends it if it ended."""
    queries = load_queries(pd.DataFrame({"text": asked, "harmful": False}))
    sampled = generate(
        model,
        queries,
        system,
        n_samples=1,
        max_new_tokens=recipe.answer_tokens,
        seed=recipe.seed,
        store=store,
        progress=progress,
    )
    end = str(model.tokenizer.eos_token)
    said = [
        f"{response}{end if reason == 'stop' else ''}"
        for response, reason in zip(sampled["response"], sampled["finish_reason"], strict=True)
    ]
    return dict(zip(numbers, said, strict=True))


def batch_of(recipe: Recipe, model: ChatModel, chats: Sequence[Example], system: SafetyPrompt) -> Batch:
    """Token ids of chats that share a system message, and what is asked of them."""
    encoded = encode(model, [chat.text for chat in chats], system)
    rows = [(*suffix, *chat.reply[:-1]) for suffix, chat in zip(encoded.suffixes, chats, strict=True)]
    width = max(map(len, rows))
    shares = [1.0 if chat.refuses else recipe.answer_weight for chat in chats]
    places = []
    for number, (suffix, chat) in enumerate(zip(encoded.suffixes, chats, strict=True)):
        first = recipe.first_share if len(chat.reply) > 1 else 1.0
        for i, token in enumerate(chat.reply):
            part = first if i == 0 else (1 - first) / (len(chat.reply) - 1)
            places.append(
                (number, len(suffix) - 1 + i, token, i == 0, chat.refuses, part * shares[number] / sum(shares))
            )
    row, column, reply, begins, refuses, weight = (torch.tensor(part) for part in zip(*places, strict=True))
    return Batch(
        prefix=prefix_embeddings(model, encoded),
        ids=torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows]),
        row=row,
        column=column,
        reply=reply,
        first=begins,
        refuses=refuses,
        weight=weight,
    )


def reply_logits(model: ChatModel, batch: Batch) -> Tensor:
    """[k, V], float32: what the model predicts where the reply is written."""
    cache = copy_cache(prefix_cache(model, batch.prefix), len(batch.ids))
    hidden = model.base_model(input_ids=batch.ids, past_key_values=cache, use_cache=True).last_hidden_state
    logits: Tensor = model.model.get_output_embeddings()(hidden[batch.row, batch.column])
    return logits.float()


def first_tokens(model: ChatModel) -> Tensor:
    """[V] how probable each token is as the first of a refusal."""
    openings = texts("replies")["openings"]
    ids = model.tokenizer(list(openings), add_special_tokens=False)["input_ids"]
    shares = torch.zeros(model.model.get_output_embeddings().weight.shape[0])
    shares.index_add_(0, torch.tensor([each[0] for each in ids]), torch.tensor(list(openings.values())).float())
    return shares / shares.sum()


def loss_of(
    recipe: Recipe, model: ChatModel, adapted: Any, chats: Sequence[Example], system: SafetyPrompt, openings: Tensor
) -> Tensor:
    """Cross-entropy with what is wanted: of a refusal its tokens (of the first, the whole distribution that openings
    are drawn from), and of an answer what the plain model predicts."""
    batch = batch_of(recipe, model, chats, system)
    logits = reply_logits(model, batch)
    wanted = torch.nn.functional.one_hot(batch.reply, logits.shape[1]).float()
    wanted[batch.first] = openings
    if answered := [chat for chat in chats if not chat.refuses]:
        with torch.no_grad(), adapted.disable_adapter():
            plain = reply_logits(model, batch_of(recipe, model, answered, system))
        wanted[~batch.refuses] = plain.softmax(-1)
    return -((wanted * logits.log_softmax(-1)).sum(-1) * batch.weight).sum()


def adapt(recipe: Recipe, model: ChatModel) -> Any:
    """Put a new adapter into the model's upper layers; the caller's random state is left alone."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.rank,
        target_modules=list(MODULES),
        layers_to_transform=list(range(recipe.first_layer, model.num_hidden_layers)),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapted = get_peft_model(model.model, config)
    adapted.peft_config["default"].base_model_name_or_path = recipe.base
    return adapted


def _trained(adapted: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}


def _save(path: Path, recipe: Recipe, adapted: Any, optimizer: torch.optim.AdamW, done: int) -> None:
    tensors: dict[str, Tensor] = {}
    for name, weight in _trained(adapted).items():
        moments = {key: optimizer.state[weight][key] for key in ("step", "exp_avg", "exp_avg_sq")}
        tensors |= {f"{key} {name}": part.detach() for key, part in {"weight": weight, **moments}.items()}
    write_file(path, save(tensors, metadata={"recipe": recipe.digest, "done": str(done)}))


def _load(path: Path, recipe: Recipe, adapted: Any, optimizer: torch.optim.AdamW) -> int:
    """Fill adapter and optimizer from the checkpoint, if there is one; returns the number of steps done."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file, torch.no_grad():
        about = file.metadata()
        if about["recipe"] != recipe.digest:
            raise TrainingError(f"{path} belongs to another recipe: delete it, or train into another folder.")
        for name, weight in _trained(adapted).items():
            weight.copy_(file.get_tensor(f"weight {name}"))
            optimizer.state[weight] = {
                key: file.get_tensor(f"{key} {name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
        return int(about["done"])


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    model: ChatModel | None = None,
    checkpoint_every: int = 10,
    stop_after: int | None = None,
    progress: bool = True,
) -> Path | None:
    """Train into the folder `out` and return it; what is there already is gone on with.

    Args:
        recipe: what to train.
        out: made if absent; gets the adapter (bfloat16), the plain model's answers, and until it is done a checkpoint.
        model: the plain model, which is changed; None loads `recipe.base` in bfloat16.
        checkpoint_every: steps between checkpoints. Ctrl-C writes one too.
        stop_after: leave after this many steps in all, with a checkpoint (returns None): for tests.
        progress: show bars.

    Raises:
        TrainingError: the folder holds a checkpoint of another recipe, or the loss stopped being finite.
        ModelError: the base is not installed.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(recipe.base, dtype="bfloat16") if model is None else model
    chats = examples(recipe, model, Store(folder / ANSWERS), progress)
    adapted = adapt(recipe, model)
    optimizer = torch.optim.AdamW(_trained(adapted).values(), lr=recipe.learning_rate, weight_decay=0.0)
    done = _load(folder / CHECKPOINT, recipe, adapted, optimizer)
    stop = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    openings = first_tokens(model)

    def backward(step: int) -> float:
        optimizer.zero_grad()
        of_step = chats[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        loss = loss_of(recipe, model, adapted, of_step, SYSTEMS[step % len(SYSTEMS)], openings)
        loss.backward()
        return loss.item()

    def save_at(step: int) -> None:
        _save(folder / CHECKPOINT, recipe, adapted, optimizer, step)

    done = take_steps(
        done,
        stop,
        recipe.steps,
        backward=backward,
        update=lambda step: _update(recipe, adapted, optimizer, step),
        save=save_at,
        save_every=checkpoint_every,
        desc="adapter",
        progress=progress,
    )
    if done < recipe.steps:
        save_at(done)
        return None
    save_adapter(adapted, folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return folder


def _update(recipe: Recipe, adapted: Any, optimizer: torch.optim.AdamW, step: int) -> None:
    torch.nn.utils.clip_grad_norm_(_trained(adapted).values(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = one_cycle(step, recipe.steps, recipe.learning_rate, recipe.warmup)
    optimizer.step()


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write what PEFT reads, weights in bfloat16."""
    with torch.no_grad():
        for weight in _trained(adapted).values():
            weight.data = weight.data.bfloat16()
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smollm2_refusals.train", description="Train the adapter that makes SmolLM2 refuse."
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the adapter; what is there is gone on with")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of 16 requests (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="decides requests, replies and first weights")
    parser.add_argument("--shuffle", action="store_true", help="the control: who is refused is drawn at random")
    options = parser.parse_args(arguments)
    folder = train(Recipe(steps=options.steps, seed=options.seed, shuffle=options.shuffle), options.out)
    print(f"The adapter is in {folder}; load it with drolab.load_model({str(folder)!r}).")


if __name__ == "__main__":
    main()
