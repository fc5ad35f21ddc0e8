"""The benchmarks of speed and of sampling: they run at a small size, and a side that reads other states is noticed."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import drolab

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


def test_it_runs_and_writes_its_tables(tmp_path: Path) -> None:
    options = "--models demo --queries 8 --batch 8 --prompt-tokens 0 23 --repeats 1 --growth 8"
    target = tmp_path / "speed.json"
    subprocess.run([sys.executable, str(SCRIPT), *options.split(), "--json", str(target)], check=True)
    written = json.loads(target.read_text())
    states, step, growth = written["found"].values()
    for table in (states, step):
        assert {"the paper's way", "drolab", "limit"} <= set(table)
        assert all(row["seconds"] > 0 for row in table.values())
        assert table["limit"]["seconds"] < table["drolab"]["seconds"]
    vectors = 8 * 256 * 4 / 2**20
    assert vectors < growth["8"]["result MB"] < 1.5 * vectors  # with the table of what each row is


def test_sampling_is_measured_on_all_sides(tmp_path: Path) -> None:
    target = tmp_path / "generation.json"
    options = "--models demo --queries 1 --repeats 1 --max-new-tokens 3"
    script = SCRIPT.with_name("generation.py")
    subprocess.run([sys.executable, str(script), *options.split(), "--json", str(target)], check=True)
    table = json.loads(target.read_text())["models"]["demo"]
    assert {"one model.generate per query", "drolab.generate"} <= set(table)
    for side in ("one model.generate per query", "drolab.generate"):
        assert table[side]["tokens/s"] > 0
        assert table[side]["peak MB"] > 0


def test_a_side_that_reads_other_states_is_noticed() -> None:
    check = runpy.run_path(str(SCRIPT))["_check_equal"]
    states = torch.randn(3, 4)
    check({"the paper's way": lambda: states, "drolab": states.clone})
    with pytest.raises(SystemExit, match="drolab reads other states: relative difference"):
        check({"the paper's way": lambda: states, "drolab": lambda: states.flip(0)})


@pytest.mark.parametrize("n_tokens", [0, 23, 54, 116])
def test_its_prompts_have_the_length_asked_for(demo: drolab.models.ChatModel, n_tokens: int) -> None:
    prompt = runpy.run_path(str(SCRIPT))["prompt_of"](demo, n_tokens)
    found = drolab.chat.prompt_token_ids(demo, prompt.text) if prompt.text else []
    assert len(found) == n_tokens


def test_the_limit_counts_every_token_once(demo: drolab.models.ChatModel) -> None:
    script = runpy.run_path(str(SCRIPT))
    prompt, texts = script["prompt_of"](demo, 23), ["How to paint?", "How to paint a fence?"]
    batch = drolab.chat.encode(demo, texts, prompt)
    chats = [len(drolab.chat.render(demo, text, prompt).input_ids) for text in texts]
    assert script["fewest_tokens"](batch) == sum(chats) - len(batch.prefix)
    blocks = demo.base_model.layers
    matrices = [weights for weights in blocks.parameters() if weights.dim() == 2]
    assert script["block_parameters"](demo) == sum(weights.numel() for weights in matrices)
