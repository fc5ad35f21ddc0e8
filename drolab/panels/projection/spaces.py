"""Frozen spaces for looking at states: per layer one anchor space with every state's place in it, and its probes.

They are fitted once, on the anchor prompts alone: a prompt that comes later is placed into them and bends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from drolab.errors import StatesError
from drolab.probing import coordinates, fit_anchors, fit_probe, one_position, umap_view
from drolab.types import AnchorSpace, HiddenStates, Probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drolab.store import Store

_PAIR = ["query_id", "prompt"]
POINT_COLUMNS = ("query_id", "prompt", "harmful", "text", "category", "refusal_rate", "response")
"""Columns of `point_table`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """An anchor space and the places of all states in it."""

    space: AnchorSpace
    coordinates: NDArray[np.float32]
    """[n, m], in the order of the states."""


class FrozenSpaces:
    """The anchor spaces, probes and maps of each layer of some states, made when first asked for and kept.

    Args:
        anchors: the prompts on which everything is fitted.
        n_components: of the anchor spaces.
        store: where UMAP's maps are kept beyond this object's life.

    Raises:
        StatesError: an anchor prompt without states, or states of several positions.
    """

    def __init__(
        self, states: HiddenStates, anchors: Sequence[str], *, n_components: int = 4, store: Store | None = None
    ) -> None:
        self.states = one_position(states)
        self.anchors = tuple(anchors)
        self.n_components = n_components
        self._store = store
        states.select(prompt=list(self.anchors), layer=states.layers[-1])  # names an anchor that has no states
        self._is_anchor = states.index["prompt"].isin(self.anchors).to_numpy()
        self._placed: dict[int, Placed] = {}
        self._probes: dict[tuple[int, str], Probe] = {}
        self._maps: dict[int, NDArray[np.float32]] = {}

    def placed(self, layer: int) -> Placed:
        """The anchor space of a layer, with every state's coordinates.

        Raises:
            StatesError: as in `fit_anchors`.
        """
        if layer not in self._placed:
            states = self.states.select(layer=layer)
            space = fit_anchors(states.select(prompt=list(self.anchors)), n_components=self.n_components, layer=layer)
            self._placed[layer] = Placed(space=space, coordinates=coordinates(space, states).numpy())
        return self._placed[layer]

    def probe(self, layer: int, name: str, rates: Sequence[float] | np.ndarray, *, positive: str) -> Probe:
        """A probe of a layer, fitted on the anchor states for which `rates` is known, and kept under `name`.

        Args:
            rates: one value per state, from 0 to 1, NaN where it is not known.

        Raises:
            StatesError: no value is known for an anchor state, or as in `fit_probe`.
        """
        if (layer, name) not in self._probes:
            values = np.asarray(rates, dtype=float)
            rows = np.flatnonzero(self._is_anchor & ~np.isnan(values))
            if not len(rows):
                raise StatesError(
                    f"No score of a state under the anchor prompts {list(self.anchors)}: score these too."
                )
            states = self.states.select(layer=layer)
            known = replace(states, values=states.values[rows], index=states.index.iloc[rows].reset_index(drop=True))
            self._probes[layer, name] = fit_probe(
                self.placed(layer).space, known, values[rows].tolist(), positive=positive
            )
        return self._probes[layer, name]

    def has_map(self, layer: int) -> bool:
        return layer in self._maps

    def umap(self, layer: int) -> NDArray[np.float32]:
        """[n, 2]: a UMAP of the anchor states with the others placed into it, for looking only. Slow at first.

        Raises:
            StatesError: as in `umap_view`.
        """
        if layer not in self._maps:
            states = self.states.select(layer=layer)
            others = [prompt for prompt in states.index["prompt"].unique() if prompt not in self.anchors]
            anchors = states.select(prompt=list(self.anchors))
            extra = states.select(prompt=others) if others else None
            view = umap_view(anchors, layer=layer, extra=extra, store=self._store)
            places = np.empty((len(states), 2), dtype=np.float32)
            places[np.argsort(~self._is_anchor, kind="stable")] = view[["x", "y"]].to_numpy()
            self._maps[layer] = places
        return self._maps[layer]


def point_table(
    states: HiddenStates, *, scores: pd.DataFrame | None = None, replies: pd.DataFrame | None = None
) -> pd.DataFrame:
    """POINT_COLUMNS, one row per state: its query, and what is known of the behaviour under its prompt.

    Args:
        scores: as from `judge`: `refusal_rate` by (query_id, prompt). NaN for a state that it lacks.
        replies: as from `generate`: the first response of each query and prompt is taken. NaN where there is none.

    Raises:
        StatesError: scores that are not indexed by (query_id, prompt), hold a pair twice, or lack a column.
    """
    table = states.index[["query_id", "prompt", "harmful", "text", "category"]].astype(
        {"query_id": object, "prompt": object, "text": object, "category": object}
    )
    places = pd.MultiIndex.from_frame(table[_PAIR])
    rates, responses = np.full(len(table), np.nan), np.full(len(table), np.nan, dtype=object)
    if scores is not None:
        rates = _checked_scores(scores).reindex(places).to_numpy(dtype=float)
    if replies is not None:
        first = replies.drop_duplicates(_PAIR).set_index(_PAIR)["response"].astype(object)
        responses = first.reindex(places).to_numpy()
    return table.assign(refusal_rate=rates, response=responses)


def _checked_scores(scores: pd.DataFrame) -> pd.Series:
    if "refusal_rate" not in scores.columns or list(scores.index.names) != _PAIR:
        raise StatesError("The scores must be a table of drolab.judge: `refusal_rate`, indexed by query_id and prompt.")
    if scores.index.has_duplicates:
        pair = scores.index[scores.index.duplicated()][0]
        raise StatesError(f"The scores have {pair} twice: pass each table once, not concatenated.")
    return scores["refusal_rate"]


def refusal_changes(points: pd.DataFrame, prompt: str, baseline: str) -> pd.DataFrame:
    """How much more often each query is refused under `prompt` than under `baseline`, the largest change first.

    Args:
        points: query_id, prompt, refusal_rate and any other columns.

    Returns:
        The rows of `prompt` for which both rates are known, with two more columns: `baseline_rate`, and `change` =
        `refusal_rate` - `baseline_rate`. The index is that of `points`.
    """
    before = points[points["prompt"] == baseline].set_index("query_id")["refusal_rate"]
    rows = points[points["prompt"] == prompt]
    rows = rows.assign(baseline_rate=rows["query_id"].map(before))
    rows = rows.assign(change=rows["refusal_rate"] - rows["baseline_rate"]).dropna(subset=["change"])
    return rows.sort_values("change", ascending=False, kind="stable")
