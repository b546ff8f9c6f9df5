"""Every torch optimizer as base: bit for bit the bare optimizer at the rate lr x
scale.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from metacurv import MetaCurvatureLR, UpdateRecord
from tests.helpers import assert_same

from .reciprocal_training import (
    OPTIMIZERS,
    bare_state,
    loss_of,
    lrs,
    mlp,
    set_lr,
    spring,
    train_on_fresh,
    two_groups,
    weights,
)

STEPS = 8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_alpha_zero_is_the_bare_base(name: str) -> None:
    make = OPTIMIZERS[name]
    bare_model, model = mlp(), mlp()
    bare = make(list(bare_model.parameters()))
    opt = MetaCurvatureLR(make(list(model.parameters())), alpha=0.0, update_freq=3)
    train_on_fresh(bare_model, bare, STEPS, curvature=False)
    train_on_fresh(model, opt, STEPS)
    assert opt.last_estimate is not None
    assert_same(weights(model), weights(bare_model))
    assert_same(bare_state(opt.state_dict()), bare_state(bare.state_dict()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reading_acts_as_an_lr_set_by_hand(name: str) -> None:
    """The same arithmetic by hand: the bare base with lr <- lr / (1 + alpha max(trace, 0)) gets the same
    weights.
    """
    make = OPTIMIZERS[name]
    alpha = 0.3
    model, bare_model = mlp(), mlp()
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        make(list(model.parameters())), alpha=alpha, update_freq=3, on_update=records.append
    )
    train_on_fresh(model, opt, STEPS)
    traces = {record.step: record.trace for record in records}
    assert list(traces) == [0, 3, 6]
    assert max(traces.values()) > 0.5

    bare = make(list(bare_model.parameters()))
    (lr,) = lrs(bare)
    for step in range(STEPS):
        if step in traces:
            scale = 1 / (1 + alpha * max(traces[step], 0.0))
            set_lr(bare.param_groups[0], lr * scale)
        train_on_fresh(bare_model, bare, 1, start=step, curvature=False)
    assert_same(weights(model), weights(bare_model))
    assert lrs(opt) == [lr]  # and the user's lr is what it was


def test_every_torch_optimizer_is_covered() -> None:
    """A new optimizer in torch has to be added to the table or to the reasons here."""
    here = {name.split("-")[0] for name in OPTIMIZERS}
    reasons = {"LBFGS": "refused", "SparseAdam": "refuses dense gradients"}
    exported = {
        name
        for name in torch.optim.__all__
        if isinstance(getattr(torch.optim, name), type) and name != "Optimizer"
    }
    assert exported == here | reasons.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_curvature_it_is_the_base_and_warns_once(name: str) -> None:
    make = OPTIMIZERS[name]
    bare_model, model = mlp(), mlp()
    bare = make(list(bare_model.parameters()))
    opt = MetaCurvatureLR(make(list(model.parameters())))
    train_on_fresh(bare_model, bare, STEPS, curvature=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_on_fresh(model, opt, STEPS, curvature=False)
    (warning,) = caught
    assert warning.category is UserWarning
    assert "steps without a curvature reading" in str(warning.message)
    assert "update_curvature(loss)" in str(warning.message)
    assert_same(weights(model), weights(bare_model))
    assert_same(bare_state(opt.state_dict()), bare_state(bare.state_dict()))
    assert opt.last_estimate is None
    assert opt.effective_lrs == lrs(bare)


def test_the_warning_points_at_the_users_line() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="without a curvature reading") as caught:
        opt.step()
    assert caught[0].filename == __file__


def test_the_warning_points_at_the_users_line_under_a_scheduler() -> None:
    """A scheduler puts one more frame between the user and step."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    torch.optim.lr_scheduler.StepLR(opt, 1)
    with pytest.warns(UserWarning, match="without a curvature reading") as caught:
        opt.step()
    assert caught[0].filename == __file__


def test_groups_keep_their_own_lr_and_options() -> None:
    bare_model, model = mlp(), mlp()
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD(two_groups(model), lr=1.0, momentum=0.9),
        alpha=0.1,
        update_freq=1,
        on_update=records.append,
    )
    opt.param_groups[1]["momentum"] = 0.5
    train_on_fresh(model, opt, STEPS)
    assert lrs(opt) == [0.05, 0.02]

    bare = torch.optim.SGD(two_groups(bare_model), lr=1.0, momentum=0.9)
    bare.param_groups[1]["momentum"] = 0.5
    for record in records:
        for group, lr in zip(bare.param_groups, (0.05, 0.02), strict=True):
            group["lr"] = lr / 1 * (1 / (1 + 0.1 * max(record.trace, 0.0)))
        assert record.effective_lrs == lrs(bare)
        train_on_fresh(bare_model, bare, 1, start=record.step, curvature=False)
    assert_same(weights(model), weights(bare_model))


def test_frozen_parameters_stay_and_are_not_measured() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    opt = MetaCurvatureLR(torch.optim.SGD(model.named_parameters(), lr=0.1), update_freq=1)
    train_on_fresh(model, opt, 3)
    assert_same(model[0].weight.clone(), frozen)
    assert model[0].weight.grad is None
    assert opt.last_estimate is not None
    assert set(opt.last_estimate.per_parameter) == {"0.bias", "2.weight", "2.bias"}


def test_freezing_and_unfreezing_during_training() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.named_parameters(), lr=0.1), update_freq=1)
    for step, frozen in enumerate([False, True, False]):
        model[0].requires_grad_(not frozen)
        train_on_fresh(model, opt, 1, start=step)
        assert opt.last_estimate is not None
        assert ("0.weight" in opt.last_estimate.per_parameter) is not frozen


def test_named_parameters_name_the_reading() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.AdamW(model.named_parameters()), n_hutchinson_samples=2)
    opt.update_curvature(loss_of(model))
    estimate = opt.last_estimate
    assert estimate is not None
    assert list(estimate.per_parameter) == [name for name, _ in model.named_parameters()]
    assert list(estimate.per_parameter_stderr) == list(estimate.per_parameter)
    assert sum(estimate.per_parameter.values()) == pytest.approx(estimate.value, rel=1e-12)


def test_unnamed_parameters_are_numbered() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.AdamW(two_groups(model)))
    opt.update_curvature(loss_of(model))
    assert opt.last_estimate is not None
    assert list(opt.last_estimate.per_parameter) == ["0", "1", "2", "3"]


def test_parameters_without_a_gradient() -> None:
    """An unused parameter has no .grad and no curvature, and does not move, even under weight
    decay.
    """
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = MetaCurvatureLR(torch.optim.AdamW([("used", used), ("unused", unused)], lr=0.1))
    loss = spring(used, 2.0)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.per_parameter == {"used": 6.0, "unused": 0.0}
    assert unused.grad is None
    assert_same(unused.detach(), torch.ones(2))
    assert used.tolist() != [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    bare_model, model = mlp(dtype), mlp(dtype)
    bare = torch.optim.Adam(bare_model.parameters(), lr=1e-2)
    opt = MetaCurvatureLR(torch.optim.Adam(model.parameters(), lr=1e-2), alpha=0.0, update_freq=1)
    train_on_fresh(bare_model, bare, 4, curvature=False)
    train_on_fresh(model, opt, 4)
    assert_same(weights(model), weights(bare_model))
    assert opt.last_estimate is not None
    assert opt.last_estimate.value != 0.0
