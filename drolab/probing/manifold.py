"""A UMAP map of hidden states, for looking only: no statistic comes from it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from drolab import store as stores
from drolab.errors import StatesError
from drolab.probing.anchors import one_position
from drolab.types import HiddenStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST = 4
"""States: with fewer, umap's first layout, which needs a dimension more than the picture, does not exist."""
VIEW_COLUMNS = ("query_id", "prompt", "x", "y")
"""Columns of `umap_view`."""


def umap_view(
    states: HiddenStates,
    *,
    layer: int = -1,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    random_state: int = 0,
    extra: HiddenStates | None = None,
    store: stores.Store | None = None,
) -> pd.DataFrame:
    """A UMAP picture of the states, for looking only: distances in it mean little, and no statistic uses it.

    The map is fitted on `states`; the rows of `extra` (new prompts) are placed into it afterwards and move
    nothing. With a store the coordinates are kept under the content of the states and the settings, and a
    second call reads them. A new `extra` repeats the fit, which is deterministic: the map stays the same.

    Returns:
        VIEW_COLUMNS, one row per state: those of `states`, then those of `extra`.

    Raises:
        StatesError: states that are not finite, or at most `n_neighbors` of them; `extra` of another model, width or
            layer; or settings out of their range.
    """
    shown = [one_position(states)] + ([] if extra is None else [one_position(extra)])
    if extra is not None:
        _check_extra(states, extra, layer)
    matrices = [part.matrix(layer).numpy() for part in shown]
    _check_settings(len(states), n_neighbors, min_dist)
    settings: dict[str, int | float] = {
        "n_neighbors": n_neighbors,
        "min_dist": float(min_dist),
        "random_state": random_state,
    }
    parts: list[object] = [[list(matrix.shape), hashlib.sha256(matrix.tobytes()).hexdigest()] for matrix in matrices]
    view_key = stores.key(kind="umap", parts=parts, **settings)
    kept = store.get_tensors([view_key]) if store is not None else {}
    if view_key in kept:
        places = kept[view_key].numpy()
    else:
        places = _umap(matrices, n_neighbors, min_dist, random_state)
        if store is not None:
            store.put_tensors([view_key], torch.from_numpy(places)[None], note="UMAP view")
    rows = pd.concat([part.index[["query_id", "prompt"]] for part in shown], ignore_index=True)
    return rows.assign(x=places[:, 0], y=places[:, 1])


def _check_extra(states: HiddenStates, extra: HiddenStates, layer: int) -> None:
    """Raise StatesError unless these are states of the same model, layer and width."""
    if states.model_fingerprint and extra.model_fingerprint not in ("", states.model_fingerprint):
        raise StatesError(
            f"The extra states are of model {extra.model_fingerprint[:12]}, the map is of states of model "
            f"{states.model_fingerprint[:12]}: places of one in the map of the other mean nothing."
        )
    own, new = (part.select(layer=layer).layers[0] for part in (states, extra))
    if own != new:
        raise StatesError(f"The extra states are of layer {new}, the map is of layer {own}: ask for the same layer.")
    if states.values.shape[-1] != extra.values.shape[-1]:
        raise StatesError(
            f"The extra states have d = {extra.values.shape[-1]}, the map is of states with d = "
            f"{states.values.shape[-1]}: take both from one model."
        )


def _check_settings(n: int, n_neighbors: int, min_dist: float) -> None:
    """Raise a StatesError where umap would fail, often far from the cause."""
    if n < _FEWEST:
        raise StatesError(f"UMAP needs at least {_FEWEST} states and got {n}: pass states of more queries or prompts.")
    if n <= n_neighbors:
        raise StatesError(f"UMAP with n_neighbors={n_neighbors} needs more than {n} states: lower it.")
    if n_neighbors < 2:
        raise StatesError(f"n_neighbors={n_neighbors} is too few: UMAP takes 2 to {n - 1} for {n} states.")
    if not 0 <= min_dist <= 1:
        raise StatesError(f"min_dist={min_dist} is out of range: UMAP takes 0 to 1, its spread.")


@contextmanager
def _own_threads() -> Iterator[None]:
    """Leave torch the number of threads that it has: numba's pool sets OpenMP's for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _umap(
    matrices: list[NDArray[np.float32]], n_neighbors: int, min_dist: float, random_state: int
) -> NDArray[np.float32]:
    """[rows of all matrices, 2]: a map fitted on the first matrix, the others placed into it."""
    with _own_threads(), warnings.catch_warnings():
        # umap warns about its own choices (spectral fallbacks, numba, jobs): none of it concerns the user.
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=random_state, n_jobs=1)
        placed = [reducer.fit_transform(matrices[0]), *(reducer.transform(matrix) for matrix in matrices[1:])]
    return np.ascontiguousarray(np.concatenate(placed), dtype=np.float32)
