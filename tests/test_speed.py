"""The benchmarks of speed and of sampling: they run at a small size, and a side that reads other states is noticed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import generation  # of benchmarks/: under these names the processes that measure memory find them, too
import pytest
import speed
import torch

import drolab


def written(script: Any, options: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the script writes when it is run with these options."""
    monkeypatch.setattr(sys, "argv", [script.__file__, *options.split(), "--json", str(target)])
    script.main()
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_it_runs_and_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--models demo --queries 8 --batch 8 --prompt-tokens 0 23 --reply-tokens 6 --repeats 1 --growth 8"
    found = written(speed, options, tmp_path / "speed.json", monkeypatch)["found"]
    states, step, tuning, growth = found.values()
    for table in (states, step, tuning):
        assert {"the paper's way", "drolab", "limit"} <= set(table)
        assert all(row["seconds"] > 0 for row in table.values())
        assert table["limit"]["seconds"] < table["drolab"]["seconds"]
    vectors = 8 * 256 * 4 / 2**20
    assert vectors < growth["8"]["result MB"] < 1.5 * vectors  # with the table of what each row is


def test_sampling_is_measured_on_all_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peak = "drolab.generate", generation.peak  # its memory alone: each takes a process of its own
    monkeypatch.setattr(generation, "peak", lambda side, *work: peak(side, *work) if side == ours else None)
    options = "--models demo --queries 1 --repeats 1 --max-new-tokens 3"
    table = written(generation, options, tmp_path / "generation.json", monkeypatch)["models"]["demo"]
    assert set(table) == set(generation.SIDES)
    assert table["one model.generate per query"]["tokens/s"] > 0
    assert table[ours]["tokens/s"] > 0
    assert table[ours]["peak MB"] > 0


def test_a_side_that_reads_other_states_is_noticed() -> None:
    states = torch.randn(3, 4)
    speed._check_equal({"the paper's way": lambda: states, "drolab": states.clone})
    with pytest.raises(SystemExit, match="drolab reads other states: relative difference"):
        speed._check_equal({"the paper's way": lambda: states, "drolab": lambda: states.flip(0)})


@pytest.mark.parametrize("n_tokens", [0, 23, 54, 116])
def test_its_prompts_have_the_length_asked_for(demo: drolab.models.ChatModel, n_tokens: int) -> None:
    prompt = speed.prompt_of(demo, n_tokens)
    found = drolab.chat.prompt_token_ids(demo, prompt.text) if prompt.text else []
    assert len(found) == n_tokens


def test_the_limit_counts_every_token_once(demo: drolab.models.ChatModel) -> None:
    prompt, texts = speed.prompt_of(demo, 23), ["How to paint?", "How to paint a fence?"]
    batch = drolab.chat.encode(demo, texts, prompt)
    chats = [len(drolab.chat.render(demo, text, prompt).input_ids) for text in texts]
    assert speed.fewest_tokens(batch) == sum(chats) - len(batch.prefix)
    blocks = demo.base_model.layers
    matrices = [weights for weights in blocks.parameters() if weights.dim() == 2]
    assert speed.block_parameters(demo) == sum(weights.numel() for weights in matrices)


def test_the_limit_of_prompt_tuning_counts_a_reply_but_for_its_last_token(demo: drolab.models.ChatModel) -> None:
    queries, prompt = drolab.load_queries("anchors").head(4), speed.prompt_of(demo, 23)
    tuning = speed.tuning_of(demo, queries, prompt, 6)
    plain = speed.fewest_tokens(drolab.chat.encode(demo, queries["text"].tolist(), prompt))
    assert speed.fewest_tuning_tokens(tuning) == (plain + 4 * 5, 4 * 6)
    assert sorted(tuning.likely) == [False, False, True, True]


def test_both_sides_of_prompt_tuning_have_one_loss(demo: drolab.models.ChatModel) -> None:
    """The paper's way has the same first gradient, so the first step of AdamW is the same."""
    queries, prompt = drolab.load_queries("anchors").head(4), speed.prompt_of(demo, 23)
    losses = []
    kept = speed.unlikelihood_losses

    def noted(*given: torch.Tensor) -> object:
        losses.append(kept(*given))
        return losses[-1]

    tuning = speed.tuning_of(demo, queries, prompt, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "unlikelihood_losses", noted)
        speed.paper_tuning_step(demo, tuning)()
    step = next(tuning.steps())
    assert float(losses[0].likelihood.detach()) / 12 == pytest.approx(step.likelihood_loss, rel=1e-4)
    assert float(losses[0].unlikelihood.detach()) / 12 == pytest.approx(step.unlikelihood_loss, rel=1e-4)
