"""Schedulers see and own group["lr"]; the base steps at scheduled lr x scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from metacurv import MetaCurvatureLR, UpdateRecord
from tests.helpers import assert_same

from .reciprocal_training import (
    leaf,
    loss_of,
    lrs,
    mlp,
    record_base_steps,
    settings,
    spring,
    train_on_fresh,
    two_groups,
    weights,
)

STEPS = 12
ALPHA = 0.2


def linear_then_step(opt: Optimizer) -> lr_scheduler.SequentialLR:
    warmup = lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=4)
    decay = lr_scheduler.StepLR(opt, 2, gamma=0.5)
    return lr_scheduler.SequentialLR(opt, [warmup, decay], milestones=[4])


def linear_times_exponential(opt: Optimizer) -> lr_scheduler.ChainedScheduler:
    warmup = lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=4)
    return lr_scheduler.ChainedScheduler([warmup, lr_scheduler.ExponentialLR(opt, 0.9)], opt)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (1 + e)]),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.05], total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "SequentialLR": linear_then_step,
    "ChainedScheduler": linear_times_exponential,
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=5),
}
BASES: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=1.0, momentum=0.9),
    "Adam": lambda g: torch.optim.Adam(g, lr=1.0),
}


def scheduled_training(model: nn.Module, opt: Optimizer, scheduler: Any) -> list[list[dict]]:
    """STEPS steps; what the groups held after each optimizer.step(), before scheduler.step()."""
    seen = []
    for step in range(STEPS):
        train_on_fresh(model, opt, 1, start=step, curvature=isinstance(opt, MetaCurvatureLR))
        seen.append([settings(group) for group in opt.param_groups])
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(step))  # "loss" grows: a plateau every other step
        else:
            scheduler.step()
    return seen


@pytest.mark.parametrize("base_name", BASES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_is_the_bare_one_and_effective_lr_is_schedule_times_scale(
    name: str, base_name: str
) -> None:
    make = BASES[base_name]
    bare_model = mlp()
    bare = make(two_groups(bare_model))
    bare_seen = scheduled_training(bare_model, bare, SCHEDULERS[name](bare))

    model, records = mlp(), list[UpdateRecord]()
    base = make(two_groups(model))
    opt = MetaCurvatureLR(base, alpha=ALPHA, update_freq=2, on_update=records.append)
    scheduler = SCHEDULERS[name](opt)
    base_seen = record_base_steps(base)
    seen = scheduled_training(model, opt, scheduler)

    # The schedule, momentum and betas included, is the bare optimizer's to the bit. (CyclicLR and
    # OneCycleLR cycle them.)
    assert_same(seen, bare_seen)
    assert len({groups[0]["lr"] for groups in seen}) > 1
    if name == "OneCycleLR":
        key = "momentum" if base_name == "SGD" else "betas"
        assert len({groups[0][key] for groups in seen}) > 1

    # What the base stepped with: the same, with lr x scale.
    traces = {record.step: record.trace for record in records}
    assert list(traces) == list(range(0, STEPS, 2))
    assert max(traces.values()) > 0.5
    expected, scale = [], 1.0
    for step, groups in enumerate(bare_seen):
        if step in traces:
            scale = 1 / (1 + ALPHA * max(traces[step], 0.0))
        expected.append([{**group, "lr": group["lr"] * scale} for group in groups])
    assert_same(base_seen, expected)

    # And a bare optimizer given these settings by hand ends with the same weights.
    by_hand_model = mlp()
    by_hand = make(two_groups(by_hand_model))
    for step, groups in enumerate(expected):
        for group, values in zip(by_hand.param_groups, groups, strict=True):
            group.update(values)
        train_on_fresh(by_hand_model, by_hand, 1, start=step, curvature=False)
    assert_same(weights(model), weights(by_hand_model))


def test_a_hand_worked_schedule() -> None:
    """lr 1/2, halved by StepLR every step; trace 6, alpha 1/2, scale 1/4; gradient 2 w."""
    w = leaf(1.0, 1.0, 1.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=0.5, update_freq=100)
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    expected = 1.0
    for effective in (1 / 8, 1 / 16, 1 / 32):
        opt.zero_grad()
        loss = spring(w, 2.0)
        opt.update_curvature(loss)
        loss.backward()
        assert opt.effective_lrs == [effective]
        assert opt.param_groups[0]["lr_scale"] == 0.25
        opt.step()
        expected -= effective * 2 * expected
        assert w.tolist() == [expected] * 3
        assert opt.param_groups[0]["lr"] == effective * 4
        scheduler.step()
        assert scheduler.get_last_lr() == [effective * 2]


def test_a_scheduler_of_the_base_works_too() -> None:
    """Made before wrapping: it patches the base's step, and owns the same groups."""
    model, bare_model = mlp(), mlp()
    bare = torch.optim.SGD(bare_model.parameters(), lr=0.1)
    bare_seen = scheduled_training(bare_model, bare, lr_scheduler.ExponentialLR(bare, 0.5))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(base, 0.5)
    opt = MetaCurvatureLR(base, alpha=ALPHA)
    assert_same(scheduled_training(model, opt, scheduler), bare_seen)


def test_a_scheduler_stepped_in_a_step_hook_owns_lr() -> None:
    """A post hook of the wrapper runs when lr is back, so what it sets stays."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.5), alpha=1.0)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    opt.register_step_post_hook(lambda *_: scheduler.step())
    train_on_fresh(model, opt, 3)
    assert lrs(opt) == [0.5**4]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_lr_comes_back_when_the_base_raises(
    error: type[BaseException], lr: float | torch.Tensor
) -> None:
    model = mlp()
    groups = [{"params": list(model[0].parameters()), "lr": 0.25}]
    groups.append({"params": list(model[2].parameters()), "lr": lr})
    base = torch.optim.SGD(groups, lr=1.0)
    opt = MetaCurvatureLR(base, alpha=1.0)
    seen = record_base_steps(base)

    def fail(*_: Any) -> None:
        raise error("the base failed")

    failing = base.register_step_pre_hook(fail)
    loss = loss_of(model)
    opt.update_curvature(loss)
    loss.backward()
    before = weights(model)
    with pytest.raises(error, match="the base failed"):
        opt.step()
    assert float(seen[0][0]["lr"]) < 0.25  # it did step with another lr
    assert opt.param_groups[0]["lr"] == 0.25
    assert opt.param_groups[1]["lr"] is lr
    assert float(lr) == 0.5
    assert_same(weights(model), before)

    failing.remove()
    opt.step()  # the failed step did not count: the same reading serves this one
    assert_same(seen[1], seen[0])
    assert lrs(opt) == [0.25, 0.5]


def test_no_warning_about_the_order_of_calls() -> None:
    """Schedulers warn when they step before the optimizer does; through the wrapper they see that
    it did.
    """
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler = lr_scheduler.StepLR(opt, 1)
    with pytest.warns(UserWarning, match=r"lr_scheduler\.step\(\)` before `optimizer\.step\(\)"):
        scheduler.step()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler = lr_scheduler.StepLR(opt, 1)
    train_on_fresh(model, opt, 1)
    scheduler.step()  # warnings are errors here
