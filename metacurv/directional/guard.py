"""The guard: it looks at the loss from time to time, and takes a training that has died back to where it was well."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.carried_state import OfParameters
from metacurv.directional.base_state import BaseState
from metacurv.directional.judge import Judge
from metacurv.directional.snapshot import Training, copy_all, copy_buffers, like, like_buffers

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
        self._parameters = [p.clone() for p in training.parameters()]
        self._buffers = training.copied_buffers()
        # Nothing before the first step, but for optimizers such as Adagrad, which cannot do without.
        self.base = BaseState(training.base, frozenset())

    def look(self, *, of_average: bool) -> tuple[float, bool]:
        """Measures the loss, and takes the training back where it has lost much of its progress.

        Args:
            of_average: True to look at the average, False at the iterate.

        Returns:
            The loss, and True where the training was taken back: the parameters and the average are those of the kept place,
            and the base optimizer begins anew.
        """
        loss = self._judge.loss(of_average=of_average, quick=True)
        self._looks += 1
        first = self._judge.first_loss(quick=True)
        most = self.loss + max(_LOST * (first - self.loss), _NOISE * abs(first))
        if not loss <= most:
            self._go_back()
            return loss, True
        is_due = self._looks % _REFRESHED == 0 and not self._keeps_best
        if loss < self.loss or (is_due and loss <= first):
            self._keep(loss, of_average)
        return loss, False

    def end(self) -> bool:
        """Takes a training back, at its end, that is worse than where it began, or than the best; tells whether it did."""
        best = self._keeps_best
        loss = self._judge.loss(of_average=False, quick=best)
        if loss <= (self.loss if best else self._judge.first_loss(quick=False)):
            return False
        self._go_back()
        return True

    def begin_again(self) -> None:
        """Takes the training back to the kept place, which is the first one before any look, with an average begun anew."""
        self._go_back()
        if self._training.average is not None:
            self._training.average.restart()

    def _keep(self, loss: float, of_average: bool) -> None:
        average = self._training.average
        source: list[Tensor] = self._training.parameters()
        if of_average and average is not None:
            source = average.values
        copy_all(self._parameters, source)
        self._buffers = self._training.copied_buffers()
        self.loss = loss

    @torch.no_grad()
    def _go_back(self) -> None:
        training = self._training
        copy_all(training.parameters(), self._parameters)
        copy_buffers(training.buffers(), self._buffers)
        self.base.restore()  # what it has gathered since led here
        if training.average is not None:
            copy_all(training.average.values, self._parameters)

    def extend(self, parameters: list[Tensor]) -> None:
        """Adds the parameters of a new group."""
        self.base.group_added()
        self._parameters.extend(p.detach().clone() for p in parameters)

    def state(self) -> dict[str, Any]:
        """Returns numbers and tensors, for a state dict."""
        return {
            "loss": self.loss,
            "looks": self._looks,
            "parameters": OfParameters(self._parameters),
            "buffers": self._buffers,
            "base": self.base.state(),
        }

    @staticmethod
    def state_before(training: Training) -> dict[str, Any]:
        """Returns the state before there is a guard, with the same entries: frameworks load into those that there are."""
        return {
            "loss": 0.0,
            "looks": 0,
            "parameters": OfParameters(p.clone() for p in training.parameters()),
            "buffers": training.copied_buffers(),
            "base": BaseState(training.base, frozenset()).state(),
        }

    @staticmethod
    def check(training: Training, state: Any, name: str) -> None:
        """Checks that ``state``, called ``name`` in errors, is that of a guard of such a training.

        Raises:
            TypeError: a number in it is of the wrong type.
            ValueError: it has another form, or tensors of other shapes.
        """
        wanted = {"loss", "looks", "parameters", "buffers", "base"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(wanted)}, got {_validate.describe(state)}"
            )
        _validate.real(f"{name}['loss']", state["loss"], low=-math.inf)
        _validate.integer(f"{name}['looks']", state["looks"], low=0)
        like(training.parameters(), state["parameters"], f"{name}['parameters']")
        like_buffers(training.buffers(), state["buffers"], f"{name}['buffers']")
        BaseState(training.base, frozenset()).load(state["base"], f"{name}['base']")

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` returned, after ``check``."""
        self.loss, self._looks = state["loss"], state["looks"]
        copy_all(self._parameters, state["parameters"])
        self._buffers = like_buffers(self._training.buffers(), state["buffers"], "buffers")
        self.base.load(state["base"], "base")
