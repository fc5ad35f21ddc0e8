"""Telling the classes apart from their states: intervals, controls, and what a prompt changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, as_states, axis, planted_states, state_index
from scipy import stats
from sklearn.metrics import roc_auc_score

from drolab.anchors import fit_anchors
from drolab.separability import auc_change, separability, shuffled_aucs
from drolab.types import AnchorSpace, HiddenStates, StatesError

SAFE, NEUTRAL = 3 * axis(1), 3 * axis(12)


@pytest.fixture(scope="module")
def states() -> HiddenStates:
    return planted_states({"long": SAFE, "short": 0.5 * SAFE + axis(13), "neutral": NEUTRAL})


def test_separable_classes_and_shuffled_labels(states: HiddenStates) -> None:
    space = fit_anchors(states)
    found = separability(states, prompt="none", space=space, n_splits=5)
    assert found["features"].tolist() == ["anchor", "full"]
    assert (found["auc"] > 0.9).all()
    assert (found["accuracy"] > 0.85).all()
    many = planted_states({"long": SAFE, "short": SAFE, "neutral": NEUTRAL}, n_per_class=100)
    control = separability(many, space=space, prompt=["none", "long"], n_splits=3, shuffle_labels=True)
    assert control["prompt"].tolist() == ["none", "none", "long", "long"]
    for name in ("auc", "accuracy"):
        assert np.allclose(control[name], 0.5, atol=0.05)
        assert ((control[f"{name}_low"] < 0.5) & (control[f"{name}_high"] > 0.5)).all()
    for name in ("auc", "accuracy"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()


def test_classes_without_a_difference_are_not_separable() -> None:
    found = separability(planted_states({}, gap=0.0, n_per_class=60), n_splits=5)
    assert found["auc_low"].item() < 0.5 < found["auc_high"].item() + 0.05


def test_separability_of_one_class(states: HiddenStates) -> None:
    with pytest.raises(StatesError, match="these are of one class: add the other"):
        separability(states.select(harmful=True))
