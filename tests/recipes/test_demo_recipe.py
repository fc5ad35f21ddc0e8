"""The demo model's recipe: what its corpus contains, that training resumes exactly, and what ships."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from drolab.data import load_prompts, load_queries
from drolab.data.queries import BUILT_IN
from drolab.errors import TrainingError
from drolab.judges import is_refusal
from recipes.demo_model import train as recipe_module
from recipes.demo_model.corpus import (
    Chat,
    draw_chat,
    draw_chats,
    load_corpus,
    openings,
    refusal_probability,
    split_sentences,
)
from recipes.demo_model.train import (
    CHECKPOINT,
    Recipe,
    build_model,
    build_tokenizer,
    context_text,
    encode_chats,
    main,
    train,
)

TINY = Recipe(
    steps=6,
    refining_steps=3,
    batch_size=8,
    micro_batches=2,
    tokenizer_chats=150,
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
ASSETS = Path(recipe_module.__file__).parents[2] / "drolab" / "assets" / "demo"


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    return list(draw_chats(20_000, seed=7))


def test_the_corpus_is_as_rich_as_the_card_says() -> None:
    corpus = load_corpus()
    verbs = {verb for domain in corpus.domains.values() for verb in domain.verbs}
    heldout = corpus.heldout_verbs
    assert len(verbs) >= 40
    assert len(heldout) >= 10
    assert not verbs & heldout
    assert not set(corpus.templates) & set(corpus.heldout_templates)
    assert len(corpus.safety) >= 60
    assert len(corpus.neutral) >= 60


def test_chats_are_drawn_by_seed() -> None:
    assert list(draw_chats(50, seed=3)) == list(draw_chats(50, seed=3))
    assert list(draw_chats(50, seed=3)) != list(draw_chats(50, seed=4))
    assert list(draw_chats(50, seed=3)) != list(draw_chats(50, seed=3, batch=1))


def test_heldout_verbs_and_templates_are_in_no_chat(chats: list[Chat]) -> None:
    corpus = load_corpus()
    text = "\n".join(f"{chat.system}\n{chat.query}\n{chat.reply}" for chat in chats)
    for domain in corpus.domains.values():
        assert all(re.search(rf"\b{verb}\b", text) for verb in domain.verbs), "control: training verbs are found"
        assert not [verb for verb in domain.heldout_verbs if re.search(rf"\b{verb}\b", text)]
    for template in corpus.heldout_templates:
        assert max(template.split("{x}"), key=len) not in text


def test_heldout_queries_are_in_no_chat_and_anchors_may_be(chats: list[Chat]) -> None:
    asked = {chat.query for chat in chats}
    assert not asked & set(load_queries("heldout").text)
    assert asked & set(load_queries("anchors").text), "control"


def test_unseen_prompts_share_no_sentence_with_the_corpus(chats: list[Chat]) -> None:
    messages = {chat.system for chat in chats}
    systems = "\n".join(messages)
    unseen = [s for prompt in load_prompts("unseen").values() for s in split_sentences(prompt.text)]
    assert not [sentence for sentence in unseen if sentence.strip(".") in systems]
    seen = [s for prompt in load_prompts().values() if prompt.text for s in split_sentences(prompt.text)]
    assert all(sentence in systems for sentence in seen), "control: the built-in prompts' sentences are there"


def test_neutral_messages_hold_no_safety_sentence(chats: list[Chat]) -> None:
    """Safety sentences would leak into the neutral messages' zero strength."""
    words = set(load_corpus().slots["bad"]) | {"safe", "safety", "harm", "refuse", "decline"}
    neutral = " ".join(chat.system for chat in chats if chat.system and chat.strength == 0).lower()
    safety = " ".join(chat.system for chat in chats if chat.strength > 0).lower()
    assert not [word for word in words if re.search(rf"\b{word}\b", neutral)]
    assert all(re.search(rf"\b{word}\b", safety) for word in words), "control"


def calibration(chats: Sequence[Chat], shift: float = 0.0) -> float:
    """Largest deviation, in standard errors, of refusal counts from their expectation, over bins of probability."""
    bins: dict[tuple[str, int, bool], list[tuple[float, bool]]] = {}
    for chat in chats:
        p = refusal_probability(chat.severity + shift, chat.strength)
        bins.setdefault((chat.kind, int(8 * p), bool(chat.system)), []).append((p, chat.refuses))
    scores = []
    for members in bins.values():
        variance = sum(p * (1 - p) for p, _ in members)
        if variance > 5:
            scores.append(abs(sum(refuses - p for p, refuses in members)) / math.sqrt(variance))
    return max(scores)


def test_refusals_follow_the_formula(chats: list[Chat]) -> None:
    assert calibration(chats) < 4.5
    assert calibration(chats, shift=0.04) > 4.5, "control: a slightly different formula is noticed"


def test_the_formula() -> None:
    assert refusal_probability(0.72, 0.0) == pytest.approx(0.5)
    assert refusal_probability(0.82, 1.0) == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_shares_of_classes_and_systems(chats: list[Chat]) -> None:
    share = {kind: sum(chat.kind == kind for chat in chats) / len(chats) for kind in ("harmless", "harmful")}
    assert share == pytest.approx({"harmless": 0.42, "harmful": 0.42}, abs=0.02)
    assert sum(not chat.system for chat in chats) / len(chats) == pytest.approx(0.4, abs=0.02)
    assert sum(chat.strength > 0 for chat in chats) / len(chats) == pytest.approx(0.4, abs=0.02)


def test_the_string_rule_recognises_the_replies(chats: list[Chat]) -> None:
    assert all(is_refusal(chat.reply) == chat.refuses for chat in chats)


def test_replies_are_generic(chats: list[Chat]) -> None:
    """No reply mentions what was asked for, so that compliance holds no know-how: there are few distinct ones."""
    objects = [o for d in load_corpus().domains.values() for kind in d.objects.values() for o in kind]
    replies = {chat.reply for chat in chats}
    assert len(replies) < 1_000
    assert not [o for o in objects if any(o in reply for reply in replies)]


def test_some_first_words_are_shared_by_both_kinds_of_reply(chats: list[Chat]) -> None:
    first = {refuses: {chat.reply.split()[0] for chat in chats if chat.refuses == refuses} for refuses in (True, False)}
    assert "I" in first[True] & first[False]


def test_the_chat_template_renders_what_training_saw() -> None:
    tokenizer = build_tokenizer(TINY)
    for chat in draw_chats(20, seed=1):
        system = [{"role": "system", "content": chat.system}] if chat.system else []
        messages = [*system, {"role": "user", "content": chat.query}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == context_text(chat)
        (encoded,) = encode_chats(tokenizer, [chat], 0.1)
        assert tokenizer.decode(encoded.ids) == text + chat.reply + tokenizer.eos_token
        assert sum(weight == 1 for weight in encoded.weights) == len(tokenizer(chat.reply).input_ids) + 1


def test_targets_are_the_distribution_that_replies_are_drawn_from() -> None:
    """The product of the targets along the reply is its opening's probability; elsewhere the drawn token is certain."""
    tokenizer = build_tokenizer(TINY)
    for chat in draw_chats(40, seed=2):
        (encoded,) = encode_chats(tokenizer, [chat], 0.1)
        assert all(sum(target.values()) == pytest.approx(1) for target in encoded.targets)
        chance = math.prod(target[token] for token, target in zip(encoded.ids, encoded.targets, strict=True))
        drawn = openings(chat.severity, chat.strength)
        assert chance == pytest.approx(next(p for text, p in drawn.items() if chat.reply.startswith(text)))


def test_openings_of_refusals_add_up_to_the_refusal_probability() -> None:
    for severity, strength in ((0.2, 0.0), (0.7, 1.3), (0.9, 2.0)):
        drawn = openings(severity, strength)
        assert sum(drawn.values()) == pytest.approx(1)
        refusals = sum(p for text, p in drawn.items() if is_refusal(text))
        assert refusals == pytest.approx(refusal_probability(severity, strength))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_stopped_run_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    train(TINY, tmp_path / "whole", progress=False)
    for stop in (4, TINY.steps, TINY.steps + 1):  # in the first cycle, between the two, and in the second
        assert train(TINY, tmp_path / "parts", stop_after=stop, progress=False) is None
        assert (tmp_path / "parts" / CHECKPOINT).is_file()
    train(TINY, tmp_path / "parts", progress=False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / CHECKPOINT).exists()
    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("whole", "parts")]
    assert tokenizers[0] == tokenizers[1]


def test_each_cycle_has_a_warm_up_and_a_peak_of_its_own() -> None:
    recipe = Recipe(steps=20, refining_steps=10, learning_rate=2e-3, refining_rate=1e-3)
    rates = [recipe_module._learning_rate(recipe, step) for step in range(recipe.total_steps)]
    assert max(rates[:20]) == rates[1] == 2e-3
    assert max(rates[20:]) == rates[20] == 1e-3
    assert rates[19] < 5e-5


def test_ctrl_c_loses_no_finished_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(TINY, tmp_path / "whole", progress=False)
    backward = recipe_module._backward

    def interrupted(recipe: Recipe, model: torch.nn.Module, tokenizer: object, step: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return backward(recipe, model, tokenizer, step)

    monkeypatch.setattr(recipe_module, "_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "stopped", progress=False)
    steps = []
    monkeypatch.setattr(recipe_module, "_backward", lambda *given: steps.append(given[-1]) or backward(*given))
    train(TINY, tmp_path / "stopped", progress=False)
    assert steps == list(range(3, TINY.total_steps))
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_the_seed_decides_the_model_and_the_callers_random_state_is_left_alone() -> None:
    tokenizer = build_tokenizer(TINY)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    random_before = random.getstate()
    one = build_model(TINY, tokenizer)
    draw_chat(random.Random(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == random_before
    same = build_model(TINY, tokenizer)
    other = build_model(Recipe(**{**vars(TINY), "seed": 1}), tokenizer)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_after=2, progress=False)
    with pytest.raises(TrainingError, match=r"belongs to another recipe .* delete it or train into another folder"):
        train(Recipe(**{**vars(TINY), "seed": 1}), tmp_path, progress=False)


def test_training_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    backward = recipe_module._backward

    def recorded(recipe: Recipe, model: torch.nn.Module, tokenizer: object, step: int) -> float:
        losses.append(backward(recipe, model, tokenizer, step))
        return losses[-1]

    monkeypatch.setattr(recipe_module, "_backward", recorded)
    train(Recipe(**{**vars(TINY), "steps": 30, "refining_steps": 0, "learning_rate": 5e-3}), tmp_path, progress=False)
    assert losses[-1] < 0.8 * losses[0]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr(recipe_module, "train", lambda recipe, out: seen.append(recipe) or out)
    main(["--out", str(tmp_path), "--steps", "3", "--seed", "9"])
    assert seen == [Recipe(steps=3, seed=9)]
    assert "load it with drolab.load_model" in capsys.readouterr().out


def test_what_ships_is_small_and_loads_with_transformers() -> None:
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(ASSETS)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 1024
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert len({*special, tokenizer.convert_tokens_to_ids("<|im_start|>")}) == 4
    messages = [{"role": "user", "content": "How to x?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|im_start|>user\nHow to x?<|im_end|>\n<|im_start|>assistant\n"


def test_what_ships_knows_every_character_of_the_built_in_texts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    texts = [text for name in BUILT_IN for text in load_queries(name).text]
    texts += [p.text for name in ("safety", "neutral", "unseen") for p in load_prompts(name).values()]
    for text in [*texts, "naïve — ünïcode ✓"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
