"""How fast a cluster is, and what would hold up a large one.

    python benchmarks/cluster.py            # with `pip install 'drolab[cluster]'`; some minutes, two cores

In one run: states per second of one process, and of one and two workers; what a block costs beside its chats; what the
store costs. Then a simulation with these numbers: `drolab.cluster`'s own driver on a Ray that only counts time. It is
compared with the real workers, and then asked for 1e8 states, and for 100 models under 50 prompts, on 64 GPUs. How fast
a GPU is and how long a model loads are assumptions there (`GPUS`), since there is none here.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import psutil
import torch

import drolab
from drolab import cluster
from drolab.progress import bar
from drolab.store import Store, key

WIDTH = 4096
GPUS = {"100 chats/s, loads in 300 s": (0.01, 300.0), "1,000 chats/s, loads in 60 s": (0.001, 60.0)}
"""A chat's seconds and a model's, of GPUs as they might be: assumptions, not measurements."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds, as measured."""

    start: float
    """Of a worker, with its model."""
    block: float
    """Of a block beside its chats, on its worker."""
    chat: float
    between: float
    """From a block's end to the next one's begin, on a worker."""
    driver: float
    """Of the driver, for a block: an upper bound."""
    listed: float
    """Of the store, for each shard there is, whenever keys are missing."""
    read: float
    """Of the store, for each shard that others have written since."""
    key_bytes: float
    """Of memory, for each key that an open store knows."""


# ---------------------------------------------------------------- measured


def gaps(table: pd.DataFrame) -> list[float]:
    """Between the blocks of each worker."""
    ordered = table.sort_values("ended").assign(begun=lambda rows: rows["ended"] - rows["seconds"])
    found = ordered["begun"] - ordered.groupby("worker")["ended"].shift()
    return [float(value) for value in found.dropna()]


def rate(table: pd.DataFrame) -> float:
    """Chats per second, from the first block's begin to the last one's end."""
    return float(table["units"].sum() / (table["ended"].max() - (table["ended"] - table["seconds"]).min()))


def fill(folder: str, workers: int, size: int, n: int | None = None) -> pd.DataFrame:
    queries, prompts = asked(n)
    on = cluster.Cluster(workers=workers)
    return cluster.states("demo", queries, prompts, store=Store(folder), on=on, block_size=size, progress=False)


def asked(n: int | None = None) -> tuple[pd.DataFrame, Any]:
    queries = pd.concat([drolab.load_queries(name, verbose=False) for name in ("anchors", "heldout")])
    return queries.head(n or len(queries)).reset_index(drop=True), drolab.load_prompts()


def alone() -> float:
    """Chats per second of one process."""
    model, (queries, prompts) = drolab.load_model("demo"), asked()
    with tempfile.TemporaryDirectory() as folder:
        drolab.hidden_states(model, queries.head(8), prompts, progress=False)
        began = time.perf_counter()
        drolab.hidden_states(model, queries, prompts, store=Store(folder), progress=False)
        return len(queries) * len(prompts) / (time.perf_counter() - began)


def of_the_store(shards: int = 400, each: int = 512) -> dict[str, float]:
    """What a store costs that others fill: one more listing, one more shard, a key. Seconds of the processor: no disk
    is waited for, since the files are new."""
    with tempfile.TemporaryDirectory() as folder:
        writer, reader = Store(folder), Store(folder)
        names = ([key(shard=shard, row=row) for row in range(each)] for shard in range(shards))
        began = time.perf_counter()
        for keys in names:
            writer.put_tensors(keys, torch.zeros(each, 1))
        print(f"writing a shard of {each} keys: {(time.perf_counter() - began) / shards * 1e3:.1f} ms, flushed")
        before = psutil.Process().memory_info().rss
        began = time.process_time()
        reader.get_tensors([key(none=0)])
        read = (time.process_time() - began) / shards
        taken = (psutil.Process().memory_info().rss - before) / shards / each
        began = time.process_time()
        for again in range(20):
            reader.get_tensors([key(none=again + 1)])
        return {"listed": (time.process_time() - began) / 20 / shards, "read": read, "key_bytes": taken}


def measure() -> tuple[Costs, dict[int, pd.DataFrame]]:
    before, real = alone(), {}
    with cluster._ray(cluster.Cluster(workers=2)), tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            real[workers] = fill(f"{folder}/{workers}", workers, 104)
        small = fill(f"{folder}/small", 1, 13, 208)
        hits = fill(f"{folder}/small", 2, 1, 104)
    after = alone()
    plain = (before + after) / 2
    print(f"one process: {before:.0f} and, at the end, {after:.0f} chats/s")
    for workers, table in real.items():
        print(f"{workers} workers: {rate(table):.0f} chats/s, {rate(table) / plain:.2f} of one process")
    sizes = pd.concat([real[1], small])
    chat, block = np.polyfit(sizes["units"].astype(float), sizes["seconds"].astype(float), 1)
    costs = Costs(
        start=float((real[1]["ended"] - real[1]["seconds"]).min()),
        block=float(max(block, 0.0)),
        chat=float(chat),
        between=float(np.median(gaps(real[1]))),
        driver=float((hits["ended"].max() - (hits["ended"] - hits["seconds"]).min()) / len(hits)),
        **of_the_store(),
    )
    return costs, real


# ---------------------------------------------------------------- simulated


@dataclass
class Clock:
    """A Ray that only counts time; see `cluster._Driver` for what is asked of one."""

    costs: Costs
    now: float = 0.0
    shards: int = 0
    scanning: float = 0.0
    """Seconds that workers spent on what other workers wrote."""
    starting: float = 0.0
    driving: float = 0.0
    coming: list[tuple[float, int]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    results: dict[int, Any] = field(default_factory=dict)
    exceptions: ClassVar[Any] = SimpleNamespace(RayError=RuntimeError)

    def remote(self, **_: Any) -> Any:
        return lambda kind: SimpleNamespace(remote=lambda *_: Actor(self))

    def after(self, seconds: float, result: Any) -> int:
        number = next(self.numbers)
        heapq.heappush(self.coming, (self.now + seconds, number))
        self.results[number] = result
        return number

    def wait(self, references: Sequence[int], timeout: float) -> tuple[list[int], list[int]]:
        due, number = heapq.heappop(self.coming)
        self.now = max(self.now, due) + self.costs.driver
        self.driving += self.costs.driver
        return [number], []

    def get(self, reference: int) -> Any:
        return self.results.pop(reference)

    def kill(self, actor: Any) -> None:
        pass


class Actor:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen = clock, 0
        self.start = SimpleNamespace(remote=self._start)
        self.do = SimpleNamespace(remote=self._do)

    def _start(self, mark: str) -> int:
        self.clock.starting += self.clock.costs.start
        return self.clock.after(self.clock.costs.start, cluster._Started("a worker", "", "the same"))

    def _do(self, call: Any, kwargs: dict[str, int]) -> int:
        clock, costs = self.clock, self.clock.costs
        scan = clock.shards * costs.listed + (clock.shards - self.seen) * costs.read
        clock.shards += 1
        self.seen = clock.shards
        clock.scanning += scan
        seconds = costs.between + costs.block + kwargs["units"] * costs.chat + scan
        return clock.after(seconds, cluster._Told(("", None), seconds, ()))


def simulate(costs: Costs, workers: int, models: int, chats: int, size: int) -> Clock:
    """So many models with so many chats each."""
    clock = Clock(costs)
    blocks = [min(size, chats - first) for first in range(0, chats, size)]

    def divided(_: int) -> list[Any]:
        return [cluster._Block("", units, print, {"units": units}) for units in blocks]  # type: ignore[arg-type]

    jobs = [cluster._Job(str(n), {}, divided) for n in range(models)]
    for job in jobs:
        job.waiting.extend(divided(workers))
    with bar(False, total=models * chats, desc="", unit="chat") as silent:
        cluster._Driver(ray=clock, jobs=jobs, on=cluster.HERE, store=None, mark="", bar=silent).run(workers)  # type: ignore[arg-type]
    return clock


def row(name: str, clock: Clock, workers: int, models: int, chats: int) -> dict[str, str]:
    ideal = models * chats * clock.costs.chat / workers
    whole = clock.now * workers
    return {
        "": name,
        "hours": f"{clock.now / 3600:.2f}",
        "at best": f"{ideal / 3600:.2f}",
        "at work on chats": f"{models * chats * clock.costs.chat / whole:.0%}",
        "reading the store": f"{clock.scanning / whole:.0%}",
        "loading": f"{clock.starting / whole:.0%}",
        "driver busy": f"{clock.driving / clock.now:.0%}",
        "memory of keys": f"{models * chats * clock.costs.key_bytes / 2**30:.1f} GiB a worker",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    costs, real = measure()
    print(costs, "\n")
    n = int(real[1]["units"].sum())
    for workers, table in real.items():
        # Two processes on these cores are slower than one: their own pace, which no scheduler changes.
        pace = table["seconds"].sum() / real[1]["seconds"].sum()
        own = replace(costs, chat=costs.chat * pace, block=costs.block * pace)
        seconds = simulate(own, workers, 1, n, 104).now - own.start
        truly = n / rate(table)
        print(f"{workers} workers: simulated {seconds:.1f} s, real {truly:.1f} s ({seconds / truly - 1:+.0%})")
    rows = []
    for name, (chat, load) in GPUS.items():
        there = replace(costs, chat=chat, start=load)
        for size in (512, 2048, 8192):
            large = simulate(there, 64, 1, 10**8, size)
            rows.append(row(f"1e8 states, {name}, blocks of {size}", large, 64, 1, 10**8))
        unread = replace(there, listed=0.0, read=0.0)
        rows.append(row("… of 512, store not read", simulate(unread, 64, 1, 10**8, 512), 64, 1, 10**8))
        for size in (41, 416):
            rows.append(
                row(
                    f"100 models x 50 prompts x 416 queries, {name}, blocks of {size}",
                    simulate(there, 64, 100, 50 * 416, size),
                    64,
                    100,
                    50 * 416,
                )
            )
    print(*(f"| {' | '.join(cells)} |" for cells in ([*rows[0]], *(one.values() for one in rows))), sep="\n")


if __name__ == "__main__":
    main()
