"""``step(closure)`` runs the closure once, with gradients enabled, and returns its loss. LBFGS
is refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metacurv import MetaCurvatureLR
from tests.helpers import assert_same

from .reciprocal_training import loss_of, lrs, mlp, train_on_fresh, weights


@pytest.mark.parametrize("under_no_grad", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_closure_is_the_plain_loop(name: str, under_no_grad: bool) -> None:
    model, plain_model = mlp(), mlp()
    make = getattr(torch.optim, name)
    opt = MetaCurvatureLR(make(model.parameters(), lr=0.01), alpha=0.3, update_freq=2)
    plain = MetaCurvatureLR(make(plain_model.parameters(), lr=0.01), alpha=0.3, update_freq=2)
    for step in range(4):
        calls: list[Tensor] = []

        def closure(step: int = step, calls: list[Tensor] = calls) -> Tensor:
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = loss_of(model, step)
            opt.update_curvature(loss)
            loss.backward()
            calls.append(loss)
            return loss

        with torch.set_grad_enabled(not under_no_grad):
            result = opt.step(closure)
            assert torch.is_grad_enabled() is not under_no_grad
        assert len(calls) == 1
        assert result is calls[0]
        train_on_fresh(plain_model, plain, 1, start=step)
    assert_same(opt.last_estimate, plain.last_estimate)
    assert_same(weights(model), weights(plain_model))


@pytest.mark.parametrize("value", [1.5, None, "anything"])
def test_whatever_the_closure_returns(value: object) -> None:
    """Lightning's closure returns a detached loss, others return nothing."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    train_on_fresh(model, opt, 1)
    assert opt.step(lambda: value) is value
    assert opt.step(closure=lambda: value) is value
    assert opt.step() is None


def test_a_failing_closure_changes_nothing() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=1.0)
    train_on_fresh(model, opt, 1)
    before, state = weights(model), opt.state_dict()

    def closure() -> None:
        raise RuntimeError("from the closure")

    with pytest.raises(RuntimeError, match="from the closure"):
        opt.step(closure)
    assert_same(weights(model), before)
    assert_same(opt.state_dict(), state)
    assert lrs(opt) == [0.1]


class MyLBFGS(torch.optim.LBFGS):
    """A subclass does not slip through."""


@pytest.mark.parametrize("make", [torch.optim.LBFGS, MyLBFGS])
def test_lbfgs_is_refused(make: type[torch.optim.LBFGS]) -> None:
    base = make(mlp().parameters(), lr=0.5)
    before = set(base.param_groups[0])
    with pytest.raises(TypeError, match=r"got LBFGS.*closure several times"):
        MetaCurvatureLR(base)
    assert set(base.param_groups[0]) == before
