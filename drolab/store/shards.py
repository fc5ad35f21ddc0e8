"""Folders of shards: files of many entries each, with a checksum per entry, that never change once written.

A shard is a safetensors file: `keys` [n, 32] and `checksums` [n, 16], both uint8, and the values, either `values`
[n, …] (tensors) or `blob` and `offsets` [n + 1] (UTF-8 texts). Its header has `format`, `table` (a digest of keys and
checksums, also its name) and `note`, a line for people. A checksum covers key, dtype, shape and bytes of one entry.

The checksum is XXH3 with 128 bits (Collet, xxhash.com, 2019), which keeps up with memory. It is no defence against a
person who forges files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from drolab import files
from drolab.errors import StoreError

FORMAT = "v2"
SUFFIX = ".safetensors"
READ_ERRORS = (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError)
_KEYS = re.compile(r"[0-9a-f]*")
_KEY_LENGTH = 64
_CHECKSUM_BYTES = 16
_log = logging.getLogger("drolab.store")

Values = dict[str, Any]  # key → tensor or text


def _checksum(kind: bytes, raw_key: bytes, payload: bytes | memoryview) -> bytes:
    # Nested, since joining the payload to the rest would copy it.
    return xxhash.xxh3_128_digest(kind + raw_key + xxhash.xxh3_128_digest(payload))


class Table(NamedTuple):
    """What a shard says of itself, without its values."""

    keys: list[str]
    note: str
    sound: bool  # keys and checksums are those that were written


class Shards:
    """The shards of one kind, and which keys they hold as far as they have been read.

    Args:
        folder: where they are.
        kind: `tensors` or `texts`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._read = READERS[kind]
        self._lock = threading.Lock()  # of what follows: a shard is seen before its keys have been read
        self._seen: set[str] = set()
        # A key may stand in several shards (two processes computed it): the newest, and the others if it is damaged.
        self._places: dict[str, tuple[str, int]] = {}
        self._others: dict[str, list[tuple[str, int]]] = {}

    def put(self, keys: Sequence[str], payload: dict[str, torch.Tensor], checksums: list[bytes], note: str) -> None:
        raw_keys = b"".join(_raw(keys))
        digest = _digest(raw_keys, b"".join(checksums))
        table = {"keys": _byte_table(raw_keys, _KEY_LENGTH // 2)}
        table["checksums"] = _byte_table(b"".join(checksums), _CHECKSUM_BYTES)
        path = self.folder / (digest + SUFFIX)
        content = serialize({**table, **payload}, {"format": FORMAT, "table": digest, "note": note})
        files.write_file(path, content, StoreError)
        with self._lock:
            self._seen.add(str(path))
            self._register(str(path), keys)

    def get(self, keys: Sequence[str]) -> Values:
        wanted = list(dict.fromkeys(keys))
        check_keys(wanted)
        found: Values = {}
        with self._lock:
            if not self._places.keys() >= set(wanted):
                self._scan()
            missing: Iterable[str] = wanted
            while pending := self._by_shard(missing):
                for shard, rows in pending.items():
                    values = self._load(shard, rows)
                    found.update(values)
                    if len(values) < len(rows):
                        self._scan()  # a prune may have brought what was sound into a new file
                missing = [name for name in wanted if name not in found]
        return found

    def _by_shard(self, keys: Iterable[str]) -> dict[str, dict[str, int]]:
        shards: dict[str, dict[str, int]] = {}
        for name in keys:
            if place := self._places.get(name):
                shards.setdefault(place[0], {})[name] = place[1]
        return shards

    def _load(self, shard: str, rows: dict[str, int]) -> Values:
        """The values of these keys (key → row). What is damaged is dropped from the key map, with a warning."""
        problem: Exception | str = "checksums do not match"
        try:
            with _opened(shard) as opened:
                values = self._read(opened, list(rows), list(rows.values()))
        except READ_ERRORS as error:
            values, problem = {}, error
        if lost := rows.keys() - values.keys():
            self._drop(shard, lost)
            _warn_damaged(shard, problem, len(lost))
        return values

    def _scan(self) -> None:
        """Read the key tables of the shards not seen before: new ones, also of other processes."""
        fresh = [path for path in _shard_files(self.folder) if path not in self._seen]
        for shard in sorted(fresh, key=_modified):
            self._seen.add(shard)
            try:
                table = read_table(shard)
            except READ_ERRORS as error:
                _warn_damaged(shard, error, None)
                continue
            if not table.sound:
                _warn_damaged(shard, "its table of keys has changed", None)  # sound rows still load
            self._register(shard, table.keys)

    def _register(self, shard: str, keys: Sequence[str]) -> None:
        for name in self._places.keys() & keys:
            if self._places[name][0] != shard:
                self._others.setdefault(name, []).append(self._places[name])
        self._places.update(zip(keys, zip(repeat(shard), range(len(keys))), strict=False))

    def _drop(self, shard: str, keys: Iterable[str]) -> None:
        for name in keys:
            places = [*self._others.pop(name, []), self._places.pop(name)]
            if left := [place for place in places if place[0] != shard]:
                *self._others[name], self._places[name] = left


def read_sound(path: Path, kind: str) -> tuple[Table, Values]:
    """What a shard says of itself, and those of its entries that are sound.

    Raises:
        READ_ERRORS: it cannot be read at all.
    """
    table = read_table(path)
    with _opened(path) as opened:
        return table, READERS[kind](opened, table.keys, range(len(table.keys)))


def read_table(path: str | Path) -> Table:
    """The keys and the note of a shard; its values stay on the disk.

    Raises:
        READ_ERRORS: it is no shard of this format.
    """
    with _opened(path, framework="numpy") as opened:
        header = opened.metadata() or {}
        keys, checksums = opened.get_tensor("keys"), opened.get_tensor("checksums")
    _check_table(keys, _KEY_LENGTH // 2)
    _check_table(checksums, _CHECKSUM_BYTES)
    if len(keys) != len(checksums):
        raise ValueError("it has more keys than checksums, or fewer")
    text = keys.tobytes().hex()
    names = [text[start : start + _KEY_LENGTH] for start in range(0, len(text), _KEY_LENGTH)]
    sound = header.get("table") == _digest(keys.tobytes(), checksums.tobytes())
    return Table(names, header.get("note", ""), sound)


@contextmanager
def _opened(path: str | Path, framework: str = "pt") -> Iterator[Any]:
    with safe_open(path, framework=framework) as opened:
        if (opened.metadata() or {}).get("format") != FORMAT:
            raise ValueError(f"not a shard of format {FORMAT}")
        yield opened


def _checksums_of(opened: Any, rows: Sequence[int], n: int) -> list[bytes]:
    checksums = opened.get_tensor("checksums").numpy()
    _check_table(checksums, _CHECKSUM_BYTES)
    if len(checksums) != n:
        raise ValueError("it has more keys than values, or fewer")
    return _split(checksums[rows].tobytes(), _CHECKSUM_BYTES)


def _check_table(table: np.ndarray, width: int) -> None:
    if table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != width:
        raise ValueError("its table of keys has another shape")


def tensor_rows(opened: Any, keys: Sequence[str], rows: Sequence[int]) -> Values:
    values = opened.get_tensor("values")
    expected = _checksums_of(opened, rows, len(values))
    # Rows are taken as bytes: torch cannot index every dtype. The copy is what is verified and returned, so nothing
    # that happens to the file afterwards, or in between, can change a value.
    raw = as_bytes(values).reshape(len(values), -1 if values.numel() else 0)[rows]
    kept = torch.from_numpy(raw.reshape(-1)).view(values.dtype).reshape(len(rows), *values.shape[1:])
    actual = tensor_checksums(keys, kept)
    found = dict(zip(keys, kept.unbind(), strict=True))
    if actual != expected:
        for name, is_, should in zip(keys, actual, expected, strict=True):
            if is_ != should:
                del found[name]
    return found


def text_rows(opened: Any, keys: Sequence[str], rows: Sequence[int]) -> Values:
    blob, offsets = opened.get_tensor("blob").numpy().data, opened.get_tensor("offsets").tolist()
    expected = _checksums_of(opened, rows, len(offsets) - 1)
    payloads = [bytes(blob[offsets[row] : offsets[row + 1]]) for row in rows]
    return {
        name: payload.decode("utf-8", "surrogatepass")
        for name, raw, payload, should in zip(keys, _raw(keys), payloads, expected, strict=True)
        if _checksum(b"text", raw, payload) == should
    }


READERS = {"tensors": tensor_rows, "texts": text_rows}


def tensor_checksums(keys: Sequence[str], values: torch.Tensor) -> list[bytes]:
    """One checksum per row over key, dtype, shape and bytes: a row is right only under its key and in its type."""
    kind = f"{values.dtype}{list(values.shape[1:])}".encode()
    raw = as_bytes(values).data
    width = len(raw) // max(len(keys), 1)
    return [_checksum(kind, name, raw[i * width : (i + 1) * width]) for i, name in enumerate(_raw(keys))]


def text_checksums(items: Mapping[str, bytes]) -> list[bytes]:
    return [_checksum(b"text", raw, payload) for raw, payload in zip(_raw(list(items)), items.values(), strict=True)]


def as_bytes(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()


def _digest(raw_keys: bytes, checksums: bytes) -> str:
    return hashlib.blake2b(raw_keys + checksums, digest_size=20).hexdigest()


def _byte_table(raw: bytes, width: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, width).copy())


def _split(raw: bytes, width: int) -> list[bytes]:
    return [raw[start : start + width] for start in range(0, len(raw), width)]


def _raw(keys: Sequence[str]) -> list[bytes]:
    return _split(bytes.fromhex("".join(keys)), _KEY_LENGTH // 2)


def check_keys(keys: Sequence[Any]) -> None:
    """Only hex SHA-256 passes, so that no key can name a file outside the store.

    Raises:
        StoreError: one of them is something else, or stands there twice.
    """
    wrong = [name for name in keys if not isinstance(name, str) or len(name) != _KEY_LENGTH]
    if not wrong and not _KEYS.fullmatch("".join(keys)):
        wrong = [name for name in keys if not _KEYS.fullmatch(name)]
    if wrong:
        raise StoreError(f"{wrong[0]!r} is not a store key: make keys with drolab.store.key(…).")
    if len(set(keys)) != len(keys):
        raise StoreError("The same key appears twice: give each entry its own key.")


def serialize(tensors: Mapping[str, torch.Tensor], header: dict[str, str]) -> bytes:
    """The content of a safetensors file.

    Raises:
        StoreError: the format cannot hold these tensors.
    """
    try:
        return save(dict(tensors), header)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"These tensors cannot be stored ({error}): convert them to a plain dtype first.") from error


def _warn_damaged(path: str, problem: Exception | str, n_entries: int | None) -> None:
    state = "is damaged"
    if isinstance(problem, OSError):
        state, problem = "cannot be read", system_error(path, problem)
    what = "its entries are" if n_entries is None else f"{n_entries} of its entries are"
    _log.warning("The store file %s %s (%s): %s computed again. Nothing else is lost.", path, state, problem, what)


def system_error(path: str | Path, error: OSError) -> OSError:
    """What the system says of a file that safetensors cannot open: that calls it missing, whatever the reason is."""
    try:
        with open(path, "rb"):
            return error
    except OSError as actual:
        return actual


def _shard_files(folder: Path) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"Cannot read the store at {folder}: {error}. Set DROLAB_CACHE to another folder.") from error


def _modified(path: str) -> tuple[int, str]:
    """Newest last: what was computed again comes after what was damaged. A wrong clock costs a warning, no more."""
    try:
        return os.stat(path).st_mtime_ns, path
    except OSError:  # removed since it was listed: reading it will say so
        return 0, path
