"""The fault matrix of benchmarks/faults.py, a few tries each; sabotaged stores that it must find out; its table."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmark import benchmark
from helpers.tiny import ROOT

from drolab import files
from drolab.dro import training
from drolab.errors import StoreError
from drolab.store import checkpoints, shards

PAGE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")


faults = benchmark("faults")
TRIES = {"kill -9 while writing": 10, "bit flipped": 10}


# From Python 3.12 on, a fork is warned of where there are threads; the forked writers use none of them.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_every_promise_is_kept(fault: str) -> None:
    outcome = faults.run(fault, TRIES.get(fault, 2))
    assert outcome.at_stake > 0
    assert outcome.kept, faults.line(fault, outcome)


# Controls: what the store does for each promise, taken away. The matrix must find out.


def no_checksums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shards, "_checksum", lambda *_: bytes(16))


def no_key_in_the_checksum(patch: pytest.MonkeyPatch) -> None:
    read, write = checkpoints.read, checkpoints.write
    whoever = Path("whoever.safetensors")

    def read_any(path: Path) -> Any:
        shutil.copy(path, path.parents[2] / whoever)
        return read(path.parents[2] / whoever)

    def write_any(path: Path, *content: Any) -> None:
        write(path.parents[2] / whoever, *content)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.parents[2] / whoever, path)

    patch.setattr(checkpoints, "read", read_any)
    patch.setattr(checkpoints, "write", write_any)


def write_in_place(path: Path, content: bytes, _: type[StoreError]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(content), 1 + len(content) // 4):
            file.write(content[start : start + 1 + len(content) // 4])
            time.sleep(0.001)


def no_atomic_writes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "write_file", write_in_place)


def no_advice(patch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes, error: type[StoreError]) -> None:
        try:
            write_whole(path, content, error)
        except StoreError as error:
            raise StoreError("Something went wrong.") from error

    write_whole = files.write_file
    patch.setattr(files, "write_file", write)


def no_second_place(patch: pytest.MonkeyPatch) -> None:
    def forget(self: shards.Shards, shard: str, keys: Any) -> None:
        for name in keys:
            del self._places[name]

    patch.setattr(shards.Shards, "_drop", forget)


def no_look_at_new_files(patch: pytest.MonkeyPatch) -> None:
    scan = shards.Shards._scan
    patch.setattr(shards.Shards, "_scan", lambda self: None if self._seen else scan(self))


def no_checkpoint_at_the_end(patch: pytest.MonkeyPatch) -> None:
    save = training.Training.save
    patch.setattr(training.Training, "save", lambda self: self.done.step % self.config.checkpoint_every or save(self))


def no_optimizer(patch: pytest.MonkeyPatch) -> None:
    load = training._load

    def forgetful(*arguments: Any) -> Any:
        done = load(*arguments)
        return done and replace(done, optimizer={})

    patch.setattr(training, "_load", forgetful)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("fault", "sabotage", "broken"),
    [
        ("kill -9 while writing", no_atomic_writes, "wrong"),
        ("disk full", no_advice, "untold"),
        ("bit flipped", no_checksums, "wrong"),
        ("folder read-only", no_advice, "untold"),
        ("files swapped, copied or removed behind an open store", no_checksums, "wrong"),
        ("a checkpoint copied to another name", no_key_in_the_checksum, "wrong"),
        ("reading while another process writes", no_look_at_new_files, "lost"),
        ("clock jumps", no_second_place, "lost"),
        ("training killed with kill -9", no_optimizer, "wrong"),
        ("training interrupted", no_checkpoint_at_the_end, "lost"),
    ],
)
def test_the_matrix_finds_a_broken_promise(
    fault: str, sabotage: Callable[[pytest.MonkeyPatch], None], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    for attempt in range(20):
        outcome = faults.run(fault, 1, seed=attempt)
        if getattr(outcome, broken):
            return
    pytest.fail(f"{sabotage.__name__} goes unnoticed: {faults.line(fault, outcome)}")


# The page


def test_the_page_has_the_whole_matrix_and_every_promise_kept() -> None:
    table = PAGE.split(faults.HEADER)[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert {row[0]: int(row[1]) for row in rows} == {name: tries for name, (tries, _) in faults.FAULTS.items()}
    assert all(row[-4:] == ["0"] * 4 for row in rows)
    hit, hit_lost = zip(*[[int(cell.replace(",", "")) for cell in row[3:5]] for row in rows], strict=True)
    assert all(lost <= of for lost, of in zip(hit_lost, hit, strict=True))
    assert faults.FAULTS["kill -9 while writing"][0] >= 200


def test_the_page_names_only_commands_that_there_are() -> None:
    from drolab.__main__ import _parser

    commands = re.findall(r"^ +drolab (store .*?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert {line.split()[1] for line in commands} == {"check", "list", "size", "prune", "export"}
    for line in commands:
        _parser().parse_args([word.strip("'") for word in line.split()])
