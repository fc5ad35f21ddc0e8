"""One file per run: the tensors and the metadata of its newest checkpoint, under one checksum.

The file is named by the run's key, and the checksum covers that key: under another name it is no checkpoint.
"""

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
    header = {
        "format": FORMAT,
        "key": path.stem,
        "metadata": json.dumps(dict(metadata)),
        "checksum": _checksum(path.stem, kept, metadata),
    }
    files.write_file(path, serialize(kept, header), StoreError)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint.

    Raises:
        READ_ERRORS: it is damaged, the checkpoint of another run, or none.
    """
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    if header.get("format") != FORMAT:
        raise ValueError(f"not a checkpoint of format {FORMAT}")
    if "key" not in header:
        raise ValueError("it does not say which run it is of, as those of earlier versions of drolab do not")
    if header["key"] != path.stem:
        raise ValueError(f"it is the checkpoint of another run, {header['key'][:12]}…")
    metadata = json.loads(header["metadata"])
    if _checksum(path.stem, tensors, metadata) != header["checksum"]:
        raise ValueError("its checksum does not match")
    return tensors, metadata


def _checksum(key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps([key, dict(metadata)], sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(as_bytes(tensor).data)
    return digest.hexdigest()
