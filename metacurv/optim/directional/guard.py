"""The guard: it looks at the loss from time to time, and takes a training that has died back to where it was well."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from metacurv import _validate
from metacurv.optim.directional.base_state import BaseState
from metacurv.optim.directional.checked_state import require_entries
from metacurv.optim.directional.copies import copy_all
from metacurv.optim.directional.judge import Judge, is_above
from metacurv.optim.directional.snapshot import Place, Training

_LOST = 0.25  # part of the progress since the beginning whose loss is death
_NOISE = 0.02  # part of the first loss that may be lost in any case
_REFRESHED = 5  # looks after which a place that is no better is kept, so that the comparison is with the recent past


class Guard:
    """Keeps one copy of the parameters, at a place where the loss was low.

    Args:
        training: the live training, before its first step.
        judge: measures the loss.
        keeps_best: True to keep the place of the least loss; False to keep a recent one.

    Attributes:
        loss: the loss at the place that is kept.
        base: the state of the base that a training begins with when it is taken back.
    """

    def __init__(self, training: Training, judge: Judge, *, keeps_best: bool) -> None:
        self._training, self._judge, self._keeps_best = training, judge, keeps_best
        self.loss = judge.first_loss(quick=True)
        self._looks = 0
        self._kept = Place(training)
        # A few examples may see progress where there is none, so the end can go back to the beginning.
        self._first = self._kept if judge.has_few else None
        # Nothing before the first step, but for optimizers such as Adagrad, which cannot do without.
        self.base = BaseState(training.base, frozenset())

    def look(self, *, of_average: bool, has_died: bool = False) -> tuple[float, bool]:
        """Measures the loss, and takes the training back where it has lost much of its progress.

        Args:
            of_average: True to look at the average, False at the iterate.
            has_died: True to take it back in any case.

        Returns:
            The loss, and True where the training was taken back: the parameters and the average are those of the kept place,
            and the base optimizer begins anew.
        """
        loss = self._judge.loss(of_average=of_average, quick=True)
        self._looks += 1
        first = self._judge.first_loss(quick=True)
        most = self.loss + max(_LOST * (first - self.loss), _NOISE * abs(first))
        if has_died or not loss <= most:
            self._go_to(self._kept)
            return loss, True
        is_due = self._looks % _REFRESHED == 0 and not self._keeps_best
        if loss < self.loss or (is_due and loss <= first):
            if self._kept is self._first:
                self._kept = Place(self._training)
            average = self._training.average if of_average else None
            source = self._training.parameters() if average is None else average.values
            self._kept.move_to(self._training, source)
            self.loss = loss
        return loss, False

    def end(self) -> bool:
        """Takes a training back, at its end, that is worse than where it began, or than the best; tells whether it did."""
        best = self._keeps_best
        if not best and self._first is not None and not self._judge.has_learned_much():
            return self._choose(self._first)
        loss = self._judge.loss(of_average=False, quick=best)
        if loss <= (self.loss if best else self._judge.first_loss(quick=False)):
            return False
        self._go_to(self._kept)
        return True

    def _choose(self, first: Place) -> bool:
        """Goes to the first place unless, on more batches, the end or the kept one is clearly better; tells whether it left."""
        end, losses_of_more = Place(self._training), self._judge.on_more()
        losses = {}
        for place in (end, self._kept, first):
            place.restore(self._training)
            losses[place] = losses_of_more()
        best = end if sum(losses[end]) <= sum(losses[self._kept]) else self._kept
        if not is_above(losses[first], losses[best]):
            best = end if losses[end] == losses[first] else first
        if best is end:
            end.restore(self._training)
        else:
            self._go_to(best)
        return best is not end

    def begin_again(self) -> None:
        """Takes the training back to the kept place, which is the first one before any look, with an average begun anew."""
        self._go_to(self._kept)
        if self._training.average is not None:
            self._training.average.restart()

    def _go_to(self, place: Place) -> None:
        place.restore(self._training)
        self.base.restore()  # what it has gathered since led here
        if self._training.average is not None:
            copy_all(self._training.average.values, place.parameters)

    def extend(self, parameters: list[Tensor]) -> None:
        """Adds the parameters of a new group."""
        self.base.group_added()
        for place in {self._kept, self._first or self._kept}:
            place.parameters.extend(p.detach().clone() for p in parameters)

    # Resuming.

    def state(self) -> dict[str, Any]:
        """Returns numbers and tensors, for a state dict."""
        return _state(self.loss, self._looks, self._kept, self._first, self.base)

    @staticmethod
    def state_before(training: Training, *, had_state: bool) -> dict[str, Any]:
        """Returns the state before there is a guard, with the same entries: frameworks load into those that there are.

        ``had_state`` tells whether the base had a state before its first step.
        """
        base = BaseState(training.base, frozenset())
        if not had_state:
            base.clear()
        return _state(0.0, 0, Place(training), None, base)

    @staticmethod
    def check(training: Training, state: Any, name: str) -> None:
        """Checks that ``state``, called ``name`` in errors, is that of a guard of such a training."""
        require_entries(state, {"loss", "looks", "parameters", "buffers", "first", "base"}, name)
        _validate.real(f"{name}['loss']", state["loss"], low=-math.inf)
        _validate.integer(f"{name}['looks']", state["looks"], low=0)
        Place.loaded(training, state, name)
        Place.loaded(training, state["first"], f"{name}['first']")
        BaseState(training.base, frozenset()).load(state["base"], f"{name}['base']")

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` returned, after ``check``."""
        self.loss, self._looks = state["loss"], state["looks"]
        self._kept = Place.loaded(self._training, state, "guard")
        if self._judge.has_few:
            self._first = Place.loaded(self._training, state["first"], "guard['first']")
        self.base.load(state["base"], "base")


def _state(
    loss: float, looks: int, kept: Place, first: Place | None, base: BaseState
) -> dict[str, Any]:
    return {
        "loss": loss,
        "looks": looks,
        **kept.state(),
        "first": (first or kept).state(),
        "base": base.state(),
    }
