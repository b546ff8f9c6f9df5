"""Torch's optimizer hooks fire once, on the wrapper, and may replace what torch lets them
replace.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from metacurv import MetaCurvatureLR
from metacurv.optim.carried_state import taken_out
from tests.helpers import assert_same, own

from .reciprocal_training import curvature_state, leaf, loss_of, lrs, mlp, spring, train_on_fresh


def wrapped() -> tuple[torch.nn.Module, MetaCurvatureLR]:
    model = mlp()
    return model, MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))


REGISTER = {
    "register_step_pre_hook": lambda opt: opt.step(),
    "register_step_post_hook": lambda opt: opt.step(),
    "register_state_dict_pre_hook": lambda opt: opt.state_dict(),
    "register_state_dict_post_hook": lambda opt: opt.state_dict(),
    "register_load_state_dict_pre_hook": lambda opt: opt.load_state_dict(opt.state_dict()),
    "register_load_state_dict_post_hook": lambda opt: opt.load_state_dict(opt.state_dict()),
}


@pytest.mark.parametrize("register", REGISTER)
def test_fires_once_with_the_wrapper_until_removed(register: str) -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    calls: list[Any] = []
    handle = getattr(opt, register)(lambda optimizer, *_: calls.append(optimizer))
    REGISTER[register](opt)
    assert len(calls) == 1
    assert calls[0] is opt
    handle.remove()
    REGISTER[register](opt)
    assert len(calls) == 1


@pytest.mark.parametrize("register", REGISTER)
def test_hooks_of_the_base_fire_once_with_the_base(register: str) -> None:
    """Those that were there before wrapping go on working."""
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    calls: list[Any] = []
    getattr(opt.optimizer, register)(lambda optimizer, *_: calls.append(optimizer))
    REGISTER[register](opt)
    assert len(calls) == 1
    assert calls[0] is opt.optimizer


def test_a_global_step_hook_fires_once() -> None:
    """Whoever counts the steps of all optimizers counts one, as for the bare base."""
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    calls: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: calls.append(optimizer))
    try:
        opt.step()
    finally:
        handle.remove()
    assert len(calls) == 1


def test_order_and_view_of_step_hooks() -> None:
    """Pre hook, base, post hook; both see the user's lr, the base sees the scaled one."""
    w = leaf(1.0, 1.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=0.5)
    events: list[tuple[str, float]] = []

    def note(name: str) -> Any:
        return lambda optimizer, args, kwargs: events.append((name, lrs(optimizer)[0]))

    opt.optimizer.register_step_pre_hook(note("base"))
    opt.register_step_post_hook(note("post"))
    opt.register_step_pre_hook(note("pre"))
    loss = spring(w, 1.0)  # trace 2, scale 1 / 2
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert events == [("pre", 0.5), ("base", 0.25), ("post", 0.5)]


def test_a_step_pre_hook_can_replace_the_arguments() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)

    def closure() -> float:
        return 42.0

    opt.register_step_pre_hook(lambda optimizer, args, kwargs: ((optimizer, closure), {}))
    assert opt.step() == 42.0


def test_a_step_pre_hook_that_returns_something_else_is_an_error_as_in_torch() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    for optimizer in (opt.optimizer, opt):
        handle = optimizer.register_step_pre_hook(lambda *_: "nonsense")  # type: ignore[arg-type,return-value]
        with pytest.raises(RuntimeError, match="must return None or"):
            optimizer.step()
        handle.remove()


def test_a_hook_may_remove_itself() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    calls: list[int] = []
    handle = opt.register_step_post_hook(lambda *_: (calls.append(1), handle.remove())[0])
    opt.step()
    opt.step()
    assert calls == [1]


def test_state_dict_hooks_can_replace_the_state() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    seen: list[set[str]] = []

    def keep_and_mark(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(state))
        return {**state, "mark": 1}

    def change_in_place(optimizer: Any, state: dict[str, Any]) -> None:
        state["mark"] += 1

    opt.register_state_dict_post_hook(keep_and_mark)
    opt.register_state_dict_post_hook(change_in_place)
    assert opt.state_dict()["mark"] == 2
    assert seen == [{"state", "param_groups"}]


def test_prepend() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 1)
    calls: list[str] = []
    opt.register_state_dict_pre_hook(lambda *_: calls.append("second"))
    opt.register_state_dict_pre_hook(lambda *_: calls.append("first"), prepend=True)
    opt.state_dict()
    assert calls == ["first", "second"]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "returned"])
def test_load_state_dict_pre_hook_gets_a_shallow_copy_and_may_replace_it(
    in_place: bool,
) -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 2)
    state = opt.state_dict()
    assert own(state)["steps"] == 2
    keys = set(state)

    def pre_hook(optimizer: Any, given: dict[str, Any]) -> dict[str, Any] | None:
        assert given is not state
        of_base = taken_out(given, [])[2]
        if in_place:
            given.update(of_base)
            return None
        return of_base

    opt.register_load_state_dict_pre_hook(pre_hook)
    with pytest.warns(UserWarning, match="begins afresh"):
        opt.load_state_dict(state)
    assert set(state) == keys
    assert curvature_state(opt)["steps"] == 0  # loaded as a checkpoint of the bare base


def test_load_state_dict_post_hook_sees_everything_loaded() -> None:
    model, opt = wrapped()
    train_on_fresh(model, opt, 2)
    other = wrapped()[1]
    seen: list[dict[str, Any]] = []
    other.register_load_state_dict_post_hook(lambda o: seen.append(curvature_state(o)))  # type: ignore[arg-type]
    other.load_state_dict(opt.state_dict())
    assert_same(seen, [curvature_state(opt)])


def test_a_failing_pre_hook_leaves_everything_as_it_was() -> None:
    model, opt = wrapped()
    loss = loss_of(model)
    opt.update_curvature(loss)
    loss.backward()
    before = curvature_state(opt)

    def fail(*_: Any) -> None:
        raise RuntimeError("from the hook")

    handle = opt.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="from the hook"):
        opt.step()
    assert_same(curvature_state(opt), before)
    assert lrs(opt) == [0.5]
    handle.remove()
    opt.step()
    assert curvature_state(opt)["steps"] == 1
