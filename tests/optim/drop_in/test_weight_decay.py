"""Decoupled weight decay scales with the effective lr, as under any schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metacurv
from metacurv import MetaCurvatureLR

from .reciprocal_training import leaf, spring


def step_at_the_minimum(base: torch.optim.Optimizer, w: Tensor, alpha: float) -> None:
    """One step at 3, the minimum of a spring of stiffness 2: the gradient is 0, the trace 2, so
    only decay moves w.
    """
    opt = MetaCurvatureLR(base, alpha=alpha)
    loss = spring(w - 3.0, 2.0)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == 2.0


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, 2.25),  # scale 1:    3 (1 - 1/2 * 1/2)
        (0.5, 2.625),  # scale 1/2: 3 (1 - 1/4 * 1/2)
        (1.5, 2.8125),  # scale 1/4: 3 (1 - 1/8 * 1/2)
    ],
)
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"amsgrad": True}])
def test_adamw_hand_worked(alpha: float, expected: float, options: dict) -> None:
    """w <- w (1 - lr scale decay), with lr = decay = 1/2."""
    w = leaf(3.0)
    step_at_the_minimum(torch.optim.AdamW([w], lr=0.5, weight_decay=0.5, **options), w, alpha)
    assert w.tolist() == [expected]


def test_coupled_decay_is_a_gradient() -> None:
    """SGD's decay adds to the gradient: w - lr scale (decay w) = 3 - 1/4 * (1/2 * 3)."""
    w = leaf(3.0)
    step_at_the_minimum(torch.optim.SGD([w], lr=0.5, weight_decay=0.5), w, 0.5)
    assert w.tolist() == [2.625]


def test_is_documented() -> None:
    text = " ".join((metacurv.ReciprocalLR.__doc__ or "").split())
    assert "Decoupled weight decay" in text
    assert "effective rate" in text
