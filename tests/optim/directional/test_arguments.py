"""Bad input is refused with a message that names the argument, what it needs and what it got; the optimizer stays as it was."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metacurv import DirectionalRule, MetaCurvatureLR
from tests.optim.directional.directional_training import (
    Point,
    batch,
    data,
    directional,
    loader,
    network,
    pairs,
    train,
)


def made(**options: Any) -> MetaCurvatureLR:
    model = network()
    settings = {
        "rule": "directional",
        "model": model,
        "loss_fn": nn.functional.cross_entropy,
        "probe": loader(),
        **options,
    }
    return MetaCurvatureLR(torch.optim.Adam(model.parameters()), **settings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": None}, TypeError, "model must be a torch.nn.Module .* got NoneType None"),
        ({"model": network}, TypeError, "model must be a torch.nn.Module"),
        (
            {"model": nn.Linear(4, 3)},
            ValueError,
            "model must have parameters that the optimizer steps",
        ),
        ({"loss_fn": None}, TypeError, "loss_fn must be given: a function of .*; got none"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be callable, got int 3"),
        (
            {"loss_fn": nn.MSELoss},
            TypeError,
            r"loss_fn .* got the class MSELoss; did you mean MSELoss\(\)",
        ),
        (
            {"probe": None},
            TypeError,
            "probe must be given with rule='directional': a DataLoader, .*; got none",
        ),
        ({"probe": 3}, TypeError, "probe must be a DataLoader, .* got int 3"),
        ({"probe": []}, ValueError, "probe must be .* got an empty list"),
        ({"probe": data().tensors}, TypeError, "probe must be .*TensorDataset"),
        ({"probe": torch.ones(3)}, TypeError, "probe must be"),
        (
            {"probe": data()},
            TypeError,
            r"probe must be .* got a data set \(TensorDataset\); DataLoader\(dataset",
        ),
        ({"probe": iter([batch(0)])}, TypeError, "probe must be .* can be gone through once"),
        ({"probe": "train"}, TypeError, "probe must be"),
        ({"horizon": 0}, ValueError, "horizon must be >= 1, got 0"),
        ({"horizon": 2.5}, TypeError, "horizon must be an integer >= 1, got float 2.5"),
        ({"average": 1}, TypeError, "average must be True or False, got int 1"),
        ({"seed": -1}, ValueError, "seed must be in"),
        (
            {"rule": "curvature"},
            ValueError,
            "rule must be 'reciprocal', 'directional' or a DirectionalRule, got str",
        ),
        ({"rule": DirectionalRule}, ValueError, "rule must be"),
        ({"on_update": 3}, TypeError, "on_update must be callable"),
    ],
)
def test_arguments_of_the_wrapper(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        made(**options)


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ("reciprocal", "loss_fn", nn.functional.mse_loss),
        ("reciprocal", "probe", loader()),
        ("reciprocal", "horizon", 10),
        ("reciprocal", "average", True),
        ("directional", "alpha", 0.02),
        ("directional", "update_freq", 5),
        ("directional", "n_hutchinson_samples", 4),
        ("directional", "smoothing", 0.9),
        ("directional", "estimator", "activation"),
        ("directional", "backend", "reference"),
    ],
)
def test_arguments_of_the_other_rule_are_refused(rule: str, name: str, value: Any) -> None:
    adam = torch.optim.Adam(network().parameters())
    wrap = made if rule == "directional" else functools.partial(MetaCurvatureLR, adam, rule=rule)
    with pytest.raises(ValueError, match=f"{name} must be left out with rule='{rule}'"):
        wrap(**{name: value})


def test_parameters_that_cannot_be_measured_are_refused() -> None:
    class Complex(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    model = Complex()
    with pytest.raises(TypeError, match=r"params\['2'\] must be float32.* got torch.complex64"):
        directional(torch.optim.SGD(model.parameters(), lr=0.1), model)
    apart = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, device="meta"))
    with pytest.raises(ValueError, match=r"params must be on one device, got cpu and .* meta"):
        directional(torch.optim.SGD(apart.parameters(), lr=0.1), apart)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"race": 1}, ValueError, "race must be 'auto', True, False, 2 or 3, got int 1"),
        ({"race": 4}, ValueError, "race must be 'auto', True, False, 2 or 3, got int 4"),
        ({"race": -1}, ValueError, "race must be"),
        ({"race": "3"}, ValueError, "race must be 'auto', True, False, 2 or 3, got str '3'"),
        ({"race": 2.0}, ValueError, "race must be 'auto', True, False, 2 or 3, got float 2.0"),
        ({"max_lr": 0.0}, ValueError, "max_lr must be a finite number > 0, got 0"),
        ({"max_lr": "1"}, TypeError, "max_lr must be a finite number > 0"),
        ({"stop_early": 1}, TypeError, "stop_early must be True or False, got int 1"),
        ({"sigma": 2.0}, TypeError, "sigma"),  # constants now
        ({"per_group": 1}, TypeError, "per_group must be True or False, got int 1"),
    ],
)
def test_settings_of_the_rule(settings: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        DirectionalRule(**settings)


def test_true_and_false_are_three_and_none() -> None:
    assert [DirectionalRule(race=race).race for race in (True, False, 0, 2, 3)] == [3, 0, 0, 2, 3]
    assert DirectionalRule().race == "auto"
    assert DirectionalRule.held_out(race=2) == DirectionalRule(race=2, stop_early=True)
    with pytest.raises(TypeError, match="sigma"):
        DirectionalRule.held_out(sigma=1.0)


def test_arguments_go_before_the_settings_of_the_rule() -> None:
    given = made(rule=DirectionalRule(race=2, max_lr=0.5), race=0, per_group=True)
    assert given.rule == DirectionalRule(race=0, max_lr=0.5, per_group=True)
    assert made(race=False).rule == DirectionalRule(race=0)
    with pytest.raises(ValueError, match="race must be 'auto', True, False, 2 or 3"):
        made(race=1)
    with pytest.raises(ValueError, match="max_lr must be"):
        made(max_lr=-1.0)


def test_a_zero_learning_rate_has_no_ratio() -> None:
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(
        ValueError, match="optimizer must have a learning rate > 0 in a parameter group, got 0"
    ):
        MetaCurvatureLR(
            base,
            rule="directional",
            model=model,
            loss_fn=nn.functional.cross_entropy,
            probe=loader(),
        )
    assert base.param_groups[0]["lr"] == 0


def test_an_average_that_is_not_kept_cannot_be_shown() -> None:
    with (
        pytest.raises(ValueError, match=r"averaged_parameters needs .*average=False"),
        made(average=False).averaged_parameters(),
    ):
        pass


@pytest.mark.parametrize("drawn", [3, (1, 2, 3), {"x": 1}])
def test_a_batch_that_is_no_pair(drawn: Any) -> None:
    model = network()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()),
        rule="directional",
        model=model,
        loss_fn=nn.functional.cross_entropy,
        probe=lambda: drawn,
    )
    with pytest.raises(TypeError, match=r"probe must give \(inputs, targets\) pairs, got"):
        train(model, opt, 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
@pytest.mark.parametrize("where", ["model", "loss"])
def test_an_error_of_the_users_code_says_that_it_was_a_reading(where: str) -> None:
    model = network()

    def loss_fn(output: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    wrong = [(torch.ones(2, 999), torch.zeros(2, dtype=torch.long))]
    options = {"loss_fn": loss_fn} if where == "loss" else {"probe": wrong}
    opt = directional(torch.optim.Adam(model.parameters()), model, **options)
    with pytest.raises((ZeroDivisionError, RuntimeError), match=r"mine|shapes") as caught:
        train(model, opt, 1)
    (note,) = caught.value.__notes__
    assert "on a batch of probe" in note


def test_losses_that_cannot_serve() -> None:
    """Linear in pieces: no curvature. Not a scalar. Not finite."""
    point = Point(1.0, 2.0)

    def opt(loss: Any) -> MetaCurvatureLR:
        point.w.grad = torch.ones(2, dtype=torch.float64)
        return MetaCurvatureLR(
            torch.optim.SGD(point.parameters(), lr=1.0),
            rule="directional", model=point, loss_fn=loss, probe=pairs((0.0, 0.0)),
        )  # fmt: skip

    before = point.w.detach().clone()
    with pytest.raises(
        ValueError, match=r"loss_fn must be curved in the model's output .* got curvatures"
    ):
        opt(nn.functional.l1_loss).step()
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar tensor, got \(2,\)"):
        opt(lambda w, t: (w - t).square()).step()
    with pytest.raises(
        ValueError,
        match=r"loss_fn must be finite on some batch of probe at the first step, got \[inf",
    ):
        opt(lambda w, t: (w - t).square().sum() + torch.inf).step()
    assert torch.equal(before, point.w)


def test_a_model_without_a_floating_output() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Any) -> Any:
            return self.inner(x).argmax(1)

    model = Chooses()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()),
        rule="directional", model=model, loss_fn=nn.functional.cross_entropy, probe=loader(),
    )  # fmt: skip
    x, y = batch(0)
    nn.functional.cross_entropy(model.inner(x), y).backward()
    with pytest.raises(TypeError, match="model must return a floating tensor"):
        opt.step()
