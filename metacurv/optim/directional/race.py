"""A race of learning rates: candidates take turns in the user's loop, and their losses on the same batches decide.

The user's loop makes every gradient as it always did. Between two steps the race may swap one candidate's parameters, optimizer
state, buffers and average for another's, so that a candidate costs the steps it takes and nothing else. There are two rounds:
a short one, in which larger and smaller rates may join, and one of the best and its neighbours. The winner's training goes on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from metacurv import _validate
from metacurv.optim.directional.checked_state import require, require_entries
from metacurv.optim.directional.judge import Verdict, is_above
from metacurv.optim.directional.snapshot import Snapshot, Training

FACTOR = 3.0  # between neighbours
_WIDE = 2  # neighbours apart in the first round where the start could not tell a rate
_TURN = 5  # steps before another candidate is swapped in
_CLOSE = 0.1  # a loss that lags by this part of the progress has no weight
_BEHIND = 0.15  # and by this part, significantly, ends a candidate after the first round
_NOISE = 0.02  # part of the progress that noise may cost
_LOST = 0.02  # part of the first loss above which a large rate has led away from it
_MOST = 9  # candidates of one race


@dataclass(eq=False)
class Candidate:
    """A rate in the race.

    Attributes:
        exponent: the rate is that of the race's beginning times ``FACTOR ** exponent``.
        steps: steps taken in the race.
        losses: those of the judge's batches after the last round that the candidate finished.
        noise: what noise costs then, less what the average lags behind (see ``Verdict``).
        place: where its training is; None while it is where the race began.
    """

    exponent: int
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    noise: float = 0.0
    place: Snapshot | None = None

    @property
    def loss(self) -> float:
        """The mean loss; inf where one of them is not finite."""
        mean = sum(self.losses) / len(self.losses)
        return mean if math.isfinite(mean) else math.inf

    @property
    def is_dead(self) -> bool:
        """True where the training came to nothing."""
        return math.isinf(self.loss)

    def state(self) -> dict[str, Any]:
        """Returns numbers and tensors, for a state dict."""
        place = None if self.place is None else self.place.state()
        return {**vars(self), "losses": list(self.losses), "place": place}

    @classmethod
    def loaded(cls, training: Training, state: dict[str, Any], name: str) -> Candidate:
        """Checks ``state``, called ``name`` in errors, and returns the candidate that it describes."""
        losses, place = state["losses"], state["place"]
        if not isinstance(losses, list) or not all(isinstance(x, float) for x in losses):
            raise TypeError(
                f"{name} must have lists of floats as losses, got {_validate.describe(losses)}"
            )
        return cls(
            _validate.integer(name, state["exponent"], low=-_MOST * _WIDE),
            _validate.integer(name, state["steps"], low=0),
            list(losses),
            _validate.real(name, state["noise"], low=-math.inf),
            None if place is None else Snapshot.loaded(training, place, name),
        )


@dataclass(frozen=True)
class Outcome:
    """The end of a race: ``exponent`` of the winner, whose training goes on, and the ``shift`` of log lr from the beginning."""

    exponent: int
    shift: float


class Race:
    """Races rates around the present one, ``FACTOR`` apart; see the module.

    Args:
        training: the live training, which is at the race's beginning now.
        judge: measures the live training on some fixed batches.
        lives: tells whether the live training has a finite loss; it is asked after each step.
        first: the mean of those losses before the training began.
        lengths: steps of a candidate until the end of the first and of the second round.
        most_steps: after so many steps of all candidates together no more join.
        candidates: how many rates begin: 3, or 2 (the present one and the next smaller).
        highest: no rate of a larger exponent joins; at least 0.
        wide: True for a first round with rates ``FACTOR ** 2`` apart.
    """

    def __init__(
        self,
        training: Training,
        judge: Callable[[], Verdict],
        lives: Callable[[], bool],
        *,
        first: float,
        lengths: tuple[int, int],
        most_steps: int,
        candidates: int = 3,
        highest: float = math.inf,
        wide: bool = False,
    ) -> None:
        self._training, self._judge, self._lives = training, judge, lives
        self._first, self._lengths, self._most_steps = first, lengths, most_steps
        self._stride = _WIDE if wide else 1
        self._root: Snapshot | None = Snapshot(training)
        self._round = 0
        self._taken = 0
        self._highest = highest
        above = self._stride if candidates > 2 else 0
        exponents = range(-self._stride, above + 1, self._stride)
        self.candidates = [Candidate(e) for e in exponents if e <= highest]
        self._live = self.candidates[0]

    @property
    def exponent(self) -> int:
        """The exponent of the candidate that takes the next step."""
        return self._live.exponent

    def stepped(self) -> Outcome | None:
        """Counts a step of the live candidate; swaps another in where its turn is over. Returns the outcome at the end."""
        live, length = self._live, self._lengths[self._round]
        live.steps += 1
        self._taken += 1
        if not self._lives():
            self._bury(live)
        elif live.steps % _TURN and live.steps < length:
            return None
        waiting = [c for c in self.candidates if c.steps < length]
        if len(waiting) == 1 and waiting[0] is live:
            return None  # alone to the end of the round
        if not (live.losses and live.is_dead):
            live.place = Snapshot(self._training)
        return self._go_on(waiting)

    def _bury(self, candidate: Candidate) -> None:
        """Ends the turns of a candidate that has died.

        A loop that takes no step where the loss is not finite would wait for ever for its turn to end. The place where its last
        turn began is kept where no other is left to go back to.
        """
        candidate.losses, candidate.steps = [math.inf], max(self._lengths)
        if self._root is None and all(c.losses and c.is_dead for c in self.candidates):
            self._root = candidate.place
        candidate.place = None

    def _go_on(self, waiting: Sequence[Candidate]) -> Outcome | None:
        """Gives the next turn, or ends rounds until there is one to give."""
        while not waiting:
            self._measure()
            if not self._joined():
                is_over = self._round == 1
                if not is_over:
                    self._end_first_round()
                if is_over or len(self.candidates) == 1:
                    return self._end()
            waiting = [c for c in self.candidates if c.steps < self._lengths[self._round]]
        self._enter(min(waiting, key=lambda c: c.steps))
        return None

    def _enter(self, candidate: Candidate) -> None:
        place = candidate.place or self._root
        assert place is not None
        place.restore(self._training)
        self._live = candidate
        others = [c for c in self.candidates if c is not candidate]
        if self._round == 1 and all(c.place is not None for c in others):
            self._root = None  # nobody begins there any more

    def _measure(self) -> None:
        """Takes the losses of those candidates that have just finished the round."""
        for candidate in self.candidates:
            if not candidate.losses or (
                self._round == 1 and candidate.steps == self._lengths[1] and not candidate.is_dead
            ):
                self._enter(candidate)
                verdict = self._judge()
                candidate.losses = verdict.losses
                candidate.noise = verdict.noise if math.isfinite(verdict.noise) else 0.0

    def _joined(self) -> bool:
        """Lets a rate beyond the largest or the smallest join, where that may be better; tells whether one did."""
        if self._round == 1 or len(self.candidates) == _MOST or self._taken >= self._most_steps:
            return False
        ranked = sorted(self.candidates, key=lambda c: c.exponent)
        lowest, highest, best = ranked[0], ranked[-1], self._best()
        above = highest.exponent + self._stride
        if above <= self._highest and self._may_lead(highest, best):
            self.candidates.append(Candidate(above))
        elif best.is_dead or (best is lowest and is_worse(ranked[1], lowest)):
            self.candidates.append(Candidate(lowest.exponent - self._stride))
        else:
            return False
        for candidate in self.candidates:
            # Only the best and its neighbours can go on, and the largest, next to which there may be a new best.
            is_far = abs(candidate.exponent - best.exponent) > self._stride
            if is_far and candidate is not highest and candidate.losses:
                candidate.place = None
        return True

    def _may_lead(self, candidate: Candidate, best: Candidate) -> bool:
        """Tells whether a rate may be taken for its size: it is not worse than the best, and has not led upwards."""
        highest = self._first + _LOST * abs(self._first)
        return candidate.loss <= highest and not is_worse(candidate, best)

    def _end_first_round(self) -> None:
        """Keeps the best and its neighbours, without those that are clearly behind."""
        best = self._best()
        if self._stride > 1:
            # Where nothing has moved yet, losses say nothing for the smaller rate.
            best = max(
                (c for c in self.candidates if c is best or self._may_lead(c, best)),
                key=lambda c: c.exponent,
            )
            around = [Candidate(best.exponent - 1), best]
            if best.exponent + 1 <= self._highest:
                around.append(Candidate(best.exponent + 1))
        else:
            behind = _BEHIND * max(self._first - best.loss, 0.0)
            around = [
                c
                for c in self.candidates
                if abs(c.exponent - best.exponent) <= 1
                and (not is_worse(c, best) or c.loss - best.loss <= behind)
            ]
            if not best.is_dead:
                self._root = None
        self.candidates = around
        self._round = 1

    def _end(self) -> Outcome:
        best = self._best()
        close = close_rate(self.candidates, self._first)
        shift = close
        if best.is_dead:
            shift -= 1  # of the smallest rate
        elif self._training.average is not None:
            shift = (close + quiet_rate(self.candidates, self._first, otherwise=close)) / 2
        self._enter(best)
        return Outcome(best.exponent, shift * math.log(FACTOR))

    def _best(self) -> Candidate:
        """Returns the candidate of the least loss; the smallest rate where all have died."""
        return min(self.candidates, key=lambda c: (c.loss, c.exponent))

    def settle(self) -> Outcome:
        """Ends the race at once, by the losses so far; the live candidate goes on where there are none."""
        judged = [c for c in self.candidates if c.losses and not c.is_dead]
        if not judged:
            return Outcome(self._live.exponent, self._live.exponent * math.log(FACTOR))
        self._live.place = Snapshot(self._training)
        self.candidates = judged
        return self._end()

    # Resuming.

    def state(self) -> dict[str, Any]:
        """Returns numbers and tensors, for a state dict."""
        return {
            "round": self._round,
            "taken": self._taken,
            "stride": self._stride,
            "first": self._first,
            "lengths": list(self._lengths),
            "most_steps": self._most_steps,
            "highest": self._highest,
            "live": self.candidates.index(self._live),
            "root": None if self._root is None else self._root.state(),
            "candidates": [c.state() for c in self.candidates],
        }

    @classmethod
    def loaded(
        cls,
        training: Training,
        judge: Callable[[], Verdict],
        lives: Callable[[], bool],
        state: Any,
        name: str,
    ) -> Race:
        """Checks ``state``, called ``name`` in errors, and returns the race that it describes."""
        numbers = {"round": (0, 2), "taken": (0, None), "stride": (1, _WIDE + 1)}
        numbers |= {"most_steps": (0, None)}
        others = {"first", "lengths", "highest", "live", "root", "candidates"}
        require_entries(state, numbers.keys() | others, name)
        parts, where = state["candidates"], f"{name}['candidates']"
        keys = Candidate(0).state().keys()
        are_dicts = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
        fits = are_dicts and bool(parts) and all(keys <= part.keys() for part in parts)
        require(fits, where, f"a list of dicts with {sorted(keys)}", parts)
        for key, (low, high) in {**numbers, "live": (0, len(parts))}.items():
            _validate.integer(f"{name}[{key!r}]", state[key], low=low, high=high)
        lengths, highest = state["lengths"], state["highest"]
        fits = isinstance(lengths, list) and len(lengths) == 2
        require(fits, f"{name}['lengths']", "a list of 2 integers", lengths)
        short, long = (_validate.integer(f"{name}['lengths']", n, low=1) for n in lengths)
        if highest != math.inf:
            _validate.integer(f"{name}['highest']", highest, low=0)
        new = cls(
            training, judge, lives, first=_validate.real(f"{name}['first']", state["first"]),
            lengths=(short, long), most_steps=state["most_steps"], highest=highest,
            wide=state["stride"] == _WIDE,
        )  # fmt: skip
        new._round, new._taken, root = state["round"], state["taken"], state["root"]
        new._root = None if root is None else Snapshot.loaded(training, root, f"{name}['root']")
        new.candidates = [Candidate.loaded(training, part, where) for part in parts]
        new._live = new.candidates[state["live"]]
        return new


def is_worse(candidate: Candidate, than: Candidate) -> bool:
    """Tells whether the losses of one are significantly above those of the other, batch by batch."""
    if candidate.is_dead or than.is_dead:
        return candidate.is_dead and not than.is_dead
    return is_above(candidate.losses, than.losses)


def close_rate(candidates: Sequence[Candidate], first: float) -> float:
    """Returns the mean exponent of the candidates, each weighted by how close its loss is to the least.

    The weight is 1 for the least loss and falls linearly to 0 at a lag of ``_CLOSE`` of the progress since ``first``. So where
    two rates do equally well the one between them is taken, and trainings from other seeds come to about the same rate.
    """
    least = min(candidates, key=lambda c: (c.loss, c.exponent))
    if least.is_dead:
        return least.exponent
    width = _CLOSE * (first - least.loss)
    if width <= 0:
        return least.exponent
    weights = [max(0.0, 1 - (c.loss - least.loss) / width) for c in candidates]
    return sum(w * c.exponent for w, c in zip(weights, candidates, strict=True)) / sum(weights)


def quiet_rate(candidates: Sequence[Candidate], first: float, *, otherwise: float) -> float:
    """Returns the exponent at which noise costs ``_NOISE`` of the average's progress since ``first``.

    It is interpolated between neighbours; where all candidates are noisier it is the least of theirs, and where all are quieter
    the largest. Without two candidates that live there is nothing to interpolate, and it is ``otherwise``.
    """
    costs = []
    for c in sorted(candidates, key=lambda c: c.exponent):
        if c.is_dead:
            continue
        progress = first - (c.loss - c.noise / 2)  # of the average
        costs.append((c.exponent, c.noise / progress if progress > 0 else math.inf))
    if len(costs) < 2:
        return otherwise
    if costs[0][1] >= _NOISE:
        return costs[0][0]
    for (low, below), (high, above) in itertools.pairwise(costs):
        if below < _NOISE <= above:
            part = (_NOISE - below) / (above - below) if math.isfinite(above) else 0.0
            return low + part * (high - low)
    return costs[-1][0]
