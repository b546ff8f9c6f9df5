"""The protocol by which frameworks show the average for evaluation and saving: opt.eval() and opt.train()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import MetaCurvatureLR
from tests.helpers import assert_same
from tests.optim.directional.directional_training import directional, network, train
from tests.optim.drop_in.reciprocal_training import through_a_file, weights


def made(**options: Any) -> tuple[nn.Module, MetaCurvatureLR]:
    model = network(norm=True)
    return model, directional(torch.optim.Adam(model.parameters()), model, horizon=400, **options)


def test_the_average_in_and_the_iterate_back() -> None:
    model, opt = made()
    train(model, opt, 60)
    iterate = weights(model)
    with opt.averaged_parameters():
        average = weights(model)
    for _ in range(2):
        opt.eval()
        assert_same(weights(model), average)
    with opt.averaged_parameters():
        assert_same(weights(model), average)
    assert_same(weights(model), average)
    for _ in range(2):
        opt.train()
        assert_same(weights(model), iterate)


@pytest.mark.parametrize("at", [0, 60, 300], ids=["before", "hold", "finish"])
@pytest.mark.parametrize("average", [True, False])
def test_no_step_is_lost(at: int, average: bool) -> None:
    model, opt = made(average=average)
    twin, other = made(average=average)
    train(model, opt, at)
    train(twin, other, at)
    opt.eval()
    with pytest.raises(RuntimeError, match=r"step\(\) must not be called after eval\(\)"):
        opt.step()
    opt.train()
    train(model, opt, 30, start=at)
    train(twin, other, 30, start=at)
    assert_same(weights(model)[0], weights(twin)[0])


@pytest.mark.parametrize("at", [10, 35, 60, 300], ids=["early", "race", "hold", "finish"])
def test_a_checkpoint_of_either_is_the_same_and_goes_on(at: int) -> None:
    model, opt = made()
    train(model, opt, at)
    opt.eval()
    shown, in_eval = through_a_file(model.state_dict()), through_a_file(opt.state_dict())
    opt.train()
    assert_same(in_eval, through_a_file(opt.state_dict()))
    train(model, opt, 50, start=at)
    for saved in (shown, None):
        again, resumed = made()
        if saved is not None:  # the model as it was evaluated
            again.load_state_dict(saved)
        resumed.load_state_dict(in_eval)
        if saved is None:
            continue
        train(again, resumed, 50, start=at)
        assert_same(weights(again), weights(model))


def test_a_state_from_before_the_first_eval_goes_on_where_the_model_was_saved_with_the_average() -> (
    None
):
    """As Lightning does, which takes the optimizer's state first."""
    model, opt = made()
    train(model, opt, 60)
    before = through_a_file(opt.state_dict())
    opt.eval()
    shown = through_a_file(model.state_dict())
    opt.train()
    again, resumed = made()
    again.load_state_dict(shown)
    resumed.load_state_dict(before)
    assert_same(weights(again), weights(model))


def test_weights_of_the_users_own_are_left_alone() -> None:
    model, opt = made()
    train(model, opt, 60)
    state = through_a_file(opt.state_dict())
    other, resumed = made()
    before = weights(other)
    resumed.load_state_dict(state)
    assert_same(weights(other), before)


def test_within_the_block_of_the_average() -> None:
    """``with opt.averaged_parameters(): trainer.evaluate()``, which calls eval and train by itself."""
    model, opt = made()
    train(model, opt, 60)
    iterate = weights(model)
    with opt.averaged_parameters():
        average = weights(model)
        opt.eval()
        assert_same(weights(model), average)
    assert_same(weights(model), average)
    with opt.averaged_parameters():
        opt.train()
        assert_same(weights(model), average)
    assert_same(weights(model), iterate)


def test_a_group_that_comes_meanwhile() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model[0].parameters()), model, horizon=400)
    train(model, opt, 60)
    iterate = weights(model)
    opt.eval()
    opt.add_param_group({"params": list(model[3].parameters())})
    opt.train()
    assert_same(weights(model), iterate)
    train(model, opt, 20, start=60)


def test_the_reciprocal_rule_has_nothing_to_show() -> None:
    model = network()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.0)
    before = weights(model)
    opt.eval()
    assert_same(weights(model), before)
    opt.train()
    state = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(state)
