"""A content-addressed, resumable, crash-safe store of arrays and texts. It knows no model.

What is stored never changes: a key is the hash of everything that determines a value (see `key`), and every put writes
one new file, a *shard*, with the keys, the values and a checksum per entry (see `drolab.store.shards`). There is no
index beside the files that could disagree with them: a store learns what it has from the shards themselves.

A shard is written under a temporary name, flushed to disk and then renamed, so a reader sees all of it or
nothing, and any number of processes, and threads of one process, may read and write at once. An entry whose
checksum does not match is never returned. A damaged file costs its damaged entries: they count as missing, one
warning is logged that names the file, and the caller computes them again. docs/store.md has the promise in full.

Layout: `folder/v2/tensors/*.safetensors`, `folder/v2/texts/*.safetensors`, `folder/v2/runs/<key>.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs
import torch

from drolab.errors import StoreError
from drolab.files import expanded
from drolab.store import checkpoints, inventory, shards
from drolab.store.shards import FORMAT, SUFFIX, Shards

__all__ = ["Store", "key", "upkeep"]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_log = logging.getLogger(__name__)


def key(**fields: str | int | float | bool | list | dict | None) -> str:
    """The store key of what `fields` describe: the hex SHA-256 of their canonical JSON.

    Give every field that determines the value. `1`, `1.0`, `True` and `"1"` make different keys.
    """
    return hashlib.sha256(_ENCODER.encode(fields).encode()).hexdigest()


class Store:
    """A folder that keeps results under content keys (made on the first write), so that nothing is computed twice.

    All that takes a long time in drolab takes one as `store`. An open store sees at once what other processes add.

    Args:
        folder: where; None takes the environment's DROLAB_CACHE, else the platform's cache folder.

    Raises:
        StoreError: `folder` is a file, or was written in another format; or there is no home folder to find it in.

    Examples:
        >>> import tempfile, torch
        >>> from drolab.store import Store, key
        >>> names = [key(what="squares", of=number) for number in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(folder).put_tensors(names[:2], torch.tensor([0.0, 1.0]))
        ...     found = Store(folder).get_tensors(names)  # of the third it has nothing
        >>> [found[name].item() for name in names if name in found]
        [0.0, 1.0]
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        chosen = folder or os.environ.get("DROLAB_CACHE") or platformdirs.user_cache_path("drolab")
        self.folder = expanded(chosen, StoreError, "set DROLAB_CACHE to the full path of a folder")
        _check_folder(self.folder)
        self._tensors = Shards(self.folder / FORMAT / "tensors", "tensors")
        self._texts = Shards(self.folder / FORMAT / "texts", "texts")

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)  # its locks cannot be copied, and all else is in the folder

    def get_tensors(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of those of `keys` that the store has, each in the dtype and shape it was put with."""
        return self._tensors.get(keys)

    def put_tensors(self, keys: Sequence[str], values: torch.Tensor, *, note: str = "") -> None:
        """Keep `values[i]` (of any dtype and shape) under `keys[i]`: all of them, or on an error none.

        `note` is a line for people, by which `drolab store` lists, prunes and exports; no value depends on it.

        Raises:
            StoreError: keys that are none, are repeated or do not match the values; or the write failed.
        """
        if values.dim() == 0 or len(values) != len(keys):
            raise StoreError(f"{len(keys)} keys do not match values of shape {list(values.shape)}: give one row each.")
        shards.check_keys(keys)
        if keys:
            values = values.detach().cpu().contiguous()
            self._tensors.put(keys, {"values": values}, shards.tensor_checksums(keys, values), note)

    def get_texts(self, keys: Sequence[str]) -> dict[str, str]:
        """The texts of those of `keys` that the store has."""
        return self._texts.get(keys)

    def put_texts(self, items: Mapping[str, str], *, note: str = "") -> None:
        """Keep each text under its key: all of them, or on an error none. `note` as in `put_tensors`.

        Raises:
            StoreError: keys that are none, or the write failed.
        """
        shards.check_keys(list(items))
        if items:
            payloads = {name: text.encode("utf-8", "surrogatepass") for name, text in items.items()}
            offsets = np.cumsum([0, *map(len, payloads.values())], dtype=np.int64)
            blob = np.frombuffer(b"".join(payloads.values()), dtype=np.uint8).copy()
            payload = {"blob": torch.from_numpy(blob), "offsets": torch.from_numpy(offsets)}
            self._texts.put(list(items), payload, shards.text_checksums(payloads), note)

    def save_run(self, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
        """Write (or replace, atomically) the checkpoint called `key`; returns its file.

        Raises:
            StoreError: `key` is no store key, or the write failed; the previous checkpoint is then intact.
        """
        path = self._run_path(key)
        checkpoints.write(path, tensors, metadata)
        return path

    def load_run(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """The checkpoint called `key`; None if there is none, or it is damaged or another run's (a warning says so)."""
        path = self._run_path(key)
        if not path.exists():
            return None
        try:
            return checkpoints.read(path)
        except shards.READ_ERRORS as error:
            _log.warning("The checkpoint %s cannot be used (%s) and is ignored: the run starts again.", path, error)
            return None

    def _run_path(self, key: str) -> Path:
        shards.check_keys([key])
        return self.folder / FORMAT / "runs" / (key + SUFFIX)

    def check(self) -> pd.DataFrame:
        """Read and verify every file. The columns of `files`, with the sound entries counted."""
        return inventory.table(self.folder, verify=True)

    def files(self) -> pd.DataFrame:
        """Every file, without reading the values, so that damage to them does not show.

        Columns: file, kind (tensors, texts, runs), entries, bytes, status (`ok`, or what is wrong and what follows),
        state (`ok`; `damaged`; `unreadable`: the disk or the rights, not the content; `unfinished`; `foreign`),
        note, written (the file's time, UTC).
        """
        return inventory.table(self.folder, verify=False)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"The store folder {folder} is a file: give a folder, or set DROLAB_CACHE to one.")
    formats = sorted(path.name for path in folder.glob("v[0-9]*") if path.is_dir()) if folder.is_dir() else []
    if formats and FORMAT not in formats:
        raise StoreError(
            f"The store at {folder} has format {formats[-1]}, this drolab reads {FORMAT}: "
            "use the drolab version that wrote it, or give another folder."
        )
