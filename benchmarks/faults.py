"""What the store and a training lose when things go wrong: real processes, real files, real faults, again and again.

    python benchmarks/faults.py                  # the whole matrix, a few minutes; the table of docs/store.md
    python benchmarks/faults.py --tries 3        # each fault three times
    python benchmarks/faults.py --only kill      # faults whose name holds this

A try makes a store, does the harm, and counts entries (vectors, texts and checkpoints). *At stake*: what was stored
before. *Hit*: what the fault itself destroyed, or was in flight. Promised, and counted where broken: of the *others*
none is lost; no value is *wrong*; afterwards the store reads, writes and is cleared up by `prune` (*unusable*); where
an error or a warning is due, it says what happened and what to do (*untold*). Of trainings, the entries are steps:
those after the last checkpoint are in flight, and *wrong* is a run that resumes to other numbers, to the last bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import drolab
from drolab.dro import Training
from drolab.errors import StoreError, TrainingError
from drolab.models import ChatModel
from drolab.store import Store, key, upkeep
from drolab.types import DROConfig, DRORun

ROWS, WIDTH = 10, 256


@dataclass
class Book:
    """What a store must give back, by key. A run may be at any of several steps."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    runs: dict[str, set[int]] = field(default_factory=dict)

    def names(self) -> set[str]:
        return {*self.tensors, *self.texts, *self.runs}

    def add(self, other: Book) -> None:
        self.tensors |= other.tensors
        self.texts |= other.texts
        self.runs |= other.runs

    def compare(self, store: Store) -> tuple[set[str], int]:
        """The keys that the store lacks, and the number of its values that are not what was put."""
        tensors, texts = store.get_tensors(list(self.tensors)), store.get_texts(list(self.texts))
        runs = {name: run for name in self.runs if (run := store.load_run(name)) is not None}
        wrong = sum(not same_bits(tensors[name], self.tensors[name]) for name in tensors)
        wrong += sum(texts[name] != self.texts[name] for name in texts)
        for name, (values, metadata) in runs.items():
            step = int(metadata["step"])
            wrong += step not in self.runs[name] or not bool((values["step"] == step).all())
        return self.names() - tensors.keys() - texts.keys() - runs.keys(), wrong


@dataclass
class Outcome:
    """Counts of one try, or of many."""

    tries: int = 1
    at_stake: int = 0
    hit: int = 0
    hit_lost: int = 0
    lost: int = 0
    wrong: int = 0
    unusable: int = 0
    untold: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(**{name: value + asdict(other)[name] for name, value in asdict(self).items()})

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return self.lost == self.wrong == self.unusable == self.untold == 0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def batch(name: str, number: int) -> Book:
    """Entries that anyone can make again: they follow from the name and the number."""
    keys = [key(name=name, number=number, row=row) for row in range(ROWS)]
    values = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(number)).half()
    texts = {key(text=item): f"{name} {item[:8]} 🙂" for item in keys}
    return Book(dict(zip(keys, values.unbind(), strict=True)), texts, {key(run=name): {number}})


def put(store: Store, entries: Book) -> Iterator[Book]:
    """Write a batch in three puts; gives what each one kept."""
    store.put_tensors(list(entries.tensors), torch.stack(list(entries.tensors.values())), note="states")
    yield Book(tensors=entries.tensors)
    store.put_texts(entries.texts, note="texts")
    yield Book(texts=entries.texts)
    for name, steps in entries.runs.items():
        (step,) = steps
        store.save_run(name, {"step": torch.full((500,), step)}, {"step": str(step)})
        yield Book(runs={name: steps})


def filled(folder: Path, n: int = 3) -> Book:
    book, store = Book(), Store(folder)
    for number in range(n):
        for kept in put(store, batch(f"batch {number}", number)):
            book.add(kept)
    return book


def still_usable(folder: Path) -> bool:
    """It takes and gives new entries, and after a prune nothing is damaged or left over."""
    store, fresh = Store(folder), batch("afterwards", 77)
    list(put(store, fresh))
    upkeep.prune(store, upkeep.plan_prune(store))
    return fresh.compare(Store(folder)) == (set(), 0) and bool(store.check()["state"].isin(["ok", "foreign"]).all())


@contextmanager
def listening() -> Iterator[list[str]]:
    """The warnings of the store while the block runs."""
    log, said = logging.getLogger("drolab.store"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


# Writers in other processes


def start(work: Callable[[int], object]) -> tuple[int, int]:
    """A forked process that does `work(descriptor)`: its id, and where its reports can be read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            work(writing)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    return process, reading


def write_on(folder: Path, name: str, report: int, n: int | None = None) -> None:
    """Batches without end (or n of them): one byte of report for each put that has come back."""
    store = Store(folder)
    for number in itertools.count() if n is None else range(n):
        for _ in put(store, batch(name, number)):
            os.write(report, b".")


def wait_for(reading: int, n: int) -> int:
    """Wait for `n` reports; fewer if the process ends before."""
    with open(os.dup(reading), "rb", buffering=0) as reports:
        return sum(len(reports.read(1) or b"") for _ in range(n))


def end(process: int, reading: int, how: signal.Signals = signal.SIGKILL) -> int:
    """End a process; how many reports it had made."""
    os.kill(process, how)
    os.waitpid(process, 0)
    with open(reading, "rb") as reports:
        return len(reports.read())


def written(name: str, n_puts: int) -> tuple[Book, Book]:
    """What a writer's finished puts kept, and what its next one, in flight, may or may not have kept."""
    done, flying = Book(), Book()
    for number in range(n_puts // 3 + 1):
        entries = batch(name, number)
        parts = [Book(tensors=entries.tensors), Book(texts=entries.texts), Book(runs=entries.runs)]
        for place, part in enumerate(parts, start=3 * number):
            if place < n_puts:
                done.add(part)
            elif place == n_puts:
                flying = part
    for run in flying.runs.keys() & done.runs.keys():
        # Replaced already, or not yet: never between.
        done.runs[run] = flying.runs[run] = done.runs[run] | flying.runs[run]
    return done, flying


def kill_while_writing(folder: Path, rng: random.Random) -> Outcome:
    """After a random number of puts, at a random moment of the next ones."""
    process, reading = start(lambda report: write_on(folder, "killed", report))
    puts = wait_for(reading, rng.randrange(10))
    time.sleep(rng.uniform(0.0, 0.01))
    done, flying = written("killed", puts + end(process, reading))
    missing, wrong = done.compare(Store(folder))
    not_there, wrong_flying = flying.compare(Store(folder))
    damaged = (Store(folder).check()["state"] == "damaged").sum()  # a torn file would be none of the entries above
    return Outcome(
        at_stake=len(done.names()),
        hit=len(flying.names()),
        hit_lost=len(not_there - done.names()),
        lost=len(missing),
        wrong=wrong + wrong_flying + int(damaged),
        unusable=not still_usable(folder),
    )


def read_while_writing(folder: Path, rng: random.Random) -> Outcome:
    """Whatever a put has acknowledged, the next read by another process finds."""
    process, reading = start(lambda report: write_on(folder, "busy", report))
    os.set_blocking(reading, False)
    store, puts, lost, wrong, done = Store(folder), 0, 0, 0, Book()
    until = time.monotonic() + rng.uniform(0.1, 0.3)
    while time.monotonic() < until or not puts:
        try:
            puts += len(os.read(reading, 1 << 16))
        except BlockingIOError:
            continue
        done, _ = written("busy", puts)
        done.runs.clear()  # the writer replaces it all the time
        missing, bad = done.compare(store)
        lost, wrong = lost + len(missing), wrong + bad
    end(process, reading)
    return Outcome(at_stake=len(done.names()), lost=lost, wrong=wrong, unusable=not still_usable(folder))


def eight_writers(folder: Path, rng: random.Random) -> Outcome:
    """Four processes write the same entries, four others each their own."""
    names = ["same"] * 4 + [f"own {number}" for number in range(4)]
    n = rng.randint(3, 8)
    started = [start(lambda report, name=name: write_on(folder, name, report, n)) for name in names]
    failed = sum(os.waitpid(process, 0)[1] != 0 for process, _ in started)
    book = Book()
    for (_, reading), name in zip(started, names, strict=True):
        os.close(reading)
        book.add(written(name, 3 * n)[0])
    missing, wrong = book.compare(Store(folder))
    return Outcome(
        at_stake=len(book.names()), lost=len(missing) + failed, wrong=wrong, unusable=not still_usable(folder)
    )


# Damaged files


def damaged(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], Outcome]:
    """A fault that changes one file; half of the time behind the back of a store that knows it already."""

    def fault(folder: Path, rng: random.Random) -> Outcome:
        book, store = filled(folder), Store(folder)
        if rng.random() < 0.5:
            book.compare(store)
        path = rng.choice(files(folder))
        content = path.read_bytes()
        broken = change(content, rng)
        hit = entries_at(path, content, changed(content, broken))
        path.write_bytes(broken)
        return judged(folder, store, book, hit, path)

    return fault


def judged(folder: Path, store: Store, book: Book, hit: set[str], *paths: Path) -> Outcome:
    """Read through `store`, which may know the old files, and through a new one; then clear up."""
    with listening() as said:
        missing, wrong = book.compare(store)
        anew, wrong_anew = book.compare(Store(folder))
        checked = Store(folder).check()
        usable = still_usable(folder)
    reported = {*checked.loc[checked["state"] == "damaged", "file"]}
    told = all(
        any(str(path) in line and "again" in line for line in said) or str(path.relative_to(folder)) in reported
        for path in paths
    )
    lost = missing | anew
    return Outcome(
        at_stake=len(book.names()),
        hit=len(hit),
        hit_lost=len(lost & hit),
        lost=len(lost - hit),
        wrong=wrong + wrong_anew,
        unusable=not usable,
        untold=bool(lost) and not told,
    )


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("v2/*/*.safetensors"))


def entries_at(path: Path, content: bytes, positions: list[int]) -> set[str]:
    """The entries that these bytes of a file belong to: those of one row, or in its header all."""
    if path.parent.name == "runs":
        return {path.stem}
    spans = layout(content)
    keys = [content[at : at + 32].hex() for at in range(*spans["keys"], 32)]
    rows = set[int]()
    for position in positions:
        name = next((name for name, (a, b) in spans.items() if a <= position < b), "header")
        if name in ("keys", "checksums", "values"):
            a, b = spans[name]
            rows.add((position - a) * len(keys) // (b - a))
        else:  # the header, or what the texts share
            return set(keys)
    return {keys[row] for row in rows}


def changed(content: bytes, broken: bytes) -> list[int]:
    """Where they differ; a file of another length differs from its first byte on."""
    return [at for at, byte in enumerate(content) if byte != broken[at]] if len(content) == len(broken) else [0]


def layout(content: bytes) -> dict[str, tuple[int, int]]:
    """Where in a shard its arrays begin and end."""
    start = 8 + int.from_bytes(content[:8], "little")
    arrays = {name: item for name, item in json.loads(content[8:start]).items() if name != "__metadata__"}
    return {name: (start + item["data_offsets"][0], start + item["data_offsets"][1]) for name, item in arrays.items()}


def flip(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def foreign(content: bytes, rng: random.Random) -> bytes:
    """A script, noise, noise from some point on or up to some point, the right file less its first bytes."""
    noise, at = rng.randbytes(len(content)), rng.randrange(len(content))
    header = 8 + int.from_bytes(content[:8], "little")
    block = content[:header] + noise[header:at] + content[max(header, at) :]
    return rng.choice([b"#!/bin/sh\necho not ours\n", noise, content[:at] + noise[at:], block, content[8:]])


def swapped(folder: Path, rng: random.Random) -> Outcome:
    """What an open store knows of the files is no longer so: two have changed names, or one stands for another."""
    book, store = filled(folder), Store(folder)
    book.compare(store)
    one, two = rng.sample(list((folder / "v2" / rng.choice(["tensors", "texts"])).iterdir()), 2)
    contents = {path: path.read_bytes() for path in (one, two)}
    hit = set().union(*(entries_at(path, content, [0]) for path, content in contents.items()))
    how = rng.choice(["swap", "copy", "remove"])
    one.write_bytes(contents[two]) if how != "remove" else one.unlink()
    if how == "swap":
        two.write_bytes(contents[one])
    return judged(folder, store, book, hit, one)


def renamed(folder: Path, rng: random.Random) -> Outcome:
    """One run's checkpoint under the name of another run, or of one that the store does not have."""
    book, store = filled(folder), Store(folder)
    one, two = rng.sample(sorted((folder / "v2" / "runs").iterdir()), 2)
    nobody = key(run="nobody's")
    taken = rng.random() < 0.5
    target = two if taken else two.with_stem(nobody)
    shutil.copy(one, target)
    found = store.load_run(nobody) is not None
    outcome = judged(folder, store, book, {two.stem} if taken else set(), target)
    outcome.wrong += found
    return outcome


# The surroundings


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """A mount at `folder` while the block runs; False where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    may = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0
    try:
        yield may
    finally:
        if may:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(folder: Path, rng: random.Random) -> Outcome:
    """A small disk of its own; where nothing may be mounted, a limit to the size of this process's files."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=600k", "tmpfs") as may:
        filler = folder / "filler"
        filler.write_bytes(bytes(rng.randrange(400_000)))
        puts, said = write_until_refused(Store(folder), None if may else rng.randrange(5000))
        done, flying = written("disk", puts)
        missing, wrong = done.compare(Store(folder))
        not_there, _ = flying.compare(Store(folder))
        torn = (Store(folder).check()["state"] != "ok").any()
        filler.unlink()
        if may:
            subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        usable = still_usable(folder)
    told = "everything stored before is safe. Free some space" in said and "it goes on from there" in said
    return Outcome(
        at_stake=len(done.names()),
        hit=len(flying.names()),
        hit_lost=len(not_there - done.names()),
        lost=len(missing),
        wrong=wrong,
        unusable=not usable or bool(torn),
        untold=not told,
    )


def write_until_refused(store: Store, limit: int | None) -> tuple[int, str]:
    """How many puts went well, and what the error of the next one says."""
    puts, limits = 0, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for number in range(100):
            if limit is not None and number == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            for _ in put(store, batch("disk", number)):
                puts += 1
    except StoreError as error:
        return puts, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return puts, ""


def read_only(folder: Path, rng: random.Random) -> Outcome:
    """A read-only mount; where nothing may be mounted, a folder without the right to write."""
    del rng
    book = filled(folder / "disk")
    shown = folder / "shown"
    with mounted(shown, "--bind", "-o", "ro", str(folder / "disk")) as may:
        if may:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(shown)], check=True)
        else:
            shutil.copytree(folder / "disk", shown, dirs_exist_ok=True)
            subprocess.run(["chmod", "-R", "a-w", str(shown)], check=True)
        store, said = Store(shown), ""
        missing, wrong = book.compare(store)
        try:
            list(put(store, batch("more", 1)))
        except StoreError as error:
            said = str(error)
        again, _ = book.compare(Store(shown))
        sound = (store.check()["state"] == "ok").all()
        left = upkeep.prune(store, upkeep.plan_prune(store, upkeep.Choice()))["done"].str.startswith("left").all()
        if not may:
            subprocess.run(["chmod", "-R", "u+w", str(shown)], check=True)
    usable = bool(sound and left) and still_usable(folder / "disk")
    told = "set DROLAB_CACHE to a folder that can be written" in said
    return Outcome(
        at_stake=len(book.names()), lost=len(missing | again), wrong=wrong, unusable=not usable, untold=not told
    )


def jumping_clock(folder: Path, rng: random.Random) -> Outcome:
    """File times between 1970 and 2242, also of what was damaged and of what was computed again in its place."""
    book = filled(folder)
    path = rng.choice(sorted((folder / "v2" / "tensors").iterdir()))
    content = path.read_bytes()
    hit = entries_at(path, content, [0])
    start, stop = layout(content)["values"]
    path.write_bytes(content[:start] + rng.randbytes(stop - start) + content[stop:])
    again = Store(folder)
    for part in (sorted(hit)[:3], sorted(hit)[3:]):  # in other files than before
        again.put_tensors(part, torch.stack([book.tensors[name] for name in part]))
    for file in files(folder):
        os.utime(file, (rng.randrange(1 << 33), rng.randrange(1 << 33)))
    return judged(folder, Store(folder), book, set(), path)


def odd_path(folder: Path, rng: random.Random) -> Outcome:
    """Spaces, quotes, letters beyond ASCII and a long name; with a flipped bit, a prune and an export on top."""
    odd = folder / "Größe & Übermaß 'x' \"y\"" / "数据 🙂\ttab\nline" / ("é" * 100)
    outcome = damaged(flip)(odd, rng)
    copied = upkeep.export(Store(odd), folder / "copie exportée")
    exported = Store(folder / "copie exportée").check()
    outcome.unusable |= len(copied) == 0 or bool((exported["state"] != "ok").any())
    return outcome


# Training


@cache
def trained() -> tuple[ChatModel, dict[str, Any], DRORun]:
    """The demo model, a short training of a short prompt, and how it ends if nothing happens."""
    model = drolab.load_model("demo")
    queries, prompts = drolab.load_queries("anchors").groupby("harmful").head(4), drolab.load_prompts()
    states = drolab.hidden_states(model, queries, [prompts["none"], prompts["short"]], progress=False)
    space = drolab.fit_anchors(states)
    harmful = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
    probes = {"refusal": replace(harmful, positive="refuses"), "harmfulness": harmful}
    config = DROConfig(num_train_epochs=6, batch_size=4, checkpoint_every=4)  # 12 steps
    inputs = {"queries": queries, "init": prompts["short"], "space": space, "config": config, **probes}
    return model, inputs, drolab.train_dro(model, **inputs, progress=False)


def train_on(folder: Path, report: int, most: int) -> None:
    """One byte of report for each finished step, after its checkpoint if it has one. After so many it waits for its
    end: a busy machine may let the run be over before the signal comes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it deaf to Ctrl-C
    model, inputs, _ = trained()
    for finished, _ in enumerate(Training(model, **inputs, store=Store(folder)).steps(), start=1):
        os.write(report, b".")
        if finished == most:
            signal.pause()


def resumed(folder: Path, finished: int, checkpointed: int, told: bool = True) -> Outcome:
    """What is there of a training that ended after so many steps, the last of them with a checkpoint, and how it ends
    when it goes on."""
    model, inputs, whole = trained()
    kept = Training(model, **inputs, store=Store(folder)).done.step
    again = drolab.train_dro(model, **inputs, store=Store(folder), progress=False)
    same = again.history.equals(whole.history) and same_bits(again.soft_prompt.embeddings, whole.soft_prompt.embeddings)
    return Outcome(
        at_stake=checkpointed,
        hit=finished + 1 - checkpointed,
        hit_lost=max(0, finished - max(kept, checkpointed)),
        lost=max(0, checkpointed - kept),
        wrong=not same,
        unusable=not still_usable(folder),
        untold=not told,
    )


def end_training(how: signal.Signals) -> Callable[[Path, random.Random], Outcome]:
    def fault(folder: Path, rng: random.Random) -> Outcome:
        inputs = trained()[1]  # before the fork: a try is no longer than it must be
        first = rng.randrange(1, 12)
        process, reading = start(lambda report: train_on(folder, report, first + 1))
        finished = wait_for(reading, first)
        time.sleep(rng.uniform(0.0, 0.03))
        finished += end(process, reading, how)
        every = inputs["config"].checkpoint_every if how == signal.SIGKILL else 1
        return resumed(folder, finished, finished // every * every)

    return fault


def weights_break(folder: Path, rng: random.Random) -> Outcome:
    """A weight of the model becomes NaN before some step, as a failing memory or another program may make it."""
    model, inputs, _ = trained()
    weight, finished, said, last = model.base_model.get_submodule("norm").weight, 0, "", rng.randrange(1, 12)
    sound = weight.detach().clone()
    try:
        for _ in Training(model, **inputs, store=Store(folder)).steps():
            finished += 1
            if finished == last:
                weight.data.fill_(float("nan"))
    except TrainingError as error:
        said = str(error)
    finally:
        weight.data.copy_(sound)
    told = f"DRO step {finished + 1}: " in said and f"after step {finished} is kept" in said and "Lower" in said
    return resumed(folder, finished, finished, told)


FAULTS: dict[str, tuple[int, Callable[[Path, random.Random], Outcome]]] = {
    "kill -9 while writing": (300, kill_while_writing),
    "disk full": (50, full_disk),
    "file truncated": (200, damaged(lambda content, rng: content[: rng.randrange(1, len(content))])),
    "bit flipped": (500, damaged(flip)),
    "file of zero length": (50, damaged(lambda content, rng: b"")),
    "foreign file in its place": (200, damaged(foreign)),
    "folder read-only": (20, read_only),
    "files swapped, copied or removed behind an open store": (200, swapped),
    "a checkpoint copied to another name": (200, renamed),
    "eight processes write the same and other keys": (30, eight_writers),
    "reading while another process writes": (50, read_while_writing),
    "clock jumps": (100, jumping_clock),
    "path with spaces, quotes, non-ASCII names": (50, odd_path),
    "training killed with kill -9": (100, end_training(signal.SIGKILL)),
    "training interrupted": (50, end_training(signal.SIGINT)),
    "a weight becomes NaN while training": (50, weights_break),
}


def run(name: str, tries: int, seed: int = 0) -> Outcome:
    """Inflict one fault so many times, each time on a store of its own."""
    total, work = Outcome(tries=0), FAULTS[name][1]
    for number in range(tries):
        with tempfile.TemporaryDirectory() as folder, listening():
            total += work(Path(folder) / "store", random.Random(f"{name} {seed} {number}"))
    return total


HEADER = "| fault | tries | at stake | hit | of these lost | others lost | wrong | unusable | untold |"


def line(name: str, outcome: Outcome) -> str:
    return f"| {name} | {' | '.join(f'{count:,}' for count in asdict(outcome).values())} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, help="for every fault (default: as in docs/store.md)")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has none of the others, and would wait for them
    print(f"{HEADER}\n|---|{'---:|' * (HEADER.count('|') - 2)}", flush=True)
    outcomes = {}
    for name, (tries, _) in FAULTS.items():
        if options.only in name:
            outcomes[name] = run(name, options.tries or tries, options.seed)
            print(line(name, outcomes[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({name: asdict(o) for name, o in outcomes.items()}, indent=2) + "\n")
    broken = [name for name, outcome in outcomes.items() if not outcome.kept]
    print(f"\nA promise was broken by: {', '.join(broken)}" if broken else "\nEvery promise was kept.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
