"""What a cluster loses when its parts are killed: two hosts made of network namespaces, and kill -9 at random moments.

    python benchmarks/cluster_faults.py --kills 50     # as root, on Linux, with `pip install 'drolab[cluster]'`

Each host is a Ray node that reaches the other through a virtual cable and nothing else. The store is the driver's alone
(`Cluster(shared=False)`), so that all results travel. Replies and states of the demo model are asked for with two
workers, one on each host; a worker, a whole node (its raylet; then it joins again) or the driver (then the same call is
made again) is killed, until the call ends; then from an empty store again, until there were enough kills. *Wrong*
counts replies that differ from those of the plain call, and states that differ by more than rounding (1e-4); *left*
workers that still ran 20 s after their driver had been killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

import drolab
from drolab.store import Store

HEAD, OTHER = "10.77.0.1", "10.77.0.2"
SPACES = ("drolab-a", "drolab-b")
PORT = 6399
SURROUNDINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
OPTIONS = {"n_samples": 8, "max_new_tokens": 32}
LAYERS = (2, -1)


def asked() -> tuple:
    return drolab.load_queries("anchors", verbose=False).head(200), {
        name: prompt for name, prompt in drolab.load_prompts().items() if name in ("none", "default")
    }


def call(folder: str, address: str) -> None:
    """What the driver does."""
    queries, prompts = asked()
    on = drolab.cluster.Cluster(workers=2, address=address, shared=False)
    for fill, options in ((drolab.cluster.replies, OPTIONS), (drolab.cluster.states, {"layers": LAYERS})):
        table = fill("demo", queries, prompts, store=Store(folder), on=on, block_size=20, progress=False, **options)
        print(json.dumps({"blocks": len(table), "lost": int(table["lost"].sum())}), flush=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def cable() -> None:
    for name in SPACES:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "drolab0", "netns", SPACES[0], "type", "veth", "peer", "name", "drolab1", "netns", SPACES[1])
    for name, end, address in zip(SPACES, ("drolab0", "drolab1"), (HEAD, OTHER), strict=True):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
        ip("-n", name, "link", "set", end, "up")


def started(space: str, *words: str, log: Path) -> subprocess.Popen:
    inside = ["ip", "netns", "exec", space, *words]
    surroundings = os.environ | SURROUNDINGS
    with log.open("ab") as out:
        return subprocess.Popen(inside, stdout=out, stderr=out, env=surroundings, start_new_session=True)


class Hosts:
    """Two Ray nodes, of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
        self.head = self._node(SPACES[0], HEAD, *own)
        until(lambda: "Ray runtime started" in (folder / f"{HEAD}.log").read_text(), 180)
        self.join()

    def _node(self, space: str, address: str, *words: str) -> subprocess.Popen:
        ray = str(Path(sys.executable).parent / "ray")
        sizes = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        log = self.folder / f"{address}.log"
        return started(space, ray, "start", f"--node-ip-address={address}", *sizes, *words, log=log)

    def join(self) -> None:
        self.other = self._node(SPACES[1], OTHER, f"--address={HEAD}:{PORT}")

    def below(self, name: str, *tops: subprocess.Popen) -> list[psutil.Process]:
        """Processes of these nodes that are called so."""
        found = []
        for top in tops or (self.head, self.other):
            try:
                for process in psutil.Process(top.pid).children(recursive=True):
                    if " ".join(process.cmdline()).split("/")[-1].startswith(name) or process.name() == name:
                        found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        return self.below("ray::_Actor")

    def end(self) -> None:
        for top in (self.other, self.head):
            top.terminate()
        for top in (self.other, self.head):
            top.wait(60)


def until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.5)
    return False


def harm(kind: str, hosts: Hosts, driver: subprocess.Popen, counts: Counter) -> None:
    if kind == "worker" and (there := hosts.workers()):
        random.choice(there).kill()
    elif kind == "node" and (there := hosts.below("raylet", hosts.other)):
        there[0].kill()
        hosts.other.wait(60)
        hosts.join()
    elif kind == "driver":
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        counts["left"] += 0 if until(lambda: not hosts.workers(), 20) else len(hosts.workers())
    else:
        return
    counts[kind] += 1


def wrong(folder: str, expected: tuple) -> tuple[int, str]:
    """Values in the store that are not what the plain calls gave; what there was to compute for the ordinary ones."""
    model, (queries, prompts) = drolab.load_model("demo"), asked()
    store = Store(folder)
    replies = drolab.generate(model, queries, prompts, store=store, progress=False, **OPTIONS)
    states = drolab.hidden_states(model, queries, prompts, layers=LAYERS, store=store, progress=False)
    texts = (replies["response"] != expected[0]["response"]).sum()
    vectors = ((states.values - expected[1].values).abs().amax(dim=(1, 2)) > 1e-4).sum()
    return int(texts) + int(vectors), f"{replies.attrs['summary']}; {states.index.attrs['summary']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between kills, on average")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        call(*arguments.call)
        return
    random.seed(arguments.seed)
    model, (queries, prompts) = drolab.load_model("demo"), asked()
    expected = (
        drolab.generate(model, queries, prompts, progress=False, **OPTIONS),
        drolab.hidden_states(model, queries, prompts, layers=LAYERS, progress=False),
    )
    folder, counts = Path(tempfile.mkdtemp(prefix="drolab-")), Counter()
    cable()
    hosts = Hosts(folder)
    try:
        while sum(counts[kind] for kind in ("worker", "node", "driver")) < arguments.kills:
            store = folder / f"store-{counts['rounds']}"
            command = [sys.executable, __file__, "--call", str(store), f"{HEAD}:{PORT}"]
            driver = started(SPACES[0], *command, log=folder / "driver.log")
            while True:
                wait = random.expovariate(1 / arguments.every)
                if until(lambda: driver.poll() is not None, wait):  # noqa: B023
                    if driver.returncode == 0:
                        break
                    counts["ended with an error, called again"] += 1
                elif sum(counts[kind] for kind in ("worker", "node", "driver")) < arguments.kills:
                    kind = random.choices(("worker", "node", "driver"), (6, 2, 2))[0]
                    harm(kind, hosts, driver, counts)
                    print(dict(counts), flush=True)
                if driver.poll() is not None and driver.returncode != 0:
                    driver = started(SPACES[0], *command, log=folder / "driver.log")
            counts["rounds"] += 1
            bad, summary = wrong(str(store), expected)
            counts["wrong"] += bad
            print(f"{summary}; {dict(counts)}", flush=True)
    finally:
        hosts.end()
        for name in SPACES:
            ip("netns", "del", name)
        print((folder / "driver.log").read_text()[-3000:], file=sys.stderr)
        shutil.rmtree(folder)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
