"""The guard: a training that dies comes back to where it was well, and none ends above its start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv.optim.directional.guard import Guard
from metacurv.optim.directional.judge import Judge
from metacurv.optim.directional.snapshot import Training
from metacurv.processes.ranks import Ranks
from tests.helpers import assert_same, own, sampled
from tests.optim.directional.directional_training import Point, directional, network, train
from tests.optim.directional.problems import BASES, Run, network_of, normal
from tests.optim.drop_in.reciprocal_training import weights


class Told:
    """Stands in for the judge."""

    has_few = False

    def __init__(self, first: float, *losses: float) -> None:
        self.first, self.losses = first, list(losses)

    def first_loss(self, *, quick: bool) -> float:
        return self.first

    def loss(self, *, of_average: bool, quick: bool) -> float:
        return self.losses.pop(0)


def guarded(*losses: float, keeps_best: bool = False) -> tuple[Point, Guard]:
    point = Point(0.0)
    training = Training(torch.optim.SGD(point.parameters(), lr=1.0), point, None)
    return point, Guard(training, Told(*losses), keeps_best=keeps_best)  # type: ignore[arg-type]


def test_a_quarter_of_the_progress_may_be_lost() -> None:
    """From 10 down to 2 that is 2 more: 4."""
    point, guard = guarded(10.0, 2.0, 3.99, 4.01)
    for place, expected in ((1.0, (2.0, False)), (2.0, (3.99, False)), (3.0, (4.01, True))):
        with torch.no_grad():
            point.w.fill_(place)
        assert guard.look(of_average=False) == expected
    assert point.w.item() == 1.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_death(loss: float) -> None:
    point, guard = guarded(10.0, loss)
    with torch.no_grad():
        point.w.fill_(math.nan)
    assert guard.look(of_average=False)[1]
    assert point.w.item() == 0.0


def test_noise_before_there_is_progress_is_no_death() -> None:
    """A fiftieth of the first loss may be lost in any case: 0.2, from the least that was kept on."""
    _, guard = guarded(10.0, 10.19, 9.9, 10.09, 10.11)
    assert [guard.look(of_average=False)[1] for _ in range(4)] == [False, False, False, True]


def test_every_fifth_look_the_place_is_a_recent_one() -> None:
    """So a loss that creeps up is no death; unless the best is to be kept."""
    losses = (10.0, 2.0, 3.0, 3.0, 3.0, 3.0, 4.5)
    for keeps_best, back in ((False, False), (True, True)):
        _, guard = guarded(*losses, keeps_best=keeps_best)
        looks = [guard.look(of_average=False)[1] for _ in range(6)]
        assert looks == [False] * 5 + [back]


def test_at_the_end_no_worse_than_the_start() -> None:
    point, guard = guarded(10.0, 2.0, 10.5)
    with torch.no_grad():
        point.w.fill_(1.0)
        guard.look(of_average=False)
        point.w.fill_(2.0)
    assert guard.end()
    assert point.w.item() == 1.0
    _, guard = guarded(10.0, 2.0, 9.9)
    guard.look(of_average=False)
    assert not guard.end()
    _, guard = guarded(10.0, 2.0, 2.1, keeps_best=True)
    guard.look(of_average=False)
    assert guard.end()


@pytest.mark.parametrize(
    ("losses", "goes_to"),
    [
        ([[9.0, 9.0], [10.0, 10.0], [11.0, 11.0]], 2.0),
        ([[9.0, 9.0], [8.0, 8.0], [11.0, 11.0]], 1.0),
        ([[9.0, 9.0], [10.0, 10.0], [8.0, 8.0]], 0.0),
        ([[9.0, 11.0], [10.0, 11.0], [10.5, 11.0]], 0.0),  # 0.25 better, with an error of as much
        ([[math.nan, 9.0], [math.nan, 9.0], [11.0, 11.0]], 0.0),
    ],
    ids=["stays", "the kept place", "the first place", "nothing clear", "nan"],
)
def test_where_few_examples_cannot_tell_the_end_is_compared_on_more(
    losses: list[list[float]], goes_to: float
) -> None:
    """At 0 it began, 1 is the kept place, 2 the end; the losses are those of the end, the kept place and the first."""

    class Few(Told):
        has_few = True

        def has_learned_much(self) -> bool:
            return much

        def on_more(self) -> Any:
            return lambda: losses.pop(0)

    much, point = True, Point(0.0)
    training = Training(torch.optim.SGD(point.parameters(), lr=1.0), point, None)
    guard = Guard(training, Few(10.0, 9.8, 9.9), keeps_best=False)  # type: ignore[arg-type]
    with torch.no_grad():
        point.w.fill_(1.0)
        guard.look(of_average=False)
        point.w.fill_(2.0)
    resumed = Guard(training, Few(10.0, 9.9), keeps_best=False)  # type: ignore[arg-type]
    Guard.check(training, guard.state(), "guard")
    resumed.load(guard.state())
    assert not guard.end()
    much = False
    assert resumed.end() is (goes_to != 2.0)
    assert point.w.item() == goes_to


def test_death_that_was_seen_elsewhere_takes_back_too() -> None:
    """The average may be well while the iterate is not."""
    point, guard = guarded(10.0, 2.0, 1.0)
    guard.look(of_average=False)
    with torch.no_grad():
        point.w.fill_(math.nan)
    assert guard.look(of_average=False, has_died=True) == (1.0, True)
    assert point.w.item() == 0.0


def test_an_iterate_that_dies_while_its_rate_settles_goes_back_at_once() -> None:
    """Every eighth iterate counts for the average, which is still well then."""
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=800, race=False)
    train(model, opt, 150)
    looks = [r.step for r in opt.history if r.event == "settling"]
    next_look = 2 * looks[-1] - looks[-2]
    train(model, opt, next_look - 1 - 150, start=150)
    with torch.no_grad():
        model[3].bias.fill_(math.nan)
    opt._control._training.average.take = lambda: None  # type: ignore[method-assign, union-attr]
    train(model, opt, 1, start=next_look - 1)
    assert [record.event for record in opt.history[-2:]] == ["settling", "went back"]
    assert model[3].bias.isfinite().all()


def test_much_is_a_tenth_and_two_standard_errors() -> None:
    """Gains of 1 and 3 have a mean of 2 and a standard error of 1; a tenth of 10 is 1."""
    now = [10.0, 10.0]

    class Says:
        ranks = Ranks(None)
        device = torch.device("cpu")

        def __init__(self, number: int) -> None:
            self.number = number

        def value(self, *, batch_statistics: bool) -> Tensor:
            return torch.tensor(now[self.number % 2], dtype=torch.float64)

    numbers = iter(range(1000))
    point = Point(0.0)
    training = Training(torch.optim.SGD(point.parameters(), lr=1.0), point, None)

    def draw() -> Any:
        return Says(next(numbers)), (torch.zeros(300),)

    judge = Judge(training, draw, 100)
    judge._batches, judge._losses_before = judge._batches[:2], judge._losses_before[:2]
    for seen, much in (([9.0, 7.0], False), ([8.9, 7.0], True), ([9.1, 8.9], False)):
        now[:] = seen
        assert judge.has_learned_much() is much
    assert not judge.has_few
    assert judge.on_more()() == [9.1, 8.9]
    assert next(numbers) == 8 + 2


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("broken", [0, 5])
def test_a_broken_example_judges_nothing(broken: int, race: bool) -> None:
    """One of twelve probe batches has a nan in it, and the loop takes no step on it."""
    x, y = normal(0, 192, 4), normal(1, 192, 1)
    y = x.sum(1, keepdim=True) + 0.1 * y
    run = Run(network_of(0, 4, 16, 1), BASES["Adam"], x, y, 200, size=16, options={"race": race})
    whole = run.opt._control._probes._source._batches  # type: ignore[attr-defined]
    spoilt = [(a.clone(), b) for a, b in whole]
    spoilt[broken][0][3, 2] = math.nan
    run.opt = Run(run.model, BASES["Adam"], x, y, 200, options={"race": race, "probe": spoilt}).opt
    run.go()
    assert not run.events("went back")
    assert run.loss() < 0.2 * run.first
    assert any(math.isnan(loss) for loss in run.opt._control._judge.first)  # type: ignore[union-attr]
    run.opt.load_state_dict(run.opt.state_dict())


@pytest.mark.parametrize("by", [math.nan, 1e3])
@pytest.mark.parametrize(
    "name", sampled(["SGD", "SGD-momentum", "Adam", "Adagrad", "Adafactor"], 2)
)
def test_parameters_that_are_destroyed_come_back(name: str, by: float) -> None:
    """In mid-hold. The rate is halved once, the training goes on, and nothing is halved after it."""
    model = network(norm=True)
    opt = directional(BASES[name](model.parameters()), model, horizon=400)
    train(model, opt, 200)
    assert own(opt.state_dict())["race"] is None
    before, events = opt.effective_lrs[0], len(opt.history)
    kept = [p.clone() for p in opt._control._guard._kept.parameters]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(by)
        model[1].running_mean.fill_(math.nan)
    # A factor of 1e3 may be harmless to the average in the first looks.
    steps = 20 if math.isnan(by) else 40
    train(model, opt, steps, start=200)
    news = [record.event for record in opt.history[events:]]
    assert "went back" in news[:2]
    if math.isnan(by):
        assert news == ["went back"]
        assert_same(weights(model), kept)
        assert opt.effective_lrs[0] == pytest.approx(before / 2)
        assert model[1].running_mean.isfinite().all()
    first = opt._control._judge.first_loss(quick=False)
    train(model, opt, 200 - steps, start=200 + steps)
    backs = [r for r in opt.history[events:] if r.event == "went back"]
    assert len(backs) <= 2
    assert opt._control._judge.loss(of_average=False, quick=False) < 0.5 * first


class Eager(Optimizer):
    """Heavy-ball descent whose state is made when it is constructed, and which cannot step without."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * self.state[p]["momentum"].mul_(0.9).add_(p.grad)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_base_that_makes_its_state_beforehand_begins_anew(resumed: bool) -> None:
    model = network()
    opt = directional(Eager(model.parameters()), model, horizon=300)
    train(model, opt, 150)
    if resumed:
        state = opt.state_dict()
        opt = directional(Eager(model.parameters()), model, horizon=300)
        opt.load_state_dict(state)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    momenta: list[Tensor] = []

    def look(record: Any) -> None:
        if record.event == "went back":
            momenta.extend(s["momentum"].clone() for s in opt.optimizer.state.values())

    opt.on_update = look
    train(model, opt, 15, start=150)
    assert len(momenta) == 4
    assert not any(momentum.any() for momentum in momenta)
    train(model, opt, 135, start=165)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_place_holds_parameters_that_came_later() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model[0].parameters()), model, horizon=300)
    train(model, opt, 150)
    opt.add_param_group({"params": list(model[3].parameters())})
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
        model[3].weight.fill_(math.nan)
    train(model, opt, 15, start=150)
    assert any(record.event == "went back" for record in opt.history)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("seed", sampled(range(8), 4))
def test_full_batches_without_momentum_do_not_run_away(seed: int) -> None:
    """Without noise the step leaves the sharp directions, and the rate once climbed until one of them blew up."""
    run = Run(
        network_of(seed, 4, 8, 1), BASES["SGD"], normal(seed, 32, 4), normal(100 + seed, 32, 1), 300
    ).go()
    assert run.loss() < 0.6 * run.first
    assert len(run.events("went back")) <= 3
    assert all(math.isfinite(lr) and lr > 1e-3 for lr in run.rates)


@pytest.mark.parametrize(
    ("size", "horizon", "quick", "whole"),
    [(1, 100, 8, 8), (1, 2000, 20, 20), (16, 300, 4, 8), (32, 10_000, 2, 16), (64, 300, 1, 8)],
)
def test_how_much_is_looked_at(size: int, horizon: int, quick: int, whole: int) -> None:
    """64 examples, or what there is; and 512 to judge a race, in eight batches or more, up to a hundredth of the horizon."""
    drawn: list[float] = []

    class Says:
        """The loss of the nth batch is n."""

        ranks = Ranks(None)
        device = torch.device("cpu")

        def __init__(self, number: int) -> None:
            self.number = number

        def value(self, *, batch_statistics: bool) -> Tensor:
            drawn.append(self.number)
            return torch.tensor(float(self.number), dtype=torch.float64)

    numbers = iter(range(1000))
    point = Point(0.0)
    training = Training(torch.optim.SGD(point.parameters(), lr=1.0), point, None)
    judge = Judge(training, lambda: (Says(next(numbers)), (torch.zeros(size),)), horizon)  # type: ignore[arg-type,return-value]
    assert judge.verdict().losses == list(range(whole))
    assert judge.loss(of_average=False, quick=False) == pytest.approx((whole - 1) / 2)
    drawn.clear()
    judge.loss(of_average=True, quick=True)  # without an average that of the iterate
    assert drawn == list(range(quick))


@pytest.mark.parametrize("size", [1, 4])
def test_one_odd_example_is_no_death(size: int) -> None:
    """Batches of one example: a look at one of them alone took the training back again and again."""
    for seed in range(3):
        x = normal(seed, 128, 5) * torch.tensor([100.0, 10.0, 1.0, 0.1, 0.01])
        y = x @ normal(50 + seed, 5, 1) + 0.1 * normal(90 + seed, 128, 1)
        run = Run(nn.Linear(5, 1), BASES["SGD"], x, y, 400, size=size).go()
        assert run.loss() < 0.3 * run.first
        assert len(run.events("went back")) <= 6


def test_a_finite_first_loss_of_zero_lets_go() -> None:
    """Nothing to gain: whatever the rate, no look finds a death where nothing moves."""
    x = normal(0, 16, 2)
    model = nn.Linear(2, 1)
    y: Tensor = model(x).detach()
    run = Run(model, BASES["SGD"], x, y, 200).go()
    assert run.loss() < 1e-9
