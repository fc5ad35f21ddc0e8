"""One file per run: the tensors and the metadata of its newest checkpoint, under one checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from drolab import files
from drolab.errors import StoreError
from drolab.store.shards import FORMAT, as_bytes, serialize


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write or replace a checkpoint, atomically.

    Raises:
        StoreError: the write failed; what was there before is intact.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "metadata": json.dumps(dict(metadata)), "checksum": _checksum(kept, metadata)}
    files.write_file(path, serialize(kept, header), StoreError)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint.

    Raises:
        READ_ERRORS: it is damaged, or no checkpoint.
    """
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    if header.get("format") != FORMAT:
        raise ValueError(f"not a checkpoint of format {FORMAT}")
    metadata = json.loads(header["metadata"])
    if _checksum(tensors, metadata) != header["checksum"]:
        raise ValueError("its checksum does not match")
    return tensors, metadata


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(dict(metadata), sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(as_bytes(tensor).data)
    return digest.hexdigest()
