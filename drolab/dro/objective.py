"""What DRO minimises: two terms that move the classes apart, one that keeps the states near (paper, section 4)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, float32, stack
from torch.nn.functional import binary_cross_entropy_with_logits

from drolab.errors import TrainingError
from drolab.types import AnchorSpace, DROConfig, Probe


class Losses(NamedTuple):
    """The terms of the loss, each unweighted and a mean over the batch; scalars."""

    refusal: Tensor
    harmfulness: Tensor
    residual: Tensor
    """On the scale of `config.residual_scale`."""
    drift: Tensor
    """Squared movement outside the anchor space over the anchors' residual variance."""

    def total(self, config: DROConfig) -> Tensor:
        """The weighted sum. A term of weight 0 is left out altogether, whatever its value."""
        weighted = [(weight, getattr(self, name)) for name, weight in weights(config).items() if weight > 0]
        if not weighted:
            raise TrainingError("All three terms of the loss have weight 0: give one of them a weight.")
        return stack([weight * term for weight, term in weighted]).sum()


def losses(
    space: AnchorSpace,
    refusal: Probe,
    harmfulness: Probe,
    states: Tensor,
    start: Tensor,
    harmful: Tensor,
    config: DROConfig,
) -> Losses:
    """The terms of the DRO loss for one batch (paper, eq. 3 to 5, in the form of its code).

    Args:
        refusal, harmfulness: positive for "refuses" and for "harmful". Both terms are the binary cross-entropy
            of the *change* of the probe's logit, with harmful queries as class 1.
        states: [B, d], under the soft prompt.
        start: [B, d], x0: the states of the same queries under the human prompt.
        harmful: [B], bool.
    """
    labels = harmful.to(states.device, float32)
    # Everything is computed from the movement: the difference of two logits would lose digits, which late
    # steps of a run amplify (the paper's longest run is matched ten times better this way).
    moved = states.float() - start.float()
    components = space.components.to(states.device)
    inside = moved @ components.T
    outside = (moved - inside @ components).square().sum(dim=1).mean()
    drift = outside / space.residual_variance
    free = states.shape[1] - len(space.components)
    return Losses(
        refusal=_change_loss(refusal, inside, labels),
        harmfulness=_change_loss(harmfulness, inside, labels),
        residual=drift if config.residual_scale == "relative" else outside / free,
        drift=drift,
    )


def weights(config: DROConfig) -> dict[str, float]:
    """Term → its weight; 0 switches the term off."""
    return {
        "refusal": config.refusal_weight,
        "harmfulness": config.harmfulness_weight,
        "residual": config.residual_weight,
    }


def _change_loss(probe: Probe, inside: Tensor, labels: Tensor) -> Tensor:
    """Movement in the anchor space [B, m], labels [B] → scalar; mean and intercept cancel in the change."""
    return binary_cross_entropy_with_logits(inside @ probe.coef.to(inside.device), labels)
