"""Room for weights: asked before they are read, and said in words when it is not there after all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from drolab.errors import ModelError
from drolab.models import ChatModel, load, load_model, memory, wrap
from drolab.models.memory import check_room, file_bytes, free_memory
from drolab.models.sources import Source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_the_files_are_those_of_the_weights(folder: Path, dtype: torch.dtype) -> None:
    weights = load_model(folder, dtype=dtype).model.parameters()
    assert file_bytes(folder, dtype) == sum(part.numel() * part.element_size() for part in weights)
    assert file_bytes(folder, "auto") == file_bytes(folder, torch.float32)


def test_what_torch_keeps_of_a_gpu_to_use_again_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"is_available": True, "mem_get_info": (1000, 9000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert free_memory(torch.device("cuda:0")) == 1400


def test_free_memory_is_a_number_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50
    assert free_memory(torch.device("mps")) is None


def test_no_room_is_said_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(
        ModelError, match=r"need 0.0 GiB, and the CPU's memory has 0.0 GiB free: .*bfloat16.*smaller model"
    ):
        load_model(folder)
    with pytest.raises(AssertionError, match="weights were read"):
        load_model_in_spite(folder)


def test_room_for_a_model_on_the_hub_is_counted_from_its_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **options: config)
    source = Source("org/model", "org/model")
    how = load._How(torch.float32, None, None, None, None, False)
    assert load._bytes(source, AutoModelForCausalLM, how) == file_bytes(folder, torch.float32)


def load_model_in_spite(folder: Path) -> None:
    """Spread over devices, nobody knows beforehand."""
    try:
        load_model(folder, device_map="auto")
    except ModelError as error:
        raise error.__cause__ or error from None


def test_a_container_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_memory(torch.device("cpu")) or 0) > 2500


def test_exactly_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10)
    check_room("m", 10, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"cuda:1 has 0\.0 GiB free"):
        check_room("m", 11, torch.device("cuda:1"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_runs_out_all_the_same(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"There is no memory for .*dtype='bfloat16'.*device_map='auto'"):
        load_model(folder)


def test_memory_that_runs_out_with_four_tokens(tiny_llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tiny_llama.model, "forward", fail)
    with pytest.raises(ModelError, match="is loaded, and there is no memory left to run four tokens"):
        wrap(tiny_llama.model, tiny_llama.tokenizer, name="large")


def test_weights_go_where_device_map_and_max_memory_say(folder: Path, tmp_path: Path) -> None:
    plain = load_model(folder)
    spread = load_model(folder, device_map="auto", max_memory={"cpu": "1GiB"})
    assert spread.fingerprint == plain.fingerprint
    assert load_model(folder, device_map={"": "cpu"}).fingerprint == plain.fingerprint
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder, device_map="no-such-device")
