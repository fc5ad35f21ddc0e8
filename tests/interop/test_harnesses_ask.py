"""Tasks of lm-eval and inspect_ai about drolab's models: what is measured is what drolab itself computes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.outside import python, surroundings, versions

import drolab
from drolab import export
from drolab.harnesses import Subject
from drolab.probing import Direction
from drolab.types import SoftPrompt

TASKS = Path(__file__).parent / "tasks"
GREEDY = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What is asked: `Subject.load`'s arguments, by name."""
    root, model = tmp_path_factory.mktemp("harness"), drolab.load_model("demo")
    vectors = drolab.models.embed_text(model, drolab.load_prompts()["default"].text) + 0.02  # those of no text
    soft = SoftPrompt(name="soft", embeddings=vectors, model_fingerprint=model.fingerprint)
    export.to_peft(soft, model, root / "soft")
    vector = torch.randn(256, generator=torch.Generator().manual_seed(0))
    numbers = {"threshold": 0.0, "scale": 1.0, "setting": math.nan, "layer": 2}
    direction = Direction(method="random", positive="random", vector=vector / vector.norm(), **numbers)
    export.save_directions(direction, model, root / "direction")
    return {
        "a text prompt": {"prompt": "default"},
        "a soft prompt": {"prompt": str(root / "soft")},
        "a steering direction": {"direction": str(root / "direction"), "strength": 40},
    }


def questions(folder: Path, subject: Subject) -> pd.DataFrame:
    """Questions with drolab's own greedy answers, and which of two beginnings it finds more probable."""
    asked = drolab.load_queries("heldout")["text"].tolist()[:10]
    answers = subject.replies(asked, **GREEDY)["response"]
    refused, done = (subject.log_likelihoods(asked, [text] * 10) for text in ("I cannot", "Sure"))
    likelier = [int(b > a) for a, b in zip(refused, done, strict=True)]
    table = pd.DataFrame({"question": asked, "answer": answers, "likelier": likelier})
    table.to_json(folder / "questions.jsonl", orient="records", lines=True)
    return table


def lm_eval(folder: Path, arguments: dict[str, object]) -> dict[str, float]:
    shutil.copytree(TASKS, folder, dirs_exist_ok=True)
    given = ",".join(f"{name}={value}" for name, value in {"model": "demo", **arguments}.items())
    command = [python("tools"), "-m", "drolab.harnesses.lm_eval", "run", "--model", "drolab", "--model_args", given]
    command += ["--tasks", "drolab_replies,drolab_choice", "--include_path", ".", "--output_path", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings(), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (folder / "out").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    shutil.rmtree(folder / "out")
    return {"exact": results["drolab_replies"]["exact_match,none"], "acc": results["drolab_choice"]["acc,none"]}


@pytest.mark.parametrize("who", ["a text prompt", "a soft prompt", "a steering direction"])
def test_lm_eval(who: str, folders: dict[str, dict[str, object]], tmp_path: Path, record: Any) -> None:
    questions(tmp_path, Subject.load("demo", **folders[who]))  # type: ignore[arg-type]
    assert lm_eval(tmp_path, folders[who]) == {"exact": 1.0, "acc": 1.0}
    without = lm_eval(tmp_path, {})["exact"]
    assert without < 0.9  # the control: without the prompt the replies are others
    said = f"10 of 10 greedy replies and 10 of 10 choices are drolab's own; without it {without:.0%} of the replies"
    record(
        "lm-eval", f"the demo model under {who}, generate_until and multiple_choice", said, versions("tools", "lm-eval")
    )


@pytest.mark.parametrize("who", ["a text prompt", "a soft prompt", "a steering direction"])
def test_inspect_ai(who: str, folders: dict[str, dict[str, object]], tmp_path: Path, record: Any) -> None:
    questions(tmp_path, Subject.load("demo", **folders[who]))  # type: ignore[arg-type]
    shutil.copy(TASKS / "replies.py", tmp_path)
    accuracy = {}
    for name, arguments in {"with": folders[who], "without": {}}.items():
        command = [python("tools"), "-m", "inspect_ai", "eval", "replies.py", "--model", "drolab/demo"]
        command += ["-T", "file=questions.jsonl", "--display", "none", "--log-format", "json", "--log-dir", name]
        command += [part for key, value in arguments.items() for part in ("-M", f"{key}={value}")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=surroundings(), timeout=900)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
        (log,) = (tmp_path / name).glob("*.json")
        said = json.loads(log.read_text())
        assert said["status"] == "success", said.get("error")
        accuracy[name] = said["results"]["scores"][0]["metrics"]["mean"]["value"]
    assert accuracy["with"] == 1.0
    assert accuracy["without"] < 0.9
    agreed = f"10 of 10 greedy replies are drolab's own; without it {accuracy['without']:.0%}"
    record("inspect_ai", f"the demo model under {who}", agreed, versions("tools", "inspect-ai"))
