"""Readings that are negative or not finite; lr stays finite and positive, always."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metacurv import MetaCurvatureLR, UpdateRecord
from metacurv.optim.reciprocal.rule import BiasCorrectedEma, ReciprocalRule
from tests.helpers import assert_same

from .reciprocal_training import (
    curvature_state,
    fresh_batch,
    leaf,
    loss_of,
    lrs,
    mlp,
    spring,
    weights,
)


def finite_and_positive(opt: MetaCurvatureLR) -> bool:
    rates = [*opt.effective_lrs, *(float(group["lr_scale"]) for group in opt.param_groups)]
    return all(math.isfinite(rate) and rate > 0 for rate in rates)


def power_loss(w: Tensor) -> Tensor:
    """sum |w|^1.5: at 0 the value and the gradient are 0 and the second derivative is nan in
    autograd.
    """
    return w.abs().pow(1.5).sum()


class InfiniteCurvature(torch.autograd.Function):
    """sum of w, with gradient 1 and a second derivative of +inf for every element."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (w,) = ctx.saved_tensors
        return InfiniteSlope.apply(w) * grads[0]


class InfiniteSlope(torch.autograd.Function):
    """1 for every element, with derivative +inf."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.ones_like(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * math.inf


BAD_LOSSES = {"nan": power_loss, "inf": lambda w: InfiniteCurvature.apply(w)}


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_reading_that_is_not_finite_is_counted_and_changes_nothing(
    name: str, smoothing: float
) -> None:
    """First before any good reading, then after one, whose scale stays; then a good one again."""
    w = leaf(0.0)
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.5),
        alpha=0.5,
        update_freq=1,
        smoothing=smoothing,
        on_update=records.append,
    )

    def reading(loss: Tensor) -> None:
        assert bool(loss.isfinite())
        assert opt.update_curvature(loss)
        opt.step()  # without gradients: w stays 0

    reading(BAD_LOSSES[name](w))
    assert opt.skipped_readings == 1
    assert opt.effective_lrs == [0.5]
    reading(spring(w, 2.0))  # scale 1 / 2
    average = curvature_state(opt)["ema"]
    reading(BAD_LOSSES[name](w))
    assert opt.skipped_readings == 2
    assert opt.effective_lrs == pytest.approx([0.25], rel=1e-12)
    assert opt.param_groups[0]["lr_scale"] == pytest.approx(0.5, rel=1e-12)
    assert_same(curvature_state(opt)["ema"], average)
    assert opt.last_estimate is not None
    assert not math.isfinite(opt.last_estimate.value)  # as measured
    reading(spring(w, 2.0))
    assert opt.skipped_readings == 2
    assert opt.effective_lrs == pytest.approx([0.25], rel=1e-12)

    assert [r.accepted for r in records] == [False, True, False, True]
    assert all(math.isfinite(r.scale) and 0 < r.scale <= 1 for r in records)
    assert lrs(opt) == [0.5]


def test_skipped_readings_survive_a_checkpoint() -> None:
    w = leaf(0.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), update_freq=1)
    opt.update_curvature(power_loss(w))
    other = MetaCurvatureLR(torch.optim.SGD([leaf(0.0)], lr=0.5))
    other.load_state_dict(opt.state_dict())
    assert other.skipped_readings == 1


def test_negative_curvature_is_clamped() -> None:
    """At the top of a hill the trace is negative: the rate is the user's, and the reading is kept
    as measured.
    """
    w = leaf(1.0, 2.0, 3.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=100.0)
    loss = spring(w, -7.0)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == -21.0
    assert opt.skipped_readings == 0
    assert opt.effective_lrs == [0.5]
    assert w.tolist() == [4.5, 9.0, 13.5]


def test_nan_in_the_training_data() -> None:
    """A loss of nan is refused before anything changes; the next step is due again."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    before, state = weights(model), curvature_state(opt)
    x, y = fresh_batch(0)
    with pytest.raises(ValueError, match="loss must be finite, got nan"):
        opt.update_curvature(nn.functional.cross_entropy(model(x * math.nan), y))
    assert_same(curvature_state(opt), state)
    assert_same(weights(model), before)
    assert opt.update_curvature(loss_of(model))


any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    traces=st.lists(any_float, min_size=1, max_size=8),
    alpha=st.floats(min_value=0.0, max_value=1e300),
    smoothing=st.sampled_from([0.0, 0.5, 0.99]),
)
@settings(max_examples=300, deadline=None)
def test_rule_and_smoothing_keep_the_scale_in_bounds(
    traces: list[float], alpha: float, smoothing: float
) -> None:
    """Any sequence of readings: the scale is finite and in [2^-40, 1], and is the formula's where
    that is representable.
    """
    rule, ema = ReciprocalRule(alpha, "auto"), BiasCorrectedEma(smoothing)
    scale = torch.ones((), dtype=torch.float64)
    previous = 1.0
    for trace in traces:
        smoothed = ema.update(torch.tensor(trace, dtype=torch.float64))
        rule.update_(scale, smoothed)
        value = float(scale)
        assert math.isfinite(value)
        assert 2.0**-40 <= value <= 1.0
        if smoothing == 0.0:
            if not math.isfinite(trace):
                assert value == previous
            else:
                assert value == max(1 / (1 + alpha * max(trace, 0.0)), 2.0**-40)
        previous = value


@given(
    stiffnesses=st.lists(st.floats(-1e307, 1e307), min_size=1, max_size=5),
    alpha=st.floats(min_value=0.0, max_value=1e300),
    lr=st.floats(min_value=1e-30, max_value=1e3),
    smoothing=st.sampled_from([0.0, 0.9]),
    tensor_lr=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_lr_stays_finite_and_positive_whatever_is_measured(
    stiffnesses: list[float], alpha: float, lr: float, smoothing: float, tensor_lr: bool
) -> None:
    """Through the optimizer: curvatures up to the edge of float64, with readings of nan between
    them.
    """
    w = leaf(0.0)
    given_lr: Any = torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr
    base = torch.optim.SGD([w], lr=given_lr)
    opt = MetaCurvatureLR(base, alpha=alpha, update_freq=1, smoothing=smoothing)
    seen: list[float] = []
    base.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
    for stiffness in stiffnesses:
        for loss in (spring(w, stiffness), power_loss(w)):
            opt.update_curvature(loss)
            assert finite_and_positive(opt)
            opt.step()
            assert lrs(opt) == [lr]
    assert all(math.isfinite(rate) and 0 < rate <= lr for rate in seen)
    assert opt.skipped_readings >= len(stiffnesses)
