"""How many threads compute on the CPU: for a model as many as it can use, and one core left for whatever else runs; for
the linear algebra of a few hundred queries, one.

All threads of a matrix product wait for the slowest. Where another program has one of the cores, that is often, and
each wait is as long as a turn of the scheduler, which in a small model is many times the product. On two cores beside
one or two busy processes, two threads take up to five times as long as one (docs/performance.md, "Threads").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

_SAID = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Where users say how many threads they want for linear algebra."""

WEIGHTS_PER_THREAD = 30_000_000
"""Below this, a second thread brings little, even on an idle machine."""


def _torchs_own() -> int | None:
    """What torch began with: the number of cores that it may use, of which the system may count each twice; None if
    this is another number, which then is the user's."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = torch.get_num_threads()
    return given if given in (usable, usable // 2) else None


_BEGAN_WITH = _torchs_own()


def n_threads(model: nn.Module) -> int:
    """How many threads to run a model with: as many as you said, if you did (`torch.set_num_threads`, OMP_NUM_THREADS).

    Examples:
        >>> import drolab
        >>> from drolab.threads import n_threads
        >>> n_threads(drolab.load_model("demo").model)
        1
    """
    given, weights = torch.get_num_threads(), list(model.parameters())
    elsewhere = any(part.device.type != "cpu" for part in weights)
    if elsewhere or "OMP_NUM_THREADS" in os.environ or given != _BEGAN_WITH:
        return given
    return max(1, min(given - 1, sum(part.numel() for part in weights) // WEIGHTS_PER_THREAD))


@contextmanager
def threads_for(model: nn.Module) -> Iterator[None]:
    """Run the model with `n_threads(model)` threads; afterwards there are as many as before."""
    before, wanted = torch.get_num_threads(), n_threads(model)
    if wanted == before:  # setting a number costs what torch has prepared for its products, even if it is the same
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of many small fits and products with one thread of linear algebra: on two cores it takes half the
    time (docs/performance.md, "Threads"), and its last bits are the same on machines with other numbers of cores.

    A number that you set (OMP_NUM_THREADS, OPENBLAS_NUM_THREADS, …) wins. It works for OpenBLAS, MKL and BLIS. Where
    two such functions run at once in two threads, the one that came second may have more.

    Examples:
        >>> import numpy as np
        >>> from drolab.threads import one_thread
        >>> one_thread(np.linalg.norm)(np.ones(4))
        np.float64(2.0)
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(name in os.environ for name in _SAID):
            return function(*args, **kwargs)
        with _libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return run


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that are loaded, found once; those of numpy and scipy are there whenever anything is fitted."""
    import scipy.linalg  # noqa: F401 - it has a BLAS of its own

    return ThreadpoolController()
