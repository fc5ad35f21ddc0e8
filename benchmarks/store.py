"""How fast the store reads and writes, against the disk and the memory of this machine in the same run.

    python benchmarks/store.py                     # about 2 GB of disk and of memory, a minute or two
    python benchmarks/store.py --vectors 10000     # a tenth of it

Everything is printed, nothing asserted; docs/store.md holds a run. Cold means: the system was told to forget the files.
Seconds are wall-clock, with the processor's own in a second column: they differ where the disk or other work was waited
for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from drolab.store import Store, key

WIDTH = 4096
BATCH = 1000
REPEATS = 5


class Seconds(NamedTuple):
    wall: float
    processor: float


def seconds(work: Callable[[], object]) -> Seconds:
    """How long `work` takes; what it returns is freed outside of that."""
    start, start_processor = time.perf_counter(), time.process_time()
    result = work()
    taken = Seconds(time.perf_counter() - start, time.process_time() - start_processor)
    del result
    return taken


def in_turn(
    works: dict[str, Callable[[], object]], *, before: Callable[[], object] = lambda: None
) -> dict[str, Seconds]:
    """Median seconds of each, one after the other in every round, so that a busy moment hits all of them."""
    rounds = []
    for _ in range(REPEATS + 1):  # the first one warms up
        taken = {}
        for name, work in works.items():
            before()
            taken[name] = seconds(work)
        rounds.append(taken)
    return {
        name: Seconds(*(statistics.median(times) for times in zip(*(taken[name] for taken in rounds[1:]), strict=True)))
        for name in works
    }


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "v2" / "tensors").iterdir())


def forget(folder: Path) -> None:
    """Have the system drop the files' pages from memory."""
    for path in shard_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_plainly(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in shard_files(folder)]


def write_plainly(folder: Path, content: bytes, times: int) -> None:
    """What a put must do at least: write a file, flush it to the disk."""
    folder.mkdir()
    for number in range(times):
        with open(folder / str(number), "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder)


def fill(folder: Path, keys: list[str], batch: int, width: int) -> None:
    store, values = Store(folder), torch.randn(batch, width, generator=torch.Generator().manual_seed(0)).half()
    for start in range(0, len(keys), batch):
        values[0, 0] = start // batch
        store.put_tensors(keys[start : start + batch], values)


def vectors(folder: Path, n: int) -> dict[str, Seconds]:
    """Writing and reading n × WIDTH half-precision numbers in files of BATCH vectors."""
    keys = [key(row=row) for row in range(n)]
    result = {"write, store": seconds(lambda: fill(folder, keys, BATCH, WIDTH))}
    content = shard_files(folder)[0].read_bytes()
    result["write, plain files"] = seconds(lambda: write_plainly(folder / "plain", content, n // BATCH))
    os.sync()

    block = np.ones(n * WIDTH, dtype=np.float16)
    opened = Store(folder)
    reads: dict[str, Callable[[], object]] = {
        "store, newly opened": lambda: Store(folder).get_tensors(keys),
        "store, open": lambda: opened.get_tensors(keys),
        "plain files": lambda: read_plainly(folder),
    }
    assert len(opened.get_tensors(keys)) == n
    warm = in_turn({**reads, "copy in memory": block.copy})
    del reads["store, open"], block
    cold = in_turn(reads, before=lambda: forget(folder))
    return (
        result
        | {f"warm read, {name}": t for name, t in warm.items()}
        | {f"cold read, {name}": t for name, t in cold.items()}
    )


def look_up(folder: Path, n: int, batch: int, what: str) -> dict[str, Seconds]:
    """n keys in files of `batch` entries each: finding them, and finding out that others are not there."""
    keys, others = [key(row=row) for row in range(n)], [key(other=row) for row in range(n)]
    fill(folder, keys, batch, 8)
    opened = Store(folder)
    assert len(opened.get_tensors(keys)) == n
    works: dict[str, Callable[[], object]] = {
        f"{what}: open, first key": lambda: Store(folder).get_tensors(keys[:1]),
        f"{what}: {n:,} keys it lacks": lambda: opened.get_tensors(others),
        f"{what}: {n:,} keys it has, values of 16 bytes": lambda: opened.get_tensors(keys),
    }
    return in_turn(works)


def checksum_rates(n: int = 20_000) -> dict[str, float]:
    """GB/s over vectors of WIDTH half-precision numbers, one at a time, as the store must."""
    raw = memoryview(np.random.default_rng(0).bytes(n * WIDTH * 2))
    rows = [raw[start : start + WIDTH * 2] for start in range(0, len(raw), WIDTH * 2)]
    functions: dict[str, Callable[[memoryview], object]] = {
        "XXH3, 128 bits": xxhash.xxh3_128_digest,
        "CRC-32": zlib.crc32,
        "SHA-256": lambda row: hashlib.sha256(row).digest(),
        "BLAKE2b": lambda row: hashlib.blake2b(row, digest_size=16).digest(),
    }

    def over_rows(function: Callable[[memoryview], object]) -> Callable[[], object]:
        return lambda: [function(row) for row in rows]

    times = in_turn({name: over_rows(function) for name, function in functions.items()})
    return {name: len(raw) / 1e9 / taken.processor for name, taken in times.items()}


def measure(folder: Path, n: int) -> dict[str, object]:
    result: dict[str, object] = {"vectors": n, "gigabytes": n * WIDTH * 2 / 1e9}
    result["seconds"] = vectors(folder / "vectors", n)
    shutil.rmtree(folder / "vectors")
    result["look-up"] = look_up(folder / "few", n, BATCH, f"{n // BATCH:,} files")
    result["look-up"] |= look_up(folder / "many", n, 10, f"{n // 10:,} files")  # type: ignore[operator]
    result["checksums, GB/s"] = checksum_rates()
    return result


def markdown(result: dict) -> str:
    """The figures as tables."""
    size, times = result["gigabytes"], result["seconds"]
    lines = [f"{result['vectors']:,} vectors of {WIDTH:,} half-precision numbers, {size * 1000:.0f} MB:\n"]
    lines += ["| | seconds | of the processor | GB/s | speed of plain files |", "|---|---:|---:|---:|---:|"]
    for name, taken in times.items():
        plain = times[f"{name.split(',')[0]}, plain files"].wall
        speed = f"{size / taken.wall:.2f} | {plain / taken.wall:.0%}"
        lines.append(f"| {name} | {taken.wall:.2f} | {taken.processor:.2f} | {speed} |")
    lines += ["\n| look-up | seconds | of the processor |", "|---|---:|---:|"]
    lines += [f"| {name} | {taken.wall:.3f} | {taken.processor:.3f} |" for name, taken in result["look-up"].items()]
    lines += ["\n| checksum of 8 kB rows | GB/s |", "|---|---:|"]
    lines += [f"| {name} | {rate:.2f} |" for name, rate in result["checksums, GB/s"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000, help="a multiple of 1,000 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options.vectors)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}; medians of {REPEATS}\n\n{markdown(result)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
