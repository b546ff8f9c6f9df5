"""The warm-up from a new beginning, and the rate that settles where noise begins to cost."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from metacurv.rules.settling import settled
from tests.directional.helpers import batch, directional, network, train
from tests.directional.problems import Run, normal
from tests.drop_in.helpers import OPTIMIZERS, assert_same, bare_state, through_a_file, weights


@pytest.mark.parametrize(
    ("noise", "progress", "turn", "expected"),
    [
        (0.02, 1.0, 0, 0.0),  # where it is sought
        (0.2, 10.0, 0, 0.0),
        (0.09, 1.0, 0, -0.5),  # 0.07 above: a whole unit, of which the first look gives half
        (0.09, 1.0, 14, -0.1),
        (0.09, 1.0, 7, -0.3),
        (0.09, 1.0, 100, -0.1),
        (5.0, 1.0, 0, -0.5),  # at most one unit
        (-5.0, 1.0, 0, 0.5),
        (0.0, 1.0, 0, 0.5 * 2 / 7),
        (0.1, 0.0, 0, 0.0),  # nothing can be told
        (0.1, -1.0, 0, 0.0),
        (math.nan, 1.0, 0, 0.0),
        (0.1, math.inf, 0, 0.0),
    ],
)
def test_what_a_look_asks_for(noise: float, progress: float, turn: int, expected: float) -> None:
    assert math.log(settled(noise, progress, turn)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"Rprop", "ASGD"}))
def test_the_early_steps_leave_nothing_but_the_rate(name: str) -> None:
    """After them parameters, batch norm's statistics and the base's state are those of the beginning, bit for bit."""
    model = network(norm=True)
    base = OPTIMIZERS[name](list(model.parameters()))
    once = copy.deepcopy(model)
    once(batch(0)[0])  # the loop's first pass comes before the first step
    first = once.state_dict()
    state = through_a_file(bare_state(base.state_dict())["state"])
    opt = directional(base, model, horizon=200, race=False)
    step = 0
    while opt.state_dict()["metacurv"]["warm_from"] is None:
        train(model, opt, 1, start=step)
        step += 1
    assert step == (25 if name == "RAdam" else 20)  # RAdam's first five are not normalised
    assert_same(model.state_dict(), first)
    assert_same(bare_state(opt.optimizer.state_dict())["state"], state)
    before = weights(model)
    with opt.averaged_parameters():
        assert_same(weights(model), before)
    # The rate rises over 20 steps in equal parts.
    rate = opt.history[-1].lr[0]
    risen = []
    for at in range(step, step + 21):
        risen.append(opt.effective_lrs[0] / rate)
        train(model, opt, 1, start=at)
    assert risen == pytest.approx([part / 21 for part in range(1, 22)])


def settling(opt: Any) -> list[Any]:
    return [record for record in opt.history if record.event == "settling"]


def test_the_looks_are_what_moves_the_rate() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=400, race=False)
    train(model, opt, 200)
    looks = settling(opt)
    # After 20 early steps and 40 of the warm-up, for 60 steps.
    assert [record.step for record in looks] == list(range(65, 121, 5))
    rate = next(record.lr[0] for record in opt.history if record.step == 18)
    first = opt._control._first_loss
    for turn, record in enumerate(looks):
        rate *= settled(record.noise, first - record.probe_loss, turn)
        assert record.lr[0] == pytest.approx(rate, rel=1e-12)
    assert opt.effective_lrs[0] == pytest.approx(rate, rel=1e-12)
    assert all(math.isnan(r.noise) for r in opt.history if r.event != "settling")


def test_without_an_average_there_is_nothing_to_settle_by() -> None:
    model = network()
    opt = directional(
        torch.optim.Adam(model.parameters()), model, horizon=400, race=False, average=False
    )
    train(model, opt, 200)
    assert settling(opt) == []
    assert opt.effective_lrs[0] == next(record.lr[0] for record in opt.history if record.step == 18)


def test_without_a_horizon_it_settles_anew_when_the_steps_have_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from metacurv.directional import control
    from metacurv.rules import directional as rule_module

    for module in (control, rule_module):
        monkeypatch.setattr(module, "ASSUMED_STEPS", 100)
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, race=False)
    train(model, opt, 500)
    looks = [record.step for record in settling(opt)]
    # Ten early steps, ten of the warm-up; then 15, 15, 30 and 60 steps, a look in five.
    assert looks == [25, 30, 35, 105, 110, 115, *range(205, 231, 5), *range(405, 461, 5)]


def _noisy(size: int) -> Run:
    """A linear regression with much noise in the targets."""
    x = normal(0, 512, 8)
    y = x @ normal(1, 8, 1) + 3 * normal(2, 512, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
    return Run(model, torch.optim.Adam, x, y, 1000, size=size, options={"race": False}).go()


def test_noise_lowers_the_rate_and_its_absence_raises_it() -> None:
    small, full = _noisy(4), _noisy(512)

    def change(run: Run) -> float:
        early = [r.lr[0] for r in run.opt.history if r.event == "reading"][-1]
        return settling(run.opt)[-1].lr[0] / early

    assert change(small) < 0.7
    assert change(full) > 1
