"""The race: who races, for how long, who wins, and that the winner's training is its own; by hand, and on a stub training."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest
import torch

from metacurv import MetaCurvatureLR
from metacurv.optim.directional import judge, phases, race
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.optim.directional.judge import Verdict
from metacurv.optim.directional.race import (
    Candidate,
    Outcome,
    Race,
    close_rate,
    is_worse,
    quiet_rate,
)
from metacurv.optim.directional.snapshot import Snapshot, Training
from tests.optim.directional.directional_training import Point, bowl, descend, directional, pairs

Losses = Callable[[int], Sequence[float]]


@pytest.fixture(autouse=True)
def losses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets losses alone decide about the rate, as the hand-worked numbers do; noise has tests of its own."""
    monkeypatch.setattr(race, "quiet_rate", lambda _, __, *, otherwise: otherwise)


@pytest.fixture(autouse=True)
def _constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worked out by hand holds for these, whatever they are tuned to."""
    values = {
        "_WIDE": 2,
        "_TURN": 5,
        "_CLOSE": 0.1,
        "_NOISE": 0.02,
        "_BEHIND": 0.15,
        "_MOST": 9,
    }
    for name, value in values.items():
        monkeypatch.setattr(race, name, value)
    monkeypatch.setattr(judge, "_ERRORS", 2.0)
    for module in (race, phases):
        monkeypatch.setattr(module, "FACTOR", 3.0)


class Stub:
    """A race whose training counts: a step of exponent e adds 1 to entry e of the parameter, so it tells who made it."""

    HALF = 12

    def __init__(
        self, losses: Losses, *, first: float = 10.0, dying: Sequence[int] = (), **options: Any
    ) -> None:
        self.point = Point(*[0.0] * (2 * self.HALF + 1))
        base = torch.optim.SGD(self.point.parameters(), lr=1.0)
        self.average = IterateAverage(list(self.point.parameters()))
        training = Training(base, self.point, self.average)
        self.judged: list[int] = []

        def judge() -> Verdict:
            self.judged.append(self.race.exponent)
            return Verdict(list(losses(self.race.exponent)), 0.0)

        settings: dict[str, Any] = {"lengths": (10, 20), "most_steps": 1000, **options}
        self.race = Race(
            training, judge, lambda: self.race.exponent not in dying, first=first, **settings
        )
        self.sequence: list[int] = []

    def step(self) -> Outcome | None:
        exponent = self.race.exponent
        self.sequence.append(exponent)
        with torch.no_grad():
            self.point.w[exponent + self.HALF] += 1
        self.average.take()
        return self.race.stepped()

    def run(self) -> Outcome:
        for _ in range(1000):
            outcome = self.step()
            if outcome is not None:
                return outcome
        raise AssertionError("the race goes on for ever")

    @property
    def turns(self) -> list[tuple[int, int]]:
        """(exponent, steps in a row)."""
        return [(e, len(list(steps))) for e, steps in groupby(self.sequence)]

    @property
    def made_by(self) -> dict[int, int]:
        """Steps in the live training, by exponent."""
        return {i - self.HALF: int(n) for i, n in enumerate(self.point.w.tolist()) if n}

    @property
    def exponents(self) -> list[int]:
        return sorted(c.exponent for c in self.race.candidates)


def table(**means: float) -> Losses:
    """Losses without noise: m1=2.0 is for exponent -1, p0=1.0 for 0; others are dead."""

    def losses(exponent: int) -> list[float]:
        mean = means.get(f"{'m' if exponent < 0 else 'p'}{abs(exponent)}", math.inf)
        return [mean] * 4

    return losses


def candidate(exponent: int, *losses: float) -> Candidate:
    return Candidate(exponent, losses=list(losses))


# The two judgements.


def test_worse_is_more_than_two_standard_errors_of_the_paired_difference() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, twice it is 1.15.
    assert is_worse(candidate(0, 11, 7, 3), candidate(1, 10, 5, 0))
    assert not is_worse(candidate(1, 10, 5, 0), candidate(0, 11, 7, 3))
    # Differences 0, 1, 5: mean 2, standard error sqrt(7 / 3) = 1.53, twice it is 3.06.
    assert not is_worse(candidate(0, 10, 6, 5), candidate(1, 10, 5, 0))
    # Just above and just below: of 1 and 3.4 the mean is 2.2 and the error 1.2; of 1 and 2.8 they are 1.9 and 0.9.
    assert not is_worse(candidate(0, 1, 3.4), candidate(1, 0, 0))
    assert is_worse(candidate(0, 1, 2.8), candidate(1, 0, 0))
    assert is_worse(candidate(0, 1.1), candidate(1, 1.0))  # one batch has no error
    assert not is_worse(candidate(0, 1.0, 1.0), candidate(1, 1.0, 1.0))


def test_a_dead_one_is_worse_than_any_that_lives() -> None:
    dead, alive = candidate(0, math.nan, 1.0), candidate(1, 1e30, 1e30)
    assert dead.is_dead
    assert dead.loss == math.inf
    assert is_worse(dead, alive)
    assert not is_worse(alive, dead)
    assert not is_worse(dead, dead)


def test_the_rate_is_the_mean_of_those_that_are_close() -> None:
    # From 11 to 1: a lag of 0.1 x 10 = 1 has no weight. Weights 0.5, 1, 0.25: (-0.5 + 0.25) / 1.75.
    three = [candidate(-1, 1.5), candidate(0, 1.0), candidate(1, 1.75)]
    assert close_rate(three, 11.0) == pytest.approx(-0.25 / 1.75, rel=1e-12)
    assert close_rate([candidate(-1, 2.0), candidate(0, 1.0)], 11.0) == 0
    assert close_rate([candidate(2, 1.0), candidate(3, 1.0)], 11.0) == 2.5
    assert close_rate([candidate(1, 1.0), candidate(2, math.nan)], 11.0) == 1
    # No progress: the least loss alone counts; where all are dead the smallest rate.
    assert close_rate([candidate(0, 11.5), candidate(1, 11.5001)], 11.0) == 0
    assert close_rate([candidate(1, math.inf), candidate(0, math.nan)], 11.0) == 0


def with_noise(exponent: int, noise: float, loss: float = 1.0) -> Candidate:
    return Candidate(exponent, losses=[loss], noise=noise)


def test_the_rate_at_which_noise_begins_to_cost() -> None:
    # The average's loss is the loss less half the noise; noise may cost 0.02 of its progress from 11.
    quiet, loud = with_noise(0, 0.0), with_noise(1, 0.4)  # 0 and 0.4 / (11 - 0.8) of the progress
    assert quiet_rate([loud, quiet], 11.0, otherwise=9) == pytest.approx(
        0.02 / (0.4 / 10.2), rel=1e-12
    )
    assert (
        quiet_rate([with_noise(-1, 0.3), quiet, loud], 11.0, otherwise=9) == -1
    )  # all too noisy from there on
    assert (
        quiet_rate([with_noise(0, -0.1), with_noise(1, 0.1)], 11.0, otherwise=9) == 1
    )  # all quiet
    assert quiet_rate([quiet], 11.0, otherwise=9) == 9
    assert quiet_rate([quiet, candidate(1, math.inf)], 11.0, otherwise=9) == 9
    assert (
        quiet_rate([quiet, with_noise(1, 0.1, loss=12.0)], 11.0, otherwise=9) == 0
    )  # no progress: too large


def test_the_rate_is_half_way_between_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "quiet_rate", lambda _, __, *, otherwise: otherwise + 1)
    outcome = Stub(table(m1=5.0, p0=1.0, p1=5.0)).run()
    assert outcome == Outcome(0, pytest.approx(0.5 * math.log(3), rel=1e-12))


# Turns and rounds.


def test_turns_of_five_and_a_winner_of_two_rounds() -> None:
    stub = Stub(table(m1=1.05, p0=1.0, p1=1.1))
    outcome = stub.run()
    assert stub.turns == [(-1, 5), (0, 5), (1, 5)] * 4
    assert stub.judged == [-1, 0, 1, -1, 0, 1]
    # The progress is 9, so a lag of 0.9 has no weight: 17/18, 1 and 16/18.
    assert outcome.exponent == 0
    assert outcome.shift == pytest.approx(-math.log(3) / 51, rel=1e-9)
    assert stub.made_by == {0: 20}
    assert stub.average.state()["taken"] == 20


def test_one_that_dies_in_its_turn_is_out_at_once() -> None:
    stub = Stub(table(m1=1.05, p0=1.0, p1=0.5), dying=(1,))
    outcome = stub.run()
    assert stub.turns == [(-1, 5), (0, 5), (1, 1), *[(-1, 5), (0, 5)] * 3]
    assert 1 not in stub.judged
    assert outcome.exponent == 0
    assert stub.made_by == {0: 20}


def test_a_loop_that_takes_no_step_on_a_bad_loss_goes_on() -> None:
    model, steps = Point(1.0), 0
    loss = bowl((1.0,))

    def breaks_far_away(w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.where(w.abs() > 1.2, math.inf, 1.0) * loss(w, target)

    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=1.0),
        model=model, loss_fn=breaks_far_away, probe=pairs([1.0], [-1.0]), horizon=400,
    )  # fmt: skip
    for i in range(1000):
        if steps == 400:
            break
        opt.zero_grad()
        target = torch.tensor([1.0 if i % 2 else -1.0], dtype=torch.float64)
        value = breaks_far_away(model.w, target)
        if not math.isfinite(value.item()):
            continue
        value.backward()
        opt.step()
        steps += 1
    assert steps == 400


def test_a_round_that_is_no_multiple_of_a_turn() -> None:
    stub = Stub(table(m1=1.05, p0=1.0, p1=1.1), lengths=(3, 13))
    stub.run()
    assert stub.turns[:3] == [(-1, 3), (0, 3), (1, 3)]
    assert stub.sequence.count(-1) == stub.sequence.count(0) == stub.sequence.count(1) == 13
    assert stub.made_by == {0: 13}


def test_larger_rates_join_while_the_largest_is_not_worse() -> None:
    stub = Stub(table(m1=4.0, p0=3.0, p1=2.0, p2=1.0, p3=0.0, p4=1.0, p5=0.0), first=10.0)
    outcome = stub.run()
    assert stub.judged == [-1, 0, 1, 2, 3, 4, 2, 3, 4]
    assert stub.turns[6:9] == [(2, 10), (3, 10), (4, 10)]  # each that joins is alone
    assert outcome == Outcome(3, pytest.approx(3 * math.log(3)))  # a lag of 1 has no weight
    assert stub.made_by == {3: 20}


def test_smaller_rates_join_while_the_smallest_is_best() -> None:
    stub = Stub(table(m4=1.6, m3=0.5, m2=1.0, m1=2.0, p0=3.0, p1=4.0))
    outcome = stub.run()
    assert stub.judged == [-1, 0, 1, -2, -3, -4, -2, -3, -4]
    # Progress 9.5: -2 lags by 0.5 of 0.95, -4 by 1.1.
    weight = 1 - 0.5 / 0.95
    assert outcome.shift == pytest.approx((-3 - 2 * weight) / (1 + weight) * math.log(3))
    assert stub.made_by == {-3: 20}


def test_where_all_die_smaller_rates_join() -> None:
    stub = Stub(table(m4=9.0, m3=8.0))
    outcome = stub.run()
    assert stub.judged[:5] == [-1, 0, 1, -2, -3]
    assert outcome.exponent == -3
    assert stub.made_by == {-3: 10}  # -4 is behind by half of the progress


def test_where_all_die_for_ever_the_smallest_is_left() -> None:
    stub = Stub(table())
    outcome = stub.run()
    assert outcome.exponent == min(stub.sequence) == -7  # nine have raced
    assert math.isfinite(outcome.shift)


def test_where_all_die_in_their_turns_nothing_of_them_is_left() -> None:
    stub = Stub(table(), dying=range(-12, 13))
    outcome = stub.run()
    assert stub.sequence == [-1, 0, 1, -2, -3, -4, -5, -6, -7]  # a step each
    assert outcome.shift == pytest.approx(-8 * math.log(3))
    assert stub.made_by == {}
    assert stub.average.state()["taken"] == 0


@pytest.mark.parametrize(("wide", "order"), [(False, [-1, 0, 1]), (True, [-1, 1, 0])])
def test_where_all_die_in_the_second_round_it_ends_at_the_last_place_that_lived(
    wide: bool, order: list[int]
) -> None:
    """Each has taken ten steps; after a wide round only the middle one, and the race's beginning is still there."""
    dying: list[int] = []
    stub = Stub(table(m1=1.05, m2=1.2, p0=1.0, p1=1.1, p2=1.2), dying=dying, wide=wide)
    for _ in range(30):
        assert stub.step() is None
    dying.extend(range(-2, 3))
    outcome = stub.run()
    assert stub.sequence[30:] == order
    assert outcome.exponent == -1
    assert outcome.shift == pytest.approx(-2 * math.log(3))
    assert stub.made_by == ({} if wide else {1: 10})


def test_the_beginning_is_kept_until_nobody_needs_it() -> None:
    """After a wide round -1 dies in its first turn, then 1 in its first, then 0, which has been there before."""
    dying: list[int] = []
    stub = Stub(table(m2=9.0, p0=1.0, p2=9.0), dying=dying, wide=True)
    for _ in range(35):
        assert stub.step() is None
    dying.extend((1, -1, 0))
    assert stub.run().shift == pytest.approx(-2 * math.log(3))
    assert stub.sequence[30:] == [-1] * 5 + [1, -1, 0]
    assert stub.made_by == {0: 10}


def test_no_more_join_after_the_most_steps() -> None:
    stub = Stub(lambda e: [-float(e)] * 4, most_steps=45)
    outcome = stub.run()
    assert max(stub.sequence) == outcome.exponent == 3  # 30 steps, 40 and 50


def test_nine_at_most() -> None:
    stub = Stub(lambda e: [-float(e)] * 4)
    stub.run()
    assert sorted(set(stub.sequence)) == list(range(-1, 8))


@pytest.mark.parametrize("highest", [0, 1, 2])
def test_no_rate_above_the_highest(highest: int) -> None:
    stub = Stub(lambda e: [-float(e)] * 4, highest=highest)
    assert stub.run().exponent == highest
    assert max(stub.sequence) == highest
    assert -1 in stub.sequence


def test_two_begin_and_the_third_joins_where_the_largest_is_well() -> None:
    stub = Stub(table(m1=1.0, p0=2.0, m2=3.0), candidates=2)
    assert stub.exponents == [-1, 0]
    outcome = stub.run()
    assert outcome.exponent == -1
    assert set(stub.sequence) == {-2, -1, 0}
    grows = Stub(table(m1=2.0, p0=1.0, p1=3.0), candidates=2)
    grows.run()
    assert set(grows.sequence) == {-1, 0, 1}


# Who goes on to the second round.


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The copies of the training that are in memory."""
    alive: weakref.WeakSet[Snapshot] = weakref.WeakSet()

    class Counted(Snapshot):
        def __init__(self, training: Training) -> None:
            super().__init__(training)
            alive.add(self)

    monkeypatch.setattr(race, "Snapshot", Counted)
    return alive


def test_it_ends_early_where_all_others_are_clearly_behind() -> None:
    # Progress 9: 0.15 of it is 1.35.
    stub = Stub(table(m1=2.4, p0=1.0, p1=math.inf))
    outcome = stub.run()
    assert outcome == Outcome(0, 0.0)
    assert stub.turns == [(-1, 5), (0, 5), (1, 5)] * 2
    assert stub.made_by == {0: 10}
    stays = Stub(table(m1=2.3, p0=1.0, p1=math.inf))
    stays.run()
    assert stays.turns[6:] == [(-1, 5), (0, 5)] * 2


def test_behind_but_not_significantly_goes_on() -> None:
    def losses(exponent: int) -> list[float]:
        return {-1: [8.0, 0.0, 8.0, 0.0], 0: [1.0, 1.0, 1.0, 1.0]}.get(exponent, [math.nan] * 4)

    stub = Stub(losses)
    stub.run()
    assert stub.sequence.count(-1) == 20


def test_of_a_dead_candidate_nothing_is_left(copies: Any) -> None:
    stub = Stub(table(m1=1.1, p0=1.0))
    for _ in range(30):
        assert stub.step() is None
    assert stub.exponents == [-1, 0]
    assert len(copies) == 2  # one for each, and the race's beginning is gone too


def test_places_that_cannot_win_are_freed_and_all_of_them_at_the_end(copies: Any) -> None:
    stub = Stub(lambda e: [-float(e)] * 4)
    most = 0
    while stub.step() is None:
        most = max(most, len(copies))
    assert len(set(stub.sequence)) == 9
    assert most <= 5  # the beginning, the best, its neighbours, and the one that is running
    del stub.race
    assert len(copies) == 0


def noisy(mean: float) -> list[float]:
    """Not worse than anything within 2."""
    return [mean + 3, mean - 3, mean + 3, mean - 3]


@pytest.mark.parametrize(("mean", "taken"), [(10.1, True), (10.3, False)])
def test_a_large_rate_that_has_led_upwards_is_not_taken_for_its_size(
    mean: float, taken: bool
) -> None:
    """Nothing is worse than the smallest rate by more than noise; 2 % of the first loss, 10, may be lost."""
    stub = Stub(lambda e: [10.0] * 4 if e < 0 else noisy(mean), wide=True, highest=4)
    stub.run()
    neighbours = {3, 4} if taken else {-3, -1}  # of the largest, or of the least loss
    assert set(stub.sequence) == {-2, 0, 2} | neighbours


def test_a_new_best_finds_its_neighbour_where_it_left_it() -> None:
    """0 leads, 1 and 2 are not worse for noise, and 3 leads by far: 2, which goes on beside it, was no neighbour of 0."""

    def losses(exponent: int) -> list[float]:
        return {
            -1: [5.0] * 4,
            0: [1.0] * 4,
            1: noisy(1.2),
            2: noisy(1.1),
            3: [0.5] * 4,
        }.get(exponent, [math.inf] * 4)

    stub = Stub(losses)
    outcome = stub.run()
    assert outcome.exponent == 3
    assert stub.sequence.count(2) == stub.sequence.count(3) == 20
    assert stub.made_by == {3: 20}


# The wide first round.


def test_a_wide_round_and_the_neighbours_of_its_best() -> None:
    losses = table(m2=5.0, p0=4.0, p2=2.0, p4=1.0, p3=0.9, p5=3.0, p6=6.0)
    stub = Stub(losses, wide=True)
    outcome = stub.run()
    assert stub.judged == [-2, 0, 2, 4, 6, 3, 4, 5]
    # 4 has ten steps behind it; 3 and 5 begin where the race began.
    assert [stub.sequence.count(e) for e in (3, 4, 5)] == [20, 20, 20]
    assert outcome.exponent == 3
    assert stub.made_by == {3: 20}


def test_of_those_that_are_not_worse_a_wide_round_takes_the_largest() -> None:
    """Where nothing has moved, losses say nothing for the smaller rate; it goes on where it was."""

    def losses(exponent: int) -> list[float]:
        wide = {-2: [2.0] * 4, 0: [1.0] * 4, 2: noisy(1.1), 4: noisy(1.2)}
        return {**wide, 3: [0.5] * 4, 5: [9.0] * 4}.get(exponent, [math.inf] * 4)

    stub = Stub(losses, wide=True)
    for _ in range(50):
        assert stub.step() is None
    assert stub.exponents == [3, 4, 5]
    outcome = stub.run()
    assert outcome.exponent == 3
    assert stub.made_by == {3: 20}


def test_the_largest_of_a_wide_round_has_its_own_steps_behind_it() -> None:
    def losses(exponent: int) -> list[float]:
        wide = {-2: [2.0] * 4, 0: [1.0] * 4, 2: noisy(1.1), 4: noisy(1.2)}
        last = {4: [0.1] * 4} if stub.race.state()["round"] else {}
        return {**wide, 3: [9.0] * 4, 5: [9.0] * 4, **last}.get(exponent, [math.inf] * 4)

    stub = Stub(losses, wide=True)
    assert stub.run().exponent == 4
    assert stub.made_by == {4: 20}


# An end before the end.


def test_settled_before_anything_is_known_the_live_one_goes_on() -> None:
    stub = Stub(table(m1=1.1, p0=1.0, p1=1.2))
    for _ in range(7):
        stub.step()
    assert stub.race.settle() == Outcome(0, 0.0)
    assert stub.made_by == {0: 2}


def test_settled_in_the_second_round_the_best_so_far_wins() -> None:
    stub = Stub(table(m1=1.9, p0=1.0, p1=1.9))
    for _ in range(43):
        stub.step()
    assert stub.race.exponent == 1
    outcome = stub.race.settle()
    assert outcome.exponent == 0
    assert outcome.shift == 0
    assert stub.made_by == {0: 15}


def test_settled_while_one_is_dead_or_has_just_joined() -> None:
    stub = Stub(table(m1=2.0, p0=1.5, p1=1.0, p2=math.nan))
    for _ in range(33):
        stub.step()
    assert stub.race.exponent == 2
    assert stub.race.settle().exponent == 1
    assert stub.made_by == {1: 10}


# A state of its own.


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        (table(m1=1.05, p0=1.0, p1=1.1), {}),
        (lambda e: [-float(e)] * 4, {"most_steps": 45}),
        (lambda e: [-float(e)] * 4, {"highest": 1}),
        (table(m4=1.6, m3=0.5, m2=1.0, m1=2.0, p0=3.0, p1=4.0), {"lengths": (3, 13)}),
        (table(m2=5.0, p0=4.0, p2=2.0, p4=1.0, p3=0.9, p5=3.0), {"wide": True, "candidates": 2}),
    ],
)
def test_a_state_of_any_step_goes_on_alike(losses: Losses, options: dict[str, Any]) -> None:
    """From each of its steps the race is taken up by another stub, which then ends as the first one does."""
    stub, states = Stub(losses, **options), []
    outcome = None
    while outcome is None:
        live = stub.point.w.detach().clone(), stub.average.copied()
        states.append((copy.deepcopy(stub.race.state()), live))
        outcome = stub.step()
    for step, (state, (w, average)) in enumerate(states):
        other = Stub(losses, **options)
        for _ in range(step % 4):
            other.step()  # whatever it did before
        with torch.no_grad():
            other.point.w.copy_(w)
        other.average.load(average)
        training, judge, lives = other.race._training, other.race._judge, other.race._lives
        other.race = Race.loaded(training, judge, lives, state, "race")
        other.sequence.clear()
        assert other.run() == outcome
        assert other.sequence == stub.sequence[step:]
        assert other.made_by == stub.made_by
        torch.testing.assert_close(other.average.values, stub.average.values, rtol=0, atol=0)


# With the optimizer.


def descended(w: Sequence[float], stiffness: Sequence[float], rate: float, steps: int) -> Any:
    """Gradient descent on a bowl in closed form, and the loss there."""
    w = [x * (1 - rate * h) ** steps for x, h in zip(w, stiffness, strict=True)]
    return w, 0.5 * sum(h * x * x for x, h in zip(w, stiffness, strict=True))


@pytest.mark.parametrize("stiffness", [(1.0, 0.01), (100.0, 1.0), (3.0, 2.0), (1e4, 1e2)])
def test_a_race_of_gradient_descents_on_a_bowl(stiffness: tuple[float, float]) -> None:
    """Every candidate's loss, the winner's place and the rate in the end, from the closed form of (1 - lr h)^t."""
    point, loss, target = Point(1.0, 1.0), bowl(stiffness), torch.zeros(2, dtype=torch.float64)
    opt = directional(
        torch.optim.SGD(point.parameters(), lr=1.0), point,
        loss_fn=loss, probe=pairs((0.0, 0.0)), horizon=600, average=False,
    )  # fmt: skip
    descend(point, opt, loss, target, 20)
    start = point.w.detach().tolist()
    before = opt.history[-1].lr[0]
    while opt.history[-1].event != "race":
        descend(point, opt, loss, target, 1)
    record = opt.history[-1]
    first = descended((1.0, 1.0), stiffness, 0.0, 0)[1]
    places = [point.w.detach().tolist()]
    assert len(record.candidates) >= 1
    found = {}
    for rate, measured in record.candidates:
        exponent = round(math.log(rate / before, 3))
        assert rate == pytest.approx(before * 3.0**exponent, rel=1e-12)
        ends = [descended(start, stiffness, rate, steps) for steps in (12, 36)]
        place, value = min(ends, key=lambda end: abs(end[1] - measured))
        assert measured == pytest.approx(value, rel=1e-9)
        found[exponent] = place, value
    best = min(found, key=lambda e: found[e][1])
    assert places[0] == pytest.approx(found[best][0], rel=1e-9)
    width = 0.1 * (first - found[best][1])
    weights = {e: max(0.0, 1 - (value - found[best][1]) / width) for e, (_, value) in found.items()}
    shift = sum(e * w for e, w in weights.items()) / sum(weights.values())
    assert record.lr[0] == pytest.approx(before * 3.0**shift, rel=1e-9)
    assert record.probe_loss == pytest.approx(found[best][1], rel=1e-9)
    assert opt.effective_lrs == pytest.approx(record.lr)
