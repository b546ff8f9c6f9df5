"""Pickle and deepcopy, also after a scheduler patched ``step``; the copy is independent."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from metacurv import MetaCurvatureLR, ReciprocalLR, UpdateRecord
from tests.helpers import assert_same

from .reciprocal_training import lrs, mlp, train_on_fresh, weights


def through_torch_save(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": through_torch_save,
}


@pytest.fixture(params=COPIES)
def make_copy(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return COPIES[request.param]


@pytest.mark.parametrize("steps", [0, 4], ids=["fresh", "after readings"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
def test_the_copy_trains_on_like_the_original(
    make_copy: Callable[[Any], Any], steps: int, scheduled: bool
) -> None:
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters(), lr=1e-2), alpha=0.3, update_freq=3, smoothing=0.5
    )
    if scheduled:
        lr_scheduler.StepLR(opt, 1)
        assert "step" in vars(opt)  # what this test is about
    train_on_fresh(model, opt, steps)
    other_model, other = make_copy((model, opt))
    assert type(other) is ReciprocalLR
    assert other.optimizer is not opt.optimizer
    assert other.param_groups[0]["params"][0] is other_model[0].weight
    assert_same(other.state_dict(), opt.state_dict())
    assert_same(other.last_estimate, opt.last_estimate)
    assert other.effective_lrs == opt.effective_lrs

    before, state_before = weights(model), copy.deepcopy(opt.state_dict())
    train_on_fresh(other_model, other, 4, start=steps)
    assert_same(weights(model), before)  # independent
    assert_same(opt.state_dict(), state_before)
    assert other.effective_lrs != opt.effective_lrs
    train_on_fresh(model, opt, 4, start=steps)
    assert_same(weights(other_model), weights(model))
    assert_same(other.state_dict(), opt.state_dict())
    assert_same(other.last_estimate, opt.last_estimate)


def test_the_patched_step_stays_with_the_original(make_copy: Callable[[Any], Any]) -> None:
    """A copied patch would step the original (the scheduler's wrapper holds it)."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    lr_scheduler.StepLR(opt, 1)
    train_on_fresh(model, opt, 1)
    other = make_copy(opt)
    assert "step" not in vars(other)
    assert other.step.__self__ is other


def test_copied_with_its_scheduler() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.5))
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    train_on_fresh(model, opt, 1)
    scheduler.step()
    other, other_scheduler = copy.deepcopy((opt, scheduler))
    assert other_scheduler.optimizer is other
    other_scheduler.step()
    assert lrs(other) == [0.125]
    assert lrs(opt) == [0.25]


def test_hooks_of_the_original_do_not_fire_on_the_copy(
    make_copy: Callable[[Any], Any],
) -> None:
    """As in torch: hooks, which need not pickle, stay behind; new ones can be registered."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    calls: list[str] = []
    opt.register_step_post_hook(lambda *_: calls.append("original"))
    opt.register_state_dict_post_hook(lambda *_: calls.append("original"))
    other_model, other = make_copy((model, opt))
    other.register_step_post_hook(lambda *_: calls.append("copy"))
    train_on_fresh(other_model, other, 1)
    other.state_dict()
    assert calls == ["copy"]
    train_on_fresh(model, opt, 1)
    assert calls == ["copy", "original"]


def test_a_callback_travels_with_a_deepcopy() -> None:
    records: list[UpdateRecord] = []
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), on_update=lambda r: records.append(r)
    )
    other_model, other = copy.deepcopy((model, opt))
    train_on_fresh(other_model, other, 1)
    assert len(records) == 1
