"""A tensor lr keeps its identity, and with ``capturable`` nothing waits for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from metacurv import MetaCurvatureLR
from metacurv.optim.reciprocal import control
from tests.helpers import assert_same

from .reciprocal_training import (
    leaf,
    loss_of,
    lrs,
    mlp,
    record_base_steps,
    spring,
    train_on_fresh,
    weights,
)


class CountHostReads(TorchDispatchMode):
    """Counts what ``.item()``, ``float(tensor)`` and ``bool(tensor)`` become:
    aten::_local_scalar_dense.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_counter_counts() -> None:
    x = torch.tensor(1.0)
    with CountHostReads() as reads:
        x.item()
        float(x)
        bool(x)
        torch.ones(2).add_(torch.ones(2), alpha=x)  # a tensor where a number is wanted
    assert reads.count == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop],
    ids=lambda make: make.__name__,
)
def test_identity_and_value(make: Any, dtype: torch.dtype) -> None:
    model, by_hand_model = mlp(), mlp()
    lr = torch.tensor(0.01, dtype=dtype)
    base = make(model.parameters(), lr=lr)
    held = base.param_groups[0]["lr"]
    opt = MetaCurvatureLR(base, alpha=0.5, update_freq=100)
    seen = record_base_steps(base)
    train_on_fresh(model, opt, 3)
    assert opt.param_groups[0]["lr"] is held
    assert_same(held, torch.tensor(0.01, dtype=dtype))

    assert opt.last_estimate is not None
    scale = 1 / (1 + 0.5 * opt.last_estimate.value)
    assert scale < 0.9
    by_hand_lr = torch.tensor(float(held) * scale, dtype=dtype)
    by_hand = make(by_hand_model.parameters(), lr=by_hand_lr)
    train_on_fresh(by_hand_model, by_hand, 3, curvature=False)
    assert_same([groups[0]["lr"] for groups in seen], [by_hand_lr] * 3)
    assert_same(weights(model), weights(by_hand_model))


def test_one_lr_tensor_for_several_groups() -> None:
    """``SGD(groups, lr=torch.tensor(...))`` puts the same tensor into all groups: to be scaled
    once, and put back.
    """
    w, u = leaf(1.0, 2.0), leaf(3.0, 4.0)
    base = torch.optim.SGD([{"params": [w]}, {"params": [u]}], lr=torch.tensor(0.5))
    assert base.param_groups[0]["lr"] is base.param_groups[1]["lr"]
    opt = MetaCurvatureLR(base, alpha=0.25)
    seen = record_base_steps(base)
    loss = spring(w, 1.0) + spring(u, 1.0)  # trace 4, scale 1 / 2
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert [float(group["lr"]) for group in seen[0]] == [0.25, 0.25]
    assert w.tolist() == [0.75, 1.5]
    assert u.tolist() == [2.25, 3.0]
    assert float(base.param_groups[0]["lr"]) == 0.5


def test_an_lr_that_requires_grad() -> None:
    """Hypergradient code keeps lr as a leaf; the bare base steps with it, so the wrapper does."""
    model = mlp()
    lr = torch.tensor(0.01, requires_grad=True)
    opt = MetaCurvatureLR(torch.optim.Adam(model.parameters(), lr=lr, foreach=False))
    train_on_fresh(model, opt, 2)
    assert opt.param_groups[0]["lr"] is lr
    assert lr.requires_grad
    assert lr.is_leaf
    assert lr.item() == pytest.approx(0.01)


def test_schedulers_fill_the_tensor_in_place() -> None:
    model = mlp()
    lr = torch.tensor(0.5)
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=lr), alpha=1.0)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    for step in range(3):
        train_on_fresh(model, opt, 1, start=step)
        scheduler.step()
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == 0.0625


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_a_tensor_lr_adds_no_host_read_to_a_step(make: Any) -> None:
    """The bases themselves read a tensor lr on the CPU; the wrapper adds one where a base has no state, and else none."""
    bare_model, model = mlp(), mlp()
    bare = make(bare_model.parameters(), lr=torch.tensor(0.01))
    opt = MetaCurvatureLR(make(model.parameters(), lr=torch.tensor(0.01)))
    train_on_fresh(bare_model, bare, 1, curvature=False)
    train_on_fresh(model, opt, 1)
    with CountHostReads() as bare_reads:
        bare.step()
    with CountHostReads() as reads:
        opt.step()
    assert reads.count == bare_reads.count + (make is torch.optim.SGD)


class CapturableSGD(Optimizer):
    """Stands in for ``Adam(capturable=True)``, which torch refuses on the CPU: steps without
    reading lr.
    """

    def __init__(self, params: Any, lr: float | Tensor) -> None:
        super().__init__(params, {"lr": lr, "capturable": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_capturable_base_never_reads_the_device(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings and steps on the path that CUDA takes, for which a CPU tensor has to pass here."""
    monkeypatch.setattr(control, "stays_on_device", lambda base: True)
    w, u = leaf(1.0, dtype=torch.float32), leaf(2.0, dtype=torch.float32)
    lr = torch.tensor(0.5)
    base = CapturableSGD([{"params": [w], "lr": 0.25}, {"params": [u], "lr": lr}], lr=1.0)
    opt = MetaCurvatureLR(base, alpha=0.5, update_freq=2, smoothing=smoothing)
    seen: list[list[Any]] = []
    base.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
    with CountHostReads() as reads:
        for _ in range(4):
            opt.zero_grad()
            loss = spring(w, 1.0) + spring(u, 1.0)  # trace 2, scale 1 / 2
            opt.update_curvature(loss)
            loss.backward()
            opt.step()
    assert reads.count == 0
    assert all(isinstance(group["lr_scale"], Tensor) for group in opt.param_groups)
    # The base saw a tensor for the float, and the same tensor for the tensor; the user has both
    # back.
    assert all(isinstance(first, Tensor) and second is lr for first, second in seen)
    assert [float(first) for first, _ in seen] == pytest.approx([0.125] * 4, rel=1e-12)
    assert type(opt.param_groups[0]["lr"]) is float
    assert opt.param_groups[1]["lr"] is lr
    assert lrs(opt) == [0.25, 0.5]
    assert opt.effective_lrs == pytest.approx([0.125, 0.25], rel=1e-12)
    assert w.tolist() == pytest.approx([0.875**4], rel=1e-6)
    assert u.tolist() == pytest.approx([2 * 0.75**4], rel=1e-6)


def test_lr_comes_back_where_torch_refuses_capturable() -> None:
    model = mlp()
    base = torch.optim.Adam(model.parameters(), lr=0.125, capturable=True)
    opt = MetaCurvatureLR(base, alpha=1.0)
    loss = loss_of(model)
    opt.update_curvature(loss)
    loss.backward()
    with pytest.raises(AssertionError, match="supported devices"):
        opt.step()
    assert type(opt.param_groups[0]["lr"]) is float
    assert opt.param_groups[0]["lr"] == 0.125
