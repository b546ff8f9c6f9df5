"""Starts at which a rule has gone wrong: saturated, dead, badly scaled, in other units, and of a high frequency."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import own, sampled
from tests.optim.directional.directional_training import network, train, training_loss
from tests.optim.directional.problems import BASES, Run, network_of, normal


@pytest.mark.parametrize("name", ["SGD-momentum", "Adam"])
def test_batches_of_one_on_badly_scaled_inputs(name: str) -> None:
    x = normal(0, 128, 5) * torch.tensor([100.0, 10.0, 1.0, 0.1, 0.01])
    y = x @ normal(50, 5, 1) + 0.1 * normal(90, 128, 1)
    run = Run(nn.Linear(5, 1), BASES[name], x, y, 400, size=1).go()
    assert run.loss() < 0.1 * run.first
    assert all(math.isfinite(lr) and lr > 0 for lr in run.rates)


@pytest.mark.parametrize(
    ("name", "seed", "scale"),
    [
        ("SGD", 2, 1.5),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("SGD-momentum", 1, 1.0), ("SGD-momentum", 1, 1.5), ("Adam", 13, 1.5))
        ),
    ],
)
def test_where_the_first_steps_have_done_harm_a_race_begins_before_them(
    name: str, seed: int, scale: float
) -> None:
    """With batches of one and inputs of several scales they blow up, and their slopes are noise."""
    scales = torch.exp(scale * normal(seed + 1000, 8))
    x, y = normal(seed, 64, 8) * scales, normal(seed + 2000, 64, 1)
    run = Run(network_of(seed, 8, 16, 1, activation=nn.ReLU), BASES[name], x, y, 600, size=1)
    run.go(20)
    assert run.loss() == pytest.approx(run.first)
    run.go()
    assert run.events("race")
    assert run.loss() < 0.9 * run.first


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("name", ["SGD", "SGD-momentum", "Adam"])
def test_a_saturated_start(name: str, scale: float) -> None:
    model = network_of(0, 4, 16, 16, 1)
    with torch.no_grad():
        for p in list(model.parameters())[:-2]:
            p.mul_(scale)
    run = Run(model, BASES[name], normal(0, 64, 4), normal(1, 64, 1), 200, size=16).go()
    assert run.loss() < 0.9 * run.first
    assert all(math.isfinite(lr) and lr > 0 for lr in run.rates)


@pytest.mark.parametrize("name", ["SGD", "SGD-momentum", "Adam"])
def test_dead_hidden_units_leave_the_last_bias(name: str) -> None:
    model = network_of(0, 4, 16, 16, 1, activation=nn.ReLU)
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    run = Run(model, BASES[name], normal(0, 64, 4), 1 + normal(1, 64, 1), 200, size=16).go()
    assert run.loss() < 0.8 * run.first
    assert run.loss() == pytest.approx(float(run.y.var(unbiased=False)), rel=0.1)
    assert all(math.isfinite(lr) and lr > 0 for lr in run.rates)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_where_no_gradient_ever_comes_nothing_is_found_and_nothing_breaks(name: str) -> None:
    model = nn.Sequential(*network_of(0, 4, 16, 1, activation=nn.ReLU), nn.ReLU())
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    before = [p.detach().clone() for p in model.parameters()]
    run = Run(model, BASES[name], normal(0, 64, 4), normal(1, 64, 1), 200, size=16).go()
    assert run.opt.history == []
    assert math.isnan(run.opt.effective_lrs[0])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with run.opt.averaged_parameters():
        pass


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_the_unit_of_the_loss_changes_no_rate_of_adam(unit: float) -> None:
    """A power of two, so that it rounds nothing: through early steps, race, hold and finish to the last bit."""
    found = []
    for factor in (1.0, unit):

        def loss_fn(output: Tensor, y: Tensor, factor: float = factor) -> Tensor:
            return factor * nn.functional.mse_loss(output, y)

        run = Run(
            network_of(0, 4, 8, 1),
            lambda p: torch.optim.Adam(p, eps=1e-30),
            normal(0, 64, 4),
            normal(1, 64, 1),
            200,
            size=16,
            loss_fn=loss_fn,
        ).go()
        found.append((run.rates, run.loss() / factor))
    assert found[0] == found[1]


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_loss_is_the_inverse_of_the_rate_of_sgd(unit: float) -> None:
    found = []
    for factor in (1.0, unit):

        def loss_fn(output: Tensor, y: Tensor, factor: float = factor) -> Tensor:
            return factor * nn.functional.mse_loss(output, y)

        run = Run(
            network_of(0, 4, 8, 1), BASES["SGD"], normal(0, 64, 4), normal(1, 64, 1), 40,
            size=16, loss_fn=loss_fn,
        ).go()  # fmt: skip
        found.append([lr * factor for lr in run.rates])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def of_a_high_frequency(seed: int, horizon: int, **options: Any) -> Run:
    x = 2 * torch.rand(1024, 2, generator=torch.Generator().manual_seed(seed)) - 1
    y = (6 * x[:, :1]).sin() * (4 * x[:, 1:]).cos()
    model = network_of(seed, 2, 64, 64, 1)
    return Run(model, BASES["Adam"], x, y, horizon, size=128, options=options)


@pytest.mark.slow
def test_where_slopes_are_noise_the_race_is_wide_and_finds_more_than_they_did() -> None:
    run = of_a_high_frequency(3, 600).go(20)
    race = own(run.opt.state_dict())["race"]
    assert [c["exponent"] for c in race["candidates"]] == [-2, 0, 2]
    alone = of_a_high_frequency(3, 600, race=0).go().loss()
    assert run.go().loss() < 0.5 * alone


def test_a_start_that_the_user_has_trained_already() -> None:
    """Wrapping late is no other start: nothing goes up."""
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=0.02), 200)
    from tests.optim.directional.directional_training import directional

    before = training_loss(model)
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=200)
    train(model, opt, 200, start=200)
    assert training_loss(model) < 1.05 * before


@pytest.mark.parametrize("size", sampled([4, 1, 10**9], 3))
@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("horizon", sampled([60, 200], 2))
def test_no_training_ends_above_its_start(name: str, size: int, horizon: int) -> None:
    """Targets are noise, so little can be learned, and a training of which little is seen may end where it began."""
    model = network_of(horizon, 4, 8, 1)
    inputs, targets = normal(horizon, 32, 4), normal(100 + horizon, 32, 1)
    run = Run(model, BASES[name], inputs, targets, horizon, size=size).go()
    assert run.loss() <= run.first * (1 + 1e-6)
    assert all(math.isfinite(lr) and lr > 0 for lr in run.rates)


def test_a_million_parameters() -> None:
    """The other tests have from 2 to some hundreds."""
    model = network_of(0, 20, 1000, 1000, 1, activation=nn.ReLU)
    assert sum(p.numel() for p in model.parameters()) > 10**6
    x = normal(0, 256, 20)
    run = Run(model, BASES["Adam"], x, x[:, :1], 100, size=32).go()
    assert run.loss() < 0.2 * run.first
