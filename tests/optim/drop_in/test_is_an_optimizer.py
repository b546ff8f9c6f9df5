"""Lines 1, 2 and 10: it is a torch optimizer, built around the base without touching it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from metacurv import MetaCurvatureLR

from .reciprocal_training import leaf, loss_of, lrs, mlp, train_on_fresh, two_groups

PROPERTIES = ("param_groups", "state", "defaults")


def test_isinstance() -> None:
    opt = MetaCurvatureLR(torch.optim.SGD(mlp().parameters(), lr=0.1))
    assert isinstance(opt, Optimizer)
    torch.optim.lr_scheduler.StepLR(opt, 1)  # checks isinstance itself


@pytest.mark.parametrize("name", PROPERTIES)
def test_reads_the_base(name: str) -> None:
    base = torch.optim.Adam(mlp().parameters())
    opt = MetaCurvatureLR(base)
    assert getattr(opt, name) is getattr(base, name)
    assert name not in vars(opt)  # an alias would go stale
    assert isinstance(getattr(MetaCurvatureLR, name), property)


@pytest.mark.parametrize("name", PROPERTIES)
def test_sets_the_base(name: str) -> None:
    base = torch.optim.Adam(mlp().parameters())
    opt = MetaCurvatureLR(base)
    new: Any = defaultdict(dict) if name == "state" else type(getattr(base, name))()
    setattr(opt, name, new)
    assert getattr(base, name) is new
    assert getattr(opt, name) is new


@pytest.mark.parametrize("through_wrapper", [True, False])
def test_follows_lists_that_loading_rebinds(through_wrapper: bool) -> None:
    """Optimizer.load_state_dict makes new lists; whoever loads, both sides see them."""
    model = mlp()
    base = torch.optim.Adam(model.parameters(), lr=1e-2)
    opt = MetaCurvatureLR(base)
    train_on_fresh(model, opt, 2)
    old_groups, old_state = base.param_groups, base.state
    state = opt.state_dict()
    state["param_groups"][0]["lr"] = 0.5
    (opt if through_wrapper else base).load_state_dict(state)
    assert base.param_groups is not old_groups  # what this test is about
    assert base.state is not old_state
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    assert lrs(opt) == [0.5]


def hook_attributes(optimizer: Optimizer) -> set[str]:
    return {name for name in vars(optimizer) if name.startswith("_optimizer_")}


def test_torch_setstate_makes_the_hooks_and_nothing_else() -> None:
    """Pins torch: the wrapper calls Optimizer.__setstate__ in place of Optimizer.__init__, which
    would rebuild the groups.
    """

    class Shell(Optimizer):
        def __init__(self) -> None:
            self.defaults = {"differentiable": False}

        def step(self, closure: Any = None) -> Any:
            return None

    shell = Shell()
    Optimizer.__setstate__(shell, {})
    whole = torch.optim.SGD([leaf(1.0)], lr=0.1)
    assert hook_attributes(shell) == hook_attributes(whole)
    assert len(hook_attributes(whole)) == 6
    assert all(len(getattr(shell, name)) == 0 for name in hook_attributes(shell))
    assert "param_groups" not in vars(shell)
    assert "state" not in vars(shell)
    assert shell.step.hooked  # type: ignore[attr-defined]


def test_every_hook_of_torch_exists_on_the_wrapper() -> None:
    base = torch.optim.SGD([leaf(1.0)], lr=0.1)
    opt = MetaCurvatureLR(base)
    assert hook_attributes(opt) == hook_attributes(base)
    for name in hook_attributes(base):
        assert getattr(opt, name) is not getattr(base, name)


def test_groups_and_state_are_not_rebuilt() -> None:
    model = mlp()
    base = torch.optim.SGD(two_groups(model), lr=0.1, momentum=0.9)
    train_on_fresh(model, base, 1, curvature=False)
    groups = list(base.param_groups)
    lists = [group["params"] for group in groups]
    contents = [dict(group) for group in groups]
    state, buffers = base.state, {k: dict(v) for k, v in base.state.items()}
    base.register_step_pre_hook(lambda *_: None)

    opt = MetaCurvatureLR(base)

    assert all(a is b for a, b in zip(opt.param_groups, groups, strict=True))
    assert all(g["params"] is p for g, p in zip(groups, lists, strict=True))
    for group, before in zip(groups, contents, strict=True):
        assert group == {**before, "lr_scale": 1.0}
    assert base.state is state
    for parameter, entry in buffers.items():
        assert base.state[parameter]["momentum_buffer"] is entry["momentum_buffer"]
    assert len(base._optimizer_step_pre_hooks) == 1


def test_nothing_is_forwarded() -> None:
    """The base's private flags must not show: GradScaler would believe them (test_amp.py has the
    consequence).
    """
    base = torch.optim.Adam(mlp().parameters(), fused=True)
    base.private_flag = True  # type: ignore[attr-defined]
    opt = MetaCurvatureLR(base)
    assert base._step_supports_amp_scaling
    assert not hasattr(opt, "_step_supports_amp_scaling")
    assert not hasattr(opt, "private_flag")
    assert not hasattr(type(opt), "__getattr__")


def test_wrapping_twice_is_refused() -> None:
    opt = MetaCurvatureLR(torch.optim.SGD([leaf(1.0)], lr=0.1))
    with pytest.raises(TypeError, match="wrapped already"):
        MetaCurvatureLR(opt)


@pytest.mark.parametrize("wrong", [None, [leaf(1.0)], torch.optim.SGD, "Adam"])
def test_only_optimizers_are_wrapped(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        MetaCurvatureLR(wrong)


def test_a_base_without_lr_is_refused() -> None:
    """There is nothing to scale; found out at construction, not as a KeyError in the middle of
    training.
    """

    class WithoutLr(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"rate": 0.1})

        def step(self, closure: Any = None) -> Any:
            return None

    base = WithoutLr([leaf(1.0)])
    with pytest.raises((TypeError, ValueError), match="lr"):
        MetaCurvatureLR(base)
    assert set(base.param_groups[0]) == {"params", "rate"}


def test_repr_names_the_wrapper_and_the_base() -> None:
    text = repr(MetaCurvatureLR(torch.optim.SGD(mlp().parameters(), lr=0.125)))
    assert "MetaCurvatureLR" in text
    assert "SGD" in text
    assert "0.125" in text


def test_a_wrong_argument_leaves_the_optimizer_as_it_was() -> None:
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    before = set(base.param_groups[0])
    with pytest.raises(ValueError, match="update_freq"):
        MetaCurvatureLR(base, update_freq=0)
    with pytest.raises(ValueError, match="alpha"):
        MetaCurvatureLR(base, alpha=-1.0)
    assert set(base.param_groups[0]) == before
    loss_of(model).backward()
    base.step()
