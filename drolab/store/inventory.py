"""The files of a store as a table: what they are, what they hold, whether they are sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drolab.files import PARTIAL
from drolab.store import checkpoints, shards
from drolab.store.shards import FORMAT, SUFFIX

KINDS = ("tensors", "texts", "runs")
_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of a shard, of a run


class Look(NamedTuple):
    """What one file is: its sound entries, what is wrong in words and in one word, the line for people."""

    entries: int
    status: str = "ok"
    state: str = "ok"
    note: str = ""


def table(folder: Path, *, verify: bool) -> pd.DataFrame:
    """Every file below the store's `folder`, one row each: the columns of `Store.files`.

    Args:
        verify: read all values and compare the checksums; else only what the headers say.
    """
    columns = ["file", "kind", "entries", "bytes", "status", "state", "note", "written"]
    rows = []
    for kind, path in _paths(folder):
        try:
            facts = path.stat()
        except OSError:  # gone since it was listed
            continue
        seen = look(path, kind, verify=verify)
        file = str(path.relative_to(folder))
        rows.append((file, kind, seen.entries, facts.st_size, seen.status, seen.state, seen.note, facts.st_mtime))
    result = pd.DataFrame(rows, columns=columns)
    # A wild clock may have left a time that no timestamp holds: it becomes NaT.
    written = pd.to_datetime(result["written"].astype(float), unit="s", utc=True, errors="coerce")
    return result.assign(written=written)


def _paths(folder: Path) -> Iterator[tuple[str, Path]]:
    for kind in KINDS:
        place = folder / FORMAT / kind
        yield from ((kind, path) for path in (sorted(place.iterdir()) if place.is_dir() else ()))


def look(path: Path, kind: str, *, verify: bool) -> Look:
    """What one file is; `verify` as in `table`."""
    if path.name.endswith(PARTIAL):
        return Look(0, "an unfinished write: it may be deleted unless a process is writing now", "unfinished")
    if path.suffix != SUFFIX:
        return Look(0, "not a file of the store: ignored", "foreign")
    try:
        return _run(path) if kind == "runs" else _shard(path, kind, verify)
    except shards.READ_ERRORS as error:
        reason = shards.system_error(path, error) if isinstance(error, OSError) else error
        status = f"unreadable ({reason}): its entries are computed again"
        if not path.is_file() or not _NAME.fullmatch(path.stem):
            return Look(0, status, "foreign")
        if isinstance(error, OSError):  # the disk or the rights, not the content: it may be sound another time
            return Look(0, status, "unreadable")
        return Look(0, f"{status}; it may be deleted", "damaged")


def _shard(path: Path, kind: str, verify: bool) -> Look:
    if not verify:
        listed = shards.read_table(path)
        return Look(len(listed.keys), note=listed.note)
    listed, values = shards.read_sound(path, kind)
    n, bad = len(listed.keys), len(listed.keys) - len(values)
    if bad or not listed.sound:
        what = f"{bad} of {n} entries are damaged and are computed again" if bad else "its table of keys has changed"
        return Look(len(values), what, "damaged", listed.note)
    return Look(n, note=listed.note)


def _run(path: Path) -> Look:
    tensors, metadata = checkpoints.read(path)
    words = [metadata[name] for name in ("note", "kind", "name") if isinstance(metadata.get(name), str)]
    return Look(len(tensors), note=" ".join(words))
