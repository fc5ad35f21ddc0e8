"""Whether there is room for a model's weights, asked before any of them is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import psutil
import torch

from drolab.errors import ModelError

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def check_room(name: str, needed: int, device: torch.device) -> None:
    """Raise ModelError if a device has less memory left than the weights need, as far as that can be known."""
    free = free_memory(device)
    if free is not None and needed > free:
        where = "the CPU's memory" if device.type == "cpu" else f"{device}"
        raise ModelError(
            f"The weights of {name!r} need {_gigabytes(needed)}, and {where} has {_gigabytes(free)} free: load it with "
            "dtype='bfloat16', in 4 or 8 bits (quantization_config), spread over all devices (device_map='auto'), or "
            "take a smaller model."
        )


def usual_device(needed: int) -> str:
    """Where weights go if nobody says it: the first GPU if they fit, else what transformers spreads them over; the CPU
    where there is no GPU."""
    if not torch.cuda.is_available():
        return "cpu"
    free = free_memory(torch.device("cuda:0"))
    return "cuda:0" if free is None or needed < free else "auto"


def _gigabytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"


def free_memory(device: torch.device) -> int | None:
    """Bytes; None if that is not known."""
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, to use again
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type != "cpu":
        return None
    machine = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([machine, *_container()])


def _container() -> list[int]:
    """What a container's limit leaves, if there is one."""
    try:
        limit, used = ((CGROUP / file).read_text() for file in ("memory.max", "memory.current"))
        inactive = next(
            int(line.split()[1])
            for line in (CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return [int(limit) - int(used) + inactive]
    except (OSError, ValueError, StopIteration):  # no such files, or "max"
        return []


def file_bytes(folder: Path, dtype: torch.dtype | str) -> int:
    """What the safetensors of a folder need in memory: floating-point numbers in this dtype, the rest as they are."""
    return sum(_tensor_bytes(entry, dtype) for file in folder.glob("*.safetensors") for entry in _entries(file))


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                return []
            head = json.loads(stream.read(length))
        return [entry for key, entry in head.items() if key != "__metadata__"]
    except (OSError, ValueError, struct.error):  # that is said when it is read
        return []


def _tensor_bytes(entry: dict[str, Any], dtype: torch.dtype | str) -> int:
    begin, end = entry["data_offsets"]
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"])
    if size is None or not isinstance(dtype, torch.dtype):
        return int(end - begin)
    return int(end - begin) // size * dtype.itemsize
