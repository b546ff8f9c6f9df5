"""Checkpoints written before the classes of the rules were split load, and the training goes on as it would have then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import DirectionalLR, MetaCurvatureLR, ReciprocalLR
from tests.directional.helpers import loader, network
from tests.old_checkpoints.made_by import DIRECTIONAL, train

HERE = Path(__file__).resolve().parent


def read(case: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(HERE / f"{case}.pt", weights_only=True)
    return checkpoint


def resumed(case: str, **options: Any) -> tuple[nn.Module, MetaCurvatureLR]:
    checkpoint = read(case)
    model = network(dtype=torch.float64)
    adam = torch.optim.Adam(model.parameters(), lr=0.5)  # that of the checkpoint counts
    if case == "reciprocal":
        opt: MetaCurvatureLR = MetaCurvatureLR(adam, alpha=0.1, update_freq=3, smoothing=0.5)
    else:
        opt = MetaCurvatureLR(
            adam,
            model=model,
            loss_fn=nn.functional.cross_entropy,
            probe=loader(torch.float64),
            **options,
        )
    model.load_state_dict(checkpoint["model"])
    opt.load_state_dict(checkpoint["optimizer"])
    return model, opt


def assert_ends_alike(model: nn.Module, case: str) -> None:
    for name, value in read(case)["after 60 steps"].items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", ["reciprocal", *DIRECTIONAL])
def test_training_goes_on(case: str) -> None:
    """Some of them were written without ``average``; the arguments here are those that their user gave."""
    model, opt = resumed(case, **DIRECTIONAL.get(case, {}))
    assert type(opt) is (ReciprocalLR if case == "reciprocal" else DirectionalLR)
    train(model, opt, 30, 60)
    assert_ends_alike(model, case)


def test_a_checkpoint_without_average_says_so_until_a_bare_one_is_loaded() -> None:
    """Averaging that nobody asked for or against is the checkpoint's; afresh it is the default again."""
    model, opt = resumed("horizon", horizon=60)
    assert opt.state_dict()["metacurv"]["average"] is None
    with pytest.raises(ValueError, match="averaged_parameters needs"), opt.averaged_parameters():
        pass
    opt.load_state_dict(torch.optim.Adam(model.parameters()).state_dict())
    assert opt.state_dict()["metacurv"]["average"] is not None


def test_an_average_is_taken_from_the_checkpoint_where_nobody_chose() -> None:
    model, opt = resumed("average")
    train(model, opt, 30, 60)
    assert_ends_alike(model, "average")


@pytest.mark.parametrize(("case", "average"), [("horizon", True), ("horizon-average", False)])
def test_a_choice_that_the_checkpoint_contradicts_is_an_error(case: str, average: bool) -> None:
    with pytest.raises(ValueError, match=rf"average={average}\), got one of average={not average}"):
        resumed(case, horizon=60, average=average)
