"""Directions compared: each method finds what is planted, and they carry over to queries that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import WIDTH, as_states, axis, planted_states, state_index

from drolab.directions import METHODS, direction_cosines, fit_directions
from drolab.types import HiddenStates, StatesError


@pytest.fixture
def states() -> HiddenStates:
    return planted_states({"long": 3 * axis(1)})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_planted_direction(states: HiddenStates, method: str) -> None:
    direction = fit_directions(states, states.index["harmful"].to_numpy(), positive="harmful", methods=[method])[method]
    assert direction.vector[0].item() > 0.9
    assert direction.vector.norm().item() == pytest.approx(1, abs=1e-6)
    dealt = np.random.default_rng(0).permutation(states.index["harmful"])
    control = fit_directions(states, dealt, positive="harmful", methods=[method])[method]
    assert abs(control.vector[0].item()) < 0.6
