"""The anchor space: a PCA over the hidden states of the anchor queries, and a UMAP view for looking only.

Paper, section 3: the top components of the last layer's last-token states, over all anchor queries without
and with the human safety prompts, hold the features in which harmfulness and refusal can be read.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drolab import store as stores
from drolab.errors import StatesError
from drolab.threads import one_thread
from drolab.types import AnchorSpace, HiddenStates, Origin

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


_SPREAD_QUANTILE = 0.95
_N_GROUPS = 5
"""Groups of queries left out in turn; odd, since classes often take turns in a query set."""


@one_thread
def fit_anchors(states: HiddenStates, *, n_components: int = 4, layer: int = -1, spread: bool = True) -> AnchorSpace:
    """Fit the anchor space: a PCA of one layer's states, all queries under all prompts together.

    Args:
        states: n states of one read position. The order of the rows and repeated rows do not matter.
        n_components: m, from 1 to min(n - 1, d). The paper takes 4.
        layer: in transformers' count; -1 is the last one kept.
        spread: False leaves out `residual_spread`, which takes five more fits: for spaces that no DRO run moves in.

    Returns:
        The space. Each component's sign is chosen so that its largest loading (by size) is positive. Its
        `residual_spread` comes from fits without a fifth of the queries each; None if there are too few to leave out.

    Raises:
        StatesError: too few states, states that are not finite, all equal, or read at several positions,
            or `n_components` out of range.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> space = drolab.fit_anchors(states, n_components=4)
        >>> list(space.components.shape), space.layer
        ([4, 256], 4)
        >>> bool(space.explained_variance_ratio[0] > 0.5)  # harm and refusal lie along the first
        True
    """
    from sklearn.decomposition import PCA

    matrix = one_position(states).matrix(layer).numpy()
    _check_components(matrix, n_components)
    # `full` on float32 is what the paper's code runs; the reference numbers are matched bit by bit.
    pca = PCA(n_components=n_components, svd_solver="full").fit(matrix)
    components = _fix_signs(pca.components_)
    residual_variance = float(_squared_distances(matrix, pca.mean_, components).mean())
    space = AnchorSpace(
        mean=_tensor(pca.mean_),
        components=_tensor(components),
        explained_variance_ratio=_tensor(pca.explained_variance_ratio_),
        layer=states.select(layer=layer).layers[0],
        residual_variance=residual_variance,
        residual_spread=_residual_spread(matrix, states.index["query_id"].to_numpy(), n_components, residual_variance)
        if spread
        else None,
        model_fingerprint=states.model_fingerprint,
        read_at=states.read_at,
    )
    inputs = fit_key("anchor space", states=content(matrix), layer=space.layer, n_components=n_components)
    return replace(space, origin=Origin(inputs, space.sha256))


def coordinates(space: AnchorSpace, states: HiddenStates) -> Tensor:
    """[n, m]: the states' coordinates in the anchor space.

    Raises:
        StatesError: states of another model or width, read at another place or at several positions, not finite, or
            without the space's layer.

    Examples:
        >>> import drolab
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompts, progress=False)
        >>> from drolab.probing import coordinates
        >>> space = drolab.fit_anchors(states, n_components=2)
        >>> xy = coordinates(space, states).numpy()
        >>> list(xy.shape) == [len(states), 2]
        True
        >>> points = states.index.assign(x=xy[:, 0], y=xy[:, 1])  # what figures.projection takes
    """
    return space.transform(anchor_matrix(space, states))


def anchor_matrix(space: AnchorSpace, states: HiddenStates) -> Tensor:
    """[n, d], float32: the states at the space's layer, after the checks that `coordinates` names."""
    if space.model_fingerprint and states.model_fingerprint not in ("", space.model_fingerprint):
        raise StatesError(
            f"The states are of model {states.model_fingerprint[:12]}, the anchor space is of model "
            f"{space.model_fingerprint[:12]}: fit the space on this model's states with fit_anchors."
        )
    if states.read_at != space.read_at:
        raise StatesError(
            f"The states were read at {states.read_at!r}, the anchor space is of states read at {space.read_at!r}: "
            f"pass hidden_states(…, read_at={space.read_at!r}), or fit a space for each place."
        )
    matrix = one_position(states).matrix(space.layer)
    if matrix.shape[1] != len(space.mean):
        raise StatesError(
            f"The states have d = {matrix.shape[1]}, the anchor space has d = {len(space.mean)}: "
            "fit the space on this model's states with fit_anchors."
        )
    return matrix


def fit_key(kind: str, **inputs: Any) -> str:
    """The store key of a fit, by all that determines it but the number of threads."""
    import sklearn

    return stores.key(kind=kind, version=1, sklearn=sklearn.__version__, **inputs)


def content(array: NDArray[Any]) -> list[Any]:
    """What stands for the array in a key."""
    return [list(array.shape), str(array.dtype), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]


def one_position(states: HiddenStates) -> HiddenStates:
    """The same states, after checking that they were read at a single position of each chat."""
    positions = sorted(set(states.index["position"]))
    if len(positions) > 1:
        raise StatesError(f"These states were read at positions {positions}: choose one, states.select(position=-1).")
    return states


def _residual_spread(
    matrix: NDArray[np.float32], queries: NDArray[Any], n_components: int, residual_variance: float
) -> float | None:
    """`AnchorSpace.residual_spread`: how far the states of left-out queries lie from spaces fitted without them."""
    from sklearn.decomposition import PCA

    ids, group = np.unique(queries.astype(str), return_inverse=True)
    n_groups = min(_N_GROUPS, len(ids))
    if n_groups < 2 or n_components >= matrix.shape[1] or not residual_variance > 0:
        return None
    found = []
    for number in range(n_groups):
        left_out = group % n_groups == number
        fitted = matrix[~left_out]
        if n_components >= len(fitted):
            return None
        # A level needs no exact PCA, and this one costs a fraction of it.
        pca = PCA(n_components=n_components, svd_solver="randomized", random_state=0).fit(fitted)
        found.append(_squared_distances(matrix[left_out], pca.mean_, pca.components_))
    return float(np.quantile(np.concatenate(found), _SPREAD_QUANTILE)) / residual_variance


def _squared_distances(
    matrix: NDArray[np.float32], mean: NDArray[np.float32], components: NDArray[np.float32]
) -> NDArray[np.float64]:
    """[n, d] → [n]: from the space."""
    centred = matrix.astype(np.float64) - mean
    return np.square(centred - centred @ components.T @ components).sum(axis=1)


def _check_components(matrix: NDArray[np.float32], n_components: int) -> None:
    n, width = matrix.shape
    most = min(n - 1, width)
    if not 1 <= n_components <= most:
        raise StatesError(
            f"n_components={n_components} does not fit {n} states of width {width}: "
            + (f"take more queries, or 1 to {most} components." if most > 0 else "pass at least 2 states.")
        )
    if np.ptp(matrix, axis=0).max() == 0:
        raise StatesError(f"All {n} states are equal, so they span no space: pass states of different queries.")


def _fix_signs(components: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return components * signs[:, None]


def _tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
