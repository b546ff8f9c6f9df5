"""Races without a horizon and for groups, groups that come later, caps, held-out data, and what is told about all of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import DirectionalRecord, DirectionalRule, log_rates
from metacurv.optim.directional import phases
from metacurv.optim.directional import rule as rule_module
from tests.helpers import assert_same, sampled
from tests.optim.directional.directional_training import (
    data,
    directional,
    network,
    train,
    training_loss,
)
from tests.optim.directional.problems import Run, normal
from tests.optim.drop_in.reciprocal_training import weights


def groups_of(model: Any) -> list[dict[str, Any]]:
    return [
        {"params": list(model[0].parameters()), "lr": 0.03},
        {"params": list(model[3].parameters()), "lr": 0.01},
    ]


def races(opt: Any) -> list[DirectionalRecord]:
    return [record for record in opt.history if record.event == "race"]


# Without a horizon.


def test_without_a_horizon_it_races_again_whenever_the_steps_have_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rule_module, "ASSUMED_STEPS", 200)
    monkeypatch.setattr(phases, "ASSUMED_STEPS", 200)
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model)
    began, was = [], False
    for step in range(1000):
        train(model, opt, 1, start=step)
        races_now = opt._control._race is not None
        if races_now and not was:
            began.append((step + 1, opt._control._race._lengths))
        was = races_now
    assert began == [(20, (4, 12)), (200, (4, 12)), (400, (8, 24)), (800, (16, 48))]
    assert len(races(opt)) == 4
    assert all(math.isfinite(loss) for record in races(opt) for _, loss in record.candidates[:1])
    # The rate does not fall to zero, and an average is kept.
    assert opt.effective_lrs == opt.history[-1].lr
    iterate = training_loss(model)
    with opt.averaged_parameters():
        averaged = training_loss(model)
    assert averaged < 0.5
    assert averaged != iterate


@pytest.mark.parametrize("horizon", [1, 2, 5, 19, 20, 21, 60, 166, 167])
def test_a_horizon_too_short_for_a_race(horizon: int) -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=horizon)
    before = training_loss(model)
    train(model, opt, horizon)
    assert training_loss(model) <= before
    assert len(races(opt)) == (horizon >= 167)
    assert all(math.isfinite(lr) and lr > 0 for lr in opt.effective_lrs)


def test_no_race_where_none_is_wanted() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=300, race=False)
    train(model, opt, 300)
    assert races(opt) == []
    # Up to the first look at the noise the rate is the early one, of step 18.
    (early,) = (r.lr for r in opt.history if r.step == 18)
    at = next(i for i, r in enumerate(opt.history) if r.event == "settling")
    assert all(r.lr == early for r in opt.history[at - 1 : at])


# Groups.


def test_groups_keep_their_ratio_through_a_race() -> None:
    model = network()
    opt = directional(torch.optim.Adam(groups_of(model)), model, horizon=300)
    for step in range(300):
        train(model, opt, 1, start=step)
        first, second = opt.effective_lrs
        assert first / second == pytest.approx(3, rel=1e-12)
    (record,) = races(opt)
    assert len(record.lr) == 1


def test_per_group_the_groups_race_in_turn() -> None:
    """While one races the other's rate holds; the second begins where the first one's winner is."""
    model = network()
    opt = directional(torch.optim.Adam(groups_of(model)), model, horizon=600, per_group=True)
    seen: list[tuple[int, list[float]]] = []
    for step in range(340):
        if opt._control._race is not None:
            seen.append((opt._control._stage.raced, opt.effective_lrs))
        train(model, opt, 1, start=step)
    assert [scale for scale, _ in seen] == sorted(scale for scale, _ in seen)
    first = [lrs for scale, lrs in seen if scale == 0]
    second = [lrs for scale, lrs in seen if scale == 1]
    assert len({lrs[0] for lrs in first}) >= 3
    assert len({lrs[1] for lrs in first}) == 1
    assert len({lrs[1] for lrs in second}) >= 3
    assert len({lrs[0] for lrs in second}) == 1
    one, two = races(opt)
    assert second[0][0] == one.lr[0]
    assert two.lr[0] == one.lr[0]
    assert [record.lr for record in opt.history][-1] == opt.effective_lrs
    # The time is shared: 0.02 and 0.06 of half the horizon, for each of at least three.
    assert max(sum(lrs[0] == lr for lrs in first) for lr in {lrs[0] for lrs in first}) == 18


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("when", sampled([0, 10, 22, 30, 45, 60, 200], 3))
def test_a_group_added_at_any_time(when: int, per_group: bool) -> None:
    """In a race that ends it: the best so far goes on."""
    model = network()
    base = torch.optim.Adam(model[0].parameters(), lr=0.03)
    opt = directional(base, model, horizon=300, per_group=per_group)
    train(model, opt, when)
    raced = opt._control._race is not None
    assert raced is (when in (22, 30, 45, 60))
    opt.add_param_group({"params": list(model[3].parameters()), "lr": 0.03})
    assert opt._control._race is None
    assert len(races(opt)) == (when >= 22)
    assert len(opt.effective_lrs) == 2
    train(model, opt, 300 - when, start=when)
    assert len(opt.effective_lrs) == 2
    assert all(math.isfinite(lr) and lr > 0 for lr in opt.effective_lrs)
    assert training_loss(model) < 0.7


def test_a_group_that_is_refused_leaves_the_race_alone() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=300)
    train(model, opt, 30)
    before = weights(model)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": list(model[3].parameters())})
    complex_one = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="param_group"):
        opt.add_param_group({"params": [complex_one]})
    assert opt._control._race is not None
    assert_same(weights(model), before)
    train(model, opt, 20, start=30)


# A cap.


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_no_step_is_taken_above_the_cap(name: str) -> None:
    """Also the first step, and the candidates; and readings are those of the steps that were taken."""
    kinds: dict[str, Any] = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}
    cap = 1e-3
    model = network(dtype=torch.float64)
    base = kinds[name](model.parameters(), lr=0.1)
    opt = directional(base, model, horizon=300, max_lr=cap)
    applied: list[float] = []
    base.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    before = weights(model)
    train(model, opt, 1)
    if name == "SGD":
        for p, b in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), b - cap * p.grad)
    train(model, opt, 299, start=1)
    assert max(applied[1:]) <= cap * (1 + 1e-12)
    assert all(lr <= cap for record in opt.history for lr in record.lr)
    (record,) = races(opt)
    assert max(rate for rate, _ in record.candidates) <= cap * (1 + 1e-12)
    free = network(dtype=torch.float64)
    other = directional(kinds[name](free.parameters(), lr=0.1), free, horizon=300)
    train(free, other, 1)
    slopes = [record.slope[0] for record in opt.history if record.slope]
    # Nothing has moved much, so readings are about the first one: of SGD |g|^2, of Adam |g|_1.
    assert sum(slopes[1:]) / 9 == pytest.approx(other.history[0].slope[0], rel=0.7)


def test_readings_of_steps_that_are_capped_are_of_those_steps() -> None:
    """A schedule asks for ten times the rate, and the cap gives the first: u is the step over what was applied."""
    slopes = []
    for times in (1, 10):
        model = network(dtype=torch.float64)
        opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, max_lr=1e-4, race=0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: times if step else 1)  # noqa: B023
        for step in range(20):
            train(model, opt, 1, start=step)
            scheduler.step()
            if step < 19:  # then the warm-up begins
                assert opt.effective_lrs == [pytest.approx(1e-4)]
        slopes.append([record.slope[0] for record in opt.history if record.slope])
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-6)


def test_a_cap_between_the_candidates() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=300, race=0)
    train(model, opt, 20)
    early = opt.effective_lrs[0]
    for factor, highest in ((0.5, None), (1.5, 0), (4.0, 1), (10.0, 2)):
        model = network()
        capped = directional(
            torch.optim.Adam(model.parameters()), model, horizon=300, max_lr=factor * early
        )
        train(model, capped, 300)
        rates = [rate for rate, _ in races(capped)[0].candidates]
        assert max(rates) <= factor * early * (1 + 1e-9)
        assert capped.history[-1].lr[0] <= factor * early * (1 + 1e-9)
        if highest is not None:
            assert round(math.log(max(rates) / early, 3)) <= highest


# Held-out data.


def test_with_held_out_data_it_ends_where_their_loss_was_least() -> None:
    """Twelve examples are learned by heart, while the loss on others goes up."""
    x, y = normal(0, 12, 20), (normal(1, 12) > 0).long()
    held_x, held_y = normal(2, 256, 20), (normal(3, 256) > 0).long()
    held = [(held_x[i : i + 64], held_y[i : i + 64]) for i in range(0, 256, 64)]
    ends = []
    for rule in (DirectionalRule.held_out(), DirectionalRule()):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 2))
        run = Run(
            model,
            torch.optim.Adam,
            x,
            y,
            400,
            loss_fn=nn.functional.cross_entropy,
            options={"probe": held, "rule": rule},
        ).go()
        judge = run.opt._control._judge
        ends.append(judge.loss(of_average=False, quick=True))
        least = run.opt._control._guard.loss
        if rule.stop_early:
            looks = [r.probe_loss for r in run.events("guard")]
            assert ends[0] <= min(looks) * (1 + 1e-6)
            assert ends[0] == pytest.approx(least, rel=1e-6)
            assert run.opt.history[-1].event in ("went back", "guard")
    assert ends[0] <= ends[1]


# What is told.


def test_rates_are_logged_at_every_event() -> None:
    logged: list[tuple[str, float, int]] = []
    model = network()
    callback = log_rates(lambda *line: logged.append(line), name="rate")
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=300, on_update=callback)
    train(model, opt, 300)
    assert logged == [("rate", record.effective_lrs[0], record.step) for record in opt.history]
    logged.clear()
    model = network()
    opt = directional(
        torch.optim.Adam(groups_of(model)), model, horizon=400, per_group=True, on_update=callback
    )
    train(model, opt, 60)
    assert logged[:4] == [
        (f"rate/{group}", record.effective_lrs[group], record.step)
        for record in opt.history[:2]
        for group in (0, 1)
    ]


@pytest.mark.filterwarnings("ignore:horizon=300 brings the learning rate to zero")
def test_the_effective_rates_of_a_record_are_those_of_the_next_step() -> None:
    """With the factors of warm-up, finish and a scheduler."""
    model = network()
    opt = directional(torch.optim.Adam(groups_of(model)), model, horizon=300, race=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5 ** (step // 100))
    seen = 0
    for step in range(300):
        events = len(opt.history)
        train(model, opt, 1, start=step)
        now = opt.effective_lrs
        for record in opt.history[events:]:
            if record.event != "reading":
                assert record.effective_lrs == pytest.approx(now, rel=1e-12)
                seen += record.effective_lrs != record.lr * 2
        scheduler.step()
    assert seen > 10


def test_events_of_a_training() -> None:
    """Readings in the early steps, a look before the race, the race, looks; each is told as it happens."""
    model = network()
    seen: list[tuple[int, DirectionalRecord]] = []
    step = 0
    opt = directional(
        torch.optim.Adam(model.parameters()),
        model,
        horizon=300,
        on_update=lambda record: seen.append((step, record)),
    )
    for step in range(300):
        train(model, opt, 1, start=step)
    assert [record for _, record in seen] == opt.history
    for at, record in seen:
        if record.event == "reading":
            assert record.step == at
            assert len(record.slope) == len(record.curvature) == len(record.ratio) == 1
            assert record.candidates == []
        else:
            assert record.step == at + 1  # steps taken
            assert record.slope == record.curvature == record.ratio == []
            assert bool(record.candidates) is (record.event == "race")
    (race,) = races(opt)
    assert race.probe_loss == min(loss for _, loss in race.candidates)
    least = min(race.candidates, key=lambda candidate: candidate[1])[0]
    assert least / 3 < race.lr[0] < least * 3
    assert all(record.accepted for record in opt.history)
    assert data().tensors[0].shape == (96, 4)


def test_an_error_in_on_update_takes_nothing_from_the_rule() -> None:
    """Whatever fails, looks, going back and the end come as they would, and every event is told of once."""
    trained = []
    for fails in (False, True):
        model = network()
        told: list[DirectionalRecord] = []

        def on_update(
            record: DirectionalRecord, told: list[DirectionalRecord] = told, fails: bool = fails
        ) -> None:
            told.append(record)
            if fails:
                raise KeyError

        base = torch.optim.Adam(model.parameters())
        rule = DirectionalRule.held_out(race=0)
        opt = directional(base, model, horizon=200, rule=rule, race=0, on_update=on_update)
        for step in range(200):
            try:
                train(model, opt, 1, start=step)
            except KeyError:
                continue
        opt.on_update = told.append
        trained.append(weights(model))
        assert_same(told, opt.history[: len(told)])
        assert len(told) >= len(opt.history) - 1
    assert_same(*trained)


def test_a_group_added_in_a_race_while_on_update_fails() -> None:
    model = network()

    def on_update(record: DirectionalRecord) -> None:
        if record.event == "race":
            raise KeyError

    base = torch.optim.Adam(model[0].parameters(), lr=0.03)
    opt = directional(base, model, horizon=300, on_update=on_update)
    train(model, opt, 30)
    opt.add_param_group({"params": list(model[3].parameters()), "lr": 0.03})
    with pytest.raises(KeyError):
        train(model, opt, 1, start=30)
    train(model, opt, 269, start=31)
    assert len(opt.effective_lrs) == 2


def test_an_error_in_on_update_at_the_end_of_a_race_leaves_the_race_ended() -> None:
    def on_update(record: DirectionalRecord) -> None:
        if record.event == "race":
            raise KeyError

    model = network()
    opt = directional(
        torch.optim.Adam(groups_of(model)), model, horizon=600, per_group=True, on_update=on_update
    )
    raised = 0
    for step in range(400):
        try:
            train(model, opt, 1, start=step)
        except KeyError:
            raised += 1
    assert raised == len(races(opt)) == 2
    assert opt._control._race is None


def test_the_loop_may_show_the_average_in_a_race() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=300)
    train(model, opt, 33)
    iterate = weights(model)
    with opt.averaged_parameters():
        assert math.isfinite(training_loss(model))
        with pytest.raises(RuntimeError, match="must not be called inside"):
            opt.step()
    assert_same(weights(model), iterate)
    train(model, opt, 60, start=33)
