"""What the driver of a cluster does with its workers, on a Ray in this process: who does what, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.small_ray import SmallRay
from helpers.training import QUERIES, assert_equal_runs, setting_of

import drolab
from drolab import cluster
from drolab.cluster import Cluster, ClusterError
from drolab.models import ChatModel
from drolab.store import Store

ANCHORS = drolab.load_queries("anchors", verbose=False).head(12)
PROMPTS = {name: prompt for name, prompt in drolab.load_prompts().items() if name in ("none", "short")}
TWO = Cluster(workers=2)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmallRay]:
    def small(dies: Callable[[int, str], bool] = lambda n, name: False) -> SmallRay:
        made = SmallRay(dies)
        monkeypatch.setattr(cluster, "_ray", made.connected)
        return made

    return small


def fill(store: Store, models: list[str] | str = "demo", **options: object) -> object:
    return cluster.states(models, ANCHORS, PROMPTS, store=store, on=TWO, block_size=5, progress=False, **options)


def summary(store: Store, demo: ChatModel) -> str:
    return drolab.hidden_states(demo, ANCHORS, PROMPTS, store=store, progress=False).index.attrs["summary"]


def test_every_block_is_done_once_and_its_values_are_the_ordinary_calls(
    ray: Callable[..., SmallRay], store: Store, demo: ChatModel
) -> None:
    small = ray()
    table = fill(store)
    assert table["block"].tolist()[0] == "none, queries 1 to 5"
    assert table["block"].is_unique
    assert table["units"].tolist() == [5, 5, 2] * 2
    assert table.attrs["fingerprints"] == {"demo": demo.fingerprint}
    assert (small.most, small.alive) == (2, set())
    found = drolab.hidden_states(demo, ANCHORS, PROMPTS, store=store, progress=False)
    plain = drolab.hidden_states(demo, ANCHORS, PROMPTS, progress=False)
    assert found.index.attrs["summary"] == "all 24 chats found in the store"
    assert torch.allclose(found.values, plain.values, atol=1e-4)
    assert not torch.allclose(found.values.roll(1, 0), plain.values, atol=1e-2)


def test_replies_are_found_by_the_ordinary_call(ray: Callable[..., SmallRay], store: Store, demo: ChatModel) -> None:
    ray()
    asked = {"n_samples": 2, "max_new_tokens": 6, "progress": False}
    cluster.replies("demo", ANCHORS, PROMPTS, store=store, on=TWO, **asked)
    found = drolab.generate(demo, ANCHORS, PROMPTS, store=store, **asked)
    assert found.attrs["summary"] == "all 48 replies found in the store"
    assert found["response"].equals(drolab.generate(demo, ANCHORS, PROMPTS, **asked)["response"])


def test_blocks_of_lost_workers_go_to_others(ray: Callable[..., SmallRay], store: Store, demo: ChatModel) -> None:
    small = ray(lambda n, name: n in (1, 3, 4, 6))
    table = fill(store)
    assert table["units"].sum() == 24
    assert table["lost"].sum() >= 1
    assert not small.alive
    assert summary(store, demo) == "all 24 chats found in the store"


def test_a_block_that_loses_every_worker_is_an_error_and_so_is_a_model_that_never_starts(
    ray: Callable[..., SmallRay], store: Store
) -> None:
    small = ray(lambda n, name: name == "do")
    with pytest.raises(ClusterError, match=r"queries 1 to 5: 4 workers were lost with it, the last so: killed"):
        fill(store)
    assert not small.alive
    small = ray(lambda n, name: name == "start")
    with pytest.raises(ClusterError, match="4 workers never started"):
        fill(store)
    assert not small.alive


def test_what_ends_one_model_ends_no_other(ray: Callable[..., SmallRay], store: Store, demo: ChatModel) -> None:
    small = ray()
    with pytest.raises(ClusterError, match=r"(?s)1 of 2 models.*no/such.*Traceback.*load_model"):
        fill(store, ["no/such", "demo"])
    assert not small.alive
    assert summary(store, demo) == "all 24 chats found in the store"


def test_an_error_in_a_block_names_it(ray: Callable[..., SmallRay], store: Store) -> None:
    ray()
    with pytest.raises(ClusterError, match=r"none, queries 1 to 5: .*99"):
        fill(store, layers=(99,))


def test_a_stop_ends_all_workers_and_says_how_to_go_on(ray: Callable[..., SmallRay], store: Store) -> None:
    small = ray()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="5 of 24 chats are in the store: run the same call again"):
        cluster.states("demo", ANCHORS, PROMPTS, store=store, on=TWO, block_size=5, progress=stop)
    assert small.most == 2
    assert not small.alive
    assert fill(store)["summary"].tolist()[0] == "all 5 chats found in the store"


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_fails_ends_no_other(ray: Callable[..., SmallRay], store: Store, demo: ChatModel) -> None:
    ray()
    setting = setting_of(demo)
    asked = {name: value for name, value in setting.arguments().items() if name not in ("init", "config")}
    configs = [drolab.DROConfig(num_train_epochs=2, learning_rate=1e30), setting.config]
    options = {"store": store, "on": TWO, "progress": False, **asked}
    with pytest.raises(ClusterError, match="demo: careful, run 1 of 2: "):
        cluster.train_dro("demo", QUERIES, inits=[setting.init], configs=configs, **options)
    kept = len(store.files().query("kind == 'runs'"))
    assert_equal_runs(setting.train(store), setting.train())
    assert len(store.files().query("kind == 'runs'")) == kept
    table = cluster.train_dro("demo", QUERIES, inits=[setting.init], configs=configs[1:], seeds=(42, 7), **options)
    assert table["summary"].tolist() == ["9 steps", "9 steps"]
    assert len(store.files().query("kind == 'runs'")) == kept + 1  # seed 42 is the configuration's own


def test_workers_that_do_not_see_the_store_are_told(
    ray: Callable[..., SmallRay], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray()
    original = cluster._Actor._start
    monkeypatch.setattr(cluster._Actor, "_start", lambda self, mark: original(self, "/elsewhere" + mark))
    with pytest.raises(ClusterError, match="is not the same folder here"):
        fill(store)


def test_no_room_for_a_worker_is_an_error(ray: Callable[..., SmallRay], store: Store) -> None:
    ray()
    with pytest.raises(ClusterError, match="2 CPUs and 0 GPUs"):
        cluster.states("demo", ANCHORS, PROMPTS, store=store, on=Cluster(gpus=1), progress=False)


@pytest.mark.skipif(find_spec("ray") is None, reason="it takes long: make cluster")
def test_models_are_reproduced_side_by_side(ray: Callable[..., SmallRay], tmp_path: Path) -> None:
    from test_reproduce import write_notebooks

    ray()
    options = {"notebooks": write_notebooks(tmp_path / "notebooks"), "store": tmp_path / "store", "progress": False}
    with pytest.raises(ClusterError, match="1 of 2 models"):
        cluster.reproduce(["demo", "no/such"], out=tmp_path / "out", on=TWO, **options)
    assert (tmp_path / "out" / "demo" / "report.html").is_file()
    assert "no/such" in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
