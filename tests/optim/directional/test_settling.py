"""The warm-up from a new beginning, and the rate that settles where noise begins to cost."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from metacurv.optim.directional.settling import settled
from tests.helpers import assert_same, own, sampled
from tests.optim.directional.directional_training import batch, directional, network, train
from tests.optim.directional.problems import Run, normal
from tests.optim.drop_in.reciprocal_training import OPTIMIZERS, bare_state, through_a_file, weights


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


@pytest.mark.parametrize("name", sampled(sorted(set(OPTIMIZERS) - {"Rprop", "ASGD"}), 4))
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
    while own(opt.state_dict())["warm_up"] == [0, 0]:
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
    first = opt._control._judge.first
    for turn, record in enumerate(looks):
        taken = [(4 * turn + i) % 8 for i in range(4)]  # of eight batches of 16 the next four
        progress = sum(first[i] for i in taken) / 4 - record.probe_loss
        rate *= settled(record.noise, progress, turn)
        assert record.lr[0] == pytest.approx(rate, rel=1e-12)
    assert opt.effective_lrs[0] == pytest.approx(rate, rel=1e-12)
    assert all(math.isnan(r.noise) for r in opt.history if r.event != "settling")


def test_a_training_that_dies_while_the_rate_settles_is_taken_back_at_the_next_look() -> None:
    """Looks at the noise are every 5 steps from step 40 on, those of the guard every 10."""
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=200, race=False)
    train(model, opt, 42)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    train(model, opt, 3, start=42)
    assert [record.event for record in opt.history if record.step == 45] == [
        "settling",
        "went back",
    ]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


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
    from metacurv.optim.directional import phases
    from metacurv.optim.directional import rule as rule_module

    for module in (phases, rule_module):
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


STOPS = (5, 15, 19, 20, 25, 33, 39, 40, 44, 45, 61, 70, 100, 119, 120, 150)


@pytest.mark.parametrize("name", sampled(["Adam", "RAdam", "SGD-nesterov"], 3))
def test_a_checkpoint_of_every_phase_goes_on_bit_for_bit(name: str) -> None:
    """Without a race: in the early steps, in the warm-up, while the rate settles, held and in the finish."""

    def made() -> tuple[Any, Any]:
        model = network(norm=True)
        base = OPTIMIZERS[name](list(model.parameters()))
        return model, directional(base, model, horizon=200, race=False, seed=4)

    model, opt = made()
    saved = {}
    for step in range(200):
        if step in STOPS:
            saved[step] = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
        train(model, opt, 1, start=step)
    for step, checkpoint in saved.items():
        again, resumed = made()
        again.load_state_dict(checkpoint["model"])
        resumed.load_state_dict(checkpoint["opt"])
        train(again, resumed, 200 - step, start=step)
        assert_same(again.state_dict(), model.state_dict())
        assert_same(resumed.state_dict(), opt.state_dict())


@pytest.mark.parametrize("stop", [150, 300])
@pytest.mark.parametrize("horizon", sampled([300, None], 2))
def test_a_longer_horizon_after_a_resume_goes_on_with_the_rate(
    horizon: int | None, stop: int
) -> None:
    """What is over stays over: no other warm-up, and the rate does not settle again."""
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=horizon, race=False)
    train(model, opt, stop)
    rate, looks = opt.history[-1].lr[0], len(settling(opt))
    again = network()
    resumed = directional(torch.optim.Adam(again.parameters()), again, horizon=6000, race=False)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(opt.state_dict())
    if horizon is not None:
        assert resumed.effective_lrs[0] == pytest.approx(rate, rel=1e-12)
    train(again, resumed, 400, start=stop)
    more = [record.step for record in settling(resumed)]
    # Without a horizon the settling of 2000 steps goes from step 220 to 520; it is not lengthened.
    assert more == ([] if horizon else [s for s in range(240, 521, 20) if stop < s <= stop + 400])
    assert looks == (9 if horizon else (stop - 220) // 20 if stop > 220 else 0)


def test_a_shorter_horizon_in_the_early_steps_ends_them_at_once() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=2000, race=False)
    train(model, opt, 15)
    again = network()
    resumed = directional(torch.optim.Adam(again.parameters()), again, horizon=100, race=False)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(opt.state_dict())
    train(again, resumed, 2, start=15)
    assert own(resumed.state_dict())["warm_up"] == [16, 10]
    # And a longer one does not begin them again.
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=15, race=False)
    train(model, opt, 15)
    resumed = directional(torch.optim.Adam(model.parameters()), model, horizon=2000, race=False)
    resumed.load_state_dict(opt.state_dict())
    before = weights(model)
    train(model, resumed, 10, start=15)
    assert not [record for record in resumed.history if record.event == "reading"]
    assert any((a != b).any() for a, b in zip(weights(model), before, strict=True))


class Growing(torch.nn.Module):
    """Keeps a cache that grows with the steps, as a positional table does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count += 1
            if self.count == 10:
                self.cache = torch.zeros(4)
        return self.linear(x)


@pytest.mark.parametrize("race", [0, 3])
def test_a_buffer_that_grows_stays_as_it_is(race: int) -> None:
    model = Growing()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=200, race=race)
    train(model, opt, 200)
    assert model.cache.shape == (4,)
    if not race:
        assert model.count == 180 + 1  # the early steps are gone but for the first pass


def test_slopes_that_fall_because_much_was_learned_are_no_noise() -> None:
    """A race is for trainings whose first steps went nowhere: with an average of 0 nothing is learned from zeros."""
    races = []
    for level in (3.0, 0.0):
        x, y = normal(0, 64, 4), normal(1, 64, 1) + level
        model = torch.nn.Linear(4, 1)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        run = Run(model, torch.optim.SGD, x, y, 400, options={"race": "auto"})
        run.opt._control._early.is_noise = lambda s: True  # type: ignore[method-assign]
        run.go(21)
        races.append(run.opt._control._race is not None)
    assert races == [False, True]
