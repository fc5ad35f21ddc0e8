"""As much of Ray as `drolab.cluster` asks for, in this process: actors work when they are waited for, die as planned.

What it cannot tell (processes, machines, signals) is in `tests/cluster/test_cluster.py`, on the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any


class LostError(RuntimeError):
    """Ray's word for a worker that is gone."""


class SmallRay:
    """dies: whether an actor dies in call number `n`, of all calls, to its method `name`."""

    exceptions = SimpleNamespace(RayError=LostError)

    def __init__(self, dies: Callable[[int, str], bool] = lambda n, name: False) -> None:
        self.dies, self.numbers = dies, count()
        self.alive: set[_Handle] = set()
        self.most = 0

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, **_: Any) -> Any:
        return lambda kind: SimpleNamespace(remote=lambda *args: self._begun(kind(*args)))

    def _begun(self, actor: Any) -> _Handle:
        handle = _Handle(self, actor)
        self.alive.add(handle)
        self.most = max(self.most, len(self.alive))
        return handle

    def wait(self, references: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [references[0]], list(references[1:])

    def get(self, reference: Any) -> Any:
        return reference()

    def kill(self, handle: _Handle) -> None:
        self.alive.discard(handle)

    @contextmanager
    def connected(self, on: Any) -> Any:
        yield self


class _Handle:
    def __init__(self, ray: SmallRay, actor: Any) -> None:
        self.ray, self.actor = ray, actor

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any) -> Callable[[], Any]:
            def work() -> Any:
                if self.ray.dies(next(self.ray.numbers), name):
                    raise LostError("killed, as planned\nin a test")
                return getattr(self.actor, name)(*args)

            return work

        return SimpleNamespace(remote=ask)
