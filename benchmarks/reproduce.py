"""Is a run that was killed again and again the same as one left alone? `drolab reproduce` on a tiny random model.

    python benchmarks/reproduce.py --kills 12      # kill -9 and Ctrl-C in turn, at random moments

Two runs in folders and stores of their own. One is left alone; the other is ended after a random time, up to a third
of what a whole run takes, as often as asked, then goes on to its end. What both saved is compared number by number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from families import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import drolab
from drolab.models import chat_format

SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPTS = "none: ''\ndefault: Refuse what could do harm.\nmild: Be careful.\n"


def save_model(folder: Path, model_type: str) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL)).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_format("chatml")
    tokenizer.save_pretrained(folder)
    return folder


def save_sets(folder: Path) -> dict[str, Any]:
    """Few queries and short prompts: parameters of the notebooks."""
    folder.mkdir()
    (folder / "prompts.yaml").write_text(PROMPTS)
    given: dict[str, Any] = {"PROMPTS": str(folder / "prompts.yaml"), "N_SAMPLES": 2, "N_RANDOM": 3, "OTHERS": []}
    given |= {"NEUTRAL": "brief", "UNSEEN": "cautious", "MAX_NEW_TOKENS": 16}
    for name, parameter in {"anchors": "QUERIES", "heldout": "HELDOUT", "borderline": "BORDERLINE"}.items():
        drolab.load_queries(name).groupby("harmful").head(14).to_csv(folder / f"{name}.csv", index=False)
        given[parameter] = str(folder / f"{name}.csv")
    return given


def start(model: Path, out: Path, given: dict[str, Any]) -> subprocess.Popen[bytes]:
    options = {"out": str(out), "store": str(out) + "-store", "parameters": given, "progress": False}
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
    return {path.name: json.loads(path.read_text()) for path in sorted((out / "numbers").glob("*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--model-type", default="llama", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        model, given = save_model(Path(folder, "model"), options.model_type), save_sets(Path(folder, "sets"))
        whole = finish(model, Path(folder, "alone"), given)
        print(f"Left alone: {whole:.0f} s", flush=True)
        ended, out = 0, Path(folder, "killed")
        for number in range(options.kills):
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
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
