"""Looking after a store: which files to remove, removing them, copying what is sound to another store.

Nothing here is needed for a store to work: a damaged or an unfinished file is never read as a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import torch

from drolab.errors import StoreError
from drolab.files import expanded, idle
from drolab.store import Store, checkpoints, inventory, shards


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which sound files are meant: those that fit everything that is given here."""

    kind: str | None = None
    """`tensors`, `texts` or `runs`."""
    note: str | None = None
    """A pattern for the whole note, with `*` and `?`."""
    days: float | None = None
    """Written more than so many days ago, by the file's time."""

    def of(self, files: pd.DataFrame) -> pd.Series:
        """One bool per row of a table of `Store.files`."""
        fits = pd.Series(True, index=files.index)
        if self.kind is not None:
            fits &= files["kind"] == self.kind
        if self.note is not None:
            fits &= pd.Series([fnmatchcase(note, self.note) for note in files["note"]], index=files.index, dtype=bool)
        if self.days is not None:
            fits &= files["written"] < pd.Timestamp.now("UTC") - pd.Timedelta(days=self.days)
        return fits


def plan_prune(store: Store, choice: Choice | None = None, *, max_bytes: float | None = None) -> pd.DataFrame:
    """The files that a prune would remove: those of `Store.check`, with a column `action`. It changes nothing.

    Damaged and unfinished files always. Sound ones only on request: all that `choice` means; with `max_bytes` only
    the oldest of them (without a choice: of all), until what is left of the store is no larger than that.
    """
    files = store.check()
    waste = files["state"].isin(["damaged", "unfinished"])
    sound = files["state"] == "ok"
    chosen = sound & (choice or Choice()).of(files) & (choice is not None or max_bytes is not None)
    if max_bytes is not None:
        oldest = files[chosen].sort_values("written", na_position="first")
        left = files.loc[~waste, "bytes"].sum() - oldest["bytes"].cumsum().shift(fill_value=0)
        chosen &= files.index.isin(oldest.index[left > max_bytes])
    plan = files[waste | chosen]
    return plan.assign(action=list(map(_action, plan["state"], plan["entries"])))


def _action(state: str, entries: int) -> str:
    if state == "unfinished":
        return "remove, unless a process is writing now"
    if state == "damaged" and entries:
        return f"keep its {entries} sound entries in a new file, remove it"
    return "remove"


def prune(store: Store, plan: pd.DataFrame) -> pd.DataFrame:
    """Do what a plan of `plan_prune` says; returns it with a column `done`: what became of each file."""
    rows = zip(plan["file"], plan["kind"], plan["state"], strict=True)
    return plan.assign(done=[_prune_one(store, *row) for row in rows])


def _prune_one(store: Store, file: str, kind: str, state: str) -> str:
    path = store.folder / file
    try:
        if state == "unfinished":
            with idle(path.parent) as nobody_writes:
                if not nobody_writes:
                    return "left: a process is writing to this folder now"
                path.unlink(missing_ok=True)
            return "removed"
        if state == "damaged":
            _copy(path, kind, store)
            # Where the values were sound, their new file has the old name; or another process has repaired it.
            if inventory.look(path, kind, verify=True).state == "ok":
                return "repaired"
        path.unlink(missing_ok=True)
    except (OSError, StoreError) as error:
        return f"left: {error}"
    return "removed"


def export(store: Store, target: str | Path, choice: Choice | None = None) -> pd.DataFrame:
    """Copy everything sound that `choice` means into a new store at `target`.

    Returns:
        The rows of `Store.check` of the files whose sound entries were copied.

    Raises:
        StoreError: there is something at `target` already, or it cannot be written.
    """
    folder = expanded(target, StoreError)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"There is something at {folder} already: export writes a new store, give a new folder.")
    files = store.check()
    sound = (files["state"] == "ok") | (files["entries"] > 0)
    wanted = files[sound & (choice or Choice()).of(files)]
    copy = Store(folder)
    for file, kind in zip(wanted["file"], wanted["kind"], strict=True):
        _copy(store.folder / file, kind, copy)
    return wanted


def _copy(path: Path, kind: str, target: Store) -> None:
    """Put what is sound in a file into `target`."""
    try:
        if kind == "runs":
            target.save_run(path.stem, *checkpoints.read(path))
            return
        listed, values = shards.read_sound(path, kind)
    except shards.READ_ERRORS:
        return  # nothing in it can be read
    if not values:
        return
    if kind == "texts":
        target.put_texts(values, note=listed.note)
    else:
        target.put_tensors(list(values), torch.stack(list(values.values())), note=listed.note)
