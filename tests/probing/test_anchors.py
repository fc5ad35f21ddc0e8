"""The anchor space: equal to the paper's, deterministic, and clear about bad input; UMAP is fitted once."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.planted import as_states, axis, parity_states, planted_states, state_index
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import stats

from drolab.errors import StatesError
from drolab.probing import coordinates, fit_anchors, umap_view
from drolab.store import Store
from drolab.types import HiddenStates


@pytest.fixture
def states() -> HiddenStates:
    return planted_states({"long": 3 * axis(1)})


def test_the_papers_space_is_matched(reference: Path) -> None:
    space = fit_anchors(parity_states(reference), n_components=4)
    paper = load_file(reference / "parity" / "anchor.safetensors")
    components = paper["components"].float()
    signs = (space.components * components).sum(dim=1).sign()
    torch.testing.assert_close(space.mean, paper["mean"], atol=1e-6, rtol=0)
    torch.testing.assert_close(space.components * signs[:, None], components, atol=1e-6, rtol=0)
    assert space.layer == 3


def test_another_layer_is_another_space(reference: Path) -> None:
    """The control for the test above."""
    space = fit_anchors(parity_states(reference), n_components=4, layer=2)
    paper = load_file(reference / "parity" / "anchor.safetensors")["components"].float()
    overlap = torch.linalg.matrix_norm(space.components @ paper.T, ord="fro") ** 2 / 4
    assert overlap < 0.99


def test_rows_twice_or_in_another_order_change_nothing(states: HiddenStates) -> None:
    space = fit_anchors(states)
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(0)).repeat(2)
    again = fit_anchors(
        replace(states, values=states.values[order], index=states.index.iloc[order.numpy()].reset_index(drop=True))
    )
    torch.testing.assert_close(again.components, space.components, atol=1e-5, rtol=1e-4)
    assert again.residual_variance == pytest.approx(space.residual_variance, rel=1e-5)


def test_the_largest_loading_is_positive(states: HiddenStates) -> None:
    components = fit_anchors(states).components
    assert (components.gather(1, components.abs().argmax(dim=1, keepdim=True)) > 0).all()


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 10), seed=st.integers(0, 100))
def test_variance_splits_into_explained_and_residual(m: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(20, 24))
    states = as_states(values, state_index(["none"], 10))
    space = fit_anchors(states, n_components=m)
    total = np.square(values - values.mean(axis=0)).sum(axis=1).mean()
    assert space.residual_variance == pytest.approx(total * (1 - float(space.explained_variance_ratio.sum())), rel=1e-3)
    identity = space.components @ space.components.T
    torch.testing.assert_close(identity, torch.eye(m), atol=1e-5, rtol=0)


def test_a_planted_plane_is_found() -> None:
    states = planted_states({"long": 30 * axis(1)}, gap=40.0)
    space = fit_anchors(states, n_components=2)
    assert space.components[:, :2].abs().max(dim=1).values.min() > 0.99
    assert coordinates(space, states).std(dim=0).min() > 10


@pytest.mark.parametrize("n_components", [0, -1, 25, 100])
def test_components_out_of_range(states: HiddenStates, n_components: int) -> None:
    advice = rf"n_components={n_components} does not fit .* take more queries, or 1 to 24 components"
    with pytest.raises(StatesError, match=advice):
        fit_anchors(states, n_components=n_components)


def test_too_few_states() -> None:
    index = state_index(["none"], 1)
    with pytest.raises(StatesError, match=r"does not fit 2 states .* take more queries, or 1 to 1 components"):
        fit_anchors(as_states(np.ones((2, 24)), index))
    with pytest.raises(StatesError, match="pass at least 2 states"):
        fit_anchors(as_states(np.ones((1, 24)), index.head(1)))


def test_equal_states() -> None:
    with pytest.raises(StatesError, match="All 20 states are equal"):
        fit_anchors(as_states(np.ones((20, 24)), state_index(["none"], 10)))


def test_states_that_are_not_finite(states: HiddenStates) -> None:
    values = states.values.clone()
    values[3, 0, 5] = float("nan")
    with pytest.raises(StatesError, match=r"not finite.*'q3'.*bfloat16"):
        fit_anchors(replace(states, values=values))


def test_several_positions(states: HiddenStates) -> None:
    index = states.index.assign(position=[-1, -2] * (len(states) // 2))
    with pytest.raises(StatesError, match=r"positions \[-2, -1\]: choose one, states.select"):
        fit_anchors(replace(states, index=index))


def test_a_layer_that_was_not_kept(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="were not kept"):
        fit_anchors(states, layer=1)


def test_coordinates_of_foreign_states(states: HiddenStates) -> None:
    space = fit_anchors(states)
    with pytest.raises(StatesError, match=r"of model other.* fit the space on this model"):
        coordinates(space, replace(states, model_fingerprint="other"))
    with pytest.raises(StatesError, match="d = 10, the anchor space has d = 24"):
        coordinates(space, replace(states, values=states.values[..., :10]))


@pytest.mark.usefixtures("one_thread")
def test_umap_is_cached_and_then_not_even_imported(
    states: HiddenStates, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = umap_view(states, n_neighbors=5, store=store)
    assert list(first.columns) == ["query_id", "prompt", "x", "y"]
    assert len(first) == len(states)
    assert torch.get_num_threads() == 1  # numba's pool would leave torch as many as there are cores
    monkeypatch.setitem(sys.modules, "umap", None)  # an import of it fails
    pd.testing.assert_frame_equal(umap_view(states, n_neighbors=5, store=store), first, check_exact=True)
    with pytest.raises(ImportError, match="umap"):
        umap_view(states, n_neighbors=6, store=store)


def test_umap_places_new_prompts_without_moving_the_map(states: HiddenStates, store: Store) -> None:
    anchors, new = states.select(prompt="none"), states.select(prompt="long")
    alone = umap_view(anchors, n_neighbors=5, store=store)
    both = umap_view(anchors, n_neighbors=5, extra=new, store=store)
    assert both["prompt"].tolist() == ["none"] * len(anchors) + ["long"] * len(new)
    np.testing.assert_array_equal(both[["x", "y"]].head(len(alone)), alone[["x", "y"]])
    other = umap_view(anchors, n_neighbors=5, random_state=1)
    assert not np.allclose(other[["x", "y"]], alone[["x", "y"]])


def test_umap_needs_neighbours(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="n_neighbors=500 needs more than 120 states"):
        umap_view(states, n_neighbors=500)


def test_umap_refuses_new_states_of_another_kind(states: HiddenStates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drolab.probing.manifold._umap", lambda *_: pytest.fail("it was drawn"))
    other = {
        "are of model elsewhere": replace(states, model_fingerprint="elsewhere"),
        "are of layer 5": replace(states, layers=(5,), num_hidden_layers=5),
        "have d = 3": replace(states, values=states.values[..., :3]),
    }
    for said, extra in other.items():
        with pytest.raises(StatesError, match=f"The extra states {said}"):
            umap_view(states, n_neighbors=5, extra=extra)
    with pytest.raises(StatesError, match="have d = 3"):  # whose model nobody knows
        umap_view(states, n_neighbors=5, extra=replace(other["have d = 3"], model_fingerprint=""))


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (9, {"n_neighbors": 1}, "n_neighbors=1 is too few: UMAP takes 2 to 8"),
        (9, {"n_neighbors": 9}, "n_neighbors=9 needs more than 9 states"),
        (3, {"n_neighbors": 2}, "needs at least 4 states and got 3"),
        (9, {"n_neighbors": 5, "min_dist": 2}, "min_dist=2 is out of range: UMAP takes 0 to 1"),
        (9, {"n_neighbors": 5, "min_dist": -0.1}, "min_dist=-0.1 is out of range"),
    ],
)
def test_settings_that_umap_does_not_take(
    states: HiddenStates, n: int, settings: dict[str, float], message: str
) -> None:
    few = replace(states, values=states.values[:n], index=states.index.head(n))
    with pytest.raises(StatesError, match=message):
        umap_view(few, **settings)  # type: ignore[arg-type]


# --- how far held-out anchors lie outside -------------------------------------------------------------------


def spread_states(n_queries: int = 200, prompts: tuple[str, ...] = ("none",), seed: int = 0) -> HiddenStates:
    """Two wide axes, and 22 of variance 1 outside the plane; the prompts do nothing."""
    values = np.random.default_rng(seed).normal(size=(n_queries, 24))
    values[:, :2] *= 30
    return as_states(np.concatenate([values] * len(prompts)), state_index(list(prompts), n_queries // 2))


def test_the_spread_is_that_of_states_outside() -> None:
    """Their squared distances are a chi-squared of 22 degrees of freedom, over a residual variance of 22."""
    spread = fit_anchors(spread_states(), n_components=2).residual_spread
    assert spread == pytest.approx(stats.chi2.ppf(0.95, 22) / 22, rel=0.08)


@pytest.mark.parametrize("prompts", [("none",), ("none", "a", "b", "c")])
def test_the_spread_is_held_out_by_query(prompts: tuple[str, ...]) -> None:
    """Few states span a space of their own, in which they lie; other prompts do not make them known to it."""
    states = spread_states(14, prompts)
    space = fit_anchors(states, n_components=8)
    inside = space.residual(states.matrix() - space.mean).square().sum(dim=1).quantile(0.95)
    assert space.residual_spread is not None
    assert space.residual_spread > 1.5 * float(inside) / space.residual_variance


def test_the_spread_is_no_part_of_what_identifies_a_space(states: HiddenStates) -> None:
    space = fit_anchors(states)
    other = replace(space, residual_spread=None)
    assert (other.sha256, other.identity) == (space.sha256, space.identity)
    shuffled = replace(states, values=states.values.flip(0), index=states.index.iloc[::-1].reset_index(drop=True))
    assert fit_anchors(shuffled).residual_spread == pytest.approx(space.residual_spread, rel=1e-3)


@pytest.mark.parametrize(("n_queries", "n_components"), [(2, 1), (4, 3), (10, 9), (200, 24)])
def test_too_little_to_leave_out_is_no_spread(n_queries: int, n_components: int) -> None:
    assert fit_anchors(spread_states(n_queries), n_components=n_components).residual_spread is None


def test_without_the_spread_the_space_is_the_same() -> None:
    states = spread_states()
    whole, plain = (fit_anchors(states, n_components=2, spread=spread) for spread in (True, False))
    assert plain.residual_spread is None
    assert plain.identity == whole.identity
