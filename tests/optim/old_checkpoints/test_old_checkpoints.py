"""Checkpoints of earlier releases: the reciprocal rule's go on, the former directional rule's say how to begin afresh."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import DirectionalLR, MetaCurvatureLR, ReciprocalLR
from tests.helpers import assert_same, own
from tests.optim.directional.directional_training import loader, network, train, training_loss
from tests.optim.old_checkpoints.made_by import DIRECTIONAL, train_between

HERE = Path(__file__).resolve().parent


def read(case: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(HERE / f"{case}.pt", weights_only=True)
    return checkpoint


def test_training_goes_on_with_the_reciprocal_rule() -> None:
    checkpoint = read("reciprocal")
    model = network(dtype=torch.float64)
    adam = torch.optim.Adam(model.parameters(), lr=0.5)  # that of the checkpoint counts
    opt = MetaCurvatureLR(adam, alpha=0.1, update_freq=3, smoothing=0.5)
    assert type(opt) is ReciprocalLR
    model.load_state_dict(checkpoint["model"])
    opt.load_state_dict(checkpoint["optimizer"])
    train_between(model, opt, 30, 60)
    for name, value in checkpoint["after 60 steps"].items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", DIRECTIONAL)
def test_one_of_the_former_directional_rule_says_how_to_go_on(case: str) -> None:
    """Nothing is changed by the attempt, and what the message says works."""
    model = network(dtype=torch.float64)
    adam = torch.optim.Adam(model.parameters(), lr=0.5)
    opt: MetaCurvatureLR = MetaCurvatureLR(
        adam,
        model=model,
        loss_fn=nn.functional.cross_entropy,
        probe=loader(torch.float64),
        **DIRECTIONAL[case],
    )
    assert isinstance(opt, DirectionalLR)
    checkpoint = read(case)
    before, ours = copy.deepcopy(adam.state_dict()), own(opt.state_dict())
    with pytest.raises(
        ValueError, match=r"that of an earlier one.*without its entry 'metacurv'.* afresh"
    ):
        opt.load_state_dict(checkpoint["optimizer"])
    assert_same(adam.state_dict(), before)
    assert_same(own(opt.state_dict()), ours)
    model.load_state_dict(checkpoint["model"])
    del checkpoint["optimizer"]["metacurv"]
    with pytest.warns(UserWarning, match="begins afresh"):
        opt.load_state_dict(checkpoint["optimizer"])
    assert adam.state[model[0].weight]["step"] == 30
    assert math.isnan(opt.effective_lrs[0])
    train(model, opt, 5)
    assert opt.history[0].step == 0
    assert training_loss(model) < 1
