"""drolab on a real Ray. `make cluster` runs this in an environment that has it; elsewhere, only what needs none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers.training import QUERIES, assert_equal_runs, setting_of

import drolab
from drolab import cluster
from drolab.cluster import Cluster, ClusterError
from drolab.errors import ModelError, QueryError
from drolab.models import ChatModel
from drolab.store import Store

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray here: make cluster")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own
ANCHORS = drolab.load_queries("anchors", verbose=False).head(24)
PROMPTS = {name: prompt for name, prompt in drolab.load_prompts().items() if name in ("none", "short")}


@pytest.fixture(scope="module")
def ray_runs() -> Iterator[None]:
    """One Ray for several tests: it takes its time to start."""
    with cluster._ray(Cluster(workers=2)):
        yield


def workers(of: int | None = None) -> list[psutil.Process]:
    """Ray's actors below a process."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::_Actor"] or process.cmdline()[0].startswith("ray::_Actor"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def until(holds: Callable[[], Any], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def states_of(store: Store | None, demo: ChatModel) -> drolab.HiddenStates:
    return drolab.hidden_states(demo, ANCHORS, PROMPTS, layers=(2, -1), store=store, progress=False)


def fill(store: Store, **options: Any) -> Any:
    options = {"on": Cluster(workers=2), "progress": False, **options}
    return cluster.states("demo", ANCHORS, PROMPTS, store=store, block_size=8, layers=(2, -1), **options)


# what needs no Ray


def test_what_is_wrong_is_said_before_anything_begins(store: Store, demo: ChatModel) -> None:
    with pytest.raises(ClusterError, match="has no workers"):
        Cluster(workers=0)
    with pytest.raises(ClusterError, match="Ray's client"):
        Cluster(address="ray://host:10001")
    with pytest.raises(TypeError, match="layer_numbers"):
        cluster.states("demo", ANCHORS, PROMPTS, store=store, layer_numbers=(1,))
    with pytest.raises(QueryError):
        cluster.replies("demo", ANCHORS.drop(columns="text"), PROMPTS, store=store)
    with pytest.raises(ClusterError, match="block_size"):
        cluster.replies("demo", ANCHORS, PROMPTS, store=store, block_size=0)
    with pytest.raises(ModelError, match="no name"):
        cluster.states([demo], ANCHORS, PROMPTS, store=store)  # type: ignore[list-item]
    with pytest.raises(ModelError, match="name each once"):
        cluster.states(["demo", "demo"], ANCHORS, PROMPTS, store=store)
    assert not store.folder.exists()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_it_says_what_to_install(store: Store) -> None:
    with pytest.raises(ClusterError, match=r"pip install 'drolab\[cluster\]'"):
        fill(store)


# what does


@needs_ray
@pytest.mark.usefixtures("ray_runs")
@pytest.mark.parametrize("shared", [True, False])
def test_states_are_those_of_the_ordinary_call(store: Store, demo: ChatModel, shared: bool) -> None:
    table = fill(store, on=Cluster(workers=2, shared=shared))
    assert table["units"].sum() == 48
    assert table.attrs["fingerprints"] == {"demo": demo.fingerprint}
    found, plain = states_of(store, demo), states_of(None, demo)
    assert found.index.attrs["summary"] == "all 48 chats found in the store"
    assert torch.allclose(found.values, plain.values, atol=1e-4)
    assert not torch.allclose(found.values.roll(1, 0), plain.values, atol=1e-2)
    again = fill(store, on=Cluster(workers=2, shared=shared))
    assert again["summary"].str.contains("found in the store").all()


@needs_ray
@pytest.mark.usefixtures("ray_runs")
def test_replies_are_those_of_the_ordinary_call(store: Store, demo: ChatModel) -> None:
    asked = {"n_samples": 3, "max_new_tokens": 12}
    cluster.replies("demo", ANCHORS, PROMPTS, store=store, on=Cluster(workers=2), progress=False, **asked)
    found = drolab.generate(demo, ANCHORS, PROMPTS, store=store, progress=False, **asked)
    plain = drolab.generate(demo, ANCHORS, PROMPTS, progress=False, **asked)
    assert found.attrs["summary"] == "all 144 replies found in the store"
    assert found["response"].equals(plain["response"])
    other = drolab.generate(demo, ANCHORS, PROMPTS, progress=False, seed=1, **asked)
    assert not found["response"].equals(other["response"])


@needs_ray
@pytest.mark.usefixtures("ray_runs", "one_thread")
@pytest.mark.parametrize("shared", [True, False])
def test_every_run_is_that_of_the_ordinary_call(store: Store, demo: ChatModel, shared: bool) -> None:
    setting = setting_of(demo)
    asked = {name: value for name, value in setting.arguments().items() if name not in ("init", "config")}
    on = Cluster(workers=2, shared=shared)
    configs = [setting.config, drolab.DROConfig(num_train_epochs=2, learning_rate=1e30)]
    with pytest.raises(ClusterError, match="demo: careful, run 2 of 2: "):  # which ends no other
        cluster.train_dro(
            "demo", QUERIES, inits=[setting.init], configs=configs, store=store, on=on, progress=False, **asked
        )
    kept = store.files().query("kind == 'runs'")
    assert len(kept) >= 1
    found = setting.train(store)
    assert_equal_runs(found, setting.train())
    assert len(store.files().query("kind == 'runs'")) == len(kept)


@needs_ray
@pytest.mark.usefixtures("ray_runs")
def test_a_lost_worker_costs_its_block(store: Store, demo: ChatModel) -> None:
    killed: list[int] = []

    def kill_all(done: int, total: int) -> None:
        if done and not killed:
            for process in workers():
                killed.append(process.pid)
                process.kill()

    table = fill(store, progress=kill_all)
    assert killed
    assert table["lost"].sum() >= 1
    assert table["units"].sum() == 48
    assert states_of(store, demo).index.attrs["summary"] == "all 48 chats found in the store"
    assert torch.allclose(states_of(store, demo).values, states_of(None, demo).values, atol=1e-4)


@needs_ray
@pytest.mark.usefixtures("ray_runs")
def test_what_ends_one_model_ends_no_other_and_has_its_traceback(store: Store, demo: ChatModel) -> None:
    with pytest.raises(ClusterError, match="1 of 2 models") as failed:
        cluster.states(
            ["no/such", "demo"], ANCHORS, PROMPTS, store=store, on=Cluster(workers=1), layers=(2, -1), progress=False
        )
    assert "Traceback" in str(failed.value)
    assert "load_model" in str(failed.value)
    assert f"process {os.getpid()}" not in str(failed.value)
    assert states_of(store, demo).index.attrs["summary"] == "all 48 chats found in the store"


@needs_ray
@pytest.mark.usefixtures("ray_runs")
def test_a_stop_leaves_no_worker(store: Store, demo: ChatModel) -> None:
    seen: list[psutil.Process] = []

    def stop(done: int, total: int) -> None:
        if done:
            seen.extend(workers())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="of 48 chats are in the store: run the same call again"):
        fill(store, progress=stop)
    assert seen
    assert until(lambda: not any(map(alive, seen)), 20)
    assert fill(store)["units"].sum() == 48


OWN = """
import sys, drolab
from drolab.cluster import Cluster, states
queries, prompts = drolab.load_queries("anchors", verbose=False), drolab.load_prompts()
store = drolab.Store(sys.argv[1])
states("demo", queries, prompts, store=store, on=Cluster(workers=2), block_size=4, progress=False, layers=range(5))
"""


def alive(process: psutil.Process) -> bool:
    """And not one that has ended and is still to be taken note of: whose parent was killed may wait for that."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_ray
@pytest.mark.parametrize("harm", [signal.SIGINT, signal.SIGKILL])
def test_a_ray_of_its_own_is_on_the_loopback_and_ends_with_its_driver(store: Store, harm: signal.Signals) -> None:
    driver = subprocess.Popen([sys.executable, "-c", OWN, str(store.folder)], stderr=subprocess.PIPE, text=True)
    assert until(lambda: any((store.folder / "v2" / "tensors").glob("*.safetensors")))
    below = psutil.Process(driver.pid).children(recursive=True)
    places = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in below
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert places == {"127.0.0.1"}
    driver.send_signal(harm)
    said = driver.communicate(timeout=60)[1]
    assert harm is signal.SIGKILL or "run the same call again" in said
    assert until(lambda: not any(map(alive, below)), 120)  # two of Ray's own agents take a minute to notice
    assert set(store.check()["state"]) == {"ok"}


@needs_ray
@pytest.mark.usefixtures("ray_runs")
def test_models_are_reproduced_side_by_side(tmp_path: Path) -> None:
    from test_reproduce import write_notebooks

    folder = write_notebooks(tmp_path / "notebooks")
    options = {"notebooks": str(folder), "store": tmp_path / "store", "progress": False}
    with pytest.raises(ClusterError, match="1 of 2 models"):
        cluster.reproduce(["demo", "no/such"], out=tmp_path / "out", on=Cluster(workers=2), **options)
    assert (tmp_path / "out" / "demo" / "report.html").is_file()
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "no/such" in page
    far = Cluster(workers=1, shared=False)
    cluster.reproduce("demo", out=tmp_path / "far", on=far, **options)
    assert (tmp_path / "far" / "demo" / "report.html").is_file()
