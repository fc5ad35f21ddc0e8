"""The terms of the loss, against their definitions."""

from __future__ import annotations

import pytest
import torch
from helpers.training import Setting, setting_of

from drolab import dro
from drolab.models import ChatModel
from drolab.types import DROConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting(tiny_llama: ChatModel) -> Setting:
    return setting_of(tiny_llama)


def test_the_terms_of_the_loss(setting: Setting) -> None:
    generator = torch.Generator().manual_seed(0)
    start, states = torch.randn(6, 32, generator=generator), torch.randn(6, 32, generator=generator)
    harmful = torch.tensor([True, True, False, True, False, False])
    space, paper = setting.space, DROConfig.preset("paper")
    terms = dro.losses(space, setting.refusal, setting.harmfulness, states, start, harmful, paper)
    change = (states - start) @ space.components.T @ setting.refusal.coef
    expected = -(torch.where(harmful, change, -change).sigmoid().log()).mean()
    torch.testing.assert_close(terms.refusal, expected)
    # A full basis of the complement gives the same as the shortcut without one.
    basis = torch.linalg.qr(torch.cat([space.components.T, torch.randn(32, 28, generator=generator)], dim=1)).Q[:, 4:]
    torch.testing.assert_close(terms.residual, ((states - start) @ basis).square().mean(), rtol=1e-4, atol=1e-6)
    relative = dro.losses(space, setting.refusal, setting.harmfulness, states, start, harmful, DROConfig())
    torch.testing.assert_close(relative.residual, terms.residual * 28 / space.residual_variance)
    torch.testing.assert_close(relative.drift, terms.drift)
    total = terms.refusal + 0.01 * terms.harmfulness + 1e-3 * terms.residual
    torch.testing.assert_close(terms.total(paper), total)


def test_a_term_that_is_off_cannot_spoil_the_sum() -> None:
    terms = dro.Losses(torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(2.0), torch.tensor(0.0))
    assert terms.total(DROConfig(harmfulness_weight=0.0, residual_weight=0.5)) == 2.0
