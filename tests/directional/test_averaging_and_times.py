"""The average of the iterates, the horizon, when readings are taken, and how batches are drawn."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from metacurv import DirectionalRecord, DirectionalRule
from metacurv.directional.iterate_average import IterateAverage
from metacurv.directional.probe_batches import ProbeBatches
from metacurv.directional.timing import MeasuringTimes
from metacurv.rules.directional_state import DirectionalState
from tests.directional.helpers import batch, data, directional, network, train
from tests.drop_in.helpers import assert_same, weights

CPU = torch.device("cpu")


def test_the_average_is_the_weighted_mean_of_the_iterates() -> None:
    """Written out: theta_i has weight 5 / (i + 5) times the product of j / (j + 5) over later steps j."""
    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    iterates = [weights(model)]
    for step in range(12):
        train(model, opt, 1, start=step)
        iterates.append(weights(model))
    shares = [
        math.prod(j / (j + 5) for j in range(i + 1, 13)) * (5 / (i + 5) if i else 1)
        for i in range(13)
    ]
    assert sum(shares) == pytest.approx(1)
    last = weights(model)
    with opt.averaged_parameters():
        for k, p in enumerate(model.parameters()):
            expected = sum(
                share * iterate[k] for share, iterate in zip(shares, iterates, strict=True)
            )
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(last, model.parameters(), strict=True))


def test_the_average_leaves_when_an_error_comes() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    train(model, opt, 5)
    last = weights(model)
    with pytest.raises(KeyError), opt.averaged_parameters():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(last, model.parameters(), strict=True))


def test_the_horizon_ends_in_a_rate_next_to_zero_and_never_at_it() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=40, average=False)
    applied = []
    opt.optimizer.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    train(model, opt, 40)
    with pytest.warns(RuntimeWarning, match="horizon=40 steps have been taken") as warned:
        train(model, opt, 5, start=40)
    assert len(warned) == 1
    assert warned[0].filename.endswith("helpers.py")  # the loop's line
    found = opt.history[-1].lr[0]
    # finish = 0.3: full up to step 28, then 11/12 of it, ..., 1/12 at step 39, and at steps beyond what the loop promised.
    assert applied[28] == pytest.approx(found, rel=1e-12)
    for step in range(29, 40):
        assert applied[step] == pytest.approx(found * (40 - step) / 12, rel=1e-12)
    assert applied[40:] == pytest.approx([found / 12] * 5, rel=1e-12)
    assert max(record.step for record in opt.history) <= 28


def test_the_finish_goes_on_from_the_average_at_four_tenths_of_the_rate() -> None:
    """Of 40 steps the last six: 0.4 x 5/6, 4/6, ..., and from there on the parameters are what is to be read."""
    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, horizon=40, average=True)
    applied = []
    opt.optimizer.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    average = weights(model)
    for step in range(35):
        began = weights(model)
        train(model, opt, 1, start=step)
        lr = (
            applied[-1] if step else opt.effective_lrs[0]
        )  # the first step is taken at 1 and shortened
        came_to = [w - lr * p.grad for w, p in zip(began, model.parameters(), strict=True)]
        average = [a + 5 / (step + 6) * (w - a) for a, w in zip(average, came_to, strict=True)]
        expected = came_to if step < 34 else average
        torch.testing.assert_close(weights(model), expected, rtol=1e-9, atol=1e-12)
    rate = applied[34]
    assert rate == pytest.approx(opt.history[-1].lr[0])
    held = [value.clone() for value in opt._control._average.values]
    for step in range(35, 40):
        began = weights(model)
        train(model, opt, 1, start=step)
        came_to = [w - applied[-1] * p.grad for w, p in zip(began, model.parameters(), strict=True)]
        torch.testing.assert_close(weights(model), came_to, rtol=1e-9, atol=1e-12)
    assert_same(opt._control._average.values, held)  # it has done its work
    assert [lr / rate for lr in applied[35:]] == pytest.approx(
        [0.4 * left / 6 for left in (5, 4, 3, 2, 1)]
    )
    now = weights(model)
    with opt.averaged_parameters():
        torch.testing.assert_close(weights(model), now, rtol=0, atol=0)


def test_after_the_search_the_rate_holds() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=400, average=True)
    train(model, opt, 300)
    held = {record.lr[0] for record in opt.history if record.step >= 100}
    assert len(held) == 1  # but for the guard, which nothing woke here
    steps = [record.step for record in opt.history]
    assert steps[:11] == [
        0,
        2,
        4,
        6,
        8,
        10,
        12,
        14,
        16,
        18,
        23,
    ]  # 20 and more: every 400 / 100... at least 5
    assert [b - a for a, b in pairwise(steps) if 18 < a < 95] == [5] * 15
    assert max(b - a for a, b in pairwise(steps)) == 40  # 8 times as many


def test_without_horizon_and_average_it_follows_all_the_time() -> None:
    assert DirectionalRule().plan(horizon=None, average=False, plain_momentum=False).sigma == 1.6
    plan = DirectionalRule().plan(horizon=None, average=False, plain_momentum=False)
    assert (plan.search_ends, plan.finish_begins, plan.interval) == (math.inf, math.inf, 20)
    plan = DirectionalRule().plan(horizon=None, average=True, plain_momentum=True)
    assert (plan.sigma, plan.start, plan.search_ends, plan.interval) == (2.0, 0.03, 500, 20)
    plan = DirectionalRule().plan(horizon=10_000, average=True, plain_momentum=False)
    assert (plan.sigma, plan.start, plan.search_ends, plan.interval) == (2.5, 0.1, 2500, 100)
    assert (plan.finish_begins, plan.finish_from) == (pytest.approx(8500), 0.4)
    plan = DirectionalRule().plan(horizon=10_000, average=False, plain_momentum=False)
    assert (plan.finish_begins, plan.finish_from) == (pytest.approx(7000), 1.0)


def state(scales: int = 1) -> DirectionalState:
    plan = DirectionalRule(beta=0.0).plan(horizon=None, average=False, plain_momentum=False)
    made = DirectionalState(plan, scales, CPU)
    ones = torch.ones(scales, dtype=torch.float64)
    made.begin(ones[0], ones, ones)
    return made


def reading(loss: float, slope: Any, curvature: Any) -> torch.Tensor:
    return torch.tensor([loss, *slope, *curvature], dtype=torch.float64)


def test_a_loss_that_rises_far_back_halves_the_rate() -> None:
    rule = state()
    one = reading(0.2, [1.0], [1.0])
    for _ in range(40):
        rule.update(one, searching=False)
    before = rule.lr.clone()
    # The average is at 0.2 from 1: a quarter of that progress lost is a loss of 0.4.
    rule.update(reading(0.39, [1.0], [1.0]), searching=False)
    assert torch.equal(rule.lr, before)
    rule.update(reading(0.45, [1.0], [1.0]), searching=False)
    assert torch.equal(rule.lr, before / 2)
    rule.update(reading(math.nan, [1.0], [1.0]), searching=False)
    assert torch.equal(rule.lr, before / 4)


def test_what_the_state_gave_does_not_move_with_it() -> None:
    rule = state(2)
    given = [rule.lr, rule.change, rule.accepted]
    copies = [value.clone() for value in given]
    rule.update(reading(math.nan, [1.0, 1.0], [1.0, 1.0]), searching=True)
    rule.update(reading(0.1, [9.0, 1.0], [1.0, 1.0]), searching=True)
    assert rule.change != copies[1]
    assert_same(given, copies)


def test_noise_before_there_is_progress_halves_nothing() -> None:
    rule = state()
    for loss in (0.95, 1.2, 0.97, 1.5):
        rule.update(reading(loss, [1.0], [1.0]), searching=False)
    assert rule.lr.item() == pytest.approx(0.16)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reading_that_is_not_finite_moves_nothing(bad: float) -> None:
    rule = state(2)
    before = rule.state()
    rule.update(reading(1.0, [bad, 1.0], [1.0, 1.0]), searching=True)
    assert rule.accepted == 0
    assert rule.state()["lr"] == before["lr"]
    assert rule.state()["slope"] == before["slope"]
    rule.update(reading(1.0, [1.0, 1.0], [1.0, 1.0]), searching=True)
    assert rule.accepted == 1


def test_rates_stay_finite_and_positive_whatever_is_read() -> None:
    rule = state()
    for slope, curvature in (
        (1e300, 1e-300),
        (-1e300, 1e300),
        (1e-320, 1.0),
        (1.0, -1.0),
        (0.0, 0.0),
    ):
        for _ in range(500):
            rule.update(reading(1.0, [slope], [curvature]), searching=True)
        assert 0 < rule.lr.item() < math.inf


def test_times() -> None:
    def change(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    held = MeasuringTimes(20, 80, regular_until=0)
    assert [held.measured(step, change(0.0)) for step in (0, 40, 120)] == [2, 80, 80]
    times = MeasuringTimes(20, 80, regular_until=0)
    step, seen = 0, []
    for _ in range(16):
        assert times.is_due(step)
        assert not times.is_due(step - 1) or step == 0
        seen.append(step)
        step += times.measured(step, change(0.01))
    assert seen[:10] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    # From then on a quarter longer each time while the reading before moved by less than 0.03.
    assert [b - a for a, b in pairwise(seen[9:])] == [25, 31, 39, 48, 61, 76]
    times.measured(step, change(0.5))
    assert (
        times.measured(step + 80, change(0.5)) == 53
    )  # two thirds of 80: the one before moved much
    regular = MeasuringTimes(20, 80, regular_until=1000)
    for step in range(0, 1000, 20):
        assert regular.measured(step, change(0.0)) <= 20


def test_a_loaders_data_are_gone_through_whole_each_round_in_another_order() -> None:
    numbers = TensorDataset(torch.arange(12), torch.arange(12))
    probes = ProbeBatches(DataLoader(numbers, batch_size=5), seed=1)
    rounds = [torch.cat([probes.draw(CPU)[0] for _ in range(2)]) for _ in range(4)]
    for drawn in rounds:
        assert len(set(drawn.tolist())) == 10  # the last, shorter batch is left out
    assert len({tuple(drawn.tolist()) for drawn in rounds}) == 4
    again = ProbeBatches(DataLoader(numbers, batch_size=5, shuffle=True), seed=1)
    assert torch.equal(again.draw(CPU)[0], rounds[0][:5])
    assert not torch.equal(
        ProbeBatches(DataLoader(numbers, batch_size=5), seed=2).draw(CPU)[0], rounds[0][:5]
    )


def test_data_sets_with_examples_of_their_own_kind() -> None:
    class Named(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return {"x": torch.full((2,), float(i))}, i

    inputs, targets = ProbeBatches(DataLoader(Named(), batch_size=4), seed=0).draw(CPU)
    assert torch.equal(inputs["x"][:, 0], targets.to(torch.float32))

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(*data().tensors, strict=True))

    x, y = ProbeBatches(DataLoader(Stream(), batch_size=4), seed=0).draw(CPU)
    assert x.shape == (4, 4)
    assert y.shape == (4,)


def test_an_iterable_begins_again_at_its_end() -> None:
    class Two:
        def __iter__(self) -> Any:
            return iter([(0, 0), (1, 1)])

    probes = ProbeBatches(Two(), seed=0)
    assert [probes.draw(CPU)[0] for _ in range(5)] == [0, 1, 0, 1, 0]
    probes.go_to(3, seed=0)
    assert probes.draw(CPU)[0] == 1


def test_an_iterable_without_a_batch_is_refused() -> None:
    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match=r"probe must be .* got one with no batch"):
        ProbeBatches(Empty(), seed=0).draw(CPU)


def test_records_and_callback() -> None:
    model = network()
    seen: list[DirectionalRecord] = []
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, on_update=seen.append)
    train(model, opt, 9)
    assert seen == opt.history
    assert [record.step for record in seen] == [0, 2, 4, 6, 8]
    last = seen[-1]
    measured = seen[-2].lr[0]
    assert last.ratio[0] == pytest.approx(measured * last.curvature[0] / last.slope[0])
    assert opt.effective_lrs == last.lr
    assert opt.param_groups[0]["lr_scale"] == pytest.approx(
        seen[-2].lr[0] / 0.1
    )  # what step 8 was taken with
    assert opt.skipped_readings == 0
    assert "directional" in repr(opt).lower()


def test_every_probe_sees_the_same_network_whatever_the_mode() -> None:
    """In inference mode too, in which nothing can be differentiated."""
    trained = []
    for mode in (nullcontext, torch.no_grad, torch.inference_mode):
        model = network()
        opt = directional(torch.optim.Adam(model.parameters()), model)
        for step in range(4):
            x, y = batch(step)
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            with mode():
                opt.step()
        assert len(opt.history) == 2
        trained.append(weights(model))
    assert_same(trained[1], trained[0])
    assert_same(trained[2], trained[0])


def test_after_ninety_six_steps_every_eighth_iterate_counts_for_eight() -> None:
    """The weights still add up to one, and a line of iterates has nearly the mean that all of them have."""
    p = torch.zeros(1, dtype=torch.float64)
    average, all_of_them = IterateAverage([p]), 0.0
    by_hand = 0.0
    for t in range(1, 201):
        p.fill_(float(t))
        average.take()
        all_of_them += 5 / (t + 5) * (t - all_of_them)
        if t <= 96:
            by_hand = all_of_them
        elif t % 8 == 0:
            stays = math.prod(i / (i + 5) for i in range(t - 7, t + 1))
            by_hand = stays * by_hand + (1 - stays) * t
        assert average.values[0].item() == pytest.approx(by_hand, rel=1e-12)
    assert all_of_them < by_hand < all_of_them + 3.6  # newer by half of seven steps
    p.fill_(1.0)
    average.values[0].fill_(1.0)
    for _ in range(50):
        average.take()
    assert average.values[0].item() == pytest.approx(1.0, rel=1e-12)
