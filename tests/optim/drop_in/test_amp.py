"""Lines 10 and 12: GradScaler unscales before the step, and a step it skips leaves the curvature
state alone.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from metacurv import MetaCurvatureLR
from tests.helpers import assert_same

from .reciprocal_training import OPTIMIZERS, curvature_state, loss_of, mlp, train_on_fresh, weights


def scaled_step(
    model: torch.nn.Module, opt: Any, scaler: GradScaler, step: int, *, overflow: bool = False
) -> None:
    opt.zero_grad()
    loss = loss_of(model, step)
    opt.update_curvature(loss)
    scaler.scale(loss).backward()
    if overflow:
        model[0].weight.grad[0, 0] = math.inf  # type: ignore[index,union-attr]
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("name", ["SGD-fused", "Adam-fused", "AdamW-fused", "Adagrad-fused", "SGD"])
def test_gradients_are_unscaled_before_the_step(name: str) -> None:
    """A fused base claims to unscale by itself; were the claim forwarded, it would step on
    gradients 1024 times too large.

    1024 is a power of two, so scaling and unscaling keep every bit.
    """
    model, plain_model = mlp(), mlp()
    opt, plain = (
        MetaCurvatureLR(OPTIMIZERS[name](list(m.parameters())), alpha=0.3, update_freq=2)
        for m in (model, plain_model)
    )
    if name in (
        "SGD-fused",
        "Adam-fused",
        "AdamW-fused",
    ):  # a later torch claims it for Adagrad too
        assert opt.optimizer._step_supports_amp_scaling
    assert not hasattr(opt, "_step_supports_amp_scaling")
    scaler = GradScaler("cpu", init_scale=1024.0)
    seen: list[Tensor] = []
    opt.optimizer.register_step_pre_hook(
        lambda *_: seen.append(model[0].weight.grad.clone())  # type: ignore[union-attr]
    )
    for step in range(5):
        scaled_step(model, opt, scaler, step)
        train_on_fresh(plain_model, plain, 1, start=step)
        assert_same(seen[step], plain_model[0].weight.grad)
    assert_same(weights(model), weights(plain_model))
    assert_same(opt.last_estimate, plain.last_estimate)
    assert scaler.get_scale() == 1024.0


def test_unscale_and_clip() -> None:
    """The documented order: unscale_, clip, step."""
    model, plain_model = mlp(), mlp()
    opt, plain = (
        MetaCurvatureLR(torch.optim.Adam(m.parameters(), lr=1e-2, fused=True), update_freq=2)
        for m in (model, plain_model)
    )
    scaler = GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        for m, o, s in ((model, opt, scaler), (plain_model, plain, None)):
            o.zero_grad()
            loss = loss_of(m, step)
            o.update_curvature(loss)
            (loss if s is None else s.scale(loss)).backward()
            if s is not None:
                s.unscale_(o)
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1)
            o.step() if s is None else s.step(o)
            if s is not None:
                s.update()
    assert_same(weights(model), weights(plain_model))


@pytest.mark.parametrize("due", [True, False], ids=["due step", "step between"])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_skipped_step_leaves_curvature_state_unchanged_and_finite(
    due: bool, smoothing: float
) -> None:
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters(), lr=1e-2, fused=True),
        alpha=0.3,
        update_freq=2,
        smoothing=smoothing,
    )
    scaler = GradScaler("cpu", init_scale=1024.0)
    steps = 2 if due else 3
    for step in range(steps):
        scaled_step(model, opt, scaler, step)
    before_weights, steps_before = weights(model), curvature_state(opt)["steps"]

    opt.zero_grad()
    loss = loss_of(model, steps)
    assert opt.update_curvature(loss) is due
    before, estimate = curvature_state(opt), opt.last_estimate
    scaler.scale(loss).backward()
    model[0].weight.grad[0, 0] = math.inf  # type: ignore[index]
    scaler.step(opt)
    scaler.update()

    assert scaler.get_scale() == 512.0  # it was skipped
    assert_same(weights(model), before_weights)
    assert_same(curvature_state(opt), before)
    assert before["steps"] == steps_before
    assert_same(opt.last_estimate, estimate)
    assert opt.skipped_readings == 0
    assert all(math.isfinite(lr) and lr > 0 for lr in opt.effective_lrs)
    numbers = [*before.values(), *before["ema"].values()]
    assert all(math.isfinite(n) for n in numbers if not isinstance(n, dict))

    # The retry of the same step measures nothing new, and training goes on.
    assert not opt.update_curvature(loss_of(model, steps + 1)) or not due
    scaled_step(model, opt, scaler, steps + 1)
    assert curvature_state(opt)["steps"] == steps + 1
    assert all(bool(w.isfinite().all()) for w in weights(model))


def test_skipping_the_first_steps() -> None:
    """GradScaler starts high and skips until it fits; the wrapper must come out as if nothing had
    happened.
    """
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    scaler = GradScaler("cpu", init_scale=2.0**16)
    for step in range(3):
        scaled_step(model, opt, scaler, step, overflow=True)
    own = curvature_state(opt)
    assert own["steps"] == 0
    assert own["readings"] == 1  # at most one between two steps
    scaled_step(model, opt, scaler, 3)
    assert curvature_state(opt)["steps"] == 1


def test_autocast() -> None:
    """The reading of a loss computed under autocast is taken, inside the region or after it, and
    stays near the exact one.
    """

    def reading(inside: bool | None) -> float:
        model = mlp()
        opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), n_hutchinson_samples=64)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside is not None):
            loss = loss_of(model)
            if inside:
                opt.update_curvature(loss)
        if not inside:
            opt.update_curvature(loss)
        loss.backward()
        opt.step()
        assert opt.last_estimate is not None
        return opt.last_estimate.value

    exact = reading(None)
    assert reading(inside=True) == pytest.approx(exact, rel=0.05)
    assert reading(inside=False) == pytest.approx(exact, rel=0.05)
