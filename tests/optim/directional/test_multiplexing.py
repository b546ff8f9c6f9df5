"""Candidates take turns in the user's loop, and what is left is the training that the winner would have made alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from metacurv import DirectionalLR
from tests.helpers import assert_same, own, sampled
from tests.optim.directional.directional_training import batch, directional, network, train
from tests.optim.drop_in.reciprocal_training import OPTIMIZERS, bare_state, weights

BASES = sorted(set(OPTIMIZERS) - {"Rprop", "ASGD"})
Loop = Callable[[nn.Module, Optimizer, int], None]


def plain(model: nn.Module, opt: Optimizer, step: int) -> None:
    train(model, opt, 1, start=step)


def accumulating(model: nn.Module, opt: Optimizer, step: int) -> None:
    opt.zero_grad()
    for part in range(2):
        x, y = batch(2 * step + part)
        (nn.functional.cross_entropy(model(x), y) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    opt.step()


def in_bfloat16(model: nn.Module, opt: Optimizer, step: int) -> None:
    x, y = batch(step)
    opt.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    opt.step()


def scaled(model: nn.Module, opt: Optimizer, step: int) -> None:
    x, y = batch(step)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    opt.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    scaler.step(opt)
    scaler.update()


class Raced:
    """A training up to the end of its race; ``alone`` is the winner's, made by hand with the bare base at its rate."""

    def __init__(self, name: str = "Adam", loop: Loop = plain, **options: Any) -> None:
        self.model = network(norm=True)
        base = OPTIMIZERS[name](list(self.model.parameters()))
        opt = directional(base, self.model, **{"horizon": 300, **options})
        assert isinstance(opt, DirectionalLR)
        self.opt = opt
        step = 0
        while not own(opt.state_dict())["race"]:
            loop(self.model, opt, step)
            step += 1
        self.start = step
        self.before = opt.history[-1].lr[0]
        self.alone, alone = copy.deepcopy((self.model, base))
        self.base_alone: Optimizer = alone
        self.average = [v.clone() for v in self.average_now] if opt._control._averages else []
        self.made: list[tuple[int, int]] = []  # (step, exponent)
        while opt._control._race is not None:
            expected = opt.effective_lrs[0]
            exponent = round(math.log(expected / self.before, 3))
            assert expected == pytest.approx(self.before * 3.0**exponent, rel=1e-12)
            self.made.append((step, exponent))
            loop(self.model, opt, step)
            assert float(opt.param_groups[0]["lr_scale"]) == pytest.approx(
                expected / float(opt.param_groups[0]["lr"]), rel=1e-6
            )
            step += 1
        self.record = opt.history[-1]
        assert self.record.event == "race"
        rate, _ = min(self.record.candidates, key=lambda candidate: candidate[1])
        self.winner = round(math.log(rate / self.before, 3))
        self.steps = [step for step, exponent in self.made if exponent == self.winner]
        for group in alone.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.before * 3.0**self.winner)
            else:
                group["lr"] = self.before * 3.0**self.winner
        parameters = [p for group in alone.param_groups for p in group["params"]]
        for taken, at in enumerate(self.steps):
            loop(self.alone, alone, at)
            # theta_t has the part 5 / (t + 5) of the average; up to step 96 all count.
            part = 5 / (self.start + taken + 1 + 5)
            self.average = [
                a + part * (p.detach() - a)
                for a, p in zip(self.average, parameters, strict=bool(self.average))
            ]

    @property
    def average_now(self) -> list[torch.Tensor]:
        values: list[torch.Tensor] = own(self.opt.state_dict())["average"]["values"]
        return values


@pytest.mark.parametrize("name", sampled(BASES, 4))
def test_the_winner_has_trained_alone(name: str) -> None:
    """Parameters, batch norm's statistics and the base's state, bit for bit; and the average."""
    raced = Raced(name)
    assert len({exponent for _, exponent in raced.made}) >= 2
    assert_same(raced.model.state_dict(), raced.alone.state_dict())
    ours, alone = (bare_state(o.state_dict()) for o in (raced.opt.optimizer, raced.base_alone))
    assert_same(ours["state"], alone["state"])
    if raced.start + len(raced.steps) <= 96:
        torch.testing.assert_close(raced.average_now, raced.average, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loop", [accumulating, in_bfloat16, scaled])
@pytest.mark.parametrize("average", [True, False])
def test_whatever_the_loop_does(loop: Loop, average: bool) -> None:
    raced = Raced("Adam", loop, average=average)
    assert_same(raced.model.state_dict(), raced.alone.state_dict())


@pytest.mark.parametrize("rates", [2, 3])
def test_no_batch_is_seen_twice_and_turns_are_of_five(rates: int) -> None:
    raced = Raced("SGD-nesterov", race=rates)
    assert [step for step, _ in raced.made] == list(range(20, 20 + len(raced.made)))
    # A round of 6 steps, in which three or two take a turn of 5 each; then what is left of it.
    first = [-1, 0] if rates == 2 else [-1, 0, 1]
    turns = [exponent for exponent in first for _ in range(5)] + first
    assert [exponent for _, exponent in raced.made[: len(turns)]] == turns


def test_the_loops_random_numbers_are_its_own() -> None:
    """Dropout draws what it would draw without the wrapper, in early steps, race, hold and finish."""
    after = []
    for wrap in (False, True):
        model = network(dropout=0.5)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(7)
        train(model, directional(base, model, horizon=200) if wrap else base, 200)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_a_step_that_a_scaler_skips_in_a_race_counts_for_nothing() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, horizon=300)
    train(model, opt, 27)
    before, state = weights(model), copy.deepcopy(own(opt.state_dict()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    x, y = batch(1)
    opt.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    next(model.parameters()).grad.fill_(math.inf)
    scaler.step(opt)
    scaler.update()
    assert state["race"] is not None
    assert_same(weights(model), before)
    assert_same(own(opt.state_dict()), state)


def test_a_schedule_goes_on_through_a_race() -> None:
    """It is the user's: no candidate takes its rate back."""
    model = network()
    opt = directional(torch.optim.Adam(model.parameters(), lr=0.2), model, horizon=300)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.99)
    for step in range(120):
        race = opt._control._race
        rate = opt._control._early.lr[0] * (3.0**race.exponent if race else 1)
        train(model, opt, 1, start=step)
        scheduler.step()
        assert opt.param_groups[0]["lr"] == pytest.approx(0.2 * 0.99 ** (step + 1), rel=1e-9)
        if race is not None:
            assert opt.param_groups[0]["lr_scale"] * 0.2 == pytest.approx(rate, rel=1e-9)
    assert any(record.event == "race" for record in opt.history)


def test_weights_with_a_buffer_that_counts_and_parameters_of_another_dtype() -> None:
    """Buffers of integers, and parameters in half precision, of which the average is wider."""
    model = network(norm=True, dtype=torch.bfloat16)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, horizon=200)
    train(model, opt, 200)
    record = next(record for record in opt.history if record.event == "race")
    assert all(math.isfinite(loss) for _, loss in record.candidates)
    raced = sum(1 for r in opt.history if r.event == "race")
    assert raced == 1
    # Steps of the candidates that lost are not counted in the statistics.
    assert 100 < int(model[1].num_batches_tracked) < 200
