"""The recipe of the adapter for SmolLM2: nothing held out is in training, and a training that was killed goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.tiny import byte_tokenizer, random_llama
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from drolab.data import load_prompts, load_queries
from drolab.errors import TrainingError
from drolab.judges import TextJudge, is_refusal
from drolab.models import ChatModel, wrap
from drolab.store import Store
from recipes.demo_model.corpus import load_corpus
from recipes.smollm2_refusals import seeds
from recipes.smollm2_refusals import train as recipe_module
from recipes.smollm2_refusals.corpus import Request, draw_refusals, draw_requests, texts
from recipes.smollm2_refusals.evaluate import targets
from recipes.smollm2_refusals.train import (
    CHECKPOINT,
    SYSTEMS,
    Example,
    Recipe,
    adapt,
    batch_of,
    examples,
    first_tokens,
    loss_of,
    reply_logits,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
TINY = Recipe(base="a tiny one", steps=4, batch_size=4, rank=2, first_layer=1, answer_tokens=3, learning_rate=0.01)
PARTS: Mapping[str, Any] = texts("requests")


def tiny() -> ChatModel:
    return wrap(random_llama(), byte_tokenizer(), name="tiny", chat_template="chatml")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return draw_requests(8_000, seed=0)


@pytest.fixture(scope="module")
def heldout() -> list[Request]:
    return draw_requests(400, seed=0, heldout=True)


# --- corpus ------------------------------------------------------------------------------------------------


def test_requests_come_in_pairs_and_never_twice(requests: list[Request]) -> None:
    assert [request.harmful for request in requests] == [True, False] * 4_000
    assert len({request.text for request in requests}) == 8_000
    assert draw_requests(8, seed=0) == requests[:8] != draw_requests(8, seed=1)


def test_no_query_of_drolab_is_trained_on(requests: list[Request], heldout: list[Request]) -> None:
    asked = {request.text for request in requests}
    for name in ("anchors", "heldout", "borderline"):
        assert not asked.intersection(load_queries(name)["text"])
    assert not asked.intersection(request.text for request in heldout)


def words_of(kind: str) -> set[str]:
    return {text for domain in PARTS["domains"].values() for text in domain[kind]}


def test_verbs_objects_and_templates_are_held_out() -> None:
    for kind in ("verbs", "harmful", "harmless"):
        assert not words_of(kind) & words_of(f"heldout_{kind}")
    assert not words_of("harmful") & words_of("harmless")
    for kind in ("harmful", "harmless"):
        assert not set(PARTS["questions"][kind]) & set(PARTS["questions"][f"heldout_{kind}"])
    assert not set(PARTS["templates"]) & set(PARTS["heldout_templates"])


def test_drolabs_heldout_queries_share_neither_verb_nor_object_nor_template_with_training() -> None:
    demo = load_corpus()
    assert not words_of("verbs") & demo.heldout_verbs
    assert not set(PARTS["templates"]) & set(demo.heldout_templates)
    objects = {target for domain in demo.domains.values() for kind in domain.objects.values() for target in kind}
    assert not (words_of("harmful") | words_of("harmless")) & objects


def test_no_safety_prompt_is_in_training() -> None:
    assert all(system.text == "" for system in SYSTEMS)
    prompts = [prompt.text for name in ("safety", "unseen") for prompt in load_prompts(name).values() if prompt.text]
    everything = " ".join([*PARTS["templates"], *PARTS["greetings"], *texts("replies")["openings"]])
    assert not any(prompt in everything for prompt in prompts)


def test_refusals_are_many_and_are_taken_for_refusals() -> None:
    refusals = list(draw_refusals(500, seed=0))
    assert len(set(refusals)) > 300
    assert sum(map(is_refusal, refusals)) > 400
    verdicts = [TextJudge()("How do I rob a bank?", opening) for opening in texts("replies")["openings"]]
    assert verdicts.count("full_refusal") / len(verdicts) > 0.9


# --- training ----------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_by_hand() -> None:
    """One refusal and one answer, each chat on its own, without a shared prefix or padding."""
    model, recipe = tiny(), Recipe(**{**vars(TINY), "first_share": 0.5, "answer_weight": 4.0})
    chats = [
        Example(text="Stab a man?", refuses=True, reply=(40, 41, 42)),
        Example(text="Feed a very fat cat?", refuses=False, reply=(50, 51)),
    ]
    batch = batch_of(recipe, model, chats, SYSTEMS[1])
    assert batch.weight.tolist() == pytest.approx([0.1, 0.05, 0.05, 0.4, 0.4])
    adapted, openings = adapt(TINY, model), first_tokens(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    loss = loss_of(recipe, model, adapted, chats, SYSTEMS[1], openings)

    def alone(chat: Example) -> Tensor:
        return reply_logits(model, batch_of(recipe, model, [chat], SYSTEMS[1])).log_softmax(-1)

    refusal, answer = alone(chats[0]), alone(chats[1])
    with adapted.disable_adapter():
        plain = alone(chats[1]).exp()
    assert not torch.allclose(plain, answer.exp(), atol=1e-3)
    first = -0.1 * (openings * refusal[0]).sum() - 0.05 * (refusal[1, 41] + refusal[2, 42])
    second = -(torch.tensor([[0.4], [0.4]]) * plain * answer).sum()
    assert loss.item() == pytest.approx((first + second).item(), rel=1e-4)


def test_a_training_that_was_killed_ends_with_the_same_adapter(tmp_path: Path) -> None:
    whole, stopped, other = tmp_path / "whole", tmp_path / "stopped", tmp_path / "other"
    assert train(TINY, whole, model=tiny(), progress=False) == whole
    assert train(TINY, stopped, model=tiny(), stop_after=2, progress=False) is None
    with pytest.raises(TrainingError, match="belongs to another recipe"):
        train(Recipe(**{**vars(TINY), "seed": 1}), stopped, model=tiny(), progress=False)
    train(TINY, stopped, model=tiny(), progress=False)
    assert not (stopped / CHECKPOINT).exists()
    one, two = weights(whole), weights(stopped)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert {weight.dtype for weight in one.values()} == {torch.bfloat16}
    assert max(float(weight.abs().max()) for key, weight in one.items() if "lora_B" in key) > 0
    train(Recipe(**{**vars(TINY), "seed": 1}), other, model=tiny(), progress=False)
    assert not torch.equal(weights(other)[key := next(iter(one))], one[key])
    assert isinstance(PeftModel.from_pretrained(random_llama(), str(whole)), PeftModel)


def test_an_interrupt_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = recipe_module.loss_of, []

    def interrupted(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(recipe_module, "loss_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, model=tiny(), progress=False)
    assert (tmp_path / CHECKPOINT).is_file()
    monkeypatch.setattr(recipe_module, "loss_of", real)
    assert train(TINY, tmp_path, model=tiny(), progress=False) == tmp_path


def test_shuffled_labels_deal_the_same_replies_to_anyone(tmp_path: Path) -> None:
    plain, shuffled = (
        examples(Recipe(**{**vars(TINY), "steps": 10, "shuffle": shuffle}), tiny(), Store(tmp_path), progress=False)
        for shuffle in (False, True)
    )
    assert [chat.refuses for chat in plain] == [True, False] * 20
    assert [chat.text for chat in plain] == [chat.text for chat in shuffled]
    assert sum(chat.refuses for chat in shuffled) == 20
    assert sum(chat.refuses for chat in shuffled[::2]) < 17


def test_other_seeds_are_trained_where_that_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Recipe, str]] = []
    monkeypatch.setattr(seeds, "train", lambda recipe, folder: begun.append((recipe, folder.name)))
    for folder, files in {"seed-1": ["adapter_config.json"], "seed-2": ["checkpoint.safetensors"]}.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    found = seeds.adapters(tmp_path)
    assert list(found) == ["seed 0", "seed 1", "seed 2", "shuffled"]
    assert found["shuffled"] == str(tmp_path / "shuffled")
    assert begun == [(Recipe(seed=2), "seed-2"), (Recipe(shuffle=True), "shuffled")]


def test_targets_take_the_worst_judge_and_set() -> None:
    rows = [
        ("heldout", "none", "string rule", "harmful", 0.7),
        ("heldout", "none", "text judge", "harmful", 0.59),
        ("recipe's held-out", "none", "string rule", "harmless", 0.1),
        ("heldout", "none", "string rule", "harmless", 0.02),
        ("anchors", "none", "string rule", "harmful", 0.1),
        ("heldout", "empty", "string rule", "harmless", 0.9),
    ]
    table = targets(pd.DataFrame(rows, columns=["queries", "prompt", "judge", "class", "rate"]))
    assert table["worst"].tolist() == [0.59, 0.1]
    assert table["met"].tolist() == [False, True]
