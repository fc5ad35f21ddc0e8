"""Train the demo model from scratch: `python -m recipes.demo_model.train --out FOLDER [--steps N] [--seed 0]`.

A small Llama learns the corpus of `recipes.demo_model.corpus` in three quarters of an hour on one CPU core. The run is
deterministic by seed on one machine, writes a checkpoint every few steps, and goes on from it when it is started
again: a resumed run ends with the same numbers as one that was never stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drolab.errors import TrainingError
from drolab.files import write_file
from recipes.demo_model.corpus import Chat, draw_chats, openings
from recipes.training import digest, one_cycle, take_steps

PAD, BOS, START, END = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out. The defaults made the model that ships with drolab."""

    seed: int = 0
    steps: int = 1_000
    """Of the first cycle."""
    refining_steps: int = 400
    """Of a second cycle: a new optimizer starts from the weights rounded to bfloat16, as they are saved."""
    batch_size: int = 64
    """Chats per step, drawn independently; sorted by length into `micro_batches` for speed only."""
    micro_batches: int = 8
    learning_rate: float = 2e-3
    """The first cycle's peak; each cycle is a linear warm-up, then half a cosine down to a hundredth of the peak."""
    refining_rate: float = 1e-3
    """The second cycle's peak."""
    warmup: float = 0.1
    weight_decay: float = 0.05
    context_weight: float = 0.1
    """Loss weight of the tokens before the reply; the reply's own is 1."""
    tokenizer_chats: int = 12_000
    vocab_size: int = 1_600
    hidden_size: int = 256
    intermediate_size: int = 688
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2

    @property
    def total_steps(self) -> int:
        return self.steps + self.refining_steps

    @property
    def digest(self) -> str:
        """Names the recipe in checkpoints."""
        return digest(self)


def context_text(chat: Chat) -> str:
    """The chat up to where the assistant starts to write, as CHAT_TEMPLATE renders it (a test compares them)."""
    system = f"{START}system\n{chat.system}{END}\n" if chat.system else ""
    return f"{BOS}{system}{START}user\n{chat.query}{END}\n{START}assistant\n"


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on chats of their own (batch -1), with four special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[PAD, BOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = draw_chats(recipe.tokenizer_chats, seed=recipe.seed, batch=-1)
    texts = (f"{role}\n{text}" for chat in chats for role, text in _turns(chat))
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _turns(chat: Chat) -> list[tuple[str, str]]:
    turns = [("system", chat.system), ("user", chat.query), ("assistant", chat.reply)]
    return [(role, text) for role, text in turns if text]


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model; the caller's random state is left alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A chat as token ids, and for each token what the loss asks of the model that predicts it."""

    ids: list[int]
    targets: list[dict[int, float]]
    """token → probability. One token everywhere but in the reply's opening."""
    weights: list[float]


def encode_chats(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Chat], context_weight: float) -> list[Encoded]:
    """Token ids, targets and loss weights of each chat; the reply's closing token is learned too.

    In the reply's opening the target is the whole distribution that the reply was drawn from, given the tokens so
    far, and not the one token drawn: the same expectation with less noise.
    """
    contexts = tokenizer([context_text(chat) for chat in chats], add_special_tokens=False)["input_ids"]
    replies = tokenizer([chat.reply + END for chat in chats], add_special_tokens=False)["input_ids"]
    texts = list(openings(0.0, 0.0))
    pieces = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    encoded = []
    for chat, context, reply in zip(chats, contexts, replies, strict=True):
        drawn = {tuple(pieces[text]): p for text, p in openings(chat.severity, chat.strength).items()}
        encoded.append(
            Encoded(
                ids=context + reply,
                targets=[{token: 1.0} for token in context] + _reply_targets(reply, drawn),
                weights=[context_weight] * len(context) + [1.0] * len(reply),
            )
        )
    return encoded


def _reply_targets(reply: list[int], drawn: Mapping[tuple[int, ...], float]) -> list[dict[int, float]]:
    targets: list[dict[int, float]] = []
    for position, token in enumerate(reply):
        alive = {o: p for o, p in drawn.items() if len(o) > position and list(o[:position]) == reply[:position]}
        shares: dict[int, float] = {}
        for opening, probability in alive.items():
            shares[opening[position]] = shares.get(opening[position], 0.0) + probability
        total = sum(shares.values())
        targets.append({t: share / total for t, share in shares.items()} if shares else {token: 1.0})
    return targets


class _Batch(NamedTuple):
    ids: Tensor
    """[n, width], right-padded."""
    targets: Tensor
    """[n, width, k]: tokens that may stand there."""
    shares: Tensor
    """[n, width, k]: their probabilities times the loss weight; zero where nothing is asked."""


def _micro_batches(encoded: Sequence[Encoded], count: int, pad: int) -> Iterator[_Batch]:
    encoded = sorted(encoded, key=lambda chat: len(chat.ids))
    size = math.ceil(len(encoded) / count)
    for start in range(0, len(encoded), size):
        yield _collate(encoded[start : start + size], pad)


def _collate(encoded: Sequence[Encoded], pad: int) -> _Batch:
    width = max(len(chat.ids) for chat in encoded)
    most = max(len(target) for chat in encoded for target in chat.targets)
    ids = torch.tensor([chat.ids + [pad] * (width - len(chat.ids)) for chat in encoded])
    targets = torch.zeros(len(encoded), width, most, dtype=torch.long)
    shares = torch.zeros(len(encoded), width, most)
    for row, chat in enumerate(encoded):
        for position, (target, weight) in enumerate(zip(chat.targets, chat.weights, strict=True)):
            targets[row, position, : len(target)] = torch.tensor(list(target))
            shares[row, position, : len(target)] = weight * torch.tensor(list(target.values()))
    return _Batch(ids, targets, shares)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """The schedule of the cycle that the step is in."""
    if step < recipe.steps:
        return one_cycle(step, recipe.steps, recipe.learning_rate, recipe.warmup)
    return one_cycle(step - recipe.steps, recipe.refining_steps, recipe.refining_rate, recipe.warmup)


def _restart(model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> None:
    """The second cycle's beginning."""
    optimizer.state.clear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def _optimizer(recipe: Recipe, model: LlamaForCausalLM) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def _backward(recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, step: int) -> float:
    """Gradients of one step, on chats that only `(seed, step)` decides; returns the mean loss over weighted tokens."""
    model.zero_grad(set_to_none=True)
    chats = list(draw_chats(recipe.batch_size, seed=recipe.seed, batch=step))
    encoded = encode_chats(tokenizer, chats, recipe.context_weight)
    scale = sum(sum(chat.weights[1:]) for chat in encoded)
    total = 0.0
    for batch in _micro_batches(encoded, recipe.micro_batches, tokenizer.pad_token_id):
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        likelihoods = logits.log_softmax(-1).gather(-1, batch.targets[:, 1:])
        loss = -(likelihoods * batch.shares[:, 1:]).sum() / scale
        loss.backward()
        total += loss.item()
    return total


def _update(recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, step: int) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(recipe, step)
    optimizer.step()


def _save_checkpoint(
    path: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, step: int
) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{key}.{name}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
    write_file(path, save(tensors, metadata={"recipe": recipe.digest, "step": str(step)}))


def _load_checkpoint(path: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> int:
    """Fill model and optimizer from the checkpoint, if there is one; returns the number of steps done."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as opened, torch.no_grad():
        metadata = opened.metadata()
        if metadata["recipe"] != recipe.digest:
            raise TrainingError(
                f"{path} belongs to another recipe (other --steps or --seed?): delete it or train into another folder."
            )
        done = int(metadata["step"])
        for name, parameter in model.named_parameters():
            parameter.copy_(opened.get_tensor(f"model.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(done if done <= recipe.steps else done - recipe.steps)),
                "exp_avg": opened.get_tensor(f"exp_avg.{name}"),
                "exp_avg_sq": opened.get_tensor(f"exp_avg_sq.{name}"),
            }
    return done


def train(
    recipe: Recipe, out: str | Path, *, checkpoint_every: int = 20, stop_after: int | None = None, progress: bool = True
) -> Path | None:
    """Train into the folder `out` and return it; a checkpoint in it is resumed.

    Args:
        recipe: what to train.
        out: made if absent; gets weights (bfloat16), tokenizer, chat template, generation config.
        checkpoint_every: steps between checkpoints. Ctrl-C writes one too.
        stop_after: leave after this many steps in all, with a checkpoint (returns None): for tests.
        progress: show a progress bar.

    Raises:
        TrainingError: the folder holds a checkpoint of another recipe, or the loss stopped being finite.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    model.train()
    optimizer = _optimizer(recipe, model)
    done = _load_checkpoint(folder / CHECKPOINT, recipe, model, optimizer)
    stop = recipe.total_steps if stop_after is None else min(stop_after, recipe.total_steps)

    def backward(step: int) -> float:
        if step == recipe.steps:
            _restart(model, optimizer)
        return _backward(recipe, model, tokenizer, step)

    def save_at(step: int) -> None:
        _save_checkpoint(folder / CHECKPOINT, recipe, model, optimizer, step)

    done = take_steps(
        done,
        stop,
        recipe.total_steps,
        backward=backward,
        update=lambda step: _update(recipe, model, optimizer, step),
        save=save_at,
        save_every=checkpoint_every,
        desc="demo model",
        progress=progress,
    )
    if done < recipe.total_steps:
        save_at(done)
        return None
    save_folder(model, tokenizer, folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return folder


def save_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write what `AutoModelForCausalLM` and `AutoTokenizer` read, weights in bfloat16."""
    model.eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=0.9,
        top_k=0,
        max_new_tokens=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.demo_model.train", description="Train the demo model.")
    parser.add_argument("--out", required=True, type=Path, help="folder for the model; a checkpoint in it is resumed")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of the first cycle (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="decides weights, tokenizer chats and data")
    options = parser.parse_args(arguments)
    folder = train(Recipe(steps=options.steps, seed=options.seed), options.out)
    print(f"The model is in {folder}; load it with drolab.load_model({str(folder)!r}).")


if __name__ == "__main__":
    main()
