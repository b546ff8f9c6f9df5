"""Groups added after construction, and groups as torch allows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metacurv import MetaCurvatureLR
from tests.helpers import assert_same

from .reciprocal_training import leaf, lrs, mlp, spring, train_on_fresh, weights


def test_add_param_group_after_construction() -> None:
    """The new group takes the base's defaults, its own lr, the current scale, and part in the next
    reading.
    """
    w, u = leaf(1.0, 2.0), leaf(4.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=0.5, update_freq=1)
    opt.update_curvature(spring(w, 1.0))  # trace 2, scale 1 / 2
    opt.step()
    opt.add_param_group({"params": [u], "lr": 0.25})
    assert len(opt.optimizer.param_groups) == 2
    assert opt.param_groups[1]["momentum"] == 0
    assert [group["lr_scale"] for group in opt.param_groups] == [0.5, 0.5]
    assert opt.effective_lrs == [0.25, 0.125]

    loss = spring(w, 1.0) + spring(u, 4.0)  # trace 2 + 4, scale 1 / 4
    opt.update_curvature(loss)
    assert opt.last_estimate is not None
    assert opt.last_estimate.per_parameter == {"0": 2.0, "1": 4.0}
    loss.backward()
    opt.step()
    assert_same(u.detach(), torch.tensor([4.0 - 0.25 / 4 * 16.0], dtype=torch.float64))
    assert lrs(opt) == [0.5, 0.25]


def test_a_later_group_trains_as_on_the_bare_base() -> None:
    bare_model, model = mlp(), mlp()
    bare = torch.optim.Adam(bare_model[0].parameters(), lr=1e-2)
    opt = MetaCurvatureLR(torch.optim.Adam(model[0].parameters(), lr=1e-2), alpha=0.0)
    train_on_fresh(bare_model, bare, 3, curvature=False)
    train_on_fresh(model, opt, 3)
    bare.add_param_group({"params": list(bare_model[2].parameters()), "lr": 3e-2})
    opt.add_param_group({"params": list(model[2].parameters()), "lr": 3e-2})
    train_on_fresh(bare_model, bare, 3, start=3, curvature=False)
    train_on_fresh(model, opt, 3, start=3)
    assert_same(weights(model), weights(bare_model))


@pytest.mark.parametrize(
    "values", [torch.tensor([1 + 1j]), torch.ones(2, 2).to_sparse()], ids=["complex", "sparse"]
)
def test_a_group_that_cannot_be_measured_is_refused_when_added(values: torch.Tensor) -> None:
    """The constructor refuses such a parameter; accepting it later would make every due step raise
    from then on.
    """
    w = leaf(1.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.1))
    parameter = values.requires_grad_()
    with pytest.raises(TypeError, match=r"complex64|sparse"):
        opt.add_param_group({"params": [parameter]})
    assert len(opt.param_groups) == 1
    assert opt.update_curvature(spring(w, 1.0))


@pytest.mark.parametrize(
    ("group", "error"),
    [
        ({"params": {leaf(1.0)}}, TypeError),  # a set has no order
        ([leaf(1.0)], TypeError),
        ({"params": [1.0]}, TypeError),
        ({"lr": 0.1}, KeyError),
        ({"params": [leaf(1.0) * 2]}, ValueError),  # not a leaf
    ],
    ids=["set", "list", "numbers", "no params", "not a leaf"],
)
def test_what_torch_refuses_is_refused(group: Any, error: type[Exception]) -> None:
    w = leaf(1.0)
    bare, opt = torch.optim.SGD([w], lr=0.1), MetaCurvatureLR(torch.optim.SGD([w], lr=0.1))
    for optimizer in (bare, opt):
        with pytest.raises(error):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": [w]})


def test_one_tensor_and_named_parameters_can_be_added() -> None:
    w, u = leaf(1.0), leaf(1.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.1))
    opt.add_param_group({"params": u})
    assert opt.param_groups[1]["params"] == [u]
    named = MetaCurvatureLR(torch.optim.SGD([("w", w)], lr=0.1))
    named.add_param_group({"params": iter([("u", u)])})
    named.update_curvature(spring(w, 1.0) + spring(u, 2.0))
    assert named.last_estimate is not None
    assert named.last_estimate.per_parameter == {"w": 1.0, "u": 2.0}


def test_an_empty_group_is_no_obstacle() -> None:
    """torch takes one; a group for "no decay" may well be empty."""
    w, u = leaf(1.0), leaf(1.0)
    opt = MetaCurvatureLR(torch.optim.SGD([{"params": []}, {"params": [w]}], lr=0.1))
    opt.add_param_group({"params": [u]})
    opt.add_param_group({"params": []})
    assert opt.update_curvature(spring(w, 1.0) + spring(u, 2.0))
    opt.step()
    assert opt.effective_lrs == [0.1 * opt.param_groups[0]["lr_scale"]] * 4


def test_one_name_in_two_groups() -> None:
    """Encoder and decoder, generator and discriminator: torch takes two groups of
    named_parameters() with equal names.
    """
    a, b = leaf(1.0), leaf(1.0, 1.0)
    groups = [{"params": [("weight", a)]}, {"params": [("weight", b)]}]
    opt = MetaCurvatureLR(torch.optim.SGD(groups, lr=0.1))
    opt.update_curvature(spring(a, 2.0) + spring(b, 3.0))
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == 8.0
    assert sorted(opt.last_estimate.per_parameter.values()) == [2.0, 6.0]
