"""Where a horizon ends: training goes on from the average, once, whatever happens around that step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import MetaCurvatureLR
from tests.helpers import assert_same, own
from tests.optim.directional.directional_training import data, directional, network, train
from tests.optim.drop_in.reciprocal_training import through_a_file, weights

HORIZON = 40  # the finish begins with step 25


def started(horizon: int = HORIZON, **options: Any) -> tuple[nn.Module, MetaCurvatureLR]:
    model = network(norm=True)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return model, directional(base, model, horizon=horizon, average=True, **options)


def went_on(opt: MetaCurvatureLR) -> bool:
    flag: bool = own(opt.state_dict())["went_on_from_average"]
    return flag


@pytest.mark.parametrize("stop", [23, 24, 25, 26, 39])
def test_a_checkpoint_anywhere_goes_on_bit_for_bit(stop: int) -> None:
    model, opt = started()
    train(model, opt, stop)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    copied_model, copied = copy.deepcopy((model, opt))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, opt)))
    again, resumed = started()
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    others = [(copied_model, copied), (pickled_model, pickled), (again, resumed)]
    for each_model, each in [(model, opt), *others]:
        train(each_model, each, HORIZON - stop, start=stop)
    for other_model, other in others:
        assert_same(other_model.state_dict(), model.state_dict())
        assert_same(own(other.state_dict()), own(opt.state_dict()))


@pytest.mark.parametrize("horizon", range(1, 9))
@pytest.mark.parametrize("average", [False, True])
def test_tiny_horizons(horizon: int, average: bool) -> None:
    """No step goes beyond the rate that was found, and those past the end are as the last one."""
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    opt = directional(base, model, horizon=horizon, average=average)
    applied = []
    base.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    train(model, opt, horizon)
    plan = opt._control._plan
    factors = [plan.factor(step) for step in range(horizon + 3)]
    assert max(factors) <= 1
    assert min(factors) > 0
    assert factors[horizon:] == [factors[horizon - 1]] * 3
    assert went_on(opt) == average
    found = opt.history[-1].lr[0]
    assert all(lr <= found * (1 + 1e-12) for lr in applied[1:] if opt.history[-1].step == 0)


def test_a_look_at_the_last_step_before_the_finish_is_at_the_average() -> None:
    """25 is a step of the guard, too. What it sees is what the training goes on from."""
    shown: dict[int, Any] = {}
    model, opt = started()

    def look(record: Any) -> None:
        if record.event == "guard":
            shown[record.step] = record.probe_loss

    opt.on_update = look
    train(model, opt, 25)
    assert went_on(opt)
    assert shown[25] == opt._control._judge.loss(of_average=False, quick=True)


@pytest.mark.parametrize("where", ["loss", "on_update"])
def test_an_error_in_the_last_reading_before_the_race(where: str) -> None:
    """Of 170 steps 17 are early ones, and the step before the race is read. It begins after the next step at the latest."""
    fails = False

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if fails and where == "loss":
            raise KeyError
        return nn.functional.cross_entropy(output, target)

    def on_update(record: Any) -> None:
        if fails and where == "on_update" and record.event == "reading":
            raise KeyError

    model, opt = started(170, loss_fn=loss_fn, on_update=on_update)
    train(model, opt, 16)
    fails = True
    with pytest.raises(KeyError):
        train(model, opt, 1, start=16)
    fails = False
    train(model, opt, 1, start=17)
    assert own(opt.state_dict())["race"] is not None
    train(model, opt, 152, start=18)
    assert went_on(opt)


def test_radam_whose_first_steps_reach_into_the_finish() -> None:
    model = network()
    opt = directional(torch.optim.RAdam(model.parameters()), model, horizon=5, average=True)
    train(model, opt, 5)
    assert went_on(opt)


def test_a_later_horizon_after_a_resume() -> None:
    """The average begins anew at the iterate, and the finish comes at the end of the new horizon."""
    model, opt = started()
    train(model, opt, 40)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    again, resumed = started(horizon=80)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    with resumed.averaged_parameters():
        assert_same(weights(again), weights(model))
    train(again, resumed, 1, start=40)
    assert not went_on(resumed)
    iterate = weights(again)
    with resumed.averaged_parameters():
        assert_same(weights(again), iterate)  # the only one that counts so far
    train(again, resumed, 39, start=41)
    assert went_on(resumed)


def test_an_earlier_horizon_after_a_resume() -> None:
    """Beyond the beginning of its finish, the next step goes on from the average."""
    model, opt = started(horizon=80)
    train(model, opt, 60)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    again, resumed = started(horizon=64)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 1, start=60)
    assert went_on(resumed)


def test_a_first_gradient_that_comes_in_the_finish() -> None:
    """Of ten steps the last five finish: 5/5, 4/5, ... of the rate. The first gradient comes with the fourth of them."""
    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model, horizon=10, average=False)
    for _ in range(8):
        opt.step()
    before = weights(model)
    train(model, opt, 1)
    (record,) = opt.history
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b - record.lr[0] * 2 / 5 * p.grad)


def test_before_the_first_step_the_average_is_the_model_as_it_is() -> None:
    model, opt = started()
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    before = weights(model)
    with opt.averaged_parameters():
        assert_same(weights(model), before)


def test_a_block_within_a_block() -> None:
    model, opt = started()
    train(model, opt, 3)
    with opt.averaged_parameters():
        outside = weights(model)
        with opt.averaged_parameters():
            assert_same(weights(model), outside)
        assert_same(weights(model), outside)
        with pytest.raises(RuntimeError, match="must not be called inside"):
            opt.step()
    x, y = data().tensors
    nn.functional.cross_entropy(model(x), y).backward()
    opt.step()
