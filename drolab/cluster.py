"""Many machines, on Ray (https://docs.ray.io): long work in blocks, which workers compute into one store.

Afterwards the ordinary calls read that store: `cluster.states(…)`, then `hidden_states(…)` with the same arguments. A
block is an ordinary call for some queries under one prompt, so all that it finishes is kept under content keys: a block
that is computed twice is the same, and one whose worker is lost goes to another, which finds what the first had kept.

In order: where it runs (`Cluster`); what can be asked (`states`, `replies`, `train_dro`, `reproduce`); models and their
blocks; the driver's loop; a worker; the store where machines do not share one. Nothing else in drolab knows of Ray.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import os
import socket
import tempfile
import time
import traceback
import uuid
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
import torch

from drolab import dro, report, reproduction
from drolab.data import validate_queries
from drolab.errors import DrolabError, ExportError, ModelError, StoreError, UnreliableWarning
from drolab.files import plain_name
from drolab.inference import generate, hidden_states
from drolab.models import ChatModel, Prompts, as_prompts, load_model
from drolab.notebooks import NotebookError
from drolab.progress import Bar, Progress, resumable_bar
from drolab.store import Store
from drolab.types import AnchorSpace, DROConfig, Probe

BLOCK_COLUMNS = ("model", "block", "units", "seconds", "ended", "worker", "lost", "summary")
"""Of what the calls return, a row for each block: its model, what it is, how many chats (or runs) it has, the seconds
that it took, when it ended (seconds after workers were asked for), where it ran, how often its worker was lost, and
what the ordinary call said of it."""
_TRIES = 4
"""So often a block may lose its worker, or a model its workers before one has started."""
_BLOCKS_EACH = 8
"""Blocks for each worker: the last ones end at about the same time."""
_FEWEST, _MOST = 16, 2048
"""Queries of a block."""
_OBJECT_STORE = 2**28
"""Bytes, of a Ray that is started here: what goes through it is small."""
_log = logging.getLogger(__name__)

Models = str | Path | Sequence[str | Path]


class ClusterError(DrolabError, RuntimeError):
    """Ray is missing, or something failed on a worker: what, where, and the worker's own traceback."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where work runs."""

    workers: int | None = None
    """Processes, each with a model of its own. None: as many as the cluster has room for now."""
    cpus: float = 1
    """Of each worker: what Ray reserves, and how many threads it computes with."""
    gpus: float = 0
    """Of each worker. More than 1 spread the model over them (`device_map="auto"`), less than 1 share one."""
    address: str | None = None
    """None starts a Ray on this machine, on its loopback alone, and ends it afterwards; otherwise the cluster to join,
    such as "auto". A Ray that runs in this process already (`ray.init`) is used, and stays."""
    shared: bool = True
    """Whether all machines see the same files. If not, the store is written on this machine, and what workers finish
    comes here through Ray."""

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus <= 0 or self.gpus < 0:
            raise ClusterError(f"{self} has no workers, or gives them nothing: workers, cpus > 0 and gpus >= 0.")
        if (self.address or "").startswith("ray://"):
            raise ClusterError(
                f"{self.address} is for Ray's client, which has no store: run this on a machine of the cluster, "
                "with address='auto'."
            )

    def placed(self, load: Mapping[str, Any] | None) -> dict[str, Any]:
        """Options of `load_model`, with the device where nothing is said."""
        where = "cpu" if not self.gpus else "auto" if self.gpus > 1 else "cuda"
        return {"device_map": where, **(load or {})}


HERE = Cluster()


def states(
    models: Models,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    store: Store,
    on: Cluster = HERE,
    load: Mapping[str, Any] | None = None,
    block_size: int | None = None,
    progress: Progress = True,
    **options: Any,
) -> pd.DataFrame:
    """Fill `store` with the hidden states of every query under every prompt, for `hidden_states` to read.

    Args:
        models: as for `load_model`, one or several. They are loaded by the workers, each of which has one.
        store: where the states go; see `Cluster.shared`.
        on: where it runs: how many workers, with which share of a machine.
        load: options of `load_model`, for all of the models. A model that is larger than a GPU: `Cluster(gpus=…)`.
        block_size: queries of a block. None makes about eight blocks for each worker, of 16 to 2048 queries.
        progress: as everywhere. Whatever ends the call, Ctrl-C too, ends its workers.
        options: of `hidden_states`, such as `layers`.

    Returns:
        BLOCK_COLUMNS; `.attrs["fingerprints"]` has each model's.

    Raises:
        ClusterError: Ray is not installed; something failed on a worker (after all that could be done for other
            models); a block lost four workers; workers have other weights under one name, or do not see the store.
        QueryError, PromptError, TypeError: malformed queries or prompts, options that `hidden_states` does not have;
            before anything begins.
        KeyboardInterrupt: with a message on how to go on.

    Examples:
        >>> import drolab
        >>> queries, prompts, store = drolab.load_queries("anchors"), drolab.load_prompts(), drolab.Store()
        >>> on = drolab.cluster.Cluster(workers=2)
        >>> drolab.cluster.states("demo", queries, prompts, store=store, on=on)  # doctest: +SKIP
        >>> states = drolab.hidden_states(drolab.load_model("demo"), queries, prompts, store=store)  # doctest: +SKIP
    """
    divided = _by_query(_states, hidden_states, queries, prompts, block_size, options)
    return _fill("states", models, divided, store, on, load, progress)


def replies(
    models: Models,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    store: Store,
    on: Cluster = HERE,
    load: Mapping[str, Any] | None = None,
    block_size: int | None = None,
    progress: Progress = True,
    **options: Any,
) -> pd.DataFrame:
    """Fill `store` with the model's replies to every query under every prompt, for `generate` to read.

    Arguments, result and errors are those of `states`; `options` are those of `generate`, such as `n_samples`.
    """
    divided = _by_query(_replies, generate, queries, prompts, block_size, options)
    return _fill("replies", models, divided, store, on, load, progress)


def train_dro(
    model: str | Path,
    queries: pd.DataFrame,
    *,
    inits: Prompts,
    space: AnchorSpace,
    refusal: Probe,
    harmfulness: Probe,
    store: Store,
    configs: Sequence[DROConfig] = (DROConfig(),),
    seeds: Sequence[int] | None = None,
    on: Cluster = HERE,
    load: Mapping[str, Any] | None = None,
    progress: Progress = True,
) -> pd.DataFrame:
    """Train every prompt with every configuration and seed, for `drolab.train_dro` to take from `store`.

    A block is one run. Its checkpoints are in the store, so that another worker goes on where a lost one kept the last.
    A run that fails ends no other.

    Args:
        inits: the human prompts to start from.
        configs: each with every one of the `seeds`.
        seeds: None leaves each configuration its own.

    The other arguments are those of `states` and of `drolab.train_dro`; so are result and errors.
    """
    queries, starts = validate_queries(queries), as_prompts(inits)
    runs = [replace(config, seed=seed) for config in configs for seed in (seeds or [config.seed])]
    common = {"queries": queries, "space": space, "refusal": refusal, "harmfulness": harmfulness}
    blocks = [
        _Block(f"{init.name}, run {n} of {len(runs)}", 1, _training, {**common, "init": init, "config": run})
        for init in starts
        for n, run in enumerate(runs, 1)
    ]
    return _fill("training", model, lambda _: blocks, store, on, load, progress, each_for_itself=True)


def reproduce(
    models: Models,
    *,
    out: str | Path = "out/all",
    on: Cluster = HERE,
    store: str | Path | None = None,
    progress: Progress = True,
    **options: Any,
) -> Path:
    """`drolab.reproduce` for many models at once, each by one worker; `out/compare.html` compares them.

    The same call goes on where an earlier one was interrupted. Where machines do not share files, each keeps a store of
    its own, its results come here, and a model that has begun on one machine goes on only there.

    Args:
        out: has a folder for each model.
        store: the store's folder, on every machine; None is drolab's usual one.
        options: of `drolab.reproduce`, such as `quick`.

    Raises:
        ClusterError: when all the rest is done and written: a model did not run to its end.
    """
    inspect.signature(reproduction.reproduce).bind("", **options)
    places = reproduction.run_places(_named(models), Path(out).resolve())
    kept = str(Store(store).folder.resolve()) if on.shared or store else None
    paths = {name: str(Path(options[name]).resolve()) for name in ("notebooks", "paper_code") if options.get(name)}
    options = {"device": on.placed(None)["device_map"], **options, **paths, "store": kept}
    root = Path(out).resolve()
    root.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name, (_, place) in places.items():
        kwargs = {"name": name, "out": str(place), "options": options, "sent": not on.shared}
        jobs.append(_Job(name, None, partial(_as_one, kwargs)))
    ran = _run("models", "model", jobs, root if on.shared else None, None, on, progress)
    errors = {job.name: job.error for job in jobs} | {one.job.name: one.summary for one in ran}
    for one in ran:
        if one.value:
            _unpack(one.value, places[one.job.name][1])
    own = {one.job.name: places[one.job.name][1] for one in ran}  # of others, what is in their folder is another run's
    page = report.write_comparison(
        root,
        [
            report.Compared(name=short, out=own.get(name), error=errors[name].partition("\n")[0])
            for name, (short, _) in places.items()
        ],
    )
    _raise_failed(errors, f"{page} has the rest.")
    return page


# ---------------------------------------------------------------- models and their blocks


@dataclass(eq=False)
class _Block:
    """A part of the work, small enough to be lost."""

    words: str
    units: int
    call: Callable[..., tuple[str, Any]]
    """What a worker does, by `call(model, store, **kwargs)`; it gives what to say of it, and a value."""
    kwargs: Mapping[str, Any]
    lost: int = 0


@dataclass(eq=False)
class _Job:
    """A model, and the blocks that nobody has yet."""

    name: str
    load: Mapping[str, Any] | None
    """Options of `load_model`; None: the blocks do that themselves."""
    divided: Callable[[int], Sequence[_Block]]
    """Into blocks, for so many workers."""
    each_for_itself: bool = False
    """Whether a block that fails ends no other."""
    waiting: deque[_Block] = field(default_factory=deque)
    workers: int = 0
    starting: int = 0
    lost: int = 0
    """Workers, since the last that has started."""
    fingerprint: str = ""
    error: str = ""

    def failed(self, why: str, block: _Block | None) -> None:
        """A block failed, or whatever comes before the first."""
        self.error += ("\n\n" if self.error else "") + (f"{block.words}: {why}" if block else why)
        if block is None or not self.each_for_itself:
            self.waiting.clear()

    def need(self) -> tuple[bool, float]:
        """Of one more worker: models that have none come first."""
        lacking = len(self.waiting) - self.starting
        return lacking > 0 and not self.workers, max(0.0, lacking / (self.workers + 1))


class _Finished(NamedTuple):
    job: _Job
    block: _Block
    seconds: float
    ended: float
    worker: str
    summary: str
    value: Any


def _named(models: Models) -> list[str]:
    """As workers can load them, which run in other folders."""
    given = [models] if isinstance(models, (str, Path)) else list(models)
    if wrong := [model for model in given if not isinstance(model, (str, Path))]:
        raise ModelError(f"{wrong[0]!r} is no name: workers load models themselves. Give a hub id, a folder or 'demo'.")
    return reproduction.names_of(given)


def _by_query(
    call: Callable[..., tuple[str, Any]],
    ordinary: Callable[..., Any],
    queries: pd.DataFrame,
    prompts: Prompts,
    size: int | None,
    options: Mapping[str, Any],
) -> Callable[[int], list[_Block]]:
    """Blocks of so many queries under one prompt. What can be known to be wrong is said at once."""
    inspect.signature(ordinary).bind(None, queries, prompts, store=None, progress=False, **options)
    queries, wanted = validate_queries(queries), as_prompts(prompts)
    if size is not None and size < 1:
        raise ClusterError(f"block_size must be at least 1, got {size}: leave it out.")

    def divided(workers: int) -> list[_Block]:
        each = math.ceil(len(queries) * len(wanted) / (workers * _BLOCKS_EACH))
        step = size or min(_MOST, max(_FEWEST, each))
        parts = {first: queries.iloc[first : first + step] for first in range(0, len(queries), step)}
        return [
            _Block(
                f"{prompt.name}, queries {first + 1} to {first + len(part)}",
                len(part),
                call,
                {"queries": part, "prompts": prompt, **options},
            )
            for prompt in wanted
            for first, part in parts.items()
        ]

    return divided


def _fill(
    what: str,
    models: Models,
    divided: Callable[[int], Sequence[_Block]],
    store: Store,
    on: Cluster,
    load: Mapping[str, Any] | None,
    progress: Progress,
    *,
    each_for_itself: bool = False,
) -> pd.DataFrame:
    """Do all blocks for each of the models; the table of them."""
    placed = on.placed(load)
    inspect.signature(load_model).bind("", **placed)
    jobs = [_Job(name, placed, divided, each_for_itself) for name in _named(models)]
    store = Store(store.folder.resolve())
    store.folder.mkdir(parents=True, exist_ok=True)
    unit = "run" if each_for_itself else "chat"
    done = _run(what, unit, jobs, store.folder if on.shared else None, store, on, progress)
    _raise_failed({job.name: job.error for job in jobs}, "The rest is in the store: the same call goes on from there.")
    rows = [(one.job.name, one.block.words, one.block.units, *one[2:5], one.block.lost, one.summary) for one in done]
    table = pd.DataFrame(rows, columns=list(BLOCK_COLUMNS))
    table.attrs["fingerprints"] = {job.name: job.fingerprint for job in jobs}
    return table


def _raise_failed(errors: Mapping[str, str], then: str) -> None:
    if failed := {name: error for name, error in errors.items() if error}:
        said = "\n\n".join(f"{name}: {error}" for name, error in failed.items())
        raise ClusterError(f"{len(failed)} of {len(errors)} models did not come to their end. {then}\n\n{said}")


# ---------------------------------------------------------------- the driver


@contextmanager
def _ray(on: Cluster) -> Iterator[Any]:
    """Ray, connected; as it was before, afterwards."""
    # On Linux, this alone keeps a Ray that is started here on the loopback; it is read when Ray is imported, too.
    own = {} if on.address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", **own}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        try:
            import ray
            from ray._private import ray_constants
        except ImportError as error:
            raise ClusterError("Ray is not installed: pip install 'drolab[cluster]', on all machines.") from error
        if ray.is_initialized():
            yield ray
            return
        ray_constants.ENABLE_RAY_CLUSTER = bool(on.address)
        options: dict[str, Any] = {"address": on.address or "local"}
        if not on.address:
            cpus = math.ceil(on.cpus * on.workers) if on.workers else None
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE, "num_cpus": cpus}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, namespace=f"drolab-{uuid.uuid4()}")
        except Exception as error:  # Ray raises that, too
            raise ClusterError(f"Ray cannot start or be joined ({on.address or 'here'}): {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _places(ray: Any, on: Cluster) -> int:
    """How many workers there are to be.

    Raises:
        ClusterError: no machine here could have one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [
        int(min(node.get("CPU", 0) / on.cpus, node.get("GPU", 0) / on.gpus if on.gpus else math.inf)) for node in nodes
    ]
    if not sum(room):
        have = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        said = f"No machine has room for a worker of {on.cpus:g} CPUs and {on.gpus:g} GPUs: there are {have}."
        if not on.address or on.workers is None:
            raise ClusterError(f"{said} Ask for less, or say how many workers there are to be.")
        _log.warning("%s Waiting for machines to join.", said)
    return on.workers or sum(room)


@dataclass(eq=False)
class _Worker:
    """What the driver knows of one."""

    job: _Job
    actor: Any
    where: str = ""
    """Empty until it has started."""
    log: str = ""
    block: _Block | None = None


def _run(
    what: str,
    unit: str,
    jobs: Sequence[_Job],
    folder: Path | None,
    store: Store | None,
    on: Cluster,
    progress: Progress,
) -> list[_Finished]:
    """All blocks of all models; what cannot be done is in the jobs' `error`.

    Args:
        folder: what all machines must see; None: they share nothing.
    """
    with _ray(on) as ray:
        n_workers = _places(ray, on)
        for job in jobs:
            job.waiting.extend(job.divided(n_workers))
        total = sum(block.units for job in jobs for block in job.waiting)
        desc = f"{what}, {n_workers} workers"
        counting = resumable_bar(progress, desc, unit, f"{unit}s", total=total, initial=0, kept=True)
        with counting as bar, _seen(folder) as mark, _served(ray, store, on) as at:
            driver = _Driver(ray=ray, jobs=jobs, on=on, store=at, mark=mark, bar=bar)
            return driver.run(n_workers)


@dataclass(eq=False, kw_only=True)
class _Driver:
    """Gives blocks to workers, until there are none."""

    ray: Any
    jobs: Sequence[_Job]
    on: Cluster
    store: Any
    mark: str
    bar: Bar
    crew: set[_Worker] = field(default_factory=set)
    doing: dict[Any, _Worker] = field(default_factory=dict)
    """By Ray's reference to what each is doing."""
    finished: list[_Finished] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.perf_counter)

    def run(self, n_workers: int) -> list[_Finished]:
        try:
            while True:
                self._hire(n_workers)
                if not self.crew:
                    return self.finished
                ready, _ = self.ray.wait([*self.doing], timeout=2.0)
                for reference in ready:
                    self._hear(self.doing.pop(reference), reference)
                starting = sum(job.starting for job in self.jobs)
                self.bar.note(f"{len(self.crew) - starting} at work" + (f", {starting} starting" if starting else ""))
        finally:
            for worker in self.crew:
                self.ray.kill(worker.actor)

    def _hire(self, n_workers: int) -> None:
        while len(self.crew) < n_workers:
            job = max(self.jobs, key=_Job.need)
            if not job.need()[1]:
                return
            kind = self.ray.remote(num_cpus=self.on.cpus, num_gpus=self.on.gpus, max_restarts=0)(_Actor)
            worker = _Worker(job, kind.remote(job.name, job.load, self.store))
            job.workers, job.starting = job.workers + 1, job.starting + 1
            self.crew.add(worker)
            self.doing[worker.actor.start.remote(self.mark)] = worker

    def _hear(self, worker: _Worker, reference: Any) -> None:
        """Take in what a worker has done, and give it something else to do."""
        job, block, started = worker.job, worker.block, not worker.where
        job.starting -= started
        try:
            told = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self._lost(worker, str(error))
            return
        if isinstance(told, _Failed):
            job.failed(f"{told.words}\n\n{told.where}:\n{told.traceback}", block)
            if told.ends_all:
                raise ClusterError(job.error)
        elif started:
            worker.where, worker.log, job.lost = told.where, told.log, 0
            job.fingerprint = job.fingerprint or told.fingerprint
            if told.fingerprint != job.fingerprint:
                job.failed(f"{told.where} has other weights under this name than other machines: update one.", None)
        else:
            ended = time.perf_counter() - self.began
            self.finished.append(_Finished(job, block, told.seconds, ended, worker.where, *told.result))  # type: ignore[arg-type]
            self.bar.update(block.units)  # type: ignore[union-attr]
            for words in set(told.warned) - self.warned:
                warnings.warn(f"{job.name}: {words}", UnreliableWarning, stacklevel=2)
            self.warned |= set(told.warned)
        if job.waiting:
            worker.block = job.waiting.popleft()
            self.doing[worker.actor.do.remote(worker.block.call, worker.block.kwargs)] = worker
        else:
            self._dismiss(worker)

    def _dismiss(self, worker: _Worker) -> None:
        worker.job.workers -= 1
        self.crew.discard(worker)
        self.ray.kill(worker.actor)

    def _lost(self, worker: _Worker, why: str) -> None:
        """A worker is gone: its block goes to another."""
        job, block = worker.job, worker.block
        self._dismiss(worker)
        losses: _Job | _Block = block or job
        losses.lost += 1
        if losses.lost >= _TRIES:
            what = f"{_TRIES} workers were lost with it, the last so" if block else f"{_TRIES} workers never started"
            job.failed(f"{what}: {why}\n{_last_lines(worker.log)}", block)
        elif block and (job.each_for_itself or not job.error):
            job.waiting.appendleft(block)
        _log.warning("A worker for %s is lost: %s", job.name, why.strip().partition("\n")[0])


def _last_lines(log: str) -> str:
    """Of a worker's log, where this machine has it."""
    try:
        return f"{log} ends with:\n" + "\n".join(Path(log).read_text(errors="replace").splitlines()[-10:])
    except OSError:
        return f"Its log: {log}" if log else ""


@contextmanager
def _seen(folder: Path | None) -> Iterator[str]:
    """A file by which a worker finds out whether it sees the folder of this machine; its path."""
    if folder is None:
        yield ""
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".cluster-") as mark:
        yield mark.name


# ---------------------------------------------------------------- a worker


class _Failed(NamedTuple):
    words: str
    where: str
    traceback: str
    ends_all: bool


class _Started(NamedTuple):
    where: str
    log: str
    fingerprint: str


class _Told(NamedTuple):
    result: tuple[str, Any]
    seconds: float
    warned: tuple[str, ...]


class _Actor:
    """A process that loads a model once, and does blocks with it."""

    def __init__(self, name: str, load: Mapping[str, Any] | None, store: Any) -> None:
        self.name, self.load = name, load
        self.model: ChatModel | None = None
        self.store = store if store is None or isinstance(store, Store) else cast(Store, _FarStore(store))

    def start(self, mark: str) -> _Started | _Failed:
        return self._told(lambda: self._start(mark))

    def _start(self, mark: str) -> _Started:
        if mark and not os.path.exists(mark):
            raise ClusterError(
                f"{Path(mark).parent} is not the same folder here as where you called: share it, or pass "
                "Cluster(shared=False)."
            )
        if self.load is not None:
            self.model = load_model(self.name, **self.load)
        return _Started(_where(), _log_file(), self.model.fingerprint if self.model else "")

    def do(self, call: Callable[..., tuple[str, Any]], kwargs: Mapping[str, Any]) -> _Told | _Failed:
        return self._told(lambda: self._do(call, kwargs))

    def _do(self, call: Callable[..., tuple[str, Any]], kwargs: Mapping[str, Any]) -> _Told:
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UnreliableWarning)
            result = call(self.model, self.store, **kwargs)
        warned = tuple(str(one.message) for one in caught if issubclass(one.category, UnreliableWarning))
        return _Told(result, time.perf_counter() - began, warned)

    def _told(self, work: Callable[[], Any]) -> Any:
        """What comes of it, or what went wrong: an error itself may not get through to the driver."""
        try:
            return work()
        except Exception as error:
            return _Failed(
                str(error) or type(error).__name__,
                f"{_where()}, log {_log_file()}",
                traceback.format_exc(),
                isinstance(error, (StoreError, ExportError)),  # nobody else has more room
            )


def _where() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _log_file() -> str:
    """What Ray keeps of the standard error of this process."""
    try:
        return os.readlink("/proc/self/fd/2")
    except OSError:
        return ""


def _states(model: ChatModel, store: Store, **asked: Any) -> tuple[str, None]:
    return hidden_states(model, store=store, progress=False, **asked).index.attrs["summary"], None


def _replies(model: ChatModel, store: Store, **asked: Any) -> tuple[str, None]:
    return generate(model, store=store, progress=False, **asked).attrs["summary"], None


def _training(model: ChatModel, store: Store, **asked: Any) -> tuple[str, None]:
    run = dro.train_dro(model, store=store, progress=False, **asked)
    return "; ".join([f"{len(run.history)} steps", *run.problems]), None


def _as_one(kwargs: Mapping[str, Any], _: int) -> list[_Block]:
    """All notebooks of a model as one block."""
    return [_Block("all notebooks", 1, _whole, kwargs)]


def _whole(_: None, __: None, name: str, out: str, options: Mapping[str, Any], sent: bool) -> tuple[str, bytes]:
    """What went wrong with a model all of whose notebooks have been tried, and its results if they are to be sent."""
    place = Path(tempfile.gettempdir()) / "drolab-cluster" / plain_name(out) if sent else Path(out)
    said = ""
    try:
        reproduction.reproduce(name, out=place, progress=False, **options)
    except NotebookError as error:
        said = str(error)
    return said, _packed(place) if sent else b""


def _packed(folder: Path) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return held.getvalue()


def _unpack(content: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)


# ---------------------------------------------------------------- a store that is not shared


@contextmanager
def _served(ray: Any, store: Store | None, on: Cluster) -> Iterator[Any]:
    """What workers are given for the store: itself where they see it, else an actor on this machine that has it."""
    if store is None or on.shared:
        yield store
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = ray.remote(num_cpus=0, max_concurrency=4, scheduling_strategy=here)(_Server)
    server = kind.remote(store)
    try:
        yield server
    finally:
        ray.kill(server)


class _Server:
    """The store, in a process of its own on the driver's machine."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        found = getattr(self.store, name)(*args, **kwargs)
        if name != "get_tensors":
            return found
        alike: dict[tuple, list[str]] = {}  # thousands of small tensors travel slowly
        for key, value in found.items():
            alike.setdefault((value.dtype, value.shape), []).append(key)
        return [(keys, torch.stack([found[key] for key in keys])) for keys in alike.values()]


class _FarStore:
    """A store as a worker on another machine has it."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import ray

        def asked(*args: Any, **kwargs: Any) -> Any:
            found = ray.get(self._server.do.remote(name, *args, **kwargs))
            if name == "get_tensors":
                return {key: value for keys, values in found for key, value in zip(keys, values.unbind(), strict=True)}
            return found

        return asked
