"""Is a run that was killed again and again the same as one left alone? `drolab reproduce` on tiny random models.

    python benchmarks/reproduce.py --kills 12      # kill -9 and Ctrl-C in turn, at random moments
    python benchmarks/reproduce.py --kills 2 --model-type qwen2 gemma2 gpt2 mistral phi3 falcon_h1 --keep out/families

Two runs of each model in folders and stores of their own. One is left alone; the other is ended after a random time, up
to a third of what a whole run takes, as often as asked, then goes on to its end. What both saved is compared number by
number, the lengths of the prompts' shifts with what plain transformers says, one chat at a time; and what is left of
the claims of a model without any training is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from families import byte_tokenizer, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

import drolab
from drolab import report, reproduction
from drolab.models import chat_format

PROMPTS = "none: ''\ndefault: Refuse what could do harm.\nmild: Be careful.\n"


def save_model(folder: Path, model_type: str) -> Path:
    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.max_position_embeddings = 2048  # prompts are long in bytes
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    tokenizer.save_pretrained(folder)
    return folder


def save_sets(folder: Path) -> dict[str, Any]:
    """Few queries and short prompts: parameters of the notebooks."""
    folder.mkdir()
    (folder / "prompts.yaml").write_text(PROMPTS)
    given: dict[str, Any] = {"PROMPTS": str(folder / "prompts.yaml"), "N_SAMPLES": 2, "N_RANDOM": 3, "OTHERS": []}
    given |= {"NEUTRAL": "brief", "UNSEEN": "cautious", "MAX_NEW_TOKENS": 16, "N_FORENSICS": 1}
    given["ATTACKS"] = ["role_play", "small_talk"]
    for name, parameter in {"anchors": "QUERIES", "heldout": "HELDOUT", "borderline": "BORDERLINE"}.items():
        drolab.load_queries(name).groupby("harmful").head(14).to_csv(folder / f"{name}.csv", index=False)
        given[parameter] = str(folder / f"{name}.csv")
    return given


def start(model: Path, out: Path, given: dict[str, Any]) -> subprocess.Popen[bytes]:
    options = {"out": str(out), "store": str(out) + "-store", "parameters": given, "quick": False, "progress": False}
    code = f"import drolab\ndrolab.reproduce({str(model)!r}, **{options!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(model: Path, out: Path, given: dict[str, Any]) -> float:
    started = time.perf_counter()
    run = start(model, out, given)
    _, said = run.communicate()
    if run.returncode:
        raise SystemExit(f"A run ended with status {run.returncode}: {said.decode()[-2000:]}")
    return time.perf_counter() - started


def numbers(out: Path) -> dict[str, Any]:
    return {path.name: timeless(json.loads(path.read_text())) for path in sorted((out / "numbers").glob("*.json"))}


def timeless(part: Any) -> Any:
    """Without seconds, which differ from run to run."""
    if isinstance(part, dict):
        return {name: timeless(value) for name, value in part.items() if name != "seconds"}
    return [timeless(one) for one in part] if isinstance(part, list) else part


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--model-type", nargs="+", default=["llama"], help="(default: llama)")
    parser.add_argument("--keep", type=Path, help="folder for the runs that were interrupted")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wrong = [
        name
        for name in options.model_type
        if not is_same(name, options.kills, random.Random(options.seed), options.keep)
    ]
    sys.exit(f"Not as they must be: {', '.join(wrong)}" if wrong else 0)


def is_same(model_type: str, kills: int, draw: random.Random, keep: Path | None) -> bool:
    print(f"=== {model_type}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model, given = save_model(Path(folder, "model"), model_type), save_sets(Path(folder, "sets"))
        whole = finish(model, Path(folder, "alone"), given)
        print(f"Left alone: {whole:.0f} s", flush=True)
        ended, out = 0, Path(folder, "killed")
        for number in range(kills):
            run, wait = start(model, out, given), draw.uniform(0.0, whole / 3)
            try:
                run.wait(wait)
                done = "was over"
            except subprocess.TimeoutExpired:
                kill = signal.SIGKILL if number % 2 else signal.SIGINT
                os.killpg(run.pid, kill)
                run.communicate()
                ended += 1
                done = f"was ended by {kill.name}"
            standing = out / "progress.json"
            finished = list(json.loads(standing.read_text())) if standing.is_file() else []
            print(
                f"After {wait:.0f} s it {done}; finished: {', '.join(name[:2] for name in finished) or 'none'}",
                flush=True,
            )
        print(f"To its end: {finish(model, out, given):.0f} s")
        alone, killed = numbers(Path(folder, "alone")), numbers(out)
        differing = [name for name in alone if alone[name] != killed.get(name)]
        print(f"{ended} interruptions; {len(alone)} notebooks; with other numbers: {', '.join(differing) or 'none'}")
        error = shift_error(model, out, given)
        print(f"Lengths of mean shifts against plain transformers: largest difference {error:.1e}, relative")
        print(*report.answer(report.decisions(out, report.collect(out))), sep="\n", flush=True)
        if keep:
            shutil.copytree(out, keep / model_type, dirs_exist_ok=True)
        return not differing and error < 1e-4 and len(alone) == len(reproduction.NOTEBOOKS)


def shift_error(model: Path, out: Path, given: dict[str, Any]) -> float:
    """Largest relative difference of notebook 03's lengths of mean shifts from those that transformers alone finds."""
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    queries, prompts = pd.read_csv(given["QUERIES"]), drolab.load_prompts(given["PROMPTS"])
    prompts["brief"] = drolab.load_prompts("neutral")["brief"]

    def state(prompt: str, query: str) -> torch.Tensor:
        chat = [{"role": "system", "content": prompt}] if prompt else []
        chat += [{"role": "user", "content": query}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            return plain(ids["input_ids"], output_hidden_states=True).hidden_states[-1][0, -1]

    states = {name: torch.stack([state(one.text, text) for text in queries["text"]]) for name, one in prompts.items()}
    errors = []
    for row in pd.read_csv(out / "tables" / "03_lengths.csv").itertuples():
        own = torch.tensor((queries["harmful"] == row.harmful).to_numpy())
        norm = float((states[row.prompt] - states["none"])[own].mean(dim=0).norm())
        errors.append(abs(norm - row.norm) / norm)
    return max(errors)


if __name__ == "__main__":
    main()
